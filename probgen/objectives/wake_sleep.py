"""Reweighted wake-sleep: both networks learn from weighted draws, discrete latents included."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from probgen.core import checks
from probgen.core.kinds import average
from probgen.core.recording import DetachedDraws
from probgen.core.sites import completed_sites, densities
from probgen.objectives.importance import weight_shares
from probgen.objectives.weighted import RowWeighted, log_rows


class WakeSleep(RowWeighted):
    r"""Reweighted wake-sleep.

    The model climbs the importance-weighted bound, the guide fits weighted draws and dreams.

    The value is that of :class:`IWAE`. With :math:`z_k \sim q(z \mid x)` taken as given, normalized
    weights :math:`v_k` and a dream :math:`(z', x') \sim p`, one backward gives

    .. math:: \nabla_\theta: -\sum_k v_k \nabla_\theta \log p_\theta(x, z_k), \qquad
              \nabla_\phi: -(1 - s) \sum_k v_k \nabla_\phi \log q_\phi(z_k \mid x)
              - s \, \nabla_\phi \log q_\phi(z' \mid x')

    No draw needs to be reparameterized. The two gradients belong to two different losses:
    parameters that model and guide share get the sum of both.

    Parameters
    ----------
    particles : int
        Draws K per row.
    sleep : float
        Weight s of the dreams, from 0 (wake only) to 1: one dream per row of the batch, in the
        place of the observed arguments that the model hands to ``pyro.sample(..., obs=)`` as they
        are.
    **options
        ``plate``, ``max_plate_nesting`` and ``vectorized``, as for :class:`RowWeighted`.

    Raises
    ------
    ValueError
        At the call, if a latent site is shared by rows, a density is not exact or unbiased, latent
        sites do not match, or the guide takes no dream.

    References
    ----------
    Bornschein, Bengio (2015), https://arxiv.org/abs/1406.2751; Le, Kosiorek, Siddharth, Teh, Wood
    (2019), Revisiting reweighted wake-sleep, https://arxiv.org/abs/1805.10469

    >>> WakeSleep(particles=8, sleep=0.5).sleep
    0.5
    """

    weakest = "unbiased"

    def __init__(self, particles: int, sleep: float = 0.0, **options: Any):
        checks.within("[0, 1]", sleep=sleep)
        super().__init__(particles, **options)
        self.sleep = sleep

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
    ) -> Tensor:
        weights = self.weigh(model, guide, batch, partial(DetachedDraws, differentiable=False))
        bound = average(weights.log_p - weights.log_q.detach(), weights.kind)
        fit = (1.0 - self.sleep) * (weight_shares(weights.log_w, weights.kind) * weights.log_q).sum(
            0
        )
        if self.sleep and densities(weights.pairs[0].guide.nodes):
            fit = fit + self.sleep * self._dream(model, guide, batch)
        bound = (weights.rows * bound).sum()
        fit = (weights.rows * fit).sum()
        return self.noted(weights, -bound - (fit - fit.detach()))

    def _dream(self, model: Callable[..., Any], guide: Callable[..., Any], batch: tuple) -> Tensor:
        """log q(z' | x') of one draw (z', x') of the model per row, ``(rows,)``."""
        with torch.no_grad():
            dreamed = poutine.trace(poutine.uncondition(model)).get_trace(*batch)
        for site in completed_sites(dreamed):
            raise ValueError(
                f"WakeSleep: expected sites that are observed in all rows, got '{site['name']}' of "
                "which some are missing; the guide cannot be told a dream of those: use sleep=0"
            )
        sites: Iterable[Any] = dreamed.nodes.values()
        given = [(site["infer"]["obs"], site["value"]) for site in sites if _was_observed(site)]
        told = tuple(next((x for obs, x in given if obs is value), value) for value in batch)
        if all(new is old for new, old in zip(told, batch, strict=True)):
            raise ValueError(
                "WakeSleep: expected the model to hand an argument to pyro.sample(..., obs=) as it "
                "is, found none; the "
                "guide cannot be told a dream otherwise: use sleep=0"
            )
        q = poutine.trace(poutine.replay(guide, trace=dreamed)).get_trace(*told)
        sites = densities(q.nodes)
        for name in sites:
            if name not in dreamed.nodes:
                raise ValueError(
                    f"WakeSleep: expected a guide of the model's latent sites alone, got '{name}', "
                    "which has "
                    "no value in an unconditioned run; use sleep=0"
                )
        return log_rows(sites, self.plate)[0]


def _was_observed(site: dict[str, Any]) -> bool:
    return site["type"] == "sample" and site["infer"].get("was_observed", False)
