"""Where symbols go to and come from: entropy coders of the library constriction."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from probgen.compression.errors import CompressionError

LATENT_BITS = 7  # of the fraction of a latent number
LATENT_RANGE = 2**13  # steps to either side of zero: numbers between -64 and 64
DEVIATIONS = 6.5  # to either side of the mean of a guide
TURNS = 2**16  # by which the bits that a latent is read from are turned
_GOLDEN = 40503  # steps of this many visit all turns evenly


class Channel(Protocol):
    """One direction of coding: symbols are given and written, or read and returned."""

    def code(self, tables: Tensor, symbols: Tensor | None) -> Tensor:
        """Symbols 0, ..., L - 1 ``(M,)`` with log masses ``(M, L)``, in float64."""


def entropy_coders() -> Any:
    """The library of entropy coders; ``ImportError`` that says how to install it."""
    try:
        import constriction
    except ImportError as error:
        raise ImportError(
            "expected constriction for the coding of symbols, got none; pip install "
            "'probgen[compression]'"
        ) from error
    return constriction


class SymbolWriter:
    """A range coder that writes symbols, in the order in which they are read again."""

    def __init__(self) -> None:
        self.coder = entropy_coders().stream.queue.RangeEncoder()

    def code(self, tables: Tensor, symbols: Tensor | None) -> Tensor:
        assert symbols is not None
        if tables.shape[-1] > 1:
            self.coder.encode(_integers(symbols), *categorical(tables))
        return symbols

    def words(self) -> np.ndarray:
        """What was written, in words of 32 bits."""
        return self.coder.get_compressed()


class SymbolReader:
    """A range coder that reads what :class:`SymbolWriter` wrote."""

    def __init__(self, words: np.ndarray):
        self.coder = entropy_coders().stream.queue.RangeDecoder(words)

    def code(self, tables: Tensor, symbols: Tensor | None) -> Tensor:
        return _read(self.coder, tables)

    def check_exhausted(self) -> None:
        """Refuses words that are left over."""
        if not self.coder.maybe_exhausted():
            raise CompressionError(OTHER_NUMBERS)


class SymbolRecorder:
    """Symbols that are kept, to be put on a stack in reverse: the last one put is read first."""

    def __init__(self) -> None:
        self.steps: list[tuple[np.ndarray, tuple[Any, ...]]] = []

    def code(self, tables: Tensor, symbols: Tensor | None) -> Tensor:
        assert symbols is not None
        if tables.shape[-1] > 1:
            self.steps.append((_integers(symbols), categorical(tables)))
        return symbols

    def normals(self, loc: Tensor, scale: Tensor, steps: Tensor) -> None:
        """Latent numbers, in steps, with the normal distributions that they have."""
        self.steps.append((_integers(steps), gaussian(loc, scale)))

    def put(self, stack: Any) -> None:
        """All of them onto a stack."""
        for symbols, model in reversed(self.steps):
            stack.encode_reverse(symbols, *model)

    def turned_normals(self, loc: Tensor, scale: Tensor, steps: Tensor) -> None:
        """Latent numbers of a guide, as :meth:`SymbolTaker.turned_normals` reads them."""
        self.steps.append((_integers(steps), (GuideNormals.of(loc, scale),)))

    def give_back(self, stack: Any) -> None:
        """The bits that the latents of a guide were read from."""
        for symbols, model in reversed(self.steps):
            if isinstance(model[0], GuideNormals):
                model[0].put(stack, symbols)
            else:
                stack.encode_reverse(symbols, *model)


class SymbolTaker:
    """Symbols that are taken from a stack."""

    def __init__(self, stack: Any):
        self.stack = stack

    def code(self, tables: Tensor, symbols: Tensor | None) -> Tensor:
        return _read(self.stack, tables)

    def normals(self, loc: Tensor, scale: Tensor) -> Tensor:
        """Latent numbers, in steps, with normal distributions."""
        return torch.from_numpy(self.stack.decode(*gaussian(loc, scale)).astype(np.int64))

    def turned_normals(self, loc: Tensor, scale: Tensor) -> Tensor:
        """The same of a guide, for bits that are no random numbers.

        On top of the stack lie the latents of the row before, coded by their prior: read as they
        are, they would make each latent depend on that one, and not follow the guide. So the bits
        of each are turned by a known number first.
        """
        return torch.from_numpy(GuideNormals.of(loc, scale).take(self.stack))


class GuideNormals(NamedTuple):
    """Normal distributions of a guide, in steps, each on a few deviations around its mean.

    Every value that a coder knows has some probability, of 2 ** -24 at least: among thousands of
    values far from the mean one would be read now and then.
    """

    center: np.ndarray
    reach: np.ndarray
    loc: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, loc: Tensor, scale: Tensor) -> GuideNormals:
        """Those of means and deviations of any shape, flattened."""
        loc, scale = _in_steps(loc, scale)
        reach = (DEVIATIONS * scale).ceil().clamp(2, LATENT_RANGE // 2)
        most = LATENT_RANGE - 2 - reach
        center = torch.minimum(torch.maximum(loc.round(), -most), most)
        parts = (center.long(), reach.long(), loc - center, scale)
        return cls(*(np.ascontiguousarray(part.numpy()) for part in parts))

    def _models(self) -> list[Any]:
        make = entropy_coders().stream.model.QuantizedGaussian
        rows = zip(self.reach.tolist(), self.loc.tolist(), self.scale.tolist(), strict=True)
        return [make(-reach, reach, loc, scale) for reach, loc, scale in rows]

    def take(self, stack: Any) -> np.ndarray:
        """A value of each, in steps."""
        found = []
        for place, model in enumerate(self._models(), 1):
            _turn(stack, place)
            found.append(int(stack.decode(model)))
        return np.array(found, dtype=np.int64) + self.center

    def put(self, stack: Any, steps: np.ndarray) -> None:
        """What :meth:`take` took."""
        symbols = (steps - self.center).astype(np.int32)
        for place, model in reversed(list(enumerate(self._models(), 1))):
            stack.encode_reverse(symbols[place - 1 : place], model)
            _turn(stack, -place)


def _turn(stack: Any, place: int) -> None:
    """Adds a number to the bits on top, modulo :data:`TURNS`: nothing is lost, nothing gained."""
    model = entropy_coders().stream.model.Uniform(TURNS)
    turned = (int(stack.decode(model)) + place * _GOLDEN) % TURNS
    stack.encode_reverse(np.array([turned], dtype=np.int32), model)


def _read(coder: Any, tables: Tensor) -> Tensor:
    if tables.shape[-1] == 1:
        return torch.zeros(len(tables), dtype=torch.long)
    try:
        found = coder.decode(*categorical(tables))
    except (AssertionError, ValueError, KeyError) as error:
        raise CompressionError(OTHER_NUMBERS) from error
    return torch.from_numpy(found.astype(np.int64))


def categorical(tables: Tensor) -> tuple[Any, np.ndarray]:
    """The model of symbols with log masses ``(M, L)``, none of them below 2 ** -24."""
    return (
        entropy_coders().stream.model.Categorical(perfect=False),
        np.ascontiguousarray(tables.softmax(-1).numpy()),
    )


def gaussian(loc: Tensor, scale: Tensor) -> tuple[Any, np.ndarray, np.ndarray]:
    """The model of latent numbers, in steps of 2 ** -7, with normal distributions."""
    model = entropy_coders().stream.model.QuantizedGaussian(-LATENT_RANGE, LATENT_RANGE - 1)
    return model, *(np.ascontiguousarray(each.numpy()) for each in _in_steps(loc, scale))


def _in_steps(loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Means and deviations in units of the steps of latent numbers, flattened."""
    unit = 2.0**LATENT_BITS
    far = 64.0 * LATENT_RANGE
    return (
        (loc.double().cpu() * unit).clamp(-far, far).flatten(),
        (scale.double().cpu() * unit).clamp(1e-3, far).flatten(),
    )


def _integers(symbols: Tensor) -> np.ndarray:
    return np.ascontiguousarray(symbols.cpu().numpy().astype(np.int32))


OTHER_NUMBERS = (
    "expected bytes that this model decodes to rows, got other symbols than were written: the model "
    "computes other numbers here; decompress on the kind of machine, with the versions of torch and "
    "constriction, that compressed"
)
