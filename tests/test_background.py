"""What compiles in the background ends with whoever started it, and leaves nothing behind."""

import os
import tempfile
import time
from pathlib import Path

import pytest
import torch

from probgen.compile import background
from probgen.compile.background import Background
from probgen.compile.tracing import Compiled, record_operations

# what the other process does before it is stopped, in place of compiling
WORK = {
    "alone": "",
    "with temporary files": "tempfile.mkdtemp(); tempfile.mkstemp();",
    "with a compiler": "subprocess.Popen(['sleep', '1000']);",
}
COMMAND = (
    "import pathlib, subprocess, sys, tempfile, time;"
    "{} (pathlib.Path(sys.argv[1]).parent / 'begun').touch(); time.sleep(1000)"
)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="counts processes of a group")


def members(group: int) -> list[str]:
    """Processes of a group that have not ended."""
    states = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            states[place.parent.name] = place.read_text().rpartition(")")[2].split()
        except OSError:
            continue
    return [pid for pid, (state, _, of, *_) in states.items() if int(of) == group and state != "Z"]


@pytest.mark.parametrize("work", WORK)
def test_a_compilation_that_is_stopped_leaves_nothing(work, tmp_path, monkeypatch):
    x = torch.ones(3)
    graph = Compiled(
        record_operations(torch.exp, x)
    )  # torch makes its folder before others are counted
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(background, "COMMAND", COMMAND.format(WORK[work]))
    running = Background(graph, x)
    until = time.monotonic() + 60
    while not list(tmp_path.rglob("begun")) and time.monotonic() < until:
        time.sleep(0.01)
    assert not running.done() and list(tmp_path.rglob("begun"))
    group = running._process.pid
    assert len(members(group)) == 1 + (work == "with a compiler")
    running.stop()
    while members(group) and time.monotonic() < until:
        time.sleep(0.01)
    assert not members(group) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("chosen", [None, "default", "own"])
def test_torchs_cache_stays_where_the_user_has_put_it(chosen, tmp_path, monkeypatch):
    default = background.private_torch.default_cache_folder()
    given = {None: None, "default": default, "own": str(tmp_path)}[chosen]
    monkeypatch.delenv(background.TORCHS, raising=False)
    if given:
        monkeypatch.setenv(background.TORCHS, given)
    found = background._environment(str(tmp_path)).get(background.TORCHS)
    assert found == (given if chosen == "own" else None)
