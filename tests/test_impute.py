"""Imputation against conditional Gaussians, enumeration, and chains without their correction."""

import math
from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch

from probgen.core.missing import MissingAware
from probgen.core.module import Fixed, LatentVariableModel, data_plate
from probgen.core.program import Program
from probgen.distributions.conditional import conditional
from probgen.heads import Gaussian
from probgen.infer import impute as module
from probgen.infer.impute import impute
from probgen.infer.posterior import posterior
from probgen.models.bayesian_mixture import BayesianGaussianMixture
from probgen.models.factor_analysis import PPCA
from probgen.models.mixture import GaussianMixture
from probgen.models.vae import VAE

NAN = torch.nan


class LinearGaussian(LatentVariableModel):
    """x = W z + noise, independent or correlated, with a guide that may be shifted and too wide."""

    def __init__(self, loadings, covariance, shift=0.0, spread=1.0):
        super().__init__()
        self.loadings, self.covariance, self.shift, self.spread = (
            loadings,
            covariance,
            shift,
            spread,
        )

    def emission(self, loc):
        if (self.covariance == self.covariance.diag().diag()).all():
            return dist.Normal(loc, self.covariance.diag().sqrt()).to_event(1)
        return dist.MultivariateNormal(loc, self.covariance)

    def model(self, x=None, context=None):
        with data_plate(x, context):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.loadings.shape[1]), 1.0).to_event(1))
            return pyro.sample("x", self.emission(z @ self.loadings.mT), obs=x)

    def guide(self, x=None, context=None):
        gain = self.loadings.mT @ (self.loadings @ self.loadings.mT + self.covariance).inverse()
        tril = torch.linalg.cholesky(torch.eye(self.loadings.shape[1]) - gain @ self.loadings)
        with data_plate(x, context):
            pyro.sample(
                "z",
                dist.MultivariateNormal(x @ gain.mT + self.shift, scale_tril=self.spread * tril),
            )

    def marginal(self):
        return dist.MultivariateNormal(
            torch.zeros(len(self.loadings)), self.loadings @ self.loadings.mT + self.covariance
        )


def assert_moments(draws, distribution, x, slack=4.5):
    """Means and covariances of independent draws of missing entries lie within their standard
    errors."""
    joint = distribution.sample((30_000,))
    for row, given in enumerate(x):
        free = given.isnan()
        mine, true = draws[:, row, free], joint[:, row, free]
        scale = distribution.variance[row, free].sqrt()
        error = math.sqrt(1 / len(mine) + 1 / len(true))
        assert ((mine.mean(0) - distribution.mean[row, free]).abs() < slack * scale * error).all()
        gap = (mine.mT.cov().reshape(len(scale), -1) - true.mT.cov().reshape(len(scale), -1)).abs()
        assert (gap < slack * scale.outer(scale) * math.sqrt(2) * error).all()


X = torch.tensor([[1.0, -1.0, NAN, NAN], [NAN, 0.5, 1.0, NAN], [NAN, NAN, NAN, NAN]])
LOADINGS = torch.tensor([[1.0, 0.0], [0.5, -1.0], [-0.7, 0.6], [0.2, 1.2]])


@pytest.fixture
def poor():
    return LinearGaussian(LOADINGS, 0.5 * torch.eye(4), shift=0.3, spread=1.4)


def test_exact_models_are_imputed_by_their_conditional():
    gen = PPCA(4, factors=2)
    done, distribution = impute(gen, X, draws=5000), conditional(gen(), X, ~X.isnan())
    assert done.kind == "exact" and (done.acceptance == 1).all()
    assert_moments(done.draws, distribution, X)


@pytest.mark.slow
def test_chains_with_a_poor_guide_reach_the_conditional_gaussian(poor):
    done = impute(poor, X, draws=1500, num_steps=120)
    assert (
        done.kind == "asymptotic"
        and (done.acceptance > 0.1).all()
        and (done.acceptance < 0.9).all()
    )
    assert_moments(done.draws, conditional(poor.marginal(), X, ~X.isnan()), X)


@pytest.mark.parametrize(("shift", "spread", "warned"), [(0.3, 1.4, False), (8.0, 0.05, True)])
def test_chains_that_hardly_move_warn(shift, spread, warned):
    far = LinearGaussian(LOADINGS, 0.5 * torch.eye(4), shift=shift, spread=spread)
    words = r"of 3 rows .* have an acceptance below 5%: .* num_steps=200"
    with pytest.warns(UserWarning, match=words) if warned else nullcontext():
        impute(far, X, draws=50, num_steps=20)


@pytest.mark.slow
def test_without_the_metropolis_correction_they_do_not(poor, monkeypatch):
    monkeypatch.setattr(module, "_accept", lambda log_ratio: log_ratio < math.inf)
    done = impute(poor, X, draws=1500, num_steps=120)
    with pytest.raises(AssertionError):
        assert_moments(done.draws, conditional(poor.marginal(), X, ~X.isnan()), X, slack=20)


@pytest.mark.slow
def test_decoders_with_correlated_coordinates_are_conditioned():
    noise = torch.full((4, 4), 0.4) + 0.2 * torch.eye(4)
    gen = LinearGaussian(LOADINGS, noise, spread=1.2)
    done = impute(gen, X, draws=1000, num_steps=60)
    assert_moments(done.draws, conditional(gen.marginal(), X, ~X.isnan()), X)


def test_variational_autoencoder_with_a_linear_decoder():
    """Heads, an encoder that is wide and was never trained.

    And a decoder whose marginal is known.
    """
    decoder = Gaussian(torch.nn.Linear(2, 4), scale=0.7)
    prior, encoder = (
        Fixed(dist.Normal, loc=torch.zeros(2), scale=1.0),
        Gaussian(torch.nn.Linear(4, 2), scale=1.2),
    )
    weight, bias = decoder.net.weight.detach(), decoder.net.bias.detach()
    done = impute(VAE(prior, decoder, encoder), X, draws=1500, num_steps=80)
    marginal = dist.MultivariateNormal(bias, weight @ weight.mT + 0.49 * torch.eye(4))
    assert_moments(done.draws, conditional(marginal, X, ~X.isnan()), X)


class Layers(LatentVariableModel):
    """z2 -> z1 -> x with a plate of two coordinates; the guide draws them one after the other."""

    max_plate_nesting = 2

    def model(self, x=None, context=None):
        with data_plate(x, context):
            z2 = pyro.sample("z2", dist.Normal(0.0, 1.0))
            with pyro.plate("coordinates", 2, dim=-2):
                z1 = pyro.sample("z1", dist.Normal(z2, 1.0))
            return pyro.sample("x", MissingAware(dist.Normal(z1.movedim(-2, -1), 0.5), 1), obs=x)

    def guide(self, x=None, context=None):
        with data_plate(x, context):
            z2 = pyro.sample("z2", dist.Normal(0.4 * x.mean(-1), 0.8))
            with pyro.plate("coordinates", 2, dim=-2):
                pyro.sample("z1", dist.Normal(0.7 * x.mT + 0.2 * z2, 0.5))


def test_several_latents_and_inner_plates():
    x = torch.tensor([[2.0, NAN], [NAN, -1.0]])
    done = impute(Layers(), x, draws=3000, num_steps=60)
    covariance = torch.ones(2, 2) + 1.25 * torch.eye(2)
    assert_moments(
        done.draws,
        conditional(dist.MultivariateNormal(torch.zeros(2), covariance), x, ~x.isnan()),
        x,
    )


class Switch(LatentVariableModel):
    """Four binary pixels with a binary cause whose probability is the context.

    The guide tosses a coin, unless the model sums the cause out by itself.
    """

    def __init__(self, enumerate_=None, guided=True):
        super().__init__()
        self.infer, self.guided = {"enumerate": enumerate_}, guided

    def probs(self, z):
        return torch.where(
            z[..., None] == 1,
            torch.tensor([0.9, 0.8, 0.7, 0.6]),
            torch.tensor([0.2, 0.3, 0.1, 0.4]),
        )

    def model(self, x=None, context=None):
        with data_plate(x, context):
            z = pyro.sample("z", dist.Bernoulli(context[..., 0]), infer=self.infer)
            return pyro.sample("x", MissingAware(dist.Bernoulli(self.probs(z)), 1), obs=x)

    def guide(self, x=None, context=None):
        if not self.guided:
            return
        with data_plate(x, context):
            pyro.sample("z", dist.Bernoulli(torch.full(x.shape[:1], 0.5)), infer=self.infer)


SWITCHES = {
    "drawn by the guide": (Switch, "asymptotic", 4000),
    "summed out under the guide": (lambda: Switch("parallel"), "asymptotic", 4000),
    "summed out by the model alone": (lambda: Switch("parallel", guided=False), "exact", 500),
}


@pytest.mark.parametrize(("switch", "kind", "count"), SWITCHES.values(), ids=SWITCHES)
def test_discrete_latents_with_context_by_enumeration(switch, kind, count):
    x = torch.tensor([[1.0, NAN, 1.0, NAN], [0.0, 0.0, NAN, NAN]])
    context = torch.tensor([[0.3], [0.6]])
    done = impute(switch(), x, context, draws=count, num_steps=40)
    draws = done.draws
    assert done.kind == kind
    for row, free in enumerate(x.isnan()):
        z = torch.tensor([0.0, 1.0])
        likelihood = (
            dist.Bernoulli(Switch().probs(z)[:, ~free]).log_prob(x[row, ~free]).sum(-1).exp()
        )
        weights = likelihood * torch.stack([1 - context[row, 0], context[row, 0]])
        p = Switch().probs(z)[:, free]
        pairs = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        table = dist.Bernoulli(p).log_prob(pairs[:, None]).sum(-1).exp() @ (weights / weights.sum())
        shares = (draws[:, row, None, free] == pairs).all(-1).float().mean(0)
        assert ((shares - table).abs() < 4.5 * (table * (1 - table) / count).sqrt()).all()


class UnknownMean(LatentVariableModel):
    """x = mu + z + noise with a global mu; in the posterior mu has mean 3 and scale 0.5."""

    def __init__(self, local=True):
        super().__init__()
        self.local = local

    def model(self, x=None, context=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with data_plate(x, context):
            z = pyro.sample("z", dist.Normal(0.0, 1.0)) if self.local else 0.0
            loc = (mu + z)[..., None].expand(*(mu + z).shape, 2)
            return pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x=None, context=None):
        mu = pyro.sample("mu", dist.Normal(3.0, 0.5))
        if x is None or not self.local:
            return
        with data_plate(x, context):
            pyro.sample("z", dist.Normal((x - mu).mean(-1) * 2 / 3, (1 / 3) ** 0.5))


@pytest.mark.slow
@pytest.mark.parametrize("local", [True, False])
def test_globals_come_from_the_guide(local):
    x = torch.tensor([[5.0, NAN]])
    done = impute(UnknownMean(local), x, draws=100 if local else 600, num_steps=4)
    assert done.kind == ("asymptotic" if local else "exact")
    # given mu: N(mu + (5 - mu) / 2, 3 / 2) with a local latent, N(mu, 1) without one; mu ~ N(3,
    # 0.25)
    mean, variance = (4.0, 1.5 + 0.25 / 4) if local else (3.0, 1.25)
    distribution = conditional(
        dist.Normal(mean, variance**0.5).expand([1, 2]).to_event(1), x, ~x.isnan()
    )
    assert_moments(done.draws, distribution, x)


def test_observed_entries_and_complete_rows_are_untouched(poor):
    x = torch.where(torch.rand(20, 4) < 0.3, NAN, torch.randn(20, 4))
    x[3] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    done = impute(poor, x, draws=3, num_steps=5)
    assert not done.draws.isnan().any() and torch.equal(done.missing, x.isnan())
    for complete in (*done.draws, done.mean(), *done.interval()):
        assert torch.equal(complete[~x.isnan()], x[~x.isnan()])
    assert done.acceptance.shape == (20,) and done.acceptance[3] == 1


def test_interval_covers_what_it_says():
    done = impute(
        Fixed(dist.Normal, loc=torch.zeros(1), scale=2.0), torch.full((1, 1), NAN), draws=20_000
    )
    low, high = done.interval(0.8)
    torch.testing.assert_close(low, done.draws.quantile(0.1, dim=0))
    assert torch.stack([low, high]).flatten().tolist() == pytest.approx([-2.563, 2.563], abs=0.08)


class Bound(dist.Normal):
    density_kind = "bound"


class Variant(LatentVariableModel):
    """A model of two coordinates whose parts can be exchanged."""

    def __init__(self, prior=None, decoder=None, encoder=None, infer=None):
        super().__init__()
        self.prior, self.encoder, self.infer = prior or dist.Normal(0.0, 1.0), encoder, infer
        self.decoder = decoder or (
            lambda z: dist.Normal(z[..., None].expand(*z.shape, 2), 1.0).to_event(1)
        )

    def model(self, x=None, context=None):
        with data_plate(x, context):
            z = pyro.sample("z", self.prior, infer=self.infer)
            return pyro.sample("x", self.decoder(z), obs=x)

    def guide(self, x=None, context=None):
        if self.encoder is not None:
            with data_plate(x, context):
                pyro.sample("z", self.encoder)


class Beside(LatentVariableModel):
    """A drawn latent beside one that is enumerated, which the guide may leave out."""

    def __init__(self, guided):
        super().__init__()
        self.guided = guided

    def model(self, x=None, context=None):
        with data_plate(x, context):
            c = pyro.sample("c", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = torch.stack([c + z, z - c], -1)
            return pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x=None, context=None):
        with data_plate(x, context):
            if self.guided:
                c = dist.Bernoulli(torch.full(x.shape[:1], 0.5))
                pyro.sample("c", c, infer={"enumerate": "parallel"})
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))


def test_an_enumerated_latent_beside_drawn_ones_is_to_be_in_the_guide():
    x = torch.tensor([[1.0, NAN]])
    with pytest.raises(NotImplementedError, match="enumerated site 'c'; add it to the guide"):
        impute(Beside(guided=False), x, num_steps=3)
    done = impute(Beside(guided=True), x, draws=1500, num_steps=30)
    # given c, both entries are normal with variance 2 and covariance 1
    means = torch.tensor([0.0, 1.0])
    weights = torch.tensor([0.7, 0.3]) * dist.Normal(means, 2**0.5).log_prob(x[0, 0]).exp()
    weights = weights / weights.sum()
    truth = (weights * (-means + (x[0, 0] - means) / 2)).sum()
    spread = done.draws[:, 0, 1].std() / 1500**0.5
    assert abs(done.mean()[0, 1] - truth) < 4.5 * spread


def test_what_cannot_be_done_says_so():
    x, encoder = torch.tensor([[0.3, NAN]]), dist.Normal(0.0, 1.0)
    assert (
        impute(Variant(prior=Bound(0.0, 1.0), encoder=encoder), x, num_steps=3).kind == "heuristic"
    )
    with pytest.raises(ValueError, match="expected an exact density at guide site 'z', got bound"):
        impute(Variant(encoder=Bound(0.0, 1.0)), x, num_steps=3)
    with pytest.raises(ValueError, match="expected the guide to draw the latent site 'z'"):
        impute(Variant(), x, num_steps=3)
    with pytest.raises(ValueError, match="Independent cannot integrate out missing"):
        impute(Variant(prior=dist.Bernoulli(0.5), infer={"enumerate": "parallel"}), x, num_steps=3)
    with pytest.raises(NotImplementedError, match="got Dirichlet; register one"):
        impute(
            Variant(decoder=lambda z: dist.Dirichlet(torch.ones(*z.shape, 2)), encoder=encoder),
            x,
            num_steps=3,
        )
    with pytest.raises(ValueError, match="expected draws >= 1"):
        impute(Variant(encoder=encoder), x, draws=0)


@pytest.mark.slow
def test_a_bayesian_mixture_agrees_with_the_mixture_at_its_globals():
    """A guide that is almost a point makes the draws those of an ordinary mixture.

    Whose conditional is exact.
    """
    torch.manual_seed(0)
    gen = BayesianGaussianMixture(2, 2)
    x = torch.cat([torch.randn(60, 2), torch.randn(40, 2) * 0.5 + 3])
    gen.initialize(x)
    for log_scale in gen.log_scales.values():
        log_scale.data.fill_(-12.0)
    globals_ = {name: value[0] for name, value in posterior(gen, x, draws=1).items()}
    plain = GaussianMixture(2, 2).assign(
        globals_["weights"], globals_["means"], torch.diag_embed(globals_["scales"].square())
    )
    hidden = torch.tensor([[0.2, torch.nan], [torch.nan, 2.8], [1.6, torch.nan]])
    found, expected = impute(gen, hidden, draws=500), impute(plain, hidden, draws=20_000)
    assert found.kind == expected.kind == "exact"
    spread = expected.draws.std(0).clamp(min=1e-6)
    assert ((found.mean() - expected.mean()).abs() / spread < 4.5 / 500**0.5).all()
    torch.testing.assert_close(found.draws.std(0), expected.draws.std(0), rtol=0.15, atol=1e-6)


def test_missing_values_of_another_argument_are_refused():
    def model(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    y = torch.tensor([0.0, NAN])
    with pytest.raises(ValueError, match=r"first argument, x, .* got NaN in y; let the program"):
        impute(Program(model), torch.zeros(2), y)
