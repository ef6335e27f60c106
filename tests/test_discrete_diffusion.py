"""Diffusions in discrete time as families: programs, training, guidance, completion."""

import math

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

import probgen as pg
from probgen.core.weights import log_weights
from probgen.distributions.diffusion.discrete_diffused import DiscreteDiffused
from probgen.distributions.diffusion.gamma import GammaNoise
from probgen.distributions.diffusion.gaussian import GaussianNoise
from probgen.distributions.diffusion.gaussian_diffused import GaussianDiffused
from probgen.distributions.diffusion.labels import AbsorbingNoise, UniformNoise
from probgen.distributions.diffusion.mixture import MixtureNoise
from probgen.distributions.diffusion.predictions import Epsilon
from probgen.distributions.diffusion.reconstruction import GaussianReconstruction
from probgen.distributions.diffusion.samplers import DDIM
from probgen.distributions.diffusion.schedules import (
    CosineSchedule,
    EvenSchedule,
    TabulatedSchedule,
)
from probgen.distributions.diffusion.variances import PosteriorVariance
from probgen.models.diffusion import Diffusion
from probgen.models.diffusion_chain import DiffusionChain
from probgen.models.discrete_diffusion import CategoricalDiffusion, NonGaussianDiffusion
from probgen.nn.time import TimeMLP
from probgen.nn.unet import UNet
from probgen.objectives.denoising import Denoising
from probgen.objectives.elbo import ELBO
from probgen.scoring import log_likelihood
from probgen.train.fit import fit

FADING = torch.tensor([0.95, 0.85, 0.7, 0.5, 0.3, 0.1], dtype=torch.float64)


def started(net):
    """Weights of the last layer that are not zero."""
    with torch.no_grad():
        net.last.weight.normal_(0, 0.1)
    return net


def numbers(process, **options):
    return NonGaussianDiffusion(started(TimeMLP(2, [16], embedding=8, **options)), (2,), process)


def gaussian(**options):
    """The chain of DDPM, whose last step takes the network's estimate."""
    return Diffusion(
        started(TimeMLP(2, [16], embedding=8, **options)),
        (2,),
        schedule=FADING,
        num_times=len(FADING) - 1,
        prediction=Epsilon(),
        reconstruction=GaussianReconstruction(denoised=True),
    )


def labels(process, **options):
    states = process.states
    return CategoricalDiffusion(
        started(TimeMLP(2 * states, [16], outputs=6, embedding=8, **options)), (2,), process
    )


GENS = {
    "Gaussian": gaussian,
    "Gamma": lambda **o: numbers(GammaNoise(FADING, theta=0.2), **o),
    "mixture": lambda **o: numbers(
        MixtureNoise(FADING, weights=[1, 2], locs=[-2, 1], scales=[1, 0.7]), **o
    ),
    "absorbing": lambda **o: labels(AbsorbingNoise(3, EvenSchedule(), 6), **o),
    "uniform": lambda **o: labels(UniformNoise(3, CosineSchedule(), 6), **o),
}
by_name = pytest.mark.parametrize("name", GENS)


def data(name, rows):
    return (
        torch.randn(rows, 2)
        if name in ("Gaussian", "Gamma", "mixture")
        else torch.randint(3, (rows, 2)).float()
    )


@pytest.mark.table(quick=1)
@by_name
@pytest.mark.parametrize("context", [0, 3])
def test_chain_of_sites_has_the_same_bound(name, context):
    """Pyro's own estimate of the evidence lower bound, site by site."""
    torch.manual_seed(0)
    gen, rows = GENS[name](context=context), 8000
    batch = (
        data(name, 1).expand(rows, 2),
        *([torch.randn(1, 3).expand(rows, 3)] if context else []),
    )
    chain = DiffusionChain(gen)
    assert {id(p) for p in chain.parameters()} == {id(p) for p in gen.parameters()}
    with torch.no_grad():
        quick = gen(*batch[1:]).log_prob(batch[0])
        by_site = -Trace_ELBO().loss(chain.model, chain.guide, *batch) / rows
        ours = -ELBO()(chain.model, chain.guide)(*batch) / rows
        spread = log_weights(chain, *batch)[0].std()
    error = 4 * (quick.std() + spread) / rows**0.5
    assert abs(by_site - quick.mean()) < error
    assert abs(ours - quick.mean()) < error
    assert error < 0.2 * abs(by_site)


@pytest.mark.table(quick=1)
@by_name
def test_importance_weights_of_chains_lie_above_the_bound(name):
    torch.manual_seed(0)
    gen, x = GENS[name](), data(name, 20)
    chain = log_likelihood(DiffusionChain(gen), x, particles=200)
    bound = log_likelihood(gen, x, particles=200)
    assert (chain.kind, bound.kind) == ("unbiased", "bound")
    assert (
        chain.measure
        == bound.measure
        == ("mass" if name in ("absorbing", "uniform") else "density")
    )
    assert chain.value.mean() > bound.value.mean() - 0.05
    pyro.clear_param_store()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "objective"), [("Gamma", Denoising), ("Gamma", ELBO), ("uniform", ELBO)]
)
def test_compiled_training_is_training(name, objective, monkeypatch):
    from test_compile import agree

    from probgen.compile.tracing import Compiled

    monkeypatch.setattr(Compiled, "build", lambda self, *examples, **how: self)
    torch.manual_seed(0)
    agree(GENS[name], data(name, 12), objective=objective, rtol=1e-3)


@pytest.mark.table(quick=2)
@by_name
def test_resumed_training_is_training(name, tmp_path):
    torch.manual_seed(0)
    x = data(name, 16)

    def run(gen, steps, **settings):
        return fit(
            gen,
            x,
            Denoising(),
            steps=steps,
            batch_size=4,
            seed=0,
            compile=False,
            progress=False,
            verdict=False,
            **settings,
        )

    torch.manual_seed(1)
    straight = GENS[name]()
    run(straight, 8)
    torch.manual_seed(1)
    halves = GENS[name]()
    run(halves, 4, checkpoint=tmp_path / "run")
    torch.manual_seed(2)
    again = GENS[name]()
    run(again, 8, checkpoint=tmp_path / "run", resume=True)
    for one, other in zip(straight.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


@by_name
def test_missing_entries_are_refused_by_scores_and_chains(name):
    gen = GENS[name]()
    x = torch.tensor([[0.0, torch.nan]])
    for use in (gen().log_prob, gen().denoising_loss, DiffusionChain(gen).guide):
        with pytest.raises(ValueError, match="got NaN"):
            use(x)


def exact_noise(spread):
    """The expected noise of normal data of some spread, by the levels of signal and noise."""
    return lambda z, alpha, sigma: sigma * z / (alpha**2 * spread**2 + sigma**2)


def test_the_bound_of_ddpm_is_the_analytic_one():
    """Normal data and their exact denoiser: every term has a closed form."""
    torch.manual_seed(0)
    spread, steps = 1.7, len(FADING)
    schedule = TabulatedSchedule(FADING).double()
    process = GaussianNoise(schedule, Epsilon(), PosteriorVariance(), 1, num_times=steps - 1)
    noise = exact_noise(spread)
    net = lambda z, t: noise(z, *process.levels(t))  # noqa: E731
    start = pg.standard_normal(1).double()()
    ddpm = GaussianDiffused(net, process, start, reconstruction=GaussianReconstruction(True))
    signal = torch.cat((torch.ones(1).double(), FADING))
    error = spread**2 * (1 - signal) / (signal * spread**2 + 1 - signal)  # of E[x | z_t]
    ratio = signal / (1 - signal)
    truth = sum(0.5 * (ratio[t - 1] - ratio[t]) * error[t] for t in range(2, steps + 1))
    variance = (1 - signal[1]) / signal[1]
    truth = truth + 0.5 * (torch.log(2 * math.pi * variance) + error[1] / variance)
    truth = truth + 0.5 * (signal[-1] * spread**2 + 1 - signal[-1] - 1 - torch.log(1 - signal[-1]))
    draws = ddpm.log_prob(spread * torch.randn(200000, 1).double())
    assert -draws.mean().item() == pytest.approx(
        truth.item(), abs=4 * draws.std().item() / 200000**0.5
    )


def test_ddpm_is_the_chain_whose_noise_is_one_normal_component():
    torch.manual_seed(0)
    steps = len(FADING)
    one = MixtureNoise(FADING, weights=[1], locs=[0], scales=[1]).double()
    schedule = TabulatedSchedule(FADING).double()
    process = GaussianNoise(schedule, Epsilon(), PosteriorVariance(), 1, num_times=steps - 1)
    noise = lambda z, alpha, sigma: 0.8 * sigma * z + 0.2 * torch.sin(3 * z)  # noqa: E731
    chain = DiscreteDiffused(lambda z, t: noise(z, *one.levels(t, z)), one, (1,))
    ddpm = GaussianDiffused(
        lambda z, t: noise(z, *process.levels(t)),
        process,
        pg.standard_normal(1).double()(),
        reconstruction=GaussianReconstruction(denoised=True),
    )
    z = torch.randn(50, 1).double()
    end = ddpm.using(DDIM(steps - 1)).ended(DDIM(steps - 1)(ddpm.denoiser, z), ddpm.denoiser)
    torch.testing.assert_close(DDIM(steps)(chain.denoiser, z), end, rtol=1e-5, atol=1e-5)
    x = torch.tensor([[0.3], [-1.2]]).double().expand(20000, 2, 1)
    scores = [each.log_prob(x) for each in (chain, ddpm)]
    spread = sum(score.var(0) for score in scores).sqrt() / 20000**0.5
    assert ((scores[0].mean(0) - scores[1].mean(0)).abs() < 4 * spread).all()
    t = torch.full((50,), 3 / steps).double()
    s = torch.full((50,), 2 / steps).double()
    shifted = [(time * steps - 1) / (steps - 1) for time in (t, s)]
    one_step = [chain.denoiser.reverse(z, t, s), ddpm.denoiser.reverse(z, *shifted)]
    torch.testing.assert_close(one_step[0].mean, one_step[1].mean, rtol=1e-5, atol=1e-5)
    variances = [step.variance.expand(50, 1) for step in one_step]
    torch.testing.assert_close(*variances, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_fitted_diffusion_learns_a_dependence():
    """x_1 = x_0 on three levels: log 3 = 1.10 nats at best, 2.20 for independent labels."""
    torch.manual_seed(0)
    x = torch.randint(3, (200, 1)).float().expand(200, 2).contiguous()
    gen = CategoricalDiffusion(
        TimeMLP(8, [32], outputs=6, embedding=16), (2,), AbsorbingNoise(3, EvenSchedule(), 20)
    )
    settings = {"seed": 0, "progress": False, "verdict": False, "compile": False}
    fit(
        gen,
        x,
        steps=200,
        batch_size=100,
        optimizer=lambda p: torch.optim.Adam(p, lr=2e-2),
        **settings,
    )
    assert -log_likelihood(gen.eval(), x[:100], particles=16).mean < 1.35
    draws = gen().sample((300,))
    assert (draws[:, 0] == draws[:, 1]).float().mean() > 0.85


def test_images_of_labels_go_through_a_unet():
    torch.manual_seed(0)
    process = AbsorbingNoise(5, EvenSchedule(), 4)
    net = UNet((2 * process.states, 4, 4), width=8, multipliers=(1,), attention=0, outputs=10)
    gen = CategoricalDiffusion(net, (2, 4, 4), process)
    x = torch.randint(5, (3, 2, 4, 4)).float()
    assert gen().log_prob(x).shape == (3,)
    assert gen().sample((2, 3)).shape == (2, 3, 2, 4, 4)
    marked = []

    class Spy(nn.Module):
        def forward(self, h, t):
            marked.append(h)
            return torch.zeros(*h.shape[:-3], 10, 4, 4)

    CategoricalDiffusion(Spy(), (2, 4, 4), process)().log_prob(x)
    features = marked[0].unflatten(-3, (2, 6))
    assert torch.equal(features.sum(-3), torch.ones(3, 2, 4, 4))
    shown = features.argmax(-3)
    assert ((shown == x) | (shown == 5)).all()


def test_absorbing_diffusion_imputes():
    torch.manual_seed(0)
    gen = GENS["absorbing"]()
    x = torch.tensor([[1.0, torch.nan], [torch.nan, torch.nan], [0.0, 2.0]])
    done = pg.impute(gen, x, draws=50)
    assert done.kind == "heuristic"
    assert (done.draws[:, 0, 0] == 1).all()
    assert ((done.draws >= 0) & (done.draws <= 2)).all()
    with pytest.raises(NotImplementedError, match="AbsorbingNoise"):
        pg.impute(GENS["uniform"](), x)


def test_networks_of_another_width_are_refused():
    process = AbsorbingNoise(3, EvenSchedule(), 6)
    with pytest.raises(ValueError, match="set its outputs to 6"):
        CategoricalDiffusion(TimeMLP(8, [8], embedding=8), (2,), process)().sample()
    with pytest.raises(ValueError, match="shape >= 1"):
        CategoricalDiffusion(TimeMLP(8, [8], embedding=8), (), process)
    gen = numbers(GammaNoise(FADING), context=1)
    with pytest.raises(ValueError, match="1 to 6 steps"):
        gen().using(DDIM(7)).sample()


@pytest.mark.parametrize("name", ["Gamma", "absorbing"])
def test_guidance_moves_away_from_the_unconditional_prediction(name):
    torch.manual_seed(0)
    gen = GENS[name](context=1)
    context = torch.full((5, 1), 2.0)
    z, t = data(name, 5), torch.full((5,), 0.5)
    known, unknown = (gen(c).denoiser.predict(z, t) for c in (context, None))
    assert (known - unknown).abs().max() > 1e-4
    guided = gen(context).using(guidance=3.0).guided().predict(z, t)
    torch.testing.assert_close(guided, unknown + 3 * (known - unknown))
    assert gen(context).using(guidance=3.0).sample((4,)).shape == (4, 5, 2)
    torch.manual_seed(0)
    scores = gen(context).log_prob(z)
    torch.manual_seed(0)
    torch.testing.assert_close(gen(context).using(guidance=3.0).log_prob(z), scores)
    with pytest.raises(ValueError, match="give a context"):
        gen().using(guidance=2.0).sample()


@pytest.mark.parametrize("name", ["Gamma", "absorbing"])
def test_contexts_are_dropped_in_training_alone(name):
    torch.manual_seed(0)
    gen = GENS[name](context=3)
    gen.context_dropout = 0.25
    context = torch.randn(4000, 3)
    shown = gen.train()(context).denoiser.context.isnan()
    assert (shown.all(-1) == shown.any(-1)).all()
    assert shown.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(gen.eval()(context).denoiser.context, context)
