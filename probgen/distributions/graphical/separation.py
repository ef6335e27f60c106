"""Conditional independence read off a directed graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations


def separated(
    parents: Mapping[str, Sequence[str]],
    first: Collection[str],
    second: Collection[str],
    given: Collection[str] = (),
) -> bool:
    """Whether some nodes d-separate two sets of others.

    They do where they separate them in the moral graph of their common ancestors: parents of one
    child joined, directions dropped. Every distribution of the graph then has the two sets
    independent given the nodes; almost every one has them dependent where nothing separates them.

    Parameters
    ----------
    parents : mapping of str to sequence of str
        The parents of each node.
    first, second : collection of str
        Two sets without common nodes.
    given : collection of str
        Nodes that are observed.

    References
    ----------
    Lauritzen, Dawid, Larsen, Leimer (1990), Independence properties of directed Markov fields,
    https://doi.org/10.1002/net.3230200503

    >>> collider = {"rain": (), "sprinkler": (), "wet": ("rain", "sprinkler")}
    >>> separated(collider, {"rain"}, {"sprinkler"})
    True
    >>> separated(collider, {"rain"}, {"sprinkler"}, {"wet"})
    False
    """
    kept = _with_ancestors(parents, {*first, *second, *given})
    neighbors = _moral({name: parents[name] for name in kept})
    reached = set(given) | set(first)
    left = list(first)
    while left:
        new = neighbors[left.pop()] - reached
        reached |= new
        left += new
    return not reached & (set(second) - set(given))


def _with_ancestors(parents: Mapping[str, Sequence[str]], some: Collection[str]) -> set[str]:
    found: set[str] = set()
    left = list(some)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += parents[name]
    return found


def _moral(parents: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    """Neighbors in the undirected graph in which every family is a clique."""
    neighbors: dict[str, set[str]] = {name: set() for name in parents}
    for name, above in parents.items():
        for one, other in combinations((name, *above), 2):
            neighbors[one].add(other)
            neighbors[other].add(one)
    return neighbors
