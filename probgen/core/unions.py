"""Unions of supports: of states and components whose values differ, and of atoms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from probgen.core.support_words import in_words


class AnyOf(Constraint):
    """The union of supports.

    >>> AnyOf([constraints.positive, constraints.interval(-2.0, -1.0)]).check(torch.tensor([-1.5, -0.5, 0.5]))
    tensor([ True, False,  True])
    """

    def __init__(self, parts: Sequence[Constraint]):
        self.parts = parts
        self.is_discrete = parts[0].is_discrete
        self.event_dim = parts[0].event_dim
        super().__init__()

    @property
    def words(self) -> str:
        """What its values are, for messages."""
        return ", or ".join(dict.fromkeys(map(in_words, self.parts)))

    def check(self, value: Tensor) -> Tensor:
        found = [part.check(value) for part in self.parts]
        dims = min(inside.ndim for inside in found)  # of whole rows, where one part speaks of them
        found = [inside.flatten(dims).all(-1) if inside.ndim > dims else inside for inside in found]
        return torch.stack(found).any(0)


class OfAnyState(Constraint):
    """What at least one of K distributions side by side may have as an entry.

    Parameters
    ----------
    base : Constraint
        That of the entries of all K, with bounds ``(K, *event)``.
    event_ndim : int
        Number of event dims.

    >>> bounds = torch.tensor([0.0, 5.0])
    >>> OfAnyState(constraints.interval(bounds, bounds + 1), 0).check(torch.tensor([0.5, 3.0, 5.5]))
    tensor([ True, False,  True])
    """

    def __init__(self, base: Constraint, event_ndim: int):
        self.base = base
        self.event_ndim = event_ndim
        self.is_discrete = base.is_discrete
        self.event_dim = base.event_dim
        super().__init__()

    @property
    def words(self) -> str:
        """What its values are, for messages."""
        return f"{in_words(self.base)} of some state"

    def check(self, value: Tensor) -> Tensor:
        dim = -1 - self.event_ndim
        return self.base.check(value.unsqueeze(dim)).any(dim + self.base.event_dim)


class WithAtoms(Constraint):
    """Values of a support, or some numbers that have a mass of their own.

    Parameters
    ----------
    base : Constraint
        Of single variables.
    atoms : tuple of float
        The numbers.

    >>> WithAtoms(constraints.positive, (0.0,)).check(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([False,  True,  True])
    """

    def __init__(self, base: Constraint, atoms: tuple[float, ...]):
        self.base = base
        self.atoms = atoms
        self.is_discrete = base.is_discrete
        self.event_dim = base.event_dim
        super().__init__()

    @property
    def words(self) -> str:
        """What its values are, for messages."""
        numbers = ", or ".join(f"{atom:g}" for atom in self.atoms)
        return f"{in_words(self.base)}, or {numbers}"

    def check(self, value: Tensor) -> Tensor:
        inside = self.base.check(value)
        for atom in self.atoms:
            inside = inside | (value == atom)
        return inside


def atoms_of(support: Any) -> tuple:
    """Numbers that have a mass beside a density: those of all entries, or pairs of a column and its own.

    >>> mixed = WithAtoms(constraints.positive, (0.0,))
    >>> atoms_of(mixed), atoms_of(constraints.positive)
    ((0.0,), ())
    >>> atoms_of(constraints.cat([constraints.real, mixed], -1, [2, 1]))
    ((2, (0.0,)),)
    """
    while (base := getattr(support, "base_constraint", None)) is not None:
        support = base
    if parts := getattr(support, "parts", None):
        return atoms_of(parts[0])
    if isinstance(support, WithAtoms):
        return () if support.is_discrete else tuple(sorted(support.atoms))
    if own := getattr(support, "atoms", ()):  # of the columns of a table
        return tuple(own)
    columns = _by_column(support)
    if len(set(columns)) < 2:  # alike, or no columns at all
        return columns[0] if columns else ()
    return tuple((at, atoms) for at, atoms in enumerate(columns) if atoms)


def _by_column(support: Any) -> list[tuple]:
    """The atoms of each column, of pieces of several columns side by side."""
    pieces = zip(getattr(support, "cseq", ()), getattr(support, "lengths", ()), strict=True)
    return [atoms_of(part) for part, size in pieces for _ in range(size)]


def atoms_in_words(atoms: tuple) -> str:
    """Where atoms are, as :func:`atoms_of` gives them.

    >>> atoms_in_words((0.0, 1.0)), atoms_in_words(((2, (0.0,)),))
    ('0 and 1', '0 in column 2')
    """
    if atoms and isinstance(atoms[0], tuple):
        return ", ".join(f"{atoms_in_words(own)} in column {at}" for at, own in atoms)
    return " and ".join(f"{atom:g}" for atom in atoms) or "none"


def of_entries(support: Constraint) -> tuple[Constraint, int]:
    """What each entry has to keep to, and over how many dims of them.

    >>> of_entries(constraints.independent(constraints.positive, 2))
    (GreaterThan(lower_bound=0.0), 2)
    """
    ndim = 0
    while isinstance(support, constraints.independent):
        ndim += support.reinterpreted_batch_ndims
        support = support.base_constraint
    return support, ndim


def differs_by_state(support: Constraint, event_ndim: int) -> bool:
    """Whether bounds of K distributions side by side are ``(K, *event)``, and not the same for all.

    >>> differs_by_state(constraints.interval(0.0, torch.tensor([1.0, 2.0])), 0)
    True
    """
    bounds = [bound for bound in vars(of_entries(support)[0]).values() if torch.is_tensor(bound)]
    return any(bound.ndim > event_ndim and bound.shape[-1 - event_ndim] > 1 for bound in bounds)
