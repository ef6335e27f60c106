"""Flow matching: continuous flows trained without solving their equation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

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
from probgen.core.module import DistributionModule, standard_normal
from probgen.distributions.diffusion.times import Times, UniformTimes
from probgen.distributions.flows.couplings import Coupling, IndependentCoupling
from probgen.distributions.flows.matching import (
    FlowPredictor,
    MatchedFlow,
    Matching,
    Path,
    StraightPath,
)
from probgen.distributions.flows.ode import Adaptive, ContinuousTransform, Solver, basis


class FlowMatching(DistributionModule):
    r"""A continuous flow between data and a base distribution.

    Its velocity learned from straight or other given paths.

    .. math:: \frac{dx_t}{dt} = v_\theta(t, x_t, c), \quad x_0 = x, \quad x_1 \sim p_1, \qquad
              L = \mathbb E \left| v_\theta(t, x_t, c) - \frac{d}{dt}\big(a(t)\, x + b(t)\, z\big)
              \right|^2

    ``fit(gen, x)`` minimizes this loss, that of ``Denoising()``: no equation is solved then. Draws
    and densities solve it, as those of a :class:`ContinuousFlow
    <probgen.models.continuous_flow.ContinuousFlow>`: the density is *exact* up to small tolerances,
    a *bound* with random probes, *approximate* with steps of one size. Maximum likelihood,
    ``fit(gen, x, ELBO())``, trains it too, and is slow.
    ``gen(context).using(Midpoint(10)).sample((n,))`` samples with 20 calls of the network, and
    ``using(Midpoint(10), guidance=3.0)`` guided by a rule of :mod:`probgen.guidance`, a number being
    the weight of classifier-free guidance. For draws of one to four calls straighten the paths
    (:class:`Reflow <probgen.objectives.Reflow>`), or learn mean velocities (``spans``).

    The base is any distribution of the shape of the events: :class:`Empirical
    <probgen.models.empirical.Empirical>` for a flow between two data sets (its density is then
    *implicit*), ``gen().transform(x)`` taking data to the base, and ``gen().transform.inv(z)``
    back.

    Parameters
    ----------
    net : nn.Module
        ``net(x, t, context=None)``: states ``(*batch, *event)``, times ``(*batch,)`` from 0 (data)
        to 1 (base) and contexts ``(*batch, C)`` to the shape of x. Where contexts may be unknown it
        takes ``None`` and rows of NaN for that, as the networks of :mod:`probgen.nn` do.
    shape : sequence of int
        Shape of an event.
    base : DistributionModule, optional
        Distribution of the other end, called with the context; default: standard normal.
    coupling : Coupling
        Which rows of a batch meet which draws of the base: ``IndependentCoupling()``,
        ``OptimalTransport()``, ``EntropicTransport()``.
    path : Path
        ``StraightPath(sigma_min)`` or ``TrigonometricPath()``.
    times : callable
        Times of the loss: ``UniformTimes()``.
    solver : Solver
        ``Adaptive(atol, rtol)``, or with steps of one size ``Euler``, ``Midpoint``, ``Trapezoid``,
        ``RungeKutta``.
    probes : callable
        ``basis`` for the trace in the density, D products of vector and Jacobian;
        ``Rademacher(count)`` for an estimate.
    context_dropout : float
        Probability with which a row's context is made unknown in the loss in training mode, for
        guidance.
    context_ndim : int
        Number of event dims of a context.
    spans : bool
        Whether the network tells mean velocities over spans of time, for ``MeanFlow()`` and draws by
        ``MeanSteps(1)``: it is called with times ``(*batch, 2)``, the later end of a span and the
        earlier one, and built with ``time=SpanTime()``. The velocity is that of no span.

    Raises
    ------
    ValueError
        If ``context_dropout`` is no probability, or the base has events of another shape.

    References
    ----------
    Lipman, Chen, Ben-Hamu, Nickel, Le (2023), Flow matching for generative modeling,
    https://arxiv.org/abs/2210.02747; Tong et al. (2024), Improving and generalizing flow-based
    generative models with minibatch optimal transport, https://arxiv.org/abs/2302.00482

    >>> import torch
    >>> from probgen.nn.time import TimeMLP
    >>> gen = FlowMatching(TimeMLP(2, [16]), (2,))
    >>> gen().sample((5,)).shape, gen().log_prob(torch.zeros(5, 2)).shape, gen().density_kind
    (torch.Size([5, 2]), torch.Size([5]), 'exact')
    """

    unknown_contexts = True
    context_declared_by = "net"
    context_hint = "build its network with context={size}"

    def __init__(
        self,
        net: nn.Module,
        shape: Sequence[int],
        *,
        base: DistributionModule | None = None,
        coupling: Coupling = IndependentCoupling(),  # noqa: B008 (immutable)
        path: Path = StraightPath(),  # noqa: B008
        times: Times = UniformTimes(),  # noqa: B008
        solver: Solver = Adaptive(),  # noqa: B008
        probes: Callable[[Tensor], Tensor] = basis,
        context_dropout: float = 0.0,
        context_ndim: int = 1,
        spans: bool = False,
    ):
        checks.network(net=net)
        checks.flag(spans=spans)
        checks.sizes(1, 1, shape=shape)
        checks.generative(**checks.given(base=base))
        checks.function(coupling=coupling, path=path, times=times, solver=solver, probes=probes)
        checks.within("[0, 1)", context_dropout=context_dropout)
        checks.at_least(0, context_ndim=context_ndim)
        super().__init__()
        self.net = net
        self.shape = tuple(shape)
        self.base = standard_normal(*shape) if base is None else base
        self.own_base = base is not None
        self.coupling = coupling
        self.path = path
        self.times = times
        self.solver = solver
        self.probes = probes
        self.context_dropout = context_dropout
        self.context_ndim = context_ndim
        self.spans = spans

    def forward(self, context: Tensor | None = None) -> MatchedFlow:
        base = distribution_given(self.base, context) if self.own_base else self.base()
        if base.event_shape != self.shape:
            raise ValueError(
                f"expected a base with events of shape {self.shape}, got "
                f"{tuple(base.event_shape)}; paths lead from "
                "events to draws of the base: give both one shape"
            )
        base = for_each_context(base, context, self.context_ndim)
        event_ndim = len(self.shape)
        transform = ContinuousTransform(
            partial(self._velocity, context),
            self.solver,
            self.probes,
            partial(depends_on, self.net, context),
            event_ndim,
        )
        independent = isinstance(self.coupling, IndependentCoupling)
        predictor = FlowPredictor(
            asked_given(self, context, self._predicted),
            self.path,
            event_ndim,
            self.context_ndim,
            gaussian=independent and not self.own_base,
        )
        seen = None if context is None else context.flatten(-self.context_ndim)
        shown = partial(seen_in_training, self, context)
        matching = Matching(
            self._velocity,
            shown,
            self.path,
            self.coupling,
            self.times,
            context=seen,
            mean_velocity=self._mean_velocity if self.spans else None,
        )
        return MatchedFlow(base, transform, matching, predictor, context)

    def _velocity(self, context: Tensor | None, t: Tensor, x: Tensor) -> Tensor:
        return self._mean_velocity(context, t, t, x)

    def _mean_velocity(self, context: Tensor | None, t: Tensor, s: Tensor, x: Tensor) -> Tensor:
        lead = x.shape[: x.ndim - len(self.shape)]
        context = over_draws(context, lead, self.context_ndim)
        time = t.expand(lead)
        if self.spans:
            time = torch.stack((time, s.expand(lead)), -1)
        ndims = [len(self.shape), int(self.spans), self.context_ndim]
        return row_by_row(self.net, x, time, context, ndims=ndims)

    def _predicted(self, x: Tensor, t: Tensor, context: Any) -> Tensor:
        return self._velocity(context, t, x)
