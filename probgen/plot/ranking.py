"""Models in the order of their scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from probgen.comparing import ERRORS, ModelComparison
from probgen.core import checks
from probgen.core.keywords import explained
from probgen.plot.canvas import FIRST, SECOND, axes_for, open_frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@explained
def leaderboard(comparison: ModelComparison, *, ax: Axes | None = None) -> Axes:
    """How far models are behind the best one, with two standard errors of the paired difference.

    Filled where the difference settles which model is better, open where it is within the noise or
    where the kinds of numbers leave it open.

    Parameters
    ----------
    comparison : ModelComparison
        What :func:`probgen.compare` returns.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        One row for each model, the best on top.

    >>> import torch
    >>> from probgen.comparing import compare
    >>> from probgen.core.score import Score
    >>> rows = torch.tensor([-1.0, -2.0, -1.5])
    >>> ax = leaderboard(compare({"a": Score(rows - 1.0, "exact"), "b": Score(rows, "exact")}))
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['b', 'a']
    """
    checks.instance(ModelComparison, comparison=comparison)
    names = list(comparison.scores)
    panel: Any = axes_for(ax, (6.0, 0.8 + 0.35 * len(names)))
    for place, name in enumerate(names):
        mean, stderr = comparison.behind[name]
        settled = comparison.findings[name] in ("best", "worse")
        panel.errorbar(
            mean,
            place,
            xerr=ERRORS * stderr if place else None,
            fmt="o",
            color=FIRST if place else SECOND,
            markerfacecolor=None if settled else "white",
            capsize=3,
        )
        kind = comparison.scores[name].kind
        shown = f"{comparison.scores[name].mean:.2f}, {kind}"
        panel.annotate(shown, (1.02, place), xycoords=panel.get_yaxis_transform(), va="center")
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    panel.set_xlabel(f"behind the first, {comparison.scores[names[0]].unit} per row")
    open_frame(panel)
    return panel
