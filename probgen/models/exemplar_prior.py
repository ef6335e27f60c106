"""The exemplar prior: every training row is the center of a component of the prior."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import for_each_context
from probgen.core.conversion import complete_rows
from probgen.core.module import DistributionModule
from probgen.distributions.equal_normals import EqualNormals


class ExemplarPrior(DistributionModule):
    r"""Exemplar prior of a VAE: a kernel density estimate among the encoded training rows.

    .. math:: p(z) = \frac1N \sum_{n=1}^N \mathcal N\big(z;\, \mu_\phi(x_n),\, \sigma^2 I\big)

    with :math:`\mu_\phi` the mean of the encoder, which the VAE shares, and one learned
    :math:`\sigma`. What is drawn resembles an exemplar, which can be named.

    In training mode each evaluation takes a fresh random set of ``training_exemplars`` of the N
    rows, whose log average is a lower bound of the log density in the mean; a row then meets itself
    among them with probability M / N, which should be small. In eval mode all N count, and the
    density is exact.

    Parameters
    ----------
    encoder : DistributionModule
        q(z | x) with a mean, of vectors z.
    exemplars : Tensor
        Training rows, ``(N, *event)``, kept as a buffer and saved with the model.
    training_exemplars : int, optional
        Number M of exemplars for an evaluation in training; default: all.
    scale : float
        Where :math:`\sigma` starts.

    Raises
    ------
    ValueError
        If there are no complete rows, or fewer than ``training_exemplars``.

    References
    ----------
    Norouzi, Fleet, Norouzi (2020), Exemplar VAE, https://arxiv.org/abs/2004.04795

    >>> from probgen.heads import Bernoulli, Gaussian
    >>> from probgen.models.vae import VAE
    >>> from probgen.nn import MLP
    >>> x = torch.bernoulli(torch.full((100, 9), 0.5))
    >>> encoder = Gaussian(MLP(9, [16], 4))
    >>> prior = ExemplarPrior(encoder, x, training_exemplars=20)
    >>> vae = VAE(prior, Bernoulli(MLP(2, [16], 9)), encoder)
    >>> prior.train()().component_distribution.batch_shape, prior.eval()().component_distribution.batch_shape
    (torch.Size([20]), torch.Size([100]))
    """

    ignores_contexts = True

    exemplars: Tensor

    def __init__(
        self,
        encoder: DistributionModule,
        exemplars: Tensor,
        *,
        training_exemplars: int | None = None,
        scale: float = 1.0,
    ):
        checks.generative(encoder=encoder)
        checks.at_least(1, **checks.given(training_exemplars=training_exemplars))
        checks.positive(scale=scale)
        super().__init__()
        rows = complete_rows("exemplars", exemplars)
        checks.rows(encoder.context_ndim, exemplars=rows)
        if training_exemplars is not None and training_exemplars > len(rows):
            raise ValueError(
                f"expected training_exemplars of at most {len(rows)}, the number of exemplars, got "
                f"{training_exemplars}; give more exemplars, or None for all"
            )
        self.encoder = encoder
        self.training_exemplars = training_exemplars
        self.log_scale = nn.Parameter(torch.tensor(float(scale)).log())
        self.register_buffer("exemplars", rows)

    def forward(self, context: Tensor | None = None) -> EqualNormals:
        rows = self.exemplars
        if self.training and self.training_exemplars is not None:
            chosen = torch.randperm(len(rows), device=rows.device)[: self.training_exemplars]
            rows = rows[chosen]
        centers = self.encoder(rows).mean
        mixture = EqualNormals(centers, self.log_scale.exp())
        return for_each_context(mixture, context, self.context_ndim)
