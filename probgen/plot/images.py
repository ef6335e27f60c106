"""Grids of images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from probgen.core import checks
from probgen.core.keywords import explained
from probgen.plot.canvas import axes_for, doubles_of, names_for, number_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

MISSING = (0.90, 0.62, 0.0, 1.0)  # the orange of canvas.FEW: no gray
INCHES = 6.0  # the longer side of a new figure


@explained
def images(
    x: Tensor,
    *,
    shape: Sequence[int] | None = None,
    columns: int | None = None,
    bounds: tuple[float, float] | None = None,
    cmap: str = "gray",
    titles: Sequence[str] | None = None,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Images as one grid, with the range of their values written below.

    Missing pixels (NaN) are orange.

    Parameters
    ----------
    x : Tensor
        ``(N, C, H, W)`` or ``(N, H, W)``, laid out in ``columns``; or rows of images ``(R, K, C, H,
        W)``, each a row of the grid. C is 1 (gray) or 3 (red, green, blue).
    shape : sequence of int, optional
        Shape of an image, ``(H, W)`` or ``(C, H, W)``: for flat images ``(N, D)`` or ``(R, K, D)``,
        and for rows of images without channels, ``(R, K, H, W)``.
    columns : int, optional
        Images in a row of the grid; default: about twice as many as rows.
    bounds : (float, float), optional
        Values that are black and white; default: the smallest and largest of x. Others are cut.
    cmap : str
        Matplotlib's map from gray values to colors: ``"gray_r"`` for ink on paper.
    titles : sequence of str, optional
        One above each image.
    row_labels, column_labels : sequence of str, optional
        One for each row, one for each column of the grid.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        With one picture, a pixel for each pixel.

    Raises
    ------
    ValueError
        For rows that are no images, and labels of another number.

    >>> import torch
    >>> ax = images(torch.rand(6, 64), shape=(8, 8), columns=3, bounds=(0.0, 1.0))
    >>> ax.images[0].get_array().shape, ax.texts[-1].get_text()
    ((17, 26, 4), 'black 0, white 1')
    """
    checks.sizes(1, 2, **checks.given(shape=shape))
    checks.at_least(1, **checks.given(columns=columns))
    checks.pair(**checks.given(bounds=bounds))
    checks.text(cmap=cmap)
    grid = ImageGrid.of(as_images(doubles_of("x", x), shape), columns, titled=titles is not None)
    checks.texts(**checks.given(titles=titles))
    if titles is not None:
        checks.length(grid.count, titles=list(titles))
    low, high = _range(grid.pictures) if bounds is None else bounds
    mosaic = _mosaic(grid, float(low), float(high), cmap)
    tall, wide = mosaic.shape[:2]
    unit = INCHES / max(tall, wide)
    panel: Any = axes_for(ax, (max(2.5, unit * wide) + 0.4, max(1.2, unit * tall) + 0.4))
    panel.imshow(mosaic, interpolation="nearest", aspect="equal")
    _label_sides(panel, grid, row_labels, column_labels)
    for title, (_, row, column) in zip(titles or (), grid.places(), strict=False):
        middle = grid.left(column) + grid.width / 2 - 0.5
        where = {"ha": "center", "va": "bottom", "fontsize": "small"}
        panel.text(middle, grid.top(row) - 0.5, title, **where)
    told = _told(float(low), float(high), cmap, color=grid.pictures.shape[-1] == 3)
    missing = ", orange: missing" * bool(np.isnan(grid.pictures).any())
    below = {"ha": "right", "va": "top", "fontsize": "x-small", "color": "0.4"}
    panel.text(1.0, -0.01, told + missing, transform=panel.transAxes, **below)
    return panel


@dataclass(frozen=True)
class ImageGrid:
    """Where images of one size stand, in pixels.

    Attributes
    ----------
    pictures : numpy.ndarray
        ``(N, H, W, C)``, row by row of the grid.
    rows, columns : int
        Of the grid; its last places may be empty.
    titled : bool
        Whether there is room above each.
    """

    pictures: np.ndarray
    rows: int
    columns: int
    titled: bool

    @classmethod
    def of(cls, values: np.ndarray, columns: int | None, titled: bool) -> ImageGrid:
        """Images ``(N, H, W, C)`` in so many columns, or ``(R, K, H, W, C)`` as they stand."""
        if values.ndim == 5:
            if columns is not None and columns != values.shape[1]:
                raise ValueError(
                    f"expected columns={values.shape[1]}, those of the rows of images, got "
                    f"{columns}; leave it out"
                )
            rows, across = values.shape[:2]
            return cls(values.reshape(-1, *values.shape[2:]), rows, across, titled)
        count = len(values)
        wide = min(count, columns or math.ceil(math.sqrt(2 * count)))
        return cls(values, math.ceil(count / wide), int(wide), titled)

    @property
    def count(self) -> int:
        return len(self.pictures)

    @property
    def height(self) -> int:
        return self.pictures.shape[1]

    @property
    def width(self) -> int:
        return self.pictures.shape[2]

    @property
    def gap(self) -> int:
        """Pixels between neighbors."""
        return max(1, round(self.height / 16))

    @property
    def lift(self) -> int:
        """Pixels above each, for its title."""
        return math.ceil(self.height / 3) if self.titled else 0

    def top(self, row: int) -> int:
        """The first line of pixels of a row."""
        return row * (self.height + self.gap + self.lift) + self.lift

    def left(self, column: int) -> int:
        """The first line of pixels of a column."""
        return column * (self.width + self.gap)

    def places(self) -> Iterator[tuple[int, int, int]]:
        """Number, row and column of each image."""
        return ((number, *divmod(number, self.columns)) for number in range(self.count))


def as_images(values: np.ndarray, shape: Sequence[int] | None) -> np.ndarray:
    """Images with their channels last, ``(N, H, W, C)`` or ``(R, K, H, W, C)``.

    >>> as_images(np.zeros((5, 64)), (8, 8)).shape
    (5, 8, 8, 1)
    >>> as_images(np.zeros((5, 64)), None)
    Traceback (most recent call last):
    ValueError: expected images x of shape (N, C, H, W) with C = 1 or 3, got (5, 64); tell their shape: shape=(8, 8)
    """
    if shape is not None:
        event = tuple(int(size) for size in shape)
        flat = math.prod(event)
        trailing = values.shape[-len(event) :]
        if trailing != event and values.shape[-1:] != (flat,):
            raise ValueError(
                f"expected images x that end in {event}, or in {flat} values each, got "
                f"{values.shape}; give the shape that they have"
            )
        lead = values.shape[: -len(event)] if trailing == event else values.shape[:-1]
        if len(event) == 2 and len(lead) in (2, 3) and lead[-1] == 1:  # the one of gray images
            lead = lead[:-1]
        values = values.reshape(*lead, *(1,) * (3 - len(event)), *event)
    elif values.ndim == 3:
        values = values[:, None]
    if values.ndim not in (4, 5) or values.shape[-3] not in (1, 3) or not values.size:
        raise ValueError(
            "expected images x of shape (N, C, H, W) with C = 1 or 3, got "
            f"{values.shape}; {_shape_advice(values)}"
        )
    return np.moveaxis(values, -3, -1)


def _shape_advice(values: np.ndarray) -> str:
    side = math.isqrt(values.shape[-1]) if values.size else 0
    if values.ndim == 2 and side**2 == values.shape[-1]:
        return f"tell their shape: shape=({side}, {side})"
    if values.ndim == 4:
        return "rows of gray images are given with shape=(H, W)"
    return "tell their shape: shape=(H, W), or give one image as x[None]"


def _range(pictures: np.ndarray) -> tuple[float, float]:
    known = pictures[np.isfinite(pictures)]
    if not known.size:
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    return (low, high) if low < high else (low, low + 1.0)


def _mosaic(grid: ImageGrid, low: float, high: float, cmap: str) -> np.ndarray:
    """All images as one, ``(height, width, 4)``, transparent between them."""
    tall = grid.top(grid.rows - 1) + grid.height
    wide = grid.left(grid.columns - 1) + grid.width
    mosaic = np.zeros((tall, wide, 4))
    for number, row, column in grid.places():
        rows = slice(grid.top(row), grid.top(row) + grid.height)
        columns = slice(grid.left(column), grid.left(column) + grid.width)
        mosaic[rows, columns] = _colored(grid.pictures[number], low, high, cmap)
    return mosaic


def _colored(image: np.ndarray, low: float, high: float, cmap: str) -> np.ndarray:
    """Colors and opacity ``(H, W, 4)`` of an image ``(H, W, C)``."""
    import matplotlib as mpl

    if cmap not in mpl.colormaps:
        raise ValueError(f"expected the name of a colormap cmap, got {cmap!r}; pass 'gray'")
    missing = np.isnan(image).any(-1)
    level = np.clip((np.nan_to_num(image) - low) / (high - low), 0.0, 1.0)
    if image.shape[-1] == 3:
        found = np.concatenate([level, np.ones_like(level[..., :1])], -1)
    else:
        found = mpl.colormaps[cmap](level[..., 0])
    found[missing] = MISSING
    return found


def _label_sides(
    ax: Any, grid: ImageGrid, rows: Sequence[str] | None, columns: Sequence[str] | None
) -> None:
    ax.set(xticks=[], yticks=[])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if rows is not None:
        middles = [grid.top(row) + grid.height / 2 - 0.5 for row in range(grid.rows)]
        ax.set_yticks(middles, names_for(grid.rows, "", rows, "row_labels"))
    if columns is not None:
        middles = [grid.left(column) + grid.width / 2 - 0.5 for column in range(grid.columns)]
        ax.set_xticks(middles, names_for(grid.columns, "", columns, "column_labels"))
        ax.xaxis.tick_top()
        ax.tick_params(length=0)


def _told(low: float, high: float, cmap: str, color: bool) -> str:
    """The range of values in words."""
    digits = 2 - math.floor(math.log10(high - low))  # rounded as the range is
    low = round(low, digits) + 0.0
    high = round(high, digits) + 0.0
    ends = ("white", "black") if cmap == "gray_r" else ("black", "white")
    if color or cmap in ("gray", "gray_r"):
        return f"{ends[0]} {number_text(low)}, {ends[1]} {number_text(high)}"
    return f"values {number_text(low)} to {number_text(high)}"
