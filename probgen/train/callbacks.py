"""What is called between steps, after each of them or now and then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from probgen.core import checks
from probgen.core.turns import lent

if TYPE_CHECKING:
    from probgen.train.run import Run

Callback = Callable[["Run"], Any]


@dataclass(frozen=True)
class Every:
    """A callback of :func:`probgen.fit` that is called after every so many steps.

    It may read everything and set ``run.stop``, and changes nothing else: the steps in between stay
    compiled, where a function given as it is makes ``fit`` run one step at a time.

    Parameters
    ----------
    steps : int
        Steps from one call to the next.
    function : callable
        Gets the :class:`Run`.

    Raises
    ------
    TypeError, ValueError
        For steps that are no whole number above zero, and what cannot be called.

    >>> import torch
    >>> from probgen.heads import Gaussian
    >>> from probgen.nn import Constant
    >>> from probgen.train.fit import fit
    >>> seen = []
    >>> note = Every(20, lambda run: seen.append(run.step))
    >>> _ = fit(Gaussian(Constant(2)), torch.randn(9, 1), steps=50, callbacks=[note], verdict=False)
    >>> seen
    [20, 40]
    """

    steps: int
    function: Callback

    def __post_init__(self) -> None:
        checks.at_least(1, steps=self.steps)
        checks.function("pass a function of the run: lambda run: ...", function=self.function)

    def __call__(self, run: Run) -> None:
        self.function(run)


def each_step(callbacks: Sequence[Callback]) -> bool:
    """Whether some of them are to be called after every step."""
    return any(not isinstance(callback, Every) for callback in callbacks)


def steps_before(callbacks: Sequence[Callback], step: int) -> list[int]:
    """How many steps can be made before each of them is due."""
    return [
        callback.steps - step % callback.steps if isinstance(callback, Every) else 1
        for callback in callbacks
    ]


def call_due(callbacks: Sequence[Callback], run: Run) -> None:
    """Calls those that are due after a step."""
    for callback in callbacks:
        if isinstance(callback, Every) and run.step % callback.steps:
            continue
        with lent():  # it may wait for threads that use probgen
            callback(run)
