"""Flow matching on manifolds: directions, angles, hierarchies, rotations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import (
    asked_given,
    depends_on,
    distribution_given,
    for_each_context,
    over_draws,
    seen_in_training,
)
from probgen.core.foreign import row_by_row
from probgen.core.module import DistributionModule
from probgen.distributions.diffusion.times import Times, UniformTimes
from probgen.distributions.flows.manifold_matching import GeodesicFlow, TangentPredictor
from probgen.distributions.flows.manifolds import Manifold, ManifoldBase
from probgen.distributions.flows.ode import Adaptive, ContinuousTransform, Solver, basis


class RiemannianFlowMatching(DistributionModule):
    r"""Riemannian flow matching: a continuous flow on a manifold, with its density.

    .. math:: \frac{dx_t}{dt} = v_\theta(t, x_t, c) \in T_{x_t} M, \qquad
              L = \mathbb E \big\| v_\theta(t, \gamma_t, c) - \dot\gamma_t \big\|^2, \qquad
              \log p(x \mid c) = \log p_1(x_1) + \int_0^1 \operatorname{div} v_\theta\, dt

    with geodesics :math:`\gamma` from data to draws of the base, in closed form. ``fit(gen, x)``
    minimizes L, and solves no equation. Densities are with respect to the volume of the manifold
    (of the sphere :math:`4 \pi`, of a torus :math:`(2 \pi)^D`, of rotations :math:`8 \pi^2`), *exact*
    up to small tolerances, a *bound* with random probes, *approximate* with steps of one size; the
    divergence is the trace of a Jacobian in the space around, see :class:`Manifold
    <probgen.distributions.flows.manifolds.Manifold>`. Draws lie on the manifold.
    ``gen(context).using(Midpoint(10)).sample((n,))`` samples with 20 calls of the network,
    and ``using(Midpoint(10), guidance=3.0)`` guided by a rule of :mod:`probgen.guidance` that adds
    velocities, a number being the weight of classifier-free guidance.

    Parameters
    ----------
    net : nn.Module
        ``net(u, t, context=None)``: what is shown of points ``(*batch, manifold.inputs)``, times
        ``(*batch,)`` from 0 (data) to 1 (base) and contexts ``(*batch, C)``, to ``(*batch,
        manifold.outputs)``: ``TimeMLP(m.inputs, [64, 64], outputs=m.outputs)``.
    manifold : Manifold
        ``Sphere(dims)``, ``Torus(dims)``, ``Hyperboloid(dims, scale)`` or ``Rotations()`` of
        :mod:`probgen.flows`.
    base : DistributionModule, optional
        Distribution of the other end, on the manifold, called with the context; default: that which
        the manifold begins with, uniform where it is bounded.
    times : callable
        Times of the loss: ``UniformTimes()``.
    solver : Solver
        ``Adaptive(atol, rtol)``, or with steps of one size ``Euler``, ``Midpoint``, ``Trapezoid``,
        ``RungeKutta``.
    probes : callable
        ``basis`` for the divergence in the density; ``Rademacher(count)`` for an estimate.
    context_dropout : float
        Probability with which a row's context is made unknown in the loss in training mode.
    context_ndim : int
        Number of event dims of a context.

    Raises
    ------
    ValueError
        If ``context_dropout`` is no probability, or the base has events of another shape.

    References
    ----------
    Chen, Lipman (2024), Flow matching on general geometries, https://arxiv.org/abs/2302.03660

    >>> from probgen.distributions.flows.manifolds import Sphere
    >>> from probgen.nn.time import TimeMLP
    >>> gen = RiemannianFlowMatching(TimeMLP(3, [16]), Sphere(2))
    >>> x = gen().sample((5,))
    >>> bool(torch.allclose(x.norm(dim=-1), torch.ones(5))), gen().log_prob(x).shape, gen().density_kind
    (True, torch.Size([5]), 'exact')
    """

    unknown_contexts = True
    context_declared_by = "net"
    context_hint = "build its network with context={size}"
    like: Tensor

    def __init__(
        self,
        net: nn.Module,
        manifold: Manifold,
        *,
        base: DistributionModule | None = None,
        times: Times = UniformTimes(),  # noqa: B008 (immutable)
        solver: Solver = Adaptive(),  # noqa: B008
        probes: Callable[[Tensor], Tensor] = basis,
        context_dropout: float = 0.0,
        context_ndim: int = 1,
    ):
        checks.network(net=net)
        checks.instance(Manifold, "pass Sphere(2)", manifold=manifold)
        checks.generative(**checks.given(base=base))
        checks.function(times=times, solver=solver, probes=probes)
        checks.within("[0, 1)", context_dropout=context_dropout)
        checks.at_least(0, context_ndim=context_ndim)
        super().__init__()
        self.net = net
        self.manifold = manifold
        self.base = base
        self.times = times
        self.solver = solver
        self.probes = probes
        self.context_dropout = context_dropout
        self.context_ndim = context_ndim
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def forward(self, context: Tensor | None = None) -> GeodesicFlow:
        own = ManifoldBase(self.manifold, self.like)
        base = own if self.base is None else distribution_given(self.base, context)
        if base.event_shape != own.event_shape:
            raise ValueError(
                f"expected a base on {self.manifold}, with events of shape "
                f"{tuple(own.event_shape)}, got {tuple(base.event_shape)}; leave it out for "
                "the one that the manifold begins with"
            )
        base = for_each_context(base, context, self.context_ndim)
        transform = ContinuousTransform(
            partial(self._velocity, context),
            self.solver,
            self.probes,
            partial(depends_on, self.net, context),
            len(self.manifold.shape),
            self.manifold,
        )
        shown = lambda: partial(self._velocity, seen_in_training(self, context))  # noqa: E731
        asked = asked_given(self, context, lambda x, t, context: self._velocity(context, t, x))
        predictor = TangentPredictor(
            asked, self.manifold, len(self.manifold.shape), self.context_ndim
        )
        return GeodesicFlow(base, transform, self.manifold, self.times, shown, predictor, context)

    def _velocity(self, context: Tensor | None, t: Tensor, x: Tensor) -> Tensor:
        lead = x.shape[: x.ndim - len(self.manifold.shape)]
        context = over_draws(context, lead, self.context_ndim)
        place = self.manifold.onto(x)
        seen = self.manifold.seen(place)
        told = row_by_row(self.net, seen, t.expand(lead), context, ndims=[1, 0, self.context_ndim])
        wanted = (*lead, self.manifold.outputs)
        if told.shape != wanted:
            raise ValueError(
                f"expected a network that gives {self.manifold.outputs} numbers a point of "
                f"{self.manifold}, shape {tuple(wanted)}, got {tuple(told.shape)}; build it with "
                "manifold.inputs and outputs=manifold.outputs"
            )
        return self.manifold.vector(place, told)
