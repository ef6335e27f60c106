"""NADE and its order-agnostic deep form against explicit loops, enumeration and integration."""

import itertools
import math

import pytest
import torch
from torch import nn

from probgen.core.kinds import density_kind
from probgen.distributions.any_order import AllOrders, ObservedFirst
from probgen.distributions.conditional import conditional
from probgen.distributions.orderings import random_orders
from probgen.heads import Bernoulli, Categorical, MixtureOfGaussians
from probgen.models.deep_nade import DeepNADE
from probgen.models.nade import NADE
from probgen.nn.encodings import OneHot


def shaken(gen):
    """Every parameter somewhere."""
    with torch.no_grad():
        for parameter in gen.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return gen.double().eval()


def every(levels, dims):
    return torch.cartesian_prod(*[torch.arange(float(levels), dtype=torch.float64)] * dims)


def stepwise(distribution, x):
    """log p of every entry in turn, from the incremental sampler that is told x."""
    terms, entries = [], distribution.entries(x)

    def choose(t, step):
        terms.append(step.log_prob(entries[t]))
        return entries[t]

    distribution.generate(torch.Size(x.shape), choose)
    return torch.stack(terms, -1)


ORDER = torch.tensor([2, 0, 3, 1])


def test_nade_is_its_recursion():
    """The definition, one variable and one hidden unit after the other."""
    gen, x = shaken(NADE(4, 6, Bernoulli(), order=ORDER, context=2)), every(2, 4)[11]
    context, total = torch.randn(2).double(), 0.0
    a = gen.offset + gen.context.weight @ context
    for at in ORDER.tolist():
        p = torch.sigmoid(
            gen.bias[at, 0] + sum(gen.out[at, 0, h] * torch.sigmoid(a[h]) for h in range(6))
        )
        total += (x[at] * p.log() + (1 - x[at]) * (1 - p).log()).item()
        a = a + gen.weight[at, 0] * x[at]
    assert gen(context).log_prob(x).item() == pytest.approx(total, abs=1e-12)


def test_rescaled_nade_is_its_recursion():
    gen, x = (
        shaken(NADE(3, 4, MixtureOfGaussians(components=2), rescale=True, activation=nn.Tanh)),
        torch.randn(3).double(),
    )
    total, a = 0.0, gen.offset
    for at in range(3):
        raw = gen.bias[at] + gen.out[at] @ torch.tanh(gen.scale[at] * a)
        total += gen.head.distribution(raw[:, None]).log_prob(x[at]).item()
        a = a + gen.weight[at, 0] * x[at]
    assert gen().log_prob(x).item() == pytest.approx(total, abs=1e-12)


FAMILIES = {
    "NADE": lambda: NADE(4, 6, Bernoulli(), order=ORDER),
    "NADE of labels": lambda: NADE(4, 6, Categorical(levels=3), encode=OneHot(3)),
    "DeepNADE": lambda: DeepNADE(4, [7, 7], Bernoulli(), orders=ORDER, residual=True),
    "EoNADE": lambda: DeepNADE(4, [7], Bernoulli(), orders=random_orders(3, 4)),
    "EoNADE of labels": lambda: DeepNADE(
        4, [7], Categorical(levels=3), encode=OneHot(3), norm=nn.LayerNorm
    ),
}
families = pytest.mark.parametrize("family", FAMILIES)


def levels(gen):
    return 3 if isinstance(gen.head, Categorical) else 2


@families
def test_probabilities_sum_to_one(family):
    gen = shaken(FAMILIES[family]())
    assert gen().log_prob(every(levels(gen), 4)).exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    assert density_kind(gen()) == "exact"


@families
def test_steps_give_the_distributions_of_one_pass(family):
    gen = shaken(FAMILIES[family]())
    distribution = gen() if isinstance(gen, NADE) else gen.ordered(ORDER)
    x = every(levels(gen), 4)
    assert torch.allclose(stepwise(distribution, x), distribution.terms(x), atol=1e-12)


@families
def test_samples_have_the_frequencies_of_the_density(family):
    gen, rows = shaken(FAMILIES[family]()), 4000
    count = levels(gen)
    code = count ** torch.arange(3.0, -1, -1).double()
    found = (gen().sample((rows,)).double() @ code).long().bincount(minlength=count**4) / rows
    truth = gen().log_prob(every(count, 4)).exp()
    statistic = (
        rows * ((found - truth).square() / truth).sum()
    )  # chi squared, about its degrees of freedom
    assert abs(statistic - (count**4 - 1)) < 6 * math.sqrt(2 * count**4)


def test_the_jacobian_of_nade_is_triangular_in_the_order():
    gen = shaken(NADE(4, 6, Bernoulli(), order=ORDER))
    logits = torch.autograd.functional.jacobian(
        lambda x: gen().distributions(x).logits, torch.rand(4).double()
    )
    assert torch.equal((logits != 0)[ORDER][:, ORDER], torch.ones(4, 4).tril(-1).bool())


def test_the_jacobian_of_deep_nade_is_triangular_in_any_order():
    gen, order = shaken(DeepNADE(4, [7, 7], Bernoulli())), torch.tensor([3, 1, 0, 2])
    distribution = gen.ordered(order)
    logits = torch.autograd.functional.jacobian(
        lambda x: distribution.distributions(x).logits, torch.rand(4).double()
    )
    assert torch.equal((logits != 0)[order][:, order], torch.ones(4, 4).tril(-1).bool())


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("dims", [1, 2])
def test_densities_of_real_vectors_integrate_to_one(dims):
    line = torch.linspace(-25, 25, 501, dtype=torch.float64)
    rows = torch.cartesian_prod(*[line] * dims).reshape(-1, dims)
    for gen in (
        NADE(dims, 5, MixtureOfGaussians(components=2, min_scale=0.3)),
        DeepNADE(dims, [5], MixtureOfGaussians(components=2)),
    ):
        assert shaken(gen)().log_prob(rows).exp().sum().item() * 0.1**dims == pytest.approx(
            1.0, abs=1e-3
        )


@pytest.mark.parametrize(
    "gen", [NADE(4, 6, Bernoulli(), context=2), DeepNADE(4, [6], Bernoulli(), context=2)]
)
def test_each_row_of_context_has_its_distribution(gen):
    gen, context, x = shaken(gen), torch.randn(3, 2).double(), every(2, 4)
    together = gen(context).log_prob(x.unsqueeze(1))
    for row in range(3):
        assert torch.allclose(together[:, row], gen(context[row]).log_prob(x))
    assert not torch.allclose(together[:, 0], together[:, 1])


@pytest.mark.parametrize(
    "gen", [NADE(4, 6, Bernoulli(), order=ORDER), DeepNADE(4, [6], Bernoulli(), orders=ORDER)]
)
def test_a_missing_suffix_is_summed_out(gen):
    gen, x = shaken(gen), torch.tensor([1.0, torch.nan, 0.0, torch.nan]).double()
    distribution = gen() if isinstance(gen, NADE) else gen.ordered(ORDER)
    full = torch.tensor([1.0, 0, 0, 0]).double().repeat(4, 1)
    full[:, 1], full[:, 3] = every(2, 2).T
    joint = distribution.log_prob(full)
    assert gen().log_prob(x).item() == pytest.approx(joint.logsumexp(0).item(), abs=1e-12)
    assert torch.allclose(
        conditional(distribution, x, ~x.isnan()).log_prob(full), joint - joint.logsumexp(0)
    )


def test_training_bounds_the_mixture_over_all_orders():
    """Its mean over the noise is the mean log-density over the 4! orders.

    Below the log of the mean density.
    """
    gen, x = shaken(DeepNADE(4, [6], Bernoulli())), every(2, 4)[[3, 9]]
    each = torch.stack(
        [gen.ordered(torch.tensor(o)).log_prob(x) for o in itertools.permutations(range(4))]
    )
    distribution = gen.train()()
    assert isinstance(distribution, AllOrders) and density_kind(distribution) == "bound"
    draws = distribution.log_prob(x.expand(20_000, 2, 4))
    assert ((draws.mean(0) - each.mean(0)).abs() < 5 * draws.std(0) / 20_000**0.5).all()
    assert (each.mean(0) < each.logsumexp(0) - math.log(24)).all()


def test_samples_in_training_mode_are_of_the_mixture_over_all_orders():
    gen, code = shaken(DeepNADE(3, [6], Bernoulli())), torch.tensor([4.0, 2.0, 1.0])
    each = [
        gen.ordered(torch.tensor(o)).log_prob(every(2, 3)).exp()
        for o in itertools.permutations(range(3))
    ]
    truth, rows = sum(each) / 6, 10_000
    found = (gen.train()().sample((rows,)) @ code.double()).long().bincount(minlength=8) / rows
    assert ((found - truth).abs() < 5 * (truth * (1 - truth) / rows).sqrt()).all()


def test_missing_values_get_no_gradient_in_training():
    """Their average over orders is in ``test_autoregressive_table.py``."""
    gen, x = DeepNADE(3, [6], Bernoulli()), torch.tensor([[1.0, torch.nan, 0.0]])
    gen().log_prob(x.expand(50, -1)).sum().backward()
    rows = gen.net.last.weight.grad
    assert rows.isfinite().all()
    assert (rows.abs().amax(1) > 0).tolist() == [True, False, True]


def test_completions_are_those_of_the_order_with_observed_entries_first():
    gen = shaken(DeepNADE(4, [6], Bernoulli(), orders=ORDER))
    x = torch.tensor([[torch.nan, 1.0, torch.nan, 0.0], [1.0, 0.0, 1.0, torch.nan]]).double()
    distribution = gen.completion(x)
    first = gen.ordered(torch.tensor([1, 3, 2, 0]))  # the missing ones, 2 and 0, as ORDER has them
    full = torch.tensor([[a, 1.0, b, 0.0] for a in (0.0, 1.0) for b in (0.0, 1.0)]).double()
    truth = first.log_prob(full) - first.log_prob(full).logsumexp(0)
    assert torch.allclose(distribution.log_prob(full.unsqueeze(1).repeat(1, 2, 1))[:, 0], truth)
    draws = distribution.sample((4000,))
    assert torch.equal(draws[:, 1, :3], x[1, :3].expand(4000, 3)) and (draws[:, 0, 1] == 1).all()
    found = (draws[:, 0, [0, 2]] @ torch.tensor([2.0, 1.0]).double()).long().bincount(
        minlength=4
    ) / 4000
    assert ((found - truth.exp()).abs() < 5 * (truth.exp() * (1 - truth.exp()) / 4000).sqrt()).all()
    assert isinstance(distribution.expand((3, 2)), ObservedFirst) and distribution.expand(
        (3, 2)
    ).sample().shape == (
        3,
        2,
        4,
    )


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="at least one hidden layer"):
        DeepNADE(3, [], Bernoulli())
    with pytest.raises(ValueError, match="permutation"):
        NADE(3, 4, Bernoulli(), order=torch.tensor([0, 1, 1]))


@pytest.mark.parametrize(
    "family", [NADE, lambda *given, **more: DeepNADE(given[0], [given[1]], *given[2:], **more)]
)
def test_contexts_are_checked_and_models_without_refuse_them(family):
    with pytest.raises(ValueError, match=r"\(\*batch, 2\), got None"):
        family(3, 4, Bernoulli(), context=2)()
    with pytest.raises(
        ValueError, match=r"expected no context \(\w+ was built without one\), got one of shape \(8"
    ):
        family(3, 4, Bernoulli())(torch.randn(8, 5))
