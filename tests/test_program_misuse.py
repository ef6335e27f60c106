"""What a program cannot do with its arguments is told in one sentence, and the advice works."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import probgen as pg
from probgen.core.keywords import explained


def regression(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def unplated(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(mean, 1.0).expand(x.shape).to_event(1), obs=x)


def closed():
    with pyro.plate("data", 3):
        return pyro.sample("y", dist.Normal(0.0, 1.0))


def fresh(model=regression):
    return pg.Program(model, AutoNormal(model))


X = torch.linspace(-1.0, 1.0, 20)
Y = 2 * X
HOLED = torch.where(torch.arange(20) == 3, torch.nan, X)
QUIET = {"steps": 2, "progress": False}

ROWS_AS_MANY = "site 'y': expected values of shape (20,)"
INCOMPLETE = "expected complete values in x, on which the distribution at site 'y' depends, got NaN"
NO_GUIDE = "expected a guide that draws the latent site slope, got none; pass one"
CASES = {
    "drawn without its arguments": (
        lambda: pg.sample(fresh(), 3),
        "expected a model that draws x where it is None",
        "predictive(gen, x, y)",
    ),
    "drawn, of no arguments": (
        lambda: pg.sample(pg.Program(closed), 3),
        "expected a model of (x=None, context=None)",
        "use predictive(gen)",
    ),
    "other rows, fitted": (
        lambda: pg.fit(fresh(), (X, Y[:10]), **QUIET),
        ROWS_AS_MANY,
        "give all arguments as many rows",
    ),
    "other rows, posterior": (
        lambda: pg.posterior(fresh(), X, Y[:10]),
        ROWS_AS_MANY,
        "as many rows",
    ),
    "other rows, chains": (
        lambda: pg.mcmc(fresh(), X, Y[:10], draws=2, tune=2),
        ROWS_AS_MANY,
        "as many rows",
    ),
    "missing, fitted": (lambda: pg.fit(fresh(), (HOLED, Y), **QUIET), INCOMPLETE, "row 3"),
    "missing, scored": (lambda: pg.log_likelihood(fresh(), HOLED, Y), INCOMPLETE, "fill them in"),
    "missing, forward": (lambda: pg.prior_predictive(fresh(), HOLED), INCOMPLETE, "row 3"),
    "no guide, fitted": (
        lambda: pg.fit(pg.Program(regression), (X, Y), **QUIET),
        NO_GUIDE,
        "Program(model, AutoNormal(model))",
    ),
    "no guide, scored": (
        lambda: pg.log_likelihood(pg.Program(regression), X, Y),
        "expected the guide to draw the latent site 'slope'",
        "Program(model, AutoNormal(model))",
    ),
    "no guide, predicted": (
        lambda: pg.predictive(pg.Program(regression), X, Y),
        NO_GUIDE,
        "pg.prior_predictive",
    ),
    "imputed, of one argument": (
        lambda: pg.impute(fresh(unplated), X),
        "expected a model of (x=None, context=None) as what impute completes",
        "let it take both",
    ),
    "a tuple where arguments stand side by side": (
        lambda: pg.log_likelihood(fresh(), (X, Y)),
        "expected arguments that the program runs on",
        "pass the arguments side by side",
    ),
    "too many by place": (
        lambda: pg.report(fresh(), X, Y, "page.html"),
        "expected 3 arguments of report by place, got 4",
        "data=(x, y)",
    ),
    "one that lacks": (
        lambda: pg.predictive_check(fresh(), X, Y),
        "expected the arguments of predictive_check, got no statistic",
        "statistic=...",
    ),
    "leave-one-out of a program": (
        lambda: pg.loo(fresh(), X, Y),
        "expected 2 arguments of loo by place, got 3",
        "give loo(data)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_misuse_is_told_in_one_sentence(case):
    call, expected, advice = CASES[case]
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    text = str(caught.value)
    assert text.startswith(expected) and advice in text and "; " in text and "\n" not in text


def test_what_is_advised_works():
    fitted = fresh()
    pg.fit(fitted, (X, Y), verdict=False, **QUIET)
    assert pg.predictive(fitted, X, Y, draws=5)["y"].shape == (5, 20)
    assert pg.predictive(fitted, X, draws=5)["y"].shape == (5, 20)
    bare = pg.Program(regression)
    given = {"slope": torch.zeros(5)}
    assert pg.predictive(bare, X, Y, given=given)["y"].shape == (5, 20)
    assert pg.prior_predictive(bare, X, Y, draws=5)["y"].shape == (5, 20)
    assert pg.predictive(pg.Program(closed), draws=4)["y"].shape == (4, 3)


def test_missing_values_that_a_program_handles_itself_pass():
    def model(x, y):
        seen = x.isnan().logical_not()
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(torch.where(seen, x, 0.0), 1.0), obs=y)

    whole = dist.Normal(HOLED.nan_to_num(0.0), 1.0).log_prob(Y)
    torch.testing.assert_close(pg.log_likelihood(pg.Program(model), HOLED, Y).value, whole)


def test_an_unguided_latent_is_not_called_enumerated():
    with pytest.warns(UserWarning, match="the posterior has no site: expected a guide"):
        assert pg.posterior(pg.Program(regression), X, Y) == {}


def test_a_program_shows_what_it_is_before_and_after_it_ran():
    program = fresh()
    before = repr(program)
    assert before.startswith("Program(model=regression, guide=AutoNormal): its sites")
    call = before.rpartition("as by ")[2]
    eval(call, {"program": program, "x": X, "y": Y})
    assert "observed  Normal" in repr(program)


@explained
def judge(gen, data, *rest, statistic, seed=0):
    return len(rest), statistic, seed


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((1,), {"statistic": 2}, "got no data; give judge(gen, data, *rest, statistic=...)"),
        ((1, 2), {}, "got no statistic"),
        ((), {}, "got no gen and no data and no statistic"),
        ((1, 2), {"statistic": 3, "gen": 4}, "got gen by place and by name"),
    ],
    ids=["one by place", "one by name", "all", "twice"],
)
def test_arguments_that_do_not_fit(args, kwargs, words):
    with pytest.raises(TypeError) as caught:
        judge(*args, **kwargs)
    assert str(caught.value).startswith("expected ") and words in str(caught.value)


def test_arguments_that_fit_pass():
    assert judge(1, 2, 3, 4, statistic=5) == (2, 5, 0)
