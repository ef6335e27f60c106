"""Flows that need few steps: straightened paths, and mean velocities over spans of time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor, nn

from probgen.core import checks
from probgen.objectives.base import Objective, contexts_beside, distribution_of_x
from probgen.objectives.parts import held_teacher, taught

INSTEAD = "use FlowMatching"


@runtime_checkable
class HasPairedLoss(Protocol):
    """A distribution learned by following paths from data to given ends."""

    def sample_pairs(self, sample_shape: Any) -> Any:
        """Draws, and the draws of the base that they are made of."""

    def denoising_loss(self, x: Tensor, end: Tensor) -> Tensor:
        """Its loss along paths from x to ``end``: ``(*batch, *event) -> (*batch,)``."""


class Reflow(Objective):
    r"""Rectified flow: paths between a teacher's draws and the noise that they were made of.

    .. math:: \sum_b \Big|v_\theta(t_b, x_{t_b}) - \frac{d x_t}{dt}\Big|^2, \qquad
              x_t = a(t)\, x_b + b(t)\, z_b, \qquad (x_b, z_b) \sim \text{teacher}

    Paths of a flow never cross: the flow that learns from these pairs has the same distribution and
    straighter paths, which one or a few steps of Euler's method follow. Pairs are made anew at each
    step, as many as there are rows, whose values do not matter: they tell contexts and shapes. A
    student that begins with a copy of the teacher needs few steps. What the teacher's solver gets
    wrong, the student learns. It may be the teacher of the next round.

    Parameters
    ----------
    teacher : GenerativeModel
        A trained :class:`FlowMatching <probgen.FlowMatching>`, held as a :class:`Frozen
        <probgen.objectives.Frozen>` copy.
    solver : Solver, optional
        How the teacher is drawn from, ``Midpoint(8)``; default: by its own.
    guidance : float or callable, optional
        Of the teacher, as in ``gen(context).using(guidance=...)``: the student has it without a
        second call.

    Raises
    ------
    TypeError
        At the call, if one of the distributions is not one of flow matching.

    References
    ----------
    Liu, Gong, Liu (2023), Flow straight and fast: learning to generate and transfer data with
    rectified flow, https://arxiv.org/abs/2209.03003

    >>> import copy
    >>> from probgen.models.flow_matching import FlowMatching
    >>> from probgen.nn.time import TimeMLP
    >>> teacher = FlowMatching(TimeMLP(2, [16]), (2,))
    >>> student = copy.deepcopy(teacher)
    >>> Reflow(teacher)(student.model, student.guide)(torch.randn(8, 2)).shape
    torch.Size([])
    """

    weighs_rows = True

    def __init__(self, teacher: nn.Module, solver: Any = None, *, guidance: Any = None):
        checks.generative(teacher=teacher)
        checks.function("pass Midpoint(8)", **checks.given(solver=solver))
        super().__init__()
        self.teacher = held_teacher(teacher)
        self.solver = solver
        self.guidance = guidance

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
    ) -> Tensor:
        site = distribution_of_x(model, guide, batch, HasPairedLoss, self, INSTEAD)
        x, own = site["value"], site["fn"]
        contexts = contexts_beside(x, batch)
        wanted = "of flow matching, with draws of its base"
        teacher = taught(self, contexts, HasPairedLoss, wanted, "FlowMatching")
        if self.solver is not None:
            teacher = teacher.using(self.solver)
        kept = x.ndim - len(own.event_shape) - len(teacher.batch_shape)
        loss = own.denoising_loss(*teacher.sample_pairs(x.shape[:kept]))
        return scale_and_mask(loss, site["scale"], site["mask"]).sum()

    def extra_repr(self) -> str:
        return f"solver={self.solver}"


@runtime_checkable
class HasMeanVelocityPair(Protocol):
    """A distribution whose network tells mean velocities over spans of time."""

    def mean_velocity_pair(self, x: Tensor, spans: Callable[..., Any]) -> Any:
        """Mean velocities ``own`` over random spans, and what they should be, ``wanted``."""


class MeanFlow(Objective):
    r"""MeanFlow: mean velocities over spans of time, learned without a teacher.

    .. math:: \sum_b w_b\, \Big|u_\theta(t, s, x_t) - \bar v + (t - s) \Big(\frac{\partial \bar u}{\partial x} v
              + \frac{\partial \bar u}{\partial t}\Big)\Big|^2, \qquad
              v = \frac{d x_t}{dt},\ w_b = \big(|\cdot|^2 + \epsilon\big)^{-p}

    without gradient through bars and weights. At its minimum :math:`x_s = x_t - (t - s)\, u` is
    where the flow leads, however long the span: ``gen().using(MeanSteps(1))`` draws by one call of
    the network. A share of spans has no length, for which the loss is that of flow matching; they
    teach the velocity that the others go by.

    Parameters
    ----------
    share : float
        Share of spans with a length.
    mean, std : float
        Times are logistic functions of normal numbers of this mean and deviation.
    power, epsilon : float
        p and :math:`\epsilon`; 0 for a squared error.

    Raises
    ------
    TypeError
        At the call, if the distribution of x is not one of flow matching with ``spans=True``.

    References
    ----------
    Geng, Deng, Bai, Kolter, He (2025), Mean flows for one-step generative modeling,
    https://arxiv.org/abs/2505.13447

    >>> from probgen.models.flow_matching import FlowMatching
    >>> from probgen.nn import SpanTime, TimeMLP
    >>> gen = FlowMatching(TimeMLP(2, [16], time=SpanTime()), (2,), spans=True)
    >>> MeanFlow()(gen.model, gen.guide)(torch.randn(8, 2)).shape
    torch.Size([])
    """

    weighs_rows = True

    def __init__(
        self,
        share: float = 0.25,
        *,
        mean: float = -0.4,
        std: float = 1.0,
        power: float = 1.0,
        epsilon: float = 1e-3,
    ):
        checks.within("[0, 1]", share=share)
        checks.finite(mean=mean)
        checks.positive(std=std, epsilon=epsilon)
        checks.not_negative(power=power)
        super().__init__()
        self.spans = Spans(share, mean, std)
        self.power = power
        self.epsilon = epsilon

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
    ) -> Tensor:
        advice = f"{INSTEAD}(net, shape, spans=True)"
        site = distribution_of_x(model, guide, batch, HasMeanVelocityPair, self, advice)
        pair = site["fn"].mean_velocity_pair(site["value"], self.spans)
        lead = site["value"].ndim - len(site["fn"].event_shape)
        error = (pair.own - pair.wanted).square().flatten(lead).sum(-1)
        weight = (error.detach() + self.epsilon) ** -self.power
        return scale_and_mask(weight * error, site["scale"], site["mask"]).sum()

    def extra_repr(self) -> str:
        return f"{self.spans}"


@dataclass(frozen=True)
class Spans:
    """Random spans of time within [0, 1]: later ends and earlier ones, a share of them apart."""

    share: float
    mean: float
    std: float

    def __call__(self, shape: torch.Size, like: Tensor) -> tuple[Tensor, Tensor]:
        """Two times of each row, of the dtype and on the device of a tensor."""
        normal = torch.randn(2, *shape, dtype=like.dtype, device=like.device)
        times = (self.mean + self.std * normal).sigmoid()
        t, s = times.amax(0), times.amin(0)
        apart = torch.rand(shape, dtype=like.dtype, device=like.device) < self.share
        return torch.where(apart, t, times[0]), torch.where(apart, s, times[0])
