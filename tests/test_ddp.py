"""Two processes follow the loss curve of one process with the doubled batch.

Early stopping included.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = str(Path(__file__).with_name("ddp_worker.py"))


def run(command):
    output = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=300, check=False
    )
    lines = [line for line in output.stdout.splitlines() if line.startswith("RESULT")]
    assert lines, output.stderr[-2000:]
    return json.loads(lines[0].removeprefix("RESULT"))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [[], ["weighted"]], ids=["rows", "rows with weights"])
def test_two_processes_equal_one(rows):
    loss, validation, stopped = run([WORKER, "1", *rows])
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", WORKER, "2"]
    both = run([*two, *rows])
    assert "no improvement" in stopped and len(loss) < 300
    assert both[2] == stopped and len(both[0]) == len(loss)
    assert both[0] == pytest.approx(loss, rel=1e-5)
    assert [value for _, value in both[1]] == pytest.approx(
        [value for _, value in validation], rel=1e-5
    )


@pytest.mark.slow
def test_every_process_watches_for_parameters_without_gradient():
    alone = run([WORKER, "1", "watched"])
    both = run(
        [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            WORKER,
            "2",
            "watched",
        ]
    )
    assert alone == both == [["unused"], 1]


@pytest.mark.slow
def test_averages_and_teachers_are_the_same_in_every_process():
    alone = run([WORKER, "1", "taught"])
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", WORKER, "2"]
    both = run([*two, "taught"])
    assert both[0] == pytest.approx(alone[0], rel=1e-5)
    assert both[1] == pytest.approx(alone[1], rel=1e-5)
    assert alone[2] == both[2] == ["model"]


@pytest.mark.slow
def test_a_run_of_two_processes_is_continued_exactly():
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", WORKER, "2"]
    whole, pieces, steps, told = run([*two, "resumed"])
    assert len(whole) == 12 and pieces == whole
    assert steps == 14 and told == [0, 1]
