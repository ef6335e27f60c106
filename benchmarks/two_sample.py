"""Time and peak memory of the two-sample comparisons, beside plain code for the same numbers.

python benchmarks/two_sample.py --rows 10000 --features 2048 --threads 1
"""

import argparse
import resource
import time

import torch

from probgen.evaluate import (
    classifier_two_sample_test,
    copying_test,
    density_coverage,
    energy_test,
    frechet_distance,
    kernel_distance,
    mmd_test,
    precision_recall,
    sliced_wasserstein_distance,
    wasserstein_distance,
)
from probgen.evaluate.classifiers import Logistic, NearestNeighbors


def timed(name, function):
    start = time.perf_counter()
    value = function()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{name:44s} {time.perf_counter() - start:7.2f} s   peak {peak:5.2f} GiB   {value}",
        flush=True,
    )


def plain_frechet(x, y):
    """As in the usual FID scripts: scipy's root of the product of the covariances."""
    import numpy as np
    from scipy.linalg import sqrtm

    x = x.double().numpy()
    y = y.double().numpy()
    first = np.cov(x, rowvar=False)
    second = np.cov(y, rowvar=False)
    root = sqrtm(first @ second).real
    return (
        ((x.mean(0) - y.mean(0)) ** 2).sum()
        + np.trace(first)
        + np.trace(second)
        - 2 * np.trace(root)
    )


def plain_precision_recall(x, y, k=3):
    """All distances at once."""
    own = torch.cdist(x, x)
    other = torch.cdist(y, y)
    cross = torch.cdist(x, y)
    around_x, around_y = (d.kthvalue(k + 1).values for d in (own, other))
    precision = (cross <= around_y).any(1)
    recall = (cross <= around_x[:, None]).any(0)
    return precision.double().mean().item(), recall.double().mean().item()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--most", type=int, default=2000, help="rows of tests and exact transport")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="also plain code for the same numbers")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    x = torch.randn(options.rows, options.features)
    y = 1.02 * torch.randn(options.rows, options.features)
    print(f"{options.rows} rows of {options.features} features, {options.threads} thread(s)")
    timed("frechet_distance, value and error", lambda: frechet_distance(x, y, splits=0))
    timed("frechet_distance, with its baseline (4 splits)", lambda: frechet_distance(x, y))
    timed("kernel_distance, with its baseline", lambda: kernel_distance(x, y))
    timed("sliced_wasserstein, with its baseline", lambda: sliced_wasserstein_distance(x, y))
    timed("precision_recall", lambda: precision_recall(x, y, splits=0)[0])
    timed("precision_recall, with its baseline (2 splits)", lambda: precision_recall(x, y)[1])
    timed("density_coverage", lambda: density_coverage(x, y, splits=0)[1])
    timed("copying_test", lambda: copying_test(x, y, x.flip(1)))
    few = x[: options.most]
    much = y[: options.most]
    timed(f"mmd_test, 500 permutations, {len(few)} rows", lambda: mmd_test(few, much))
    timed(f"energy_test, 500 permutations, {len(few)} rows", lambda: energy_test(few, much))
    for classifier in (Logistic(), NearestNeighbors()):
        timed(
            f"classifier test, {type(classifier).__name__}, 64 features",
            lambda c=classifier: classifier_two_sample_test(
                few[:, :64], much[:, :64], classifier=c
            ),
        )
    timed(f"wasserstein, exact, {len(few)} rows", lambda: wasserstein_distance(few, much, splits=0))
    if options.plain:
        timed("plain Fréchet: scipy.linalg.sqrtm", lambda: plain_frechet(x, y))
        timed("plain precision and recall: torch.cdist", lambda: plain_precision_recall(x, y))


if __name__ == "__main__":
    main()
