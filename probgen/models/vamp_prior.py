"""The variational mixture of posteriors as a prior: what the encoder makes of learned inputs."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from probgen.core import checks
from probgen.core.contexts import for_each_context
from probgen.core.conversion import complete_rows
from probgen.core.module import DistributionModule

MARGIN = 0.02  # share of an interval that first inputs keep from its ends, which have no inverse


class VampPrior(DistributionModule):
    r"""Variational mixture of posteriors (VampPrior).

    .. math:: p(z) = \sum_{k=1}^K w_k\, q(z \mid u_k)

    The optimal prior of a VAE is its aggregated posterior, the average of :math:`q(z \mid x)` over
    all data. This one averages the encoder over K *pseudo-inputs* :math:`u_k` that are learned with
    it. The encoder is given to the VAE as well, and its weights are shared:

    >>> from probgen.heads import Bernoulli, Gaussian
    >>> from probgen.models.vae import VAE
    >>> from probgen.nn import MLP
    >>> x = torch.bernoulli(torch.full((100, 9), 0.5))
    >>> encoder = Gaussian(MLP(9, [16], 4))
    >>> vae = VAE(VampPrior(encoder, x[:20]), Bernoulli(MLP(2, [16], 9)), encoder)
    >>> vae.prior().component_distribution.batch_shape, vae().sample((5,)).shape
    (torch.Size([20]), torch.Size([5, 9]))

    Parameters
    ----------
    encoder : DistributionModule
        q(z | x), with exact density.
    pseudo_inputs : Tensor
        Where the inputs start, ``(K, *event)``: for instance K rows of the data.
    support : Constraint
        Where the inputs stay, entry by entry: ``constraints.unit_interval`` for pixels; by default
        they are free. Those that start at an end of an interval are moved 2 % of it inwards.
    learned_weights : bool
        Whether the weights :math:`w_k` are learned; by default all are 1 / K.

    Raises
    ------
    ValueError
        If there are no rows, or the inputs lie outside of their support.

    References
    ----------
    Tomczak, Welling (2018), VAE with a VampPrior, https://arxiv.org/abs/1705.07120
    """

    ignores_contexts = True

    def __init__(
        self,
        encoder: DistributionModule,
        pseudo_inputs: Tensor,
        *,
        support: constraints.Constraint = constraints.real,
        learned_weights: bool = False,
    ):
        checks.generative(encoder=encoder)
        checks.instance(constraints.Constraint, support=support)
        checks.flag(learned_weights=learned_weights)
        learned_weights = bool(learned_weights)
        super().__init__()
        rows = complete_rows("pseudo_inputs", pseudo_inputs)
        checks.rows(encoder.context_ndim, pseudo_inputs=rows)
        self.encoder = encoder
        self.support = support
        self.free_inputs = nn.Parameter(_free(rows, support))
        self.logits = nn.Parameter(rows.new_zeros(len(rows)), requires_grad=learned_weights)

    @property
    def pseudo_inputs(self) -> Tensor:
        """The inputs :math:`u_k` as they are now, ``(K, *event)``."""
        return transform_to(self.support)(self.free_inputs)

    def forward(self, context: Tensor | None = None) -> dist.MixtureSameFamily:
        components = self.encoder(self.pseudo_inputs)
        mixture = dist.MixtureSameFamily(dist.Categorical(logits=self.logits), components)
        return for_each_context(mixture, context, self.context_ndim)


def _free(rows: Tensor, support: constraints.Constraint) -> Tensor:
    """What the transformation to the support makes the rows of."""
    lower = getattr(support, "lower_bound", None)
    upper = getattr(support, "upper_bound", None)
    if lower is not None and upper is not None:
        margin = MARGIN * (upper - lower)
        inside = rows.clamp(lower + margin, upper - margin)
        rows = torch.where(support.check(rows), inside, rows)
    if not support.check(rows).all():
        raise ValueError(
            f"expected pseudo_inputs in their support, got values from {float(rows.min()):.4g} to "
            f"{float(rows.max()):.4g} for {support}; scale the rows, or give another support="
        )
    return transform_to(support).inv(rows).clone()
