"""Normalizing flows of angles: on the circle and on tori of any dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import batch_of
from probgen.core.module import DistributionModule
from probgen.distributions.flows.autoregressive_transform import CouplingTransform
from probgen.distributions.flows.circular import CircularTransform, UniformBox, with_context
from probgen.distributions.flows.flow import Pushforward
from probgen.nn import MLP, Constant


class CircularFlow(DistributionModule):
    r"""Flow of D angles (directions, phases, dihedral angles): circular splines in coupling layers.

    .. math:: p(\theta) = (2\pi)^{-D} \prod_l \left|\det \frac{\partial f_l}{\partial \theta}\right|, \qquad
              f_l : (\theta_1, \theta_2) \mapsto \bigl(g(\theta_2;\, r(\cos\theta_1, \sin\theta_1,
              c)),\, \theta_1\bigr)

    The density, with respect to angles in radians, has the period :math:`2\pi` in every angle and
    is continuous across the seam; it integrates to 1 over one turn of each. x takes angles from
    anywhere, samples lie in [-pi, pi].

    Parameters
    ----------
    dims : int
        Number D of angles: 1 for the circle, 2 and more for a torus.
    transforms : int
        Layers; each changes about half of the angles (all of them on the circle), so that a torus
        needs two or more.
    bins : int
        Bins of the splines.
    hidden : sequence of int
        Hidden layers of the networks r.
    context : int
        Width of the context, if there is one.

    Raises
    ------
    ValueError
        If there are too few dims or transforms.

    References
    ----------
    Rezende et al. (2020), Normalizing flows on tori and spheres, https://arxiv.org/abs/2002.02428

    >>> flow, x = CircularFlow(2), torch.tensor([[0.5, -3.0]])
    >>> torch.allclose(flow().log_prob(x), flow().log_prob(x + 2 * math.pi), atol=1e-4)
    True
    """

    corner: Tensor

    def __init__(
        self,
        dims: int = 1,
        *,
        transforms: int = 4,
        bins: int = 8,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
    ):
        checks.at_least(1, dims=dims, transforms=transforms, bins=bins)
        checks.sizes(hidden=hidden)
        checks.at_least(0, context=context)
        super().__init__()
        if dims < 1 or transforms < 1 + (dims > 1):
            raise ValueError(
                f"expected dims >= 1, transforms >= 1 (2 on a torus), got {dims=}, {transforms=}"
            )
        self.dims = dims
        self.raw = 3 * bins + 1
        self.context_size = context
        self.register_buffer("corner", torch.full((dims,), math.pi))
        self.kept = [
            dims // 2 if layer % 2 == 0 else dims - dims // 2 for layer in range(transforms)
        ]
        if dims == 1:
            self.kept = [0] * transforms
        outputs = [(dims - kept) * self.raw for kept in self.kept]
        self.nets = nn.ModuleList(
            MLP(2 * kept + context, hidden, width) if kept + context else Constant(width)
            for kept, width in zip(self.kept, outputs, strict=True)
        )

    def forward(self, context: Tensor | None = None) -> Pushforward:
        base = UniformBox(-self.corner, self.corner, batch_of(context))
        layers = zip(self.nets, self.kept, strict=True)
        return Pushforward.through(
            base, [CouplingTransform(partial(self._map, n, context), k) for n, k in layers]
        )

    def _map(self, net: nn.Module, context: Tensor | None, kept: Tensor) -> CircularTransform:
        """The map of the other angles given those kept."""
        features = with_context(torch.cat((kept.cos(), kept.sin()), -1), context)
        raw = net(features) if features.shape[-1] else net()  # on the circle: one map for all rows
        return CircularTransform(raw.unflatten(-1, (-1, self.raw)))
