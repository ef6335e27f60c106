"""Recorded, vectorized and compiled evaluation against the programs themselves.

And against closed forms.
"""

import itertools
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import nn
from torch.testing import assert_close
from toys import MARGINAL, Local

from probgen.compile import cost_model, scheduling
from probgen.compile.batched_replay import Replay
from probgen.compile.cost_model import Profile
from probgen.compile.scheduling import Call, CompileWarning, repeated, windows
from probgen.compile.tracing import NotCompilable, record_operations
from probgen.core.module import standard_normal
from probgen.core.program import Program
from probgen.heads import Bernoulli, Gaussian
from probgen.infer.impute import impute
from probgen.infer.posterior import posterior, predictive, prior_predictive
from probgen.models.mixture import GaussianMixture
from probgen.models.vae import VAE
from probgen.nn import MLP
from probgen.scoring import log_likelihood

COUNTER = itertools.count(1)
GROUP = torch.tensor([0, 0, 1, 2, 2, 2])


@pytest.fixture
def recorded(monkeypatch):
    """As if recording cost nothing: "auto" records after the watched calls, or the test fails."""
    monkeypatch.setattr(cost_model, "RECORDING", -1e9)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompileWarning)
        yield


def seeded(function, *arguments, **settings):
    torch.manual_seed(0)
    return function(*arguments, **settings)


def both(function, *arguments, **settings):
    """Results with and without recording under the same seed."""
    return (seeded(function, *arguments, compile=choice, **settings) for choice in ("auto", False))


def stacked(function, calls, **settings):
    return torch.stack(list(repeated(function, calls, **settings)))


# -- many calls
# ------------------------------------------------------------------------------------------------------


DRAWS = {
    "normal": lambda x: x + torch.randn(3),
    "bernoulli": lambda x: torch.bernoulli(torch.sigmoid(x + torch.randn(3))),
    "categorical": lambda x: dist.Categorical(logits=(x * torch.randn(4, 3)).mT).sample(),
    "gamma": lambda x: dist.Gamma(x.exp(), torch.ones(3)).sample() + torch.randn(3),
    "poisson of a draw": lambda x: torch.poisson(
        dist.Gamma(torch.full((3,), 2.0), 1.0).rsample() + 0 * x
    ),
    "permutation": lambda x: x[torch.randperm(3)],
    "dropout": lambda x: torch.nn.functional.dropout(x + torch.rand(3), 0.5),
    "in place": lambda x: (x + torch.rand(3)).mul_(2.0).index_fill_(0, torch.tensor([1]), 5.0),
    "nothing": lambda x: 2 * x,
    "gradient": lambda x: torch.func.grad(lambda y: (y**3 * torch.rand(3)).sum())(x),
}


@pytest.mark.parametrize("together", [1, 4])
@pytest.mark.parametrize("name", DRAWS)
def test_recorded_calls_give_the_same_draws(name, together, recorded):
    calls = [Call(own=(x,)) for x in torch.linspace(-1.0, 1.0, 30).reshape(10, 3)]
    assert_close(*both(stacked, DRAWS[name], calls, together=together))


@pytest.mark.parametrize("together", [1, 4])
def test_calls_share_arguments_with_their_neighbors_alone(together, recorded):
    blocks = torch.arange(8.0).reshape(4, 2).unbind()
    calls = [Call((block,)) for block in blocks for _ in range(5)]
    assert_close(*both(stacked, lambda x: x + torch.rand(2), calls, together=together))


def test_after_the_first_calls_and_a_recording_the_function_is_not_called_again(recorded):
    runs = []
    list(
        repeated(
            lambda x: runs.append(0) or x + torch.rand(3),
            [Call((torch.zeros(3),))] * 50,
            together=10,
        )
    )
    assert len(runs) == scheduling.CALLS_WATCHED + 1


def test_a_function_is_not_recorded_where_few_calls_are_left():
    runs = []
    list(repeated(lambda x: runs.append(0) or x + torch.rand(3), [Call((torch.zeros(3),))] * 50))
    assert len(runs) == 50


def test_independent_draws_run_together_and_dependent_ones_one_by_one():
    calls = [Call()] * 5
    for name, together in (
        ("normal", 5),
        ("bernoulli", 5),
        ("categorical", 5),
        ("gamma", 1),
        ("permutation", 1),
    ):
        replay = Replay(record_operations(DRAWS[name], torch.zeros(3)), together=5)
        assert replay.together == together
        assert len(replay([Call(own=(torch.zeros(3),)) for _ in calls])) == 5


def test_operations_that_cannot_run_together_run_one_by_one(recorded):
    """A copy of what all calls share cannot take in what is each call's own."""
    calls, base = [Call(own=(torch.tensor([float(i)]),)) for i in range(9)], torch.zeros(2)

    def write(x):
        kept = base.clone()
        kept[0:1].copy_(x + torch.rand(1))
        return kept

    assert_close(*both(stacked, write, calls, together=5))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x if x.sum() > 0 else -x, "value of a tensor"),
        (lambda x: x * next(COUNTER), "other numbers than the program"),
        (lambda x: torch.full((2,), float(torch.rand(()))), "value of a tensor"),
    ],
)
def test_functions_that_one_graph_cannot_follow_run_as_they_are(function, words, recorded):
    calls = [Call(own=(x,)) for x in torch.randn(8, 2)]
    with pytest.warns(CompileWarning, match=words):
        assert len(list(repeated(function, calls))) == 8
    with pytest.raises(NotCompilable, match=words):
        list(repeated(function, calls, compile=True))


def test_running_averages_are_left_to_the_program(recorded):
    net = nn.BatchNorm1d(2)
    with pytest.warns(CompileWarning, match="running averages"):
        list(repeated(lambda x: net(x), [Call((torch.randn(4, 2),))] * 6))


@pytest.mark.parametrize(
    ("total", "size"), [(1, 1), (7, 3), (10, 4), (12, 5), (5, 100), (1000, 256), (9, 2)]
)
def test_windows_have_one_length_and_cover_each_entry_once(total, size):
    cuts = windows(total, size)
    assert len({cut.stop - cut.start for cut in cuts}) == 1 and cuts[0].stop <= size
    assert [i for cut in cuts for i in range(cut.start + cut.skip, cut.stop)] == list(range(total))


def test_the_peak_counts_what_lives_at_one_time():
    x = torch.zeros(1000)
    with Profile() as profile:
        y = x
        for _ in range(20):
            y = (y + 1).view(10, 100).view(1000)
    assert profile.peak == 8000


# -- log-likelihood
# --------------------------------------------------------------------------------------------------


def logistic(x, group, y):
    """Varying intercepts; x @ slopes does not accept draws to the left."""
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    with pyro.plate("groups", 3):
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(group)):
        pyro.sample("y", dist.Bernoulli(logits=x @ slopes + spread * offset[group]), obs=y)


def counts(x):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample(
            "z", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"}
        )
        pyro.deterministic("mean", rate * (1 + z), event_dim=0)
        pyro.sample("x", dist.Poisson(rate * (1 + z)), obs=x)


def counts_guide(x):
    pyro.sample("rate", dist.Gamma(1 + x.sum(), torch.tensor(1.0 + len(x))))


def vae():
    torch.manual_seed(1)
    return VAE(standard_normal(2), Bernoulli(MLP(2, [8], 5)), Gaussian(MLP(5, [8], 4)))


def dropping():
    gen = vae()
    gen.decoder = Bernoulli(
        nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 5))
    )
    return gen.train()


def mixed():
    torch.manual_seed(1)
    return GaussianMixture(3, 2)


ROWS = torch.bernoulli(torch.full((11, 5), 0.4), generator=torch.Generator().manual_seed(2))
HOLES = torch.where(
    torch.rand(11, 5, generator=torch.Generator().manual_seed(3)) < 0.2, torch.nan, ROWS
)
REGRESSION = (
    torch.randn(6, 2, generator=torch.Generator().manual_seed(4)),
    GROUP,
    torch.tensor([0.0, 1, 1, 0, 1, 1]),
)
COUNTS = torch.tensor([2.0, 5.0, 3.0, 1.0])

SCORED = {
    "amortized": (vae, (ROWS,)),
    "missing values": (vae, (HOLES,)),
    "dropout": (dropping, (ROWS,)),
    "exact": (mixed, (torch.randn(300, 2, generator=torch.Generator().manual_seed(5)),)),
    "one run a draw": (lambda: Program(logistic, AutoNormal(logistic)), REGRESSION),
    "joint guide": (lambda: Program(logistic, AutoMultivariateNormal(logistic)), REGRESSION),
    "enumerated": (lambda: Program(counts, counts_guide), (COUNTS,)),
    "enumerated, vectorized": (lambda: Program(counts, counts_guide, vectorized=True), (COUNTS,)),
}


def scored(name):
    """The model, its guide made ready, and a batch."""
    make, batch = SCORED[name]
    gen = make()
    gen.guide(*batch)
    return gen, batch


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("name", SCORED)
def test_recorded_scores_are_those_of_the_program(name, recorded):
    gen, batch = scored(name)
    ours, plain = both(
        log_likelihood, gen, *batch, particles=40, max_rows=40 if name != "exact" else 16
    )
    assert (ours.kind, ours.particles) == (plain.kind, plain.particles)
    assert_close(ours.value, plain.value, rtol=1e-4, atol=1e-5)


def test_recorded_scores_average_to_the_marginal(recorded):
    x = torch.tensor([-1.0, 0.0, 2.0])
    score = seeded(log_likelihood, Local(), x, particles=20_000, max_rows=3000)
    assert_close(score.value, MARGINAL.log_prob(x), atol=0.02, rtol=0)


@pytest.mark.slow
def test_compiled_scores_are_those_of_the_program():
    gen = vae()
    ours, plain = (
        seeded(log_likelihood, gen, HOLES, particles=40, max_rows=40, compile=how)
        for how in (True, False)
    )
    assert_close(ours.value, plain.value, rtol=1e-4, atol=1e-5)


def test_impossible_values_are_refused_in_every_block_of_rows(recorded):
    x = ROWS.repeat(10, 1)
    x[-1, 2] = 2.0
    with pytest.raises(ValueError, match="got 2"):
        log_likelihood(vae(), x, particles=40, max_rows=100)


@pytest.mark.slow
@pytest.mark.parametrize("memory", [2**18, 2**20])
def test_scores_keep_to_their_memory(memory):
    x = torch.zeros(300, 100)
    gen = VAE(standard_normal(2), Bernoulli(MLP(2, [8], 100)), Gaussian(MLP(100, [8], 4)))
    with Profile() as profile:
        log_likelihood(gen, x, particles=50, memory=memory, compile=False)
    weights = 4 * 256 * 50
    assert memory / 4 < profile.peak < memory + 3 * weights


def test_a_guide_for_all_rows_is_scored_on_all_rows():
    """Its latents are parameters of their own for each of 300 rows.

    Blocks of rows would not fit.
    """

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.linspace(-2.0, 2.0, 300)
    guide = AutoNormal(model)
    guide(x)
    guide.locs.z, guide.scales.z = nn.Parameter(x / 2), torch.full((300,), 0.5**0.5)
    score = log_likelihood(Program(model, guide), x, particles=3, max_rows=100)
    assert_close(score.value, MARGINAL.log_prob(x), atol=1e-4, rtol=1e-4)
    pyro.clear_param_store()


# -- draws
# -----------------------------------------------------------------------------------------------------------

DRAWN = {
    "posterior": posterior,
    "with enumerated sites": lambda *a, **k: posterior(*a, discrete=True, **k),
    "predictive": predictive,
    "predictive of new rows": lambda *a, **k: predictive(*a, new_rows=True, **k),
    "prior predictive": prior_predictive,
}


@pytest.mark.table(quick=1)
@pytest.mark.parametrize(
    "program", ["one run a draw", "enumerated", "enumerated, vectorized", "missing values"]
)
@pytest.mark.parametrize("function", DRAWN)
def test_recorded_draws_are_those_of_the_program(function, program, recorded):
    gen, batch = scored(program)
    ours, plain = both(
        DRAWN[function],
        gen,
        *batch,
        draws=20,
        max_rows=len(batch[0]) * (4 if gen.vectorized else 16),
    )
    assert set(ours) == set(plain)
    for name in plain:
        assert_close(ours[name], plain[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compiled_draws_are_those_of_the_program():
    gen, batch = scored("one run a draw")
    ours, plain = (seeded(posterior, gen, *batch, draws=20, compile=how) for how in (True, False))
    assert_close(ours, plain)


def test_draws_do_not_depend_on_compiling_where_chunks_are_chosen_by_memory(recorded):
    gen, batch = scored("enumerated, vectorized")
    ours, plain = both(posterior, gen, *batch, draws=50, discrete=True, memory=500)
    assert_close(ours, plain)


@pytest.mark.slow
def test_recorded_draws_have_the_conjugate_moments(recorded):
    y = torch.tensor([0.5, 2.5, 1.5])

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def guide(y):
        pyro.sample("mu", dist.Normal(y.sum() / 3.25, 3.25**-0.5))

    drawn = seeded(predictive, Program(model, guide), y, draws=4000)["y"]
    assert ((drawn.mean(0) - 4.5 / 3.25).abs() < 4 * (1 + 1 / 3.25) ** 0.5 / 4000**0.5).all()
    assert ((drawn.var(0) / (1 + 1 / 3.25) - 1).abs() < 4 * (2 / 4000) ** 0.5).all()


def test_recorded_chains_impute_the_same_values(recorded):
    ours, plain = both(impute, vae(), HOLES, draws=3, num_steps=30)
    assert (ours.kind, plain.kind) == ("asymptotic", "asymptotic")
    assert_close(ours.draws, plain.draws)
    assert_close(ours.acceptance, plain.acceptance)
