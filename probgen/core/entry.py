"""The way in for rows: as the programs take them, with all of them checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from probgen.core import checks
from probgen.core.contexts import check_finite, ignores, received
from probgen.core.conversion import NO_ROWS, UnequalRowsError
from probgen.core.keywords import call_form
from probgen.core.missing import values_are_known
from probgen.core.ragged import pad
from probgen.core.rows import leaves_of
from probgen.core.supports import check_support

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel


def as_rows(
    gen: GenerativeModel,
    *batch: Any,
    optional: bool = False,
    missing: bool = False,
    support: Constraint | None = None,
) -> tuple:
    """What a public function is given, as the programs take it, with all rows checked.

    The one way in: arrays, frames, lists and tensors of any precision become tensors of the
    model's own floating-point type; NaN, None and masks mean a missing value.

    Parameters
    ----------
    gen : GenerativeModel
        A family or a Program.
    *batch
        ``x``, or ``x, context``, or a Program's own arguments.
    optional : bool
        Whether there may be no rows at all.
    missing : bool
        Whether entries may be missing that the distribution of the data cannot integrate out.
    support : Constraint, optional
        What values have to keep to instead of the support of the family.

    Returns
    -------
    tuple
        The arguments as tensors.

    Raises
    ------
    TypeError
        For what is no rows of numbers.
    ValueError
        For no rows, rows of another shape than the events of the family, contexts of other rows or
        of another size, values outside of the support, with their row and place.

    >>> from probgen.heads import Gaussian
    >>> from probgen.nn import Constant
    >>> gen = Gaussian(Constant(4))
    >>> as_rows(gen, [[0, 1], [None, 2]])
    (tensor([[0., 1.],
            [nan, 2.]]),)
    >>> as_rows(gen, torch.zeros(5, 3))
    Traceback (most recent call last):
        ...
    ValueError: expected x of shape (N, 2), got (5, 3); give one observation per row
    """
    checks.generative(gen=gen)
    try:
        batch = gen.settle(batch)
    except UnequalRowsError as error:
        raise ValueError(_of_one_length(gen, batch, str(error))) from None
    if not values_are_known():
        return batch
    if getattr(gen, "any_rows", False):
        _check_family(gen, batch, optional)
    elif not optional and not any(map(_tells, leaves_of(batch))) and not gen.takes_nothing:
        raise ValueError(f"expected rows among the arguments, got {batch}; give them")
    check_support(gen, *batch, support=support, missing=missing)
    return batch


def _of_one_length(gen: Any, batch: tuple, error: str) -> str:
    """The error of lists of different lengths, with advice that holds for this family."""
    what, _, _ = error.partition(";")
    cut = "cut them to one length, or take a family of sequences (HiddenMarkovModel, Transformer)"
    if not getattr(gen, "any_rows", False):
        return error
    try:
        padded = gen.settle((pad(batch[0]), *batch[1:]))
        check_support(gen, *padded, missing=False)
    except (ValueError, TypeError):
        return f"{what}; {cut}"
    return f"{what}; pad them with NaN (missing): pg.pad(x)"


def _tells(argument: Any) -> bool:
    """Whether an argument of a program may be its data, or a number that it works with."""
    return torch.is_tensor(argument) or isinstance(argument, int | float)


def check_some_rows(x: Tensor | None) -> None:
    """Refuses what is no row at all; ``ValueError``.

    >>> check_some_rows(torch.zeros(0, 3))
    Traceback (most recent call last):
        ...
    ValueError: expected data with at least one row, got none; check how it was filtered or split
    """
    if x is None:
        raise ValueError("expected rows x, got None; give them")
    if x.ndim == 0:
        raise ValueError("expected rows x of shape (N, *event), got a single number; give rows")
    if not len(x):
        raise ValueError(NO_ROWS)


def _check_family(gen: Any, batch: tuple, optional: bool) -> None:
    """Rows and contexts of a family: that there are some, as many of one as of the other."""
    x, context = (*batch, None, None)[:2]
    if x is not None or not optional:
        check_some_rows(x)
    context = received(gen, context, f"give one: {call_form('x', 'context')}")
    if not torch.is_tensor(context):
        return
    if x is not None and len(context) != len(x):
        raise ValueError(
            f"expected arrays with the same number of rows, got x of shape {tuple(x.shape)} and "
            "context of shape "
            f"{tuple(context.shape)}; align their first dims"
        )
    check_used(gen, context)


def check_used(gen: Any, context: Tensor) -> None:
    """Refuses a context that would make no difference, and infinite ones; ``ValueError``.

    >>> from probgen.heads import Gaussian
    >>> from probgen.nn import Constant
    >>> check_used(Gaussian(Constant(4)), torch.zeros(5, 2))
    Traceback (most recent call last):
        ...
    ValueError: expected no context: Gaussian gives every row the same distribution, got one of shape (5, 2); leave...
    """
    if ignores(gen) and not getattr(gen, "ignores_contexts", False):
        raise ValueError(
            f"expected no context: {type(gen).__name__} gives every row the same distribution, got "
            f"one of shape {tuple(context.shape)}; leave it out, or build the family with a "
            "network of the context"
        )
    check_finite(context)
