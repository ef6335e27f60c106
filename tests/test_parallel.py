"""Tasks in processes: what they give in turn, bit for bit, and what is said where one goes wrong."""

import importlib.util
import multiprocessing
import os
import random
import signal
import threading
import time
import warnings
from contextlib import contextmanager
from functools import partial

import joblib
import numpy as np
import pandas
import pyro
import pyro.distributions as dist
import pytest
import torch

import probgen as pg
from probgen.infer.nuts import PyroNUTS
from probgen.infer.nuts_nutpie import Nutpie
from probgen.parallel import (
    TasksInterrupted,
    are_sent,
    check_jobs,
    cores_of,
    is_asked,
    processes,
    run_tasks,
)
from probgen.searching import Candidate

Y = torch.tensor([0.5, 1.5, -0.3, 2.0])
ROWS = torch.randn(60, 2, generator=torch.Generator().manual_seed(1))


def normal(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def chains(sampler, **sizes):
    found = pg.mcmc(normal, Y, chains=3, seed=0, sampler=sampler, progress=False, **sizes)
    return {**found.draws, **found.stats}


def ranks(**options):
    sizes = {"sims": 4, "draws": 3, "thin": 1, "tune": 4}
    found = pg.diagnostics.simulation_based_calibration(
        normal, Y, seed=0, sampler=PyroNUTS(), progress=False, **sizes, **options
    )
    return found.ranks


def mixture(**options):
    torch.manual_seed(0)
    gen = pg.GaussianMixture(components=3, dims=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it stops early on purpose
        found = pg.em(gen, ROWS, n_init=3, max_iter=4, seed=0, progress=False, **options)
    return {"history": found.log_likelihood, **gen.state_dict()}


def machine():
    torch.manual_seed(0)
    return pg.RBM(pg.energy.BernoulliUnits(5), hidden=3, scale=1.0)


def bracket(**options):
    found = pg.energy.annealed_importance(machine(), temperatures=5, chains=20, seed=0, **options)
    return {"there": found.forwards, "back": found.backwards}


def scores(**options):
    x = torch.ones(3, 5)
    found = pg.energy.reverse_annealing(machine(), x, temperatures=5, chains=4, seed=0, **options)
    return {"value": found.value}


def gaussians(count, table, x):
    return pg.GaussianMixture(count, x.shape[1], regularization=1e-2)


def found_models(**options):
    """Candidates that EM trains end where they end, however fast the machine is."""
    frame = pandas.DataFrame(ROWS.numpy(), columns=["a", "b"])
    plan = {f"{n} normals": Candidate(partial(gaussians, n), em=True) for n in (1, 2)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a budget that is short on purpose
        found = pg.search(frame, budget=1e-3, candidates=plan, seed=0, progress=False, **options)
    return {
        f"{name}.{key}": value
        for name, model in found.models.items()
        for key, value in model.state_dict().items()
        if torch.is_tensor(value)
    }


CALLS = {
    "chains of Pyro's sampler": partial(chains, PyroNUTS(), draws=4, tune=4),
    "data sets of a calibration": ranks,
    "starts of EM": mixture,
    "annealed chains": bracket,
    "chains of reverse annealing": scores,
    "candidates of a search": found_models,
}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_results_are_those_in_turn_bit_for_bit(name):
    assert_same(CALLS[name](n_jobs=1), CALLS[name](n_jobs=2))


@pytest.mark.slow
def test_machine_code_is_sent_and_gives_the_same_chains():
    pytest.importorskip("nutpie")
    call = partial(chains, Nutpie(), draws=50, tune=50)
    assert_same(call(n_jobs=1), call(n_jobs=2))


@pytest.mark.parametrize("name", ["starts of EM", "chains of Pyro's sampler"])
def test_one_process_gives_what_no_argument_gives(name):
    """On one core, which tests have; other functions give each part random numbers of its own."""
    assert_same(CALLS[name](n_jobs=1), CALLS[name]())


# ---------------------------------------------------------------- who runs them


def test_without_a_word_tasks_run_here():
    assert processes(None, 10) == processes(1, 10) == processes(2, 1) == 1
    assert not is_asked(None) and is_asked(1)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({"n_jobs": 2}, 2),
        ({"n_jobs": 1}, 1),
        ({"backend": "loky", "n_jobs": 2}, 2),
        ({"backend": "threading", "n_jobs": 2}, 1),  # Pyro's handlers are one for all threads
        ({"backend": "sequential"}, 1),
    ],
)
def test_joblibs_configuration_holds(config, count):
    with joblib.parallel_config(**config):
        assert processes(None, 10) == count
        assert is_asked(None) == (count > 1)


def test_no_more_processes_than_tasks():
    assert processes(4, 2) == 2
    assert processes(-1, 100) == joblib.cpu_count()


def test_an_argument_stands_over_the_configuration():
    with joblib.parallel_config(n_jobs=2):
        assert processes(1, 10) == 1


@pytest.mark.parametrize(("n_jobs", "threads"), [(None, 2), (1, 1), (2, 1)])
def test_a_task_that_is_asked_for_has_one_core(n_jobs, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with cores_of(n_jobs, 4):
            assert torch.get_num_threads() == threads
            assert are_sent() == (n_jobs == 2)
        assert not are_sent()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("n_jobs", "error"), [(0, ValueError), (1.5, TypeError), ("two", TypeError), (True, TypeError)]
)
def test_what_is_no_number_of_processes_is_refused(n_jobs, error):
    with pytest.raises(error, match=r"expected n_jobs >= 1, or -1 for all cores, got .*; pass 2"):
        check_jobs(n_jobs)


# ---------------------------------------------------------------- what they are told


def twice(advance, x):
    advance(0.5)
    if x == 3:
        raise ValueError("expected no three, got 3; leave it out")
    return 2 * x + torch.rand(())


class Odd(Exception):
    """Its message is made of two arguments."""

    def __init__(self, one, two):
        super().__init__(one, two)

    def __str__(self):
        return "odd"


def odd(advance, x):
    raise Odd(1, 2)


def told(advance, x):
    warnings.warn("the same for all", UserWarning, stacklevel=1)
    return pyro.get_param_store()["level"] + x


def nested(advance, x):
    return processes(2, 10), torch.get_num_threads(), str(torch.get_default_dtype())


class CtrlC:
    """A result that comes at the same time as Ctrl-C: the process that asks gets both."""

    def __reduce__(self):
        return came_with_ctrl_c, ()


def came_with_ctrl_c():
    signal.raise_signal(signal.SIGINT)
    return "done"


def one_done_one_endless(advance, task, begun):
    if task == 1:
        begun.touch()
    while not begun.exists() or task == 1:
        time.sleep(0.01)
    return CtrlC()


def leave(advance, x):
    os._exit(3)


PLACES = [
    pytest.param(1, id="in turn"),
    pytest.param(2, id="in processes", marks=pytest.mark.slow),
]


def pairs(*values):
    return [(value,) for value in values]


@pytest.mark.parametrize("n_jobs", PLACES)
def test_tasks_have_random_numbers_of_their_own(n_jobs):
    state = torch.get_rng_state()
    one, two, three = run_tasks(twice, pairs(1, 1, 1), [5, 6, 5], n_jobs=n_jobs, name="sum")
    assert one == three != two
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("n_jobs", PLACES)
def test_an_error_names_its_task(n_jobs):
    says = "^sum 2 of 2: expected no three, got 3; leave it out"
    with pytest.raises(ValueError, match=says):
        run_tasks(twice, pairs(1, 3), [0, 0], n_jobs=n_jobs, name="sum")


@pytest.mark.parametrize("n_jobs", PLACES)
def test_a_message_that_is_made_of_others_is_left_alone(n_jobs):
    with pytest.raises(Odd, match=r"^odd") as caught:
        run_tasks(odd, pairs(1, 3), [0, 0], n_jobs=n_jobs, name="sum")
    assert "in sum " in caught.value.__notes__[0]


@pytest.mark.parametrize("n_jobs", PLACES)
def test_progress_is_told(n_jobs):
    seen = []
    run_tasks(twice, pairs(1, 2, 4), [0] * 3, n_jobs=n_jobs, name="sum", advance=seen.append)
    assert sum(seen) == 1.5


@pytest.mark.parametrize("n_jobs", PLACES)
def test_parameters_are_seen_and_warnings_come_back(n_jobs):
    pyro.param("level", torch.tensor(7.0))
    with pytest.warns(UserWarning, match="the same for all") as warned:
        found = run_tasks(told, pairs(1, 2), [0, 0], n_jobs=n_jobs, name="sum")
    pyro.clear_param_store()
    assert [each.item() for each in found] == [8.0, 9.0]
    if n_jobs == 2:
        assert len([each for each in warned if "the same" in str(each.message)]) == 1


class Local(Exception):
    """As one of a script, which other processes cannot import by its name."""


def seen_by(advance, what):
    """What libraries draw, and what a program sees beside its arguments."""
    looks = {
        "NumPy": lambda: np.random.rand(),  # noqa: NPY002
        "Python": lambda: random.random(),
        "torch": lambda: torch.rand(()).item(),
        "deterministic": torch.are_deterministic_algorithms_enabled,
        "only warns": torch.is_deterministic_algorithms_warn_only_enabled,
        "gradients": torch.is_grad_enabled,
        "precision": lambda: str(torch.ones(()).dtype),
        "threads": torch.get_num_threads,
    }
    return looks[what]()


SEEN = (
    "NumPy",
    "Python",
    "torch",
    "deterministic",
    "only warns",
    "gradients",
    "precision",
    "threads",
)


@contextmanager
def unusual():
    """Another precision, deterministic algorithms and no gradients."""
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(True, warn_only=True)
        with torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(before)
        torch.use_deterministic_algorithms(False)


def test_tasks_draw_by_their_seeds_and_leave_all_random_states():
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    found = run_tasks(seen_by, pairs(*SEEN[:3] * 2), [4] * 6, n_jobs=1, name="task")
    assert found[:3] == found[3:]
    assert before == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002


@pytest.mark.slow
def test_tasks_see_the_same_in_other_processes():
    seeds = list(range(len(SEEN)))
    with unusual():
        found = [run_tasks(seen_by, pairs(*SEEN), seeds, n_jobs=n, name="task") for n in (1, 2)]
    again = run_tasks(seen_by, pairs(*SEEN), seeds, n_jobs=2, name="task")
    assert found[0] == found[1]
    assert found[1][3:] == [True, True, False, "torch.float64", 1]
    assert again[3:] == [False, False, True, "torch.float32", 1]  # nothing of it stays


def ends(advance, make):
    raise make()


ENDS = {
    "sys.exit": (lambda: SystemExit(3), RuntimeError, "return or raise .* got SystemExit: 3; "),
    "an error that is none": (lambda: KeyError("a"), KeyError, "a"),
    "an error of a script": (lambda: Local("mine"), Local, "^task . of 2: mine"),
    "StopIteration": (lambda: StopIteration("over"), StopIteration, "^task . of 2: over"),
    "GeneratorExit": (lambda: GeneratorExit("end"), GeneratorExit, "^end"),
    "an error that cannot be sent": (lambda: Locked(), RuntimeError, "^Locked: task . of 2: held"),
}


class Locked(Exception):
    """An error that holds what cannot be sent."""

    def __init__(self):
        super().__init__("held")
        self.lock = threading.Lock()


@pytest.mark.slow
@pytest.mark.parametrize("case", ENDS)
def test_whatever_ends_a_task_is_told_and_the_processes_stay(case):
    make, kind, says = ENDS[case]
    with pytest.raises(kind, match=says) as caught:
        run_tasks(ends, pairs(make, make), [0, 0], n_jobs=2, name="task")
    assert any("in the other process" in note for note in caught.value.__notes__)
    own = run_tasks(twice, pairs(1, 2), [0, 0], n_jobs=2, name="task")
    assert own == run_tasks(twice, pairs(1, 2), [0, 0], n_jobs=1, name="task")


class Refuses:
    """Something that can be sent, of which nothing can be made."""

    def __reduce__(self):
        return refuse, ()


def refuse():
    if multiprocessing.parent_process() is not None:
        raise TypeError("no hands")
    return Refuses()


def handed(advance, x):
    return x


@pytest.mark.slow
@pytest.mark.parametrize("held", ["in the function", "in an argument"])
def test_what_cannot_be_made_again_is_told(held):
    one = Refuses()
    function = partial(handed_with, one) if held == "in the function" else handed
    values = (1, 2) if held == "in the function" else (one, one)
    with pytest.raises((RuntimeError, TypeError), match=r"no hands"):
        run_tasks(function, pairs(*values), [0, 0], n_jobs=2, name="task")


def handed_with(kept, advance, x):
    return x


@pytest.mark.slow
def test_tasks_inside_of_tasks_run_in_turn_with_the_same_precision():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found = run_tasks(nested, pairs(0, 1), [None, None], n_jobs=2, name="task")
    finally:
        torch.set_default_dtype(before)
    assert found == [(1, 1, "torch.float64")] * 2


HELD = [
    pytest.param(threading.Lock(), id="lock"),
    pytest.param((n for n in range(3)), id="generator"),
]


@pytest.mark.parametrize("held", HELD)
def test_what_cannot_be_sent_is_told_in_one_sentence(held):
    def model(y):
        assert held is not None
        normal(y)

    options = {"draws": 1, "tune": 1, "chains": 2, "sampler": PyroNUTS(), "progress": False}
    says = r"^expected what can be sent to other processes \(2 of them\), got an object .* leave n_jobs out$"
    with pytest.raises(TypeError, match=says):
        pg.mcmc(model, Y, n_jobs=2, **options)
    assert pg.mcmc(model, Y, **options).draws["mu"].shape == (2, 1)  # the advice


@pytest.mark.slow
def test_a_process_that_is_lost_is_told():
    with pytest.raises(RuntimeError, match=r"expected processes that stay .* give fewer n_jobs"):
        run_tasks(leave, pairs(1, 2), [0, 0], n_jobs=2, name="task")


# ---------------------------------------------------------------- Ctrl-C


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done_and_says_what_is_begun(tmp_path):
    begun = tmp_path / "begun"
    with pytest.raises(TasksInterrupted) as caught:
        run_tasks(one_done_one_endless, [(0, begun), (1, begun)], [0, 0], n_jobs=2, name="task")
    assert caught.value.done == {0: "done"}
    assert list(caught.value.begun) == [1]


@pytest.mark.slow
def test_ctrl_c_keeps_the_draws_of_all_chains(monkeypatch):
    from probgen.core.progress import Progress

    sent = []

    def advance(self, count=1, said=None):
        self.done += count
        if self.done > 200 and not sent:
            sent.append(count)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Progress, "advance", advance)
    options = {"draws": 10**6, "tune": 5, "seed": 0, "sampler": PyroNUTS(), "progress": False}
    with pytest.warns(UserWarning, match="draws of 2 chains each; those are kept"):
        found = pg.mcmc(normal, Y, chains=2, n_jobs=2, **options)
    kept = found.draws["mu"]
    assert kept.shape[0] == 2 and 0 < kept.shape[1] < 10**6


def test_in_turn_ctrl_c_says_the_same():
    def task(advance, x):
        if x == 2:
            raise KeyboardInterrupt
        return x

    with pytest.raises(TasksInterrupted) as caught:
        run_tasks(task, pairs(1, 2, 3), [None] * 3, n_jobs=None, name="task")
    assert caught.value.done == {0: 1}
    assert list(caught.value.begun) == [1]


# ---------------------------------------------------------------- scripts and clusters

SCRIPT = """
import pyro, pyro.distributions as dist, torch
import probgen as pg

def made(width):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, width))
        with pyro.plate("data", len(y)):
            pyro.sample("y", OWN(mu, 1.0), obs=y)
    return model

class OWN(dist.Normal):
    pass

options = {"draws": 4, "tune": 4, "chains": 2, "seed": 0, "sampler": pg.PyroNUTS()}
one, two = (pg.mcmc(made(2.0), torch.ones(3), n_jobs=n, **options) for n in (1, 2))
"""


@pytest.mark.slow
def test_functions_of_a_script_and_inside_of_functions_are_sent():
    """As of a script, which other processes cannot import."""
    script = {"__name__": "__main__"}
    exec(SCRIPT, script)
    assert torch.equal(script["one"].draws["mu"], script["two"].draws["mu"])


@pytest.fixture(scope="module")
def dask():
    """A cluster of two workers with two threads each, of which a task has the process alone."""
    distributed = pytest.importorskip("distributed")
    settings = {"n_workers": 2, "threads_per_worker": 2, "dashboard_address": None}
    with (
        distributed.LocalCluster(**settings) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        yield


def resamples(**options):
    return pg.diagnostics.bootstrap(noisy_mean, ROWS, resamples=6, seed=1, **options).draws


def noisy_mean(x):
    return x.mean() + torch.rand(()) + np.random.rand()  # noqa: NPY002


def folds(**options):
    return {"value": pg.diagnostics.kfold(guided, Y, folds=2, particles=3, seed=0, **options).value}


def left_out(**options):
    first = pg.diagnostics.LooResult(torch.zeros(4), torch.ones(4), 0.0)
    return {"value": pg.diagnostics.reloo(first, guided, Y, seed=0, **options).pointwise}


def guided(y):
    def guide(y):
        pyro.sample("mu", dist.Normal(y.mean(), 0.4))

    return pg.Program(normal, guide)


REFITS = {"resamples": resamples, "folds": folds, "rows left out": left_out}
ON_CLUSTERS = {
    **REFITS,
    **{name: CALLS[name] for name in ("chains of Pyro's sampler", "starts of EM")},
    "candidates of a search": found_models,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_CLUSTERS)
def test_a_cluster_of_dask_gives_the_same(dask, name):
    assert processes(None, 3) >= 2
    found = ON_CLUSTERS[name]()
    assert_same(found, ON_CLUSTERS[name](n_jobs=1))


@pytest.mark.slow
def test_warnings_and_errors_come_from_a_cluster_of_dask(dask):
    pyro.param("level", torch.tensor(7.0))
    with pytest.warns(UserWarning, match="the same for all"):
        run_tasks(told, pairs(1, 2), [0, 0], n_jobs=None, name="sum")
    pyro.clear_param_store()
    with pytest.raises(ValueError, match=r"^sum 2 of 2: expected no three, got 3; leave it out"):
        run_tasks(twice, pairs(1, 3), [0, 0], n_jobs=None, name="sum")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["threading", "multiprocessing", "loky"])
@pytest.mark.parametrize("name", REFITS)
def test_refits_are_the_same_by_any_backend(backend, name):
    alone = REFITS[name](n_jobs=1)
    with joblib.parallel_config(backend=backend, n_jobs=2):
        assert_same(alone, REFITS[name]())


@pytest.fixture(scope="module")
def ray():
    """A node of two workers on the loopback address, which needs half a minute to start."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed; it is no requirement of the tests")
    import ray
    from ray.util.joblib import register_ray

    settings = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    try:
        ray.init(address="local", _node_ip_address="127.0.0.1", **settings)
    except (RuntimeError, OSError, TimeoutError) as error:  # a node that does not start in time
        pytest.skip(f"no node of Ray: {error}")
    register_ray()
    with joblib.parallel_config(backend="ray", n_jobs=2):
        yield
    ray.shutdown()


@pytest.mark.slow
def test_ray_gives_the_same_and_goes_on_after_an_error(ray):
    with pytest.raises(ValueError, match=r"^sum 2 of 2: expected no three, got 3; leave it out"):
        run_tasks(twice, pairs(1, 3), [0, 0], n_jobs=None, name="sum")
    for call in (folds, resamples):
        assert_same(call(), call(n_jobs=1))
