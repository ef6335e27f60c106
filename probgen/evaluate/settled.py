"""Whether a loss had stopped changing when training stopped."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NEGLIGIBLE = 1e-4  # a change that no use of the model would notice, relative to the loss
SHORTEST = 40  # entries: two quarters of ten, the fewest whose correlation can be estimated at all


def settled(losses: Sequence[float], *, relative: float = 0.02) -> bool:
    r"""Whether the loss of the last quarter of a run equals that of the quarter before.

    As far as its noise can tell.

    .. math:: |\bar\ell_3 - \bar\ell_4| \le 3\,\mathrm{se}
              \quad\text{or}\quad |\bar\ell_3 - \bar\ell_4|
              \le \max(0.02\,|\mathrm{median}(\ell_1) - \bar\ell_4|,\ 10^{-4}\,|\bar\ell_4|)

    with quarter means :math:`\bar\ell_i`: the change is within the noise, or a fiftieth of what the
    run as a whole has gained since its first quarter, or a ten-thousandth of the loss. The standard
    error counts correlated losses for what they are worth, through the autocorrelation time of the
    detrended second half. A loss that rises has not settled either.

    Parameters
    ----------
    losses : sequence of float
        One entry per step (or epoch), oldest first.
    relative : float
        Share of the total gain that a change between quarters may have and still count as none.

    Returns
    -------
    bool
        False also where it cannot be told: fewer than 40 entries, or any that is not finite.

    References
    ----------
    Geyer (1992), Practical Markov chain Monte Carlo, Statistical Science 7(4),
    https://doi.org/10.1214/ss/1177011137 (the truncation of the autocorrelations); Welandawe,
    Andersen, Vehtari, Huggins (2024), A framework for improving the reliability of black-box
    variational inference, https://arxiv.org/abs/2203.15945 (the problem in general).

    >>> settled([1 / step for step in range(1, 101)]), settled([0.5**step for step in range(100)])
    (False, True)
    """
    loss = torch.as_tensor(losses, dtype=torch.float64)
    if len(loss) < SHORTEST or not loss.isfinite().all():
        return False
    quarter = len(loss) // 4
    third, fourth = loss[-2 * quarter : -quarter], loss[-quarter:]
    change = (third.mean() - fourth.mean()).abs()
    gain = (loss[:quarter].median() - fourth.mean()).abs()
    noise = _standard_error(torch.cat([third, fourth]))
    return change.item() <= max(
        3 * noise.item(), relative * gain.item(), NEGLIGIBLE * fourth.mean().abs().item()
    )


def _standard_error(half: Tensor) -> Tensor:
    """Standard error of the difference between the means of the two halves of a correlated series."""
    noise = _detrended(half)
    variance = noise.square().mean() * autocorrelation_time(noise)
    return (4 * variance / len(half)).sqrt()


def _detrended(series: Tensor) -> Tensor:
    """Residuals of a straight line: a trend is what the test looks for, not noise."""
    time = torch.linspace(-1, 1, len(series), dtype=series.dtype)
    slope = (series * time).mean() / time.square().mean()
    return series - series.mean() - slope * time


def autocorrelation_time(series: Tensor) -> Tensor:
    r"""How many entries of a correlated series are worth one independent entry, at least one.

    ``(T,) -> ()``.

    .. math:: \tau = 1 + 2 \sum_{t \ge 1} \rho_t

    summed over adjacent pairs of lags while these are positive (Geyer's initial positive sequence).

    >>> autocorrelation_time(torch.tensor([1.0, -1.0] * 50))
    tensor(1.)
    """
    n = len(series)
    spectrum = torch.fft.rfft(series - series.mean(), n=2 * n).abs().square()
    covariance = torch.fft.irfft(spectrum)[: n - n % 2]
    pairs = (
        (covariance / covariance[0].clamp(min=torch.finfo(series.dtype).tiny)).reshape(-1, 2).sum(1)
    )
    positive = (pairs > 0).cumprod(0)
    return (2 * (pairs * positive).sum() - 1).clamp(min=1.0)
