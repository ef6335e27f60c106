"""Models that describe themselves: what is saved is built again, anywhere, or refused in a sentence."""

import copy
import json
import pickle
import subprocess
import sys
import warnings
from collections import OrderedDict
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import AutoRegressiveNN, DenseNN
from torch import nn
from zoo import ZOO, Member, sampled

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
    one = sampled(gen, 2, *([] if context is None else [context]), seed=1)
    two = sampled(again, 2, *([] if context is None else [context]), seed=1)
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


@pytest.mark.slow
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


def with_other(gen, name, part):
    """A model one part of which is replaced after it was built."""
    *path, last = name.split(".")
    setattr(gen.get_submodule(".".join(path)), last, part)
    return gen


def tied():
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    layers[1].weight = layers[0].weight
    return layers


CHANGED_AFTERWARDS = {
    "an activation": (
        lambda: with_other(MLP(2, [4], 1), "hidden.0.1", nn.Tanh()),
        lambda: MLP(2, [4], 1),
        "hidden.0.1: expected a Tanh, got a SiLU",
    ),
    "weights that were tied": (
        tied,
        lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
        "1.weight: expected the same as 0.weight, got one of its own",
    ),
}


@pytest.mark.parametrize("kind", CHANGED_AFTERWARDS)
def test_what_was_replaced_afterwards_is_refused(kind, tmp_path):
    changed, plain, sentence = CHANGED_AFTERWARDS[kind]
    pg.save(changed(), tmp_path / "m")
    with pytest.raises(CheckpointError, match=rf"{sentence}.*pg.load\(path, into=model\)"):
        pg.load(tmp_path / "m")
    with pytest.raises(CheckpointError, match=sentence):
        pg.load(tmp_path / "m", into=plain())
    pg.load(tmp_path / "m", into=changed())


def test_one_layer_twice_is_not_two(tmp_path):
    pg.save(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), tmp_path / "m")
    layer = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"1.weight: expected one of its own"):
        pg.load(tmp_path / "m", into=nn.Sequential(layer, layer))


def test_what_a_caller_does_with_a_list_afterwards_does_not_count(tmp_path):
    columns = [Bernoulli(), Poisson()]
    head = Mixed(Constant(2), columns)
    columns.reverse()
    pg.save(head, tmp_path / "m")
    assert repr(pg.load(tmp_path / "m")) == repr(head)


def test_models_are_copied_and_pickled_whatever_they_were_given(tmp_path):
    gen = MLP(2, (size for size in [4]), 1, activation=lambda: nn.Tanh())
    pickle.loads(pickle.dumps(copy.deepcopy(gen)))
    with pytest.warns(UserWarning, match="a generator, which is consumed; give a list"):
        pg.save(gen, tmp_path / "m")


class Given(Recorded, nn.Module):
    """Keeps what it is given."""

    def __init__(self, value):
        super().__init__()
        self.value = value


LAYERS = {
    "recurrent": (lambda: nn.LSTM(2, 3, bias=False), 2),
    "gated": (lambda: nn.GRU(2, 3, batch_first=True), 2),
    "of another nonlinearity": (lambda: nn.RNN(2, 3, nonlinearity="relu"), 2),
    "named": (lambda: nn.Sequential(OrderedDict(a=nn.Linear(2, 2), b=nn.Tanh())), 2),
    "Pyro's, with another nonlinearity": (lambda: DenseNN(2, [3], [2], nn.Tanh()), 2),
    "Pyro's, with skips": (lambda: AutoRegressiveNN(2, [4], skip_connections=True), 2),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_of_others_come_back(kind, tmp_path):
    make, inputs = LAYERS[kind]
    layer = make().eval()
    pg.save(layer, tmp_path / "m")
    x = torch.randn(4, 5, inputs)
    torch.testing.assert_close(pg.load(tmp_path / "m")(x), layer(x), rtol=0, atol=0)


def test_a_parameter_that_is_given_twice_is_one(tmp_path):
    weight = nn.Parameter(torch.randn(2))
    pg.save(Given(nn.ModuleList([Given(weight), Given(weight)])), tmp_path / "m")
    again = pg.load(tmp_path / "m", allow=[Given])
    assert again.value[0].value is again.value[1].value
    assert torch.equal(again.value[0].value, weight)


def test_arrays_of_any_order_come_back(tmp_path):
    pg.save(Given(np.arange(3.0)[::-1]), tmp_path / "m")
    assert pg.load(tmp_path / "m", allow=[Given]).value.tolist() == [2.0, 1.0, 0.0]


def test_a_class_that_a_package_shows_is_allowed_by_itself(tmp_path):
    pg.save(Given(torch.einsum), tmp_path / "m")
    with pytest.raises(CheckpointError, match=r"einsum .* pg.load\(path, allow="):
        pg.load(tmp_path / "m", allow=[Given])
    assert pg.load(tmp_path / "m", allow=[Given, torch.einsum]).value is torch.einsum


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
    "hooks of torch": (
        lambda: nn.utils.spectral_norm(nn.Linear(2, 2)),
        "a Linear has hooks",
    ),
    "a layer that does not keep its arguments": (
        lambda: nn.Transformer(4, 2, 1, 1, 8, activation="gelu"),
        "a Transformer does not keep its argument num_encoder_layers",
    ),
    "a tensor that is not dense": (
        lambda: Given(torch.eye(2).to_sparse()),
        "a tensor that is not dense",
    ),
    "an array of text": (lambda: Given(np.array(["a"])), "an array of <U1 is no tensor"),
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
        pg.load(tmp_path / "m", allow=[Given])
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
    "a module that ours import": {
        "class": "probgen.train.saved.os.popen",
        "arguments": {"cmd": "true"},
    },
    "a function of ours that writes": {"class": "probgen.save", "arguments": {}},
    "the reader of descriptions": {
        "class": "probgen.core.description.building._Builder",
        "arguments": {},
    },
    "a layer that writes itself": {"class": "torch.jit.ScriptModule", "arguments": {}},
}
# called by a layer that is told to make its activation
HOSTILE_VALUES = {
    "a module that torch imports": ({"name": "torch.os.system"}, ["true"]),
    "what Python has built in": ({"name": "torch.builtins.exec"}, ["pass"]),
    "a function of torch that makes files": ({"name": "torch.from_file"}, ["x"]),
    "a setting of torch": ({"name": "torch.set_num_threads"}, [1]),
    "a model of another file": ({"name": "probgen.load"}, ["x"]),
    "an import by ours": ({"name": "probgen.core.description.names.imported"}, ["os.system"]),
    "what Python keeps beside a function": (
        {"method": "__globals__", "of": {"name": "torch.nn.functional.relu"}},
        [],
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_calls_nothing_but_models(kind, tmp_path):
    calls = {"root": {"node": 0}, "nodes": [HOSTILE[kind]]}
    write(tmp_path / "m", {}, {"description": calls})
    with pytest.raises(CheckpointError, match=r"code beyond|is nothing that a model is built of"):
        pg.load(tmp_path / "m")


@pytest.mark.parametrize("kind", HOSTILE_VALUES)
def test_a_file_hands_over_nothing_but_parts(kind, tmp_path):
    function, args = HOSTILE_VALUES[kind]
    activation = {"partial": function, "args": args, "keywords": {}}
    calls = describe(MLP(1, [1], 1)).calls
    calls["nodes"][0]["arguments"]["activation"] = activation
    write(tmp_path / "m", {}, {"description": calls})
    with pytest.raises(CheckpointError, match=r"code beyond|nothing that a model|is no method"):
        pg.load(tmp_path / "m")


DAMAGED = {
    "nothing": {},
    "no object": 3,
    "no root": {"nodes": []},
    "a node that is not there": {"root": {"node": 9}, "nodes": []},
    "a node of itself": {
        "root": {"node": 0},
        "nodes": [{"class": "torch.nn.Tanh", "arguments": {"x": {"node": 0}}}],
    },
    "a node without a class": {"root": {"node": 0}, "nodes": [{}]},
    "a tensor that is not there": {"root": {"tensor": "argument/9", "shape": []}, "nodes": []},
    "no model": {"root": {"list": []}, "nodes": []},
    "a device that is none": {"root": {"device": "abacus"}, "nodes": []},
    "a name that is none": {"root": {"name": 3}, "nodes": []},
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_descriptions_are_said(kind, tmp_path):
    write(tmp_path / "m", {}, {"description": DAMAGED[kind]})
    for into in (None, MLP(1, [1], 1)):
        with pytest.raises(CheckpointError) as error:
            pg.load(tmp_path / "m", into=into)
        assert "\n" not in str(error.value)


def test_a_package_is_allowed_without_what_it_imports(tmp_path):
    calls = {
        "root": {"node": 0},
        "nodes": [{"class": f"{__name__}.subprocess.Popen", "arguments": {"args": "true"}}],
    }
    write(tmp_path / "m", {}, {"description": calls})
    with pytest.raises(CheckpointError, match="is nothing that a model is built of"):
        pg.load(tmp_path / "m", allow=[__name__])


def test_buffers_that_no_file_holds_follow_the_precision(tmp_path):
    gen = next(member for member in ZOO if member.name == "PixelCNN").gen().double()
    pg.save(gen, tmp_path / "m")
    kinds = {name: value.dtype for name, value in gen.named_buffers()}
    again = pg.load(tmp_path / "m")
    assert {name: value.dtype for name, value in again.named_buffers()} == kinds


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
