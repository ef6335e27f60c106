"""Losses and samplers of few steps against Gaussian data, whose flow maps have closed forms."""

import copy

import pytest
import torch
from gaussian_diffusion import COVARIANCE, MEAN, Exact, best_guess, exact, exact_map

import probgen as pg
from probgen.distributions.diffusion.gaussian_diffused import GaussianDiffused
from probgen.distributions.diffusion.predictions import EDM, Velocity
from probgen.distributions.diffusion.samplers import DDIM, ConsistencySteps
from probgen.distributions.diffusion.schedules import CosineSchedule, EDMSchedule

CASES = [(CosineSchedule(), Velocity()), (EDMSchedule(), EDM(1.0))]
NAMES = ["Velocity", "EDM"]
VALUES, VECTORS = torch.linalg.eigh(COVARIANCE)


def spread(alpha, sigma):
    """Deviations of the state along the axes of the data."""
    return (alpha.square() * VALUES + sigma.square()).sqrt()


def landing(schedule):
    """Where the probability-flow equation leads a state, in the unit of the data."""
    first = schedule(torch.zeros((), dtype=torch.double))

    def guess(z, alpha, sigma):
        along = (z - alpha * MEAN) @ VECTORS * spread(*first) / spread(alpha, sigma)
        return MEAN + along @ VECTORS.T / first[0]

    return guess


def saying(guess, schedule, prediction, **options):
    """The distribution by a network that says a given guess of the data."""
    plain = exact(schedule, prediction)
    net = Exact(schedule, prediction, guess)
    return GaussianDiffused(net, plain.process, plain.noise, **options)


@pytest.mark.parametrize(("schedule", "prediction"), CASES, ids=NAMES)
def test_the_consistency_function_of_a_gaussian_is_consistent(schedule, prediction):
    teacher = exact(schedule, prediction)
    student = saying(landing(schedule), schedule, prediction)
    x = torch.distributions.MultivariateNormal(MEAN, COVARIANCE).sample((500,))
    gaps = []
    for count in (20, 40):
        torch.manual_seed(0)
        pair = student.consistency_pair(x, (count, -1.1, 2.0, 7.0), teacher)
        gaps.append((pair.own - pair.other).norm(dim=-1).mean())
        assert (pair.gap > 0).all()
    assert gaps[1] < 2e-2 and 4 < gaps[0] / gaps[1] < 16  # Heun's errors are of third order a step
    guesses = teacher.consistency_pair(x, (40, -1.1, 2.0, 7.0), teacher)
    assert (guesses.own - guesses.other).norm(dim=-1).mean() > 3 * gaps[1]


@pytest.mark.parametrize(("schedule", "prediction"), CASES, ids=NAMES)
def test_consistency_steps_draw_gaussian_data(schedule, prediction):
    distribution = saying(landing(schedule), schedule, prediction)
    torch.manual_seed(0)
    once = distribution.using(ConsistencySteps(1)).sample((6,))
    torch.manual_seed(0)
    noise = distribution.prior().sample((6,))
    ended = exact_map(distribution.process, noise, 1.0, 0.0)
    ended = ended / schedule(torch.zeros((), dtype=torch.double))[0]
    torch.testing.assert_close(once, ended)
    for num_steps in (1, 3):
        draws = distribution.using(ConsistencySteps(num_steps)).sample((20000,))
        torch.testing.assert_close(draws.mean(0), MEAN, atol=0.03, rtol=0)
        torch.testing.assert_close(draws.T.cov(), COVARIANCE, atol=0.04, rtol=0)


class Perturbed:
    """A guess plus a combination of functions of the state with given weights."""

    def __init__(self, guess):
        self.guess = guess
        self.weights = torch.zeros(3, dtype=torch.double, requires_grad=True)

    def __call__(self, z, alpha, sigma):
        share = sigma / (alpha + sigma)
        parts = torch.stack((share.expand_as(z), share * z, share * z.tanh()), -1)
        return self.guess(z, alpha, sigma) + parts @ self.weights


def test_consistency_training_is_stationary_at_the_consistency_function_alone():
    """Its gradient there is zero in the direction of any function, up to the size of the steps."""
    schedule, prediction = CASES[0]
    x = torch.distributions.MultivariateNormal(MEAN, COVARIANCE).sample((25, 2400))
    found = {}
    for name, guess in (("landing", landing(schedule)), ("mean", best_guess)):
        torch.manual_seed(0)
        tried = Perturbed(guess)
        distribution = saying(tried, schedule, prediction)
        gradients = []
        for rows in x:
            pair = distribution.consistency_pair(rows, (400, -1.0, 1.0, 7.0))
            loss = ((pair.own - pair.other).square().sum(-1) / pair.gap).mean()
            gradients.append(torch.autograd.grad(loss, tried.weights)[0])
        gradients = torch.stack(gradients)
        found[name] = gradients.mean(0) / gradients.std(0) * len(x) ** 0.5
    assert (found["landing"].abs() < 4).all() and found["mean"].abs().max() > 8


def halved(schedule, num_steps):
    """What to say for one step of DDIM to arrive where two half steps by the best guess arrive."""

    def step(guess, z, here, there):
        return there[0] * guess + there[1] * (z - here[0] * guess) / here[1]

    def guess(z, alpha, sigma):
        t = schedule.time(2 * (alpha / sigma).log())
        grid = [tuple(schedule((t - k / (2 * num_steps)).clamp(min=0))) for k in range(3)]
        first = step(best_guess(z, *grid[0]), z, grid[0], grid[1])
        last = step(best_guess(first, *grid[1]), first, grid[1], grid[2])
        (a, s), (b, r) = grid[0], grid[2]
        return (last - r / s * z) / (b - r / s * a)

    return guess


@pytest.mark.parametrize("num_steps", [1, 4])
def test_a_student_that_says_what_is_wanted_takes_two_steps_in_one(num_steps):
    schedule, prediction = CASES[0]
    teacher = exact(schedule, prediction)
    student = saying(halved(schedule, num_steps), schedule, prediction)
    x = torch.distributions.MultivariateNormal(MEAN, COVARIANCE).sample((200,))
    pair = student.halved_pair(x, num_steps, teacher)
    assert pair.loss.max() < 1e-12 and set((pair.time * num_steps).round().tolist()) == set(
        range(1, num_steps + 1)
    )
    draws = []
    for distribution, sampler in ((student, DDIM(num_steps)), (teacher, DDIM(2 * num_steps))):
        torch.manual_seed(0)
        draws.append(distribution.using(sampler).sample((50,)))
    torch.testing.assert_close(*draws)
    assert teacher.halved_pair(x, num_steps, teacher).loss.mean() > 1e-4


DATA_MEAN, DATA_SCALE = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 3.0]).double()


def moments(path, t):
    """Mean and deviation of states at times ``(*batch, 1)``, and of how they change."""
    a, b, a_rate, b_rate = path(t)
    return a * DATA_MEAN, ((a * DATA_SCALE).square() + b**2).sqrt(), a_rate, b_rate


class GaussianMean(torch.nn.Module):
    """The mean velocity over spans where data are normal, by the closed form of the flow map."""

    def __init__(self, path):
        super().__init__()
        self.path = path
        self.weights = torch.nn.Parameter(torch.zeros(3, dtype=torch.double))

    def forward(self, x, times, context=None):
        t, s = times[..., :1], times[..., 1:]
        own = self.over(x, t, s)
        parts = torch.stack((t.expand_as(x), x * s, x.tanh() * (t - s)), -1)
        return own + parts @ self.weights

    def over(self, x, t, s):
        longest = torch.where(t - s < 1e-3, 1e-3, t - s)  # next to none tells the velocity
        s = t - longest
        mean, scale, *_ = moments(self.path, t)
        before, spread, *_ = moments(self.path, s)
        landed = before + spread / scale * (x - mean)
        return (x - landed) / longest


def averaged(path):
    return pg.FlowMatching(GaussianMean(path), (2,), path=path, spans=True).double()


PATHS = [pg.flows.StraightPath(), pg.flows.TrigonometricPath()]


@pytest.mark.parametrize("path", PATHS, ids=["straight", "trigonometric"])
@pytest.mark.parametrize("num_steps", [1, 3])
def test_mean_velocities_of_gaussians_draw_in_one_step(path, num_steps):
    gen = averaged(path)
    torch.manual_seed(0)
    x, z = gen().using(pg.flows.MeanSteps(num_steps)).sample_pairs((20,))
    torch.testing.assert_close(x, DATA_MEAN + DATA_SCALE * z, atol=1e-5, rtol=0)
    assert gen().using(pg.flows.MeanSteps(1)).density_kind == "approximate"
    truth = torch.distributions.Normal(DATA_MEAN, DATA_SCALE).log_prob(x).sum(-1)
    torch.testing.assert_close(gen().log_prob(x), truth, atol=2e-2, rtol=0)


def test_the_way_of_drawing_that_is_asked_for_last_holds():
    flow = averaged(PATHS[0])()
    by_means = flow.using(pg.flows.MeanSteps(1))
    drawn = []
    for distribution in (
        flow.using(pg.flows.Euler(3)),
        by_means.using(pg.flows.Euler(3)),
        by_means,
        flow.using(pg.flows.Euler(3)).using(pg.flows.MeanSteps(1)),
    ):
        torch.manual_seed(0)
        drawn.append(distribution.sample((5,)))
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[2], drawn[3])
    assert not torch.equal(drawn[0], drawn[2])
    assert by_means.expand((2,)).sample().shape == (2, 2)
    for way in (
        lambda: by_means.using(guidance=2.0),
        lambda: flow.using(pg.flows.MeanSteps(1), guidance=2.0),
        lambda: flow.using(guidance=2.0).using(pg.flows.MeanSteps(1)),
    ):
        with pytest.raises(ValueError, match="expected no guidance with MeanSteps"):
            way()


@pytest.mark.parametrize("path", PATHS, ids=["straight", "trigonometric"])
def test_mean_flow_is_stationary_at_the_mean_velocity_alone(path):
    """Its gradient is zero there, in the direction of any function, for spans of any length."""
    torch.manual_seed(0)
    x = DATA_MEAN + DATA_SCALE * torch.randn(25, 2000, 2, dtype=torch.double)
    gen = averaged(path)
    loss = pg.objectives.MeanFlow(1.0, power=0.0)(gen.model, gen.guide)
    found = {}
    for name, weights in (("right", [0.0, 0.0, 0.0]), ("wrong", [0.0, 0.0, 1.0])):
        with torch.no_grad():
            gen.net.weights.copy_(torch.tensor(weights))
        gradients = torch.stack([torch.autograd.grad(loss(rows), gen.net.weights)[0] for rows in x])
        found[name] = gradients.mean(0) / gradients.std(0) * len(x) ** 0.5
    assert (found["right"].abs() < 4).all() and found["wrong"].abs().max() > 8


def test_spans_without_length_tell_the_velocity():
    """There the loss is that of flow matching, at the same times and draws."""
    gen = averaged(pg.flows.StraightPath())
    x, z = gen().sample_pairs((50,))
    spans = pg.objectives.MeanFlow(0.0).spans
    torch.manual_seed(0)
    pair = gen().mean_velocity_pair(x, spans)
    torch.manual_seed(0)
    z = torch.randn_like(x)
    t, s = spans((50,), x)
    assert torch.equal(t, s)
    torch.testing.assert_close(pair.wanted, z - x)
    torch.testing.assert_close(
        pair.own, Curved()((1 - t)[:, None] * x + t[:, None] * z, t), atol=2e-2, rtol=0
    )


class Curved(torch.nn.Module):
    """The velocity E[z - x | x_t] of independent pairs, whose paths are not straight."""

    def forward(self, state, t, context=None):
        mean, scale, *_ = moments(pg.flows.StraightPath(), t.unsqueeze(-1))
        covariance = t.unsqueeze(-1) - (1 - t.unsqueeze(-1)) * DATA_SCALE.square()
        return -DATA_MEAN + covariance / scale.square() * (state - mean)


class Straight(torch.nn.Module):
    """The velocity of straight paths between normal data and the noise that they are made of."""

    def forward(self, state, t, context=None):
        t = t.unsqueeze(-1)
        noise = (state - (1 - t) * DATA_MEAN) / (t + (1 - t) * DATA_SCALE)
        return noise - (DATA_MEAN + DATA_SCALE * noise)


def test_reflow_of_a_gaussian_has_straight_paths():
    """Its loss is zero for the velocity that leads along them, which one step of Euler follows."""
    teacher = pg.FlowMatching(Curved(), (2,), solver=pg.flows.RungeKutta(20)).double()
    straight = pg.FlowMatching(Straight(), (2,), solver=pg.flows.Euler(1)).double()
    x = torch.zeros(200, 2, dtype=torch.double)
    losses = [
        pg.objectives.Reflow(teacher, solver)(gen.model, gen.guide)(x) / len(x)
        for gen in (straight, teacher)
        for solver in (None, pg.flows.Midpoint(50))
    ]
    assert max(losses[:2]) < 1e-4 and min(losses[2:]) > 0.1
    drawn, noise = straight().sample_pairs((20,))
    torch.testing.assert_close(drawn, DATA_MEAN + DATA_SCALE * noise)


QUIET = {"compile": False, "progress": False, "verdict": False, "seed": 0}


def test_reflow_straightens_a_model():
    torch.manual_seed(0)
    x = torch.randn(512, 1).sign() * 2 + 0.1 * torch.randn(512, 1)
    teacher = pg.FlowMatching(pg.nn.TimeMLP(1, [32, 32], embedding=16), (1,))
    settings = QUIET | {"batch_size": 128, "optimizer": pg.train.adam(5e-3)}
    pg.fit(teacher, x, pg.objectives.Denoising(), steps=200, **settings)
    student = copy.deepcopy(teacher)
    pg.fit(student, x, pg.objectives.Reflow(teacher, pg.flows.Midpoint(4)), steps=60, **settings)
    apart = []
    for gen in (teacher, student):
        torch.manual_seed(1)
        once, z = gen().using(pg.flows.Euler(1)).sample_pairs((500,))
        apart.append((once - teacher().using(pg.flows.Midpoint(8)).transform.inv(z)).abs().mean())
    assert apart[1] < 0.5 * apart[0]


def test_students_in_units_of_the_data_learn_as_in_those_of_the_base():
    """What stands in other units says what the distribution inside of it says of the rows there."""
    torch.manual_seed(0)
    x = 5.0 + 3.0 * torch.randn(40, 2)
    inner = pg.Diffusion(pg.nn.TimeMLP(2, [8], embedding=8), (2,), threshold=None)
    flow = pg.FlowMatching(pg.nn.TimeMLP(2, [8], time=pg.nn.SpanTime()), (2,), spans=True)
    o = pg.objectives
    cases = [
        (inner, lambda teacher: o.Consistency(teacher, levels=4)),
        (inner, lambda teacher: o.ProgressiveDistillation(teacher, 2)),
        (flow, lambda teacher: o.MeanFlow(0.5)),
        (flow, lambda teacher: o.Reflow(teacher, pg.flows.Euler(2))),
    ]
    for gen, make in cases:
        outer = pg.Standardized(gen, 5.0, 3.0)
        losses = []
        for model, rows in ((outer, x), (gen, (x - 5) / 3)):
            objective = make(model)
            torch.manual_seed(1)
            losses.append(objective(model.model, model.guide)(rows).item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-4), type(make(gen)).__name__


def test_what_cannot_be_distilled_is_told_what_can():
    mixture = pg.GaussianMixture(2, 2)
    diffusion = pg.Diffusion(pg.nn.TimeMLP(2, [8]), (2,))
    other = pg.Diffusion(pg.nn.TimeMLP(2, [8]), (2,), schedule=pg.diffusion.LinearSchedule())
    flow = pg.FlowMatching(pg.nn.TimeMLP(2, [8]), (2,))
    o = pg.objectives
    x = torch.randn(8, 2)
    with pytest.raises(TypeError, match="pass a trained Diffusion"):
        o.Consistency(mixture)(diffusion.model, diffusion.guide)(x)
    with pytest.raises(TypeError, match="use a Diffusion with Gaussian noise"):
        o.Consistency()(mixture.model, mixture.guide)(x)
    with pytest.raises(ValueError, match="give both the same schedule"):
        o.ProgressiveDistillation(other, 2)(diffusion.model, diffusion.guide)(x)
    with pytest.raises(TypeError, match="pass a trained FlowMatching"):
        o.Reflow(mixture)(flow.model, flow.guide)(x)
    with pytest.raises(TypeError, match="spans=True"):
        o.MeanFlow()(flow.model, flow.guide)(x)
    with pytest.raises(TypeError, match="spans=True"):
        flow().using(pg.flows.MeanSteps(1))
    with pytest.raises(ValueError, match="expected a teacher for guidance"):
        o.Consistency(guidance=2.0)
    outer = pg.Standardized(flow, 0.0, 1.0)
    with pytest.raises(TypeError, match="use a Diffusion for Consistency"):
        o.Consistency()(outer.model, outer.guide)(x)


def test_a_guided_teacher_gives_its_student_what_guidance_says():
    """With contexts known to both, and unknown to both where they are dropped."""
    net = pg.nn.TimeMLP(2, [8], embedding=8, context=2)
    torch.nn.init.normal_(net.last.weight)
    gen = pg.Diffusion(net, (2,), context_dropout=0.5).eval()
    x, context = torch.randn(200, 2), torch.eye(2)[torch.arange(200) % 2]
    losses = {}
    for guidance in (None, 1.0, 3.0):
        objective = pg.objectives.ProgressiveDistillation(gen, 1, guidance=guidance)
        torch.manual_seed(0)
        losses[guidance] = objective(gen.model, gen.guide)(x, context).item()
    assert losses[1.0] == pytest.approx(losses[None], rel=1e-4)
    assert losses[3.0] > 1.05 * losses[None]
    torch.manual_seed(0)
    unknown = gen(torch.full((200, 2), torch.nan))
    pair = unknown.halved_pair(x, 1, gen(context))
    torch.manual_seed(0)
    torch.testing.assert_close(pair.loss, unknown.halved_pair(x, 1, unknown).loss)
