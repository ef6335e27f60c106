"""The parts of a loss, noted by whoever computes them for whoever keeps the record."""

from __future__ import annotations

from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

Weight = float | Tensor


class LossPart(NamedTuple):
    """One term of a loss, without its gradient, and the weight that the loss gives it."""

    value: Tensor
    weight: Weight = 1.0

    @property
    def is_weighted(self) -> bool:
        """Whether the weight is anything but the number one."""
        return isinstance(self.weight, Tensor) or self.weight != 1.0


LossParts = dict[str, LossPart]

_NOTED: ContextVar[LossParts | None] = ContextVar("noted parts of a loss", default=None)


def noted_parts() -> NotedParts:
    r"""Collects what losses inside the block note of their parts.

    .. math:: L = \sum_i w_i L_i

    Only the innermost block sees a part.

    >>> with noted_parts() as parts:
    ...     note("kl", torch.tensor(2.0), weight=0.5)
    >>> parts
    {'kl': LossPart(value=tensor(2.), weight=0.5)}
    """
    return NotedParts()


class NotedParts:
    """The block of :func:`noted_parts`; a class, as each step of a run opens one."""

    def __enter__(self) -> LossParts:
        parts: LossParts = {}
        self._token = _NOTED.set(parts)
        return parts

    def __exit__(self, *_: object) -> None:
        _NOTED.reset(self._token)


def noting() -> bool:
    """Whether anybody keeps parts, for those that cost something to compute."""
    return _NOTED.get() is not None


def note(name: str, value: Tensor, weight: Weight = 1.0) -> None:
    """Notes a term of the loss that is being computed, in its unit and before its weight.

    Nothing happens outside of :func:`noted_parts`.

    Parameters
    ----------
    name : str
        What textbooks call it: ``"reconstruction"``, ``"kl"``.
    value : Tensor
        A scalar in the unit of the loss: summed over the rows of the batch.
    weight : float or Tensor
        What the loss multiplies it by; a 0-dim tensor where that changes from step to step.

    >>> note("kl", torch.tensor(2.0))
    """
    parts = _NOTED.get()
    if parts is not None:
        weight = weight.detach() if torch.is_tensor(weight) else float(weight)
        parts[name] = LossPart(value.detach() if value.requires_grad else value, weight)


def note_whole(name: str, value: Tensor, inner: LossParts) -> None:
    """Notes the parts of a loss that is itself a term; the term as a whole where it has none."""
    if not inner:
        note(name, value)
    for part, (found, weight) in inner.items():
        note(part, found, weight)
