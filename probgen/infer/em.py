"""Expectation maximization for every family that has an E-step and an M-step."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.in_memory import in_memory
from probgen.core.keywords import explained
from probgen.core.progress import Progress, Reported, check_progress
from probgen.core.streams import as_stream
from probgen.core.together import Together
from probgen.core.training_record import TrainingRecord, keep_record, versions
from probgen.core.turns import training
from probgen.infer.em_data import Rows, prepared
from probgen.infer.em_runs import EMRun, advance, frozen_kept
from probgen.infer.em_stream import FamilyReader, StreamedRows, check_rereadable
from probgen.parallel import Jobs, TasksInterrupted, check_jobs, is_asked, run_tasks

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_TIE = 1e-9  # relative; starts that end in one optimum differ by less


@runtime_checkable
class SupportsEM(Protocol):
    r"""What a family offers to :func:`em`: two methods, and a third that finds a start.

    With complete-data log-likelihood :math:`\log p_\theta(x, z)`, one step of EM is

    .. math:: \theta' = \arg\max_{\theta'} \sum_b E_{p_\theta(z \mid x_b)} \log p_{\theta'}(x_b, z)

    and the sum enters through sufficient statistics that add over rows. Parameters that do not
    train (``requires_grad`` is ``False``) are given: ``maximize`` takes the maximum over the
    others.

    A family whose ``maximize`` subtracts something from that sum (pseudo-counts, a variance added
    to others) tells it by a method ``penalty(statistics)``, in nats under the present parameters,
    so that :func:`em` knows what rises.
    """

    def expect(self, x: Tensor, weights: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        r"""E-step on some of the rows.

        The log-likelihood and the expected sufficient statistics, summed over them.

        Both must add over blocks of rows: ``expect(x)`` equals ``expect(x[:n])`` plus
        ``expect(x[n:])``. :func:`em` adds them up in float64. The number of rows is a statistic
        like any other: return it if ``maximize`` needs it. Called under ``torch.no_grad``.

        Parameters
        ----------
        x : Tensor
            Rows ``(n, *event)``; NaN = missing (a family that cannot marginalize raises
            ``ValueError``).
        weights : Tensor, optional
            How often each row counts, ``(n,)``. A family may leave this argument out, and is then
            refused weights.

        A family whose rows come from one of several components may take one argument more,
        ``labels``, ``(n,)`` integers: the component that a row is known to have come from, or -1.
        Its log-likelihood is then :math:`\log p_\theta(x_b, y_b)` for rows with a label; its
        ``initialize`` takes them too.

        Returns
        -------
        (Tensor, dict of Tensor)
            :math:`\sum_b \log p_\theta(x_b)` in nats, a scalar; and tensors of any shapes.
        """

    def maximize(self, statistics: dict[str, Tensor]) -> None:
        """M-step: sets the parameters, in place, to the maximizer given the statistics of all rows.

        In float64.

        The parameters still have the values under which ``expect`` computed the statistics, so
        these may be relative to them (whitened or centered by them, say), which keeps digits.

        Raises
        ------
        ValueError
            If the data cannot determine the parameters, however EM starts (fewer rows than
            components, say).
        torch.linalg.LinAlgError
            If this run collapsed (an empty component, a singular covariance); another start may do
            better.
        """

    def initialize(
        self, x: Tensor, generator: torch.Generator | None = None, weights: Tensor | None = None
    ) -> None:
        """Sets the parameters, in place, to a start suited to ``x`` of shape ``(N, *event)``.

        Raises like ``maximize``.

        Random starts draw from ``generator`` (the global one when ``None``), so that each of
        ``n_init`` differs.
        """


@dataclass(frozen=True)
class EMResult:
    """How a run of EM went.

    Attributes
    ----------
    log_likelihood : Tensor
        Mean log-likelihood of a row in nats, float64, at the start and after each step: ``(steps +
        1,)``.
    converged : bool
        Whether the last step gained less than ``tol``.
    gain : float
        What the last step gained, in nats a row, of what EM maximizes: the log-likelihood, less the
        penalty of pseudo-counts or regularization. NaN where no step was taken.
    """

    log_likelihood: Tensor
    converged: bool
    gain: float = math.nan

    def __repr__(self) -> str:
        ended = "converged" if self.converged else "not converged"
        return (
            f"EMResult({self.n_iter} iterations, {ended}, {self.log_likelihood[-1]:.4g} nats a row)"
        )

    @property
    def n_iter(self) -> int:
        """Number of M-steps taken."""
        return len(self.log_likelihood) - 1


@explained
@torch.no_grad()
def em(
    gen: nn.Module,
    x: Tensor | Sequence[Tensor],
    *,
    weights: Tensor | None = None,
    labels: Tensor | None = None,
    max_iter: int = 200,
    tol: float = 1e-4,
    n_init: int = 1,
    max_rows: int | None = None,
    n_jobs: Jobs = None,
    seed: int | None = None,
    progress: Reported = None,
    fabric: Fabric | None = None,
) -> EMResult:
    r"""Fits a family in place by expectation maximization.

    Each step raises the log-likelihood, without a step size.

    Data may be larger than memory, and shared by several processes: an E-step goes over blocks of
    rows and sums statistics in float64, over all processes where there are several, so that the
    result is the same up to rounding however rows are cut and shared.

    Parameters that do not train (``gen.loc.requires_grad_(False)``) keep their values, as in
    :func:`probgen.fit`.

    Parameters
    ----------
    gen : nn.Module
        A family with the methods of :class:`SupportsEM`.
    x : Tensor or sequence of Tensor
        Data ``(N, *event)`` of the parameters' dtype; NaN = missing, where the family marginalizes
        it. It may lie on another device than the parameters: blocks of rows are moved. Sequences of
        different lengths come as a list of tensors ``(T_b, *event)``, or padded with NaN at the
        end. A frame, where ``gen`` is a :class:`Tabular <probgen.Tabular>` of such a family.

        Or a stream of rows that is read in blocks, once for the start and once for each step: a
        file (:class:`RowStream <probgen.core.streams.RowStream>`), a DataLoader that does not
        shuffle, or another iterable of batches that starts anew each time.
    weights : Tensor, optional
        How often each row counts, ``(N,)``, not negative: whole numbers are the same as repeated
        rows. Their sum is so many rows, beside which pseudo-counts and regularization are weighed:
        at least one.
    labels : Tensor, optional
        Components that rows are known to have come from, ``(N,)``: 0, ..., K - 1, or NaN where that
        is not known (missing at random). EM then maximizes log p(x, y) of rows with a label, log
        p(x) of the others, and component y is class y: a :class:`GaussianMixture
        <probgen.GaussianMixture>` becomes a semi-supervised classifier.
    max_iter : int
        Largest number of iterations, each an E-step and an M-step.
    tol : float
        Stop when the mean log-likelihood of a row gains less than this, in nats.
    n_init : int
        Number of starts made by ``gen.initialize``, of which the one that ends best is kept; 0
        starts once from the present parameters. Of a stream, starts are made of at most 65,536
        rows, drawn uniformly (fewer where a row has more than 512 entries; families whose start is
        a closed form take all rows), and all runs share each pass over it, so that memory holds as
        many copies of the model.
    max_rows : int, optional
        Rows handled at a time, which bounds memory; the result depends on it by rounding only.
        Default: as many as have four million elements.
    n_jobs : int, optional
        Starts that run side by side, each in a process with one core, by joblib; -1: as many as there
        are cores. The result is the same, bit for bit, for every number. Of rows in memory; the runs
        over a stream, and those with ``fabric``, have one pass for all anyway. Default: one after the
        other, or what ``joblib.parallel_config`` says.
    seed : int, optional
        Makes the starts repeatable; by default they draw from torch's global generator.
    progress : bool, float or None
        Log-likelihood, rate and time left: in one line that is renewed where there is a terminal;
        elsewhere nothing,
        with ``True`` a line every 30 seconds, with a number one every so many. ``False``: nothing.
    fabric : lightning_fabric.Fabric, optional
        A launched Fabric, where several processes work together: each goes over its part of the
        rows (given all of them where they are in memory), and all end with the same parameters. The
        present parameters are those of the first process.

    Raises
    ------
    ValueError
        If ``x`` is empty, infinite, outside of the family's support, not of its shape and dtype, or
        does not determine the parameters; if a stream can be read only once, or has other numbers
        of rows in later passes; if the fabric was not launched.
    torch.linalg.LinAlgError
        If every run collapsed.

    Warns
    -----
    RuntimeWarning
        If a step lowered what it should raise by more than ``tol`` and rounding; or if EM was still
        rising by more than ``tol`` after the last step (not where ``tol`` is 0, which asks for so
        many steps).

    References
    ----------
    Dempster, Laird, Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm,
    https://doi.org/10.1111/j.2517-6161.1977.tb01600.x; with labels: Nigam, McCallum, Thrun, Mitchell
    (2000), Text classification from labeled and unlabeled documents using EM,
    https://doi.org/10.1023/A:1007692713085

    >>> from probgen.models.mixture import GaussianMixture
    >>> x = torch.cat([torch.randn(60, 2), torch.randn(40, 2) + 20])
    >>> result = em(GaussianMixture(components=2, dims=2), x, seed=0)
    >>> result.converged, result.log_likelihood.shape == (result.n_iter + 1,)
    (True, True)
    """
    began = time.perf_counter()
    outer = gen
    checks.no_class(gen=gen)
    checks.at_least(0, max_iter=max_iter, n_init=n_init)
    checks.not_negative(tol=tol)
    checks.at_least(1, **checks.given(max_rows=max_rows))
    checks.is_seed(**checks.given(seed=seed))
    check_jobs(n_jobs)
    check_progress(progress)
    together = Together(fabric)
    together.check_alike({"max_iter": max_iter, "tol": float(tol), "n_init": n_init})
    gen, data, slopes = _read(gen, x, weights, labels, max_rows, together, seed)
    total = max(1, n_init) * max_iter
    asked = progress if together.first else False
    shown = Progress("em", total, "iterations", asked=asked, bound=True)
    with training(gen), _explained_collapse(data), shown:
        best = (
            _from_here(gen, data, max_iter, tol, shown)
            if n_init == 0
            else _best_of(gen, data, (max_iter, tol, n_init), seed, shown, n_jobs)
        )
        together.same_state(gen)
    result = best.result
    for told in best.warnings + _unfinished(result, max_iter, tol):
        warnings.warn(told, RuntimeWarning, stacklevel=4)  # torch.no_grad stands in between
    if slopes:
        result = replace(result, log_likelihood=result.log_likelihood + slopes)
    settings = {"max_iter": max_iter, "tol": float(tol), "n_init": n_init}
    keep_record(outer, _record(result, data.total, settings, time.perf_counter() - began))
    return result


def _unfinished(result: EMResult, max_iter: int, tol: float) -> list[str]:
    """What to warn of where EM stopped before it had converged."""
    if result.converged or tol <= 0 or max_iter == 0:
        return []
    return [
        f"EM stopped after {max_iter} iterations while one more still gained {result.gain:.3g} "
        f"nats a row, more than tol = {tol:g}; give a larger max_iter, or a larger tol"
    ]


def _read(
    gen: Any,
    x: Any,
    weights: Any,
    labels: Any,
    max_rows: int | None,
    together: Together,
    seed: int | None,
) -> tuple[Any, Rows | StreamedRows, float]:
    """The family that is fitted, its rows, and the mean of the logarithms of their slopes.

    Slopes are those of a table, whose rows the family takes in units of its own.
    """
    inside = getattr(gen, "inside", None)
    if in_memory(x, gen):
        slopes = 0.0
        with together.agreed():
            if inside is not None:
                gen, x, slopes = inside(x, weights)
            _check(gen)
            data = prepared(gen, x, weights, labels, max_rows, together)
        known = (data.x, data.weights, data.labels)
        together.check_call(None, known, {"rows": len(data.x), "shapes of the model": _shapes(gen)})
        return gen, data, slopes
    family = gen if inside is None else gen.family
    with together.agreed():
        _check(family)
        reader = FamilyReader(gen, weights, labels)
        stream = as_stream(x, gen)
        check_rereadable(stream)
    together.check_call(None, stream, {"shapes of the model": _shapes(family)})
    sampled = together.share(int(torch.randint(2**62, ())) if seed is None else int(seed))
    rows = StreamedRows(reader, stream, max_rows, together, sampled)
    return family, rows, rows.slopes


def _shapes(gen: Any) -> list[tuple[str, tuple[int, ...]]]:
    """Of the parameters and buffers: their values are those of the first process."""
    return [(name, tuple(value.shape)) for name, value in gen.state_dict().items()]


def _record(
    result: EMResult, rows: float, settings: dict[str, Any], seconds: float
) -> TrainingRecord:
    """What is kept of a run beside its model."""
    return TrainingRecord(
        "em",
        "log-likelihood",
        result.n_iter,
        float(rows),
        loss=-float(result.log_likelihood[-1]),
        kind="exact",
        seconds=seconds,
        stopped="converged" if result.converged else "not converged",
        settings=settings,
        versions=versions(),
    )


class _Best(NamedTuple):
    """How the best run went, and what to warn of."""

    result: EMResult
    warnings: list[str]


def _outcome(run: EMRun, runs: Sequence[EMRun]) -> _Best:
    history = torch.tensor(run.history, dtype=torch.float64)
    result = EMResult(history, run.converged, run.gain)
    return _Best(result, list(dict.fromkeys(each.fell for each in runs if each.fell)))


def _from_here(
    gen: Any, data: Rows | StreamedRows, max_iter: int, tol: float, progress: Progress
) -> _Best:
    """One run from the present parameters, those of the first process."""
    data.together.same_state(gen)
    run = EMRun(gen, max_iter, tol)
    advance([run], data, progress.advance)
    if run.collapse is not None:
        raise run.collapse
    return _outcome(run, [run])


def _best_of(
    gen: Any,
    data: Rows | StreamedRows,
    how: tuple[int, float, int],
    seed: int | None,
    progress: Progress,
    n_jobs: Jobs,
) -> _Best:
    """Runs from several starts, of which the best is kept.

    Of rows in memory one run after the other, or in processes; over a stream in step, so that one
    pass serves all of them.
    """
    generator = None if seed is None else torch.Generator().manual_seed(int(seed))
    of_all: Callable[..., list[EMRun]] = _one_by_one if isinstance(data, Rows) else _side_by_side
    if isinstance(data, Rows) and data.together.world == 1 and is_asked(n_jobs):
        of_all = partial(_in_processes, n_jobs)
    runs = of_all(gen, data, how, generator, progress)
    alive = [run for run in runs if run.collapse is None]
    if not alive:
        collapse = runs[-1].collapse
        assert collapse is not None
        raise collapse
    return _outcome(_best_run(alive), runs)


def _best_run(runs: Sequence[EMRun]) -> EMRun:
    """The run that ended best; the first of those that rounding alone tells apart."""
    best = runs[0]
    for run in runs[1:]:
        if run.history[-1] - best.history[-1] > _TIE * max(1.0, abs(best.history[-1])):
            best = run
    return best


def _one_by_one(
    gen: Any,
    data: Rows | StreamedRows,
    how: tuple[int, float, int],
    generator: torch.Generator | None,
    progress: Progress,
) -> list[EMRun]:
    """Runs one after the other; the model is left with the best.

    Ctrl-C ends the search with the best so far; anything else that ends it leaves the best as well.
    """
    max_iter, tol, n_init = how
    first_state = copy.deepcopy(gen.state_dict())
    best_state: dict[str, Any] = {}
    runs: list[EMRun] = []
    best: list[EMRun] = []
    with _left_with(best_state, gen):
        for start in range(n_init):
            progress.skip(start * max_iter)
            run = EMRun(gen, max_iter, tol)
            gen.load_state_dict(first_state)  # a start may look at the parameters before it
            try:
                _start(run, data, generator)
                if run.collapse is None:
                    advance([run], data, progress.advance)
            except KeyboardInterrupt:
                if not best_state:
                    raise
                warnings.warn(
                    f"interrupted in start {start + 1} of {n_init}; the best before it is kept",
                    stacklevel=6,
                )
                break
            runs.append(run)
            if run.collapse is None and _best_run([*best, run]) is run:
                best = [run]
                best_state |= copy.deepcopy(gen.state_dict())
    return runs


def _in_processes(
    n_jobs: Jobs,
    gen: Any,
    data: Rows,
    how: tuple[int, float, int],
    generator: torch.Generator | None,
    progress: Progress,
) -> list[EMRun]:
    """Runs of copies of the model from starts that are made here; the model is left with the best."""
    max_iter, tol, n_init = how
    runs = [EMRun(copy.deepcopy(gen), max_iter, tol) for _ in range(n_init)]
    for run in runs:
        _start(run, data, generator)
    places = [place for place, run in enumerate(runs) if run.collapse is None]
    tasks = [(runs[place],) for place in places]
    none: list[int | None] = [None] * len(tasks)  # there is nothing to draw
    told = progress.advance
    try:
        walked = partial(_walked, data)
        found = run_tasks(walked, tasks, none, n_jobs=n_jobs, name="start", advance=told)
        for place, run in zip(places, found, strict=True):
            runs[place] = run
    except TasksInterrupted as stop:
        runs = list(stop.done.values())
        if not any(run.collapse is None for run in runs):
            raise
        warnings.warn(
            f"interrupted when {len(runs)} of {n_init} starts were done; the best of these is kept",
            stacklevel=6,
        )
    if alive := [run for run in runs if run.collapse is None]:
        gen.load_state_dict(_best_run(alive).gen.state_dict())
    return runs


@torch.no_grad()
def _walked(data: Rows, told: Callable[[float], Any], run: EMRun) -> EMRun:
    """A run from its start to its end, in whichever process."""
    advance([run], data, told)
    run.statistics = {}  # nobody looks at them any more
    return run


def _side_by_side(
    gen: Any,
    data: Rows | StreamedRows,
    how: tuple[int, float, int],
    generator: torch.Generator | None,
    progress: Progress,
) -> list[EMRun]:
    """Runs of copies of the model, in step with each other; the model is left with the best."""
    max_iter, tol, n_init = how
    runs = [EMRun(copy.deepcopy(gen), max_iter, tol) for _ in range(n_init)]
    for run in runs:
        _start(run, data, generator)
    try:
        if started := [run for run in runs if run.collapse is None]:
            advance(started, data, progress.advance)
    finally:
        found = [run for run in runs if run.history and run.collapse is None]
        if found:
            gen.load_state_dict(_best_run(found).gen.state_dict())
    return runs


@contextmanager
def _left_with(state: dict[str, Any], gen: nn.Module) -> Iterator[None]:
    """Whatever ends the block, it leaves the model with this state, once there is one."""
    try:
        yield
    finally:
        if state:
            gen.load_state_dict(state)


def _start(run: EMRun, data: Rows | StreamedRows, generator: torch.Generator | None) -> None:
    """A start made by the first process, in all of them; a collapse is kept."""
    try:
        with data.together.agreed():
            if data.together.first:
                with frozen_kept(run.gen):
                    data.begin(run.gen, generator)
    except torch.linalg.LinAlgError as error:
        run.collapse = error
    data.together.same_state(run.gen)


@contextmanager
def _explained_collapse(data: Rows | StreamedRows) -> Iterator[None]:
    """Errors of torch's factorizations say in which units the data should be."""
    try:
        yield
    except torch.linalg.LinAlgError as error:
        if str(error).startswith("expected"):
            raise
        raise torch.linalg.LinAlgError(
            f"expected covariances that {data.dtype} can factorize, got some whose entries are "
            "too large or too close to singular; subtract the mean of the data and divide by their "
            "standard deviation, or take float64: gen.double()"
        ) from error


def _check(gen: nn.Module) -> None:
    if not isinstance(gen, SupportsEM):
        raise TypeError(
            f"expected a family with expect, maximize and initialize, got {type(gen).__name__}; "
            "use fit(gen, x)"
        )
