"""A signal at any moment of a run, and the run goes on from its file as if there had been none."""

import os
import signal
import subprocess
import sys
import textwrap
from contextlib import contextmanager

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from probgen.core.graphs.graph import Compiled
from probgen.core.module import DistributionModule
from probgen.train import checkpoint as disk
from probgen.train.compile import Step
from probgen.train.data import InMemory
from probgen.train.engine import Engine
from probgen.train.fit import adam, fit
from probgen.train.run import NonFiniteLoss, Run
from probgen.train.signals import Signals


class Noisy(DistributionModule):
    """Dropout makes every draw count, batch normalization changes buffers in every step."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(2))
        self.net = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.3), nn.Linear(2, 2))

    def forward(self, context=None):
        return dist.Normal(self.loc + self.net(torch.ones(4, 2) * self.loc).mean(0), 1.0).to_event(1)


ROWS = torch.randn(30, 2, generator=torch.Generator().manual_seed(0)) + 1
STEPS = 12


def run(path=None, resume=False, data=ROWS, **settings):
    torch.manual_seed(1)
    gen = Noisy()
    usual = {
        "steps": STEPS,
        "batch_size": 8,
        "ema": 0.9,
        "clip": 1.0,
        "validation": ROWS[:8],
        "validate_every": 3,
        "optimizer": adam(0.05),
        "scheduler": lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [5, 9], 0.5),
        "checkpoint_every": 4,
        "seed": 3,
        "compile": False,
    }
    usual = usual | settings | {"verdict": False, "progress": False}
    return gen, fit(gen, data, checkpoint=path, resume=resume, **usual)


def identical(one, other, exact=True):
    (gen, history), (again, resumed) = one, other
    near = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 1e-5}
    assert history.steps == resumed.steps
    assert [step for step, _ in history.validation] == [step for step, _ in resumed.validation]
    torch.testing.assert_close(torch.tensor(history.loss), torch.tensor(resumed.loss), **near)
    torch.testing.assert_close(torch.tensor(history.validation), torch.tensor(resumed.validation), **near)
    torch.testing.assert_close(dict(gen.state_dict()), dict(again.state_dict()), **near)


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
    "compiled step": (Step, "__call__"),
    "end": (Engine, "close"),
}
SENT = {"once": [signal.SIGINT], "twice": [signal.SIGINT] * 2, "thrice": [signal.SIGINT] * 3}


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("sent", SENT)
@pytest.mark.parametrize("place", PLACES)
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(place, sent, after, compile, tmp_path, monkeypatch):
    if compile:
        monkeypatch.setattr(Compiled, "build", lambda self, *examples, **how: self)
    before = signal.getsignal(signal.SIGINT)
    call = 1 if place == "end" else 4
    with signals_at(PLACES[place], SENT[sent], call, after) as count:
        try:
            run(tmp_path / "state", compile=compile)
        except KeyboardInterrupt:
            assert sent != "once" or place in ("end", "saving", "disk")
    assert signal.getsignal(signal.SIGINT) is before
    assert [file.name for file in tmp_path.iterdir()] == ["state"]
    if count[0] < call:
        assert place == "compiled step"
        return
    identical(run(compile=compile), run(tmp_path / "state", resume=True, compile=compile), exact=not compile)


@pytest.mark.parametrize("sent", SENT)
def test_batches_of_a_loader_go_on_as_well(sent, tmp_path):
    def loader():
        return DataLoader(TensorDataset(ROWS), batch_size=8, shuffle=True)

    with signals_at(PLACES["loss"], SENT[sent], 7):
        _, history = run(tmp_path / "state", data=loader(), batch_size=None)
    assert history.stopped == "interrupted"
    identical(
        run(data=loader(), batch_size=None), run(tmp_path / "state", resume=True, data=loader(), batch_size=None)
    )


def test_an_interrupt_leaves_the_average_and_the_history():
    with signals_at(PLACES["loss"], SENT["twice"], 7):
        gen, history = run()
    whole, _ = run(steps=history.steps)
    assert history.stopped == "interrupted" and 3 <= history.steps < STEPS
    torch.testing.assert_close(dict(gen.state_dict()), dict(whole.state_dict()), rtol=0, atol=0)


def test_a_failed_step_changes_nothing(tmp_path):
    """Cursor, random state and running means are those before the step, which fails again when it is repeated."""
    x, path, seen = ROWS.clone(), tmp_path / "state", []

    def spoil(run):
        seen.append({name: value.clone() for name, value in run.gen.state_dict().items()})
        if run.step == 5:
            x[:] = float("nan")

    for resume in (False, True):
        with pytest.raises(NonFiniteLoss) as caught:
            run(path, resume, x if not resume else ROWS, callbacks=[spoil], ema=None, optimizer=failing)
        assert caught.value.history.steps == 5
        tensors, _ = disk.read(path)
        for name, value in seen[4].items():
            assert torch.equal(tensors[f"module/gen.{name}"], value)


def failing(parameters):
    """Adam; it is the data that fail."""
    return adam(0.05)(parameters)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_handlers_of_the_program_are_called_between_steps(number):
    called, old = [], signal.getsignal(number)
    signal.signal(number, lambda *given: called.append(given[0]))
    try:
        with signals_at(PLACES["loss"], [number], 4):
            _, history = run()
    finally:
        signal.signal(number, old)
    assert called == [number] and history.steps == STEPS


def test_a_request_to_end_is_granted_after_the_step(tmp_path):
    code = f"""
        import signal, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from test_interrupts import PLACES, run, signals_at
        with signals_at(PLACES["loss"], [signal.SIGTERM], 6):
            run({str(tmp_path / "state")!r})
        print("not reached")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGTERM and not done.stdout, done.stderr
    identical(run(), run(tmp_path / "state", resume=True))


def test_signals_elsewhere_than_in_the_main_thread_are_left_alone():
    import threading

    found = []
    thread = threading.Thread(target=lambda: found.append(Signals().__enter__()._before))
    thread.start()
    thread.join()
    assert found == [{}]
