"""Independent component analysis against normal distributions, autograd and scikit-learn."""

import pyro.distributions as dist
import pytest
import torch
from sklearn.decomposition import FastICA

from probgen.core.module import Fixed
from probgen.heads import MixtureOfGaussians, StudentT
from probgen.infer.maximum_likelihood import maximum_likelihood
from probgen.models.ica import ICA
from probgen.nn import Constant


def amari(unmixing, mixing):
    """How far the product is from a scaled permutation, from 0 to 1 (Amari et al. 1996)."""
    product = (unmixing.double() @ mixing.double()).abs()
    sums = [(product / product.amax(dim, keepdim=True)).sum(dim) - 1 for dim in (0, 1)]
    return (sum(sums).sum() / (2 * len(product) * (len(product) - 1))).item()


def mixed(source, rows=2000, dims=3):
    torch.manual_seed(2)
    mixing = torch.randn(dims, dims)
    return source.sample((rows, dims)) @ mixing.mT + 5.0, mixing


def test_with_normal_sources_it_is_a_normal_distribution():
    torch.manual_seed(0)
    gen = ICA(3, Fixed(dist.Normal, loc=torch.zeros(3), scale=1.0)).double()
    with torch.no_grad():
        gen.mean.normal_()
    mixing = gen.mixing
    truth = dist.MultivariateNormal(gen.mean.detach(), mixing @ mixing.mT)
    x = torch.randn(9, 3).double()
    torch.testing.assert_close(gen().log_prob(x).detach(), truth.log_prob(x))
    torch.testing.assert_close(gen.sources(x) @ mixing.mT + gen.mean.detach(), x)
    drawn = gen().sample((20000,))
    torch.testing.assert_close(drawn.mT.cov(), mixing @ mixing.mT, atol=0.2, rtol=0.05)


def test_the_density_integrates_to_one():
    gen = ICA(2)
    edge = torch.linspace(-40, 40, 1001)
    grid = torch.cartesian_prod(edge, edge)
    mass = gen().log_prob(grid).exp().sum() * (edge[1] - edge[0]) ** 2
    assert mass.item() == pytest.approx(1.0, abs=1e-3)


def test_solve_ends_where_the_gradient_of_the_likelihood_is_zero():
    x, _ = mixed(dist.Laplace(0.0, 1.0))
    gen = ICA(3).double().solve(x.double(), tol=1e-9)
    gen().log_prob(x.double()).mean().backward()
    assert gen.unmixing.grad.abs().max() < 1e-7
    torch.testing.assert_close(gen.mean.detach(), x.double().mean(0))


@pytest.mark.parametrize("units", [(1e-6, 1.0, 1e6), (1e4, 1e4, 1e-4)])
def test_columns_may_be_in_units_of_very_different_sizes(units):
    x, _ = mixed(dist.Laplace(0.0, 1.0), rows=500)
    x, size = x.double(), torch.tensor(units).double()
    plain, other = (ICA(3).double().solve(rows, tol=1e-8) for rows in (x, x * size))
    torch.testing.assert_close(other.sources(x * size), plain.sources(x), atol=1e-6, rtol=1e-6)
    expected = plain().log_prob(x) - size.log().sum()
    torch.testing.assert_close(other().log_prob(x * size), expected, atol=1e-6, rtol=0)
    assert ICA(3).solve((x * size).float()).unmixing.isfinite().all()


def test_sources_are_found_as_by_fastica():
    x, mixing = mixed(dist.Laplace(0.0, 1.0))
    found = amari(ICA(3).solve(x).unmixing.detach(), mixing)
    peer = FastICA(random_state=0, whiten="unit-variance").fit(x.numpy())
    assert found < 0.05
    assert found < 1.5 * amari(torch.tensor(peer.components_), mixing)


@pytest.mark.parametrize("seed", range(3))
def test_every_start_ends_with_the_same_sources(seed):
    x, mixing = mixed(dist.StudentT(4.0), dims=4)
    assert amari(ICA(4).solve(x, seed=seed).unmixing.detach(), mixing) < 0.05


def test_sources_of_light_tails_need_their_own_shape():
    torch.manual_seed(0)
    x, mixing = mixed(dist.Uniform(-1.0, 1.0), rows=1000, dims=2)
    wrong = ICA(2).solve(x)
    head = MixtureOfGaussians(Constant(12, initial=torch.randn(12)), components=2)
    gen = ICA(2, head)
    maximum_likelihood(gen, x, seed=0, max_iter=150, tol=1e-3)
    assert amari(gen.unmixing.detach(), mixing) < 0.05 < amari(wrong.unmixing.detach(), mixing)


def test_what_cannot_be_unmixed_is_refused():
    x = torch.randn(50, 3)
    with pytest.raises(ValueError, match="that spread over 3 dims, got 50 rows that lie in fewer"):
        ICA(3).solve(torch.cat([x[:, :2], x[:, :1] + x[:, 1:2]], 1))
    with pytest.raises(ValueError, match=r"constant columns \[1\]"):
        ICA(3).solve(torch.where(torch.arange(3) == 1, 2.0, x))
    with pytest.raises(ValueError, match=r"events of shape \(3,\), got \(2,\)"):
        ICA(3, StudentT(Constant(6)))
    holes = x.masked_fill(torch.rand(50, 3) < 0.1, torch.nan)
    for function in (ICA(3).solve, ICA(3).initialize, ICA(3).sources, ICA(3)().log_prob):
        with pytest.raises(ValueError, match=r"NaN|missing"):
            function(holes)
