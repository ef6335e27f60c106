"""Flow matching: Gaussian ends with known velocities, minimizers, optimal pairs, densities.

Solvers, guidance.
"""

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from probgen.compile.tracing import NotCompilable, record_operations
from probgen.core.kinds import density_kind
from probgen.core.module import Fixed
from probgen.distributions.flows.couplings import (
    EntropicTransport,
    IndependentCoupling,
    OptimalTransport,
)
from probgen.distributions.flows.fixed_steps import Euler, Midpoint, Trapezoid
from probgen.distributions.flows.flow import Pushforward
from probgen.distributions.flows.matching import StraightPath, TrigonometricPath
from probgen.distributions.flows.ode import Adaptive, Rademacher, RungeKutta
from probgen.models.empirical import Empirical
from probgen.models.flow_matching import FlowMatching
from probgen.models.quantized import BinNoise, Quantized
from probgen.models.standardized import Standardized
from probgen.nn.mlp import MLP
from probgen.nn.time import TimeMLP
from probgen.nn.unet import UNet
from probgen.objectives.denoising import Denoising
from probgen.objectives.elbo import ELBO
from probgen.objectives.enumerated import default_objective
from probgen.train.fit import adam, fit

MEAN, SCALE = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 3.0]).double()
QUIET = {"compile": False, "progress": False, "verdict": False, "seed": 0}


class GaussianVelocity(nn.Module):
    """E[dx_t / dt | x_t] where data are normal, by regression of one normal on another."""

    def __init__(self, path):
        super().__init__()
        self.path, self.calls = path, 0
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, x, t, context=None):
        self.calls += 1
        a, b, da, db = self.path(t.unsqueeze(-1))
        variance = (a * SCALE).square() + b.square()
        covariance = a * da * SCALE.square() + b * db
        return da * MEAN + covariance / variance * (x - a * MEAN) + self.unused


@pytest.mark.parametrize("path", [StraightPath(), StraightPath(0.3), TrigonometricPath()])
def test_between_gaussians_the_flow_is_linear_and_known(path):
    gen = FlowMatching(
        GaussianVelocity(path), (2,), path=path, solver=Adaptive(1e-7, 1e-7)
    ).double()
    blur = 0.3 if path == StraightPath(0.3) else 0.0
    scale = (SCALE.square() + blur**2).sqrt()
    x = torch.randn(20, 2, dtype=torch.double)
    truth = dist.Normal(MEAN, scale).to_event(1)
    torch.testing.assert_close(gen().log_prob(x), truth.log_prob(x), atol=1e-5, rtol=0)
    torch.testing.assert_close(gen().transform(x), (x - MEAN) / scale, atol=1e-5, rtol=0)
    torch.testing.assert_close(gen().transform.inv(x), MEAN + scale * x, atol=1e-5, rtol=0)
    draws = gen().using(RungeKutta(8)).sample((4000,))
    torch.testing.assert_close(draws.mean(0), MEAN, atol=0.2, rtol=0)
    torch.testing.assert_close(draws.std(0), scale, atol=0.03, rtol=0.03)


def test_paths_lead_from_data_to_the_base_and_their_rates_are_derivatives():
    for path in (StraightPath(0.1), TrigonometricPath()):
        ends = path(torch.tensor([0.0, 1.0]))
        torch.testing.assert_close(ends.data, torch.tensor([1.0, 0.0]), atol=1e-6, rtol=0)
        assert abs(ends.base[1] - 1) < 1e-6
        t = torch.rand(7, dtype=torch.double, requires_grad=True)
        levels = path(t)
        for level, rate in ((levels.data, levels.data_rate), (levels.base, levels.base_rate)):
            slope = torch.autograd.grad(level.sum(), t, retain_graph=True)[0]
            torch.testing.assert_close(
                slope, torch.as_tensor(rate, dtype=torch.double).detach().expand(7)
            )


class TwoPoints(nn.Module):
    """The velocity for data of -1 and 1, by Bayes' rule.

    Plus a combination of functions with given weights.
    """

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(4, dtype=torch.double))

    def forward(self, x, t, context=None):
        points, t = torch.tensor([-1.0, 1.0]).double(), t.unsqueeze(-1)
        shares = dist.Normal((1 - t) * points, t).log_prob(x).softmax(-1)
        velocity = (shares * ((x - (1 - t) * points) / t - points)).sum(-1, keepdim=True)
        functions = torch.cat((torch.ones_like(x), x, torch.sin(3 * x) * t, (x > 0.5).double()), -1)
        return velocity + (functions * self.weights).sum(-1, keepdim=True)


def test_the_loss_is_least_at_the_conditional_expectation():
    """Its gradient is zero there, in the direction of any function.

    And it grows by the square of a deviation.
    """
    torch.manual_seed(0)
    gen, x = (
        FlowMatching(TwoPoints(), (1,)).double(),
        torch.randint(2, (200, 400, 1)).double() * 2 - 1,
    )
    gradients = []
    for rows in x:
        loss = Denoising()(gen.model, gen.guide)(rows) / len(rows)
        gradients.append(torch.autograd.grad(loss, gen.net.weights)[0])
    gradients = torch.stack(gradients)
    assert (gradients.mean(0).abs() < 4 * gradients.std(0) / len(x) ** 0.5).all()
    losses = []
    for constant in (0.0, 0.5):
        with torch.no_grad():
            gen.net.weights[0] = constant
            torch.manual_seed(1)
            losses.append(gen().denoising_loss(x).mean())
    assert abs(losses[1] - losses[0] - 0.25) < 0.02


def test_optimal_pairs_are_those_of_all_permutations():
    torch.manual_seed(0)
    x, z = torch.randn(2, 6, 3)
    costs = {
        order: (x - z[list(order)]).square().sum() for order in itertools.permutations(range(6))
    }
    best = min(costs, key=costs.get)
    torch.testing.assert_close(OptimalTransport()(x, z, None), z[list(best)])
    torch.testing.assert_close(EntropicTransport(0.005, 200)(x, z, None), z[list(best)])
    x, z = torch.randn(2, 64, 3)
    lengths = [
        (x - pairs(x, z, None)).square().sum(-1).mean()
        for pairs in (OptimalTransport(), EntropicTransport())
    ]
    assert (
        lengths[0] < 0.5 * (x - z).square().sum(-1).mean()
        and lengths[0] < lengths[1] < 1.6 * lengths[0]
    )


@pytest.mark.slow
def test_drawn_pairs_keep_the_distribution_of_the_base():
    """Every draw of the base is met once on average."""
    torch.manual_seed(0)
    x, z = torch.randn(8, 1), torch.arange(8.0).unsqueeze(-1)
    met = torch.stack([EntropicTransport(0.3, 100)(x, z, None) for _ in range(500)])
    counts = torch.stack([(met == value).sum((1, 2)).double() for value in z.flatten()], -1)
    assert ((counts.mean(0) - 1).abs() < 4 * counts.std(0) / 500**0.5).all()


def test_pairs_across_contexts_are_refused_or_weighed():
    torch.manual_seed(0)
    x, z, labels = torch.randn(40, 2), torch.randn(40, 2), torch.eye(2)[torch.arange(40) % 2]
    gen = FlowMatching(TimeMLP(2, [8], context=2), (2,), coupling=OptimalTransport())
    with pytest.raises(ValueError, match="context_weight"):
        gen(labels).denoising_loss(x)
    paired = OptimalTransport(context_weight=1e4)(x, z, labels)
    for label in (0, 1):
        torch.testing.assert_close(
            paired[label::2], OptimalTransport()(x[label::2], z[label::2], None)
        )
    labels[:4] = torch.nan
    assert (
        FlowMatching(gen.net, (2,), coupling=OptimalTransport(1.0))(labels)
        .denoising_loss(x)
        .isfinite()
        .all()
    )


def banana(count):
    first = torch.randn(count)
    return torch.stack((first, first.square() - 1 + 0.3 * torch.randn(count)), -1)


@pytest.mark.slow
def test_a_trained_flow_has_a_density_that_integrates_to_one_and_draws_that_have_it():
    torch.manual_seed(0)
    gen = FlowMatching(TimeMLP(2, [32, 32]), (2,), coupling=OptimalTransport())
    before = gen().log_prob(banana(200)).mean()
    fit(gen, banana(4000), Denoising(), steps=250, batch_size=128, optimizer=adam(3e-3), **QUIET)
    gen.eval()
    axis = torch.linspace(-5, 10.8, 80) + 0.1
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = gen().using(RungeKutta(12)).log_prob(grid).exp() * 0.2**2
        assert abs(mass.sum() - 1) < 0.01
        draws = gen().using(Midpoint(16)).sample((10_000,))
        share = (draws > 0).all(-1).float().mean()
        assert abs(share - mass[(grid > 0).all(-1)].sum()) < 0.02
        score = gen().log_prob(banana(1000)).mean()
    entropy = 1 + math.log(2 * math.pi) + math.log(0.3)
    assert before < -entropy - 0.8 and -entropy - 0.35 < score < -entropy + 0.1


def disturbed(net, amount=0.1):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(amount * torch.randn_like(parameter))
    return net


@pytest.mark.slow
def test_the_density_of_images_is_that_of_a_change_of_variables():
    torch.manual_seed(0)
    net = disturbed(UNet((1, 3, 2), width=8, multipliers=(1, 1), heads=2), 0.04)
    gen = FlowMatching(net, (1, 3, 2), solver=RungeKutta(6)).double()
    x = torch.randn(2, 1, 3, 2, dtype=torch.double)
    distribution = gen()
    jacobian = torch.autograd.functional.jacobian(distribution.transform, x)[
        range(2), :, :, :, range(2)
    ].reshape(2, 6, 6)
    ladj = torch.linalg.slogdet(jacobian).logabsdet
    assert ladj.abs().min() > 0.01
    with torch.no_grad():
        value = distribution.log_prob(x)
        normal = dist.Normal(0.0, 1.0).log_prob(distribution.transform(x)).flatten(1).sum(-1)
    torch.testing.assert_close(value, normal + ladj, atol=1e-4, rtol=0)
    gen.probes = Rademacher(2)
    assert density_kind(gen()) == "approximate" and gen().sample((2, 2)).shape == (2, 2, 1, 3, 2)


def test_densities_with_gradients_are_those_without():
    """Group normalization cannot be differentiated twice for many probes at once.

    One after the other, then.
    """
    torch.manual_seed(0)
    net = disturbed(UNet((1, 3, 2), width=8, multipliers=(1, 1), attention=0))
    gen, x = (
        FlowMatching(net, (1, 3, 2), solver=Euler(2)).double(),
        torch.randn(2, 1, 3, 2, dtype=torch.double),
    )
    value = gen().log_prob(x)
    value.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    with torch.no_grad():
        torch.testing.assert_close(value, gen().log_prob(x))


@pytest.mark.parametrize(
    ("solver", "order", "calls"), [(Euler, 1, 1), (Midpoint, 2, 2), (Trapezoid, 2, 2)]
)
def test_solvers_have_their_order_and_their_cost(solver, order, calls):
    slope = lambda t, x: (x.square() * t.cos(),)  # noqa: E731 (x = 1 / (1 / x_0 - sin t))
    start = torch.ones((), dtype=torch.double) / 2
    ends = [solver(steps)(slope, (start,), 0.0, 1.0)[0] for steps in (20, 40)]
    errors = [abs(end - 1 / (2 - math.sin(1.0))) for end in ends]
    assert abs(torch.log2(errors[0] / errors[1]) - order) < 0.25
    net, z = GaussianVelocity(StraightPath()), torch.randn(5, 2, dtype=torch.double)
    distribution = FlowMatching(net, (2,))()
    distribution.using(solver(7)).transform.inv(z)
    assert net.calls == 7 * calls and density_kind(distribution.using(solver(7))) == "approximate"
    with pytest.raises(ValueError, match="steps >= 1"):
        distribution.using(solver(0)).transform.inv(z)


class ByContext(nn.Module):
    """Velocity c for a known context, zero for an unknown one."""

    def forward(self, x, t, context=None):
        return torch.zeros_like(x) if context is None else x * 0 + context.nan_to_num(0.0)


def test_guidance_extrapolates_velocities_and_neither_loss_nor_density_knows_of_it():
    gen = FlowMatching(ByContext(), (2,), solver=RungeKutta(2)).eval()
    context, z = torch.tensor([[1.0, -0.5]]).expand(5, 2), torch.randn(5, 2)
    plain, guided = gen(context), gen(context).using(guidance=3.0)
    torch.testing.assert_close(guided.drawn_through.inv(z), z - 3 * context)
    draws = Pushforward(guided.base_dist, guided.drawn_through)  # which have a density of their own
    normal = dist.Normal(-3 * context, 1.0).to_event(1)
    torch.testing.assert_close(draws.log_prob(z), normal.log_prob(z))
    torch.testing.assert_close(guided.log_prob(z), plain.log_prob(z))
    losses = []
    for distribution in (plain, guided):
        torch.manual_seed(0)
        losses.append(distribution.denoising_loss(z))
    torch.testing.assert_close(*losses)


def test_a_guided_flow_has_no_reparameterized_draws():
    gen = FlowMatching(ByContext(), (2,), solver=RungeKutta(2)).eval()
    guided = gen(torch.ones(5, 2)).using(guidance=3.0)
    assert gen(torch.ones(5, 2)).has_rsample and not guided.has_rsample
    with pytest.raises(NotImplementedError, match=r"use sample\(\)"):
        guided.rsample()
    for again in (guided.using(RungeKutta(3)), guided.expand((4, 5))):
        assert not again.has_rsample and again.sample().shape == again.shape()


def test_contexts_are_dropped_at_their_rate_in_training_alone():
    torch.manual_seed(0)
    seen = []

    class Watched(nn.Module):
        def forward(self, x, t, context=None):
            seen.append(context)
            return x

    gen = FlowMatching(Watched(), (2,), context_dropout=0.25)
    for _ in range(2):
        gen(torch.ones(2000, 3)).denoising_loss(torch.randn(2000, 2))
        gen.eval()
    unknown = seen[0].isnan()
    assert (unknown.all(-1) == unknown.any(-1)).all() and abs(unknown.float().mean() - 0.25) < 0.04
    assert not seen[1].isnan().any()


@pytest.mark.slow
def test_a_flow_between_two_data_sets():
    """Both ends are data.

    Optimal pairs of a shifted and shrunk copy lead each point to its image.
    """
    torch.manual_seed(0)
    start = torch.rand(1500, 2) * 4
    goal = torch.rand(1500, 2) * 2 + 3
    gen = FlowMatching(
        TimeMLP(2, [64, 64]), (2,), base=Empirical(start), coupling=OptimalTransport()
    )
    fit(gen, goal, Denoising(), steps=300, batch_size=128, optimizer=adam(3e-3), **QUIET)
    distribution = gen.eval()().using(Midpoint(8))
    draws = distribution.sample((1000,))
    torch.testing.assert_close(draws.mean(0), goal.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(draws.std(0), goal.std(0), atol=0.1, rtol=0)
    with torch.no_grad():
        moved = distribution.transform.inv(start)
    assert (moved - (start / 2 + 3)).square().sum(-1).mean().sqrt() < 0.35
    assert density_kind(gen()) == "implicit" and not gen().has_rsample
    assert "base.rows" not in gen.state_dict()
    with pytest.raises(NotImplementedError, match="no density"):
        gen().log_prob(goal[:2])


def test_losses_of_rows_and_draws_are_row_by_row_and_repeatable():
    gen = FlowMatching(disturbed(TimeMLP(2, [8], context=3)), (2,)).eval()
    x, context = torch.randn(4, 6, 2), torch.randn(6, 3)
    assert gen(context).denoising_loss(x).shape == (4, 6)
    assert gen(context).expand((4, 6)).denoising_loss(x[0]).shape == (4, 6)
    assert gen(context.expand(2, 6, 3)).denoising_loss(x[:2]).shape == (2, 6)
    assert gen(context).sample((3,)).shape == (3, 6, 2)


def test_steps_are_recorded_unless_pairs_depend_on_values():
    x = torch.randn(16, 2)
    for coupling in (IndependentCoupling(), EntropicTransport()):
        gen = FlowMatching(TimeMLP(2, [8]), (2,), coupling=coupling)
        loss = Denoising()(gen.model, gen.guide)
        torch.manual_seed(0)
        expected = loss(x)
        recorded = record_operations(loss, x)
        torch.manual_seed(0)
        torch.testing.assert_close(recorded(x), expected)
    gen = FlowMatching(TimeMLP(2, [8]), (2,), coupling=OptimalTransport())
    with pytest.raises(NotCompilable):
        record_operations(Denoising()(gen.model, gen.guide), x)


def test_training_solves_no_equation():
    gen = FlowMatching(GaussianVelocity(StraightPath()), (2,)).double()
    fit(gen, torch.randn(64, 2, dtype=torch.double), Denoising(), steps=5, batch_size=32, **QUIET)
    assert gen.net.calls == 5


WRAPPED = {
    "alone": lambda gen: gen,
    "in other units": lambda gen: Standardized(gen, torch.zeros(2), torch.ones(2)),
    "of integers": Quantized,
}


@pytest.mark.parametrize("name", WRAPPED)
def test_the_loss_of_flow_matching_is_the_default(name):
    """Step by step that of Denoising, and one call of the network for each."""
    losses = []
    for objective in (None, Denoising()):
        network = GaussianVelocity(StraightPath())
        gen = WRAPPED[name](FlowMatching(network, (2,)).double())
        x = torch.randn(64, 2, dtype=torch.double, generator=torch.Generator().manual_seed(0))
        losses.append(fit(gen.double(), x.round(), objective, steps=5, batch_size=32, **QUIET).loss)
        assert network.calls == 5
    assert losses[0] == losses[1]


def test_where_the_loss_has_no_meaning_the_density_is_trained():
    noise = BinNoise(MLP(2, [4], 4))
    gen = Quantized(FlowMatching(TimeMLP(2, [4]), (2,), solver=Euler(2)), noise=noise)
    assert isinstance(default_objective(gen, torch.ones(3, 2)), ELBO)


def test_a_flow_between_data_sets_is_trained_by_default():
    gen = FlowMatching(TimeMLP(2, [8]), (2,), base=Empirical(torch.randn(9, 2)))
    assert fit(gen, torch.randn(16, 2), steps=3, **QUIET).steps == 3


def test_maximum_likelihood_trains_it_too():
    gen = FlowMatching(TimeMLP(1, [8]), (1,))
    history = fit(gen, 3 + torch.randn(16, 1), ELBO(), steps=5, optimizer=adam(1e-2), **QUIET)
    assert history.loss[-1] < history.loss[0]


def test_refusals_say_what_to_do():
    gen = FlowMatching(TimeMLP(2, [8]), (2,))
    for distribution_of in (gen().denoising_loss, gen().log_prob):
        with pytest.raises(ValueError, match="NaN"):
            distribution_of(torch.tensor([[0.0, torch.nan]]))
        with pytest.raises(ValueError, match="expected x of shape"):
            distribution_of(torch.zeros(5, 3))
    with pytest.raises(ValueError, match="base with events"):
        FlowMatching(
            TimeMLP(2, [8]), (2,), base=Fixed(dist.Normal, loc=torch.zeros(3), scale=1.0)
        )()
    with pytest.raises(ValueError, match="context_dropout"):
        FlowMatching(TimeMLP(2, [8]), (2,), context_dropout=1.0)
    with pytest.raises(ValueError, match="one shape"):
        OptimalTransport()(torch.zeros(3, 2), torch.zeros(4, 2), None)
    with pytest.raises(ValueError, match="complete rows"):
        Empirical(torch.tensor([[torch.nan]]))
