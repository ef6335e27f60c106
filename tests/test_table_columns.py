"""Columns of tables: their ends, digits and precision, and what is said of them by name."""

import datetime
import math

import numpy as np
import pandas as pd
import pytest
import torch

import probgen as pg
from probgen.core.columns import AFFINE, LOG, NAMES, SOFT_LOGIT, under
from probgen.diagnostics.baseline import against_marginals
from probgen.distributions.flows.columns import ColumnMaps
from probgen.table.kinds import UnknownLevel
from probgen.table.schema import Table

ROWS = 500
RNG = np.random.default_rng(0)


def days(numbers):
    return pd.Timestamp("2020-01-01") + pd.to_timedelta(numbers, unit="D")


def independent(frame):
    table = Table.read(frame)
    return pg.Tabular(table, pg.AutoregressiveTable(table.heads(), [16]))


# -- a soft logit


def soft():
    x = torch.rand(ROWS, generator=torch.Generator().manual_seed(0)).double() * 60 + 18
    return under(SOFT_LOGIT, x, 0.0, x.min().item(), x.max().item())


def test_a_soft_logit_is_an_increasing_map_of_all_numbers():
    transform = ColumnMaps([soft()]).double()()
    x = torch.linspace(-50, 150, 2001, dtype=torch.double)[:, None].requires_grad_()
    y, ladj = transform.call_and_ladj(x)
    assert (y.diff(dim=0) > 0).all()
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(ladj, slope.log())
    back, ladj_back = transform.inverse_and_ladj(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(ladj_back, -ladj)
    assert transform.domain.check(x).all()


def test_its_density_integrates_to_one():
    transform = ColumnMaps([soft()]).double()()
    x = torch.linspace(0, 100, 200_001, dtype=torch.double)[:, None]
    y, ladj = transform.call_and_ladj(x)
    density = (torch.distributions.Normal(0.0, 1.0).log_prob(y) + ladj).exp()
    total = torch.trapezoid(density[:, 0], x[:, 0])
    torch.testing.assert_close(total, torch.ones((), dtype=torch.double), atol=1e-5, rtol=0)


MAPS = {
    "ages of adults": (RNG.integers(18, 80, ROWS).astype(float), SOFT_LOGIT),
    "a range without bounds": (RNG.uniform(-5, 5, ROWS), SOFT_LOGIT),
    "a sharp end": (-RNG.exponential(size=ROWS), SOFT_LOGIT),
    "bell-shaped": (RNG.normal(size=ROWS), AFFINE),
    "log-normal": (np.exp(RNG.normal(size=ROWS)), LOG),
    "dates of a year": (days(RNG.integers(0, 365, ROWS)), SOFT_LOGIT),
    "dates that pile up at their end": (
        days(300 - RNG.exponential(50, ROWS).astype(int)),
        SOFT_LOGIT,
    ),
}


@pytest.mark.parametrize("name", MAPS)
def test_the_map_of_a_column(name):
    values, kind = MAPS[name]
    units = Table.read(pd.DataFrame({"a": values})).fields[0].units
    assert NAMES[units.map] == NAMES[kind]


@pytest.mark.parametrize("name", [name for name, (_, kind) in MAPS.items() if kind == SOFT_LOGIT])
def test_draws_hardly_leave_the_range_that_was_read(name):
    frame = pd.DataFrame({"a": MAPS[name][0]})
    table = Table.read(frame)
    standard = pg.heads.Mixed(pg.nn.Constant(2), table.heads())
    with torch.no_grad():  # a normal of order one, as after a fit
        for parameter in standard.parameters():
            parameter.copy_(torch.tensor([0.0, math.log(math.expm1(1.0))]))
    drawn = pg.Tabular(table, standard).sample(5000, seed=0)["a"]
    low, high = frame["a"].min(), frame["a"].max()
    outside = (drawn < low) | (drawn > high)
    assert outside.mean() < 0.01
    assert drawn.max() - high < 0.05 * (high - low) and low - drawn.min() < 0.05 * (high - low)


def test_later_dates_have_a_density():
    gen = independent(pd.DataFrame({"t": days(RNG.integers(0, 365, ROWS))}))
    later = pd.DataFrame({"t": days(np.array([100, 370, 800]))})
    scores = gen().log_prob(gen.rows(later))
    assert scores.isfinite().all() and scores[0] > scores[1] > scores[2]


# -- digits and precision

DIGITS = {
    "cents": (RNG.gamma(2, 30, ROWS).round(2), 2),
    "tenths": (RNG.normal(size=ROWS).round(1), 1),
    "whole": (np.arange(ROWS) * 7.0, 0),
    "any": (RNG.normal(size=ROWS), None),
    "cents in float32": (RNG.gamma(2, 30, ROWS).round(2).astype("float32"), 2),
}


@pytest.mark.parametrize("name", DIGITS)
def test_draws_have_the_digits_that_were_read(name):
    values, digits = DIGITS[name]
    frame = pd.DataFrame({"a": values})
    gen = independent(frame)
    assert gen.table.fields[0].facts.digits == digits
    drawn = gen.sample(200, seed=0)["a"].to_numpy().astype("float64")
    if digits is None:
        assert (np.abs(drawn - drawn.round(4)) > 1e-6).any()
    else:
        assert np.abs(drawn - drawn.round(digits)).max() < 1e-5 * np.abs(drawn).max()
    pd.testing.assert_frame_equal(gen.table.decode(gen.table.encode(frame)), frame)


def test_rounding_leaves_positive_numbers_positive():
    gen = independent(pd.DataFrame({"a": RNG.gamma(0.3, 1, ROWS).round(2) + 0.01}))
    kind, facts = gen.table.fields[0].kind, gen.table.fields[0].facts
    assert kind.low == 0
    assert (kind.recorded(np.array([0.004, 0.006, 1.234]), facts) == [0.004, 0.01, 1.23]).all()


LOST = {"far off": RNG.normal(size=60) + 1e12, "huge": 1e300 * RNG.normal(size=60)}
LOST["tiny"] = 1e-300 * RNG.normal(size=60)


@pytest.mark.parametrize("name", LOST)
def test_numbers_that_a_model_cannot_tell_apart_are_refused_with_advice_that_works(name):
    frame = pd.DataFrame({"z": LOST[name]})
    gen = independent(frame)
    with pytest.raises(ValueError, match="column 'z' that float32 tells apart") as caught:
        gen.rows(frame)
    exec(str(caught.value).partition("scale them: ")[2], {"frame": frame})
    gen = independent(frame)
    assert gen().log_prob(gen.rows(frame)).isfinite().all()


def test_an_outlier_is_no_lack_of_precision():
    frame = pd.DataFrame({"z": [1e12, *RNG.normal(size=60)]})
    gen = independent(frame)
    assert gen().log_prob(gen.rows(frame)).isfinite().all()


def test_integers_beyond_floating_point_are_labels():
    frame = pd.DataFrame({"z": [10**30 + n for n in range(5)]})
    table = Table.read(frame)
    assert table.decode(table.encode(frame))["z"].tolist() == frame["z"].tolist()


ODD = {
    "flags among numbers": ([True, 2] * 9, "expected values of one type in column 'z', got True"),
    "complex": ([1j, 2.0] * 9, "make two columns of it"),
    "lists": ([[1]] * 18, "got a list in row 0; make them so"),
    "dates as objects": ([datetime.date(2020, 1, 1)] * 18, "pandas.to_datetime(frame['z'])"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_columns_are_refused(name):
    values, words = ODD[name]
    with pytest.raises(TypeError) as caught:
        Table.read(pd.DataFrame({"z": pd.Series(values, dtype=object)}))
    assert str(caught.value).startswith("expected ") and words in str(caught.value)


NAMED = {
    "numbers": lambda frame: frame.set_axis([0, 1], axis=1),
    "levels": lambda frame: frame.set_axis(
        pd.MultiIndex.from_tuples([("a", "x"), ("a", "y")]), axis=1
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_advice_about_names_works(name):
    frame = NAMED[name](pd.DataFrame(np.eye(2), columns=["a", "b"]))
    with pytest.raises(ValueError, match="names are strings") as caught:
        Table.read(frame)
    exec(str(caught.value).partition("name them: ")[2], {"frame": frame})
    assert len(Table.read(frame).names) == 2


# -- verdicts


def mixed_frame():
    return pd.DataFrame(
        {
            "amount": RNG.normal(size=ROWS),
            "town": RNG.choice(["Bern", "Chur"], ROWS, p=[0.99, 0.01]),
            "year": 2020.0,
            "rain": np.where(RNG.random(ROWS) < 0.5, 0.0, RNG.gamma(1, 1, ROWS)),
        }
    )


def test_the_baseline_of_a_table_counts_labels_and_zeros():
    frame = mixed_frame()
    gen = independent(frame)
    found = against_marginals(gen, gen.rows(frame), judged_rows=ROWS, seconds=1e9)
    amount, rain = frame["amount"], frame["rain"]
    share = (frame["town"] == "Bern").sum()
    towns = np.where(frame["town"] == "Bern", share + 1, ROWS - share + 1) / (ROWS + 2)
    wet = rain > 0
    zero = (np.where(wet, wet.sum(), (~wet).sum()) + 1) / (ROWS + 2)

    def normal(values, known):
        mean, var = values[known].mean(), values[known].var(ddof=0)
        return np.where(known, -((values - mean) ** 2 / var + np.log(2 * np.pi * var)) / 2, 0.0)

    known = np.ones(ROWS, dtype=bool)
    total = np.log(towns) + np.log(zero) + normal(amount, known) + normal(rain, wet)
    parameters = (2 + 1 + 1) / ROWS + 2 / wet.sum()
    assert found.rows == ROWS
    assert found.baseline == pytest.approx(total.mean() - parameters, abs=1e-4)


def test_a_column_that_is_always_the_same_leaves_the_baseline_on():
    frame = mixed_frame()
    found = pg.verdict(independent(frame), frame)
    assert found.baseline is not None and "year" not in str(found)


def test_columns_are_named_where_their_names_are_known():
    frame = mixed_frame()
    gen = independent(frame)
    rows = gen.rows(frame)
    rows[:, 0] = 1.5  # constant in what is judged, not in what was read
    said = str(pg.verdict(gen, rows))
    assert "columns: 'amount' of x does not vary" in said and "element 'amount' is constant" in said


# -- privacy


def test_a_label_of_the_held_out_rows_alone_asks_for_the_schema_of_all_rows():
    samples, train = (pd.DataFrame({"a": ["u", "v"] * 5}) for _ in range(2))
    held_out = pd.DataFrame({"a": ["u", "w"] * 5})
    names = {"samples": samples, "train": train, "held_out": held_out, "pandas": pd, "pg": pg}
    with pytest.raises(UnknownLevel) as caught:
        pg.evaluate.table_privacy(samples, train, held_out)
    table = eval(str(caught.value).partition("table=")[2], names)
    assert pg.evaluate.table_privacy(samples, train, held_out, table=table).copies == (1.0, 0.5)
    with pytest.raises(UnknownLevel) as caught:
        pg.evaluate.table_quality(held_out, train)
    table = eval(
        str(caught.value).partition("table=")[2], {**names, "samples": held_out, "real": train}
    )
    assert table.kinds["a"].levels == ("u", "v", "w")


def test_training_rows_are_no_held_out_rows():
    rows = pd.DataFrame({"a": RNG.normal(size=20)})
    with pytest.raises(ValueError, match="got the training rows"):
        pg.evaluate.table_privacy(rows, rows, rows.copy())
