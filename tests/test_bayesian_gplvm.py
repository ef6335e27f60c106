"""The Gaussian process latent variable model: regression, PCA and closed forms as oracles."""

import math

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

import probgen as pg
from probgen.distributions.expected_normal import ExpectedNormal
from probgen.heads import Gaussian, Point
from probgen.models.bayesian_gplvm import BayesianGPLVM
from probgen.models.factor_analysis import PPCA
from probgen.nn import MLP, Constant, LinearKernel, RBFKernel

N, D, Q = 12, 3, 2


def made(inducing=5, kernel=None, jitter=1e-10, latents=Q):
    gen = BayesianGPLVM(
        D,
        Gaussian(MLP(D, [8], 2 * latents)),
        latents=latents,
        inducing=inducing,
        kernel=kernel,
        jitter=jitter,
    )
    gen = gen.double()
    with torch.no_grad():
        gen.log_noise.fill_(math.log(0.2))
        gen.mean.copy_(torch.tensor([0.1, -0.2, 0.3]))
    return gen


def rows_and_latents():
    torch.manual_seed(0)
    z = torch.randn(N, Q).double()
    x = torch.stack([z[:, 0].sin(), z[:, 1], z.prod(-1)], -1)
    return x + 0.3 * torch.randn(N, D).double(), z


def log_weight(gen, x, z):
    """log p(x, u | z) - log q(u) for one draw of u."""
    q = poutine.trace(gen.guide).get_trace()
    given = poutine.condition(gen.model, {"z": z, "u": q.nodes["u"]["value"]})
    p = poutine.trace(given).get_trace(x)
    own = sum(p.nodes[name]["fn"].log_prob(p.nodes[name]["value"]).sum() for name in ("x", "u"))
    return own - q.nodes["u"]["fn"].log_prob(q.nodes["u"]["value"]).sum()


def exact_evidence(gen, x, z):
    """Log marginal likelihood of the columns by scikit-learn, whose kernel is the same."""
    kernel = gen.kernel
    alike = ConstantKernel((2 * kernel.log_scale).exp().item()) * RBF(
        kernel.log_lengthscale.exp().tolist()
    ) + WhiteKernel(gen.log_noise.exp().item())
    total = 0.0
    for column in (x - gen.mean).detach().T:
        peer = GaussianProcessRegressor(alike, optimizer=None).fit(z.numpy(), column.numpy())
        total += peer.log_marginal_likelihood_value_
    return total


def test_with_all_latents_as_inducing_inputs_the_bound_is_the_evidence_of_regression():
    x, z = rows_and_latents()
    gen = made(N, RBFKernel(Q, lengthscale=0.7, scale=1.3))
    with torch.no_grad():
        gen.inducing.copy_(z)
    gen.regress(x, z)
    truth = exact_evidence(gen, x, z)
    # log p(x, u) - log q(u) is the same for all u under the best q
    assert [log_weight(gen, x, z).item() for _ in range(3)] == pytest.approx([truth] * 3, rel=1e-6)


def test_with_few_inducing_inputs_it_is_the_collapsed_bound_and_below_the_evidence():
    x, z = rows_and_latents()
    gen = made(4, RBFKernel(Q, lengthscale=1.5))
    with torch.no_grad():
        gen.inducing.copy_(z[:4])
    gen.regress(x, z)
    own = [log_weight(gen, x, z).item() for _ in range(3)]
    with torch.no_grad():  # Titsias (2009): log N(x; 0, Q + s^2 I) - tr(K - Q) / 2 s^2
        across = gen.kernel(z, gen.inducing)
        low_rank = across @ torch.linalg.solve(gen.kernel(gen.inducing, gen.inducing), across.mT)
        noise = gen.log_noise.exp()
        covariance = low_rank + noise * torch.eye(N).double()
        normal = dist.MultivariateNormal(torch.zeros(N).double(), covariance)
        trace = (gen.kernel.diagonal(z) - low_rank.diagonal()).sum()
        bound = normal.log_prob((x - gen.mean).mT).sum() - D * trace / (2 * noise)
    assert own == pytest.approx([bound.item()] * 3, rel=1e-6)
    truth = exact_evidence(gen, x, z)
    assert bound < truth - 0.1
    for value in gen.u_loc, gen.u_log_scale:  # any other q(u) gives less, in expectation
        before = value.detach().clone()
        with torch.no_grad():
            value.add_(0.05)
        lower = torch.stack([log_weight(gen, x, z) for _ in range(400)]).mean()
        assert lower < bound
        with torch.no_grad():
            value.copy_(before)


def test_the_elbo_of_fixed_latents_is_below_the_evidence():
    x, z = rows_and_latents()
    gen = made(6, RBFKernel(Q))
    gen.regress(x, z)
    gen.encoder = Point(Constant(Q)).double()
    assert log_weight(gen, x, z) < exact_evidence(gen, x, z)


def test_a_linear_kernel_gives_the_density_of_pca():
    torch.manual_seed(1)
    gen = made(1, LinearKernel(1, scale=1.4), latents=1).eval()
    peer = PPCA(D, factors=1).double()
    x = torch.randn(7, D).double()
    z = torch.linspace(-8, 8, 2001).double().unsqueeze(-1)
    with torch.no_grad():
        u = torch.randn(D, 1).double()
        peer.loadings.copy_(1.4 * u)  # f(z) = 1.4 z u, up to the sign
        peer.mean.copy_(gen.mean)
        peer.log_noise.copy_(gen.log_noise)
        joint = gen.decode(z, u).log_prob(x[:, None]) + gen.prior().log_prob(z)
        found = joint.logsumexp(-1) + math.log(16 / 2000)
        torch.testing.assert_close(found, peer().log_prob(x), rtol=1e-6, atol=1e-6)


def test_each_row_is_scored_by_the_predictive_density_of_the_process():
    x, _ = rows_and_latents()
    gen = made(5, RBFKernel(Q)).eval()
    u = torch.randn(D, 5).double()
    new = torch.randn(4, Q).double()
    with torch.no_grad():
        tril = torch.linalg.cholesky(gen.kernel(gen.inducing, gen.inducing))
        # f(z) given the values f(inducing) = L u, by conditioning the joint normal distribution
        across = gen.kernel(new, gen.inducing)
        weights = torch.linalg.solve(tril @ tril.mT, across.mT).mT
        loc = gen.mean + weights @ (tril @ u.mT)
        spread = gen.kernel.diagonal(new) - (weights * across).sum(-1)
        truth = dist.Normal(loc, (spread + gen.log_noise.exp()).sqrt()[:, None])
        torch.testing.assert_close(
            gen.decode(new, u).log_prob(x[:4]), truth.log_prob(x[:4]).sum(-1), rtol=1e-6, atol=1e-6
        )
        missing = x[:4].clone()
        missing[0, 1] = torch.nan
        kept = gen.decode(new, u).log_prob(missing)[0]
    torch.testing.assert_close(kept, truth.log_prob(x[:4])[0, [0, 2]].sum(), rtol=1e-6, atol=1e-6)


def test_the_bound_of_a_row_is_below_its_density_and_its_gradients_pass_missing_entries():
    torch.manual_seed(0)
    loc = torch.randn(6, D, requires_grad=True)
    normal = ExpectedNormal(loc, torch.rand(6), torch.tensor(0.5))
    x = torch.randn(6, D)
    exact = dist.Normal(loc, normal.stddev).log_prob(x).sum(-1)
    assert (normal.log_prob(x) < exact).all()
    f = loc + normal.spread.sqrt()[:, None] * torch.randn(100_000, 6, D)
    expected = dist.Normal(f, 0.5**0.5).log_prob(x).sum(-1).mean(0)
    torch.testing.assert_close(normal.log_prob(x), expected, rtol=0.02, atol=0.02)
    drawn = normal.sample((50_000,))
    torch.testing.assert_close(drawn.var(0), normal.variance, rtol=0.05, atol=0.02)
    x[2, 1] = torch.nan
    normal.log_prob(x).sum().backward()
    assert loc.grad.isfinite().all() and loc.grad[2, 1] == 0


@pytest.mark.slow
def test_a_curve_is_found_where_pca_sees_a_plane():
    torch.manual_seed(0)
    t = 3 * torch.rand(400) - 1.5
    x = torch.stack([t, (2 * t).sin(), (2 * t).cos()], -1) + 0.05 * torch.randn(400, 3)
    x = (x - x.mean(0)) / x.std(0)
    gen = BayesianGPLVM(3, Gaussian(MLP(3, [32], 2)), latents=1, inducing=15)
    gen.initialize(x[:300])
    options = {"progress": False, "verdict": False, "compile": False, "seed": 0}
    pg.fit(gen, x[:300], steps=800, optimizer=pg.train.adam(0.02), **options)
    score = pg.log_likelihood(gen, x[300:], particles=64)
    peer = PPCA(3, factors=1)
    pg.em(peer, x[:300])
    assert score.kind == "unbiased"
    assert score.value.mean() > pg.log_likelihood(peer, x[300:]).value.mean() + 1
    place = gen.encode(x[300:]).mean.detach().squeeze(-1).argsort().argsort()
    ranks = torch.stack([place, t[300:].argsort().argsort()]).float()
    assert ranks.corrcoef()[0, 1].abs() > 0.9  # the latent is the place on the curve


@pytest.mark.slow
def test_missing_entries_are_completed_by_the_posterior_of_the_latents():
    torch.manual_seed(0)
    t = torch.randn(300)
    x = torch.stack([t, t.sin(), 2 * t.cos() - 1], -1)
    gen = BayesianGPLVM(3, Gaussian(MLP(3, [32], 2)), latents=1, inducing=12)
    gen.initialize(x)
    options = {"progress": False, "verdict": False, "compile": False, "seed": 0}
    pg.fit(gen, x, steps=400, optimizer=pg.train.adam(0.02), **options)
    given = x[:20].clone()
    given[:, 2] = torch.nan
    with torch.no_grad():
        completed = pg.impute(gen, given, draws=1).draws[0]
    error = (completed[:, 2] - x[:20, 2]).square().mean()
    assert error < 0.2 * x[:, 2].var()


def test_mistakes_are_told():
    with pytest.raises(
        ValueError, match=r"expected a prior of events \(2,\), got \(3,\); give it as"
    ):
        BayesianGPLVM(D, Gaussian(MLP(D, [4], 4)), latents=2, prior=pg.standard_normal(3))
    wide = BayesianGPLVM(D, Gaussian(MLP(D, [4], 6)), latents=2)
    for function in (wide.initialize, wide.encode, lambda x: pg.log_likelihood(wide, x)):
        with pytest.raises(ValueError, match=r"encoder of events \(2,\), got \(3,\); give it as"):
            function(torch.randn(4, D))
    with pytest.raises(TypeError, match="pass RBFKernel"):
        BayesianGPLVM(D, Gaussian(MLP(D, [4], 4)), latents=2, kernel=MLP(2, [4], 1))
