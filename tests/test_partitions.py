"""Dirichlet-process mixtures against all partitions of few rows, and on clusters that are known."""

import math
from dataclasses import replace

import arviz
import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

import probgen as pg
from probgen.infer.partitions import NormalInverseWishart, dirichlet_process_mixture

ROWS = torch.tensor([[-1.5, 0.2], [-1.0, 0.4], [0.3, -0.2], [1.4, 0.9]]).double()
BASE = NormalInverseWishart(torch.zeros(2), 0.4, 4.0, 0.6 * torch.eye(2))


def partitions(count):
    """All partitions of ``count`` rows, as labels by first appearance."""
    found = [[0]]
    for _ in range(count - 1):
        found = [[*labels, k] for labels in found for k in range(max(labels) + 2)]
    return found


def log_marginal(x, base):
    """Of rows in one cluster, by normalizing constants: Murphy (2007), equation 266."""
    n, dims = x.shape
    strength, df = base.strength + n, base.df + n
    mean = x.mean(0)
    away = mean - base.mean
    scatter = base.scatter.double() + (x - mean).T @ (x - mean)
    scatter = scatter + base.strength * n / strength * torch.outer(away, away)
    gammas = torch.special.multigammaln(torch.tensor([df, base.df]) / 2, dims).double()
    total = gammas[0] - gammas[1] - n * dims / 2 * math.log(math.pi)
    total = total + base.df / 2 * base.scatter.double().logdet() - df / 2 * scatter.logdet()
    return total + dims / 2 * math.log(base.strength / strength)


def log_weights(every, alphas):
    """Log joint of partitions and rows for each alpha: ``(A, P)``."""
    found = []
    for labels in torch.tensor(every):
        sizes = labels.bincount()
        own = sum(log_marginal(ROWS[labels == k], BASE) for k in range(len(sizes)))
        own = own + torch.lgamma(sizes.double()).sum()
        rise = len(sizes) * alphas.log() + torch.lgamma(alphas) - torch.lgamma(alphas + len(ROWS))
        found.append(own + rise)
    return torch.stack(found, -1)


def counted(posterior, every):
    """Shares of draws with each partition."""
    flat = posterior.labels.flatten(0, 1).tolist()
    places = {tuple(labels): place for place, labels in enumerate(every)}
    shares = torch.zeros(len(every)).double()
    for labels in flat:
        shares[places[tuple(labels)]] += 1 / len(flat)
    return shares


def test_draws_and_predictive_are_those_of_all_partitions():
    every = partitions(4)
    alpha = torch.tensor([0.8]).double()
    truth = log_weights(every, alpha)[0].softmax(-1)
    found = dirichlet_process_mixture(ROWS, concentration=0.8, base=BASE, draws=1500, seed=0)
    assert (counted(found, every) - truth).abs().max() < 0.035
    new = torch.tensor([[0.1, 0.3], [-2.0, 1.0]]).double()
    exact = torch.zeros(2).double()
    for labels, share in zip(torch.tensor(every), truth, strict=True):
        groups = [ROWS[labels == k] for k in range(int(labels.max()) + 1)]
        for rows in [*groups, ROWS[:0]]:
            size = len(rows) if len(rows) else 0.8
            for place, row in enumerate(new):
                before = log_marginal(rows, BASE) if len(rows) else 0.0
                density = (log_marginal(torch.cat([rows, row[None]]), BASE) - before).exp()
                exact[place] += share * size / (len(ROWS) + 0.8) * density
    density = found.predictive().log_prob(new).exp()
    assert ((density / exact) - 1).abs().max() < 0.05
    similar = torch.tensor(
        [
            [sum(s for p, s in zip(every, truth, strict=True) if p[a] == p[b]) for b in range(4)]
            for a in range(4)
        ]
    )
    assert (found.similarity() - similar).abs().max() < 0.04


def test_concentration_is_drawn_from_its_posterior():
    every = partitions(4)
    alphas = (torch.arange(2000).double() + 0.5) / 100
    prior = torch.distributions.Gamma(2.0, 1.5).log_prob(alphas)
    joint = (log_weights(every, alphas) + prior[:, None]).flatten().softmax(0).reshape(2000, -1)
    found = dirichlet_process_mixture(
        ROWS, concentration_prior=(2.0, 1.5), base=BASE, draws=1500, seed=1
    )
    assert (counted(found, every) - joint.sum(0)).abs().max() < 0.035
    mean = (joint.sum(1) * alphas).sum()
    assert (found.concentration.mean() - mean).abs() < 0.1


def test_known_clusters_are_found_and_chains_mix():
    torch.manual_seed(0)
    truth = torch.arange(3).repeat_interleave(15)
    x = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])[truth] + torch.randn(45, 2) + 1000.0
    found = dirichlet_process_mixture(x, concentration=0.5, draws=40, tune=20, seed=0)
    assert adjusted_rand_score(truth, found.partition()) > 0.9
    assert set(found.values) == {"clusters", "concentration", "largest_share"}
    assert arviz.ess(found.values["largest_share"]) > 5
    assert found.labels[..., 0].eq(0).all()  # numbered by first appearance
    again = dirichlet_process_mixture(x, concentration=0.5, draws=40, tune=20, seed=0)
    assert torch.equal(found.labels, again.labels)
    single = pg.GaussianMixture(1, 2).double()
    pg.em(single, x.double(), seed=0)
    inside = found.predictive().log_prob(x.double()).mean()
    assert inside > single().log_prob(x.double()).mean() + 0.5
    draws = found.predictive().sample((500,))
    nearest = (draws[:, None] - x).norm(dim=-1).amin(-1)
    assert (nearest < 3).double().mean() > 0.9


def test_a_base_of_other_variables_and_missing_rows_are_refused():
    with pytest.raises(ValueError, match="expected a base of 2 variables"):
        dirichlet_process_mixture(ROWS, base=NormalInverseWishart.of_rows(ROWS[:, :1]))
    with pytest.raises(ValueError, match="expected a base of 2 variables"):
        dirichlet_process_mixture(ROWS, base=replace(BASE, df=0.5))
    with pytest.raises(ValueError, match=r"got \(9,\); give x\[:, None\]"):
        dirichlet_process_mixture(torch.arange(9.0))
    dirichlet_process_mixture(torch.arange(9.0)[:, None], draws=1, tune=0)
    with pytest.raises(ValueError, match=r"finite|NaN"):
        dirichlet_process_mixture(torch.full((3, 2), math.nan))
    with pytest.raises(ValueError, match="shape and rate"):
        dirichlet_process_mixture(ROWS, concentration_prior=(1.0, 2.0, 3.0))


def test_labels_are_integers_of_each_chain():
    found = dirichlet_process_mixture(np.zeros((3, 1)), draws=2, tune=0, chains=3, seed=0)
    assert found.labels.shape == (3, 2, 3) and found.labels.dtype == torch.long
    assert "3 chains of 2 draws, 3 rows" in repr(found)
