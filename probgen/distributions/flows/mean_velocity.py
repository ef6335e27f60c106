"""Mean velocities over spans of time: flows that are drawn in one step."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.attention import SDPBackend, sdpa_kernel

from probgen.core import checks
from probgen.distributions.flows.bijection import Invertible

NO_SPANS = (
    "expected a network that tells mean velocities over spans of time, got one of velocities at a "
    "time; build FlowMatching(net, shape, spans=True) with a network whose time=SpanTime()"
)
UNGUIDED = (
    "expected no guidance with MeanSteps, as rules change velocities at a time and not their means, "
    "got both; guide draws by a solver such as Midpoint(10)"
)
MeanVelocity = Callable[[Tensor, Tensor, Tensor], Tensor]


class PathLevels(NamedTuple):
    """How much of the data and of the base a path has at a time, and how fast both change."""

    data: Tensor
    base: Tensor
    data_rate: Tensor | float
    base_rate: Tensor | float


class VelocityPair(NamedTuple):
    """Mean velocities and their targets, ``(*batch, *event)``, without gradient."""

    own: Tensor
    wanted: Tensor


def velocity_pair(
    velocity: MeanVelocity,
    levels: PathLevels,
    ends: tuple[Tensor, Tensor],
    times: tuple[Tensor, Tensor],
) -> VelocityPair:
    r"""A mean velocity u(t, s, x) on paths, and what the identity of mean velocities wants it to be.

    .. math:: u = v - (t - s)\, \Big(\frac{\partial u}{\partial x} v + \frac{\partial u}{\partial t}\Big)

    Parameters
    ----------
    velocity : callable
        ``u(t, s, x)``, later and earlier times ``(*batch,)``.
    levels : PathLevels
        Of the path at the later times, with event dims.
    ends : (Tensor, Tensor)
        Rows and draws of the base.
    times : (Tensor, Tensor)
        Later and earlier times.

    >>> levels = PathLevels(torch.ones(1, 1) / 2, torch.ones(1, 1) / 2, -1.0, 1.0)
    >>> still = lambda t, s, x: (t - s).unsqueeze(-1) * x
    >>> velocity_pair(still, levels, (torch.zeros(1, 1), torch.ones(1, 1)), (torch.ones(1), torch.zeros(1)))
    VelocityPair(own=tensor([[0.5000]]), wanted=tensor([[-0.5000]]))
    """
    x, end = ends
    t, s = times
    z = levels.data * x + levels.base * end
    v = levels.data_rate * x + levels.base_rate * end
    with sdpa_kernel(SDPBackend.MATH):  # no other attention knows forward derivatives
        found: Any = torch.func.jvp(
            lambda z, t: velocity(t, s, z), (z, t), (v.expand_as(z), torch.ones_like(t))
        )
    own, change = found
    span = (t - s).reshape(t.shape + (1,) * (z.ndim - t.ndim))
    return VelocityPair(own, (v - span * change).detach())


@dataclass(frozen=True)
class MeanSteps:
    r"""Steps over spans of time by their mean velocities, one call of the network each.

    .. math:: x_s = x_t - (t - s)\, u_\theta(t, s, x_t)

    For flow matching with ``spans=True`` that was trained by :class:`MeanFlow
    <probgen.objectives.MeanFlow>`. Densities stay those of the velocities at a time, which mean
    velocities match only if training was perfect: they count as *approximate*.

    Parameters
    ----------
    num_steps : int
        Number of even steps from the base to the data.

    References
    ----------
    Geng, Deng, Bai, Kolter, He (2025), Mean flows for one-step generative modeling,
    https://arxiv.org/abs/2505.13447
    """

    num_steps: int = 1

    def __post_init__(self) -> None:
        checks.at_least(1, num_steps=self.num_steps)

    def __call__(self, velocity: MeanVelocity, z: Tensor, event_ndim: int) -> Tensor:
        """The data to which states z of the base lead."""
        ends = torch.linspace(1, 0, self.num_steps + 1, dtype=z.dtype, device=z.device)
        ends = ends.view(-1, *[1] * (z.ndim - event_ndim)).expand(
            -1, *z.shape[: z.ndim - event_ndim]
        )
        for t, s in itertools.pairwise(ends):
            z = z - velocity(t, s, z) / self.num_steps
        return z


@dataclass(frozen=True)
class ByMeans:
    """Draws by mean velocities, in place of a map's solver; another that is asked for later wins."""

    velocity: MeanVelocity
    steps: MeanSteps
    event_ndim: int
    solver: Any

    def __call__(self, transform: Any) -> Any:
        if transform.solver is not self.solver:
            return transform
        return MeanTransform(self.velocity, self.steps, self.event_ndim)


class MeanTransform(Invertible):
    """From the base to data by mean velocities; the other way is not known."""

    def __init__(self, velocity: MeanVelocity, steps: MeanSteps, event_ndim: int):
        super().__init__()
        self.velocity = velocity
        self.steps = steps
        self.event_ndim = event_ndim
        self.domain = self.codomain = constraints.independent(constraints.real, event_ndim)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.steps(self.velocity, y, self.event_ndim)

    def _call(self, x: Tensor) -> Tensor:
        raise NotImplementedError(ONE_WAY)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(ONE_WAY)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(ONE_WAY)


ONE_WAY = (
    "expected a map from the base to data alone, as mean velocities are told for states at the end "
    "of a span, got data or the volume asked for; use the flow without MeanSteps"
)
