"""One seed for all that a call draws; the random state outside of it stays as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

from probgen.core import checks
from probgen.core.turns import own_random_state

Seed = int | torch.Generator | None


@contextmanager
def seeded(seed: Seed) -> Iterator[None]:
    """Draws inside the block follow from a seed, and leave torch's random state as it was.

    Parameters
    ----------
    seed : int, torch.Generator or None
        A number: the same block gives the same draws, whatever was drawn before. A generator, on
        any device: it gives the number, and goes on by one draw. ``None``: the block draws from
        torch's own random state.

    Raises
    ------
    TypeError, ValueError
        For anything else, and for negative numbers.

    >>> with seeded(3):
    ...     first = torch.randn(2)
    >>> with seeded(3):
    ...     print(torch.equal(torch.randn(2), first))
    True
    """
    if seed is None:
        yield
        return
    with own_random_state(_number(seed)):
        yield


def takes_seed(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that draws, with an argument ``seed``: it runs in :func:`seeded`.

    A decorator.

    >>> @takes_seed
    ... def noise(n, *, seed=None):
    ...     return torch.randn(n)
    >>> torch.equal(noise(2, seed=1), noise(2, seed=1))
    True
    """

    @wraps(function)
    def drawing(*arguments: Any, seed: Seed = None, **options: Any) -> Any:
        with seeded(seed):
            return function(*arguments, **options)

    return drawing


def _number(seed: int | torch.Generator) -> int:
    if isinstance(seed, torch.Generator):
        return int(torch.randint(2**62, (), generator=seed, device=seed.device))
    checks.is_seed(seed=seed)
    return int(seed)
