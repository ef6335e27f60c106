"""Tables: parameter counts, estimates from counts, and what chains of all orders have in common."""

import itertools

import pytest
import torch

from probgen.infer.em import em
from probgen.models.factorized import Factorized
from probgen.models.joint_table import JointTable
from probgen.models.markov_chain import MarkovChain


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def events(dims, levels=2):
    return torch.tensor(list(itertools.product(range(levels), repeat=dims))).float()


def data(dims=4, levels=2, rows=300):
    walk = torch.randint(levels, (rows, dims))
    stay = torch.rand(rows, dims) < 0.6
    for t in range(1, dims):
        walk[:, t] = torch.where(stay[:, t], walk[:, t - 1], walk[:, t])
    return walk.float()


@pytest.mark.parametrize("n", [2, 5, 9])
def test_parameter_counts_of_binary_models(n):
    assert parameters(JointTable(n)) == 2**n - 1
    assert parameters(Factorized(n)) == n
    assert parameters(MarkovChain(n)) == 2 * n - 1
    assert parameters(MarkovChain(n, order=n - 1)) == 2**n - 1
    assert parameters(MarkovChain(n, order=0)) == n


@pytest.mark.parametrize(
    "model",
    [
        JointTable(4),
        Factorized(4),
        MarkovChain(4),
        MarkovChain(4, order=2),
        MarkovChain(3, levels=3, order=2),
    ],
    ids=lambda model: f"{type(model).__name__}-{parameters(model)}",
)
def test_masses_sum_to_one_and_draws_follow_them(model):
    torch.nn.init.normal_(model.logits)
    cells = events(model.dims, model.levels)
    masses = model().log_prob(cells).exp()
    torch.testing.assert_close(masses.sum(), torch.tensor(1.0))
    counts = (model().sample((20_000,)).unsqueeze(1) == cells).all(-1).float().mean(0)
    assert (counts - masses).abs().max() < 0.015


def test_em_counts():
    x = data()
    chain, table, product = MarkovChain(4), JointTable(4), Factorized(4)
    for model in (chain, table, product):
        assert em(model, x).converged
    frequency = (x.unsqueeze(1) == events(4)).all(-1).double().mean(0).float()
    torch.testing.assert_close(table().log_prob(events(4)).exp(), frequency)
    torch.testing.assert_close(product().base_dist.probs[:, 1], x.mean(0))
    by_hand = x[:, 0].mean()
    for t in range(1, 4):  # P(1, 1, 1, 1) along the chain
        by_hand = by_hand * x[x[:, t - 1] == 1, t].mean()
    torch.testing.assert_close(chain().log_prob(torch.ones(4)).exp(), by_hand)


def test_the_longest_chain_is_the_joint_table():
    x = data(3, levels=3)
    chain, table = MarkovChain(3, levels=3, order=2), JointTable(3, levels=3)
    em(chain, x), em(table, x)
    torch.testing.assert_close(
        chain().log_prob(events(3, 3)).exp(), table().log_prob(events(3, 3)).exp()
    )


def test_em_with_missing_labels_reaches_a_stationary_point():
    x = data(3)
    x = x.masked_fill(torch.rand_like(x) < 0.2, torch.nan)
    table = JointTable(3)
    result = em(table, x, max_iter=500, tol=1e-9)
    assert result.converged and (result.log_likelihood.diff() > -1e-6).all()  # rounding in float32
    (gradient,) = torch.autograd.grad(table().log_prob(x).mean(), table.logits)
    assert gradient.abs().max() < 1e-4
    product = Factorized(3)
    em(product, x)
    torch.testing.assert_close(product().base_dist.probs[:, 1], x.nanmean(0))


def test_smoothing_is_a_pseudo_count():
    x = torch.ones(8, 1)
    model = Factorized(1, smoothing=1.0)
    em(model, x)
    torch.testing.assert_close(model().base_dist.probs[0, 1], torch.tensor(0.9))


def test_refusals_say_what_to_do():
    with pytest.raises(ValueError, match="MarkovChain"):
        JointTable(30)
    with pytest.raises(ValueError, match="order < dims"):
        MarkovChain(3, order=3)
