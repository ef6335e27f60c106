"""Whether to trust numbers: k-hat, p-values, calibration of probabilities, a reject option."""

from __future__ import annotations

from math import lgamma
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from probgen.core import checks
from probgen.core.keywords import explained
from probgen.plot.canvas import FIRST, SECOND, axes_for, doubles_of, open_frame, vector_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GOOD, USABLE = 0.5, 0.7  # Vehtari et al. (2024)
Z95 = 1.959964  # the normal distribution has 95 % of its mass between minus and plus this


@explained
def khats(values: Tensor, *, bins: int = 30, ax: Axes | None = None) -> Axes:
    """Histogram of PSIS k-hat, with its limits 0.5 and 0.7 and how many values lie between.

    Up to 0.5 the guide is close to the posterior, up to 0.7 importance sampling corrects it, above
    it misses the posterior of that row.

    Parameters
    ----------
    values : Tensor
        ``(N,)``: ``pg.khat(gen, x)``, or the k-hat of ``pg.loo``; NaN where it is not known.
    bins : int
        Number of bars.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        With the bars, a line at each limit, and the shares in the title.

    References
    ----------
    Vehtari, Simpson, Gelman, Yao, Gabry (2024), Pareto smoothed importance sampling,
    https://jmlr.org/papers/v25/19-556.html

    >>> khats([0.1, 0.2, 0.6, 0.9]).get_title(loc="left")
    '50 % good, 25 % usable, 25 % bad'
    """
    checks.at_least(1, bins=bins)
    found = np.atleast_1d(doubles_of("values", values)).reshape(-1)
    known = found[~np.isnan(found)]
    if not known.size:
        raise ValueError(
            "expected values of k-hat, got none that is known; more particles may tell: "
            "pg.khat(gen, x, particles=1000)"
        )
    shown = np.clip(known, -1.0, 3.0)  # infinite ones, too
    panel: Any = axes_for(ax, (5.4, 3.2))
    edges = np.linspace(min(0.0, shown.min()), max(1.0, shown.max()), int(bins) + 1)
    panel.hist(shown, edges, color=FIRST, alpha=0.8)
    for limit, style, name in ((GOOD, ":", "0.5: good below"), (USABLE, "--", "0.7: bad above")):
        panel.axvline(limit, color="black", ls=style, lw=1.2, label=name)
    panel.axvspan(USABLE, edges[-1], color=SECOND, alpha=0.12, lw=0, zorder=0)
    good, bad = (known <= GOOD).mean(), (known > USABLE).mean()
    title = f"{good:.0%} good, {1 - good - bad:.0%} usable, {bad:.0%} bad".replace("%", " %")
    if unknown := len(found) - len(known):
        title += f"; {unknown} unknown"
    panel.set_title(title, loc="left", fontsize="medium")
    panel.set(xlabel="k-hat", ylabel="rows", xlim=(edges[0], edges[-1]))
    panel.legend(frameon=False, fontsize="small")
    open_frame(panel)
    return panel


@explained
def p_values(values: Tensor, *, bins: int = 20, ax: Axes | None = None) -> Axes:
    r"""Histogram of p-values, with the uniform distribution that they have under the null.

    The band holds 95 % of the counts of a bar, which are :math:`\mathrm{Binomial}(N, 1 / B)` for
    uniform values. Ranks of simulation-based calibration are p-values as ``(ranks + 0.5) / (draws +
    1)``: a bulge in the middle tells of posteriors that are too wide, at both ends of ones that are
    too narrow. So are probability integral transforms.

    Parameters
    ----------
    values : Tensor
        ``(N,)``, from 0 to 1.
    bins : int
        Number B of bars.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        With the bars, a line at N / B, and the band.

    References
    ----------
    Talts, Betancourt, Simpson, Vehtari, Gelman (2018), Validating Bayesian inference algorithms
    with simulation-based calibration, https://arxiv.org/abs/1804.06788

    >>> import torch
    >>> ax = p_values(torch.linspace(0, 1, 100), bins=10)
    >>> len(ax.patches), ax.lines[0].get_ydata()[0]
    (10, 10.0)
    """
    checks.at_least(1, bins=bins)
    found = _probabilities("values", np.atleast_1d(doubles_of("values", values)).reshape(-1))
    known = found[~np.isnan(found)]
    if not known.size:
        raise ValueError("expected p-values, got none that is known; leave NaN out")
    panel: Any = axes_for(ax, (5.4, 3.2))
    panel.hist(known, np.linspace(0, 1, int(bins) + 1), color=FIRST, alpha=0.8, ec="white", lw=0.5)
    expected = len(known) / bins
    low, high = _central_counts(len(known), 1 / bins)
    panel.fill_between(
        [0, 1], low, high, color="0.5", alpha=0.35, lw=0, label="95 % of uniform values"
    )
    panel.axhline(expected, color="black", lw=1.2, label="uniform")
    panel.set(xlabel="p-value", ylabel=f"count of {len(known)}", xlim=(0, 1))
    panel.legend(frameon=False, fontsize="small")
    open_frame(panel)
    return panel


@explained
def reliability(
    probabilities: Tensor,
    outcomes: Tensor,
    *,
    bins: int = 10,
    ax: Axes | None = None,
) -> Axes:
    r"""Reliability diagram: how often what was given a probability came true.

    Each point is a bin of predictions of similar probability, with an interval of 95 % (Wilson) for
    the share that came true; bars below count the predictions. Points below the diagonal are
    overconfident. The title has the expected calibration error :math:`\sum_b \frac{n_b}{N}
    |\bar y_b - \bar p_b|`.

    Parameters
    ----------
    probabilities : Tensor
        ``(N,)``, of the event; or ``(N, K)`` of the classes, of which the most probable one is
        judged.
    outcomes : Tensor
        ``(N,)``: 1 where the event came true, else 0; or the number of the true class.
    bins : int
        Number of bins of equal width.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        With a point for each bin that has predictions.

    References
    ----------
    DeGroot, Fienberg (1983), The comparison and evaluation of forecasters,
    https://doi.org/10.2307/2987588; Guo, Pleiss, Sun, Weinberger (2017), On calibration of modern
    neural networks, https://arxiv.org/abs/1706.04599; Wilson (1927),
    https://doi.org/10.1080/01621459.1927.10502953

    >>> ax = reliability([0.05, 0.1, 0.85, 0.9], [0, 0, 1, 0], bins=2)
    >>> ax.get_title(loc="left")
    'calibration error 0.225'
    """
    checks.at_least(1, bins=bins)
    said, came = _judged(probabilities, outcomes)
    place = np.minimum((said * bins).astype(int), int(bins) - 1)
    counts = np.bincount(place, minlength=int(bins))
    used = counts > 0
    shares = np.bincount(place, came, int(bins))[used] / counts[used]
    means = np.bincount(place, said, int(bins))[used] / counts[used]
    error = float((counts[used] / len(said) * np.abs(shares - means)).sum())
    low, high = _wilson(shares, counts[used])
    panel: Any = axes_for(ax, (4.4, 4.2))
    panel.plot([0, 1], [0, 1], color="0.6", lw=1.0, ls="--", label="calibrated")
    lengths = np.maximum(0.0, np.stack([shares - low, high - shares]))
    style = {"fmt": "o-", "color": FIRST, "ms": 5, "lw": 1.2, "elinewidth": 0.8, "capsize": 2}
    panel.errorbar(means, shares, yerr=lengths, label="came true", **style)
    edges = np.linspace(0, 1, int(bins) + 1)
    heights = 0.15 * counts / counts.max()
    bars = {"align": "edge", "color": "0.8", "ec": "white", "zorder": 0}
    label = f"predictions, {counts.max()} at most"
    panel.bar(edges[:-1], heights, np.diff(edges), label=label, **bars)
    panel.set(
        xlim=(0, 1), ylim=(0, 1), xlabel="predicted probability", ylabel="share that came true"
    )
    panel.set_title(f"calibration error {error:.3f}", loc="left", fontsize="medium")
    panel.legend(frameon=False, fontsize="small", loc="upper left")
    panel.set_aspect("equal")
    open_frame(panel)
    return panel


@explained
def risk_coverage(confidence: Tensor, losses: Tensor, *, ax: Axes | None = None) -> Axes:
    r"""Risk-coverage curve: the mean loss of the rows that are answered, over their share.

    Rows are answered from the most to the least confident one, rows of the same confidence
    together: :math:`r(c) = \frac{1}{|A_c|} \sum_{b \in A_c} \ell_b` for the share c of the rows.
    Beside it the same losses in the best order, and their mean, which is that of a confidence that
    tells nothing. The title has the area under the curve, :math:`\frac1N \sum_b r(c_b)`, and that
    of the best order.

    Parameters
    ----------
    confidence : Tensor
        ``(N,)``, larger for surer rows: ``p.max(-1)`` of a classifier, a log-density.
    losses : Tensor
        ``(N,)``: 1 where the answer is wrong, else 0; or any loss of each row.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        With the lines "by confidence", "best order" and "all rows".

    Raises
    ------
    ValueError
        For other shapes and for what is not finite.

    References
    ----------
    El-Yaniv, Wiener (2010), On the foundations of noise-free selective classification,
    https://jmlr.org/papers/v11/el-yaniv10a.html; Geifman, Uziel, El-Yaniv (2019), Bias-reduced
    uncertainty estimation for deep neural classifiers, https://arxiv.org/abs/1805.08206 (the area)

    >>> ax = risk_coverage([0.9, 0.8, 0.7, 0.6], [0, 0, 1, 0])
    >>> ax.lines[0].get_ydata()[-2:].round(2), ax.get_title(loc="left")
    (array([0.33, 0.25]), 'area 0.146, of the best order 0.062')
    """
    sure, lost = vector_of("confidence", confidence), vector_of("losses", losses)
    if len(sure) != len(lost):
        raise ValueError(
            f"expected confidence and losses of the same rows, got {len(sure)} and {len(lost)}; "
            "give one loss for each row"
        )
    if np.isnan(sure).any() or not np.isfinite(lost).all():
        raise ValueError(
            "expected confidence without NaN and finite losses, got others; leave those rows out"
        )
    panel: Any = axes_for(ax, (5.4, 3.4))
    areas = []
    for order, label, style in (
        (sure, "by confidence", {"color": FIRST, "lw": 1.8}),
        (-lost, "best order", {"color": "0.5", "lw": 1.0, "ls": "--"}),
    ):
        shares, risks, rows = _selected(order, lost)
        areas.append(float((rows * risks).sum() / rows.sum()))
        panel.plot(shares, risks, label=label, **style)
    panel.axhline(lost.mean(), color=SECOND, lw=1.0, ls=":", label="all rows")
    panel.set(
        xlabel="share of the rows that are answered", ylabel="mean loss of those", xlim=(0, 1)
    )
    told = f"area {areas[0]:.3f}, of the best order {areas[1]:.3f}"
    panel.set_title(told, loc="left", fontsize="medium")
    panel.legend(frameon=False, fontsize="small")
    open_frame(panel)
    return panel


def _selected(order: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At each threshold: the share of rows above it, their mean loss, and how many stand at it."""
    _, place, counts = np.unique(-order, return_inverse=True, return_counts=True)
    answered = counts.cumsum()
    total = np.bincount(place, losses).cumsum()
    return answered / len(losses), total / answered, counts


def _probabilities(name: str, found: np.ndarray) -> np.ndarray:
    """Refuses numbers outside of 0 to 1; a little rounding is taken away."""
    if (found < -1e-6).any() or (found > 1 + 1e-6).any():
        wrong = found[(found < -1e-6) | (found > 1 + 1e-6)][0]
        raise ValueError(
            f"expected {name} from 0 to 1, got {wrong:g}; give probabilities: logits.sigmoid(), "
            "logits.softmax(-1)"
        )
    return np.clip(found, 0.0, 1.0)


def _central_counts(count: int, share: float) -> tuple[float, float]:
    """Ends of the central 95 % of a binomial distribution."""
    k = np.arange(count + 1)
    ways = lgamma(count + 1) - np.array([lgamma(n + 1) + lgamma(count - n + 1) for n in k.tolist()])
    with np.errstate(divide="ignore", invalid="ignore"):  # a share of 1: one bar with everything
        rest = np.where(k == count, 0.0, (count - k) * np.log1p(-share))
    masses = np.exp(ways + k * np.log(share) + rest)
    total = masses.cumsum()
    return float(np.searchsorted(total, 0.025)), float(np.searchsorted(total, 0.975))


def _judged(probabilities: Any, outcomes: Any) -> tuple[np.ndarray, np.ndarray]:
    """What was said and whether it came true, ``(N,)`` each."""
    said = _probabilities("probabilities", doubles_of("probabilities", probabilities))
    came = vector_of("outcomes", outcomes)
    if said.ndim not in (1, 2) or len(said) != len(came):
        raise ValueError(
            f"expected probabilities of shape (N,) or (N, K) and outcomes (N,), got {said.shape} "
            f"and {came.shape}; give one outcome for each row"
        )
    if np.isnan(said).any() or np.isnan(came).any():
        raise ValueError("expected complete probabilities and outcomes, got NaN; leave them out")
    most = 1 if said.ndim == 1 else said.shape[1] - 1
    if ((came != np.round(came)) | (came < 0) | (came > most)).any():
        raise ValueError(
            f"expected outcomes that are whole numbers from 0 to {most}, got "
            f"{came[(came != np.round(came)) | (came < 0) | (came > most)][0]:g}; give "
            "probabilities (N, K) for K classes"
        )
    if said.ndim == 1:
        return said, came
    return said.max(1), (said.argmax(1) == came).astype(float)


def _wilson(shares: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval of 95 % for shares."""
    spread = Z95**2 / counts
    middle = (shares + spread / 2) / (1 + spread)
    half = Z95 * np.sqrt(shares * (1 - shares) / counts + spread / (4 * counts)) / (1 + spread)
    return middle - half, middle + half
