"""Samples against real rows.

Every number by another route, every test under one distribution and under two.
"""

import math
import sys

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import scipy.stats
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neighbors import NearestNeighbors as Reference

from probgen.evaluate import (
    GaussianKernel,
    PolynomialKernel,
    RandomFeatures,
    TwoSample,
    classifier_features,
    classifier_two_sample_test,
    copying_test,
    density_coverage,
    energy_test,
    frechet_distance,
    gaussian_frechet,
    kernel_distance,
    mmd_test,
    precision_recall,
    sliced_wasserstein_distance,
    wasserstein_distance,
)
from probgen.evaluate.classifiers import Logistic, NearestNeighbors, Network
from probgen.evaluate.discrepancy import _permuted, _student
from probgen.evaluate.kernels import energy_kernel
from probgen.evaluate.report import sample_report
from probgen.evaluate.rows import distance_blocks, squared_distances, stand_ins


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def two_modes(n, dims=4, share=0.5):
    """Two clusters six standard deviations apart."""
    return torch.randn(n, dims) + 6.0 * (torch.rand(n, 1) < share)


def sqrtm_frechet(mean, covariance, other_mean, other_covariance):
    root = scipy.linalg.sqrtm(covariance @ other_covariance).real
    return ((mean - other_mean) ** 2).sum() + np.trace(covariance + other_covariance - 2 * root)


# ---- Fréchet


def test_frechet_of_gaussians_is_that_of_the_matrix_root():
    a, b = torch.randn(2, 6, 6, dtype=torch.double)
    mean, other, covariance, rest = (
        torch.zeros(6).double(),
        torch.ones(6).double(),
        a @ a.T,
        b @ b.T,
    )
    expected = sqrtm_frechet(*(part.numpy() for part in (mean, covariance, other, rest)))
    assert gaussian_frechet(mean, covariance, other, rest).item() == pytest.approx(
        expected, rel=1e-9
    )


def test_frechet_of_samples_in_any_chunks_and_of_events():
    x, y = torch.randn(300, 2, 3), torch.randn(200, 2, 3) * 1.5 + 0.5
    rows = [part.flatten(1).double().numpy() for part in (x, y)]
    expected = sqrtm_frechet(
        *(f(part) for part in rows for f in (lambda r: r.mean(0), lambda r: np.cov(r.T)))
    )
    whole, parts = (
        frechet_distance(x, y, standardize=False, max_rows=chunk) for chunk in (1024, 7)
    )
    assert whole.value == pytest.approx(expected, rel=1e-9)
    assert (parts.value, parts.stderr, parts.baseline) == pytest.approx(
        (whole.value, whole.stderr, whole.baseline), rel=1e-9
    )
    assert whole.rows == (300, 200) and whole.baseline_rows == (120, 80)


def test_frechet_standard_error_is_the_spread_over_samples():
    scale = torch.tensor([1.0, 2.0, 0.5])
    found = [
        frechet_distance(torch.randn(300, 3) * scale, torch.randn(400, 3) + 0.3, splits=0)
        for _ in range(300)
    ]
    values = torch.tensor([each.value for each in found])
    assert np.mean([each.stderr for each in found]) == pytest.approx(values.std().item(), rel=0.15)
    truth = gaussian_frechet(
        torch.zeros(3), (scale**2).diag(), torch.full((3,), 0.3), torch.eye(3)
    ).item()
    assert 0.9 < np.mean([each.interval[0] <= truth <= each.interval[1] for each in found]) <= 1.0


def test_frechet_floor_is_what_one_distribution_gives():
    found = [frechet_distance(torch.randn(400, 5), torch.randn(300, 5)) for _ in range(100)]
    values, baselines = (
        np.array([getattr(each, name) for each in found]) for name in ("value", "baseline")
    )
    assert baselines.mean() == pytest.approx(values.mean(), rel=0.15)
    held = [
        frechet_distance(torch.randn(200, 5), torch.randn(300, 5), reference=torch.randn(250, 5))
        for _ in range(50)
    ]
    assert held[0].baseline_rows == (200, 300)
    assert np.mean([each.baseline for each in held]) == pytest.approx(
        np.mean([each.value for each in held]), rel=0.2
    )


def test_frechet_with_fewer_rows_than_features():
    x, y = torch.randn(20, 50), torch.randn(30, 50)
    rows = [part.double() - part.double().mean(0) for part in (x, y)]
    cross = torch.linalg.svdvals(rows[0] @ rows[1].T).sum() / math.sqrt(19 * 29)
    traces = sum(part.square().sum() / (len(part) - 1) for part in rows)
    shift = (x.double().mean(0) - y.double().mean(0)).square().sum()
    found = frechet_distance(x, y, standardize=False)
    assert found.value == pytest.approx((shift + traces - 2 * cross).item(), rel=1e-5)
    assert math.isfinite(found.stderr)


# ---- kernels


def brute_mmd(kernel, x, y):
    own = [
        kernel(a[None], b[None]).item() for i, a in enumerate(x) for j, b in enumerate(x) if i != j
    ]
    other = [
        kernel(a[None], b[None]).item() for i, a in enumerate(y) for j, b in enumerate(y) if i != j
    ]
    return (
        np.mean(own)
        + np.mean(other)
        - 2 * np.mean([kernel(a[None], b[None]).item() for a in x for b in y])
    )


@pytest.mark.parametrize(
    "kernel",
    [PolynomialKernel(), GaussianKernel(1.3), energy_kernel],
    ids=["poly", "rbf", "energy"],
)
def test_discrepancies_by_loops_for_the_samples_and_for_permutations(kernel):
    x, y = torch.randn(8, 3).double(), torch.randn(6, 3).double() + 0.5
    values, _ = _permuted(kernel, x, y, 5, 0, 2**28)
    chunked, _ = _permuted(kernel, x, y, 5, 0, 300)
    torch.testing.assert_close(values, chunked)
    keys = torch.rand(5, 14, generator=torch.Generator().manual_seed(0)).argsort(1)
    for value, chosen in zip(values, torch.cat([torch.arange(14)[None], keys]) < 8, strict=True):
        pooled = torch.cat([x, y])
        assert value.item() == pytest.approx(
            brute_mmd(kernel, pooled[chosen], pooled[~chosen]), abs=1e-9
        )


@pytest.mark.slow
def test_kernel_distance_is_unbiased():
    kernel = GaussianKernel(1.0)
    found = [
        kernel_distance(torch.randn(40, 1), torch.randn(60, 1) + 1.0, kernel=kernel, splits=0).value
        for _ in range(400)
    ]
    between = math.exp(-1 / 6) / math.sqrt(3)  # E k(x, y) for normal distributions one apart
    truth = 2 / math.sqrt(3) - 2 * between
    assert abs(np.mean(found) - truth) < 3 * np.std(found) / 20
    same = [kernel_distance(torch.randn(40, 2), torch.randn(60, 2), splits=1) for _ in range(300)]
    assert abs(np.mean([each.value for each in same])) < 3 * np.std(
        [each.value for each in same]
    ) / math.sqrt(300)
    covered = np.mean([each.interval[0] <= 0 <= each.interval[1] for each in same])
    assert 0.9 < covered < 0.99


def test_kernel_distance_of_one_block_by_loops():
    x, y = torch.randn(20, 2), torch.randn(20, 2)
    found = kernel_distance(x, y, splits=0, standardize=False)
    order = torch.Generator().manual_seed(0)
    blocks = [
        rows[torch.randperm(20, generator=order)].double().tensor_split(10) for rows in (x, y)
    ]
    values = [brute_mmd(PolynomialKernel(), *pair) for pair in zip(*blocks, strict=True)]
    assert found.value == pytest.approx(np.mean(values), rel=1e-9)
    assert found.stderr == pytest.approx(np.std(values, ddof=1) / math.sqrt(10), rel=1e-9)


@pytest.mark.parametrize("freedom", [9, 30, 200])
def test_students_quantile(freedom):
    assert _student(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=2e-3)


def test_mmd_standard_error_is_the_spread_over_samples():
    how = {"kernel": GaussianKernel(1.0), "permutations": 0, "splits": 0}
    found = [mmd_test(torch.randn(80, 1), torch.randn(100, 1) + 1.0, **how) for _ in range(200)]
    spread = np.std([each.value for each in found])
    assert np.mean([each.stderr for each in found]) == pytest.approx(spread, rel=0.15)


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("name", ["frechet", "mmd", "energy", "sliced"])
def test_standard_errors_under_one_distribution_are_the_spread_and_not_twice_it(name):
    """There the linear part, which makes the error elsewhere, is noise alone."""
    compare = {
        "frechet": frechet_distance,
        "mmd": lambda x, y: mmd_test(x, y, permutations=60, splits=0),
        "energy": lambda x, y: energy_test(x, y, permutations=60, splits=0),
        "sliced": lambda x, y: sliced_wasserstein_distance(x, y, projections=32),
    }[name]
    found = [compare(torch.randn(100, 3), torch.randn(130, 3)) for _ in range(120)]
    spread = np.std([each.value for each in found])
    assert 0.8 * spread < np.mean([each.stderr for each in found]) < 1.5 * spread


# ---- tests under one distribution and under two

TESTS = {
    "mmd": lambda x, y: mmd_test(x, y, permutations=99, splits=0),
    "energy": lambda x, y: energy_test(x, y, permutations=99, splits=0),
    "logistic": lambda x, y: classifier_two_sample_test(
        x, y, classifier=Logistic(steps=12), permutations=99, splits=0
    ),
    "neighbors": lambda x, y: classifier_two_sample_test(
        x, y, classifier=NearestNeighbors(5), permutations=99, splits=0
    ),
    "copying": lambda x, y: copying_test(x, torch.randn(100, x.shape[1]), y),
}


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("name", TESTS)
def test_p_values_are_uniform_under_one_distribution(name):
    found = np.array(
        [TESTS[name](torch.randn(40, 3), torch.randn(40, 3)).p_value for _ in range(150)]
    )
    largest = 1.63 / math.sqrt(150)  # the 1 % point of Kolmogorov's distribution
    below = [np.mean(found <= level) - level for level in (0.05, 0.1, 0.25, 0.5, 0.75)]
    assert max(below) < largest, below  # never too small
    if name in ("mmd", "energy", "copying"):  # accuracies have ties, which make p-values larger
        assert min(below) > -largest, below


@pytest.mark.parametrize("name", ["mmd", "energy", "logistic", "neighbors"])
def test_a_shift_is_found(name):
    assert TESTS[name](torch.randn(100, 3), torch.randn(100, 3) + 0.8).p_value <= 0.01


@pytest.mark.slow
def test_a_network_sees_what_a_line_does_not():
    x, y = torch.randn(150, 2), 2.0 * torch.randn(150, 2)
    network = classifier_two_sample_test(
        x, y, classifier=Network(steps=80), permutations=39, splits=0
    )
    line = classifier_two_sample_test(x, y, permutations=39, splits=0)
    assert network.p_value <= 0.05 and network.value > line.value + 0.05
    assert network.interval[0] < network.value < network.interval[1]


def test_the_binomial_p_value_and_wilsons_interval():
    found = classifier_two_sample_test(
        torch.randn(100, 2), torch.randn(130, 2) + 0.7, permutations=0
    )
    hits = round(found.value * 200)
    exact = scipy.stats.binomtest(hits, 200, 0.5, alternative="greater")
    assert found.p_value == pytest.approx(exact.pvalue, rel=0.5)
    wilson = scipy.stats.binomtest(hits, 200).proportion_ci(method="wilson")
    assert found.interval == pytest.approx((wilson.low, wilson.high), rel=1e-6)
    assert found.rows == (100, 100) and 0.3 < found.baseline < 0.7


# ---- classifiers of many labelings


def test_logistic_is_that_of_scikit_learn_for_every_labeling():
    rows, new = torch.randn(120, 4), torch.randn(30, 4)
    labels = torch.stack([(rows[:, 0] + torch.randn(120) > 0), torch.rand(120) > 0.5], 1).double()
    scores = Logistic(penalty=1.0, steps=500)(rows, labels, new)
    mean, scale = rows.double().mean(0), rows.double().std(0)
    for column, label in zip(scores.T, labels.T, strict=True):
        peer = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000).fit(
            ((rows - mean) / scale).numpy(), label.numpy()
        )
        np.testing.assert_allclose(
            column, peer.decision_function(((new - mean) / scale).numpy()), atol=1e-4
        )


def test_neighbors_are_those_of_scikit_learn_in_any_memory():
    rows, new, labels = torch.randn(90, 20), torch.randn(25, 20), (torch.rand(90, 3) > 0.5).double()
    scores = NearestNeighbors(7)(rows, labels, new)
    torch.testing.assert_close(scores, NearestNeighbors(7, memory=2000)(rows, labels, new))
    peer = KNeighborsClassifier(7).fit(rows.numpy(), labels.numpy())
    np.testing.assert_allclose(
        scores + 0.5, np.stack([part[:, 1] for part in peer.predict_proba(new.numpy())], 1)
    )


def test_networks_trained_side_by_side_do_not_see_each_other():
    rows, new, labels = torch.randn(60, 2), torch.randn(5, 2), (torch.rand(60, 4) > 0.5).double()
    together, alone = (Network(steps=20)(rows, part, new) for part in (labels, labels[:, 2:3]))
    torch.testing.assert_close(together[:, 2:3], alone, atol=1e-5, rtol=1e-4)


# ---- neighbors


def brute_inside(x, y, k):
    reach = Reference(n_neighbors=k + 1).fit(y).kneighbors(y)[0][:, -1]
    return np.linalg.norm(x[:, None] - y[None], axis=-1) <= reach


@pytest.mark.parametrize("dims", [3, 40])
def test_fidelity_and_coverage_by_scikit_learn(dims):
    x, y = torch.randn(70, dims).double(), torch.randn(50, dims).double() * 1.2
    forward, backward = brute_inside(x.numpy(), y.numpy(), 3), brute_inside(y.numpy(), x.numpy(), 3)
    precision, recall = precision_recall(x, y, standardize=False)
    assert (precision.value, recall.value) == pytest.approx(
        (forward.any(1).mean(), backward.any(1).mean())
    )
    inside = brute_inside(x.numpy(), y.numpy(), 5)
    density, coverage = density_coverage(x, y, standardize=False)
    assert (density.value, coverage.value) == pytest.approx(
        (inside.sum() / (5 * 70), inside.any(0).mean())
    )
    how = {"memory": 3000, "standardize": False}
    small = [*precision_recall(x, y, **how), *density_coverage(x, y, **how)]
    assert small == [precision, recall, density, coverage]


def test_blocks_of_distances_keep_to_the_memory():
    x, y = torch.randn(100, 30), torch.randn(64, 30)
    blocks = list(distance_blocks(x, y, 4096))
    assert (
        all(block.numel() * block.element_size() <= 4096 for _, block in blocks)
        and len(blocks) == 7
    )
    expected = torch.cdist(
        x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist"
    ).square()
    torch.testing.assert_close(
        torch.cat([block for _, block in blocks]).double(), expected, atol=1e-4, rtol=1e-4
    )


def test_a_dropped_mode_costs_recall_and_coverage_alone():
    real, fresh, one_mode = two_modes(600), two_modes(600), two_modes(600, share=0.0)
    whole = [*precision_recall(fresh, real), *density_coverage(fresh, real)]
    dropped = [*precision_recall(one_mode, real), *density_coverage(one_mode, real)]
    for name, before, after in zip(
        ("precision", "recall", "density", "coverage"), whole, dropped, strict=True
    ):
        if name in ("recall", "coverage"):
            assert after.value < 0.6 < 0.8 < before.value
        else:
            assert abs(after.value - before.value) < 0.1
        assert before.interval[0] - 0.03 <= before.baseline <= before.interval[1] + 0.03


# ---- copies


@pytest.mark.parametrize("levels", [None, 4])
def test_copying_is_mann_and_whitneys_test(levels):
    x, train, y = torch.randn(3, 80, 2)
    if levels:
        x, train, y = ((part * levels).round() / levels for part in (x, train, y))
    near = [scipy.spatial.distance.cdist(part.numpy(), train.numpy()).min(1) for part in (x, y)]
    near = [part.round(6) for part in near]
    peer = scipy.stats.mannwhitneyu(
        *near, alternative="less", method="asymptotic", use_continuity=False
    )
    found = copying_test(x, train, y, standardize=False)
    assert found.value == pytest.approx(1 - peer.statistic / 80**2, abs=1e-3)
    assert found.p_value == pytest.approx(peer.pvalue, rel=0.05)
    assert copying_test(x, train, y, memory=2000, standardize=False) == found


def test_copies_pass_all_but_the_copying_test():
    train, held_out = two_modes(500), two_modes(500)
    copies = train + 0.02 * torch.randn_like(train)
    found = copying_test(copies, train, held_out)
    assert found.value > 0.99 and found.p_value < 1e-10
    assert density_coverage(copies, held_out)[1].value > 0.9
    assert mmd_test(copies, held_out, permutations=99, splits=0).p_value > 0.02
    blurred = copying_test(2.0 * two_modes(500), train, held_out)
    assert blurred.value < 0.4 and blurred.p_value > 0.99


def test_cells_find_copies_where_the_regions_differ():
    """Copies of a wide cluster are farther from the training rows than fresh rows of a narrow one."""
    narrow, wide = 0.02, 1.0
    clusters = [
        torch.cat([narrow * torch.randn(150, 2), 10 + wide * torch.randn(150, 2)]) for _ in range(2)
    ]
    train, held_out = clusters
    samples = torch.cat([10 + wide * torch.randn(20, 2), train[150:] + 0.05 * torch.randn(150, 2)])
    together, apart = (
        copying_test(samples, train, held_out),
        copying_test(samples, train, held_out, cells=2),
    )
    assert together.p_value > 0.05 and apart.p_value < 1e-3


def test_cells_average_ranks_within_cells():
    x, train, y = torch.randn(3, 200, 1).sign() * 5 + torch.randn(3, 200, 1)
    found, score, weights = copying_test(x, train, y, cells=2), 0.0, []
    for side in (-1, 1):
        inside = [part[part.sign() == side][:, None] for part in (x, train, y)]
        peer = copying_test(*inside)
        share = len(inside[2]) / 200
        score, weights = score + share * peer.value, [*weights, share]
    assert found.value == pytest.approx(score, abs=1e-6) and sum(weights) == 1


# ---- transport


def test_one_dimension_is_sorting_for_any_numbers_of_rows():
    x, y = torch.randn(50, 1).double(), torch.randn(70, 1).double() * 2
    found = sliced_wasserstein_distance(x, y, power=1.0, projections=3)
    assert found.value == pytest.approx(
        scipy.stats.wasserstein_distance(x[:, 0], y[:, 0]), rel=1e-9
    )
    assert sliced_wasserstein_distance(
        x, y, power=1.0, projections=3, max_rows=1
    ).value == pytest.approx(found.value, rel=1e-12)
    equal = sliced_wasserstein_distance(x, y[:50])
    expected = (x[:, 0].sort().values - y[:50, 0].sort().values).square().mean().sqrt().item()
    assert equal.value == pytest.approx(expected, rel=1e-9)


def test_slices_are_those_of_pot():
    ot = pytest.importorskip("ot")
    x, y = torch.randn(40, 5).double(), torch.randn(60, 5).double() + 0.3
    directions = torch.randn(5, 64, generator=torch.Generator().manual_seed(3)).double()
    directions = directions / directions.norm(dim=0)
    expected = ot.sliced_wasserstein_distance(
        x.numpy(), y.numpy(), projections=directions.numpy(), p=2
    )
    assert sliced_wasserstein_distance(x, y, projections=64, seed=3).value == pytest.approx(
        expected, rel=1e-5
    )


def test_exact_transport_is_the_best_assignment():
    pytest.importorskip("ot")
    x, y = torch.randn(40, 3), torch.randn(40, 3) + 0.5
    for power in (1.0, 2.0):
        costs = torch.cdist(x.double(), y.double()).pow(power).numpy()
        expected = costs[scipy.optimize.linear_sum_assignment(costs)].mean() ** (1 / power)
        assert wasserstein_distance(x, y, power=power, splits=0).value == pytest.approx(
            expected, rel=1e-5
        )


def test_transport_without_pot_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(ImportError, match="pip install POT"):
        wasserstein_distance(torch.randn(10, 2), torch.randn(10, 2))


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_sliced_standard_error_is_the_spread_over_samples(power):
    how = {"power": power, "splits": 0, "projections": 1}
    found = [
        sliced_wasserstein_distance(torch.randn(150, 1), torch.randn(200, 1) * 2 + 1, **how)
        for _ in range(200)
    ]
    spread = np.std([each.value for each in found])
    assert np.mean([each.stderr for each in found]) == pytest.approx(spread, rel=0.15)


def test_exact_standard_error_is_the_spread_over_samples():
    pytest.importorskip("ot")
    found = [
        wasserstein_distance(torch.randn(60, 2), torch.randn(60, 2) + 2.0, splits=0)
        for _ in range(100)
    ]
    spread = np.std([each.value for each in found])
    assert np.mean([each.stderr for each in found]) == pytest.approx(spread, rel=0.25)


def test_sliced_floor_is_what_one_distribution_gives():
    found = [
        sliced_wasserstein_distance(torch.randn(200, 4), torch.randn(150, 4), projections=32)
        for _ in range(40)
    ]
    assert np.mean([each.baseline for each in found]) == pytest.approx(
        np.mean([each.value for each in found]), rel=0.1
    )


# ---- features


@pytest.mark.parametrize("event", [(7,), (8, 8), (3, 9, 8), (2, 2, 2, 2)], ids=str)
def test_random_features_depend_on_the_seed_alone(event):
    x, state = torch.randn(12, *event), torch.get_rng_state()
    features = RandomFeatures(3, width=64)
    found = features(x)
    assert found.shape == (12, 64) and torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(torch.cat([features(x[:5]), features(x[5:])]), found)
    assert not torch.allclose(RandomFeatures(4, width=64)(x), found)
    moved = RandomFeatures(3, width=64, location=2.0, scale=4.0)(4 * x + 2)
    torch.testing.assert_close(moved, found, atol=1e-4, rtol=1e-4)


def test_fitted_random_features_and_their_width():
    x = torch.randint(0, 17, (50, 1, 8, 8))
    features = RandomFeatures.fitted(x)
    assert (features.location, features.scale) == pytest.approx(
        (x.double().mean().item(), x.double().std().item())
    )
    assert features(x).dtype == torch.float32
    with pytest.raises(ValueError, match="multiple of 16"):
        RandomFeatures(width=20)


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("event", [(6,), (1, 8, 8), (8, 8)], ids=str)
def test_a_classifier_is_trained_once_and_says_how_good_it_is(event, tmp_path):
    labels = torch.arange(300) % 3
    x = torch.randn(300, *event) + 3.0 * labels.reshape(-1, *[1] * len(event))
    state = torch.get_rng_state()
    features = classifier_features(x, labels, steps=60, cache=tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert (
        features.accuracy > 0.9
        and features.held_out == 30
        and "on 30 held-out rows" in str(features)
    )
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    again = classifier_features(x, labels, steps=60, cache=tmp_path)
    assert file.stat().st_mtime_ns == written and again.accuracy == features.accuracy
    torch.testing.assert_close(again(x), features(x), atol=0, rtol=0)
    assert features(x).shape == (300, 64) and not features(x).requires_grad
    classifier_features(x + 1, labels, steps=2, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(ValueError, match="reshape the samples"):
        features(torch.zeros(2, 5))


def test_a_classifier_needs_one_class_per_row(tmp_path):
    with pytest.raises(ValueError, match="one class per row"):
        classifier_features(torch.randn(10, 2), torch.rand(10), cache=tmp_path)
    with pytest.raises(ValueError, match="NaN"):
        classifier_features(
            torch.full((10, 2), math.nan), torch.zeros(10, dtype=torch.long), cache=tmp_path
        )


# ---- results


def test_stand_ins_are_disjoint_parts_in_proportion():
    real = torch.arange(90.0)[:, None]
    for one, other in stand_ins(60, real, None, 3, 0):
        assert len(one) == 36 and torch.equal(torch.cat([one, other]).sort(0).values, real)
    held = 100 + torch.arange(40.0)[:, None]
    pairs = list(stand_ins(60, real, held, 3, 0))
    assert len(pairs) == 1 and len(pairs[0][0]) == 40 and pairs[0][1] is real
    assert [len(one) for one, _ in stand_ins(25, real, held, 3, 0)] == [25, 25, 25]


def test_refusals():
    good = torch.randn(30, 2)
    with pytest.raises(ValueError, match=r"NaN \(missing values\)"):
        frechet_distance(torch.full((30, 2), math.nan), good)
    with pytest.raises(ValueError, match="one shape"):
        mmd_test(torch.randn(30, 3), good)
    with pytest.raises(ValueError, match="N >= 4"):
        energy_test(good[:3], good)
    with pytest.raises(ValueError, match="40 rows"):
        kernel_distance(good, good)
    with pytest.raises(ValueError, match="neighbors < 4"):
        precision_recall(good[:4], good, neighbors=4)
    with pytest.raises(ValueError, match="folds"):
        classifier_two_sample_test(good, good, folds=1)
    with pytest.raises(ValueError, match="use fewer cells"):
        copying_test(good, good, good, cells=30)
    for distance in (sliced_wasserstein_distance, wasserstein_distance):
        with pytest.raises(ValueError, match=r"number power in \[1, inf\)"):
            distance(good, good, power=0.5)
    with pytest.raises(ValueError, match="baseline"):
        _ = TwoSample("distance", 1.0).excess


def test_squared_distances_of_few_and_many_features():
    for dims in (2, 40):
        x, y = torch.randn(5, dims), torch.randn(6, dims)
        expected = (x[:, None] - y).square().sum(-1)
        torch.testing.assert_close(squared_distances(x, y), expected, atol=1e-4, rtol=1e-4)


def test_the_report_holds_what_the_functions_give_beside_floors_of_as_many_rows():
    train, real, samples = torch.randn(150, 3), torch.randn(120, 3), torch.randn(400, 3) + 1.0
    report = sample_report(samples, real, train, permutations=39)
    assert report.rows == (150, 120)
    for result in report:
        assert (
            result.baseline is not None and result.interval[0] <= result.value <= result.interval[1]
        )
    for name in ("Fréchet distance", "sliced Wasserstein", "precision", "coverage", "MMD test"):
        assert report[name].baseline_rows == (150, 120)
    assert report["Fréchet distance"].excess > 2 and report["energy test"].p_value == 1 / 40
    assert len(str(report).splitlines()) == 2 + len(report.results)
    with pytest.raises(KeyError, match="recall"):
        report["FID"]
    for name in (
        "sliced Wasserstein",
        "Fréchet distance",
    ):  # one pair alone tells no spread: the full linear error
        assert report[name].stderr > 0.01 * report[name].value
    copies = sample_report(train, real, train, permutations=39)
    assert copies["Fréchet distance"].value == pytest.approx(
        copies["Fréchet distance"].baseline, rel=1e-6
    )
    assert copies["copying test"].p_value < 1e-10
    alone = sample_report(samples, real, permutations=39)
    assert "copying test" not in str(alone) and alone["recall"].baseline is not None
