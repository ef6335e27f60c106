r"""Moments of the components of a Gaussian mixture under the posterior of the component.

What the E-step of EM needs.

With posteriors :math:`r_{kb} = p(k \mid x_b)` these are, for each component, the expected number of
rows :math:`\sum_b r_{kb}`, the first moment :math:`\sum_b r_{kb} (x_b - \mu_k)` and the scatter
:math:`\sum_b r_{kb} (x_b - \mu_k)(x_b - \mu_k)^\top`, about the present means and in float64. Three
ways of summing:

* ``Quadratic``: log-densities and moments are linear in products of variables, two matrix products
  in all; loses the digits of (distance / scale) squared, so it is used where this leaves most of
  them.
* ``Whitened``: in the coordinates of each component, which loses none; twice the arithmetic.
* ``RowsOfPattern``: rows with the same missing entries, by conditional moments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from probgen.core.missing import has_missing
from probgen.core.threads import one_core, side_by_side
from probgen.distributions.mixture_steps import (
    MixtureParameters,
    Quadratic,
    RowsOfPattern,
    Whitened,
)

_WIDEST = (
    4096  # features of a row beyond which a block of rows holds too few of them for matrix products
)
_FEWEST = 4096  # rows that are worth a thread


@torch.no_grad()
def moments(
    x: Tensor, mixture: MixtureParameters, weights: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-likelihood of rows ``(n, D)``, NaN = missing, summed.

    And their moments about the present means.

    Weights ``(n,)`` say how often each row counts.

    The moments are ``rows`` (K,), ``first`` (K, D), ``scatter`` in the shape of the covariance's
    form, and ``noise`` (K, D), the rounding in the scatter's diagonal.
    """
    total: Any = 0.0
    sums: dict[str, Tensor] = {}
    with one_core() as cores:
        for step, pieces, index in _steps(x, mixture, cores):
            own = (
                [None] * len(pieces)
                if weights is None
                else weights[index].split([len(piece) for piece in pieces])
            )
            value, *raw = _added(partial(_sum, step), zip(pieces, own, strict=True))
            total = total + value
            _add(sums, step.finish(*raw))
    return total, sums


def _added(function: Callable, pieces: Iterable) -> tuple:
    return tuple(map(sum, zip(*side_by_side(function, pieces), strict=True)))


def _add(sums: dict[str, Tensor], parts: tuple[Tensor, ...]) -> None:
    for name, part in zip(("rows", "first", "scatter", "noise"), parts, strict=True):
        sums[name] = sums.get(name, 0.0) + part


@torch.no_grad()
def weighted_moments(x: Tensor, weights: Tensor, mixture: MixtureParameters) -> dict[str, Tensor]:
    """The same moments under given weights of each component, ``(K, n)``.

    In place of the posteriors of the mixture.
    """
    sums: dict[str, Tensor] = {}
    with one_core() as cores:
        for step, pieces, index in _steps(x, mixture, cores):
            parts = weights[:, index].split([len(piece) for piece in pieces], -1)
            _add(
                sums,
                step.finish(*_added(partial(_sum_weighted, step), zip(pieces, parts, strict=True))),
            )
    return sums


def log_joint(x: Tensor, mixture: MixtureParameters) -> Tensor:
    r""":math:`\log p(k, x_b)` of rows: ``(n, D) -> (n, K)``; NaN = missing."""
    out = x.new_empty(len(x), len(mixture.means))
    return _filled(out, x, mixture, lambda joint: joint.mT.clone())


def log_marginal(x: Tensor, mixture: MixtureParameters) -> Tensor:
    r""":math:`\log p(x_b) = \log \sum_k p(k, x_b)` of rows: ``(n, D) -> (n,)``; NaN = missing."""
    return _filled(x.new_empty(len(x)), x, mixture, lambda joint: _shares(joint)[0])


@torch.no_grad()
def _filled(
    out: Tensor, x: Tensor, mixture: MixtureParameters, of_joint: Callable[[Tensor], Tensor]
) -> Tensor:
    """``out`` with what is made of the joint densities of all rows."""
    with one_core() as cores:
        for step, pieces, index in _steps(x, mixture, cores):
            parts = side_by_side(partial(_evaluate, step, of_joint), pieces)
            out[index] = torch.cat(parts).to(x.dtype)
    return out


def _sum(
    step: Quadratic | Whitened | RowsOfPattern, rows: tuple[Tensor, Tensor | None]
) -> tuple[Tensor | float, ...]:
    """Log-likelihood and raw moments of rows and, if given, their weights ``(n,)``, in float64."""
    totals: tuple[Tensor | float, ...] = (0.0, 0.0, 0.0, 0.0)
    blocks = _blocks(rows[0], step.block)
    buffers = step.buffers(len(blocks[0]))
    weights = [None] * len(blocks) if rows[1] is None else _blocks(rows[1], step.block)
    for block, weight in zip(blocks, weights, strict=True):
        joint, work = step.joint(block, buffers)
        value, posterior = _normalize(joint)
        if weight is not None:
            value = value * weight
            posterior = posterior.mul_(weight)
        parts = (value.sum(dtype=torch.float64), posterior.sum(1), *step.sums(posterior, *work))
        totals = tuple(old + part.double() for old, part in zip(totals, parts, strict=True))
    return totals


def _sum_weighted(
    step: Quadratic | Whitened | RowsOfPattern, rows: tuple[Tensor, Tensor]
) -> tuple[Tensor | float, ...]:
    """Raw moments of rows under their weights ``(K, n)``, in float64."""
    totals: tuple[Tensor | float, ...] = (0.0, 0.0, 0.0)
    blocks, shares = (_blocks(part, step.block, dim) for dim, part in enumerate(rows))
    buffers = step.buffers(len(blocks[0]))
    for block, weights in zip(blocks, shares, strict=True):
        _, work = step.joint(block, buffers)
        weights = weights.to(work[0].dtype)
        parts = (weights.sum(1), *step.sums(weights, *work))
        totals = tuple(old + part.double() for old, part in zip(totals, parts, strict=True))
    return totals


def _evaluate(
    step: Quadratic | Whitened | RowsOfPattern, of_joint: Callable[[Tensor], Tensor], x: Tensor
) -> Tensor:
    """What is made of the log joint densities ``(K, n)`` of each block of rows."""
    blocks = _blocks(x, step.block)
    buffers = step.buffers(len(blocks[0]))
    return torch.cat([of_joint(step.joint(block, buffers)[0]) for block in blocks])


def _blocks(x: Tensor, rows: int, dim: int = 0) -> tuple[Tensor, ...]:
    """Blocks of about equal size, of at most so many rows."""
    count = x.shape[dim]
    return x.split(-(-count // -(-count // rows)), dim)


def _normalize(joint: Tensor) -> tuple[Tensor, Tensor]:
    """Log-likelihoods ``(n,)`` and posteriors ``(K, n)``, the latter in place."""
    value, total = _shares(joint)
    return value, joint.mul_(total.reciprocal_())


def _shares(joint: Tensor) -> tuple[Tensor, Tensor]:
    """Log-likelihoods ``(n,)``, and the sums ``(n,)`` of what is proportional to the posteriors.

    The latter in place, and not below the root of the smallest number: there processors compute
    many times slower, a logarithm of a sum of exponentials, too.
    """
    top = joint.amax(0)
    joint.sub_(top).clamp_(min=0.5 * math.log(torch.finfo(joint.dtype).tiny)).exp_()
    total = joint.sum(0)
    return top + total.log(), total


RowsTerm = tuple["Quadratic | Whitened | RowsOfPattern", tuple[Tensor, ...], slice | Tensor]


def _steps(x: Tensor, mixture: MixtureParameters, cores: int) -> Iterator[RowsTerm]:
    """Ways to sum, each with its rows in pieces that share the work.

    And the places of these rows.
    """
    pieces = _blocks(x, max(_FEWEST, -(-len(x) // cores))) if x.device.type == "cpu" else (x,)
    if not any(side_by_side(has_missing, pieces)):
        yield _best(x, mixture), pieces, slice(None)
        return
    yield from rows_of_patterns(x, mixture)


def rows_of_patterns(x: Tensor, mixture: MixtureParameters) -> Iterator[RowsTerm]:
    """Rows ``(n, D)`` by which of their entries are missing (NaN), with their places."""
    patterns, index = x.isnan().logical_not().unique(dim=0, return_inverse=True)
    members = index.argsort().split(index.bincount(minlength=len(patterns)).tolist())
    tril = mixture.covariance.scale_tril.double()
    sigma = tril @ tril.mT
    for seen, rows in zip(patterns, members, strict=True):
        yield RowsOfPattern(mixture, sigma, seen), (x[rows],), rows


def _best(x: Tensor, mixture: MixtureParameters) -> Quadratic | Whitened:
    """The fastest way that leaves three fifths of the digits of a log density."""
    if mixture.covariance.width <= _WIDEST:
        step = Quadratic(mixture, x.dtype)
        magnitude = step.magnitude()
        for dtype in (x.dtype, torch.float64):
            if magnitude < torch.finfo(dtype).eps ** -0.4:
                return step if dtype == x.dtype else Quadratic(mixture, dtype)
    return Whitened(mixture, x.dtype)
