"""Models that describe themselves: what is saved is built again, anywhere, or refused in a sentence."""

import json
import subprocess
import sys
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn
from zoo import ZOO, Member

import probgen as pg
from probgen.core import Recorded
from probgen.core.description import Description, NotDescribed, build, describe, differences
from probgen.heads import Bernoulli, Gaussian, Mixed, Poisson
from probgen.nn import MLP, Constant
from probgen.train.checkpoint import CheckpointError, read, write

NOT_OURS = {"story", "enumerated story", "Program", "Program with an AutoGuide"}
UNTOLD = {"EnergyBasedModel given a context"}  # a network that does not tell its arguments
BUILT_AGAIN = [member for member in ZOO if member.name not in NOT_OURS | UNTOLD]


def modules(gen: nn.Module) -> dict[str, type]:
    return {name: type(module) for name, module in gen.named_modules()}


@pytest.mark.parametrize("member", BUILT_AGAIN, ids=lambda member: member.name)
def test_families_are_built_again(member: Member, tmp_path):
    torch.manual_seed(0)
    gen = member.gen()
    batch = member.data()
    with torch.no_grad():
        for parameter in gen.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    pg.save(gen, tmp_path / "model.safetensors")
    before = torch.get_rng_state()
    again = pg.load(tmp_path / "model.safetensors")
    assert torch.equal(before, torch.get_rng_state())
    assert modules(again) == modules(gen) and not again.training
    assert repr(again) == repr(gen)
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in gen.state_dict().items())
    context = batch[1] if len(batch) > 1 else None
    gen.eval()
    one = pg.sample(gen, 2, *([] if context is None else [context]), seed=1)
    two = pg.sample(again, 2, *([] if context is None else [context]), seed=1)
    assert torch.equal(torch.as_tensor(one).nan_to_num(-1), torch.as_tensor(two).nan_to_num(-1))
    # what is built again is described alike, and takes the file as well
    pg.save(again, tmp_path / "again.safetensors")
    assert (
        differences(read(tmp_path / "again.safetensors")[1]["description"], describe(gen).calls)
        == []
    )
    pg.load(tmp_path / "again.safetensors", into=gen)


def trained_mixture(path):
    gen = pg.GaussianMixture(2, 3)
    pg.em(gen, torch.randn(50, 3), max_iter=3)
    pg.save(gen, path)
    return gen


def test_a_fresh_process_builds_it(tmp_path):
    path = tmp_path / "vae.safetensors"
    decoder = Gaussian(MLP(2, [4], 6, activation=nn.SiLU))
    gen = pg.VAE(pg.GaussianMixture(2, 2), decoder, Gaussian(MLP(3, [4], 4)))
    pg.save(gen, path)
    code = f"import probgen as pg; print(pg.sample(pg.load({str(path)!r}), 1, seed=3).tolist())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == pg.sample(gen.eval(), 1, seed=3).tolist()


def test_a_module_in_two_places_is_one_module(tmp_path):
    encoder = Gaussian(MLP(3, [4], 4))
    prior = pg.latents.VampPrior(encoder, torch.randn(5, 3))
    pg.save(pg.VAE(prior, Gaussian(MLP(2, [4], 6)), encoder), tmp_path / "m")
    again = pg.load(tmp_path / "m")
    assert again.prior.encoder is again.encoder


def test_values_of_a_state_are_stored_once(tmp_path):
    rows = torch.randn(1000, 2)
    pg.save(pg.Empirical(rows), tmp_path / "m")
    assert (tmp_path / "m").stat().st_size < 1.5 * rows.numel() * 4
    assert torch.equal(pg.load(tmp_path / "m").rows, rows)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_precision_is_kept(tmp_path, dtype):
    pg.save(pg.GaussianMixture(2, 3).to(dtype), tmp_path / "m")
    assert {value.dtype for value in pg.load(tmp_path / "m").parameters()} == {dtype}


def test_a_checkpoint_is_a_model(tmp_path):
    x = torch.randn(40, 2)
    gen = pg.NSF(2, 1, hidden=(4,))
    pg.fit(
        gen, x, steps=5, ema=0.5, checkpoint=tmp_path / "c", compile=False, progress=False, seed=0
    )
    again = pg.load(tmp_path / "c")
    assert pg.log_likelihood(again, x).mean == pg.log_likelihood(gen.eval(), x).mean


# -- what was changed after it was built


def vae(decoder):
    return pg.VAE(pg.standard_normal(2), decoder, Gaussian(MLP(3, [4], 4)))


def other_decoder():
    gen = vae(Gaussian(MLP(2, [4], 6, activation=nn.Tanh)))
    gen.decoder = Gaussian(MLP(2, [4], 6, activation=nn.ReLU))
    return gen


def other_network():
    gen = vae(Gaussian(MLP(2, [4], 6, activation=nn.Tanh)))
    gen.decoder.net = nn.Sequential(nn.Linear(2, 6), nn.ReLU())
    return gen


def other_prior():
    gen = vae(Gaussian(MLP(2, [4], 6)))
    gen.prior = pg.GaussianMixture(2, 2)
    return gen


def other_component():
    gen = pg.Mixture([pg.GaussianMixture(1, 2), pg.GaussianMixture(1, 2)])
    gen.components[1] = pg.GaussianMixture(3, 2)
    return gen


def other_layer():
    net = nn.Sequential(nn.Linear(2, 6), nn.Tanh())
    net[1] = nn.ReLU()
    return vae(Gaussian(net))


@pytest.mark.parametrize(
    "make", [other_decoder, other_network, other_prior, other_component, other_layer]
)
def test_a_model_is_saved_as_it_is_now(make, tmp_path):
    gen = make()
    pg.save(gen, tmp_path / "m")
    again = pg.load(tmp_path / "m")
    assert modules(again) == modules(gen)
    assert torch.equal(pg.sample(again, 5, seed=0), pg.sample(gen.eval(), 5, seed=0))


# -- what differs in a way that no shape shows


def network(names):
    parents = {names[0]: [], names[1]: [names[0]]}
    return pg.BayesianNetwork(parents, dict.fromkeys(names, 2))


SAME_SHAPES = {
    "classes of a head": (
        lambda: pg.VAE(pg.standard_normal(2), Bernoulli(MLP(2, [4], 3)), Gaussian(MLP(3, [4], 4))),
        lambda: pg.VAE(pg.standard_normal(2), Poisson(MLP(2, [4], 3)), Gaussian(MLP(3, [4], 4))),
        "decoder: expected a probgen.heads.Bernoulli, got a probgen.heads.Poisson",
    ),
    "order of columns": (
        lambda: Mixed(Constant(2), [Bernoulli(), Poisson()]),
        lambda: Mixed(Constant(2), [Poisson(), Bernoulli()]),
        r"columns\[0\]: expected a probgen.heads.Bernoulli, got a probgen.heads.Poisson",
    ),
    "activations": (
        lambda: MLP(2, [4], 1, activation=nn.SiLU),
        lambda: MLP(2, [4], 1, activation=nn.Tanh),
        r"activation: expected 'torch.nn.SiLU', got 'torch.nn.Tanh'",
    ),
    "layers of torch": (
        lambda: nn.Sequential(nn.Linear(2, 2), nn.Tanh()),
        lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU()),
        "expected a torch.nn.Tanh, got a torch.nn.ReLU",
    ),
    "bounds of a spline": (
        lambda: pg.NSF(2, 1, bound=3.0),
        lambda: pg.NSF(2, 1, bound=4.0),
        "bound: expected 3.0, got 4.0",
    ),
}


@pytest.mark.parametrize("kind", SAME_SHAPES)
def test_a_model_built_otherwise_is_refused(kind, tmp_path):
    saved, other, sentence = SAME_SHAPES[kind]
    pg.save(saved(), tmp_path / "m")
    module = other()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(CheckpointError, match=sentence):
        pg.load(tmp_path / "m", into=module)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    pg.load(tmp_path / "m", into=saved())
    pg.load(tmp_path / "m")  # as the error advises


def test_a_default_that_is_given_is_the_same_model(tmp_path):
    pg.save(MLP(2, [4], 1), tmp_path / "m")
    pg.load(tmp_path / "m", into=MLP(2, (4,), outputs=1, dropout=0.0))


# -- code of one's own


class Told(Recorded, nn.Module):
    def __init__(self, size: int, *, scale: float = 1.0):
        super().__init__()
        self.layer = nn.Linear(size, size)
        self.doubled = 2 * scale

    def forward(self, x):
        return self.layer(x) * self.doubled


class Untold(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.layer = nn.Linear(size, size)

    def forward(self, x):
        return self.layer(x)


def program(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def test_own_classes_are_refused_unless_allowed(tmp_path):
    pg.save(Gaussian(Told(2, scale=3.0)), tmp_path / "m")
    with pytest.raises(CheckpointError, match=r"Told is code beyond .* pg.load\(path, allow="):
        pg.load(tmp_path / "m")
    for allow in ([Told], [Told.__module__]):
        again = pg.load(tmp_path / "m", allow=allow)
        assert again.net.doubled == 6.0


def test_own_programs_are_built_with_their_functions(tmp_path):
    gen = pg.Program(program, AutoNormal(program, init_scale=0.3))
    y = torch.randn(20)
    pg.fit(gen, y, steps=3, progress=False)
    pg.save(gen, tmp_path / "m")
    again = pg.load(tmp_path / "m", allow=[program])
    assert pg.log_likelihood(again, y, seed=0).mean == pg.log_likelihood(gen, y, seed=0).mean


def local():
    return 1.0


UNTOLD_PARTS = {
    "a class that does not keep its arguments": (
        lambda: Gaussian(Untold(2)),
        "a Untold does not tell its arguments",
    ),
    "a lambda": (
        lambda: pg.GAN(MLP(2, [4], 2, activation=lambda: nn.Tanh()), pg.standard_normal(2)),
        "has no name",
    ),
}


@pytest.mark.parametrize("kind", UNTOLD_PARTS)
def test_what_cannot_be_described_is_said_and_saved(kind, tmp_path):
    make, why = UNTOLD_PARTS[kind]
    with pytest.warns(UserWarning, match=rf"{why}.*pg.load\(path, into=model\)"):
        pg.save(make(), tmp_path / "m")
    with pytest.raises(CheckpointError, match=rf"{why}.*pg.load\(path, into=model\)"):
        pg.load(tmp_path / "m")
    pg.load(tmp_path / "m", into=make())


HOSTILE = {
    "a system call": {"class": "os.system", "arguments": {"command": "true"}},
    "a function of torch that reads files": {"class": "torch.load", "arguments": {"f": "x"}},
    "a class of torch that is no part of models": {
        "class": "torch.utils.data.DataLoader",
        "arguments": {},
    },
    "an import": {"class": "this.d", "arguments": {}},
    "a function by a long way": {"class": "torch.nn.functional.torch.hub.load", "arguments": {}},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_calls_nothing_but_models(kind, tmp_path):
    calls = {"root": {"node": 0}, "nodes": [HOSTILE[kind]]}
    write(tmp_path / "m", {}, {"description": calls})
    with pytest.raises(CheckpointError, match=r"code beyond|is nothing that a model is built of"):
        pg.load(tmp_path / "m")


def test_weights_alone_need_a_model(tmp_path):
    gen = pg.GaussianMixture(2, 3)
    write(tmp_path / "m", gen.state_dict(), {"class": "GaussianMixture"})
    with pytest.raises(CheckpointError, match=r"weights alone .* pg.load\(path, into=model\)"):
        pg.load(tmp_path / "m")
    pg.load(tmp_path / "m", into=pg.GaussianMixture(2, 3))


VALUES = {
    "numbers": (1, 2.5, True, None, "text", float("inf")),
    "containers": ([1, (2, "a")], {"a": [1], 3: (4,)}, {1, 2}, frozenset({3})),
    "torch's": (torch.float64, torch.Size([2, 3]), torch.device("cpu"), torch.tanh),
    "functions": (partial(nn.LeakyReLU, 0.2), nn.functional.relu),
}


@pytest.mark.parametrize("kind", VALUES)
def test_values_come_back(kind):
    calls, tensors = describe(VALUES[kind])
    again = build(Description(json.loads(json.dumps(calls)), tensors))
    assert repr(again) == repr(VALUES[kind])


def asked(distribution):
    """With its other parametrization made."""
    distribution.entropy(), distribution.sample()
    return distribution


DISTRIBUTIONS = {
    "Normal": lambda: dist.Normal(torch.zeros(2), 1.0),
    "Independent": lambda: dist.Normal(torch.zeros(2), 1.0).to_event(1),
    "Categorical": lambda: dist.Categorical(logits=torch.randn(3)),
    "MultivariateNormal": lambda: dist.MultivariateNormal(torch.zeros(2), 2 * torch.eye(2)),
    "MixtureSameFamily": lambda: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), dist.Normal(torch.randn(2), 1.0)
    ),
    "TransformedDistribution": lambda: dist.TransformedDistribution(
        dist.Normal(0.0, 1.0), [dist.transforms.ExpTransform()]
    ),
    "Categorical that was asked": lambda: asked(dist.Categorical(logits=torch.randn(3))),
    "LogNormal": lambda: dist.LogNormal(1.0, 2.0),
    "Gamma": lambda: dist.Gamma(2.0, 3.0),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distributions_come_back(name):
    given = DISTRIBUTIONS[name]()
    calls, tensors = describe(given)
    again = build(Description(json.loads(json.dumps(calls)), tensors))
    x = given.sample()
    assert type(again) is type(given)
    torch.testing.assert_close(again.log_prob(x), given.log_prob(x))


def test_what_refuses_its_arguments_is_said():
    calls, tensors = describe(nn.Linear(2, 3))
    calls["nodes"][0]["arguments"]["sides"] = 3
    with pytest.raises(NotDescribed, match=r"torch\.nn\.Linear refuses"):
        build(Description(calls, tensors))


def test_no_warning_where_all_is_told(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pg.save(pg.NSF(2, 1), tmp_path / "m")
