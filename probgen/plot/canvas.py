"""Where pictures are drawn, and in which colors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from probgen.core import checks
from probgen.core.checks.reports import wrong_type
from probgen.core.conversion import rows_from

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe, Ito (2008), Color universal design; its yellow is too light for lines on white
FEW = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#56b4e9", "#cc79a7", "#666666")
# Petroff (2021), Accessible color sequences for data visualization, https://arxiv.org/abs/2107.02270
MANY = (
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#94a4a2",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
)
FIRST, SECOND = FEW[:2]
FAINT = "0.75"
MAP = "viridis"  # for values that have an order


def axes_for(ax: Axes | None, size: tuple[float, float] = (6.0, 4.0)) -> Any:
    """The axes that were given, or those of a new figure of so many inches.

    >>> axes_for(3)
    Traceback (most recent call last):
    TypeError: expected ax with 'plot', got 3 (int); pass axes such as plt.subplots()[1], or leave it out
    """
    if ax is not None:
        checks.has(
            ("plot", "set_xlabel"), "pass axes such as plt.subplots()[1], or leave it out", ax=ax
        )
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]


def several_axes(
    axes: Any, rows: int, columns: int, size: tuple[float, float] = (2.4, 2.0)
) -> np.ndarray:
    """An array of axes ``(rows, columns)``: those that were given, or those of a new figure.

    Raises
    ------
    TypeError
        For what are no axes.
    ValueError
        For another number of them.
    """
    if axes is None:
        import matplotlib.pyplot as plt

        shape = (columns * size[0], rows * size[1])
        figure, axes = plt.subplots(rows, columns, figsize=shape, squeeze=False)
        figure.set_layout_engine("constrained")
        return axes
    wanted = f"axes of {rows} rows and {columns} columns"
    advice = f"pass plt.subplots({rows}, {columns})[1], or leave it out"
    given = np.asarray(axes, dtype=object)
    for each in given.flat:
        if getattr(each, "plot", None) is None:
            wrong_type(wanted, axes, advice)
    if given.size != rows * columns:
        raise ValueError(f"expected {wanted}, got {given.size}; {advice}")
    return given.reshape(rows, columns)


def colors_for(count: int) -> list[Any]:
    """So many colors that color-blind readers tell apart; of a sequential map where they are many.

    >>> colors_for(2)
    ['#0072b2', '#d55e00']
    """
    if count <= len(FEW):
        return list(FEW[:count])
    if count <= len(MANY):
        return list(MANY[:count])
    import matplotlib as mpl

    return list(mpl.colormaps[MAP](np.linspace(0, 1, count)))


def open_frame(ax: Any) -> None:
    """Leaves the upper and the right line of the frame out."""
    ax.spines[["top", "right"]].set_visible(False)


def doubles_of(name: str, value: Any) -> np.ndarray:
    """Rows in any form as an array of double precision, NaN where values are missing.

    >>> doubles_of("values", [1, None])
    array([ 1., nan])
    """
    return rows_from(name, value).detach().cpu().double().numpy()


def vector_of(name: str, value: Any) -> np.ndarray:
    """A vector of numbers ``(N,)`` of one entry or more.

    >>> vector_of("values", [[1.0]])
    Traceback (most recent call last):
    ValueError: expected values of shape (N,), N >= 1, got (1, 1); flatten them
    """
    found = doubles_of(name, list(value) if isinstance(value, range | tuple) else value)
    if found.ndim != 1 or not len(found):
        advice = "flatten them" if found.size else "give one or more"
        raise ValueError(f"expected {name} of shape (N,), N >= 1, got {found.shape}; {advice}")
    return found


def names_for(count: int, prefix: str, names: Sequence[str] | None, word: str) -> list[str]:
    """Names that were given, of which there are to be so many, or numbers after a prefix.

    >>> names_for(2, "state ", None, "names")
    ['state 0', 'state 1']
    """
    if names is None:
        return [f"{prefix}{number}" for number in range(count)]
    checks.texts(**{word: names})
    found = list(names)
    checks.length(count, **{word: found})
    return found


def classes_of(labels: Any, rows: int) -> tuple[list[str], np.ndarray] | None:
    """Names of classes, and the place of each row's own; ``None`` for labels that are no classes.

    Whole numbers and words are classes, other numbers are values along a scale.

    >>> classes_of(["b", "a", "b"], 3)
    (['a', 'b'], array([1, 0, 1]))
    """
    found = labels.detach().cpu().numpy() if torch.is_tensor(labels) else np.asarray(labels)
    if found.shape != (rows,):
        raise ValueError(
            f"expected labels of shape ({rows},), one for each row, got {found.shape}; give one "
            "for each"
        )
    if found.dtype.kind == "f" and not (found == np.round(found)).all():
        return None
    values, places = np.unique(found, return_inverse=True)
    if found.dtype.kind in "fiu":
        return [f"{value:g}" for value in values], places
    return [str(value) for value in values], places


def number_text(value: float, digits: int = 3) -> str:
    """A number for a label.

    >>> number_text(1.25, digits=2)
    '1.2'
    """
    return f"{value:.{digits}g}".replace("-", "\N{MINUS SIGN}")
