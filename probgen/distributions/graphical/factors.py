"""A product of tables over discrete variables.

Scores, sums over missing variables, draws, modes and marginals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from probgen.core.missing import has_missing
from probgen.core.sums import sum_of
from probgen.distributions.graphical.elimination import (
    EliminationPlan,
    Scope,
    at_values,
    eliminate,
    log_max,
    plan,
    trace_back,
)
from probgen.distributions.possible import check_possible, contradiction

LIMIT = 2**22  # entries of the largest table, per row
_AT_ONCE = 2**24  # entries of all products of some rows


class VariableNames(NamedTuple):
    """What errors call variables and their values; by number where there are no names.

    >>> VariableNames(("rain",), (("no", "yes"),)).told(0, 1.0), VariableNames().told(3, 1.0)
    ('rain = yes', 'column 3 = 1')
    """

    names: tuple[str, ...] = ()
    states: tuple[tuple[str, ...] | None, ...] = ()

    def name(self, v: int) -> str:
        """What a variable is called."""
        return self.names[v] if self.names else f"column {v}"

    def told(self, v: int, value: float) -> str:
        """A variable with its value."""
        states = self.states[v] if self.states else None
        return f"{self.name(v)} = {states[int(value)] if states else f'{value:g}'}"

    def only(self, variables: Sequence[int]) -> VariableNames:
        """Those of some variables."""
        parts: Iterable[Any] = (tuple(part[v] for v in variables) if part else () for part in self)
        return VariableNames(*parts)


class _TableGroup(NamedTuple):
    """Rows that are eliminated together, in one order."""

    rows: Tensor
    plan: EliminationPlan
    tables: list[Tensor]


class Factors(NamedTuple):
    r"""A product of tables over D discrete variables.

    .. math:: \phi(x) = \prod_f \phi_f(x_{s(f)}), \qquad x_d \in \{0, \dots, K_d - 1\}

    Attributes
    ----------
    tables : tuple of Tensor
        Log tables, ``(*levels of the scope)`` or ``(*batch, *levels of the scope)``.
    scopes : tuple of tuple of int
        The variables of each table.
    levels : tuple of int
        Number of values of each variable.
    limit : int
        Largest table, in entries per row, that an elimination may make.
    labels : VariableNames
        What errors call the variables.
    likelihoods : int
        How many of the tables, the last ones, are likelihoods of single variables.
    """

    tables: tuple[Tensor, ...]
    scopes: tuple[Scope, ...]
    levels: tuple[int, ...]
    limit: int = LIMIT
    labels: VariableNames = VariableNames()
    likelihoods: int = 0

    @property
    def softly_observed(self) -> tuple[int, ...]:
        """The variables that have a likelihood."""
        return tuple(scope[0] for scope in self.scopes[len(self.scopes) - self.likelihoods :])

    def times(self, likelihoods: Mapping[int, Tensor]) -> Factors:
        """The product with log likelihoods ``(*batch, K)`` of some variables."""
        return self._replace(
            tables=(*self.tables, *likelihoods.values()),
            scopes=(*self.scopes, *((v,) for v in likelihoods)),
            likelihoods=self.likelihoods + len(likelihoods),
        )

    @property
    def batch(self) -> torch.Size:
        """What all batch dims of the tables broadcast to."""
        sizes = [
            table.shape[: table.ndim - len(scope)]
            for table, scope in zip(self.tables, self.scopes, strict=True)
        ]
        return torch.broadcast_shapes(*sizes)

    def expand(self, batch: torch.Size) -> Factors:
        """The same with batch dims, if it had any: tables without batch dims suit every row."""
        pairs = zip(self.tables, self.scopes, strict=True)
        tables = (
            t if t.ndim == len(s) else t.expand(*batch, *t.shape[t.ndim - len(s) :])
            for t, s in pairs
        )
        return self._replace(tables=tuple(tables))

    def plan(self, evidence: bool = False) -> EliminationPlan:
        """How the variables are summed out: with ``evidence`` of each row's own, or all of them."""
        batched = tuple(
            table.ndim > len(scope) for table, scope in zip(self.tables, self.scopes, strict=True)
        )
        if not evidence:
            return plan(self.scopes, self.levels, batched)
        own = tuple((v,) for v in range(len(self.levels)))
        return plan(self.scopes + own, self.levels, batched + (True,) * len(own))

    def log_sum(self, x: Tensor, lead: torch.Size) -> Tensor:
        r"""The log of the product, summed over the missing entries (NaN) of each row.

        ``(*lead, D) -> (*lead,)``.

        Raises
        ------
        ValueError
            If the elimination needs a table larger than ``limit``.
        """
        if not has_missing(x):
            return self._score(x, lead)
        rows = _flat(x, lead)
        return self._log_sum(rows, self.evidence(rows), lead).reshape(lead)

    def log_partition(self) -> Tensor:
        """The log of the product summed over all variables: ``(*batch,)``."""
        order = self._affordable(self.plan())
        return (
            eliminate(order, self.rows(self.batch)).expand(self.batch.numel()).reshape(self.batch)
        )

    def draw(self, x: Tensor | None, lead: torch.Size, copies: int = 1) -> Tensor:
        """Draws of missing entries given the others, ``(*lead, D) -> (copies, *lead, D)``.

        Without x, of all.
        """

        def choose(logits: torch.Tensor) -> torch.Tensor:
            return torch.distributions.Categorical(logits=logits, validate_args=False).sample()

        if x is None:
            order = self._affordable(self.plan())
            trail: list[list[Tensor]] = []
            eliminate(order, self.rows(self.batch), None, trail)
            total = copies * lead.numel()
            values = torch.zeros(
                total, len(self.levels), dtype=torch.long, device=self.tables[0].device
            )
            return (
                trace_back(order, trail, values, choose)
                .to(self.tables[0].dtype)
                .reshape(copies, *lead, -1)
            )
        return self._traced(x, lead, copies, None, choose)

    def mode(self, x: Tensor, lead: torch.Size) -> Tensor:
        """The most probable values of all missing entries together.

        ``(*lead, D) -> (*lead, D)``.
        """
        return self._traced(x, lead, 1, log_max, lambda logits: logits.argmax(-1))[0]

    @torch.enable_grad()
    def marginals(self, x: Tensor, lead: torch.Size) -> Tensor:
        r"""Probabilities of each variable's values given the observed entries.

        ``(*lead, D) -> (*lead, D, max K)``.

        All of them from one backward pass: with weights :math:`\lambda_{dk}` on the values of
        variables, :math:`p(x_d = k \mid x_o) = \partial \log \phi(\lambda) / \partial \log
        \lambda_{dk}` (Darwiche 2003, https://doi.org/10.1145/765568.765570).
        """
        rows = _flat(x, lead)
        evidence = self.evidence(rows).requires_grad_()
        fixed = self._replace(tables=tuple(table.detach() for table in self.tables))
        total = fixed._log_sum(rows, evidence, lead)
        self.check_possible(total, x, lead)
        (grad,) = torch.autograd.grad(total.sum(), evidence)
        found = torch.where(rows.isnan()[..., None], grad, evidence.detach().exp())
        return found.reshape(*lead, *found.shape[-2:])

    def evidence(self, x: Tensor) -> Tensor:
        """Log indicators of the values that rows allow, ``(N, D) -> (N, D, max K)``.

        All of them where NaN.
        """
        values = torch.arange(max(self.levels), dtype=x.dtype, device=x.device)
        exists = values < torch.tensor(self.levels, device=x.device)[:, None]
        allowed = ((x[..., None] == values) | x.isnan()[..., None]) & exists
        return torch.where(allowed, 0.0, -torch.inf).to(self.tables[0].dtype)

    def only(self, variables: Sequence[int]) -> Factors:
        """The tables all of whose variables are among some, which are renumbered in their order."""
        place = {v: i for i, v in enumerate(variables)}
        pairs = [
            (t, s)
            for t, s in zip(self.tables, self.scopes, strict=True)
            if all(v in place for v in s)
        ]
        scopes = tuple(tuple(place[v] for v in scope) for _, scope in pairs)
        levels = tuple(self.levels[v] for v in variables)
        soft = sum(v in place for v in self.softly_observed)
        tables = tuple(table for table, _ in pairs)
        labels = self.labels.only(variables)
        return Factors(tables, scopes, levels, self.limit, labels, soft)

    def check_possible(self, totals: Tensor, x: Tensor, lead: torch.Size) -> None:
        """Raises ``ValueError`` where what rows ``(*lead, D)`` observe has probability zero.

        It names observations that exclude each other, no more than that takes.
        """
        check_possible(totals, lambda row: self._contradiction(x, lead, row))

    def _contradiction(self, x: Tensor, lead: torch.Size, row: int) -> list[str]:
        """Observations of a row that exclude each other: without any of them it is possible."""
        one = self._replace(tables=tuple(t[row if len(t) > 1 else 0] for t in self.rows(lead)))
        values = contradiction(_flat(x, lead)[row], one._is_impossible)
        told = [
            self.labels.told(v, value) for v, value in enumerate(values.tolist()) if value == value
        ]
        first = len(self.scopes) - self.likelihoods
        for place in reversed(range(first, len(self.scopes))):
            kept = [i for i in range(len(one.scopes)) if i != place]
            fewer = one._replace(
                tables=tuple(one.tables[i] for i in kept), scopes=tuple(one.scopes[i] for i in kept)
            )
            if fewer._is_impossible(values):
                one = fewer
            else:
                told.append(f"the likelihood of {self.labels.name(self.scopes[place][0])}")
        return told

    def _is_impossible(self, row: Tensor) -> bool:
        try:
            return bool(self.log_sum(row, torch.Size()).isneginf())
        except ValueError:  # summed over more variables, it would be too wide
            return False

    def _score(self, x: Tensor, lead: torch.Size) -> Tensor:
        if not self.batch:
            flat = torch.cat([table.flatten() for table in self.tables])
            columns, strides, offsets = (
                part.to(x.device) for part in _strides(self.scopes, self.levels)
            )
            places = offsets + sum(
                x.long()[..., columns[i]] * strides[i] for i in range(len(columns))
            )
            return flat[places].sum(-1).expand(lead)
        rows = _flat(x, lead).long()
        pairs = zip(self.rows(lead), self.scopes, strict=True)
        total = sum_of(at_values(table, scope, rows, scope) for table, scope in pairs)
        return total.reshape(lead)

    def rows(self, lead: torch.Size) -> list[Tensor]:
        """Tables with one leading dim: rows, or 1."""
        out = []
        for table, scope in zip(self.tables, self.scopes, strict=True):
            inner = table.shape[table.ndim - len(scope) :]
            own = table.ndim > len(scope)
            out.append(
                table.expand(*lead, *inner).reshape(-1, *inner) if own else table.unsqueeze(0)
            )
        return out

    def _log_sum(self, rows: Tensor, evidence: Tensor, lead: torch.Size) -> Tensor:
        groups = list(self._groups(rows, evidence, self.rows(lead)))
        sums = [eliminate(group.plan, group.tables).expand(len(group.rows)) for group in groups]
        if len(groups) == 1:
            return sums[0]
        return torch.cat(sums)[torch.cat([group.rows for group in groups]).argsort()]

    def _traced(
        self, x: Tensor, lead: torch.Size, copies: int, reduce: Callable | None, choose: Callable
    ) -> Tensor:
        rows = _flat(x, lead)
        out = rows.nan_to_num().long().expand(copies, -1, -1).clone()
        for group in self._groups(rows, self.evidence(rows), self.rows(lead)):
            trail: list = []
            totals = torch.zeros(len(rows), device=rows.device)
            totals[group.rows] = eliminate(group.plan, group.tables, reduce, trail).to(totals)
            self.check_possible(totals, x, lead)
            start = out[:, group.rows].flatten(0, 1)
            out[:, group.rows] = trace_back(group.plan, trail, start, choose).unflatten(
                0, (copies, -1)
            )
        return out.to(x.dtype).reshape(copies, *lead, -1)

    def _groups(
        self, rows: Tensor, evidence: Tensor, tables: list[Tensor]
    ) -> Iterator[_TableGroup]:
        """All rows in one order, each with its own evidence.

        Where that is too wide, rows of one pattern at a time.
        """
        order = self.plan(evidence=True)
        indices = torch.arange(len(rows), device=rows.device)
        if order.largest > self.limit:
            patterns, which = rows.isnan().unique(dim=0, return_inverse=True)
            for number, pattern in enumerate(patterns.tolist()):
                chosen = indices[which == number]
                yield self._observed(
                    rows[chosen], evidence[chosen], _some(tables, chosen), pattern, chosen
                )
            return
        for chosen in indices.split(max(1, _AT_ONCE // max(order.operations, 1))):
            own = [evidence[chosen, v, :size] for v, size in enumerate(self.levels)]
            yield _TableGroup(chosen, order, _some(tables, chosen) + own)

    def _observed(
        self,
        rows: Tensor,
        evidence: Tensor,
        tables: list[Tensor],
        missing: list[bool],
        chosen: Tensor,
    ) -> _TableGroup:
        """Rows that miss the same variables.

        Tables at the observed values, of the missing variables alone.
        """
        seen = tuple(v for v, gone in enumerate(missing) if not gone)
        values = rows.nan_to_num().long()
        found: list[Tensor] = []
        scopes: list[Scope] = []
        constant = torch.zeros(len(rows), device=rows.device)
        for table, scope in zip(tables, self.scopes, strict=True):
            part = at_values(table, scope, values, seen)
            rest = tuple(v for v in scope if missing[v])
            if rest:
                found = [*found, part]
                scopes = [*scopes, rest]
            else:
                constant = constant + part
        hidden = [v for v, gone in enumerate(missing) if gone]
        found += [evidence[:, v, : self.levels[v]] for v in hidden]
        scopes += [(v,) for v in hidden]
        order = plan((*scopes, ()), self.levels, (True,) * (len(scopes) + 1))
        return _TableGroup(chosen, self._affordable(order), [*found, constant])

    def _affordable(self, order: EliminationPlan) -> EliminationPlan:
        if order.largest > self.limit:
            raise ValueError(
                f"expected an elimination whose tables have at most {self.limit:,} entries per "
                f"row, got {order}; "
                "observe more variables, raise the limit, or use an approximation (Gibbs sampling, "
                "belief propagation)"
            )
        return order


def _flat(x: Tensor, lead: torch.Size) -> Tensor:
    return x.expand(*lead, -1).reshape(-1, x.shape[-1])


def _some(tables: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
    return [table[rows] if len(table) > 1 else table for table in tables]


@lru_cache(maxsize=64)
def _strides(scopes: tuple[Scope, ...], levels: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Where tables stand when laid end to end.

    The place of an entry is ``offset + sum(strides * x[columns])``.

    Columns and strides ``(largest scope, F)``, of stride 0 beyond the end of a scope; offsets
    ``(F,)``.
    """
    most = max(map(len, scopes))
    columns, strides = torch.zeros(2, most, len(scopes), dtype=torch.long)
    for number, scope in enumerate(scopes):
        for place, v in enumerate(scope):
            columns[place, number] = v
            strides[place, number] = prod(levels[w] for w in scope[place + 1 :])
    sizes = [prod(levels[v] for v in scope) for scope in scopes]
    return columns, strides, torch.tensor([0, *sizes[:-1]]).cumsum(0)
