"""How far a number moves with the rows that it was estimated from: the bootstrap."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.described import in_short
from probgen.core.keywords import explained
from probgen.core.progress import Progress, Reported, check_progress
from probgen.core.turns import own_random_state
from probgen.diagnostics.given_rows import GivenRows
from probgen.parallel import Jobs, TasksInterrupted, check_jobs, run_tasks

Values = dict[str, Tensor]
ONLY = "statistic"  # the name of one that has none


@in_short
@dataclass(frozen=True)
class BootstrapResult:
    """Estimates from rows that were drawn with replacement, beside that of the rows themselves.

    Attributes
    ----------
    estimate : dict of str to Tensor
        From all rows, each once; under the name ``"statistic"`` where the function gave no dict.
    draws : dict of str to Tensor
        ``(resamples, *shape)``, from each resample.

    >>> found = BootstrapResult({"mean": torch.tensor(2.0)}, {"mean": torch.tensor([1.0, 2.0, 3.0])})
    >>> print(found)
    3 resamples: mean 2 ± 1
    >>> low, high = found.interval(0.5)["mean"]
    >>> low, high
    (tensor(1.5000), tensor(2.5000))
    """

    estimate: Values
    draws: Values

    @property
    def stderr(self) -> Values:
        """Standard errors: the spread of the resamples."""
        return {name: value.std(0) for name, value in self.draws.items()}

    @property
    def bias(self) -> Values:
        """How much larger the mean of the resamples is than the estimate.

        It stands for how much larger the estimate is than the truth, on average.
        """
        return {name: value.mean(0) - self.estimate[name] for name, value in self.draws.items()}

    def interval(self, level: float = 0.95) -> dict[str, tuple[Tensor, Tensor]]:
        """Percentile intervals: what lies between quantiles of the resamples.

        They follow every monotone transformation of the statistic, and are short of their level in
        small samples.

        >>> BootstrapResult({}, {"a": torch.arange(101.0)}).interval(0.9)["a"]
        (tensor(5.), tensor(95.))
        """
        return {name: self._quantiles(name, level) for name in self.draws}

    def basic_interval(self, level: float = 0.95) -> dict[str, tuple[Tensor, Tensor]]:
        """Basic intervals: the errors of the resamples, turned around the estimate.

        They correct for bias, and may leave the range of the statistic (a share below 0).

        >>> BootstrapResult({"a": torch.tensor(40.0)}, {"a": torch.arange(101.0)}).basic_interval(0.9)["a"]
        (tensor(-15.), tensor(75.))
        """
        found = {}
        for name, estimate in self.estimate.items():
            low, high = self._quantiles(name, level)
            found[name] = (2 * estimate - high, 2 * estimate - low)
        return found

    def _quantiles(self, name: str, level: float) -> tuple[Tensor, Tensor]:
        checks.within("(0, 1)", level=level)
        value = self.draws[name]
        ends = value.new_tensor([(1 - level) / 2, (1 + level) / 2])
        low, high = value.quantile(ends, dim=0)
        return low, high

    def __str__(self) -> str:
        count = len(next(iter(self.draws.values())))
        stderr = self.stderr
        words = [
            f"{name} {value.item():.3g} ± {stderr[name].item():.2g}"
            if value.numel() == 1
            else f"{name} {tuple(value.shape)}"
            for name, value in self.estimate.items()
        ]
        return f"{count} resamples: {', '.join(words)}"


@explained
def bootstrap(
    statistic: Callable[..., Any],
    *batch: Any,
    resamples: int = 200,
    seed: int | None = None,
    n_jobs: Jobs = None,
    progress: Reported = None,
) -> BootstrapResult:
    r"""Standard errors and intervals of whatever is computed from rows, such as a fitted parameter.

    .. math:: \hat\theta^*_b = s(x_{i_1}, \ldots, x_{i_N}), \qquad i_1, \ldots, i_N \sim
              \mathrm{Uniform}\{1, \ldots, N\}

    N rows are drawn with replacement, and the function is called on them, again and again: how its
    values scatter about that of all rows is how this scatters about the truth.

    Parameters
    ----------
    statistic : callable
        ``statistic(*batch) -> Tensor``, or a dict of tensors: it builds a model, fits it, and gives
        numbers of it, of the same shapes for all rows. What it draws follows from ``seed``, unless
        it asks for other seeds.
    *batch : Tensor
        Rows ``(N, ...)``; those of several arguments stay together.
    resamples : int
        How many times rows are drawn: some 200 for standard errors, some 1,000 for intervals.
    seed : int, optional
        Makes everything reproducible; torch's generator is left alone either way.
    n_jobs : int, optional
        Resamples that are worked on side by side, in processes; the result is the same for every
        number.
    progress : bool, float or None
        As for :func:`mcmc`.

    Returns
    -------
    BootstrapResult
        The estimate, those from the resamples, ``stderr``, ``bias``, ``interval(level)``.

    Warns
    -----
    UserWarning
        On Ctrl-C after some resamples: those are kept.

    Raises
    ------
    TypeError, ValueError
        If arguments differ in their number of rows, or the function gives no numbers, or others than
        for all rows.

    References
    ----------
    Efron (1979), Bootstrap methods: another look at the jackknife,
    https://doi.org/10.1214/aos/1176344552; intervals: Davison, Hinkley (1997), Bootstrap methods and
    their application, https://doi.org/10.1017/CBO9780511802843

    >>> x = torch.arange(100.0)
    >>> found = bootstrap(lambda x: x.mean(), x, resamples=200, seed=0)
    >>> found.estimate["statistic"], (found.stderr["statistic"] - 2.9).abs() < 0.6
    (tensor(49.5000), tensor(True))
    """
    checks.function(statistic=statistic)
    checks.at_least(2, resamples=resamples)
    checks.is_seed(**checks.given(seed=seed))
    check_jobs(n_jobs)
    check_progress(progress)
    rows = GivenRows(batch)
    with own_random_state(seed):
        if seed is None:
            torch.seed()
        seeds = torch.randint(2**62, (resamples + 1,)).tolist()
    with Progress("bootstrap", resamples + 1, "fits", asked=progress) as shown:
        found = _estimates(_Resampled(statistic, rows), seeds, n_jobs, shown)
    whole, *others = found
    _check_alike(whole, others)
    draws = {name: torch.stack([each[name] for each in others]) for name in whole}
    return BootstrapResult(whole, draws)


def _estimates(
    function: _Resampled, seeds: list[int], n_jobs: Jobs, shown: Progress
) -> list[Values]:
    """Of all rows, then of each resample; on Ctrl-C of those that are done."""
    tasks = [(number > 0,) for number in range(len(seeds))]
    how: dict[str, Any] = {"n_jobs": n_jobs, "name": "fit", "advance": shown.advance}
    try:
        return run_tasks(function, tasks, seeds, **how)
    except TasksInterrupted as stop:
        if 0 not in stop.done or len(stop.done) < 3:
            raise
        warnings.warn(
            f"interrupted after {len(stop.done) - 1} of {len(seeds) - 1} resamples; those are kept",
            stacklevel=4,
        )
        return [value for _, value in sorted(stop.done.items())]


class _Resampled:
    """The statistic of rows drawn with replacement, or of all of them."""

    def __init__(self, statistic: Callable[..., Any], rows: GivenRows):
        self.statistic = statistic
        self.rows = rows

    def __call__(self, advance: Callable[..., Any], drawn: bool) -> Values:
        size = self.rows.size
        index = torch.randint(size, (size,)) if drawn else torch.arange(size)
        found = self.statistic(*self.rows.take(index))
        named = found if isinstance(found, Mapping) else {ONLY: found}
        advance(1)
        return {str(name): _number(name, value) for name, value in named.items()}


def _number(name: str, value: Any) -> Tensor:
    try:
        found = torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError):
        found = None
    if found is None or found.is_complex():
        raise TypeError(
            f"expected a statistic of numbers, got {type(value).__name__} for '{name}'; give a "
            "tensor, such as gen.means"
        )
    found = found if found.is_floating_point() else found.to(torch.get_default_dtype())
    return found.clone()  # not the parameters of a model that goes on


def _check_alike(whole: Values, others: list[Values]) -> None:
    shapes = {name: tuple(value.shape) for name, value in whole.items()}
    for number, each in enumerate(others):
        own = {name: tuple(value.shape) for name, value in each.items()}
        if own != shapes:
            raise ValueError(
                f"expected a statistic of the same shapes for all rows, {shapes}, got {own} from "
                f"resample {number + 1}; give numbers whose shape does not follow from the rows"
            )
