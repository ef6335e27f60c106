"""Contexts: one rule for their shapes, and one sentence for those that do not fit."""

from __future__ import annotations

from typing import Any

BUILD = "build it with context={size}"


def context(
    context: Any,
    size: int | None,
    ndim: int = 1,
    name: str = "the network",
    hint: str = BUILD,
    how: str = "give one",
    batch: tuple[int, ...] | None = None,
) -> None:
    """Refuses a context that has not the declared size, one where none is declared, and ``None``.

    ``size`` is the length of vectors, or the channels of images, 0 where there is no context,
    ``None`` where any will do; ``ndim`` the number of event dims; ``batch`` the dims before these,
    where they are fixed. ``hint`` says how to build ``name`` with contexts, ``how`` what to do
    where there is none.

    >>> import torch
    >>> context(torch.zeros(7, 3), 3)
    >>> context(torch.zeros(7, 3), 0, name="NSF")
    Traceback (most recent call last):
    ValueError: expected no context (NSF was built without one), got one of shape (7, 3); build it with context=3
    """
    if context is None:
        if size == 0:
            return
        raise ValueError(
            f"expected a context of shape {context_words(size, ndim, batch)}, got None; {how}"
        )
    shape = tuple(context.shape)
    at = -3 if ndim >= 3 else -1
    got = shape[at] if len(shape) >= -at else 1
    lead = shape[: len(shape) - ndim]
    if size != 0 and len(shape) >= ndim and size in (None, got) and batch in (None, lead):
        return
    alone = len(shape) == 1 and ndim == 1  # numbers of N rows, rather than one row of N numbers
    if size == 0:
        build = hint.format(size=1 if alone else got)
        build += ", and give context[:, None]" * alone
        raise ValueError(
            f"expected no context ({name} was built without one), got one of shape {shape}; {build}"
        )
    raise ValueError(
        f"expected a context of shape {context_words(size, ndim, batch)}, got {shape}; "
        f"{_advice(size, got, name, alone)}"
    )


def _advice(size: int | None, got: int, name: str, alone: bool) -> str:
    if alone:
        return "give context[:, None]" if size == 1 else "give a row of it for each datum"
    if size in (None, got):
        return "give one of that shape"
    return f"give one of that shape, or build {name} for contexts of {got} entries"


def context_words(
    size: int | str | None, ndim: int = 1, batch: tuple[int, ...] | None = None
) -> str:
    """The shape of contexts in words.

    >>> context_words(10), context_words(2, 3), context_words(None, batch=(5,))
    ('(*batch, 10)', '(*batch, 2, H, W)', '(5, C)')
    """
    lead = ["*batch"] if batch is None else [str(entry) for entry in batch]
    steps = ["T"] if ndim == 2 else []
    image = ["H", "W"] if ndim >= 3 else []
    channels = "C" if size is None else str(size)
    return f"({', '.join([*lead, *steps, channels, *image])})"
