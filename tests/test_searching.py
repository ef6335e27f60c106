"""A density of a table chosen on held-out rows: the choice, the division, the time, what fails."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch

import probgen as pg
from probgen.heads import Mixed
from probgen.nn import Constant
from probgen.searching import _clusters, _divided, _seconds


def linked(n=400, seed=0, missing=0.0):
    """A number, a label that goes with it, and a positive number."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=n)
    x[generator.random(n) < missing] = np.nan
    label = np.where(np.nan_to_num(x) + 0.1 * generator.normal(size=n) > 0, "up", "down")
    return pd.DataFrame({"x": x, "label": label, "size": np.exp(generator.normal(size=n))})


def alone(table, x):
    heads = table.heads()
    return Mixed(Constant(Mixed(None, heads).width), heads)


def chained(table, x):
    return pg.AutoregressiveTable.fitted(table.heads(), [16], x)


def broken(table, x):
    raise ValueError("expected nothing, got something; do nothing")


def too_wide(table, x):
    return pg.standard_normal(x.shape[1] + 3)


TWO = {"alone": pg.Candidate(alone, 0.05), "chained": pg.Candidate(chained, 0.02)}


@pytest.mark.parametrize(
    ("budget", "seconds"),
    [
        ("90 s", 90.0),
        ("2 min", 120.0),
        ("2 minutes", 120.0),
        ("1.5h", 5400.0),
        ("10sec", 10.0),
        (7, 7.0),
        (0.5, 0.5),
    ],
)
def test_a_budget_is_a_time(budget, seconds):
    assert _seconds(budget) == seconds


@pytest.mark.parametrize("budget", ["soon", "0 s", "3 days", "", "-2 min", 0, -1.0])
def test_what_is_no_time_is_refused(budget):
    with pytest.raises(ValueError, match="budget"):
        pg.search(linked(30), budget=budget)


def test_rows_are_divided_once_and_all():
    frame = linked(200)
    table = pg.Table.read(frame)
    parts = _divided(table, frame, 3)
    assert [len(part) for part in parts] == [140, 30, 30]
    together = torch.cat(parts)
    whole = table.encode(frame).float()
    assert torch.equal(together[together[:, 0].argsort()], whole[whole[:, 0].argsort()])
    assert not torch.equal(parts[2], _divided(table, frame, 4)[2])


@pytest.mark.slow
def test_the_family_that_fits_wins_and_scores_are_those_of_unseen_rows():
    frame = linked(missing=0.1)
    found = pg.search(frame, budget="20 s", candidates=TWO, progress=False)
    assert found.best == "chained" and found.comparison.best == "chained"
    test = _divided(found.model.table, frame, 0)[2]
    again = pg.log_likelihood(found.model, test, seed=0)
    assert again.mean == pytest.approx(found.comparison.scores["chained"].mean)
    drawn = found.model.sample(400, seed=0)
    kept = (drawn["label"] == "up") == (drawn["x"] > 0)
    assert list(drawn.columns) == list(frame.columns) and kept.mean() > 0.85
    board = found.to_frame()
    assert board.loc["chained", "chosen"] and not board.loc["alone", "chosen"]
    assert "chosen on 60 validation rows: chained" in str(found)


def test_what_fails_is_named_and_the_others_go_on():
    plan = {"broken": pg.Candidate(broken), "wide": pg.Candidate(too_wide), **TWO}
    found = pg.search(linked(60), budget=0.5, candidates=plan, progress=False)
    assert set(found.models) == {"alone", "chained"}
    assert found.failures["broken"].startswith("expected nothing")
    assert "columns" in found.failures["wide"]
    assert "left out: broken" in str(found)


def test_where_all_fail_the_reasons_are_told():
    with pytest.raises(RuntimeError, match="broken: expected nothing"):
        pg.search(linked(60), candidates={"broken": pg.Candidate(broken)}, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frame", "names"),
    [
        (linked(80), {"mixture of 5", "autoregressive"}),
        (linked(80)[["label"]].assign(other=linked(80, 1)["label"]), {"tree"}),
        (linked(80)[["x", "size"]], {"Gaussian mixture", "neural spline flow"}),
        (pd.DataFrame({"n": np.random.default_rng(0).poisson(3, 80)}), {"independent columns"}),
    ],
    ids=["mixed", "labels", "numbers", "counts"],
)
def test_every_family_of_the_portfolio_can_be_trained(frame, names):
    found = pg.search(frame, budget="3 s", progress=False)
    assert names <= set(found.models)
    assert found.failures == {}


def test_the_same_seed_gives_the_same_first_model():
    plan = {"alone": TWO["alone"]}
    one, two = (
        pg.search(linked(60), budget=1e-3, candidates=plan, progress=False) for _ in range(2)
    )
    assert one.comparison.scores["alone"].mean == two.comparison.scores["alone"].mean


def test_clusters_take_labels_and_missing_numbers():
    frame = pd.DataFrame(
        {"x": [0.0, 0.1, np.nan, 9.0, 9.1, 9.2], "label": ["a", "a", "a", "b", "b", "b"]}
    )
    table = pg.Table.read(frame)
    torch.manual_seed(0)
    found = _clusters(table, table.encode(frame).float(), 2)
    assert found[:3].unique().numel() == found[3:].unique().numel() == 1
    assert found[0] != found[3]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: pg.search(linked(19)), "20 rows"),
        (lambda: pg.search(linked(60), candidates={}), "one candidate"),
        (lambda: pg.search(linked(60), candidates={"a": alone}), "Candidate"),
        (lambda: pg.search(torch.zeros(60, 2)), "frame"),
    ],
)
def test_what_cannot_be_searched_is_refused(call, says):
    with pytest.raises((ValueError, TypeError), match=says):
        call()


class Breaks:
    """Builds a family, or stands for Ctrl-C while it is built."""

    def __call__(self, table, x):
        raise KeyboardInterrupt


def test_ctrl_c_ends_the_search_with_what_is_done():
    plan = {"alone": TWO["alone"], "stopped": pg.Candidate(Breaks()), "later": TWO["alone"]}
    found = pg.search(linked(60), budget=0.3, candidates=plan, progress=False)
    assert set(found.models) == {"alone"}
    assert found.failures == {"stopped": "interrupted", "later": "interrupted"}
    with pytest.raises(KeyboardInterrupt):
        pg.search(linked(60), candidates={"stopped": plan["stopped"]}, progress=False)


@pytest.mark.filterwarnings("ignore:the search took")
def test_models_whose_time_was_up_are_told():
    found = pg.search(linked(60), budget=0.05, candidates=TWO, progress=False)
    assert set(found.cut_short) == {"alone", "chained"} and min(found.cut_short.values()) > 0
    assert "still gaining when their time was up: alone (" in str(found)


def test_a_search_that_takes_longer_says_so():
    with pytest.warns(UserWarning, match=r"budget of 0.001 s, for 2 models"):
        pg.search(linked(60), budget=1e-3, candidates=TWO, progress=False)


def test_columns_that_name_rows_are_told():
    frame = linked(60).assign(mail=[f"{number}@example.org" for number in range(60)])
    plan = {"alone": TWO["alone"]}
    with pytest.warns(UserWarning, match=r"own in \['mail'\].*drop\(columns=\['mail'\]\)"):
        pg.search(frame, budget=0.3, candidates=plan, progress=False)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pg.search(frame.drop(columns=["mail"]), budget=0.3, candidates=plan, progress=False)
    assert not any("label of their own" in str(each.message) for each in told)
