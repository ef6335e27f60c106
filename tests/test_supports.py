"""Values outside of a support, and infinities.

Are refused by every family in whatever row they stand.
"""

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints
from zoo import ZOO, Member

import probgen as pg
from probgen.core import supports
from probgen.core.supports import check_support, check_values

FAMILIES = [member for member in ZOO if not member.name.startswith("Program")]
IDS = [member.name for member in FAMILIES]


def wrong(x: torch.Tensor, value: float, row: int) -> torch.Tensor:
    x = x.clone().float()
    x[row].view(-1)[0] = value
    return x


def many(batch: tuple) -> tuple:
    """More rows than the first run of a score looks at."""
    return tuple(part.repeat(20, *[1] * (part.ndim - 1)) for part in batch)


@pytest.mark.parametrize("member", FAMILIES, ids=IDS)
def test_an_infinity_in_any_row_is_refused(member: Member):
    gen, (x, *rest) = member.gen().eval(), many(member.data())
    check_support(gen, x, *rest)
    for value in (torch.inf, -torch.inf):
        with pytest.raises(ValueError, match=r"got .*inf.* in row 101"):
            check_support(gen, wrong(x, value, 101), *rest)


@pytest.mark.parametrize("member", FAMILIES, ids=IDS)
def test_half_a_label_in_any_row_is_refused_where_labels_are_meant(member: Member):
    gen, (x, *rest) = member.gen().eval(), many(member.data())
    discrete = gen(rest[0] if rest else None).support.is_discrete
    if not discrete:
        check_support(gen, x, *rest)
        return
    with pytest.raises(
        ValueError, match=r"expected x with values that are .* got 0.5 in row 101.*; recode x"
    ):
        check_support(gen, wrong(x, 0.5, 101), *rest)
    with pytest.raises(ValueError, match=r"got 0\.5 in row 101"):
        pg.log_likelihood(gen, wrong(x, 0.5, 101), *rest, particles=1)


BITS = torch.randint(2, (200, 3), generator=torch.Generator().manual_seed(0)).float()
SCORED = {
    "RBM": lambda: pg.RBM(pg.energy.BernoulliUnits(3), 2),
    "JointTable": lambda: pg.JointTable(3),
    "MixtureOfTrees": lambda: pg.MixtureOfTrees(2, (2, 2, 2)),
    "MarkovChain": lambda: pg.MarkovChain(3, 2),
    "Bernoulli": lambda: pg.heads.Bernoulli(pg.nn.Constant(3)),
}


@pytest.mark.parametrize("value", [0.5, 2.0, -1.0, torch.inf])
@pytest.mark.parametrize("name", SCORED)
def test_scores_of_such_rows_are_no_numbers(name, value):
    gen = SCORED[name]()
    assert pg.log_likelihood(gen, BITS).value.isfinite().all()
    with pytest.raises(ValueError, match=f"got {value:g} in row 150"):
        pg.log_likelihood(gen, wrong(BITS, value, 150))


def test_fractions_among_counts_are_refused():
    counts = torch.arange(100.0)[:, None]
    with pytest.raises(ValueError, match=r"got 2.25 in row 99"):
        pg.log_likelihood(pg.heads.Poisson(pg.nn.Constant(1)), wrong(counts, 2.25, 99))


def test_missing_values_pass_and_large_data_are_checked_in_parts(monkeypatch):
    x = BITS.masked_fill(torch.rand(200, 3) < 0.2, torch.nan)
    monkeypatch.setattr(supports, "ENTRIES", 30)
    gen = pg.heads.Bernoulli(pg.nn.Constant(3))
    check_support(gen, x)
    with pytest.raises(ValueError, match="got 2 in row 199"):
        check_support(gen, wrong(x, 2.0, 199))


def test_rows_of_a_simplex_are_named():
    distribution = pg.Fixed(dist.Dirichlet, concentration=torch.ones(3))
    x = torch.full((9, 3), 1 / 3)
    check_support(distribution, x)
    x[7] = 0.5
    with pytest.raises(ValueError, match=r"got \[0.5, 0.5, 0.5\] in row 7"):
        check_support(distribution, x)


def test_observations_of_programs_are_checked_too():
    def model(covariate, y):
        rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Poisson(rate + covariate), obs=y)

    def guide(covariate, y):
        pyro.sample("rate", dist.Gamma(1.0, 1.0))

    program = pg.Program(model, guide)
    covariate, y = torch.ones(5), torch.tensor([1.0, 2.0, 3.0, 4.5, 0.0])
    with pytest.raises(
        ValueError, match=r"expected y with values that are .* got 4.5 in row 3; recode y"
    ):
        pg.log_likelihood(program, covariate, y)


def test_bounds_that_differ_from_row_to_row_are_left_alone():
    check_values(
        "x",
        torch.tensor([[1.0], [9.0]]),
        constraints.interval(torch.zeros(2, 1), torch.tensor([[2.0], [10.0]])),
    )
    check_values(
        "n", torch.tensor([3.0, 9.0]), constraints.integer_interval(0, torch.tensor([3.0, 9.0]))
    )


def test_looking_leaves_random_numbers_and_modes_as_they_were():
    gen = pg.VAE(
        pg.standard_normal(2),
        pg.heads.Gaussian(pg.nn.MLP(2, [4], 6, dropout=0.5)),
        pg.heads.Gaussian(pg.nn.MLP(3, [4], 4)),
    )
    before = torch.get_rng_state()
    check_support(gen.train(), torch.zeros(5, 3))
    assert torch.equal(before, torch.get_rng_state()) and gen.training


def test_a_model_that_does_not_run_says_so_itself():
    gen = pg.VAE(
        pg.standard_normal(2),
        pg.heads.Gaussian(pg.nn.MLP(3, [4], 6)),
        pg.heads.Gaussian(pg.nn.MLP(3, [4], 4)),
    )
    check_support(gen, torch.zeros(5, 3))
    with pytest.raises((ValueError, RuntimeError)):
        pg.log_likelihood(gen, torch.zeros(5, 3))


def test_the_advice_for_categories_of_a_frame_works():
    frame = pd.DataFrame({"x": ["b", None, "a"]})
    with pytest.raises(TypeError) as caught:
        pg.log_likelihood(pg.heads.Categorical(pg.nn.Constant(2), levels=2), frame)
    advice = str(caught.value).split("...: ")[1].split(" for NaN")[0]
    assignment, _, mended = advice.partition(", then ")
    names = {"frame": frame, "column": "x"}
    exec(assignment, names)
    codes = eval(mended, names)
    score = pg.log_likelihood(pg.heads.Categorical(pg.nn.Constant(2), levels=2), codes.to_frame())
    torch.testing.assert_close(score.value, torch.tensor([0.5, 1.0, 0.5]).log(), check_dtype=False)
