"""Rules of guidance against closed forms: a mixture of Gaussians whose networks are exact."""

import math

import pyro.distributions as dist
import pytest
import torch
from gaussian_diffusion import COVARIANCE, MEAN, Exact, exact
from torch import nn

import probgen as pg
from probgen.distributions.diffusion.gaussian import GaussianNoise
from probgen.distributions.diffusion.process import DiffusionPredictor
from probgen.distributions.flows.matching import FlowPredictor, PathLevels
from probgen.guidance import (
    CADS,
    Autoguidance,
    ClassifierFree,
    ClassifierGuided,
    Interval,
    Negative,
    Repulsion,
    Rescale,
    Thresholded,
    plain,
)

MEANS = torch.tensor([[2.0, 0.0], [-1.0, 1.0], [0.0, -2.0]], dtype=torch.double)
DEVIATION = 0.5
CLASSES = torch.eye(3, dtype=torch.double)  # contexts: which component


def responsibilities(z, alpha, sigma, weights):
    """log p(k | z) of the components, normalized, and log p(z) up to a constant."""
    variance = (alpha * DEVIATION).square() + sigma.square()
    apart = z.unsqueeze(-2) - alpha.unsqueeze(-1) * MEANS
    joint = weights.log() - apart.square().sum(-1) / (2 * variance)
    return joint.log_softmax(-1)


def expected(z, alpha, sigma, context=None):
    """E[x | z] of the mixture, or of the component that a context says."""
    weights = torch.ones(3).double() / 3 if context is None else context.clamp(min=0)
    variance = (alpha * DEVIATION).square() + sigma.square()
    apart = z.unsqueeze(-2) - alpha.unsqueeze(-1) * MEANS
    each = MEANS + (alpha * DEVIATION**2 / variance).unsqueeze(-1) * apart
    return (responsibilities(z, alpha, sigma, weights).exp().unsqueeze(-1) * each).sum(-2)


class MixtureNetwork(nn.Module):
    """Says E[x | z, c] in the terms of a prediction; without a context that of all components."""

    def __init__(self, schedule, prediction):
        super().__init__()
        self.schedule, self.prediction, self.calls = schedule, prediction, 0

    def forward(self, inputs, seen, context=None):
        self.calls += 1
        guess = lambda z, alpha, sigma: expected(z, alpha, sigma, context)  # noqa: E731
        return Exact(self.schedule, self.prediction, guess)(inputs, seen)


class Circle:
    """The levels of an arc as a schedule; neither data nor noise are ever quite gone."""

    first, speed = 0.06, math.pi / 2 - 0.12

    def __call__(self, t):
        angle = self.first + self.speed * t
        return angle.cos(), angle.sin()

    def log_snr(self, t):
        alpha, sigma = self(t)
        return 2 * (alpha / sigma).log()

    def time(self, log_snr):
        return ((-log_snr / 2).exp().atan() - self.first) / self.speed


class CirclePath:
    """The same levels as a path of flow matching."""

    def __call__(self, t):
        alpha, sigma = Circle()(t)
        return PathLevels(alpha, sigma, -Circle.speed * sigma, Circle.speed * alpha)


def process(schedule, prediction):
    return GaussianNoise(schedule, prediction, pg.diffusion.PosteriorVariance(), 1)


def diffusion(schedule, prediction):
    net = MixtureNetwork(schedule, prediction)
    return DiffusionPredictor(net, process(schedule, prediction), 1, 1), schedule


def flow(path):
    def velocity(x, t, context):
        levels = path(t.reshape(*t.shape, 1).double())
        data = expected(x, levels.data.expand(*x.shape[:-1], 1), levels.base, context)
        base = (x - levels.data * data) / levels.base
        return levels.data_rate * data + levels.base_rate * base

    return FlowPredictor(velocity, path, 1, 1, gaussian=True), lambda t: path(t)[:2]


NETWORKS = {
    "velocity": diffusion(pg.diffusion.CosineSchedule(), pg.diffusion.Velocity()),
    "noise": diffusion(pg.diffusion.LinearSchedule(), pg.diffusion.Epsilon()),
    "data": diffusion(pg.diffusion.VarianceExploding(), pg.diffusion.Original()),
    "EDM": diffusion(pg.diffusion.EDMSchedule(), pg.diffusion.EDM(1.0)),
    "straight flow": flow(pg.flows.StraightPath()),
    "blurred flow": flow(pg.flows.StraightPath(sigma_min=0.05)),
    "circular flow": flow(pg.flows.TrigonometricPath()),
}
TIMES = [0.15, 0.5, 0.9]


class Told:
    """A network at a time, with the closed forms of what it says."""

    def __init__(self, name, time, rows=6):
        torch.manual_seed(0)
        self.net, schedule = NETWORKS[name]
        self.t = torch.tensor(time).double()
        self.alpha, self.sigma = schedule(self.t.reshape(1))
        scale = (self.alpha.square() + self.sigma.square()).sqrt()
        self.z = scale * torch.randn(rows, 2).double()
        self.context = CLASSES[torch.arange(rows) % 3]

    def by(self, rule, context="given"):
        """The expected data of a rule."""
        context = self.context if context == "given" else context
        return self.net.original(self.z, rule(self.net, self.z, self.t, context), self.t)

    def expected(self, context=None):
        context = None if context is None else context.expand(len(self.z), 3)
        return expected(self.z, self.alpha, self.sigma, context)


@pytest.fixture(params=[(name, time) for name in NETWORKS for time in TIMES], ids=str)
def told(request):
    return Told(*request.param)


def close(got, true):
    torch.testing.assert_close(got, true, rtol=1e-6, atol=1e-7)


@pytest.mark.table(quick=7)
def test_predictions_are_told_by_expected_data_and_back(told):
    close(told.by(plain), told.expected(told.context))
    close(told.by(plain, None), told.expected())
    prediction = told.net(told.z, told.t, told.context)
    x = torch.randn_like(told.z)
    retold = told.net.retold(told.z, prediction, x, told.t)
    close(told.net.original(told.z, retold, told.t), x)
    close(told.net.retold(told.z, prediction, told.expected(told.context), told.t), prediction)
    close(told.net.noise_to_signal(told.t), (told.sigma / told.alpha)[0])


@pytest.mark.table(quick=7)
@pytest.mark.parametrize(
    "weight", [0.0, 1.0, 3.0, lambda t: 1 + 4 * t], ids=["0", "1", "3", "of the time"]
)
def test_classifier_free_guidance(told, weight):
    known, unknown = told.expected(told.context), told.expected()
    w = weight(told.t) if callable(weight) else weight
    close(told.by(ClassifierFree(weight)), unknown + w * (known - unknown))


@pytest.mark.table(quick=7)
def test_classifier_free_guidance_has_the_score_of_the_tempered_classifier(told):
    """The gradient of log p_t(z) + w log p_t(c | z), of the densities themselves."""
    w, chosen = 3.0, told.context.argmax(-1, keepdim=True)
    z = told.z.clone().requires_grad_()
    variance = (told.alpha * DEVIATION).square() + told.sigma.square()
    parts = dist.Normal(told.alpha.unsqueeze(-1) * MEANS, variance.sqrt().unsqueeze(-1))
    each = parts.to_event(1).log_prob(z.unsqueeze(-2)) - math.log(3)
    log_z = each.logsumexp(-1)
    label = each.gather(-1, chosen)[:, 0] - log_z
    (score,) = torch.autograd.grad((log_z + w * label).sum(), z)
    close(told.by(ClassifierFree(w)), (told.z + told.sigma.square() * score) / told.alpha)


def log_classifier(told):
    def log_prob(z, t, context):
        each = responsibilities(z, told.alpha, told.sigma, torch.ones(3).double() / 3)
        return (each * context).sum(-1)

    return log_prob


@pytest.mark.table(quick=7)
def test_the_exact_classifier_makes_the_conditional_network_of_the_other(told):
    rule = ClassifierGuided(log_classifier(told), 1.0, base=0.0)
    close(told.by(rule), told.expected(told.context))
    stronger = ClassifierGuided(log_classifier(told), lambda t: 3 * t / t, base=0.0)
    close(told.by(stronger), told.by(ClassifierFree(3.0)))


@pytest.mark.table(quick=7)
def test_a_classifier_of_the_expected_data(told):
    log_prob = lambda x, t, context: (x[..., 0] - 2 * x[..., 1]).sin()  # noqa: E731
    total = lambda z: log_prob(expected(z, told.alpha, told.sigma), None, None).sum()  # noqa: E731
    z = told.z.clone().requires_grad_()
    (slope,) = torch.autograd.grad(total(z), z)
    wanted = told.expected() + 2.0 * told.sigma.square() / told.alpha * slope
    close(told.by(ClassifierGuided(log_prob, 2.0, denoised=True), None), wanted)


@pytest.mark.table(quick=7)
def test_interval(told):
    low, high = 0.3, 0.7
    inside = low <= told.t <= high
    close(
        told.by(Interval(3.0, between=(low, high))),
        told.by(ClassifierFree(3.0) if inside else plain),
    )
    ratio = (told.sigma / told.alpha).item()
    for ends, rule in (
        ((ratio / 2, ratio * 2), ClassifierFree(3.0)),
        ((ratio * 2, ratio * 3), plain),
    ):
        close(told.by(Interval(3.0, between=ends, noise_to_signal=True)), told.by(rule))


def test_an_interval_row_by_row():
    told = Told("velocity", 0.5)
    t = torch.linspace(0.1, 0.9, len(told.z)).double()
    got = Interval(3.0, between=(0.3, 0.6))(told.net, told.z, t, told.context)
    for row, time in enumerate(t):
        rule = ClassifierFree(3.0) if 0.3 <= time <= 0.6 else plain
        one = rule(told.net, told.z[row : row + 1], time, told.context[row : row + 1])
        close(got[row : row + 1], one)


@pytest.mark.table(quick=7)
def test_rules_that_change_nothing_give_the_prediction_of_their_base(told):
    weaker = Says(told.net)
    for base in (plain, ClassifierFree(3.0)):
        for rule in (
            CADS(base, scale=0.0, between=(2.0, 3.0)),
            CADS(base, between=(0.95, 0.99)),
            Rescale(base, share=0.0),
            Rescale(plain, share=1.0) if base is plain else Rescale(base, share=0.0),
            Repulsion(0.0, base=base),
            Autoguidance(weaker, 1.0, base=base),
            Negative(told.context, 1.0, base=base),
            Thresholded(pg.diffusion.StaticThreshold(-1e9, 1e9), base=base),
            ClassifierGuided(lambda x, t, context: x.sum(-1), 0.0, base=base),
        ):
            close(told.by(rule), told.by(base))


class Says(pg.DistributionModule):
    """A model that has a given predictor."""

    def __init__(self, predictor):
        super().__init__()
        self.predictor = predictor
        self.eval()

    def forward(self, context=None):
        distribution = dist.Normal(0.0, 1.0).to_event(0)
        distribution.predictor = self.predictor
        return distribution


@pytest.mark.table(quick=7)
def test_autoguidance(told):
    close(told.by(Autoguidance(Says(told.net), 2.5)), told.by(plain))

    class Weak:
        """The network without contexts."""

        terms = told.net.terms

        def __call__(self, z, t, context):
            return told.net(z, t, None)

    close(told.by(Autoguidance(Says(Weak()), 2.5)), told.by(ClassifierFree(2.5)))
    nested = Autoguidance(Says(Weak()), 2.0, base=3.0)
    known, unknown = told.expected(told.context), told.expected()
    close(told.by(nested), unknown + 6 * (known - unknown))


@pytest.mark.parametrize("prediction", [pg.diffusion.Epsilon(), pg.diffusion.Original()], ids=str)
def test_autoguidance_by_a_network_that_predicts_something_else(prediction):
    told = Told("velocity", 0.5)
    other, _ = diffusion(pg.diffusion.CosineSchedule(), prediction)
    weak = DiffusionPredictor(lambda *args: 2 * other.net(*args), other.process, 1, 1)
    says = weak(told.z, told.t, told.context)
    guess = prediction.original(says, told.z, told.alpha, told.sigma)
    known = told.expected(told.context)
    close(told.by(Autoguidance(Says(weak), 2.5)), guess + 2.5 * (known - guess))


@pytest.mark.table(quick=7)
def test_negative_contexts(told):
    unwanted = CLASSES[1]
    far = told.expected(unwanted)
    wanted = far + 2.0 * (told.expected(told.context) - far)
    close(told.by(Negative(unwanted, 2.0)), wanted)
    known, unknown = told.expected(told.context), told.expected()
    guided = unknown + 3 * (known - unknown)
    close(told.by(Negative(unwanted, 2.0, base=3.0)), far + 2 * (guided - far))


@pytest.mark.table(quick=7)
def test_rescaled_guidance_has_the_deviation_of_the_prediction(told):
    known = told.expected(told.context).std(-1)
    guided = told.by(ClassifierFree(3.0))
    close(told.by(Rescale(3.0, share=1.0)).std(-1), known)
    factor = 0.3 + 0.7 * known / guided.std(-1)
    close(told.by(Rescale(3.0, share=0.7)), factor[:, None] * guided)


def test_rescaling_asks_the_network_no_third_time():
    told = Told("velocity", 0.5)
    before = told.net.net.calls
    told.by(Rescale(3.0))
    assert told.net.net.calls == before + 2


@pytest.mark.table(quick=7)
def test_thresholds_as_rules(told):
    threshold = pg.diffusion.StaticThreshold(-0.5, 0.7)
    guided = told.by(ClassifierFree(3.0))
    close(told.by(Thresholded(threshold, base=3.0)), guided.clamp(-0.5, 0.7))
    dynamic = pg.diffusion.DynamicThreshold(0.5, -0.5, 0.5)
    ends = torch.tensor(-9.0).double(), torch.tensor(9.0).double()
    close(told.by(Thresholded(dynamic, base=3.0)), dynamic(guided, *ends, 1))
    known, unknown = told.expected(told.context).clamp(-0.5, 0.7), told.expected()
    inner = ClassifierFree(1.0)
    close(told.by(Thresholded(threshold, base=inner)), known)
    assert not torch.allclose(known, unknown)


# condition annealing


class Heard:
    """A network that says the context that it is given, in its first entries."""

    event_ndim = 1
    context_ndim = 1
    terms = None

    def __call__(self, z, t, context=None):
        return context.expand(*z.shape[:-1], context.shape[-1])


def test_annealed_contexts_have_the_moments_of_the_rule():
    torch.manual_seed(0)
    z, context = torch.zeros(20000, 3), torch.tensor([1.0, 0.0, 0.0])
    rule = CADS(between=(0.2, 0.8), scale=0.5, rescaling=0.0)
    for t, kept in ((0.1, 1.0), (0.35, 0.75), (0.5, 0.5), (0.9, 0.0)):
        heard = rule(Heard(), z, torch.tensor(t), context)
        close_to = {"rtol": 0.0, "atol": 0.02}
        torch.testing.assert_close(heard.mean(0), kept**0.5 * context, **close_to)
        std = torch.full((3,), 0.5 * (1 - kept) ** 0.5)
        torch.testing.assert_close(heard.std(0), std, **close_to)
    rescaled = CADS(between=(0.2, 0.8), scale=0.5, rescaling=1.0)
    heard = rescaled(Heard(), z, torch.tensor(0.7), context)
    torch.testing.assert_close(heard.mean(-1), context.mean().expand(20000))
    torch.testing.assert_close(heard.std(-1), context.std().expand(20000))
    assert (heard[0] - heard[1]).abs().max() > 1e-3  # each draw has noise of its own
    half = CADS(between=(0.2, 0.8), scale=0.5, rescaling=0.5)
    torch.manual_seed(1)
    plainly = rule(Heard(), z, torch.tensor(0.7), context)
    torch.manual_seed(1)
    fully = rescaled(Heard(), z, torch.tensor(0.7), context)
    torch.manual_seed(1)
    torch.testing.assert_close(half(Heard(), z, torch.tensor(0.7), context), (plainly + fully) / 2)


def test_annealing_row_by_row_and_unknown_contexts():
    torch.manual_seed(0)
    context = torch.tensor([[1.0, 2.0, 0.0], [3.0, 5.0, 0.0], [torch.nan] * 3])
    t = torch.tensor([0.1, 0.9, 0.9])
    heard = CADS()(Heard(), torch.zeros(3, 2), t, context)
    torch.testing.assert_close(heard[0], context[0])
    assert (heard[1] - context[1]).abs().max() > 0.1
    assert heard[2].isnan().all()


def test_what_cannot_be_annealed_is_refused():
    z, t = torch.zeros(4, 2), torch.tensor(0.9)
    for context, error, text in (
        (torch.zeros(4, 2).long(), TypeError, "one-hot"),
        (None, ValueError, "give a context"),
        (torch.zeros(4, 1), ValueError, "rescaling=0"),
    ):
        with pytest.raises(error, match=text):
            CADS()(Heard(), z, t, context)
    assert CADS(rescaling=0.0)(Heard(), z, t, torch.zeros(4, 1)).shape == (4, 1)
    labels = torch.tensor([0, 1, 0, 1])
    onehot = nn.functional.one_hot(labels, 2).float()
    assert CADS()(Heard(), z, t, onehot).shape == (4, 2)


# repulsion


def test_repulsion_is_the_gradient_of_the_kernel():
    torch.manual_seed(0)
    rows = torch.randn(5, 3).double().requires_grad_()
    potential = (-(rows[:, None] - rows).square().sum(-1) / 0.7).exp().triu(1).sum()
    (slope,) = torch.autograd.grad(potential, rows)
    close(Repulsion(1.0, bandwidth=0.7).slopes(rows.detach()), -slope)
    distances = torch.nn.functional.pdist(rows.detach())
    chosen = distances.median().item() ** 2 / math.log(6)
    close(
        Repulsion(1.0).slopes(rows.detach()),
        Repulsion(1.0, bandwidth=chosen).slopes(rows.detach()),
    )


@pytest.mark.table(quick=7)
def test_draws_repel_within_their_context_alone(told):
    rule = Repulsion(0.5, bandwidth=2 * told.z.var().item())
    together = told.by(rule)
    assert (together - told.by(plain)).abs().max() > 1e-4
    for label in range(3):  # rows with equal contexts are a group, wherever they stand
        chosen = told.context[:, label] == 1
        alone = Told.__new__(Told)
        alone.__dict__.update(told.__dict__)
        alone.z, alone.context = told.z[chosen], told.context[chosen]
        close(alone.by(rule), together[chosen])
    slopes = rule.slopes(told.z)
    total = (told.alpha.square() + told.sigma.square()).sqrt()
    wanted = told.expected() + 0.5 * told.sigma.square() / total * slopes
    close(told.by(rule, None), wanted)


@pytest.mark.parametrize(
    "make",
    [
        lambda: pg.Diffusion(
            MixtureNetwork(pg.diffusion.CosineSchedule(), pg.diffusion.Velocity()),
            (2,),
            sampler=pg.diffusion.DDIM(20),
        ).double(),
        lambda: pg.FlowMatching(AsFlow(), (2,), solver=pg.flows.Midpoint(15)).double(),
    ],
    ids=["diffusion", "flow matching"],
)
def test_repulsion_makes_draws_more_diverse(make):
    gen = make().eval()
    spread = {}
    for strength in (0.0, 0.2):
        torch.manual_seed(0)
        draws = gen(CLASSES[:2]).using(guidance=Repulsion(strength)).sample((30,))
        spread[strength] = torch.stack([nn.functional.pdist(x).mean() for x in draws.unbind(1)])
    assert (spread[0.2] > 1.1 * spread[0.0]).all(), spread
    assert (spread[0.2] < 3 * spread[0.0]).all(), spread


class AsFlow(nn.Module):
    """The exact velocity of straight paths."""

    def __init__(self, path=pg.flows.StraightPath()):  # noqa: B008
        super().__init__()
        self.predictor = flow(path)[0]

    def forward(self, x, t, context=None):
        return self.predictor(x, t.clamp(min=1e-6), context)


def test_draws_that_depend_on_each_other_are_not_drawn_in_pieces():
    gen = pg.Diffusion(pg.nn.TimeMLP(2, [8], context=1), (2,), sampler=pg.diffusion.DDIM(2))
    rule, context = Interval(Repulsion(1.0), between=(0.1, 0.9)), torch.ones(3, 1)
    for given, rows in ((None, 8), (context, 24)):
        with pytest.raises(ValueError, match=f"max_rows={rows}"):
            pg.sample(gen, 8, given, guidance=rule, max_rows=7)
        assert len(pg.sample(gen, 8, given, guidance=rule, max_rows=rows)) == 8
    assert len(pg.sample(gen, 8, context, guidance=3.0, max_rows=7)) == 8


# diffusions and flows

CIRCLES = [pg.diffusion.Velocity(), pg.diffusion.Epsilon(), pg.diffusion.Original()]
RULES = {
    "plain": lambda net: plain,
    "classifier-free": lambda net: ClassifierFree(lambda t: 1 + t),
    "interval": lambda net: Interval(4.0, between=(0.3, 0.8)),
    "interval of noise": lambda net: Interval(4.0, between=(0.3, 2.0), noise_to_signal=True),
    "annealed": lambda net: CADS(3.0, between=(0.4, 0.8)),
    "autoguidance": lambda net: Autoguidance(Says(net), 2.0, base=3.0),
    "negative": lambda net: Negative(CLASSES[2], 2.0),
    "repulsion": lambda net: Repulsion(0.3, base=2.0),
    "rescaled": lambda net: Rescale(5.0),
    "classifier": lambda net: ClassifierGuided(lambda x, t, c: -x.square().sum(-1), 0.2),
    "classifier of data": lambda net: ClassifierGuided(
        lambda x, t, c: -(x - 1).square().sum(-1), 0.2, denoised=True, base=2.0
    ),
    "threshold": lambda net: Thresholded(pg.diffusion.DynamicThreshold(0.5, -1.0, 1.0), base=3.0),
    "all at once": lambda net: Thresholded(
        pg.diffusion.StaticThreshold(-2.0, 2.0),
        Interval(Rescale(CADS(Repulsion(0.1, base=3.0)), 0.5), between=(0.1, 0.9)),
    ),
}


@pytest.mark.table(quick=13)
@pytest.mark.parametrize("prediction", CIRCLES, ids=str)
@pytest.mark.parametrize("name", RULES)
def test_a_diffusion_and_a_flow_with_equal_levels_are_guided_alike(name, prediction):
    torch.manual_seed(0)
    path = CirclePath()
    velocity, (net, _) = flow(path)[0], diffusion(Circle(), prediction)
    z, context = torch.randn(4, 6, 2).double(), CLASSES[torch.arange(6) % 3]
    for time in TIMES:
        t = torch.tensor(time).double()
        slopes = []
        for one in (velocity, net):
            torch.manual_seed(0)
            prediction_of = RULES[name](one)(one, z, t, context)
            x = one.original(z, prediction_of, t)
            levels = path(t)
            base = (z - levels.data * x) / levels.base
            slopes.append(levels.data_rate * x + levels.base_rate * base)
            if one is velocity:
                close(prediction_of, slopes[0])
        close(*slopes)


@pytest.mark.slow
def test_guided_solutions_of_both_are_the_same():
    """The equations of a diffusion and of a flow with equal levels, solved with one rule."""
    one = pg.FlowMatching(AsFlow(CirclePath()), (2,), path=CirclePath()).double().eval()
    net = MixtureNetwork(Circle(), pg.diffusion.Velocity())
    other = pg.ProbabilityFlow(pg.Diffusion(net, (2,), schedule=Circle()).double()).eval()
    context, solver = CLASSES[torch.arange(12) % 3], pg.flows.RungeKutta(30)
    signal = Circle()(torch.zeros(()).double())[0]
    for rule in (plain, Interval(3.0, between=(0.25, 0.75)), Repulsion(0.5)):
        draws = [
            pg.sample(gen, 4, context, sampler=solver, guidance=rule, seed=0)
            for gen in (one, other)
        ]
        torch.testing.assert_close(draws[0], signal * draws[1], rtol=1e-5, atol=1e-5)
    assert (draws[0] - pg.sample(one, 4, context, sampler=solver, seed=0)).abs().max() > 1e-2


# families

CONTEXT = torch.tensor([[1.0, -1.0], [0.5, 2.0]])


def tiny(**options):
    torch.manual_seed(0)
    net = pg.nn.TimeMLP(options.pop("dims", 2), [8], embedding=8, context=2, **options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return net


LINEAR, DDIM = pg.diffusion.LinearSchedule(), pg.diffusion.DDIM(3)
FAMILIES = {
    "Diffusion": lambda: pg.Diffusion(tiny(), (2,), sampler=DDIM),
    "Diffusion with learned variances": lambda: pg.Diffusion(
        tiny(outputs=4),
        (2,),
        num_times=3,
        variance=pg.diffusion.LearnedVariance(),
        schedule=LINEAR,
    ),
    "ProbabilityFlow": lambda: pg.ProbabilityFlow(
        pg.Diffusion(tiny(), (2,)), pg.flows.RungeKutta(3)
    ),
    "Standardized": lambda: pg.Standardized(pg.Diffusion(tiny(), (2,), sampler=DDIM), (2,)),
    "FlowMatching": lambda: pg.FlowMatching(tiny(), (2,), solver=pg.flows.Midpoint(3)),
    "NonGaussianDiffusion": lambda: pg.NonGaussianDiffusion(
        tiny(), (2,), pg.diffusion.GammaNoise(LINEAR, num_times=3)
    ),
    "CategoricalDiffusion": lambda: pg.CategoricalDiffusion(
        tiny(dims=8, outputs=6),
        (2,),
        pg.diffusion.AbsorbingNoise(3, pg.diffusion.EvenSchedule(), num_times=3),
    ),
}
GUIDED = {
    "number": lambda gen: 3.0,
    "function": lambda gen: lambda net, z, t, context: 2 * net(z, t, context),
    "interval": lambda gen: Interval(3.0),
    "annealed": lambda gen: CADS(2.0),
    "negative": lambda gen: Negative(-CONTEXT, 2.0),
    "autoguidance": lambda gen: Autoguidance(gen, 2.0, base=3.0),
}
OF_DATA = {
    "rescaled": lambda gen: Rescale(5.0),
    "interval of noise": lambda gen: Interval(3.0, between=(0.5, 2.0), noise_to_signal=True),
    "threshold": lambda gen: Thresholded(pg.diffusion.StaticThreshold(-0.1, 0.1), base=3.0),
}
OF_SCORES = {
    "repulsion": lambda gen: Repulsion(1.0),
    "classifier": lambda gen: ClassifierGuided(lambda x, t, context: x.sum(-1)),
}
WITHOUT_DATA = {"CategoricalDiffusion"}
WITHOUT_SCORES = {"CategoricalDiffusion", "NonGaussianDiffusion"}
ROWS = [(family, rule) for family in FAMILIES for rule in {**GUIDED, **OF_DATA, **OF_SCORES}]


@pytest.mark.table(quick=15)
@pytest.mark.parametrize(("family", "rule"), ROWS)
def test_rules_serve_families_or_are_refused(family, rule):
    gen = FAMILIES[family]().eval()
    weaker = gen.family if family == "Standardized" else gen
    guidance = {**GUIDED, **OF_DATA, **OF_SCORES}[rule](weaker)
    refused = (rule in OF_DATA and family in WITHOUT_DATA) or (
        rule in OF_SCORES and family in WITHOUT_SCORES
    )
    if refused:
        with pytest.raises(TypeError, match=r"expected .*, got .*; "):
            pg.sample(gen, 4, CONTEXT, guidance=guidance, seed=0)
        return
    draws = [pg.sample(gen, 4, CONTEXT, guidance=guidance, seed=0) for _ in range(2)]
    assert torch.equal(*draws) and draws[0].isfinite().all()
    unguided = pg.sample(gen, 4, CONTEXT, seed=0)
    assert draws[0].shape == unguided.shape == (4, 2, 2)
    labels = family == "CategoricalDiffusion"  # few draws of labels may well be the same
    assert labels or not torch.equal(draws[0], unguided)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_model(family):
    gen = FAMILIES[family]().eval()
    x = pg.sample(gen, 1, CONTEXT, seed=0)[0]
    scores = []
    for distribution in (gen(CONTEXT), gen(CONTEXT).using(guidance=CADS(5.0))):
        torch.manual_seed(0)
        scores.append(distribution.log_prob(x))
    assert torch.equal(*scores)


@pytest.mark.parametrize("family", FAMILIES)
def test_guidance_by_a_context_needs_one(family):
    gen = FAMILIES[family]().eval()
    for rule in (3.0, CADS(), Interval(2.0, between=(0.0, 1.0))):
        with pytest.raises(ValueError, match="give a context"):
            pg.sample(gen, 2, guidance=rule)
    assert pg.sample(gen, 2, guidance=1.0).shape == (2, 2)


def test_what_cannot_be_guided_says_so():
    gens = (pg.RealNVP(2), pg.GaussianMixture(2, 2), pg.RBM(pg.energy.BernoulliUnits(2), hidden=2))
    for gen in (*gens, pg.standard_normal(2), pg.VAE(pg.standard_normal(1), *PAIR)):
        with pytest.raises(TypeError, match="drop guidance"):
            pg.sample(gen, 2, guidance=2.0)
        assert pg.sample(gen, 2).shape[0] == 2


PAIR = (pg.heads.Gaussian(nn.Linear(1, 4)), pg.heads.Gaussian(nn.Linear(2, 2)))


@pytest.mark.parametrize("rule", [ClassifierFree, "strong", True])
@pytest.mark.parametrize("family", ["Diffusion", "FlowMatching", "ProbabilityFlow"])
def test_what_is_no_rule_is_refused(family, rule):
    with pytest.raises(TypeError, match=r"ClassifierFree|pass|call"):
        FAMILIES[family]()(CONTEXT).using(guidance=rule)


BAD_CONTEXTS = {
    "another size": torch.ones(3),
    "labels": torch.tensor([0, 1]),
    "a number": torch.tensor(1.0),
    "text": "no red",
    "a list": [0.0, 1.0],
    "of other rows": torch.ones(3, 2),
}


@pytest.mark.parametrize("given", BAD_CONTEXTS)
@pytest.mark.parametrize("family", ["Diffusion", "FlowMatching", "CategoricalDiffusion"])
def test_a_rule_asks_with_contexts_that_the_family_takes(family, given):
    gen = FAMILIES[family]().eval()
    with pytest.raises((TypeError, ValueError), match=r"expected a context .*, got .*; "):
        pg.sample(gen, 4, CONTEXT, guidance=Negative(BAD_CONTEXTS[given], 2.0))


def test_integers_of_a_rule_are_numbers_as_those_of_the_family_are():
    gen = FAMILIES["Diffusion"]().eval()
    whole = torch.tensor([[1, 0]])
    rules = [Negative(context, 2.0) for context in (whole, whole.float())]
    draws = [pg.sample(gen, 4, CONTEXT, guidance=rule, seed=0) for rule in rules]
    assert torch.equal(*draws)


@pytest.mark.parametrize("family", ["Diffusion", "FlowMatching", "CategoricalDiffusion"])
def test_contexts_are_taken_in_any_precision(family):
    gen = FAMILIES[family]().double().eval()
    draws = []
    for kind in (torch.double, torch.float):
        context = CONTEXT.to(kind)
        rule = Negative(-context, 2.0)
        draws.append(pg.sample(gen, 4, context, guidance=rule, seed=0))
        draws.append(pg.sample(gen, 4, CONTEXT.double(), guidance=rule, seed=0))
    for draw in draws[1:]:
        assert torch.equal(draws[0], draw) and draw.dtype == draws[0].dtype


def test_a_weaker_model_of_another_precision_is_refused_and_the_advice_works():
    gen, weaker = (FAMILIES["Diffusion"]().eval() for _ in range(2))
    rule = Autoguidance(weaker.double(), 2.0)
    with pytest.raises(
        ValueError, match=r"got one of torch.float64; call weaker\.to\(torch.float32"
    ):
        pg.sample(gen, 4, CONTEXT, guidance=rule)
    weaker.to(torch.float32)
    assert pg.sample(gen, 4, CONTEXT, guidance=rule).shape == (4, 2, 2)


@pytest.mark.parametrize("family", ["Diffusion", "FlowMatching"])
def test_contexts_row_by_row_stay_with_their_rows(family):
    """Draws without new noise: each row's is that of its own negative context alone."""
    gen = FAMILIES[family]().eval()
    rule = Negative(-CONTEXT, 2.0)
    noise = torch.randn(4, 2, 2, generator=torch.Generator().manual_seed(0))

    def drawn(context, rule, noise):
        distribution = gen(context).using(guidance=rule)
        if family == "FlowMatching":
            return distribution.drawn_through.inv(noise)
        return distribution.ended(distribution.sampler(distribution.sampled(), noise), None)

    together = drawn(CONTEXT, rule, noise)
    for row, context in enumerate(CONTEXT):
        alone = drawn(context, Negative(-context, 2.0), noise[:, row])
        torch.testing.assert_close(together[:, row], alone)

    assert pg.sample(gen, 0, CONTEXT, guidance=rule).shape == (0, 2, 2)
    for pieces in (rule, Interval(rule)):
        with pytest.raises(ValueError, match="pass max_rows=2"):
            pg.sample(gen, 4, CONTEXT, guidance=pieces, max_rows=1)
        assert pg.sample(gen, 4, CONTEXT, guidance=pieces, max_rows=2).shape == (4, 2, 2)
    one = Negative(-CONTEXT[0], 2.0)
    assert pg.sample(gen, 4, CONTEXT, guidance=one, max_rows=1).shape == (4, 2, 2)


WRONG_RULES = {
    "another shape": (lambda net, z, t, context: net(z, t, context)[..., :1], "predictions of"),
    "other rows": (lambda net, z, t, context: net(z, t, context)[:1], "predictions of"),
    "nothing": (lambda net, z, t, context: None, "got NoneType"),
    "other arguments": (lambda net, z, t: net(z, t), r"takes \(net, z, t\)"),
    "weights of other rows": (ClassifierFree(lambda t: torch.ones(5)), "a weight for each time"),
}


@pytest.mark.parametrize("around", [lambda rule: rule, Interval, Rescale, Repulsion])
@pytest.mark.parametrize("name", WRONG_RULES)
@pytest.mark.parametrize("family", ["Diffusion", "FlowMatching"])
def test_what_a_rule_says_is_a_prediction_of_the_states(family, name, around):
    rule, text = WRONG_RULES[name]
    gen = FAMILIES[family]().eval()
    with pytest.raises((TypeError, ValueError), match=f"expected .*{text}.*; "):
        if around is Repulsion:
            rule = Repulsion(1.0, base=rule)
        elif around is Interval:
            rule = Interval(rule, between=(0.0, 1.0))
        else:
            rule = around(rule)
        pg.sample(gen, 4, CONTEXT, guidance=rule)


def test_unknown_contexts_are_no_group_with_known_ones():
    """Draws of a context repel each other, whatever number unknown entries are filled with."""
    told = FAMILIES["Diffusion"]().eval()(CONTEXT).predictor
    context = torch.tensor([[0.0, 0.0], [torch.nan, torch.nan], [torch.nan, 0.0]])
    z = torch.tensor([[[0.0, 0.0]] * 3, [[1.0, 0.0]] * 3])  # two draws of each
    rule = Repulsion(1.0, bandwidth=1.0)
    t = torch.tensor(0.5)
    together = rule(told, z, t, context)
    for row in range(3):
        alone = rule(told, z[:, row : row + 1], t, context[row : row + 1])
        torch.testing.assert_close(together[:, row : row + 1], alone)


@pytest.mark.parametrize(
    ("family", "sampler", "advice"),
    [
        ("FlowMatching", pg.diffusion.PredictorCorrector(4), r"Midpoint\(20\)"),
        ("FlowMatching", pg.diffusion.DDIM(4), r"Midpoint\(20\)"),
        ("ProbabilityFlow", pg.diffusion.DDIM(4), r"Midpoint\(20\)"),
        ("Diffusion", pg.flows.Midpoint(4), r"DDIM\(20\)"),
        ("CategoricalDiffusion", pg.flows.Midpoint(4), r"DDIM\(20\)"),
    ],
)
def test_ways_of_drawing_belong_to_families(family, sampler, advice):
    with pytest.raises(TypeError, match=f"expected a s.* got {type(sampler).__name__}.*{advice}"):
        pg.sample(FAMILIES[family]().eval(), 2, CONTEXT, sampler=sampler)


def test_scores_of_flows_need_a_gaussian_base_and_independent_pairs():
    rule = Repulsion(1.0)
    for options in ({"base": pg.standard_normal(2)}, {"coupling": pg.flows.OptimalTransport()}):
        gen = pg.FlowMatching(tiny(), (2,), solver=pg.flows.Midpoint(2), **options).eval()
        with pytest.raises(TypeError, match="independent pairs"):
            pg.sample(gen, 3, CONTEXT, guidance=rule)
        assert pg.sample(gen, 3, CONTEXT, guidance=3.0).shape == (3, 2, 2)


def test_classifiers_are_told_what_is_wrong_with_them():
    gen = FAMILIES["Diffusion"]().eval()
    for log_prob, text in (
        (lambda x, t, context: x, "one a row"),
        (lambda x, t, context: x.detach().sum(-1), "leave out detach"),
    ):
        with pytest.raises(ValueError, match=text):
            pg.sample(gen, 3, CONTEXT, guidance=ClassifierGuided(log_prob))
    rule = Autoguidance(FAMILIES["Diffusion"](), 2.0)
    with pytest.raises(ValueError, match=r"weaker\.eval"):
        pg.sample(gen, 3, CONTEXT, guidance=rule)
    rule.weaker.eval()
    assert pg.sample(gen, 3, CONTEXT, guidance=rule).shape == (3, 2, 2)
    with pytest.raises(TypeError, match="earlier or smaller version"):
        pg.sample(gen, 3, guidance=Autoguidance(pg.standard_normal(2).eval(), 2.0))
    with pytest.raises(ValueError, match="give low and high"):
        Thresholded(pg.diffusion.StaticThreshold())


def test_random_rules_are_not_solved_by_adaptive_steps():
    rule = Interval(CADS(3.0))
    flow = pg.FlowMatching(tiny(), (2,)).eval()
    for gen in (flow, pg.ProbabilityFlow(FAMILIES["Diffusion"]()).eval()):
        with pytest.raises(ValueError, match=r"sample by Midpoint\(20\)"):
            pg.sample(gen, 3, CONTEXT, guidance=rule)
        x = pg.sample(gen, 3, CONTEXT, guidance=rule, sampler=pg.flows.Midpoint(20))
        assert x.shape == (3, 2, 2)


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("rule", ["repulsion", "classifier", "threshold", "interval"])
def test_guided_flows_are_smooth_up_to_both_ends(rule):
    """Adaptive steps come to an end, and steps of one size come near it."""
    gen = pg.FlowMatching(AsFlow(), (2,)).double().eval()
    guidance = {**GUIDED, **OF_DATA, **OF_SCORES}[rule](gen)
    ends = [
        pg.sample(gen, 5, CLASSES, guidance=guidance, sampler=solver, seed=0)
        for solver in (None, pg.flows.Midpoint(200))
    ]
    torch.testing.assert_close(*ends, rtol=0, atol=0.05)


def test_contexts_of_images_and_labels():
    class ByImage(nn.Module):
        def forward(self, z, t, context=None):
            return z if context is None else z + context.mean((-1, -2, -3))[..., None]

    gen = pg.Diffusion(ByImage(), (2,), context_ndim=3, sampler=DDIM).eval()
    images = torch.rand(3, 1, 4, 4)
    for rule in (3.0, CADS(2.0), Negative(-images, 2.0), Repulsion(1.0)):
        assert pg.sample(gen, 5, images, guidance=rule).shape == (5, 3, 2)

    class ByLabel(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(4, 2)

        def forward(self, z, t, context=None):
            return z if context is None else z + self.table(context)

    gen = pg.Diffusion(ByLabel(), (2,), context_ndim=0, sampler=DDIM).eval()
    labels = torch.tensor([0, 3, 0])
    for rule in (3.0, Negative(torch.tensor(1), 2.0), Repulsion(1.0)):
        assert pg.sample(gen, 5, labels, guidance=rule).shape == (5, 3, 2)
    with pytest.raises(TypeError, match="rows of an embedding"):
        pg.sample(gen, 5, labels, guidance=CADS())


# predictor and corrector


def test_corrections_mend_what_few_ancestral_steps_get_wrong():
    times = pg.diffusion.log_snr_steps
    errors = {}
    for corrections in (0, 40):
        torch.manual_seed(0)
        sampler = pg.diffusion.PredictorCorrector(5, corrections, ratio=0.5, times=times)
        x = exact(sampler=sampler).sample((4000,))
        errors[corrections] = max(
            (x.mean(0) - MEAN).abs().max(), (x.T.cov() - COVARIANCE).abs().max()
        )
    assert errors[40] < 0.1 < 0.2 < errors[0], errors


def test_without_corrections_steps_are_ancestral_and_corrections_are_langevin_steps():
    distribution, z = exact(), torch.randn(5, 2).double()
    ends = []
    for sampler in (
        pg.diffusion.Ancestral(4),
        pg.diffusion.PredictorCorrector(4, corrections=0),
    ):
        torch.manual_seed(0)
        ends.append(sampler(distribution.denoiser, z))
    torch.testing.assert_close(*ends)
    gen = FAMILIES["NonGaussianDiffusion"]()
    with pytest.raises(TypeError, match="draw by Ancestral"):
        pg.sample(gen, 2, CONTEXT, sampler=pg.diffusion.PredictorCorrector(3))
    guided = pg.sample(
        FAMILIES["Diffusion"](),
        2,
        CONTEXT,
        sampler=pg.diffusion.PredictorCorrector(3, 2),
        guidance=3.0,
    )
    assert guided.shape == (2, 2, 2)
