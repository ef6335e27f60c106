"""Latent Dirichlet allocation against quadrature, scikit-learn and topics that are known."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.special import digamma
from sklearn.decomposition import LatentDirichletAllocation as Peer

import probgen as pg
from probgen.models.latent_dirichlet import LatentDirichletAllocation

QUIET = {"compile": False, "verdict": False, "progress": False, "seed": 0}


def documents(rows=300, topics=3, words=24, length=80):
    """Documents of topics of eight words each."""
    torch.manual_seed(0)
    truth = torch.zeros(topics, words)
    for k, block in enumerate(torch.arange(words).chunk(topics)):
        truth[k, block] = dist.Dirichlet(torch.ones(len(block))).sample()
    weights = dist.Dirichlet(torch.full((topics,), 0.3)).sample((rows,))
    x = torch.stack([dist.Multinomial(length, each).sample() for each in weights @ truth])
    return x, truth, weights


def matched(found, truth):
    """The order of topics nearest to the true ones, and the largest total variation then."""
    cost = (torch.as_tensor(found)[:, None] - truth).abs().sum(-1) / 2
    rows, columns = linear_sum_assignment(cost.T.numpy())
    return columns, cost[columns, rows].max().item()


def test_known_topics_are_found():
    x, truth, weights = documents()
    gen = LatentDirichletAllocation(3, 24).solve(x, seed=1)
    order, apart = matched(gen.topics, truth)
    assert apart < 0.06
    assert (gen.topic_weights(x)[:, order] - weights).abs().mean() < 0.04
    assert gen.log_length.exp().item() == pytest.approx(80.0, rel=1e-4)


def test_the_perplexity_and_the_weights_are_those_of_scikit_learn_with_the_same_topics():
    x = documents()[0]
    gen = LatentDirichletAllocation(3, 24).solve(x[:200], max_iter=10)
    peer = Peer(3, max_doc_update_iter=100, max_iter=1, random_state=0).fit(x[:200].numpy())
    peer.components_ = gen.log_concentration.exp().detach().double().numpy()
    expected = digamma(peer.components_) - digamma(peer.components_.sum(1, keepdims=True))
    peer.exp_dirichlet_component_ = np.exp(expected)
    np.testing.assert_allclose(
        gen.topic_weights(x[200:]), peer.transform(x[200:].numpy()), atol=5e-3
    )


def test_one_document_is_bounded_by_what_quadrature_gives():
    torch.manual_seed(1)
    gen = LatentDirichletAllocation(2, 3, weights_prior=0.8)
    x = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 2.0]])
    with torch.no_grad():
        gen.log_concentration.copy_(torch.tensor([[8.0, 2.0, 1.0], [1.0, 3.0, 9.0]]).log() + 6)
    share = (torch.arange(4000) + 0.5) / 4000
    weights = torch.stack([share, 1 - share], -1)
    prior = dist.Dirichlet(torch.full((2,), 0.8)).log_prob(weights).exp()
    rates = gen.log_length.exp().detach() * weights @ gen.topics
    each = dist.Poisson(rates[:, None]).log_prob(x).sum(-1).exp()
    truth = (each * prior[:, None]).mean(0).log()
    found = gen.bound(x)
    assert found.kind == "bound" and found.measure == "mass"
    assert (found.value < truth + 1e-3).all() and (found.value > truth - 1.0).all()
    estimate = pg.log_likelihood(gen, x, particles=4000, seed=0)
    assert estimate.kind == "unbiased"
    torch.testing.assert_close(estimate.value, truth, atol=0.05, rtol=0)


def test_each_pass_raises_the_bound_and_solve_beats_few_passes():
    x = documents(rows=60)[0]
    gen = LatentDirichletAllocation(3, 24).double()
    gen._start(torch.Generator().manual_seed(0))
    values = [gen._pass(x.double()) for _ in range(12)]
    assert (np.diff(values) > -1e-2).all() and values[-1] > values[0] + 10


def test_the_perplexity_is_near_that_of_the_truth_and_below_that_of_one_topic():
    x, truth, weights = documents()
    gen, one = (LatentDirichletAllocation(k, 24).solve(x[:200]) for k in (3, 1))
    entropy = -(x[200:] * (weights[200:] @ truth).clamp(min=1e-30).log()).sum() / x[200:].sum()
    assert math.exp(entropy) * 0.98 < gen.perplexity(x[200:]) < math.exp(entropy) * 1.12
    assert gen.perplexity(x[200:]) < 0.8 * one.perplexity(x[200:])


def test_svi_on_batches_finds_the_topics_too():
    x, truth, _ = documents()
    gen = LatentDirichletAllocation(3, 24)
    gen.solve(x[:60], max_iter=3)
    pg.fit(gen, x, steps=200, batch_size=64, optimizer=pg.train.adam(0.05), **QUIET)
    assert matched(gen.topics, truth)[1] < 0.12


def test_documents_without_words_are_refused_and_texts_become_counts():
    gen = LatentDirichletAllocation(2, 5)
    for function in (gen.solve, gen.perplexity):
        with pytest.raises(ValueError, match="expected documents with words, got 3 empty ones"):
            function(torch.zeros(3, 5))
    holes = torch.tensor([[1.0, torch.nan, 0.0, 0.0, 0.0], [torch.nan] * 5])
    for function in (gen.solve, gen.perplexity, gen.bound, gen.topic_weights):
        with pytest.raises(ValueError, match=r"expected complete counts, got NaN.* log_likelihood"):
            function(holes)
    value = pg.log_likelihood(gen, holes, particles=200, seed=0).value
    assert value.isfinite().all() and value[1].abs() < 0.3  # nothing was seen: log 1
    vocabulary = pg.text.Vocabulary.of(["a b", "b c"], end=".")
    counts = vocabulary.counts(["b b c", "z"])
    tokens = [vocabulary.tokens[k] for k in counts[0].nonzero()[:, 0].tolist()]
    assert tokens == ["b", "c"] and counts.sum(-1).tolist() == [3.0, 1.0]
    assert counts[1, vocabulary.unknown] == 1
