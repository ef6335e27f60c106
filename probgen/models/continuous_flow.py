"""Continuous flows: an ordinary differential equation takes data to the base distribution."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import depends_on, distribution_given
from probgen.core.module import DistributionModule, standard_normal
from probgen.distributions.flows.flow import Pushforward
from probgen.distributions.flows.ode import Adaptive, ContinuousTransform, Rademacher, Solver, basis
from probgen.nn import MLP


class ContinuousFlow(DistributionModule):
    r"""Continuous normalizing flow.

    x moves with a velocity given by a network, and arrives at the base distribution.

    .. math:: \frac{dx}{dt} = v(t, x, c), \qquad
              \log p(x \mid c) = \log p_0(x(1)) + \int_0^1 \operatorname{tr} \frac{\partial
              v}{\partial x}\, dt, \quad x(0) = x

    Networks of any shape are invertible this way. The solver and the way to the trace decide about
    the kind of the density: *exact* up to small tolerances, a *bound* with random probes,
    *approximate* with fixed steps.

    Parameters
    ----------
    dims : int
        Number D of variables.
    hidden : sequence of int
        Sizes of the hidden layers of the network.
    context : int
        Width of the context; 0 for none.
    base : DistributionModule, optional
        Distribution of x(1), events ``(D,)``; default: standard normal.
    solver : Solver
        ``Adaptive(atol, rtol)``, or ``RungeKutta(num_steps)`` with a cost that is known beforehand.
    probes : callable
        ``basis`` for the trace itself, D products of vector and Jacobian; ``Rademacher(count)`` for
        an estimate.
    frequencies : int
        Number of sines and cosines of time that the network sees.
    activation : callable
        Makes an activation module with a continuous derivative.

    References
    ----------
    Chen, Rubanova, Bettencourt, Duvenaud (2018), Neural ordinary differential equations,
    https://arxiv.org/abs/1806.07366

    >>> flow = ContinuousFlow(2, hidden=(8,))
    >>> flow().log_prob(torch.zeros(5, 2)).shape, flow().density_kind
    (torch.Size([5]), 'exact')
    """

    times: Tensor

    def __init__(
        self,
        dims: int,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
        base: DistributionModule | None = None,
        solver: Solver = Adaptive(),  # noqa: B008 (immutable)
        probes: Callable[[Tensor], Tensor] = basis,
        frequencies: int = 3,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ):
        checks.at_least(1, dims=dims)
        checks.sizes(hidden=hidden)
        checks.at_least(0, context=context, frequencies=frequencies)
        checks.generative(**checks.given(base=base))
        checks.function(solver=solver, probes=probes)
        checks.factory(activation=activation)
        super().__init__()
        self.base = standard_normal(dims) if base is None else base
        self.solver = solver
        self.probes = probes
        self.context_size = context
        self.net = MLP(dims + 2 * frequencies + context, hidden, dims, activation)
        self.register_buffer("times", math.pi * torch.arange(1.0, frequencies + 1))

    def forward(self, context: Tensor | None = None) -> Pushforward:
        velocity = partial(self._velocity, context)
        parameters = depends_on(self.net, context)
        return Pushforward(
            distribution_given(self.base, context),
            ContinuousTransform(velocity, self.solver, self.probes, parameters),
        )

    def _velocity(self, context: Tensor | None, t: Tensor, x: Tensor) -> Tensor:
        angles = t * self.times
        seen = [angles.cos(), angles.sin(), *([] if context is None else [context])]
        lead = torch.broadcast_shapes(x.shape[:-1], *(part.shape[:-1] for part in seen))
        return self.net(torch.cat([part.expand(*lead, part.shape[-1]) for part in (x, *seen)], -1))


class FFJORD(ContinuousFlow):
    """Continuous flow with Hutchinson's estimate of the trace, for many variables.

    Grathwohl et al. 2019.

    https://arxiv.org/abs/1810.01367. Every evaluation of a density draws new random signs.

    >>> FFJORD(2, hidden=(8,))().log_prob(torch.zeros(5, 2)).shape
    torch.Size([5])
    """

    def __init__(self, dims: int, probes: int = 1, **options: Any):
        checks.at_least(1, dims=dims, probes=probes)
        super().__init__(dims, probes=Rademacher(probes), **options)
