"""What importance-weighted objectives share: several draws per row, and their log weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from probgen.core import checks
from probgen.core.kinds import kind_of, worst
from probgen.core.loss_parts import note, noting
from probgen.core.reading import Reading, read
from probgen.core.recording import score_function
from probgen.core.sites import Sites, densities, in_plate
from probgen.objectives.base import Objective, check_pair


class Weights(NamedTuple):
    """log p(x, z) and log q(z | x) of K draws for each of B rows, ``(K, B)``, and the weakest density among them.

    And how often each row counts, ``(B,)``.
    """

    log_p: Tensor
    log_q: Tensor
    kind: str
    pairs: list[Reading]
    rows: Tensor | float = 1.0

    @property
    def log_w(self) -> Tensor:
        return self.log_p - self.log_q


class RowWeighted(Objective):
    """An objective that weighs several draws for every row by itself.

    Weights are densities of rows: masks and the scales of a program count in them, the weights of
    rows that :func:`probgen.fit` is given multiply the bound of each row. Latent variables that rows
    share have no such weights, and are refused.

    Parameters
    ----------
    particles : int
        Draws K per row.
    plate : str
        Name of the plate of the rows.
    max_plate_nesting : int
        Number of dims that the programs' plates use; particles take the next dim to the left.
    vectorized : bool
        Whether the programs accept particles to the left of their plates; otherwise they run once
        per particle.
    """

    weakest = "bound"
    weighs_rows = True

    def __init__(
        self,
        particles: int,
        *,
        plate: str = "data",
        max_plate_nesting: int = 1,
        vectorized: bool = True,
    ):
        checks.at_least(1, particles=particles)
        checks.text(plate=plate)
        checks.at_least(0, max_plate_nesting=max_plate_nesting)
        checks.flag(vectorized=vectorized)
        super().__init__()
        self.particles = particles
        self.plate = plate
        self.max_plate_nesting = max_plate_nesting
        self.vectorized = vectorized

    def weigh(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        batch: tuple,
        handler: Callable[[], AbstractContextManager] = nullcontext,
    ) -> Weights:
        """Runs both programs, each run inside a handler of its own."""
        inside, runs = (self.particles, 1) if self.vectorized else (None, self.particles)
        pairs = []
        for _ in range(runs):
            with handler():
                pairs.append(read(model, guide, batch, inside, self.max_plate_nesting))
        for pair in pairs:
            self._check(pair)
        log_p = [log_rows(densities(pair.model.nodes), self.plate) for pair in pairs]
        log_q = [self._log_q(pair, rows) for pair, rows in zip(pairs, log_p, strict=True)]
        kind = worst(*(kind_of(pair, self.plate) for pair in pairs))
        return Weights(torch.cat(log_p), torch.cat(log_q), kind, pairs, pairs[0].row_weights)

    def _log_q(self, pair: Reading, log_p: Tensor) -> Tensor:
        drawn = {
            name: site
            for name, site in densities(pair.guide.nodes).items()
            if in_plate(site, self.plate)
        }
        return log_rows(drawn, self.plate) if drawn else torch.zeros_like(log_p)

    def noted(self, weights: Weights, loss: Tensor) -> Tensor:
        r"""The loss, with its parts noted, averaged over draws.

        .. math:: L = -\sum_b \tfrac1K \sum_k \log p(x_b \mid z_{kb})
                  + \sum_b \tfrac1K \sum_k \log \frac{q(z_{kb} \mid x_b)}{p(z_{kb})} +
                  L_{\text{tightening}}

        The first two make the negative evidence lower bound of the same draws, under the names
        ``"reconstruction"`` and ``"kl"``; ``"tightening"`` is what the weights make of it.
        """
        if not noting() or not any(densities(pair.guide.nodes) for pair in weights.pairs):
            return loss
        with torch.no_grad():
            prior = torch.cat([self._log_prior(pair) for pair in weights.pairs])
            kl = (weights.rows * (weights.log_q - prior).mean(0)).sum()
            reconstruction = (weights.rows * (prior - weights.log_p).mean(0)).sum()
        note("reconstruction", reconstruction)
        note("kl", kl)
        note("tightening", loss.detach() - reconstruction - kl)
        return loss

    def _log_prior(self, pair: Reading) -> Tensor:
        """log p of the draws, ``(particles or 1, rows)``."""
        guide = densities(pair.guide.nodes)
        drawn = {name: site for name, site in densities(pair.model.nodes).items() if name in guide}
        return log_rows(drawn, self.plate)

    def not_reparameterized(self, pair: Reading) -> Sites:
        """Guide sites whose draws carry no gradient."""
        sites = {
            name: site
            for name, site in densities(pair.guide.nodes).items()
            if not site["is_observed"]
        }
        return {name: site for name, site in sites.items() if score_function(site) is not None}

    def _check(self, pair: Reading) -> None:
        name = type(self).__name__
        model = densities(pair.model.nodes)
        guide = densities(pair.guide.nodes)
        check_pair(model, guide, self.weakest, name)
        for site in (*model.values(), *guide.values()):
            if not in_plate(site, self.plate) and not site["infer"].get("_deterministic"):
                raise ValueError(
                    f"{name}: expected every site inside the plate '{self.plate}', got "
                    f"'{site['name']}' outside of "
                    "it: draws are weighed row by row, and rows share that one; use ELBO(), or "
                    "name your plate of rows"
                )


def log_rows(sites: Sites, plate: str) -> Tensor:
    """log density of recorded sites in the plate, ``(particles or 1, rows)``.

    Helper variables and factors included.
    """
    trace = poutine.Trace()
    for name, site in sites.items():
        trace.add_node(name, **site)
    return Reading(trace, poutine.Trace()).by_row(plate)
