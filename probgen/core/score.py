"""Log-likelihoods that know their kind and unit, and what may be concluded from them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from probgen.core import checks
from probgen.core.described import in_short
from probgen.core.given_weights import weights_from
from probgen.core.kinds import KINDS, worst


class Compared(ABC):
    """What scores share: what may be concluded from two of them, and how one is told."""

    kind: str
    unit: str
    particles: int
    measure: str

    @abstractmethod
    def _figures(self) -> tuple[float, float]:
        """The mean over the rows and its standard error."""

    def _bits(self, dims: int, bin_width: float) -> tuple[float, float, str]:
        """Slope and offset from nats to bits per dim, and the measure of the result."""
        if self.unit != "nats":
            raise ValueError(
                f"expected a score in nats, got {self.unit}; convert the original score once"
            )
        if self.measure not in ("density", "mass"):
            raise ValueError(
                f"expected a density or a mass of all values, got a {self.measure}, which no width "
                "of bins makes a mass; report it in nats"
            )
        scale = -1 / (dims * math.log(2))
        measure = "mass" if self.measure == "mass" else "bins"
        return scale, scale * dims * math.log(bin_width), measure

    def difference(self, other: Compared) -> tuple[float, float]:
        """Mean and standard error of how much better this score is, row by row.

        Positive: this one is better. Of scores without values of rows (:class:`MeanScore`) the
        standard error is that of scores of different rows, most often a larger one. Of two scores
        averaged over particles in probability space the one with more of them has the tighter bound,
        so that both need the same number.

        Raises
        ------
        TypeError
            For scores of different units or measures, and for estimates from different numbers of
            particles.
        ValueError
            For scores of other rows, or of other weights.
        """
        self._check_comparable(other)
        self._check_particles(other)
        return self._gain(other)

    @abstractmethod
    def _gain(self, other: Compared) -> tuple[float, float]:
        """Mean and standard error of how much better this score is."""

    def __gt__(self, other: Compared) -> bool:
        """Whether this score is the better one.

        Raises ``TypeError`` where the two kinds of numbers cannot tell.
        """
        self._check_comparable(other)
        gain, stderr = self._gain(other)
        if self.kind == other.kind == "exact":
            return gain > 0
        lower = ("exact", "unbiased", "bound")  # in expectation at most the truth
        if other.kind == "exact" and self.kind in lower and gain > 2 * stderr:
            return True
        if self.kind == "exact" and other.kind in lower and gain < -2 * stderr:
            return False
        how = "use more particles, or report both numbers with their kinds"
        if self.kind in lower[1:] and other.kind in lower[1:]:
            how = (
                "report a.difference(b), at one number of particles for both, as a difference of "
                "bounds, and how far it moves with ten times as many; only an exact density of "
                "both settles it"
            )
        raise TypeError(
            f"{self} against {other} is inconclusive: only exact values compare both ways, and a "
            "lower bound proves something only when it lies above an exact value by more than the "
            f"noise; {how}"
        )

    def __lt__(self, other: Compared) -> bool:
        return other > self

    def _check_comparable(self, other: Compared) -> None:
        if self.unit != other.unit:
            raise TypeError(
                f"expected scores in one unit, got {self.unit} and {other.unit}; convert one of "
                "them"
            )
        self._check_measures(other)
        self._check_rows(other)

    @abstractmethod
    def _check_rows(self, other: Compared) -> None:
        """Refuses scores of other rows, as far as numbers of rows and weights tell."""

    def _check_measures(self, other: Compared) -> None:
        """Masses compare with bins, densities where single numbers have a mass in both or in none."""
        measures = {self.measure, other.measure}
        if len(measures) == 1 or measures == {"mass", "bins"}:
            return
        if measures & {"mass", "bins"}:
            raise TypeError(
                f"a {self.measure} and a {other.measure} are different kinds of number; declare "
                "the quantization of "
                "the data: score.in_bits_per_dim(dims, bin_width)"
            )
        raise TypeError(
            f"expected scores with the same atoms, got a {self.measure} and a {other.measure}: a "
            "mass is no density there; give both models the same atoms: "
            "ZeroInflated(head=..., atoms=...)"
        )

    def _check_particles(self, other: Compared) -> None:
        """Means over particles of log weights have no bias; logarithms of means have one."""
        fewer, more = sorted((self.particles, other.particles))
        averaged = self.kind == other.kind and self.kind not in ("exact", "bound")
        if averaged and fewer < more and (fewer > 1 or self.kind == "unbiased"):
            raise TypeError(
                f"expected scores of one number of particles, got {self.particles} and "
                f"{other.particles}: more of them give a tighter bound of the same model; score "
                f"both with particles={more}"
            )

    def _in_words(self) -> str:
        higher_is_better = self.unit == "nats"
        relation = {"exact": "=", "approximate": "~", "unnormalized": "? +"}.get(
            self.kind, ">=" if higher_is_better else "<="
        )
        mean, error = self._figures()
        stderr = "" if math.isinf(error) else f" ± {error:.2f}"
        draws = "" if self.particles == 1 else f", {self.particles} particles"
        return f"{relation} {mean:.2f}{stderr} {self.unit} ({self.kind}{draws})"


@in_short
@dataclass(frozen=True)
class Score(Compared):
    """Log-likelihoods of rows, with what they may be used for.

    Attributes
    ----------
    value : Tensor
        One number per row: nats (higher is better), or bits per dim (lower is better).
    kind : str
        One of :data:`probgen.core.KINDS`.
    unit : str
        ``"nats"`` or ``"bits/dim"``.
    particles : int
        Draws of the latents per row; 1 for an exact density.
    measure : str
        ``"mass"`` when x is discrete, ``"density"`` when continuous, ``"bins"`` for densities
        turned into masses by a declared quantization. Masses and bins may be compared with each
        other, densities only with densities; one *with atoms*, numbers that have a mass, only with
        one that has the same.
    weights : Tensor or None
        How often each row counts in the mean, and in its standard error: as if it were repeated.

    >>> import torch
    >>> print(Score(torch.tensor([-92.9, -93.3]), "unbiased", particles=64))
    >= -93.10 ± 0.20 nats (unbiased, 64 particles)
    """

    value: Tensor
    kind: str
    unit: str = "nats"
    particles: int = 1
    measure: str = "density"
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        checks.instance(Tensor, value=self.value)
        checks.one_of(KINDS, kind=self.kind)
        checks.text(unit=self.unit)
        checks.at_least(1, particles=self.particles)
        checks.text(measure=self.measure)
        checks.instance(Tensor, **checks.given(weights=self.weights))
        if self.weights is not None:
            weights_from(self.weights, len(self.value))

    @property
    def mean(self) -> float:
        """Average over the rows, each as often as it counts."""
        return _average(self.value, self.weights)[0]

    @property
    def stderr(self) -> float:
        """Standard error of the mean over rows.

        It contains the Monte Carlo noise of the rows' values.
        """
        return _average(self.value, self.weights)[1]

    def in_bits_per_dim(self, dims: int, bin_width: float = 1.0) -> Score:
        r"""The score in bits per dim.

        For data that was quantized to bins of ``bin_width`` in each of ``dims`` dims.

        .. math:: -(\log p(x) + D \log \Delta) / (D \log 2)

        ``bin_width`` is in the unit that the model saw: ``1/256`` for 8-bit pixels divided by 256,
        1 for integers.
        """
        scale, offset, measure = self._bits(dims, bin_width)
        return replace(self, value=self.value * scale + offset, unit="bits/dim", measure=measure)

    def __str__(self) -> str:
        return self._in_words()

    def _figures(self) -> tuple[float, float]:
        return self.mean, self.stderr

    def _gain(self, other: Compared) -> tuple[float, float]:
        if not isinstance(other, Score):
            return _unpaired(self, other)
        gain = (self.value - other.value) * (1 if self.unit == "nats" else -1)
        return _average(gain, self.weights)

    def _check_rows(self, other: Compared) -> None:
        if isinstance(other, MeanScore):
            other._check_rows(self)
        if not isinstance(other, Score):
            return
        if self.value.shape != other.value.shape:
            raise ValueError(
                f"expected scores of the same rows, got {len(self.value)} and {len(other.value)} "
                "of them; score both "
                "models on the same held-out data"
            )
        if not _same(self.weights, other.weights):
            raise ValueError(
                "expected scores of rows with the same weights, got others; pass the same weights= "
                "to both"
            )


class _Sums(NamedTuple):
    """Number of rows, their weight, their mean, and squares about it."""

    rows: int = 0
    total: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def plus(self, other: _Sums) -> _Sums:
        """Those of more rows: Chan, Golub, LeVeque (1983)."""
        if not (self.total and other.total):
            kept = self if self.total else other
            return kept._replace(rows=self.rows + other.rows)
        total = self.total + other.total
        apart = other.mean - self.mean
        share = other.total / total
        squares = self.squares + other.squares + apart**2 * self.total * share
        return _Sums(self.rows + other.rows, total, self.mean + apart * share, squares)


@in_short
@dataclass(frozen=True)
class MeanScore(Compared):
    """The mean log-likelihood of rows that are too many to keep one number for each.

    With the kind of number that it is, and what may be concluded from it, as of a :class:`Score`.

    Attributes
    ----------
    mean : float
        Average over the rows, each as often as it counts: nats (higher is better), or bits per dim
        (lower is better).
    stderr : float
        Its standard error; it contains the Monte Carlo noise of the rows' values.
    rows : int
        How many rows there are, those of weight 0 left out.
    total : float
        How many they count as: the sum of their weights.
    kind, unit, particles, measure
        As of a :class:`Score`; the kind is the worst of the blocks.

    >>> import torch
    >>> parts = [Score(torch.tensor([-92.9]), "exact"), Score(torch.tensor([-93.3, -93.1]), "exact")]
    >>> print(MeanScore.of(parts))
    = -93.10 ± 0.12 nats (exact)
    """

    mean: float
    stderr: float
    rows: int
    total: float
    kind: str
    unit: str = "nats"
    particles: int = 1
    measure: str = "density"

    def __post_init__(self) -> None:
        checks.instance(float, mean=self.mean, stderr=self.stderr)
        checks.at_least(0, rows=self.rows)
        checks.not_negative(total=self.total)
        checks.one_of(KINDS, kind=self.kind)
        checks.text(unit=self.unit, measure=self.measure)
        checks.at_least(1, particles=self.particles)

    @classmethod
    def of(cls, scores: Iterable[Score | MeanScore]) -> MeanScore:
        """The mean over the rows of several scores of one model, block after block.

        Memory is that of one of them.

        Raises
        ------
        TypeError
            If they differ in unit or measure.
        ValueError
            If there are none.
        """
        sums = _Sums()
        first: Score | MeanScore | None = None
        kind = "exact"
        particles = 1
        for score in scores:
            first = first or score
            if score.unit != first.unit:
                raise TypeError(
                    f"expected scores in one unit, got {first.unit} and {score.unit}; convert "
                    "their mean"
                )
            first._check_measures(score)
            kind = worst(kind, score.kind)
            particles = max(particles, score.particles)
            sums = sums.plus(_sums(score))
        if first is None:
            raise ValueError("expected scores of one block of rows or more, got none; give rows")
        return cls(
            sums.mean,
            _standard_error(sums.total, sums.squares),
            sums.rows,
            sums.total,
            kind,
            first.unit,
            particles,
            first.measure,
        )

    def in_bits_per_dim(self, dims: int, bin_width: float = 1.0) -> MeanScore:
        """The score in bits per dim, as of :meth:`Score.in_bits_per_dim`."""
        scale, offset, measure = self._bits(dims, bin_width)
        return replace(
            self,
            mean=self.mean * scale + offset,
            stderr=self.stderr * abs(scale),
            unit="bits/dim",
            measure=measure,
        )

    def __str__(self) -> str:
        return self._in_words()

    def _figures(self) -> tuple[float, float]:
        return self.mean, self.stderr

    def _gain(self, other: Compared) -> tuple[float, float]:
        return _unpaired(self, other)

    def _check_rows(self, other: Compared) -> None:
        found = _sums(other) if isinstance(other, Score | MeanScore) else _Sums()
        if found.rows != self.rows or not math.isclose(found.total, self.total, rel_tol=1e-6):
            raise ValueError(
                f"expected scores of the same rows, got {self.rows} that count as {self.total:g} "
                f"and {found.rows} that count as {found.total:g}; score both models on the same "
                "held-out data"
            )


def _sums(score: Score | MeanScore) -> _Sums:
    if isinstance(score, MeanScore):
        squares = 0.0
        if score.total > 1:
            squares = score.stderr**2 * score.total * (score.total - 1)
        return _Sums(score.rows, score.total, score.mean, squares)
    value = score.value.double()
    weights = value.new_ones(len(value)) if score.weights is None else score.weights.to(value)
    value = value[weights > 0]
    weights = weights[weights > 0]
    total = weights.sum().item()
    mean = (weights * value).sum().item() / total if total else 0.0
    squares = (weights * (value - mean).square()).sum().item()
    return _Sums(len(value), total, mean, squares)


def _standard_error(total: float, squares: float) -> float:
    return math.sqrt(squares / (total - 1) / total) if total > 1 else math.inf


def _unpaired(one: Compared, other: Compared) -> tuple[float, float]:
    """Mean and standard error of a difference of means as of different rows."""
    means, errors = zip(one._figures(), other._figures(), strict=True)
    sign = 1 if one.unit == "nats" else -1
    return sign * (means[0] - means[1]), math.hypot(*errors)


def _average(value: Tensor, weights: Tensor | None) -> tuple[float, float]:
    """Weighted mean of rows and its standard error, those of rows repeated as they weigh."""
    if weights is None:
        count = len(value)
        return value.mean().item(), value.std().item() / math.sqrt(count) if count > 1 else math.inf
    counts = weights[weights > 0].to(value)
    value = value[weights > 0]
    total = counts.sum().item()
    mean = (counts * value).sum().item() / total
    if total <= 1:
        return mean, math.inf
    squares = (counts * (value - mean).square()).sum().item()
    return mean, math.sqrt(squares / (total - 1) / total)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and bool((one.to(other) == other).all())
