"""A signal at any moment of a run, and the run goes on from its file as if there had been none."""

import os
import signal
import subprocess
import sys
import textwrap
import warnings
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from noisy_run import ROWS, STEPS, Noisy, identical, run
from torch.utils.data import DataLoader, TensorDataset

from probgen.compile.tracing import Compiled
from probgen.infer.em import em
from probgen.infer.mcmc import PyroNUTS, mcmc
from probgen.infer.nuts_nutpie import Nutpie
from probgen.models.mixture import GaussianMixture
from probgen.train import checkpoint as disk
from probgen.train.compiled.policy import Engine
from probgen.train.compiled.step import CompiledStep
from probgen.train.data import InMemory
from probgen.train.history import FitWarning
from probgen.train.run import NonFiniteLoss, Run
from probgen.train.signals import Signals
from probgen.train.stages import Stage


@contextmanager
def signals_at(place, numbers, call, after=False):
    """Raises signals at the beginning or the end of a call of a function."""
    owner, name = place
    original, count = getattr(owner, name), [0]

    def sent():
        count[0] += 1
        for number in numbers if count[0] == call else ():
            signal.raise_signal(number)

    def wrapped(*args, **kwargs):
        if not after:
            sent()
        result = original(*args, **kwargs)
        if after:
            sent()
        return result

    setattr(owner, name, wrapped)
    try:
        yield count
    finally:
        setattr(owner, name, original)


PLACES = {
    "choice of rows": (InMemory, "choose"),
    "batch": (Run, "fetch"),
    "loss": (Noisy, "forward"),
    "update": (torch.optim.lr_scheduler.MultiStepLR, "step"),
    "record": (Run, "record"),
    "validation": (Run, "validate"),
    "averages": (Run, "swap"),
    "saving": (disk, "write"),
    "disk": (os, "fsync"),
    "compiled step": (CompiledStep, "__call__"),
    "end": (Engine, "close"),
}
LATER = 10  # a call of the loss in a step, after those that look whether it can be computed
SENT = {"once": [signal.SIGINT], "twice": [signal.SIGINT] * 2, "thrice": [signal.SIGINT] * 3}
EAGER = [(place, sent, after) for place in PLACES for sent in SENT for after in (False, True)]
COMPILED = [
    (place, sent, False)
    for place in ("loss", "compiled step", "averages", "disk")
    for sent in ("once", "twice")
]


@cache
def whole(compile=False):
    return run(compile=compile)


def interrupted(path, place, sent, after, **settings):
    """Whether the moment came."""
    call = {"end": 1, "loss": LATER}.get(place, 4)
    with signals_at(PLACES[place], SENT[sent], call, after) as count:
        try:
            run(path, **settings)
        except KeyboardInterrupt:
            assert sent != "once" or place in ("end", "saving", "disk")
    return count[0] >= call


@pytest.mark.table(quick=2)
@pytest.mark.parametrize(("place", "sent", "after"), EAGER)
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(place, sent, after, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    assert interrupted(tmp_path / "state", place, sent, after) or place == "compiled step"
    assert signal.getsignal(signal.SIGINT) is before
    assert [file.name for file in tmp_path.iterdir()] == ["state"]
    identical(whole(), run(tmp_path / "state", resume=True))


@pytest.mark.slow
@pytest.mark.parametrize(("place", "sent", "after"), COMPILED)
def test_so_does_a_compiled_one(place, sent, after, tmp_path, monkeypatch):
    monkeypatch.setattr(Compiled, "build", lambda self, *examples, **how: self)  # replayed
    assert interrupted(tmp_path / "state", place, sent, after, compile=True)
    identical(whole(), run(tmp_path / "state", resume=True, compile=True), exact=False)


def raised_after_the_second(sent):
    """Ctrl-C once ends training, and twice the script."""
    return nullcontext() if sent == "once" else pytest.raises(KeyboardInterrupt)


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("sent", SENT)
def test_batches_of_a_loader_go_on_as_well(sent, tmp_path):
    def loader():
        return DataLoader(TensorDataset(ROWS), batch_size=8, shuffle=True)

    with signals_at(PLACES["loss"], SENT[sent], 7), raised_after_the_second(sent):
        _, history = run(tmp_path / "state", data=loader(), batch_size=None)
        assert history.stopped == "interrupted"
    identical(
        run(data=loader(), batch_size=None),
        run(tmp_path / "state", resume=True, data=loader(), batch_size=None),
    )


def test_an_interrupt_leaves_the_average_and_the_history():
    with signals_at(PLACES["loss"], SENT["once"], LATER):
        gen, history = run()
    short, _ = run(steps=history.steps)
    assert history.interrupted and 3 <= history.steps < STEPS
    torch.testing.assert_close(dict(gen.state_dict()), dict(short.state_dict()), rtol=0, atol=0)


def stopped_at(step):
    """A callback that stands for Ctrl-C."""

    def stop(run):
        if run.step == step:
            signal.raise_signal(signal.SIGINT)

    return stop


def test_an_interrupted_run_says_where_it_stands_and_the_advice_works(tmp_path):
    match = "interrupted at step 3 of 12, before.*resume=True continues"
    with pytest.warns(FitWarning, match=match):
        _, history = run(tmp_path / "state", callbacks=[stopped_at(3)])
    assert history.interrupted and history.verdict is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        identical(whole(), run(tmp_path / "state", resume=True))


def test_without_a_file_it_says_what_is_lost_and_how_many_steps_are_left():
    match = "step 3 of 12.*are lost: the same call with steps=9 trains"
    with pytest.warns(FitWarning, match=match):
        run(callbacks=[stopped_at(3)])


def test_epochs_and_stages_are_told():
    stop = stopped_at(3)
    with pytest.warns(FitWarning, match=r"step 3, in epoch 1 of 5.*epochs=5 trains"):
        run(steps=None, epochs=5, callbacks=[stop])
    with pytest.warns(FitWarning, match=r"step 3 of 6, in stage 2 of 2.*from the 2\. on"):
        run(stages=[Stage(steps=2), Stage(steps=4)], callbacks=[stop])


def test_an_interrupt_between_stages_is_told():
    def start(gen):
        raise KeyboardInterrupt

    match = r"step 2 of 2, before stage 2 of 2.*from the 2\. on"
    with pytest.warns(FitWarning, match=match):
        _, history = run(stages=[Stage(steps=2), Stage(steps=4, start=start)])
    assert history.interrupted and history.steps == 2


def test_a_file_that_cannot_be_written_is_not_promised(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    def stop(run):
        if run.step == 2:
            monkeypatch.setattr("os.fsync", full)
            signal.raise_signal(signal.SIGINT)

    with pytest.warns(FitWarning) as told:
        run(tmp_path / "state", callbacks=[stop])
    assert "are lost" in str(told[-1].message) and "resume" not in str(told[-1].message)


def test_a_second_interrupt_ends_the_script_after_the_state_is_written(tmp_path):
    with (
        signals_at(PLACES["loss"], SENT["twice"], LATER),
        pytest.warns(FitWarning, match="resume=True continues"),
        pytest.raises(KeyboardInterrupt),
    ):
        run(tmp_path / "state")
    identical(whole(), run(tmp_path / "state", resume=True))


@pytest.mark.slow
def test_the_warning_is_seen_in_a_script_that_sets_no_filter(tmp_path):
    code = f"""
        import signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from noisy_run import run
        def stop(run):
            if run.step == 3:
                signal.raise_signal(signal.SIGINT)
        _, history = run({str(tmp_path / "state")!r}, callbacks=[stop])
        print(history.interrupted)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"
    assert done.stderr.count("FitWarning: interrupted at step 3 of 12") == 1


def test_a_failed_step_changes_nothing(tmp_path):
    """Cursor, random state and running means are those before the step.

    With the rows mended it is made as usual.
    """
    x = ROWS.clone()

    def spoil(run):
        if run.step == 5:
            x[:] = float("nan")

    with pytest.raises(NonFiniteLoss) as caught:
        run(tmp_path / "state", data=x, callbacks=[spoil])
    assert caught.value.history.steps == 5
    identical(whole(), run(tmp_path / "state", resume=True))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_handlers_of_the_program_are_called_between_steps(number):
    called, old = [], signal.getsignal(number)
    signal.signal(number, lambda *given: called.append(given[0]))
    try:
        with signals_at(PLACES["loss"], [number], LATER):
            _, history = run()
    finally:
        signal.signal(number, old)
    assert called == [number] and history.steps == STEPS


@pytest.mark.slow
def test_a_request_to_end_is_granted_after_the_step(tmp_path):
    code = f"""
        import signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_interrupts import LATER, PLACES, run, signals_at
        with signals_at(PLACES["loss"], [signal.SIGTERM], LATER):
            run({str(tmp_path / "state")!r})
        print("not reached")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGTERM and not done.stdout, done.stderr
    identical(whole(), run(tmp_path / "state", resume=True))


def test_signals_elsewhere_than_in_the_main_thread_are_left_alone():
    import threading

    found = []
    thread = threading.Thread(target=lambda: found.append(Signals().__enter__()._before))
    thread.start()
    thread.join()
    assert found == [{}]


@pytest.mark.parametrize("call", [1, 3])
def test_em_keeps_the_best_start_so_far(call):
    torch.manual_seed(0)
    x, gen = torch.randn(60, 2), GaussianMixture(components=2, dims=2)
    with signals_at((GaussianMixture, "initialize"), SENT["once"], call):
        if call == 1:
            with pytest.raises(KeyboardInterrupt):
                em(gen, x, n_init=5, seed=0)
            return
        with pytest.warns(UserWarning, match="interrupted in start 3 of 5"):
            found = em(gen, x, n_init=5, seed=0)
    fewer = GaussianMixture(components=2, dims=2)
    assert found.log_likelihood[-1] == em(fewer, x, n_init=2, seed=0).log_likelihood[-1]
    torch.testing.assert_close(dict(gen.state_dict()), dict(fewer.state_dict()), rtol=0, atol=0)


class Ended(BaseException):
    """What a handler of signals of the user's own may raise."""


@pytest.mark.parametrize("error", [Ended, SystemExit, ValueError])
def test_em_leaves_the_best_start_whatever_ends_it(error, monkeypatch):
    torch.manual_seed(0)
    x, gen = torch.randn(60, 2), GaussianMixture(components=2, dims=2)
    made = GaussianMixture.maximize
    steps = []

    def maximize(self, statistics):
        steps.append(1)
        if len(steps) == 13:  # amid the third start
            raise error
        made(self, statistics)

    monkeypatch.setattr(GaussianMixture, "maximize", maximize)
    with pytest.raises(error):
        em(gen, x, n_init=5, max_iter=5, tol=0.0, seed=0)
    fewer = GaussianMixture(components=2, dims=2)
    em(fewer, x, n_init=2, max_iter=5, tol=0.0, seed=0)
    torch.testing.assert_close(dict(gen.state_dict()), dict(fewer.state_dict()), rtol=0, atol=0)


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("sampler", [PyroNUTS(), Nutpie()])
def test_mcmc_keeps_the_draws_of_the_first_chain(sampler):
    if isinstance(sampler, Nutpie):
        pytest.importorskip("nutpie")

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    settings = {"draws": 500_000, "tune": 5, "seed": 0, "chains": 2, "progress": False}

    def stopping(log_density, example):
        chain = sampler(log_density, example)
        made = []

        def advance():
            made.append(0)
            if len(made) == 20:
                os.kill(os.getpid(), signal.SIGINT)

        return lambda start, seed, plan: chain(start, seed, plan._replace(advance=advance))

    with pytest.warns(UserWarning, match="draws of the first chain; those are kept"):
        found = mcmc(model, torch.ones(4), sampler=stopping, **settings)
    chains, draws = found.draws["mu"].shape
    assert chains == 1
    assert 0 < draws < settings["draws"]
    assert all(values.shape == (1, draws) for values in found.stats.values())


@pytest.mark.slow
def test_mcmc_keeps_the_chains_that_are_done():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    settings = {"draws": 5, "tune": 5, "seed": 0, "sampler": PyroNUTS(), "progress": False}
    whole = mcmc(model, torch.ones(4), chains=3, **settings)
    made = []

    def stopping(log_density, example):
        chain = PyroNUTS()(log_density, example)

        def walk(*given):
            made.append(given)
            if len(made) == 3:
                signal.raise_signal(signal.SIGINT)
            return chain(*given)

        return walk

    with pytest.warns(UserWarning, match="interrupted in chain 3 of 3"):
        found = mcmc(model, torch.ones(4), chains=3, **settings | {"sampler": stopping})
    assert torch.equal(found.draws["mu"], whole.draws["mu"][:2])
