"""Diffusion models.

Bounds against closed forms and chains of sites, training, guidance, imputation, wrappers.
"""

import copy
from functools import partial

import pyro
import pytest
import torch
from gaussian_diffusion import COVARIANCE, EYE, MEAN, Exact, data, exact
from pyro.infer import Trace_ELBO
from torch import nn

from probgen.core.kinds import density_kind
from probgen.distributions.diffusion.gaussian import GaussianNoise
from probgen.distributions.diffusion.gaussian_diffused import GaussianDiffused
from probgen.distributions.diffusion.predictions import (
    EDM,
    Epsilon,
    LevelPrediction,
    Original,
    Velocity,
)
from probgen.distributions.diffusion.reconstruction import LevelReconstruction
from probgen.distributions.diffusion.samplers import DDIM, Ancestral, DPMSolver
from probgen.distributions.diffusion.schedules import (
    CosineSchedule,
    EDMSchedule,
    LearnedSchedule,
    LinearSchedule,
)
from probgen.distributions.diffusion.times import LogNormalTimes
from probgen.distributions.diffusion.variances import (
    ForwardVariance,
    LearnedVariance,
    PosteriorVariance,
)
from probgen.infer.impute import impute
from probgen.models.diffusion import Diffusion
from probgen.models.diffusion_chain import DiffusionChain
from probgen.models.mixture import GaussianMixture
from probgen.models.quantized import BinNoise, Quantized
from probgen.models.standardized import Standardized
from probgen.nn.time import TimeMLP
from probgen.objectives.denoising import Denoising
from probgen.objectives.elbo import ELBO
from probgen.scoring import log_likelihood
from probgen.train.fit import adam, fit


def expected_error(process, x, t):
    """E |x - x_hat(z_t)|^2 over the noise, for the exact denoiser of Gaussian data.

    T of shape (N,).
    """
    alpha, sigma = (level[:, None, None] for level in process.schedule(t))
    gain = alpha * COVARIANCE @ torch.linalg.inv(alpha.square() * COVARIANCE + sigma.square() * EYE)
    bias = ((EYE - alpha * gain) @ (x - MEAN).unsqueeze(-1)).square().sum((-2, -1))
    return bias + sigma.flatten().square() * gain.square().sum((-2, -1))


def true_bound(distribution, x, large=False):
    """The bound of one row, summed over all steps or integrated over all times."""
    steps, schedule = distribution.process.num_times, distribution.process.schedule
    (a0, a1), (s0, s1) = schedule(torch.tensor([0.0, 1.0]).double())
    total = -(torch.log(s0 / a0) + 0.5 * torch.log(torch.tensor(2 * torch.pi)) + 0.5) * 2
    prior = torch.distributions.Normal(torch.zeros(2).double(), (a1**2 + s1**2).sqrt())
    total = (
        total
        - torch.distributions.kl_divergence(torch.distributions.Normal(a1 * x, s1), prior).sum()
    )
    if steps is None:
        high, low = schedule.log_snr(torch.tensor([0.0, 1.0]).double())
        log_snr = torch.linspace(low, high, 4001).double()
        error = log_snr.exp() * expected_error(distribution.process, x, schedule.time(log_snr))
        return total - torch.trapezoid(error, log_snr) / 2
    t = torch.arange(steps + 1).double() / steps
    alpha, sigma = schedule(t)
    error = expected_error(distribution.process, x, t[1:])
    forward = (
        sigma[1:] ** 2 - (alpha[1:] / alpha[:-1]) ** 2 * sigma[:-1] ** 2
    )  # the variance of q(z_t | z_s)
    small = forward * sigma[:-1] ** 2 / sigma[1:] ** 2
    variance = forward if large else small
    gap = (alpha[:-1] * forward / sigma[1:] ** 2) ** 2 * error
    return (
        total - (2 * (small / variance - 1 - (small / variance).log()) + gap / variance).sum() / 2
    )


CASES = {
    "continuous, cosine": (CosineSchedule(), Velocity(), None, False),
    "continuous, EDM": (EDMSchedule(), EDM(1.0), None, False),
    "20 steps": (CosineSchedule(), Epsilon(), 20, False),
    "20 steps, large variance": (LinearSchedule(), Original(), 20, True),
}


@pytest.mark.parametrize("case", CASES)
def test_bound_is_the_sum_or_the_integral_that_it_estimates(case):
    torch.manual_seed(0)
    schedule, prediction, steps, large = CASES[case]
    distribution = exact(
        schedule, prediction, ForwardVariance() if large else None, num_times=steps
    )
    x = data().sample()
    draws = distribution.log_prob(x.expand(20000, 2))
    truth = true_bound(distribution, x, large)
    assert density_kind(distribution) == "bound"
    assert (
        draws.mean() - truth
    ).abs() < 4 * draws.std() / 20000**0.5  # stratified: less noise than that
    assert steps or draws.std() < 6  # nats; uniform times without a control variate have 30


def test_bound_is_below_the_density_and_closes_as_steps_shrink():
    x = data().sample((40,))
    exact_value = data().log_prob(x).mean()
    wide = CosineSchedule(14.0, -14.0)
    bounds = [
        torch.stack([true_bound(exact(wide, num_times=T), row) for row in x]).mean()
        for T in (10, 50, 250, None)
    ]
    assert all(one < other for one, other in zip(bounds, [*bounds[1:], exact_value], strict=True))
    assert exact_value - bounds[-1] < 1e-3


def random_diffusion(steps, variance, context=0, seed=0):
    torch.manual_seed(seed)
    net = TimeMLP(2, [16], context=context, outputs=4 if variance.learned else 2)
    nn.init.normal_(net.last.weight, std=0.2)
    return Diffusion(
        net, (2,), num_times=steps, variance=variance, schedule=CosineSchedule(5.0, -5.0)
    )


@pytest.mark.table(quick=1)
@pytest.mark.parametrize(
    "variance", [PosteriorVariance(), ForwardVariance(), LearnedVariance()], ids=str
)
def test_the_chain_of_sites_has_the_same_bound(variance):
    gen = random_diffusion(12, variance)
    x = torch.tensor([[0.5, -1.0]])
    with torch.no_grad():
        draws = gen().log_prob(x.expand(8000, 2))
        chain, rows = DiffusionChain(gen), x.expand(400, 2)
        losses = torch.tensor(
            [Trace_ELBO().loss(chain.model, chain.guide, rows) / 400 for _ in range(10)]
        )
        closed = torch.stack([ELBO()(chain.model, chain.guide)(rows) / 400 for _ in range(5)])
    error = (draws.var() / 8000 + losses.var() / 10).sqrt()
    assert (draws.mean() + losses.mean()).abs() < 4.5 * error
    assert (draws.mean() + closed.mean()).abs() < 4.5 * (
        draws.var() / 8000 + closed.var() / 5
    ).sqrt()


def test_the_chain_scores_and_samples_like_the_diffusion():
    gen = random_diffusion(8, PosteriorVariance(), context=1)
    context = torch.randn(500, 1)
    torch.manual_seed(0)
    direct, told = gen(context).sample(), DiffusionChain(gen)(context).sample()
    assert (direct.mean(0) - told.mean(0)).abs().max() < 0.3 and (
        direct.std(0) / told.std(0) - 1
    ).abs().max() < 0.15
    x = torch.randn(3, 2)
    score = log_likelihood(DiffusionChain(gen), x, context[:3], particles=200)
    bound = log_likelihood(gen, x, context[:3], particles=2000)
    assert (score.kind, bound.kind) == ("unbiased", "bound")
    assert (score.value > bound.value - 0.5).all()  # importance sampling tightens the bound
    with pytest.raises(ValueError, match="num_times=T"):
        DiffusionChain(random_diffusion(None, PosteriorVariance()))


def test_masses_of_integers_by_the_exact_denoiser():
    torch.manual_seed(0)
    levels, schedule = LevelReconstruction(3), CosineSchedule(12.0, -12.0)
    log_mass = torch.tensor([0.2, 0.5, 0.3]).double().log()
    values = levels.embed(torch.arange(3).double())

    def guess(z, alpha, sigma):
        logits = (
            log_mass
            - 0.5
            * ((z.unsqueeze(-1) - alpha.unsqueeze(-1) * values) / sigma.unsqueeze(-1)).square()
        )
        return (logits.softmax(-1) * values).sum(-1)

    process = GaussianNoise(schedule, Velocity(), PosteriorVariance(), 1)
    noise = torch.distributions.Normal(torch.zeros(1).double(), 1.0)
    distribution = GaussianDiffused(
        Exact(schedule, Velocity(), guess),
        process,
        pyro.distributions.Normal(noise.loc, 1.0).to_event(1),
        reconstruction=levels,
    )
    x = torch.arange(3).double()[:, None]
    draws = distribution.log_prob(x.expand(20000, 3, 1))
    assert ((draws.mean(0) - log_mass).abs() < 4 * draws.std(0) / 20000**0.5).all()
    shares = (
        distribution.using(DDIM(50)).sample((4000,)).flatten().long().bincount(minlength=3) / 4000
    )
    assert (shares - log_mass.exp()).abs().max() < 0.04
    assert distribution.support.is_discrete and distribution.sample((5,)).dtype == torch.double


def test_simple_loss_is_the_error_of_the_output():
    gen = random_diffusion(None, PosteriorVariance()).double()
    for prediction in (Epsilon(), Original(), Velocity(), EDM(0.8)):
        gen.prediction, x = prediction, torch.randn(7, 2).double()
        torch.manual_seed(3)
        loss = gen().denoising_loss(x)
        torch.manual_seed(3)
        t = gen.times(torch.Size([7]), gen.schedule, x)
        noise = torch.randn_like(x)
        alpha, sigma = (level[:, None] for level in gen.schedule(t))
        z = alpha * x + sigma * noise
        out = gen.net(
            prediction.inputs(z, alpha, sigma), prediction.time(t, alpha[:, 0], sigma[:, 0])
        )
        target = prediction.output(x, z, alpha, sigma)
        torch.testing.assert_close(loss, (out - target).square().sum(-1))
    epsilon_target = (z - alpha * x) / sigma
    torch.testing.assert_close(Epsilon().output(x, z, alpha, sigma), epsilon_target)
    torch.testing.assert_close(epsilon_target, noise)


def test_learned_variance_learns_from_the_bound_alone_and_the_mean_from_the_error():
    gen = random_diffusion(6, LearnedVariance())
    x = torch.randn(16, 2)
    gradients = []
    for share in (1e-3, 10.0):
        gen.variance = LearnedVariance(share)
        torch.manual_seed(1)
        gen.zero_grad()
        gen().denoising_loss(x).sum().backward()
        gradients.append(gen.net.last.weight.grad.clone())
    torch.testing.assert_close(gradients[0][:2], gradients[1][:2])
    torch.testing.assert_close(gradients[0][2:] * 1e4, gradients[1][2:], rtol=1e-3, atol=1e-5)
    assert gradients[0][2:].abs().max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("steps", [None, 6])
def test_learned_schedule_has_the_gradient_of_the_bound(steps):
    torch.manual_seed(0)
    net, x = TimeMLP(2, [16]), torch.randn(4000, 2).double()
    nn.init.normal_(net.last.weight, std=0.2)
    gen = Diffusion(net, (2,), schedule=LearnedSchedule(3.0, -3.0), num_times=steps).double()
    gen().denoising_loss(x).sum().backward()
    assert all(
        p.grad is None for p in gen.schedule.parameters()
    )  # the simple loss takes it as given

    def value():
        with torch.no_grad():
            torch.manual_seed(1)
            return torch.stack([gen().log_prob(x).mean() for _ in range(5)]).mean()

    torch.manual_seed(1)
    torch.stack([gen().log_prob(x).mean() for _ in range(5)]).mean().backward()
    for parameter in (gen.schedule.start, gen.schedule.log_range):
        with torch.no_grad():
            values = []
            for step in (0.05, -0.1):
                parameter.add_(step)
                values.append(value())
            parameter.add_(0.05)
        assert abs((values[0] - values[1]) / 0.1 - parameter.grad) < 0.03 * (
            1 + parameter.grad.abs()
        )
    assert all(p.grad.isfinite().all() for p in gen.schedule.parameters())


def trained(objective, steps=250, **options):
    torch.manual_seed(0)
    x = data().sample((2000,)).float()
    gen = Diffusion(TimeMLP(2, [32, 32]), (2,), schedule=CosineSchedule(8.0, -8.0), **options)
    history = fit(
        gen,
        x,
        objective,
        steps=steps,
        batch_size=128,
        optimizer=adam(3e-3),
        ema=0.98,
        seed=0,
        compile=False,
        verdict=False,
        progress=False,
    )
    return gen.eval(), history, x


@pytest.mark.slow
@pytest.mark.parametrize("objective", [Denoising, ELBO])
def test_training_comes_near_the_entropy(objective):
    gen, _, x = trained(objective())
    with torch.no_grad():
        bound = gen().log_prob(x.repeat(10, 1)).mean()
    truth = data().log_prob(x.double()).mean()
    assert truth - 0.15 < bound < truth + 0.03
    draws = gen().using(DPMSolver(20)).sample((4000,))
    assert (draws.mean(0) - MEAN.float()).abs().max() < 0.12
    assert (draws.T.cov() - COVARIANCE.float()).abs().max() < 0.15


@pytest.mark.parametrize("variance", [PosteriorVariance(), LearnedVariance()], ids=str)
def test_resumed_training_is_bit_for_bit_the_same(variance, tmp_path):
    x, losses = torch.randn(60, 2), []
    settings = {
        "batch_size": 20,
        "seed": 0,
        "compile": False,
        "verdict": False,
        "progress": False,
        "ema": 0.9,
    }
    for halves in (False, True):
        gen, path = random_diffusion(5, variance), tmp_path / f"{halves}.ckpt"
        for steps in (4, 8) if halves else (8,):
            history = fit(
                gen, x, Denoising(), steps=steps, checkpoint=path, resume=halves, **settings
            )
        losses.append((history.loss, copy.deepcopy(gen.state_dict())))
    assert losses[0][0] == losses[1][0]
    assert all(torch.equal(value, losses[1][1][name]) for name, value in losses[0][1].items())


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "steps"), [(Denoising, None), (ELBO, None), (ELBO, 5)])
def test_the_loss_as_one_graph_is_the_loss(objective, steps, monkeypatch):
    from probgen.compile.tracing import Compiled

    monkeypatch.setattr(Compiled, "build", lambda self, *examples, **how: self)
    x, context, losses = torch.randn(24, 2), torch.randn(24, 1), []
    for compile in (False, True):
        gen = random_diffusion(steps, PosteriorVariance(), context=1)
        gen.context_dropout = 0.3
        history = fit(
            gen,
            (x, context),
            objective(),
            steps=5,
            batch_size=8,
            seed=0,
            compile=compile,
            verdict=False,
        )
        losses.append(torch.tensor(history.loss))
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_guidance_moves_away_from_the_unconditional_guess():
    gen = random_diffusion(None, PosteriorVariance(), context=1)
    context, z, t = torch.tensor([[2.0]]), torch.randn(1, 2), torch.tensor(0.4)
    known, unknown = (gen(c).denoiser.denoise(z, t) for c in (context, None))
    assert (known - unknown).abs().max() > 1e-4
    guided = gen(context).using(guidance=3.0).guided().denoise(z, t)
    torch.testing.assert_close(guided, unknown + 3 * (known - unknown))
    torch.testing.assert_close(gen(torch.full((1, 1), torch.nan)).denoiser.denoise(z, t), unknown)
    with pytest.raises(ValueError, match="give a context"):
        gen().using(guidance=2.0).sample()
    torch.manual_seed(0)
    scores = gen(context).log_prob(torch.zeros(1, 2))
    torch.manual_seed(0)
    torch.testing.assert_close(gen(context).using(guidance=3.0).log_prob(torch.zeros(1, 2)), scores)


def test_contexts_are_dropped_row_by_row_in_training_alone():
    torch.manual_seed(0)
    gen = Diffusion(TimeMLP(2, [8], context=3), (2,), context_dropout=0.25)
    shown = gen.train()(torch.randn(4000, 3)).denoiser.context.isnan()
    assert (shown.all(-1) == shown.any(-1)).all() and (
        shown.any(-1).double().mean() - 0.25
    ).abs() < 0.03
    assert not gen.eval()(torch.randn(4000, 3)).denoiser.context.isnan().any()
    assert gen.train()().batch_shape == ()


class Gaussian(nn.Module):
    """The exact denoiser of the Gaussian data, as a network."""

    def __init__(self):
        super().__init__()
        self.says = Exact(CosineSchedule(), Velocity())
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, z, t, context=None):
        return self.says(z.double(), t.double()).to(z)


@pytest.mark.slow
def test_completions_are_near_the_conditional_distribution_and_keep_what_is_observed():
    torch.manual_seed(0)
    x = torch.tensor([[2.0, torch.nan], [torch.nan, 0.4], [0.1, 0.2]])
    done = impute(Diffusion(Gaussian(), (2,)), x, draws=2000, num_steps=400)
    assert done.kind == "heuristic" and torch.equal(done.draws[:, 2], x[2].expand(2000, 2))
    for row, seen, drawn in ((0, 0, 1), (1, 1, 0)):
        assert (done.draws[:, row, seen] == x[row, seen]).all()
        slope = COVARIANCE[drawn, seen] / COVARIANCE[seen, seen]
        mean = MEAN[drawn] + slope * (x[row, seen] - MEAN[seen])
        std = (COVARIANCE[drawn, drawn] - slope * COVARIANCE[seen, drawn]).sqrt()
        got = done.draws[:, row, drawn]
        assert (got.mean() - mean).abs() < 0.1 and (got.std() / std - 1).abs() < 0.08


@pytest.mark.slow
def test_completions_in_other_units_and_of_integers():
    torch.manual_seed(0)
    inner = Diffusion(Gaussian(), (2,))
    x = torch.tensor([[20.0, torch.nan]])
    done = impute(Standardized(inner, 0.0, 10.0), x, draws=1000, num_steps=400)
    assert done.kind == "heuristic" and (done.draws[..., 0] == 20).all()
    assert (done.draws[..., 1].mean() - 1.0).abs() < 1.0  # ten times -0.5 + 0.6 (2 - 1)
    whole = impute(Quantized(Standardized(inner, 0.0, 10.0)), x, draws=1000, num_steps=400)
    assert whole.kind == "heuristic" and (whole.draws[..., 0] == 20).all()
    assert (whole.draws == whole.draws.floor()).all() and (
        whole.draws[..., 1].mean() - 0.8
    ).abs() < 0.9


def test_wrappers_hand_the_simple_loss_on():
    inner, x = random_diffusion(None, PosteriorVariance()), torch.tensor([[3.0, 5.0], [1.0, 0.0]])
    torch.manual_seed(0)
    wrapped = Standardized(inner, 2.0, 4.0)().denoising_loss(x)
    torch.manual_seed(0)
    torch.testing.assert_close(inner().denoising_loss((x - 2) / 4), wrapped)
    quantized = Quantized(Standardized(inner, 2.0, 4.0))
    torch.manual_seed(0)
    loss = quantized().denoising_loss(x)
    torch.manual_seed(0)
    y = (x + torch.rand(2, 2) - 2) / 4
    torch.testing.assert_close(inner().denoising_loss(y), loss)
    assert Denoising()(quantized.model, quantized.guide)(x).shape == ()
    score = log_likelihood(quantized, x, particles=4)
    assert (score.kind, score.measure) == ("bound", "mass")
    sampled = quantized().using(DDIM(3)).sample((4,))
    assert (sampled == sampled.floor()).all()


@pytest.mark.parametrize(
    ("gen", "message"),
    [
        (
            lambda: GaussianMixture(2, 2),
            "expected a distribution with denoising_loss at site 'x', got NormalMixture",
        ),
        (lambda: Standardized(GaussianMixture(2, 2)), "learned by denoising .* got NormalMixture"),
        (
            lambda: Quantized(Standardized(GaussianMixture(2, 2))),
            "learned by denoising .* got NormalMixture",
        ),
        (
            lambda: Quantized(
                Diffusion(TimeMLP(2, [4]), (2,)), BinNoise(TimeMLP(2, [4], outputs=4))
            ),
            "learned noise",
        ),
    ],
)
def test_distributions_without_a_simple_loss_are_refused(gen, message):
    gen = gen()
    with pytest.raises(TypeError, match=message):
        Denoising()(gen.model, gen.guide)(torch.zeros(3, 2))


def test_distributions_with_one_way_of_sampling_say_so():
    for gen in (Standardized(GaussianMixture(2, 2)), Quantized(GaussianMixture(2, 2))):
        with pytest.raises(TypeError, match=r"several ways .* got NormalMixture"):
            gen().using(DDIM(3))


def test_refusals():
    gen = Diffusion(TimeMLP(2, [4]), (2,))
    for method in (gen().log_prob, gen().denoising_loss, gen().encode):
        with pytest.raises(ValueError, match=r"NaN \(missing\).*impute"):
            method(torch.tensor([[0.0, torch.nan]]))
    with pytest.raises(ValueError, match=r"expected x of shape \(\*batch, 2\)"):
        gen().log_prob(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="give num_times"):
        Diffusion(TimeMLP(2, [4]), (2,), variance=ForwardVariance())
    with pytest.raises(ValueError, match="context_dropout"):
        Diffusion(TimeMLP(2, [4]), (2,), context_dropout=1.0)


@pytest.mark.slow
def test_edm_trains_at_log_normal_noise():
    gen, *_ = trained(Denoising(), steps=250, prediction=EDM(1.0), times=LogNormalTimes())
    draws = gen().using(DPMSolver(20)).sample((4000,))
    assert (draws.mean(0) - MEAN.float()).abs().max() < 0.15
    assert (draws.T.cov() - COVARIANCE.float()).abs().max() < 0.2


def test_the_default_sampler_takes_the_steps_of_the_chain():
    make = partial(Diffusion, TimeMLP(2, [4]), (2,))
    assert make(num_times=7).sampler == Ancestral(7) and make().sampler == Ancestral(256)


def test_level_predictions_are_bayes_rule_for_each_variable():
    torch.manual_seed(0)
    prediction, levels = LevelPrediction(4), LevelReconstruction(4)
    values = levels.embed(torch.arange(4.0))
    for shape in ((3,), (2, 3, 3)):
        z, logits = torch.randn(5, *shape), torch.randn(5, 4 * shape[0], *shape[1:])
        alpha, sigma = torch.rand(2, 5, *[1] * len(shape))
        got = prediction.original(logits, z, alpha, sigma)
        per_level = logits.unflatten(1, (4, shape[0]))
        masses = [
            per_level[:, k].exp() * (-0.5 * ((z - alpha * values[k]) / sigma).square()).exp()
            for k in range(4)
        ]
        guess = sum(mass * value for mass, value in zip(masses, values, strict=True)) / sum(masses)
        torch.testing.assert_close(got, guess)
    with pytest.raises(NotImplementedError):
        prediction.output(z, z, alpha, sigma)
