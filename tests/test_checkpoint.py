"""States on disk: what is written is read back.

What is damaged, foreign or half written is refused.
"""

import os
import threading
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from probgen.train.checkpoint import CheckpointError, read, write
from probgen.train.files import _lock, _prefix
from probgen.train.packing import pack, unpack
from probgen.train.saved import load, save


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


@pytest.mark.slow
def test_every_flipped_bit_and_missing_byte_is_noticed(path):
    write(path, {"a": torch.randn(9)}, {"lr": 0.001})
    whole = path.read_bytes()
    for position in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"damaged|was not saved here"):
            read(path)
    for length in range(len(whole)):
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


def header(path, **entries):
    save_file({"a": torch.ones(1)}, path, entries)


def raw(path, text):
    path.write_bytes(len(text).to_bytes(8, "little") + text)


FOREIGN = {
    "nothing": (lambda p: None, "no file"),
    "a folder": (lambda p: p.mkdir(), "no file"),
    "a pipe": (lambda p: os.mkfifo(p), "no file"),
    "empty": (lambda p: p.write_bytes(b""), "damaged"),
    "text": (lambda p: p.write_text("{}"), "damaged"),
    "a pickle": (lambda p: torch.save({"a": torch.ones(1)}, p), "damaged"),
    "safetensors of others": (lambda p: save_file({"a": torch.ones(1)}, p), "was not saved here"),
    "a later format": (lambda p: header(p, format="probgen-9"), "later version"),
    "no checksum": (lambda p: header(p, format="probgen-2"), "damaged"),
    "no number": (lambda p: header(p, format="probgen-1", checksum="x", metadata="{}"), "damaged"),
    "a list": (lambda p: raw(p, b"[]"), "damaged"),
    "metadata that are text": (lambda p: raw(p, b'{"__metadata__": "x"}'), "damaged"),
    "depth": (lambda p: raw(p, b"[" * 100_000), "damaged"),
    "a huge header": (lambda p: p.write_bytes(b"\xff" * 8 + b"{}"), "damaged"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_are_refused(kind, path):
    path.parent.mkdir()
    make, text = FOREIGN[kind]
    make(path)
    with pytest.raises(CheckpointError, match=text):
        read(path)


def test_a_link_is_written_through_and_permissions_are_kept(path):
    path.parent.mkdir()
    link = path.with_name("link")
    link.symlink_to(path)
    old = os.umask(0o027)
    try:
        write(link, {"a": torch.ones(1)}, {})
    finally:
        os.umask(old)
    assert link.is_symlink() and path.stat().st_mode & 0o777 == 0o640
    path.chmod(0o604)
    write(link, {"a": torch.zeros(1)}, {})
    assert (
        link.is_symlink() and path.stat().st_mode & 0o777 == 0o604 and not read(path)[0]["a"].item()
    )


def test_long_names_and_what_a_killed_writer_left(path):
    path = path.with_name("n" * 255)
    write(path, {"a": torch.ones(1)}, {})
    killed, at_work = (
        path.with_name(f"{_prefix(path)}{name}.part") for name in ("killed", "at_work")
    )
    killed.touch()
    with at_work.open("w") as other:
        assert _lock(other.fileno())
        write(path, {"a": torch.ones(1)}, {})
        assert sorted(file.name for file in path.parent.iterdir()) == sorted(
            [at_work.name, path.name]
        )


def test_what_a_file_cannot_hold_is_refused_by_name(path):
    for value in (torch.ones(2).to_sparse(), torch.ones(2, device="meta"), 3.0):
        with pytest.raises(CheckpointError, match="expected b to be a dense tensor"):
            write(path, {"b": value}, {})
    assert not path.parent.exists()


VALUES = {
    "numbers": [1, 2.5, True, None, 2**80, float("inf"), 1e-300, 3 + 4j],
    "containers": {"a": (1, [2, (3,)]), 3: {4.5: {5, 6}}, (7, 8): frozenset([9])},
    "counters": Counter({3: 2, "b": 1}),
    "ordered": OrderedDict([(2, "b"), (1, "a")]),
    "tensors": {"x": torch.arange(3), "lr": torch.tensor(0.1, dtype=torch.float64)},
    "numpy": [np.float32(0.1), np.int64(3), np.bool_(True), np.arange(4.0).reshape(2, 2)],
    "of torch": [torch.float64, torch.device("cpu")],
}


def alike(one, other):
    if isinstance(one, dict):
        return (
            type(one) is type(other)
            and [*one] == [*other]
            and all(alike(one[key], other[key]) for key in one)
        )
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, torch.Tensor | np.ndarray):
        return type(one) is type(other) and one.dtype == other.dtype and np.array_equal(one, other)
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("kind", VALUES)
def test_python_state_comes_back_of_the_types_that_it_had(kind, path):
    tensors = {}
    write(path, tensors, {"packed": pack(VALUES[kind], "state", tensors)})
    tensors, metadata = read(path)
    assert alike(VALUES[kind], unpack(metadata["packed"], tensors))


@pytest.mark.parametrize(
    "value", [len, object(), {"x": [len]}, type("Float", (float,), {})(1.0), torch.Generator()]
)
def test_other_python_state_is_refused_by_name(value):
    with pytest.raises(CheckpointError, match=r"expected schedule(\.x\.0)? to be numbers"):
        pack(value, "schedule", {})


def test_a_reader_beside_a_writer_reads_old_or_new(path):
    write(path, {"a": torch.zeros(20_000)}, {"step": 0})
    done = threading.Event()

    def rewrite():
        for step in range(1, 60):
            write(path, {"a": torch.full((20_000,), float(step))}, {"step": step})
        done.set()

    writer = threading.Thread(target=rewrite)
    writer.start()
    while not done.is_set():
        tensors, metadata = read(path)
        assert (tensors["a"] == metadata["step"]).all()
    writer.join()


def test_load_names_all_differences_and_leaves_the_module_alone(path):
    save(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), path)
    other = nn.Sequential(nn.Linear(2, 4))
    before = [p.clone() for p in other.parameters()]
    with pytest.raises(
        CheckpointError,
        match=r"the model: expected 2 entries, got 1 entries; \[0\].out_features: expected 3, got 4",
    ):
        load(path, into=other)
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))


def test_load_brings_back_the_same_function(path):
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    module(torch.randn(8, 2))
    save(module, path)
    again = load(path, into=nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
    assert not any(part.training for part in again.modules())
    x = torch.randn(4, 2)
    assert torch.equal(module.eval()(x), again.eval()(x))
