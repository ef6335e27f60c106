"""The Fréchet distance between the Gaussians of two samples.

With its sampling error and its baseline.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.keywords import explained
from probgen.evaluate.choices import check_choices
from probgen.evaluate.result import TwoSample
from probgen.evaluate.rows import Features, baselines_of, beyond, interval, raw
from probgen.evaluate.units import Standardization, compared


@explained
def frechet_distance(
    samples: Tensor,
    real: Tensor,
    *,
    features: Features = raw,
    standardize: Standardization = "auto",
    reference: Tensor | None = None,
    splits: int = 4,
    seed: int = 0,
    max_rows: int = 1024,
) -> TwoSample:
    r"""Fréchet distance of the means and covariances of features.

    With Inception's features it is the FID.

    .. math:: d^2 = |\mu_1 - \mu_2|^2 + \mathrm{tr}\big(\Sigma_1 + \Sigma_2
              - 2 (\Sigma_1^{1/2} \Sigma_2 \Sigma_1^{1/2})^{1/2}\big)

    The estimate is too large, by about :math:`c\,(1/N + 1/M)`: that is the baseline, and also what
    remains for a perfect model. Compare values of equal N and M only, and look at ``excess``. The
    matrix root is exact (from eigenvalues).

    The standard error is that of the linear part of the statistic (its influence function in both
    samples), less what that part has for real rows against real rows, and with the spread of the
    baseline over the splits.

    Parameters
    ----------
    samples, real : Tensor
        ``(N, *event)`` and ``(M, *event)``; more rows than features, or the covariances are
        singular (which is allowed, but the baseline is then a rough one).
    features : callable
        ``(n, *event) -> (n, F)``.
    standardize : bool or "auto"
        Whether columns are divided by their standard deviation among the real rows (images by one
        number; constant columns are left alone): default for the values themselves, not for the
        features of a network. ``False``: raw units.
    reference : Tensor, optional
        Real rows ``(R, *event)`` that are not in ``real``, for the baseline; without them ``real`` is
        split at random, and the baseline scaled to N and M rows by the factor that the bias has.
    splits : int
        Real-against-real pairs that the baseline is a mean of; 0 for no baseline.
    seed : int
        For the splits.
    max_rows : int
        Rows whose features are computed, or covariances added, at once.

    Returns
    -------
    TwoSample
        In squared units of the features.

    Raises
    ------
    ValueError
        For fewer than four rows, NaN, or events of different shapes.

    References
    ----------
    Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter (2017), GANs trained by a two time-scale
    update rule converge to a local Nash equilibrium, https://arxiv.org/abs/1706.08500; the bias:
    Chong, Forsyth (2020), Effectively unbiased FID and Inception score,
    https://arxiv.org/abs/1911.07023

    >>> _ = torch.manual_seed(0)
    >>> x, y = torch.randn(2, 4000, 2)
    >>> shifted = frechet_distance(x + torch.tensor([3.0, 0.0]), y)
    >>> 8.5 < shifted.value < 9.5, frechet_distance(x, y).value < 0.01
    (True, True)
    """
    check_choices(features, standardize, seed=seed, max_rows=max_rows, splits=splits)
    found, units = compared(features, standardize, samples, real, reference, max_rows=max_rows)
    statistic = partial(_with_error, max_rows=max_rows)
    value, stderr = statistic(found[0], found[1])
    baseline, linear = baselines_of(statistic, found, splits=splits, seed=seed, rate=1.0)
    error = interval(value, beyond(stderr, linear.mean or 0.0, baseline.spread), low=0.0)
    rows = len(found[0]), len(found[1])
    return TwoSample(
        "Fréchet distance",
        value,
        **error,
        baseline=baseline.mean,
        rows=rows,
        baseline_rows=baseline.rows,
        units=units,
    )


def gaussian_frechet(
    mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor
) -> Tensor:
    """Squared Fréchet (2-Wasserstein) distance of two Gaussians.

    ``(F,), (F, F), (F,), (F, F) -> ()``.

    Source: Dowson, Landau (1982), The Fréchet distance between multivariate normal distributions,
    https://doi.org/10.1016/0047-259X(82)90077-X

    >>> gaussian_frechet(torch.zeros(2), torch.eye(2), torch.ones(2), 4 * torch.eye(2))
    tensor(4., dtype=torch.float64)
    """
    checks.instance(
        Tensor,
        mean=mean,
        covariance=covariance,
        other_mean=other_mean,
        other_covariance=other_covariance,
    )
    moments = [part.double() for part in (mean, covariance, other_mean, other_covariance)]
    return torch.as_tensor(
        _distance(_Moments(*moments[:2]), _Moments(*moments[2:])), dtype=torch.double
    )


@dataclass(frozen=True)
class _Moments:
    mean: Tensor
    covariance: Tensor


def _moments(rows: Tensor, max_rows: int) -> _Moments:
    """Mean and unbiased covariance in double precision, ``max_rows`` rows at a time."""
    mean = torch.stack([part.double().sum(0) for part in rows.split(int(max_rows))]).sum(0) / len(
        rows
    )
    scatter = rows.new_zeros(rows.shape[1], rows.shape[1], dtype=torch.double)
    for part in rows.split(int(max_rows)):
        centered = part.double() - mean
        scatter.addmm_(centered.T, centered)
    return _Moments(mean, scatter / (len(rows) - 1))


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _between(first: _Moments, second: _Moments) -> tuple[Tensor, Tensor]:
    r"""The root of one covariance, and :math:`\Sigma_1^{1/2} \Sigma_2 \Sigma_1^{1/2}`."""
    root = _root(first.covariance)
    middle = root @ second.covariance @ root
    return root, (middle + middle.T) / 2


def _distance(first: _Moments, second: _Moments) -> float:
    return _value(first, second, torch.linalg.eigvalsh(_between(first, second)[1]))


def _value(first: _Moments, second: _Moments, eigenvalues: Tensor) -> float:
    shift = (first.mean - second.mean).square().sum()
    traces = first.covariance.trace() + second.covariance.trace()
    return max(0.0, (shift + traces - 2 * eigenvalues.clamp(min=0).sqrt().sum()).item())


def _with_error(rows: Tensor, others: Tensor, max_rows: int) -> tuple[float, float]:
    r"""The distance and the standard error of its linear part.

    The derivatives by the covariances are :math:`I - T` and :math:`I - T^{-1}`, where :math:`T =
    \Sigma_1^{-1/2} (\Sigma_1^{1/2} \Sigma_2 \Sigma_1^{1/2})^{1/2} \Sigma_1^{-1/2}` transports the
    first Gaussian to the second.
    """
    first = _moments(rows, max_rows)
    second = _moments(others, max_rows)
    root, middle = _between(first, second)
    eigenvalues, vectors = torch.linalg.eigh(middle)
    value = _value(first, second, eigenvalues)
    inverse = torch.linalg.pinv(root, hermitian=True)
    scaled = eigenvalues.clamp(min=0).sqrt()
    safe = torch.where(eigenvalues > eigenvalues.amax() * 1e-12, scaled.reciprocal(), 0.0)
    there = inverse @ (vectors * scaled) @ vectors.T @ inverse
    back = root @ (vectors * safe) @ vectors.T @ root
    shift = first.mean - second.mean
    variance = _influence(rows, first.mean, 2 * shift, there, max_rows)
    variance = variance + _influence(others, second.mean, -2 * shift, back, max_rows)
    return value, variance.sqrt().item()


def _influence(
    rows: Tensor, mean: Tensor, slope: Tensor, transport: Tensor, max_rows: int
) -> Tensor:
    """Variance of the mean influence of the rows."""
    influence = []
    for part in rows.split(int(max_rows)):
        centered = part.double() - mean
        influence.append(
            centered @ slope + centered.square().sum(1) - (centered @ transport * centered).sum(1)
        )
    return torch.cat(influence).var() / len(rows)
