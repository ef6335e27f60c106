"""The distribution of a directed graph of any conditional distributions.

Discrete variables that are missing are summed out exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from graphlib import TopologicalSorter
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core.batched import BatchedDistribution
from probgen.core.kinds import density_kind, worst
from probgen.core.missing import check_event, fill_missing, has_missing
from probgen.core.sums import sum_of
from probgen.distributions.completed import Completed
from probgen.distributions.conditional import conditional
from probgen.distributions.conditioned import no_closed_form
from probgen.distributions.graphical.factors import LIMIT, Factors


class GraphNode(NamedTuple):
    """One node of the graph.

    Attributes
    ----------
    distribution : callable
        From the parents' values ``(*lead, P)`` to a distribution of events ``(size,)`` with
        batch_shape ``lead`` or ``()``.
    parents : tuple of int
        Which nodes are its parents, in the order in which their values are laid end to end.
    columns : slice
        Where its values stand in an event.
    levels : int or None
        Number of values of a discrete node, which has one column.
    own : bool
        Whether the distribution differs between rows also where the parents agree: it depends on a
        context.
    name : str
        What errors call it.
    """

    distribution: Callable[[Tensor], dist.TorchDistribution]
    parents: tuple[int, ...]
    columns: slice
    levels: int | None = None
    own: bool = False
    name: str = ""


class _NodeColumns(constraints.cat):
    """Supports of columns side by side: discrete only if all of them are."""

    @property
    def is_discrete(self) -> bool:  # type: ignore[override]  # torch: a constant
        return all(part.is_discrete for part in self.cseq)


def family_table(
    nodes: Sequence[GraphNode], index: int, x: Tensor
) -> tuple[Tensor, tuple[int, ...]]:
    """Log masses of a node at all values of the discrete members of its family.

    Other members as in ``x``.

    Returns
    -------
    (Tensor, tuple of int)
        ``(*lead, *levels)`` for ``x`` of shape ``(*lead, D)``, without ``lead`` where rows do not
        differ; and the discrete nodes that its rightmost dims belong to: the parents', then its
        own.
    """
    node = nodes[index]
    discrete = [p for p in dict.fromkeys(node.parents) if nodes[p].levels is not None]
    shared = not node.own and len(discrete) == len(set(node.parents)) and node.levels is not None
    lead = torch.Size() if shared else x.shape[:-1]
    sizes = _sizes(nodes, discrete)
    distribution = node.distribution(_on_grid(nodes, node, discrete, x, lead))
    if node.levels is None:
        value = x[..., node.columns]
        scope = tuple(discrete)
        table = distribution.log_prob(value).expand(*sizes, *lead)
    else:
        value = torch.arange(node.levels, dtype=x.dtype, device=x.device)
        scope = (*discrete, index)
        ones = (1,) * (len(sizes) + len(lead))
        table = distribution.log_prob(value.reshape(-1, *ones, 1)).expand(-1, *sizes, *lead)
        table = table.movedim(0, len(sizes))
    grid = len(scope)
    return table.permute(*range(grid, table.ndim), *range(grid)), scope


def _sizes(nodes: Sequence[GraphNode], discrete: Sequence[int]) -> list[int]:
    """How many levels each of some discrete nodes has."""
    levels = (nodes[p].levels for p in discrete)
    return [size for size in levels if size is not None]


def _on_grid(
    nodes: Sequence[GraphNode], node: GraphNode, discrete: list[int], x: Tensor, lead: torch.Size
) -> Tensor:
    """Values of the parents, discrete ones at all their levels: ``(*levels, *lead, P)``."""
    sizes = _sizes(nodes, discrete)
    parts = []
    for p in node.parents:
        if p in discrete:
            place = discrete.index(p)
            part = torch.arange(sizes[place], dtype=x.dtype, device=x.device)
            part = part.reshape(-1, *(1,) * (len(sizes) - place - 1 + len(lead)), 1)
        else:
            part = fill_missing(x[..., nodes[p].columns])
        parts.append(part.expand(*sizes, *lead, part.shape[-1]))
    return torch.cat(parts, -1) if parts else x.new_zeros(*sizes, *lead, 0)


class DirectedDistribution(BatchedDistribution):
    r"""The distribution of a directed acyclic graph of conditional distributions.

    Each given the values of its parents.

    .. math:: p(x) = \prod_d p(x_d \mid x_{\mathrm{pa}(d)})

    Missing entries (NaN) of discrete nodes are summed out by variable elimination; those of
    continuous nodes are integrated out where nothing observed descends from them.

    Parameters
    ----------
    nodes : sequence of GraphNode
        The graph.
    blank : Tensor
        Any tensor of the shape ``(*batch, D)``, dtype and device of an event.
    limit : int
        Largest table, in entries per row, that an elimination may make.

    Raises
    ------
    ValueError
        From ``log_prob``, if a continuous node is missing and one of its descendants is not.

    References
    ----------
    Lauritzen, Wermuth (1989), Graphical models for associations between variables, some of which
    are qualitative and some quantitative, https://doi.org/10.1214/aos/1176347003
    """

    batched = {"blank": None}

    def __init__(self, nodes: Sequence[GraphNode], blank: Tensor, limit: int = LIMIT):
        self.nodes = tuple(nodes)
        self.blank = blank
        self.limit = limit
        self.order = _ancestral(tuple(node.parents for node in nodes))
        super().__init__(blank.shape[:-1], blank.shape[-1:], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        supports: dict[int, Any] = {
            node.columns.start: node.distribution(self._zeros(node)).support for node in self.nodes
        }
        sizes = {node.columns.start: node.columns.stop - node.columns.start for node in self.nodes}
        parts = [supports[start].base_constraint for start in sorted(supports)]
        return constraints.independent(
            _NodeColumns(parts, -1, [sizes[start] for start in sorted(sizes)]), 1
        )

    @property
    def density_kind(self) -> str:
        return worst(*(density_kind(node.distribution(self._zeros(node))) for node in self.nodes))

    def log_prob(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        lead = self.lead(x)
        x = x.expand(*lead, -1)
        if has_missing(x):
            return self._marginal(x, lead)
        terms = [
            node.distribution(self._above(node, x)).log_prob(x[..., node.columns])
            for node in self.nodes
        ]
        return sum_of(terms).expand(lead)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        x = self.blank.new_full(torch.Size(sample_shape) + self.blank.shape, torch.nan)
        return self._filled(
            x,
            torch.ones(len(self.nodes), dtype=torch.bool, device=x.device).expand(
                *x.shape[:-1], -1
            ),
        )

    @torch.no_grad()
    def complete(self, x: Tensor, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Exact draws of missing entries (NaN) given the others.

        ``(*batch, D) -> (*sample, *batch, D)``.
        """
        check_event(x, self.event_shape)
        lead = self.lead(x)
        shape = torch.Size(sample_shape)
        x = x.expand(*lead, -1)
        free = self._free(x)
        drawn = x.expand(*shape, *lead, -1).clone()
        columns = self._discrete_columns()
        if columns and x[..., columns].isnan().any():
            factors, _ = self._factors(x)
            drawn[..., columns] = (
                factors.draw(x[..., columns], lead, shape.numel()).reshape(*shape, *lead, -1).to(x)
            )
        return self._filled(drawn, free.expand(*shape, *free.shape))

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise no_closed_form(self)

    def _marginal(self, x: Tensor, lead: torch.Size) -> Tensor:
        self._free(x)
        factors, constant = self._factors(x)
        columns = self._discrete_columns()
        return (constant + (factors.log_sum(x[..., columns], lead) if columns else 0.0)).expand(
            lead
        )

    def _factors(self, x: Tensor) -> tuple[Factors, Tensor]:
        """Each node as a table over the discrete members of its family.

        And the sum of those that have none.
        """
        levels = {i: node.levels for i, node in enumerate(self.nodes) if node.levels is not None}
        place = {index: i for i, index in enumerate(levels)}
        tables: list[Tensor] = []
        scopes: list[tuple[int, ...]] = []
        constant = torch.zeros(x.shape[:-1], dtype=x.dtype, device=x.device)
        for index in range(len(self.nodes)):
            table, scope = family_table(self.nodes, index, x)
            if scope:
                tables = [*tables, table]
                scopes = [*scopes, tuple(place[i] for i in scope)]
            else:
                constant = constant + table
        return Factors(tuple(tables), tuple(scopes), tuple(levels.values()), self.limit), constant

    def _free(self, x: Tensor) -> Tensor:
        """Which nodes have no observed entry below them or in them, ``(*lead, nodes)``.

        Refuses other missing ones.
        """
        some = torch.stack([x[..., node.columns].isnan().any(-1) for node in self.nodes], -1)
        free = torch.stack([x[..., node.columns].isnan().all(-1) for node in self.nodes], -1)
        for index in reversed(self.order):
            below = [i for i, node in enumerate(self.nodes) if index in node.parents]
            leaf = free[..., below].all(-1)
            wrong = some[..., index] & ~leaf
            if self.nodes[index].levels is None and wrong.any():
                raise ValueError(
                    f"expected the node '{self.nodes[index].name}' to be observed where its "
                    "descendants are, "
                    f"got NaN in {int(wrong.sum())} rows; give it a discrete distribution, or make "
                    "all nodes linear-Gaussian"
                )
            free[..., index] &= leaf
        return free

    def _filled(self, x: Tensor, free: Tensor) -> Tensor:
        """Draws of the nodes that are free, and of missing entries of others, in ancestral order.

        In place.
        """
        for index in self.order:
            node = self.nodes[index]
            value = x[..., node.columns]
            lead = x.shape[:-1]
            if not (free[..., index].any() or value.isnan().any()):
                continue
            distribution = node.distribution(self._above(node, x))
            distribution = (
                distribution.expand(lead) if distribution.batch_shape != lead else distribution
            )
            if (value.isnan().any(-1) & ~free[..., index]).any():
                drawn = conditional(
                    distribution, value, ~(value.isnan() | free[..., index, None])
                ).sample()
            else:
                drawn = torch.where(free[..., index, None], distribution.sample(), value)
            x[..., node.columns] = drawn
        return x

    def _above(self, node: GraphNode, x: Tensor) -> Tensor:
        parts = [x[..., self.nodes[p].columns] for p in node.parents]
        return torch.cat(parts, -1) if parts else x[..., :0]

    def _zeros(self, node: GraphNode) -> Tensor:
        width = sum(self.nodes[p].columns.stop - self.nodes[p].columns.start for p in node.parents)
        return self.blank.new_zeros(*self.batch_shape, width)

    def _discrete_columns(self) -> list[int]:
        return [node.columns.start for node in self.nodes if node.levels is not None]


@lru_cache(maxsize=64)
def _ancestral(parents: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    return tuple(TopologicalSorter(dict(enumerate(parents))).static_order())


@conditional.register(DirectedDistribution)
def _(distribution: DirectedDistribution, x: Tensor, mask: Tensor) -> Completed:
    return Completed(distribution, x, mask)
