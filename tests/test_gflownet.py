"""Generative flow networks: probabilities by enumeration, and what they learn to sample."""

import math
from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from toys import Global

import probgen as pg
from probgen.distributions.energy.visible import BernoulliUnits
from probgen.distributions.environments import AnyOrder, HyperGrid
from probgen.distributions.trajectories import BackwardTrajectories, ForwardTrajectories
from probgen.heads import Bernoulli
from probgen.models.gflownet import GFlowNet
from probgen.models.made import MADE
from probgen.models.markov_random_field import MarkovRandomField, grid_edges
from probgen.models.rbm import RBM
from probgen.nn import MLP
from probgen.objectives.trajectory_balance import TrajectoryBalance

ENVIRONMENTS = {
    "grid": HyperGrid(2, levels=3),
    "bits": AnyOrder(2, levels=2),
    "labels": AnyOrder(1, 2, levels=3),
}
QUIET = {"progress": False, "verdict": False, "compile": False, "seed": 0}


def made(environment, backward=False):
    torch.manual_seed(3)
    nets = [MLP(environment.inputs, [8], environment.actions) for _ in range(1 + backward)]
    for net in nets:
        nn.init.normal_(net.last.weight)
    return GFlowNet(environment, *nets).double()


def sequences(environment):
    """All sequences of actions, possible or not."""
    return torch.tensor(list(product(range(environment.actions), repeat=environment.length)))


def objects(environment):
    """All objects, in raster order of their entries."""
    size = math.prod(environment.shape)
    rows = torch.tensor(list(product(range(environment.levels), repeat=size))).double()
    return rows.reshape(-1, *environment.shape)


def enumerated(gen):
    """Probabilities of all objects: of all sequences that build them, together."""
    tau = sequences(gen.environment)
    with torch.no_grad():
        log_p = ForwardTrajectories(gen.environment, gen.net, gen.nothing).log_prob(tau)
        built = gen.build(tau).value
    same = (built[:, None] == objects(gen.environment)).flatten(2).all(-1)
    return torch.where(same, log_p[:, None].exp(), 0.0).sum(0)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_probabilities_of_trajectories_sum_to_one_forwards_and_backwards(name):
    environment = ENVIRONMENTS[name]
    gen = made(environment, backward=True)
    tau = sequences(environment)
    log_p = ForwardTrajectories(environment, gen.net, gen.nothing).log_prob(tau)
    assert log_p.exp().sum().item() == pytest.approx(1)
    for policy in (gen.backward_net, None):
        for x in objects(environment):
            back = BackwardTrajectories(environment, policy, environment.counts(x))
            log_q = back.log_prob(tau)
            assert log_q.exp().sum().item() == pytest.approx(1)
            # what leads to x, and nothing else
            leads = log_p.isfinite() & (gen.build(tau).value == x).flatten(1).all(-1)
            assert (log_q.isfinite() == leads).all()
            assert torch.equal(gen.environment.built(environment.counts(x)), x)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_draws_have_the_enumerated_probabilities(name):
    gen = made(ENVIRONMENTS[name])
    truth = enumerated(gen)
    torch.manual_seed(0)
    drawn = gen().sample((20_000,))
    share = (drawn[:, None] == objects(gen.environment)).flatten(2).all(-1).double().mean(0)
    assert truth.sum().item() == pytest.approx(1)
    assert (share - truth).abs().max() < 4 * 0.5 / 20_000**0.5


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_likelihood_is_unbiased_for_every_object(name, backward):
    gen = made(ENVIRONMENTS[name], backward)
    score = pg.log_likelihood(gen, objects(gen.environment), particles=3000, seed=0)
    assert score.kind == "unbiased" and score.measure == "mass"
    torch.testing.assert_close(score.value.exp(), enumerated(gen), rtol=0.1, atol=2e-3)


def test_an_object_of_one_trajectory_is_no_bound():
    gen = made(HyperGrid(2, levels=3))
    score = pg.log_likelihood(gen, torch.tensor([[2.0, 0.0]]), particles=2)
    assert score.kind == "unbiased"
    assert score.value.exp().item() == pytest.approx(enumerated(gen)[6].item(), rel=1e-5)


def test_in_balance_every_weight_is_the_constant_and_the_loss_is_zero():
    bits = AnyOrder(2, 3, levels=3)
    gen = GFlowNet(bits, MLP(bits.inputs, [4], bits.actions))
    for parameter in gen.parameters():
        nn.init.zeros_(parameter)
    objective = TrajectoryBalance(lambda x: torch.full((len(x),), 0.7), draws=9)
    truth = 0.7 + 6 * math.log(3)
    weights = objective.log_weights(gen.model, gen.guide, 50)
    torch.testing.assert_close(weights, torch.full((50,), truth))
    loss = objective(gen.model, gen.guide)
    assert loss().item() == pytest.approx(truth**2, rel=1e-5)
    with torch.no_grad():
        objective.slow_log_z.fill_(truth / objective.rate)
    assert loss().item() == pytest.approx(0, abs=1e-8)
    assert objective.log_z.item() == pytest.approx(truth)


def test_of_an_exact_family_the_error_is_that_of_its_log_density():
    torch.manual_seed(0)
    gen = MADE(3, [8], Bernoulli())
    energy = RBM(BernoulliUnits(3), 2, scale=1.0, limit=1)
    objective = TrajectoryBalance(energy, draws=40, temperature=2.0)
    torch.manual_seed(1)
    value = objective(gen.model, gen.guide)()
    torch.manual_seed(1)
    x = gen().sample((40, 1)).squeeze(1)
    truth = (energy().log_prob(x) / 2 - gen().log_prob(x)).square().mean()
    torch.testing.assert_close(value, truth)
    rows = torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])  # beside the draws, and counted
    torch.manual_seed(1)
    both = objective(gen.model, gen.guide)(rows)
    x = torch.cat([x, rows])
    truth = (energy().log_prob(x) / 2 - gen().log_prob(x)).square().mean()
    torch.testing.assert_close(both, 2 * truth)
    assert not any(parameter.requires_grad for parameter in objective.reward.module.parameters())


def test_the_expected_gradient_is_that_of_the_reverse_divergence():
    gen = made(HyperGrid(2, levels=3), backward=True)
    tau = sequences(gen.environment)
    possible = ForwardTrajectories(gen.environment, gen.net, gen.nothing).log_prob(tau).isfinite()
    tau = tau[possible]
    log_p = ForwardTrajectories(gen.environment, gen.net, gen.nothing).log_prob(tau)
    x = gen.build(tau).value
    target = -x.sum(-1) + gen.encode(x).log_prob(tau)
    divergence = (log_p.exp() * (log_p - target)).sum()
    parameters = list(gen.net.parameters())
    truth = torch.autograd.grad(2 * divergence, parameters, retain_graph=True)
    objective = TrajectoryBalance(lambda x: -x.sum(-1), draws=20_000).double()
    torch.manual_seed(0)
    found = torch.autograd.grad(objective(gen.model, gen.guide)(), parameters)
    for one, other in zip(found, truth, strict=True):
        assert (one - other).norm() < 0.1 * other.norm() + 0.02


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rows", "none"])
def test_rows_show_a_mode_that_the_sampler_does_not_meet(name):
    bits = AnyOrder(12)
    log_reward = lambda x: torch.where(x.mean(-1) == 1, 20.0, -4 * x.sum(-1))  # noqa: E731
    torch.manual_seed(0)
    gen = GFlowNet(bits, MLP(bits.inputs, [32], bits.actions))
    data = pg.train.Pairs(lambda n: torch.ones(n, 12)) if name == "rows" else None
    options = QUIET | ({"batch_size": 16} if name == "rows" else {})
    objective = TrajectoryBalance(log_reward, 16)
    pg.fit(gen, data, objective, steps=400, optimizer=pg.train.adam(1e-2), **options)
    share = (pg.sample(gen, 200).mean(-1) == 1).float().mean()
    assert share > 0.9 if name == "rows" else share < 0.1


@pytest.mark.slow
def test_a_grid_is_sampled_in_proportion_to_its_reward():
    grid = HyperGrid(2, levels=5)
    log_reward = lambda x: ((x - 2).square().sum(-1) / 2).clamp(max=3.0)  # noqa: E731
    torch.manual_seed(0)
    gen = GFlowNet(grid, MLP(grid.inputs, [32], grid.actions))
    objective = TrajectoryBalance(log_reward, draws=32)
    pg.fit(gen, None, objective, steps=700, optimizer=pg.train.adam(5e-3), **QUIET)
    rows = objects(grid).float()
    log_z = log_reward(rows).logsumexp(0)
    assert objective.log_z.item() == pytest.approx(log_z.item(), abs=0.1)
    weights = objective.log_weights(gen.model, gen.guide, 2000)
    assert weights.logsumexp(0).item() - math.log(2000) == pytest.approx(log_z.item(), abs=0.02)
    found = pg.log_likelihood(gen, rows, particles=50, seed=0).value.exp()
    assert (found - (log_reward(rows) - log_z).exp()).abs().sum() < 0.1


@pytest.mark.slow
def test_log_z_of_a_boltzmann_machine_and_of_an_ising_model_are_found():
    torch.manual_seed(0)
    machine = RBM(BernoulliUnits(10), 4, scale=0.7, limit=1)
    field = MarkovRandomField((3, 3), grid_edges(3, 3), shared=True, limit=0)
    with torch.no_grad():
        field.pairs.copy_(0.6 * torch.eye(2))
    bits = AnyOrder(3, 3)
    samplers = {
        machine: MADE(10, [32], Bernoulli()),
        field: GFlowNet(bits, MLP(bits.inputs, [32], bits.actions)),
    }
    for energy, gen in samplers.items():
        shape = gen().event_shape
        rows = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * shape.numel())
        rows = rows.reshape(-1, *shape)
        log_reward = energy().log_prob(rows).detach()
        objective = TrajectoryBalance(energy, draws=64)
        pg.fit(gen, None, objective, steps=600, optimizer=pg.train.adam(1e-2), **QUIET)
        weights = objective.log_weights(gen.model, gen.guide, 4000)
        truth = log_reward.logsumexp(0).item()
        assert weights.mean() < truth + 0.02  # a lower bound
        assert weights.logsumexp(0).item() - math.log(4000) == pytest.approx(truth, abs=0.05)
        found = pg.log_likelihood(gen, rows, particles=30, seed=0).value.exp()
        assert (found - (log_reward - truth).exp()).abs().sum() < 0.25


def test_mistakes_are_told():
    gen = MADE(3, [4], Bernoulli())
    pair = (gen.model, gen.guide)
    with pytest.raises(ValueError, match=r"one log reward for each row, \(5,\), got \(5, 3\); sum"):
        TrajectoryBalance(lambda x: x, draws=5)(*pair)()
    with pytest.raises(ValueError, match="expected finite log rewards, got -inf; give what"):
        TrajectoryBalance(lambda x: x.sum(-1).add(1).log().sub(torch.inf))(*pair)()
    floor = lambda x: x.sum(-1).add(1).log().sub(torch.inf).clamp(min=-50)  # noqa: E731
    assert TrajectoryBalance(floor)(*pair)().isfinite()
    with pytest.raises(ValueError, match="expected rows alone, or none, got a context; leave it"):
        TrajectoryBalance(lambda x: x.sum(-1))(*pair)(torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"got implicit \(GAN\); pass a function of rows"):
        TrajectoryBalance(pg.GAN(MLP(2, [4], 3), pg.standard_normal(2), (3,)))
    shared = Global()
    with pytest.raises(ValueError, match="inside the plate 'data', got 'mu' outside of it"):
        TrajectoryBalance(lambda x: x)(shared.model, shared.guide)()
    other = lambda: pyro.sample("y", dist.Bernoulli(0.5))  # noqa: E731
    with pytest.raises(TypeError, match="a site 'x' without data, it has y; rename the site"):
        TrajectoryBalance(lambda x: x)(other, lambda: None)()
    with pytest.raises(TypeError, match="pass AnyOrder"):
        GFlowNet(3, MLP(2, [4], 3))
