"""Missing cells of a table: what is kept of them, and draws that lack as many."""

import numpy as np
import pandas as pd
import pytest
import torch

import probgen as pg
from probgen.heads import Mixed
from probgen.nn import Constant
from probgen.table.gaps import Gaps


def holed(n=2000, seed=0):
    """Of two columns that are missing together, a label that is missing alone, a full column."""
    generator = np.random.default_rng(seed)
    frame = pd.DataFrame({"x": generator.normal(size=n), "y": generator.normal(size=n)})
    frame["label"] = np.where(frame["x"] > 0, "up", "down").astype(object)
    frame["full"] = generator.normal(size=n)
    lacking = generator.random(n) < 0.3
    frame.loc[lacking, "x"] = np.nan
    frame.loc[lacking & (generator.random(n) < 0.9), "y"] = np.nan
    frame.loc[generator.random(n) < 0.1, "label"] = None
    return frame


def independent(frame):
    table = pg.Table.read(frame)
    heads = table.heads()
    return pg.Tabular(table, Mixed(Constant(Mixed(None, heads).width), heads))


def together(frame):
    """Shares of rows that lack both of each pair of columns."""
    lacking = frame.isna().to_numpy().astype(float)
    return lacking.T @ lacking / len(frame)


@pytest.mark.parametrize("draw", ["model", "function"])
def test_draws_lack_cells_as_often_as_the_table_alone_and_together(draw):
    frame = holed()
    gen = independent(frame)
    drawn = gen.sample(8000, seed=0) if draw == "model" else pg.sample(gen, 8000, seed=1)
    # five standard errors of a share
    np.testing.assert_allclose(together(drawn), together(frame), atol=5 * 0.5 / 8000**0.5)
    assert together(frame)[0, 1] > 0.25 > 0.1 > together(frame)[0, 0] * together(frame)[1, 1]


def test_pairs_are_counted_as_the_counts_of_indicators():
    missing = holed(200).isna()
    gaps = pg.Table.read(holed(200)).gaps
    assert gaps.columns == (0, 1, 2)
    counts = gaps.pairs()
    for i, one in enumerate(missing.columns[:3]):
        for j, other in enumerate(missing.columns[:3]):
            cells = [
                [((missing[one] == a) & (missing[other] == b)).sum() for b in (False, True)]
                for a in (False, True)
            ]
            assert counts[i, :, j].tolist() == cells


def test_complete_rows_are_drawn_where_they_are_asked_for():
    gen = independent(holed())
    whole = gen.sample(50, missing=False, seed=3)
    assert not whole.isna().any().any()
    some = gen.sample(50, seed=3)
    known = some.notna()
    assert not known.all().all() and known["full"].all()
    assert some.where(known, whole).equals(whole)  # the same rows, without some of their cells


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"x": [0.5, 1.5, 2.5], "y": ["u", "v", "u"]}),
        pd.DataFrame({"x": [0.5, 1.5, 2.5], "y": [None, None, None]}),
    ],
    ids=["complete", "a column of nothing"],
)
def test_tables_without_gaps_have_draws_without(frame):
    drawn = independent(frame).sample(100, seed=0)
    assert drawn["x"].notna().all()
    assert drawn["y"].isna().all() == frame["y"].isna().all()


def test_gaps_are_saved_and_stay_when_kinds_are_changed(tmp_path):
    gen = independent(holed())
    changed = gen.table.change(x=pg.table.Continuous(step=0))
    assert changed.gaps == gen.table.gaps == Gaps.of(list(holed().isna().to_numpy().T))
    pg.save(gen, tmp_path / "gen.safetensors")
    again = pg.load(tmp_path / "gen.safetensors")
    assert again.sample(100, seed=0).equals(gen.sample(100, seed=0))


def test_scores_and_imputations_are_those_of_the_known_cells():
    frame = holed(300)
    gen = independent(frame)
    alone = pg.Tabular(pg.Table(gen.table.fields), gen.family)  # knows of no gaps
    rows = gen.rows(frame)
    assert torch.equal(gen().log_prob(rows), alone().log_prob(rows))
    assert pg.impute(gen, frame, seed=0).frame().equals(pg.impute(alone, frame, seed=0).frame())
    assert alone.sample(300, seed=0).notna().all().all()


@pytest.mark.slow
def test_gaps_do_not_count_against_draws():
    """Of a model whose every column is right by itself, with the same missing cells."""
    frame, other = holed(1000), holed(1000, seed=1)
    gen = independent(frame)
    pg.fit(gen, frame, steps=150, optimizer=pg.train.adam(0.05), progress=False, seed=0)
    scores = [
        pg.evaluate.table_quality(gen.sample(1000, missing=missing, seed=0), other)
        for missing in (True, False)
    ]
    for name in ("x", "y", "label"):
        with_gaps, without = (score.columns[name] for score in scores)
        assert with_gaps[0] > with_gaps[1] - 0.04 and without[0] < without[1] - 0.05


@pytest.mark.parametrize("backend", ["polars", "pyarrow"])
def test_frames_of_other_libraries_lack_cells_too(backend):
    pytest.importorskip(backend)
    if backend == "polars":
        import polars

        frame = polars.from_pandas(holed(400))
        lacking = independent(frame).sample(400, seed=0)["x"].null_count()
    else:
        import pyarrow

        frame = pyarrow.Table.from_pandas(holed(400), preserve_index=False)
        lacking = independent(frame).sample(400, seed=0)["x"].null_count
    assert 60 < lacking < 180


def test_missing_is_a_flag():
    with pytest.raises(TypeError, match="missing"):
        independent(holed(50)).sample(3, missing="no")
