"""The distribution of a flow on a manifold, learned by matching velocities of geodesics."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor

from probgen.core.missing import check_event
from probgen.distributions.flows.complete import refuse_incomplete
from probgen.distributions.flows.flow import Pushforward
from probgen.distributions.flows.manifolds import Manifold
from probgen.distributions.flows.ode import ContinuousTransform
from probgen.distributions.guidance.rule import Rule, draws_noise, guided, prediction_of


@dataclass(frozen=True)
class TangentPredictor:
    """The network of a flow on a manifold, as rules of guidance are shown it.

    Velocities at one point may be added. They tell no expected data, which need not lie on the
    manifold.

    Attributes
    ----------
    net : callable
        ``net(x, t, context)`` with times ``(*batch,)``.
    terms : Manifold
        To what velocities are tangent.
    event_ndim, context_ndim : int
        Number of event dims of a point, and of a context.
    """

    net: Callable[[Tensor, Tensor, Any], Tensor]
    terms: Manifold
    event_ndim: int
    context_ndim: int

    def __call__(self, z: Tensor, t: Tensor, context: Any = None) -> Tensor:
        """The velocity at a point; without a context, as where it was dropped."""
        return self.net(z, t, context)

    def _flat(self, *told: Tensor) -> Tensor:
        raise TypeError(
            "expected a diffusion or flow matching in flat space for a rule that reads the expected "
            "data, their score or the ratio of noise to signal, got a flow on a manifold; guide it "
            "by ClassifierFree, Interval of times, Negative or Autoguidance"
        )

    original = retold = shifted = noise_to_signal = _flat


class GeodesicFlow(Pushforward):
    r"""The distribution of a continuous flow on a manifold.

    Whose velocity is learned by regression on that of geodesics from data to the base.

    .. math:: L(x) = \mathbb E_{t, z} \big\| v_\theta(t, \gamma_t) - \dot\gamma_t \big\|_{\gamma_t}^2, \qquad
              \gamma_0 = x,\ \gamma_1 = z

    Otherwise a :class:`Pushforward <probgen.distributions.flows.flow.Pushforward>` in all respects,
    densities being with respect to the volume of the manifold.

    Parameters
    ----------
    base_dist : TorchDistribution
        The distribution of z, on the manifold.
    transform : ContinuousTransform
        From data, at time 0, to the base, at time 1.
    manifold : Manifold
        Where events lie.
    times : callable
        Draws times: ``(shape, schedule, like)`` to a tensor of that shape.
    shown : callable
        The velocity with what the network is shown of the contexts, some dropped in training.
    predictor : TangentPredictor
        The network with any context, as rules of guidance are shown it.
    context : optional
        What the network is given.

    Raises
    ------
    ValueError
        From ``log_prob`` and ``denoising_loss``: if an entry is missing (NaN), or the rightmost dims
        of x are not ``event_shape``.

    References
    ----------
    Chen, Lipman (2024), Flow matching on general geometries, https://arxiv.org/abs/2302.03660
    """

    transform: ContinuousTransform
    costly_density = True  # fit does not score a batch to see whether shapes fit

    def __init__(
        self,
        base_dist: dist.TorchDistribution,
        transform: ContinuousTransform,
        manifold: Manifold,
        times: Callable[[torch.Size, Any, Tensor], Tensor],
        shown: Callable[[], Callable[[Tensor, Tensor], Tensor]],
        predictor: TangentPredictor,
        context: Any = None,
    ):
        super().__init__(base_dist, transform)
        self.predictor = predictor
        self.context = context
        self.manifold = manifold
        self.times = times
        self.shown = shown

    def denoising_loss(self, x: Tensor) -> Tensor:
        """Squared length of the error of the velocity, at a random time and draw of the base.

        ``(*batch, *event) -> (*batch,)``.
        """
        check_event(x, self.event_shape)
        refuse_incomplete(x)
        ndim = len(self.event_shape)
        x = x.expand(broadcast_shape(x.shape, self.batch_shape + self.event_shape))
        lead = x.shape[: x.ndim - ndim]
        with torch.no_grad():
            z = self.base_dist.sample(lead[: len(lead) - len(self.batch_shape)])
            t = self.times(lead, None, x)
            x = self.manifold.onto(x)
            way = self.manifold.log(x, z)
            place, wanted = self.manifold.geodesic(x, way, t.reshape(*lead, *[1] * ndim))
        velocity = self.shown()(t, place)
        return self.manifold.squared(place, velocity - wanted)


@guided.register(GeodesicFlow)
def _(distribution: GeodesicFlow, rule: Rule) -> GeodesicFlow:
    def velocity(t: Tensor, x: Tensor) -> Tensor:
        place = distribution.manifold.onto(x)
        return prediction_of(rule, distribution.predictor, place, t, distribution.context)

    new = copy.copy(distribution)
    new.rerouted = lambda transform: transform.along(velocity, draws_noise(rule))
    return new
