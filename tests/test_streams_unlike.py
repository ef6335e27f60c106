"""Streams of what is masked, indexed, too large or changed since; and other data than those of a run."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import probgen as pg
from probgen.core.streams import as_stream
from probgen.streams import Arrays, Indexed, Iterated, Parquet
from probgen.train.checkpoint import CheckpointError

QUIET = {"progress": False, "compile": False, "verdict": False, "seed": 0}
ROWS = np.random.default_rng(0).normal(size=(60, 2))
MASKED = np.ma.masked_array(ROWS, ROWS > 0.7)


def mixture():
    torch.manual_seed(0)
    return pg.GaussianMixture(2, 2)


def table(folder: Path, rows=ROWS, name="rows.parquet", **columns) -> str:
    """A file of rows in groups of 20, with more columns."""
    found = {"a": rows[:, 0], "b": rows[:, 1], **columns}
    pq.write_table(pa.table(found), folder / name, row_group_size=20)
    return str(folder / name)


def first(stream):
    return next(stream.blocks(100))


# ---------------------------------------------------------------- masks, indices, large numbers

HIDDEN = {
    "runs": lambda: Arrays(MASKED),
    "single rows": lambda: Arrays(MASKED, run=1),
    "runs of three": lambda: Arrays(MASKED, run=3),
    "samples": lambda: Indexed(list(MASKED)),
    "samples in tuples": lambda: Indexed([(row,) for row in MASKED]),
    "samples by name": lambda: Indexed([{"x": row} for row in MASKED]),
    "one after the other": lambda: Iterated(list(MASKED)),
}


@pytest.mark.parametrize("form", HIDDEN)
def test_what_is_masked_is_missing(form):
    rows = first(HIDDEN[form]()).rows[0].double()
    torch.testing.assert_close(rows, torch.tensor(MASKED.filled(np.nan)), equal_nan=True)


def test_a_masked_weight_is_told():
    weights = np.ma.masked_array(np.ones(60), np.arange(60) == 7)
    with pytest.raises(ValueError, match=r"(?s)expected .*got .*7"):
        pg.fit(mixture(), Arrays(ROWS, weights=weights), steps=1, **QUIET)


def test_whole_numbers_that_do_not_fit_are_floating_point(tmp_path):
    large = pa.array([2**63 + 2048, 1, 7], pa.uint64())
    pq.write_table(pa.table({"u": large}), tmp_path / "u.parquet")
    assert first(Parquet(tmp_path / "u.parquet")).rows[0].flatten().tolist() == [2**63 + 2048, 1, 7]


@pytest.mark.parametrize("index", ["no name", "a name", "none"])
def test_the_index_of_a_frame_is_no_variable(tmp_path, index):
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [4, 5, 6]})
    frame = {
        "no name": frame[frame.a != 2],
        "a name": frame.set_index(pd.Index([7, 9, 12], name="number")),
        "none": frame,
    }[index]
    frame.to_parquet(tmp_path / "frame.parquet")
    assert Parquet(tmp_path / "frame.parquet").names == ["a", "b"]
    if index == "a name":
        assert first(Parquet(tmp_path / "frame.parquet", "number")).rows[0].tolist() == [7, 9, 12]


def test_names_with_dots_keep_their_gaps(tmp_path):
    path = tmp_path / "dots.parquet"
    pq.write_table(pa.table({"sepal.len": pa.array([1, None, 3]), "sepal": [4, 5, 6]}), path)
    rows = first(Parquet(path)).rows[0]
    assert rows[:, 1].tolist() == [4, 5, 6]
    assert rows[:, 0].isnan().tolist() == [False, True, False]


NAMES = {
    "a set": ({"a", "b"}, TypeError),
    "numbers": ([0, 1], TypeError),
    "a number": (5, TypeError),
    "a generator": ((name for name in "ab"), TypeError),
    "none": ([], ValueError),
    "none of an argument": ({"x": []}, ValueError),
    "a set of an argument": ({"x": ["a"], "context": {"b"}}, TypeError),
}


@pytest.mark.parametrize("given", NAMES)
def test_names_of_columns_are_a_list(tmp_path, given):
    columns, kind = NAMES[given]
    with pytest.raises(kind, match=r"expected .*name.* got .*; "):
        Parquet(table(tmp_path), columns)


def test_columns_of_one_name_are_told(tmp_path):
    path = tmp_path / "twice.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array([1.0]), pa.array([2.0])], ["a", "a"]), path)
    with pytest.raises(ValueError, match=r"different names .* got 2 of 'a'; rename"):
        Parquet(path)


def test_an_archive_is_no_array(tmp_path):
    np.savez(tmp_path / "several.npz", a=ROWS)
    with pytest.raises(ValueError, match=r"one array in .*several\.npz.* archive"):
        Arrays(tmp_path / "several.npz")


# ---------------------------------------------------------------- files that change


def arrow(folder: Path, rows) -> str:
    """A file of Arrow with one batch."""
    batch = pa.table({"a": rows[:, 0], "b": rows[:, 1]}).combine_chunks()
    with ipc.new_file(folder / "rows.arrow", batch.schema) as writer:
        writer.write_table(batch)
    return str(folder / "rows.arrow")


def array(folder: Path, rows) -> str:
    np.save(folder / "rows.npy", rows)
    return str(folder / "rows.npy")


FILES = {"Parquet": (Parquet, table), "Arrow": (Parquet, arrow), "array": (Arrays, array)}
CHANGES = {
    "fewer rows": lambda folder, write: write(folder, ROWS[:6]),
    "more rows": lambda folder, write: write(folder, np.concatenate([ROWS, ROWS])),
    "another type": lambda folder, write: write(folder, ROWS.astype("float32")),
    "junk": lambda folder, write: Path(write(folder, ROWS)).write_bytes(b"PAR1 junk" * 9),
    "gone": lambda folder, write: Path(write(folder, ROWS)).unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", FILES)
def test_files_that_change_under_a_stream_are_told(tmp_path, kind, change):
    made, write = FILES[kind]
    stream = made(write(tmp_path, ROWS))
    CHANGES[change](tmp_path, write)
    with pytest.raises((ValueError, FileNotFoundError), match=r"(?s)expected .*rows\.\w+.* got "):
        pg.log_likelihood(mixture(), stream)


# ---------------------------------------------------------------- the order of loaders

DATA = TensorDataset(torch.tensor(ROWS).float())
SHUFFLED = {
    "shuffle": {"shuffle": True, "batch_size": 7},
    "a sampler of batches": {"batch_sampler": BatchSampler(RandomSampler(DATA), 7, False)},
    "a subset": {"sampler": SubsetRandomSampler(range(60)), "batch_size": 7},
    "by weights": {"sampler": WeightedRandomSampler([1.0] * 60, 60), "batch_size": 7},
    "numbers": {"sampler": [2, 1, 0]},
}


@pytest.mark.parametrize("how", SHUFFLED)
def test_loaders_that_give_another_order_are_refused(how):
    loader = DataLoader(DATA, **SHUFFLED[how])
    for reads in (pg.log_likelihood, pg.impute, pg.em):
        with pytest.raises(TypeError, match=r"in their order.*shuffle=False"):
            reads(mixture(), loader)


def test_loaders_in_order_are_read():
    batches = DataLoader(DATA, batch_sampler=BatchSampler(SequentialSampler(DATA), 7, False))
    rows = torch.cat([block.rows[0] for block in as_stream(batches).blocks(9)])
    assert torch.equal(rows, DATA.tensors[0])


# ---------------------------------------------------------------- epochs of steps of several batches

READ = {
    "arrays": lambda folder: Arrays(ROWS),
    "files": lambda folder: Parquet(table(folder)),
    "iterable": lambda folder: Iterated(list(ROWS)),
    "iterable of known length": lambda folder: Iterated(list(ROWS), rows=60),
}


@pytest.mark.parametrize("count", [2, 10**6])
@pytest.mark.parametrize("kind", READ)
def test_a_step_of_several_batches_ends_with_the_epoch(tmp_path, kind, count):
    how = {"epochs": 2, "batch_size": 25, "accumulate": count, **QUIET}
    memory = pg.fit(mixture(), torch.tensor(ROWS).float(), **how)
    assert pg.fit(mixture(), READ[kind](tmp_path), **how).steps == memory.steps


# ---------------------------------------------------------------- other data than those of a run

MOVED = ROWS.copy()
MOVED[:4] += 3.0
OTHERS = {
    "arrays": (lambda f: Arrays(ROWS), lambda f: Arrays(MOVED)),
    "a file written anew": (
        lambda f: Parquet(table(f)),
        lambda f: Parquet(table(f, np.flip(ROWS, 0))),
    ),
    "files in another order": (
        lambda f: Parquet([table(f), table(f, MOVED, "other.parquet")]),
        lambda f: Parquet([f / "other.parquet", f / "rows.parquet"]),
    ),
    "other groups of rows": (
        lambda f: Parquet(table(f)),
        lambda f: (
            pq.write_table(pq.read_table(table(f)), f / "rows.parquet", row_group_size=30)
            or Parquet(f / "rows.parquet")
        ),
    ),
    "other samples": (lambda f: Indexed(list(ROWS)), lambda f: Indexed(list(MOVED))),
    "other samples of an iterable": (lambda f: Iterated(ROWS), lambda f: Iterated(MOVED)),
    "other windows": (lambda f: Arrays(ROWS, shuffle=30), lambda f: Arrays(ROWS, shuffle=20)),
    "no windows": (lambda f: Arrays(ROWS), lambda f: Arrays(ROWS, shuffle=0)),
    "weights": (lambda f: Arrays(ROWS), lambda f: Arrays(ROWS, weights=np.ones(60))),
    "other weights": (
        lambda f: Arrays(ROWS, weights=np.ones(60)),
        lambda f: Arrays(ROWS, weights=np.arange(60.0)),
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_run_goes_on_with_its_own_rows_alone(tmp_path, case):
    own, other = OTHERS[case]
    how = {"batch_size": 20, "checkpoint": tmp_path / "run", **QUIET}
    pg.fit(mixture(), own(tmp_path), steps=2, **how)
    assert pg.fit(mixture(), own(tmp_path), steps=3, resume=True, **how).steps == 3
    with pytest.raises(CheckpointError, match=r"the data that .* pass those"):
        pg.fit(mixture(), other(tmp_path), steps=4, resume=True, **how)


def test_what_is_read_once_is_not_read_again():
    stream = Iterated(iter(torch.zeros(9, 2)))
    assert pg.log_likelihood(mixture(), stream).rows == 9
    with pytest.raises(ValueError, match="read again, got an iterator that has been read"):
        pg.log_likelihood(mixture(), stream)


def test_rows_that_do_not_count_have_no_score():
    with pytest.raises(ValueError, match=r"at least one row that counts, got none; .* its weights"):
        pg.log_likelihood(mixture(), Arrays(ROWS, weights=np.zeros(60)))


def test_rows_with_weights_are_no_sample():
    with pytest.raises(ValueError, match="count once each, got a stream with weights"):
        pg.sample_report(torch.zeros(60, 2), Arrays(ROWS, weights=np.ones(60)))
