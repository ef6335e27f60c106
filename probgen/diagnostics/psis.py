"""Pareto smoothed importance sampling: how far a set of importance weights can be trusted."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ROUNDING = (
    0.01  # nats: weights this close to each other differ by less than the arithmetic that made them
)
_FEWEST = 5  # points that determine the shape of a tail
SHORTEST = 5 * _FEWEST  # draws, of which a fifth is the tail
BLOCK = 2**22  # numbers held at once by the fit of the tails


def effective_sample_size(log_weights: Tensor) -> Tensor:
    r"""Number of equally weighted draws that are worth as much as these weighted ones.

    ``(K, *rest) -> (*rest,)``.

    .. math:: \mathrm{ESS} = \frac{(\sum_k w_k)^2}{\sum_k w_k^2} \in [1, K]

    It is 1 where one draw has all the weight, and 0 where a weight is NaN or infinite, or all of
    them are zero.

    Source: Kong (1992), A note on importance sampling using standardized weights, University of
    Chicago, TR 348.

    >>> effective_sample_size(torch.tensor([0.0, 0.0, -torch.inf, -torch.inf]))
    tensor(2.)
    """
    relative = log_weights - log_weights.detach().amax(0)
    return (2 * relative.logsumexp(0) - (2 * relative).logsumexp(0)).exp().nan_to_num(0.0)


def pareto_khat(log_weights: Tensor) -> Tensor:
    """Tail index of the weights, see :func:`pareto_smooth`: ``(K, *rest) -> (*rest,)``.

    >>> _ = torch.manual_seed(0)
    >>> heavy = -torch.rand(4000).log()              # exp() of it has P(w > t) = 1 / t, tail index 1
    >>> bool((pareto_khat(heavy) - 1).abs() < 0.2)
    True
    """
    return pareto_smooth(log_weights)[1]


def khat_stderr(khat: Tensor, draws: int) -> float:
    r"""Standard error of one k-hat, or of the median of several rows.

    ``()`` or ``(rows,)``. Of one it is that of the maximum likelihood estimate from M tail draws,
    :math:`(1 + k) / \sqrt M`, less what the prior of ten observations takes; of the median of R rows
    with independent draws it follows from their spread, :math:`\sqrt{\pi / 2}\, s / \sqrt R`.

    Source: Smith (1987), Estimating tails of probability distributions,
    https://doi.org/10.1214/aos/1176350499.

    >>> round(khat_stderr(torch.tensor(0.7), 200), 2), round(khat_stderr(torch.tensor(0.7), 4000), 2)
    (0.22, 0.12)
    """
    if khat.ndim and len(khat) > 1:
        known = khat[khat.isfinite()].double()
        if not len(known):
            return 0.0
        return math.sqrt(math.pi / 2 / len(known)) * known.std(correction=0).item()
    tail = _tail_length(draws)
    value = khat.flatten()[0].item()
    if not math.isfinite(value):
        return 0.0
    return (1 + max(value, 0.0)) * math.sqrt(tail) / (tail + 10)


def pareto_smooth(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    r"""Pareto smoothed importance sampling.

    Tames the largest weights and says whether that was enough.

    A generalized Pareto distribution with shape k is fitted to the ``min(K / 5, 3 sqrt(K))``
    largest weights, which are then replaced by its quantiles. Moments of the weights up to order
    1/k exist: below 0.5 the variance is finite, above 0.7 neither the weighted average nor its
    error bar can be trusted, at 1 the mean is infinite.

    Parameters
    ----------
    log_weights : Tensor
        ``(K, *rest)`` in nats, K >= 25 independent draws.

    Returns
    -------
    (Tensor, Tensor)
        Normalized smoothed log weights ``(K, *rest)``, and k-hat ``(*rest,)``: 0 where the weights
        (or the whole tail) are equal up to rounding; infinity where a weight is NaN or infinite,
        fewer than five are larger than those below the tail (which is so where one draw has all the
        weight), or a few draws tied at the top carry all: fewer than five different weights make the
        tail, and the effective sample size is below half its length.

    Raises
    ------
    ValueError
        With fewer than 25 draws.

    References
    ----------
    Vehtari, Simpson, Gelman, Yao, Gabry (2024), Pareto smoothed importance sampling, JMLR 25(72),
    https://jmlr.org/papers/v25/19-556.html. The fit: Zhang, Stephens (2009), A new and efficient
    estimation method for the generalized Pareto distribution, Technometrics 51(3),
    https://doi.org/10.1198/tech.2009.08017
    """
    if not log_weights.is_floating_point():
        log_weights = log_weights.to(torch.get_default_dtype())
    draws = len(log_weights)
    if draws < SHORTEST:
        raise ValueError(
            f"expected at least {SHORTEST} draws for a tail index, got {draws}; draw more particles"
        )
    flat = log_weights.detach().double().reshape(draws, -1)
    width = max(1, BLOCK // (draws + 40 * _tail_length(draws)))
    blocks = [_smooth(block) for block in flat.split(width, dim=1)]
    smoothed, khat = (torch.cat(parts, dim=-1) for parts in zip(*blocks, strict=True))
    return smoothed.reshape(log_weights.shape).to(log_weights.dtype), khat.reshape(
        log_weights.shape[1:]
    ).to(log_weights.dtype)


def _tail_length(draws: int) -> int:
    return math.ceil(min(draws / 5, 3 * math.sqrt(draws)))


def _smooth(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Smoothed log weights and k-hat of every column: ``(K, R) -> (K, R), (R,)``."""
    log_weights = log_weights - log_weights.amax(0)
    ordered, order = log_weights.sort(0)
    length = _tail_length(len(log_weights))
    cutoff = ordered[-length - 1].clamp(min=math.log(torch.finfo(ordered.dtype).tiny))
    tail = ordered[-length:].clone()
    members = (ordered[-length:] > cutoff).sum(0)
    broken = ~(log_weights < torch.inf).all(0)
    flat = ~broken & ((ordered[-1] - ordered[0] < ROUNDING) | (members == 0))
    khat = torch.full_like(cutoff, torch.inf).masked_fill(flat, 0.0)
    members = members.masked_fill(flat | broken | _tied(log_weights, tail, cutoff), 0)
    for n in members.unique().tolist():
        if n >= _FEWEST:
            columns = (members == n).nonzero()[:, 0]
            tail[-n:, columns], khat[columns] = _smooth_tail(
                tail[-n:, columns], cutoff[columns].exp()
            )
    smoothed = log_weights.scatter(0, order[-length:], tail)
    return smoothed - smoothed.logsumexp(0), khat


def _tied(log_weights: Tensor, tail: Tensor, cutoff: Tensor) -> Tensor:
    """Whether a few draws of one weight carry all: ``(K, R), (M, R), (R,) -> (R,)``.

    Equal excesses fit a Pareto distribution with a negative shape, that of bounded weights: but
    they show one region, met by chance, and no tail. Levels that many draws share, as a discrete
    latent gives them, are none of that kind.
    """
    levels = 1 + ((tail.diff(dim=0) > ROUNDING) & (tail[:-1] > cutoff)).sum(0)
    return (levels < _FEWEST) & (effective_sample_size(log_weights) < len(tail) / 2)


def _smooth_tail(tail: Tensor, cutoff: Tensor) -> tuple[Tensor, Tensor]:
    """Log weights above the cutoff, ascending, smoothed; and their k-hat.

    ``(n, R), (R,) -> (n, R), (R,)``.
    """
    shape, scale = _fit_pareto(tail.exp() - cutoff)
    smoothed = (_pareto_quantiles(len(tail), shape, scale) + cutoff).log().clamp(max=0)
    return torch.where(shape.isfinite(), smoothed, tail), shape.nan_to_num(
        torch.inf, posinf=torch.inf
    )


def _fit_pareto(excess: Tensor) -> tuple[Tensor, Tensor]:
    """Shape and scale of a generalized Pareto distribution, by columns of sorted excesses.

    ``(M, R) -> (R,), (R,)``.

    The quasi-Bayesian estimate of Zhang and Stephens, with the weak prior of Vehtari et al.: ten
    observations of 1/2.
    """
    n = len(excess)
    quartile = excess[int(n / 4 + 0.5) - 1]
    quartile = torch.where(
        quartile > 0, quartile, excess.mean(0)
    )  # a quarter of the tail may sit at the cutoff
    points = torch.arange(1, 31 + int(math.sqrt(n)), dtype=excess.dtype, device=excess.device)
    grid = (1 - (len(points) / (points - 0.5)).sqrt())[:, None] / (3 * quartile) + 1 / excess[-1]
    shapes = torch.log1p(-grid[:, None] * excess).mean(1)
    log_likelihood = n * ((-grid / shapes).log() - shapes - 1)
    theta = (log_likelihood.softmax(0) * grid).sum(0)
    shape = torch.log1p(-theta * excess).mean(0)
    return (n * shape + 5) / (n + 10), -shape / theta


def _pareto_quantiles(n: int, shape: Tensor, scale: Tensor) -> Tensor:
    """Quantiles at (i - 1/2) / n: ``(n, R)``."""
    p = (torch.arange(n, dtype=shape.dtype, device=shape.device)[:, None] + 0.5) / n
    return scale * torch.expm1(-shape * torch.log1p(-p)) / shape
