"""What a model makes of its latent variables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.entry import as_rows
from probgen.core.keywords import explained
from probgen.core.modes import infers
from probgen.core.seeds import Seed, seeded
from probgen.decisions.codes import coder, interpolated, posterior_means, reconstructed
from probgen.plot.canvas import (
    MAP,
    axes_for,
    classes_of,
    colors_for,
    doubles_of,
    number_text,
    open_frame,
)
from probgen.plot.images import images

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from probgen.core.module import GenerativeModel

MOST = 10  # rows of a traversal, unless dims says otherwise
LEGEND = 10  # classes with a name each in the legend


@explained
def embedding(
    points: Tensor,
    labels: Tensor | Sequence[str] | None = None,
    *,
    basis: Tensor | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Points in the plane of their first two principal components, colored by labels.

    Parameters
    ----------
    points : Tensor
        ``(N, D)``, D >= 2: codes, features, draws. Two columns are drawn as they are.
    labels : Tensor or sequence of str, optional
        ``(N,)``: whole numbers or words are classes, other numbers are values along a scale.
    basis : Tensor, optional
        ``(M, D)``: the rows whose principal components are taken, so that several sets of points
        are drawn in the same plane; default: the points.
    title : str
        Above the picture.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        With one collection of points for each class.

    References
    ----------
    Pearson (1901), On lines and planes of closest fit to systems of points in space,
    https://doi.org/10.1080/14786440109462720

    >>> ax = embedding(torch.eye(4).repeat(5, 1), torch.arange(4).repeat(5))
    >>> len(ax.collections), ax.get_xlabel()
    (4, 'component 1 (33 % of the variance)')
    """
    values = _rows_of("points", points)
    checks.text(title=title)
    like = values if basis is None else _rows_of("basis", basis)
    if like.shape[1] != values.shape[1]:
        raise ValueError(
            f"expected basis with {values.shape[1]} columns, those of points, got "
            f"{like.shape[1]}; give rows of the same variables"
        )
    panel: Any = axes_for(ax, (5.0, 4.2))
    plane, axis_labels = _plane(values, like)
    panel.set(xlabel=axis_labels[0], ylabel=axis_labels[1], title=title)
    _scatter(panel, plane, labels)
    open_frame(panel)
    return panel


@explained
def latent_map(
    gen: GenerativeModel,
    *batch: Any,
    labels: Tensor | Sequence[str] | None = None,
    site: str | None = None,
    draws: int = 32,
    seed: Seed = None,
    ax: Axes | None = None,
) -> Axes:
    r"""Posterior means :math:`E_{q(z \mid x_b)}[z]` of the rows in a plane.

    Two latents are drawn as they are, of more the first two principal components.

    Parameters
    ----------
    gen : GenerativeModel
        A model whose guide draws latents for each row.
    *batch : Tensor
        ``x``, or ``x, context``, or what the programs take.
    labels : Tensor or sequence of str, optional
        ``(N,)``, as for :func:`embedding`.
    site : str, optional
        The latent variable, where there are several.
    draws : int
        Draws that are averaged where the mean of the guide is not known.
    seed : int or torch.Generator, optional
        Of these draws.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: a new figure.

    Raises
    ------
    ValueError
        If the guide draws no latents for rows, or several and none is named.

    >>> import probgen as pg
    >>> net = pg.nn.MLP(3, [4], 4)
    >>> vae = pg.VAE(pg.standard_normal(2), pg.heads.Bernoulli(pg.nn.MLP(2, [4], 3)), pg.heads.Gaussian(net))
    >>> ax = latent_map(vae, torch.ones(5, 3))
    >>> ax.get_title(), ax.collections[0].get_offsets().shape
    ('posterior means of z', (5, 2))
    """
    checks.generative(gen=gen)
    checks.text(**checks.given(site=site))
    checks.at_least(1, draws=draws)
    name, means = posterior_means(gen, *batch, site=site, draws=draws, seed=seed)
    return embedding(means.flatten(1), labels, title=f"posterior means of {name}", ax=ax)


@explained
def reconstructions(
    gen: GenerativeModel,
    x: Tensor,
    context: Tensor | None = None,
    *,
    shape: Sequence[int] | None = None,
    bounds: tuple[float, float] | None = None,
    cmap: str = "gray",
    draws: int = 64,
    seed: Seed = None,
    ax: Axes | None = None,
) -> Axes:
    r"""Images above what the model makes of their latents.

    The mean of :math:`p(x \mid z)` at the posterior mean of z where the model encodes and decodes,
    else the mean of draws from the posterior predictive distribution.

    Parameters
    ----------
    gen : GenerativeModel
        A model with latents for each row: a VAE, a flow, ...
    x : Tensor
        ``(N, *event)``, images or flat images; missing pixels (NaN) are orange.
    context : Tensor, optional
        ``(N, *context_event)``.
    shape, bounds, cmap
        As for :func:`images`; one range of values for both rows.
    draws, seed
        Of the posterior predictive distribution.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: a new figure.

    >>> import probgen as pg
    >>> net = pg.nn.MLP(4, [4], 4)
    >>> vae = pg.VAE(pg.standard_normal(2), pg.heads.Bernoulli(pg.nn.MLP(2, [4], 4)), pg.heads.Gaussian(net))
    >>> ax = reconstructions(vae, torch.ones(5, 4), shape=(2, 2))
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['data', 'reconstruction']
    """
    checks.generative(gen=gen)
    checks.at_least(1, draws=draws)
    rows = (x,) if context is None else (x, context)
    x, *_ = as_rows(gen, *rows, missing=True)
    made = reconstructed(gen, *rows, draws=draws, seed=seed)
    both = torch.stack([x.to(made).cpu(), made.cpu()])
    shape = _event_shape(shape, x)
    words = ("data", "reconstruction")
    return images(both, shape=shape, bounds=bounds, cmap=cmap, row_labels=words, ax=ax)


@explained
def interpolation(
    gen: GenerativeModel,
    a: Tensor,
    b: Tensor,
    context: Tensor | None = None,
    *,
    columns: int = 9,
    shape: Sequence[int] | None = None,
    bounds: tuple[float, float] | None = None,
    cmap: str = "gray",
    ax: Axes | None = None,
) -> Axes:
    r"""Images on the straight line between the latents of a and those of b.

    .. math:: x_w = \mathrm{decode}\big((1 - w)\, \mathrm{encode}(a) + w\, \mathrm{encode}(b)\big)

    Parameters
    ----------
    gen : GenerativeModel
        A model that encodes and decodes: a VAE, a flow, flow matching, a diffusion.
    a, b : Tensor
        ``(N, *event)``: N rows of the picture, from a's to b's.
    context : Tensor, optional
        ``(N, *context_event)``, that of both ends.
    columns : int
        Number of images in a row, the reconstructions of both ends among them.
    shape, bounds, cmap
        As for :func:`images`.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: a new figure.

    >>> import probgen as pg
    >>> ax = interpolation(pg.NSF(4, layers=1), torch.zeros(2, 4), torch.ones(2, 4), columns=3, shape=(2, 2))
    >>> [label.get_text() for label in ax.get_xticklabels()]
    ['0', '0.5', '1']
    """
    checks.generative(gen=gen)
    checks.at_least(2, columns=columns)
    left, right = (as_rows(gen, *_beside(each, context))[0] for each in (a, b))
    if left.shape != right.shape:
        raise ValueError(
            f"expected a and b of one shape, got {tuple(left.shape)} and {tuple(right.shape)}; "
            "give as many rows of both"
        )
    weights = torch.linspace(0, 1, int(columns))
    rows = interpolated(gen, left, right, int(columns), *_beside(left, context)[1:])
    labels = [number_text(weight, 2) for weight in weights.tolist()]
    shape = _event_shape(shape, left)
    return images(rows, shape=shape, bounds=bounds, cmap=cmap, column_labels=labels, ax=ax)


@explained
def traversal(
    gen: GenerativeModel,
    x: Tensor | None = None,
    context: Tensor | None = None,
    *,
    dims: Sequence[int] | None = None,
    span: float = 2.5,
    columns: int = 9,
    shape: Sequence[int] | None = None,
    bounds: tuple[float, float] | None = None,
    cmap: str = "gray",
    ax: Axes | None = None,
) -> Axes:
    r"""What one latent at a time does to an image: a row of the picture for each.

    Around :math:`z`, the mean of the prior or the posterior mean of a row x,

    .. math:: x_{d, w} = \mathrm{decode}(z + w\, s_d\, e_d), \qquad -\mathrm{span} \le w \le
              \mathrm{span}

    in units of the standard deviations :math:`s_d` of the prior.

    Parameters
    ----------
    gen : GenerativeModel
        A model that encodes and decodes: a VAE, a flow, flow matching, a diffusion.
    x : Tensor, optional
        ``(1, *event)``, the row whose latents are changed; default: the mean of the prior.
    context : Tensor, optional
        ``(1, *context_event)``.
    dims : sequence of int, optional
        Latents to change, numbered along a flat vector; default: the first ten.
    span : float
        Standard deviations to both sides.
    columns : int
        Number of images in a row.
    shape, bounds, cmap
        As for :func:`images`.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: a new figure.

    >>> import probgen as pg
    >>> ax = traversal(pg.NSF(4, layers=1), dims=(0, 3), columns=3, shape=(2, 2))
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['z[0]', 'z[3]']
    """
    checks.generative(gen=gen)
    checks.sizes(0, 1, **checks.given(dims=dims))
    checks.positive(span=span)
    checks.at_least(2, columns=columns)
    start = None if x is None else as_rows(gen, *_beside(x, context))[0]
    if start is not None and len(start) != 1:
        raise ValueError(f"expected one row x, got {len(start)}; give x[:1]")
    weights = torch.linspace(-float(span), float(span), int(columns))
    rows, numbers = _traversed(gen, start, weights, dims, context)
    return images(
        rows,
        shape=_event_shape(shape, rows[0]),
        bounds=bounds,
        cmap=cmap,
        row_labels=[f"z[{number}]" for number in numbers],
        column_labels=[number_text(weight, 2) for weight in weights.tolist()],
        ax=ax,
    )


@infers
@torch.no_grad()
def _traversed(
    gen: Any,
    x: Tensor | None,
    weights: Tensor,
    dims: Sequence[int] | None,
    context: Tensor | None,
) -> tuple[Tensor, list[int]]:
    """Decoded points ``(R, K, *event)`` around one, and which latents were changed."""
    made = coder(gen, context)
    mean, unit = _moments(made.prior, one_row=context is None)
    middle = mean if x is None else made.encode(x)
    size = middle[0].numel()
    numbers = list(range(min(size, MOST))) if dims is None else [int(each) for each in dims]
    if max(numbers) >= size:
        raise ValueError(
            f"expected dims below {size}, the latents there are, got {dims}; number them from 0"
        )
    rows = []
    for number in numbers:
        step = torch.zeros_like(middle).flatten(1)
        step[:, number] = unit.flatten(1)[:, number]
        step = step.reshape(middle.shape)
        rows.append(torch.cat([made.decode(middle + weight * step) for weight in weights]))
    return torch.stack(rows), numbers


def _moments(prior: Any, one_row: bool) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents of one row, ``(1, *latent)`` each."""
    if prior is None:
        raise TypeError(
            "expected latents with a distribution of their own, whose standard deviations are the "
            "steps, got codes of images that depend on each other; draw the "
            "interpolation(gen, a, b) between two rows"
        )
    try:
        mean, unit = prior.mean, prior.stddev
    except NotImplementedError:  # learned priors: flows, mixtures of them
        with seeded(0):
            drawn = prior.sample((512,))
        mean, unit = drawn.mean(0), drawn.std(0)
    return (mean[None], unit[None]) if one_row else (mean[:1], unit[:1])


def _beside(x: Any, context: Any) -> tuple:
    return (x,) if context is None else (x, context)


def _event_shape(shape: Sequence[int] | None, rows: Tensor) -> Sequence[int] | None:
    """The shape of an image, where x has it: rows of images are told from gray images by it."""
    return tuple(rows.shape[1:]) if shape is None and rows.ndim in (3, 4) else shape


# points in a plane


def _rows_of(name: str, value: Any) -> np.ndarray:
    found = doubles_of(name, value)
    if found.ndim != 2 or found.shape[1] < 2 or not len(found):
        raise ValueError(
            f"expected {name} of shape (N, D), N >= 1, D >= 2, got {found.shape}; give rows of two "
            "columns or more"
        )
    if not np.isfinite(found).all():
        raise ValueError(
            f"expected finite {name}, got NaN or infinities; leave out the rows that have them"
        )
    return found


def _plane(values: np.ndarray, like: np.ndarray) -> tuple[np.ndarray, tuple[str, str]]:
    """The points in two dims, and what these are."""
    if values.shape[1] == 2:
        return values, ("dim 0", "dim 1")
    center = like.mean(0)
    _, sizes, directions = np.linalg.svd(like - center, full_matrices=False)
    if len(directions) < 2:
        directions = np.eye(values.shape[1])
        sizes = np.zeros(values.shape[1])
    # the sign of a component is of no meaning: its largest entry is made positive
    largest = np.abs(directions[:2]).argmax(1)
    signs = np.sign(directions[:2][np.arange(2), largest])
    shares = sizes[:2] ** 2 / max(float((sizes**2).sum()), 1e-300)
    labels = [f"component {n + 1} ({share:.0%} of the variance)" for n, share in enumerate(shares)]
    first, second = (label.replace("%", " %") for label in labels)
    return (values - center) @ (directions[:2] * signs[:, None]).T, (first, second)


def _scatter(ax: Any, plane: np.ndarray, labels: Any) -> None:
    """Points colored by class, or by value with a bar of colors."""
    size = float(np.clip(2000 / len(plane), 4, 24))
    style = {"s": size, "linewidths": 0, "alpha": 0.8}
    if labels is None:
        ax.scatter(*plane.T, color=colors_for(1)[0], **style)
        return
    found = classes_of(labels, len(plane))
    if found is None:
        values = doubles_of("labels", labels)
        points = ax.scatter(*plane.T, c=values, cmap=MAP, **style)
        ax.figure.colorbar(points, ax=ax, label="label")
        return
    names, places = found
    for place, (name, color) in enumerate(zip(names, colors_for(len(names)), strict=True)):
        ax.scatter(*plane[places == place].T, color=color, label=name, **style)
        _name_class(ax, plane[places == place], name, len(names))
    if len(names) <= LEGEND:
        beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "frameon": False}
        ax.legend(**beside, fontsize="small", markerscale=24 / size, handletextpad=0.1)


def _name_class(ax: Any, points: np.ndarray, name: str, classes: int) -> None:
    """Writes the name of a class at the median of its points, so that no color has to be told."""
    from matplotlib.patheffects import withStroke

    if 1 < classes <= 2 * LEGEND:
        outlined = [withStroke(linewidth=3, foreground="white")]
        where = {"ha": "center", "va": "center", "weight": "bold"}
        ax.text(*np.median(points, 0), name, path_effects=outlined, **where)
