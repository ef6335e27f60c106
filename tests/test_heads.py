"""Heads against scipy, sums and integrals to one, and marginals by enumeration or quadrature."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from head_cases import CASES, logistic_mixture_masses
from torch import nn
from torch.distributions import kl_divergence

from probgen import heads
from probgen.core.missing import MissingAware
from probgen.heads.discretized import DiscretizedLogisticMixture as LogisticMixtureDistribution
from probgen.heads.intervals import TruncatedNormal
from probgen.nn import MLP, Constant

NAN = math.nan
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def stacked(raw, variables=2):
    """Raw parameters of several equal variables.

    First parameter of every variable, then the second, ...
    """
    return torch.tensor(raw)[:, None].expand(-1, variables).reshape(-1)


@cases
def test_log_prob_is_that_of_scipy(case):
    distribution = case.make()(stacked(case.raw))
    values = case.few
    expected = torch.as_tensor(case.reference(values), dtype=torch.float32)
    torch.testing.assert_close(
        distribution.log_prob(torch.stack((values, values), -1)), 2 * expected, rtol=1e-4, atol=1e-4
    )


@cases
def test_density_is_normalized_and_a_missing_entry_is_its_marginal(case):
    """Summing or integrating the second of two variables out gives the value with that variable
    missing."""
    head = case.make()
    distribution = head(stacked(case.raw))
    values = case.points
    measure = case.weights.log()
    for first in case.few[[0, len(case.few) // 2]]:
        pairs = torch.stack((first.expand_as(values), values), -1)
        marginal = (distribution.log_prob(pairs) + measure).logsumexp(0)
        torch.testing.assert_close(
            distribution.log_prob(torch.stack((first, torch.tensor(NAN)))),
            marginal,
            rtol=1e-4,
            atol=1e-4,
        )
    assert distribution.log_prob(torch.full((2,), NAN)) == 0
    one = head(stacked(case.raw, 1))
    total = (one.log_prob(values[:, None]) + measure).logsumexp(0)
    torch.testing.assert_close(total, torch.zeros(()), rtol=0, atol=1e-4)


@cases
def test_gradients_with_missing_values_are_those_of_the_observed_part(case):
    head = case.make()
    for value in case.few[[0, len(case.few) // 2]]:
        whole = stacked(case.raw, 2).requires_grad_()
        part = stacked(case.raw, 1).requires_grad_()
        head(whole).log_prob(torch.stack((value, torch.tensor(NAN)))).backward()
        head(part).log_prob(value[None]).backward()
        first, second = whole.grad.view(-1, 2).unbind(-1)
        torch.testing.assert_close(first, part.grad)
        torch.testing.assert_close(second, torch.zeros_like(second))


@cases
def test_draws_are_floats_with_the_moments_of_the_reference(case):
    """Mean and variance of draws against sums (integrals) of the reference density over all values,
    and the shares of atoms among them."""
    torch.manual_seed(0)
    head = case.make()
    distribution = head(stacked(case.raw))
    draws = distribution.sample((40000,))
    values = case.points.double().numpy()
    mass = np.exp(case.reference(values)) * case.weights.numpy()
    mean = float((values * mass).sum())
    variance = float(((values - mean) ** 2 * mass).sum())
    assert draws.dtype == torch.float32
    assert distribution.support.check(draws).all()
    torch.testing.assert_close(
        draws.mean(0), torch.full((2,), mean), rtol=0, atol=5 * (variance / 40000) ** 0.5
    )
    torch.testing.assert_close(draws.var(0), torch.full((2,), variance), rtol=0.15, atol=0)
    for atom, share in zip(case.atoms, mass, strict=False):
        found = (draws == atom).float().mean().item()
        assert found == pytest.approx(share, abs=5 * (share / 80000) ** 0.5)
    if type(head).__name__ not in ("Categorical", "Ordinal"):  # labels have no mean
        torch.testing.assert_close(distribution.mean, torch.full((2,), mean), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(
            distribution.variance, torch.full((2,), variance), rtol=2e-2, atol=1e-3
        )


@cases
def test_images_are_vectors_stacked_along_channels(case):
    torch.manual_seed(1)
    vector, image = case.make(), case.make(event_ndim=3)
    channels, size = 2, (3, 4)
    parameters = torch.tensor(case.raw).repeat_interleave(channels)[
        :, None, None
    ] + 0.1 * torch.randn(5, 1, *size)
    x = case.few[torch.randint(2, (5, channels, *size))].masked_fill(
        torch.rand(5, channels, *size) < 0.2, NAN
    )
    pixels = vector(parameters.permute(0, 2, 3, 1)).log_prob(x.permute(0, 2, 3, 1))
    torch.testing.assert_close(
        image(parameters).log_prob(x), pixels.sum((1, 2)), rtol=1e-5, atol=1e-4
    )


def test_divergences_from_standard_normals_match_simulation():
    torch.manual_seed(0)
    prior = dist.Normal(torch.zeros(3), 1.5).to_event(1)
    full = heads.FullGaussian()
    for distribution in (
        heads.Gaussian()(torch.randn(2, 6)),
        full(0.5 * torch.randn(2, full.width(3))),
    ):
        draws = distribution.sample((100_000,))
        simulated = distribution.log_prob(draws) - prior.log_prob(draws)
        error = 5 * simulated.std(0).max().item() / 100_000**0.5
        torch.testing.assert_close(
            kl_divergence(distribution, prior), simulated.mean(0), rtol=0, atol=error
        )


def test_logistic_mixture_in_its_tails():
    """In the far tail the mass tends to exp(-(x - 1/2 - mu) / s).

    1 - exp(-1 / s)), here near exp(-2000.
    """
    scale, x = 0.125, 250.0
    distribution = LogisticMixtureDistribution(
        torch.zeros(1), torch.zeros(1), torch.full((1,), scale).log(), 256
    )
    expected = -(x - 0.5) / scale + math.log1p(-math.exp(-1 / scale))
    assert distribution.log_prob(torch.tensor(x)).item() == pytest.approx(expected, rel=1e-6)
    wide = LogisticMixtureDistribution(
        torch.zeros(1), torch.full((1,), 100.0), torch.full((1,), 12.0), 256
    )
    middle = math.log(0.25) - 12.0  # a bin of width 1 under a density of 1 / (4 s)
    assert wide.log_prob(torch.tensor(100.0)).item() == pytest.approx(middle, abs=1e-4)
    assert wide.probs.sum().item() == pytest.approx(1, abs=1e-5)


def test_logistic_mixture_draws_have_the_masses():
    torch.manual_seed(0)
    raw = [0.5, -0.5, -0.4, 0.9, -1.5, -3.0]
    distribution = heads.DiscretizedLogisticMixture(levels=16, components=2)(torch.tensor(raw))
    counts = torch.bincount(distribution.sample((50_000,)).long()[:, 0], minlength=16).numpy()
    assert scipy.stats.chisquare(counts, 50_000 * logistic_mixture_masses(raw, 16, 2)).pvalue > 1e-3


def test_learned_scale_reaches_the_maximum_likelihood_estimate():
    torch.manual_seed(0)
    x = 3 * torch.randn(200, 2) * torch.tensor([1.0, 0.2])
    head = heads.Gaussian(Constant(2), scale=nn.Parameter(torch.ones(2)))
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = -head().log_prob(x).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(head.scale(), x.std(0, correction=0), rtol=1e-3, atol=0)
    with pytest.raises(ValueError, match="expected positive values, got -1"):
        heads.Gaussian(scale=-1.0)


COLUMNS = [heads.Gaussian(), heads.Categorical(levels=3), heads.Bernoulli(), heads.Poisson()]


def test_mixed_rows_are_products_of_their_columns():
    torch.manual_seed(0)
    table = heads.Mixed(MLP(2, [8], 7), COLUMNS)
    context = torch.randn(5, 2)
    x = torch.tensor(
        [
            [0.5, 2.0, 1.0, 4.0],
            [NAN, 0.0, 0.0, NAN],
            [1.0, NAN, NAN, 2.0],
            [NAN] * 4,
            [0.0, 1.0, 1.0, 0.0],
        ]
    )
    parts = table.net(context).split((2, 3, 1, 1), -1)
    columns = (
        head(part).log_prob(x[:, i : i + 1])
        for i, (head, part) in enumerate(zip(COLUMNS, parts, strict=True))
    )
    distribution = table(context)
    torch.testing.assert_close(distribution.log_prob(x), sum(columns))
    assert distribution.log_prob(x)[3] == 0
    assert torch.isfinite(distribution.sample((3,))).all() and distribution.sample((3,)).shape == (
        3,
        5,
        4,
    )
    assert distribution.expand((2, 5)).sample().shape == (2, 5, 4)
    assert not distribution.support.is_discrete
    assert (
        distribution.support.check(torch.nan_to_num(x)).all()
        and not distribution.support.check(torch.full((5, 4), 0.5)).any()
    )
    assert heads.Mixed(None, COLUMNS[1:]).forward(torch.zeros(5)).support.is_discrete


def test_mixed_blocks_of_equal_columns_are_the_columns():
    torch.manual_seed(0)
    one, raw, x = heads.Gaussian(), torch.randn(5, 6), torch.randn(5, 3)
    block = heads.Mixed(None, [one] * 3)
    single = heads.Mixed(None, [heads.Gaussian(), heads.Gaussian(), heads.Gaussian()])
    by_column = raw.view(5, 2, 3).mT.reshape(
        5, 6
    )  # a block stacks parameters, single columns interleave them
    assert len(block.blocks) == 1 and len(single.blocks) == 3 and block.width == single.width == 6
    torch.testing.assert_close(block(raw).log_prob(x), single(by_column).log_prob(x))


def test_refusals_say_what_to_do():
    refused = pytest.raises
    with refused(
        ValueError,
        match=r"2 values per variable \(loc, scale\) along dim -1, got 5 in all; set its outputs",
    ):
        heads.Gaussian(MLP(3, [], 5))(torch.zeros(7, 3))
    with refused(ValueError, match=r"D \(D \+ 3\) / 2 values .* got 6; set its outputs"):
        heads.FullGaussian()(torch.zeros(6))
    with refused(ValueError, match=r"give 7 values per row, got 8; set its outputs to mixed.width"):
        heads.Mixed(None, COLUMNS)(torch.zeros(8))
    with refused(
        ValueError, match=r"expected x of shape \(\*batch, 4\), got \(5, 2, 2\); reshape x"
    ):
        heads.Bernoulli()(torch.zeros(4)).log_prob(torch.zeros(5, 2, 2))
    with refused(ValueError, match=r"expected x of shape \(\*batch, 4\), got \(5, 1\)"):
        heads.Bernoulli()(torch.zeros(4)).log_prob(torch.zeros(5, 1))
    with refused(
        ValueError,
        match=r"expected values that are integers from 0 to 2, or NaN .* got 3",
    ):
        heads.Categorical(levels=3)(torch.zeros(6)).log_prob(torch.tensor([NAN, 3.0]))
    with refused(ValueError, match="expected values that are 0 or 1, or NaN .* got 0.5"):
        heads.Bernoulli()(torch.zeros(2)).log_prob(torch.tensor([NAN, 0.5]))
    with refused(ValueError, match="expected a context for Bernoulli, got None"):
        heads.Bernoulli()()
    with refused(ValueError, match="expected a context for Mixed, got None"):
        heads.Mixed(None, COLUMNS)()
    with refused(
        ValueError,
        match=r"to give \(7,\) \+ 1 event dims .* got \(7, 2, 3\); .* context_ndim \(now 2\)",
    ):
        heads.Bernoulli(MLP(5, [], 3), context_ndim=2)(torch.zeros(7, 2, 5))
    with refused(ValueError, match="expected levels >= 2, got 1"):
        heads.DiscretizedLogisticMixture(levels=1, components=1)(torch.zeros(3))
    with refused(ValueError, match="distribution of single variables"):
        MissingAware(dist.Normal(torch.zeros(2), 1.0).to_event(1), 1)


TAILS = {  # ends, location, scale: in the middle, at an end, far outside, narrow, flat
    "half-line": (0.0, math.inf, 0.5, 1.0),
    "half-line, ten scales off": (0.0, math.inf, -10.0, 1.0),
    "half-line, a hundred scales off": (-math.inf, 0.0, 100.0, 1.0),
    "interval": (-1.0, 1.0, 0.2, 0.7),
    "interval, ten scales off": (0.0, 1.0, 2.0, 0.1),
    "interval, three hundred scales off": (0.0, 1.0, -300.0, 1.0),
    "interval, nearly uniform": (5.0, 6.0, 0.0, 1e5),
    "interval, all inside": (0.0, 100.0, 40.0, 1.0),
}


@pytest.mark.parametrize("low, high, loc, scale", TAILS.values(), ids=TAILS.keys())
def test_truncated_normal_in_the_tails(low, high, loc, scale):
    """Density, draws and moments against scipy's, and against numerical integration of it."""
    torch.manual_seed(0)
    distribution = TruncatedNormal(torch.tensor(loc), torch.tensor(scale), low, high)
    reference = scipy.stats.truncnorm((low - loc) / scale, (high - loc) / scale, loc, scale)
    draws = distribution.sample((4000,))
    assert scipy.stats.kstest(draws.double().numpy(), reference.cdf).pvalue > 1e-3
    expected = torch.as_tensor(reference.logpdf(draws.double().numpy()), dtype=torch.float32)
    torch.testing.assert_close(distribution.log_prob(draws), expected, rtol=1e-5, atol=1e-5)
    edges = reference.ppf(np.linspace(0, 1, 20001)[1:-1])
    assert distribution.mean.item() == pytest.approx(edges.mean(), rel=1e-3, abs=1e-4)
    assert distribution.variance.item() == pytest.approx(edges.var(), rel=1e-2)
    outside = torch.tensor([low - 1, high + 1])
    assert (distribution.log_prob(outside) == -torch.inf).all()
