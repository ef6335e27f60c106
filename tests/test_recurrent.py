"""Sequence models: enumeration, causality by autograd, one step against all steps, padding."""

import itertools

import pytest
import torch
from torch import nn

from probgen import heads
from probgen.models.made import MADE
from probgen.models.sequence import SequenceModel
from probgen.nn import MLP
from probgen.nn.recurrent import RNN, GatedTransition
from probgen.nn.temporal import TemporalConvolution
from probgen.scoring import log_likelihood

T, D, H = 3, 2, 5
NETWORKS = {
    "GRU": lambda inputs: RNN(inputs, H, layers=2),
    "LSTM": lambda inputs: RNN(inputs, H, cell=nn.LSTMCell),
    "convolutions": lambda inputs: TemporalConvolution(inputs, H, (1, 2)),
    "wide convolutions": lambda inputs: TemporalConvolution(inputs, H, (1, 3), kernel=3),
}
each_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)


def model(network, length=T, context=0) -> SequenceModel:
    """Binary frames; far from the symmetric distributions of a fresh network."""
    torch.manual_seed(0)
    gen = SequenceModel(network(D + context), heads.Bernoulli(MLP(H, [8], D)), (length, D))
    with torch.no_grad():
        for parameter in gen.parameters():
            parameter.add_(0.7 * torch.randn_like(parameter))
    return gen.eval()


def all_sequences(length=T) -> torch.Tensor:
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=length * D))).unflatten(
        1, (length, D)
    )


@each_network
def test_probabilities_of_all_sequences_sum_to_one(network):
    assert model(network)().log_prob(all_sequences()).exp().sum().item() == pytest.approx(
        1.0, abs=1e-5
    )


@each_network
def test_samples_have_the_probabilities_of_the_sequences(network):
    distribution, x = model(network)(), all_sequences()
    torch.manual_seed(1)
    codes = (
        distribution.sample((20000,)).flatten(1) @ 2.0 ** torch.arange(T * D - 1, -1, -1)
    ).long()
    expected = distribution.log_prob(x).exp() * 20000
    chi2 = ((codes.bincount(minlength=len(x)) - expected).square() / expected).sum().item()
    assert chi2 < 110  # 63 degrees of freedom: exceeded with probability 2e-4


@each_network
def test_no_frame_sees_itself_or_the_future(network):
    length = 6
    gen = model(network, length)
    x = torch.randn(2, length, D, requires_grad=True)
    logits = gen().distributions(x).base_dist.logits
    for t in range(length):
        (gradient,) = torch.autograd.grad(logits[:, t].sum(), x, retain_graph=True)
        assert (gradient[:, t:] == 0).all()
        assert t == 0 or gradient[:, t - 1].abs().min() > 0


@each_network
def test_one_step_after_the_other_gives_the_distributions_of_all_steps(network):
    gen, length = model(network, 7, context=3), 7
    x, context = torch.randint(2, (2, 4, length, D)).float(), torch.randn(4, 3)
    distribution = gen(context)
    conditionals = distribution.conditionals(torch.Size((2, 4)))
    distributions = [
        next(conditionals),
        *(conditionals.send(x[..., t, :]) for t in range(length - 1)),
    ]
    got = torch.stack([each.base_dist.logits for each in distributions], -2)
    torch.testing.assert_close(got, distribution.distributions(x).base_dist.logits)


@each_network
def test_a_padded_sequence_is_the_short_sequence(network):
    long, x = model(network, 6), torch.randint(2, (4, 6, D)).float()
    short = SequenceModel(long.network, long.emission, (4, D))
    short.start = long.start
    padded = x.clone()
    padded[:, 4:] = torch.nan
    torch.testing.assert_close(long().log_prob(padded), short().log_prob(x[:, :4]))
    gradients = [
        torch.autograd.grad(distribution.log_prob(rows).sum(), long.parameters())
        for distribution, rows in _both(long, short, x)
    ]
    torch.testing.assert_close(*gradients)


def _both(long, short, x):
    padded = x.clone()
    padded[:, 4:] = torch.nan
    return (long(), padded), (short(), x[:, :4])


def test_frames_missing_before_others_are_refused():
    x = torch.zeros(2, T, D)
    x[0, 0] = torch.nan
    with pytest.raises(ValueError, match="come last"):
        model(NETWORKS["GRU"])().log_prob(x)


@each_network
def test_a_context_reaches_every_frame_of_its_own_row(network):
    gen, x = model(network, context=3), torch.randint(2, (4, T, D)).float()
    context = torch.randn(4, 3, requires_grad=True)
    logits = gen(context).distributions(x).base_dist.logits
    for t in range(T):
        (gradient,) = torch.autograd.grad(logits[1, t].sum(), context, retain_graph=True)
        assert (gradient[[0, 2, 3]] == 0).all()
        assert gradient[1].abs().min() > 0
    rows = torch.cat([gen(context[i : i + 1]).log_prob(x[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(gen(context).log_prob(x), rows)


def test_real_frames_integrate_to_one():
    torch.manual_seed(0)
    gen = SequenceModel(RNN(1, 4), heads.Gaussian(nn.Linear(4, 2)), (2, 1))
    grid = torch.linspace(-12, 12, 481)
    x = torch.cartesian_prod(grid, grid).unsqueeze(-1)
    mass = gen().log_prob(x).exp().sum() * (grid[1] - grid[0]) ** 2
    assert mass.item() == pytest.approx(1.0, abs=1e-4)


def test_frames_of_dependent_variables_sum_to_one_and_are_drawn_as_scored():
    torch.manual_seed(0)
    gen = SequenceModel(RNN(D, H), MADE(D, [8], heads.Bernoulli(), context=H), (T, D)).eval()
    with torch.no_grad():
        for parameter in gen.parameters():
            parameter.add_(torch.randn_like(parameter))
    x = all_sequences()
    p = gen().log_prob(x).exp()
    assert p.sum().item() == pytest.approx(1.0, abs=1e-5)
    codes = (gen().sample((20000,)).flatten(1) @ 2.0 ** torch.arange(T * D - 1, -1, -1)).long()
    assert (
        (codes.bincount(minlength=len(x)) / 20000 - p).abs()
        < 5 * (p * (1 - p) / 20000).sqrt() + 1e-4
    ).all()
    short = x.clone()
    short[:, 1:] = torch.nan
    torch.testing.assert_close(
        gen().log_prob(short).exp(), p.view(4, 16).sum(1).repeat_interleave(16)
    )


def test_score_is_an_exact_mass():
    score = log_likelihood(model(NETWORKS["GRU"]), all_sequences())
    assert (score.kind, score.measure) == ("exact", "mass")


def test_a_convolution_sees_as_far_as_it_says():
    torch.manual_seed(0)
    network = TemporalConvolution(2, 4, (1, 2, 4), kernel=3)
    x = torch.randn(1, 20, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(x)[0, -1].sum(), x)
    seen = gradient[0].abs().sum(-1).nonzero().flatten()
    assert (network.past, 19 - seen.min().item()) == (14, 14)


@each_network
def test_a_network_of_other_width_is_named(network):
    gen = SequenceModel(network(D), heads.Bernoulli(nn.Linear(H, D)), (T, D))
    with pytest.raises(
        ValueError, match=r"expected no context .* build its network for 3 more inputs"
    ):
        gen(torch.zeros(4, 3))
    gen = SequenceModel(network(D - 1), heads.Bernoulli(nn.Linear(H, D)), (T, D))
    with pytest.raises(ValueError, match=f"inputs={D}"):
        gen().log_prob(torch.zeros(4, T, D))
    with pytest.raises(ValueError, match=f"inputs={D}"):
        gen().sample()


def test_a_gru_is_that_of_torch():
    torch.manual_seed(0)
    ours, theirs = RNN(3, 4, layers=2), nn.GRU(3, 4, num_layers=2, batch_first=True)
    for layer, cell in enumerate(ours.cells):
        for name, parameter in cell.named_parameters():
            getattr(theirs, f"{name}_l{layer}").data = parameter.data
    x = torch.randn(2, 6, 3)
    torch.testing.assert_close(ours(x), theirs(x)[0])


def test_dropout_leaves_states_alone_and_ends_with_training():
    torch.manual_seed(0)
    network, x = RNN(3, 400, dropout=0.5), torch.ones(1, 2, 3)
    assert 0.3 < (network(x) == 0).float().mean() < 0.7
    assert not (network.eval()(x) == 0).any()


def test_a_gated_transition_with_a_closed_gate_is_the_linear_map():
    net = GatedTransition(2, 4, context=1)
    with torch.no_grad():
        net.gate[2].weight.zero_()
        net.gate[2].bias.fill_(-50.0)
    z = torch.randn(5, 3)
    torch.testing.assert_close(net(z)[:, :2], z[:, :2])
