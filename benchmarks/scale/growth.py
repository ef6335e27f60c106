"""Time and memory by the number of rows, beside the library that is usual for each kind of work.

- *EM*: five steps of a mixture of five normal distributions with full covariances, rows of eight
  numbers, from the same start as scikit-learn.
- *scoring*: the log-density of all rows under it; scikit-learn's ``score_samples``.
- *fit*: a hundred steps of a flow (MAF) with a thousand rows each, and all before them; a loop over
  zuko's flow, written by hand.
- *HMM*: the log-likelihood of one sequence of so many steps, eight states, two numbers a step;
  hmmlearn with scaling, in double precision.
- *NUTS*: one gradient of a hierarchical logistic regression of eight columns and twenty groups, as a
  run with trees of at most seven steps takes it, compilation and what else a run takes left out; NumPyro.
- *elimination*: the probability of what was seen of each row, a quarter of a network of twenty nodes
  with up to three parents; pgmpy is asked for one marginal for each row, and summed out alike.

Each figure is from a process of its own, in which a thousand rows of the same were done before: seconds
of the processor, and the peak of memory less what was held when the rows were there. Slopes are those of
the logarithms over the last two decades measured: 1 where cost is in proportion to rows. A peer that
would take longer than ``--patience`` seconds, by the size before, is left out from there on. What
``--results`` has already is not measured again.

Measured on one core that other work used too (EM, fit and elimination in one run, scoring, HMM and NUTS
in later ones, once they had been mended): see the picture and the table at the end of
``docs/benchmarks.md``.

    pip install scikit-learn zuko hmmlearn numpyro pgmpy
    python benchmarks/scale/growth.py --results growth.json --picture docs/growth.png
    python benchmarks/scale/growth.py --sizes 1e3 2e3 --works EM scoring       # does it run
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from launching import as_script, tell, workers

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import command_line, forget_peak, kept, resident, seconds

SIZES = (1e3, 1e4, 1e5, 1e6, 1e7)
WARM = 1000
DIMS, COMPONENTS, STATES, NODES = 8, 5, 8, 20
STEPS, BATCH = 100, 1000  # of fit
DEPTH = 3  # of the trees of NUTS
SILENT = {"progress": False, "verdict": False}
Task = Callable[[], float | None]  # does the work; the seconds of its unit, where it has one


def clusters(rows: int) -> np.ndarray:
    """Rows of two clusters of correlated numbers, single precision."""
    random = np.random.default_rng(0)
    mixing = (random.normal(size=(DIMS, DIMS)) / DIMS**0.5).astype(np.float32)
    x = random.standard_normal((rows, DIMS), dtype=np.float32) @ mixing
    x += 3 * random.integers(2, size=(rows, 1)).astype(np.float32)
    return x


def em_probgen(rows: int) -> Task:
    from em_mixture import probgen, start

    x = clusters(rows)
    return done(probgen(x, start(x, COMPONENTS), 5))


def em_scikit_learn(rows: int) -> Task:
    from em_mixture import scikit_learn, start

    x = clusters(rows)
    return done(scikit_learn(x, start(x, COMPONENTS), 5))


def scoring_probgen(rows: int) -> Task:
    import probgen as pg

    x = torch.from_numpy(clusters(rows))
    gen = pg.GaussianMixture(COMPONENTS, DIMS)
    pg.em(gen, x[:WARM], max_iter=5, seed=0)
    return done(lambda: pg.log_likelihood(gen, x))


def scoring_scikit_learn(rows: int) -> Task:
    from sklearn.mixture import GaussianMixture

    x = clusters(rows)
    model = GaussianMixture(COMPONENTS, max_iter=5, random_state=0).fit(x[:WARM])
    return done(lambda: model.score_samples(x))


def fit_probgen(rows: int) -> Task:
    import probgen as pg

    x = torch.from_numpy(clusters(rows))

    def fit() -> None:
        flow = pg.MAF(DIMS, layers=2, hidden=[32])
        pg.fit(flow, x, steps=STEPS, batch_size=BATCH, compile=False, seed=0, **SILENT)

    return lambda: seconds(fit) / STEPS


def fit_zuko(rows: int) -> Task:
    import zuko

    x = torch.from_numpy(clusters(rows))

    def fit() -> None:
        flow = zuko.flows.MAF(DIMS, transforms=2, hidden_features=[32])
        optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
        taken = 0
        while taken < STEPS:
            for chosen in torch.randperm(len(x)).split(BATCH)[: STEPS - taken]:
                optimizer.zero_grad()
                (-flow().log_prob(x[chosen]).mean()).backward()
                optimizer.step()
                taken += 1

    return lambda: seconds(fit) / STEPS


def sequence(steps: int) -> tuple[np.ndarray, Any]:
    """A chain that stays in a state for twenty steps on average, and parameters near the truth."""
    from hidden_markov import Parameters

    random = np.random.default_rng(0)
    stays = random.geometric(0.05, size=steps // 10 + 100)
    path = np.repeat(random.integers(STATES, size=len(stays)), stays)[:steps]
    means = 2 * random.normal(size=(STATES, 2))
    x = means[path] + random.standard_normal((len(path), 2))
    transitions = 0.95 * np.eye(STATES) + 0.05 / STATES
    covariances = np.stack([np.eye(2)] * STATES)
    begin = Parameters(np.full(STATES, 1 / STATES), transitions, means, covariances)
    return x[None], begin


def hmm_probgen(rows: int) -> Task:
    from hidden_markov import Probgen

    return done(Probgen(*sequence(rows), "full").likelihood)


def hmm_hmmlearn(rows: int) -> Task:
    from hidden_markov import Hmmlearn

    return done(Hmmlearn(*sequence(rows), "full").likelihood)


def nuts_probgen(rows: int) -> Task:
    import nuts_models

    import probgen as pg

    problem = nuts_models.logistic(rows, DIMS, 20)
    model, data = problem.pyro(), [torch.as_tensor(part) for part in problem.data]
    fixed = {"chains": 1, "max_tree_depth": DEPTH, "save_warmup": True, "progress": False}

    def run(draws: int) -> float:
        found = pg.mcmc(model, *data, draws=draws // 2, tune=draws // 2, seed=0, **fixed)
        return found.stats["n_steps"].sum().item() + found.warmup.stats["n_steps"].sum().item()

    return of_a_gradient(run, draws_of(rows))


def nuts_numpyro(rows: int) -> Task:
    import jax
    import nuts_models
    from numpyro.infer import MCMC, NUTS

    problem = nuts_models.logistic(rows, DIMS, 20)
    fixed = {"adapt_step_size": False, "adapt_mass_matrix": False}  # all draws are then counted
    kernel = NUTS(problem.numpyro(), step_size=1e-3, max_tree_depth=DEPTH, **fixed)

    def run(draws: int) -> float:
        mcmc = MCMC(kernel, num_warmup=0, num_samples=draws, progress_bar=False)
        mcmc.run(jax.random.PRNGKey(0), *problem.data, extra_fields=("num_steps",))
        return float(mcmc.get_extra_fields()["num_steps"].sum())

    return of_a_gradient(run, draws_of(rows))


def draws_of(rows: int) -> int:
    """Draws of the longer run, fewer where each takes long."""
    return min(20_000, max(20, 2 * 10**7 // rows))


def of_a_gradient(run: Callable[[int], float], draws: int) -> Task:
    """By a long run less a short one: what each takes beside its gradients does not count."""

    def task() -> float:
        run(draws // 5)  # compiles
        began = time.process_time()
        few = run(draws // 5)
        short = time.process_time() - began
        many = run(draws)
        return (time.process_time() - began - 2 * short) / (many - few)

    return task


def network(rows: int) -> tuple[Any, Any, Any, torch.Tensor]:
    """Tables and parents of random nodes, the same as a model, and rows of which a quarter is seen."""
    from elimination import queries, random_network

    from probgen.models.bayesian_network import BayesianNetwork

    tables, parents = random_network(NODES)
    given = {name: torch.tensor(table).float() for name, table in tables.items()}
    model = BayesianNetwork.from_tables(given, parents)
    some = queries(model, WARM)
    return tables, parents, model, some.repeat(-(-rows // WARM), 1)[:rows]


def elimination_probgen(rows: int) -> Task:
    import probgen as pg

    _, _, model, x = network(rows)
    return done(lambda: pg.log_likelihood(model, x))


def elimination_pgmpy(rows: int) -> Task:
    from elimination import pgmpy_engine

    tables, parents, _, x = network(rows)
    engine = pgmpy_engine(tables, parents)
    names = list(tables)

    def run() -> None:
        for row in x.tolist():
            seen = {name: int(v) for name, v in zip(names, row, strict=True) if v == v}
            asked = next(name for name in names if name not in seen)
            engine.query([asked], evidence=seen, show_progress=False)

    return run


def done(call: Callable[[], Any]) -> Task:
    """Of work that is done once in a call."""

    def run() -> None:
        call()

    return run


WORKS: dict[str, dict[str, Callable[[int], Task]]] = {
    "EM": {"probgen": em_probgen, "scikit-learn": em_scikit_learn},
    "scoring": {"probgen": scoring_probgen, "scikit-learn": scoring_scikit_learn},
    "fit": {"probgen": fit_probgen, "zuko": fit_zuko},
    "HMM": {"probgen": hmm_probgen, "hmmlearn": hmm_hmmlearn},
    "NUTS": {"probgen": nuts_probgen, "NumPyro": nuts_numpyro},
    "elimination": {"probgen": elimination_probgen, "pgmpy": elimination_pgmpy},
}
TITLES = {"fit": "a step of fit", "NUTS": "a gradient of NUTS"}


class Cost(NamedTuple):
    """What so many rows took: seconds (of a unit, where the work has one) and MiB."""

    rows: int
    seconds: float
    memory: float
    whole: float  # seconds of all that was measured


def work(processes: int, name: str, peer: str, rows: int) -> None:
    """In a process of its own: the work on a few rows, then on all of them."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    make = WORKS[name][peer]
    make(WARM)()
    task = make(rows)
    before = resident("VmRSS")
    forget_peak()
    began = time.process_time()
    unit = task()
    whole = time.process_time() - began
    memory = max(resident() - before, 0.1)
    tell(None, seconds=whole if unit is None else unit, memory=memory, whole=whole)


def climb(name: str, peer: str, sizes: list[int], patience: float, path: Path | None) -> list[Cost]:
    """The costs of one peer, size by size, as far as patience reaches."""
    found: list[Cost] = []
    for rows in sizes:
        if found and found[-1].whole * rows / found[-1].rows > patience:
            break
        label = f"{name}, {peer}, {rows:,}"
        measure = partial(workers, __file__, 1, name=name, peer=peer, rows=rows)
        told = kept(path, [label], lambda _, measure=measure: measure()[0])[label]
        found.append(Cost(rows, told["seconds"], told["memory"], told["whole"]))
    return found


def slope(costs: list[Cost], field: str) -> float:
    """Of logarithms, over the last two decades."""
    last = costs[-1]
    first = next(each for each in costs if each.rows >= last.rows / 100)
    if first is last:
        return math.nan
    ratio = getattr(last, field) / getattr(first, field)
    return math.log(ratio) / math.log(last.rows / first.rows)


def draw(found: dict[str, dict[str, list[Cost]]], path: Path) -> None:
    """A column of pictures for each work: time above, memory below."""
    from matplotlib import pyplot

    size = (2.6 * len(found), 5)
    figure, axes = pyplot.subplots(2, len(found), figsize=size, squeeze=False, sharex=True)
    for column, (name, peers) in zip(axes.T, found.items(), strict=True):
        for panel, field in zip(column, ("seconds", "memory"), strict=True):
            for peer, costs in peers.items():
                label = f"{peer}, slope {slope(costs, field):.2f}"
                values = [getattr(each, field) for each in costs]
                panel.loglog([each.rows for each in costs], values, "o-", label=label, ms=3)
            panel.legend(fontsize=7, frameon=False)
            panel.spines[["top", "right"]].set_visible(False)
        column[0].set_title(TITLES.get(name, name), fontsize=10)
        column[1].set_xlabel("rows")
    axes[0, 0].set_ylabel("seconds of one core")
    axes[1, 0].set_ylabel("MiB beside the rows")
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--patience", type=float, default=300.0)
    parser.add_argument("--results", type=Path, help="a JSON file that is read and written")
    parser.add_argument("--picture", type=Path)
    given: argparse.Namespace = parser.parse_args()
    sizes = [int(each) for each in given.sizes]
    found = {
        name: {
            peer: climb(name, peer, sizes, given.patience, given.results) for peer in WORKS[name]
        }
        for name in given.works
    }
    print(f"{'':14s}{'':14s}{'rows':>14s}{'seconds':>14s}{'MiB':>10s}")
    for name, peers in found.items():
        for peer, costs in peers.items():
            for rows, taken, memory, _ in costs:
                print(f"{name:14s}{peer:14s}{rows:14,d}{taken:14.3g}{memory:10.0f}")
            slopes = f"{slope(costs, 'seconds'):14.2f}{slope(costs, 'memory'):10.2f}"
            print(f"{name:14s}{peer:14s}{'slope':>14s}{slopes}")
    if given.picture:
        draw(found, given.picture)


if __name__ == "__main__":
    as_script(work, main)
