"""EM against scikit-learn from the same start, textbook answers, gradients.

And brute-force sums.
"""

import copy
import warnings

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Reference
from torch import nn

from probgen.core.module import DistributionModule
from probgen.distributions.covariance import Diagonal, Full, Spherical, Tied
from probgen.distributions.mixture_moments import Quadratic, RowsOfPattern, Whitened, _best
from probgen.infer.em import em
from probgen.models.mixture import GaussianMixture

FORMS = {"full": Full, "tied": Tied, "diag": Diagonal, "spherical": Spherical}
forms = pytest.mark.parametrize("name", FORMS)


def clusters(rows=600, dims=3, components=3, distance=3.0, dtype=torch.float64):
    """Rows of clusters with correlated variables, and their labels."""
    labels = torch.arange(rows) % components
    factors = torch.eye(dims, dtype=torch.float64) + 0.4 * torch.randn(
        components, dims, dims, dtype=torch.float64
    )
    centers = distance * torch.randn(components, dims, dtype=torch.float64)
    noise = torch.randn(rows, dims, 1, dtype=torch.float64)
    return (centers[labels] + (factors[labels] @ noise)[..., 0]).to(dtype), labels


def start(x, name, components=3, **options):
    """A mixture at a start that takes EM tens of steps to leave.

    And the same start for scikit-learn.
    """
    dims, means = x.shape[1], x[:components] + 0.1
    covariance = {
        "full": x.mT.cov(),
        "tied": x.mT.cov(),
        "diag": x.var(0).diag(),
        "spherical": torch.eye(dims) * 4,
    }
    covariances = covariance[name].to(x).expand(components, -1, -1)
    gen = GaussianMixture(components, dims, FORMS[name], **options).to(x.dtype)
    gen.assign(torch.full((components,), 1 / components), means, covariances)
    precision = covariances[0].inverse().numpy()
    precisions = {"full": np.stack([precision] * components), "tied": precision}
    precisions |= {
        "diag": np.stack([precision.diagonal()] * components),
        "spherical": np.full(components, 0.25),
    }
    given = {
        "means_init": means.numpy(),
        "weights_init": np.full(components, 1 / components, means.numpy().dtype),
    }
    return gen, given | {"precisions_init": precisions[name].astype(means.numpy().dtype)}


def reference(x, name, steps, components=3, reg_covar=0.0, **given):
    """scikit-learn after a number of steps."""
    model = Reference(
        components, covariance_type=name, max_iter=steps, tol=0.0, reg_covar=reg_covar, **given
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x.numpy())


def complete(model, name, dims):
    """Covariance matrices of scikit-learn's mixture, whatever their form."""
    found, eye = model.covariances_, np.eye(dims)
    shapes = {"full": lambda: found, "tied": lambda: np.stack([found] * model.n_components)}
    shapes |= {
        "diag": lambda: found[:, None] * eye,
        "spherical": lambda: found[:, None, None] * eye,
    }
    return torch.tensor(shapes[name]())


def observed_log_likelihood(gen, x):
    """Mean log-density by way of the distribution, differentiable."""
    return gen().log_prob(x).mean()


@pytest.mark.table(quick=2)
@forms
def test_every_step_is_that_of_scikit_learn(name):
    x, _ = clusters()
    gen, given = start(x, name)
    for steps in (1, 2, 40):
        mine, theirs = copy.deepcopy(gen), reference(x, name, steps, **given)
        result = em(mine, x, max_iter=steps, tol=0.0, n_init=0)
        assert result.log_likelihood[-1].item() == pytest.approx(theirs.score(x.numpy()), abs=1e-9)
        assert torch.allclose(mine.means, torch.tensor(theirs.means_), atol=1e-7)
        assert torch.allclose(mine.weights, torch.tensor(theirs.weights_), atol=1e-7)
        assert torch.allclose(mine.covariances, complete(theirs, name, x.shape[1]), atol=1e-7)


@forms
def test_float32_reaches_the_optimum_of_float64(name):
    x, _ = clusters()
    gen, given = start(x.float(), name)
    result = em(gen, x.float(), max_iter=40, tol=0.0, n_init=0)
    assert result.log_likelihood[-1].item() == pytest.approx(
        reference(x, name, 40, **given).score(x.numpy()), abs=1e-5
    )


@forms
def test_regularization_is_that_of_scikit_learn(name):
    x, _ = clusters(rows=90)
    x = torch.cat([x, torch.ones(90, 1)], 1)  # a constant column
    gen, given = start(x + 1e-3 * torch.randn_like(x), name, regularization=1e-2)
    theirs = reference(x, name, 5, reg_covar=1e-2, **given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        result = em(gen, x, max_iter=5, tol=0.0, n_init=0)
    assert result.log_likelihood[-1].item() == pytest.approx(theirs.score(x.numpy()), abs=1e-7)


@pytest.mark.table(quick=2)
@forms
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_the_log_likelihood_rises_and_is_that_of_the_result(name, missing):
    x, _ = clusters(rows=300, distance=1.0)
    x = x.masked_fill(torch.rand(x.shape) < missing, torch.nan)
    gen = GaussianMixture(3, 3, FORMS[name]).double()
    result = em(gen, x, max_iter=30, tol=0.0, seed=0)
    assert result.n_iter == 30 and (result.log_likelihood.diff() > -1e-11).all()
    assert result.log_likelihood[-1] - result.log_likelihood[0] > 0.01
    assert result.log_likelihood[-1].item() == pytest.approx(
        observed_log_likelihood(gen, x).item(), abs=1e-10
    )


@pytest.mark.slow
@forms
def test_with_missing_entries_em_stops_where_the_gradient_is_zero(name):
    x, _ = clusters(rows=200, dims=2, components=2, distance=4.0)
    x = x.masked_fill(torch.rand(x.shape) < 0.25, torch.nan)
    gen = GaussianMixture(2, 2, FORMS[name]).double()
    observed_log_likelihood(gen, x).backward()
    before = max(parameter.grad.abs().max() for parameter in gen.parameters())
    assert em(gen, x, max_iter=2000, tol=1e-13, seed=0).converged
    gen.zero_grad()
    observed_log_likelihood(gen, x).backward()
    assert max(parameter.grad.abs().max() for parameter in gen.parameters()) < 1e-5 < before


@pytest.mark.slow
def test_missing_entries_are_integrated_out_not_filled_in():
    """Half of the second variable is lost where the first is large.

    Filling in means would halve the correlation.
    """
    torch.manual_seed(1)
    truth = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
    x = torch.randn(10_000, 2, dtype=torch.float64) @ torch.linalg.cholesky(truth).mT
    x[:, 1] = x[:, 1].masked_fill(x[:, 0] > 0, torch.nan)
    gen = GaussianMixture(1, 2).double()
    em(gen, x, max_iter=500, tol=1e-7)
    assert torch.allclose(gen.covariances[0], truth, atol=0.06)
    assert torch.allclose(gen.means[0], torch.zeros(2, dtype=torch.float64), atol=0.05)


def brute_force(gen, x):
    """Log-likelihood and moments about the means as sums over rows."""
    parts = torch.distributions.MultivariateNormal(gen.loc, scale_tril=gen.covariance.scale_tril)
    joint = parts.log_prob(x[:, None]) + gen.logits.log_softmax(-1)
    weights, difference = joint.softmax(-1), x[:, None] - gen.loc
    scatter = torch.einsum("nk,nki,nkj->kij", weights, difference, difference)
    first = torch.einsum("nk,nki->ki", weights, difference)
    return joint.logsumexp(-1).sum(), weights.sum(0), first, gen.covariance.reduce(scatter)


def summed(step, x):
    """What one way of summing gives for all rows."""
    joint, work = step.joint(x, step.buffers(step.block))
    posterior = joint.softmax(0)
    return joint.logsumexp(0).sum(), *step.finish(posterior.sum(1), *step.sums(posterior, *work))[
        :3
    ]


@forms
@torch.no_grad()
def test_three_ways_of_summing_agree_with_brute_force(name):
    x, _ = clusters(rows=50)
    gen, _ = start(x, name)
    em(gen, x, max_iter=3, n_init=0)
    observed = RowsOfPattern(gen._mixture, gen.covariances, torch.ones(3, dtype=torch.bool))
    for step in (Quadratic(gen._mixture, x.dtype), Whitened(gen._mixture, x.dtype), observed):
        for mine, truth in zip(summed(step, x), brute_force(gen, x), strict=True):
            assert torch.allclose(mine, truth, atol=1e-10)


@torch.no_grad()
def test_precision_follows_the_distance_between_clusters():
    """Squares of far distances leave no digits: the way of summing changes before that."""
    ways = []
    for distance in (3.0, 1e3, 1e6):
        gen = GaussianMixture(2, 2)
        gen.assign(
            torch.ones(2) / 2,
            torch.tensor([[0.0, 0.0], [distance, 0.0]]),
            torch.eye(2).expand(2, -1, -1),
        )
        ways.append(_best(torch.zeros(1, 2), gen._mixture))
    assert [type(way) for way in ways] == [Quadratic, Quadratic, Whitened]
    assert [way.coefficients.dtype for way in ways[:2]] == [torch.float32, torch.float64]


@pytest.mark.parametrize(
    ("dtype", "scale", "rtol"), [(torch.float64, 1e-6, 1e-6), (torch.float32, 1e-3, 1e-3)]
)
@pytest.mark.parametrize("name", ["full", "diag"])
def test_tight_clusters_far_apart_keep_their_digits(name, dtype, scale, rtol):
    """Clusters that never overlap: EM must give the moments of the labeled rows."""
    noise, labels = clusters(rows=900, dims=2, distance=0.0)
    centers = torch.tensor([[0.0, 0.0], [10.0, 5.0], [-7.0, 20.0]], dtype=torch.float64)
    x = (centers[labels] + scale * noise).to(dtype)
    gen = GaussianMixture(3, 2, FORMS[name]).to(dtype)
    em(gen, x, seed=0)
    for k in range(3):
        rows = x[labels == gen.predict(centers.to(dtype)).tolist().index(k)].double()
        truth = rows.mT.cov(correction=0)
        truth = truth if name == "full" else truth.diag().diag()
        assert torch.allclose(gen.covariances[k].double(), truth, rtol=rtol, atol=rtol * scale**2)


def test_chunks_only_bound_memory():
    x, _ = clusters(rows=100)
    x[::7, 1] = torch.nan
    gen, _ = start(x.nan_to_num(), "full")
    other = copy.deepcopy(gen)
    whole, parts = em(gen, x, max_iter=5, n_init=0), em(other, x, max_iter=5, n_init=0, max_rows=13)
    assert torch.allclose(whole.log_likelihood, parts.log_likelihood, atol=1e-12)
    assert torch.allclose(gen.covariances, other.covariances, atol=1e-12)


def test_the_best_of_several_starts_is_kept():
    x, _ = clusters(rows=200, components=6, distance=2.0)
    gen, values = GaussianMixture(6, 3).double(), []
    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        single = copy.deepcopy(gen)
        single.initialize(x, generator)
        values.append(em(single, x, n_init=0).log_likelihood[-1].item())
    result = em(gen, x, n_init=5, seed=3)
    assert max(values) - min(values) > 1e-3
    assert result.log_likelihood[-1].item() == max(values)
    assert observed_log_likelihood(gen, x).item() == pytest.approx(max(values), abs=1e-12)


class Linkage(DistributionModule):
    """Genetic linkage of 197 animals, the example of Dempster, Laird and Rubin (1977)."""

    def __init__(self, flaw=0.0):
        super().__init__()
        self.theta, self.flaw = nn.Parameter(torch.tensor(0.5, dtype=torch.float64)), flaw

    def forward(self, context=None):
        t = self.theta
        probs = torch.stack([0.5 + t / 4, (1 - t) / 4, (1 - t) / 4, t / 4])
        return dist.Multinomial(197, probs, validate_args=False)

    def expect(self, x):
        hidden = x[:, 0] * (self.theta / 4) / (0.5 + self.theta / 4)
        return self().log_prob(x).sum(), {
            "linked": (hidden + x[:, 3]).sum(),
            "all": (hidden + x[:, 1:].sum(-1)).sum(),
        }

    def maximize(self, statistics):
        self.theta.copy_(statistics["linked"] / statistics["all"] - self.flaw)

    def initialize(self, x, generator=None):
        self.theta.copy_(torch.rand((), generator=generator))


ANIMALS = torch.tensor([[125.0, 18.0, 20.0, 34.0]] * 2, dtype=torch.float64)


def test_a_family_from_elsewhere_gets_the_published_answer():
    gen = Linkage()
    first = em(gen, ANIMALS, max_iter=1, tol=0.0, n_init=0)
    assert gen.theta.item() == pytest.approx(0.608247423, abs=1e-9) and not first.converged
    assert em(gen, ANIMALS, tol=1e-14, n_init=0).converged
    assert gen.theta.item() == pytest.approx(0.626821498, abs=1e-7)


def test_a_wrong_m_step_is_told():
    with pytest.warns(RuntimeWarning, match="log-likelihood fell by .* at step"):
        em(Linkage(flaw=0.2), ANIMALS, max_iter=20, n_init=0)


@pytest.mark.slow
def test_a_collapsed_start_is_left_for_another():
    """Forty rows of noise: some components close in on three of them, depending on the start."""
    x, gen, values = torch.randn(40, 2).double(), GaussianMixture(5, 2).double(), []
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        single = copy.deepcopy(gen)
        single.initialize(x, generator)
        try:
            values.append(em(single, x, n_init=0).log_likelihood[-1].item())
        except torch.linalg.LinAlgError as error:
            assert "singular" in str(error)
    assert 0 < len(values) < 8
    assert em(gen, x, n_init=8, seed=0).log_likelihood[-1].item() == max(values)


def test_when_every_start_collapses_the_reason_is_told():
    x = torch.tensor([[0.0], [0.0], [5.0], [5.0]])
    with pytest.raises(torch.linalg.LinAlgError, match=r"components \[.*regularization"):
        em(GaussianMixture(2, 1), x, n_init=3)


BAD = {
    "fewer rows than components": ({}, torch.randn(4, 2), "got 4 rows for 5 components"),
    "constant column": ({}, torch.ones(9, 2), r"constant columns \[0, 1\]"),
    "empty column": ({}, torch.full((9, 2), torch.nan), r"none in columns \[0, 1\]"),
    "infinite": ({}, torch.full((9, 2), torch.inf), "got inf in row 0"),
    "wrong width": ({}, torch.randn(9, 3), r"expected x of shape \(N, 2\), got \(9, 3\)"),
    "one vector": ({}, torch.randn(2), r"got \(2,\)"),
    "empty": ({}, torch.ones(0, 2), "at least two rows"),
    "negative max_iter": ({"max_iter": -1}, torch.randn(9, 2), "max_iter >= 0"),
    "no rows at once": ({"max_rows": 0}, torch.randn(9, 2), "max_rows >= 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told(case):
    options, x, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        em(GaussianMixture(5, 2), x, **options)


def test_a_family_without_em_is_sent_to_fit():
    with pytest.raises(TypeError, match="use fit"):
        em(nn.Linear(2, 2), torch.randn(9, 2))


def test_cores_share_the_rows_and_not_the_result():
    x, _ = clusters(rows=20_000)
    results, threads = [], torch.get_num_threads()
    for cores in (1, 3):
        gen, _ = start(x, "full")
        torch.set_num_threads(cores)
        try:
            results.append((em(gen, x, max_iter=5, n_init=0).log_likelihood, gen.covariances))
            assert torch.get_num_threads() == cores
        finally:
            torch.set_num_threads(threads)
    assert all(torch.allclose(*pair, rtol=1e-12) for pair in zip(*results, strict=True))
