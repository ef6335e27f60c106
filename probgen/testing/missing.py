"""Promises about missing values: a family integrates NaN out, or refuses it in words."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.testing.case import Case, ConformanceError, require, require_close, require_finite
from probgen.testing.program import gradients


def integrates(case: Case) -> None:
    """missing values are integrated out, or refused in words."""
    if case.kind == "implicit" or not case.x.is_floating_point() or not case.event:
        return
    complete = case.complete
    x = _holes(complete)
    value = _unless_refused(case, x)
    if value is None:
        return
    require_finite("log_prob of rows with missing values", value)
    if case.kind == "exact":
        full = case.distribution.log_prob(complete)
        require_close(
            "log_prob of a complete row beside incomplete ones",
            value[0],
            full[0],
            "fill only missing values",
        )
        require_close(
            "log_prob of a row without values",
            value[1],
            torch.zeros(()),
            "what is missing adds nothing",
        )
        _check_integral(case, complete)
    gradients(case, x)


def _holes(x: Tensor) -> Tensor:
    """The first row complete, the second empty, the others with half of their entries."""
    hidden = torch.rand_like(x) < 0.5
    hidden[0], hidden[1] = False, True
    return x.masked_fill(hidden, torch.nan)


def _unless_refused(case: Case, x: Tensor) -> Tensor | None:
    try:
        return case.distribution.log_prob(x)
    except (ValueError, NotImplementedError) as error:
        told = any(word in str(error).lower() for word in ("nan", "missing"))
        require(
            told,
            f"NaN in x is refused without saying so ({error}); name NaN in the error, and impute() "
            "as a way",
        )
    return None


def _check_integral(case: Case, complete: Tensor) -> None:
    r"""The density of a row without its first entry is the integral (sum) over that entry.

    .. math:: p(x_2, \dots) = \int p(t, x_2, \dots)\,dt
    """
    grid = _grid(case, complete[:1])
    if grid is None:
        return
    rows = complete[:1].flatten(1).repeat(len(grid), 1)
    rows[:, 0] = grid
    distribution = case.at(slice(1))
    batch = (1,) if case.rows else ()
    step = 1.0 if case.distribution.support.is_discrete else (grid[1] - grid[0]).item()
    total = distribution.log_prob(rows.reshape(-1, *batch, *case.event)).logsumexp(
        0
    ).squeeze() + math.log(step)
    rows[:1, 0] = torch.nan
    missing = distribution.log_prob(rows[:1].reshape(-1, *batch, *case.event)).squeeze()
    if not (total - missing).abs() < 1e-2:
        raise ConformanceError(
            f"expected log_prob {total:g} of a row without its first entry, got {missing:g}"
        )


def _grid(case: Case, row: Tensor) -> Tensor | None:
    """Values of one entry to sum over; None where the support is of another sort."""
    support = case.distribution.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is constraints.boolean:
        return torch.tensor([0.0, 1.0]).to(row)
    if support is constraints.real:
        draws = case.at(slice(1)).sample((200,)).flatten(1)[:, 0]
        center = (draws.mean() + row.flatten()[0]) / 2
        width = 12 * draws.std() + (draws.mean() - row.flatten()[0]).abs()
        return torch.linspace(center - width, center + width, 4001).to(row)
    return None


CHECKS = (integrates,)
