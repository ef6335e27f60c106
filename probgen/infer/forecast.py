"""What follows a series: one verb for all families of series."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.conversion import rows_from
from probgen.core.entry import as_rows
from probgen.core.keywords import explained
from probgen.core.modes import inference_mode_of
from probgen.core.module import GenerativeModel
from probgen.core.ragged import Ragged
from probgen.core.seeds import seeded
from probgen.infer.impute import impute


@dataclass(frozen=True, repr=False)
class SeriesForecast:
    """What follows series.

    Attributes
    ----------
    draws : Tensor
        Futures ``(S, N, H, D)``, each as a whole; of one series that was given without a dim
        for it ``(S, H, D)``.
    mean : Tensor
        Expected values ``(N, H, D)``, or ``(H, D)``: exact where the family knows them,
        else those of the draws.
    std : Tensor
        Standard deviations, alike.
    observed : Tensor
        What was given: ``(N, T, D)``, or ``(T, D)``; shorter series of several end in NaN.
    normal : bool
        Whether each value is normal, so that intervals are exact.
    index : object
        The pandas index of the steps to come, ``None`` where the series had none.
    names : tuple of str
        Of the variables.
    kind : str
        Of the draws, as :class:`probgen.Imputation` has it: ``"exact"``, or those of Markov chains,
        ``"asymptotic"`` or ``"heuristic"``, where the family has latents that are not summed out.

    >>> one = SeriesForecast(torch.randn(9, 3, 1), torch.zeros(3, 1), torch.ones(3, 1), torch.zeros(5, 1), True)
    >>> one, one.intervals(0.95)[1][:, 0]
    (SeriesForecast(3 steps after 5, 9 draws, exact), tensor([1.9600, 1.9600, 1.9600]))
    """

    draws: Tensor
    mean: Tensor
    std: Tensor
    observed: Tensor
    normal: bool
    index: Any = None
    names: tuple[str, ...] = ()
    kind: str = "exact"

    def __repr__(self) -> str:
        steps, seen = (part.shape[-2] for part in (self.mean, self.observed))
        return f"SeriesForecast({steps} steps after {seen}, {len(self.draws)} draws, {self.kind})"

    def intervals(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Ends of the central interval of this probability for each step, as ``mean``.

        Exact where values are normal, else quantiles of the draws.

        Raises
        ------
        ValueError
            If ``level`` is not between 0 and 1.
        """
        checks.within("(0, 1)", level=level)
        tail = 0.5 - 0.5 * level
        if self.normal:
            half = -torch.special.ndtri(torch.tensor(tail, dtype=torch.double)).item() * self.std
            return self.mean - half, self.mean + half
        low, high = (self.draws.quantile(part, 0) for part in (tail, 1 - tail))
        return low, high

    def to_frame(self, level: float = 0.9) -> Any:
        """Mean and interval of each step as a pandas frame, whose index goes on.

        Columns ``mean``, ``lower`` and ``upper``; of several variables, under the name of each. Rows
        of several series stand one after the other, with the number of the series in the index.
        """
        import pandas

        steps = self.mean.shape[-2]
        low, high = self.intervals(level)
        parts = {"mean": self.mean, "lower": low, "upper": high}
        flat = {name: part.reshape(-1, part.shape[-1]) for name, part in parts.items()}
        if len(self.names) < 2:
            columns: dict[Any, list[float]] = {
                name: part[:, 0].tolist() for name, part in flat.items()
            }
        else:
            columns = {
                (own, name): part[:, place].tolist()
                for place, own in enumerate(self.names)
                for name, part in flat.items()
            }
        start = self.observed.shape[-2]
        index = pandas.RangeIndex(start, start + steps) if self.index is None else self.index
        if self.mean.ndim > 2:
            levels = [range(len(self.mean)), index]
            index = pandas.MultiIndex.from_product(levels, names=["series", "step"])
        return pandas.DataFrame(columns, index=index)


@explained
def forecast_series(
    gen: GenerativeModel,
    x: Any,
    steps: int,
    context: Any = None,
    *,
    draws: int = 1000,
    seed: int | None = None,
) -> SeriesForecast:
    """The next steps of series given those so far: mean, intervals, draws, a frame.

    Families whose distribution goes on by itself (hidden Markov models, state space models,
    structural series) go as far as asked. Of other families of series, futures are drawn as the
    missing end of a row by :func:`probgen.impute`, up to the length they were built with.

    Parameters
    ----------
    gen : GenerativeModel
        A fitted family of series.
    x : Tensor, array, pandas Series or frame, or list
        One series ``(T,)`` or ``(T, D)``, or several ``(N, T, D)``, or a list of them; NaN = missing.
        A pandas index goes on with its own frequency.
    steps : int
        Number H of steps to come.
    context : Tensor, optional
        ``(N, *context_event)``.
    draws : int
        Number S of futures that are drawn, at least 2.
    seed : int, optional
        Makes the draws repeatable.

    Returns
    -------
    SeriesForecast

    Raises
    ------
    ValueError
        If ``gen`` is no family of series, a series does not fit it, or its dates have no regular
        frequency.

    >>> from probgen.models.state_space import LinearGaussianStateSpace
    >>> found = forecast_series(LinearGaussianStateSpace(1, 1, length=20), torch.randn(20), 12, draws=50)
    >>> found.mean.shape, found.draws.shape, found.to_frame().shape
    (torch.Size([12, 1]), torch.Size([50, 12, 1]), (12, 3))
    """
    checks.generative(gen=gen)
    checks.at_least(1, steps=steps)
    checks.at_least(2, draws=draws)
    checks.is_seed(**checks.given(seed=seed))
    own = getattr(gen, "ragged", None)
    if own is None or len(own.entry) != 1 or not math.isnan(own.padding):
        raise ValueError(
            f"expected a family of series of numbers that do not end, got {type(gen).__name__}; give "
            "a HiddenMarkovModel, a LinearGaussianStateSpace, a StructuralTimeSeries or a "
            "SequenceModel"
        )
    series, one = _series_of(x, own)
    index = _index_after(x, steps)
    rows, context = as_rows(gen, series, context)
    with inference_mode_of(gen), torch.no_grad(), seeded(seed):
        ahead = _futures(gen, own, series, context, int(steps), int(draws))
    drawn, mean, std, normal, kind = ahead
    seen = rows[:, : max(map(len, series))]
    if one:
        drawn, mean, std, seen = drawn[:, 0], mean[0], std[0], seen[0]
    return SeriesForecast(drawn, mean, std, seen, normal, index, _names_of(x, own.entry[0]), kind)


def _series_of(x: Any, own: Ragged) -> tuple[list[Tensor], bool]:
    """The series ``(T, D)`` each, and whether one was given by itself."""
    if own.takes(x):
        x = [rows_from("x", part) if not torch.is_tensor(part) else part for part in x]
        return [
            part[:, None] if part.ndim == 1 and own.entry == (1,) else part for part in x
        ], False
    rows = rows_from("x", x)
    width = own.entry[0]
    if rows.ndim == 1 and width == 1:
        return [rows[:, None]], True
    if rows.ndim == 2 and rows.shape[1] == width:
        return [rows], True
    if rows.ndim == 3 and rows.shape[2] == width and len(rows):
        return list(rows), False
    raise ValueError(
        f"expected x of shape (T, {width}), or (N, T, {width}) for several series, got "
        f"{tuple(rows.shape)}; give one row for each step"
    )


def _futures(
    gen: Any, own: Ragged, series: list[Tensor], context: Any, steps: int, draws: int
) -> tuple[Tensor, Tensor, Tensor, bool, str]:
    """Draws, mean and standard deviation of what follows, whether it is normal, the kind of draws."""
    distribution = gen(context)
    go_on = getattr(distribution, "forecast", None)
    if go_on is None:
        drawn, kind = _drawn(gen, own, series, context, steps, draws)
        return drawn, drawn.mean(0), drawn.std(0), False, kind
    ahead = go_on(series, steps)
    drawn = ahead.sample((draws,))
    try:
        mean, std = ahead.mean, ahead.variance.sqrt()
    except NotImplementedError:
        mean, std = drawn.mean(0), drawn.std(0)
    return drawn, mean, std, bool(getattr(ahead, "normal_marginals", False)), "exact"


def _drawn(
    gen: Any, own: Ragged, series: list[Tensor], context: Any, steps: int, draws: int
) -> tuple[Tensor, str]:
    """Futures as missing ends of rows, and their kind."""
    longer = [torch.cat([part, part.new_full((steps, *own.entry), math.nan)]) for part in series]
    given = () if context is None else (context,)
    whole = impute(gen, own.rows(longer), *given, draws=draws, progress=False)
    ends = [whole.draws[:, n, len(part) : len(part) + steps] for n, part in enumerate(series)]
    drawn = torch.stack(ends, 1)
    if drawn.isnan().any():
        raise ValueError(
            f"expected a family whose series go on, got {type(gen).__name__}, by which these have "
            "ended; forecast with the family that it is around"
        )
    return drawn, whole.kind


def _index_after(x: Any, steps: int) -> Any:
    """The pandas index of the steps after those of a series or frame; ``None`` for all else."""
    if type(x).__module__.partition(".")[0] != "pandas":
        return None
    import pandas

    index = x.index
    if isinstance(index, pandas.PeriodIndex):
        return pandas.period_range(index[-1] + 1, periods=steps, freq=index.freq, name=index.name)
    if isinstance(index, pandas.DatetimeIndex):
        freq = index.freq
        if freq is None and len(index) > 2:
            freq = pandas.DatetimeIndex(index, freq="infer").freq
        if freq is None:
            raise ValueError(
                "expected dates of a regular frequency, got others; give x.asfreq('MS'), say, whose "
                "missing steps are NaN"
            )
        return pandas.date_range(index[-1], periods=steps + 1, freq=freq, name=index.name)[1:]
    if not pandas.api.types.is_integer_dtype(index) or len(index) < 2:
        return None
    stride = int(index[1] - index[0])
    if not stride or not (index[1:] - index[:-1] == stride).all():
        raise ValueError(
            "expected an index of regular steps, got another; sort the series, or give "
            "x.reset_index(drop=True)"
        )
    first = int(index[-1]) + stride
    return pandas.RangeIndex(first, first + stride * steps, stride, name=index.name)


def _names_of(x: Any, width: int) -> tuple[str, ...]:
    """The names of the variables: those of a frame, or their numbers."""
    columns = getattr(x, "columns", None)
    return tuple(map(str, range(width) if columns is None else columns))
