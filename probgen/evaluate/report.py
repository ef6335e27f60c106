"""All comparisons of samples with real rows as one table, each number beside its baseline."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from probgen.core import checks
from probgen.core.described import in_short
from probgen.core.keywords import explained
from probgen.core.row_sample import drawn_rows
from probgen.core.together import Together
from probgen.evaluate.choices import check_choices
from probgen.evaluate.classifier_test import classifier_two_sample_test
from probgen.evaluate.copying import copying_test
from probgen.evaluate.discrepancy import energy_test, kernel_distance, mmd_test
from probgen.evaluate.frechet import frechet_distance
from probgen.evaluate.neighbors import density_coverage, precision_recall
from probgen.evaluate.result import TwoSample
from probgen.evaluate.rows import Features, features_of, given_rows, raw, subsample
from probgen.evaluate.transport import sliced_wasserstein_distance, wasserstein_distance
from probgen.evaluate.units import IN_WORDS, Standardization, ways

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@in_short
@dataclass(frozen=True)
class SampleReport:
    """Comparisons by name; ``print`` gives the table, ``report["recall"]`` one of them.

    >>> line = TwoSample("recall", 0.8, 0.01, (0.78, 0.82), baseline=0.9, rows=(500, 400))
    >>> print(SampleReport((line,), (500, 400)))
    500 samples against 400 real rows
                              value        95 % interval   real : real      p
    recall                      0.8         0.78 to 0.82           0.9
    """

    results: tuple[TwoSample, ...]
    rows: tuple[int, int]
    note: str = ""

    def __iter__(self) -> Iterator[TwoSample]:
        return iter(self.results)

    def __getitem__(self, name: str) -> TwoSample:
        named = {result.name: result for result in self.results}
        if name not in named:
            raise KeyError(f"expected one of {', '.join(named)}, got {name!r}")
        return named[name]

    def __str__(self) -> str:
        title = f"{self.rows[0]} samples against {self.rows[1]} real rows{self.note}"
        head = f"{'':22s} {'value':>8s} {'95 % interval':>20s}   {'real : real':>11s} {'p':>6s}"
        return "\n".join(line.rstrip() for line in [title, head, *map(_line, self.results)])


def _line(result: TwoSample) -> str:
    limits = (
        "" if result.interval is None else f"{result.interval[0]:.3g} to {result.interval[1]:.3g}"
    )
    baseline = "" if result.baseline is None else f"{result.baseline:.3g}"
    p_value = "" if result.p_value is None else f"{result.p_value:.2g}"
    return f"{result.name:22s} {result.value:8.3g} {limits:>20s}   {baseline:>11s} {p_value:>6s}"


@explained
def sample_report(
    samples: Tensor,
    real: Tensor,
    train: Tensor | None = None,
    *,
    features: Features = raw,
    standardize: Standardization = "auto",
    most: int = 2000,
    permutations: int = 200,
    seed: int = 0,
    max_rows: int = 1024,
    drawn: int = 10_000,
    fabric: Fabric | None = None,
) -> SampleReport:
    """Fréchet, kernel, sliced and exact Wasserstein distances, tests, fidelity.

    Coverage and copies in one table.

    Where training rows are given, as many of them as samples stand in for the samples to give the
    baselines, and samples are cut to their number, so that value and baseline are of the same numbers of
    rows and may be compared as they are. A model that copies its training rows gets the baseline
    everywhere: only the copying test tells. Without training rows the baselines come from splits of
    the real rows and that test is left out.

    Each of the three may be a stream of rows (a file, a DataLoader that does not shuffle, batches),
    which is read once, and of which so many rows are drawn, uniformly: the same ones for a seed,
    however it is cut into blocks and shared by processes.

    Parameters
    ----------
    samples : Tensor
        ``(N, *event)`` drawn from the model.
    real : Tensor
        ``(M, *event)`` that the model has not seen.
    train : Tensor, optional
        ``(R, *event)`` that it was trained on.
    features : callable
        ``(n, *event) -> (n, F)``: the values themselves, :class:`RandomFeatures`,
        :func:`classifier_features`.
    standardize : bool or "auto"
        Whether columns are divided by their standard deviation among the real rows, or all rows in
        tests (images by one number; constant columns are left alone): default for the values
        themselves, not for the features of a network. ``False``: raw units.
    most : int
        Rows that tests and the exact distance, whose costs grow fast, are given of each sample.
    permutations : int
        Of the tests.
    seed : int
        For all that is random.
    max_rows : int
        Rows whose features are computed, or that are read of a stream, at once.
    drawn : int
        Rows of a stream that are compared, at most; they are held in memory.
    fabric : lightning_fabric.Fabric, optional
        A launched Fabric: its processes share the reading of streams; the first one compares, and
        all of them get the report.

    Returns
    -------
    SampleReport
        With ``wasserstein_distance`` where POT is installed.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> report = sample_report(torch.randn(200, 2) + 1.0, torch.randn(200, 2), torch.randn(200, 2), permutations=50)
    >>> report["Fréchet distance"].excess > 1, report["MMD test"].p_value < 0.05, report["copying test"].p_value > 0.05
    (True, True, True)
    """
    check_choices(features, standardize, seed=seed, max_rows=max_rows)
    checks.at_least(1, most=most)
    checks.at_least(4, drawn=drawn)
    checks.at_least(0, permutations=permutations)
    together = Together(fabric)
    together.check_alike({"seed": seed, "drawn": drawn, "max_rows": max_rows})
    given = [drawn_rows(each, drawn, seed, max_rows, together) for each in (samples, real, train)]
    how = _How(features, standardize, most, permutations, seed, max_rows)
    report: SampleReport | None = None
    with together.agreed():
        if together.first:
            report = _report(given[0], given[1], given[2], how)
    shared: SampleReport = together.share(report)
    return shared


class _How(NamedTuple):
    """How samples are compared, see :func:`sample_report`."""

    features: Features
    standardize: Standardization
    most: int
    permutations: int
    seed: int
    max_rows: int


def _report(samples: Any, real: Any, train: Any, asked: _How) -> SampleReport:
    """The report of rows in memory."""
    features, standardize, most, permutations, seed, max_rows = asked
    rows = features_of(features, samples, real, train, max_rows=max_rows)
    if train is not None:
        rows[0] = subsample(rows[0], len(train), seed)
    units = ways(features, standardize, given_rows(samples, real)[1].ndim - 1)
    unit: dict[str, Any] = {"standardize": units or False, "seed": seed}
    how: dict[str, Any] = {"reference": rows[2] if train is not None else None, **unit}
    few = [subsample(each, most, seed) for each in rows[:2]]
    much = dict(how)
    if train is not None:
        much["reference"] = subsample(rows[2], most, seed)
    x, y = rows[:2]
    results = [
        frechet_distance(x, y, **how),
        kernel_distance(x, y, **how),
        sliced_wasserstein_distance(x, y, **how),
    ]
    if importlib.util.find_spec("ot") is not None:
        results.append(wasserstein_distance(*few, **much))
    results += [*precision_recall(x, y, **how), *density_coverage(x, y, **how)]
    for test in (mmd_test, energy_test, classifier_two_sample_test):
        results.append(test(*few, **much, permutations=permutations))
    if train is not None:
        results.append(copying_test(x, rows[2], y, **unit))
    note = "" if train is None else f", baselines by {len(x)} training rows"
    return SampleReport(tuple(results), (len(x), len(y)), f"{note}; {IN_WORDS[units]}")
