"""Time and peak memory of the two-sample comparisons, beside plain code for the same numbers.

python benchmarks/two_sample.py --rows 10000 --features 2048 --threads 1
"""

import torch
from common import command_line, resident, timed

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


def show(name, function):
    seconds, value = timed(function)
    print(f"{name:44s} {seconds:7.2f} s   peak {resident() / 2**10:5.2f} GiB   {value}", flush=True)


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
    parser = command_line(__doc__)
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
    show("frechet_distance, value and error", lambda: frechet_distance(x, y, splits=0))
    show("frechet_distance, with its baseline (4 splits)", lambda: frechet_distance(x, y))
    show("kernel_distance, with its baseline", lambda: kernel_distance(x, y))
    show("sliced_wasserstein, with its baseline", lambda: sliced_wasserstein_distance(x, y))
    show("precision_recall", lambda: precision_recall(x, y, splits=0)[0])
    show("precision_recall, with its baseline (2 splits)", lambda: precision_recall(x, y)[1])
    show("density_coverage", lambda: density_coverage(x, y, splits=0)[1])
    show("copying_test", lambda: copying_test(x, y, x.flip(1)))
    few = x[: options.most]
    much = y[: options.most]
    show(f"mmd_test, 500 permutations, {len(few)} rows", lambda: mmd_test(few, much))
    show(f"energy_test, 500 permutations, {len(few)} rows", lambda: energy_test(few, much))
    for classifier in (Logistic(), NearestNeighbors()):
        show(
            f"classifier test, {type(classifier).__name__}, 64 features",
            lambda c=classifier: classifier_two_sample_test(
                few[:, :64], much[:, :64], classifier=c
            ),
        )
    show(f"wasserstein, exact, {len(few)} rows", lambda: wasserstein_distance(few, much, splits=0))
    if options.plain:
        show("plain Fréchet: scipy.linalg.sqrtm", lambda: plain_frechet(x, y))
        show("plain precision and recall: torch.cdist", lambda: plain_precision_recall(x, y))


if __name__ == "__main__":
    main()
