"""Data larger than memory: every row once, shuffled, shared out, resumed; and what is refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
import torch
from forked import results
from torch.utils.data import DataLoader, Dataset, IterableDataset

import probgen as pg
from probgen.core.streams import RowStream, as_stream
from probgen.heads import Bernoulli, Gaussian
from probgen.nn import Constant
from probgen.streams import Arrays, Indexed, Iterated, Parquet
from probgen.train.data import as_source, held_out
from probgen.train.epoch_order import EqualRuns, ListedRuns, Permutation, generator_of, order_of
from probgen.train.fit import adam, fit
from probgen.train.history import FitWarning

ROWS = 103
NUMBERS = np.arange(ROWS, dtype=np.float64)
TABLE = np.stack([NUMBERS, NUMBERS * 2], 1)


class Samples(Dataset):
    """A row of the table for each number."""

    def __len__(self):
        return ROWS

    def __getitem__(self, place):
        return torch.tensor(TABLE[place])


class Endless(IterableDataset):
    """The same rows, from the first to the last."""

    def __iter__(self):
        return iter(torch.tensor(TABLE))


def write(folder: Path, *, files=3, group=10, kind="parquet") -> list[str]:
    paths = []
    for number, part in enumerate(np.array_split(TABLE, files)):
        path = folder / f"part-{number}.{kind}"
        table = pa.table({"a": part[:, 0], "b": part[:, 1]})
        if kind == "parquet":
            pq.write_table(table, path, row_group_size=group)
        else:
            with ipc.new_file(path, table.schema) as writer:
                writer.write_table(table, max_chunksize=group)
        paths.append(str(path))
    return paths


def saved(folder: Path, name: str, array: np.ndarray) -> str:
    np.save(folder / f"{name}.npy", array)
    return str(folder / f"{name}.npy")


def mapped(folder: Path) -> np.memmap:
    array = np.memmap(folder / "x.raw", "float64", "w+", shape=TABLE.shape)
    array[:] = TABLE
    return array


STREAMS = {
    "parquet": lambda folder, **how: Parquet(write(folder), **how),
    "arrow": lambda folder, **how: Parquet(write(folder, kind="arrow"), **how),
    "one group": lambda folder, **how: Parquet(write(folder, files=1, group=500), **how),
    "npy": lambda folder, **how: Arrays(saved(folder, "x", TABLE), run=8, **how),
    "memmap": lambda folder, **how: Arrays(mapped(folder), run=1, **how),
    "data set": lambda folder, **how: Indexed(Samples(), **how),
    "iterable": lambda folder, **how: Iterated(Endless(), **how),
    "counted iterable": lambda folder, **how: Iterated(Endless(), rows=ROWS, **how),
}
SEEKABLE = [name for name in STREAMS if "iterable" not in name]


def rows_of(source, *, epochs=1) -> list[int]:
    """The numbers of the rows that a source gives up to the end of an epoch."""
    found = []
    while source.epoch < epochs:
        selection, _ = source.choose()
        found += source.batch(selection)[0][:, 0].long().tolist()
    return found


# -- blocks in order


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("size", [7, 1000])
@pytest.mark.parametrize("world", [1, 3])
def test_blocks_give_each_row_in_one_part_in_order(tmp_path, name, size, world):
    stream = STREAMS[name](tmp_path)
    parts = [list(stream.blocks(size, part=(rank, world))) for rank in range(world)]
    blocks = sorted((block for part in parts for block in part), key=lambda block: block.start)
    assert all(0 < block.size <= size for block in blocks)
    assert [block.start for block in blocks] == np.cumsum(
        [0, *(block.size for block in blocks[:-1])]
    ).tolist()
    torch.testing.assert_close(
        torch.cat([block.rows[0] for block in blocks]), torch.tensor(TABLE), rtol=0, atol=0
    )
    if stream.size is not None:
        assert [sum(block.size for block in part) for part in parts] == [
            (rank + 1) * ROWS // world - rank * ROWS // world for rank in range(world)
        ]


@pytest.mark.parametrize(
    "data",
    [
        torch.tensor(TABLE),
        TABLE,
        pd.DataFrame(TABLE),
        {"x": TABLE},
        [torch.tensor(TABLE[:50]), torch.tensor(TABLE[50:])],
        DataLoader(Samples(), batch_size=10),
    ],
    ids=["tensor", "array", "frame", "dict", "batches", "loader"],
)
def test_what_users_pass_is_a_stream(data):
    blocks = list(as_stream(data).blocks(9))
    assert [block.size for block in blocks] == [9] * 11 + [4]
    torch.testing.assert_close(torch.cat([b.rows[0] for b in blocks]), torch.tensor(TABLE))


def test_no_rows_in_order_of_a_loader_that_shuffles():
    with pytest.raises(TypeError, match="shuffle=False"):
        as_stream(DataLoader(Samples(), shuffle=True))


# -- training: each row once, in another order each time


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("shuffle", [0, 16, 65_536])
@pytest.mark.parametrize("world", [1, 5])
def test_an_epoch_has_each_row_in_one_process(tmp_path, name, shuffle, world):
    stream = STREAMS[name](tmp_path, shuffle=shuffle)
    sources = [as_source(stream, 8, 3, rank, world) for rank in range(world)]
    first, second = ([rows_of(each, epochs=n) for each in sources] for n in (1, 2))
    for epoch in (first, second):
        whole = [row for part in epoch for row in part]
        assert len(set(whole)) == len(whole) == ROWS - ROWS % world
        assert {len(part) for part in epoch} == {ROWS // world}
    if shuffle > 1:
        assert first != second
        assert first[0] != sorted(first[0])
    if shuffle == 0 and name in SEEKABLE:
        assert first[0] == list(range(ROWS // world))


def test_rows_that_are_left_over_are_others_each_time(tmp_path):
    stream = Arrays(TABLE, run=8)
    left = set()
    source = [as_source(stream, 8, 3, rank, 5) for rank in range(5)]
    for epoch in range(1, 30):
        seen = {row for each in source for row in rows_of(each, epochs=epoch)}
        left |= set(range(ROWS)) - seen
    assert len(left) > 20


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("steps", [0, 5, 13])
def test_a_cursor_brings_back_the_same_batches(tmp_path, name, steps):
    stream = STREAMS[name](tmp_path, shuffle=16)

    def source():
        return as_source(stream, 8, 3)

    def following(source):
        selection, rows = source.choose()
        return source.batch(selection)[0], rows

    one = source()
    for _ in range(steps):
        one.choose()
    cursor = one.cursor()
    after = [following(one) for _ in range(20)]
    other = source()
    other.seek(cursor)
    for (batch, rows), (again, same) in zip(
        after, (following(other) for _ in range(20)), strict=True
    ):
        assert rows == same
        assert torch.equal(batch, again)


def test_a_cursor_reads_no_more_than_its_window(tmp_path, monkeypatch):
    stream = Parquet(write(tmp_path, files=1, group=10), shuffle=20)
    source = as_source(stream, 10, 3)
    source.seek({**source.cursor(), "position": 60})
    read = []
    own = Parquet._of_run
    monkeypatch.setattr(
        Parquet, "_of_run", lambda self, run, *ends: read.append(run) or own(self, run, *ends)
    )
    source.choose()
    assert len(read) <= 5  # of eleven: two windows, which may begin in the midst of a group


def test_a_cursor_of_other_processes_is_told(tmp_path):
    stream = Arrays(TABLE)
    source = as_source(stream, 8, 3, 0, 2)
    source.choose()
    with pytest.warns(FitWarning, match="2 processes"):
        as_source(stream, 8, 3).seek(source.cursor())


@pytest.mark.parametrize("drop", [False, True])
def test_lengths_of_an_epoch_are_told(drop):
    source = as_source(Arrays(TABLE, run=4), 10, 0, drop_last=drop)
    assert source.per_epoch() == source.left() == (10 if drop else 11)
    assert source.left_over() == (0 if drop else 3)
    assert (source.rows, source.total, source.batch_size) == (ROWS, ROWS, 10)
    assert len(rows_of(source)) == (100 if drop else ROWS)
    assert source.turned()


@pytest.mark.parametrize("listed", [0, 2**20], ids=["network", "list"])
@pytest.mark.parametrize("size", [1, 2, 3, 17, 1000, 40_000])
def test_a_permutation_is_one(monkeypatch, size, listed):
    monkeypatch.setattr("probgen.train.epoch_order.LISTED", listed)
    found = Permutation(size, generator_of(0, 0))(torch.arange(size))
    assert torch.equal(found.sort().values, torch.arange(size))
    if size > 1000:
        assert (found[1:] - found[:-1]).abs().double().mean() == pytest.approx(size / 3, rel=0.02)
        other = Permutation(size, generator_of(0, 1))(torch.arange(1000))
        assert (found[:1000] != other).sum() > 990


def test_a_permutation_of_very_many_numbers_takes_no_memory():
    size = 10**15
    found = Permutation(size, generator_of(0, 0))(torch.arange(1000))
    assert len(found.unique()) == 1000
    assert found.max() < size
    assert found.double().mean() == pytest.approx(size / 2, rel=0.1)


@pytest.mark.parametrize(("size", "run"), [(1, 1), (7, 10), (20, 5), (23, 5), (23, 1), (9000, 2)])
def test_runs_of_one_length_stand_somewhere_once(size, run):
    order = EqualRuns(size, run, generator_of(5, 2))
    whole = [row for ends in order.ranges(0, size) for row in range(*ends)]
    assert sorted(whole) == list(range(size))
    for begin in range(0, size, max(1, size // 7)):
        found = [row for ends in order.ranges(begin, size) for row in range(*ends)]
        assert found == whole[begin:]


def test_runs_of_several_lengths_stand_somewhere_once():
    lengths = [3, 0, 5, 1]
    order = ListedRuns(lengths, generator_of(0, 0))
    whole = [row for ends in order.ranges(0, 9) for row in range(*ends)]
    assert sorted(whole) == list(range(9))
    assert [row for ends in order.ranges(4, 8) for row in range(*ends)] == whole[4:8]


def test_each_place_of_a_run_is_as_likely():
    counts = torch.zeros(4)
    for epoch in range(400):
        begin, _ = next(order_of(7, 2, 1, epoch, shuffled=True).ranges(0, 1))
        counts[begin // 2] += 1
    assert counts.min() > 70


# -- columns


def wide(folder: Path, **columns) -> str:
    path = folder / "wide.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return str(path)


def first(stream: RowStream, size: int = 100):
    return next(stream.blocks(size))


F32 = pa.array([0.5, None, 2.0], pa.float32())
INTS = pa.array([1, 2, 3])
GAPS = pa.array([1, None, 3])
BOOLS = pa.array([True, False, None])
PAIRS = pa.array([[1.0, 2.0], [3.0, None], [5.0, 6.0]])
GRIDS = pa.array([[[1, 2], [3, 4]]] * 3)
FIXED = pa.array([[1.0, 2.0], None, [5.0, 6.0]], pa.list_(pa.float64(), 2))
NAN = float("nan")

COLUMNS = {
    "floats": ({"a": F32}, None, [[0.5], [NAN], [2.0]], torch.float32),
    "whole numbers": ({"a": INTS, "b": INTS}, None, [[1, 1], [2, 2], [3, 3]], torch.int64),
    "a gap": ({"a": INTS, "b": GAPS}, None, [[1, 1], [2, NAN], [3, 3]], torch.float64),
    "truth values": ({"a": BOOLS, "b": F32}, None, [[1, 0.5], [0, NAN], [NAN, 2]], torch.float64),
    "one by name": ({"a": F32, "b": INTS}, "a", [0.5, NAN, 2.0], torch.float32),
    "order of names": ({"a": INTS, "b": F32}, ["b", "a"], [[0.5, 1], [NAN, 2], [2, 3]], None),
    "lists": ({"a": PAIRS}, None, [[1, 2], [3, NAN], [5, 6]], torch.float64),
    "lists of lists": ({"a": GRIDS}, "a", [[[1, 2], [3, 4]]] * 3, torch.int64),
    "fixed lists": ({"a": FIXED}, "a", [[1, 2], [NAN, NAN], [5, 6]], torch.float64),
    "all missing": ({"a": pa.nulls(3)}, None, [[NAN]] * 3, torch.float64),
}


@pytest.mark.parametrize("case", COLUMNS)
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_columns_become_numbers(tmp_path, case, kind):
    columns, names, expected, dtype = COLUMNS[case]
    path = wide(tmp_path, **columns)
    if kind == "arrow":
        table = pq.read_table(path)
        path = str(tmp_path / "wide.arrow")
        with ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    found = torch.cat([block.rows[0] for block in Parquet(path, names).blocks(2)])
    torch.testing.assert_close(
        found.double(), torch.tensor(expected, dtype=torch.float64), equal_nan=True
    )
    if dtype is not None and kind == "parquet":  # files of Arrow tell nothing of gaps
        assert found.dtype == dtype


def test_arguments_have_columns_and_rows_have_weights(tmp_path):
    path = wide(tmp_path, a=F32, b=INTS, w=pa.array([1.0, 2.0, 3.0]), c=INTS)
    stream = Parquet(path, {"context": "b", "x": ["a", "c"]}, weights="w")
    block = first(stream)
    assert [part.tolist() for part in block.rows][1] == [1, 2, 3]
    assert block.rows[0].shape == (3, 2)
    assert block.weights.tolist() == [1, 2, 3]
    assert (stream.weight(), stream.names) == (6.0, ["a", "c"])
    assert first(Parquet(path, weights="w")).rows[0].shape == (3, 3)
    (program,) = first(Parquet(path, {"y": "a", "dose": "b"})).rows
    assert sorted(program) == ["dose", "y"]


def test_a_schema_encodes_each_block(tmp_path):
    frame = pd.DataFrame({"size": ["s", "l", None, "s"], "n": [0, 3, 1, None]})
    frame.to_parquet(tmp_path / "t.parquet", row_group_size=1)
    table = pg.Table.read(frame)
    stream = Parquet(tmp_path / "t.parquet", encode=table.encode)
    found = torch.cat([block.rows[0] for block in stream.blocks(3)])
    torch.testing.assert_close(found, table.encode(frame), equal_nan=True)
    pd.DataFrame({"size": ["xl"], "n": [1.0]}).to_parquet(tmp_path / "u.parquet")
    other = Parquet([tmp_path / "t.parquet", tmp_path / "u.parquet"], encode=table.encode)
    with pytest.raises(ValueError, match=r"'xl' in row 0 of .*u\.parquet"):
        list(other.blocks(2))


def test_paths_are_files_folders_patterns_and_addresses(tmp_path):
    paths = write(tmp_path)
    (tmp_path / "_SUCCESS").touch()
    wholes = [
        tmp_path,
        str(tmp_path / "part-*.parquet"),
        paths,
        [tmp_path / "part-0.parquet", *paths[1:]],
        [f"file://{path}" for path in paths],
    ]
    for given in wholes:
        torch.testing.assert_close(first(Parquet(given), 200).rows[0], torch.tensor(TABLE))


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_files_without_rows_among_others_add_none(tmp_path, kind):
    paths = write(tmp_path, kind=kind)
    folder = tmp_path / "none"
    folder.mkdir()
    table = pa.table({"a": pa.array([], pa.float64()), "b": pa.array([], pa.float64())})
    path = folder / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        with ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    stream = Parquet([path, *paths, path], shuffle=10)
    assert stream.size == ROWS
    assert sorted(rows_of(as_source(stream, 8, 0))) == list(range(ROWS))
    with pytest.raises(ValueError, match="at least one row"):
        Parquet(path)


class Dicts(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, place):
        return {"a": float(place), "b": place, "image": torch.ones(2, 2) * place}


def test_samples_that_are_dicts_have_columns():
    assert first(Indexed(Dicts(), ["a", "b"])).rows[0].tolist() == [[0, 0], [1, 1], [2, 2]]
    x, context = first(Indexed(Dicts(), {"x": "image", "context": ["a"]})).rows
    assert (x.shape, context.tolist()) == ((3, 2, 2), [[0], [1], [2]])


class Faces:
    """What a data set of Hugging Face does, of one table."""

    def __init__(self, table):
        self.table = table

    def __len__(self):
        return len(self.table)

    def with_format(self, type):
        assert type == "arrow"
        return self

    def __getitem__(self, places):
        return self.table.take(places)

    def __iter__(self):
        return iter(self.table.to_pylist())

    def iter(self, batch_size):
        for start in range(0, len(self.table), batch_size):
            yield self.table.slice(start, batch_size)


@pytest.mark.parametrize("form", [Indexed, Iterated])
def test_tables_of_other_libraries_are_read_as_such(form):
    table = pa.table({"a": GAPS, "b": F32, "c": PAIRS})
    block = first(form(Faces(table), {"x": ["b", "a"], "context": "c"}))
    expected = torch.tensor([[0.5, 1], [NAN, NAN], [2, 3]], dtype=torch.float64)
    torch.testing.assert_close(block.rows[0], expected, equal_nan=True)
    assert block.rows[1].shape == (3, 2)


class Chunks:
    """What a data set of LitData does: its length is that of the part of one process."""

    class Environment:
        def __init__(self, world_size, global_rank, num_nodes):
            self.world_size = world_size

    def __init__(self):
        self.distributed_env = self.Environment(2, 1, 1)
        self.shuffler = object()

    def __len__(self):
        return ROWS // self.distributed_env.world_size

    def __getitem__(self, place):
        return TABLE[place]


def test_data_sets_that_share_themselves_out_give_all_rows():
    theirs = Chunks()
    assert Indexed(theirs).size == ROWS
    assert theirs.distributed_env.world_size == 2  # theirs stays as it is


# -- what is refused


def schema_of(folder: Path):
    write(folder, files=2)
    pq.write_table(pa.table({"a": [1.0], "b": ["word"]}), folder / "part-1.parquet")
    return Parquet(folder)


def empty_file(folder: Path):
    (folder / "a.parquet").touch()
    return Parquet(folder / "a.parquet")


def other_file(folder: Path):
    (folder / "a.parquet").write_text("a,b\n1,2\n")
    return Parquet(folder / "a.parquet")


def ragged(folder: Path):
    return list(Parquet(wide(folder, a=pa.array([[1.0], [1.0], [1.0, 2.0]]))).blocks(9))


def negative(folder: Path):
    return Parquet(wide(folder, a=F32, w=pa.array([1.0, 1.0, -2.0])), weights="w").weight()


def idle(folder: Path):
    return Parquet(wide(folder, a=F32, w=pa.array([0.0, 0.0, 0.0])), weights="w").weight()


def no_array(folder: Path):
    (folder / "a.npy").write_text("1,2")
    return Arrays(folder / "a.npy")


REFUSED = {
    "no such file": (lambda f: Parquet(f / "a.parquet"), FileNotFoundError, "found none"),
    "no such pattern": (lambda f: Parquet(str(f / "*.parquet")), FileNotFoundError, "found none"),
    "no paths": (lambda f: Parquet([]), ValueError, "empty list"),
    "no path": (lambda f: Parquet(3), TypeError, "paths of files, got 3"),
    "empty file": (empty_file, ValueError, "an empty file"),
    "other file": (other_file, ValueError, "Arrow's IPC format"),
    "unknown column": (
        lambda f: Parquet(wide(f, height=F32, weight=F32), ["heigth"]),
        ValueError,
        "got 'heigth'; did you mean 'height'",
    ),
    "unknown weights": (
        lambda f: Parquet(wide(f, a=F32), weights="w"),
        ValueError,
        r"got 'w'; give some of \['a'\]",
    ),
    "other schema": (
        schema_of,
        ValueError,
        r"column 'b' of double in every file, .*got string in .*part-1\.parquet",
    ),
    "words": (
        lambda f: Parquet(wide(f, a=pa.array(["u", "v", "w"]))),
        TypeError,
        r"numbers in column 'a', got string; .*pg\.Table",
    ),
    "lists beside numbers": (
        lambda f: Parquet(wide(f, a=PAIRS, b=F32)),
        TypeError,
        "columns='a'",
    ),
    "lists of several lengths": (ragged, ValueError, r"1 entries in column 'a', got 2 in row 2 of"),
    "negative weight": (negative, ValueError, r"got -2 in row 2 of .*wide\.parquet"),
    "no weight at all": (idle, ValueError, "some weights above 0"),
    "no columns": (lambda f: Parquet(wide(f, a=F32), {}), ValueError, "at least one argument"),
    "encode of nothing": (
        lambda f: Parquet(wide(f, a=F32), encode={"context": len}),
        ValueError,
        "got 'context'",
    ),
    "encode of rows": (lambda f: Indexed(Samples(), encode=len), ValueError, "in the data set"),
    "columns of rows": (
        lambda f: first(Indexed(Samples(), ["a"])),
        TypeError,
        "leave columns out",
    ),
    "no entry": (lambda f: first(Indexed(Dicts(), "imag")), ValueError, "did you mean 'image'"),
    "no array": (no_array, ValueError, r"another file .*numpy\.memmap"),
    "no array file": (lambda f: Arrays(f / "x.npy"), FileNotFoundError, r"numpy\.save"),
    "a number": (lambda f: Arrays(3.0), TypeError, "read by slices"),
    "other lengths": (
        lambda f: Arrays(TABLE, TABLE[:4]),
        ValueError,
        r"'x': 103, 'context': 4",
    ),
    "no rows of an array": (lambda f: Arrays(TABLE[:0]), ValueError, "at least one row"),
    "two contexts": (lambda f: Arrays({"x": TABLE}, TABLE), ValueError, "into the dict"),
    "no data set": (lambda f: Indexed(3), TypeError, "Iterated"),
    "no rows of a data set": (lambda f: Indexed([]), ValueError, "at least one row"),
    "no iterable": (lambda f: Iterated(3), TypeError, "Indexed"),
    "another number": (
        lambda f: list(Iterated(Endless(), rows=100).blocks(50)),
        ValueError,
        "expected 100 samples, as rows= says, got 103",
    ),
    "no rows of an iterable": (
        lambda f: fit(gaussian(), Iterated([])),
        ValueError,
        "at least one row",
    ),
    "more processes than rows": (
        lambda f: as_source(Arrays(TABLE[:2]), 8, 0, 0, 3),
        ValueError,
        "start fewer processes",
    ),
    "an iterator": (
        lambda f: fit(gaussian(), Iterated(iter(torch.zeros(3, 2)))),
        TypeError,
        "more than once",
    ),
    "weights beside": (
        lambda f: fit(gaussian(), Arrays(TABLE), weights=torch.ones(ROWS)),
        ValueError,
        "name the column",
    ),
}


def gaussian(dims: int = 2) -> Gaussian:
    return Gaussian(Constant(2 * dims))


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_and_how(tmp_path, case):
    call, kind, text = REFUSED[case]
    with pytest.raises(kind, match=text):
        call(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (0.5, r"got 0\.5 in row 17 of .*part-1\.parquet, column 'b'"),
        (np.inf, r"got inf in row 17 of .*part-1\.parquet, column 'b'"),
    ],
)
@pytest.mark.parametrize("shuffle", [0, 20, 1000])
def test_a_wrong_value_is_told_with_its_file_row_and_column(tmp_path, wrong, text, shuffle):
    for number in range(3):
        values = np.ones((40, 2))
        if number == 1:
            values[17, 1] = wrong
        table = pa.table({"a": values[:, 0], "b": values[:, 1]})
        pq.write_table(table, tmp_path / f"part-{number}.parquet", row_group_size=7)
    stream = Parquet(tmp_path, shuffle=shuffle)
    with pytest.raises(ValueError, match=text):
        fit(Bernoulli(Constant(2)), stream, epochs=1, batch_size=8, verdict=False, seed=0)
    with pytest.raises(ValueError, match=text):
        fit(Bernoulli(Constant(2)), torch.ones(8, 2), steps=1, validation=stream, verdict=False)


# -- training


def fitted(data, **options):
    torch.manual_seed(0)
    gen = gaussian()
    options = {"batch_size": 20, "optimizer": adam(0.05), "seed": 0, "verdict": False} | options
    return gen, fit(gen, data, compile=False, **options)


def standard(rows: int = 400) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, 2)).astype("float32") * 2 + 1


def test_a_fit_of_a_stream_is_one_of_its_rows():
    x = standard()
    options = {"batch_size": 400, "epochs": 60, "optimizer": lambda p: torch.optim.SGD(p, 0.2)}
    one, history = fitted(torch.tensor(x), **options)
    other, same = fitted(Arrays(x, run=7, shuffle=50), **options)
    torch.testing.assert_close(same.loss, history.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one().mean, other().mean, rtol=1e-4, atol=1e-4)


def test_weights_of_a_stream_are_those_of_rows():
    x = standard(60)
    w = np.random.default_rng(1).uniform(0, 3, 60)
    options = {"batch_size": 60, "epochs": 30, "optimizer": lambda p: torch.optim.SGD(p, 0.2)}
    _, history = fitted(torch.tensor(x), weights=torch.tensor(w), **options)
    _, same = fitted(Arrays(x, weights=w), **options)
    torch.testing.assert_close(same.loss, history.loss, rtol=1e-5, atol=1e-5)


def test_a_loader_over_an_iterable_keeps_its_place(tmp_path):
    """Whose number of batches nobody can tell."""
    loader = DataLoader(Endless(), batch_size=10)
    _, long = fitted(loader, steps=7, batch_size=None)
    fitted(loader, steps=4, batch_size=None, checkpoint=tmp_path / "run")
    _, other = fitted(loader, steps=7, batch_size=None, checkpoint=tmp_path / "run", resume=True)
    assert other.loss == long.loss


def test_what_belongs_to_all_rows_needs_their_number():
    x = standard(50)

    def data(stream):
        return fit(pg.BayesianPPCA(2, factors=1), stream, steps=2, verdict=False, seed=0)

    with pytest.raises(ValueError, match="whose number is unknown"):
        data(Iterated(list(x)))
    assert len(data(Iterated(list(x), rows=50)).loss) == 2


def test_a_program_takes_columns_by_the_names_of_its_arguments(tmp_path):
    import pyro
    from pyro.distributions import Normal

    def model(y, dose):
        slope = pyro.param("slope", torch.zeros(()))
        with pyro.plate("data", len(y)):
            pyro.sample("y", Normal(slope * dose, 1.0), obs=y)

    dose = np.linspace(0, 1, 200)
    path = wide(tmp_path, response=pa.array(3 * dose), dose=pa.array(dose))
    program = pg.Program(model)
    fit(
        program,
        Parquet(path, {"y": "response", "dose": "dose"}),
        epochs=25,
        batch_size=50,
        optimizer=adam(0.3),
        seed=0,
        verdict=False,
        compile=False,
    )
    (slope,) = program.parameters()
    assert slope.item() == pytest.approx(3, abs=0.3)


@pytest.mark.parametrize("name", ["parquet", "iterable"])
def test_a_run_goes_on_in_the_middle_of_an_epoch(tmp_path, name):
    stream = STREAMS[name](tmp_path, shuffle=16)
    whole, long = fitted(stream, steps=13)
    path = tmp_path / "run"
    fitted(stream, steps=7, checkpoint=path)
    other, resumed = fitted(stream, steps=13, checkpoint=path, resume=True)
    assert resumed.loss == long.loss
    for one, two in zip(whole.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_validation_is_read_anew_and_equals_that_in_memory():
    x = standard(130)
    rows = held_out(Arrays(x), 50)
    assert [len(batch[0]) for batch in rows] == [50, 50, 30]
    assert (len(rows), rows.rows, len(rows[2][0]), len(rows[:2])) == (3, 130, 30, 2)
    assert len(held_out(Iterated(list(x)), 50)) == 3
    _, history = fitted(Arrays(x), steps=6, validation=Arrays(x), validate_every=3)
    _, same = fitted(Arrays(x), steps=6, validation=torch.tensor(x), validate_every=3)
    torch.testing.assert_close(
        torch.tensor(history.validation), torch.tensor(same.validation), rtol=1e-5, atol=1e-5
    )


@pytest.mark.slow
def test_processes_share_the_rows_out(tmp_path):
    x = np.arange(2.0 * ROWS, dtype="float32").reshape(ROWS, 2)
    for number, part in enumerate(np.array_split(x, 3)):
        table = pa.table({"a": part[:, 0], "b": part[:, 1]})
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=9)
    (found,) = results(Path(__file__).with_name("stream_worker.py"), tmp_path)
    for rows, batches in found["seen"]:
        assert sorted(rows) == [0.0] + [1.0] * (ROWS - 1)
        assert batches == [7, 7]
    assert all(len(losses) == 17 for losses in found["losses"])
    assert found["told"] == [1, 0]
    assert found["resumed"][0] == found["resumed"][1]


@pytest.mark.usefixtures("replayed")
def test_compiled_steps_on_a_stream_equal_eager_ones():
    x = standard(60)
    w = np.random.default_rng(1).uniform(0, 3, 60)

    def losses(compile):
        torch.manual_seed(0)
        history = fit(
            gaussian(),
            Arrays(x, weights=w),
            steps=8,
            batch_size=20,
            seed=0,
            verdict=False,
            compile=compile,
        )
        assert bool(history.compiled) == compile
        return history.loss

    torch.testing.assert_close(losses(True), losses(False), rtol=1e-5, atol=1e-6)
