"""Integer discrete flows.

Bijections of integers under distributions of integers, with exact masses.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen import heads
from probgen.core import checks
from probgen.core.contexts import batch_of, received
from probgen.core.entry import as_rows
from probgen.core.module import DistributionModule
from probgen.distributions.flows.integer_logistic import IntegerLogisticMixture
from probgen.distributions.flows.multi_scale import MultiScale
from probgen.nn.invertible import CouplingNet, IntegerCoupling, NetworkMaker, Shape, Shuffle
from probgen.nn.scales import ImageScale, contexts_of_scales, halvings


class IntegerFlow(DistributionModule):
    r"""Integer discrete flow of images.

    Exact probability masses of integer pixels, without dequantization.

    .. math:: P(x) = \prod_l P(z_l \mid h_l), \qquad (h_l, z_l) = f_l(h_{l-1}), \qquad
              y_2 = x_2 + \operatorname{round}(t(x_1))

    Every :math:`f_l` turns 2 x 2 pixels into channels and applies ``flow_steps`` times a fixed
    permutation of the channels and a rounded additive coupling; no volume changes, so that masses
    need no correction. Half of the channels then become latents, mixtures of discretized logistic
    distributions given the other half.

    The masses sum to 1 over *all* integers: levels 0, ..., L - 1 are the units of the networks, not
    the support, and a few samples may lie outside. Bijections of integers cannot change the set of
    masses, only whose they are; what a flow gains is that they factorize (the gradient through
    rounding is biased, the mass is exact).

    Parameters
    ----------
    shape : (int, int, int)
        Channels, height and width of the images; height and width divisible by ``2 ** scales``.
    levels : int
        Number L of levels that pixels have.
    scales, flow_steps, network, context, context_ndim
        As in :class:`Glow <probgen.models.glow.Glow>`.
    components : int
        Logistic distributions in the mixture of every latent.

    Raises
    ------
    ValueError
        If height or width is not divisible by ``2 ** scales``, or there are fewer than two levels.

    References
    ----------
    Hoogeboom, Peters, van den Berg, Welling (2019), Integer discrete flows and lossless
    compression, https://arxiv.org/abs/1905.07376

    >>> flow, x = IntegerFlow((1, 8, 8), levels=17), torch.randint(17, (5, 1, 8, 8)).float()
    >>> flow().log_prob(x).shape, flow().sample((3,)).shape
    (torch.Size([5]), torch.Size([3, 1, 8, 8]))
    """

    scales: Any  # nn.ModuleList of ImageScale

    def __init__(
        self,
        shape: Shape,
        *,
        levels: int,
        scales: int = 2,
        flow_steps: int = 4,
        components: int = 5,
        network: NetworkMaker = CouplingNet,
        context: int = 0,
        context_ndim: int = 1,
    ):
        checks.sizes(shape=shape)
        checks.length(3, shape=shape)
        checks.at_least(2, levels=levels)
        checks.at_least(1, scales=scales, flow_steps=flow_steps, components=components)
        checks.factory(network=network)
        checks.at_least(0, context=context, context_ndim=context_ndim)
        super().__init__()
        self.shape = tuple(shape)
        self.context_size = context
        self.context_ndim = context_ndim
        self.head = _IntegerHead(levels, components)
        center = (levels - 1) / 2
        start = _spread(components)

        def layers(shape: Shape, context: int) -> list[nn.Module]:
            def step() -> tuple[nn.Module, ...]:
                return (
                    Shuffle(shape[0]),
                    IntegerCoupling(shape, network, context, center, center),
                )

            return [layer for _ in range(flow_steps) for layer in step()]

        self.scales = nn.ModuleList(
            ImageScale(layers(shape, known), shape, kept, start, network, known, center, center)
            for shape, kept, known in halvings(shape, scales, context, context_ndim)
        )

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Starts the components of every latent at the quantiles of its values over these rows.

        In place.

        Integer images ``(N, C, H, W)``, some hundreds suffice, and their contexts. Without it
        components are spread over all levels everywhere, which takes many steps to unlearn for
        pixels that hardly vary.
        """
        x, context = (*as_rows(self, x, context), None)[:2]
        contexts = contexts_of_scales(received(self, context), self.context_ndim, len(self.scales))
        for scale, known in zip(self.scales, contexts, strict=True):
            x, latents, _ = scale.encode(x, known)
            scale.offset.copy_(self.head.fitted(latents))

    def forward(self, context: Tensor | None = None) -> MultiScale:
        contexts = contexts_of_scales(context, self.context_ndim, len(self.scales))
        batch = batch_of(context, self.context_ndim)
        return MultiScale(list(self.scales), self.head, self.shape, contexts, batch)


def _spread(components: int) -> Tensor:
    """Raw parameters of broad components spread over the levels."""
    ends = 1 - 1 / components
    return torch.cat(
        (
            torch.zeros(components),
            torch.linspace(-ends, ends, components),
            torch.full((components,), -1.5),
        )
    )


class _IntegerHead(heads.Head):
    """Locations and scales in units of half the range of the levels, from its center.

    Clamped as other heads are.
    """

    def __init__(self, levels: int, components: int):
        if levels < 2 or components < 1:
            raise ValueError(
                f"expected levels >= 2 and components >= 1, got {levels=}, {components=}"
            )
        names = tuple(
            f"{name} {k}" for name in ("logit", "loc", "log scale") for k in range(components)
        )
        super().__init__(None, names, event_ndim=3)
        self.components = components
        self.half_range = (levels - 1) / 2

    def fitted(self, z: Tensor) -> Tensor:
        """Raw parameters of components at the quantiles of latents ``(N, C, H, W)``.

        Scaled by their distances.
        """
        share = torch.linspace(0, 1, 2 * self.components + 1, dtype=z.dtype, device=z.device)
        quantiles = z.quantile(share, 0)
        loc = quantiles[1::2]
        scale = (quantiles[2::2] - quantiles[:-1:2]) / 4 + 0.15
        return torch.cat(
            (torch.zeros_like(loc), loc / self.half_range - 1, (scale / self.half_range).log())
        ).flatten(0, 1)

    def distribution(self, raw: Tensor) -> dist.TorchDistribution:
        logits, loc, log_scale = raw.movedim(0, -1).split(self.components, -1)
        return IntegerLogisticMixture(
            logits, self.half_range * (1 + loc), log_scale.clamp(-7, 7) + math.log(self.half_range)
        )
