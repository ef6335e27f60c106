"""Drawing and scoring do not depend on the mode that a model is in, and leave it, and its buffers.

As they were.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from zoo import ZOO, Member, sampled

import probgen as pg
from probgen.core.modes import depends_on_mode, inference_mode_of


def batch_norm_generator() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def dropping_diffusion() -> pg.Diffusion:
    net = pg.nn.TimeMLP(2, [8], embedding=8, context=2)
    return pg.Diffusion(net, (2,), sampler=pg.diffusion.DDIM(3), context_dropout=0.9)


def dropping_flow() -> pg.FlowMatching:
    net = pg.nn.TimeMLP(2, [8], embedding=8, context=2)
    return pg.FlowMatching(net, (2,), solver=pg.flows.Euler(3), context_dropout=0.9)


def dropping_vae() -> pg.VAE:
    decoder = pg.heads.Gaussian(pg.nn.MLP(2, [8], 6, dropout=0.5))
    encoder = pg.heads.Gaussian(pg.nn.MLP(3, [8], 4, norm=nn.BatchNorm1d))
    return pg.VAE(pg.standard_normal(2), decoder, encoder)


def numbers(*event: int, context: bool = False) -> Callable[[], tuple]:
    x = lambda: torch.randn(6, *event)  # noqa: E731
    return lambda: (x(), torch.randn(6, 2)) if context else (x(),)


def bits(*event: int) -> Callable[[], tuple]:
    return lambda: (torch.randint(2, (6, *event)).float(),)


SENSITIVE = [
    Member(
        "GAN with batch norm",
        lambda: pg.GAN(batch_norm_generator(), pg.standard_normal(2)),
        numbers(3),
    ),
    Member(
        "MADE with dropout", lambda: pg.MADE(4, [8], pg.heads.Bernoulli(), dropout=0.5), bits(4)
    ),
    Member(
        "MADE of many orders",
        lambda: pg.MADE(4, [8], pg.heads.Bernoulli(), orders=pg.distributions.random_orders(3, 4)),
        bits(4),
    ),
    Member("DeepNADE", lambda: pg.DeepNADE(4, [8], pg.heads.Bernoulli(), dropout=0.5), bits(4)),
    Member("VAE with dropout and batch norm", dropping_vae, numbers(3)),
    Member("Diffusion with context dropout", dropping_diffusion, numbers(2, context=True)),
    Member("FlowMatching with context dropout", dropping_flow, numbers(2, context=True)),
    Member(
        "Transformer with dropout",
        lambda: pg.Transformer(
            (4,), pg.heads.Categorical(levels=2), pg.nn.Tokens(2, 8), layers=1, dropout=0.5
        ),
        bits(4),
    ),
]


@dataclass(frozen=True)
class Use:
    """One way to draw from a model or to score with it."""

    name: str
    of: Callable
    needs_density: bool = True

    def __call__(self, gen, batch):
        pyro.set_rng_seed(1)
        with torch.random.fork_rng():
            return self.of(gen, *batch)


def completed(gen, x, context=None):
    return pg.impute(
        gen, x.masked_fill(torch.rand(x.shape) < 0.2, torch.nan), context, num_steps=2
    ).draws


def scored(gen, *batch):
    return pg.log_likelihood(gen, *batch, particles=2).value


def replicated(gen, *batch):
    return next(iter(pg.predictive(gen, *batch, draws=2).values()))


def latents(gen, *batch):
    return list(pg.posterior(gen, *batch, draws=2).values())


USES = [
    Use("sample", lambda gen, x, context=None: sampled(gen, 2, context), needs_density=False),
    Use("log_likelihood", scored),
    Use("posterior", latents, needs_density=False),
    Use("predictive", replicated, needs_density=False),
    Use("impute", completed),
]


def state(gen: nn.Module) -> dict:
    return copy.deepcopy(
        {
            **dict(gen.named_buffers()),
            **{f"mode of {n}": m.training for n, m in gen.named_modules()},
        }
    )


def same(one, other) -> bool:
    if torch.is_tensor(one):
        return torch.equal(one.nan_to_num(), other.nan_to_num())
    return len(one) == len(other) and all(map(same, one, other))


def one_layer_frozen(gen: nn.Module) -> nn.Module:
    parts = list(gen.train().modules())
    parts[-1].eval()
    return gen


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("member", SENSITIVE + ZOO, ids=lambda member: member.name)
def test_inference_is_the_same_in_both_modes_and_changes_nothing(member: Member):
    gen, batch = member.gen(), member.data()
    density = pg.density_kind(gen.eval()(batch[1] if len(batch) > 1 else None))
    gen.model(*batch), gen.guide(*batch)  # what a first run makes
    for use in USES:
        if use.needs_density and density == "implicit":
            continue
        try:
            expected = use(gen.eval(), batch)
        except (NotImplementedError, ValueError, TypeError):
            continue
        before = state(one_layer_frozen(gen))
        found = use(gen, batch)
        after = state(gen)
        assert same(found, expected), use.name
        assert before.keys() == after.keys()
        for name, value in before.items():
            assert same(value, after[name]) if torch.is_tensor(value) else value == after[name], (
                use.name,
                name,
            )


def test_nothing_is_exact_while_a_layer_is_random():
    gen, x = pg.MADE(4, [8], pg.heads.Bernoulli(), dropout=0.5).train(), bits(4)()[0]
    assert pg.core.log_weights(gen, x)[1] == "approximate"
    assert pg.core.log_weights(gen.eval(), x)[1] == "exact"
    assert pg.log_likelihood(gen.train(), x).kind == "exact"
    assert pg.core.log_weights(pg.MADE(4, [8], pg.heads.Bernoulli()).train(), x)[1] == "exact"


@pytest.mark.parametrize("member", SENSITIVE, ids=lambda member: member.name)
def test_what_depends_on_the_mode_is_known(member: Member):
    gen = member.gen().train()
    expected = "orders" not in member.name
    assert depends_on_mode(gen) is expected
    assert not depends_on_mode(gen.eval())


def test_a_failing_call_puts_the_mode_back():
    gen = pg.MADE(4, [8], pg.heads.Bernoulli()).train()
    with pytest.raises(ValueError, match="n >= 0"):
        pg.sample(gen, -1)
    assert all(part.training for part in gen.modules())


def test_what_is_no_module_has_no_mode():
    with inference_mode_of(object()):
        assert not depends_on_mode(object())


class StaysRandom(pg.DistributionModule):
    """A distribution whose network is random in eval mode too, one way or the other."""

    context_size = 0

    def __init__(self, noise, event=3):
        super().__init__()
        self.noise = noise
        self.loc = nn.Parameter(torch.ones(event))

    def forward(self, context=None):
        return dist.Normal(self.noise(self.loc, self.training), 1.0).to_event(1)


NOISES = {
    "dropout": (lambda loc, _: nn.functional.dropout(loc, 0.5, training=True), "approximate"),
    "added": (lambda loc, _: loc + 0.1 * torch.randn(3), "approximate"),
    "drawn": (lambda loc, _: dist.Normal(loc, 0.1).rsample(), "approximate"),
    "by the mode": (lambda loc, training: nn.functional.dropout(loc, 0.5, training), "exact"),
    "none": (lambda loc, _: loc, "exact"),
}


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("rows", [5, 200])
def test_a_density_that_stays_random_in_eval_mode_is_not_exact(name, rows):
    noise, kind = NOISES[name]
    gen = StaysRandom(noise).eval()
    x = torch.zeros(rows, 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        score = pg.log_likelihood(gen, x)
        again = pg.log_likelihood(gen, x, particles=1)
    told = [each for each in caught if "draws random numbers in eval mode" in str(each.message)]
    assert score.kind == kind and len(told) == 2 * (kind != "exact")  # one a call
    assert all(each.filename == __file__ for each in told)
    same = torch.equal(again.value, score.value)
    assert same == (kind == "exact")


@pytest.mark.table(quick=5)
@pytest.mark.filterwarnings("error:the density of")
@pytest.mark.parametrize("member", ZOO, ids=lambda member: member.name)
def test_exact_scores_of_the_zoo_draw_nothing(member):
    torch.manual_seed(0)
    gen, batch = member.gen(), member.data()
    try:
        score = pg.log_likelihood(gen, *batch, particles=2)
    except NotImplementedError:
        pytest.skip("an implicit model has no density")
    before = torch.get_rng_state()
    again = pg.log_likelihood(gen, *batch, particles=2)
    drawn = not torch.equal(torch.get_rng_state(), before)
    assert again.kind == score.kind
    assert score.kind != "exact" or (not drawn and torch.equal(again.value, score.value))


def normal(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def observed():
    torch.manual_seed(0)
    return torch.randn(20, 3)


def losses(x=None, **options):
    x = observed() if x is None else x
    torch.manual_seed(0)
    gen = pg.MAF(3)
    options = {"steps": 3, "seed": 0, "progress": False, "verdict": False, **options}
    return torch.tensor(pg.fit(gen, x, validation=x, **options).loss)


def draws():
    options = {"seed": 0, "progress": False}
    return pg.mcmc(normal, torch.ones(5), draws=5, tune=5, chains=1, **options).draws["mu"]


@pytest.mark.parametrize("function", [losses, pytest.param(draws, marks=pytest.mark.slow)])
def test_gradients_are_taken_whatever_mode_is_around(function):
    expected = function()
    with torch.no_grad():
        assert torch.equal(function(), expected)
    with torch.inference_mode(), pytest.raises(ValueError, match=r"call [a-z]+ outside of it"):
        function()
    assert torch.equal(function(), expected)


def test_rows_made_in_inference_mode_are_learned_from():
    with torch.inference_mode():
        x = observed()
    assert torch.equal(losses(x), losses(x.clone()))
    assert torch.equal(losses([x[:10], x[10:]]), losses([x[:10].clone(), x[10:].clone()]))


def test_a_model_made_in_inference_mode_is_refused():
    with torch.inference_mode():
        gen = pg.MAF(3)
    with pytest.raises(ValueError, match="build the model outside of it"):
        pg.fit(gen, observed(), steps=1)


def test_what_has_no_gradient_is_no_matter_of_precision():
    with torch.inference_mode():
        x = torch.randint(2, (5, 4)).float()
    with pytest.raises(RuntimeError, match="Inference tensors"):
        pg.MADE(4, [8], pg.heads.Bernoulli())().log_prob(x)
