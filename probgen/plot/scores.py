"""Scores of several sets of rows, as histograms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from probgen.core import checks
from probgen.core.keywords import explained
from probgen.core.score import Score
from probgen.plot.canvas import axes_for, colors_for, doubles_of, open_frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TAIL = 0.01  # of a set, beyond which values stand in the outermost bars
ENERGIES = "minus the energy, up to a constant"


@explained
def scores(scores: Score | Mapping[str, Score], *, bins: int = 40, ax: Axes | None = None) -> Axes:
    r"""Histograms of the log-likelihoods of several sets of rows under one model.

    Of energy-based models that is minus the energy. The legend has each mean with its kind. For two
    sets the title has the area under the receiver operating characteristic, the probability that a
    row of the first set scores higher than one of the second, :math:`P(s_1 > s_2) + P(s_1 = s_2) /
    2`: 0.5 where scores cannot tell them apart.

    Parameters
    ----------
    scores : Score or mapping of str to Score
        What :func:`probgen.log_likelihood` gives for each set of rows, by name.
    bins : int
        Number of bars; the outermost ones hold all beyond.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        With one histogram for each set, as shares of its rows.

    Raises
    ------
    TypeError
        For what are no scores, and for scores of different units or measures, or of which only some
        are normalized.

    References
    ----------
    Hanley, McNeil (1982), The meaning and use of the area under a receiver operating characteristic
    (ROC) curve, https://doi.org/10.1148/radiology.143.1.7063747

    >>> import torch
    >>> known, odd = (Score(torch.randn(90) - shift, "exact") for shift in (1.0, 99.0))
    >>> ax = scores({"known": known, "odd": odd})
    >>> ax.get_title(loc="left"), ax.get_xlabel()
    ('area under the curve 1.000', 'log-likelihood of a row, nats')
    """
    checks.at_least(1, bins=bins)
    found = _by_name(scores)
    first = next(iter(found.values()))
    values = {name: doubles_of(name, score.value).reshape(-1) for name, score in found.items()}
    edges = np.linspace(*_ends(list(values.values())), int(bins) + 1)
    panel: Any = axes_for(ax, (6.0, 3.4))
    for color, (name, score) in zip(colors_for(len(found)), found.items(), strict=True):
        shares = _shares(score, len(values[name]))
        shown = np.clip(values[name], edges[0], edges[-1])
        label = f"{name} {score}".strip()
        panel.hist(shown, edges, weights=shares, color=color, alpha=0.5, label=label)
    panel.set(xlabel=_axis_of(first), ylabel="share of the rows")
    if len(found) == 2:
        one, other = (each if first.unit == "nats" else -each for each in values.values())
        area = _area(one, other)
        panel.set_title(f"area under the curve {area:.3f}", loc="left", fontsize="medium")
    panel.legend(frameon=False, fontsize="small")
    open_frame(panel)
    return panel


def _by_name(scores: Any) -> dict[str, Score]:
    found = {"": scores} if isinstance(scores, Score) else scores
    checks.mapping(scores=found)
    if not found:
        raise ValueError("expected one score or more, got none; pass {'held out': score}")
    for name, score in found.items():
        checks.text(name=name)
        checks.instance(Score, "pass what pg.log_likelihood gives", **{f"scores[{name!r}]": score})
    _check_alike(list(found.values()))
    return dict(found)


def _check_alike(scores: list[Score]) -> None:
    """One axis has one unit, one measure, and numbers that are all normalized or none."""
    sorts = {
        "unit": {score.unit for score in scores},
        "measure": {score.measure.replace("bins", "mass") for score in scores},
        "normalization": {
            "unnormalized" if score.kind == "unnormalized" else "normalized" for score in scores
        },
    }
    for word, values in sorts.items():
        if len(values) > 1:
            raise TypeError(
                f"expected scores of one {word}, got {' and '.join(sorted(values))}, which have no "
                "common axis; draw each kind in axes of its own"
            )


def _ends(sets: list[np.ndarray]) -> tuple[float, float]:
    """From the smallest to the largest value but for few of each set."""
    known = [each[np.isfinite(each)] for each in sets]
    if not all(each.size for each in known):
        raise ValueError(
            "expected scores with finite values, got a set without; leave it out, and tell its mean"
        )
    ends = [np.quantile(each, [TAIL, 1 - TAIL]) for each in known]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    margin = 0.02 * (high - low) if high > low else 0.5
    return float(low - margin), float(high + margin)


def _shares(score: Score, rows: int) -> np.ndarray:
    """How much of the set each row is."""
    if score.weights is None:
        return np.full(rows, 1 / rows)
    weights = doubles_of("weights", score.weights).reshape(-1)
    return weights / weights.sum()


def _axis_of(score: Score) -> str:
    if score.unit != "nats":
        return f"{score.unit} of a row"
    if score.kind == "unnormalized":
        return f"{ENERGIES}, nats"
    return "log-likelihood of a row, nats"


def _area(first: np.ndarray, second: np.ndarray) -> float:
    """The share of pairs in which the first is larger, ties counted half."""
    ordered = np.sort(second)
    below = np.searchsorted(ordered, first, "left") + np.searchsorted(ordered, first, "right")
    return float(below.mean() / 2 / len(second))
