"""Values of another precision than a distribution's own, refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor

TRIED = {torch.float32: "x.float()", torch.float64: "x.double()"}
TURNED = {torch.float32: "gen.float()", torch.float64: "gen.double()"}


def of_own_precision(log_prob: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A ``log_prob`` that names the precision it expects, in place of torch's own error.

    Raises
    ------
    ValueError
        If values are of another type than the parameters, and networks or matrix products do not
        mix the two.

    >>> @of_own_precision
    ... def log_prob(self, x):
    ...     return x @ torch.ones(2, 1)
    >>> log_prob(None, torch.zeros(3, 2, dtype=torch.float64))
    Traceback (most recent call last):
        ...
    ValueError: expected x of torch.float32, the type of the parameters, got torch.float64; give x.float(), ...
    """

    @wraps(log_prob)
    def scored(self: Any, *args: Any, **options: Any) -> Tensor:
        try:
            return log_prob(self, *args, **options)
        except RuntimeError as error:
            x: Any = next(iter((*args, *options.values())), None)
            own = _own(partial(log_prob, self), x)
            if own is None:
                raise
            turn = f", or turn the model: {TURNED[x.dtype]}" if x.dtype in TURNED else ""
            raise ValueError(
                f"expected x of {own}, the type of the parameters, got {x.dtype}; give "
                f"{TRIED[own]}{turn}"
            ) from error

    return scored


@torch.no_grad()
def _own(log_prob: Callable[[Tensor], Tensor], x: Any) -> torch.dtype | None:
    """The type in which values are scored that are not in their own; ``None`` where in none."""
    if not isinstance(x, Tensor) or _scores(log_prob, x):  # a gradient is what could not be had
        return None
    others = (dtype for dtype in TRIED if dtype != x.dtype)
    return next((dtype for dtype in others if _scores(log_prob, x.to(dtype))), None)


def _scores(log_prob: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    try:
        log_prob(x)
    except (RuntimeError, ValueError):
        return False
    return True
