"""Real rows beside generated ones, in the picture that suits them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from probgen.core import checks
from probgen.core.conversion import has_named_columns
from probgen.core.keywords import explained
from probgen.plot.canvas import FIRST, SECOND, doubles_of, names_for, open_frame, several_axes
from probgen.plot.images import as_images, images
from probgen.plot.tables import columns

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST = 6  # pixels of a side; fewer are steps or channels
PICTURES = 16  # of each kind
ACROSS = 8
CURVES = 6
VARIABLES = 4
TEXTS = 8
LONGEST = 60  # characters of a text
MOST_COLUMNS = 12
POINTS = 1000


@explained
def samples(
    real: Tensor,
    synthetic: Tensor,
    *,
    shape: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    decode: Callable[[Any], Sequence[str]] | None = None,
    axes: Any = None,
) -> np.ndarray:
    """Real rows beside generated ones: one function for every family.

    ===========================  ==================================================================
    rows                         are shown as
    ===========================  ==================================================================
    images                       a grid, sixteen of each; with one range of values
    data frames, ``(N, D)``      histograms of the columns, of the first twelve
    ``(N, 2)``                   points, a thousand of each at most
    series ``(N, T, D)``         curves, six of each, for up to four variables
    tokens, with ``decode``      texts, eight of each
    ===========================  ==================================================================

    Events ``(C, H, W)`` with one channel or three, and ``(H, W)``, of six pixels a side or more are
    images.

    Parameters
    ----------
    real, synthetic : Tensor, data frame or mapping of str to sequence
        ``(N, *event)`` and ``(M, *event)``; NaN = missing, in series the end.
    shape : sequence of int, optional
        Shape of an image, ``(H, W)`` or ``(C, H, W)``, for rows that are flat images.
    names : sequence of str, optional
        Of columns, or of the variables of series.
    decode : callable, optional
        ``decode(rows)`` gives the texts of rows of tokens, as
        :meth:`Vocabulary.decode <probgen.text.Vocabulary.decode>` does.
    axes : array of matplotlib.axes.Axes, optional
        One for images, points and texts, one for each column or variable else; default: a new
        figure.

    Returns
    -------
    numpy.ndarray
        The axes, one-dimensional.

    Raises
    ------
    ValueError
        For rows of different events.

    >>> import torch
    >>> (ax,) = samples(torch.randn(90, 2), torch.randn(40, 2))
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['real', 'synthetic']
    >>> len(samples(torch.randn(9, 20, 3), torch.randn(9, 20, 3)))  # series of three variables
    3
    """
    checks.sizes(1, 2, **checks.given(shape=shape))
    checks.texts(**checks.given(names=names))
    checks.function("pass such as vocabulary.decode", **checks.given(decode=decode))
    if _is_table(real) or _is_table(synthetic):
        return columns(_narrow(real), _narrow(synthetic), axes=axes)
    left, right = doubles_of("real", real), doubles_of("synthetic", synthetic)
    if min(left.ndim, right.ndim) < 1 or left.shape[1:] != right.shape[1:] or not left.size:
        raise ValueError(
            f"expected real and synthetic rows of one shape (N, *event), got {left.shape} and "
            f"{right.shape}; flatten the draws for several contexts: drawn.flatten(0, 1)"
        )
    if not right.size:
        raise ValueError(
            "expected one synthetic row or more, got none; draw some: pg.sample(gen, 100)"
        )
    if decode is not None:
        return _texts(real, synthetic, decode, axes)
    event = left.shape[1:]
    if shape is not None or are_images(event):
        return _images(left, right, shape, axes)
    if len(event) == 2:
        return series(left, right, names=names, axes=axes)
    if event == (2,):
        return _scatters(left, right, names, axes)
    flat: list[Any] = [each.reshape(len(each), -1) for each in (left, right)]
    shown = min(flat[0].shape[1], MOST_COLUMNS)
    told = names if names is None else names_for(flat[0].shape[1], "", names, "names")[:shown]
    return columns(*(each[:, :shown] for each in flat), names=told, axes=axes)


def are_images(event: Sequence[int]) -> bool:
    """Whether events of this shape are images: with one channel or three, or without channels.

    >>> are_images((1, 8, 8)), are_images((28, 28)), are_images((90, 2)), are_images((64,))
    (True, True, False, False)
    """
    channels = len(event) == 3 and event[0] in (1, 3)
    return (channels or len(event) == 2) and min(event[-2:]) >= SMALLEST


def series(
    real: np.ndarray, synthetic: np.ndarray, *, names: Sequence[str] | None = None, axes: Any = None
) -> np.ndarray:
    """Some curves ``(N, T, D)`` of both, axes for each variable.

    >>> series(np.zeros((3, 9, 2)), np.zeros((4, 9, 2))).shape
    (2,)
    """
    variables = min(real.shape[2], VARIABLES)
    labels = names_for(real.shape[2], "variable ", names, "names")
    found = several_axes(axes, 1, variables, (4.2, 2.8)).reshape(-1)
    for number, panel in enumerate(found):
        for rows, color, word in ((real, FIRST, "real"), (synthetic, SECOND, "synthetic")):
            for place, curve in enumerate(rows[:CURVES, :, number]):
                style = {"color": color, "lw": 1.0, "alpha": 0.7, "marker": ".", "ms": 2}
                panel.plot(curve, label=word if place == 0 else None, **style)
        panel.set_title(labels[number], fontsize="medium")
        panel.set(xlabel="step", ylabel="x")
        open_frame(panel)
    found[0].legend(frameon=False, fontsize="small")
    return found


def _is_table(rows: Any) -> bool:
    return isinstance(rows, Mapping) or has_named_columns(rows)


def _narrow(table: Any) -> Any:
    """The first columns of a table; what is none stays what it is."""
    if not _is_table(table):
        return table
    names = list(getattr(table, "columns", table))[:MOST_COLUMNS]
    return {name: list(table[name]) for name in names}


def _images(real: Any, synthetic: Any, shape: Sequence[int] | None, axes: Any) -> np.ndarray:
    """Two rows of the grid, or four, with one range of values: that of the real images."""
    event = tuple(real.shape[1:]) if shape is None else shape
    count = min(len(real), len(synthetic), PICTURES)
    across = min(count, ACROSS)
    down = count // across
    shown = [as_images(each[: down * across], event) for each in (real, synthetic)]
    grid = np.concatenate([each.reshape(down, across, *each.shape[1:]) for each in shown])
    known = grid[:down][np.isfinite(grid[:down])]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    words = [word if row == 0 else "" for word in ("real", "synthetic") for row in range(down)]
    (ax,) = several_axes(axes, 1, 1, (6.0, 1.6 * down + 0.4)).reshape(-1)
    rows: Any = np.moveaxis(grid, -1, -3)
    images(
        rows,
        bounds=(low, high) if low < high else (low, low + 1.0),
        row_labels=words,
        ax=ax,
    )
    return np.array([ax], dtype=object)


def _scatters(
    real: np.ndarray, synthetic: np.ndarray, names: Sequence[str] | None, axes: Any
) -> np.ndarray:
    labels = names_for(2, "column ", names, "names")
    (ax,) = found = several_axes(axes, 1, 1, (4.6, 4.0)).reshape(-1)
    for rows, color, word in ((real, FIRST, "real"), (synthetic, SECOND, "synthetic")):
        some = rows[:POINTS]
        size = float(np.clip(2000 / len(some), 4, 20))
        ax.scatter(*some.T, s=size, color=color, alpha=0.6, linewidths=0, label=word)
    ax.set(xlabel=labels[0], ylabel=labels[1])
    ax.legend(frameon=False, fontsize="small", markerscale=2, handletextpad=0.1)
    open_frame(ax)
    return found


def _texts(real: Any, synthetic: Any, decode: Callable, axes: Any) -> np.ndarray:
    """Texts below each other: real ones above, synthetic ones below."""
    (ax,) = found = several_axes(axes, 1, 1, (7.0, 4.6)).reshape(-1)
    lines = []
    for rows, word, color in ((real, "real", FIRST), (synthetic, "synthetic", SECOND)):
        lines.append((word, {"color": color, "weight": "bold"}))
        lines += [(_short(str(text)), {"color": "black"}) for text in decode(rows[:TEXTS])]
    for place, (line, style) in enumerate(lines):
        ax.text(0.0, -place, line, va="center", fontsize="small", parse_math=False, **style)
    ax.set(xlim=(0, 1), ylim=(-len(lines) + 0.5, 0.5))
    ax.axis("off")
    return found


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
