"""Threads: what one of them gives beside others is what it gives alone.

And nothing is left behind.
"""

import copy
import importlib.util
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, init_to_value

import probgen as pg
from probgen.core import turns
from probgen.core.own_pyro import local_parameters, private_store, validation
from probgen.core.runtime import isolated
from probgen.core.threads import one_core

SOON = 60.0
FILE = Path(__file__).parents[1] / "benchmarks" / "robustness" / "threads.py"
spec = importlib.util.spec_from_file_location("robustness_threads", FILE)
robustness = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = robustness
spec.loader.exec_module(robustness)


def in_thread(function, *arguments):
    """What a function gives in a thread of its own; raises what it raises there."""
    found, errors = [], []

    def run():
        try:
            found.append(function(*arguments))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SOON)
    assert not thread.is_alive(), "the thread hangs"
    if errors:
        raise errors[0]
    return found[0]


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("kind", robustness.KINDS)
def test_results_beside_others_are_those_alone(kind):
    found = robustness.races(kind, 2)
    print(found.row(kind))
    assert found.outcomes == Counter()


# -- plain Pyro in another thread


def settings():
    return (
        pyro.settings.get("module_local_params"),
        bool(pyro.settings.get("validate_infer")),
        torch.distributions.Distribution._validate_args,
        sorted(pyro.get_param_store()),
        list(pyro.poutine.runtime._PYRO_STACK),
        list(pyro.poutine.runtime._DIM_ALLOCATOR._stack),
    )


@pytest.mark.parametrize(
    "ours", [isolated, local_parameters, private_store, lambda: validation(False)]
)
def test_another_thread_sees_nothing_of_what_holds_here(ours):
    pyro.clear_param_store()
    before = settings()
    with ours(), pyro.poutine.trace() as seen, pyro.plate("rows", 3):
        pyro.param("own", torch.zeros(()))
        there = in_thread(settings)
        in_thread(pyro.sample, "elsewhere", dist.Normal(0.0, 1.0))
    assert "elsewhere" not in seen.trace.nodes
    assert there[:3] == before[:3] and there[4:] == ([], [])
    assert there[3] == ([] if ours is private_store else ["own"])
    pyro.clear_param_store()
    assert settings() == before


def test_settings_that_another_thread_changes_meanwhile_stay_changed():
    with validation(False):
        in_thread(pyro.enable_validation, True)
    assert pyro.settings.get("validate_infer") and dist.is_validation_enabled()
    inside, done = threading.Event(), threading.Event()

    def plain():
        with pyro.validation_enabled(False), pyro.settings.context(module_local_params=True):
            inside.set()
            done.wait(SOON)

    other = threading.Thread(target=plain, daemon=True)
    with validation(True), local_parameters():  # the two end in the order in which they began
        other.start()
        inside.wait(SOON)
    done.set()
    other.join(SOON)
    assert dist.is_validation_enabled() and torch.distributions.Distribution._validate_args
    assert not pyro.settings.get("module_local_params")


def test_plain_svi_goes_on_beside_all_that_probgen_does():
    def svi_losses():
        pyro.clear_param_store()
        point = AutoDelta(
            robustness.program, init_loc_fn=init_to_value(values={"loc": torch.zeros(())})
        )
        svi = SVI(robustness.program, point, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        return [svi.step(robustness.ROWS[:, 0]) for _ in range(60)]

    alone, stop, failed = svi_losses(), threading.Event(), []

    def busy():
        while not stop.is_set():
            try:
                for job in (*robustness.READS, robustness.fits):
                    job(0)
            except Exception as error:
                failed.append(error)
                return

    other = threading.Thread(target=busy, daemon=True)
    other.start()
    try:
        beside = svi_losses()
    finally:
        stop.set()
        other.join(SOON)
    pyro.clear_param_store()
    assert beside == alone and not failed


# -- turns


def test_a_seed_gives_the_same_numbers_however_turns_change():
    def draws(seed):
        with turns.own_random_state(seed):
            parts = []
            for _ in range(50):
                parts.append(torch.randn(2))
                turns.offer()
            return torch.stack(parts)

    alone = [draws(seed) for seed in range(4)]
    torch.manual_seed(7)
    expected = torch.randn(3)
    torch.manual_seed(7)
    found = [None] * 4
    threads = [
        threading.Thread(target=lambda k=k: found.__setitem__(k, draws(k)), daemon=True)
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert all(torch.equal(a, b) for a, b in zip(alone, found, strict=True))
    assert torch.equal(torch.randn(3), expected)


def test_scores_wait_for_a_step_not_for_the_whole_fit():
    gen, ended = pg.GaussianMixture(components=2, dims=2), threading.Event()
    trains = threading.Thread(
        target=lambda: pg.fit(
            gen, robustness.ROWS, steps=10**6, callbacks=[stop_if_asked], **robustness.QUIET
        ),
        daemon=True,
    )

    def stop_if_asked(run):
        run.stop = "asked" if ended.is_set() else None

    trains.start()
    try:
        values = [pg.log_likelihood(gen, robustness.ROWS).value.mean() for _ in range(5)]
    finally:
        ended.set()
        trains.join(SOON)
    assert not trains.is_alive() and torch.stack(values).isfinite().all()
    assert gen.training is False


def test_two_threads_do_not_train_one_model():
    gen, begun, ended = (
        pg.GaussianMixture(components=2, dims=2),
        threading.Event(),
        threading.Event(),
    )

    def look(run):
        begun.set()
        ended.wait(SOON)

    trains = threading.Thread(
        target=lambda: pg.fit(gen, robustness.ROWS, steps=2, callbacks=[look], **robustness.QUIET),
        daemon=True,
    )
    trains.start()
    begun.wait(SOON)
    try:
        with pytest.raises(RuntimeError, match="expected a model that no other thread trains, got"):
            pg.fit(gen, robustness.ROWS, steps=1, **robustness.QUIET)
        with pytest.raises(RuntimeError, match=r"wait until it is done, or train a copy"):
            pg.em(gen, robustness.ROWS)
        copied = copy.deepcopy(gen)  # as the error says
        assert pg.fit(copied, robustness.ROWS, steps=1, **robustness.QUIET).steps == 1
    finally:
        ended.set()
        trains.join(SOON)
    assert pg.fit(gen, robustness.ROWS, steps=1, **robustness.QUIET).steps == 1


def test_a_loader_and_a_callback_may_wait_for_threads_that_score():
    gen = pg.GaussianMixture(components=2, dims=2)

    def batches():
        for _ in range(3):
            in_thread(pg.sample, gen, 2)
            yield robustness.ROWS[:8]

    class Loader:
        def __iter__(self):
            return batches()

    history = pg.fit(
        gen,
        Loader(),
        steps=4,
        callbacks=[lambda run: in_thread(pg.sample, gen, 2)],
        **robustness.QUIET,
    )
    assert history.steps == 4


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_ctrl_c_ends_the_wait_for_a_turn():
    begun, ended = threading.Event(), threading.Event()

    def hold():
        with turns.turn():
            begun.set()
            ended.wait(SOON)

    other = threading.Thread(target=hold, daemon=True)
    other.start()
    begun.wait(SOON)
    alarm = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    alarm.start()
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            pg.sample(robustness.fitted("mixture"), 2)
    finally:
        waited = time.monotonic() - began
        ended.set()
        other.join(SOON)
    assert waited < SOON / 2
    assert turns.is_free() and in_thread(pg.sample, robustness.fitted("mixture"), 2).shape == (2, 2)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
def test_a_process_forked_while_another_thread_has_the_turn_may_begin():
    begun, ended = threading.Event(), threading.Event()

    def hold():
        with turns.turn(), one_core(), validation(False):
            begun.set()
            ended.wait(SOON)

    other = threading.Thread(target=hold, daemon=True)
    other.start()
    begun.wait(SOON)
    child = multiprocessing.get_context("fork").Process(target=_use_turns)
    child.start()
    child.join(SOON)
    code = child.exitcode
    if code is None:
        child.kill()
    ended.set()
    other.join(SOON)
    assert code == 0


def _use_turns():
    with turns.turn(), one_core(), validation(True), turns.own_random_state(0):
        assert torch.distributions.Distribution._validate_args
        torch.randn(2)


def test_several_threads_leave_the_number_of_cores_as_it_was():
    before = torch.get_num_threads()

    def work():
        for _ in range(20):
            with one_core() as outer, one_core() as inner:
                assert (outer, inner, torch.get_num_threads()) == (before, 1, 1)
                time.sleep(0.001)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert torch.get_num_threads() == before == in_thread(torch.get_num_threads)
