"""Data frames in, data frames out: schemas, round trips, densities in the units of the frame."""

import math
import subprocess
import sys
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from pandas.testing import assert_frame_equal
from polars.testing import assert_frame_equal as assert_polars_equal
from scipy import stats
from torch.utils.data import DataLoader

import probgen as pg
from probgen.core.columns import SOFTPLUS
from probgen.heads import Mixed
from probgen.nn import Constant
from probgen.table import Continuous, Count, Date, Flag, Label

QUICK = {"seed": 0, "progress": False, "verdict": False, "compile": False}
INDEX = [5, 6, 9]
DAYS = ["2020-01-01", "2020-03-02", None]
MOMENTS = pd.to_datetime(["2020-01-01 10:00:00.000123", "2020-01-02", None], format="ISO8601")


def objects(*values):
    return pd.Series(values, dtype=object)


INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
PANDAS = {
    **{kind: np.array([0, 3, 101], kind) for kind in INTEGERS},
    **{f"{kind}, ends": np.array([np.iinfo(kind).min, 1, np.iinfo(kind).max]) for kind in INTEGERS},
    **{kind: pd.array([0, None, 101], kind) for kind in ("Int8", "Int64", "UInt16", "UInt64")},
    "float16": np.array([0.1, np.nan, -3.5], "float16"),
    "float32": np.array([0.1, np.nan, 1e30], "float32"),
    "float64": [0.1, np.nan, 1e300],
    "whole floats": [1.0, np.nan, 2.0],
    "Float64": pd.array([0.1, None, 3.0], "Float64"),
    "bool": [True, False, True],
    "all true": [True, True, True],
    "boolean": pd.array([True, None, False], "boolean"),
    "bool and None": objects(True, None, False),
    "strings": ["b", None, "a"],
    "string": pd.array(["b", None, "a"], "string"),
    "string, python": pd.array(["b", None, "a"], pd.StringDtype("python")),
    "objects with None": objects("b", None, "a"),
    "objects with NaN": objects("b", np.nan, "a"),
    "numbers as objects": objects(1, None, 2),
    "category": pd.Categorical(["v", "u", None]),
    "category with a level that no row has": pd.Categorical(["v", "u", None], ["w", "v", "u"]),
    "ordered category": pd.Categorical(["v", "u", None], ["v", "u", "w"], ordered=True),
    "category of numbers": pd.Categorical([3, 1, None], [3, 1, 2]),
    "days": pd.to_datetime(DAYS),
    "ns": MOMENTS.as_unit("ns"),
    "us": MOMENTS.as_unit("us"),
    "s": pd.to_datetime(DAYS).as_unit("s"),
    "ns in a zone": MOMENTS.as_unit("ns").tz_localize("Europe/Berlin"),
    "us in a zone": MOMENTS.as_unit("us").tz_localize("Asia/Tokyo"),
    "durations": pd.to_timedelta([1, 50, None], "h"),
    "nothing": [None, None, None],
    "NaN alone": [np.nan] * 3,
    "no dates": pd.to_datetime([None] * 3),
    "constant": [7.5] * 3,
    "constant string": ["a"] * 3,
    "constant date": pd.to_datetime(["2020-01-01"] * 3),
    "Arrow integers": pd.array([1, None, 5], "int64[pyarrow]"),
    "Arrow strings": pd.array(["a", None, "b"], "string[pyarrow]"),
}
POLARS = {
    **{
        str(kind): pl.Series([0, None, 101], dtype=kind)
        for kind in (pl.Int8, pl.Int64, pl.UInt8, pl.UInt32, pl.UInt64)
    },
    "UInt64, ends": pl.Series([0, 1, 2**64 - 1], dtype=pl.UInt64),
    "Float32": pl.Series([0.1, None, 2.5], dtype=pl.Float32),
    "Float64": [0.1, None, 2.5],
    "Boolean": [True, None, False],
    "String": ["b", None, "a"],
    "Categorical": pl.Series(["b", None, "a"], dtype=pl.Categorical),
    "Enum": pl.Series(["b", None, "a"], dtype=pl.Enum(["b", "a", "z"])),
    "Date": [date(2020, 1, 1), None, date(2021, 7, 1)],
    "Datetime": [datetime(2020, 1, 1, 3), None, datetime(2021, 7, 1)],
    "Datetime, ns, in a zone": pl.Series(
        [datetime(2020, 1, 1, 3), None, datetime(2021, 7, 1)], dtype=pl.Datetime("ns", "Asia/Tokyo")
    ),
    "Duration": [timedelta(1), None, timedelta(hours=5)],
    "Time": [time(1), None, time(23, 59)],
    "Null": [None] * 3,
    "constant": ["a"] * 3,
}
ARROW = {
    "int16": pa.array([0, None, 101], pa.int16()),
    "double": [0.1, None, 2.5],
    "bool": [True, None, False],
    "string": ["b", None, "a"],
    "timestamp": pa.array([datetime(2020, 1, 1), None, datetime(2021, 7, 1)], pa.timestamp("us")),
    "timestamp in a zone": pa.array([datetime(2020, 1, 1), None, None], pa.timestamp("ms", "UTC")),
    "date": pa.array([date(2020, 1, 1), None, date(2021, 7, 1)]),
}


def there_and_back(frame):
    table = pg.Table.read(frame)
    x = table.encode(frame)
    assert x.dtype == torch.float64
    return table.decode(x, like=frame)


@pytest.mark.parametrize("case", PANDAS)
def test_pandas_comes_back_as_it_was(case):
    values = PANDAS[case]
    values = values.set_axis(INDEX) if isinstance(values, pd.Series) else values
    frame = pd.DataFrame({"a": values, "other": [0.5, 1.5, 2.0]}, index=INDEX)
    assert_frame_equal(there_and_back(frame), frame, check_exact=True)


@pytest.mark.parametrize("case", POLARS)
def test_polars_comes_back_as_it_was(case):
    frame = pl.DataFrame({"a": POLARS[case], "other": [0.5, 1.5, 2.0]})
    assert_polars_equal(there_and_back(frame), frame, check_exact=True)


@pytest.mark.parametrize("case", ARROW)
def test_arrow_comes_back_as_it_was(case):
    frame = pa.table({"a": ARROW[case], "other": [0.5, 1.5, 2.0]})
    assert there_and_back(frame).equals(frame)


def test_no_rows_come_back_as_no_rows():
    frame = people()
    none = pg.Table.read(frame).decode(pg.Table.read(frame).encode(frame[:0]))
    assert len(none) == 0
    assert list(none.dtypes) == list(frame.dtypes)


def test_a_missing_cell_makes_integers_nullable():
    frame = pd.DataFrame({"n": [0, 3, 101], "b": [True, False, True]})
    table = pg.Table.read(frame)
    rows = table.encode(frame)
    rows[1] = torch.nan
    back = table.decode(rows)
    assert [str(kind) for kind in back.dtypes] == ["Int64", "boolean"]
    assert back.isna().to_numpy().tolist() == [[False] * 2, [True] * 2, [False] * 2]


def test_numbers_of_single_precision_are_shown_as_they_are_written():
    frame = pd.DataFrame({"a": [0.1, 41.8, 1234.56, -2e-7, 8e10]})
    table = pg.Table.read(frame)
    assert_frame_equal(table.decode(table.encode(frame).float()), frame, check_exact=True)


NUMBERS = torch.Generator().manual_seed(0)
NORMAL = torch.randn(400, generator=NUMBERS).double().numpy()
SKEWED = np.exp(1.5 * NORMAL)
RECOGNIZED = {
    "continuous": (NORMAL, Continuous(step=0.0)),
    "positive": (SKEWED, Continuous(low=0.0, step=0.0)),
    "ages": (stats.gamma(4).ppf(stats.norm.cdf(NORMAL)), Continuous(low=0.0, step=0.0)),
    "ages in years": (
        (10 * stats.gamma(3.5).ppf(stats.norm.cdf(NORMAL))).round(),
        Continuous(low=0.0, step=1.0),
    ),
    "bounded": (stats.norm.cdf(2.5 * NORMAL), Continuous(0.0, 1.0, step=0.0)),
    "on a grid": (NORMAL.round(1), Continuous(step=0.1)),
    "large whole numbers": ((20 * NORMAL).round() + 2000, Continuous(step=1.0)),
    "heaped": (np.where(NORMAL > 1.9, NORMAL, (20 * NORMAL).round()), Continuous(step=1.0)),
    "many zeros": (np.where(NORMAL > 0, SKEWED, 0.0), Continuous(0.0, zeros=True, step=0.0)),
    "zeros and both signs": (np.where(NORMAL > 0, -SKEWED, 0.0), Continuous(zeros=True, step=0.0)),
    "counts": (np.floor(SKEWED).clip(max=90), Count()),
    "zeros and ones": (NORMAL > 0, Flag((False, True))),
    "whole zeros and ones": ((NORMAL > 0).astype(int), Flag((0.0, 1.0))),
    "grades": ((NORMAL.round() + 4).clip(2, 6), Label((2.0, 3.0, 4.0, 5.0, 6.0), ordered=True)),
    "strings": (np.where(NORMAL > 0, "b", "a"), Label(("a", "b"))),
    "a rare level": (np.array(["x", *["y"] * 399]), Label(("x", "y"))),
    "categories": (
        pd.Categorical(np.where(NORMAL > 0, "b", "a"), ["c", "b", "a"], ordered=True),
        Label(("c", "b", "a"), ordered=True),
    ),
    "dates": (
        pd.Timestamp("2020-01-01") + pd.to_timedelta(NORMAL.round(1) * 10, "D").round("D"),
        Date(step=1.0),
    ),
    "constant": (np.full(400, 2.5), Label((2.5,))),
    "nothing": (np.full(400, np.nan), Label(())),
}


@pytest.mark.parametrize("case", RECOGNIZED)
def test_kinds_are_recognized(case):
    values, kind = RECOGNIZED[case]
    table = pg.Table.read(pd.DataFrame({"a": values}))
    assert table.kinds == {"a": kind}
    assert kind.word in str(table)


@pytest.mark.parametrize("case", RECOGNIZED)
def test_continuous_columns_are_brought_to_order_one(case):
    frame = pd.DataFrame({"a": RECOGNIZED[case][0]})
    table = pg.Table.read(frame)
    head = table.heads()[0]
    gen = pg.Tabular(table, Mixed(Constant(head.width(1)), [head]))
    rows = gen.rows(frame)
    y = gen.prepare(rows)
    if table.kinds["a"].whole:
        assert torch.equal(y.nan_to_num(-1.0), rows.nan_to_num(-1.0))
    else:
        assert y.abs().mean() < 2
        assert 0.3 < y.std() < 1.5


def people(count=200, seed=0):
    """Of two kinds that differ in all columns."""
    draws = np.random.default_rng(seed)
    kind = draws.random(count) < 0.5
    return pd.DataFrame(
        {
            "height": np.where(kind, 1.8, 1.2) + 0.03 * draws.standard_normal(count),
            "income": np.exp(np.where(kind, 3.0, 0.0) + 0.2 * draws.standard_normal(count)),
            "visits": draws.poisson(np.where(kind, 20.0, 1.0)),
            "color": pd.Categorical(np.where(kind, "red", "blue"), ["green", "red", "blue"]),
            "since": pd.Timestamp("2020-01-01")
            + pd.to_timedelta(np.where(kind, 1000, 0) + draws.integers(0, 90, count), "D"),
        },
        index=np.arange(count) + 50,
    )


def mixed(table, initial=0.0):
    heads = table.heads()
    width = Mixed(None, heads).width
    return Mixed(Constant(width, initial=initial), heads)


def mixture(table, components=2):
    generator = torch.Generator().manual_seed(3)
    return pg.Mixture(
        [
            mixed(table, torch.randn(mixed(table).width, generator=generator))
            for _ in range(components)
        ]
    )


def raw_of(y):
    """Raw parameters of heads of rows: their moments, of labels their frequencies."""
    mean, scale = y.mean(0), y.std(0).expm1().log()  # before softplus
    lengths = torch.stack([mean[:2], scale[:2]])
    labels = torch.stack([(y[:, 3] == level).float().mean().clamp(min=1e-5) for level in range(3)])
    visits = torch.stack([mean[2].log(), torch.tensor(8.0)])
    return torch.cat([lengths.flatten(), visits, labels.log(), mean[4:], scale[4:]])


@pytest.fixture(scope="module")
def fitted():
    """A mixture of the two kinds, each with the moments of its rows."""
    frame = people(2000)
    table = pg.Table.read(frame)
    kinds = frame["color"] == "red"
    y = pg.Tabular(table, mixed(table)).prepare(table.encode(frame).float())
    parts = [y[torch.tensor(rows.to_numpy())] for rows in (kinds, ~kinds)]
    return pg.Tabular(table, pg.Mixture([mixed(table, raw_of(part)) for part in parts]))


@pytest.mark.slow
def test_training_on_a_frame_raises_its_score():
    frame = people(60)
    table = pg.Table.read(frame)
    gen = pg.Tabular(table, mixture(table))
    before = pg.log_likelihood(gen, frame, seed=0).value.mean()
    pg.fit(gen, frame, steps=20, optimizer=pg.train.adam(0.05), validation=frame[::2], **QUICK)
    assert pg.log_likelihood(gen, frame, seed=0).value.mean() > before + 1


CORRECTIONS = [
    ({"heigth": Count()}, ValueError, "did you mean 'height'"),
    ({"height": Count()}, ValueError, "expected values 0, 1, 2, ... in column 'height'"),
    ({"color": Count()}, ValueError, "expected numbers in column 'color' for Count, got 'blue'"),
    ({"color": Label(["red"])}, ValueError, "got none for 'blue'; add it"),
    ({"color": Flag()}, ValueError, "expected two values in column 'color'"),
    ({"height": Date()}, ValueError, "expected dates in column 'height'"),
    ({"height": Continuous(0, 1)}, ValueError, "expected values up to 1 in column 'height'"),
    ({"visits": Continuous(low=5)}, ValueError, "expected values above 5 in column 'visits'"),
    ({"height": Count}, TypeError, "call it: Count"),
    ({"height": "count"}, TypeError, r"call one: pg.table.Count\(\)"),
]


@pytest.mark.parametrize(("changes", "kind", "message"), CORRECTIONS, ids=str)
def test_corrections_that_do_not_fit_are_refused(changes, kind, message):
    with pytest.raises(kind, match=message):
        pg.Table.read(people()).change(**changes)


def test_corrections_that_fit_are_taken():
    table = pg.Table.read(people())
    changed = table.change({"visits": Continuous(low=0)}, height=Continuous(0, 3))
    assert changed.kinds["visits"] == Continuous(low=0, step=1.0)
    assert changed.kinds["height"] == Continuous(0, 3, step=0.0)
    assert table.kinds["visits"] == Count()
    assert changed.kinds["color"] == table.kinds["color"]


def without(name):
    return people().drop(columns=name)


FOREIGN = [
    (lambda: without("income"), ValueError, "got no 'income'"),
    (lambda: people().rename(columns={"income": "incomes"}), ValueError, "rename 'incomes'"),
    (lambda: people().assign(extra=1), ValueError, r"got 'extra'; .* frame\[table.names\]"),
    (
        lambda: people().assign(color=["red"] * 3 + ["pink"] + ["blue"] * 196),
        ValueError,
        "one of 'green', 'red', 'blue' in column 'color', got 'pink' in row 3",
    ),
    (
        lambda: people().assign(visits=[0.5] * 200),
        ValueError,
        "whole numbers in column 'visits', got 0.5 in row 0",
    ),
    (
        lambda: people().assign(visits=[1, -1] * 100),
        ValueError,
        "of at least 0 in column 'visits', got -1 in row 1",
    ),
    (lambda: people().assign(income=["1"] * 200), TypeError, "'1' in row 0, in column 'income'"),
    (lambda: people().assign(since=[1] * 200), TypeError, "expected dates, .* column 'since'"),
    (lambda: people().assign(height=np.inf), ValueError, "that are finite in column 'height'"),
    (lambda: people().to_numpy(), TypeError, "give its columns names"),
    (lambda: [[1.0]], TypeError, "make one of it, with names"),
]


def told(each):
    """The name of a case by the message alone: functions have none that stays the same."""
    return each[:40] if isinstance(each, str) else None


@pytest.mark.parametrize(("frame", "kind", "message"), FOREIGN, ids=told)
def test_frames_that_do_not_fit_are_refused(frame, kind, message):
    with pytest.raises(kind, match=message):
        pg.Table.read(people()).encode(frame())


def test_what_is_not_known_may_come_as_a_column_of_nothing(fitted):
    frame = people(20)
    x = fitted.table.encode(frame)
    for place, name in enumerate(frame):
        rows = fitted.table.encode(frame.assign(**{name: None}))
        assert rows[:, place].isnan().all()
        assert torch.equal(rows[:, :place], x[:, :place])
    found = pg.impute(fitted, frame.assign(color=None), draws=5, seed=0).frame()
    assert (found["color"] == frame["color"]).mean() > 0.9


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_other_columns_are_left_out_as_the_error_says(library):
    made = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "pyarrow": pa.table}[library]
    table = pg.Table.read(made({"a": [1.5, 2.0], "b": ["x", "y"]}))
    frame = made({"b": ["x"], "other": [0], "a": [1.0]})
    with pytest.raises(ValueError, match="got 'other'; leave out") as raised:
        table.encode(frame)
    advice = str(raised.value).rpartition(": ")[2]
    assert table.encode(eval(advice)).tolist() == [[1.0, 0.0]]


UNREADABLE_OBJECTS = {
    "date": [date(2020, 1, 1), None],
    "Period": pd.PeriodIndex(["2020-01", "2020-02"], freq="M"),
    "list": [[1], [2, 3]],
}


@pytest.mark.parametrize("kind", UNREADABLE_OBJECTS)
def test_columns_of_objects_are_made_readable_as_the_error_says(kind):
    frame = pd.DataFrame({"a": UNREADABLE_OBJECTS[kind]})
    with pytest.raises(TypeError, match=f"got a {kind} in row 0") as raised:
        pg.Table.read(frame)
    exec(str(raised.value).rpartition("make them so: ")[2], {"frame": frame, "pandas": pd})
    assert pg.Table.read(frame).kinds


UNREADABLE = [
    (lambda: people()[:0], ValueError, "with rows and columns"),
    (lambda: pd.DataFrame([[1.0]]), ValueError, "names are strings, got 0"),
    (lambda: pd.DataFrame([[1.0, 2.0]], columns=["a", "a"]), ValueError, "got 'a' twice"),
    (lambda: pd.DataFrame({"a": [1.0, np.inf]}), ValueError, "got inf in row 1"),
    (lambda: pd.DataFrame({"a": [[1], [2]]}), TypeError, "in column 'a', got a list in row 0"),
    (
        lambda: pd.DataFrame({"a": ["x", None, 1.5]}),
        TypeError,
        r"column 'a', got 'x' in row 0 and 1.5 in row 2; make labels of them, .*to_numeric",
    ),
    (lambda: pd.DataFrame({"a": [date(2020, 1, 1)]}), TypeError, "pandas.to_datetime"),
    (lambda: pl.LazyFrame({"a": [1]}), TypeError, r"frame.collect\(\)"),
    (lambda: {"a": [1]}, TypeError, r"pandas.DataFrame\(x\)"),
]


@pytest.mark.parametrize(("frame", "kind", "message"), UNREADABLE, ids=told)
def test_frames_without_a_schema_are_refused(frame, kind, message):
    with pytest.raises(kind, match=message):
        pg.Table.read(frame())


def test_columns_of_numbers_and_strings_are_made_one_as_the_error_says():
    frame = pd.DataFrame({"a": ["x", None, 1.5, 2.25, 0.1]})
    labels = pg.Table.read(frame.assign(a=frame["a"].astype(str)))
    numbers = pg.Table.read(frame.assign(a=pd.to_numeric(frame["a"], errors="coerce")))
    assert labels.kinds["a"].label and not numbers.kinds["a"].label


def test_columns_are_found_by_name_in_any_order_and_library(fitted):
    frame = people()
    x = fitted.table.encode(frame)
    others = [
        frame[frame.columns[::-1]],
        pl.DataFrame({name: frame[name].to_numpy() for name in frame}),
        pa.Table.from_pandas(frame.assign(color=frame["color"].astype(str)), preserve_index=False),
    ]
    for other in others:
        torch.testing.assert_close(fitted.table.encode(other), x, rtol=0, atol=0)
    expected = pg.log_likelihood(fitted, frame[:20], seed=0).value
    for other in (others[0][:20], others[1][:20], others[2].slice(0, 20)):
        torch.testing.assert_close(pg.log_likelihood(fitted, other, seed=0).value, expected)


def scored(frame, **changes):
    table = pg.Table.read(frame).change(**changes)
    return pg.Tabular(table, mixed(table, torch.linspace(-0.5, 0.7, mixed(table).width)))


@pytest.mark.parametrize(
    "values", [NORMAL, SKEWED, stats.t(2).ppf(stats.norm.cdf(NORMAL))], ids=["line", "log", "asinh"]
)
def test_densities_are_those_of_the_units_of_the_frame(values):
    metres = pd.DataFrame({"a": values})
    millimetres = 1000 * metres
    one = pg.log_likelihood(scored(metres), metres).value
    other = pg.log_likelihood(scored(millimetres), millimetres).value
    torch.testing.assert_close(one - other, torch.full_like(one, math.log(1000)), rtol=0, atol=2e-3)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_the_inverse_of_softplus_goes_there_and_back(scale):
    values = stats.truncnorm(-2, math.inf, loc=2).ppf(stats.norm.cdf(NORMAL)) * scale
    table = pg.Table.read(pd.DataFrame({"a": values}))
    assert table.kinds["a"] == Continuous(low=0.0, step=0.0)
    assert table.fields[0].units.map == SOFTPLUS
    units = pg.Tabular(table, mixed(table)).double()._units
    x = torch.tensor(values)[:, None].requires_grad_()
    y, ladj = units.call_and_ladj(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(ladj, slope.log())
    back, inverse = units.inverse_and_ladj(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse, -ladj)
    drawn = pg.Tabular(table, mixed(table, torch.tensor([-1.0, 3.0]))).sample(1000, seed=0)
    assert (drawn["a"] >= 0).all()


def test_a_positive_column_is_log_normal():
    frame = pd.DataFrame({"a": SKEWED})
    gen = scored(frame)
    loc, scale = gen.columns.loc.item(), gen.columns.scale.item()
    raw = torch.linspace(-0.5, 0.7, 2)
    normal = pg.heads.Gaussian()(raw)
    sigma = scale * normal.variance.sqrt().item()
    expected = stats.lognorm.logpdf(SKEWED, sigma, scale=math.exp(loc + scale * normal.mean.item()))
    found = pg.log_likelihood(gen, frame).value
    torch.testing.assert_close(found, torch.from_numpy(expected).float(), rtol=1e-4, atol=1e-4)


def test_a_grid_has_the_probability_of_its_steps():
    frame = pd.DataFrame({"a": NORMAL.round(1)})
    gen = scored(frame)
    raw = torch.linspace(-0.5, 0.7, 2)
    normal = pg.heads.Gaussian()(raw)
    mean = gen.columns.loc.item() + gen.columns.scale.item() * normal.mean.item()
    sigma = gen.columns.scale.item() * normal.variance.sqrt().item()
    at = pd.DataFrame({"a": [-1.0, 0.0, 0.7]})
    exact = stats.norm(mean, sigma).cdf(at["a"] + 0.1) - stats.norm(mean, sigma).cdf(at["a"])
    score = pg.log_likelihood(gen, at, particles=4000, seed=0)
    assert score.kind == "unbiased"
    np.testing.assert_allclose(score.value.exp() * 0.1, exact, rtol=0.02)


def test_zeros_have_a_mass_whatever_the_units():
    frame = pd.DataFrame({"a": np.where(NORMAL > 0, SKEWED, 0.0)})
    zero = pd.DataFrame({"a": [0.0]})
    masses = [pg.log_likelihood(scored(s * frame), zero).value.item() for s in (1.0, 1000.0)]
    assert masses[0] == masses[1]
    drawn = scored(frame).sample(4000, seed=0)["a"]
    assert (drawn == 0).mean() == pytest.approx(math.exp(masses[0]), abs=0.03)
    gen = scored(frame)
    log = torch.linspace(-15, 25, 4001)[:, None]
    density = (gen().log_prob(log.exp()) + log[:, 0]).exp().sum() * 0.01
    assert density.item() + math.exp(masses[0]) == pytest.approx(1, abs=0.01)


def test_labels_have_masses_that_sum_to_one():
    frame = pd.DataFrame({"a": ["x", "y", "z"], "b": [True, False, True], "c": [4.5] * 3})
    gen = scored(frame)
    cells = pd.DataFrame(
        [(a, b, 4.5) for a in "xyz" for b in (True, False)], columns=["a", "b", "c"]
    )
    assert pg.log_likelihood(gen, cells).value.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_draws_are_frames_like_the_one_that_was_read(fitted):
    frame = people()
    for drawn in (fitted.sample(500, seed=0), pg.sample(fitted, 500, seed=0)):
        assert list(drawn.dtypes) == list(frame.dtypes)
        assert list(drawn.columns) == list(frame.columns)
        assert drawn["color"].isin(["red", "blue"]).mean() > 0.98
        tall = drawn["height"] > 1.5
        assert (tall == (drawn["color"] == "red")).mean() > 0.95
        assert ((drawn["since"] > "2022") == tall).mean() > 0.95
        assert (drawn["income"] > 0).all()
    assert len(fitted.sample(0)) == 0


def test_missing_cells_are_filled_with_what_the_others_tell(fitted):
    truth = people(seed=1)
    holes = np.random.default_rng(0).random(truth.shape) < 0.2
    frame = truth.mask(holes)
    done = pg.impute(fitted, frame, draws=20, seed=0)
    filled = done.frame()
    assert filled.index.equals(truth.index)
    assert not filled.isna().to_numpy().any()
    assert list(filled.columns) == list(truth.columns)
    for place, name in enumerate(truth):
        lost = holes[:, place]
        assert (filled[name][~lost] == truth[name][~lost]).all()
    assert (filled["color"] == truth["color"]).mean() > 0.98
    assert (filled["height"] - truth["height"]).abs().mean() < 0.02
    assert ((filled["since"] > "2022") == (truth["since"] > "2022")).mean() > 0.98
    copies = done.frames()
    assert len(copies) == 20
    lost = holes[:, 0]
    assert (copies[0]["height"][lost] != copies[1]["height"][lost]).all()


def test_imputed_numbers_have_no_frame_but_encoded_rows_a_new_one():
    x = torch.tensor([[torch.nan]])
    gen = scored(pd.DataFrame({"a": NORMAL}))
    with pytest.raises(TypeError, match=r"give pg\.impute a pg\.Tabular and a frame"):
        pg.impute(gen.family, x).frame()
    done = pg.impute(gen, x, seed=0)
    assert done.frame()["a"].item() == pytest.approx(done.draws.item(), rel=1e-6)


CUTS = {
    "list": lambda frame: cut(frame),
    "iterator": lambda frame: iter(cut(frame)),
    "columns in another order": lambda frame: [part[part.columns[::-1]] for part in cut(frame)],
    "polars": lambda frame: [pl.from_pandas(part) for part in cut(frame)],
    "arrow": lambda frame: [
        pa.Table.from_pandas(part, preserve_index=False) for part in cut(frame)
    ],
    "loader": lambda frame: DataLoader(
        range(len(frame)), 7, collate_fn=lambda rows: frame.iloc[rows]
    ),
    "batches by name": lambda frame: [{"x": part} for part in cut(frame)],
    "encoded": lambda frame: [pg.Table.read(people()).encode(part) for part in cut(frame)],
}
BATCHED = {
    "log_likelihood": lambda gen, data: pg.log_likelihood(gen, data).mean,
    "impute": lambda gen, data: joined(pg.impute(gen, data, seed=0, max_rows=1000)),
    "predictive": lambda gen, data: len(joined(pg.predictive(gen, data, draws=2))["x"][0]),
}


def cut(frame):
    return [frame.iloc[start : start + 7] for start in range(0, len(frame), 7)]


def joined(found):
    """The only block of a stream, or what there is of rows in memory."""
    found = next(found).result if isinstance(found, Iterator) else found
    return found.frame() if isinstance(found, pg.Imputation) else found


@pytest.mark.table(quick=8)
@pytest.mark.parametrize("form", CUTS)
@pytest.mark.parametrize("name", BATCHED)
def test_frames_in_batches_are_the_whole_frame(name, form):
    whole = people().iloc[:40]
    gen = pg.Tabular(pg.Table.read(people()), mixture(pg.Table.read(people())))
    frame = whole.copy()
    frame.loc[frame.index[::3], "height"] = np.nan
    expected = BATCHED[name](gen, frame)
    found = BATCHED[name](gen, CUTS[form](frame))
    if not isinstance(expected, pd.DataFrame):
        assert found == pytest.approx(expected, rel=1e-5)
        return
    known = frame["height"].notna().to_numpy()
    assert found["height"].notna().all() and len(found) == len(frame)
    assert list(found["visits"]) == list(expected["visits"])
    np.testing.assert_allclose(found["height"][known], frame["height"][known].to_numpy(), rtol=1e-5)


@pytest.mark.parametrize("form", ["list", "polars", "columns in another order"])
def test_em_of_frames_in_batches_is_that_of_the_whole(form):
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"a": random.normal(size=60), "b": random.normal(5, 3, 60)})
    frame.loc[:20, "a"] += 8
    table = pg.Table.read(frame)
    fitted = []
    for data in (frame, CUTS[form](frame)):
        torch.manual_seed(0)
        gen = pg.Tabular(table, pg.GaussianMixture(2, 2))
        pg.em(gen, data, seed=0, max_iter=500)
        fitted.append(pg.log_likelihood(gen, frame).mean)
    assert fitted[0] == pytest.approx(fitted[1], abs=1e-4)


READERS = {
    "log_likelihood": pg.log_likelihood,
    "impute": pg.impute,
    "posterior": pg.posterior,
    "fit": lambda gen, data: pg.fit(gen, data, steps=1, **QUICK),
}


@pytest.mark.parametrize("name", READERS)
def test_plain_numbers_of_columns_are_refused_where_a_table_encodes_them(name, tmp_path):
    frame = pd.DataFrame({"b": [3, 1, 3, 1] * 5, "a": np.arange(20) * 1.7})
    table = pg.Table.read(frame[["a", "b"]]).change(b=Label([1, 3]))
    gen = pg.Tabular(table, Mixed(Constant(Mixed(None, table.heads()).width), table.heads()))
    frame.to_parquet(tmp_path / "rows.parquet")
    path = str(tmp_path / "*.parquet")
    with pytest.raises(ValueError, match=r"by their names.* encode=gen\.rows"):
        READERS[name](gen, pg.streams.Parquet(path))
    READERS[name](gen, pg.streams.Parquet(path, encode=gen.rows))  # as it says


def test_polars_goes_all_the_way():
    frame = pl.from_pandas(people().assign(color=lambda each: each["color"].astype(str)))
    table = pg.Table.read(frame)
    gen = pg.Tabular(table, mixture(table))
    pg.fit(gen, frame, steps=3, **QUICK)
    holes = frame.with_columns(pl.when(pl.col("visits") > 3).then("color").alias("color"))
    filled = pg.impute(gen, holes, seed=0).frame()
    assert filled.schema == frame.schema == gen.sample(3).schema
    assert filled.null_count().row(0) == (0,) * 5


@pytest.mark.slow
def test_a_file_keeps_the_schema(fitted, tmp_path):
    path = tmp_path / "people.safetensors"
    pg.save(fitted, path)
    code = (
        "import sys, probgen as pg\n"
        f"gen = pg.load({str(path)!r})\n"
        "print(gen.table)\n"
        "print(gen.sample(4, seed=0).to_csv())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == f"{fitted.table}\n{fitted.sample(4, seed=0).to_csv()}".strip()


def test_a_file_of_another_schema_is_refused(fitted, tmp_path):
    pg.save(fitted, tmp_path / "people.safetensors")
    table = fitted.table.change(visits=Continuous(low=0))
    other = pg.Tabular(table, mixture(table))
    with pytest.raises(pg.CheckpointError, match="belongs to another model"):
        pg.load(tmp_path / "people.safetensors", into=other)


def test_expectation_maximization_takes_frames():
    frame = people()[["height", "income"]]
    table = pg.Table.read(frame)
    gen = pg.Tabular(table, pg.GaussianMixture(2, 2))
    result = pg.em(gen, frame, seed=0)
    score = pg.log_likelihood(gen, frame)
    assert score.kind == "exact"
    assert result.log_likelihood[-1].item() == pytest.approx(score.value.mean().item(), abs=1e-4)
    assert result.log_likelihood[-1] > result.log_likelihood[0]


def test_families_without_steps_are_refused_by_em():
    frame = people()[["height"]]
    with pytest.raises(TypeError, match="expect"):
        pg.em(scored(frame), frame)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (lambda: pg.GaussianMixture(2, 5), r"labels or counts in columns \['visits', 'color'\]"),
        (lambda: pg.GaussianMixture(2, 3), "a family of rows of 5 columns"),
        (lambda: pg.AutoregressiveTable, "class"),
    ],
)
def test_families_of_other_rows_are_refused(family, message):
    with pytest.raises((ValueError, TypeError), match=message):
        pg.Tabular(pg.Table.read(people()), family())


def test_contexts_are_numbers_beside_the_frame():
    frame = people()
    table = pg.Table.read(frame)
    gen = pg.Tabular(table, pg.AutoregressiveTable(table.heads(), [8], context=2))
    context = torch.randn(len(frame), 2)
    pg.fit(gen, (frame, context), steps=3, **QUICK)
    assert pg.log_likelihood(gen, frame, context, particles=2).value.shape == (len(frame),)
    assert len(pg.sample(gen, 2, context[:3])) == 6


def test_a_look_says_what_is_odd():
    frame = pd.DataFrame(
        {
            "id": np.arange(100),
            "name": [f"n{row}" for row in range(100)],
            "when": ["2020-01-01", "2021-05-06"] * 50,
            "age": [1.5, None] * 50,
        }
    )
    lines = str(pg.Table.read(frame)).splitlines()
    assert "leave it out?" in lines[1] and "leave it out?" in lines[2]
    assert "pandas.to_datetime(frame['when'])" in lines[3]
    assert "50 missing" in lines[4]
    assert len(lines) == 5
