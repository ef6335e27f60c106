"""Evaluation: probgen's recorded and compiled runs beside its eager ones, Pyro's Predictive.

And torch by hand.

Two tasks. Log-likelihood of a VAE (784-400-20) on 1,000 rows with 500 particles; the weights of the
networks do not matter for time and are random. Posterior and predictive draws, 2,000 of each, of a
hierarchical logistic regression (1,000 rows, 50 groups, AutoNormal), defined by a program that does
not accept draws to its left (``Program``'s default, and what Pyro calls sequential), and once more
in a form that does (Pyro's ``parallel=True``, ``vectorized=True``).

    python benchmarks/compiled_evaluation.py --rounds 3 --threads 2

Peers take turns. Times are whole calls, recording and compiling included; what these took is given
apart, for the first turn (which also imports torch's compiler) and for later ones (which find
inductor's cache). Results of all peers are compared: scores to their Monte Carlo error, draws by
their means.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from common import command_line
from pyro.infer import Predictive
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

import probgen as pg
from probgen.compile import scheduling
from probgen.compile.batched_replay import Replay

PIXELS = 784
HIDDEN = 400
LATENT = 20
GROUPS = 50
Peers = dict[str, Callable[[], Tensor]]


class Preparing:
    """Seconds that probgen spends on recording and compiling."""

    def __init__(self):
        self.seconds = 0.0
        scheduling.record_operations = self._counted(scheduling.record_operations)
        Replay.build = self._counted(Replay.build)

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.perf_counter() - began

        return counted


# -- scores
# ----------------------------------------------------------------------------------------------------------


def scores(rows: int, particles: int) -> Peers:
    torch.manual_seed(0)
    encoder = pg.nn.MLP(PIXELS, [HIDDEN], 2 * LATENT)
    decoder = pg.nn.MLP(LATENT, [HIDDEN], PIXELS)
    gen = pg.VAE(
        pg.standard_normal(LATENT), pg.heads.Bernoulli(decoder), pg.heads.Gaussian(encoder)
    )
    x = torch.bernoulli(torch.rand(rows, PIXELS))

    @torch.no_grad()
    def by_hand() -> Tensor:
        """Blocks of 250 rows, and of as many particles as take the fewest seconds here."""
        return torch.cat(
            [hand_written(gen, decoder, block, particles, 25) for block in x.split(250)]
        )

    return {
        "probgen, eager": lambda: (
            pg.log_likelihood(gen, x, particles=particles, compile=False).value
        ),
        "probgen, auto": lambda: pg.log_likelihood(gen, x, particles=particles).value,
        "probgen, compiled": lambda: (
            pg.log_likelihood(gen, x, particles=particles, compile=True).value
        ),
        "torch by hand, eager": by_hand,
    }


def hand_written(
    gen: pg.VAE, decoder: torch.nn.Module, x: Tensor, particles: int, chunk: int
) -> Tensor:
    q = gen.encode(x).base_dist
    wide = x.expand(chunk, *x.shape)
    parts = []
    for _ in range(0, particles, chunk):
        noise = torch.randn(chunk, *q.loc.shape)
        z = q.loc + q.scale * noise
        fit = torch.nn.functional.binary_cross_entropy_with_logits(
            decoder(z), wide, reduction="none"
        )
        parts.append((0.5 * (noise**2 - z**2) + q.scale.log()).sum(-1) - fit.sum(-1))
    weights = torch.cat(parts)
    return weights.logsumexp(0) - math.log(len(weights))


# -- draws
# -----------------------------------------------------------------------------------------------------------


def grouped_rows(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    x = torch.randn(rows, 20)
    group = torch.randint(GROUPS, (rows,))
    logits = x @ torch.randn(20) * 0.7 + 0.5 + torch.randn(GROUPS)[group]
    return x, group, torch.bernoulli(logits.sigmoid())


def logistic(x: Tensor, group: Tensor, y: Tensor | None = None) -> None:
    """Varying intercepts, non-centered."""
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    with pyro.plate("groups", GROUPS):
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ slopes + mean + spread * offset[group]), obs=y)


def vectorized(x: Tensor, group: Tensor, y: Tensor | None = None) -> None:
    """The same, with draws to the left of all plates."""
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    with pyro.plate("groups", GROUPS):
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        linear = torch.einsum("...d,nd->...n", slopes, x)
        linear = linear.squeeze(-2) if slopes.ndim > 1 else linear
        pyro.sample("y", dist.Bernoulli(logits=linear + mean + spread * offset[..., group]), obs=y)


def draws(rows: int, count: int) -> Peers:
    data = grouped_rows(rows)
    gen = pg.Program(logistic, guide := AutoNormal(logistic))
    pg.fit(gen, data, steps=300, progress=False, verdict=False)
    fitted = {name: value.detach().clone() for name, value in guide.median(*data).items()}
    wide = AutoNormal(vectorized)
    wide(*data)
    wide.load_state_dict(guide.state_dict())
    wide_gen = pg.Program(vectorized, wide, vectorized=True)

    def probgen(gen: pg.Program, compile: Any) -> Tensor:
        given = pg.posterior(gen, *data, draws=count, compile=compile)
        return checked(given, pg.predictive(gen, *data, given=given, compile=compile)["y"])

    @torch.no_grad()
    def predictive(model: Callable, guide: AutoNormal, parallel: bool) -> Tensor:
        found = Predictive(guide, num_samples=count, parallel=parallel)(*data)
        given = {name: found[name].reshape(count, *fitted[name].shape) for name in fitted}
        return checked(
            given, Predictive(model, given, return_sites=("y",), parallel=parallel)(*data[:2])["y"]
        )

    def checked(given: dict[str, Tensor], y: Tensor) -> Tensor:
        assert y.reshape(count, -1).shape == (count, rows)
        return torch.cat(
            [value.reshape(count, -1).mean(0) for value in (*(given[n] for n in sorted(fitted)), y)]
        )

    return {
        "probgen, eager": lambda: probgen(gen, False),
        "probgen, auto": lambda: probgen(gen, "auto"),
        "probgen, compiled": lambda: probgen(gen, True),
        "Pyro Predictive, sequential": lambda: predictive(logistic, guide, False),
        "vectorized form: probgen, eager": lambda: probgen(wide_gen, False),
        "vectorized form: probgen, auto": lambda: probgen(wide_gen, "auto"),
        "vectorized form: Pyro Predictive, parallel": lambda: predictive(vectorized, wide, True),
    }


def compare(title: str, peers: Peers, rounds: int, preparing: Preparing) -> None:
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in peers}
    results: dict[str, Tensor] = {}
    for turn in range(rounds):
        for name, peer in peers.items():
            torch.manual_seed(turn)
            before = preparing.seconds
            began = time.perf_counter()
            results[name] = peer()
            turns[name].append((time.perf_counter() - began, preparing.seconds - before))
    print(
        f"\n{title}\n{'':44s}{'first':>8s}{'median':>8s}   recording and compiling (first, then)   "
        "difference"
    )
    reference = next(iter(results.values()))
    for name, found in turns.items():
        later = found[1:] or found
        seconds, apart = (statistics.median(values) for values in zip(*later, strict=True))
        error = float((results[name] - reference).abs().mean())
        print(
            f"{name:44s}{found[0][0]:7.2f}s{seconds:7.2f}s   {found[0][1]:14.2f}s {apart:14.2f}s "
            f"{error:19.4f}"
        )


if __name__ == "__main__":
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--particles", type=int, default=500)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--only", choices=("scores", "draws"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = Preparing()
    if options.only != "scores":
        title = f"Hierarchical logistic regression, {options.rows} rows: {options.draws} posterior and predictive draws"
        compare(title, draws(options.rows, options.draws), options.rounds, clock)
    if options.only != "draws":
        title = f"VAE 784-400-20: log-likelihood of {options.rows} rows with {options.particles} particles"
        compare(title, scores(options.rows, options.particles), options.rounds, clock)
