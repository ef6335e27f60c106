"""Discrepancies against double loops and closed forms of normal distributions.

Moment matching of implicit distributions.
"""

import math

import pytest
import torch

from probgen.compile.tracing import record_operations
from probgen.core.missing import assume_missing
from probgen.core.module import standard_normal
from probgen.heads import Bernoulli
from probgen.models.gan import GAN
from probgen.nn import MLP, Constant
from probgen.nn.side_by_side import SideBySide
from probgen.objectives.discrepancy import (
    MMD,
    RBF,
    Discrepancy,
    EnergyDistance,
    InverseMultiquadric,
    SlicedWasserstein,
)
from probgen.train.fit import adam, fit

KERNELS = {
    "RBF": (RBF([0.5, 2.0]), lambda d: sum(math.exp(-(d**2) / (2 * h**2)) for h in (0.5, 2.0))),
    "IMQ": (
        InverseMultiquadric([0.5, 2.0]),
        lambda d: sum(h**2 / (h**2 + d**2) for h in (0.5, 2.0)),
    ),
}


def double_loop(function, x, y, unbiased):
    """Averages of a function of distances within x, within y and between them."""
    distance = lambda a, b: math.dist(a.tolist(), b.tolist())  # noqa: E731

    def within(s):
        pairs = [(i, j) for i in range(len(s)) for j in range(len(s)) if not unbiased or i != j]
        return sum(function(distance(s[i], s[j])) for i, j in pairs) / len(pairs)

    between = sum(function(distance(a, b)) for a in x for b in y) / (len(x) * len(y))
    return within(x), within(y), between


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("name", KERNELS)
def test_mmd_is_a_double_loop(name, unbiased):
    kernel, function = KERNELS[name]
    x, y = torch.randn(7, 3).double() + 50, torch.randn(5, 3).double() + 51
    within_x, within_y, between = double_loop(lambda d: function(d / 1.5), x, y, unbiased)
    value = MMD(kernel, unit=1.5, unbiased=unbiased)(x, y)
    torch.testing.assert_close(value.item(), within_x + within_y - 2 * between)
    unit = torch.cdist(x, y).square().median().sqrt().item()
    torch.testing.assert_close(MMD(kernel)(x, y), MMD(kernel, unit=unit)(x, y))


@pytest.mark.parametrize("unbiased", [True, False])
def test_energy_distance_is_a_double_loop(unbiased):
    x, y = torch.randn(7, 2, 2).double(), torch.randn(5, 2, 2).double() + 1
    within_x, within_y, between = double_loop(lambda d: d, x.flatten(1), y.flatten(1), unbiased)
    torch.testing.assert_close(
        EnergyDistance(unbiased)(x, y).item(), 2 * between - within_x - within_y
    )


@pytest.mark.slow
def test_discrepancies_of_normal_distributions():
    r"""N(0, 1) and N(m, s^2).

    E k = (1 + v / h^2)^{-1/2} exp(-m^2 / 2(h^2 + v)) with v the variance of the difference, E|d|
    that of a folded normal distribution, and a transport cost of m^2 + (s - 1)^2.
    """
    m, s, h = 0.8, 1.5, 0.7
    x, y = torch.randn(3000, 1).double(), m + s * torch.randn(3000, 1).double()

    def kernel(m, v):
        return h / math.sqrt(h**2 + v) * math.exp(-(m**2) / (2 * (h**2 + v)))

    def folded(m, v):
        z = m / math.sqrt(2 * v)
        return math.sqrt(2 * v / math.pi) * math.exp(-(z**2)) + m * math.erf(z)

    for value, within_x, within_y, between in (
        (MMD(RBF([h]), unit=1.0)(x, y), kernel(0, 2), kernel(0, 2 * s**2), kernel(m, 1 + s**2)),
        (-EnergyDistance()(x, y), folded(0, 2), folded(0, 2 * s**2), folded(m, 1 + s**2)),
    ):
        assert abs(value - (within_x + within_y - 2 * between)) < 0.08
    assert abs(SlicedWasserstein(1)(x, y) - (m**2 + (s - 1) ** 2)) < 0.2


def test_sliced_transport_divides_by_the_dimension():
    """A shift by m in D dims costs |m|^2 / D along a direction, on average."""
    x, shift = torch.randn(50, 3), torch.tensor([1.0, 2.0, 2.0])
    assert abs(SlicedWasserstein(20000)(x, x + shift) - 3.0) < 0.1
    with pytest.raises(ValueError, match="samples of one size"):
        SlicedWasserstein()(x, x[:3])


def test_gradients_are_finite_where_rows_coincide():
    x = torch.ones(4, 2, requires_grad=True)
    for measure in (MMD(), EnergyDistance(), SlicedWasserstein()):
        (slope,) = torch.autograd.grad(measure(torch.ones(4, 2), x) + 0 * x.sum(), x)
        assert slope.isfinite().all()


def test_one_row_has_no_pairs():
    with pytest.raises(ValueError, match="at least two rows"):
        MMD()(torch.zeros(1, 2), torch.zeros(3, 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    "measure", [MMD(), EnergyDistance(), SlicedWasserstein()], ids=lambda m: type(m).__name__
)
def test_a_generator_matches_its_data(measure):
    x = torch.tensor([2.0, -1.0]) + torch.tensor([0.5, 1.5]) * torch.randn(500, 2)
    gan = GAN(MLP(2, [16], 2), standard_normal(2))
    options = {
        "steps": 250,
        "batch_size": 128,
        "optimizer": adam(1e-2),
        "compile": False,
        "verdict": False,
        "seed": 0,
    }
    fit(gan, x, Discrepancy(measure), **options)
    draws = gan().sample((4000,))
    assert (draws.mean(0) - x.mean(0)).abs().max() < 0.25
    assert (draws.std(0) / x.std(0) - 1).abs().max() < 0.25


def test_a_context_is_compared_with_the_rows():
    """x = c + noise: matching x alone would let the generator ignore c."""
    c = torch.randn(500, 1)
    x = c + 0.1 * torch.randn(500, 1)
    gan = GAN(SideBySide(MLP(1 + 1, [16], 1)), standard_normal(1), (1,))
    options = {
        "steps": 200,
        "batch_size": 128,
        "optimizer": adam(1e-2),
        "compile": False,
        "verdict": False,
        "seed": 0,
    }
    fit(gan, (x, c), Discrepancy(EnergyDistance()), **options)
    assert torch.corrcoef(torch.cat([gan(c).sample(), c], 1).T)[0, 1] > 0.95


def test_the_loss_is_one_graph():
    gan, x = GAN(MLP(2, [4], 2), standard_normal(2)), torch.randn(16, 2)
    for measure in (MMD(), EnergyDistance(), SlicedWasserstein()):
        loss = Discrepancy(measure)(gan.model, gan.guide)
        with assume_missing(False):
            recording = record_operations(loss, torch.zeros(16, 2))
        values = []
        for run in (loss, recording):
            torch.manual_seed(5)
            values.append(run(x).detach())
        torch.testing.assert_close(*values)
        assert recording.refusal is None


def test_distributions_without_gradients_are_refused():
    distribution = Bernoulli(Constant(2))
    with pytest.raises(TypeError, match="rsample"):
        Discrepancy()(distribution.model, distribution.guide)(torch.ones(4, 2))
