"""The distribution of a flow that is learned by matching the velocities of given paths."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import pyro.distributions as dist
import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor

from probgen.core import checks
from probgen.core.contexts import known_rows
from probgen.core.kinds import worst
from probgen.core.missing import check_event
from probgen.distributions.denoised import DenoisedPair
from probgen.distributions.flows.complete import refuse_incomplete
from probgen.distributions.flows.couplings import Coupling
from probgen.distributions.flows.flow import Pushforward, drawn_by
from probgen.distributions.flows.mean_velocity import (
    NO_SPANS,
    UNGUIDED,
    ByMeans,
    MeanSteps,
    MeanTransform,
    PathLevels,
    VelocityPair,
    velocity_pair,
)
from probgen.distributions.flows.ode import ContinuousTransform
from probgen.distributions.guidance.rule import Rule, draws_noise, guided, prediction_of


class Path(Protocol):
    """Paths from data, at time 0, to draws of the base distribution, at time 1.

    ``x_t = a(t) x + b(t) z``.
    """

    def __call__(self, t: Tensor) -> PathLevels:
        """a, b and their derivatives, each of the shape of t, or numbers."""


@dataclass(frozen=True)
class StraightPath:
    r"""Straight lines at constant speed.

    What arrives at the data is blurred by a small multiple of z.

    .. math:: x_t = (1 - t)\, x + \big(t + \sigma_{\min} (1 - t)\big)\, z

    Lipman, Chen, Ben-Hamu, Nickel, Le (2023), https://arxiv.org/abs/2210.02747, section 4.1, with
    time reversed.

    >>> StraightPath()(torch.tensor(0.25))[:2]
    (tensor(0.7500), tensor(0.2500))
    """

    sigma_min: float = 0.0

    def __post_init__(self) -> None:
        checks.within("[0, 1)", sigma_min=self.sigma_min)

    def __call__(self, t: Tensor) -> PathLevels:
        if not self.sigma_min:
            return PathLevels(1 - t, t, -1.0, 1.0)
        kept = 1 - self.sigma_min
        return PathLevels(1 - t, self.sigma_min + kept * t, -1.0, kept)


@dataclass(frozen=True)
class TrigonometricPath:
    r"""Arcs along which standardized data keep unit variance.

    .. math:: x_t = \cos\left(\tfrac{\pi}{2} t\right) x + \sin\left(\tfrac{\pi}{2} t\right) z

    Albergo, Vanden-Eijnden (2023), https://arxiv.org/abs/2209.15571

    >>> TrigonometricPath()(torch.tensor(1 / 3))[:2]
    (tensor(0.8660), tensor(0.5000))
    """

    def __call__(self, t: Tensor) -> PathLevels:
        cos = (math.pi / 2 * t).cos()
        sin = (math.pi / 2 * t).sin()
        return PathLevels(cos, sin, -math.pi / 2 * sin, math.pi / 2 * cos)


@dataclass(frozen=True)
class Matching:
    """What the velocity of a flow is trained on.

    Attributes
    ----------
    velocity : callable
        The velocity, ``v(context, t, x)``: times ``(*batch,)`` and ``(*batch, *event)`` to
        ``(*batch, *event)``.
    shown : callable
        What the network is shown of the contexts, called once for each loss: some are dropped in
        training.
    path : Path
        Paths between data and base.
    coupling : Coupling
        Which rows of data meet which draws of the base.
    times : callable
        Draws times: ``(shape, path, like)`` to a tensor of that shape.
    context : Tensor, optional
        What couplings know of the rows, ``(*batch, C)``.
    mean_velocity : callable, optional
        The mean velocity over a span of times, ``u(context, t, s, x)``, of a network that tells it.
    """

    velocity: Callable[[Any, Tensor, Tensor], Tensor]
    shown: Callable[[], Any]
    path: Path
    coupling: Coupling
    times: Callable[[torch.Size, Any, Tensor], Tensor]
    context: Tensor | None = None
    mean_velocity: Callable[[Any, Tensor, Tensor, Tensor], Tensor] | None = None


LEAST = 0.05  # with less of the base, or of the data, velocities tell of it as with that much


@dataclass(frozen=True)
class FlowPredictor:
    r"""The network of flow matching, as rules of guidance are shown it.

    Its velocity tells the expected data, by :math:`x_t = a x + b z`:

    .. math:: v = \dot a\, \hat x + \dot b\, \hat z, \qquad
              \hat x = \frac{\dot b\, x_t - b\, v}{a \dot b - \dot a b}

    Attributes
    ----------
    net : callable
        ``net(x, t, context)`` with times ``(*batch,)``.
    path : Path
        Paths between data and base.
    event_ndim, context_ndim : int
        Number of event dims of a state, and of a context.
    gaussian : bool
        Whether pairs are independent and the base is standard normal, of which scores are functions
        of velocities.
    """

    net: Callable[[Tensor, Tensor, Any], Tensor]
    path: Path
    event_ndim: int
    context_ndim: int
    gaussian: bool

    @property
    def terms(self) -> Any:
        """What the network predicts: the velocity of its paths."""
        return self.path

    def __call__(self, z: Tensor, t: Tensor, context: Any = None) -> Tensor:
        """The velocity at a state; without a context, as where it was dropped."""
        return self.net(z, t, context)

    def original(self, z: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """The expected data that a velocity tells."""
        levels = self._levels(t)
        return (levels.base_rate * z - levels.base * prediction) / _turn(levels)

    def retold(self, z: Tensor, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The velocity that tells other expected data, bounded for nearly clean states."""
        levels = self._levels(t)
        apart = x - self.original(z, prediction, t)
        return prediction - _turn(levels) / levels.base.clamp(min=LEAST) * apart

    def shifted(self, z: Tensor, prediction: Tensor, slope: Tensor, t: Tensor) -> Tensor:
        r"""The velocity whose score is larger by a slope.

        By Tweedie's formula :math:`\hat x = (x_t + b^2 \nabla \log p(x_t)) / a`; bounded for nearly
        pure noise.
        """
        if not self.gaussian:
            raise TypeError(
                "expected independent pairs and a standard normal base for guidance by a score, "
                "which follows from the velocity there alone, got others; use a rule such as "
                "ClassifierFree, or coupling=IndependentCoupling() and no base"
            )
        levels = self._levels(t)
        signal = levels.data.clamp(min=LEAST)
        return prediction - _turn(levels) * levels.base / signal * slope

    def noise_to_signal(self, t: Tensor) -> Tensor:
        """The ratio of base to data at a time."""
        levels = self.path(t)
        return levels.base / levels.data

    def _levels(self, t: Tensor) -> PathLevels:
        return self.path(t.reshape(*t.shape, *[1] * self.event_ndim))


def _turn(levels: PathLevels) -> Any:
    return levels.data * levels.base_rate - levels.data_rate * levels.base


class MatchedFlow(Pushforward):
    r"""The distribution of a continuous flow.

    Whose velocity is learned by regression on that of given paths.

    .. math:: L(x) = \mathbb E_{t, z} \Big| v_\theta(t, x_t) - \frac{d x_t}{dt} \Big|^2, \qquad
              x_t = a(t)\, x + b(t)\, z

    Its minimum over all functions is the velocity :math:`E[dx_t / dt \mid x_t]`, whose flow has the
    marginals of the paths (Lipman et al. 2023, theorems 1 and 2). Otherwise a :class:`Pushforward
    <probgen.distributions.flows.flow.Pushforward>` in all respects; no equation is solved in
    training.

    Parameters
    ----------
    base_dist : TorchDistribution
        The distribution of z, events ``(*event)``.
    transform : ContinuousTransform
        From data, at time 0, to the base, at time 1.
    matching : Matching
        Paths, pairs and times of the loss.
    predictor : FlowPredictor
        The network with any context, as rules of guidance are shown it.
    context : optional
        What the network is given.

    Raises
    ------
    ValueError
        From ``log_prob`` and ``denoising_loss``: if an entry is missing (NaN), or the rightmost
        dims of x are not ``event_shape``.

    References
    ----------
    Lipman, Chen, Ben-Hamu, Nickel, Le (2023), Flow matching for generative modeling,
    https://arxiv.org/abs/2210.02747; Liu, Gong, Liu (2023), Flow straight and fast,
    https://arxiv.org/abs/2209.03003
    """

    transform: ContinuousTransform
    costly_density = True  # fit does not score a batch to see whether shapes fit

    def __init__(
        self,
        base_dist: dist.TorchDistribution,
        transform: ContinuousTransform,
        matching: Matching,
        predictor: FlowPredictor,
        context: Any = None,
    ):
        super().__init__(base_dist, transform)
        self.matching = matching
        self.predictor = predictor
        self.context = context

    def denoising_loss(self, x: Tensor, end: Tensor | None = None) -> Tensor:
        """Squared error of the velocity at a random time of a path.

        ``(*batch, *event) -> (*batch,)``. To ``end``, of the shape of x, in place of a draw of the
        base.
        """
        return self._matched(x, end).loss

    def denoised_pair(self, x: Tensor, other: MatchedFlow) -> DenoisedPair:
        """The velocities of this flow and of another one along the same paths of rows x.

        The loss is :meth:`denoising_loss`, with the same draws of the base.
        """
        matched = self._matched(x)
        context = other.matching.shown()
        velocity = other.matching.velocity(context, matched.t, matched.z)
        ndim = self.predictor.context_ndim
        known = known_rows(matched.context, ndim) & known_rows(context, ndim)
        return DenoisedPair(matched.loss, matched.velocity, velocity, matched.t, known)

    def mean_velocity_pair(self, x: Tensor, spans: Callable[..., Any]) -> VelocityPair:
        """The mean velocity over random spans of time, and what it would have to be.

        ``spans((*batch,), x)`` draws later and earlier times.
        """
        matching = self.matching
        if matching.mean_velocity is None:
            raise TypeError(NO_SPANS)
        x, lead = self._rows(x)
        end = self._paired(x, lead)
        t, s = spans(lead, x)
        return velocity_pair(
            partial(matching.mean_velocity, matching.shown()),
            matching.path(t.reshape(*lead, *[1] * len(self.event_shape))),
            (x, end),
            (t, s),
        )

    def sample_pairs(self, sample_shape: Sequence[int] = torch.Size()) -> tuple[Tensor, Tensor]:
        """Draws x and the draws z of the base that they are made of.

        ``(*sample_shape, *batch, *event)`` each: what ``Reflow()`` learns from.
        """
        with torch.no_grad():
            z = self.base_dist.sample(torch.Size(sample_shape))
            return self.drawn_through.inv(z), z

    def _matched(self, x: Tensor, end: Tensor | None = None) -> _Matched:
        """States at random times of paths from rows to draws of the base, and their velocities."""
        ndim = len(self.event_shape)
        x, lead = self._rows(x)
        end = self._paired(x, lead) if end is None else end.expand(x.shape)
        t = self.matching.times(lead, self.matching.path, x)
        levels = self.matching.path(t.reshape(*lead, *[1] * ndim))
        context = self.matching.shown()
        z = levels.data * x + levels.base * end
        velocity = self.matching.velocity(context, t, z)
        wanted = levels.data_rate * x + levels.base_rate * end
        loss = (velocity - wanted).square().flatten(-ndim).sum(-1)
        return _Matched(context, z, t, velocity, loss)

    def _rows(self, x: Tensor) -> tuple[Tensor, torch.Size]:
        """Checked rows with the dims of the batch, and their leading dims."""
        check_event(x, self.event_shape)
        refuse_incomplete(x)
        ndim = len(self.event_shape)
        if x.shape[: x.ndim - ndim] != self.batch_shape:
            x = x.expand(broadcast_shape(x.shape, self.batch_shape + self.event_shape))
        return x, x.shape[: x.ndim - ndim]

    def _paired(self, x: Tensor, lead: torch.Size) -> Tensor:
        """A draw of the base for every row, in the order that the coupling gives."""
        with torch.no_grad():
            z = self.base_dist.sample(lead[: len(lead) - len(self.batch_shape)])
            context = self.matching.context
            if context is not None:
                context = context.expand(*lead, context.shape[-1]).reshape(-1, context.shape[-1])
            rows = x.reshape(-1, self.event_shape.numel()), z.reshape(-1, self.event_shape.numel())
            return self.matching.coupling(*rows, context).reshape(x.shape)


class _Matched(NamedTuple):
    """One evaluation of the loss."""

    context: Any
    z: Tensor
    t: Tensor
    velocity: Tensor
    loss: Tensor


@drawn_by.register(MeanSteps)
def _(sampler: MeanSteps, flow: Pushforward) -> Pushforward:
    velocity = flow.matching.mean_velocity if isinstance(flow, MatchedFlow) else None
    if not isinstance(flow, MatchedFlow) or velocity is None:
        raise TypeError(NO_SPANS)
    if flow.rerouted is not None and not isinstance(flow.rerouted, ByMeans):
        raise ValueError(UNGUIDED)
    new = copy.copy(flow)
    new._drawn = None
    new.density_kind = worst(flow.density_kind, "approximate")
    new.rerouted = ByMeans(
        partial(velocity, flow.context), sampler, len(flow.event_shape), flow.transform.solver
    )
    return new


@guided.register(MatchedFlow)
def _(distribution: MatchedFlow, rule: Rule) -> MatchedFlow:
    if isinstance(distribution.drawn_through, MeanTransform):
        raise ValueError(UNGUIDED)

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        return prediction_of(rule, distribution.predictor, x, t, distribution.context)

    new = copy.copy(distribution)
    new.rerouted = lambda transform: transform.along(velocity, draws_noise(rule))
    return new
