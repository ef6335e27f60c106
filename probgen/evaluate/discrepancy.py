"""Mean discrepancies in a kernel's space: the KID with its blocks, and permutation tests."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.keywords import explained
from probgen.evaluate.choices import check_choices
from probgen.evaluate.kernels import (
    GaussianKernel,
    KernelFunction,
    PolynomialKernel,
    energy_kernel,
)
from probgen.evaluate.result import TwoSample
from probgen.evaluate.rows import (
    MEMORY,
    Z95,
    Features,
    beyond,
    centered,
    chunk_rows,
    generator,
    interval,
    raw,
    statistic_baseline,
)
from probgen.evaluate.units import Standardization, compared

SOME = 20  # permutations whose standard errors are computed too


@explained
def kernel_distance(
    samples: Tensor,
    real: Tensor,
    *,
    features: Features = raw,
    standardize: Standardization = "auto",
    reference: Tensor | None = None,
    kernel: KernelFunction = PolynomialKernel(),  # noqa: B008  (frozen)
    block: int = 1000,
    splits: int = 1,
    seed: int = 0,
    max_rows: int = 1024,
) -> TwoSample:
    r"""Squared kernel distance, unbiased at any number of rows.

    With Inception's features it is the KID.

    .. math:: \widehat{\mathrm{MMD}}^2 = \frac{\sum_{i \ne j} k(x_i, x_j)}{n (n - 1)}
              + \frac{\sum_{i \ne j} k(y_i, y_j)}{m (m - 1)} - \frac{2 \sum_{ij} k(x_i, y_j)}{n m}

    as the mean over disjoint blocks of rows (at least ten), which are independent: their spread
    gives the standard error, and Student's distribution the interval. Values below zero are noise
    around zero.

    Parameters
    ----------
    samples, real : Tensor
        ``(N, *event)`` and ``(M, *event)``, at least 40 rows each.
    features : callable
        ``(n, *event) -> (n, F)``.
    standardize : bool or "auto"
        Whether columns are divided by their standard deviation among the real rows (images by one
        number; constant columns are left alone): default for the values themselves, not for the
        features of a network. ``False``: raw units.
    reference : Tensor, optional
        Real rows that are not in ``real``, for the baseline; without them ``real`` is split.
    kernel : callable
        ``(n, F), (m, F) -> (n, m)``.
    block : int
        Most rows in a block: memory and time grow with its square.
    splits : int
        Real-against-real pairs for the baseline; 0 for no baseline.
    seed : int
        For blocks and splits.
    max_rows : int
        Rows whose features are computed at once.

    References
    ----------
    Bińkowski, Sutherland, Arbel, Gretton (2018), Demystifying MMD GANs,
    https://arxiv.org/abs/1801.01401

    >>> _ = torch.manual_seed(0)
    >>> result = kernel_distance(torch.randn(1000, 2), torch.randn(1000, 2))
    >>> result.interval[0] < 0 < result.interval[1]
    True
    """
    check_choices(features, standardize, seed=seed, max_rows=max_rows, splits=splits)
    checks.function(kernel=kernel)
    checks.at_least(2, block=block)
    found, units = compared(features, standardize, samples, real, reference, max_rows=max_rows)
    blocks = partial(_block_values, kernel=kernel, block=block, seed=seed)
    values = blocks(found[0], found[1])
    baseline = statistic_baseline(
        lambda *pair: blocks(*pair).mean().item(), found, splits=splits, seed=seed
    )
    stderr = values.std().item() / math.sqrt(len(values))
    width = stderr * _student(len(values) - 1)
    value = values.mean().item()
    rows = (len(found[0]), len(found[1]))
    limits = value - width, value + width
    return TwoSample(
        "kernel distance",
        value,
        stderr,
        limits,
        baseline.mean,
        rows=rows,
        baseline_rows=baseline.rows,
        units=units,
    )


def _block_values(
    first: Tensor, second: Tensor, kernel: KernelFunction, block: int, seed: int
) -> Tensor:
    """Unbiased estimates of disjoint blocks, ``(blocks,)``."""
    fewest = min(len(first), len(second))
    if fewest < 20:
        raise ValueError(
            f"expected at least 40 rows (20 on either side of a split), got {fewest}; draw more"
        )
    count = max(10, -(-max(len(first), len(second)) // block))
    count = min(count, fewest // 2)
    random = generator(seed)
    parts = []
    for rows in (first, second):
        parts.append(
            rows[torch.randperm(len(rows), generator=random).to(rows.device)].tensor_split(count)
        )
    return torch.stack(
        [_unbiased(kernel, x.double(), y.double()) for x, y in zip(*parts, strict=True)]
    )


def _unbiased(kernel: KernelFunction, x: Tensor, y: Tensor) -> Tensor:
    n = len(x)
    m = len(y)
    own = kernel(x, x)
    other = kernel(y, y)
    within = (own.sum() - own.trace()) / (n * (n - 1)) + (other.sum() - other.trace()) / (
        m * (m - 1)
    )
    return within - 2 * kernel(x, y).mean()


def _student(freedom: int) -> float:
    """97.5 % quantile of Student's distribution.

    By the Cornish-Fisher expansion around the normal one.
    """
    z = Z95
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


@explained
def mmd_test(
    samples: Tensor,
    real: Tensor,
    *,
    features: Features = raw,
    standardize: Standardization = "auto",
    reference: Tensor | None = None,
    kernel: KernelFunction | None = None,
    permutations: int = 500,
    splits: int = 4,
    seed: int = 0,
    memory: int = MEMORY,
    max_rows: int = 1024,
) -> TwoSample:
    r"""Permutation test of whether two samples are of one distribution.

    By the unbiased squared mean discrepancy.

    The statistic is that of :func:`kernel_distance` on all rows. The p-value is the rank of the
    value among those of ``permutations`` random exchanges of rows between the samples, all from one
    pass over the kernel matrix. It is exact at any number of rows. The standard error is that of
    the linear part beyond what it has under permutations, with the spread of the permutations.

    Parameters
    ----------
    samples, real : Tensor
        ``(N, *event)`` and ``(M, *event)``; time grows with ``(N + M)**2``.
    features : callable
        ``(n, *event) -> (n, F)``.
    standardize : bool or "auto"
        Whether columns are divided by their standard deviation among all rows (images by one
        number; constant columns are left alone): default for the values themselves, not for the
        features of a network. ``False``: raw units.
    reference : Tensor, optional
        Real rows that are not in ``real``, for the baseline; without them ``real`` is split.
    kernel : callable, optional
        A :class:`GaussianKernel` at the median distance where it is not given.
    permutations : int
        The smallest p-value is ``1 / (permutations + 1)``.
    splits : int
        Real-against-real pairs for the baseline; 0 for no baseline.
    seed : int
        For permutations and splits.
    memory : int
        Bytes of the kernel matrix held at once.
    max_rows : int
        Rows whose features are computed at once.

    References
    ----------
    Gretton, Borgwardt, Rasch, Schölkopf, Smola (2012), A kernel two-sample test, JMLR 13(25),
    https://jmlr.org/papers/v13/gretton12a.html

    >>> _ = torch.manual_seed(0)
    >>> mmd_test(torch.randn(200, 2), torch.randn(200, 2) + 0.5).p_value < 0.01
    True
    """
    check_choices(features, standardize, seed=seed, max_rows=max_rows, splits=splits, memory=memory)
    checks.function(**checks.given(kernel=kernel))
    checks.at_least(0, permutations=permutations)
    found, units = compared(
        features, standardize, samples, real, reference, max_rows=max_rows, pooled=True
    )
    pair = centered(found)
    kernel = kernel or GaussianKernel.median(*pair[:2], seed=seed)
    return _permutation_test("MMD test", kernel, pair, permutations, splits, seed, memory, units)


@explained
def energy_test(
    samples: Tensor,
    real: Tensor,
    *,
    features: Features = raw,
    standardize: Standardization = "auto",
    reference: Tensor | None = None,
    permutations: int = 500,
    splits: int = 4,
    seed: int = 0,
    memory: int = MEMORY,
    max_rows: int = 1024,
) -> TwoSample:
    r"""Permutation test by the energy distance, which has no bandwidth.

    Arguments as :func:`mmd_test`.

    .. math:: 2\,\mathrm E|x - y| - \mathrm E|x - x'| - \mathrm E|y - y'|

    Source: Székely, Rizzo (2013), Energy statistics, https://doi.org/10.1016/j.jspi.2013.03.018

    >>> _ = torch.manual_seed(0)
    >>> energy_test(torch.randn(200, 2), torch.randn(200, 2) + 0.5).p_value < 0.01
    True
    """
    check_choices(features, standardize, seed=seed, max_rows=max_rows, splits=splits, memory=memory)
    checks.at_least(0, permutations=permutations)
    found, units = compared(
        features, standardize, samples, real, reference, max_rows=max_rows, pooled=True
    )
    pair = centered(found)
    return _permutation_test(
        "energy test", energy_kernel, pair, permutations, splits, seed, memory, units
    )


def _permutation_test(
    name: str,
    kernel: KernelFunction,
    rows: list[Tensor],
    permutations: int,
    splits: int,
    seed: int,
    memory: int,
    units: str,
) -> TwoSample:
    first, second = rows[:2]
    values, errors = _permuted(kernel, first, second, permutations, seed, memory)
    value = values[0].item()
    null = values[1:]
    p_value = (1 + (null >= values[0]).sum().item()) / (1 + len(null)) if permutations else None

    def statistic(one: Tensor, other: Tensor) -> float:
        return _permuted(kernel, one, other, 0, seed, memory)[0].item()

    baseline = statistic_baseline(statistic, rows, splits=splits, seed=seed)
    spread = null.std().item() if len(null) > 1 else baseline.spread
    by_chance = errors[1:].square().mean().sqrt().item() if len(errors) > 1 else 0.0
    error = interval(value, beyond(errors[0].item(), by_chance, spread))
    sizes = len(first), len(second)
    about: dict[str, Any] = {"rows": sizes, "baseline_rows": baseline.rows, "units": units}
    return TwoSample(name, value, **error, baseline=baseline.mean, p_value=p_value, **about)


def _permuted(
    kernel: KernelFunction, first: Tensor, second: Tensor, permutations: int, seed: int, memory: int
) -> tuple[Tensor, Tensor]:
    """The unbiased statistic of the samples and of random exchanges, ``(1 + permutations,)``.

    Some standard errors.
    """
    pooled = torch.cat([first, second])
    n = len(first)
    m = len(second)
    chosen = _labelings(n, n + m, permutations, seed).to(pooled.device)
    inner: Tensor | float = 0.0
    outer: Tensor | float = 0.0
    diagonal: Tensor | float = 0.0
    own: list[float] = []
    sums = []
    for part in pooled.split(chunk_rows(2 * (n + m), memory, pooled.element_size())):
        place = slice(len(own), len(own) + len(part))
        matrix = kernel(part, pooled).double()
        both = matrix @ chosen
        inner = inner + (chosen[place] * both).sum(0)
        outer = outer + both.sum(0)
        self_terms = matrix[torch.arange(len(part)), torch.arange(place.start, place.stop)]
        diagonal = diagonal + self_terms @ chosen[place]
        own += self_terms.tolist()
        sums.append(torch.cat([matrix.sum(1, keepdim=True), both[:, : 1 + SOME]], 1))
    with_all, *with_first = torch.cat(sums).T
    rest = with_all.sum() - 2 * outer + inner
    trace = sum(own)
    within = (inner - diagonal) / (n * (n - 1)) + (rest - (trace - diagonal)) / (m * (m - 1))
    values = within - 2 * (outer - inner) / (n * m)
    picked = chosen.bool()
    itself = torch.tensor(own).to(with_all)
    errors = [
        _linear_error(sums, with_all, itself, picked[:, i], n, m)
        for i, sums in enumerate(with_first)
    ]
    return values, torch.stack(errors)


def _labelings(chosen: int, total: int, permutations: int, seed: int) -> Tensor:
    """Columns of ones and zeros, ``(total, 1 + permutations)``.

    Which rows count as the first sample.
    """
    keys = torch.rand(permutations, total, generator=generator(seed)).argsort(1)
    return torch.cat([torch.arange(total)[None], keys]).lt(chosen).T.double()


def _linear_error(
    with_first: Tensor, with_all: Tensor, own: Tensor, is_first: Tensor, n: int, m: int
) -> Tensor:
    """Standard error from the mean of the kernel between each row and either sample."""
    with_second = with_all - with_first
    in_first = ((with_first - own) / (n - 1) - with_second / m)[is_first]
    in_second = ((with_second - own) / (m - 1) - with_first / n)[~is_first]
    return (4 * (in_first.var() / n + in_second.var() / m)).sqrt()
