"""Normalizing flows on the sphere."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributions import Transform

from probgen.core import checks
from probgen.core.contexts import for_each_context
from probgen.core.module import DistributionModule
from probgen.distributions.flows.autoregressive_transform import CouplingTransform
from probgen.distributions.flows.circular import CircularTransform, IntervalSpline, with_context
from probgen.distributions.flows.flow import Pushforward
from probgen.distributions.flows.sphere import CylinderTransform, uniform_cylinder
from probgen.nn import MLP


class SphereFlow(DistributionModule):
    r"""Flow of unit vectors in three dimensions (directions, places on the globe).

    In cylindrical coordinates.

    .. math:: p(x) = \frac{1}{4 \pi} \prod_l \left|\det \frac{\partial f_l}{\partial (\varphi, h)}\right|, \qquad
              x = (\sqrt{1 - h^2} \cos\varphi, \sqrt{1 - h^2} \sin\varphi, h)

    Layers change in turn the height h, by a spline given :math:`(\cos\varphi, \sin\varphi)`, and
    the longitude :math:`\varphi`, by a circular spline given h. The density is with respect to
    area: it integrates to 1 over the sphere of area :math:`4 \pi`. It is continuous but for the two
    poles, around which it may depend on the longitude: turn the data so that the poles lie where
    there is little of it.

    Parameters
    ----------
    transforms : int
        Pairs of layers.
    bins : int
        Bins of the splines.
    hidden : sequence of int
        Hidden layers of the networks.
    context : int
        Width of the context, if there is one.

    Raises
    ------
    ValueError
        If there is no transform.

    References
    ----------
    Rezende et al. (2020), Normalizing flows on tori and spheres, https://arxiv.org/abs/2002.02428

    >>> flow = SphereFlow()
    >>> x = flow().sample((5,))
    >>> torch.allclose(x.norm(dim=-1), torch.ones(5)), flow().log_prob(x).shape
    (True, torch.Size([5]))
    """

    def __init__(
        self,
        *,
        transforms: int = 3,
        bins: int = 8,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
    ):
        checks.at_least(1, transforms=transforms, bins=bins)
        checks.sizes(hidden=hidden)
        checks.at_least(0, context=context)
        super().__init__()
        self.context_size = context
        self.heights = nn.ModuleList(
            MLP(2 + context, hidden, 3 * bins + 1) for _ in range(transforms)
        )
        self.longitudes = nn.ModuleList(
            MLP(1 + context, hidden, 3 * bins + 1) for _ in range(transforms)
        )

    def forward(self, context: Tensor | None = None) -> Pushforward:
        maps: list[Transform] = [CylinderTransform()]
        for height, longitude in zip(self.heights, self.longitudes, strict=True):
            maps.append(CouplingTransform(partial(_map_of_height, height, context), 1))
            maps.append(CouplingTransform(partial(_map_of_longitude, longitude, context), 1))
        base = uniform_cylinder(next(self.parameters()))
        return Pushforward.through(for_each_context(base, context), maps)


def _map_of_height(net: nn.Module, context: Tensor | None, longitude: Tensor) -> IntervalSpline:
    return IntervalSpline(
        net(with_context(torch.cat((longitude.cos(), longitude.sin()), -1), context)).unsqueeze(-2)
    )


def _map_of_longitude(net: nn.Module, context: Tensor | None, height: Tensor) -> CircularTransform:
    return CircularTransform(net(with_context(height, context)).unsqueeze(-2))
