"""Conjugate models against the chain rule, scipy, quadrature and the evidence lower bound."""

import numpy as np
import pytest
import scipy.stats
import torch
from pyro import poutine

import probgen as pg
from probgen.distributions.inverse_wishart import InverseWishart
from probgen.models.conjugate import BetaBinomial, DirichletCategorical, GammaPoisson
from probgen.models.conjugate_normal import ConjugateNormal

FAMILIES = {
    "flags": (lambda: BetaBinomial(2, a=0.7, b=1.6), lambda n: torch.randint(2, (n, 2))),
    "successes": (lambda: BetaBinomial(2, 5, a=2.0), lambda n: torch.randint(6, (n, 2))),
    "counts": (lambda: GammaPoisson(2, a=1.3, b=0.6), lambda n: torch.randint(9, (n, 2))),
    "labels": (lambda: DirichletCategorical(3, 2), lambda n: torch.randint(3, (n, 2))),
    "normal": (
        lambda: ConjugateNormal(2, loc=0.5, rows=0.7, df=4.5, scale=2.0),
        lambda n: 1 + torch.randn(n, 2),
    ),
}
COLUMNS = [name for name in FAMILIES if name != "normal"]


def made(name, n=6):
    torch.manual_seed(0)
    gen, x = FAMILIES[name]
    return gen().double(), x(n).double()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_evidence_is_the_chain_of_predictive_densities(name):
    gen, x = made(name)
    whole = gen.log_evidence(x)
    total = 0.0
    for row in x:
        total = total + gen.predictive().log_prob(row)
        gen.update(row[None])
    torch.testing.assert_close(whole, total)
    assert gen.reset().log_evidence(x) == pytest.approx(whole.item())


@pytest.mark.parametrize("name", FAMILIES)
def test_at_the_posterior_the_bound_is_the_evidence_whatever_is_drawn(name):
    gen, x = made(name)
    evidence = gen.log_evidence(x)
    gen.update(x)
    for _ in range(3):
        given = poutine.trace(gen.guide).get_trace(x)
        joint = poutine.trace(poutine.replay(gen.model, given)).get_trace(x)
        found = joint.log_prob_sum() - given.log_prob_sum()
        assert found.item() == pytest.approx(evidence.item(), rel=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_weights_and_all_rows_at_once_are_the_same(name):
    gen, x = made(name)
    times = torch.tensor([1, 0, 2, 3, 1, 1])
    once = gen.update(x.repeat_interleave(times, 0)).state_dict()
    one = {key: value.clone() for key, value in once.items()}
    blocks = gen.reset().update(x[:4], weights=times[:4]).update(x[4:]).state_dict()
    for key, value in one.items():
        torch.testing.assert_close(value, blocks[key])


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_one_by_one_count_after_millions_too(name):
    torch.manual_seed(0)
    gen, x = (part(4) if part is FAMILIES[name][1] else part() for part in FAMILIES[name])
    many = torch.full((len(x),), 5e6)
    whole = gen.update(x, weights=many).update(x, weights=torch.full((len(x),), 10.0))
    expected = {key: value.double() for key, value in pseudo_counts(whole).items()}
    gen.reset().update(x, weights=many)
    for _ in range(10):
        for row in x:
            gen.update(row[None])
    found = pseudo_counts(gen)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=1e-3, rtol=0)
    assert gen.reset().log_evidence(x) == pytest.approx(FAMILIES[name][0]().log_evidence(x).item())


def pseudo_counts(gen):
    """Numbers of rows, in double precision."""
    if isinstance(gen, ConjugateNormal):
        return {"rows": gen._exact.rows, "df": gen._exact.df}
    return {"counts": gen._counts}


@pytest.mark.parametrize("name", FAMILIES)
def test_held_out_scores_and_draws_are_those_of_the_predictive_distribution(name):
    gen, x = made(name, 40)
    gen.update(x[:30])
    found = pg.log_likelihood(gen, x[30:], particles=4000, seed=0)
    exact = gen.predictive().log_prob(x[30:])
    assert found.kind == "unbiased"
    torch.testing.assert_close(found.value.double(), exact, atol=0.05, rtol=0)
    drawn = pg.sample(gen, 6000, seed=0)
    torch.testing.assert_close(drawn.mean(0), gen.predictive().mean, atol=0.15, rtol=0.03)


@pytest.mark.parametrize("name", COLUMNS)
def test_missing_entries_add_nothing(name):
    gen, x = made(name)
    x[1, 0] = x[4, 1] = torch.nan
    whole = gen.log_evidence(x)
    total = sum(
        type(gen)(**arguments(gen)).double().log_evidence(x[~x[:, d].isnan(), d : d + 1])
        for d in range(2)
    )
    torch.testing.assert_close(whole, total)


def arguments(gen):
    """Of the same model of one column."""
    if isinstance(gen, DirichletCategorical):
        return {"levels": gen.levels, "dims": 1}
    a, b = gen.prior[:, 0].tolist()
    more = {"trials": gen.trials} if isinstance(gen, BetaBinomial) else {}
    return {"dims": 1, "a": a, "b": b, **more}


def test_incomplete_normal_rows_are_refused():
    gen, x = made("normal")
    x[0, 1] = torch.nan
    with pytest.raises(ValueError, match="expected complete rows, got NaN"):
        gen.update(x)
    with pytest.raises(ValueError, match=r"expected df > 2, dims - 1, got 1.5"):
        ConjugateNormal(3, df=1.5)


def test_the_predictive_distributions_are_scipys():
    k = torch.arange(6.0).double()[:, None]
    gen = BetaBinomial(1, 5, a=2.0, b=3.0).double()
    np.testing.assert_allclose(
        gen.predictive().log_prob(k), scipy.stats.betabinom(5, 2.0, 3.0).logpmf(k[:, 0]), rtol=1e-6
    )
    counts = GammaPoisson(1, a=2.0, b=3.0).double()
    np.testing.assert_allclose(
        counts.predictive().log_prob(k), scipy.stats.nbinom(2.0, 0.75).logpmf(k[:, 0]), rtol=1e-6
    )
    normal = ConjugateNormal(1, loc=1.0, rows=2.0, df=5.0, scale=1.5).double()
    truth = scipy.stats.t(5.0, 1.0, np.sqrt(1.5 * 3.0 * 3 / (2 * 5)))
    np.testing.assert_allclose(normal.predictive().log_prob(k), truth.logpdf(k[:, 0]), rtol=1e-6)


def test_inverse_wishart_matrices_are_scipys():
    torch.manual_seed(0)
    scale = torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double()
    own = InverseWishart(torch.tensor(6.5).double(), torch.linalg.cholesky(scale))
    peer = scipy.stats.invwishart(6.5, scale.numpy())
    drawn = own.sample((20000,))
    np.testing.assert_allclose(
        own.log_prob(drawn[:5]), [peer.logpdf(each.numpy()) for each in drawn[:5]], rtol=1e-8
    )
    torch.testing.assert_close(drawn.mean(0), own.mean, atol=0.02, rtol=0)
    np.testing.assert_allclose(own.mean, peer.mean())
    assert own.expand((3,)).sample().shape == (3, 2, 2)


def test_posterior_draws_reach_arviz():
    gen, x = made("counts", 30)
    gen.update(x)
    data = pg.to_arviz(gen, x, draws=500, seed=0)
    rates = torch.as_tensor(np.asarray(data["posterior"]["rate"])).reshape(-1, 2)
    torch.testing.assert_close(rates.mean(0), gen.posterior().mean, atol=0.1, rtol=0)


def test_svi_finds_the_posterior():
    gen, x = made("successes", 50)
    evidence = gen.log_evidence(x)
    gen.update(x)
    with torch.no_grad():
        gen.log_posterior.add_(torch.tensor([[0.8, -0.5], [-0.4, 0.6]]))
    options = {"compile": False, "verdict": False, "progress": False, "seed": 0}
    bounds = []
    for steps in (1, 150):
        pg.fit(gen, x, steps=steps, optimizer=pg.train.adam(0.03), **options)
        with torch.no_grad():
            bounds.append(-pg.ELBO(particles=100)(gen.model, gen.guide)(x).item())
    assert bounds[1] == pytest.approx(evidence.item(), abs=0.3)
    assert bounds[0] < bounds[1] - 2
