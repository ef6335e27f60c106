"""Variable elimination.

Products of tables of discrete variables, summed, maximized or drawn, two tables at a time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from probgen.core.sums import sum_of

Scope = tuple[int, ...]
Reduce = Callable[[Sequence[Tensor], Sequence[Scope], Scope, Scope], Tensor]

_NARROW = 2**8  # below this size of the largest table no better order is looked for
_WIDE = 2**14  # up to this size restarts take longer than the products that they would save
_RESTARTS = 16
_SMALL = 2**10  # up to here products are made entry by entry
# in place of minus infinity, so that gradients are numbers; sums of many stay far below all others
_IMPOSSIBLE = -1e30
_ROWS = 16  # what the search for an order takes the number of rows for


class Product(NamedTuple):
    """One product of tables, summed over what no other table has.

    Operands leave a list, the result joins its end.
    """

    positions: tuple[int, ...]
    scopes: tuple[Scope, ...]
    kept: Scope
    summed: Scope


class EliminationPlan(NamedTuple):
    """An order of elimination and what it costs.

    Attributes
    ----------
    steps : tuple of Product
        Products of two tables, one after the other.
    largest : int
        Entries of the largest table that is made, per row of evidence.
    operations : int
        Entries of all products before summing, per row of evidence.
    """

    steps: tuple[Product, ...]
    largest: int
    operations: int

    def __str__(self) -> str:
        return f"{len(self.steps)} products, {self.operations:,} operations a row, largest table {self.largest:,}"


@lru_cache(maxsize=512)
def plan(
    scopes: tuple[Scope, ...], levels: tuple[int, ...], batched: tuple[bool, ...] | None = None
) -> EliminationPlan:
    r"""The cheapest order found in which to sum all variables out of a product of tables.

    .. math:: \sum_{x_1} \dots \sum_{x_D} \prod_f \phi_f(x_{s(f)})

    opt_einsum's greedy search; where that makes large tables, also elimination in the order of the
    variables (for a grid the transfer matrix) and by fewest neighbors (min-weight); where these are
    very large too, random restarts of the greedy search. Kept by what is observed, whatever its
    values.

    Parameters
    ----------
    scopes : tuple of tuple of int
        The variables of each table.
    levels : tuple of int
        Number of values of each variable.
    batched : tuple of bool, optional
        Which tables differ from row to row.

    References
    ----------
    Zhang, Poole (1994), A simple approach to Bayesian network computations; Smith, Gray (2018),
    opt_einsum, https://doi.org/10.21105/joss.00753

    >>> print(plan(((0,), (0, 1), (1, 2)), (2, 2, 3)))
    2 products, 14 operations a row, largest table 2
    """
    import opt_einsum

    row = opt_einsum.get_symbol(len(levels))
    batched = batched or (False,) * len(scopes)
    names = ["".join(map(opt_einsum.get_symbol, scope)) for scope in scopes]
    terms = [name + row * own for name, own in zip(names, batched, strict=True)]
    shapes = [
        tuple(levels[v] for v in scope) + (_ROWS,) * own
        for scope, own in zip(scopes, batched, strict=True)
    ]
    equation = ",".join(terms) + "->" + row * any(batched)

    def cost(optimize: object) -> EliminationPlan:
        _, found = opt_einsum.contract_path(equation, *shapes, shapes=True, optimize=optimize)
        return _costed(found.contraction_list, levels, opt_einsum.get_symbol)

    best = cost("greedy")
    if best.largest > _NARROW:
        orders = (tuple(range(len(levels))), _fewest_neighbors(scopes, levels))
        best = _cheapest(best, *(cost(_path(scopes, order)) for order in orders))
    if best.largest > _WIDE:
        state = random.getstate()
        search = opt_einsum.RandomGreedy(max_repeats=_RESTARTS, minimize="size")
        best = _cheapest(best, cost(search))
        random.setstate(state)  # the search seeds Python's generator
    return best


def _cheapest(*plans: EliminationPlan) -> EliminationPlan:
    return min(plans, key=lambda each: (each.largest, each.operations))


def _costed(
    contractions: Sequence[tuple], levels: tuple[int, ...], symbol: Callable[[int], str]
) -> EliminationPlan:
    variable = {symbol(v): v for v in range(len(levels))}
    steps = []
    operations = 0
    for positions, _, equation, *_ in contractions:
        inputs, output = equation.split("->")
        scopes = tuple(
            tuple(variable[s] for s in part if s in variable) for part in inputs.split(",")
        )
        kept = tuple(variable[s] for s in output if s in variable)
        summed = tuple(sorted(set().union(*scopes) - set(kept)))
        steps.append(Product(tuple(positions), scopes, kept, summed))
        operations += prod(levels[v] for v in (*kept, *summed))
    largest = max((prod(levels[v] for v in step.kept) for step in steps), default=1)
    return EliminationPlan(tuple(steps), largest, operations)


def _path(scopes: tuple[Scope, ...], order: Sequence[int]) -> list[tuple[int, ...]]:
    """The pairwise path that sums variables out in this order.

    All tables of a variable are multiplied, it is gone.
    """
    from opt_einsum.paths import ssa_to_linear

    alive = {name: set(scope) for name, scope in enumerate(scopes)}
    path: list[tuple[int, int]] = []
    for variable in (*order, None):
        group = [name for name, scope in alive.items() if variable is None or variable in scope]
        group.sort(key=lambda name: len(alive[name]))
        while len(group) > 1:
            pair = (group[0], group[1])
            name = len(scopes) + len(path)
            alive[name] = alive.pop(pair[0]) | alive.pop(pair[1])
            path.append(pair)
            group = [name, *group[2:]]
        if group:
            alive[group[0]].discard(variable)
    return ssa_to_linear(path)


def _fewest_neighbors(scopes: tuple[Scope, ...], levels: tuple[int, ...]) -> list[int]:
    """The order that always eliminates a variable whose table of neighbors is smallest."""
    neighbors: dict[int, set[int]] = {v: set() for v in range(len(levels))}
    for scope in scopes:
        for v in scope:
            neighbors[v] |= set(scope) - {v}
    order = []
    while neighbors:
        v = min(neighbors, key=lambda v: prod(levels[w] for w in neighbors[v]))
        around = neighbors.pop(v)
        for w in around:
            neighbors[w] = (neighbors[w] | around) - {v, w}
        order.append(v)
    return order


def eliminate(
    steps: EliminationPlan,
    tables: Sequence[Tensor],
    reduce: Reduce | None = None,
    trail: list | None = None,
) -> Tensor:
    """Runs a plan on log tables ``(N or 1, *levels of the scope)``.

    The log of the sum over all, ``(N or 1,)``.

    Differentiable, also where tables hold minus infinity. With ``reduce=log_max`` the maximum.
    ``trail`` collects what :func:`trace_back` needs.

    >>> table = torch.tensor([[0.2, 0.3], [0.1, 0.4]]).log()[None]
    >>> eliminate(plan(((0, 1),), (2, 2)), [table]).exp()
    tensor([1.])
    """
    reduce = reduce or log_sum
    alive = [table.clamp(min=_IMPOSSIBLE) for table in tables]
    for step in steps.steps:
        operands = [alive[position] for position in step.positions]
        for position in sorted(step.positions, reverse=True):
            alive.pop(position)
        if trail is not None:
            trail.append(operands)
        alive.append(reduce(operands, step.scopes, step.kept, step.summed))
    return torch.where(alive[0] < _IMPOSSIBLE / 2, -torch.inf, alive[0])


def trace_back(
    steps: EliminationPlan,
    trail: Sequence[Sequence[Tensor]],
    x: Tensor,
    choose: Callable[[Tensor], Tensor],
) -> Tensor:
    """Values of all variables, found in the reverse order of elimination.

    Each given those that were eliminated later.

    Parameters
    ----------
    trail : sequence
        Operands of every step, from :func:`eliminate`.
    x : Tensor of int
        ``(M, D)``, filled in place and returned; row m belongs to row ``m % N`` of the tables.
    choose : callable
        From log weights ``(M, K)`` to indices ``(M,)``: a draw, or the largest.
    """
    for step, operands in zip(reversed(steps.steps), reversed(trail), strict=True):
        if not step.summed:
            continue
        levels: dict[int, int] = {}
        weights = torch.zeros((), dtype=operands[0].dtype, device=x.device)
        for table, scope in zip(operands, step.scopes, strict=True):
            levels |= dict(zip(scope, table.shape[1:], strict=True))
            weights = weights + _aligned(
                at_values(table, scope, x, step.kept), _without(scope, step.kept), step.summed
            )
        shape = [levels[v] for v in step.summed]
        flat = choose(weights.expand(len(x), *shape).flatten(1))
        x[:, step.summed] = torch.stack(torch.unravel_index(flat, shape), -1)
    return x


def at_values(table: Tensor, scope: Scope, x: Tensor, known: Scope) -> Tensor:
    """The table at the known variables of every row: ``(M, *others)``."""
    rows = torch.arange(len(x), device=x.device) % len(table)
    return table[(rows, *(x[:, v] if v in known else slice(None) for v in scope))]


def _without(scope: Scope, gone: Scope) -> Scope:
    return tuple(v for v in scope if v not in gone)


def _aligned(table: Tensor, scope: Scope, target: Scope) -> Tensor:
    """The table with a dim for each variable of the target, of size 1 for those it does not have.

    Rows stay first.
    """
    order, index = _alignment(scope, target)
    return table.permute(order)[index]


@lru_cache(maxsize=2**14)
def _alignment(scope: Scope, target: Scope) -> tuple[tuple[int, ...], tuple[slice | None, ...]]:
    order = sorted(range(len(scope)), key=lambda i: target.index(scope[i]))
    return (0, *(1 + i for i in order)), (
        slice(None),
        *(slice(None) if v in scope else None for v in target),
    )


def log_max(
    tables: Sequence[Tensor], scopes: Sequence[Scope], kept: Scope, summed: Scope
) -> Tensor:
    """The log of the largest product over the variables ``summed``.

    For each value of those ``kept``.
    """
    union = kept + summed
    pairs = zip(tables, scopes, strict=True)
    total = sum_of(_aligned(table, scope, union) for table, scope in pairs)
    return total.amax(tuple(range(-len(summed), 0))) if summed else total


def log_sum(
    tables: Sequence[Tensor], scopes: Sequence[Scope], kept: Scope, summed: Scope
) -> Tensor:
    r"""The log of a product of tables summed over some variables.

    Where these are large, by a matrix product.

    .. math:: \log \sum_s e^{a_{ks} + b_{ks}} = \max_s a_{ks} + \max_s b_{ks}
              + \log \sum_s e^{a_{ks} - \max_s a_{ks}} e^{b_{ks} - \max_s b_{ks}}
    """
    pairs = list(zip(tables, scopes, strict=True))
    union = kept + summed
    if not summed or _size(pairs) <= _SMALL:
        total = sum_of(_aligned(table, scope, union) for table, scope in pairs)
        return total.logsumexp(tuple(range(-len(summed), 0))) if summed else total
    label = {v: 1 + i for i, v in enumerate(union)}
    operands: list = []
    shift: Any = 0.0
    for table, scope in pairs:
        gone = tuple(1 + i for i, v in enumerate(scope) if v in summed)
        peak = table.detach().amax(gone, keepdim=True) if gone else table.detach()
        operands += [(table - peak).double().exp(), [0, *(label[v] for v in scope)]]
        shift = shift + _aligned(peak.squeeze(gone), _without(scope, summed), kept)
    total = torch.einsum(*operands, [0, *(label[v] for v in kept)])
    possible = total > 0
    return torch.where(
        possible, shift + torch.where(possible, total, 1.0).log().to(shift), _IMPOSSIBLE
    )


def _size(pairs: list[tuple[Tensor, Scope]]) -> int:
    """Entries of the product of some tables, per row."""
    return prod(
        {
            v: size
            for table, scope in pairs
            for v, size in zip(scope, table.shape[1:], strict=True)
        }.values()
    )
