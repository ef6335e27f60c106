"""What data may be that are not one table of rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

from probgen.core.described import shown
from probgen.core.module import GenerativeModel
from probgen.core.program import Program
from probgen.train.rows import Batch

if TYPE_CHECKING:
    from probgen.train.data import Source


class Request(NamedTuple):
    """What a run asks of its data.

    Attributes
    ----------
    gen : GenerativeModel or None
        The model, whose programs take the batches.
    batch_size : int or None
        Rows per step and process, as the user asks.
    seed, rank, world : int
        Of the order of the rows; which process this is, of how many.
    weights
        What ``fit(weights=...)`` was given.
    drop_last : bool
        What ``fit(drop_last=...)`` was given.
    scaled : bool
        Whether the objective multiplies what a row adds by the scales of its sites.
    """

    gen: GenerativeModel | None
    batch_size: int | None = None
    seed: int = 0
    rank: int = 0
    world: int = 1
    weights: Any = None
    drop_last: bool = False
    scaled: bool = True


class DataForm(ABC):
    """Data that say themselves how batches are made of them.

    :func:`probgen.fit` takes one as ``data`` and as ``validation``.
    """

    @abstractmethod
    def source(self, request: Request) -> Source:
        """The stream of batches for one run."""

    def __repr__(self) -> str:
        parts = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return f"{type(self).__name__}({', '.join(f'{k}={shown(v)}' for k, v in parts.items())})"

    @abstractmethod
    def held_out(self, size: int, gen: GenerativeModel | None) -> list[Batch]:
        """The same data for validation: batches in a fixed order, of ``size`` rows at most."""


def refuse_own_rows(request: Request) -> None:
    """Refuses a program that draws the rows of a step itself; ``ValueError``."""
    gen = request.gen
    if isinstance(gen, Program) and gen.plate in gen.chooses:
        raise ValueError(
            f"expected a plate '{gen.plate}' of all rows of a batch, got one that draws some "
            "itself; drop subsample_size in the program"
        )


def refuse_weights(request: Request, instead: str) -> None:
    """Refuses weights of rows beside data that have several kinds of rows; ``ValueError``."""
    if request.weights is not None:
        raise ValueError(f"expected no weights beside data of this form; {instead}")
