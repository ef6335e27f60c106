"""Draws from a seed, in pieces, and one row at a time, in every family."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from zoo import ZOO, sampled

import probgen as pg
from probgen.compile.cost_model import Profile
from probgen.core.kinds import density_kind
from probgen.core.module import DistributionModule
from probgen.core.program import Program
from probgen.core.seeds import seeded

NAMES = {"ids": lambda member: member.name}
PAIRS = [m for m in ZOO if not isinstance(m.gen(), Program)]


def made(member):
    torch.manual_seed(0)
    gen, data = member.gen(), member.data()
    return gen.eval(), *(*data, None)[:2]


# -- seeds
# --------------------------------------------------------------------------------------------------


@pytest.mark.table(quick=13)
@pytest.mark.parametrize("member", PAIRS, **NAMES)
def test_a_seed_gives_the_same_draws_and_leaves_the_random_state(member):
    gen, _, context = made(member)
    torch.manual_seed(5)
    first = sampled(gen, 3, context, seed=1)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)
    torch.manual_seed(6)
    assert torch.equal(sampled(gen, 3, context, seed=1), first)
    if not member.name.startswith("Empirical"):
        assert (
            not torch.equal(sampled(gen, 40, context, seed=2)[:3], first)
            or first.unique().numel() == 1
        )


def test_a_generator_is_a_seed_that_goes_on():
    gen = pg.standard_normal(2)
    one, two = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    first = pg.sample(gen, 4, seed=one)
    assert torch.equal(first, pg.sample(gen, 4, seed=two))
    assert not torch.equal(first, pg.sample(gen, 4, seed=one))


def test_the_random_state_comes_back_after_an_error():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), seeded(1):
        torch.rand(1)
        _ = 1 / 0
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("seed", [1.5, "1", True, -1])
def test_what_is_no_seed(seed):
    with pytest.raises((TypeError, ValueError), match="seed"):
        pg.sample(pg.standard_normal(1), 2, seed=seed)


def mean_model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def mean_guide(y):
    pyro.sample("mu", dist.Normal(y.mean(), 0.3))


PROGRAM = Program(mean_model, mean_guide)
Y = torch.tensor([0.5, 1.0, -1.0])
HOLES = torch.tensor([[0.5, torch.nan], [torch.nan, 1.0]])
DRAWING = {
    "posterior": lambda **o: pg.posterior(PROGRAM, Y, draws=4, **o)["mu"],
    "predictive": lambda **o: pg.predictive(PROGRAM, Y, draws=4, **o)["y"],
    "prior_predictive": lambda **o: pg.prior_predictive(PROGRAM, Y, draws=4, **o)["y"],
    "impute": lambda **o: pg.impute(pg.standard_normal(2), HOLES, draws=3, **o).draws,
}


@pytest.mark.parametrize("name", DRAWING)
def test_other_draws_take_a_seed_too(name):
    draw = DRAWING[name]
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = draw(seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(draw(seed=7).nan_to_num(), first.nan_to_num())
    assert not torch.equal(draw(seed=8).nan_to_num(), first.nan_to_num())


# -- pieces
# --------------------------------------------------------------------------------------------------


class Echo(DistributionModule):
    """Draws that tell their context, and how many were made at once."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, context=None):
        loc = torch.zeros(2) if context is None else context
        distribution = dist.Normal(loc, 1e-6).to_event(1)
        plain, sizes = distribution.sample, self.sizes

        def sample(sample_shape=torch.Size()):
            sizes.append(torch.Size(sample_shape).numel() * distribution.batch_shape.numel())
            return plain(sample_shape)

        distribution.sample = sample
        return distribution


@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 3)])
@pytest.mark.parametrize("n", [0, 1, 4, 7])
@pytest.mark.parametrize("max_rows", [1, 2, 3, 8, 1000])
def test_pieces_keep_to_their_places(batch, n, max_rows):
    gen, context = Echo(), torch.randn(*batch, 2)
    drawn = pg.sample(gen, n, context, max_rows=max_rows)
    assert drawn.shape == (n, *batch, 2)
    torch.testing.assert_close(drawn, context.expand(n, *batch, 2), atol=1e-4, rtol=0)
    assert max(gen.sizes) <= max_rows
    assert sum(gen.sizes) == max(n * context[..., 0].numel(), 1)  # one tells the shape of none


def test_no_contexts_give_no_draws():
    assert pg.sample(Echo(), 3, torch.zeros(0, 2)).shape == (3, 0, 2)


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("batch", [None, (40,)])
def test_pieces_have_the_same_distribution(batch):
    torch.manual_seed(0)
    gen = pg.RealNVP(2, hidden=[16], context=0 if batch is None else 3)
    context = None if batch is None else torch.randn(1, 3).expand(*batch, 3)
    count = 6000 if batch is None else 150
    whole = pg.sample(gen, count, context, seed=0).reshape(-1, 2)
    pieces = pg.sample(gen, count, context, seed=1, max_rows=64).reshape(-1, 2)
    found = pg.evaluate.mmd_test(whole[:1000], pieces[:1000], permutations=99)
    assert found.p_value > 0.01


@pytest.mark.parametrize("seed", [0, 1])
def test_one_piece_is_what_the_distribution_draws(seed):
    gen = pg.MADE(3, [8], pg.heads.Bernoulli())
    torch.manual_seed(seed)
    expected = gen().sample((20,))
    assert torch.equal(pg.sample(gen, 20, seed=seed), expected)


def wide():
    return nn.Sequential(nn.Linear(4, 2000), nn.ReLU(), nn.Linear(2000, 4))


@pytest.mark.parametrize("given", [False, True], ids=["of one distribution", "given contexts"])
def test_memory_is_bounded(given):
    torch.manual_seed(0)
    bound, many = 2**22, 4000
    gen = (
        pg.heads.Gaussian(wide())
        if given
        else pg.GAN(wide(), pg.standard_normal(4), event_shape=(4,))
    )
    n, context = (1, torch.randn(many, 4)) if given else (many, None)
    out = many * 4 * 4
    with Profile() as whole:
        gen(context).sample((n,))
    with Profile() as pieces:
        drawn = pg.sample(gen, n, context, memory=bound)
    assert drawn.numel() >= many * 2
    assert whole.peak > 4 * bound
    assert pieces.peak < 2 * bound + 4 * out
    again = pg.sample(gen, n, context, memory=bound, seed=1)
    assert torch.equal(again, pg.sample(gen, n, context, memory=bound, seed=1))


@pytest.mark.parametrize("how", [{"max_rows": 0}, {"memory": -1.0}, {"n": -1}])
def test_bounds_that_are_none(how):
    with pytest.raises(ValueError, match=f"expected {next(iter(how))} >"):
        pg.sample(pg.standard_normal(2), **({"n": 3} | how))


# -- one row at a time
# --------------------------------------------------------------------------------------------------


def rows_of(x, context):
    for row in range(len(x)):
        yield x[row : row + 1], None if context is None else context[row : row + 1]


def score(gen, x, context):
    with seeded(0), torch.no_grad():
        return gen(context).log_prob(x)


def is_random(gen, x, context):
    """Whether scores draw something, so that those of two calls are not comparable."""
    state = torch.get_rng_state()
    gen(context).log_prob(x)
    return not torch.equal(state, torch.get_rng_state())


@pytest.mark.table(quick=13)
@pytest.mark.parametrize("member", PAIRS, **NAMES)
def test_scores_of_rows_do_not_depend_on_the_others(member):
    gen, x, context = made(member)
    if density_kind(gen(context)) == "implicit":
        pytest.skip("has no scores")
    if is_random(gen, x, context):
        pytest.skip("scores are estimates with draws of their own")
    together = score(gen, x, context)
    alone = torch.cat([score(gen, *row).reshape(1) for row in rows_of(x, context)])
    torch.testing.assert_close(alone, together, rtol=1e-3, atol=1e-3, equal_nan=True)


def with_others(rows):
    """The same first row before the others in another order."""
    return None if rows is None else torch.cat((rows[:1], rows[1:].flip(0)))


@pytest.mark.table(quick=19)
@pytest.mark.parametrize(  # draws of Dirichlet variables take as many random numbers as they need
    "member", [m for m in PAIRS if m.name != "LatentDirichletAllocation"], **NAMES
)
def test_a_row_is_the_same_among_others(member):
    """With the draws of a seed, also where scores are estimates."""
    gen, x, context = made(member)
    if density_kind(gen(context)) == "implicit":
        pytest.skip("has no scores")
    first, second = score(gen, x, context), score(gen, with_others(x), with_others(context))
    torch.testing.assert_close(second[0], first[0], rtol=1e-3, atol=1e-3, equal_nan=True)


@pytest.mark.table(quick=19)
@pytest.mark.parametrize("member", [m for m in PAIRS if len(m.data()) > 1], **NAMES)
def test_a_draw_is_the_same_among_others(member):
    gen, _, context = made(member)
    first = pg.sample(gen, 1, context, seed=0)[0, 0]
    second = pg.sample(gen, 1, with_others(context), seed=0)[0, 0]
    torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-4)


def unet(context=2):
    return pg.nn.UNet((1, 4, 4), width=8, multipliers=(1, 1), context=context)


def tiny(context=2):
    return pg.nn.TimeMLP(3, [8], embedding=8, context=context)


THRESHOLD = pg.diffusion.DynamicThreshold(0.9, low=-1.0, high=1.0)
DETERMINISTIC = {
    "DDIM": (
        lambda: pg.Diffusion(tiny(), (3,)),
        lambda distribution, z: distribution.decode(z, pg.diffusion.DDIM(4)),
    ),
    "Heun": (
        lambda: pg.Diffusion(tiny(), (3,)),
        lambda distribution, z: distribution.decode(z, pg.diffusion.Heun(4)),
    ),
    "DPMSolver": (
        lambda: pg.Diffusion(tiny(), (3,)),
        lambda distribution, z: distribution.decode(z, pg.diffusion.DPMSolver(4)),
    ),
    "DDIM with guidance and a dynamic threshold": (
        lambda: pg.Diffusion(unet(), (1, 4, 4), threshold=THRESHOLD, context_dropout=0.1),
        lambda distribution, z: distribution.reconstruction.mode(
            pg.diffusion.DDIM(4)(distribution.using(guidance=3.0).sampled(), z),
            *distribution._end(z),
        ),
    ),
    "flow matching": (
        lambda: pg.FlowMatching(unet(), (1, 4, 4), solver=pg.flows.Euler(4)),
        lambda distribution, z: distribution.transform.inv(z),
    ),
    "flow of an equation solved in adaptive steps": (
        lambda: pg.FFJORD(3, hidden=[8], context=2),
        lambda distribution, z: distribution.transform.inv(z),
    ),
    "flow": (
        lambda: pg.RealNVP(3, context=2),
        lambda distribution, z: distribution.transform.inv(z),
    ),
    "generator with batch norm": (
        lambda: pg.GAN(
            pg.nn.SideBySide(
                nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
            ),
            pg.standard_normal(3),
            event_shape=(3,),
        ),
        lambda distribution, z: distribution.generator(z, distribution.context),
    ),
}
ROWS = 5


@torch.no_grad()
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_draws_without_noise_of_their_own_do_not_depend_on_the_other_rows(name):
    make, draw = DETERMINISTIC[name]
    torch.manual_seed(0)
    gen, context = make().eval(), torch.randn(ROWS, 2)
    for parameter in gen.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    z = 2 * torch.randn(ROWS, *gen(context).event_shape)
    together = draw(gen(context), z)
    alone = torch.cat([draw(gen(c), row) for row, c in rows_of(z, context)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-3


GREEDY = {
    "MADE": lambda: pg.MADE(4, [8], pg.heads.Categorical(levels=3), context=2),
    "NADE": lambda: pg.NADE(4, 8, pg.heads.Categorical(levels=3), context=2),
    "DeepNADE": lambda: pg.DeepNADE(
        4, [8], pg.heads.Categorical(levels=3), context=2, orders=torch.arange(4)
    ),
    "Transformer": lambda: pg.Transformer(
        (4,), pg.heads.Categorical(levels=3), pg.nn.Tokens(3, 8), layers=1, heads=2, context=2
    ),
    "PixelCNN": lambda: pg.PixelCNN(
        (1, 2, 2), pg.heads.Bernoulli(), nn.Unflatten(-1, (-1, 1)), width=4, layers=2, context=2
    ),
    "PixelRNN": lambda: pg.PixelRNN(
        (1, 2, 2), pg.heads.Categorical(levels=3), pg.nn.Tokens(3, 4), width=4, layers=1, context=2
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("name", GREEDY)
def test_greedy_draws_do_not_depend_on_the_other_rows(name):
    torch.manual_seed(0)
    gen, context = GREEDY[name](), 3 * torch.randn(8, 2)
    for parameter in gen.parameters():
        parameter.add_(0.5 * torch.randn_like(parameter))
    together = pg.sample(gen, 1, context, top_k=1)
    alone = [pg.sample(gen, 1, row[None], top_k=1) for row in context]
    assert torch.equal(torch.cat(alone, 1), together)
    assert len(together.reshape(8, -1).unique(dim=0)) > 1
