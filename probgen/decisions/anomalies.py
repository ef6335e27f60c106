"""Which rows are unlike usual ones, how sure that is, and which column is to blame."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.construction import arguments_became
from probgen.core.conversion import has_named_columns
from probgen.core.described import described
from probgen.core.entry import as_rows
from probgen.core.keywords import explained
from probgen.core.missing import has_missing
from probgen.core.modes import infers
from probgen.core.score import Score
from probgen.core.seeds import Seed
from probgen.decisions.codes import distribution_of
from probgen.decisions.conformal import (
    Uniformity,
    conformal_p_values,
    false_discovery_threshold,
    p_values_before_ties,
)
from probgen.decisions.statistics import LogLikelihood
from probgen.distributions.conditional import observed
from probgen.scoring import log_likelihood

if TYPE_CHECKING:
    import pandas as pd

FEW = 20  # rows to compare with: p-values below 5 % need as many


@dataclass(frozen=True)
class Detection:
    """Rows that are called anomalous.

    Attributes
    ----------
    anomalous : Tensor
        ``(N,)``, bool.
    p_values : Tensor
        ``(N,)``.
    threshold : float
        The largest p-value that is called anomalous; 0 where none is.
    false_discovery_rate : float
        The share of usual rows among those called anomalous that is allowed in expectation.
    fewest : int
        With fewer anomalies than this among the rows none can be found: the smallest p-value that
        the calibration rows allow is too large. More calibration rows lower it.
    """

    anomalous: Tensor
    p_values: Tensor
    threshold: float
    false_discovery_rate: float
    fewest: int

    def __str__(self) -> str:
        found = int(self.anomalous.sum())
        text = (
            f"{found} of {len(self.anomalous)} rows anomalous, at most "
            f"{self.false_discovery_rate:.0%} of them falsely in expectation".replace("%", " %")
        )
        if not found and self.fewest > 1:
            text += f" (fewer than {self.fewest} could not be found by so few calibration rows)"
        return text


@dataclass(frozen=True)
class Blame:
    r"""What each column says of its row, given the others.

    Attributes
    ----------
    value : Tensor
        :math:`\log p(x_d \mid x_{-d}) = \log p(x) - \log p(x_{-d})`, ``(N, *event)``, in nats; NaN
        for missing cells.
    p_values : Tensor
        The rank of that number among those of the same column of the calibration rows, ``(N,
        *event)``: columns have other units and spreads, their ranks compare.
    kind : str
        ``"exact"`` where the density is, else ``"approximate"``.
    names : tuple of str
        Of the columns, in the order of a flat event.
    order : Tensor
        Columns of each row, the one to blame first, ``(N, D)``: by p-value, then by how many
        standard deviations of the calibration rows the number lies below their mean.
    """

    value: Tensor
    p_values: Tensor
    kind: str
    names: tuple[str, ...]
    order: Tensor

    @property
    def columns(self) -> list[str | None]:
        """The name of the column to blame, for each row; ``None`` where all cells are missing."""
        asked = (~self.value.flatten(1).isnan()).any(1).tolist()
        first = self.order[:, 0].tolist()
        return [self.names[n] if some else None for n, some in zip(first, asked, strict=True)]

    def to_frame(self) -> pd.DataFrame:
        """P-values with a column for each column of the rows."""
        import pandas as pd

        return pd.DataFrame(self.p_values.flatten(1).numpy(), columns=list(self.names))

    def __repr__(self) -> str:
        return f"Blame({self.kind}, {len(self.value)} rows, columns {self.columns[:5]}...)"


@described
class AnomalyDetector(nn.Module):
    r"""P-values of rows against the hypothesis that they are like those of the calibration.

    .. math:: p(x) = \frac{1 + \#\{m : s(x_m) \le s(x)\}}{M + 1}

    Whatever the model and the statistic s are, :math:`P(p \le \alpha) \le \alpha` for a row that is
    exchangeable with the calibration rows. That is an assumption about the rows, not about the
    model: where they come from other people, machines or months than the calibration rows did,
    p-values are too small even if nothing is wrong. :meth:`uniformity` looks at usual rows of the
    kind that will be asked about.

    Several statistics at once are told apart by the density of their values (density of states
    estimation, DoSE): half of the calibration rows makes a kernel density of each statistic, the
    other half is compared with.

    Rows with missing cells (NaN) are compared with calibration rows without the same cells, so that
    scores of fewer columns meet their like (exact where cells are missing at random).

    Parameters
    ----------
    gen : GenerativeModel
        A model that was fitted to usual rows.
    calibration : Tensor, array or frame
        ``(M, *event)``, usual rows that it was *not* fitted to. They are kept, and saved with the
        detector.
    context : Tensor, optional
        ``(M, *context_event)``, where the model takes one.
    statistics : sequence of Statistic or callable
        ``statistic(gen, x)`` or ``statistic(gen, x, context)`` gives ``(N,)``, low where a row is
        odd: :class:`LogLikelihood <probgen.decisions.LogLikelihood>`, :class:`Typicality
        <probgen.decisions.Typicality>`, :class:`LikelihoodRatio
        <probgen.decisions.LikelihoodRatio>`; default: the density.

    Raises
    ------
    ValueError
        For fewer than two calibration rows, or rows that the model does not take.

    References
    ----------
    Bates, Candès, Lei, Romano, Sesia (2023), Testing for outliers with conformal p-values,
    https://arxiv.org/abs/2104.08279; Morningstar et al. (2021), Density of states estimation for
    out-of-distribution detection, https://arxiv.org/abs/2006.09273

    >>> from probgen.models.factor_analysis import PPCA
    >>> usual = torch.randn(1000, 3)
    >>> detector = AnomalyDetector(PPCA(3, factors=1).solve(usual[:500]), usual[500:])
    >>> detector.p_values(torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.0, 0.0]])) < 0.01
    tensor([ True, False])
    >>> detector.blame(torch.tensor([[9.0, 0.0, 0.0]])).columns
    ['column 0']
    """

    calibration: Tensor
    context: Tensor | None

    def __init__(
        self,
        gen: nn.Module,
        calibration: Any,
        context: Tensor | None = None,
        *,
        statistics: Sequence[Callable[..., Tensor]] = (),
    ):
        checks.generative(gen=gen)
        checks.functions(statistics=statistics)
        super().__init__()
        given = (calibration,) if context is None else (calibration, context)
        model: Any = gen
        rows, *beside = as_rows(model, *given, missing=True)
        if len(rows) < 2:
            raise ValueError(
                f"expected calibration rows to compare with, got {len(rows)}; give some hundreds "
                "that the model was not fitted to"
            )
        self.gen: Any = gen
        self.statistics = tuple(statistics) or (LogLikelihood(),)
        self.parts = nn.ModuleList(s for s in self.statistics if isinstance(s, nn.Module))
        self.register_buffer("calibration", rows)
        self.register_buffer("context", beside[0] if beside else None)
        arguments_became(self, calibration=rows)

    @property
    def calibration_rows(self) -> int:
        """How many rows p-values are ranks among."""
        return len(self._halves()[1])

    @infers
    @torch.no_grad()
    def p_values(self, x: Any, context: Tensor | None = None) -> Tensor:
        """P-values of rows ``(N, *event)``, NaN = missing; small where a row is odd: ``(N,)``.

        Raises
        ------
        ValueError
            For rows that the model does not take, and where no calibration row has all the cells
            that a row has.
        """
        return self._by_pattern(x, context, conformal_p_values)

    @infers
    @torch.no_grad()
    def scores(self, x: Any, context: Tensor | None = None) -> Tensor:
        """What p-values are ranks of: low where a row is odd, ``(N,)``.

        They order rows whose p-values are all the smallest one; rows with the same cells missing
        compare.
        """
        return self._by_pattern(x, context, lambda own, usual: own)

    def _by_pattern(
        self, x: Any, context: Tensor | None, ask: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Numbers of each row, from its score and those of its like."""
        rows, *beside = self._given(x, context)
        parts = []
        places = []
        for hidden, members in _patterns(self.gen, rows, beside):
            picked = [part[members] for part in (rows, *beside)]
            parts.append(ask(*self._compared(picked, hidden)).double().cpu())
            places.append(members)
        return torch.cat(parts)[torch.cat(places).argsort()]

    @explained
    def detect(
        self, x: Any, context: Tensor | None = None, *, false_discovery_rate: float = 0.1
    ) -> Detection:
        """Rows ``(N, *event)`` that are called anomalous, few of them falsely.

        Parameters
        ----------
        x : Tensor, array or frame
            ``(N, *event)``, NaN = missing.
        context : Tensor, optional
            ``(N, *context_event)``.
        false_discovery_rate : float
            Share of usual rows among those called anomalous, in expectation (Benjamini, Hochberg).

        Warns
        -----
        UserWarning
            If calibration rows are so few that no number of anomalies would be found.

        References
        ----------
        Benjamini, Hochberg (1995), Controlling the false discovery rate,
        https://doi.org/10.1111/j.2517-6161.1995.tb02031.x

        >>> from probgen.core.module import standard_normal
        >>> detector = AnomalyDetector(standard_normal(1), torch.randn(500, 1))
        >>> print(detector.detect([[0.1], [0.2], [9.0]]))
        1 of 3 rows anomalous, at most 10 % of them falsely in expectation
        """
        checks.within("(0, 1)", false_discovery_rate=false_discovery_rate)
        found = self.p_values(x, context)
        smallest = 1 / (self.calibration_rows + 1)
        fewest = max(1, math.ceil(len(found) * smallest / false_discovery_rate - 1e-9))
        if fewest > len(found):
            warnings.warn(
                f"{self.calibration_rows} calibration rows give p-values of {smallest:.2g} at "
                f"least: nothing can be found at a rate of {false_discovery_rate:g}; give more than "
                f"{math.ceil(1 / false_discovery_rate)}",
                stacklevel=3,
            )
        threshold = false_discovery_threshold(found, false_discovery_rate)
        return Detection(
            found <= threshold + 1e-12 if threshold else torch.zeros(len(found), dtype=torch.bool),
            found,
            threshold,
            false_discovery_rate,
            fewest,
        )

    @explained
    def uniformity(self, x: Any, context: Tensor | None = None) -> Uniformity:
        """Whether p-values of usual rows ``(N, *event)`` can be believed.

        Take rows like those that will be asked about, neither fitted to nor in the calibration: of
        other people or later months, if these will be asked about.
        """
        both = self._by_pattern(x, context, _with_ties)
        return Uniformity.of(both[:, 0], self.calibration_rows, before_ties=both[:, 1])

    @explained
    @infers
    @torch.no_grad()
    def blame(
        self,
        x: Any,
        context: Tensor | None = None,
        *,
        particles: int = 64,
        seed: Seed = 0,
    ) -> Blame:
        r"""Which column makes a row odd: the one that the others predict worst.

        .. math:: \log p(x_d \mid x_{-d}) = \log p(x) - \log p(x_{-d})

        ranked among the same number of the calibration rows.

        Parameters
        ----------
        x : Tensor, array or frame
            ``(N, *event)``, NaN = missing.
        context : Tensor, optional
            ``(N, *context_event)``.
        particles, seed
            As in :func:`probgen.log_likelihood`; the same draws with and without a column.

        Raises
        ------
        NotImplementedError
            For a model that cannot sum missing cells out, or has no density.
        """
        batch = self._given(x, context)
        how = {"particles": particles, "seed": seed}
        own, kind = self._conditionals(batch, how)
        usual, _ = self._conditionals(self._calibration(), how)
        names = self._names(x, own.shape[1])
        self._check_ranked(own, usual, names)
        ranks = torch.stack(
            [
                conformal_p_values(mine, others[~others.isnan()])
                for mine, others in zip(own.T, usual.T, strict=True)
            ],
            -1,
        )
        spread = (usual - usual.nanmean(0)).square().nanmean(0).sqrt()
        below = ((own - usual.nanmean(0)) / spread.clamp(min=1e-12)).nan_to_num(torch.inf)
        by_spread = below.argsort(dim=-1, stable=True)
        by_rank = ranks.nan_to_num(torch.inf).gather(-1, by_spread).argsort(dim=-1, stable=True)
        shape = batch[0].shape
        return Blame(
            own.reshape(shape),
            ranks.reshape(shape),
            "exact" if kind == "exact" else "approximate",
            names,
            by_spread.gather(-1, by_rank),
        )

    def _given(self, x: Any, context: Tensor | None) -> tuple[Tensor, ...]:
        given = (x,) if context is None else (x, context)
        return as_rows(self.gen, *given, missing=True)

    def _calibration(self) -> tuple[Tensor, ...]:
        return (self.calibration,) if self.context is None else (self.calibration, self.context)

    def _halves(self) -> tuple[Tensor, Tensor]:
        """Numbers of the rows that say which values are usual, and of those to compare with."""
        numbers = torch.arange(len(self.calibration))
        if len(self.statistics) == 1 and not _two_sided(self.statistics[0]):
            return numbers[:0], numbers
        return numbers[::2], numbers[1::2]

    def _compared(self, batch: list[Tensor], hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scores of rows, and those of calibration rows without the same cells."""
        own = self._values(batch)
        halves = [self._comparable(numbers, hidden) for numbers in self._halves()]
        if not len(halves[1][0]) or (len(halves[0][0]) == 0 < len(self._halves()[0])):
            raise ValueError(
                "expected calibration rows that have every cell that a row has, got none for "
                f"{_lacking(hidden)}; give complete calibration rows"
            )
        if not len(halves[0][0]):
            return own[:, 0], self._values(halves[1])[:, 0]
        states = _States(self._values(halves[0]), self.statistics)
        return states(own), states(self._values(halves[1]))

    def _comparable(self, numbers: Tensor, hidden: Tensor | None) -> list[Tensor]:
        """Those of some calibration rows that have all cells but the hidden ones, without these."""
        x, *beside = (part[numbers] for part in self._calibration())
        if hidden is None and not has_missing(x):
            return [x, *beside]
        lacking = lacking_cells(self.gen, x, beside)
        if hidden is not None:
            lacking = lacking & ~hidden
            x = x.masked_fill(hidden, torch.nan)
        complete = ~lacking.flatten(1).any(1)
        return [part[complete] for part in (x, *beside)]

    def _values(self, batch: Sequence[Tensor]) -> Tensor:
        """Each statistic of rows, ``(N, K)``."""
        found = []
        for statistic in self.statistics:
            value = statistic(self.gen, *batch)
            if not torch.is_tensor(value) or value.shape != (len(batch[0]),):
                got = tuple(value.shape) if torch.is_tensor(value) else type(value).__name__
                raise ValueError(
                    f"expected a statistic that gives {len(batch[0])} numbers, one for each row, "
                    f"got {got}; sum over the other dims"
                )
            if value.isnan().any():
                raise ValueError(
                    "expected a statistic that gives numbers, got NaN in row "
                    f"{int(value.isnan().nonzero()[0])}; let it handle missing cells, or leave the "
                    "row out"
                )
            found.append(value.double())
        return torch.stack(found, -1)

    def _conditionals(self, batch: tuple[Tensor, ...], how: dict[str, Any]) -> tuple[Tensor, str]:
        """The log-density of each cell given the others of its row, ``(N, D)``, and its kind."""
        x, *beside = batch
        whole = self._marginal(x, beside, how)
        flat = x.flatten(1) if x.is_floating_point() else x.flatten(1).to(torch.get_default_dtype())
        found = torch.full(flat.shape, torch.nan, dtype=torch.float64)
        for number in range(flat.shape[1]):
            known = ~flat[:, number].isnan()
            if not known.any():
                continue
            without = flat[known]
            without[:, number] = torch.nan
            rest = self._marginal(
                without.reshape(-1, *x.shape[1:]), [b[known] for b in beside], how
            )
            found[known.cpu(), number] = (whole.value[known] - rest.value).double().cpu()
        return found, whole.kind

    def _check_ranked(self, own: Tensor, usual: Tensor, names: tuple[str, ...]) -> None:
        """Refuses cells of columns that no calibration row has."""
        lost = ~own.isnan().all(0) & usual.isnan().all(0)
        if lost.any():
            name = names[int(lost.nonzero()[0])]
            raise ValueError(
                f"expected calibration rows with a value of every column that a row has, got none of "
                f"{name}; give some that have it, or leave it missing (NaN) in the rows"
            )

    def _marginal(self, x: Tensor, beside: Sequence[Tensor], how: dict[str, Any]) -> Score:
        try:
            return log_likelihood(self.gen, x, *beside, **how)
        except ValueError as error:
            if not has_missing(x):
                raise
            raise NotImplementedError(
                f"expected a model that sums missing cells out, got {type(self.gen).__name__}, "
                "which cannot say what a row is worth without a column; blame columns by a "
                "GaussianMixture, a PPCA, a tree or a VAE of the same rows"
            ) from error

    def _names(self, x: Any, count: int) -> tuple[str, ...]:
        table = getattr(self.gen, "table", None)
        if table is not None:
            return tuple(field.name for field in table.fields)
        names = list(getattr(x, "columns", [])) if has_named_columns(x) else []
        return tuple(names) if len(names) == count else tuple(f"column {n}" for n in range(count))


def _with_ties(own: Tensor, usual: Tensor) -> Tensor:
    """P-values, and those before usual rows of the same score, ``(N, 2)``."""
    return torch.stack([conformal_p_values(own, usual), p_values_before_ties(own, usual)], -1)


class _States:
    """How usual values of statistics are, by those of some usual rows ``(R, K)``."""

    def __init__(self, values: Tensor, statistics: Sequence[Any]):
        self.values = [column[column.isfinite()] for column in values.T]
        self.alone = len(statistics) == 1

    def __call__(self, values: Tensor) -> Tensor:
        if self.alone:
            return -(values[:, 0] - self.values[0].mean()).abs()
        densities = map(log_kernel_density, values.T, self.values)
        return torch.stack(list(densities), -1).sum(-1)


def log_kernel_density(values: Tensor, rows: Tensor) -> Tensor:
    r"""The logarithm of a kernel density of numbers, with a normal kernel.

    The bandwidth is :math:`0.9 \min(s, \text{IQR} / 1.34)\, R^{-1/5}` (Silverman 1986).

    Parameters
    ----------
    values : Tensor
        ``(N,)``.
    rows : Tensor
        ``(R,)``, finite.

    >>> log_kernel_density(torch.zeros(1).double(), torch.zeros(4).double()).isfinite()
    tensor([True])
    """
    low, high = rows.quantile(torch.tensor([0.25, 0.75], dtype=rows.dtype))
    deviation = rows.std(correction=0)
    robust = (high - low) / 1.34
    spread = torch.where(robust > 0, torch.minimum(deviation, robust), deviation)
    width = (0.9 * spread * len(rows) ** -0.2).clamp(min=1e-9 * (1 + rows.abs().amax()))
    blocks = []
    for block in values.split(max(1, 2**22 // len(rows))):
        z = (block[:, None] - rows) / width
        blocks.append((-z.square() / 2).logsumexp(-1))
    constant = math.log(len(rows)) + math.log(2 * math.pi) / 2
    return torch.cat(blocks) - constant - width.log()


def _two_sided(statistic: Any) -> bool:
    return bool(getattr(statistic, "two_sided", False))


def _patterns(
    gen: Any, rows: Tensor, beside: Sequence[Tensor]
) -> Iterator[tuple[Tensor | None, Tensor]]:
    """Sets of missing cells, and the numbers of the rows that lack these."""
    if not has_missing(rows):
        yield None, torch.arange(len(rows))
        return
    lacking = lacking_cells(gen, rows, beside)
    kinds, index = lacking.unique(dim=0, return_inverse=True)
    for number, hidden in enumerate(kinds):
        yield hidden if hidden.any() else None, (index == number).nonzero().flatten().cpu()


def lacking_cells(gen: Any, rows: Tensor, beside: Sequence[Tensor]) -> Tensor:
    """What is missing of rows, without the padding of sequences that ended."""
    distribution = distribution_of(gen, tuple(beside))
    return rows.isnan() if distribution is None else ~observed(distribution, rows)


def _lacking(hidden: Tensor | None) -> str:
    if hidden is None:
        return "complete rows"
    return f"rows without the columns {hidden.flatten().nonzero().flatten().tolist()[:10]}"
