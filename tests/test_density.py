"""Kinds, weights and log-likelihoods against explicit sums and closed forms."""

import math
from itertools import pairwise, product

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal
from torch.testing import assert_close
from toys import MARGINAL, PREDICTIVE, Distribution, Global, Head, Local, N, Stated

from probgen.core.kinds import KINDS, average, density_kind, worst
from probgen.core.missing import MissingAware
from probgen.core.module import DistributionModule, Fixed, data_plate
from probgen.core.program import Program
from probgen.core.weights import log_weights
from probgen.scoring import log_likelihood


class Noisy(Distribution):
    """A distribution whose log_prob is an average of draws."""

    def log_prob(self, x):
        return super().log_prob(x) + torch.randn(x.shape[:-1])


class Words(DistributionModule):
    """A mixture of two rates per document, and of two per word in it.

    Both enumerated, in nested plates.
    """

    max_plate_nesting = 2
    topics, words = torch.tensor([0.3, 0.7]), torch.tensor([[0.2, 0.8], [0.6, 0.4]])
    loc = torch.tensor([-1.0, 2.0])

    def forward(self, context=None):
        raise NotImplementedError

    def model(self, x=None, context=None):
        with data_plate(x, context):
            k = pyro.sample("k", dist.Categorical(self.topics), infer={"enumerate": "parallel"})
            with pyro.plate("words", x.shape[1], dim=-2):
                w = pyro.sample(
                    "w", dist.Categorical(self.words[k]), infer={"enumerate": "parallel"}
                )
                pyro.sample("x", N(self.loc[w], 1.0), obs=x.mT)

    def truth(self, x):
        likelihood = N(self.loc, 1.0).log_prob(x.unsqueeze(-1)).exp()
        return (torch.einsum("bnw,kw->bnk", likelihood, self.words).prod(1) @ self.topics).log()


def test_worst_kind_follows_the_order_of_kinds():
    assert [worst(a, b) for a, b in pairwise(KINDS)] == list(KINDS[1:])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda distribution: distribution.to_event(1),
        lambda distribution: dist.TransformedDistribution(
            distribution, [dist.transforms.ExpTransform()]
        ),
        lambda distribution: dist.ExpandedDistribution(distribution, torch.Size((7, 3))),
        lambda distribution: distribution.mask(torch.tensor([True, False, True])),
        lambda distribution: dist.MixtureSameFamily(dist.Categorical(torch.ones(3)), distribution),
        lambda distribution: (
            dist.TransformedDistribution(distribution.to_event(1), [dist.transforms.ExpTransform()])
            .expand((2,))
            .to_event(1)
        ),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_wrappers_keep_the_kind_of_what_they_wrap(wrap, kind):
    assert density_kind(wrap(Distribution(kind, (3,)))) == kind


def test_torch_distributions_are_exact():
    assert (
        density_kind(torch.distributions.Gamma(1.0, 1.0))
        == density_kind(dist.Gamma(1.0, 1.0))
        == "exact"
    )


def block_observed(model):
    """The prior as a guide."""
    return lambda *batch: (
        poutine.block(model, hide_fn=lambda site: site["is_observed"])(*batch) and None
    )


def test_weights_are_constant_and_exact_when_the_guide_is_the_posterior():
    weights, kind = log_weights(Local(0.0, 0.5**0.5), x := torch.randn(4), particles=3)
    assert kind == "unbiased"
    assert_close(weights, MARGINAL.log_prob(x).expand(3, 4))


def test_weights_average_to_the_marginal_in_probability_space():
    weights, _ = log_weights(Local(), x := torch.tensor([-1.0, 0.0, 2.5]), particles=200_000)
    assert_close(average(weights, "unbiased"), MARGINAL.log_prob(x), atol=0.01, rtol=0)


@pytest.mark.parametrize("particles", [1, 2])
def test_enumerated_sites_in_nested_plates_are_summed_out(particles):
    gen, x = Words(), torch.randn(4, 3)
    weights, kind = log_weights(gen, x, particles=particles)
    assert kind == "exact"
    assert_close(weights, gen.truth(x).expand(particles, 4))
    assert_close(log_likelihood(gen, x).value, gen.truth(x))


@pytest.mark.parametrize("vectorized", [False, True])
def test_chains_of_enumerated_sites_are_summed_over_all_paths(vectorized):
    initial, step = torch.tensor([0.6, 0.4]), torch.tensor([[0.9, 0.1], [0.3, 0.7]])
    loc = torch.tensor([-1.0, 1.5])

    def model(x):
        with pyro.plate("data", len(x)):
            s = 0
            for t in pyro.markov(range(x.shape[1])):
                distribution = dist.Categorical(step[s] if t else initial)
                s = pyro.sample(f"s{t}", distribution, infer={"enumerate": "parallel"})
                pyro.sample(f"x{t}", N(loc[s], 1.0), obs=x[:, t])

    x, total = torch.randn(4, 5), []
    for path in product(range(2), repeat=5):
        prior = initial[path[0]].log() + sum(step[a, b].log() for a, b in pairwise(path))
        total.append(prior + N(loc[list(path)], 1.0).log_prob(x).sum(1))
    weights, kind = log_weights(Program(model, vectorized=vectorized), x, particles=2)
    assert kind == "exact"
    assert_close(weights, torch.stack(total).logsumexp(0).expand(2, 4))


def test_an_enumerated_site_that_rows_share_is_refused():
    """Its sum does not split into one number for each row."""

    def model(x):
        k = pyro.sample("k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
        with pyro.plate("data", len(x)):
            pyro.sample("x", N(torch.tensor([-1.0, 2.0])[k], 1.0), obs=x)

    with pytest.raises(ValueError, match="'k'"):
        log_weights(Program(model), torch.zeros(3))


def test_enumerated_sites_stay_apart_from_drawn_ones():
    """One continuous latent per row is drawn, one discrete is summed out.

    In a plate of particles.
    """

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", N(0.0, 1.0))
            k = pyro.sample(
                "k", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"}
            )
            pyro.sample("x", N(z + torch.tensor([-1.0, 2.0])[k], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", N(0.5 * x, 0.8))

    x = torch.randn(4)
    pyro.set_rng_seed(1)
    weights, kind = log_weights(Program(model, guide, vectorized=True), x, particles=3)
    pyro.set_rng_seed(1)
    z = N(0.5 * x, 0.8).sample((3,))
    mixture = torch.stack(
        [math.log(p) + N(z + m, 1.0).log_prob(x) for p, m in ((0.3, -1.0), (0.7, 2.0))]
    ).logsumexp(0)
    assert kind == "unbiased"
    assert_close(weights, mixture + N(0.0, 1.0).log_prob(z) - N(0.5 * x, 0.8).log_prob(z))


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("enumerated", [False, True])
def test_rows_may_stand_in_any_plate(vectorized, enumerated):
    """The data plate at dim -2, and steps in time to its right."""
    prior = torch.tensor([0.4, 0.6])

    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            k = 1
            if enumerated:
                k = pyro.sample("k", dist.Categorical(prior), infer={"enumerate": "parallel"})
            with pyro.plate("time", x.shape[1], dim=-1):
                pyro.sample("x", N(torch.tensor([-1.0, 2.0])[k], 1.0), obs=x)

    x = torch.randn(4, 3)
    gen = Program(model, max_plate_nesting=2, vectorized=vectorized)
    parts = torch.stack([N(m, 1.0).log_prob(x).sum(1) for m in (-1.0, 2.0)])
    truth = (parts + prior.log()[:, None]).logsumexp(0) if enumerated else parts[1]
    assert_close(log_weights(gen, x, particles=2)[0], truth.expand(2, 4))


def test_a_program_that_cannot_be_vectorized_runs_once_for_each_draw():
    """mu[0] would be the first draw, not the first entry, in a plate of draws."""

    def model(x):
        mu = pyro.sample("mu", N(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", N(mu[0], 1.0), obs=x)

    x = torch.randn(3)
    pyro.set_rng_seed(2)
    weights, kind = log_weights(Program(model, block_observed(model)), x, particles=4)
    pyro.set_rng_seed(2)
    mu = torch.stack([N(torch.zeros(2), 1.0).sample() for _ in range(4)])
    assert kind == "unbiased"
    assert_close(weights, N(mu[:, :1], 1.0).log_prob(x))


@pytest.mark.parametrize("enumerated", [False, True])
def test_masked_entries_do_not_count_and_the_scales_of_the_user_do(enumerated):
    observed = torch.tensor([True, False, True, True])
    means = torch.tensor([-1.0, 2.0])

    def model(x):
        with pyro.plate("data", len(x)), poutine.scale(scale=10.0):
            k = 1
            if enumerated:
                k = pyro.sample(
                    "k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"}
                )
            with poutine.mask(mask=observed):
                pyro.sample("x", N(means[k], 1.0), obs=x)

    x = torch.randn(4)
    both = torch.stack([N(m, 1.0).log_prob(x) for m in means]).logsumexp(0) - math.log(2)
    truth = torch.where(observed, both if enumerated else N(2.0, 1.0).log_prob(x), 0.0)
    assert_close(
        log_weights(Program(model, vectorized=True), x, particles=2)[0], 10 * truth.expand(2, 4)
    )


def test_missing_values_are_left_out():
    gen = Stated(MissingAware(N(torch.tensor([0.0, 1.0, 2.0]), 1.0), 1))
    x = torch.tensor([[0.5, 1.0, torch.nan], [torch.nan] * 3, [0.1, 0.2, 0.3]])
    each = N(torch.tensor([0.0, 1.0, 2.0]), 1.0).log_prob(x.nan_to_num())
    assert_close(log_likelihood(gen, x).value, torch.where(x.isnan(), 0.0, each).sum(1))


def test_globals_are_drawn_from_the_guide_and_not_reweighted():
    x = torch.randn(4)
    pyro.set_rng_seed(3)
    weights, kind = log_weights(Global(), x, particles=6)
    pyro.set_rng_seed(3)
    mu = N(2.0, 0.5).sample((6, 1))
    assert kind == "unbiased"
    assert_close(weights, N(mu, 1.0).log_prob(x))


def test_globals_may_stand_in_plates_of_their_own():
    group = torch.tensor([0, 1, 2, 2])

    def model(x):
        with pyro.plate("groups", 3, dim=-1):
            mean = pyro.sample("mean", N(0.0, 10.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", N(mean[..., group], 1.0), obs=x)

    def guide(x):
        with pyro.plate("groups", 3, dim=-1):
            pyro.sample("mean", N(torch.arange(3.0), 0.5))

    x = torch.randn(4)
    weights, kind = log_weights(Program(model, guide, vectorized=True), x, particles=100_000)
    assert_close(average(weights, kind), N(group.float(), 1.25**0.5).log_prob(x), atol=0.02, rtol=0)


def test_subsampling_inside_a_program_does_not_rescale_its_rows():
    def model(x):
        with pyro.plate("data", 1000, subsample_size=len(x)):
            pyro.sample("x", N(0.0, 1.0), obs=x)

    x = torch.randn(4)
    assert_close(log_weights(Program(model), x)[0][0], N(0.0, 1.0).log_prob(x))


def test_factors_count_and_make_the_density_unnormalized():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", N(0.0, 1.0), obs=x)
            pyro.factor("tilt", -x.square())

    weights, kind = log_weights(Program(model), x := torch.randn(4))
    assert kind == "unnormalized"
    assert_close(weights[0], N(0.0, 1.0).log_prob(x) - x.square())


def bound_prior(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", Distribution("bound", (len(x),)))
        pyro.sample("x", N(z.sum(-1), 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "guide", "words"),
    [
        (Local().model, lambda x: None, "guide to draw the latent site 'z'"),
        (lambda x: pyro.sample("x", N(0.0, 1.0), obs=x), None, "plate named 'data'"),
        (bound_prior, block_observed(bound_prior), "exact density at guide site 'z'"),
        (Local().model, AutoDelta(Local().model), "point estimates"),
        (Local().model, AutoMultivariateNormal(Local().model), "one joint draw"),
    ],
)
def test_weights_are_refused_with_words(model, guide, words):
    with pytest.raises(ValueError, match=words):
        log_weights(Program(model, guide), torch.zeros(3))


@pytest.mark.parametrize("max_rows", [1, 3, 10, 100])
def test_exact_scores_do_not_depend_on_blocks(max_rows):
    gen, x, context = Head(), torch.randn(10, 3), torch.randn(10, 2)
    score = log_likelihood(gen, x, context, max_rows=max_rows)
    assert (score.kind, score.unit, score.particles, score.measure) == (
        "exact",
        "nats",
        1,
        "density",
    )
    assert_close(score.value, N(gen.linear(context), 1.0).log_prob(x).sum(-1).detach())


def test_a_context_of_none_is_no_context():
    x = torch.randn(10, 2)
    assert_close(
        log_likelihood(Stated(Distribution()), x, None, max_rows=4).value,
        Distribution().log_prob(x),
    )


@pytest.mark.parametrize("max_rows", [50, 2**15])
def test_estimates_converge_to_the_marginal_whatever_the_blocks(max_rows):
    score = log_likelihood(
        Local(), x := torch.tensor([-1.0, 0.0, 2.0]), particles=2000, max_rows=max_rows
    )
    assert (score.kind, score.particles) == ("unbiased", 2000)
    assert_close(score.value, MARGINAL.log_prob(x), atol=0.05, rtol=0)


def test_a_fitted_bayesian_model_is_scored_by_its_posterior_predictive():
    score = log_likelihood(Global(), x := torch.tensor([0.0, 2.0, 4.0]), particles=50_000)
    assert_close(score.value, PREDICTIVE.log_prob(x), atol=0.02, rtol=0)


def test_bounds_are_averaged_in_log_space():
    weights = torch.tensor([[0.0, -2.0], [-4.0, -6.0]])
    assert_close(average(weights, "bound"), torch.tensor([-2.0, -4.0]))
    assert_close(average(weights, "unbiased"), ((weights.exp().sum(0)) / 2).log())


@pytest.mark.parametrize("kind", ["approximate", "unnormalized"])
def test_what_nothing_random_enters_is_scored_once(kind):
    score = log_likelihood(Stated(Distribution(kind)), torch.zeros(3, 2), particles=8)
    assert (score.kind, score.particles) == (kind, 1)
    assert log_likelihood(Stated(Noisy(kind)), torch.zeros(3, 2), particles=8).particles == 8


def test_the_measure_tells_discrete_from_continuous():
    bits = Fixed(dist.Bernoulli, probs=torch.full((4,), 0.25))
    score = log_likelihood(bits, torch.ones(3, 4))
    assert score.measure == "mass"
    assert_close(score.value, torch.full((3,), 4 * math.log(0.25)))


def test_scores_refuse_what_has_no_number():
    with pytest.raises(NotImplementedError, match="Adversarial"):
        log_likelihood(Stated(Distribution("implicit")), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="particles >= 1"):
        log_likelihood(Local(), torch.zeros(3), particles=0)
