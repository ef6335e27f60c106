"""Machine code of the Kalman filter against the same loops in NumPy, to 1e-12."""

import math

import numpy as np
import pytest
import torch

from probgen.core import machine_code
from probgen.distributions.sequences import diffuse_filter, native_filter
from probgen.distributions.sequences.diffuse_filter import SystemArrays, likelihood_gradient
from probgen.sequences import LocalLevel, LocalTrend, Seasonal, StructuralTimeSeries

try:
    machine_code.load(native_filter.SOURCE)
except machine_code.NotCompiled as error:  # a machine without a compiler
    pytest.skip(str(error), allow_module_level=True)

# states, series, steps, share of steps that are missing, states that start from anywhere
CASES = {
    "one state": (1, 1, 100, 0.0, 0),
    "one step": (2, 1, 1, 0.0, 0),
    "one missing step": (2, 1, 1, 1.0, 0),
    "13 states": (13, 1, 60, 0.0, 0),
    "gaps": (3, 1, 80, 0.3, 0),
    "everything missing": (3, 2, 40, 1.0, 0),
    "several series": (3, 5, 60, 0.1, 0),
    "diffuse": (4, 2, 60, 0.1, 4),
    "partly diffuse, never settled": (4, 3, 6, 0.0, 2),
    "long": (2, 1, 400, 0.01, 1),
}


def system(states: int, series: int, wide: int) -> SystemArrays:
    """A stable one with all entries different, of which so many states are diffuse."""
    rng = np.random.default_rng(states)
    move = rng.normal(size=(states, states))
    move *= 0.8 / np.abs(np.linalg.eigvals(move)).max()
    root = rng.normal(size=(states, states))
    diffuse = np.diag((np.arange(states) < wide).astype(float))
    mean = rng.normal(size=(series, states))
    cov = root @ root.T / states
    return SystemArrays(move, cov, rng.normal(size=states), 0.3, mean, np.eye(states), diffuse)


def passed(name: str) -> tuple:
    """The filter, its gradient and the smoother, all their arrays."""
    states, series, steps, lost, wide = CASES[name]
    given = system(states, series, wide)
    rng = np.random.default_rng(1)
    y = rng.normal(size=(steps, series))
    seen = rng.random(steps) >= lost
    y[~seen] = np.nan
    found = diffuse_filter.diffuse_filter(given, y, seen)
    slope = likelihood_gradient(given, found, rng.normal(size=series))
    smooth = diffuse_filter.diffuse_smoother(given, found)
    return found.log_likelihood, found.mean, found.cov, *found.steps, *slope, *smooth


@pytest.mark.parametrize("name", CASES)
def test_machine_code_gives_what_numpy_gives(name, monkeypatch):
    monkeypatch.setattr(native_filter, "LEAST", 0)
    native = passed(name)
    monkeypatch.setattr(native_filter, "pays", lambda steps, states: False)
    for one, other in zip(native, passed(name), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-12)


def test_covariances_are_taken_over_where_they_are_settled(monkeypatch):
    monkeypatch.setattr(native_filter, "LEAST", 0)
    same = passed("long")[3 + diffuse_filter.ProperSteps._fields.index("same")]
    assert same.sum() > 200 and not same[:3].any()


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_no_number_is_none_in_both(broken, monkeypatch):
    given = system(2, 1, 0)._replace(noise=broken)
    y, seen = np.ones((50, 1)), np.ones(50, dtype=bool)

    def score():
        return diffuse_filter.diffuse_filter(given, y, seen).log_likelihood

    with np.errstate(invalid="ignore"):
        native = score()
        monkeypatch.setattr(native_filter, "pays", lambda steps, states: False)
        np.testing.assert_equal(native, score())


def test_without_a_compiler_numpy_does_it(monkeypatch):
    torch.manual_seed(0)
    gen = StructuralTimeSeries(LocalTrend() + Seasonal(4), length=80).double()
    x = torch.randn(2, 80, 1).double().cumsum(1)
    expected = gen().log_prob(x)
    monkeypatch.setattr(machine_code, "COMPILERS", ())
    monkeypatch.delenv("CXX", raising=False)
    native_filter._library.cache_clear()
    try:
        assert not native_filter.pays(1000, 10)
        torch.testing.assert_close(gen().log_prob(x), expected, rtol=1e-12, atol=1e-12)
    finally:
        native_filter._library.cache_clear()


def test_a_few_steps_wake_no_compiler(monkeypatch):
    def refuse(text: str) -> None:
        raise AssertionError("expected no compiler")

    monkeypatch.setattr(machine_code, "load", refuse)
    native_filter._library.cache_clear()
    x = torch.randn(1, 10, 1)
    assert StructuralTimeSeries([LocalLevel()], length=10)().log_prob(x).isfinite().all()
