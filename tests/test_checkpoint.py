"""States on disk: what is written is read back; what is damaged, foreign or half written is refused."""

import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from probgen.train.checkpoint import CheckpointError, load, read, save, write


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "model.safetensors"


def test_round_trip_of_every_dtype(path):
    tensors = {
        "a": torch.randn(3, 4),
        "b": torch.tensor(7),
        "c": torch.zeros(0),
        "d": torch.randn(2).double(),
        "e": torch.ones(3, dtype=torch.bfloat16),
        "f": torch.tensor([True]),
    }
    tensors["shared"] = tensors["a"].T
    write(path, tensors, {"step": 3, "nested": [1, {"x": 0.1}]})
    back, metadata = read(path)
    assert metadata == {"step": 3, "nested": [1, {"x": 0.1}]}
    for name, value in tensors.items():
        assert back[name].dtype == value.dtype and torch.equal(back[name], value)


def test_every_flipped_or_missing_byte_is_noticed(path):
    write(path, {"a": torch.randn(50)}, {"step": 1})
    whole = path.read_bytes()
    for position in (9, len(whole) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"damaged|was not saved here"):
            read(path)
    for length in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="damaged"):
            read(path)


def test_a_failed_write_keeps_the_old_file(path, monkeypatch):
    write(path, {"a": torch.ones(2)}, {})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        write(path, {"a": torch.zeros(2)}, {})
    assert read(path)[0]["a"].tolist() == [1, 1]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_foreign_files_are_refused(path):
    path.parent.mkdir()
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="was not saved here"):
        read(path)
    with pytest.raises(CheckpointError, match="no file"):
        read(path.with_name("other"))


def test_load_names_all_differences_and_leaves_the_module_alone(path):
    save(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), path)
    other = nn.Sequential(nn.Linear(2, 4))
    before = [p.clone() for p in other.parameters()]
    with pytest.raises(CheckpointError, match=r"unexpected 1.weight.*0.weight: expected shape \(4, 2\), got \(3, 2\)"):
        load(other, path)
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))


def test_load_brings_back_the_same_function(path):
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    module(torch.randn(8, 2))
    save(module, path)
    again = load(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), path)
    x = torch.randn(4, 2)
    assert torch.equal(module.eval()(x), again.eval()(x))
