"""Runs of expectation maximization: E- and M-steps from one start, or from several side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from probgen.core.together import Together
from probgen.core.turns import offer

_ROUNDING = 1e-5  # relative; sums over rows in float32 stay below


class Data(Protocol):
    """Rows as EM reads them: in blocks, as often as it wants, each process its own part."""

    @property
    def together(self) -> Together:
        """The processes that share the rows."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows."""

    @property
    def total(self) -> float:
        """Number of rows of all processes, each as often as its weight says."""

    def blocks(self, device: torch.device) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Arguments of ``expect`` for the rows of this process."""


class Sums:
    """A log-likelihood and statistics that add up over blocks of rows, in float64."""

    def __init__(self) -> None:
        self.value: Any = 0.0
        self.statistics: dict[str, Tensor] = {}

    def add(self, value: Tensor, parts: dict[str, Tensor]) -> None:
        """Adds what one block gives."""
        self.value = self.value + value.double()
        for name, part in parts.items():
            if name in self.statistics:
                self.statistics[name].add_(part)
            else:
                self.statistics[name] = part.to(torch.float64, copy=True)

    @property
    def layout(self) -> dict[str, torch.Size] | None:
        """Names and shapes of the statistics; ``None`` where there were no rows."""
        if not self.statistics:
            return None
        return {name: part.shape for name, part in self.statistics.items()}

    def over(self, together: Together, layout: dict[str, torch.Size] | None) -> Sums:
        """The sums of all processes."""
        if together.world == 1:
            return self
        own = {} if not self.statistics else {_VALUE: self.value, **self.statistics}
        found = together.sums(own, {_VALUE: torch.Size(()), **(layout or {})})
        whole = Sums()
        whole.value = found.pop(_VALUE)
        whole.statistics = found
        return whole


_VALUE = "log-likelihood"  # no statistic of a family has a name with a hyphen


@dataclass
class EMRun:
    """EM from one start.

    Attributes
    ----------
    gen : nn.Module
        The family, whose parameters move.
    history : list of float
        Mean log-likelihoods of a row, after each E-step.
    gain : float
        What the last step gained, less what its penalty grew.
    collapse : torch.linalg.LinAlgError, optional
        Why this run came to nothing.
    fell : str, optional
        What to warn of, where a step lowered what it should raise.
    """

    gen: Any
    max_iter: int
    tol: float
    history: list[float] = field(default_factory=list)
    gain: float = math.nan
    converged: bool = False
    collapse: torch.linalg.LinAlgError | None = None
    fell: str | None = None
    statistics: dict[str, Tensor] = field(default_factory=dict)
    change: float = 0.0  # of the penalty, in the last M-step

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        done = self.converged or len(self.history) > self.max_iter
        return done or self.collapse is not None

    def maximize(self, total: float) -> None:
        """An M-step; a collapse is kept."""
        before = self._penalty(total)
        try:
            with frozen_kept(self.gen):
                self.gen.maximize(self.statistics)
            self.change = self._penalty(total) - before
        except torch.linalg.LinAlgError as error:
            self.collapse = error

    def _penalty(self, total: float) -> float:
        """What the M-step subtracts from the mean log-likelihood of a row.

        Under the present parameters.
        """
        penalty = getattr(self.gen, "penalty", None)
        return 0.0 if penalty is None else float(penalty(self.statistics)) / total

    def take(self, sums: Sums, data: Data) -> None:
        """Goes on with what an E-step over all rows found."""
        mean = float(sums.value / data.total)
        self.collapse = _what_is_wrong(mean, data.dtype)
        self.statistics = sums.statistics
        if self.collapse is not None:
            return
        self.history.append(mean)
        if len(self.history) > 1:
            self.gain = self.history[-1] - self.history[-2] - self.change
            self.converged = abs(self.gain) < self.tol
            self.fell = self.fell or self._fall(data.dtype)

    def _fall(self, dtype: torch.dtype) -> str | None:
        if self.gain >= -self.tol - _ROUNDING * max(1.0, abs(self.history[-1])):
            return None
        rounding = (
            ""
            if dtype == torch.float64
            else f"most often the rounding of {dtype}: try float64; or else "
        )
        return (
            f"the mean log-likelihood fell by {-self.gain:.3g} nats at step "
            f"{len(self.history) - 1}: {rounding}this M-step does not "
            "maximize what the E-step measures, the family's maximize and expect disagree"
        )


def advance(runs: Sequence[EMRun], data: Data, told: Callable[..., Any]) -> None:
    """E- and M-steps of all runs until each is over; one pass over the rows serves all of them.

    It ends on an E-step, so that the last value is that of the result.
    """
    _expect(runs, data)
    while active := [run for run in runs if not run.over]:
        for run in active:
            run.maximize(data.total)
        _expect(active, data)
        told(len(active), partial(_said, active))
        offer()


def _said(runs: Sequence[EMRun]) -> str:
    best = max((run.history[-1] for run in runs if run.history), default=math.nan)
    return f"log-likelihood {best:.4g} nats a row"


def _expect(runs: Sequence[EMRun], data: Data) -> None:
    """The E-step over all rows, block by block, summed in float64."""
    device = next(runs[0].gen.parameters()).device
    sums = [Sums() for _ in runs]
    with data.together.agreed():
        for rows, known in data.blocks(device):
            for run, each in zip(runs, sums, strict=True):
                _add(run, each, rows, known)
    _agree(runs, data.together)
    alive = [pair for pair in zip(runs, sums, strict=True) if pair[0].collapse is None]
    layouts = data.together.gather([each.layout for _, each in alive])
    for number, (run, each) in enumerate(alive):
        layout = next((own[number] for own in layouts if own[number] is not None), None)
        run.take(each.over(data.together, layout), data)
    _stop_together(runs, data.together)


def _add(run: EMRun, sums: Sums, rows: Tensor, known: dict[str, Tensor]) -> None:
    if run.collapse is not None:
        return
    try:
        sums.add(*run.gen.expect(rows, **known))
    except torch.linalg.LinAlgError as error:
        run.collapse = error


def _agree(runs: Sequence[EMRun], together: Together) -> None:
    """A run that collapsed in one process is over in all of them."""
    if together.world == 1:
        return
    told = [None if run.collapse is None else str(run.collapse) for run in runs]
    for own in together.gather(told):
        for run, message in zip(runs, own, strict=True):
            if message is not None and run.collapse is None:
                run.collapse = torch.linalg.LinAlgError(message)


def _stop_together(runs: Sequence[EMRun], together: Together) -> None:
    """The first process says which runs have converged: others may have rounded otherwise."""
    for run, converged in zip(runs, together.share([r.converged for r in runs]), strict=True):
        run.converged = converged


def _what_is_wrong(mean: float, dtype: torch.dtype) -> torch.linalg.LinAlgError | None:
    """Why a mean log-likelihood is none."""
    if math.isfinite(mean):
        return None
    if mean == -math.inf:
        return torch.linalg.LinAlgError(
            "expected rows of positive probability, got impossible ones under the parameters that "
            "EM started from; "
            "allow what they observe (no zeros in tables or transitions), or remove these rows"
        )
    return torch.linalg.LinAlgError(
        f"expected a finite log-likelihood, got {mean}: a component collapsed, or values are "
        f"too large for {dtype}; use several starts (n_init), regularization, standardized data or "
        "float64"
    )


@contextmanager
def frozen_kept(gen: nn.Module) -> Iterator[None]:
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
