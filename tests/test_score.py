"""What scores allow to be said."""

import math

import pytest
import torch
from torch.testing import assert_close

from probgen.core.score import Score


def score(mean, kind="exact", **fields):
    return Score(torch.tensor([mean - 0.01, mean, mean + 0.01]), kind, **fields)


def test_mean_and_standard_error():
    value = torch.randn(50)
    assert Score(value, "exact").mean == pytest.approx(value.mean().item())
    assert Score(value, "exact").stderr == pytest.approx(value.std().item() / 50**0.5)
    assert Score(value[:1], "exact").stderr == math.inf


def test_exact_scores_compare_both_ways():
    assert score(-1.0) > score(-2.0)
    assert score(-2.0) < score(-1.0)
    assert not score(-2.0) > score(-1.0)


@pytest.mark.parametrize("kind", ["unbiased", "bound"])
def test_a_lower_bound_proves_only_when_it_lies_above(kind):
    assert score(-1.0, kind) > score(-2.0)
    assert not score(-2.0) > score(-1.0, kind)
    for better, other in ((score(-2.0, kind), score(-1.0)), (score(-1.0), score(-2.0, kind))):
        with pytest.raises(TypeError, match="inconclusive"):
            better > other  # noqa: B015


@pytest.mark.parametrize("kind", ["approximate", "unnormalized"])
def test_numbers_without_a_side_prove_nothing(kind):
    for better, other in ((score(-1.0, kind), score(-2.0)), (score(-1.0, kind), score(-2.0, kind))):
        with pytest.raises(TypeError, match="inconclusive"):
            better > other  # noqa: B015


@pytest.mark.parametrize("kinds", [("unbiased", "unbiased"), ("bound", "unbiased")])
def test_more_particles_are_no_advice_for_two_bounds(kinds):
    better, other = score(-1.0, kinds[0]), score(-5.0, kinds[1])
    with pytest.raises(TypeError, match="difference of bounds") as caught:
        better > other  # noqa: B015
    assert "use more particles" not in str(caught.value)
    with pytest.raises(TypeError, match="use more particles"):
        other > score(-1.0)  # noqa: B015


def test_a_bound_above_by_less_than_the_noise_proves_nothing():
    noisy = Score(torch.tensor([5.0, -9.0, 2.0]), "unbiased", particles=8)
    with pytest.raises(TypeError, match="inconclusive"):
        noisy > score(-1.0)  # noqa: B015


def test_fewer_bits_are_better():
    first, second = (score(mean).in_bits_per_dim(2, 1 / 256) for mean in (-1.0, -2.0))
    assert first.mean < second.mean
    assert first > second
    gain, _ = first.difference(second)
    assert gain == pytest.approx(1.0 / (2 * math.log(2)))


def test_bits_per_dim_of_known_codes():
    """Uniform pixels cost 8 bits whether they are told as masses, as densities on (0, 1) or on.

    0, 256.
    """
    dims, n = 5, torch.ones(3)
    masses = Score(-dims * math.log(256) * n, "exact", measure="mass").in_bits_per_dim(dims)
    unit = Score(0 * n, "exact").in_bits_per_dim(dims, 1 / 256)
    levels = Score(-dims * math.log(256) * n, "exact").in_bits_per_dim(dims, 1.0)
    for coded in (masses, unit, levels):
        assert_close(coded.value, 8 * n)
    assert (masses.measure, unit.measure, unit.unit) == ("mass", "bins", "bits/dim")
    assert not masses > unit


def test_scores_of_different_sorts_do_not_compare():
    with pytest.raises(TypeError, match="one unit"):
        score(-1.0).difference(score(-1.0).in_bits_per_dim(2))
    with pytest.raises(TypeError, match="declare the quantization"):
        score(-1.0).difference(score(-1.0, measure="mass"))
    with pytest.raises(ValueError, match="same rows"):
        score(-1.0).difference(Score(torch.zeros(5), "exact"))
    with pytest.raises(ValueError, match="expected a score in nats"):
        score(-1.0).in_bits_per_dim(2).in_bits_per_dim(2)


@pytest.mark.parametrize(
    ("kinds", "particles", "refused"),
    [
        (("unbiased", "unbiased"), (1, 64), True),
        (("unbiased", "unbiased"), (1000, 64), True),
        (("approximate", "approximate"), (64, 1000), True),
        (("unbiased", "unbiased"), (64, 64), False),
        (("bound", "bound"), (1, 64), False),  # means of logarithms, whatever their number
        (("exact", "unbiased"), (1, 64), False),
        (("approximate", "unbiased"), (1, 64), False),
    ],
)
def test_estimates_from_other_numbers_of_particles_have_no_difference(kinds, particles, refused):
    pairs = zip((-1.0, -2.0), kinds, particles, strict=True)
    first, second = (score(mean, kind, particles=count) for mean, kind, count in pairs)
    if not refused:
        assert first.difference(second)[0] == pytest.approx(1.0)
        return
    for one, other in ((first, second), (second, first)):
        with pytest.raises(TypeError, match=rf"both with particles={max(particles)}$"):
            one.difference(other)
        with pytest.raises(TypeError, match="inconclusive"):
            one > other  # noqa: B015


def test_a_tighter_bound_of_the_same_model_is_no_gain():
    """log E[w] is known, and the mean of log mean(w) over few particles lies below it."""
    weights = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0)) - 0.5  # E[w] = 1
    few = Score(weights[:, :1].logsumexp(1), "unbiased", particles=1)
    many = Score(weights.logsumexp(1) - math.log(64), "unbiased", particles=64)
    assert few.mean < -0.4 and abs(many.mean) < 0.05  # nothing but the number of particles
    with pytest.raises(TypeError, match="one number of particles"):
        many.difference(few)


@pytest.mark.parametrize(
    ("kind", "fields", "text"),
    [
        ("exact", {}, "= -1.00 ± 0.01 nats (exact)"),
        ("unbiased", {"particles": 64}, ">= -1.00 ± 0.01 nats (unbiased, 64 particles)"),
        ("bound", {}, ">= -1.00 ± 0.01 nats (bound)"),
        ("bound", {"unit": "bits/dim"}, "<= -1.00 ± 0.01 bits/dim (bound)"),
        ("approximate", {}, "~ -1.00 ± 0.01 nats (approximate)"),
        ("unnormalized", {}, "? + -1.00 ± 0.01 nats (unnormalized)"),
    ],
)
def test_a_score_prints_what_may_be_said(kind, fields, text):
    assert str(score(-1.0, kind, **fields)) == text
