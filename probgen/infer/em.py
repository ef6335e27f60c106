"""Expectation maximisation for every family that has an E-step and an M-step."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

_ROUNDING = 1e-5  # relative; sums over rows in float32 stay below


@runtime_checkable
class SupportsEM(Protocol):
    r"""What a family offers to :func:`em`: two methods, and a third that finds a start.

    With complete-data log-likelihood :math:`\log p_\theta(x, z)`, one step of EM is

    .. math:: \theta' = \arg\max_{\theta'} \sum_b E_{p_\theta(z \mid x_b)} \log p_{\theta'}(x_b, z)

    and the sum enters through sufficient statistics that add over rows.
    """

    def expect(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        r"""E-step on some of the rows: the log-likelihood and the expected sufficient statistics, summed over them.

        Both must add over chunks of rows: ``expect(x)`` equals ``expect(x[:n])`` plus ``expect(x[n:])``. :func:`em`
        adds them up in float64. The number of rows is a statistic like any other: return it if ``maximise`` needs it.
        Called under ``torch.no_grad``.

        Parameters
        ----------
        x : Tensor
            Rows ``(n, *event)``; NaN = missing (a family that cannot marginalise raises ``ValueError``).

        Returns
        -------
        (Tensor, dict of Tensor)
            :math:`\sum_b \log p_\theta(x_b)` in nats, a scalar; and tensors of any shapes.
        """

    def maximise(self, statistics: dict[str, Tensor]) -> None:
        """M-step: sets the parameters, in place, to the maximiser given the statistics of all rows (in float64).

        The parameters still have the values under which ``expect`` computed the statistics, so these may be relative
        to them (whitened or centred by them, say), which keeps digits.

        Raises
        ------
        ValueError
            If the data cannot determine the parameters, however EM starts (fewer rows than components, say).
        torch.linalg.LinAlgError
            If this run collapsed (an empty component, a singular covariance); another start may do better.
        """

    def initialise(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Sets the parameters, in place, to a start suited to ``x`` of shape ``(N, *event)``; raises like ``maximise``.

        Random starts draw from ``generator`` (the global one when ``None``), so that each of ``n_init`` differs.
        """


@dataclass(frozen=True)
class EMResult:
    """How a run of EM went.

    Attributes
    ----------
    log_likelihood : Tensor
        Mean log-likelihood of a row in nats, float64, at the start and after each step: ``(steps + 1,)``.
    converged : bool
        Whether the last step gained less than ``tol``.
    """

    log_likelihood: Tensor
    converged: bool

    @property
    def steps(self) -> int:
        """Number of M-steps taken."""
        return len(self.log_likelihood) - 1


@torch.no_grad()
def em(
    gen: nn.Module,
    x: Tensor,
    *,
    steps: int = 200,
    tol: float = 1e-4,
    n_init: int = 1,
    chunk: int | None = None,
    seed: int | None = None,
) -> EMResult:
    r"""Fits a family in place by expectation maximisation: each step raises the log-likelihood, without a step size.

    Parameters
    ----------
    gen : nn.Module
        A family with the methods of :class:`SupportsEM`.
    x : Tensor
        Data ``(N, *event)`` of the parameters' dtype; NaN = missing, where the family marginalises it. It may lie on
        another device than the parameters: chunks are moved.
    steps : int
        Largest number of steps.
    tol : float
        Stop when the mean log-likelihood of a row gains less than this, in nats.
    n_init : int
        Number of starts made by ``gen.initialise``, of which the one that ends best is kept; 0 starts once from the
        present parameters.
    chunk : int, optional
        Rows handled at a time, which bounds memory; the result depends on it by rounding only. Default: as many as make
        four million numbers.
    seed : int, optional
        Makes the starts repeatable; by default they draw from torch's global generator.

    Raises
    ------
    ValueError
        If ``x`` is empty, infinite, not of the family's shape and dtype, or does not determine the parameters.
    torch.linalg.LinAlgError
        If every run collapsed.

    Warns
    -----
    RuntimeWarning
        If a step lowered the log-likelihood by more than ``tol`` and rounding, which an exact M-step cannot do.

    References
    ----------
    Dempster, Laird, Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm,
    https://doi.org/10.1111/j.2517-6161.1977.tb01600.x

    >>> from probgen.models.mixture import GaussianMixture
    >>> x = torch.cat([torch.randn(60, 2), torch.randn(40, 2) + 20])
    >>> result = em(GaussianMixture(components=2, dims=2), x, seed=0)
    >>> result.converged, result.log_likelihood.shape == (result.steps + 1,)
    (True, True)
    """
    chunk = max(1, 2**22 // max(1, x[:1].numel())) if chunk is None else chunk
    _check(gen, x, steps, n_init, chunk)
    if n_init == 0:
        return _run(gen, x, steps, tol, chunk)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    best, best_state, collapse = None, {}, None
    for _ in range(n_init):
        try:
            gen.initialise(x, generator)
            result = _run(gen, x, steps, tol, chunk)
        except torch.linalg.LinAlgError as error:
            collapse = error
            continue
        if best is None or result.log_likelihood[-1] > best.log_likelihood[-1]:
            best, best_state = result, copy.deepcopy(gen.state_dict())
    if best is None:
        raise collapse
    gen.load_state_dict(best_state)
    return best


def _run(gen: nn.Module, x: Tensor, steps: int, tol: float, chunk: int) -> EMResult:
    """E- and M-steps from the present parameters; it ends on an E-step, so the last value is that of the result."""
    value, statistics = _expect(gen, x, chunk)
    history, converged, warned = [value], False, False
    while len(history) <= steps and not converged:
        gen.maximise(statistics)
        value, statistics = _expect(gen, x, chunk)
        history.append(value)
        gain = history[-1] - history[-2]
        converged, warned = abs(gain) < tol, warned or _warn_if_lower(gain, history, tol)
    return EMResult(torch.tensor(history, dtype=torch.float64), converged)


def _expect(gen: nn.Module, x: Tensor, chunk: int) -> tuple[float, dict[str, Tensor]]:
    """The E-step over all rows, chunk by chunk, summed in float64: mean log-likelihood and total statistics."""
    device = next(gen.parameters()).device
    total, statistics = 0.0, {}
    for rows in x.split(chunk):
        value, parts = gen.expect(rows.to(device))
        total = total + value.double()
        for name, part in parts.items():
            statistics[name] = statistics[name].add_(part) if name in statistics else part.to(torch.float64, copy=True)
    mean = (total / len(x)).item()
    if not math.isfinite(mean):
        raise torch.linalg.LinAlgError(
            f"expected a finite log-likelihood, got {mean}: a component collapsed, or values are too large for "
            f"{x.dtype}; use several starts (n_init), regularisation, standardised data or float64"
        )
    return mean, statistics


def _warn_if_lower(gain: float, history: list[float], tol: float) -> bool:
    if gain >= -tol - _ROUNDING * max(1.0, abs(history[-1])):
        return False
    warnings.warn(
        f"the mean log-likelihood fell by {-gain:.3g} nats at step {len(history) - 1}: this M-step does not maximise "
        "what the E-step measures; either the family regularises (less regularisation brings it closer to maximum "
        "likelihood) or its maximise and expect disagree",
        RuntimeWarning,
        stacklevel=5,
    )
    return True


def _check(gen: nn.Module, x: Tensor, steps: int, n_init: int, chunk: int) -> None:
    if not isinstance(gen, SupportsEM):
        raise TypeError(
            f"expected a family with expect, maximise and initialise, got {type(gen).__name__}; use fit(gen, x)"
        )
    if steps < 0 or n_init < 0 or chunk < 1:
        raise ValueError(f"expected steps >= 0, n_init >= 0, chunk >= 1, got {steps=}, {n_init=}, {chunk=}")
    dtype, event = next(gen.parameters()).dtype, tuple(gen().event_shape)
    if x.dtype != dtype:
        raise ValueError(f"expected x of the parameters' {dtype}, got {x.dtype}; use x.to({dtype}), or convert gen")
    if x.ndim != 1 + len(event) or tuple(x.shape[1:]) != event:
        raise ValueError(
            f"expected x of shape (N, {', '.join(map(str, event))}), got {tuple(x.shape)}; one row a datum"
        )
    if len(x) < 2 and (len(event) < 2 or not len(x)):  # one long sequence is data enough
        raise ValueError(f"expected at least two rows, got x of shape {tuple(x.shape)}; give more data")
    if x.isinf().any():
        raise ValueError("expected finite values (NaN = missing), got infinities in x; remove or clip these rows")
