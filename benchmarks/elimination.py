"""Exact answers of a Bayesian network as large as ALARM (37 nodes, 2 to 4 values).

All marginals, and P(evidence).

    python benchmarks/elimination.py                # one query at a time, beside pgmpy; then many
    at once python benchmarks/elimination.py --nodes 60

The network is random: each node has up to three parents among the eight nodes before it. Each query
observes a quarter of the nodes. The answers of all ways are compared, P(evidence) also with numpy's
einsum. pgmpy is asked for one marginal after the other (asked for all, it makes a table of all of
them), and not for P(evidence), which it enumerates. Peers that are not installed (pip install
pgmpy) are left out.
"""

from __future__ import annotations

import logging
import os
import statistics
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from common import command_line, timed

from probgen.models.bayesian_network import BayesianNetwork

Tables = dict[str, np.ndarray]
Parents = dict[str, list[str]]


def random_network(nodes: int, seed: int = 0) -> tuple[Tables, Parents]:
    """Tables ``(*levels of the parents, levels)`` and parents."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(2, 5, size=nodes)
    tables = {}
    parents = {}
    for node in range(nodes):
        near = np.arange(max(0, node - 8), node)
        above = (
            sorted(rng.choice(near, size=min(len(near), rng.integers(1, 4)), replace=False))
            if node
            else []
        )
        rows = rng.dirichlet(np.ones(levels[node]), size=[levels[p] for p in above])
        tables[f"n{node}"], parents[f"n{node}"] = rows, [f"n{p}" for p in above]
    return tables, parents


def queries(network: BayesianNetwork, count: int) -> torch.Tensor:
    """Draws of the network of which a quarter of the entries is kept."""
    torch.manual_seed(0)
    x = network().sample((count,))
    return x.masked_fill(torch.rand_like(x) > 0.25, torch.nan)


Answer = tuple[
    np.ndarray | None, list[np.ndarray]
]  # log P(evidence), and the marginals of all nodes


def probgen(network: BayesianNetwork) -> Callable[[torch.Tensor], Answer]:
    @torch.no_grad()
    def ask(x: torch.Tensor) -> Answer:
        found = network.marginals(x)
        return network().log_prob(x).numpy(), [marginal.numpy() for marginal in found.values()]

    return ask


def pgmpy_engine(tables: Tables, parents: Parents) -> Any:
    """pgmpy's variable elimination on these tables."""
    from pgmpy.factors.discrete import TabularCPD
    from pgmpy.inference import VariableElimination
    from pgmpy.models import DiscreteBayesianNetwork

    model = DiscreteBayesianNetwork([(p, child) for child, above in parents.items() for p in above])
    model.add_nodes_from(tables)
    for name, table in tables.items():
        values = np.moveaxis(table, -1, 0).reshape(table.shape[-1], -1)
        sizes = [tables[p].shape[-1] for p in parents[name]]
        model.add_cpds(
            TabularCPD(name, table.shape[-1], values, evidence=parents[name], evidence_card=sizes)
        )
    model.check_model()
    return VariableElimination(model)


def pgmpy(tables: Tables, parents: Parents) -> Callable[[torch.Tensor], Answer]:
    engine = pgmpy_engine(tables, parents)
    names = list(tables)

    def ask(x: torch.Tensor) -> Answer:
        row = x[0]
        evidence = {
            name: int(value)
            for name, value in zip(names, row.tolist(), strict=True)
            if value == value
        }
        hidden = [name for name in names if name not in evidence]
        found = {
            name: engine.query([name], evidence=evidence, show_progress=False) for name in hidden
        }
        marginals = []
        for name in names:
            levels = tables[name].shape[-1]
            marginals.append(
                np.eye(levels)[evidence[name]] if name in evidence else found[name].values
            )
        return None, [marginal[None] for marginal in marginals]

    return ask


def einsum_log_evidence(tables: Tables, parents: Parents, row: torch.Tensor) -> float:
    """Sliced tables, contracted by numpy in double precision: the oracle of P(evidence)."""
    names = list(tables)
    operands: list = []
    for name, table in tables.items():
        scope = [names.index(v) for v in (*parents[name], name)]
        index = tuple(slice(None) if row[v].isnan() else int(row[v]) for v in scope)
        operands += [table[index], [v for v in scope if row[v].isnan()]]
    return float(np.log(np.einsum(*operands, [], optimize="greedy")))


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--nodes", type=int, default=37)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--batch", type=int, default=2000)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    tables, parents = random_network(arguments.nodes)
    network = BayesianNetwork.from_tables(
        {name: torch.tensor(t).float() for name, t in tables.items()}, parents
    )
    print(f"{torch.get_num_threads()} threads, load average {os.getloadavg()[0]:.1f}")
    print(
        f"{len(tables)} nodes, {sum(map(len, parents.values()))} edges; elimination: "
        f"{network().plan}"
    )
    ways = {"probgen": probgen(network)} | (
        {"pgmpy": pgmpy(tables, parents)} if find_spec("pgmpy") else {}
    )
    x = queries(network, max(arguments.queries, arguments.batch))
    times = {name: [] for name in ways}
    answers = {name: [] for name in ways}
    for turn in range(-1, arguments.queries):  # the first turn warms up
        for name, ask in ways.items():
            seconds, answer = timed(ask, x[[max(turn, 0)]])
            if turn >= 0:
                times[name].append(seconds)
                answers[name].append(answer)
    seconds, (together, marginals) = timed(ways["probgen"], x[: arguments.batch])
    for name, values in times.items():
        truth = [einsum_log_evidence(tables, parents, row) for row in x[: arguments.queries]]
        gaps = [
            abs(a[0][0] - t) for a, t in zip(answers[name], truth, strict=True) if a[0] is not None
        ]
        told = f"log P(e) off by {max(gaps):.1e}, " if gaps else ""
        away = max(
            np.abs(mine - theirs[row]).max()
            for row, answer in enumerate(answers[name])
            for mine, theirs in zip(answer[1], marginals, strict=True)
        )
        median = 1000 * statistics.median(values)
        span = f"{1000 * min(values):.1f}-{1000 * max(values):.1f}"
        print(
            f"{name:9s} one query: {median:9.2f} ms ({span}); {told}marginals differ by {away:.1e}"
        )
    print(
        f"probgen   {len(together)} queries at once: {1000 * seconds / len(together):.3f} ms each"
    )


if __name__ == "__main__":
    main()
