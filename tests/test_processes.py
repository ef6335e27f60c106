"""Processes that share files, and imports that were interrupted.

Nothing is mixed, damaged or broken.
"""

import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

import probgen as pg
from probgen.libraries import load, uninterrupted
from probgen.train import files
from probgen.train.checkpoint import CheckpointError

pytestmark = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="forks processes"
)
FILE = Path(__file__).parents[1] / "benchmarks" / "robustness" / "processes.py"
spec = importlib.util.spec_from_file_location("robustness_processes", FILE)
robustness = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = robustness
spec.loader.exec_module(robustness)

QUIET = {"progress": False, "compile": False, "verdict": False}
COUNTS = {
    "writers and a reader of one file": 40,
    "runs that want one checkpoint": 4,
    "processes that share the cache": 60,
}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """What the scripts set for their processes ends with the test."""
    for name in (robustness.cache.FOLDER, robustness.cache.LIMIT):
        monkeypatch.setenv(name, os.environ.get(name, ""))


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("kind", COUNTS)
def test_shared_files_are_whole_and_everyone_gets_an_answer(kind):
    found = robustness.events(kind, COUNTS[kind])
    print(found.row(kind))
    assert +found.outcomes == Counter()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "at"),
    [
        ("import", 100),
        ("fit", 60),
    ],
)
def test_after_an_interrupted_import_a_process_imports_and_fits(where, at):
    command = [sys.executable, "-c", robustness.FIT, str(at), where]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert found.stdout == "interrupted 2 steps done\n", found.stderr


def test_an_import_is_whole_before_ctrl_c_is_seen(tmp_path, monkeypatch):
    text = "import signal\nsignal.raise_signal(signal.SIGINT)\nvalue = 1\n"
    (tmp_path / "interrupted_library.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        load("interrupted_library")
    assert sys.modules.pop("interrupted_library").value == 1
    with pytest.raises(ModuleNotFoundError), uninterrupted():
        load("no_such_library")
    assert signal.getsignal(signal.SIGINT) is before


def training(path, pipe):
    """A run in another process, which waits after its first step."""
    torch.set_num_threads(1)

    def wait(run):
        pipe.send(run.step)
        pipe.recv()

    pg.fit(mixture(), rows(), steps=2, checkpoint=path, callbacks=[wait], **QUIET)


def mixture():
    return pg.GaussianMixture(components=2, dims=2)


def rows():
    return torch.randn(16, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
def test_a_checkpoint_of_a_live_run_is_refused_and_of_a_dead_one_resumed(tmp_path):
    path = tmp_path / "new" / "run"
    alone = multiprocessing.get_context(
        "spawn"
    )  # a fork may have no gradients: autograd has threads
    here, there = alone.Pipe()
    other = alone.Process(target=training, args=(path, there), daemon=True)
    other.start()
    assert here.poll(120) and here.recv() == 1
    expected = (
        rf"expected a checkpoint that no other run writes, got {path}, process {other.pid} writes "
        "it; wait until that run ends, or choose another path"
    )
    for resume in (False, True):
        with pytest.raises(CheckpointError, match=expected):
            pg.fit(mixture(), rows(), steps=3, checkpoint=path, resume=resume, **QUIET)
    elsewhere = tmp_path / "other"  # as the error says
    assert pg.fit(mixture(), rows(), steps=1, checkpoint=elsewhere, **QUIET).steps == 1
    other.kill()
    other.join()
    assert pg.fit(mixture(), rows(), steps=3, checkpoint=path, resume=True, **QUIET).steps == 3
    assert [file.name for file in path.parent.iterdir()] == ["run"]


def test_two_runs_of_one_process_do_not_write_one_file_either(tmp_path):
    path = tmp_path / "run"

    def again(run):
        with pytest.raises(CheckpointError, match=f"process {os.getpid()} writes it"):
            pg.fit(mixture(), rows(), steps=1, checkpoint=path, resume=True, **QUIET)

    history = pg.fit(mixture(), rows(), steps=1, checkpoint=path, callbacks=[again], **QUIET)
    assert history.steps == 1


@pytest.mark.parametrize("obstacle", ["no locks", "a closed folder"])
def test_where_files_cannot_be_locked_runs_go_on_without(obstacle, tmp_path, monkeypatch):
    if obstacle == "no locks":
        import fcntl

        monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(95, "no")))
    else:
        monkeypatch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(PermissionError()))
    with files.held(tmp_path / "run"):
        pass
    monkeypatch.undo()
    with files.held(tmp_path / "run"), pytest.raises(files.Held), files.held(tmp_path / "run"):
        pass
