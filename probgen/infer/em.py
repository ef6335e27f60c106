"""Expectation maximization for every family that has an E-step and an M-step."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.keywords import explained
from probgen.core.progress import Progress, Reported, check_progress
from probgen.core.training_record import TrainingRecord, keep_record, versions
from probgen.core.turns import offer, training
from probgen.infer.em_data import Rows, prepared

_ROUNDING = 1e-5  # relative; sums over rows in float32 stay below


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
    seed: int | None = None,
    progress: Reported = None,
) -> EMResult:
    r"""Fits a family in place by expectation maximization.

    Each step raises the log-likelihood, without a step size.

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
        starts once from the present parameters.
    max_rows : int, optional
        Rows handled at a time, which bounds memory; the result depends on it by rounding only.
        Default: as many as have four million elements.
    seed : int, optional
        Makes the starts repeatable; by default they draw from torch's global generator.
    progress : bool, float or None
        Log-likelihood, rate and time left: in one line that is renewed where there is a terminal;
        elsewhere nothing,
        with ``True`` a line every 30 seconds, with a number one every so many. ``False``: nothing.

    Raises
    ------
    ValueError
        If ``x`` is empty, infinite, outside of the family's support, not of its shape and dtype, or
        does not determine the parameters.
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
    check_progress(progress)
    slopes = 0.0
    if inside := getattr(gen, "inside", None):  # rows as the family of a table takes them
        gen, x, slopes = inside(x, weights)
    _check(gen)
    data = prepared(gen, x, weights, labels, max_rows)
    total = max(1, n_init) * max_iter
    shown = Progress("em", total, "iterations", asked=progress, bound=True)
    with training(gen), _explained_collapse(data), shown:
        result = (
            _run(gen, data, max_iter, tol, shown)
            if n_init == 0
            else _best_of(gen, data, max_iter, tol, n_init, seed, shown)
        )
    if not result.converged and tol > 0 and max_iter > 0:
        warnings.warn(
            f"EM stopped after {max_iter} iterations while one more still gained {result.gain:.3g} "
            f"nats a row, more than tol = {tol:g}; give a larger max_iter, or a larger tol",
            RuntimeWarning,
            stacklevel=4,  # torch.no_grad stands in between
        )
    if slopes:
        result = replace(result, log_likelihood=result.log_likelihood + slopes)
    asked = {"max_iter": max_iter, "tol": float(tol), "n_init": n_init}
    keep_record(outer, _record(result, data.total, asked, time.perf_counter() - began))
    return result


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


def _best_of(
    gen: Any,
    data: Rows,
    max_iter: int,
    tol: float,
    n_init: int,
    seed: int | None,
    progress: Progress,
) -> EMResult:
    """Runs from several starts, of which the best is kept.

    Ctrl-C ends the search with the best so far; anything else that ends it leaves the best as well.
    """
    generator = None if seed is None else torch.Generator().manual_seed(int(seed))
    best = None
    best_state: dict[str, Any] = {}
    collapse: torch.linalg.LinAlgError | None = None
    with _left_with(best_state, gen):
        for start in range(n_init):
            progress.skip(start * max_iter)
            try:
                _start(gen, data, generator)
                result = _run(gen, data, max_iter, tol, progress)
            except torch.linalg.LinAlgError as error:
                collapse = error
                continue
            except KeyboardInterrupt:
                if best is None:
                    raise
                warnings.warn(
                    f"interrupted in start {start + 1} of {n_init}; the best before it is kept",
                    stacklevel=5,
                )
                break
            if best is None or result.log_likelihood[-1] > best.log_likelihood[-1]:
                best = result
                best_state |= copy.deepcopy(gen.state_dict())
    if best is None:
        assert collapse is not None
        raise collapse
    return best


@contextmanager
def _left_with(state: dict[str, Any], gen: nn.Module) -> Iterator[None]:
    """Whatever ends the block, it leaves the model with this state, once there is one."""
    try:
        yield
    finally:
        if state:
            gen.load_state_dict(state)


def _start(gen: Any, data: Rows, generator: torch.Generator | None) -> None:
    with _frozen_kept(gen):
        gen.initialize(data.x, generator, **data.given)


def _run(gen: Any, data: Rows, max_iter: int, tol: float, progress: Progress) -> EMResult:
    """E- and M-steps from the present parameters.

    It ends on an E-step, so the last value is that of the result.
    """
    value, statistics = _expect(gen, data)
    history = [value]
    gain = math.nan
    converged = False
    warned = False
    while len(history) <= max_iter and not converged:
        before = _penalty(gen, statistics, data)
        with _frozen_kept(gen):
            gen.maximize(statistics)
        change = _penalty(gen, statistics, data) - before
        value, statistics = _expect(gen, data)
        history.append(value)
        progress.advance(1, lambda: f"log-likelihood {history[-1]:.4g} nats a row")
        offer()
        gain = history[-1] - history[-2] - change
        converged = abs(gain) < tol
        warned = warned or _warn_if_lower(gain, history, tol, data.x.dtype)
    return EMResult(torch.tensor(history, dtype=torch.float64), converged, gain)


@contextmanager
def _explained_collapse(data: Rows) -> Iterator[None]:
    """Errors of torch's factorizations say in which units the data should be."""
    try:
        yield
    except torch.linalg.LinAlgError as error:
        if str(error).startswith("expected"):
            raise
        raise torch.linalg.LinAlgError(
            f"expected covariances that {data.x.dtype} can factorize, got some whose entries are "
            "too large or too close to singular; subtract the mean of the data and divide by their "
            "standard deviation, or take float64: gen.double()"
        ) from error


@contextmanager
def _frozen_kept(gen: nn.Module) -> Iterator[None]:
    """Parameters that do not train leave the block with the values that they had.

    Whatever a family does.
    """
    kept = [
        (parameter, parameter.clone())
        for parameter in gen.parameters()
        if not parameter.requires_grad
    ]
    try:
        yield
    finally:
        for parameter, value in kept:
            parameter.copy_(value)


def _penalty(gen: Any, statistics: dict[str, Tensor], data: Rows) -> float:
    """What the M-step subtracts from the mean log-likelihood of a row.

    Under the present parameters.
    """
    penalty = getattr(gen, "penalty", None)
    return 0.0 if penalty is None else float(penalty(statistics)) / data.total


def _expect(gen: Any, data: Rows) -> tuple[float, dict[str, Tensor]]:
    """The E-step over all rows, block by block, summed in float64.

    Mean log-likelihood and total statistics.
    """
    total: Any = 0.0
    statistics: dict[str, Tensor] = {}
    for rows, known in data.blocks(next(gen.parameters()).device):
        value, parts = gen.expect(rows, **known)
        total = total + value.double()
        for name, part in parts.items():
            statistics[name] = (
                statistics[name].add_(part)
                if name in statistics
                else part.to(torch.float64, copy=True)
            )
    mean = (total / data.total).item()
    if mean == -math.inf:
        raise torch.linalg.LinAlgError(
            "expected rows of positive probability, got impossible ones under the parameters that "
            "EM started from; "
            "allow what they observe (no zeros in tables or transitions), or remove these rows"
        )
    if not math.isfinite(mean):
        raise torch.linalg.LinAlgError(
            f"expected a finite log-likelihood, got {mean}: a component collapsed, or values are "
            "too large for "
            f"{data.x.dtype}; use several starts (n_init), regularization, standardized data or "
            "float64"
        )
    return mean, statistics


def _warn_if_lower(gain: float, history: list[float], tol: float, dtype: torch.dtype) -> bool:
    if gain >= -tol - _ROUNDING * max(1.0, abs(history[-1])):
        return False
    rounding = (
        ""
        if dtype == torch.float64
        else f"most often the rounding of {dtype}: try float64; or else "
    )
    warnings.warn(
        f"the mean log-likelihood fell by {-gain:.3g} nats at step {len(history) - 1}: "
        f"{rounding}this M-step does not "
        "maximize what the E-step measures, the family's maximize and expect disagree",
        RuntimeWarning,
        stacklevel=6,
    )
    return True


def _check(gen: nn.Module) -> None:
    if not isinstance(gen, SupportsEM):
        raise TypeError(
            f"expected a family with expect, maximize and initialize, got {type(gen).__name__}; "
            "use fit(gen, x)"
        )
