"""Threads that use probgen at once: how often a result is wrong, a thread crashes or hangs.

A race is two to four threads that begin together and each do one thing with a seed: fit, em, mcmc,
score, sample, or train a model with plain Pyro. Right is what the same call gives alone, to the
last bit. After every race Pyro's stack, settings and parameter store, torch's dtype and number of
threads and the modes of the models have to be as they were before.

    python benchmarks/robustness/threads.py --count 1000 --markdown threads.md
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import random
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, init_to_value
from torch import Tensor, nn

import probgen as pg
from probgen.core.turns import is_free, own_random_state
from probgen.heads import Gaussian

OUTCOMES = ("wrong", "crash", "hang")
SECONDS = 120.0
SEEDS = 4
ROWS = torch.randn(24, 2, generator=torch.Generator().manual_seed(0))
QUIET = {"progress": False, "verdict": False, "compile": False}


class Stop(Exception):
    """What a program raises that fails on purpose."""


class Noisy(nn.Module):
    """A network whose output depends on its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.weight = nn.Parameter(torch.ones(1, 4))

    def forward(self, context: Tensor) -> Tensor:
        return self.drop(self.weight.expand(*context.shape[:-1], 4))


def program(rows: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(rows)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=rows)


def guide(rows: Tensor) -> None:
    loc = pyro.param("guide_loc", torch.tensor(0.1))
    scale = pyro.param("guide_scale", torch.tensor(0.5), constraint=dist.constraints.positive)
    pyro.sample("loc", dist.Normal(loc, scale))


def broken(rows: Tensor) -> None:
    pyro.sample("loc", dist.Normal(0.0, 3.0))
    raise Stop


@functools.cache
def fitted(name: str) -> Any:
    """The models that all threads share."""
    with own_random_state(0):
        if name == "mixture":
            return pg.GaussianMixture(components=2, dims=2)
        if name == "noisy":
            return Gaussian(Noisy()).train()
        made = pg.Program(program, guide)
        made.settle((ROWS[:, 0],))
        return made


def new_mixture() -> nn.Module:
    """A model with random parameters, which are drawn in a turn, as others may draw from a seed."""
    with pg.turn():
        return pg.GaussianMixture(components=2, dims=2)


# -- what a thread does, by its seed -----------------------------------------------------------


def samples(seed: int) -> Any:
    return pg.sample(fitted("mixture"), 7, seed=seed)


def scores(seed: int) -> Any:
    return pg.log_likelihood(fitted("mixture"), ROWS[seed:]).value


def samples_of_noisy(seed: int) -> Any:
    found = pg.sample(fitted("noisy"), 5, torch.zeros(3, 1), seed=seed)
    assert fitted("noisy").training or threading.active_count() > 1
    return found


def posterior(seed: int) -> Any:
    return pg.posterior(fitted("program"), ROWS[:, 0], draws=3, seed=seed)["loc"]


def predictive(seed: int) -> Any:
    return pg.predictive(fitted("program"), ROWS[:, 0], draws=3, seed=seed)["x"]


def fits(seed: int) -> Any:
    gen = pg.Program(program, guide)
    history = pg.fit(gen, ROWS[:, 0], steps=6, batch_size=8, seed=seed, **QUIET)
    return torch.tensor([*history.loss, *gen.param_values().values()])


def fits_by_em(seed: int) -> Any:
    gen = new_mixture()
    return pg.em(gen, ROWS, seed=seed, n_init=1, max_iter=5, tol=0.0).log_likelihood


def walks(seed: int) -> Any:
    found = pg.mcmc(
        program,
        ROWS[:8, 0],
        draws=3,
        tune=3,
        chains=1,
        seed=seed,
        progress=False,
        sampler=pg.PyroNUTS(),
    )
    return found.draws["loc"]


def converts(seed: int) -> Any:
    with own_random_state(seed):
        found = pg.to_arviz(fitted("program"), ROWS[:, 0], draws=4)
    return torch.as_tensor(found.posterior["loc"].values.copy())


def fails(seed: int) -> Any:
    for call in (pg.log_likelihood, functools.partial(pg.fit, steps=2, **QUIET)):
        try:
            call(pg.Program(broken), ROWS[:, 0])
        except Stop:
            continue
        raise AssertionError("expected the program to fail")
    return torch.zeros(())


def plain_svi(seed: int) -> Any:
    """Plain Pyro, whose parameters are in the global store.

    One thread at a time, as Pyro asks for.
    """
    with PLAIN:
        pyro.clear_param_store()
        point = AutoDelta(program, init_loc_fn=init_to_value(values={"loc": torch.zeros(())}))
        step = SVI(program, point, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step
        losses = [step(ROWS[:, 0] + seed) for _ in range(20)]
        ((name, value),) = pyro.get_param_store().items()
        assert name == "AutoDelta.loc" and not pyro.settings.get("module_local_params")
        assert pyro.settings.get("validate_infer") and dist.is_validation_enabled()
        pyro.clear_param_store()
        return torch.tensor([*losses, value.item()])


def waits_in_asyncio(seed: int) -> Any:
    async def all_of() -> list[Any]:
        calls = [asyncio.to_thread(samples, seed + k) for k in range(3)]
        return [samples(seed), *await asyncio.gather(*calls)]

    return torch.stack(asyncio.run(all_of()))


def trains_while_it_waits_for_threads(seed: int) -> Any:
    """A callback that waits for another thread, which scores the very model."""
    gen = new_mixture()
    gen.load_state_dict(fitted("mixture").state_dict())

    def look(run: pg.train.Run) -> None:
        found: list[Tensor] = []
        other = threading.Thread(
            target=lambda: found.append(pg.log_likelihood(gen, ROWS).value), daemon=True
        )
        other.start()
        other.join(SECONDS)
        assert found[0].isfinite().all()

    history = pg.fit(gen, ROWS, steps=4, batch_size=8, seed=seed, callbacks=[look], **QUIET)
    return torch.tensor(history.loss)


PLAIN = threading.Lock()
Job = Callable[[int], Any]
READS = (samples, scores, samples_of_noisy, posterior, predictive)
KINDS: dict[str, tuple[Job, ...]] = {
    "scores and samples of one model": READS,
    "two fits": (fits, fits),
    "fit beside scores and samples": (fits, *READS),
    "em beside fit": (fits_by_em, fits),
    "em beside scores": (fits_by_em, *READS),
    "mcmc beside scores": (walks, *READS),
    "to_arviz beside fit": (converts, fits),
    "a failing thread beside others": (fails, fits, *READS),
    "plain SVI beside fit": (plain_svi, fits),
    "plain SVI beside scores": (plain_svi, *READS),
    "asyncio beside fit": (waits_in_asyncio, fits),
    "a callback that waits for threads": (trains_while_it_waits_for_threads, fits, *READS),
}


# -- races -------------------------------------------------------------------------------------


@functools.cache
def right(job: Job, seed: int) -> Tensor:
    """What a call gives alone."""
    return job(seed)


def world() -> dict[str, Any]:
    """What a race must leave as it was."""
    return {
        "stack": len(pyro.poutine.runtime._PYRO_STACK),
        "settings": repr(pyro.settings.get()),
        "validation": repr(torch.distributions.Distribution._validate_args),
        "store": type(pyro.get_param_store()).__name__,
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "modes": [fitted(name).training for name in ("mixture", "noisy", "program")],
        "grad": torch.is_grad_enabled(),
        "warnings": len(warnings.filters),
        "turn": is_free(),
    }


class Racer(threading.Thread):
    """One thread of a race, with its outcome."""

    def __init__(self, job: Job, seed: int, start: threading.Barrier):
        super().__init__(daemon=True)
        self.job = job
        self.seed = seed
        self.at = start
        self.found = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.at.wait(SECONDS)
            self.found = self.job(self.seed)
        except BaseException as error:  # what the table counts
            self.error = error

    def outcome(self, until: float) -> str | None:
        self.join(max(until - time.monotonic(), 0.0))
        if self.is_alive():
            return "hang"
        if self.error is not None:
            print(
                f"{self.job.__name__}: {type(self.error).__name__}: {self.error}", file=sys.stderr
            )
            return "crash"
        if not torch.equal(self.found, right(self.job, self.seed)):
            print(f"{self.job.__name__}: {self.found} is not what it gives alone", file=sys.stderr)
            return "wrong"
        return None


class Result(NamedTuple):
    """How many races of a kind there were, and what happened in them."""

    count: int
    outcomes: Counter[str]

    def row(self, kind: str) -> str:
        return f"| {kind} | {self.count} | {' | '.join(str(self.outcomes[o]) for o in OUTCOMES)} |"


def race(kind: str, rng: random.Random) -> str | None:
    """One race: nothing where all was right."""
    jobs = KINDS[kind]
    first = [jobs[0], rng.choice(jobs[1:])]
    chosen = [(job, rng.randrange(SEEDS)) for job in first + rng.choices(jobs, k=rng.randrange(3))]
    for job, seed in chosen:
        right(job, seed)
    before = world()
    barrier = threading.Barrier(len(chosen))
    racers = [Racer(job, seed, barrier) for job, seed in chosen]
    for racer in racers:
        racer.start()
    until = time.monotonic() + SECONDS
    outcomes = [outcome for racer in racers if (outcome := racer.outcome(until))]
    if not outcomes and (after := world()) != before:
        print(f"{kind}: {before} became {after}", file=sys.stderr)
        return "wrong"
    return outcomes[0] if outcomes else None


def races(kind: str, count: int, seed: int = 0) -> Result:
    """So many races of one kind; it ends at the first thread that hangs."""
    rng = random.Random(seed)
    outcomes = Counter[str]()
    for done in range(count):
        if outcome := race(kind, rng):
            outcomes[outcome] += 1
        if outcomes["hang"]:
            return Result(done + 1, outcomes)
    return Result(count, outcomes)


def table(count: int, seed: int) -> list[str]:
    """Rows of a table in Markdown, for ``count`` races in all."""
    lines = [f"| fault | count | {' | '.join(OUTCOMES)} |", "|---" * (2 + len(OUTCOMES)) + "|"]
    total = Result(0, Counter())
    for kind in KINDS:
        found = races(kind, -(-count // len(KINDS)), seed)
        total = Result(total.count + found.count, total.outcomes + found.outcomes)
        lines.append(found.row(kind))
        print(lines[-1], flush=True)
    return [*lines, total.row("all")]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1008, help="races in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", type=Path, help="where to write the table")
    settings = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    text = "\n".join(table(settings.count, settings.seed))
    print(text)
    if settings.markdown:
        settings.markdown.write_text(text + "\n")


if __name__ == "__main__":
    main()
