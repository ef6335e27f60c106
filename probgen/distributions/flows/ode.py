"""Transforms that are flows of ordinary differential equations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core import checks
from probgen.core.kinds import density_kind, worst
from probgen.core.signatures import takes
from probgen.distributions.flows.bijection import Invertible, odeint

VelocityField = Callable[[Tensor, Tensor], Tensor]
OdeState = tuple[Tensor, ...]


class Solver(Protocol):
    """Integrates ``d state / dt = slope(t, *state)`` from one time to another."""

    def __call__(
        self,
        slope: Callable[..., OdeState],
        state: OdeState,
        start: float,
        end: float,
        parameters: Sequence[Tensor],
    ) -> OdeState:
        """The state at ``end``.

        ``parameters`` are the tensors, besides the state, that gradients go to.
        """


@dataclass(frozen=True)
class Adaptive:
    """Steps of Dormand and Prince, as long as an estimate of their error allows.

    Gradients by the adjoint equation.

    Zhuang et al. (2020), Adaptive checkpoint adjoint method, https://arxiv.org/abs/2006.02493. Step
    sizes depend on values, so that :func:`probgen.fit` does not compile it. With tolerances up to
    1e-4, which is what single precision costs other flows, densities count as *exact*, otherwise as
    *approximate*.

    Raises
    ------
    FloatingPointError
        If a slope is not finite.

    >>> decay = lambda t, x: (-x,)
    >>> torch.allclose(Adaptive()(decay, (torch.ones(1),), 0.0, 1.0, ())[0], torch.tensor(-1.0).exp(), atol=1e-5)
    True
    """

    atol: float = 1e-5
    rtol: float = 1e-5

    def __post_init__(self) -> None:
        checks.positive(atol=self.atol, rtol=self.rtol)

    @property
    def density_kind(self) -> str:
        return "exact" if max(self.atol, self.rtol) <= 1e-4 else "approximate"

    def __call__(
        self,
        slope: Callable[..., OdeState],
        state: OdeState,
        start: float,
        end: float,
        parameters: Sequence[Tensor],
    ) -> OdeState:
        def finite(t: Tensor, *state: Tensor) -> OdeState:
            slopes = slope(t, *state)
            if not all(part.isfinite().all() for part in slopes):  # no step would be small enough
                raise FloatingPointError(
                    f"expected finite slopes, got some that are not at time {float(t):g}; look for "
                    "NaN or huge values "
                    "in the events and in the parameters, lower the learning rate, or clip "
                    "gradients"
                )
            return slopes

        wanted = [parameter for parameter in parameters if parameter.requires_grad]
        return tuple(odeint(finite, state, start, end, wanted, self.atol, self.rtol))


@dataclass(frozen=True)
class FixedSteps(ABC):
    """So many steps of one size; gradients through the steps.

    The cost is known beforehand and does not depend on values. Neither is the error looked at:
    densities are *approximate*. A subclass says where one step leads.
    """

    num_steps: int
    density_kind = "approximate"

    def __post_init__(self) -> None:
        checks.at_least(1, num_steps=self.num_steps)

    def __call__(
        self,
        slope: Callable[..., OdeState],
        state: OdeState,
        start: float,
        end: float,
        parameters: Sequence[Tensor] = (),
    ) -> OdeState:
        size = (end - start) / self.num_steps
        for step in range(self.num_steps):
            time = torch.as_tensor(start + step * size).to(state[0])
            state = self.step(slope, state, time, size)
        return state

    @abstractmethod
    def step(
        self, slope: Callable[..., OdeState], state: OdeState, time: Tensor, size: float
    ) -> OdeState:
        """The state one step after a time."""


@dataclass(frozen=True)
class RungeKutta(FixedSteps):
    """So many steps of the classical method of order 4, four evaluations a step.

    Densities are *approximate*.

    >>> decay = lambda t, x: (-x,)
    >>> torch.allclose(RungeKutta(8)(decay, (torch.ones(1),), 0.0, 1.0, ())[0], torch.tensor(-1.0).exp(), atol=1e-5)
    True
    """

    num_steps: int = 16

    def step(
        self, slope: Callable[..., OdeState], state: OdeState, time: Tensor, size: float
    ) -> OdeState:
        first = slope(time, *state)
        second = slope(time + size / 2, *moved(state, first, size / 2))
        third = slope(time + size / 2, *moved(state, second, size / 2))
        fourth = slope(time + size, *moved(state, third, size))
        mean = tuple(
            (a + 2 * b + 2 * c + d) / 6
            for a, b, c, d in zip(first, second, third, fourth, strict=True)
        )
        return moved(state, mean, size)


def moved(state: OdeState, slopes: OdeState, size: float) -> OdeState:
    """The state after a step of a size along slopes."""
    return tuple(part + size * slope for part, slope in zip(state, slopes, strict=True))


def _pulled(v: Tensor, x: Tensor, probes: Tensor, graded: bool) -> Tensor:
    """Products of probes ``(K, *x.shape)`` with the Jacobian dv / dx."""
    if len(probes) > 1:
        try:
            return torch.autograd.grad(v, x, probes, create_graph=graded, is_grads_batched=True)[0]
        except (
            RuntimeError
        ):  # some operations, as group normalization, cannot be differentiated twice in a batch
            if not graded:
                raise
    return torch.stack(
        [torch.autograd.grad(v, x, probe, graded or None, graded)[0] for probe in probes]
    )


def basis(x: Tensor) -> Tensor:
    """Unit vectors ``(D, *batch, D)``, with which the trace of a Jacobian is exact.

    At D times the cost of one.

    >>> basis(torch.zeros(5, 3)).shape
    torch.Size([3, 5, 3])
    """
    unit = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    return unit.view(x.shape[-1], *[1] * (x.ndim - 1), x.shape[-1]).expand(x.shape[-1], *x.shape)


@dataclass(frozen=True)
class Rademacher:
    """Random signs ``(count, *batch, D)``, with which the trace is right in expectation.

    Hutchinson 1989.

    So are log-densities: estimates are to be averaged in log space alone, as those of a *bound*
    (here one that is met).

    >>> Rademacher(2)(torch.zeros(5, 3)).shape
    torch.Size([2, 5, 3])
    """

    count: int = 1
    density_kind = "bound"

    def __call__(self, x: Tensor) -> Tensor:
        signs = torch.randint(2, (self.count, *x.shape), device=x.device).to(x) * 2 - 1
        return signs / self.count**0.5


class ContinuousTransform(Invertible):
    r"""The state at time 1 of an ordinary differential equation that starts in x at time 0.

    .. math:: \frac{dx}{dt} = v(t, x), \qquad
              \log\left|\det \frac{\partial x(1)}{\partial x(0)}\right| = \int_0^1 \sum_k u_k^\top
              \frac{\partial v}{\partial x} u_k\, dt

    with probes :math:`u_k`: unit vectors give the trace of the Jacobian, random signs an unbiased
    estimate of it. The kind of the density follows from both, solver and probes.

    Parameters
    ----------
    velocity : callable
        ``v(t, x)``: a scalar and ``(*batch, *event)`` to ``(*batch, *event)``.
    solver : Solver
        ``Adaptive(atol, rtol)``, ``RungeKutta(num_steps)``, or another with steps of one size
        (:mod:`probgen.distributions.flows.fixed_steps`).
    probes : callable
        ``x -> (K, *batch, D)``: :func:`basis`, or ``Rademacher(count)``, drawn once for a whole
        solution. Events of more than one dim are flattened for it.
    parameters : sequence of Tensor, or callable
        What the velocity depends on: parameters of its network, and the context; or a function that
        gives them when they are needed, for distributions that are made often and seldom solved.
    event_ndim : int
        Number of event dims, at least one: 3 for images.
    space : Manifold, optional
        A manifold that the velocities are tangent to, onto which ends are brought back: they leave
        it by the error of the solver.

    References
    ----------
    Chen, Rubanova, Bettencourt, Duvenaud (2018), Neural ordinary differential equations,
    https://arxiv.org/abs/1806.07366; Grathwohl et al. (2019), FFJORD,
    https://arxiv.org/abs/1810.01367
    """

    def __init__(
        self,
        velocity: VelocityField,
        solver: Solver,
        probes: Callable[[Tensor], Tensor],
        parameters: Sequence[Tensor] | Callable[[], Sequence[Tensor]] = (),
        event_ndim: int = 1,
        space: Any = None,
    ):
        super().__init__()
        self.space = space
        self.velocity = velocity
        self.solver = solver
        self.probes = probes
        self.parameters = parameters
        self.event_ndim = event_ndim
        self.density_kind = worst(density_kind(solver), density_kind(probes))
        if space is not None:
            self.domain = self.codomain = space.support
        elif event_ndim > 1:
            self.domain = self.codomain = constraints.independent(constraints.real, event_ndim)

    def using(self, solver: Solver) -> ContinuousTransform:
        """The same equation, solved in another way; ``TypeError`` for what solves none."""
        if not takes(solver, 5):
            raise TypeError(
                f"expected a solver of a differential equation, got {solver!r}; pass one such as "
                "Midpoint(20) or Adaptive()"
            )
        return ContinuousTransform(
            self.velocity, solver, self.probes, self.parameters, self.event_ndim, self.space
        )

    def along(self, velocity: VelocityField, random: bool = False) -> ContinuousTransform:
        """Another equation, solved in the same way; a random one not by adaptive steps."""
        if random and isinstance(self.solver, Adaptive):
            raise ValueError(
                "expected a solver with a fixed number of steps for random guidance, of which "
                f"adaptive steps see no end, got {self.solver}; sample by Midpoint(20)"
            )
        return ContinuousTransform(
            velocity, self.solver, self.probes, self.parameters, self.event_ndim, self.space
        )

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._solved(x, 0.0, 1.0)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._solved(y, 1.0, 0.0)

    def _call(self, x: Tensor) -> Tensor:
        return self._solve(lambda t, x: (self.velocity(t, x),), (x,), 0.0, 1.0)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self._solve(lambda t, x: (self.velocity(t, x),), (y,), 1.0, 0.0)[0]

    def _solve(
        self, slope: Callable[..., OdeState], state: OdeState, start: float, end: float
    ) -> OdeState:
        parameters = self.parameters() if callable(self.parameters) else self.parameters
        ended = self.solver(slope, state, start, end, parameters)
        return ended if self.space is None else (self.space.onto(ended[0]), *ended[1:])

    def _solved(self, x: Tensor, start: float, end: float) -> tuple[Tensor, Tensor]:
        events = x.shape[x.ndim - self.event_ndim :]
        probes = self.probes(x.flatten(-self.event_ndim)).unflatten(-1, events)

        def slope(t: Tensor, x: Tensor, _: Tensor) -> OdeState:
            graded = torch.is_grad_enabled()
            with torch.enable_grad():
                x = x.clone().requires_grad_()
                v = self.velocity(t, x)
            pulled = _pulled(v, x, probes, graded)
            return (v if graded else v.detach()), (pulled * probes).flatten(-self.event_ndim).sum(
                (0, -1)
            )

        first: tuple[Any, ...] = (..., *[0] * self.event_ndim)
        nothing = torch.zeros_like(x[first])
        moved, volume = self._solve(slope, (x, nothing), start, end)
        return moved, volume
