"""What happens in one process of several ends all of them, after the same step, for one reason."""

import json
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from probgen.train.agreement import ROOM, STEP, Agreement, Notice, StopAgreed, agreeing
from probgen.train.stream import BatchStream

WORKER = str(Path(__file__).with_name("agreement_worker.py"))
BAD = ("ValueError", "process 1: these rows are bad")
STEPS, AT = 8, 5
PATIENT = 300  # seconds

RETURNED = {  # case: why it stopped, and after how many steps
    "stop": ("process 1: time is up", AT),
    "stop of all": ("time is up", AT),
    "stop with norm": ("process 1: time is up", AT),
    "stop with loader": ("process 1: time is up", AT),
    "stops at other steps": ("process 1: early", 4),
    "stop compiled": ("process 1: time is up", AT),
    "Ctrl-C": ("interrupted", AT),
    "Ctrl-C in a step": ("interrupted", AT),
    "patience": ("no improvement in 2 validations", 3),
    "batches end": ("2 epochs done", 6),
    "loader ends": ("2 epochs done", 6),
    "write of the first": ("8 steps done", STEPS),
    "write of another": ("8 steps done", STEPS),
    "stop of a stage": ("7 steps done", 7),
}
RAISED = {  # case: the error, a part of its text, and the step that is kept
    "Ctrl-C twice": ("KeyboardInterrupt", "", AT),
    "Ctrl-C before": ("KeyboardInterrupt", "", None),
    "model": (*BAD, 4),
    "model with norm": (*BAD, 4),
    "validation": (*BAD, 3),
    "callback": (*BAD, AT),
    "callback of the first": ("ValueError", "process 0: these rows are bad", AT),
    "callback after the last": (*BAD, STEPS),
    "error beside a stop": (*BAD, AT),
    "loss not finite": ("NonFiniteLoss", "step 5: loss nan", 4),
    "batches fail": ("OSError", "process 1: the disk is gone", 1),
    "features": ("ValueError", "process 1: expected x of shape (N, 3), got (64, 2)", None),
    "rows": ("ValueError", "got [(64, 3)] in process 0 and [(40, 3)] in process 1", None),
    "content": ("ValueError", "the same checksum of data in every process", None),
    "arguments": ("ValueError", "process 1: expected steps >= 1, got -3", None),
    "lengths": ("ValueError", "validate_every in every process, got 2 in process 0 and 3", None),
    "parameters": ("ValueError", "shape of encoder.net.0.weight in every process", None),
    "start": (*BAD, None),
    "second stage": (*BAD, 4),
}
EXACT = (  # that are continued as if nothing had happened
    "stop",
    "stop with norm",
    "stop with loader",
    "Ctrl-C",
    "Ctrl-C in a step",
    "Ctrl-C twice",
    "model",
    "callback",
    "loss not finite",
    "write of the first",
    "write of another",
)


GONE = ("SIGTERM", "killed", "gradient", "asleep")  # after which the others go on alone, if at all


@cache
def found():
    """What each process tells of each case, and how those of a case ended that some do not survive."""
    cases = [
        "whole",
        "whole with norm",
        "whole loader",
        "steps",
        "one step more",
        *RETURNED,
        *RAISED,
    ]
    groups = [[PATIENT, *(f"{name}+" if name in EXACT else name for name in cases)]]
    groups += [[15 if name == "asleep" else PATIENT, name] for name in GONE]
    output = subprocess.run(
        [sys.executable, WORKER, json.dumps(groups)],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    lines = [line for line in output.stdout.splitlines() if line.startswith("RESULT")]
    results = [json.loads(line.removeprefix("RESULT")) for line in lines]
    assert len(results) == len(groups) and results[0][1] == [0, 0], output.stderr[-3000:]
    told = {name: [process[name] for process in results[0][0]] for name in results[0][0][0]}
    return told, dict(zip(GONE, results[1:], strict=True))


def of(name):
    return found()[0][name]


@pytest.mark.slow
@pytest.mark.parametrize("name", RETURNED)
def test_all_processes_stop_for_one_reason_after_the_same_step(name):
    reason, steps = RETURNED[name]
    for told in of(name):
        assert told["end"] == "returned", told["text"]
        assert told["stopped"] == reason
        assert len(told["loss"]) == steps
    first, other = of(name)
    assert first["loss"] == other["loss"] and first["validation"] == other["validation"]


@pytest.mark.slow
@pytest.mark.parametrize("name", RAISED)
def test_an_error_of_one_process_is_that_of_all(name):
    kind, text, kept = RAISED[name]
    first, other = of(name)
    assert (first["end"], first["text"]) == (other["end"], other["text"])
    assert first["end"] == kind and text in first["text"]
    assert name != "loss not finite" or "process 0" not in first["text"]
    assert first.get("kept") == kept


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_the_last_whole_step_is_continued_exactly(name):
    kind = next((kind for kind in (" with norm", " loader") if name.endswith(kind)), "")
    whole = of(f"whole{kind}")
    for told, usual in zip(of(name), whole, strict=True):
        again = told["resumed"]
        assert again["loss"] == usual["loss"] and len(usual["loss"]) == STEPS
        assert not again["warned"]


@pytest.mark.slow
def test_warnings_that_are_for_all_are_given_once():
    for name in ("Ctrl-C", "loader ends", "write of the first", "write of another"):
        first, other = of(name)
        assert first["warned"] and not other["warned"]
    assert "some processes have fewer batches" in of("loader ends")[0]["warned"][0]
    assert "process 1: cannot write" in of("write of another")[0]["warned"][0]


@pytest.mark.slow
def test_a_step_has_two_small_reductions_beside_those_of_gradients():
    pairs = zip(of("steps"), of("one step more"), strict=True)
    assert [more["reductions"] - less["reductions"] for less, more in pairs] == [2, 2]


@pytest.mark.slow
def test_a_process_that_is_ended_leaves_the_others_interrupted():
    (first, _), codes = found()[1]["SIGTERM"]
    assert codes == [0, -signal.SIGTERM]
    assert first["SIGTERM"]["stopped"] == "interrupted" and first["SIGTERM"]["kept"] == AT


@pytest.mark.slow
@pytest.mark.parametrize("name", ["killed", "gradient", "asleep"])
def test_a_process_that_cannot_tell_holds_nobody_up_for_ever(name):
    (first, other), _ = found()[1][name]
    assert first[name]["end"] == "RuntimeError" and first[name]["kept"] == 4
    assert "another process has ended or has not answered within" in first[name]["text"]
    assert "timeout=timedelta(" in first[name]["text"]
    if name == "gradient":
        assert other[name]["text"] == "no gradient today"


# -- one process, or one after the other


def test_one_process_agrees_with_itself():
    agreement = Agreement()
    error = ValueError("no")
    assert agreement.alone and agreement.first and agreement.whole
    assert agreement.meet(STEP, range(ROOM + 3)) == list(range(ROOM + 3))
    assert agreement.gather("this") == ["this"] and agreement.from_first(3) == 3
    assert agreement.tell(error) is error and agreement.stop("done") == "done"
    with pytest.raises(ValueError, match="no"), agreeing(None) as alone, alone.guard():
        raise error


@pytest.mark.parametrize(
    ("said", "kind", "text"),
    [
        ([None, ("stop", "late")], StopAgreed, "process 1: late"),
        ([("stop", "done"), ("stop", "done")], StopAgreed, "done"),
        ([("stop", "early"), ("interrupt", "")], KeyboardInterrupt, ""),
        ([("interrupt", ""), ("failure", "bad")], LookupError, "process 1: bad"),
        ([("failure", "bad"), ("failure", "bad")], LookupError, "bad"),
        ([("failure", "worse"), ("failure", "bad")], LookupError, "process 0: worse"),
    ],
    ids=str,
)
def test_of_several_reasons_one_counts(said, kind, text):
    kinds = [("builtins", name) for name in ("KeyError", "LookupError", "Exception")]
    told = [None if each is None else Notice(*each, kinds, 0) for each in said]
    agreed = Agreement()._decided(told, None)
    assert type(agreed) is kind and str(agreed) == text


def test_a_batch_is_put_back_without_reading_all_before_it_again():
    reads = []

    class Counted:
        def __iter__(self):
            for number in range(4):
                reads.append(number)
                yield (float(number),)

    stream = BatchStream(Counted())
    given = [stream.choose()[0] for _ in range(2)]
    for _ in range(2):  # in the middle of an epoch, and at its end
        cursor = stream.cursor()
        batch = stream.choose()[0]
        stream.seek(cursor)
        assert stream.cursor()["position"] == cursor["position"]
        assert stream.choose()[0] == batch
        given.append(batch)
    assert stream.epoch == 1 and reads == [0, 1, 2, 3]
    assert [part for (part,) in given] == [0.0, 1.0, 2.0, 3.0]
