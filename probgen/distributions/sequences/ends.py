"""Where sequences in padded arrays end."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core.inside import point_inside
from probgen.core.missing import assume_missing, assumed_missing, values_are_known
from probgen.core.support_words import in_words


class Ends(NamedTuple):
    """Where the sequences of a padded array end.

    Attributes
    ----------
    length : Tensor
        Number of steps of each sequence ``(*lead,)``, of at least so many where it is open.
    open : Tensor
        Whether a sequence is not known to have ended: nothing observed says so.
    """

    length: Tensor
    open: Tensor

    def after(self, length: int) -> Tensor:
        """Which steps stand after the end of a sequence: ``(*lead, T)``."""
        step = torch.arange(length, device=self.length.device)
        return (step >= self.length[..., None]) & ~self.open[..., None]

    def expand(self, batch: torch.Size) -> Ends:
        """The same for more sequences."""
        return Ends(self.length.expand(batch), self.open.expand(batch))


def all_steps(x: Tensor, event_shape: torch.Size, padding: float) -> Tensor:
    """Sequences of events with all steps, filled by padding where they have fewer.

    >>> all_steps(torch.ones(2), torch.Size([3]), -1.0)
    tensor([ 1.,  1., -1.])
    """
    length, *entry = event_shape
    dim = x.ndim - len(event_shape)
    if dim < 0 or x.shape[dim + 1 :] != torch.Size(entry) or not 0 < x.shape[dim] <= length:
        raise ValueError(
            f"expected x of shape (*batch, {', '.join(map(str, event_shape))}), or with fewer "
            f"steps, got {tuple(x.shape)}; time is the first event dim"
        )
    return extended(x, length, padding, len(entry))


def extended(x: Tensor, length: int, padding: float, entry_ndim: int) -> Tensor:
    """An array with as many steps, those that it lacks at the end filled by padding.

    ``(*lead, t, *entry) -> (*lead, T, *entry)``.

    >>> extended(torch.ones(2), 3, -1.0, 0)
    tensor([ 1.,  1., -1.])
    """
    dim = x.ndim - 1 - entry_ndim
    if x.shape[dim] >= length:
        return x
    shape = (*x.shape[:dim], length - x.shape[dim], *x.shape[dim + 1 :])
    return torch.cat((x, x.new_full(shape, padding)), dim)


def is_padding(x: Tensor, padding: float) -> Tensor:
    """Which values are padding.

    >>> is_padding(torch.tensor([1.0, torch.nan]), torch.nan), is_padding(torch.tensor([1.0, -1.0]), -1.0)
    (tensor([False,  True]), tensor([False,  True]))
    """
    return x.isnan() if math.isnan(padding) else x == padding


def by_step(values: Tensor, entry_ndim: int) -> Tensor:
    """Whether any value of a step is true: ``(*lead, T, *entry) -> (*lead, T)``."""
    return values.flatten(values.ndim - entry_ndim).any(-1) if entry_ndim else values


def over_steps(steps: Tensor, entry_ndim: int) -> Tensor:
    """A mark on steps, for all values of each: ``(*lead, T) -> (*lead, T, 1, ...)``."""
    return steps[(..., *[None] * entry_ndim)]


def known(x: Tensor, padding: float, entry_ndim: int) -> Tensor:
    """Which values of a padded array are known, padding among them; the others are missing.

    NaN is missing. Where NaN is the padding, steps of NaN after the last value are known to stand
    after the end.

    >>> known(torch.tensor([1.0, torch.nan, 2.0, torch.nan]), torch.nan, 0)
    tensor([ True, False,  True,  True])
    >>> known(torch.tensor([1.0, torch.nan, -1.0]), -1.0, 0)
    tensor([ True, False,  True])
    """
    seen = ~x.isnan()
    if not math.isnan(padding):
        return seen
    followed = by_step(seen, entry_ndim).flip(-1).cumsum(-1).flip(-1) > 0
    return seen | ~over_steps(followed, entry_ndim)


def ends(x: Tensor, padding: float, entry_ndim: int, mask: Tensor | None = None) -> Ends:
    """Where sequences end: at the first padding that is known.

    What is not known before it is missing, and belongs to the sequence. A sequence without known
    padding is open behind its last known value.

    Parameters
    ----------
    x : Tensor
        ``(*lead, T, *entry)``.
    padding : float
        What stands after the end.
    entry_ndim : int
        Number of dims of one step.
    mask : Tensor of bool, optional
        Which values are known, like x; default: :func:`known`.

    Raises
    ------
    ValueError
        If a value stands after padding.

    >>> ends(torch.tensor([[4.0, 5.0, -1.0], [4.0, torch.nan, torch.nan]]), -1.0, 0)
    Ends(length=tensor([2, 1]), open=tensor([False,  True]))
    """
    mask = known(x, padding, entry_ndim) if mask is None else mask
    over = is_padding(x, padding)
    value = by_step(mask & ~over, entry_ndim)
    ended = by_step(mask & over, entry_ndim)
    step = torch.arange(1, value.shape[-1] + 1, device=x.device)
    last = torch.where(value, step, 0).amax(-1)
    first = torch.where(ended, step - 1, value.shape[-1]).amin(-1)
    is_open = ~ended.any(-1)
    if values_are_known():
        _check_order(~is_open & (last > first), padding)
    return Ends(torch.where(is_open, last, first), is_open)


def _check_order(wrong: Tensor, padding: float) -> None:
    if wrong.any():
        row = int(wrong.flatten().nonzero()[0])
        raise ValueError(
            f"expected padding ({padding:g}) at the ends of sequences alone, got a value after it "
            f"in row {row}; mark "
            "missing values by NaN, or choose a padding that is no value"
        )


def reading_missing() -> AbstractContextManager:
    """A block in which arrays may have NaN that the data did not have: what stands after the end.

    Recorded graphs are told of the data alone.
    """
    return assume_missing(True) if assumed_missing() is False else nullcontext()


class SupportOrPadding(constraints.Constraint):
    """A support, or the padding.

    >>> SupportOrPadding(constraints.positive, -1.0).check(torch.tensor([2.0, -1.0, -2.0]))
    tensor([ True,  True, False])
    """

    def __init__(self, base: constraints.Constraint, padding: float):
        self.base = base
        self.padding = padding
        self.is_discrete = base.is_discrete
        self.event_dim = base.event_dim
        super().__init__()

    @property
    def words(self) -> str:
        """What its values are, for messages."""
        return f"{in_words(self.base)}, or {self.padding:g} (padding)"

    def check(self, value: Tensor) -> Tensor:
        return self.base.check(value) | by_step(value == self.padding, self.event_dim)


@point_inside.register(SupportOrPadding)
def _(support: SupportOrPadding, event: torch.Size, like: Tensor) -> Tensor:
    return point_inside(support.base, event, like)


def or_padding(support: Any, padding: float) -> Any:
    """The support of padded sequences; NaN needs no place in it.

    >>> or_padding(constraints.independent(constraints.boolean, 1), -1.0).check(torch.tensor([1.0, -1.0]))
    tensor(True)
    """
    if math.isnan(padding):
        return support
    if isinstance(support, constraints.independent):
        base = or_padding(support.base_constraint, padding)
        return constraints.independent(base, support.reinterpreted_batch_ndims)
    return SupportOrPadding(support, padding)
