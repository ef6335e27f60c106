"""Which pictures show rows: grids of images, columns of tables, curves of series."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from probgen.plot.canvas import doubles_of
from probgen.plot.images import images
from probgen.plot.samples import are_images, series
from probgen.plot.tables import column_pairs, columns
from probgen.reporting.page import in_a_row, paragraph, picture

SHOWN = 32  # images
MOST_COLUMNS = 12
MOST_PAIRS = 5
OF_COLUMNS = "each column, as shares of the rows: real and generated (synthetic)"


def pictures_of(
    real: Tensor, made: Tensor, shape: Sequence[int] | None, names: Sequence[str] | None
) -> tuple[str, ...]:
    """Real rows and generated ones, as parts of a page.

    Parameters
    ----------
    real, made : Tensor
        ``(N, *event)`` and ``(M, *event)``.
    shape : sequence of int, optional
        Of an image, for rows that are flat images.
    names : sequence of str, optional
        Of columns.
    """
    event = tuple(real.shape[1:])
    if shape is not None or are_images(event):
        return (_images(real, made, shape),)
    if len(event) == 2:
        return (_series(real, made),)
    return tuple(_columns(real.reshape(len(real), -1), made.reshape(len(made), -1), names))


def pictures_of_frames(real: Any, made: Any) -> list[str]:
    """Tables with columns of several kinds, in their own words."""
    shown = list(real.columns)[:MOST_COLUMNS]
    tables: list[Any] = [{name: list(each[name]) for name in shown} for each in (real, made)]
    parts = [picture(columns(*tables)[0].figure, OF_COLUMNS)]
    if len(real.columns) > len(shown):
        parts.append(paragraph(f"The first {len(shown)} of {len(real.columns)} columns.", "note"))
    return parts


def _images(real: Tensor, made: Tensor, shape: Sequence[int] | None) -> str:
    known = real[real.isfinite()]
    bounds = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    if not bounds[0] < bounds[1]:
        bounds = (bounds[0], bounds[0] + 1.0)
    parts = []
    for rows, caption in ((real, "real rows"), (made, "generated rows")):
        ax = images(rows[:SHOWN], shape=shape, columns=8, bounds=bounds)
        parts.append(picture(ax.figure, caption, small=True))
    return in_a_row(*parts)


def _columns(real: Tensor, made: Tensor, names: Sequence[str] | None) -> list[str]:
    dims = real.shape[1]
    shown = min(dims, MOST_COLUMNS)
    told = list(names[:shown]) if names is not None else None
    figure = columns(real[:, :shown], made[:, :shown], names=told)[0].figure
    parts = [picture(figure, OF_COLUMNS)]
    if dims > shown:
        parts.append(
            paragraph(
                f"The first {shown} of {dims} columns. If rows are flat images, "
                f"shape=({_side(dims)}) shows them as such.",
                "note",
            )
        )
    if 1 < dims <= MOST_PAIRS:
        figure = column_pairs(real, made, names=told)[0, 0].figure
        parts.append(
            picture(figure, "pairs of columns: real rows below the diagonal, generated above")
        )
    return parts


def _side(dims: int) -> str:
    side = math.isqrt(dims)
    return f"{side}, {side}" if side * side == dims else "height, width"


def _series(real: Tensor, made: Tensor) -> str:
    """Some curves of each variable, real and generated ones."""
    figure = series(doubles_of("real", real), doubles_of("made", made))[0].figure
    return picture(figure, f"some series of {real.shape[1]} steps, real and generated (synthetic)")


def first_rows(rows: Tensor, count: int) -> Tensor:
    """At most so many rows in main memory, in double precision.

    >>> import torch
    >>> first_rows(torch.ones(3, 2), 2).shape
    torch.Size([2, 2])
    """
    return rows[:count].detach().cpu().double()
