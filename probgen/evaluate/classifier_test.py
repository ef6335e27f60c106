"""Whether a classifier can tell samples from real rows, with a permutation p-value."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.keywords import explained
from probgen.evaluate.choices import check_choices
from probgen.evaluate.classifiers import Classifier, Logistic
from probgen.evaluate.result import TwoSample
from probgen.evaluate.rows import (
    Z95,
    Features,
    centered,
    generator,
    raw,
    statistic_baseline,
    subsample,
)
from probgen.evaluate.units import Standardization, compared


@explained
def classifier_two_sample_test(
    samples: Tensor,
    real: Tensor,
    *,
    features: Features = raw,
    standardize: Standardization = "auto",
    reference: Tensor | None = None,
    classifier: Classifier = Logistic(),  # noqa: B008  (frozen)
    folds: int = 5,
    permutations: int = 200,
    splits: int = 1,
    seed: int = 0,
    max_rows: int = 1024,
) -> TwoSample:
    r"""Cross-validated accuracy of a classifier that tells samples from real rows.

    1/2 where it cannot.

    .. math:: \frac{1}{2n} \sum_i \mathbb 1\big[\mathbb 1[f_{-k(i)}(z_i) > 0] = l_i\big]

    over n samples and n real rows, each judged by the classifier that was trained without its fold.
    The larger sample is cut to the size of the other. The p-value is the rank of the accuracy among
    those of permuted labels, each cross-validated in the same folds: exact, where a binomial one
    would forget that the folds share their rows. The interval is Wilson's, with judged rows counted
    as independent.

    Parameters
    ----------
    samples, real : Tensor
        ``(N, *event)`` and ``(M, *event)``.
    features : callable
        ``(n, *event) -> (n, F)``.
    standardize : bool or "auto"
        Whether columns are divided by their standard deviation among all rows (images by one
        number; constant columns are left alone): default for the values themselves, not for the
        features of a network. ``False``: raw units.
    reference : Tensor, optional
        Real rows that are not in ``real``, for the baseline; without them ``real`` is split.
    classifier : callable
        :class:`Logistic`, :class:`NearestNeighbors`, :class:`Network` or your own: rows ``(n,
        F)``, labels ``(n, P)`` in {0, 1} and new rows ``(m, F)`` to scores ``(m, P)``, positive for
        ones.
    folds : int
        Of the cross-validation.
    permutations : int
        The smallest p-value is ``1 / (permutations + 1)``; 0 for the normal approximation to the
        binomial distribution.
    splits : int
        Real-against-real pairs for the baseline; 0 for no baseline.
    seed : int
        For folds, permutations and splits.
    max_rows : int
        Rows whose features are computed at once.

    References
    ----------
    Lopez-Paz, Oquab (2017), Revisiting classifier two-sample tests,
    https://arxiv.org/abs/1610.06545

    >>> _ = torch.manual_seed(0)
    >>> result = classifier_two_sample_test(torch.randn(200, 2), torch.randn(200, 2) + 1.0)
    >>> 0.65 < result.value < 0.85, result.p_value < 0.01
    (True, True)
    """
    check_choices(features, standardize, seed=seed, max_rows=max_rows, splits=splits)
    checks.at_least(2, folds=folds)
    checks.at_least(0, permutations=permutations)
    checks.function(classifier=classifier)
    found, units = compared(
        features, standardize, samples, real, reference, max_rows=max_rows, pooled=True
    )
    found = centered(found)

    def accuracies(one: Tensor, other: Tensor, count: int) -> Tensor:
        size = min(len(one), len(other))
        pooled = torch.cat([subsample(one, size, seed), subsample(other, size, seed)])
        return _accuracies(pooled, classifier, folds, count, seed)

    values = accuracies(found[0], found[1], permutations)
    value = values[0].item()
    null = values[1:]
    rows = min(len(found[0]), len(found[1]))
    p_value = (
        (1 + (null >= values[0]).sum().item()) / (1 + len(null))
        if permutations
        else _binomial(value, 2 * rows)
    )
    baseline = statistic_baseline(
        lambda one, other: accuracies(one, other, 0).item(), found, splits=splits, seed=seed
    )
    stderr = math.sqrt(value * (1 - value) / (2 * rows))
    limits = _wilson(value, 2 * rows)
    about = (p_value, (rows, rows), baseline.rows, units)
    return TwoSample("classifier test", value, stderr, limits, baseline.mean, *about)


def _accuracies(
    pooled: Tensor, classifier: Classifier, folds: int, permutations: int, seed: int
) -> Tensor:
    """Out-of-fold accuracy under the true labels and under permuted ones: ``(1 + permutations,)``.

    The folds do not look at the labels, or the true labeling would not be one among equals.
    """
    total = len(pooled)
    random = generator(seed)
    if not 2 <= folds <= total // 2:
        raise ValueError(f"expected 2 to {total // 2} folds, got {folds}")
    fold = (torch.randperm(total, generator=random) % folds).to(pooled.device)
    orders = torch.rand(permutations, total, generator=random).argsort(1)
    labels = (
        torch.cat([torch.arange(total)[None], orders]).lt(total // 2).T.double().to(pooled.device)
    )
    correct = pooled.new_zeros(1 + permutations, dtype=torch.double)
    for number in range(folds):
        train = fold != number
        judged = fold == number
        scores = classifier(pooled[train], labels[train], pooled[judged])
        correct += ((scores > 0) == (labels[judged] > 0)).sum(0)
    return correct / total


def _binomial(accuracy: float, rows: int) -> float:
    return math.erfc((accuracy - 0.5) * math.sqrt(4 * rows) / math.sqrt(2)) / 2


def _wilson(share: float, rows: int) -> tuple[float, float]:
    z2 = Z95**2 / rows
    middle = (share + z2 / 2) / (1 + z2)
    width = Z95 * math.sqrt(share * (1 - share) / rows + z2 / (4 * rows)) / (1 + z2)
    return middle - width, middle + width
