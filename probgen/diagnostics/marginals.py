"""Independent marginals of the elements of some rows.

The baseline that a fitted model has to beat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core.unions import atoms_of

FEWEST = 10  # rows: fewer say little about scales
LEVELS = 256  # distinct values of a discrete element that are counted one by one


class NoMarginals(ValueError):
    """Why there is no baseline of independent marginals."""


@dataclass(frozen=True)
class IndependentMarginals:
    r"""Scores of rows under independent marginals, in nats.

    .. math:: \log p_0(x) = \sum_{d \text{ observed}} \log p_d(x_d)

    with a normal for each continuous element, by its mean and variance, and the add-one frequencies
    (Laplace) of the values of each discrete one. An element with atoms is a discrete one that tells
    which atom it is, if any, and a continuous one where it is none.

    Attributes
    ----------
    own : Tensor
        ``(N,)``: of the rows that the marginals are fitted to.
    other : Tensor
        ``(M,)``: of other rows.
    parameters : float
        Number of fitted parameters over the number of rows: by so much the mean of ``own`` is too
        high in expectation (Akaike 1974).
    """

    own: Tensor
    other: Tensor
    parameters: float

    @property
    def scatter(self) -> float:
        """Half the width of the middle 68% of the rows' scores.

        A standard deviation without outliers.
        """
        low, high = self.own.quantile(torch.tensor([0.16, 0.84], dtype=self.own.dtype))
        return (high - low).item() / 2

    def __add__(self, more: IndependentMarginals) -> IndependentMarginals:
        return IndependentMarginals(
            self.own + more.own, self.other + more.other, self.parameters + more.parameters
        )


def marginals(
    x: Tensor, other: Tensor, support: Any, names: Sequence[str] | None = None
) -> IndependentMarginals:
    """Scores of rows ``(N, *event)`` and of others ``(M, *event)`` by the marginals of the first.

    Missing entries (NaN) are left out.

    Parameters
    ----------
    x, other : Tensor
        Rows to fit, at least 10, and others to score.
    support : Constraint
        Of the distribution of x: it tells which elements are discrete.
    names : sequence of str, optional
        Of the elements, for messages; default: their places.

    Raises
    ------
    NoMarginals
        For too few rows, constant continuous elements (a density has no bound there), and supports
        that are no product of elements.

    References
    ----------
    Akaike (1974), A new look at the statistical model identification,
    https://doi.org/10.1109/TAC.1974.1100705

    >>> x = torch.tensor([[0.0], [1.0]] * 10)
    >>> marginals(x, x[:1], constraints.boolean).other.exp()
    tensor([0.5000], dtype=torch.float64)
    """
    if len(x) < FEWEST:
        raise NoMarginals(f"{len(x)} rows are too few")
    kinds = _kinds(support, x.shape[1:]).expand(x.shape[1:]).flatten()
    size = math.prod(x.shape[1:])
    own, rest = (value.double().reshape(len(value), size) for value in (x, other))
    own, rest, of_atoms = _without_atoms(own, rest, support)
    if (kinds == _ONE_OF).any():
        own, rest = (_indices(value, x.shape[-1]) for value in (own, rest))
        kinds = torch.full(own.shape[1:], _DISCRETE)
    counted = (kinds == _DISCRETE) & (_range(own, rest) < LEVELS)
    words = [repr(name) for name in names or ()] or [str(place) for place in range(own.shape[1])]
    others = [word for word, one in zip(words, counted.tolist(), strict=True) if not one]
    found = _normal(own[:, ~counted], rest[:, ~counted], others)
    return found + _frequencies(own[:, counted], rest[:, counted]) + of_atoms


def which_atom(rows: Tensor, support: Any) -> Tensor:
    """Number of the atom that each element of rows ``(N, D)`` is, 1, 2, ...

    0 where it is none; NaN where it is missing.

    >>> from probgen.core.unions import WithAtoms
    >>> which_atom(torch.tensor([[0.0, 0.3, 7.0]]), WithAtoms(constraints.real, (0.0, 7.0)))
    tensor([[1., 0., 2.]])
    """
    atoms = atoms_of(support)
    places = torch.where(rows.isnan(), rows, 0.0)
    if atoms and not isinstance(atoms[0], tuple):  # those of every element
        atoms = tuple((element, atoms) for element in range(rows.shape[1]))
    for element, own in atoms:
        for number, atom in enumerate(own, 1):
            places[:, element] = places[:, element].where(rows[:, element] != atom, number)
    return places


def _without_atoms(
    own: Tensor, rest: Tensor, support: Any
) -> tuple[Tensor, Tensor, IndependentMarginals]:
    """Rows whose atoms are missing, and the scores of which atom each element is."""
    places = [which_atom(rows, support) for rows in (own, rest)]
    told = (torch.cat(places) > 0).any(0)
    rows = [
        torch.where(place > 0, torch.nan, value)
        for place, value in zip(places, (own, rest), strict=True)
    ]
    return rows[0], rows[1], _frequencies(places[0][:, told], places[1][:, told])


_CONTINUOUS, _DISCRETE, _ONE_OF = range(3)


def _kinds(support: Any, event: torch.Size) -> Tensor:
    """What every element is, ``(*event,)``."""
    while isinstance(support, constraints.independent | constraints.MixtureSameFamilyConstraint):
        support = support.base_constraint
    if (whole := getattr(support, "whole", None)) is not None:  # of the columns of a table
        return torch.where(whole.cpu(), _DISCRETE, _CONTINUOUS)
    if getattr(support, "parts", None):
        raise NoMarginals("a mass and a density at once")
    if getattr(support, "cseq", None):
        pieces = zip(support.cseq, support.lengths, strict=True)
        return torch.cat([_kinds(part, torch.Size([size])) for part, size in pieces])
    if support is constraints.one_hot:
        return torch.full(event, _ONE_OF)
    if support.event_dim:
        raise NoMarginals(f"elements of {type(support).__name__.strip('_')} depend on each other")
    return torch.full(event, _DISCRETE if support.is_discrete else _CONTINUOUS)


def _indices(rows: Tensor, size: int) -> Tensor:
    """One-hot vectors as their indices, NaN where one is missing: ``(N, D * size) -> (N, D)``."""
    groups = rows.unflatten(1, (-1, size))
    index = groups.nan_to_num().argmax(-1).double()
    return index.masked_fill(groups.isnan().any(-1), torch.nan)


def _range(own: Tensor, rest: Tensor) -> Tensor:
    """Largest less smallest value of every element in all rows."""
    low = torch.minimum(_least(own), _least(rest))
    high = -torch.minimum(_least(-own), _least(-rest))
    return high - low


def _least(rows: Tensor) -> Tensor:
    """Smallest known value of every element; infinite where there is none."""
    padded = torch.nn.functional.pad(rows, (0, 0, 0, 1), value=torch.inf)
    return padded.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).amin(0)


def _normal(own: Tensor, rest: Tensor, names: Sequence[str]) -> IndependentMarginals:
    known = (~own.isnan()).sum(0)
    mean = own.nanmean(0)
    variance = (own - mean).square().nanmean(0)
    constant = (known > 0) & ~(variance > 1e-12 * mean.square())
    if constant.any():
        name = names[int(constant.nonzero()[0])]
        raise NoMarginals(f"element {name} is constant, and a density has no bound there")

    def score(rows: Tensor) -> Tensor:
        each = -((rows - mean).square() / variance + variance.log() + math.log(2 * math.pi)) / 2
        return each.nansum(1)

    return IndependentMarginals(score(own), score(rest), (2 / known[known > 0]).sum().item())


def _frequencies(own: Tensor, rest: Tensor) -> IndependentMarginals:
    low = torch.minimum(_least(own), _least(rest)).nan_to_num(posinf=0.0)
    levels = _range(own, rest).nan_to_num(neginf=0.0).long() + 1
    most = int(levels.max()) if len(levels) else 1
    place = torch.arange(own.shape[1]) * (most + 1)

    def cells(rows: Tensor) -> Tensor:
        """Numbers of the cells of a table with a row per element.

        Its last cells are missing values.
        """
        return place + (rows - low).nan_to_num(nan=most).long()

    counts = torch.bincount(cells(own).flatten(), minlength=own.shape[1] * (most + 1))
    counts = counts.reshape(-1, most + 1)[:, :most]
    known = counts.sum(1)
    probabilities = (counts + 1) / (known + levels)[:, None]
    table = torch.nn.functional.pad(probabilities.double().log(), (0, 1)).flatten()
    parameters = ((levels - 1) / known.clamp(min=1))[known > 0].sum().item()
    return IndependentMarginals(table[cells(own)].sum(1), table[cells(rest)].sum(1), parameters)
