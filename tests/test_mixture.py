"""Gaussian mixtures against scipy, scikit-learn, Bayes' rule and counting."""

import copy

import numpy as np
import pytest
import torch
from pyro.distributions import MixtureSameFamily
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture as Reference

from probgen.core.contexts import distribution_given
from probgen.core.kinds import density_kind
from probgen.distributions.covariance import Diagonal, Full, Spherical, Tied
from probgen.infer.em import em
from probgen.models.mixture import GaussianMixture

FORMS = {"full": Full, "tied": Tied, "diag": Diagonal, "spherical": Spherical}
forms = pytest.mark.parametrize("name", FORMS)


def mixture(name, components=3, dims=4):
    """A mixture whose every parameter is somewhere."""
    gen = GaussianMixture(components, dims, FORMS[name]).double()
    with torch.no_grad():
        for parameter in gen.parameters():
            parameter.copy_(0.7 * torch.randn_like(parameter))
    return gen


def holes(rows, dims):
    """Rows with all patterns from complete to empty."""
    x = torch.randn(rows, dims, dtype=torch.float64).masked_fill(
        torch.rand(rows, dims) < 0.4, torch.nan
    )
    x[0], x[1] = torch.nan, 0.5
    return x


def joint_by_scipy(gen, x):
    """p(k, x) of each row, over its observed variables."""
    out = np.zeros((len(x), gen.components))
    for b, row in enumerate(x.numpy()):
        seen = ~np.isnan(row)
        for k in range(gen.components):
            covariance = gen.covariances[k].numpy()[np.ix_(seen, seen)]
            given = (
                multivariate_normal(gen.means[k].numpy()[seen], covariance) if seen.any() else None
            )
            out[b, k] = gen.weights[k].item() * (given.pdf(row[seen]) if given else 1.0)
    return torch.tensor(out)


@forms
def test_log_prob_with_missing_entries_is_that_of_the_observed(name):
    gen, x = mixture(name), holes(30, 4)
    truth = joint_by_scipy(gen, x).sum(-1).log()
    assert torch.allclose(gen().log_prob(x), truth, atol=1e-10)
    assert density_kind(gen()) == "exact"


@forms
def test_responsibilities_follow_from_bayes_rule(name):
    gen, x = mixture(name), holes(30, 4)
    joint = joint_by_scipy(gen, x)
    assert torch.allclose(gen.responsibilities(x), joint / joint.sum(-1, keepdim=True), atol=1e-10)
    assert torch.equal(gen.predict(x), joint.argmax(-1))
    complete = x.nan_to_num()
    joint = joint_by_scipy(gen, complete)
    assert torch.allclose(
        gen.responsibilities(complete), joint / joint.sum(-1, keepdim=True), atol=1e-10
    )


@forms
def test_the_view_of_covariances_is_that_of_the_distribution(name):
    gen = mixture(name)
    parts = gen().component_distribution
    assert torch.allclose(gen.covariances.diagonal(dim1=1, dim2=2), parts.variance.expand(3, 4))
    draws = parts.sample((40_000,))
    for k in range(3):
        scale = gen.covariances[k].diagonal().sqrt()
        error = (draws[:, k].mT.cov() - gen.covariances[k]) / scale.outer(scale)
        assert (
            error.abs().max() < 5 * 2**0.5 / 40_000**0.5
        )  # standard error of a covariance, five of them


@forms
def test_information_criteria_and_free_parameters_are_those_of_scikit_learn(name):
    x = torch.randn(300, 4, dtype=torch.float64)
    theirs = Reference(3, covariance_type=name, random_state=0).fit(x.numpy())
    gen, eye = GaussianMixture(3, 4, FORMS[name]).double(), np.eye(4)
    found = theirs.covariances_
    shapes = {"full": lambda: found, "tied": lambda: np.stack([found] * 3)}
    shapes |= {
        "diag": lambda: found[:, None] * eye,
        "spherical": lambda: found[:, None, None] * eye,
    }
    gen.assign(*(torch.tensor(part) for part in (theirs.weights_, theirs.means_, shapes[name]())))
    assert gen.free_parameters == theirs._n_parameters()
    assert gen.aic(x) == pytest.approx(theirs.aic(x.numpy()), abs=1e-8)
    assert gen.bic(x) == pytest.approx(theirs.bic(x.numpy()), abs=1e-8)
    assert np.allclose(gen.responsibilities(x).numpy(), theirs.predict_proba(x.numpy()), atol=1e-10)


@forms
def test_a_maximum_found_by_em_is_one_for_gradients(name):
    """The ELBO of a model without latents is the log-likelihood.

    Its gradient vanishes at the optimum of EM.
    """
    x = torch.cat([torch.randn(150, 2), torch.randn(100, 2) + 3]).double()
    gen = GaussianMixture(2, 2, FORMS[name]).double()
    em(gen, x, max_iter=3000, tol=1e-14, seed=0)
    gen().log_prob(x).mean().backward()
    assert max(parameter.grad.abs().max() for parameter in gen.parameters()) < 1e-5
    gen.zero_grad()
    other = copy.deepcopy(gen)
    with torch.no_grad():
        other.loc.add_(0.1)
    other().log_prob(x).mean().backward()
    assert other.loc.grad.abs().max() > 1e-2


@forms
def test_canonical_sorts_without_changing_the_density(name):
    gen, x = mixture(name), torch.randn(20, 4, dtype=torch.float64)
    before, weights = gen().log_prob(x), gen.weights
    assert gen.canonical() is gen
    assert torch.equal(gen.weights, weights.sort(descending=True).values)
    assert torch.allclose(gen().log_prob(x), before)


@forms
def test_assign_gives_back_what_it_was_given(name):
    gen, other = mixture(name), GaussianMixture(3, 4, FORMS[name]).double()
    other.assign(gen.weights, gen.means, gen.covariances)
    for mine, theirs in zip(
        (gen.weights, gen.means, gen.covariances),
        (other.weights, other.means, other.covariances),
        strict=True,
    ):
        assert torch.allclose(mine, theirs)


def test_as_a_part_it_is_the_same_for_each_row_of_a_context():
    gen, x = mixture("full"), torch.randn(5, 4, dtype=torch.float64)
    distribution = distribution_given(gen, torch.zeros(5, 7))
    assert (
        isinstance(distribution, MixtureSameFamily)
        and distribution.batch_shape == (5,)
        and distribution.event_shape == (4,)
    )
    assert torch.allclose(distribution.log_prob(x), gen().log_prob(x))


@forms
def test_the_start_finds_clusters_in_any_unit(name):
    """Well-separated clusters, variables in different units, some entries missing.

    Labels up to their order.
    """
    labels = torch.arange(200) % 4
    centers = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0]])
    x = (centers[labels] + torch.randn(200, 2)) * torch.tensor(
        [1e4 if name == "spherical" else 1.0, 1e4]
    )
    x[::10, 0] = torch.nan
    gen = GaussianMixture(4, 2, FORMS[name])
    gen.initialize(x, torch.Generator().manual_seed(0))
    found = gen.predict(x)[~x.isnan().any(-1)]
    truth = labels[~x.isnan().any(-1)]
    assert all(len(found[truth == k].unique()) == 1 for k in range(4)) and len(found.unique()) == 4
    assert torch.allclose(gen.weights, torch.full((4,), 0.25), atol=0.06)


def test_starts_are_repeatable_and_differ():
    x = torch.randn(200, 3)
    starts = []
    for seed in (0, 0, 1):
        gen = GaussianMixture(8, 3)
        gen.initialize(x, torch.Generator().manual_seed(seed))
        starts.append(gen.means.clone())
    assert torch.equal(starts[0], starts[1]) and not torch.allclose(starts[0], starts[2])


@pytest.mark.parametrize("arguments", [(0, 2), (2, 0)])
def test_sizes_are_checked(arguments):
    with pytest.raises(ValueError, match=r"(components|dims) >= 1, got 0"):
        GaussianMixture(*arguments)


def test_a_singular_covariance_is_refused():
    with pytest.raises(torch.linalg.LinAlgError, match=r"components \[1\]"):
        GaussianMixture(2, 2).assign(
            torch.ones(2) / 2, torch.zeros(2, 2), torch.stack([torch.eye(2), torch.ones(2, 2)])
        )


def test_rows_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"\(N, 2\), got \(5, 3\)"):
        GaussianMixture(2, 2).predict(torch.zeros(5, 3))
