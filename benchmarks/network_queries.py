"""Questions to Bayesian networks, beside pgmpy: marginals, joint tables and the most probable values.

Classical networks (asia, cancer, earthquake: structure and tables as published) and random ones of
the size of sachs and alarm, written as BIF by probgen and read by both. Each question observes a
quarter of the nodes (at least one), by a draw of the network; both libraries answer it in turn. For
all of them together probgen is asked once. Then a root with 24 children and a common child of each
pair of these, where only the root is asked for.

    python benchmarks/network_queries.py              # pip install pgmpy
"""

from __future__ import annotations

import logging
import math
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from common import command_line, timed

from probgen.bif import Tables
from probgen.graphical import read_bif, write_bif
from probgen.models.bayesian_network import BayesianNetwork

LARGEST = 2**22  # entries of a table that pgmpy is asked for
Parents = dict[str, tuple[str, ...]]
Evidence = dict[str, str]


class Question(NamedTuple):
    """What is observed, and two nodes that are asked for together."""

    evidence: Evidence
    pair: tuple[str, str]


# -- networks --------------------------------------------------------------------------------------


def binary(name: str, of_true: dict[str, tuple[tuple[str, ...], list[float]]]) -> Tables:
    """Nodes of two values; p(true) for each combination of the parents' values, no first."""
    states = dict.fromkeys(of_true, ("no", "yes"))
    parents = {node: above for node, (above, _) in of_true.items()}
    tables = {}
    for node, (above, values) in of_true.items():
        true = torch.tensor(values).reshape([2] * len(above))
        tables[node] = torch.stack([1 - true, true], -1)
    return Tables(name, states, parents, tables)


def asia() -> Tables:
    """Lauritzen, Spiegelhalter (1988), Local computations with probabilities on graphs."""
    return binary(
        "asia",
        {
            "asia": ((), [0.01]),
            "tub": (("asia",), [0.01, 0.05]),
            "smoke": ((), [0.5]),
            "lung": (("smoke",), [0.01, 0.1]),
            "bronc": (("smoke",), [0.3, 0.6]),
            "either": (("lung", "tub"), [0.0, 1.0, 1.0, 1.0]),
            "xray": (("either",), [0.05, 0.98]),
            "dysp": (("bronc", "either"), [0.1, 0.7, 0.8, 0.9]),
        },
    )


def cancer() -> Tables:
    """Korb, Nicholson (2010), Bayesian Artificial Intelligence; pollution: no is low."""
    return binary(
        "cancer",
        {
            "Pollution": ((), [0.1]),
            "Smoker": ((), [0.3]),
            "Cancer": (("Pollution", "Smoker"), [0.001, 0.03, 0.02, 0.05]),
            "Xray": (("Cancer",), [0.2, 0.9]),
            "Dyspnoea": (("Cancer",), [0.3, 0.65]),
        },
    )


def earthquake() -> Tables:
    """Pearl's alarm, with the tables of Korb, Nicholson (2010)."""
    return binary(
        "earthquake",
        {
            "Burglary": ((), [0.01]),
            "Earthquake": ((), [0.02]),
            "Alarm": (("Burglary", "Earthquake"), [0.001, 0.29, 0.94, 0.95]),
            "JohnCalls": (("Alarm",), [0.05, 0.9]),
            "MaryCalls": (("Alarm",), [0.01, 0.7]),
        },
    )


def random_network(name: str, nodes: int, most: int, levels: tuple[int, int], seed: int) -> Tables:
    """Up to ``most`` parents among the eight nodes before each."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(levels[0], levels[1] + 1, size=nodes)
    states = {f"n{i}": tuple(f"s{k}" for k in range(size)) for i, size in enumerate(sizes)}
    parents: Parents = {}
    tables = {}
    for node in range(nodes):
        near = np.arange(max(0, node - 8), node)
        count = min(len(near), int(rng.integers(1, most + 1)))
        above = sorted(rng.choice(near, size=count, replace=False).tolist()) if count else []
        rows = rng.dirichlet(np.ones(sizes[node]), size=[sizes[p] for p in above])
        parents[f"n{node}"] = tuple(f"n{p}" for p in above)
        tables[f"n{node}"] = torch.tensor(rows)
    return Tables(name, states, parents, tables)


NETWORKS: dict[str, Callable[[], Tables]] = {
    "cancer": cancer,
    "earthquake": earthquake,
    "asia": asia,
    "random, 11 nodes of 3": lambda: random_network("sachs", 11, 3, (3, 3), 0),
    "random, 37 nodes of 2 to 4": lambda: random_network("alarm", 37, 3, (2, 4), 0),
}


# -- the two libraries -----------------------------------------------------------------------------


class Probgen:
    """Answers of probgen, by the names of nodes and states."""

    def __init__(self, path: Path):
        read = read_bif(path)
        double = {name: table.double() for name, table in read.tables.items()}
        self.network = BayesianNetwork.from_tables(double, read.parents, states=read.states)

    def marginals(self, question: Question) -> dict[str, np.ndarray]:
        found = self.network.marginals(self.network.row(**question.evidence))
        return {name: table[0].numpy() for name, table in found.items()}

    def joint(self, question: Question) -> np.ndarray:
        row = self.network.row(**question.evidence)
        return self.network.joint(row, *question.pair)[0].numpy()

    def mode(self, question: Question) -> dict[str, str]:
        row = self.network.mode(self.network.row(**question.evidence))
        return {name: values[0] for name, values in self.network.names_of(row).items()}


class Pgmpy:
    """Answers of pgmpy; one marginal after the other, since a table of all would not fit."""

    def __init__(self, path: Path):
        from pgmpy.inference import VariableElimination
        from pgmpy.readwrite import BIFReader

        self.model = BIFReader(str(path)).get_model()
        self.engine = VariableElimination(self.model)

    def marginals(self, question: Question) -> dict[str, np.ndarray]:
        found = {}
        for name in self.model.nodes():
            if name not in question.evidence:
                found[name] = self.engine.query(
                    [name], evidence=question.evidence, show_progress=False
                )
        return found

    def joint(self, question: Question) -> object:
        return self.engine.query(
            list(question.pair), evidence=question.evidence, show_progress=False
        )

    def mode(self, question: Question) -> dict[str, str] | None:
        """Nothing where the table of all hidden nodes, which pgmpy makes, would not fit."""
        hidden = [name for name in self.model.nodes() if name not in question.evidence]
        if math.prod(map(self.model.get_cardinality, hidden)) > LARGEST:
            return None
        return self.engine.map_query(hidden, evidence=question.evidence, show_progress=False)


def as_array(factor: object, names: tuple[str, ...], states: dict[str, tuple]) -> np.ndarray:
    """A factor of pgmpy with its variables and their states in our order."""
    order = [factor.variables.index(name) for name in names]
    values = factor.values.transpose(order)
    for dim, name in enumerate(names):
        theirs = list(factor.state_names[name])
        values = values.take([theirs.index(state) for state in states[name]], axis=dim)
    return values


# -- the comparison --------------------------------------------------------------------------------


def questions(network: BayesianNetwork, count: int, seed: int = 0) -> list[Question]:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    rows = network.names_of(network().sample((count,)))
    names = list(rows)
    found = []
    for index in range(count):
        known = rng.choice(names, size=max(1, len(names) // 4), replace=False).tolist()
        hidden = [name for name in names if name not in known]
        pair = tuple(rng.choice(hidden, size=2, replace=False).tolist())
        found.append(Question({name: rows[name][index] for name in known}, pair))
    return found


def compared(name: str, tables: Tables, count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.bif"
        write_bif(tables, path)
        ours = Probgen(path)
        theirs = Pgmpy(path)
    asked = questions(ours.network, count)
    times: dict[str, list[tuple[float, float]]] = {}
    gaps = {"marginals": 0.0, "joint": 0.0, "mode": 0.0}
    for turn, question in enumerate([asked[0], *asked]):  # the first turn warms up
        for kind in gaps:
            seconds, one = timed(getattr(ours, kind), question)
            others, other = timed(getattr(theirs, kind), question)
            if other is None:
                others = math.nan
            else:
                gaps[kind] = max(gaps[kind], GAPS[kind](ours, question, one, other))
            if turn:
                times.setdefault(kind, []).append((seconds, others))
    print(f"| {name} | {len(tables.states)} nodes | {together(ours, asked)} |", end="")
    for kind, pairs in times.items():
        print(f" {summary(pairs, gaps[kind])} |", end="")
    print(flush=True)


def summary(pairs: list[tuple[float, float]], gap: float) -> str:
    one, other = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
    if math.isnan(other):
        return f"{one:.2f} ms : does not fit"
    ratio = statistics.median(theirs / mine for mine, theirs in pairs)
    return f"{one:.2f} : {other:.2f} ms, {ratio:.1f} times, {gap:.0e}"


def together(ours: Probgen, asked: list[Question]) -> str:
    """All questions at once, repeated to a thousand; ms each."""
    rows = torch.cat([ours.network.row(**question.evidence) for question in asked])
    rows = rows.repeat(-(-1000 // len(rows)), 1)
    seconds, _ = timed(ours.network.marginals, rows)
    return f"{1e3 * seconds / len(rows):.4f} ms"


def gap_of_marginals(ours: Probgen, question: Question, one: dict, other: dict) -> float:
    states = ours.network.states
    return max(np.abs(one[n] - as_array(f, (n,), states)).max() for n, f in other.items())


def gap_of_joints(ours: Probgen, question: Question, one: np.ndarray, other: object) -> float:
    return np.abs(one - as_array(other, question.pair, ours.network.states)).max()


def gap_of_modes(ours: Probgen, question: Question, one: dict, other: dict) -> float:
    """By how much the log probabilities differ: several values may be equally probable."""
    rows = ours.network.rows([one, {**other, **question.evidence}]).double()
    with torch.no_grad():
        first, second = ours.network().log_prob(rows).tolist()
    return abs(first - second)


GAPS = {"marginals": gap_of_marginals, "joint": gap_of_joints, "mode": gap_of_modes}


# -- what a question about a root does not need ------------------------------------------------------


def dense(children: int) -> Tables:
    """A root, its children, and a common child of each pair of them."""
    rng = np.random.default_rng(0)
    names = [f"c{i}" for i in range(children)]
    parents: Parents = {"root": (), **dict.fromkeys(names, ("root",))}
    for one, other in combinations(names, 2):
        parents[f"{one}_{other}"] = (one, other)
    tables = {
        name: torch.tensor(rng.dirichlet(np.ones(2), size=[2] * len(above)))
        for name, above in parents.items()
    }
    return Tables("dense", dict.fromkeys(parents, ("no", "yes")), parents, tables)


def pruned(children: int) -> None:
    tables = dense(children)
    ours = BayesianNetwork.from_tables(tables.tables, tables.parents, states=tables.states)
    row = ours.row(root="yes")
    truth = float(tables.tables["root"][1].log())
    with torch.no_grad():
        first, value = timed(lambda x: ours().log_prob(x), row)
        again, _ = timed(lambda x: ours().log_prob(x), row)
    seconds, found = timed(lambda x: ours.marginals(x, nodes=["root"]), ours.row(c0="yes"))
    print(
        f"root, {children} children, {len(tables.states)} nodes: log p(root) {1e3 * first:.1f} ms, "
        f"again {1e3 * again:.1f} ms, off by {abs(float(value) - truth):.0e}; "
        f"p(root | a child) {1e3 * seconds:.1f} ms"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.bif"
        write_bif(tables, path)
        theirs = Pgmpy(path)
    ask = lambda names: theirs.engine.query(names, show_progress=False)  # noqa: E731
    print(f"pgmpy: p(root) {1e3 * timed(ask, ['root'])[0]:.1f} ms", end=", ")
    given = lambda names: theirs.engine.query(  # noqa: E731
        names, evidence={"c0": "yes"}, show_progress=False
    )
    others, factor = timed(given, ["root"])
    away = np.abs(found["root"][0].numpy() - as_array(factor, ("root",), tables.states)).max()
    print(f"p(root | a child) {1e3 * others:.1f} ms; they differ by {away:.0e}")


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--children", type=int, default=24)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    print(f"{torch.get_num_threads()} threads, load average {os.getloadavg()[0]:.1f}")
    print("probgen : pgmpy (medians), how many times longer pgmpy takes, largest difference")
    print("| network | size | all marginals, 1,000 at once | all marginals | joint of two | mode |")
    print("|---|---|--:|--:|--:|--:|")
    for name, make in NETWORKS.items():
        compared(name, make(), arguments.questions)
    pruned(arguments.children)


if __name__ == "__main__":
    main()
