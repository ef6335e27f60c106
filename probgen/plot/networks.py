"""Graphs of variables: Bayesian networks, trees, Markov random fields."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.keywords import explained
from probgen.plot.canvas import FIRST, axes_for, doubles_of, names_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SWEEPS = 8  # over the layers, to have few crossings
NAMED = 40  # with more variables they are dots
STATES = 6  # of a variable that are listed
KINDS = "pass a BayesianNetwork, ChowLiu, MixtureOfTrees, MarkovRandomField, or a dict of parents"
BENDS = (0.0, 0.2, -0.2, 0.35, -0.35, 0.6, -0.6)
ROOM = 0.4  # between an edge and other variables, which are 1 apart
SHADED, PLAIN = "#cfe3f2", "white"


@explained
def graph(
    network: Any,
    x: Tensor | None = None,
    *,
    names: Sequence[str] | None = None,
    positions: Sequence[Sequence[float]] | None = None,
    component: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """The graph of a Bayesian network, a tree or a Markov random field.

    Parents stand above their children. With a row of evidence, the probabilities of the states of
    each variable given it are listed, and variables that are observed are shaded.

    Parameters
    ----------
    network : BayesianNetwork, ChowLiu, MixtureOfTrees, MarkovRandomField, or mapping
        Whose graph; a mapping has the parents of each child by their names.
    x : Tensor, optional
        ``(1, D)``, NaN where nothing is known; for discrete Bayesian networks.
    names : sequence of str, optional
        Of the variables, in the order of the columns; default: those that they have, or their
        numbers.
    positions : sequence of (float, float), optional
        Where each variable stands, for instance those of pixels; default: layers below each other,
        a grid for fields on a grid, a circle for other fields.
    component : int
        Which tree of a mixture.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        With a text for each variable (dots where they are more than forty) and an arrow or a line
        for each edge.

    References
    ----------
    Sugiyama, Tagawa, Toda (1981), Methods for visual understanding of hierarchical system
    structures, https://doi.org/10.1109/TSMC.1981.4308636 (layers and barycenters)

    >>> ax = graph({"rain": ["cloudy"], "sprinkler": ["cloudy"], "wet": ["rain", "sprinkler"]})
    >>> [text.get_text() for text in ax.texts if text.get_text()]
    ['cloudy', 'rain', 'sprinkler', 'wet']
    """
    checks.at_least(0, component=component)
    found = _links_of(network, names, int(component))
    words = found.names if x is None else _answers(network, x, found.names)
    observed = set() if x is None else _observed_in(x)
    where = _places(found) if positions is None else _given_places(positions, len(found.names))
    low, high = where.min(0), where.max(0)
    panel: Any = axes_for(ax, _inches(words, where))
    panel.set(xlim=(low[0] - 0.6, high[0] + 0.6), ylim=(low[1] - 0.5, high[1] + 0.5))
    panel.axis("off")
    if len(found.names) > NAMED and names is None:
        _draw_dots(panel, found, where)
        return panel
    boxes = []
    for place, (word, (across, up)) in enumerate(zip(words, where, strict=True)):
        box = {"boxstyle": "round,pad=0.35", "fc": SHADED if place in observed else PLAIN}
        style = {"ha": "center", "va": "center", "fontsize": "small", "zorder": 3}
        boxes.append(panel.text(across, up, word, bbox={**box, "ec": FIRST, "lw": 1.2}, **style))
    for parent, child in found.edges:
        bend = _bend(where, parent, child)
        arrow = {
            "arrowstyle": "-|>" if found.directed else "-",
            "color": "0.35",
            "lw": 1.0,
            "connectionstyle": f"arc3,rad={bend}",
            "patchA": boxes[parent].get_bbox_patch(),
            "patchB": boxes[child].get_bbox_patch(),
            "shrinkA": 1,
            "shrinkB": 1,
        }
        panel.annotate("", where[child], where[parent], arrowprops=arrow, zorder=2)
    return panel


@dataclass(frozen=True)
class Links:
    """Variables and what joins them.

    Attributes
    ----------
    names : list of str
        Of the variables.
    edges : list of (int, int)
        Places of parent and child.
    directed : bool
        Whether an edge leads from one to the other.
    grid : tuple of int
        Shape of the grid that the variables stand on, if any.
    """

    names: list[str]
    edges: list[tuple[int, int]]
    directed: bool = True
    grid: tuple[int, ...] = field(default=())


def _links_of(network: Any, names: Sequence[str] | None, component: int) -> Links:
    checks.no_class(network=network)
    parents = network if isinstance(network, Mapping) else getattr(network, "parents", None)
    if isinstance(parents, Mapping):
        return _named_links(parents, names)
    if torch.is_tensor(parents) and parents.ndim in (1, 2):
        if parents.ndim == 2:
            if component >= len(parents):
                raise ValueError(
                    f"expected component < {len(parents)}, the trees there are, got {component}; "
                    f"pass {len(parents) - 1} or less"
                )
            parents = parents[component]
        above = parents.tolist()
        edges = [(parent, child) for child, parent in enumerate(above) if parent >= 0]
        return Links(names_for(len(above), "", names, "names"), edges)
    neighbors = getattr(network, "neighbors", None)
    if neighbors is None:
        shown = type(network).__name__
        raise TypeError(f"expected a network of variables, got {network!r:.60} ({shown}); {KINDS}")
    shape = tuple(network.shape)
    count = math.prod(shape)
    edges = [(int(a), int(b)) for a, b in neighbors]
    return Links(names_for(count, "", names, "names"), edges, directed=False, grid=shape)


def _named_links(parents: Mapping[str, Sequence[str]], names: Sequence[str] | None) -> Links:
    """Those of parents by name; what is a parent alone, as the context, is a variable, too."""
    own: list[str] = []
    for child, above in parents.items():
        checks.text(child=child)
        checks.texts(parents=above)
        own += [name for name in (*above, child) if name not in parents and name not in own]
    known = [*own, *parents]
    if not known:
        raise ValueError("expected variables with their parents, got none; pass {'b': ['a']}")
    shown = names_for(len(known), "", names, "names") if names is not None else known
    edges = [
        (known.index(parent), known.index(child))
        for child, above in parents.items()
        for parent in above
    ]
    return Links(list(shown), edges)


def _answers(network: Any, x: Any, names: Sequence[str]) -> list[str]:
    """The name of each variable with the probabilities of its states given a row."""
    checks.has(("marginals",), "leave x out", network=network)
    row = doubles_of("x", x)
    if row.shape != (1, len(names)):
        raise ValueError(
            f"expected one row x of shape (1, {len(names)}), got {row.shape}; make it by "
            "network.row(name=value)"
        )
    found = network.marginals(torch.as_tensor(row).to(next(network.parameters())))
    words = []
    for own, shown in zip(network.parents, names, strict=True):
        if own not in found:
            words.append(shown)
            continue
        shares = found[own][0].tolist()
        states = network.states.get(own) or [str(number) for number in range(len(shares))]
        lines = [
            f"{state} {share:.0%}".replace("%", " %")
            for state, share in zip(states, shares, strict=True)
        ]
        words.append("\n".join([shown, *lines[:STATES], *["..."] * (len(lines) > STATES)]))
    return words


def _observed_in(x: Any) -> set[int]:
    row = doubles_of("x", x)[0]
    return set(np.flatnonzero(~np.isnan(row)).tolist())


def _given_places(positions: Any, count: int) -> np.ndarray:
    where = doubles_of("positions", np.asarray(positions, dtype=float))
    if where.shape != (count, 2):
        raise ValueError(
            f"expected positions of shape ({count}, 2), one for each variable, got {where.shape}; "
            "give (x, y) of each"
        )
    return where


def _places(links: Links) -> np.ndarray:
    """Where the variables stand: ``(D, 2)``, one unit apart."""
    count = len(links.names)
    if links.directed:
        return _layered(count, links.edges)
    if len(links.grid) == 2:
        rows, columns = np.divmod(np.arange(count), links.grid[1])
        return np.stack([columns, -rows], 1).astype(float)
    turn = 2 * np.pi * np.arange(count) / count
    radius = max(1.0, count / (2 * np.pi))
    return radius * np.stack([np.sin(turn), np.cos(turn)], 1)


def _layered(count: int, edges: Sequence[tuple[int, int]]) -> np.ndarray:
    """Layers by the longest way from a root, each ordered by the mean place of its neighbors."""
    layer = _layers(count, edges)
    place = np.zeros(count)
    groups = [np.flatnonzero(layer == depth) for depth in range(layer.max() + 1)]
    for group in groups:
        place[group] = np.arange(len(group)) - (len(group) - 1) / 2
    for sweep in range(SWEEPS):
        for group in groups if sweep % 2 == 0 else groups[::-1]:
            means = np.array([_mean_place(int(node), edges, place) for node in group])
            order = np.argsort(means, kind="stable")
            place[group[order]] = np.arange(len(group)) - (len(group) - 1) / 2
    return np.stack([place, -layer.astype(float)], 1)


def _layers(count: int, edges: Sequence[tuple[int, int]]) -> np.ndarray:
    layer = np.zeros(count, dtype=int)
    for _ in range(count):
        before = layer.copy()
        for parent, child in edges:
            layer[child] = max(layer[child], layer[parent] + 1)
        if (layer == before).all():
            return layer
    raise ValueError(
        "expected a graph without cycles, got one whose variables are above themselves; reverse "
        "or drop an edge"
    )


def _mean_place(node: int, edges: Sequence[tuple[int, int]], place: np.ndarray) -> float:
    near = [place[a if b == node else b] for a, b in edges if node in (a, b)]
    return float(np.mean(near)) if near else float(place[node])


def _bend(where: np.ndarray, parent: int, child: int) -> float:
    """How much an edge is bent to pass other variables: as little as possible.

    As Matplotlib's ``arc3`` has it: the middle of a parabola is moved by this share of its length.
    """
    others = np.delete(where, [parent, child], axis=0)
    start, end = where[parent], where[child]
    along = np.linspace(0.1, 0.9, 17)[:, None]
    normal = np.array([end[1] - start[1], start[0] - end[0]])
    room = {}
    for bend in BENDS:
        middle = (start + end) / 2 + bend * normal
        points = (1 - along) ** 2 * start + 2 * along * (1 - along) * middle + along**2 * end
        apart = np.linalg.norm(points[:, None] - others, axis=-1)
        room[bend] = float(apart.min()) if len(others) else np.inf
        if room[bend] > ROOM:
            return bend
    return max(room, key=lambda each: room[each])


def _inches(words: Sequence[str], where: np.ndarray) -> tuple[float, float]:
    """The size of a figure in which words of this size stand apart."""
    letters = max(len(line) for word in words for line in word.splitlines())
    lines = max(len(word.splitlines()) for word in words)
    size = where.max(0) - where.min(0) + 1
    if len(words) > NAMED:
        return min(8.0, 0.5 * size[0] + 1), min(6.0, 0.5 * size[1] + 1)
    return (
        float(np.clip(size[0] * max(0.7, 0.085 * letters + 0.45), 2.0, 14.0)),
        float(np.clip(size[1] * (0.16 * lines + 0.55), 1.5, 10.0)),
    )


def _draw_dots(ax: Any, links: Links, where: np.ndarray) -> None:
    from matplotlib.collections import LineCollection

    ends = [where[list(edge)] for edge in links.edges]
    ax.add_collection(LineCollection(ends, colors="0.5", linewidths=1.0, zorder=1))
    ax.scatter(*where.T, s=18, color=FIRST, zorder=2)
