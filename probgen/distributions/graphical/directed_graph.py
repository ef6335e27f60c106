"""Directed graphs of distributions.

Names and parents without cycles, columns, and which nodes have finitely many values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from itertools import accumulate
from typing import Any

import pyro.distributions as dist
import torch
from torch.distributions import constraints

from probgen.core import checks

CONTEXT = "context"  # the parent that is no node: what the whole network is conditioned on
_LISTED = 20  # names that a message lists
NodeDistributions = Mapping[str, Callable[..., dist.TorchDistribution]]


@dataclass(frozen=True)
class Graph:
    """Names, parents, columns and numbers of values of the nodes of a network.

    Attributes
    ----------
    names : tuple of str
        The nodes, in the order of their columns.
    parents : dict of str to tuple of str
        The parents of each node; the context stands last.
    columns : list of slice
        The columns of each node.
    levels : list of int or None
        Number of values of each discrete node.
    """

    names: tuple[str, ...]
    parents: dict[str, tuple[str, ...]]
    columns: list[slice]
    levels: list[int | None]

    @classmethod
    def of(
        cls, distributions: NodeDistributions, parents: Mapping[str, Sequence[str]], context: int
    ) -> Graph:
        """The graph of some distributions, whose events and supports are looked at.

        Raises ``ValueError`` if there is none.
        """
        check_graph(tuple(distributions), parents)
        ordered = {
            name: tuple(sorted(parents.get(name, ()), key=CONTEXT.__eq__)) for name in distributions
        }
        return cls(tuple(distributions), ordered, *_probe(distributions, ordered, context))

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.columns[-1].stop

    def index(self, name: str) -> int:
        """The place of a node among all."""
        if name not in self.names:
            raise ValueError(f"expected the name of a node, {did_you_mean(self.names, name)}")
        return self.names.index(name)

    def above(self, name: str) -> tuple[int, ...]:
        """The places of a node's parents."""
        return tuple(self.index(parent) for parent in self.parents[name] if parent != CONTEXT)

    def conditioned(self, *names: str) -> bool:
        """Whether the context is a parent of any of these nodes."""
        return any(CONTEXT in self.parents[name] for name in names)

    def shape(self, name: str) -> tuple[int | None, ...]:
        """Numbers of values of a node's parents, then its own: the shape of its table."""
        return (*(self.levels[place] for place in self.above(name)), self.levels[self.index(name)])


def did_you_mean(known: Sequence[str], got: object) -> str:
    """The end of a message about a name that is not known: what is known, what was meant.

    >>> did_you_mean(("no", "yes"), "yess")
    "one of ('no', 'yes'), got 'yess'; did you mean 'yes'?"
    """
    listed = str(tuple(known[:_LISTED]))
    if len(known) > _LISTED:
        listed = f"{listed[:-1]}, ... {len(known) - _LISTED} more)"
    close = get_close_matches(str(got), known, n=1)
    if not close:
        close = [name for name in known if name.lower() == str(got).lower().strip()]
    advice = f"did you mean {close[0]!r}?" if close else "give one of these"
    return f"one of {listed}, got {got!r}; {advice}"


def check_graph(names: Sequence[str], parents: Mapping[str, Sequence[str]]) -> None:
    """Raises ``ValueError`` unless parents are nodes, or the context, and the graph has no cycle.

    Which is named.

    >>> check_graph(["a", "b"], {"a": ["b"], "b": ["a"]})
    Traceback (most recent call last):
    ValueError: expected a directed acyclic graph, got the cycle a -> b -> a; remove one of its edges
    """
    if not names:
        raise ValueError("expected one node or more, got none; give conditionals by name")
    if CONTEXT in names:
        raise ValueError(
            f"expected names of nodes other than '{CONTEXT}', got {CONTEXT}; name them as you "
            "like, but the parent of "
            "that name is what the network is conditioned on"
        )
    checks.texts(**{f"parents[{child!r}]": above for child, above in parents.items()})
    for child, above in parents.items():
        for name in (child, *above):
            if name not in names and name != CONTEXT:
                raise ValueError(
                    f"expected parents and children among the nodes (or '{CONTEXT}'), "
                    f"{did_you_mean(tuple(names), name)}"
                )
    twice = [name for name, above in parents.items() if len(set(above)) < len(above)]
    if twice:
        raise ValueError(f"expected every parent once, got one twice at {twice}; name each once")
    try:
        TopologicalSorter(parents).prepare()
    except CycleError as error:
        cycle = " -> ".join(error.args[1])
        raise ValueError(
            f"expected a directed acyclic graph, got the cycle {cycle}; remove one of its edges"
        ) from None


@torch.no_grad()
def _probe(
    distributions: NodeDistributions, parents: Mapping[str, Sequence[str]], context: int
) -> tuple[list[slice], list[int | None]]:
    """Columns and numbers of levels of all nodes.

    From their distributions where parents and context are zero.
    """
    found: dict[str, tuple[int, int | None]] = {CONTEXT: (context, None)}
    for name in TopologicalSorter(parents).static_order():
        if name != CONTEXT:
            columns = sum(found[p][0] for p in parents[name])
            distribution = (
                distributions[name](torch.zeros(1, columns)) if columns else distributions[name]()
            )
            if len(distribution.event_shape) != 1:
                raise ValueError(
                    f"expected events of one dim from the distribution of '{name}', got shape "
                    f"{tuple(distribution.event_shape)}; a node "
                    "is a column, or several side by side"
                )
            found[name] = distribution.event_shape.numel(), finite_levels(distribution)
    ends = list(accumulate(found[name][0] for name in distributions))
    return list(map(slice, [0, *ends[:-1]], ends)), [found[name][1] for name in distributions]


def finite_levels(distribution: dist.TorchDistribution) -> int | None:
    """Number of values 0, 1, ... of a distribution of one discrete variable, else ``None``.

    >>> finite_levels(dist.Bernoulli(torch.ones(1) / 2).to_event(1)), finite_levels(dist.Poisson(torch.ones(1)))
    (2, None)
    """
    support: Any = distribution.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if distribution.event_shape.numel() != 1:
        return None
    if support is constraints.boolean:
        return 2
    finite = (
        isinstance(support, type(constraints.integer_interval(0, 1))) and support.lower_bound == 0
    )
    return int(support.upper_bound) + 1 if finite else None
