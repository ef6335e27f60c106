"""Comparisons of samples see a column whatever unit it is in.

And say in which units they were made.
"""

from functools import partial

import pytest
import torch

import probgen as pg
from probgen.evaluate.units import compared, standardized, ways

N = 1000


def income_and_flag(seed: int, inverted: bool = False) -> torch.Tensor:
    """An income in euros, a flag that goes with it, and a column that never changes."""
    random = torch.Generator().manual_seed(seed)
    income = (10 + 0.5 * torch.randn(N, generator=random)).exp()
    flag = (torch.rand(N, generator=random) < 0.8).float()
    return torch.stack([income, 1 - flag if inverted else flag, torch.full((N,), 3.0)], 1)


SEEN = {
    "MMD": partial(pg.evaluate.mmd_test, permutations=199),
    "energy": partial(pg.evaluate.energy_test, permutations=199),
    "classifier": partial(pg.evaluate.classifier_two_sample_test, permutations=99),
}


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("name", SEEN)
def test_an_inverted_flag_beside_an_income_is_seen(name):
    real = income_and_flag(0)
    assert SEEN[name](income_and_flag(1, inverted=True), real).p_value <= 0.01
    assert SEEN[name](income_and_flag(2), real).p_value > 0.01


def test_raw_units_do_not_see_it():
    found = pg.evaluate.mmd_test(
        income_and_flag(1, inverted=True), income_and_flag(0), permutations=99, standardize=False
    )
    assert found.p_value > 0.05


@pytest.mark.parametrize("distance", [pg.evaluate.frechet_distance, pg.evaluate.kernel_distance])
def test_distances_of_tables_are_of_the_size_of_ones(distance):
    real = income_and_flag(0)
    wrong, right = (
        distance(income_and_flag(1, inverted=True), real),
        distance(income_and_flag(2), real),
    )
    assert 0.1 < wrong.value < 50
    assert abs(right.value) < 0.1
    assert abs(distance(income_and_flag(2), real, standardize=False).value) > 10


@pytest.mark.slow
def test_the_report_says_units_and_sees_the_flag():
    report = pg.sample_report(
        income_and_flag(1, inverted=True), income_and_flag(0), permutations=199
    )
    assert report["MMD test"].p_value <= 0.01 and report["energy test"].p_value <= 0.01
    assert "columns / their std" in str(report).splitlines()[0]
    raw = pg.sample_report(
        income_and_flag(2)[:100], income_and_flag(0)[:100], permutations=9, standardize=False
    )
    assert "raw units" in str(raw).splitlines()[0]


def test_every_printed_result_says_its_units():
    x, y = torch.randn(2, 60, 2)
    for function in (
        pg.evaluate.frechet_distance,
        pg.evaluate.kernel_distance,
        pg.evaluate.sliced_wasserstein_distance,
    ):
        assert "raw units" in str(function(x, y, standardize=False))
        assert "columns / their std" in str(function(x, y, standardize=True))
    for result in (
        *pg.evaluate.precision_recall(x, y),
        *pg.evaluate.density_coverage(x, y),
        pg.evaluate.copying_test(x, y, x + 1),
    ):
        assert "columns / their std" in str(result)


def test_units_do_not_change_what_is_found():
    x, y = torch.randn(2, 200, 2) + torch.tensor([0.3, 0.0])
    unit = torch.tensor([1e6, 1e-3])
    for function in (
        pg.evaluate.frechet_distance,
        partial(pg.evaluate.mmd_test, permutations=19),
        pg.evaluate.kernel_distance,
    ):
        here, there = function(x, y), function(x * unit, y * unit)
        assert here.value == pytest.approx(there.value, rel=1e-3, abs=1e-6)


def test_images_are_divided_by_one_number_and_networks_keep_their_units():
    x, y = torch.randn(2, 20, 1, 3, 3)
    rows, units = compared(pg.evaluate.rows.raw, "auto", x, 5 * y)
    assert units == "values / their std"
    assert rows[1].std() == pytest.approx(1.0, rel=0.01)
    features = pg.evaluate.RandomFeatures(0)
    rows, units = compared(features, "auto", x, y)
    assert units == "raw units" and torch.equal(rows[1], features(y))


def test_what_is_constant_among_the_real_rows_is_not_divided():
    real = torch.tensor([[1.0, 7.0]]).expand(8, 2) + torch.tensor([1.0, 0.0]) * torch.randn(8, 1)
    samples = real + torch.tensor([0.0, 2.0])
    assert torch.equal(standardized([samples], real, "columns")[0][:, 1], torch.full((8,), 2.0))


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match="expected standardize among"):
        ways(torch.tanh, "rows", 1)
