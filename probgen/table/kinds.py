"""What the values of a column are: what codes stand for them, and which distributions they have."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from probgen.core import checks
from probgen.core.columns import (
    AFFINE,
    ASINH,
    LOG,
    LOGIT,
    MARGIN,
    SOFT_LOGIT,
    SOFTPLUS,
    Column,
    examine,
    under,
)
from probgen.heads import Bernoulli, Categorical, Gaussian, Head, LogNormal, NegativeBinomial
from probgen.heads.inflated import ZeroInflated
from probgen.heads.ordinal import Ordinal
from probgen.table.facts import Facts
from probgen.table.storage import Plain

FEW = 50  # values, fewer of which do not tell where a column ends
CLEAR = 0.02  # of the range, by which its end lies off a bound
IDENTIFIER = 0.9  # different labels a row, from which on a column names rows


class UnknownLevel(ValueError):
    """A label that a table does not have."""


class Kind(ABC):
    """What all kinds tell: numbers that stand for the values of a column, and their distribution."""

    label = False  # whether numbers stand for labels, of which there is no mean
    whole = False  # whether all numbers are whole

    @property
    @abstractmethod
    def word(self) -> str:
        """The kind in a few words, as ``print(table)`` shows it."""

    @abstractmethod
    def settled(self, name: str, facts: Facts) -> Kind:
        """The kind, complete, of a column of such values; ``ValueError`` where it cannot hold them."""

    @abstractmethod
    def codes(self, name: str, values: Plain) -> np.ndarray:
        """Numbers ``(N,)`` for values, NaN = missing; ``ValueError`` with the row of an unknown one."""

    @abstractmethod
    def values(self, codes: np.ndarray) -> Plain:
        """The values that numbers stand for."""

    @abstractmethod
    def units(self, facts: Facts) -> Column:
        """The increasing map that brings the numbers to order one; of labels: none."""

    @abstractmethod
    def head(self) -> Head:
        """A distribution of a column after :meth:`units`, without a network."""

    @property
    @abstractmethod
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest number that there may be."""

    def recorded(self, codes: np.ndarray, facts: Facts) -> np.ndarray:
        """Numbers that were drawn, with as many digits as the column was recorded with."""
        if self.label or facts.digits is None:
            return codes
        low, high = self.ends
        rounded = codes.round(facts.digits)
        open_ = (rounded <= low) & (codes > low) | (rounded >= high) & (codes < high)
        return np.where(open_, codes, rounded)


@dataclass(frozen=True)
class Continuous(Kind):
    """Numbers: any, those above ``low``, or those between two bounds.

    They are modeled after the increasing map that suits them: a straight line or an inverse
    hyperbolic sine, a logarithm or the inverse of softplus above ``low``, a logit between bounds.
    Numbers that come to a sharp end without bounds (ages of adults) are modeled after a logit of
    their range that is a straight line near its ends, so that draws hardly leave it, and what lies
    beyond still has a density.

    Parameters
    ----------
    low, high : float, optional
        Bounds; ``high`` needs ``low``.
    zeros : bool
        Whether exact zeros have a probability of their own (rain, amounts that are often nothing).
        Numbers are then modeled beside them: log-normal above ``low=0``, normal otherwise.
    step : float, optional
        The grid on which values were recorded, and so repeat: 1 for years of age, 0.1 for lengths in
        tenths. They get uniform noise on their steps, so that densities stay bounded. 0: none.
        Default: what the values say.

    >>> Continuous(low=0).word, Continuous(0, 1, step=0.01).word
    ('positive', 'between 0 and 1, in steps of 0.01')
    """

    low: float | None = None
    high: float | None = None
    zeros: bool = False
    step: float | None = None

    def __post_init__(self) -> None:
        checks.finite(**checks.given(low=self.low, high=self.high))
        checks.flag(zeros=self.zeros)
        checks.not_negative(**checks.given(step=self.step))
        if self.high is not None and (self.low is None or not self.low < self.high):
            raise ValueError(
                f"expected bounds low < high, got {self.low} and {self.high}; give both: "
                "Continuous(low=0, high=1)"
            )
        if self.zeros and (self.low not in (None, 0.0) or self.high is not None):
            raise ValueError(
                f"expected zeros beside any numbers or positive ones, got bounds {self.low}, "
                f"{self.high}; leave them out, or give low=0"
            )

    @property
    def word(self) -> str:
        range_ = "continuous"
        if self.low is not None:
            range_ = "positive" if self.low == 0 else f"above {self.low:g}"
        if self.high is not None:
            range_ = f"between {self.low:g} and {self.high:g}"
        zeros = ", with many zeros" if self.zeros else ""
        return range_ + zeros + (f", in steps of {self.step:g}" if self.step else "")

    def settled(self, name: str, facts: Facts) -> Continuous:
        _check_numbers(name, self, facts)
        low, high = self.ends
        step = facts.step if self.step is None else self.step
        step = 0.0 if self.zeros else step
        # with noise on its step the lowest value lies within
        least = facts.low + (step if facts.low == low else 0.0)
        if facts.known and not (least > low or (self.zeros and facts.low >= low)):
            how = "Continuous(low=0, zeros=True)" if facts.low == 0 == low else "a lower bound"
            raise ValueError(_outside(name, f"above {low:g}", facts.low, how))
        if facts.known and facts.high > high:
            raise ValueError(_outside(name, f"up to {high:g}", facts.high, "a higher bound"))
        return replace(self, step=step)

    def codes(self, name: str, values: Plain) -> np.ndarray:
        codes = _numbers(name, values)
        low, high = self.ends
        _check_within(name, codes, low, high)
        return codes

    def values(self, codes: np.ndarray) -> Plain:
        return codes

    def units(self, facts: Facts) -> Column:
        values = torch.tensor(facts.sketch, dtype=torch.float64)
        if self.zeros:
            known = values[values != 0]
            size = known.square().mean().sqrt().item() if len(known) else 1.0
            return Column(scale=size or 1.0)
        step = self.step or 0.0
        if self.low is not None and self.high is not None:
            return under(LOGIT, values, step, self.low, self.high)
        if self.low is not None:
            tried = [under(kind, values - self.low, step) for kind in (LOG, SOFTPLUS)]
            best = max(tried, key=lambda column: column.gain)
            if facts.low - self.low < CLEAR * (facts.high - facts.low):
                return best
            return _ending(best, values, step, facts, self.low)
        found = examine(values, math.inf, -math.inf)
        best = under(ASINH if found.map == ASINH else AFFINE, values, step)
        return _ending(best, values, step, facts)

    def head(self) -> Head:
        if self.zeros:
            return ZeroInflated(head=Gaussian() if self.low is None else LogNormal())
        return Gaussian()

    @property
    def ends(self) -> tuple[float, float]:
        low = -math.inf if self.low is None else float(self.low)
        return low, math.inf if self.high is None else float(self.high)


@dataclass(frozen=True)
class Count(Kind):
    """How many: 0, 1, 2, ..., small ones. Large ones are better ``Continuous(low=0, step=1)``.

    >>> Count().word
    'count'
    """

    whole = True

    @property
    def word(self) -> str:
        return "count"

    def settled(self, name: str, facts: Facts) -> Count:
        _check_numbers(name, self, facts)
        if facts.known and facts.low < 0:
            raise ValueError(_outside(name, "0, 1, 2, ...", facts.low, "Continuous(step=1)"))
        if not facts.whole:
            raise ValueError(_outside(name, "0, 1, 2, ...", facts.broken, "Continuous()"))
        return self

    def codes(self, name: str, values: Plain) -> np.ndarray:
        codes = _numbers(name, values)
        _check_within(name, codes, 0.0, math.inf)
        _check_whole(name, codes)
        return codes

    def values(self, codes: np.ndarray) -> Plain:
        return codes

    def units(self, facts: Facts) -> Column:
        return Column()

    def head(self) -> Head:
        return NegativeBinomial()

    @property
    def ends(self) -> tuple[float, float]:
        return 0.0, math.inf


@dataclass(frozen=True)
class Leveled(Kind):
    """One of some values, whose codes are 0, 1, ..., in their order."""

    levels: Sequence[Any] | None = None

    label = True
    whole = True

    def __post_init__(self) -> None:
        if self.levels is None:
            return
        listed = isinstance(self.levels, Sequence) and not isinstance(self.levels, str)
        if not listed or len(set(self.levels)) != len(self.levels):
            raise ValueError(
                f"expected levels as a list of different values, got {self.levels!r}; give each "
                "value once"
            )
        object.__setattr__(self, "levels", tuple(self.levels))

    @property
    def known(self) -> tuple[Any, ...]:
        """The levels, none where they are not given."""
        return tuple(self.levels or ())

    def codes(self, name: str, values: Plain) -> np.ndarray:
        places = {level: float(place) for place, level in enumerate(self.known)}
        plain = values.tolist() if isinstance(values, np.ndarray) else values
        try:
            return np.array([math.nan if _is_missing(each) else places[each] for each in plain])
        except (KeyError, TypeError):
            pass
        row = next(at for at, each in enumerate(plain) if not _is_level(each, places))
        more = _shown(plain[row])
        raise UnknownLevel(
            f"expected {self._among()} in column {name!r}, got {more} in row {row}; mark it missing "
            f"(None), or give the table all levels: table.change({name}=Label([..., {more}]))"
        )

    def _among(self) -> str:
        if not self.known:
            return "missing values alone"
        if len(self.known) == 1:
            return f"always {_shown(self.known[0])}"
        return f"one of {_listed(self.known)}"

    def values(self, codes: np.ndarray) -> Plain:
        names = np.empty(len(self.known) + 1, dtype=object)  # the last one is missing
        names[:-1] = self.known
        missing = np.isnan(codes) | (len(self.known) == 0)
        places = np.where(missing, 0.0, codes).round().clip(0, max(0, len(self.known) - 1))
        return names[np.where(missing, len(self.known), places).astype("int64")].tolist()

    def units(self, facts: Facts) -> Column:
        return Column()

    @property
    def ends(self) -> tuple[float, float]:
        return 0.0, max(0.0, len(self.known) - 1.0)


@dataclass(frozen=True)
class Label(Leveled):
    """One of some values without a distance: strings, numbers that are names.

    Parameters
    ----------
    levels : sequence, optional
        All values that there may be, in the order of their codes 0, 1, ...; default: those that the
        column has.
    ordered : bool
        Whether the levels are in order (grades, sizes), each nearer to the next than to others.

    >>> Label(["low", "high"], ordered=True).word, Label(["a"]).word
    ("2 levels in order: 'low', 'high'", "always 'a'")
    """

    ordered: bool = False

    def __post_init__(self) -> None:
        checks.flag(ordered=self.ordered)
        super().__post_init__()

    @property
    def word(self) -> str:
        if self.levels is None:
            return "levels"
        if len(self.known) < 2:
            return f"always {_shown(self.known[0])}" if self.known else "always missing"
        order = " in order" if self.ordered else ""
        return f"{len(self.known)} levels{order}: {_listed(self.known)}"

    def settled(self, name: str, facts: Facts) -> Label:
        if self.levels is None:
            return replace(self, levels=facts.levels(name))
        given = set(self.levels)
        if lacking := [each for each in facts.values or () if each not in given]:
            raise ValueError(
                f"expected levels for all values of column {name!r}, got none for "
                f"{_shown(lacking[0])}; add it: Label([..., {_shown(lacking[0])}])"
            )
        return self

    def head(self) -> Head:
        levels = max(1, len(self.known))
        return Ordinal(levels=levels) if self.ordered and levels > 2 else Categorical(levels=levels)


@dataclass(frozen=True)
class Flag(Leveled):
    """One of two values, of which the second is what is told: no and yes, False and True, 0 and 1.

    Parameters
    ----------
    levels : sequence, optional
        The two; default: False and True, or those that the column has.

    >>> Flag(["no", "yes"]).word
    "flag: 'no' or 'yes'"
    """

    @property
    def word(self) -> str:
        return f"flag: {' or '.join(map(_shown, self.known))}" if self.known else "flag"

    def settled(self, name: str, facts: Facts) -> Flag:
        found = self.known or _two(facts.levels(name))
        other = sorted(set(map(_shown, facts.values or ())) - set(map(_shown, found)))
        if len(found) != 2 or other:
            raise ValueError(
                f"expected two values in column {name!r}, got {_listed(facts.values or found)}; take "
                "Label()"
            )
        return replace(self, levels=found)

    def head(self) -> Head:
        return Bernoulli()


@dataclass(frozen=True)
class Date(Kind):
    """Points in time, as days since the first one.

    Draws hardly leave the range of the dates that were read; later ones have a density still.

    Parameters
    ----------
    step : float, optional
        Days between values that repeat: 1 for dates; 0: no grid. Default: what the values say.

    >>> Date(step=1).word
    'date, in steps of 1 days'
    """

    step: float | None = None

    def __post_init__(self) -> None:
        checks.not_negative(**checks.given(step=self.step))

    @property
    def word(self) -> str:
        return "date" + (f", in steps of {self.step:g} days" if self.step else "")

    def settled(self, name: str, facts: Facts) -> Date:
        if not facts.dates:
            raise ValueError(
                f"expected dates in column {name!r}, got {_what(facts)}; make them so: "
                f"frame[{name!r}] = pandas.to_datetime(frame[{name!r}])"
            )
        return replace(self, step=facts.step if self.step is None else self.step)

    def codes(self, name: str, values: Plain) -> np.ndarray:
        return _numbers(name, values)

    def values(self, codes: np.ndarray) -> Plain:
        return codes

    def units(self, facts: Facts) -> Column:
        values = torch.tensor(facts.sketch, dtype=torch.float64)
        line = under(AFFINE, values, self.step or 0.0)
        return _ending(line, values, self.step or 0.0, facts, margin=-MARGIN)

    def head(self) -> Head:
        return Gaussian()

    @property
    def ends(self) -> tuple[float, float]:
        return -math.inf, math.inf


def _ending(
    best: Column,
    values: torch.Tensor,
    step: float,
    facts: Facts,
    origin: float = 0.0,
    margin: float = MARGIN,
) -> Column:
    """A soft logit of the range, where it gains ``margin`` nats a row over the ``best`` other map."""
    if facts.known < FEW or not facts.low < facts.high:
        return best
    ends = facts.low - origin, facts.high - origin
    soft = under(SOFT_LOGIT, values - origin, step, *ends)
    return soft if soft.gain > best.gain + margin else best


def recognized(facts: Facts) -> Kind:
    """The kind of a column by its values.

    >>> recognized(Facts.of(["a", "b", None])).word, recognized(Facts.of(np.array([0.0, 1, 5]))).word
    ('levels', 'count')
    """
    if not facts.known or facts.distinct == 1:
        return Label(facts.categories or facts.values)
    if facts.categories is not None:
        return Label(facts.categories, facts.ordered)
    if facts.dates:
        return Date()
    if not facts.numbers:
        flags = all(isinstance(each, bool) for each in facts.values or ())
        return Flag((False, True)) if flags else Label()
    return _number(facts)


def _number(facts: Facts) -> Kind:
    if facts.whole and (kind := _whole(facts)) is not None:
        return kind
    low = 0.0 if facts.low >= 0 else None
    if facts.has_many_zeros:
        return Continuous(low, zeros=True)
    if facts.map == LOGIT and facts.high > 0.5:  # smaller ones are shares by accident of units
        return Continuous(0.0, 1.0)
    bends = facts.map in (LOG, LOGIT) or facts.is_near_zero
    positive = bends and (facts.low > 0 or facts.step > 0)
    return Continuous(low if positive else None)


def _whole(facts: Facts) -> Kind | None:
    """Of whole numbers that are few: flags, grades, counts."""
    if {*(facts.values or (math.nan,))} <= {0.0, 1.0}:
        return Flag((0.0, 1.0))
    consecutive = facts.high - facts.low + 1 == facts.distinct
    if consecutive and facts.distinct <= (12 if facts.low >= 1 else 3):
        return Label(ordered=True)
    return Count() if facts.low in (0, 1) and facts.high < 100 else None


def _numbers(name: str, values: Plain) -> np.ndarray:
    if isinstance(values, np.ndarray):
        return values.astype("float64")
    row = next((at for at, each in enumerate(values) if each is not None), None)
    if row is None:
        return np.full(len(values), math.nan)
    raise TypeError(
        f"expected numbers in column {name!r}, got {_shown(values[row])} in row {row}; correct it, "
        "or mark it missing (None)"
    )


def _check_numbers(name: str, kind: Kind, facts: Facts) -> None:
    if not facts.numbers or facts.categories is not None:
        raise ValueError(
            f"expected numbers in column {name!r} for {type(kind).__name__}, got {_what(facts)}; "
            "take Label()"
        )


def _what(facts: Facts) -> str:
    if facts.dates:
        return "dates"
    if facts.values:
        return _shown(facts.values[0])
    return "numbers" if facts.numbers else "other values"


def _check_within(name: str, codes: np.ndarray, low: float, high: float) -> None:
    outside = ~np.isnan(codes) & ~((codes >= low) & (codes <= high) & np.isfinite(codes))
    if outside.any():
        row = int(outside.argmax())
        ends = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
        ends = ends if low > -math.inf else "that are finite"
        raise ValueError(
            f"expected numbers {ends} in column {name!r}, got {codes[row]:g} in row {row}; correct "
            "it, or mark it missing (None)"
        )


def _check_whole(name: str, codes: np.ndarray) -> None:
    broken = ~np.isnan(codes) & (codes != codes.round())
    if broken.any():
        row = int(broken.argmax())
        raise ValueError(
            f"expected whole numbers in column {name!r}, got {codes[row]:g} in row {row}; correct "
            f"it, or take them for continuous: table.change({name}=Continuous())"
        )


def _outside(name: str, expected: str, got: float, how: str) -> str:
    return f"expected values {expected} in column {name!r}, got {got:g}; take {how}"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    text = value if isinstance(value, str) else None
    return repr(value) if text is None or len(text) <= 24 else repr(f"{text[:21]}...")


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_level(value: Any, places: dict[Any, float]) -> bool:
    """Whether a value is a level, or missing."""
    try:
        return _is_missing(value) or value in places
    except TypeError:  # a list, say
        return False


def _two(levels: tuple[Any, ...]) -> tuple[Any, ...]:
    """Both flags, where a column has one of them."""
    if set(levels) <= {False, True}:
        return (False, True) if any(isinstance(each, bool) for each in levels) else (0.0, 1.0)
    return levels


def _listed(levels: Sequence[Any]) -> str:
    shown = ", ".join(map(_shown, levels if len(levels) < 6 else levels[:4]))
    return shown + (", ..." if len(levels) >= 6 else "")
