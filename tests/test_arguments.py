"""No argument is left unlooked at: what was expected, what came, what to do, before any work."""

import inspect
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from asked.accepted import EXEMPT
from asked.cases import GOOD, Case, call, cases, folder_of_files, outcome
from asked.numpys import numpys_calls
from asked.parts import gaussian, rows
from asked.public import public
from torch import nn

import probgen
from probgen.core import checks
from probgen.distributions.covariance import Full
from probgen.infer.em import em
from probgen.models.mixture import GaussianMixture
from probgen.objectives.elbo import ELBO
from probgen.train.fit import adam, fit

BY_NAME: dict[str, list[Case]] = {}
for _case in cases():
    BY_NAME.setdefault(_case.name, []).append(_case)


@pytest.fixture(scope="module")
def folder():
    with folder_of_files() as path:
        yield Path(path)


def test_every_public_name_has_a_good_call_or_a_reason():
    names = set(public())
    assert names - set(GOOD) - set(EXEMPT) == set()
    assert (set(GOOD) | set(EXEMPT)) - names == set()


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.filterwarnings("ignore")
def test_the_good_call_works(name, folder):
    torch.manual_seed(0)
    call(name, GOOD[name](), folder)


@pytest.mark.parametrize("name", BY_NAME)
def test_bad_values_are_refused(name, folder):
    state = torch.get_rng_state()
    found = {case.label: outcome(case, folder) for case in BY_NAME[name]}
    wrong = {
        label: (what, text)
        for label, (what, text) in found.items()
        if what not in ("clear error", "works")
    }
    assert wrong == {}
    assert torch.equal(torch.get_rng_state(), state)


def test_there_are_many_cases():
    assert sum(map(len, BY_NAME.values())) >= 500
    assert Counter(len(each) > 3 for each in BY_NAME.values())[True] > 100


@pytest.mark.slow
def test_what_is_listed_as_taken_is_taken(folder):
    """No value that is refused stands in the table of those that are taken."""
    listed = [case for each in BY_NAME.values() for case in each if case.reason]
    refused = {case.label for case in listed if outcome(case, folder)[0] != "works"}
    assert refused <= REFUSED_ELSEWHERE


# names whose argument has a meaning of its own, narrower than that of others of the same name
REFUSED_ELSEWHERE = {
    f"{name}({parameter}={value})"
    for name, parameter, value in [
        ("LevelPrediction", "high", -1.0),
        ("LevelReconstruction", "high", -1.0),
        ("Gaussianized", "high", -1.0),
        ("TruncatedGaussian", "high", -1.0),
        ("Beta", "high", -1.0),
        ("Continuous", "high", -1.0),
        ("table_quality", "splits", 0),
        ("LinearSchedule", "start", -1.0),
        ("geometric", "start", -1.0),
        ("geometric", "stop", -1.0),
        ("HiddenMarkovModel", "context_ndim", 0),
        ("BayesianNetwork", "limit", 0),
        ("DCGANCritic", "context", 0),
    ]
}

X = rows(3)


class Spy:
    """A callback that must not be called."""

    def __call__(self, run):
        raise AssertionError("a step was made")


SGD = lambda gen: torch.optim.SGD(gen.parameters(), lr=0.1)  # noqa: E731
STEP = lambda gen: torch.optim.lr_scheduler.StepLR(SGD(gen), 2)  # noqa: E731

# options of fit made from the model: (option, its value, type of the error, its text)
REFUSED = [
    ("steps", lambda _: 0, ValueError, "steps >= 1, got 0; pass 1 or more"),
    ("steps", lambda _: 1.5, TypeError, r"steps >= 1, got 1.5 \(float\); round it"),
    ("steps", lambda _: 5.0, TypeError, r"got 5.0 \(float\); pass 5"),
    ("steps", lambda _: True, TypeError, r"got True \(bool\)"),
    ("epochs", lambda _: 0, ValueError, "epochs >= 1, got 0"),
    ("batch_size", lambda _: 0, ValueError, "batch_size >= 1, got 0"),
    ("patience", lambda _: 0, ValueError, "patience >= 1, got 0"),
    ("patience", lambda _: 3, ValueError, "got none: patience needs validation; pass validation"),
    ("validate_every", lambda _: 3, ValueError, "validate_every needs validation"),
    ("validate_every", lambda _: 0, ValueError, "validate_every >= 1, got 0"),
    ("checkpoint_every", lambda _: -1, ValueError, "checkpoint_every >= 1, got -1"),
    ("resume", lambda _: "yes", TypeError, "pass resume=True or resume=False"),
    ("compile", lambda _: "yes", ValueError, "to be 'auto', True or False, got 'yes'"),
    ("compile", lambda _: 1, ValueError, "to be 'auto', True or False, got 1"),
    ("optimizer", SGD, TypeError, "pass lambda parameters: SGD"),
    ("optimizer", lambda _: "adam", TypeError, "got str; pass adam"),
    ("scheduler", STEP, TypeError, r"got a StepLR.*pass lambda optimizer: StepLR\(optimizer"),
    ("scheduler", lambda _: torch.optim.lr_scheduler.StepLR, TypeError, "which needs step_size"),
    ("clip", lambda _: 0, ValueError, "clip > 0, got 0"),
    ("ema", lambda _: 1.5, ValueError, r"ema in \(0, 1\), got 1.5; 0.999"),
    ("callbacks", lambda _: [3], TypeError, r"callbacks\[0\], got 3 \(int\); pass a list of"),
    ("callbacks", lambda _: print, TypeError, "sequence of functions callbacks"),
    ("seed", lambda _: "x", TypeError, "seed >= 0, got 'x'"),
    ("seed", lambda _: -1, ValueError, "seed >= 0, got -1"),
    ("rows", lambda _: "x", TypeError, r"got 'x' \(str\); pass \('x',\)"),
    ("objective", lambda _: ELBO, TypeError, r"got the class ELBO; call it: ELBO\(...\)"),
    ("objective", lambda _: 3, TypeError, "expected an objective such as ELBO"),
    ("fabric", lambda _: "cpu", TypeError, "pass lightning_fabric.Fabric"),
]


@pytest.mark.parametrize(
    ("option", "value", "error", "text"),
    REFUSED,
    ids=[f"{r[0]} {i}" for i, r in enumerate(REFUSED)],
)
def test_fit_refuses_before_any_work(option, value, error, text, tmp_path):
    gen, path = gaussian(3), tmp_path / "run.safetensors"
    before = {name: value.clone() for name, value in gen.state_dict().items()}
    state = torch.get_rng_state()
    options = {"checkpoint": path, "callbacks": [Spy()], option: value(gen)}
    with pytest.raises(error, match=f"(?s)expected.*got.*;|{text}") as raised:
        fit(gen, X, **options)
    assert re.search(f"(?s){text}", str(raised.value))
    assert not path.exists()
    assert torch.equal(torch.get_rng_state(), state)
    after = gen.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_an_optimizer_of_other_parameters_is_refused_with_advice_that_works():
    other = gaussian(3)
    with pytest.raises(ValueError, match="got Adam of others; pass lambda") as raised:
        fit(gaussian(3), X, optimizer=lambda _: torch.optim.Adam(other.parameters()), steps=1)
    advice = str(raised.value).rpartition("; pass ")[2]
    assert advice == "lambda parameters: Adam(parameters, lr=0.001)"
    optimizer = eval(advice, {"Adam": torch.optim.Adam})
    assert fit(gaussian(3), X, optimizer=optimizer, steps=1, verdict=False).steps == 1
    gen = gaussian(3)  # some of the given ones are enough, and more than those no fault
    some = [next(gen.parameters()), nn.Parameter(torch.zeros(2))]
    assert fit(gen, X, optimizer=lambda _: torch.optim.SGD(some), steps=1, verdict=False).steps == 1


def test_a_path_that_is_none_is_refused():
    with pytest.raises(TypeError, match="path checkpoint, got 3"):
        fit(gaussian(3), X, checkpoint=3)


MODELS = [
    (GaussianMixture, r"got the class GaussianMixture; call it: GaussianMixture\(...\)"),
    (nn.Linear(3, 3), r"a network goes into a head: Gaussian\(net\)"),
    (lambda x: None, r"a Pyro program is wrapped: Program\(model, guide\)"),
    (None, "pass a family such as GaussianMixture"),
]
DOORS = [
    lambda gen: fit(gen, X),
    lambda gen: probgen.sample(gen, 2),
    lambda gen: probgen.log_likelihood(gen, X),
    lambda gen: probgen.posterior(gen, X),
    lambda gen: probgen.impute(gen, X),
    lambda gen: probgen.khat(gen, X),
    lambda gen: probgen.verdict(gen, X),
]


@pytest.mark.parametrize("door", range(len(DOORS)))
@pytest.mark.parametrize(("gen", "text"), MODELS, ids=["class", "network", "program", "none"])
def test_what_is_no_model_is_refused(door, gen, text):
    with pytest.raises(TypeError, match=text):
        DOORS[door](gen)


TAKEN = [
    {"steps": np.int64(2)},
    {"steps": torch.tensor(2)},
    {"steps": 2, "batch_size": np.int32(4), "seed": np.int64(3)},
    {"steps": 2, "clip": np.float32(1.0), "ema": np.float64(0.5)},
    {"epochs": np.int64(1), "progress": np.bool_(False)},
    {"steps": 2, "optimizer": pyro.optim.Adam({"lr": 0.1})},
    {"steps": 2, "optimizer": torch.optim.AdamW},
    {"steps": 2, "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1)},
    {"steps": 2, "scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=2)},
    {"steps": 2, "objective": ELBO()},
]


@pytest.mark.parametrize("options", TAKEN, ids=lambda options: "-".join(options))
def test_numbers_of_numpy_and_what_errors_advise_are_taken(options, tmp_path):
    path = tmp_path / "run.safetensors"
    history = fit(gaussian(3), X, checkpoint=str(path), verdict=False, **options)
    assert history.steps == 2 or "epochs" in options
    assert path.exists()


def test_a_checkpoint_of_numpys_numbers_is_continued(tmp_path):
    path = tmp_path / "run.safetensors"
    options = {"checkpoint": path, "seed": np.int64(1), "verdict": False}
    options |= {"batch_size": np.int64(4), "ema": np.float64(0.5), "clip": np.float32(2.0)}
    fit(gaussian(3), X, steps=np.int64(2), **options)
    assert fit(gaussian(3), X, steps=np.int64(4), resume=True, **options).steps == 4


@pytest.mark.table(quick=93)
@pytest.mark.parametrize("name", GOOD)
@pytest.mark.filterwarnings("ignore")
def test_numbers_of_numpy_are_numbers(name, folder):
    for _, arguments in numpys_calls(name):
        call(name, arguments, folder)


def test_constructors_take_numbers_of_numpy():
    made = GaussianMixture(np.int64(2), np.int32(3), regularization=np.float32(0.1))
    assert made.loc.shape == (2, 3)
    assert probgen.nn.MLP(np.int64(3), [np.int64(4)], np.int64(2))(X).shape == (8, 2)
    assert adam(np.float64(0.1))([nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"] == 0.1


def test_em_leaves_the_model_alone_when_it_refuses():
    gen = GaussianMixture(2, 3)
    before = gen.loc.clone()
    for options in (
        {"n_init": -1},
        {"tol": -1.0},
        {"max_iter": 1.5},
        {"max_rows": 0},
        {"seed": "x"},
    ):
        with pytest.raises((ValueError, TypeError), match=r"expected .*, got .*; "):
            em(gen, X, **options)
    assert torch.equal(gen.loc, before)


CHECKED = [
    (lambda: checks.at_most(3, order=4), ValueError, "order <= 3, got 4; pass 3 or less"),
    (lambda: checks.at_least(1, n=torch.tensor(1.0)), TypeError, "got tensor"),
    (lambda: checks.at_least(1, n=torch.tensor(True)), TypeError, "got tensor"),
    (lambda: checks.at_least(1, n=float("nan")), TypeError, "pass a number such as 1"),
    (lambda: checks.is_seed(seed=2**63), ValueError, r"seed < 2\*\*63"),
    (lambda: checks.within("[0, inf)", tol=-1), ValueError, r"in \[0, inf\), got -1"),
    (lambda: checks.subclass(nn.Module, kind=nn.ReLU()), TypeError, "pass the class: ReLU"),
    (lambda: checks.subclass(Full, kind=nn.ReLU), TypeError, "such as Full"),
    (lambda: checks.instances(int, orders=3), TypeError, "a sequence orders, got 3"),
    (lambda: checks.texts(sites=[3]), TypeError, "names sites, got 3"),
    (lambda: checks.texts(sites=3), TypeError, "pass strings such as"),
    (lambda: checks.scales(df=torch.ones(0)), ValueError, "pass positive numbers"),
    (lambda: checks.vector(t=torch.ones(2, 2)), ValueError, r"got shape \(2, 2\)"),
    (lambda: checks.ordered(a=1.0, b=1.0), ValueError, "pass two different numbers"),
    (lambda: checks.families(parts="x"), TypeError, "pass a list of them"),
    (lambda: checks.scheduled(beta=-1.0), ValueError, "pass 0 or more"),
]


@pytest.mark.parametrize("number", range(len(CHECKED)))
def test_checks_say_what_to_do(number):
    check, error, text = CHECKED[number]
    with pytest.raises(error, match=text):
        check()


def draws(name: str, folder: Path) -> bool:
    """Whether the good call of a public function takes random numbers from torch's generator."""
    arguments = GOOD[name]()
    arguments.pop("seed", None)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    call(name, arguments, folder)
    return not torch.equal(torch.get_rng_state(), state)


PLAIN = [name for name in GOOD if inspect.isfunction(public()[name])]
# draws of a distribution come from torch's generator, as distribution.sample() has them
BY_DISTRIBUTION = {"gibbs", "conditional"}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.filterwarnings("ignore")
def test_every_public_function_that_draws_takes_a_seed(name, folder):
    function = public()[name]
    seeded = "seed" in inspect.signature(function).parameters
    assert seeded or name in BY_DISTRIBUTION or not draws(name, folder)
    if seeded:
        arguments = {**GOOD[name](), "seed": 3}
        state = torch.get_rng_state()
        call(name, arguments, folder)
        assert torch.equal(torch.get_rng_state(), state)


def program_of_means():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    return probgen.Program(model, guided)


def guided(y):
    pyro.sample("mu", dist.Normal(0.0, 0.7))
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(y / 2, 1.0))


Y = torch.linspace(-1, 1, 5)
SEEDED = {
    "khat": lambda gen, seed: probgen.khat(gen, Y, seed=seed),
    "ess": lambda gen, seed: probgen.diagnostics.ess(gen, Y, seed=seed),
    "log_likelihood": lambda gen, seed: probgen.log_likelihood(gen, Y, seed=seed).value,
    "log_weights": lambda gen, seed: probgen.core.log_weights(gen, Y, seed=seed)[0],
    "verdict": lambda gen, seed: probgen.verdict(gen, Y, seed=seed).khat,
    "predictive_check": lambda gen, seed: (
        probgen.predictive_check(gen, Y, statistic=torch.std, draws=50, seed=seed).replicated
    ),
    "to_arviz": lambda gen, seed: torch.as_tensor(
        probgen.to_arviz(gen, Y, draws=50, seed=seed)["posterior"]["mu"].values
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEDED)
@pytest.mark.filterwarnings("ignore")
def test_a_seed_makes_the_draws(name):
    gen = program_of_means()
    first, again, other = (SEEDED[name](gen, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
