"""Diffusions with any noise as families: programs, training, completion."""

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

import probgen as pg
from probgen.core.weights import log_weights
from probgen.distributions.noising.additive import GaussianNoise
from probgen.distributions.noising.gamma import GammaNoise
from probgen.distributions.noising.labels import AbsorbingNoise, UniformNoise
from probgen.distributions.noising.mixture import MixtureNoise
from probgen.distributions.noising.schedules import cosine_steps, even_steps, linear_steps
from probgen.models.noising_diffusion import CategoricalDiffusion, NoisingDiffusion
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
    return NoisingDiffusion(started(TimeMLP(2, [16], embedding=8, **options)), (2,), process)


def labels(process, **options):
    states = process.states
    return CategoricalDiffusion(
        started(TimeMLP(2 * states, [16], outputs=6, embedding=8, **options)), (2,), process
    )


GENS = {
    "Gaussian": lambda **o: numbers(GaussianNoise(FADING), **o),
    "Gamma": lambda **o: numbers(GammaNoise(FADING, theta=0.2), **o),
    "mixture": lambda **o: numbers(
        MixtureNoise(FADING, weights=[1, 2], locs=[-2, 1], scales=[1, 0.7]), **o
    ),
    "absorbing": lambda **o: labels(AbsorbingNoise(3, even_steps(6)), **o),
    "uniform": lambda **o: labels(UniformNoise(3, cosine_steps(6)), **o),
}
by_name = pytest.mark.parametrize("name", GENS)


def data(name, rows):
    return (
        torch.randn(rows, 2)
        if name in ("Gaussian", "Gamma", "mixture")
        else torch.randint(3, (rows, 2)).float()
    )


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
    chain = gen.chain()
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


@by_name
def test_importance_weights_of_chains_lie_above_the_bound(name):
    torch.manual_seed(0)
    gen, x = GENS[name](), data(name, 20)
    chain = log_likelihood(gen.chain(), x, particles=200)
    bound = log_likelihood(gen, x, particles=200)
    assert (chain.kind, bound.kind) == ("unbiased", "bound")
    assert (
        chain.measure
        == bound.measure
        == ("mass" if name in ("absorbing", "uniform") else "density")
    )
    assert chain.value.mean() > bound.value.mean() - 0.05
    pyro.clear_param_store()


@pytest.mark.parametrize(
    ("name", "objective"), [("Gamma", Denoising), ("Gamma", ELBO), ("uniform", ELBO)]
)
def test_compiled_training_is_training(name, objective, monkeypatch):
    from test_compile import agree

    from probgen.compile.tracing import Compiled

    monkeypatch.setattr(Compiled, "build", lambda self, *examples, **how: self)
    torch.manual_seed(0)
    agree(GENS[name], data(name, 12), objective=objective, rtol=1e-3)


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


def test_fitted_diffusion_learns_a_dependence():
    """x_1 = x_0 on three levels: log 3 = 1.10 nats at best, 2.20 for independent labels."""
    torch.manual_seed(0)
    x = torch.randint(3, (200, 1)).float().expand(200, 2).contiguous()
    gen = CategoricalDiffusion(
        TimeMLP(8, [32], outputs=6, embedding=16), (2,), AbsorbingNoise(3, even_steps(20))
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
    process = AbsorbingNoise(5, even_steps(4))
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
    process = AbsorbingNoise(3, even_steps(6))
    with pytest.raises(ValueError, match="set its outputs to 6"):
        CategoricalDiffusion(TimeMLP(8, [8], embedding=8), (2,), process)().sample()
    with pytest.raises(ValueError, match="shape >= 1"):
        CategoricalDiffusion(TimeMLP(8, [8], embedding=8), (), process)
    with pytest.raises(ValueError, match="1 to 10 calls"):
        NoisingDiffusion(
            TimeMLP(2, [8], embedding=8), (2,), GaussianNoise(linear_steps(10)), calls=11
        )
