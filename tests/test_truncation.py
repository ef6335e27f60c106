"""Temperature, top-k and top-p against enumeration, closed forms and their own limits."""

import itertools
import math

import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch import nn

import probgen as pg
from probgen.core.kinds import density_kind
from probgen.distributions.autoregressive import Autoregressive
from probgen.distributions.flows.ode import RungeKutta
from probgen.distributions.orderings import OrderEnsemble

LEVELS = 3
DIMS = 3


def levels():
    return pg.heads.Categorical(levels=LEVELS)


def one_hot(width):
    return nn.Sequential(pg.nn.OneHot(LEVELS), nn.Linear(LEVELS, width))


FAMILIES = {
    "Transformer": lambda: pg.Transformer(
        (DIMS,), levels(), pg.nn.Tokens(LEVELS, 8), layers=1, heads=2
    ),
    "MADE": lambda: pg.MADE(DIMS, [8], levels(), encode=pg.nn.OneHot(LEVELS)),
    "MADE of two orders": lambda: pg.MADE(
        DIMS,
        [8],
        levels(),
        encode=pg.nn.OneHot(LEVELS),
        orders=torch.tensor([[0, 1, 2], [2, 0, 1]]),
    ),
    "NADE in another order": lambda: pg.NADE(DIMS, 8, levels(), order=torch.tensor([1, 2, 0])),
    "DeepNADE": lambda: pg.DeepNADE(DIMS, [8], levels(), orders=torch.tensor([[2, 1, 0]])),
    "PixelCNN": lambda: pg.PixelCNN((1, 1, DIMS), levels(), one_hot(4), width=4, layers=1),
    "PixelRNN": lambda: pg.PixelRNN((1, 1, DIMS), levels(), one_hot(4), width=4, layers=1),
    "MarkovChain": lambda: pg.MarkovChain(DIMS, levels=LEVELS),
    "levels of logistic mixtures": lambda: pg.NADE(
        DIMS, 8, pg.heads.DiscretizedLogisticMixture(levels=LEVELS, components=2)
    ),
    "bits": lambda: pg.MADE(DIMS, [8], pg.heads.Bernoulli()),
}
RULES = {
    "sharper": pg.Truncation(0.5),
    "flatter": pg.Truncation(temperature=3.0),
    "two likeliest": pg.Truncation(top_k=2),
    "nucleus": pg.Truncation(top_p=0.6),
    "all of them": pg.Truncation(0.7, 2, 0.8),
    "cold": pg.Truncation(0.0),
    "greedy": pg.Truncation(top_k=1),
}


def made(name):
    """A family with weights that make its conditionals differ, and all its events."""
    torch.manual_seed(0)
    gen = FAMILIES[name]()
    for parameter in gen.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    gen = gen.double().eval()
    shape, count = gen().event_shape, 2 if name == "bits" else LEVELS
    events = torch.cartesian_prod(*[torch.arange(float(count)).double()] * DIMS)
    return gen, events.reshape(-1, *shape), count


def changed(masses: list[float], rule: pg.Truncation) -> list[float]:
    """The masses of one step as the definitions say, value by value."""
    if rule.temperature == 0:
        masses = [float(mass == max(masses)) for mass in masses]
    else:
        masses = [mass ** (1 / rule.temperature) for mass in masses]
    likeliest = sorted(range(len(masses)), key=lambda value: (-masses[value], value))
    kept = likeliest[: rule.top_k or len(masses)]
    total, nucleus = sum(masses[value] for value in kept), []
    for value in kept:
        if rule.top_p is None or sum(masses[v] for v in nucleus) < rule.top_p * total:
            nucleus.append(value)
    total = sum(masses[value] for value in nucleus)
    return [masses[v] / total if v in nucleus else 0.0 for v in range(len(masses))]


def changed_table(table: torch.Tensor, order: list[int], rule: pg.Truncation) -> torch.Tensor:
    """A joint table whose conditionals, in an order of its variables, are changed."""
    table = table.permute(order)
    out = torch.ones_like(table)
    for step in range(table.ndim):
        joint = (
            table.sum(dim=tuple(range(step + 1, table.ndim))) if step + 1 < table.ndim else table
        )
        for past in itertools.product(range(len(table)), repeat=step):
            masses = joint[past]
            new = changed((masses / masses.sum()).tolist(), rule)
            for value, mass in enumerate(new):
                out[(*past, value)] *= mass
    return out.permute(torch.tensor(order).argsort().tolist())


def members(distribution):
    """The distributions of single orders that a distribution is the mixture of."""
    return (
        [distribution.of(m) for m in range(distribution.count)]
        if isinstance(distribution, OrderEnsemble)
        else [distribution]
    )


def truth(distribution, events: torch.Tensor, count: int, rule: pg.Truncation) -> torch.Tensor:
    tables = []
    for member in members(distribution):
        table = member.log_prob(events).exp().reshape([count] * DIMS)
        order = list(range(DIMS)) if member.order is None else member.order.tolist()
        tables.append(changed_table(table, order, rule).flatten())
    return torch.stack(tables).mean(0)


@torch.no_grad()
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_score_is_that_of_every_step_changed(name, rule):
    gen, events, count = made(name)
    plain = gen().log_prob(events)
    distribution = gen().using(rule)
    masses = distribution.log_prob(events).exp()
    torch.testing.assert_close(masses.sum(), torch.ones(()).double())
    torch.testing.assert_close(masses, truth(gen(), events, count, rule))
    assert density_kind(distribution) == density_kind(gen()) == "exact"
    assert torch.equal(gen().log_prob(events), plain)


@pytest.mark.parametrize("name", FAMILIES)
def test_draws_have_the_masses_of_the_score(name):
    gen, events, _ = made(name)
    rule = pg.Truncation(0.8, top_p=0.85)
    with torch.no_grad():
        masses = gen().using(rule).log_prob(events).exp()
    drawn = pg.sample(gen, 4000, temperature=0.8, top_p=0.85, seed=1)
    same = (drawn.flatten(1)[:, None] == events.flatten(1)).all(-1)
    counts = same.sum(0)
    assert counts.sum() == 4000 and not counts[masses == 0].any()
    possible = masses > 0
    found = scipy.stats.chisquare(counts[possible].numpy(), 4000 * masses[possible].numpy())
    assert found.pvalue > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_limits(name):
    gen, events, count = made(name)
    plain = gen().log_prob(events)
    for nothing in (pg.Truncation(), pg.Truncation(1.0, count, 1.0)):
        torch.testing.assert_close(gen().using(nothing).log_prob(events), plain)
    if isinstance(gen(), Autoregressive):
        greedy = gen().generate(gen().shape((5,)), lambda t, distribution: _mode(distribution))
        for rule in (pg.Truncation(0.0), pg.Truncation(1e-4), pg.Truncation(top_k=1)):
            assert torch.equal(gen().using(rule).sample((5,)), greedy)
            assert torch.equal(pg.sample(gen, 5, sampler=rule), greedy)


def _mode(distribution):
    """The likeliest of the first levels, as scores tell."""
    values = torch.arange(2.0 if isinstance(distribution, dist.Bernoulli) else LEVELS).double()
    return (
        distribution.log_prob(values.reshape(-1, *[1] * len(distribution.batch_shape)))
        .argmax(0)
        .double()
    )


@torch.no_grad()
@pytest.mark.parametrize("rule", [pg.Truncation(0.5), pg.Truncation(0.7, 2, 0.8)], ids=str)
def test_completions_are_changed_at_every_step(rule):
    gen, events, count = made("DeepNADE")
    unseen = torch.full((DIMS,), torch.nan).double()
    distribution = gen.completion(unseen).using(rule)
    expected = truth(gen(), events, count, rule)
    torch.testing.assert_close(distribution.log_prob(events).exp(), expected)
    seen = torch.tensor([1.0, torch.nan, torch.nan]).double()
    given = gen.completion(seen).using(rule).log_prob(events).exp()
    assert given.sum().item() == pytest.approx(1) and not given[events[:, 0] != 1].any()
    last = torch.tensor([torch.nan, torch.nan, 2.0]).double()  # first in the order of the model
    ours = pg.conditional(gen.ordered(gen.orders[0]).using(rule), last, ~last.isnan())
    joint = truth(gen(), events, count, rule) * (events[:, 2] == 2)
    torch.testing.assert_close(ours.log_prob(events).exp(), joint / joint.sum())


@torch.no_grad()
def test_what_training_scores_can_be_drawn_at_a_temperature_too():
    gen, _, _ = made("DeepNADE")
    distribution = gen.train()().using(pg.Truncation(top_k=1))
    assert density_kind(distribution) == "bound" and distribution.sample((4,)).shape == (4, DIMS)
    gen, events, _ = made("MADE of two orders")
    distribution = gen.train()().using(pg.Truncation(0.5))
    scores = torch.stack([distribution.log_prob(events) for _ in range(20)]).exp()
    exact = gen.eval()().using(pg.Truncation(0.5)).log_prob(events).exp()
    assert density_kind(distribution) == "unbiased"
    torch.testing.assert_close(scores.unique(dim=0).mean(0), exact)


def test_ties():
    even = torch.zeros(4).log_softmax(-1)
    masses = lambda *a, **k: pg.Truncation(*a, **k).log_masses(even).exp().tolist()  # noqa: E731
    assert masses(0.0) == [0.25] * 4
    assert masses(top_k=1) == [1, 0, 0, 0]
    assert masses(top_k=3) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    assert masses(top_p=0.5) == [0.5, 0.5, 0, 0]
    assert masses(top_p=0.51) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    assert masses(top_p=1e-9) == [1, 0, 0, 0]
    two = torch.tensor([0.1, 0.4, 0.1, 0.4]).log()
    assert pg.Truncation(0.0).log_masses(two).exp().tolist() == [0, 0.5, 0, 0.5]


def test_values_without_mass_stay_without():
    bits = pg.truncated(dist.Bernoulli(torch.tensor([0.01, 0.99, 0.4])), pg.Truncation(top_p=0.9))
    assert bits.log_prob(torch.ones(3))[:2].tolist() == [-math.inf, 0]
    assert bits.sample((50,)).mean(0)[:2].tolist() == [0, 1]
    log_masses = torch.tensor([-math.inf, math.log(0.2), math.log(0.8)])
    flat = pg.Truncation(2.0).log_masses(log_masses).exp().tolist()
    assert flat == pytest.approx([0, 1 / 3, 2 / 3])


@pytest.mark.parametrize("temperature", [0.3, 1.7])
def test_other_finite_entries(temperature):
    rule = pg.Truncation(temperature, top_k=3)
    distribution = pg.truncated(dist.Binomial(4, torch.tensor([0.2, 0.6])), rule)
    for column, share in enumerate([0.2, 0.6]):
        masses = scipy.stats.binom(4, share).pmf(range(5)).tolist()
        expected = torch.tensor(changed(masses, rule))
        torch.testing.assert_close(distribution.probs[column], expected, rtol=1e-4, atol=1e-6)


# -- real entries
# --------------------------------------------------------------------------------------------------


def test_normal_entries_are_their_density_to_a_power():
    torch.manual_seed(0)
    gen = pg.MADE(2, [8], pg.heads.Gaussian()).double()
    distribution = gen().using(pg.Truncation(0.5))
    line = torch.linspace(-6, 6, 601).double()
    grid = torch.cartesian_prod(line, line)
    with torch.no_grad():
        assert distribution.log_prob(grid).exp().sum() * (line[1] - line[0]) ** 2 == pytest.approx(
            1, abs=1e-4
        )
        last = torch.stack((torch.full_like(line, 0.3), line), -1)
        ours, power = distribution.terms(last)[:, 1], gen().terms(last)[:, 1] / 0.5
    torch.testing.assert_close(ours - power, (ours - power)[:1].expand(601))


def test_laplace_entries_are_their_density_to_a_power():
    distribution = pg.truncated(dist.Laplace(1.0, 2.0).to_event(0), pg.Truncation(0.25))
    x = torch.linspace(-3, 5, 7)
    expected = scipy.stats.laplace(1.0, 0.5).logpdf(x.numpy())
    torch.testing.assert_close(distribution.log_prob(x), torch.as_tensor(expected).float())


FLOWS = {
    "RealNVP": lambda: pg.RealNVP(2, layers=2, hidden=[8]),
    "MAF": lambda: pg.MAF(2, layers=2, hidden=[8]),
    "FlowMatching": lambda: pg.FlowMatching(
        pg.nn.TimeMLP(2, [8], embedding=8), (2,), solver=RungeKutta(8)
    ),
    "FlowMatching in other units": lambda: pg.Standardized(
        pg.FlowMatching(pg.nn.TimeMLP(2, [8], embedding=8), (2,), solver=RungeKutta(8)), 0.5, 1.5
    ),
}


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_has_noise_of_another_deviation(name):
    torch.manual_seed(0)
    gen = FLOWS[name]()
    for parameter in gen.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    gen = gen.double().eval()
    distribution = gen().using(pg.Truncation(temperature=0.5))
    line = torch.linspace(-8, 8, 101).double()
    with torch.no_grad():
        mass = (
            distribution.log_prob(torch.cartesian_prod(line, line)).exp().sum()
            * (line[1] - line[0]) ** 2
        )
    assert mass == pytest.approx(1, abs=5e-3)
    cold = pg.sample(gen, 2000, temperature=0.5, seed=0)
    plain = pg.sample(gen, 2000, seed=0)
    assert (cold.std(0) < 0.75 * plain.std(0)).all()
    with torch.no_grad():
        entropy = -distribution.log_prob(cold).mean()
        expected = -gen().log_prob(plain).mean() + 2 * math.log(0.5)
    assert entropy == pytest.approx(expected.item(), abs=0.25)


def test_the_latents_of_a_linear_vae_have_another_deviation():
    torch.manual_seed(0)
    decoder, encoder = pg.heads.Gaussian(nn.Linear(1, 4)), pg.heads.Gaussian(nn.Linear(2, 2))
    decoder.net.weight.data = torch.tensor([[1.0], [-0.5], [0.0], [0.0]])
    decoder.net.bias.data.zero_()
    encoder.net.weight.data.zero_()
    gen = pg.VAE(pg.standard_normal(1), decoder, encoder)
    scale = decoder(torch.zeros(1, 1)).variance[0].detach()
    loading = torch.tensor([[1.0], [-0.5]])
    expected = dist.MultivariateNormal(
        torch.zeros(2), 0.25 * loading @ loading.mT + torch.diag(scale)
    )
    drawn = pg.sample(gen, 20000, temperature=0.5, seed=0)
    torch.testing.assert_close(drawn.T.cov(), expected.covariance_matrix, atol=0.03, rtol=0.03)
    distribution = pg.Marginal(gen, particles=20000).using(pg.Truncation(0.5))
    x = torch.tensor([[0.3, -0.2], [1.0, 0.4]])
    with torch.no_grad(), pg.core.seeds.seeded(0):
        torch.testing.assert_close(
            distribution.log_prob(x), expected.log_prob(x), atol=0.05, rtol=0.0
        )
    assert density_kind(distribution) == "unbiased"


def test_a_generator_gets_noise_of_another_deviation():
    gen = pg.GAN(nn.Identity(), pg.standard_normal(2), event_shape=(2,))
    drawn = pg.sample(gen, 5000, temperature=0.3, seed=0)
    torch.testing.assert_close(drawn.std(0), torch.full((2,), 0.3), rtol=0.05, atol=0)


# -- what it is not for
# --------------------------------------------------------------------------------------------------

STEPS = "expected a distribution that is drawn step by step"
REAL = "expected finitely many values for top_k, top_p and temperature=0, got real numbers"
REFUSED = [
    (lambda: pg.Diffusion(pg.nn.TimeMLP(2, [8]), (2,)), {"temperature": 0.5}, STEPS),
    (lambda: pg.GaussianMixture(2, 2), {"temperature": 0.5}, STEPS),
    (lambda: pg.RealNVP(2), {"top_k": 1}, REAL),
    (lambda: pg.RealNVP(2), {"temperature": 0.0}, REAL),
    (lambda: pg.MADE(2, [8], pg.heads.Gaussian()), {"top_p": 0.5}, REAL),
    (lambda: pg.MADE(2, [8], pg.heads.Poisson()), {"top_p": 0.5}, STEPS),
    (lambda: pg.standard_normal(2), {"top_k": 2}, REAL),
]


@pytest.mark.table(quick=3)
@pytest.mark.parametrize(("family", "how", "text"), REFUSED)
def test_what_has_no_such_draws_says_so_in_one_sentence(family, how, text):
    gen = family()
    with pytest.raises(NotImplementedError, match=text) as error:
        pg.sample(gen, 2, **how)
    assert "\n" not in str(error.value)
    assert pg.sample(gen, 2, temperature=1.0, top_p=1.0).shape == pg.sample(gen, 2).shape


@pytest.mark.parametrize(
    "how",
    [
        {"temperature": -1.0},
        {"temperature": math.inf},
        {"temperature": math.nan},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
    ],
)
def test_parameters_out_of_range(how):
    with pytest.raises(ValueError, match=f"expected (a.* )?{next(iter(how))}"):
        pg.Truncation(**how)


@pytest.mark.parametrize("how", [{"top_k": 1.5}, {"top_k": True}, {"temperature": "cold"}])
def test_parameters_of_other_types(how):
    with pytest.raises(TypeError, match=f"expected a.* {next(iter(how))}"):
        pg.Truncation(**how)


def test_other_ways_are_refused_by_what_has_none():
    gen = pg.MADE(2, [8], pg.heads.Bernoulli())
    with pytest.raises(
        TypeError, match=r"expected Truncation\(temperature, top_k, top_p\), got DDIM"
    ):
        pg.sample(gen, 2, sampler=pg.diffusion.DDIM(3))
