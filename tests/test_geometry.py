"""Flows on manifolds and flows of points: closed forms, divergences, integrals, symmetries."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import vonmises_fisher
from torch import nn

import probgen as pg
from probgen.distributions.flows.manifolds import (
    Hyperboloid,
    ManifoldBase,
    Rotations,
    Sphere,
    Torus,
)

DOUBLE = torch.double
MANIFOLDS = [Sphere(2), Sphere(3), Torus(2), Hyperboloid(2), Hyperboloid(3, 0.7), Rotations()]
NAMES = [str(manifold) for manifold in MANIFOLDS]
on_each = pytest.mark.parametrize("manifold", MANIFOLDS, ids=NAMES)


def points(manifold, count):
    return ManifoldBase(manifold, torch.zeros((), dtype=DOUBLE)).sample((count,))


def wide(t, manifold):
    return t.reshape(-1, *[1] * len(manifold.shape))


class Wavy(nn.Module):
    """A smooth field that depends on the time."""

    def __init__(self, inputs, outputs, size=0.7):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=DOUBLE)  # noqa: E731
        self.first, self.last = (nn.Parameter(draw(*s)) for s in ((inputs, 12), (12, outputs)))
        self.size = size

    def forward(self, u, t, context=None):
        return self.size * (u @ self.first + t.unsqueeze(-1)).sin() @ self.last / 12**0.5


def wavy(manifold, solver=pg.flows.RungeKutta(6)):  # noqa: B008
    net = Wavy(manifold.inputs, manifold.outputs, 0.4 if type(manifold) is Rotations else 0.7)
    return pg.RiemannianFlowMatching(net, manifold, solver=solver).double()


@on_each
def test_geodesics_lead_where_logarithms_say_at_constant_speed(manifold):
    torch.manual_seed(0)
    x, y = points(manifold, 50), points(manifold, 50)
    v = manifold.log(x, y)
    torch.testing.assert_close(manifold.geodesic(x, v, 1.0)[0], y, atol=1e-7, rtol=1e-7)
    t = wide(torch.rand(50, dtype=DOUBLE), manifold)
    place, velocity = manifold.geodesic(x, v, t)
    assert manifold.support.check(place).all()
    ahead, behind = (manifold.geodesic(x, v, t + sign * 1e-5)[0] for sign in (1, -1))
    moved = (
        (ahead - behind + math.pi) % (2 * math.pi) - math.pi
        if type(manifold) is Torus
        else ahead - behind
    )
    torch.testing.assert_close(moved / 2e-5, velocity, atol=1e-5, rtol=1e-5)
    length = manifold.distance(x, y)
    torch.testing.assert_close(manifold.squared(place, velocity), length.square())
    torch.testing.assert_close(manifold.distance(x, place), t.flatten() * length)
    torch.testing.assert_close(manifold.log(x, x), torch.zeros_like(x), atol=1e-7, rtol=0)


def frame(manifold, x):
    """Orthonormal tangent vectors at points, ``(d, *batch, *shape)``, by Gram and Schmidt."""
    found = []
    for unit in torch.eye(manifold.outputs, dtype=DOUBLE):
        v = manifold.vector(x, unit.expand(*x.shape[:1], -1))
        for other in found:
            product = (manifold.squared(x, v + other) - manifold.squared(x, v - other)) / 4
            v = v - wide(product, manifold) * other
        length = manifold.squared(x, v)
        if (length > 1e-6).all():
            found.append(v / wide(length.sqrt(), manifold))
    return found


@on_each
def test_the_trace_in_the_space_around_is_the_divergence_by_its_definition(manifold):
    """The sum of covariant derivatives along an orthonormal frame, by differences."""
    torch.manual_seed(1)
    gen, x, h = wavy(manifold, pg.flows.Euler(1)), points(manifold, 20), 1e-4
    field = gen().transform.velocity
    start = torch.zeros((), dtype=DOUBLE)
    total = 0.0
    for e in frame(manifold, x):
        ahead, behind = (
            field(start, manifold.geodesic(x, sign * e, h)[0]).detach() for sign in (1, -1)
        )
        slope = (ahead - behind) / (2 * h)
        # the part along e of a vector that need not be tangent
        total = total + (_product(manifold, slope, e)).flatten(1).sum(1)
    _, trace = gen().transform.call_and_ladj(x)
    torch.testing.assert_close(trace.detach(), total, atol=1e-5, rtol=1e-5)


def _product(manifold, v, e):
    if type(manifold) is Hyperboloid:
        signs = torch.ones(v.shape[-1], dtype=DOUBLE)
        signs[0] = -1
        return signs * v * e
    return v * e / (2 if type(manifold) is Rotations else 1)


def midpoints(count, low, high):
    return low + (high - low) * (torch.arange(count, dtype=DOUBLE) + 0.5) / count


def turned(axis, angle):
    """Rotation matrices about a coordinate axis."""
    v = torch.eye(3, dtype=DOUBLE)[axis] * angle.unsqueeze(-1)
    return Rotations().geodesic(
        torch.eye(3, dtype=DOUBLE), Rotations().vector(torch.eye(3, dtype=DOUBLE), v), 1.0
    )[0]


def quadrature(manifold):
    """Points and volumes that integrate over a manifold."""
    turn = 2 * math.pi
    if type(manifold) is Sphere:
        angle, height = torch.meshgrid(midpoints(48, 0, turn), midpoints(48, -1, 1), indexing="ij")
        radius = (1 - height.square()).sqrt()
        x = torch.stack((radius * angle.cos(), radius * angle.sin(), height), -1)
        return x.flatten(0, 1), torch.full((48**2,), 2 * turn / 48**2, dtype=DOUBLE)
    if type(manifold) is Torus:
        axes = torch.meshgrid(*[midpoints(40, 0, turn)] * 2, indexing="ij")
        return torch.stack(axes, -1).flatten(0, 1), torch.full(
            (1600,), turn**2 / 1600, dtype=DOUBLE
        )
    if type(manifold) is Hyperboloid:
        angle, far = torch.meshgrid(midpoints(32, 0, turn), midpoints(160, 0, 8), indexing="ij")
        u = far.sinh().unsqueeze(-1) * torch.stack((angle.cos(), angle.sin()), -1)
        return manifold.point(u).flatten(0, 1), (far.sinh() * turn / 32 * 8 / 160).flatten()
    heights, shares = np.polynomial.legendre.leggauss(8)
    first, height, last = torch.meshgrid(
        midpoints(10, 0, turn), torch.as_tensor(heights), midpoints(10, 0, turn), indexing="ij"
    )
    x = turned(2, first) @ turned(1, height.acos()) @ turned(2, last)
    shares = torch.as_tensor(shares)[None, :, None].expand(10, 8, 10)
    return x.flatten(0, 2), (turn / 10) ** 2 * shares.flatten()


@pytest.mark.parametrize(
    "manifold", [Sphere(2), Torus(2), Hyperboloid(2), Rotations()], ids=lambda m: str(m)
)
def test_densities_integrate_to_one(manifold):
    gen = wavy(manifold)
    x, volume = quadrature(manifold)
    with torch.no_grad():
        density = gen().log_prob(x).exp()
    assert (density * volume).sum() == pytest.approx(1.0, abs=1e-2)
    assert density.max() > 1.5 * density.median()  # no uniform one


@on_each
def test_draws_stay_on_the_manifold_and_have_the_density_that_is_told(manifold):
    torch.manual_seed(0)
    gen = wavy(manifold, pg.flows.Adaptive(1e-7, 1e-7))
    x, log_prob = gen().rsample_and_log_prob((20,))
    assert manifold.support.check(x).all()
    assert (manifold.onto(x) - x).abs().max() < 1e-9
    again = gen().log_prob(x.detach().clone())
    torch.testing.assert_close(log_prob, again, atol=1e-5, rtol=0)
    assert gen().density_kind == "exact"
    assert gen().using(pg.flows.Midpoint(4)).density_kind == "approximate"
    few = gen().using(pg.flows.Midpoint(4)).sample((20,))
    assert (manifold.onto(few) - few).abs().max() < 1e-9


class ToVonMisesFisher(nn.Module):
    """The field along meridians whose flow takes a von Mises-Fisher distribution to the uniform one.

    At time t densities are those of the concentration k (1 - t), whose distribution function of the
    height is known.
    """

    def __init__(self, mean, k):
        super().__init__()
        self.mean, self.k = mean, k

    def forward(self, x, t, context=None):
        c = (x @ self.mean).unsqueeze(-1)
        k = (self.k * (1 - t)).clamp(min=1e-4).unsqueeze(-1)
        below, whole = (k * c).exp() - (-k).exp(), 2 * k.sinh()
        rise = (c * (k * c).exp() + (-k).exp()) / whole - below * 2 * k.cosh() / whole.square()
        speed = self.k * rise / (k * (k * c).exp() / whole)
        return speed / (1 - c.square()).clamp(min=1e-9) * self.mean


@pytest.mark.parametrize("k", [1.0, 6.0])
def test_a_flow_to_the_uniform_distribution_has_von_mises_fisher_densities(k):
    torch.manual_seed(0)
    mean = torch.tensor([0.6, 0.0, 0.8], dtype=DOUBLE)
    solver = pg.flows.Adaptive(1e-7, 1e-7)
    gen = pg.RiemannianFlowMatching(ToVonMisesFisher(mean, k), Sphere(2), solver=solver)
    x = points(Sphere(2), 100)
    truth = torch.as_tensor(vonmises_fisher(mean.numpy(), k).logpdf(x.numpy()))
    torch.testing.assert_close(gen().log_prob(x), truth, atol=1e-3, rtol=0)
    draws = gen.double()().sample((4000,))
    height = 1 / math.tanh(k) - 1 / k
    torch.testing.assert_close(draws.mean(0), height * mean, atol=0.03, rtol=0)


@on_each
def test_bases_have_unit_mass_and_the_density_of_their_draws(manifold):
    """The mean of 1 / p over draws is the volume where that is finite."""
    torch.manual_seed(0)
    base = ManifoldBase(manifold, torch.zeros((), dtype=DOUBLE))
    x = base.sample((4000,))
    assert manifold.support.check(x).all()
    volumes = {"Sphere(dims=2)": 4 * math.pi, "Sphere(dims=3)": 2 * math.pi**2}
    volumes |= {"Torus(dims=2)": 4 * math.pi**2, "Rotations()": 8 * math.pi**2}
    if type(manifold) is Hyperboloid:
        near = manifold.distance(x, manifold.point(torch.zeros(manifold.dims, dtype=DOUBLE))) < 1.0
        ball = {2: 2 * math.pi * (math.cosh(1) - 1), 3: math.pi * (math.sinh(2) - 2)}
        inside = (near / base.log_prob(x).exp()).mean()
        assert inside == pytest.approx(ball[manifold.dims], rel=0.1)
    else:
        volume = base.log_prob(x[0]).exp().reciprocal()
        assert volume == pytest.approx(volumes[str(manifold)], rel=1e-6)
    if type(manifold) is Rotations:  # the mean of a rotation, and of the angle: pi / 2 + 2 / pi
        angle = manifold.distance(x, torch.eye(3, dtype=DOUBLE))
        assert angle.mean() == pytest.approx(math.pi / 2 + 2 / math.pi, abs=0.05)
        assert x.mean(0).abs().max() < 0.05


def spot(count):
    """Draws of a von Mises-Fisher distribution."""
    mean = torch.tensor([0.0, 0.6, 0.8])
    draws = vonmises_fisher(mean.numpy(), 8.0).rvs(count, random_state=0)
    return torch.tensor(draws, dtype=torch.float32), mean


@pytest.mark.slow
def test_matching_learns_a_spot_on_the_sphere():
    x, mean = spot(2000)
    torch.manual_seed(0)
    gen = pg.RiemannianFlowMatching(pg.nn.TimeMLP(3, [48, 48], embedding=16), Sphere(2))
    pg.fit(
        gen,
        x,
        pg.objectives.Denoising(),
        steps=800,
        batch_size=256,
        optimizer=pg.train.adam(5e-3),
        ema=0.99,
        compile=False,
        progress=False,
        verdict=False,
        seed=0,
    )
    score = pg.log_likelihood(gen, x[:500])
    truth = vonmises_fisher(mean.numpy(), 8.0).logpdf(x[:500].numpy()).mean()
    assert score.kind == "exact" and abs(score.mean - truth) < 0.1


def test_points_outside_of_the_manifold_are_refused():
    gen = pg.RiemannianFlowMatching(pg.nn.TimeMLP(9, [8], outputs=3), Rotations())
    with pytest.raises(ValueError, match="rotation matrices"):
        pg.fit(gen, torch.randn(4, 3, 3), pg.objectives.Denoising(), steps=1, progress=False)
    plane = Hyperboloid(2)
    gen = pg.RiemannianFlowMatching(pg.nn.TimeMLP(2, [8]), plane)
    with pytest.raises(ValueError, match="hyperboloid"):
        pg.fit(gen, torch.randn(4, 3), pg.objectives.Denoising(), steps=1, progress=False)
    with pytest.raises(ValueError, match="gives 3 numbers a point"):
        pg.RiemannianFlowMatching(pg.nn.TimeMLP(9, [8]), Rotations())().sample((2,))


def test_guidance_adds_tangent_vectors():
    torch.manual_seed(0)
    net = pg.nn.TimeMLP(3, [8], embedding=8, context=2)
    torch.nn.init.normal_(net.last.weight)
    gen = pg.RiemannianFlowMatching(net, Sphere(2), context_dropout=0.1).eval()
    one = torch.tensor([1.0, 0.0])
    plain = gen(one).using(pg.flows.Midpoint(4))
    drawn = []
    for distribution in (plain, plain.using(guidance=1.0), plain.using(guidance=4.0)):
        torch.manual_seed(1)
        drawn.append(distribution.sample((20,)))
    torch.testing.assert_close(drawn[0], drawn[1])
    assert (drawn[2] - drawn[0]).abs().max() > 1e-2
    assert (drawn[2].norm(dim=-1) - 1).abs().max() < 1e-5
    with pytest.raises(TypeError, match="ClassifierFree"):
        limit = pg.diffusion.StaticThreshold(-1.0, 1.0)
        plain.using(guidance=pg.guidance.Thresholded(limit)).sample()


# -- points


def basis(count):
    """Orthonormal vectors that sum to zero, ``(count - 1, count)``."""
    lines = torch.eye(count, dtype=DOUBLE)[1:] - 1 / count
    return torch.linalg.qr(lines.T)[0].T


def test_centered_points_are_normal_in_the_dims_that_they_have():
    base = pg.CenteredNormal(4, 3, scale=0.8).double()()
    x = base.sample((10,))
    coordinates = (basis(4) @ x).flatten(1)
    truth = torch.distributions.Normal(0.0, 0.8).log_prob(coordinates).sum(-1)
    torch.testing.assert_close(base.log_prob(x), truth)
    draws = base.sample((20000,))
    torch.testing.assert_close(
        draws.mean(-2), torch.zeros(20000, 3, dtype=DOUBLE), atol=1e-9, rtol=0
    )
    spread = (basis(4) @ draws).flatten(1).std(0)
    torch.testing.assert_close(spread, torch.full((9,), 0.8, dtype=DOUBLE), atol=0.02, rtol=0)
    torch.testing.assert_close(draws.mean(0), base.mean, atol=0.02, rtol=0)
    torch.testing.assert_close(draws.var(0), base.variance, atol=0.02, rtol=0)


def cloud(types=None, dims=3, points=4):
    torch.manual_seed(0)
    net = pg.nn.EGNN(dims, width=8, layers=2, types=types)
    base = pg.CenteredNormal(points, dims)
    solver = pg.flows.RungeKutta(3)
    return pg.FlowMatching(net, (points, dims), base=base, solver=solver).double()


@pytest.mark.parametrize("types", [None, [0, 0, 1, 1]], ids=["alike", "typed"])
def test_densities_of_points_do_not_change_when_points_turn_move_or_are_numbered_anew(types):
    gen = cloud(types)
    x = torch.randn(6, 4, 3, dtype=DOUBLE)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=DOUBLE))[0]
    mirror = turn * torch.tensor([-1.0, 1.0, 1.0], dtype=DOUBLE)
    with torch.no_grad():
        log_prob = gen().log_prob(x)
        assert log_prob.std() > 0.1
        changed = {"turned": x @ turn, "mirrored": x @ mirror, "moved": x + 3.0}
        changed["numbered anew"] = x[:, [1, 0, 3, 2]]
        for name, other in changed.items():
            torch.testing.assert_close(gen().log_prob(other), log_prob, msg=name)
        swapped = gen().log_prob(x[:, [2, 1, 0, 3]])
    assert torch.allclose(swapped, log_prob) == (types is None)


def test_the_density_of_two_points_on_a_line_integrates_to_one():
    gen = cloud(dims=1, points=2)
    far = midpoints(400, -8, 8)
    x = torch.stack((far, -far), -1).unsqueeze(-1) / 2**0.5
    with torch.no_grad():
        density = gen().log_prob(x).exp()
    assert (density.sum() * 16 / 400) == pytest.approx(1.0, abs=1e-3)
    base = gen().base_dist.log_prob(x).exp()
    assert (density - base).abs().max() > 1e-3
    drawn = gen().sample((10,))
    assert drawn.mean(-2).abs().max() < 1e-9


def test_the_network_of_points_turns_along():
    net = cloud().net
    x, t = torch.randn(5, 4, 3, dtype=DOUBLE), torch.rand(5, dtype=DOUBLE)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=DOUBLE))[0]
    torch.testing.assert_close(net(x @ turn + 2.0, t), net(x, t) @ turn)
    order = torch.randperm(4)
    torch.testing.assert_close(net(x[:, order], t), net(x, t)[:, order])
    with pytest.raises(ValueError, match="expected x of shape"):
        net(torch.zeros(5, 4, 2, dtype=DOUBLE), t)
