"""Mixtures: components as ellipses, and to which of them rows belong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.keywords import explained
from probgen.core.modes import infers
from probgen.core.seeds import seeded
from probgen.plot.canvas import (
    FAINT,
    axes_for,
    classes_of,
    colors_for,
    doubles_of,
    names_for,
    open_frame,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from probgen.core.module import GenerativeModel

NEEDS_ELLIPSES = "pass a GaussianMixture; others are drawn by density(gen)"
NEEDS_MEMBERS = "pass a mixture, such as GaussianMixture or Mixture"


@explained
def components(
    mixture: GenerativeModel,
    x: Tensor | None = None,
    *,
    dims: Sequence[int] = (0, 1),
    deviations: Sequence[float] = (1.0, 2.0),
    names: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    r"""Gaussian components in two of their variables: means, and ellipses around them.

    .. math:: \{x : (x - \mu_k)^\top \Sigma_k^{-1} (x - \mu_k) = r^2\}

    of the marginal distribution of both variables, which holds :math:`1 - e^{-r^2 / 2}` of the
    component: 39 % for r = 1, 86 % for r = 2.

    Parameters
    ----------
    mixture : GenerativeModel
        With ``weights`` (K,), ``means`` (K, D) and ``covariances`` (K, D, D): a
        :class:`~probgen.GaussianMixture`.
    x : Tensor, optional
        ``(N, D)``: rows, each in the color of its most probable component.
    dims : (int, int)
        The columns that are drawn.
    deviations : sequence of float
        r of each ellipse.
    names : sequence of str, optional
        Of both columns.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        With one ellipse for each component and each r, in the order of components.

    >>> from probgen.models.mixture import GaussianMixture
    >>> ax = components(GaussianMixture(3, 2), names=("length", "width"))
    >>> len(ax.patches), ax.get_xlabel()
    (6, 'length')
    """
    checks.has(("means", "covariances", "weights"), NEEDS_ELLIPSES, mixture=mixture)
    checks.sizes(0, dims=dims)
    checks.length(2, dims=dims)
    checks.numbers("positive", deviations=deviations)
    given: Any = mixture
    first, second = (int(dim) for dim in dims)
    means = doubles_of("means", given.means)
    covariances = doubles_of("covariances", given.covariances)
    weights = doubles_of("weights", given.weights)
    if max(first, second) >= means.shape[1] or first == second:
        raise ValueError(
            f"expected dims that are two of the {means.shape[1]} columns, got {tuple(dims)}; "
            "pass such as (0, 1)"
        )
    labels = [f"column {first}", f"column {second}"]
    if names is not None:
        labels = names_for(2, "", names, "names")
    panel: Any = axes_for(ax, (5.2, 4.2))
    colors = colors_for(len(weights))
    if x is not None:
        _scatter_members(panel, mixture, x, (first, second), colors)
    both = [first, second]
    for k, color in enumerate(colors):
        for deviation in deviations:
            covariance = covariances[k][np.ix_(both, both)]
            _add_ellipse(panel, means[k, both], covariance, float(deviation), color)
        label = f"component {k}: {weights[k]:.0%}".replace("%", " %")
        panel.plot(*means[k, both], "o", color=color, mec="white", ms=7, label=label)
    panel.autoscale_view()
    panel.set(xlabel=labels[0], ylabel=labels[1])
    if len(weights) <= 10:
        beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "frameon": False}
        panel.legend(**beside, fontsize="small", handletextpad=0.2)
    open_frame(panel)
    return panel


@explained
def memberships(
    mixture: GenerativeModel,
    x: Tensor,
    *,
    labels: Tensor | Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    r"""Responsibilities :math:`p(k \mid x_b)`: one bar for each row, split by component.

    Rows stand in the order of their most probable component, the surest first; under ``labels``,
    class by class. Sharp steps are clusters apart, slopes are rows between two.

    Parameters
    ----------
    mixture : GenerativeModel
        With ``responsibilities(x)`` ``(N, K)``: a Gaussian mixture, Bayesian or not, or a mixture of
        any families.
    x : Tensor
        ``(N, *event)``, NaN = missing.
    labels : Tensor or sequence of str, optional
        ``(N,)``, classes to compare with.
    names : sequence of str, optional
        Of the components.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        With a filled area for each component.

    References
    ----------
    Pritchard, Stephens, Donnelly (2000), Inference of population structure using multilocus
    genotype data, https://doi.org/10.1093/genetics/155.2.945 (the plot is known as that of
    STRUCTURE)

    >>> from probgen.models.mixture import GaussianMixture
    >>> ax = memberships(GaussianMixture(2, 2), torch.randn(20, 2))
    >>> len(ax.collections), ax.get_xlabel()
    (2, 'row, sorted')
    """
    checks.has(("responsibilities",), NEEDS_MEMBERS, mixture=mixture)
    shares = _shares_of(mixture, x)
    found = None if labels is None else classes_of(labels, len(shares))
    if labels is not None and found is None:
        raise ValueError(
            "expected labels that are classes (whole numbers or words), got other numbers; group "
            "them first, such as (labels > 0.5).long()"
        )
    component_names = names_for(shares.shape[1], "component ", names, "names")
    group = np.zeros(len(shares), dtype=int) if found is None else found[1]
    likeliest = shares.argmax(1)
    order = np.lexsort((-shares.max(1), likeliest, group))
    panel: Any = axes_for(ax, (6.4, 2.4))
    edges = np.arange(len(shares) + 1)
    below = np.zeros(len(edges))
    colors = colors_for(shares.shape[1])
    for values, name, color in zip(shares[order].T, component_names, colors, strict=True):
        top = below + np.append(values, values[-1:])
        panel.fill_between(edges, below, top, step="post", color=color, lw=0, label=name)
        below = top
    panel.set(xlim=(0, len(shares)), ylim=(0, 1), xlabel="row, sorted", ylabel="responsibility")
    if found is not None:
        _part(panel, found[0], np.bincount(found[1]))
    if len(component_names) <= 10:
        beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "frameon": False}
        panel.legend(**beside, fontsize="small")
    return panel


@infers
@torch.no_grad()
def _shares_of(mixture: Any, x: Any) -> np.ndarray:
    with seeded(0):  # those of Bayesian mixtures are averages over draws
        return doubles_of("responsibilities", mixture.responsibilities(x))


def _scatter_members(
    ax: Any, mixture: Any, x: Any, dims: tuple[int, int], colors: Sequence[Any]
) -> None:
    rows = doubles_of("x", x)
    likeliest = _shares_of(mixture, x).argmax(1)
    size = float(np.clip(2000 / len(rows), 3, 16))
    for k, color in enumerate(colors):
        members = rows[likeliest == k][:, list(dims)]
        ax.scatter(*members.T, s=size, color=color, alpha=0.45, linewidths=0)


def _add_ellipse(
    ax: Any, mean: np.ndarray, covariance: np.ndarray, deviation: float, color: Any
) -> None:
    from matplotlib.patches import Ellipse

    sizes, directions = np.linalg.eigh(covariance)
    width, height = 2 * deviation * np.sqrt(np.maximum(sizes, 0.0))
    angle = float(np.degrees(np.arctan2(directions[1, 0], directions[0, 0])))
    center = (float(mean[0]), float(mean[1]))
    ax.add_patch(Ellipse(center, width, height, angle=angle, fill=False, color=color, lw=1.5))


def _part(ax: Any, names: Sequence[str], counts: np.ndarray) -> None:
    """Lines between classes, and their names above."""
    ends = np.cumsum(counts)
    for end in ends[:-1]:
        ax.axvline(end, color="black", lw=1.0)
    for name, end, count in zip(names, ends, counts, strict=True):
        ax.text(end - count / 2, 1.02, name, ha="center", va="bottom", fontsize="small")
    ax.axhline(1.0, color=FAINT, lw=0.8)
