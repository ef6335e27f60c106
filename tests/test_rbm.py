"""Boltzmann machines against enumeration of all their states."""

import itertools
import math

import pytest
import torch

from probgen.distributions.energy.boltzmann import ChainedBoltzmann, ExactBoltzmann
from probgen.distributions.energy.visible import BernoulliUnits, CategoricalUnits, GaussianUnits
from probgen.infer.impute import impute
from probgen.models.deep_boltzmann import DeepBoltzmannMachine
from probgen.models.rbm import RBM
from probgen.nn import MLP
from probgen.scoring import log_likelihood
from probgen.train.fit import adam, fit


def states(count, values=2):
    return torch.tensor(list(itertools.product(range(values), repeat=count)), dtype=torch.float32)


def disturbed(gen, scale=0.7):
    """All parameters and offsets random."""
    with torch.no_grad():
        for tensor in [*gen.parameters(), *gen.buffers()]:
            tensor.normal_(std=scale)
    return gen


def brute(rbm, v, h):
    """The exponent of a binary RBM, written out with its offsets, but for a constant."""
    inner = torch.einsum("vi,ij,hj->vh", v - rbm.offset, rbm.weight, h - rbm.middle)
    return (
        (v @ rbm.raw)[:, None] + (h @ rbm.bias)[None] + inner - rbm.offset @ rbm.weight @ rbm.middle
    )


@pytest.mark.parametrize(("visible", "hidden"), [(5, 3), (3, 5)])
def test_probabilities_are_those_of_enumeration(visible, hidden):
    rbm = disturbed(RBM(BernoulliUnits(visible), hidden))
    v, h = states(visible), states(hidden)
    joint = brute(rbm, v, h)
    distribution = rbm()
    assert distribution.log_z().item() == pytest.approx(joint.logsumexp((0, 1)).item(), abs=1e-4)
    assert torch.allclose(
        distribution.log_prob(v), joint.logsumexp(1) - joint.logsumexp((0, 1)), atol=1e-5
    )
    assert distribution.log_prob(v).exp().sum().item() == pytest.approx(1, abs=1e-5)
    free = disturbed(RBM(BernoulliUnits(visible), hidden, limit=1))
    free.load_state_dict(rbm.state_dict())
    assert (
        torch.allclose(free().log_prob(v), joint.logsumexp(1), atol=1e-4)
        and free().density_kind == "unnormalized"
    )


@pytest.mark.parametrize(("visible", "hidden"), [(5, 3), (3, 5)])
def test_missing_entries_are_summed_out_and_drawn_exactly(visible, hidden):
    rbm = disturbed(RBM(BernoulliUnits(visible), hidden))
    v, distribution = states(visible), rbm()
    probs = distribution.log_prob(v).exp()
    x = torch.full((visible,), torch.nan)
    x[1] = 1.0
    assert distribution.log_prob(x).item() == pytest.approx(
        probs[v[:, 1] == 1].sum().log().item(), abs=1e-5
    )
    done = impute(rbm, x[None], draws=20_000)
    given = (probs * (v[:, 1] == 1)) @ v / probs[v[:, 1] == 1].sum()
    assert done.kind == "exact"
    assert torch.allclose(done.draws[:, 0].mean(0), given, atol=4 * 0.5 / math.sqrt(20_000))


def test_numbers_are_a_mixture_of_normals():
    rbm = disturbed(RBM(GaussianUnits(2), 2), 0.4)
    loc, log_scale = rbm.raw.chunk(2)
    scale, h = log_scale.exp(), states(2)
    inputs = (h - rbm.middle) @ rbm.weight.T
    means = loc + scale * inputs
    # complete the square: -(v - b)^2 / 2s^2 + v a / s  =  -(v - b - s a)^2 / 2s^2 + b a / s + a^2 /
    # 2
    weights = h @ rbm.bias - (rbm.offset * ((h - rbm.middle) @ rbm.weight.T)).sum(-1)
    weights = weights + (loc / scale * inputs + inputs.square() / 2).sum(-1)
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=weights),
        torch.distributions.Independent(torch.distributions.Normal(means, scale.expand(4, -1)), 1),
    )
    x = torch.randn(10, 2)
    assert torch.allclose(rbm().log_prob(x), mixture.log_prob(x), atol=1e-4)


def test_labels_sum_to_one_and_agree_with_their_score():
    rbm = disturbed(RBM(CategoricalUnits(3, levels=3), 4))
    v = states(3, 3)
    assert rbm().log_prob(v).exp().sum().item() == pytest.approx(1, abs=1e-5)
    x = v[5].clone()
    x[2] = torch.nan
    assert rbm().log_prob(x).exp().item() == pytest.approx(
        rbm().log_prob(v[3:6]).exp().sum().item(), abs=1e-6
    )


@pytest.mark.parametrize(
    "kind", [BernoulliUnits(4), CategoricalUnits(3, levels=3)], ids=["bits", "labels"]
)
def test_pseudo_likelihood_is_the_product_of_conditionals(kind):
    rbm = disturbed(RBM(kind, 3))
    count, values = kind.shape.numel(), 2 if kind.width == kind.shape.numel() else 3
    x, expected = states(count, values)[7], 0.0
    for place in range(count):
        others = x.repeat(values, 1)
        others[:, place] = torch.arange(float(values))
        expected += rbm().log_prob(others).log_softmax(0)[int(x[place])].item()
    assert rbm().pseudo_log_prob(x).item() == pytest.approx(expected, abs=1e-4)


def test_gibbs_chains_reach_the_distribution():
    rbm = disturbed(RBM(BernoulliUnits(3), 4, limit=1, sweeps=30))
    exact = RBM(BernoulliUnits(3), 4)
    exact.load_state_dict(rbm.state_dict())
    drawn = rbm().sample((20_000,)) @ torch.tensor([4.0, 2.0, 1.0])
    shares = torch.bincount(drawn.long(), minlength=8) / 20_000
    assert torch.allclose(
        shares, exact().log_prob(states(3)).exp(), atol=4 * 0.5 / math.sqrt(20_000)
    )


def test_clamped_chains_impute():
    rbm = disturbed(RBM(BernoulliUnits(3), 4, limit=1))
    exact = RBM(BernoulliUnits(3), 4)
    exact.load_state_dict(rbm.state_dict())
    x = torch.tensor([[1.0, torch.nan, torch.nan]])
    done, truth = impute(rbm, x, draws=10_000, num_steps=20), impute(exact, x, draws=10_000)
    assert (done.kind, truth.kind) == ("asymptotic", "exact")
    assert torch.allclose(done.mean(), truth.mean(), atol=4 * 0.5 * math.sqrt(2 / 10_000))


def test_contexts_shift_biases():
    rbm = RBM(BernoulliUnits(3), 2, scale=1.0, biases=MLP(2, [], 5))
    context = torch.randn(4, 2)
    distribution = rbm(context)
    raw, bias = rbm.net(context).split((3, 2), -1)
    one = RBM(BernoulliUnits(3), 2)
    with torch.no_grad():
        one.weight.copy_(rbm.weight), one.raw.copy_(raw[2]), one.bias.copy_(bias[2])
    v = states(3)
    assert torch.allclose(distribution.log_prob(v[:, None])[:, 2], one().log_prob(v), atol=1e-5)
    assert distribution.sample((3,)).shape == (3, 4, 3)


def test_initialize_gives_the_moments_of_the_rows():
    x = (torch.rand(500, 4) < torch.tensor([0.1, 0.5, 0.7, 0.9])).float()
    rbm = RBM(BernoulliUnits(4), 2, scale=0.0)
    rbm.initialize(x)
    assert torch.allclose(rbm().sample((20_000,)).mean(0), x.mean(0), atol=0.02)
    y = torch.randn(500, 2) * torch.tensor([1.0, 3.0]) + torch.tensor([5.0, 0.0])
    real = RBM(GaussianUnits(2), 2, scale=0.0)
    real.initialize(y)
    draws = real().sample((20_000,))
    assert torch.allclose(draws.mean(0), y.mean(0), atol=0.1) and torch.allclose(
        draws.std(0), y.std(0), atol=0.1
    )


@pytest.mark.slow
def test_maximum_likelihood_by_fit_where_it_is_exact():
    x = torch.tensor([[1.0, 1, 0], [0, 0, 1], [1, 1, 1]]).repeat(20, 1)
    rbm = RBM(BernoulliUnits(3), 4)
    fit(
        rbm, x, steps=300, optimizer=adam(0.1), seed=0, progress=False, verdict=False, compile=False
    )
    assert (
        log_likelihood(rbm, x).mean > -math.log(3) - 0.05 and log_likelihood(rbm, x).kind == "exact"
    )


def deep_states(machine):
    """Every state of all layers, and the exponent of each."""
    sizes = (machine.visible.shape.numel(), *machine.hidden)
    layers = states(sum(sizes)).split(sizes, -1)
    offsets = [machine.offset[: sizes[0]], machine.middle[: sizes[1]], machine.offset[sizes[0] :]]
    centered = [layer - offset for layer, offset in zip(layers, offsets, strict=True)]
    total = layers[0] @ machine.raw
    for layer, bias in zip(layers[1:], machine.biases, strict=True):
        total = total + layer @ bias
    for below, weight, above in zip(centered[:-1], machine.weights, centered[1:], strict=True):
        total = total + ((below @ weight) * above).sum(-1)
    constant = (
        offsets[0] @ machine.weights[0] @ offsets[1] + offsets[1] @ machine.weights[1] @ offsets[2]
    )
    return layers, total - constant


@pytest.mark.parametrize("sizes", [(3, 2, 4), (2, 5, 2)])
def test_deep_machines_sum_to_what_enumeration_gives(sizes):
    machine = disturbed(DeepBoltzmannMachine(BernoulliUnits(sizes[0]), sizes[1:]))
    layers, total = deep_states(machine)
    v, distribution = states(sizes[0]), machine()
    weights = torch.stack([total[(layers[0] == row).all(-1)].logsumexp(0) for row in v])
    assert isinstance(distribution, ExactBoltzmann)
    assert torch.allclose(distribution.log_prob(v), weights - total.logsumexp(0), atol=1e-4)
    assert torch.allclose(distribution.log_weight(v), weights, atol=1e-4)
    free = DeepBoltzmannMachine(BernoulliUnits(sizes[0]), sizes[1:], limit=1)
    free.load_state_dict(machine.state_dict())
    assert isinstance(free(), ChainedBoltzmann) and torch.allclose(
        free().log_prob(v), weights, atol=1e-4
    )


def test_mean_field_is_a_lower_bound_with_the_right_gradient(monkeypatch):
    machine = disturbed(DeepBoltzmannMachine(BernoulliUnits(3), (4, 3), limit=1), 0.5)
    v = states(3)
    exact = machine().log_prob(v)
    monkeypatch.setattr("probgen.distributions.energy.boltzmann.INSIDE", 1)
    monkeypatch.setattr("probgen.distributions.energy.boltzmann.MEAN_FIELD", 200)
    bound = machine().log_prob(v)
    assert (bound <= exact + 1e-4).all() and (exact - bound).max() < 0.2
    (gradient,) = torch.autograd.grad(bound.sum(), machine.weights[1])
    with torch.no_grad():
        step = 1e-2 * torch.randn_like(machine.weights[1])
        machine.weights[1].add_(step)
        more = machine().log_prob(v).sum()
        machine.weights[1].sub_(2 * step)
        less = machine().log_prob(v).sum()
    assert ((more - less) / 2).item() == pytest.approx((gradient * step).sum().item(), abs=2e-4)


def test_deep_chains_reach_the_distribution():
    machine = disturbed(DeepBoltzmannMachine(BernoulliUnits(3), (3, 2), limit=1, sweeps=40), 0.6)
    exact = DeepBoltzmannMachine(BernoulliUnits(3), (3, 2))
    exact.load_state_dict(machine.state_dict())
    for gen in (machine, exact):
        drawn = gen().sample((20_000,)) @ torch.tensor([4.0, 2.0, 1.0])
        shares = torch.bincount(drawn.long(), minlength=8) / 20_000
        assert torch.allclose(
            shares, exact().log_prob(states(3)).exp(), atol=4 * 0.5 / math.sqrt(20_000)
        )


def test_refusals_say_what_to_do():
    rbm = RBM(BernoulliUnits(3), 2, limit=1)
    with pytest.raises(ValueError, match=r"NaN \(missing\)"):
        rbm().log_prob(torch.full((2, 3), torch.nan))
    with pytest.raises(NotImplementedError, match="finitely many values"):
        RBM(GaussianUnits(3), 2)().pseudo_log_prob(torch.zeros(3))
    with pytest.raises(ValueError, match="hidden >= 1"):
        RBM(BernoulliUnits(3), 0)
    with pytest.raises(ValueError, match="one is an RBM"):
        DeepBoltzmannMachine(BernoulliUnits(3), (2,))
    with pytest.raises(ValueError, match="expected a context"):
        RBM(BernoulliUnits(3), 2, biases=MLP(2, [], 5))()
