"""Deep Markov models against linear-Gaussian closed forms, and the structure of guide and chain."""

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from probgen import heads
from probgen.core.module import DistributionModule
from probgen.core.weights import log_weights
from probgen.distributions.sequences.latent_chain import LatentChain
from probgen.infer.posterior import posterior
from probgen.models.autoregressive_flow import IAF
from probgen.models.deep_markov import DeepMarkovModel
from probgen.nn.recurrent import RNN, Combiner, GatedTransition
from probgen.objectives.elbo import ELBO
from probgen.scoring import log_likelihood
from probgen.train.fit import adam, fit

T, Z, D, H = 4, 2, 3, 6
NOISE, SPREAD = 0.7, 0.5  # scales of transition and emission


class Linear(nn.Module):
    """Linear transition and emission.

    And the joint distribution of latents and frames that they make.
    """

    def __init__(self, z: int = Z, d: int = D):
        super().__init__()
        self.transition, self.emission, self.start = (
            nn.Linear(z, z),
            nn.Linear(z, d),
            torch.randn(z),
        )

    def joint(self, length: int, start: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and covariance of ``(z_1, ..., z_T, x_1, ..., x_T)``, from z = F z + f + noise.

        x = G z + g + noise.
        """
        (z, d), eye = (self.start.numel(), self.emission.out_features), torch.eye
        blocks = torch.block_diag(*[eye(z)] * length).double()
        f = self.transition.bias.repeat(length).double()
        f[:z] += (self.transition.weight @ start).double()
        for t in range(1, length):
            blocks[t * z : (t + 1) * z, (t - 1) * z : t * z] = -self.transition.weight.double()
        gain = blocks.inverse()
        cov_z, mean_z = NOISE**2 * gain @ gain.mT, gain @ f
        out = torch.block_diag(*[self.emission.weight.double()] * length)
        mean = torch.cat([mean_z, out @ mean_z + self.emission.bias.repeat(length).double()])
        cov_x = out @ cov_z @ out.mT + SPREAD**2 * eye(length * d)
        return mean, torch.cat(
            [torch.cat([cov_z, cov_z @ out.mT], 1), torch.cat([out @ cov_z, cov_x], 1)]
        )

    def log_prob(self, x: Tensor) -> Tensor:
        length, z = x.shape[-2], self.start.numel()
        mean, cov = self.joint(length, self.start)
        distribution = dist.MultivariateNormal(mean[length * z :], cov[length * z :, length * z :])
        return distribution.log_prob(x.flatten(-2).double()).float()

    def model(
        self, network: nn.Module, combiner: DistributionModule, length: int = T
    ) -> DeepMarkovModel:
        transition = heads.Gaussian(self.transition, scale=NOISE)
        emission = heads.Gaussian(self.emission, scale=SPREAD)
        gen = DeepMarkovModel(transition, emission, network, combiner, (length, self.start.numel()))
        with torch.no_grad():
            gen.start.copy_(self.start)
            gen.guide_start.copy_(self.start)
        return gen.requires_grad_(False)


class Exact(nn.Module):
    """The summary of an exact guide.

    For each step the affine map from the last latents to distribution of the present ones.

    Reads frames in reverse order: with s frames behind it, a step sees s + 1 frames.
    """

    def __init__(self, linear: Linear):
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(
            [self._step(x[..., : s + 1, :].flip(-2)) for s in range(x.shape[-2])], -2
        )

    def _step(self, x: Tensor) -> Tensor:
        z, length = self.linear.start.numel(), x.shape[-2]
        offset, spread = self._given(x, length, torch.zeros(z))
        slope = [self._given(x, length, unit)[0] - offset for unit in torch.eye(z)]
        return torch.cat([offset, *slope, spread.expand(*x.shape[:-2], -1, -1).flatten(-2)], -1)

    def _given(self, x: Tensor, length: int, start: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and Cholesky factor of p(z_1 | x, z_0)."""
        z, (mean, cov) = start.numel(), self.linear.joint(length, start)
        seen = slice(length * z, None)
        gain = cov[:z, seen] @ cov[seen, seen].inverse()
        loc = mean[:z] + (x.flatten(-2).double() - mean[seen]) @ gain.mT
        return loc.float(), torch.linalg.cholesky(cov[:z, :z] - gain @ cov[seen, :z]).float()


class Affine(DistributionModule):
    """Normal latents whose mean is an affine function of the last ones, as the summary says."""

    def forward(self, context=None):
        z, offset, slope, spread = context.split((Z, Z, Z * Z, Z * Z), -1)
        loc = offset + (slope.unflatten(-1, (Z, Z)) * z.unsqueeze(-1)).sum(-2)
        return dist.MultivariateNormal(loc, scale_tril=spread.unflatten(-1, (Z, Z)))


@pytest.fixture
def linear() -> Linear:
    torch.manual_seed(0)
    return Linear().requires_grad_(False)


def frames(linear: Linear, rows: int = 5) -> Tensor:
    mean, cov = linear.joint(T, linear.start)
    distribution = dist.MultivariateNormal(mean[T * Z :], cov[T * Z :, T * Z :])
    return distribution.sample((rows,)).float().unflatten(-1, (T, D))


def test_with_the_exact_guide_every_weight_is_the_likelihood(linear):
    gen, x = linear.model(Exact(linear), Affine()), frames(linear)
    weights, kind = log_weights(gen, x, particles=3)
    assert kind == "unbiased"
    torch.testing.assert_close(weights, linear.log_prob(x).expand(3, -1), rtol=1e-4, atol=1e-4)


def test_sequences_that_end_early_have_the_likelihood_of_what_is_there(linear):
    gen, x = linear.model(Exact(linear), Affine()), frames(linear)
    x[1, 2:], x[2, 1:] = torch.nan, torch.nan
    expected = torch.stack(
        [linear.log_prob(row[:n]) for row, n in zip(x, (T, 2, 1, T, T), strict=True)]
    )
    weights, _ = log_weights(gen, x, particles=2)
    torch.testing.assert_close(weights, expected.expand(2, -1), rtol=1e-4, atol=1e-4)


def test_posterior_draws_go_on_by_the_transition_where_a_sequence_has_ended(linear):
    gen, x = linear.model(Exact(linear), Affine()), frames(linear, 2)
    x[0, 1:] = torch.nan
    z = posterior(gen, x, draws=20000)["z"][:, 0]
    mean, cov = linear.joint(1, linear.start)
    gain = cov[:Z, Z:] @ cov[Z:, Z:].inverse()
    here = mean[:Z] + gain @ (x[0, 0].double() - mean[Z:])
    spread = cov[:Z, :Z] - gain @ cov[Z:, :Z]
    step = linear.transition.weight.double()
    for t in range(3):
        error = (spread.diag() / len(z)).sqrt()
        assert ((z[:, t].mean(0).double() - here).abs() < 5 * error).all()
        torch.testing.assert_close(z[:, t].T.cov().double(), spread, rtol=0.1, atol=0.02)
        here = step @ here + linear.transition.bias.double()
        spread = step @ spread @ step.mT + NOISE**2 * torch.eye(Z)


@pytest.mark.slow
def test_bound_is_below_and_weights_average_to_the_likelihood_in_probability_space(linear):
    gen, x = linear.model(RNN(D, H), heads.Gaussian(Combiner(Z, H))), frames(linear)
    (
        gen.combiner.requires_grad_(True),
        gen.network.requires_grad_(True),
        gen.guide_start.requires_grad_(True),
    )
    fit(
        gen,
        x,
        steps=100,
        optimizer=adam(0.03),
        compile=False,
        progress=False,
        seed=0,
        verdict=False,
    )
    torch.manual_seed(1)
    weights, _ = log_weights(gen, x, particles=4000)
    gap = weights - linear.log_prob(x)
    assert (gap.mean(0) < 0).all()
    assert (gap.mean(0) > -1.5).all()
    ratio = gap.exp()
    assert ((ratio.mean(0) - 1).abs() < 5 * ratio.std(0) / 4000**0.5).all()


def test_loss_is_minus_the_mean_weight_and_annealing_scales_the_divergence(linear):
    gen, x = linear.model(RNN(D, H), heads.Gaussian(Combiner(Z, H))), frames(linear)
    whole, half = ELBO(particles=2000), ELBO(beta=0.5, particles=2000)
    torch.manual_seed(2)
    z = gen.encode(x).sample((2000,))
    fits = gen.decode(z).log_prob(x).mean(0).sum()
    divergence = (gen.encode(x).log_prob(z) - gen.prior().log_prob(z)).mean(0).sum()
    assert whole(gen.model, gen.guide)(x).item() == pytest.approx(
        (divergence - fits).item(), rel=0.02
    )
    assert half(gen.model, gen.guide)(x).item() == pytest.approx(
        (0.5 * divergence - fits).item(), rel=0.02
    )


def test_the_guide_of_a_step_reads_present_and_later_frames_only():
    gen = small()
    x = torch.randn(2, T, D, requires_grad=True)
    summary = gen.encode(x).inputs
    for t in range(T):
        (gradient,) = torch.autograd.grad(summary[0, t].sum(), x, retain_graph=True)
        assert (gradient[1] == 0).all()
        assert (gradient[0, :t] == 0).all()
        assert gradient[0, t:].abs().min() > 0


def small(context: int = 0) -> DeepMarkovModel:
    torch.manual_seed(0)
    transition, emission = (
        heads.Gaussian(GatedTransition(Z, 5, context)),
        heads.Bernoulli(nn.Linear(Z + context, D)),
    )
    return DeepMarkovModel(
        transition, emission, RNN(D + context, H), heads.Gaussian(Combiner(Z, H)), (T, Z)
    )


def test_padding_leaves_guide_loss_and_gradients_as_they_are():
    gen = small()
    x = torch.randint(2, (3, T, D)).float()
    x[:, 2:] = torch.nan
    short = small()
    short.length = 2
    short.load_state_dict(gen.state_dict())
    torch.testing.assert_close(gen.encode(x).inputs[:, :2], short.encode(x[:, :2]).inputs)
    z = torch.randn(3, T, Z)
    losses = []
    for each, rows in ((gen, T), (short, 2)):
        q, p = each.encode(x[:, :rows]), each.prior(counts=torch.arange(rows) < 2)
        log_joint = p.log_prob(z[:, :rows]) + each.decode(z[:, :rows]).log_prob(x[:, :rows])
        losses.append((log_joint - q.log_prob(z[:, :rows])).sum())
    torch.testing.assert_close(*losses)
    gradients = [
        torch.autograd.grad(loss, each.parameters())
        for loss, each in zip(losses, (gen, short), strict=True)
    ]
    torch.testing.assert_close(*gradients)


def test_frames_missing_in_the_middle_are_integrated_out(linear):
    gen, x = linear.model(RNN(D, H), heads.Gaussian(Combiner(Z, H))), frames(linear)
    mean, cov = linear.joint(T, linear.start)
    x[:, 1] = torch.nan
    kept = [T * Z + i for i in range(T * D) if i // D != 1]
    distribution = dist.MultivariateNormal(mean[kept], cov[kept][:, kept])
    expected = distribution.log_prob(x.flatten(1)[:, [i - T * Z for i in kept]].double())
    torch.manual_seed(0)
    weights, _ = log_weights(gen, x, particles=30000)
    ratio = (weights.double() - expected).exp()
    assert ((ratio.mean(0) - 1).abs() < 5 * ratio.std(0) / len(ratio) ** 0.5).all()


def test_draws_of_the_program_follow_the_joint_distribution(linear):
    gen = linear.model(RNN(D, H), heads.Gaussian(Combiner(Z, H)))
    torch.manual_seed(0)
    x = gen().sample((40000,)).flatten(1).double()
    mean, cov = linear.joint(T, linear.start)
    error = (cov.diag()[T * Z :] / len(x)).sqrt()
    assert ((x.mean(0) - mean[T * Z :]).abs() < 5 * error).all()
    torch.testing.assert_close(x.T.cov(), cov[T * Z :, T * Z :], rtol=0.05, atol=0.03)


@pytest.mark.slow
def test_a_flow_guide_gives_weights_that_average_to_the_likelihood(linear):
    gen, x = linear.model(RNN(D, H), flow_guide()), frames(linear, 3)
    gen.combiner.requires_grad_(True), gen.network.requires_grad_(True)
    fit(
        gen,
        x,
        steps=100,
        optimizer=adam(0.03),
        compile=False,
        progress=False,
        seed=0,
        verdict=False,
    )
    torch.manual_seed(1)
    weights, kind = log_weights(gen, x, particles=4000)
    ratio = (weights - linear.log_prob(x)).exp()
    assert kind == "unbiased"
    assert ((ratio.mean(0) - 1).abs() < 5 * ratio.std(0) / 4000**0.5).all()


def test_a_context_reaches_transition_emission_and_guide():
    gen, context = small(context=2), torch.randn(3, 2, requires_grad=True)
    x = torch.randint(2, (3, T, D)).float()
    z = torch.zeros(3, T, Z)
    for value in (
        gen.prior(context).log_prob(z),
        gen.decode(z, context).log_prob(x),
        gen.encode(x, context).log_prob(z),
    ):
        (gradient,) = torch.autograd.grad(value[1], context)
        assert gradient[1].abs().min() > 0
        assert (gradient[[0, 2]] == 0).all()


def flow_guide() -> IAF:
    """A flow upon the combiner: the last latents and the summary enter both."""
    return IAF(Z, layers=2, hidden=(8,), context=Z + H, base=heads.Gaussian(Combiner(Z, H)))


@pytest.mark.parametrize("draws", [(), (7,)])
@pytest.mark.parametrize("combiner", [None, flow_guide], ids=["Gaussian", "flow"])
def test_a_draw_is_scored_as_any_value(combiner, draws):
    gen = small()
    gen.combiner = combiner() if combiner else gen.combiner
    q = gen.encode(torch.randint(2, (3, T, D)).float())
    z = q.rsample(draws)
    torch.testing.assert_close(q.log_prob(z), q.log_prob(z.clone()))
    wanted = torch.autograd.grad(q.log_prob(z.clone()).sum(), q.inputs, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(q.log_prob(z).sum(), q.inputs), wanted)


def test_a_draw_without_gradients_is_scored_with_them():
    q = small().encode(torch.randint(2, (3, T, D)).float())
    assert q.log_prob(q.sample()).requires_grad


def test_divergence_along_draws_averages_to_that_of_the_joint_distributions():
    def chain(slope: float, scale: float) -> LatentChain:
        return LatentChain(
            lambda z: dist.Normal(slope * z, scale).to_event(1), torch.tensor([1.0]), 3
        )

    def joint(slope: float, scale: float) -> dist.MultivariateNormal:
        gain = (torch.eye(3) - slope * torch.eye(3).roll(1, 0).tril(-1)).inverse()
        return dist.MultivariateNormal(gain @ torch.tensor([slope, 0, 0]), scale_tril=scale * gain)

    torch.manual_seed(0)
    q, p = chain(0.9, 0.6).expand((20000,)), chain(0.4, 1.0).expand((20000,))
    z = q.rsample()
    along, plain = torch.distributions.kl_divergence(q, p), q.log_prob(z) - p.log_prob(z)
    exact = torch.distributions.kl_divergence(joint(0.9, 0.6), joint(0.4, 1.0))
    for estimate in (along, plain):
        assert abs(estimate.mean() - exact) < 5 * estimate.std() / 20000**0.5
    assert along.std() < plain.std()


def test_chain_is_its_multivariate_normal():
    walk = LatentChain(lambda z: dist.Normal(z, 2.0).to_event(1), torch.tensor([1.0]), 3)
    cov = 4 * torch.tensor([[1.0, 1, 1], [1, 2, 2], [1, 2, 3]])
    z = torch.randn(5, 3, 1)
    torch.testing.assert_close(
        walk.log_prob(z), dist.MultivariateNormal(torch.ones(3), cov).log_prob(z.squeeze(-1))
    )
    counts = torch.tensor([True, True, False])
    part = LatentChain(walk.transition, walk.start, 3, counts=counts)
    torch.testing.assert_close(
        part.log_prob(z), dist.MultivariateNormal(torch.ones(2), cov[:2, :2]).log_prob(z[:, :2, 0])
    )


def test_score_is_an_unbiased_estimate_of_a_mass():
    score = log_likelihood(small(), torch.randint(2, (3, T, D)).float(), particles=8)
    assert (score.kind, score.measure) == ("unbiased", "mass")
