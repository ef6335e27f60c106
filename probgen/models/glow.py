"""Glow: a normalizing flow of images."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from probgen import heads
from probgen.core import checks
from probgen.core.contexts import batch_of, received
from probgen.core.entry import as_rows
from probgen.core.module import DistributionModule
from probgen.distributions.flows.multi_scale import MultiScale
from probgen.nn.invertible import (
    ActNorm,
    AffineCoupling,
    CouplingNet,
    InvertibleConv,
    NetworkMaker,
    Shape,
)
from probgen.nn.scales import ImageScale, contexts_of_scales, halvings


class Glow(DistributionModule):
    r"""Glow, a multi-scale flow of images made of invertible 1 x 1 convolutions and affine couplings.

    .. math:: \log p(x) = \sum_l \log p(z_l \mid h_l) + \log\left|\det \frac{\partial f_l}{\partial h_{l-1}}\right|

    Every :math:`f_l` turns 2 x 2 pixels into channels and applies ``flow_steps`` times: activation
    normalization, a linear map of the channels, an affine coupling. Half of the channels then
    become latents z, normal given the other half h.

    Call :meth:`initialize` with some rows before fitting (the data-dependent initialization of
    activation normalization; nothing is initialized behind your back, and without it these layers
    start as the identity). Pixels with levels 0, 1, ... are modeled by ``Quantized(Glow(...))``,
    other units by ``Standardized``.

    Parameters
    ----------
    shape : (int, int, int)
        Channels, height and width of the images; height and width divisible by ``2 ** scales``.
    scales : int
        Number of scales.
    flow_steps : int
        Steps of flow per scale, K in the paper.
    network : callable
        ``network(shape, outputs)`` makes a network ``(N, *shape) -> (N, outputs, H, W)``, for
        instance ``partial(CouplingNet, hidden=128)``.
    context : int
        Width K of the context, if there is one.
    context_ndim : int
        1 for contexts ``(*batch, K)``, 3 for images ``(*batch, K, H, W)`` of the height and width
        of x.

    Raises
    ------
    ValueError
        If height or width is not divisible by ``2 ** scales``.

    References
    ----------
    Kingma, Dhariwal (2018), Glow: generative flow with invertible 1x1 convolutions,
    https://arxiv.org/abs/1807.03039

    >>> glow, x = Glow((1, 8, 8), scales=2, flow_steps=2), torch.randn(16, 1, 8, 8)
    >>> glow.initialize(x)
    >>> glow().log_prob(x).shape, glow().sample((5,)).shape
    (torch.Size([16]), torch.Size([5, 1, 8, 8]))
    """

    scales: Any  # nn.ModuleList of ImageScale

    def __init__(
        self,
        shape: Shape,
        *,
        scales: int = 2,
        flow_steps: int = 4,
        network: NetworkMaker = CouplingNet,
        context: int = 0,
        context_ndim: int = 1,
    ):
        checks.sizes(shape=shape)
        checks.length(3, shape=shape)
        checks.at_least(1, scales=scales, flow_steps=flow_steps)
        checks.factory(network=network)
        checks.at_least(0, context=context, context_ndim=context_ndim)
        super().__init__()
        self.shape = tuple(shape)
        self.context_size = context
        self.context_ndim = context_ndim
        self.head = heads.Gaussian(event_ndim=3)
        unit = torch.tensor([0.0, math.log(math.expm1(1))])

        def layers(shape: Shape, context: int) -> list[nn.Module]:
            def step() -> tuple[nn.Module, ...]:
                return (
                    ActNorm(shape[0]),
                    InvertibleConv(shape[0]),
                    AffineCoupling(shape, network, context),
                )

            return [layer for _ in range(flow_steps) for layer in step()]

        self.scales = nn.ModuleList(
            ImageScale(layers(shape, known), shape, kept, unit, network, known)
            for shape, kept, known in halvings(shape, scales, context, context_ndim)
        )

    def forward(self, context: Tensor | None = None) -> MultiScale:
        contexts = contexts_of_scales(context, self.context_ndim, len(self.scales))
        batch = batch_of(context, self.context_ndim)
        return MultiScale(list(self.scales), self.head, self.shape, contexts, batch)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Sets every activation normalization such that its channels have mean 0 and variance 1 over these rows.

        In place: rows ``(N, C, H, W)`` in the units that the flow takes, some hundreds suffice;
        their contexts.
        """
        x, context = (*as_rows(self, x, context), None)[:2]
        contexts = contexts_of_scales(received(self, context), self.context_ndim, len(self.scales))
        for scale, known in zip(self.scales, contexts, strict=True):
            x = scale.initialize(x, known)
