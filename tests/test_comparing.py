"""Models side by side: the order, paired differences, and what the kinds of numbers settle."""

import math

import pyro.distributions as dist
import pytest
import torch

import probgen as pg
from probgen.core.module import Fixed

ROWS = torch.tensor([-1.0, -2.0, -1.5, -4.0])
NOISE = torch.tensor([0.5, -0.5, 0.4, -0.4])


def score(value, kind="exact", **how):
    return pg.Score(value, kind, **how)


@pytest.mark.parametrize(
    ("other", "kinds", "finding"),
    [
        (ROWS - 1.0, ("exact", "exact"), "worse"),
        (ROWS - 0.01 + NOISE, ("exact", "exact"), "not told apart"),
        (ROWS - 1.0, ("bound", "exact"), "worse"),
        (ROWS - 1.0, ("unbiased", "exact"), "worse"),
        (ROWS - 0.01 + NOISE, ("bound", "exact"), "not settled"),
        (ROWS - 1.0, ("exact", "bound"), "not settled"),
        (ROWS - 9.0, ("bound", "bound"), "not settled"),
        (ROWS - 9.0, ("unbiased", "bound"), "not settled"),
        (ROWS - 9.0, ("approximate", "exact"), "not settled"),
        (ROWS - 9.0, ("unnormalized", "exact"), "not settled"),
    ],
)
def test_kinds_say_what_a_difference_settles(other, kinds, finding):
    found = pg.compare({"b": score(other, kinds[1]), "a": score(ROWS, kinds[0])})
    assert list(found.scores) == ["a", "b"]
    assert found.findings == {"a": "best", "b": finding}
    gain = ROWS - other
    assert found.behind["b"] == pytest.approx((gain.mean().item(), gain.std().item() / 2))
    assert found.behind["a"] == (0.0, 0.0)


def test_fewer_bits_are_better():
    bits = {"a": score(ROWS, unit="bits/dim"), "b": score(ROWS - 1.0, unit="bits/dim")}
    found = pg.compare(bits)
    assert found.best == "b" and found.behind["a"][0] == pytest.approx(1.0)
    assert "bits/dim" in str(found)


def test_models_are_scored_as_alone():
    near, far = (Fixed(dist.Normal, loc=torch.full((2,), at), scale=1.0) for at in (0.0, 1.0))
    x = torch.randn(400, 2)
    weights = torch.arange(400.0)
    found = pg.compare({"far": far, "near": near}, x, weights=weights)
    truth = dist.Normal(0.0, 1.0).log_prob(x).sum(-1)
    assert found.best == "near"
    assert found.scores["near"].mean == pytest.approx(
        ((weights * truth).sum() / weights.sum()).item(), rel=1e-5
    )
    assert set(found.seconds) == {"near", "far"}


def test_models_with_draws_see_the_same_seed():
    def vae():
        nets = (pg.heads.Gaussian(pg.nn.MLP(2, [4], 4)) for _ in range(2))
        return pg.VAE(pg.standard_normal(2), *nets)

    torch.manual_seed(0)
    gen = vae()
    found = pg.compare({"a": gen, "b": gen}, torch.randn(20, 2), particles=3)
    assert torch.equal(found.scores["a"].value, found.scores["b"].value)
    assert found.findings["b"] == "not settled"  # of two bounds


def test_a_frame_has_a_row_for_each():
    given = score(ROWS - 1.0)
    near = Fixed(dist.Normal, loc=torch.zeros(1), scale=1.0)
    found = pg.compare({"given": given, "near": near}, torch.zeros(4, 1))
    frame = found.to_frame()
    assert frame.index.tolist() == ["near", "given"]
    assert frame.loc["given", "behind"] == pytest.approx(found.behind["given"][0])
    assert frame["seconds"].notna().tolist() == [True, False]


@pytest.mark.parametrize(
    ("models", "error", "says"),
    [
        ({}, ValueError, "expected one model at least"),
        ([score(ROWS)], TypeError, "models"),
        ({"a": 3}, TypeError, "model 'a'"),
        ({"a": score(ROWS), "b": score(ROWS[:2])}, ValueError, "same rows"),
        ({"a": score(ROWS), "b": score(ROWS, measure="mass")}, TypeError, "declare"),
        ({"a": score(ROWS), "b": score(ROWS, unit="bits/dim")}, TypeError, "one unit"),
    ],
)
def test_what_does_not_compare_is_refused(models, error, says):
    with pytest.raises(error) as refusal:
        pg.compare(models, torch.zeros(4, 2))
    notes = getattr(refusal.value, "__notes__", [])
    assert says in " ".join([str(refusal.value), *notes])


NAN, INF = math.nan, math.inf
ODD = {
    "no number": ([NAN, 1.0, 2.0], [0.0, 1.0, 2.0], "b", {"a": "no number"}),
    "no numbers": ([NAN] * 3, [NAN] * 3, "a", {"a": "no number", "b": "no number"}),
    "an impossible row": ([-INF, 9.0, 9.0], [0.0, 1.0, 2.0], "b", {"a": "worse"}),
    "no rows": ([], [], "a", {"a": "no number", "b": "no number"}),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_number_is_never_the_best(name):
    one, other, best, findings = ODD[name]
    found = pg.compare({"a": score(torch.tensor(one)), "b": score(torch.tensor(other))})
    assert found.best == best and findings.items() <= found.findings.items()
    assert str(found) and len(found.to_frame()) == 2


def test_names_are_strings():
    with pytest.raises(TypeError, match="expected"):
        pg.compare({1: score(ROWS)})
