"""Several processes train as one does: steps of several batches, shards, checkpoints of both."""

import hashlib
import json
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from forked import results
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.strategies import ModelParallelStrategy
from safetensors.torch import save_file
from scale_worker import Batched, fabric_of, taught, trained

import probgen as pg
from probgen.train import fully_sharded
from probgen.train.sharding import check_stages
from probgen.train.shards import free_folder, read_shards, remove_others, whole_like

WORKER = Path(__file__).with_name("scale_worker.py")
STRATEGIES = ("ddp", "sharded")


def near(values):
    return pytest.approx(values, rel=1e-4, abs=2e-5)


@pytest.fixture(scope="module")
def alone():
    """What one process finds, with the whole batch at once."""
    return trained(fabric_of("ddp", 1), batch_size=32)[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a checkpoint of one process for each strategy, under two names."""
    folder = tmp_path_factory.mktemp("runs")
    for strategy in STRATEGIES:
        own = folder / strategy
        own.mkdir()
        one = own / f"one-{strategy}.checkpoint"
        trained(fabric_of("ddp", 1), steps=7, batch_size=32, checkpoint=one, verdict=False)
        shutil.copy(one, own / f"odd-{strategy}.checkpoint")
    return folder


@pytest.fixture(scope="module")
def spawned(folder):
    """What the first of two processes found, by what they did and by their strategy."""
    asked = [(what, strategy) for what in ("curves", "resumed") for strategy in STRATEGIES]
    told = results(WORKER, folder, json.dumps([*asked, ("parts", "sharded")]))
    return {(what, strategy): found for what, strategy, found in told}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_several_processes_equal_one(strategy, alone, spawned):
    found = spawned["curves", strategy]
    for name in ("one", "several"):  # batches a step
        for series in ("loss", "norm", "validation", "values"):
            assert found[name][series] == near(alone[series]), (name, series)
        assert found[name]["kinds"] == ["Parameter"]
        assert found[name]["faults"] == alone["faults"]
    assert found["everywhere"][0] == found["everywhere"][1]  # the model is whole in both
    if strategy == "sharded":
        assert found["whole"] == [[7, 5], 4]
        for own, whole in found["bytes"].values():
            assert whole / 2 <= own < 0.65 * whole


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_runs_go_on_exactly_and_with_another_number_of_processes(strategy, alone, spawned, folder):
    found = spawned["resumed", strategy]
    whole, pieces = found["exact"]
    assert whole == pieces and len(whole) == 8
    assert found["longer"]["loss"] == near(alone["loss"])
    assert found["longer"]["values"] == near(alone["values"])
    (same,), (other,) = found["told"]
    assert "by 1 process, and goes on by 2: on the same rows in the same order" in same
    assert "let batch_size times accumulate be 16" in other

    own = folder / strategy
    two = own / f"{strategy}.checkpoint"
    shards = sorted(path.name for path in own.glob(f"{two.name}.shards*"))
    assert len(shards) == (strategy == "sharded")
    held = pg.load(two, into=Batched())
    with pytest.warns(match="by 2 processes, and goes on by 1"):
        gen, _, longer = trained(
            fabric_of("ddp", 1), seed=1, batch_size=32, checkpoint=two, resume=True, verdict=False
        )
    assert longer["loss"] == near(alone["loss"])
    assert longer["values"] == near(alone["values"])
    assert not list(own.glob(f"{two.name}.shards*"))  # the file is whole from here on
    assert all(
        held.state_dict()[name].shape == value.shape for name, value in gen.state_dict().items()
    )


@pytest.mark.slow
def test_sharded_games_averages_teachers_and_what_is_refused(spawned):
    found = spawned["parts", "sharded"]
    assert found["taught"] == near(taught(fabric_of("ddp", 1), 1))
    assert found["players"] == [True, True, 3]  # the same objects, moved, whole
    (infinite, stages, rows), kept = found["refused"]
    assert kept
    assert infinite.startswith("NonFiniteLoss: step 1: loss inf")
    assert "expected one stage with fully_sharded(), got 2" in stages
    assert "expected a row for each process at least, got 1 for 2 processes" in rows
    told, plain, same, drawn = found["refused files"]
    assert len(told) == 2 and "expected the 101 rows that" in told[0] and "got others" in told[1]
    assert (plain, same, drawn) == ([True], [True], 4)


@pytest.mark.parametrize("timeout", [5, None, timedelta(0), timedelta(seconds=-1)])
def test_what_is_no_time_limit_is_refused(timeout):
    with pytest.raises((TypeError, ValueError), match=r"timeout.*pass datetime\.timedelta"):
        fully_sharded(timeout=timeout)


def test_a_time_limit_is_that_of_the_strategy():
    assert fully_sharded(timeout=timedelta(minutes=5))._timeout == timedelta(minutes=5)
    assert fully_sharded()._timeout == timedelta(minutes=30)


def test_other_strategies_that_shard_are_refused():
    fabric = Fabric(accelerator="cpu", devices=2, strategy=ModelParallelStrategy(lambda m, _: m))
    with pytest.raises(ValueError, match=r"strategy=probgen\.train\.fully_sharded\(\)"):
        check_stages(fabric, 2)


def test_a_scaled_loss_is_refused_where_gradients_are_sharded():
    scaler = torch.amp.GradScaler("cpu")
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    fabric = Fabric(accelerator="cpu", devices=2, strategy=fully_sharded(), plugins=plugin)
    with pytest.raises(ValueError, match="pass precision='bf16-mixed'"):
        check_stages(fabric, 2)


def test_shards_that_are_missing_or_damaged_are_told_of(tmp_path):
    folder = tmp_path / "run.shards3"
    folder.mkdir()
    save_file({"module/a": torch.arange(3.0)}, folder / "a.safetensors")
    digest = hashlib.sha256((folder / "a.safetensors").read_bytes()).hexdigest()
    tensors = {"module/a": [[3], "float32"]}
    told = {"folder": "run.shards3", "files": {"a.safetensors": digest}, "tensors": tensors}
    assert read_shards(tmp_path / "run", told, whole_like)["module/a"].tolist() == [0.0, 1.0, 2.0]
    cases = {
        "found no file": told | {"files": {"b.safetensors": digest}},
        "is damaged: its checksum": told | {"files": {"a.safetensors": "0" * 64}},
        "tells of no shards": {"folder": 3},
        "cannot read": told | {"tensors": {"module/b": [[3], "float32"]}},
    }
    for words, wrong in cases.items():
        with pytest.raises(pg.CheckpointError, match=words):
            read_shards(tmp_path / "run", wrong, whole_like)


def test_shards_are_written_beside_those_that_count(tmp_path):
    path = tmp_path / "run"
    assert free_folder(path, 3) == "run.shards3"
    for name in ("run.shards3", "run.shards2", "running.shards1"):
        (tmp_path / name).mkdir()
    assert free_folder(path, 3) == "run.shards3-again"
    remove_others(path, "run.shards3")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["run.shards3", "running.shards1"]
