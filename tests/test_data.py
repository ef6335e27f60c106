"""Batches: what goes in, what comes out, and that a cursor brings back the same stream."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from probgen.core.arguments import as_arguments
from probgen.train.data import InMemory, _telling_rows, as_source, held_out
from probgen.train.stream import BatchStream


def following(source):
    """The next batch and its number of rows over all processes."""
    selection, rows = source.choose()
    return source.batch(selection), rows


def epoch_rows(source, epochs=1):
    rows = []
    while source.epoch < epochs:
        rows.append(following(source)[0][0])
    return torch.cat(rows)


def test_an_epoch_visits_every_row_once_in_a_new_order():
    source = InMemory((torch.arange(10.0),), batch_size=4, seed=3)
    first, second = epoch_rows(source), epoch_rows(source, 2)
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(10))
    assert first.tolist() != second.tolist()


def test_processes_share_each_global_batch():
    parts = [InMemory((torch.arange(12.0),), 2, seed=1, rank=rank, world=3) for rank in range(3)]
    whole = InMemory((torch.arange(12.0),), 6, seed=1)
    for _ in range(2):
        (batch,), rows = following(whole)
        shares = [following(part) for part in parts]
        assert sorted(torch.cat([share[0][0] for share in shares]).tolist()) == sorted(
            batch.tolist()
        )
        assert {share[1] for share in shares} == {rows}


@pytest.mark.parametrize(
    "make",
    [
        lambda: InMemory((torch.arange(23.0),), 5, seed=1),
        lambda: BatchStream(DataLoader(torch.arange(23.0), batch_size=5, shuffle=True)),
        lambda: BatchStream(
            DataLoader(
                torch.arange(23.0), 5, shuffle=True, generator=torch.Generator().manual_seed(4)
            )
        ),
        lambda: BatchStream([torch.arange(4.0), torch.arange(3.0)]),
    ],
    ids=["memory", "loader", "loader with a generator", "list"],
)
@pytest.mark.parametrize("before", [0, 3, 5, 7])
def test_a_cursor_brings_back_the_same_stream(make, before):
    torch.manual_seed(0)
    source = make()
    for _ in range(before):
        following(source)
    cursor, state = source.cursor(), torch.get_rng_state()
    expected = [following(source)[0][0] for _ in range(8)]
    torch.manual_seed(99)
    again = make()
    again.seek(cursor)
    torch.set_rng_state(state)
    for batch in expected:
        torch.testing.assert_close(following(again)[0][0], batch)


def test_arrays_tables_and_series_become_tensors():
    frame = pd.DataFrame(
        {"a": [1, 2], "b": [0.5, None], "c": pd.array([1, None], dtype="Int64"), "d": [True, False]}
    )
    (tensor,) = as_arguments((frame,))
    np.testing.assert_array_equal(tensor, [[1, 0.5, 1, 1], [2, np.nan, np.nan, 0]])
    x, context = as_arguments((np.ones((3, 2), dtype=np.uint8), None))
    assert x.dtype == torch.int64 and context is None
    assert as_arguments((torch.ones(2, dtype=torch.float64),))[0].dtype == torch.float64
    assert as_arguments((frame["a"],))[0].tolist() == [1, 2]


def test_datasets_are_loaded_and_sized():
    source = as_source(TensorDataset(torch.ones(7, 2), torch.ones(7, 1)), batch_size=3, seed=0)
    batch, rows = following(source)
    assert (
        source.rows == 7 and rows == 3 and [tuple(part.shape) for part in batch] == [(3, 2), (3, 1)]
    )


def test_validation_keeps_its_order():
    batches = held_out((torch.arange(5.0), None), 2)
    assert [batch[0].tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    assert all(batch[1] is None for batch in batches)


def test_the_batch_looked_at_first_shows_the_extremes():
    x = torch.zeros(1000, 3)
    x[500, 1], x[600, 2], x[700, 0] = -5.0, 7.0, torch.nan
    (batch,) = InMemory((x,), 10, seed=0).peek()
    assert batch.shape == (10, 3) and batch.isnan().any()
    assert batch.nan_to_num().min() == -5 and batch.nan_to_num().max() == 7


NAN = math.nan
INF = math.inf


@pytest.mark.parametrize(
    ("rows", "telling"),
    [
        ([[1.0, NAN], [NAN, NAN], [5.0, -3.0]], [2, 2, 0]),
        ([[1.0, 2.0], [INF, 0.0], [-INF, NAN]], [2, 1, 2]),
        ([[NAN, NAN], [NAN, NAN]], [0, 0, 0]),
        ([[3], [1], [2]], [1, 0]),
        ([[True], [False], [True]], [1, 0]),
        ([[], []], []),
    ],
)
def test_the_first_batch_has_the_rows_with_the_extremes_and_a_missing_one(rows, telling):
    assert _telling_rows(torch.tensor(rows)) == telling


def test_extremes_are_those_of_a_search_through_all_entries():
    x = torch.randn(50, 7)
    x[torch.rand(50, 7) < 0.3] = NAN
    low, high, lacking = _telling_rows(x)
    assert low == x.nan_to_num(INF).argmin() // 7
    assert high == x.nan_to_num(-INF).argmax() // 7
    assert lacking == x.isnan().any(1).nonzero()[0, 0]
