"""One matrix product a step, along sequences.

What a pass of the forward-backward algorithm repeats.
"""

from __future__ import annotations

import math
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor

_LONG = 512  # steps
_SMALL = (
    2**17
)  # multiplications that take less time than it takes to start the operations of a step


class Passed(NamedTuple):
    """A pass over n steps.

    ``M a`` before each observation and ``a`` after it, ``(n, K, R)``; scales ``(n, R)``.
    """

    prior: Tensor
    states: Tensor
    scale: Tensor


def scan(start: Tensor, matrix: Tensor, factors: Tensor) -> Passed:
    r"""The recursion :math:`a_t = b_t \circ (M_t a_{t-1}) / c_t`.

    Where :math:`c_t` makes the sum of a 1.

    Long passes of few sequences are cut into pieces that run side by side, from starts that
    products of matrices give.

    Parameters
    ----------
    start : Tensor
        ``(K, R)``, sums to 1.
    matrix : Tensor
        ``(S, Q, K, K)``, S = 1 or n, Q = 1 or R, as in :mod:`.forward_backward`.
    factors : Tensor
        b of each step ``(n, K, R)``.
    """
    steps, states, rows = factors.shape
    if steps < _LONG or matrix.shape[:2] != (1, 1) or rows * states**3 > _SMALL:
        return _steps(start, matrix, factors)
    length = math.isqrt(steps)
    whole = steps // length * length
    pieces = (
        factors[:whole].unflatten(0, (-1, length)).permute(1, 2, 0, 3).contiguous()
    )  # (L, K, C, R)
    starts = _starts(start, *_products(matrix[0, 0], pieces))
    inside = _steps(starts[:, :-1].flatten(1), matrix, pieces.flatten(2))
    last = _steps(starts[:, -1], matrix, factors[whole:])
    return Passed(*(torch.cat(parts) for parts in zip(_in_order(inside, rows), last, strict=True)))


def _steps(start: Tensor, matrix: Tensor, factors: Tensor) -> Passed:
    """One step after the other.

    Loops over views made beforehand, as indexing costs as much as the operations.
    """
    passed = Passed(
        torch.empty_like(factors), torch.empty_like(factors), factors[:, 0].contiguous()
    )
    outs = zip(factors.unbind(0), *(part.unbind(0) for part in passed), strict=True)
    each = iter(matrix.unbind(0)) if len(matrix) > 1 else repeat(matrix[0])
    for factor, prior, state, scale in outs:
        _multiply(next(each), start, out=prior)
        torch.mul(prior, factor, out=state)
        torch.sum(state, 0, out=scale)
        start = state.div_(scale)
    return passed


def _multiply(matrix: Tensor, state: Tensor, out: Tensor) -> None:
    """``(Q, K, K), (K, R) -> (K, R)``."""
    if len(matrix) == 1:
        torch.mm(matrix[0], state, out=out)
    else:
        out.copy_(torch.bmm(matrix, state.mT[..., None])[..., 0].mT)


def _products(matrix: Tensor, pieces: Tensor) -> tuple[Tensor, Tensor]:
    """Products of the matrices of each piece, column by column, each divided by its sum.

    ``(K, K, C, R)``, and logs.
    """
    count = len(matrix)
    current = matrix[:, :, None, None] * pieces[0][:, None]
    log_scale: Tensor | float = 0.0
    for factor in pieces[1:]:
        scale = current.sum(0)
        log_scale = log_scale + scale.double().log()
        current = (matrix @ (current / scale).flatten(1)).unflatten(
            1, (count, *factor.shape[1:])
        ) * factor[:, None]
    scale = current.sum(0)
    return current / scale, log_scale + scale.double().log()


def _starts(start: Tensor, products: Tensor, log_scale: Tensor) -> Tensor:
    """Where each piece starts, and where the last one ends: ``(K, C + 1, R)``."""
    weights = (log_scale - log_scale.amax(0)).exp().to(start)
    starts = [start]
    for product, weight in zip(products.unbind(2), weights.unbind(1), strict=True):
        current = (product * (weight * starts[-1])).sum(1)
        starts.append(current / current.sum(0))
    return torch.stack(starts, 1)


def _in_order(inside: Passed, rows: int) -> Passed:
    """Steps of pieces side by side, one after the other: ``(L, K, C R) -> (C L, K, R)``."""
    prior, states = (
        part.unflatten(-1, (-1, rows)).permute(2, 0, 1, 3).flatten(0, 1) for part in inside[:2]
    )
    return Passed(
        prior, states, inside.scale.unflatten(-1, (-1, rows)).transpose(0, 1).flatten(0, 1)
    )
