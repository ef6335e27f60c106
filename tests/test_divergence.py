"""Divergences of models: closed forms, enumeration, draws with their error, and what is refused."""

import math

import pandas
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import probgen as pg
from probgen.core.module import DistributionModule, Fixed
from probgen.distributions.closed_divergences import enumerates
from probgen.evaluate.f_divergences import TERMS, ratio_term
from probgen.heads import Bernoulli, Categorical, Gaussian, Poisson, ZeroInflated
from probgen.models.emissions import CategoricalEmission, GaussianEmission
from probgen.nn import MLP, Constant

KINDS = [*TERMS]


def normal(loc: float, scale: float, dims: int = 1) -> Fixed:
    return Fixed(dist.Normal, loc=torch.full((dims,), loc), scale=scale)


def random(gen: nn.Module, seed: int) -> nn.Module:
    """With parameters drawn from a seed."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in gen.parameters():
            parameter.normal_()
    return gen.eval()


def network(parents: dict) -> pg.BayesianNetwork:
    """Of three variables with 2, 3 and 2 values."""
    levels = {"a": 2, "b": 3, "c": 2}
    nodes = {
        name: pg.graphical.ProbabilityTable(
            count, tuple(levels[one] for one in parents.get(name, []))
        )
        for name, count in levels.items()
    }
    return pg.BayesianNetwork(nodes, parents)


def tree(seed: int) -> pg.ChowLiu:
    """Learned from few rows."""
    gen = pg.ChowLiu((2, 3, 2))
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(k, (12,), generator=generator) for k in (2, 3, 2)]
    gen.initialize(torch.stack(rows, -1).float())
    return gen


def field(seed: int) -> pg.MarkovRandomField:
    return random(pg.MarkovRandomField((2, 2), pg.graphical.grid_edges(2, 2)), seed)


def trees(seed: int) -> pg.MixtureOfTrees:
    torch.manual_seed(seed)
    gen = pg.MixtureOfTrees(2, (2, 3, 2))
    gen.initialize(torch.stack([torch.randint(k, (12,)) for k in (2, 3, 2)], -1).float())
    return gen


def hidden_markov(seed: int, states: int = 2) -> pg.HiddenMarkovModel:
    return random(pg.HiddenMarkovModel(states, 4, CategoricalEmission(states, 3)), seed)


def bits(seed: int) -> pg.MADE:
    return random(pg.MADE(4, [8], Bernoulli()), seed)


def table(*masses: float) -> Fixed:
    return Fixed(dist.Categorical, event_ndim=0, logits=torch.tensor(masses).log())


def events(gen: nn.Module) -> torch.Tensor:
    """All of them, by a product of ranges that the test writes out."""
    sizes = {
        "BayesianNetwork": (2, 3, 2),
        "ChowLiu": (2, 3, 2),
        "MixtureOfTrees": (2, 3, 2),
        "MarkovRandomField": (2, 2, 2, 2),
        "HiddenMarkovModel": (3, 3, 3, 3),
        "MADE": (2, 2, 2, 2),
        "MarkovChain": (3, 3, 3),
        "JointTable": (2, 2, 2),
        "Fixed": (3,),
    }[type(gen).__name__]
    found = torch.cartesian_prod(*(torch.arange(float(size)) for size in sizes))
    return found.reshape(-1, *gen().event_shape)


def of_masses(p: torch.Tensor, q: torch.Tensor) -> dict[str, float]:
    """The definitions, in float64, of masses that may be zero."""
    m = (p + q) / 2

    def kl(a: torch.Tensor, b: torch.Tensor) -> float:
        return torch.where(a > 0, a * (a / b).log(), 0.0).sum().item()

    squared = 1 - (p * q).sqrt().sum().item()
    return {
        "kl": kl(p, q),
        "reverse kl": kl(q, p),
        "jensen-shannon": (kl(p, m) + kl(q, m)) / 2,
        "total variation": (p - q).abs().sum().item() / 2,
        "squared hellinger": squared,
        "hellinger": math.sqrt(max(0.0, squared)),
        "chi-squared": torch.where(p != q, (p - q).square() / q, 0.0).sum().item(),
    }


DISCRETE = {
    "categories": lambda: (table(0.2, 0.3, 0.5), table(0.4, 0.4, 0.2)),
    "categories, one impossible": lambda: (table(0.5, 0.5, 0.0), table(0.4, 0.4, 0.2)),
    "networks of other graphs": lambda: (
        random(network({"b": ["a"], "c": ["a", "b"]}), 0),
        random(network({"a": ["c"], "b": ["c"]}), 1),
    ),
    "trees": lambda: (tree(0), tree(1)),
    "a network and a tree": lambda: (random(network({"c": ["a", "b"]}), 0), tree(1)),
    "fields": lambda: (field(0), field(1)),
    "tables": lambda: (random(pg.JointTable(3), 0), random(pg.JointTable(3), 1)),
    "mixtures of trees": lambda: (trees(0), trees(1)),
    "hidden Markov models": lambda: (hidden_markov(0), hidden_markov(1, states=3)),
    "Markov chains of other orders": lambda: (
        random(pg.MarkovChain(3, 3), 0),
        random(pg.MarkovChain(3, 3, order=2), 1),
    ),
    "autoregressive": lambda: (bits(0), bits(1)),
}


def masses(gen: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return gen().log_prob(events(gen)).double().exp()


@pytest.mark.parametrize("pair", DISCRETE)
def test_of_discrete_models_every_divergence_is_exact(pair: str) -> None:
    p, q = DISCRETE[pair]()
    truth = of_masses(masses(p), masses(q))
    for kind in KINDS:
        found = pg.divergence(p, q, kind)
        assert (found.kind, found.draws, found.stderr, found.khat) == ("exact", 0, 0.0, None)
        assert found.value == pytest.approx(truth[kind], rel=1e-4, abs=1e-6), kind


@pytest.mark.parametrize("pair", DISCRETE)
def test_torch_knows_the_divergence_of_discrete_models(pair: str) -> None:
    p, q = DISCRETE[pair]()
    with torch.no_grad():
        found = torch.distributions.kl_divergence(p(), q())
    assert found.item() == pytest.approx(of_masses(masses(p), masses(q))["kl"], rel=1e-4, abs=1e-6)


def test_it_says_whether_it_was_a_closed_form() -> None:
    assert pg.divergence(tree(0), tree(1)).how == "closed form"
    assert pg.divergence(hidden_markov(0), hidden_markov(1)).how == "enumeration"
    assert pg.divergence(tree(0), trees(1)).how == "enumeration"
    assert pg.divergence(tree(0), tree(1), draws=100, seed=0).how == "draws"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "chi-squared"])
@pytest.mark.parametrize("pair", ["categories", "trees", "autoregressive", "hidden Markov models"])
def test_draws_agree_with_enumeration(pair: str, kind: str) -> None:
    p, q = DISCRETE[pair]()
    truth = of_masses(masses(p), masses(q))[kind]
    found = pg.divergence(p, q, kind, draws=2000, seed=1)
    assert found.draws == 2000
    assert abs(found.value - truth) < 4.5 * found.stderr + 1e-6


# -- continuous models


def integrated(p: nn.Module, q: nn.Module) -> dict[str, float]:
    """The definitions by a sum over a fine grid of one variable."""
    x = torch.linspace(-60, 60, 400_001, dtype=torch.float64)[:, None]
    masses = [gen().log_prob(x.float()).double().exp() * (x[1] - x[0]) for gen in (p, q)]
    return of_masses(*(each.clamp(min=1e-300) for each in masses))


NORMALS = {
    "shifted": ((0.0, 1.0), (1.0, 1.0)),
    "wider": ((0.0, 1.0), (0.5, 2.0)),
    "much wider": ((0.0, 1.0), (0.0, 6.2)),
}


@pytest.mark.parametrize("pair", NORMALS)
@pytest.mark.parametrize("kind", ["kl", "reverse kl", "hellinger", "squared hellinger"])
def test_closed_forms_of_normals(pair: str, kind: str) -> None:
    p, q = (normal(*each) for each in NORMALS[pair])
    found = pg.divergence(p, q, kind)
    assert (found.kind, found.how) == ("exact", "closed form")
    if kind != "reverse kl" or pair != "much wider":  # where the grid's tails underflow
        assert found.value == pytest.approx(integrated(p, q)[kind], rel=1e-4)


DRAWN = [(pair, kind) for pair in NORMALS for kind in (*KINDS, "function")]
DRAWN.remove(("shifted", "chi-squared"))  # of a large variance


@pytest.mark.parametrize(("pair", "kind"), DRAWN)
def test_draws_agree_with_the_integral(pair: str, kind: str) -> None:
    p, q = (normal(*each) for each in NORMALS[pair])
    truth = integrated(p, q)
    given = (lambda u: (u.sqrt() - 1).square() / 2) if kind == "function" else kind
    truth["function"] = truth["squared hellinger"]
    if kind == "reverse kl":
        truth[kind] = pg.divergence(p, q, kind).value
    found = pg.divergence(p, q, given, draws=4000, seed=3)
    assert abs(found.value - truth[kind]) < 4.5 * found.stderr


def test_multivariate_normals_have_a_closed_affinity() -> None:
    torch.manual_seed(0)
    factors = [torch.randn(3, 3).tril(-1) + 2 * torch.eye(3) for _ in range(2)]
    p, q = (
        Fixed(dist.MultivariateNormal, loc=torch.randn(3), scale_tril=factor) for factor in factors
    )
    exact = pg.divergence(p, q, "hellinger")
    drawn = pg.divergence(p, q, "hellinger", draws=20_000, seed=0)
    assert exact.kind == "exact"
    assert abs(exact.value - drawn.value) < 4.5 * drawn.stderr


def test_a_function_is_the_divergence_that_it_defines() -> None:
    p, q = table(0.2, 0.3, 0.5), table(0.4, 0.4, 0.2)
    truth = of_masses(*(each().probs.double() for each in (p, q)))
    functions = {
        "kl": lambda u: torch.where(u > 0, u * u.log(), 0.0),
        "reverse kl": lambda u: -u.log(),
        "total variation": lambda u: (u - 1).abs() / 2,
        "chi-squared": lambda u: (u - 1).square(),
    }
    for kind, f in functions.items():
        assert pg.divergence(p, q, f).value == pytest.approx(truth[kind], rel=1e-5)


@pytest.mark.parametrize(
    ("p", "q", "f", "value"),
    [
        ((0.5, 0.5, 0.0), (0.4, 0.4, 0.2), lambda u: u * u.log(), math.log(1.25)),
        ((0.5, 0.5, 0.0), (0.4, 0.4, 0.2), lambda u: -u.log(), math.inf),
        ((0.4, 0.4, 0.2), (0.5, 0.5, 0.0), lambda u: u * u.log(), math.inf),
        ((0.4, 0.4, 0.2), (0.5, 0.5, 0.0), lambda u: (u - 1).abs() / 2, 0.2),
    ],
)
def test_a_function_counts_what_one_model_lacks(p, q, f, value: float) -> None:
    assert pg.divergence(table(*p), table(*q), f).value == pytest.approx(value, rel=1e-5)


def test_with_contexts_it_is_the_mean_over_them() -> None:
    p, q = (random(Gaussian(MLP(2, [8], 4)), seed) for seed in (0, 1))
    contexts = torch.randn(5, 2)
    exact = torch.distributions.kl_divergence(p(contexts).base_dist, q(contexts).base_dist)
    mean = exact.sum(-1).mean().item()
    assert pg.divergence(p, q, context=contexts).value == pytest.approx(mean, rel=1e-5)
    found = pg.divergence(p, q, context=contexts, draws=3000, seed=0)
    assert abs(found.value - mean) < 4.5 * found.stderr


def test_pieces_and_seeds_give_the_same_draws() -> None:
    p, q = normal(0.0, 1.0, 2), normal(0.5, 2.0, 2)
    once = pg.divergence(p, q, draws=200, seed=4)
    assert once == pg.divergence(p, q, draws=200, seed=4)
    assert pg.divergence(p, q, draws=200, seed=5) != once
    assert pg.divergence(p, q, draws=200, seed=4, max_rows=30).draws == 200


def test_divergences_of_a_model_from_itself_are_zero() -> None:
    p = random(pg.GaussianMixture(3, 2), 0)
    for kind in KINDS:
        found = pg.divergence(p, p, kind, draws=100, seed=0)
        assert found.value == pytest.approx(0.0, abs=1e-6)


# -- errors


@pytest.mark.slow
def test_errors_cover_the_truth_as_often_as_they_say() -> None:
    p, q = normal(0.0, 1.0), normal(0.7, 1.5)
    truth = integrated(p, q)
    for kind in ("kl", "jensen-shannon", "hellinger"):
        found = [pg.divergence(p, q, kind, draws=500, seed=seed) for seed in range(150)]
        inside = sum(abs(each.value - truth[kind]) < 1.96 * each.stderr for each in found)
        assert 0.88 < inside / len(found) <= 0.99, kind


def test_heavy_ratios_do_not_spoil_the_estimate() -> None:
    """The average of r - 1 - log r under p has an infinite variance here, and its error is wrong."""
    p, q = normal(0.0, 1.0), normal(0.0, 6.2)
    exact = pg.divergence(p, q).value
    torch.manual_seed(0)
    x = p().sample((4000,))
    log_ratio = (q().log_prob(x) - p().log_prob(x)).double()
    naive = log_ratio.exp() - 1 - log_ratio
    assert naive.std() / math.sqrt(len(naive)) > 10 * pg.divergence(p, q, draws=4000, seed=0).stderr
    assert pg.diagnostics.pareto_khat(log_ratio) > 0.7
    found = pg.divergence(p, q, draws=4000, seed=0)
    assert abs(found.value - exact) < 4 * found.stderr
    assert found.khat < 0.7


def test_draws_for_which_the_average_has_no_error_are_refused() -> None:
    cauchy = Fixed(dist.Cauchy, loc=torch.zeros(1), scale=1.0)
    wide, narrow = normal(0.0, 3.0), normal(0.0, 1.0)
    for p, q, kind in ((cauchy, narrow, "kl"), (wide, narrow, "chi-squared")):
        with pytest.raises(
            ValueError, match=r"expected terms .* Pareto k-hat of .*; take a bounded"
        ):
            pg.divergence(p, q, kind, draws=4000, seed=0)
        for bounded in ("jensen-shannon", "total variation", "hellinger"):  # as the advice says
            assert 0 < pg.divergence(p, q, bounded, seed=0).value < 1


def test_a_draw_that_the_other_model_excludes_makes_it_infinite() -> None:
    class Sure(DistributionModule):
        context_size = 0

        def forward(self, context=None):
            return dist.Categorical(logits=torch.tensor([[1.0, 0.0], [0.5, 0.5]]).log()).to_event(1)

    q, p = Sure(), Categorical(Constant(4), levels=2)
    assert pg.divergence(p, q).value == math.inf
    assert pg.divergence(p, q, draws=100, seed=0).value == math.inf
    assert pg.divergence(q, p, draws=100, seed=0).value < 1


# -- kinds


class OfKind(DistributionModule):
    """A normal distribution that says that its density is of some kind, with the noise of it."""

    context_size = 0

    def __init__(self, kind: str, loc: float = 0.0):
        super().__init__()
        self.kind = kind
        self.loc = loc

    def forward(self, context=None):
        class Noisy(dist.Normal):
            density_kind = self.kind

            def log_prob(self, x):
                noise = 0.3 * torch.randn_like(x)
                value = super().log_prob(x)
                return {
                    "exact": value,
                    "approximate": value,
                    "unbiased": value + noise - 0.3**2 / 2,
                    "bound": value - noise.abs(),
                }.get(self.density_kind, value)

        return Noisy(torch.full((), self.loc), 1.0)


ALGEBRA = {
    ("exact", "exact"): ("unbiased", "unbiased", "unbiased"),
    ("exact", "unbiased"): ("upper bound", "lower bound", "upper bound"),
    ("exact", "bound"): ("upper bound", "lower bound", None),
    ("unbiased", "exact"): ("lower bound", "upper bound", "upper bound"),
    ("bound", "exact"): ("lower bound", "upper bound", None),
    ("exact", "approximate"): ("approximate",) * 3,
    ("approximate", "approximate"): ("approximate",) * 3,
    ("unbiased", "unbiased"): (None,) * 3,
    ("bound", "approximate"): (None,) * 3,
    ("exact", "unnormalized"): (None,) * 3,
    ("implicit", "exact"): (None,) * 3,
}


@pytest.mark.parametrize("kinds", ALGEBRA, ids="-".join)
def test_the_kind_follows_from_those_of_the_densities(kinds: tuple[str, str]) -> None:
    p, q = OfKind(kinds[0]), OfKind(kinds[1], 1.0)
    truth = integrated(normal(0.0, 1.0), normal(1.0, 1.0))
    for name, wanted in zip(("kl", "reverse kl", "squared hellinger"), ALGEBRA[kinds], strict=True):
        if wanted is None:
            with pytest.raises(ValueError, match=r"expected .* got .*; "):
                pg.divergence(p, q, name, draws=4000, seed=0)
            continue
        found = pg.divergence(p, q, name, draws=4000, seed=0)
        assert found.kind == wanted
        sign = {"upper bound": 1, "lower bound": -1}.get(found.kind, 0)
        gap = found.value - truth[name]
        assert gap * sign > -4 * found.stderr if sign else abs(gap) < 4.5 * found.stderr


def test_of_a_latent_variable_model_it_is_an_upper_bound() -> None:
    """More draws of a poor guide tighten the bound from above."""
    torch.manual_seed(0)
    vae = pg.VAE(pg.standard_normal(1), Gaussian(MLP(1, [8], 6)), Gaussian(MLP(3, [8], 2)))
    p = normal(0.0, 1.0, 3)
    found = pg.divergence(p, vae, draws=2000, seed=0)
    assert found.kind == "upper bound"
    x = p().sample((2000,))
    fine = pg.log_likelihood(vae, x, particles=500).value
    assert found.value > (p().log_prob(x) - fine).mean().item() - 4 * found.stderr


# -- mixtures have no closed form


def test_mixtures_have_a_closed_form_only_where_it_is_exact() -> None:
    p = random(pg.GaussianMixture(3, 2), 0)
    other = random(pg.GaussianMixture(3, 2), 1)
    single, shifted = (random(pg.GaussianMixture(1, 2), seed) for seed in (0, 1))
    kl = torch.distributions.kl_divergence
    assert kl(p(), p()).item() == pytest.approx(0.0, abs=1e-6)
    component = kl(single().component_distribution, shifted().component_distribution)
    assert kl(single(), shifted()).item() == pytest.approx(component.item())
    with pytest.raises(NotImplementedError, match=r"probgen\.divergence"):
        kl(p(), other())
    assert pg.divergence(p, other, seed=0).kind == "unbiased"


def test_mixtures_of_other_weights_are_not_told_by_their_weights() -> None:
    """The divergence of the weights is an upper bound of that of the mixtures: components overlap."""
    components = [random(Gaussian(Constant(2)), seed) for seed in (0, 1)]
    weights = [torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])]
    p, q = (pg.Mixture(components, Constant(2, initial=each)) for each in weights)
    bound = torch.distributions.kl_divergence(*(dist.Categorical(logits=w) for w in weights)).item()
    found = pg.divergence(p, q, seed=0)
    assert found.kind == "unbiased"
    assert found.value + 5 * found.stderr < bound


def test_what_is_registered_by_enumeration_is_told() -> None:
    assert enumerates(bits(0)(), bits(1)())
    assert not enumerates(tree(0)(), tree(1)())


# -- refusals


def continuous_markov() -> pg.HiddenMarkovModel:
    return pg.HiddenMarkovModel(2, 4, GaussianEmission(2, 1))


def amounts(atom: float) -> ZeroInflated:
    return ZeroInflated(Constant(3), head=pg.heads.Gaussian(), atoms=(atom,))


REFUSED = {
    "other events": (
        lambda: (normal(0.0, 1.0, 3), pg.standard_normal(2)),
        ValueError,
        r"the same events, got \(3,\) and \(2,\); reshape",
    ),
    "a mass and a density": (
        lambda: (normal(0.0, 1.0, 2), Bernoulli(Constant(2))),
        TypeError,
        "got a mass and a density",
    ),
    "labels of other columns": (
        lambda: (table_of(a=["u", "v"]), table_of(a=["u", "w"])),
        ValueError,
        r"stand for the same values, got \['u', 'v'\] and \['u', 'w'\] in column 'a'; build both",
    ),
    "columns in another order": (
        lambda: (table_of(a=["u", "v"], b=["u", "v"]), table_of(b=["u", "v"], a=["u", "v"])),
        ValueError,
        r"the same columns in one order, got \['a', 'b'\] and \['b', 'a'\]",
    ),
    "days since another one": (
        lambda: (table_of(a=day("2020")), table_of(a=day("2021"))),
        ValueError,
        "stand for the same values, got days since",
    ),
    "other levels": (
        lambda: (Categorical(Constant(6), levels=3), Bernoulli(Constant(2))),
        ValueError,
        "same support, got integers from 0 to 2 and integers from 0 to 1",
    ),
    "counts and labels": (
        lambda: (Poisson(Constant(2)), Bernoulli(Constant(2))),
        ValueError,
        "same support, got integers of at least 0 and integers from 0 to 1",
    ),
    "positive and real numbers": (
        lambda: (pg.heads.Gamma(Constant(4)), normal(0.0, 1.0, 2)),
        ValueError,
        "same support, got positive numbers and finite numbers",
    ),
    "other atoms": (
        lambda: (amounts(0.0), amounts(1.0)),
        TypeError,
        "same atoms, got atoms at 0 and at 1",
    ),
    "an atom and none": (
        lambda: (amounts(0.0), normal(0.0, 1.0, 1)),
        TypeError,
        "same atoms, got atoms at 0 and at none",
    ),
    "from a generator": (
        lambda: (pg.GAN(MLP(2, [8], 3), pg.standard_normal(2)), normal(0.0, 1.0, 3)),
        ValueError,
        "expected p with a density .* got implicit",
    ),
    "to a generator": (
        lambda: (normal(0.0, 1.0, 3), pg.GAN(MLP(2, [8], 3), pg.standard_normal(2))),
        ValueError,
        "expected q with a density .* got implicit",
    ),
}


def day(year: str) -> pandas.Series:
    return pandas.to_datetime(pandas.Series([f"{year}-01-01", f"{year}-02-03", f"{year}-05-01"]))


def table_of(**columns) -> pg.Tabular:
    table = pg.Table.read(pandas.DataFrame(columns))
    heads = table.heads()
    return pg.Tabular(table, pg.heads.Mixed(Constant(pg.heads.Mixed(None, heads).width), heads))


def test_of_one_table_it_is_that_of_the_numbers() -> None:
    p, q = random(table_of(a=["u", "v"]), 0), random(table_of(a=["u", "v"]), 1)
    masses = [pg.log_likelihood(each, pandas.DataFrame({"a": ["u", "v"]})).value for each in (p, q)]
    truth = (masses[0].exp() * (masses[0] - masses[1])).sum().item()
    found = pg.divergence(p, q, seed=0)
    assert found.value == pytest.approx(truth, abs=4 * found.stderr + 1e-5)


def test_a_root_of_an_upper_bound_is_none() -> None:
    """Its mean is less than the root of the mean, and nothing says how much."""
    p, q = OfKind("exact"), OfKind("unbiased", 1.0)
    for name, kind in (("squared hellinger", "upper bound"), ("hellinger", "approximate")):
        assert pg.divergence(p, q, name, draws=400, seed=0).kind == kind


def test_there_is_no_mean_over_no_contexts() -> None:
    gen = pg.MAF(2, context=3, layers=1, hidden=(4,))
    with pytest.raises(ValueError, match="a context or more"):
        pg.divergence(gen, gen, context=torch.zeros(0, 3))


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_divergence_is_refused(case: str) -> None:
    make, error, message = REFUSED[case]
    p, q = make()
    with pytest.raises(error, match=message):
        pg.divergence(p, q)


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("KL", ValueError, "expected kind to be 'kl'"),
        (3, ValueError, "expected kind to be 'kl'"),
        (lambda u: u.square(), ValueError, r"f\(1\) = 1; subtract it"),
        (lambda u: -(u - 1).square(), ValueError, "not convex"),
        (lambda u: 0.0, TypeError, "gives a tensor of its shape"),
        (lambda u: math.log(u), TypeError, "write it with torch"),
    ],
    ids=["another name", "a number", "not 0 at 1", "concave", "no tensor", "no operation"],
)
def test_other_kinds_are_refused(kind, error, message) -> None:
    with pytest.raises(error, match=message):
        pg.divergence(normal(0.0, 1.0), normal(1.0, 1.0), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_terms_have_their_limits(kind: str) -> None:
    """Beside a direct formula in the middle, and values far out."""
    term = ratio_term(kind).mixed
    ends = term(torch.tensor([-torch.inf, torch.inf], dtype=torch.float64))
    near = term(torch.tensor([-400.0, 400.0], dtype=torch.float64))
    for end, value in zip(ends.tolist(), near.tolist(), strict=True):
        assert value == pytest.approx(end, rel=1e-9) if math.isfinite(end) else value > 100
    t = torch.linspace(-5, 5, 11, dtype=torch.float64)
    q, p = (-t).sigmoid(), t.sigmoid()  # of one event beside the rest
    direct = {
        "kl": 2 * (p * (p / q).log() - p + q),
        "reverse kl": 2 * (q * (q / p).log() - q + p),
        "jensen-shannon": p * (2 * p).log() + q * (2 * q).log(),
        "total variation": (p - q).abs(),
        "squared hellinger": (p.sqrt() - q.sqrt()).square(),
        "hellinger": (p.sqrt() - q.sqrt()).square(),
        "chi-squared": 2 * (p - q).square() / q,
    }
    assert torch.allclose(term(t), direct[kind], atol=1e-12)


def test_it_prints_what_it_is() -> None:
    exact = str(pg.divergence(normal(0.0, 1.0), normal(1.0, 1.0)))
    assert exact == "0.5 nats (exact, closed form)"
    drawn = str(pg.divergence(normal(0.0, 1.0), normal(1.0, 1.0), "total variation", seed=0))
    assert drawn.startswith("0.3") and "unbiased, 4000 draws, k-hat" in drawn
