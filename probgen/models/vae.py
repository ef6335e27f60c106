"""Variational autoencoder: prior, decoder and encoder are any conditional distributions."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.contexts import (
    beside,
    beside_size,
    distribution_given,
    ignores,
    received,
    size_of,
)
from probgen.core.missing import fill_missing
from probgen.core.module import DistributionModule, LatentVariableModel, data_plate
from probgen.core.turns import same_random_state


class VAE(LatentVariableModel):
    r"""Variational autoencoder, a latent-variable model with an amortized posterior.

    .. math:: p(x, z \mid c) = p(z \mid c)\, p(x \mid z, c), \qquad q(z \mid x, c)

    Sites: latent ``"z"``, observed ``"x"``, both in plate ``"data"``. Missing entries of x (NaN)
    are integrated out by a decoder that does so (every head) and shown to the encoder as 0 (Mattei,
    Frellsen 2019).

    With a context c of shape ``(*batch, K)`` the VAE is conditional (Sohn, Lee, Yan 2015): the
    prior is called with c, the decoder with z and c side by side, the encoder with x and c. Side by
    side means along the last dim of vectors and sequences, along the channels of images (modules
    with ``context_ndim`` 3), repeated over all other event dims: a decoder takes ``(*batch, Z +
    K)``, an image encoder ``(*batch, C + K, H, W)``.

    Parameters
    ----------
    prior : DistributionModule or LatentVariableModel
        p(z) of events ``(Z,)``, or p(z | c); without parameters for the context it must expand to
        its rows.
    decoder : DistributionModule
        p(x | z), for instance ``Bernoulli(MLP(Z, [400], D))``.
    encoder : DistributionModule
        q(z | x) with exact density, for instance ``Gaussian(MLP(D, [400], 2 * Z))``.

    References
    ----------
    Kingma, Welling (2014), Auto-encoding variational Bayes, https://arxiv.org/abs/1312.6114; Sohn,
    Lee, Yan (2015), Learning structured output representation using deep conditional generative
    models; Mattei, Frellsen (2019), MIWAE, https://arxiv.org/abs/1812.02633

    >>> from probgen.heads import Bernoulli, Gaussian
    >>> from probgen.core.module import Fixed
    >>> from probgen.nn import MLP
    >>> prior = Fixed(dist.Normal, loc=torch.zeros(2), scale=1.0)
    >>> vae = VAE(prior, Bernoulli(MLP(2, [16], 9)), Gaussian(MLP(9, [16], 4)))
    >>> vae().sample((5,)).shape, vae.encode(torch.ones(5, 9)).mean.shape
    (torch.Size([5, 9]), torch.Size([5, 2]))
    """

    unknown_contexts = False
    context_hint = "build its networks for {size} more inputs"

    def __init__(
        self,
        prior: DistributionModule | LatentVariableModel,
        decoder: DistributionModule,
        encoder: DistributionModule,
    ):
        checks.generative(prior=prior, decoder=decoder, encoder=encoder)
        super().__init__()
        self.prior = prior
        self.decoder = decoder
        self.encoder = encoder
        self.latents = _length(prior)

    @property
    def context_size(self) -> int | None:
        """What the prior declares, or what the decoder takes beside the latents."""
        return size_of(self.prior) or (
            None if self.latents is None else beside_size(self.decoder, self.latents)
        )

    def model(self, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        with data_plate(x, context):
            z = pyro.sample("z", distribution_given(self.prior, context))
            return pyro.sample("x", self.decode(z, context), obs=x)

    def guide(self, x: Tensor | None = None, context: Tensor | None = None) -> None:
        if x is None:  # all latents belong to rows: no globals to draw
            return
        with data_plate(x, context):
            pyro.sample("z", self.encode(x, context))

    def encode(self, x: Tensor, context: Tensor | None = None) -> dist.TorchDistribution:
        """The approximate posterior q(z | x, c): ``(*batch, *event) -> batch_shape (*batch,)``; NaN enters as 0."""
        if context is not None and x.ndim - self.encoder.context_ndim > context.ndim - 1:
            raise ValueError(
                "expected x of shape (N, *event), one row for each of the contexts "
                f"{tuple(context.shape)}, got "
                f"{tuple(x.shape)}; take out the dims between rows and events"
            )
        return self.encoder(
            beside(fill_missing(x), received(self, context), self.encoder.context_ndim)
        )

    def decode(self, z: Tensor, context: Tensor | None = None) -> dist.TorchDistribution:
        """The likelihood p(x | z, c): ``(*batch, Z) -> batch_shape (*batch,)``."""
        return self.decoder(beside(z, received(self, context), self.decoder.context_ndim))


def _length(prior: DistributionModule | LatentVariableModel) -> int | None:
    """Length Z of the latents; ``None`` where it cannot be seen without a context."""
    if not ignores(prior) and size_of(prior) != 0:
        return None
    with torch.no_grad(), same_random_state():
        shape = prior().event_shape
    return shape[0] if len(shape) == 1 else None
