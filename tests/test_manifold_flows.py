"""Flows on the circle, the torus and the sphere.

Areas, seams, determinants, distributions known in closed form.
"""

import math

import pyro.distributions as dist
import pytest
import torch
from torch.nn.functional import normalize

import probgen as pg
from probgen.distributions.flows.circular import CircularTransform, IntervalSpline
from probgen.distributions.flows.sphere import CylinderTransform
from probgen.models.circular_flow import CircularFlow
from probgen.models.sphere_flow import SphereFlow

TURN = 2 * math.pi


def disturbed(module: torch.nn.Module, amount: float = 0.3) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(amount * torch.randn_like(parameter))
    return module


def midpoints(count: int, low: float, high: float) -> torch.Tensor:
    return low + (high - low) * (torch.arange(count) + 0.5) / count


def on_sphere(longitude: torch.Tensor, height: torch.Tensor) -> torch.Tensor:
    radius = (1 - height.square()).sqrt()
    return torch.stack((radius * longitude.cos(), radius * longitude.sin(), height), -1)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-2)


@pytest.mark.parametrize(
    "make", [lambda raw: CircularTransform(raw), lambda raw: IntervalSpline(raw, math.pi)]
)
def test_slopes_are_those_of_autograd_and_inverses_go_back(make):
    torch.manual_seed(0)
    transform = make(torch.randn(13))
    edge = torch.tensor([-math.pi, -math.pi + 1e-6, math.pi - 1e-6, math.pi])
    x = torch.cat((midpoints(500, -math.pi, math.pi), edge)).requires_grad_()
    y, ladj = transform.call_and_ladj(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(ladj, slope.log(), atol=1e-4, rtol=1e-4)
    back, inverse_ladj = transform.inverse_and_ladj(y)
    assert ((back - x + math.pi).remainder(TURN) - math.pi).abs().max() < 2e-5
    torch.testing.assert_close(inverse_ladj, -ladj, atol=1e-2, rtol=0)


def test_circle_integrates_to_one_and_has_no_seam():
    torch.manual_seed(1)
    gen = disturbed(CircularFlow(1, transforms=3))
    angles = midpoints(2000, -math.pi, math.pi)[:, None]
    total = gen().log_prob(angles).exp().mean() * TURN
    torch.testing.assert_close(total, torch.ones(()), atol=1e-4, rtol=0)
    sides = gen().log_prob(
        torch.tensor([[math.pi - 1e-5], [-math.pi + 1e-5], [math.pi], [-math.pi]])
    )
    torch.testing.assert_close(sides, sides[:1].expand(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        gen().log_prob(angles + 3 * TURN), gen().log_prob(angles), atol=1e-3, rtol=0
    )


def test_torus_integrates_to_one_and_has_no_seam():
    torch.manual_seed(2)
    gen = disturbed(CircularFlow(2, transforms=3, hidden=(16,)))
    angles = midpoints(300, -math.pi, math.pi)
    total = gen().log_prob(torch.cartesian_prod(angles, angles)).exp().mean() * TURN**2
    torch.testing.assert_close(total, torch.ones(()), atol=1e-3, rtol=0)
    one, other = (
        torch.stack((angles, math.pi - 1e-5 + 0 * angles), -1),
        torch.stack((angles, 0 * angles - math.pi), -1),
    )
    torch.testing.assert_close(gen().log_prob(one), gen().log_prob(other), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        gen().log_prob(one.flip(-1)), gen().log_prob(other.flip(-1)), atol=1e-3, rtol=0
    )
    draws = gen().sample((500,))
    assert draws.abs().max() <= math.pi + 1e-6


def test_sphere_integrates_to_one_and_samples_lie_on_it():
    torch.manual_seed(3)
    gen = disturbed(SphereFlow(transforms=2, hidden=(16,)))
    coordinates = torch.cartesian_prod(midpoints(300, -math.pi, math.pi), midpoints(300, -1, 1))
    total = gen().log_prob(on_sphere(*coordinates.unbind(-1))).exp().mean() * 2 * TURN
    torch.testing.assert_close(total, torch.ones(()), atol=1e-3, rtol=0)
    draws = gen().sample((1000,))
    torch.testing.assert_close(draws.norm(dim=-1), torch.ones(1000), atol=1e-6, rtol=0)
    seam = [
        on_sphere(torch.tensor(angle), midpoints(50, -1, 1))
        for angle in (math.pi - 1e-6, 1e-6 - math.pi)
    ]
    torch.testing.assert_close(gen().log_prob(seam[0]), gen().log_prob(seam[1]), atol=1e-3, rtol=0)


def test_density_on_the_sphere_is_with_respect_to_area():
    """Areas of the map from the sphere's tangent planes to longitude and height, by autograd."""
    torch.manual_seed(4)
    for x in normalize(torch.randn(5, 3, dtype=torch.float64), dim=-1):
        tangents = torch.linalg.svd(x[None]).Vh[1:]  # two unit vectors orthogonal to x
        jacobian = torch.autograd.functional.jacobian(lambda p: CylinderTransform()(p), x)
        area = (jacobian @ tangents.mT).det().abs()
        torch.testing.assert_close(area, torch.ones((), dtype=torch.float64))


def test_poles_have_finite_densities_and_gradients():
    gen = disturbed(SphereFlow(transforms=1, hidden=(8,)))
    value = gen().log_prob(torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]]))
    value.sum().backward()
    assert value.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in gen.parameters())


@pytest.mark.slow
def test_modes_on_the_circle_are_learned_to_their_entropy():
    torch.manual_seed(5)
    truth = dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.5, 0.3, 0.2])),
        dist.VonMises(torch.tensor([3.0, 0.5, -1.5]), torch.tensor([8.0, 20.0, 3.0])),
    )
    gen = CircularFlow(1, transforms=2, bins=8)
    pg.fit(
        gen,
        truth.sample((4000,))[:, None],
        steps=200,
        batch_size=500,
        optimizer=adam,
        compile=False,
        seed=0,
    )
    angles = midpoints(4000, -math.pi, math.pi)
    log_truth, log_gen = truth.log_prob(angles), gen().log_prob(angles[:, None])
    divergence = (log_truth.exp() * (log_truth - log_gen)).mean() * TURN
    assert 0 <= divergence < 0.03
    entropy = -(log_truth.exp() * log_truth).mean() * TURN
    assert math.log(TURN) - entropy > 0.5  # what the uniform distribution loses


@pytest.mark.slow
def test_dependent_angles_on_the_torus_are_learned_to_their_entropy():
    """The second angle follows the first around the seam.

    The entropy is that of a uniform and a von Mises distribution.
    """
    torch.manual_seed(6)
    error = dist.VonMises(torch.tensor(0.0), torch.tensor(10.0))
    first = TURN * torch.rand(4000)
    x = torch.stack((first, 2 * first + error.sample((4000,))), -1)
    gen = CircularFlow(2, transforms=2, bins=8, hidden=(32, 32))
    pg.fit(gen, x, steps=250, batch_size=500, optimizer=adam, compile=False, seed=0)
    angles = midpoints(2000, -math.pi, math.pi)
    entropy = math.log(TURN) - (error.log_prob(angles).exp() * error.log_prob(angles)).mean() * TURN
    first = TURN * torch.rand(4000)
    fresh = torch.stack((first, 2 * first + error.sample((4000,))), -1)
    loss = -gen().log_prob(fresh).mean()
    assert entropy - 0.05 < loss < entropy + 0.1


@pytest.mark.slow
def test_a_von_mises_fisher_distribution_is_learned_to_its_entropy():
    torch.manual_seed(7)
    concentration, center = 5.0, normalize(torch.tensor([1.0, 1.0, 0.3]), dim=-1)

    def draw(count):
        u, longitude = torch.rand(count), TURN * torch.rand(count)
        height = 1 + torch.log(u + (1 - u) * math.exp(-2 * concentration)) / concentration
        frame = torch.linalg.qr(torch.cat((center[:, None], torch.eye(3)[:, :2]), -1)).Q
        frame = frame[:, [1, 2, 0]] * torch.tensor([1.0, 1.0, torch.sign(frame[:, 0] @ center)])
        return on_sphere(longitude, height) @ frame.mT

    entropy = math.log(4 * math.pi * math.sinh(concentration) / concentration)
    entropy -= concentration * (1 / math.tanh(concentration) - 1 / concentration)
    gen = SphereFlow(transforms=2, hidden=(32,))
    pg.fit(gen, draw(4000), steps=150, batch_size=500, optimizer=adam, compile=False, seed=0)
    loss = -gen().log_prob(draw(4000)).mean()
    assert entropy - 0.05 < loss < entropy + 0.08


def test_too_few_layers_are_refused():
    with pytest.raises(ValueError, match="2 on a torus"):
        CircularFlow(2, transforms=1)
    with pytest.raises(ValueError, match="transforms >= 1"):
        SphereFlow(transforms=0)
