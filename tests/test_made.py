"""MADE against enumeration, autograd, finite sums and its own definition."""

import itertools
import math

import pytest
import torch
from torch import nn

from probgen.core.kinds import density_kind
from probgen.distributions.conditional import conditional
from probgen.distributions.orderings import OrderEnsemble, RandomOrder, check_orders, random_orders
from probgen.heads import Bernoulli, Categorical, Gaussian, MixtureOfGaussians
from probgen.models.made import MADE
from probgen.nn.encodings import OneHot
from probgen.scoring import log_likelihood
from probgen.train.fit import adam, fit


def shaken(gen):
    """Every parameter somewhere, so that no mask is hidden by a zero."""
    with torch.no_grad():
        for parameter in gen.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return gen.double().eval()


def every(levels, dims):
    values = torch.arange(float(levels), dtype=torch.float64)
    return torch.cartesian_prod(*[values] * dims)


FORMS = {
    "one order": {"hidden": [7, 5]},
    "reversed": {"hidden": [7], "orders": torch.arange(5).flip(0)},
    "residual": {"hidden": [9, 9, 9], "residual": True, "activation": nn.Tanh},
    "no direct connections": {"hidden": [8], "direct": False},
    "linear": {"hidden": []},
    "few units": {"hidden": [2]},
    "orders": {"hidden": [8, 8], "orders": random_orders(4, 5)},
}
forms = pytest.mark.parametrize("form", FORMS)


@forms
def test_probabilities_sum_to_one(form):
    gen = shaken(MADE(5, head=Bernoulli(), **FORMS[form]))
    assert gen().log_prob(every(2, 5)).exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    assert density_kind(gen()) == "exact"


def test_probabilities_of_labels_sum_to_one():
    gen = shaken(MADE(3, [8], Categorical(levels=3), encode=OneHot(3), orders=random_orders(2, 3)))
    assert gen().log_prob(every(3, 3)).exp().sum().item() == pytest.approx(1.0, abs=1e-12)


@forms
def test_the_jacobian_is_triangular_in_the_order(form):
    """The distribution of a variable moves with the variables before it, each of them.

    And with no other.
    """
    gen = shaken(MADE(5, head=Bernoulli(), **FORMS[form]))
    distribution = gen.ordered(torch.tensor([0]))
    logits = torch.autograd.functional.jacobian(
        lambda x: distribution.distributions(x).logits, torch.rand(5, dtype=torch.float64)
    )
    moved = (logits != 0)[distribution.order][:, distribution.order]
    assert not moved.triu().any()
    if (form != "few units" and gen.net.direct is not None) or form == "linear":
        assert torch.equal(moved, torch.ones(5, 5).tril(-1).bool())


@forms
def test_steps_give_the_distributions_of_one_pass(form):
    gen = shaken(MADE(5, head=Bernoulli(), **FORMS[form]))
    distribution, x = gen.ordered(torch.tensor([len(gen.orders) - 1])), every(2, 5)
    assert torch.allclose(stepwise(distribution, x), distribution.terms(x), atol=1e-12)


def stepwise(distribution, x):
    """log p of every entry in turn, from the incremental sampler that is told x."""
    terms = []
    entries = distribution.entries(x)

    def choose(t, step):
        terms.append(step.log_prob(entries[t]))
        return entries[t]

    distribution.generate(torch.Size(x.shape), choose)
    return torch.stack(terms, -1)


@pytest.mark.parametrize(
    "head",
    [Categorical(levels=3), MixtureOfGaussians(components=2), Gaussian()],
    ids=lambda h: type(h).__name__,
)
def test_steps_with_features_and_a_context(head):
    labels = isinstance(head, Categorical)
    gen = shaken(
        MADE(
            4,
            [9, 9],
            head,
            encode=OneHot(3) if labels else None,
            context=2,
            orders=random_orders(3, 4),
        )
    )
    x = torch.randint(3, (6, 4)).double() if labels else torch.randn(6, 4).double()
    distribution = gen.ordered(torch.tensor([1]), torch.randn(6, 2).double())
    assert torch.allclose(stepwise(distribution, x), distribution.terms(x), atol=1e-12)


def test_samples_have_the_frequencies_of_the_density():
    gen = shaken(MADE(3, [8], Bernoulli(), orders=random_orders(3, 3)))
    code = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    found = (gen().sample((20_000,)) @ code).long().bincount(minlength=8) / 20_000
    truth = gen().log_prob(every(2, 3)).exp()
    assert ((found - truth).abs() < 5 * (truth * (1 - truth) / 20_000).sqrt()).all()


def test_naive_and_incremental_samples_agree_in_distribution():
    gen = shaken(MADE(3, [8], Bernoulli(), orders=torch.tensor([2, 0, 1])))
    code, counts = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64), []
    for sample in (gen().sample, gen().naive_sample):
        counts.append((sample((20_000,)).double() @ code).long().bincount(minlength=8) / 20_000)
    assert (
        (counts[0] - counts[1]).abs() < 5 * (2 * counts[0] * (1 - counts[0]) / 20_000).sqrt() + 1e-4
    ).all()


def test_a_mixture_over_orders_averages_probabilities():
    gen = shaken(MADE(4, [8], Bernoulli(), orders=random_orders(3, 4)))
    x = every(2, 4)
    parts = [gen.ordered(torch.tensor([m])).log_prob(x).exp() for m in range(3)]
    assert torch.allclose(gen().log_prob(x).exp(), sum(parts) / 3)
    assert not torch.allclose(parts[0], parts[1])


def test_training_scores_one_order_without_bias():
    """The mean of the probabilities over all draws of the order is the mixture's probability."""
    gen, x = shaken(MADE(4, [8], Bernoulli(), orders=random_orders(3, 4))), every(2, 4)
    truth = gen().log_prob(x).exp()
    distribution = gen.train()()
    assert isinstance(distribution, RandomOrder) and density_kind(distribution) == "unbiased"
    draws = torch.stack([distribution.log_prob(x).exp() for _ in range(600)])
    assert ((draws.mean(0) - truth).abs() < 5 * draws.std(0) / 600**0.5 + 1e-12).all()


def test_each_row_of_context_has_its_distribution():
    gen = shaken(MADE(4, [8], Bernoulli(), context=2, orders=random_orders(2, 4)))
    context, x = torch.randn(3, 2).double(), every(2, 4)
    together = gen(context).log_prob(x.unsqueeze(1))
    for row in range(3):
        assert torch.allclose(together[:, row], gen(context[row]).log_prob(x))
    assert torch.allclose(together.exp().sum(0), torch.ones(3).double())
    assert not torch.allclose(together[:, 0], together[:, 1])


def test_samples_of_a_mixture_follow_their_contexts():
    gen = shaken(MADE(2, [8], Bernoulli(), context=1, orders=random_orders(2, 2, seed=3)))
    context, code = torch.tensor([[-2.0], [2.0]]).double(), torch.tensor([2.0, 1.0]).double()
    found = (gen(context).sample((20_000,)) @ code).long()
    truth = gen(context).log_prob(every(2, 2).unsqueeze(1)).exp()
    for row in range(2):
        share = found[:, row].bincount(minlength=4) / 20_000
        assert (
            (share - truth[:, row]).abs()
            < 5 * (truth[:, row] * (1 - truth[:, row]) / 20_000).sqrt() + 1e-4
        ).all()


def test_a_missing_suffix_is_summed_out():
    gen = shaken(MADE(4, [8], Bernoulli(), orders=torch.tensor([[2, 0, 3, 1]])))
    x = torch.tensor([1.0, torch.nan, 0.0, torch.nan]).double()
    pairs = every(2, 2)
    full = torch.tensor([1.0, 0, 0, 0]).double().repeat(4, 1)
    full[:, 1], full[:, 3] = pairs[:, 0], pairs[:, 1]
    joint = gen().log_prob(full)
    assert gen().log_prob(x).item() == pytest.approx(joint.logsumexp(0).item(), abs=1e-12)
    given = conditional(gen(), x, ~x.isnan())
    assert torch.allclose(given.log_prob(full), joint - joint.logsumexp(0))


@pytest.mark.parametrize("dims", [1, 2])
def test_densities_of_real_vectors_integrate_to_one(dims):
    gen = shaken(
        MADE(
            dims,
            [6],
            MixtureOfGaussians(components=3, min_scale=0.2),
            orders=random_orders(2, dims),
        )
    )
    line = torch.linspace(-20, 20, 401, dtype=torch.float64)
    rows = torch.cartesian_prod(*[line] * dims).reshape(-1, dims)
    assert gen().log_prob(rows).exp().sum().item() * 0.1**dims == pytest.approx(1.0, abs=1e-4)


def test_a_mixture_of_normals_is_the_weighted_sum_of_their_densities():
    raw = torch.randn(6, 4)
    distribution = MixtureOfGaussians(components=2, min_scale=0.1)(raw.flatten())
    x = torch.randn(4)
    logits, loc, scale = raw.split(2)
    scale, loc = nn.functional.softplus(scale) + 0.1, loc + torch.tensor([[-0.5], [0.5]])
    parts = (
        logits.softmax(0)
        * torch.exp(-0.5 * ((x - loc) / scale) ** 2)
        / (scale * math.sqrt(2 * math.pi))
    )
    assert distribution.log_prob(x).item() == pytest.approx(
        parts.sum(0).log().sum().item(), abs=1e-5
    )


def test_fitting_finds_an_order_of_parity():
    """Four bits of even parity: 3 log 2 nats, which no product of pairs can reach."""
    x = torch.tensor([row for row in itertools.product([0.0, 1.0], repeat=4) if sum(row) % 2 == 0])
    torch.manual_seed(1)
    gen = MADE(4, [32, 32], Bernoulli(), orders=random_orders(2, 4))
    fit(
        gen,
        x.repeat(8, 1),
        steps=250,
        batch_size=64,
        optimizer=adam(1e-2),
        compile=False,
        seed=0,
        verdict=False,
    )
    score = log_likelihood(gen, x)
    assert score.kind == "exact" and abs(score.mean + 3 * math.log(2)) < 0.05


@pytest.mark.parametrize("orders", [torch.zeros(2, 3), torch.arange(4), torch.zeros(1, 1, 3)])
def test_orders_are_permutations(orders):
    with pytest.raises(ValueError, match="permutation"):
        check_orders(orders, 3)


def test_contexts_are_checked_and_models_without_refuse_them():
    with pytest.raises(ValueError, match=r"\(\*batch, 2\), got \(5, 3\)"):
        MADE(3, [4], Bernoulli(), context=2, orders=random_orders(2, 3))(torch.zeros(5, 3))
    with pytest.raises(
        ValueError, match=r"expected no context \(MADE was built without one\), got one of shape"
    ):
        MADE(3, [4], Bernoulli())(torch.randn(8, 5))


def test_an_empty_sample_of_a_mixture():
    assert OrderEnsemble(MADE(3, [4], Bernoulli()).ordered, 1, (3,)).sample((0,)).shape == (0, 3)
