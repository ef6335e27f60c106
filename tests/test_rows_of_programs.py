"""Rows of people's programs.

Which arguments hold them, what they are called, and what cannot be cut.
"""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch.testing import assert_close

import probgen as pg
from probgen.infer.nuts import PyroNUTS

N = dist.Normal
ROWS = 300
X = torch.randn(ROWS, generator=torch.Generator().manual_seed(0))
Y = 2 * X + 0.1
PARALLEL = {"enumerate": "parallel"}


@pytest.fixture(autouse=True)
def cleared():
    yield
    pyro.clear_param_store()


def slope(x, plate=lambda x: pyro.plate("data", len(x)), own=lambda x, i: x, data=lambda i: Y[i]):
    w = pyro.sample("w", N(0.0, 1.0))
    with plate(x) as i:
        pyro.sample("y", N(w * own(x, i), 0.5), obs=data(i))


LOOKED_UP = {
    "data in a closure by the plate's numbers": slope,
    "arguments by the plate's numbers": lambda x, y: slope(
        x, own=lambda x, i: x[i], data=lambda i: y[i]
    ),
    "arguments as they are": lambda x, y: slope(x, data=lambda i: y),
    "rows that the program draws": lambda x, y: slope(
        x,
        lambda x: pyro.plate("data", len(x), subsample_size=30),
        lambda x, i: x[i],
        lambda i: y[i],
    ),
}


def means(x):
    m = pyro.param("m", torch.zeros(2))
    with pyro.plate("data", len(x)):
        pyro.sample("x", N(m, 1.0).to_event(1), obs=x)


PAIRS = torch.randn(8, 2, generator=torch.Generator().manual_seed(2))
NO_PAIRS = {
    "booleans": (PAIRS > 0, "values of torch.bool that site 'x' can score"),
    "an array of booleans": ((PAIRS > 0).numpy(), "values of torch.bool that site 'x' can score"),
    "one entry of each row": (PAIRS[:, 0], r"events of shape \(2,\)"),
    "one row without its dim": (PAIRS[0], r"events of shape \(2,\)"),
    "a column less": (PAIRS[:, :1], r"events of shape \(2,\)"),
    "a column more": (torch.zeros(8, 3), r"events of shape \(2,\)"),
    "no columns": (PAIRS[:, :0], r"events of shape \(2,\)"),
    "an infinity": (PAIRS / torch.zeros(()), "finite"),
}
FORMS = {
    "alone": lambda x: x,
    "in a tuple": lambda x: (x,),
    "by name": lambda x: {"x": x},
}


@pytest.mark.table(quick=8)
@pytest.mark.parametrize("rows", NO_PAIRS)
@pytest.mark.parametrize("door", ["data", "validation", "batches"])
def test_rows_by_name_are_checked_as_those_by_place(rows, door):
    """One sentence, however the rows are handed over."""
    x, sentence = NO_PAIRS[rows]
    messages = set()
    for form in FORMS.values():
        with pytest.raises(ValueError, match=sentence) as error:
            if door == "data":
                pg.fit(pg.Program(means), form(x), steps=1, progress=False)
            elif door == "batches":
                pg.fit(pg.Program(means), [form(torch.as_tensor(x))], steps=1, progress=False)
            else:
                pg.fit(pg.Program(means), PAIRS, validation=form(x), steps=1, progress=False)
        messages.add(str(error.value))
    assert len(messages) == 1


def test_rows_within_an_argument_are_checked_too():
    def model(data):
        means(data["rows"])

    with pytest.raises(ValueError, match=r"events of shape \(2,\)"):
        pg.fit(pg.Program(model), {"data": {"rows": PAIRS[:, :1]}}, steps=1, progress=False)


def test_validation_rows_by_name_give_the_same_scores():
    options = {"steps": 2, "validate_every": 1, "progress": False, "verdict": False, "seed": 0}
    losses = [
        pg.fit(pg.Program(means), form(PAIRS), validation=form(PAIRS[:5]), **options).validation
        for form in FORMS.values()
    ]
    assert losses[0] == losses[1] == losses[2]
    with pytest.raises(TypeError, match="arguments that the program runs on, got dict"):
        pg.fit(pg.Program(means), PAIRS, validation={"other": PAIRS}, **options)


@pytest.mark.slow
@pytest.mark.parametrize("model", LOOKED_UP.values(), ids=LOOKED_UP)
def test_mini_batches_hold_the_rows_that_they_name(model):
    args = (X,) if model is slope else (X, Y)
    program = pg.Program(model, AutoNormal(model))
    settings = {
        "optimizer": pg.train.adam(0.03),
        "progress": False,
        "seed": 0,
        "compile": False,
        "verdict": False,
    }
    pg.fit(program, args, steps=400, **settings)
    assert abs(pg.posterior(program, *args, draws=200)["w"].mean().item() - 2) < 0.1
    whole = pg.Program(model).settle(args)
    assert len(whole[0]) == ROWS


@pytest.mark.slow
def test_parameters_of_rows_are_theirs():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", N(0.0, 3.0))
            pyro.sample("x", N(z, 0.5), obs=x)

    def guide(x):
        loc = pyro.param("loc", lambda: torch.zeros(ROWS))
        with pyro.plate("data", len(x)) as i:
            pyro.sample("z", N(loc[i], 0.49))

    x, program = 3 * X, pg.Program(model, guide)
    pg.fit(
        program,
        x,
        steps=800,
        optimizer=pg.train.adam(0.05),
        progress=False,
        seed=0,
        compile=False,
        batch_size=100,
    )
    assert (program.param_values()["loc"] - x * 9 / 9.25).abs().mean() < 0.15
    truth = N(0.0, 9.25**0.5).log_prob(x)
    assert (pg.log_likelihood(program, x, max_rows=6400).value - truth).abs().mean() < 0.1


def test_numbers_of_rows_beside_rows_that_are_drawn_are_refused():
    model = LOOKED_UP["rows that the program draws"]
    with pytest.raises(ValueError, match="drop batch_size, or subsample_size"):
        pg.fit(pg.Program(model, AutoNormal(model)), (X, Y), batch_size=50, steps=1)


def columns(x):
    with pyro.plate("rows", x.shape[1]):
        pyro.sample("x", N(torch.zeros(x.shape[1], x.shape[0]), 1.0).to_event(1), obs=x.T)


def neighbors(x):
    with pyro.plate("data", len(x)):
        pyro.sample("x", N(x.mean(), x.std()), obs=x)


def differences(x):
    with pyro.plate("data", len(x) - 1):
        pyro.sample("x", N(0.0, 1.0), obs=torch.diff(x))


UNCUT = [
    (columns, torch.randn(500, 40), lambda x: N(0.0, 1.0).log_prob(x).sum(0)),
    (neighbors, torch.arange(200.0), lambda x: N(x.mean(), x.std()).log_prob(x)),
    (differences, torch.arange(200.0) / 100, lambda x: N(0.0, 1.0).log_prob(torch.diff(x))),
]


@pytest.mark.parametrize(
    ("model", "x", "truth"), UNCUT, ids=["columns", "rows look at rows", "between rows"]
)
@pytest.mark.parametrize(
    "limit", [{}, {"max_rows": 50}, {"memory": 2.0**14}], ids=["default", "rows", "memory"]
)
def test_blocks_change_no_score(model, x, truth, limit):
    assert_close(
        pg.log_likelihood(pg.Program(model), x, **limit).value, truth(x), rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("dim", [-1, -2])
def test_weights_of_rows_beside_enumerated_sites(dim):
    def model(x, w):
        mu = pyro.sample("mu", N(0.0, 1.0))
        shape = (len(x),) + (1,) * (-dim - 1)
        with pyro.plate("data", len(x), dim=dim), poutine.scale(scale=w.reshape(shape)):
            k = pyro.sample("k", dist.Bernoulli(0.3), infer=PARALLEL)
            pyro.sample("x", N(2 * k + mu, 1.0), obs=x.reshape(shape))

    def guide(x, w):
        pyro.sample("mu", N(0.2, 1e-3))

    x, w = torch.randn(5) * 2, torch.tensor([1.0, 2.0, 3.0, 1.0, 0.5])
    each = 0.3 * N(2.2, 1.0).log_prob(x).exp() + 0.7 * N(0.2, 1.0).log_prob(x).exp()
    program = pg.Program(model, guide)
    assert_close(
        pg.log_likelihood(program, x, w, particles=4).value, w * each.log(), atol=0.02, rtol=0
    )
    assert pg.khat(program, x, w).shape == ()
    found = pg.to_arviz(program, x, w, draws=30, groups=["sample_stats", "log_likelihood"])
    total = (w * each.log()).sum().item() + N(0.0, 1.0).log_prob(torch.tensor(0.2)).item()
    assert np.allclose(found["sample_stats"]["log_p"].values, total, atol=0.1)


def three(x):
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        pyro.sample("x", N(k.float(), 1.0), obs=x)


def excluded(x):
    """Data that rule a value out."""
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        pyro.sample("x", dist.Uniform(k.float(), k + 1.5), obs=x)


@pytest.mark.table(quick=1)
@pytest.mark.parametrize(("model", "kind"), [(three, "bound"), (excluded, "unbiased")])
def test_a_guide_that_leaves_possible_values_out_gives_a_bound(model, kind):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.5, 0.0])))

    x, program = torch.full((4,), 1.2), pg.Program(model, guide)
    assert pg.log_likelihood(program, x).kind == kind
    assert pg.khat(program, x).isnan().all() == (kind == "bound")


def test_a_mask_that_depends_on_an_enumerated_site_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.4), infer=PARALLEL)
            with poutine.mask(mask=k == 1):
                z = pyro.sample("z", N(0.0, 1.0))
            pyro.sample("x", N(torch.where(k == 1, z, 0.0), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", N(x / 2, 0.5**0.5))

    with pytest.raises(ValueError, match="depends on an enumerated site"):
        pg.log_likelihood(pg.Program(model, guide), torch.randn(4))


def regression(x, y=None):
    w = pyro.sample("w", N(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", N(0.0, 1.0))
        pyro.sample("y", N(w * x + z, 0.5), obs=y)


def test_other_rows_need_no_guide_of_the_rows_it_was_fitted_to():
    x, program = torch.randn(40), pg.Program(regression, AutoNormal(regression))
    pg.fit(program, (x, x), steps=20, progress=False, verdict=False)
    globals_ = {"w": pg.posterior(program, x, x, draws=6)["w"]}
    assert pg.prior_predictive(program, x[:5], draws=3)["y"].shape == (3, 5)
    assert pg.predictive(program, x[:5], given=globals_, new_rows=True)["y"].shape == (6, 5)
    with pytest.raises(ValueError, match="takes the rows that it was fitted to"):
        pg.posterior(program, x[:5])
    with pytest.raises(ValueError, match="expected validation rows that the pair runs on"):
        pg.fit(program, (x, x), validation=(x[:5], x[:5]), steps=2, progress=False)


@pytest.mark.parametrize(
    "ask", [pg.prior_predictive, lambda *a, draws: pg.Program.settle(a[0], a[1:])]
)
def test_looking_at_a_program_without_data_leaves_its_guide_for_the_data(ask):
    program = pg.Program(regression, AutoNormal(regression))
    ask(program, X, draws=3)
    pg.fit(program, (X, 2 * X), steps=5, progress=False, verdict=False)
    assert pg.posterior(program, X, 2 * X, draws=2).keys() == {"w", "z"}


@pytest.mark.slow
def test_nuts_draws_masked_entries_from_their_prior():
    def model(x, seen):
        mu = pyro.sample("mu", N(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", N(mu, 1.0), obs=x, obs_mask=seen)

    x, seen = torch.randn(8) + 1, torch.tensor([1, 1, 0, 1, 1, 0, 1, 1]).bool()
    chains = pg.mcmc(
        model, x, seen, draws=300, tune=200, chains=1, seed=0, sampler=PyroNUTS(), progress=False
    )
    truth = (x[seen].sum() / 7).item()
    assert abs(chains.draws["mu"].mean().item() - truth) < 0.15
    assert abs(chains.draws["mu"].std().item() - 7**-0.5) < 0.1


def test_states_of_other_programs_are_refused_at_the_first_run():
    def guide(x, y=None):
        pyro.sample("w", N(pyro.param("loc", torch.zeros(3)).mean(), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", N(0.0, 1.0))

    for state, message in [
        ({"statements.loc": torch.zeros(1)}, r"loc: expected shape \(3,\), got \(1,\)"),
        (
            {"statements.other": torch.zeros(3)},
            "missing statements.loc; unexpected statements.other",
        ),
        ({}, "missing statements.loc"),
    ]:
        program = pg.Program(regression, guide)
        program.load_state_dict(state)
        with pytest.raises(ValueError, match=message):
            pg.posterior(program, X, X, draws=2)


def test_leave_one_out_of_rows_that_share_nothing_is_their_density():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", N(0.0, 1.0))
            pyro.sample("x", N(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", N(x / 2, 0.5**0.5))

    found = pg.loo(pg.to_arviz(pg.Program(model, guide), X[:20], draws=50))
    assert found.elpd == pytest.approx(N(0.0, math.sqrt(2)).log_prob(X[:20]).sum().item(), abs=1e-2)
