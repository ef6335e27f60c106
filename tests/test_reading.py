"""Right numbers for programs that people bring, each kind against a truth by another route."""

import math
from functools import partial

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoHierarchicalNormalMessenger,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
    AutoRegressiveMessenger,
)
from pyro.nn import PyroModule, PyroParam
from scipy.special import logsumexp
from torch import nn
from torch.testing import assert_close

import probgen as pg
from probgen.core.program import Keywords
from probgen.infer.log_density import LogDensity
from probgen.infer.nuts import PyroNUTS

N = dist.Normal
FOR_LOO = ("log_likelihood", "sample_stats")
PARALLEL = {"enumerate": "parallel"}


@pytest.fixture(autouse=True)
def cleared():
    yield
    pyro.clear_param_store()


def mean(y, prior=1.0, noise=1.0):
    mu = pyro.sample("mu", N(0.0, prior))
    with pyro.plate("data", len(y)):
        pyro.sample("y", N(mu, noise), obs=y)


def mean_and_spread(y, prior=1.0, noise=1.0):
    """The posterior of mu."""
    variance = 1 / (1 / prior**2 + len(y) / noise**2)
    return variance * y.sum().item() / noise**2, variance**0.5


# -- guides
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [AutoNormalMessenger, AutoHierarchicalNormalMessenger, AutoRegressiveMessenger]
)
def test_guides_that_are_messengers_learn_the_posterior(make):
    y = torch.randn(20) + 3.0
    program = pg.Program(mean, make(mean))
    pg.fit(
        program, y, steps=700, optimizer=pg.train.adam(0.05), progress=False, seed=0, compile=False
    )
    found, (loc, spread) = pg.posterior(program, y, draws=2000)["mu"], mean_and_spread(y)
    assert abs(found.mean().item() - loc) < 0.06 and abs(found.std().item() - spread) < 0.06
    wrong = pg.Program(mean, make(mean))
    wrong.settle((y,))
    assert pg.khat(wrong, y) > 0.7


def test_a_guide_that_observes_is_refused():
    def guide(y):
        mean(y, noise=pyro.param("noise", torch.ones(())))

    for ask in (pg.khat, pg.log_likelihood, partial(pg.fit, progress=False)):
        with pytest.raises(
            ValueError, match="got the observed site 'y'; leave obs= out of the guide"
        ):
            ask(pg.Program(mean, guide), torch.zeros(3))


def local(y):
    mu = pyro.sample("mu", N(0.0, 1.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", N(mu, 2.0))
        pyro.sample("y", N(z, 0.5), obs=y)


@pytest.mark.slow
@pytest.mark.parametrize("compile", [False, True])
def test_mini_batches_of_a_guide_with_a_normal_for_each_row(compile, replayed):
    y = 1 + 4.25**0.5 * torch.randn(256)
    program = pg.Program(local, AutoNormal(local))
    settings = {
        "steps": 800,
        "optimizer": pg.train.adam(0.05),
        "progress": False,
        "seed": 0,
        "compile": compile,
    }
    history = pg.fit(program, y, **settings)
    noise = 4.25 * torch.eye(256) + 1.0
    evidence = dist.MultivariateNormal(torch.zeros(256), noise).log_prob(y).item() / 256
    assert abs(np.mean(history.loss[-300:]) + evidence) < 0.1
    drawn = pg.posterior(program, y, draws=400)["z"]
    assert drawn.shape == (400, 256)
    assert (drawn.mean(0) - (y * 4 + 0.25 * y.mean()) / 4.25).abs().mean() < 0.12


def test_a_guide_that_cannot_take_mini_batches_says_so_or_takes_all_rows():
    def guide(y):
        pyro.sample("mu", N(0.0, 1.0))
        loc = pyro.param("loc", lambda: torch.zeros(len(y)))
        with pyro.plate("data", len(y)):
            pyro.sample("z", N(loc, 1.0))

    y = torch.randn(200)
    with pytest.raises(ValueError, match=r"train on all rows with batch_size=200"):
        pg.fit(pg.Program(local, guide), y, batch_size=50, steps=2, progress=False)
    with pytest.warns(pg.FitWarning, match="every step takes all rows"):
        pg.fit(pg.Program(local, guide), y, steps=2, progress=False, verdict=False)
    with pytest.raises(ValueError, match="parameters for each row needs the rows in memory"):
        pg.fit(pg.Program(local, guide), [y[:100], y[100:]], steps=2, progress=False)


@pytest.mark.slow
def test_point_estimates_have_no_leave_one_out_and_no_khat():
    y = torch.tensor([3.0, -2, 1, 0, 2, -4])
    model = partial(mean, prior=10.0, noise=2.0)
    program = pg.Program(model, AutoDelta(model))
    pg.fit(program, y, steps=100, progress=False, verdict=False)
    found = pg.to_arviz(program, y, draws=50, groups=[*FOR_LOO, "posterior"])
    for ask in (lambda: pg.loo(found), lambda: pg.khat(program, y)):
        with pytest.raises(ValueError, match="point estimate of mu"):
            ask()
    exact = pg.Program(model, lambda y: pyro.sample("mu", N(*mean_and_spread(y, 10.0, 2.0))))
    elpd = sum(
        N(loc, (4 + spread**2) ** 0.5).log_prob(y[i]).item()
        for i in range(6)
        for loc, spread in [mean_and_spread(torch.cat([y[:i], y[i + 1 :]]), 10.0, 2.0)]
    )
    torch.manual_seed(0)
    assert (
        abs(pg.loo(pg.to_arviz(exact, y, draws=2000, groups=FOR_LOO)).elpd - elpd) < 0.1
        and abs(elpd + 15.31) < 0.01
    )


def two_modes(x):
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("x", N(2 * k - 1, 1.0), obs=x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fn", "kind"),
    [
        (lambda x: dist.Bernoulli(torch.full((len(x),), 1 - 1e-9)), "bound"),
        (lambda x: dist.Delta(torch.ones(len(x))), "bound"),
        (lambda x: dist.Bernoulli(torch.full((len(x),), 0.7)), "unbiased"),
    ],
    ids=["one of two modes", "deterministic", "both"],
)
def test_a_discrete_guide_vouches_for_what_it_visits(fn, kind):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", fn(x))

    x, program = torch.zeros(3), pg.Program(two_modes, guide)
    score, khat = pg.log_likelihood(program, x, particles=4000), pg.khat(program, x)
    truth = N(1.0, 1.0).log_prob(torch.zeros(())).item()  # both modes have the same density at 0
    assert score.kind == kind
    assert_close(
        score.value, torch.full((3,), truth - (kind == "bound") * math.log(2)), atol=0.05, rtol=0
    )
    assert khat.isnan().all() == (kind == "bound")


# -- scales, masks, enumeration
# --------------------------------------------------------------------------------------

WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0])


def weighted(x):
    with pyro.plate("data", len(x)), poutine.scale(scale=WEIGHTS):
        pyro.sample("x", N(0.0, 1.0), obs=x)


def weighted_mixture(x):
    with pyro.plate("data", len(x)), poutine.scale(scale=WEIGHTS):
        k = pyro.sample("k", dist.Bernoulli(0.5), infer=PARALLEL)
        pyro.sample("x", N(2 * k - 1, 1.0), obs=x)


def tempered(x):
    with poutine.scale(scale=0.3), pyro.plate("data", len(x)):
        pyro.sample("x", N(0.0, 1.0), obs=x)


def subsampled(x):
    with pyro.plate("data", len(x), subsample_size=2) as rows:
        pyro.sample("x", N(0.0, 1.0), obs=x[rows])


def masked(x):
    with pyro.plate("data", len(x)), poutine.mask(mask=x > 0):
        pyro.sample("x", N(0.0, 1.0), obs=x)


def in_a_loop(x):
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"x_{i}", N(0.0, 1.0), obs=x[i])


def enumerated_in_a_loop(x):
    for i in pyro.plate("data", len(x)):
        k = pyro.sample(f"k_{i}", dist.Bernoulli(0.5), infer=PARALLEL)
        pyro.sample(f"x_{i}", N(2 * k - 1, 1.0), obs=x[i])


def second_dim(x):
    with pyro.plate("pixels", 1, dim=-1), pyro.plate("data", len(x), dim=-2):
        pyro.sample("x", N(0.0, 1.0), obs=x[:, None])


def without_size(x):
    with pyro.plate("data"):
        pyro.sample("x", N(torch.zeros(len(x)), 1.0), obs=x)


LOG2 = math.log(2)
NORMAL = lambda x: N(0.0, 1.0).log_prob(x)  # noqa: E731
MIXTURE = lambda x: torch.stack([N(m, 1.0).log_prob(x) for m in (-1.0, 1.0)]).logsumexp(0) - LOG2  # noqa: E731
ROWS = [
    (weighted, lambda x: WEIGHTS * NORMAL(x)),
    (weighted_mixture, lambda x: WEIGHTS * MIXTURE(x)),
    (tempered, lambda x: 0.3 * NORMAL(x)),
    (subsampled, NORMAL),
    (masked, lambda x: torch.where(x > 0, NORMAL(x), 0.0)),
    (in_a_loop, NORMAL),
    (enumerated_in_a_loop, MIXTURE),
    (second_dim, NORMAL),
    (without_size, NORMAL),
]


@pytest.mark.parametrize(("model", "truth"), ROWS, ids=[model.__name__ for model, _ in ROWS])
def test_rows_have_the_density_that_was_written(model, truth):
    x = torch.tensor([0.3, -1.0, 2.0, 0.7])
    score = pg.log_likelihood(pg.Program(model), x)
    assert score.kind == "exact"
    assert_close(score.value, truth(x))


TRANSITION, EMISSION = torch.tensor([[0.8, 0.2], [0.3, 0.7]]), torch.tensor([0.9, 0.2])


def padded(y, lengths):
    with pyro.plate("data", len(y)):
        x = 0
        for t in pyro.markov(range(y.shape[1])):
            with poutine.mask(mask=t < lengths):
                x = pyro.sample(f"x_{t}", dist.Categorical(TRANSITION[x]), infer=PARALLEL)
                pyro.sample(f"y_{t}", dist.Bernoulli(EMISSION[x]), obs=y[:, t])


def test_masked_steps_of_an_enumerated_chain_add_nothing():
    lengths = torch.tensor([5, 3, 4, 1, 2, 5])
    y = torch.randint(2, (6, 5)).float()
    truth = []
    for row, length in zip(y.numpy(), lengths, strict=True):
        alpha = np.log(TRANSITION[0].numpy())
        for t in range(length):
            alpha = (
                alpha if t == 0 else logsumexp(alpha[:, None] + np.log(TRANSITION.numpy()), axis=0)
            )
            alpha = alpha + np.log(np.where(row[t], EMISSION.numpy(), 1 - EMISSION.numpy()))
        truth.append(logsumexp(alpha))
    program = pg.Program(padded)
    assert_close(
        pg.log_likelihood(program, y, lengths).value.double(),
        torch.tensor(truth, dtype=torch.float64),
        atol=1e-4,
        rtol=1e-4,
    )
    loss = pg.objectives.EnumeratedELBO()(program.model, program.guide)(y, lengths).item()
    assert loss == pytest.approx(-sum(truth), rel=1e-4)


def test_where_the_model_masks_a_latent_the_guide_pays_nothing():
    def model(x, seen):
        with pyro.plate("data", len(x)):
            pyro.sample("x", N(0.0, 1.0), obs=x, obs_mask=seen)

    def guide(x, seen):
        with pyro.plate("data", len(x)):
            pyro.sample(
                "x_unobserved",
                N(pyro.param("loc", torch.zeros(())), pyro.param("sd", torch.ones(()))),
            )

    x, seen = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True, False, True])
    program = pg.Program(model, guide)
    elbo = pg.ELBO()(program.model, program.guide)
    elbo(x, seen)
    with torch.no_grad():
        program.statements["sd"].fill_(
            0.01
        )  # for rows that are seen the draw means nothing, however narrow it is
    missing = torch.distributions.kl_divergence(N(0.0, 0.01), N(0.0, 1.0))
    assert_close(elbo(x, seen), missing - NORMAL(x[seen]).sum(), rtol=1e-4, atol=1e-4)
    drawn = pg.predictive(program, x, seen, draws=7)
    assert drawn["x"].shape == (7, 3) and drawn["x"][:, 1].abs().max() < 0.1


# -- what a program owns, and where its values come from
# -------------------------------------------------------------


class Regression(PyroModule):
    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](1, 1)
        self.noise = PyroParam(torch.tensor(1.0), constraint=dist.constraints.positive)

    def model(self, x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("y", N(self.linear(x)[:, 0], self.noise), obs=y)


def behind_a_method():
    module = Regression()
    return module.model, module.linear


def behind_a_closure():
    linear = nn.Linear(1, 1)

    def model(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("y", N(linear(x)[:, 0], 1.0), obs=y)

    return model, linear


def behind_a_handler():
    model, linear = behind_a_closure()
    return poutine.scale(poutine.mask(model, mask=True), scale=1.0), linear


def behind_a_block():
    linear = nn.Linear(1, 1)

    def model(x, y):
        pyro.module("linear", linear)
        with pyro.plate("data", len(x)):
            pyro.sample("y", N(linear(x)[:, 0], 1.0), obs=y)

    return partial(poutine.block(model, hide=["nothing"])), linear


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [behind_a_method, behind_a_closure, behind_a_handler, behind_a_block]
)
def test_what_a_run_uses_is_trained(make):
    model, linear = make()
    x = torch.randn(50, 1)
    program = pg.Program(model)
    pg.fit(
        program,
        (x, 3 * x[:, 0] + 1),
        steps=400,
        optimizer=pg.train.adam(0.05),
        progress=False,
        compile=False,
    )
    assert abs(linear.weight.item() - 3) < 0.1 and abs(linear.bias.item() - 1) < 0.1
    program.train()
    assert linear.training


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_parameter_that_appears_later_is_trained_from_there_on(ema):
    calls = []

    def model(y):
        calls.append(None)
        loc = pyro.param("a", torch.zeros(()))
        if len(calls) > 20:
            loc = loc + pyro.param("aa", torch.zeros(()))
        with pyro.plate("data", len(y)):
            pyro.sample("y", N(loc + pyro.param("b", torch.zeros(())), 1.0), obs=y)

    program = pg.Program(model)
    settings = {
        "optimizer": pg.train.adam(0.05),
        "progress": False,
        "compile": False,
        "verdict": False,
        "ema": ema,
    }
    pg.fit(program, torch.randn(20) + 5, steps=60, **settings)
    values = program.param_values()
    assert values["aa"] > 0.5 and values["a"] > values["aa"] and values["b"] > values["aa"]


def free_guide(y):
    positive = dist.constraints.positive
    loc, spread = (
        pyro.param("loc", torch.zeros(())),
        pyro.param("spread", torch.ones(()), constraint=positive),
    )
    pyro.sample("mu", N(loc, spread))


@pytest.mark.slow
def test_plain_svi_and_fit_go_hand_in_hand():
    y = torch.randn(10) + 1.0
    svi = SVI(mean, free_guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(200):
        svi.step(y)
    stored = {name: value.item() for name, value in pyro.get_param_store().items()}
    program = pg.Program(mean, free_guide)
    program.settle((y,))
    assert {name: value.item() for name, value in program.param_values().items()} == pytest.approx(
        stored, rel=1e-5
    )
    pg.fit(program, y, steps=20, progress=False)
    assert {
        name: value.item() for name, value in pyro.get_param_store().items()
    } == stored  # never written
    program.to_param_store()
    assert pyro.param("loc").item() == pytest.approx(program.param_values()["loc"].item())


@pytest.mark.slow
@pytest.mark.parametrize("make", [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal])
def test_an_autoguide_moves_between_plain_svi_and_fit(make):
    y, guide = torch.randn(10) + 1.0, make(mean)
    svi = SVI(mean, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    svi.step(y)
    before = dict(guide.median(y))
    program = pg.Program(mean, guide)
    assert_close(
        pg.posterior(program, y, draws=20000)["mu"].mean(), before["mu"], atol=0.05, rtol=0
    )
    pg.fit(program, y, steps=300, optimizer=pg.train.adam(0.02), progress=False)
    assert abs(guide.median(y)["mu"].item() - mean_and_spread(y)[0]) < 0.1
    assert math.isfinite(svi.step(y)) and not pyro.settings.get("module_local_params")


def test_importing_and_failing_change_nothing():
    def broken(y):
        mu = pyro.sample("mu", N(0.0, 1.0))
        raise KeyError(mu)

    before = pyro.poutine.runtime._PYRO_STACK[:], PyroModule._check_module_local_param_usage
    with pytest.raises(KeyError):
        pg.log_likelihood(pg.Program(broken), torch.zeros(2))
    assert not pyro.settings.get("module_local_params") and not list(pyro.get_param_store())
    assert (pyro.poutine.runtime._PYRO_STACK, PyroModule._check_module_local_param_usage) == before
    with pyro.plate("data", 10, subsample_size=3) as rows:
        assert len(rows) == 3


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("guide", [free_guide, AutoNormal(mean)], ids=["statements", "AutoNormal"])
def test_a_state_waits_for_the_first_run(guide, tmp_path):
    y = torch.randn(10) + 1.0
    program = pg.Program(mean, guide)
    pg.fit(program, y, steps=30, optimizer=pg.train.adam(0.1), progress=False)
    pg.save(program, tmp_path / "program.safetensors")
    fresh = pg.Program(mean, free_guide if guide is free_guide else AutoNormal(mean))
    pg.load(tmp_path / "program.safetensors", into=fresh)
    assert fresh.state_dict().keys() == program.state_dict().keys()
    torch.manual_seed(0)
    drawn = pg.posterior(fresh, y, draws=5)["mu"]
    torch.manual_seed(0)
    assert_close(drawn, pg.posterior(program, y, draws=5)["mu"])
    with pytest.raises(pg.CheckpointError, match="another model"):
        pg.load(tmp_path / "program.safetensors", into=nn.Linear(1, 1))


# -- arguments
# -------------------------------------------------------------------------------------------------------

FRAME = pd.DataFrame({"group": pd.Categorical(list("abcabc")), "y": [1.0, 2, 3, 4, 5, 6]})


def grouped(group, y, effects=None):
    effects = pyro.sample("effects", N(0.0, 5.0).expand([3]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", N(effects[group], 1.0), obs=y)


CODES, Y = FRAME["group"].cat.codes, FRAME["y"]
GROUPS = [
    (CODES, Y),
    (CODES.to_numpy(), Y.to_numpy()),
    (torch.tensor(CODES.to_numpy()).long(), torch.tensor(Y.to_numpy()).float()),
    {"group": CODES, "y": Y},
]


@pytest.mark.slow
@pytest.mark.parametrize("data", GROUPS, ids=["pandas", "numpy", "torch", "names"])
def test_integers_index_whatever_they_came_in(data):
    program = pg.Program(grouped, AutoNormal(grouped))
    pg.fit(
        program,
        data,
        steps=250,
        optimizer=pg.train.adam(0.1),
        progress=False,
        seed=0,
        compile=False,
    )
    args = (Keywords(data),) if isinstance(data, dict) else data
    found = pg.posterior(program, *args, draws=2000)["effects"].mean(0)
    assert_close(found, torch.tensor([5.0, 7.0, 9.0]) / (2 + 1 / 25), atol=0.25, rtol=0)


def test_categories_and_words_say_what_to_do():
    for data in ((FRAME["group"], FRAME["y"]), (np.array(list("abc")), np.zeros(3))):
        with pytest.raises(TypeError, match=r"encode categories as 0, 1, 2, \.\.\.: codes = frame"):
            pg.fit(pg.Program(grouped, AutoNormal(grouped)), data, steps=1)


def with_everything(x, table, names, scale=1.0, *, y, option="plain", unused=None):
    assert option == "plain" and names == ["a", "b"] and unused is None
    effects = pyro.sample("effects", N(0.0, 1.0).expand([len(table)]).to_event(1))
    with pyro.plate("people", len(x)):
        pyro.sample("y", N(x @ table @ effects, scale), obs=y)


@pytest.mark.slow
def test_arguments_of_all_sorts_pass_and_rows_are_asked_of_the_plate():
    x, table = torch.randn(300, 2), torch.eye(2)
    y = x @ torch.tensor([1.0, -1.0]) + 0.1 * torch.randn(300)
    args = (x, table, ["a", "b"], 0.1, Keywords(y=y))
    program = pg.Program(with_everything, AutoMultivariateNormal(with_everything))
    settings = {
        "optimizer": pg.train.adam(0.1),
        "progress": False,
        "seed": 0,
        "compile": False,
        "verdict": False,
    }
    pg.fit(program, args, steps=250, **settings)
    assert program.plate == "people"
    assert_close(
        pg.posterior(program, *args, draws=500)["effects"].mean(0),
        torch.tensor([1.0, -1.0]),
        atol=0.1,
        rtol=0,
    )
    assert pg.khat(program, *args, particles=50).shape == ()
    assert pg.log_likelihood(program, *args, particles=4).value.shape == (300,)


@pytest.mark.slow
def test_programs_without_arguments_and_objectives_without_rows():
    def model():
        mu = pyro.sample("mu", N(0.0, 1.0))
        pyro.sample("y", N(mu, 1.0), obs=torch.tensor(2.0))

    program = pg.Program(model, AutoNormal(model))
    pg.fit(program, None, steps=1500, optimizer=pg.train.adam(0.01), progress=False, seed=0)
    assert abs(pg.posterior(program, draws=2000)["mu"].mean().item() - 1) < 0.1

    class Located(pg.DistributionModule):
        context_size = 0

        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(1))

        def forward(self, context=None):
            return N(self.loc, 1.0).to_event(1)

    student = Located()

    class Towards(pg.objectives.Objective):
        def differentiable_loss(self, model, guide, *batch):
            return (student.loc - 3.0).square().sum()

    pg.fit(
        student,
        None,
        Towards(),
        steps=300,
        optimizer=pg.train.adam(0.05),
        progress=False,
        verdict=False,
    )
    assert abs(student.loc.item() - 3) < 0.1


@pytest.mark.slow
def test_rows_may_be_named():
    def model(x, knots):
        with pyro.plate("data", len(x)):
            pyro.sample("x", N(pyro.param("loc", torch.zeros(())) + knots.sum(), 1.0), obs=x)

    x, knots = torch.randn(200) + 5, torch.ones(200) / 200  # as many knots as rows
    program = pg.Program(model)
    pg.fit(
        program,
        (x, knots),
        rows=["x"],
        steps=800,
        optimizer=pg.train.adam(0.02),
        progress=False,
        seed=0,
    )
    assert abs(program.param_values()["loc"].item() + 1 - x.mean().item()) < 0.2
    with pytest.raises(ValueError, match=r"rows= to name arguments among \['x', 'knots'\]"):
        pg.fit(program, (x, knots), rows=["z"])


# -- mcmc
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_nuts_keeps_shapes_takes_factors_and_the_precision_of_the_data():
    def model(y):
        mu = pyro.sample("mu", N(torch.zeros(1), 1.0))
        pyro.factor("likelihood", N(mu, 1.0).log_prob(y).sum())

    y = torch.randn(8, dtype=torch.float64)
    chains = pg.mcmc(
        model, y, draws=300, tune=200, chains=1, seed=0, sampler=PyroNUTS(), progress=False
    )
    assert chains.draws["mu"].shape == (1, 300, 1) and chains.draws["mu"].dtype == torch.float64
    assert abs(chains.draws["mu"].mean().item() - mean_and_spread(y)[0]) < 0.12


def test_discrete_sites_that_nobody_marked_are_summed_out_by_nuts():
    def model(x):
        weight = pyro.sample("weight", dist.Beta(2.0, 2.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(weight))
            pyro.sample("x", N(4 * k, 1.0), obs=x)

    x = torch.tensor([0.0, 4.0, 4.2, 3.8])
    density = LogDensity(pg.Program(model), x)
    u = torch.tensor([0.4])
    weight = torch.sigmoid(u)
    each = weight * N(4.0, 1.0).log_prob(x).exp() + (1 - weight) * N(0.0, 1.0).log_prob(x).exp()
    jacobian = (weight * (1 - weight)).log()
    assert_close(
        density(u), (dist.Beta(2.0, 2.0).log_prob(weight) + jacobian).sum() + each.log().sum()
    )
    drawn = pg.predictive(
        pg.Program(model), x, given={"weight": torch.full((2000,), 0.5)}, sites=["k"]
    )["k"]
    assert_close(
        drawn.mean(0), torch.tensor([0.0, 1.0, 1.0, 1.0]), atol=0.01, rtol=0
    )  # given x, not the prior


# -- how a program was read
# ------------------------------------------------------------------------------------------


def test_a_program_is_drawn_as_a_graph():
    drawn = pg.Program(with_everything).render(
        torch.zeros(4, 2), torch.eye(2), ["a", "b"], Keywords(y=torch.zeros(4))
    )
    assert "effects -> y" in drawn.source and "label=people" in drawn.source


def test_a_program_prints_how_it_was_read():
    def model(x):
        with pyro.plate("sensors", 2, dim=-2):
            gain = pyro.sample("gain", N(0.0, 1.0))
            with pyro.plate("times", x.shape[1], dim=-1):
                pyro.deterministic("twice", 2 * gain.expand(x.shape))
                pyro.sample("x", N(gain, 1.0), obs=x)

    program = pg.Program(model, AutoNormal(model))
    program.settle((torch.zeros(2, 5),))
    assert program.plate == "sensors" and program.max_plate_nesting == 2
    assert str(program).splitlines()[1:] == [
        "site   role           distribution  shape   plates",
        "gain   latent         Normal        (2, 1)  sensors",
        "twice  deterministic  Delta         (2, 5)  sensors, times",
        "x      observed       Normal        (2, 5)  sensors, times",
    ]
