"""Similarity and privacy of tables, against SciPy, scikit-learn and brute force."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score

import probgen as pg
from probgen.evaluate import table_privacy, table_quality
from probgen.evaluate.table_privacy import _area, _Gower
from probgen.evaluate.table_quality import _comparison

NAMES = ["a", "b", "c", "d"]
LEVELS = [0, 0, 3, 2]


def rows(n, seed, shift=0.0):
    """Two numbers that go together, a label that goes with them, and a flag; a tenth is missing."""
    generator = np.random.default_rng(seed)
    a = generator.normal(shift, 1.0, n)
    b = np.exp(a + generator.normal(size=n))
    c = np.digitize(a + generator.normal(size=n), [-0.5, 0.5])
    d = generator.integers(0, 2, n)
    x = np.stack([a, b, c, d], 1)
    x[generator.random(x.shape) < 0.1] = np.nan
    return x


def frame(n, seed, shift=0.0):
    x = rows(n, seed, shift)
    names = np.array(["low", "mid", "top"], dtype=object)
    labels = [None if np.isnan(code) else names[int(code)] for code in x[:, 2]]
    flags = pd.array([pd.NA if np.isnan(v) else bool(v) for v in x[:, 3]], dtype="boolean")
    return pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": labels, "d": flags})


@pytest.fixture
def pair():
    real = rows(300, 0)
    return real, rows(200, 1, shift=0.7)


def test_numbers_are_compared_as_by_scipy(pair):
    real, other = pair
    found = _comparison(real, NAMES, LEVELS)(other)
    for place, name in enumerate("ab"):
        parts = (np.nan_to_num(part[:, place], nan=-1e9) for part in (real, other))
        assert found[name,] == pytest.approx(1 - stats.ks_2samp(*parts).statistic)
    rho = [
        stats.spearmanr(part[:, 0], part[:, 1], nan_policy="omit").statistic
        for part in (real, other)
    ]
    assert found["a", "b"] == pytest.approx(1 - abs(rho[0] - rho[1]) / 2, abs=2e-3)


def test_labels_and_two_way_tables_are_compared_as_by_pandas(pair):
    real, other = pair
    found = _comparison(real, NAMES, LEVELS)(other)

    def shares(part, columns):
        table = pd.DataFrame(part, columns=NAMES)[columns].fillna(-1.0)
        return table.value_counts(normalize=True)

    for columns in (["c"], ["d"], ["c", "d"]):
        apart = shares(real, columns).sub(shares(other, columns), fill_value=0.0).abs().sum() / 2
        assert found[tuple(columns)] == pytest.approx(1 - apart)
    edges = np.nanquantile(real[:, 0], np.linspace(0, 1, 11)[1:-1])
    tables = []
    for part in (real, other):
        binned = np.where(np.isnan(part[:, 0]), -1, np.digitize(part[:, 0], edges))
        both = pd.DataFrame({"a": binned, "c": np.nan_to_num(part[:, 2], nan=-1.0)})
        tables.append(both.value_counts(normalize=True))
    apart = tables[0].sub(tables[1], fill_value=0.0).abs().sum() / 2
    assert found["a", "c"] == pytest.approx(1 - apart)


def test_a_label_that_one_half_lacks_is_none_of_the_others():
    real = np.array([[0.0], [2.0], [2.0], [0.0]])
    assert _comparison(real, ["c"], [3])(np.array([[1.0], [1.0]]))["c",] == 0.0


def test_real_rows_are_as_good_as_the_baseline_and_others_are_not():
    real = frame(2000, 0)
    same = table_quality(frame(2000, 1), real, splits=8)
    assert same.overall == pytest.approx(same.baseline, abs=0.01)
    assert same.baseline > 0.92 and same.compared == 1000
    moved = table_quality(frame(2000, 1, shift=1.0), real)
    assert moved.columns["a"][0] < 0.7 < 0.95 < moved.columns["a"][1]
    assert moved.columns["d"][0] > 0.95
    assert "a" in str(moved).splitlines()[1]
    table = moved.to_frame()
    assert len(table) == 4 + 6
    gaps = table["similarity"] - table["real_against_real"]
    assert gaps.is_monotonic_increasing


def test_columns_that_do_not_vary_have_no_pairs():
    real = frame(100, 0).assign(c="same", e=np.nan)
    found = table_quality(real, real)
    assert set(found.columns) == {"a", "b", "c", "d", "e"}
    assert set(found.pairs) == {("a", "b"), ("a", "d"), ("b", "d")}


def test_missing_cells_are_kept():
    real = frame(1000, 0)
    filled = frame(1000, 1).assign(a=lambda table: table["a"].fillna(0.0))
    found = table_quality(filled, real)
    assert found.columns["a"][0] < 0.93 < found.columns["b"][0]


def test_distances_are_gowers():
    train = torch.from_numpy(rows(60, 0))
    others = torch.from_numpy(rows(50, 1))
    measure = _Gower(train, torch.tensor([False, False, True, True]))
    found = measure.nearest(others, train, 2)
    low, high = (np.nanquantile(train.numpy(), q, 0) for q in (0.01, 0.99))

    def apart(x, y):
        total = 0.0
        for place in range(4):
            if np.isnan(x[place]) or np.isnan(y[place]):
                total += float(not (np.isnan(x[place]) and np.isnan(y[place])))
            elif place > 1:
                total += float(x[place] != y[place])
            else:
                total += min(1.0, abs(x[place] - y[place]) / (high[place] - low[place]))
        return total / 4

    every = np.array([sorted(apart(x, y) for y in train.numpy())[:2] for x in others.numpy()])
    assert np.allclose(found.numpy(), every)


def test_membership_is_the_area_under_the_curve():
    members = torch.tensor([0.1, 0.2, 0.2, 0.4, 0.9]).double()
    others = torch.tensor([0.2, 0.3, 0.5, 0.8]).double()
    value, low, high = _area(members, others)
    truth = roc_auc_score([1] * 5 + [0] * 4, -torch.cat([members, others]).numpy())
    assert value == pytest.approx(truth) and low < value < high


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say():
    held = np.zeros(2)
    tries = 60
    for seed in range(tries):
        found = table_privacy(*(frame(150, 3 * seed + place) for place in range(3)))
        shares = (found.closer, found.membership)
        held += [low < 0.5 < high for _, low, high in shares]
    assert (held / tries > 0.85).all()


def test_copies_are_told_from_fresh_rows():
    train, held_out, fresh = (frame(500, seed) for seed in (3, 4, 5))
    copied = pd.concat([train[:250], fresh[:250]], ignore_index=True)
    found = table_privacy(copied, train, held_out)
    known = {tuple(row) for row in train.astype(str).to_numpy()}
    assert found.copies[0] >= 0.5
    assert found.copies[1] == np.mean(
        [tuple(row) in known for row in held_out.astype(str).to_numpy()]
    )
    assert found.closer[1] > 0.6 and found.membership[1] > 0.6
    assert "keeps single rows" in str(found)
    safe = table_privacy(fresh, train, held_out)
    assert safe.closer[1] < 0.5 < safe.closer[2] and safe.membership[1] < 0.5 < safe.membership[2]
    assert safe.distance[0] == pytest.approx(safe.distance[1], rel=0.2)
    assert safe.ratio[0] == pytest.approx(safe.ratio[1], rel=0.2)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: table_quality(frame(3, 0), frame(20, 1)), "draw more"),
        (lambda: table_quality(frame(9, 0)[["a"]], frame(20, 1)), "'b'"),
        (lambda: table_quality(frame(9, 0).assign(c="new"), frame(20, 1)), "'new'"),
        (lambda: table_privacy(frame(60, 0)[:0], frame(60, 0), frame(60, 2)), "samples, held-out"),
        (lambda: table_quality(torch.zeros(9, 2), frame(20, 1)), "frame"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, says):
    with pytest.raises((ValueError, TypeError), match=says):
        call()


def test_a_table_says_what_columns_are():
    real = pd.DataFrame({"code": np.arange(40) % 5})
    drawn = pd.DataFrame({"code": np.arange(40) % 5}).sample(frac=1, random_state=0)
    table = pg.Table.read(real).change(code=pg.table.Label(range(5)))
    assert table_quality(drawn, real, table=table).columns["code"][1] > 0.6
