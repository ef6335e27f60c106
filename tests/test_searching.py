"""A density of a table by held-out rows: choice, mixture, division, time, what fails."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch

import probgen as pg
from probgen import searching
from probgen.heads import Mixed
from probgen.nn import Constant
from probgen.searching import (
    ROUND,
    _by_em,
    _Clock,
    _clusters,
    _divided,
    _Run,
    _seconds,
    _Trial,
)
from probgen.table import Flag


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


def sorted_rows(rows):
    return rows[rows[:, 0].argsort()]


def test_rows_are_divided_once_and_all():
    frame = linked(200)
    table = pg.Table.read(frame)
    pool, test = _divided(table, frame, 3)
    assert (len(pool), len(test)) == (170, 30)
    whole = table.encode(frame).float()
    assert torch.equal(sorted_rows(torch.cat([pool, test])), sorted_rows(whole))
    assert not torch.equal(test, _divided(table, frame, 4)[1])
    run = _Run(table, TWO, pool, 1.0, 0, False)
    held_out = [run.fold(number)[1] for number in range(5)]
    assert [len(each) for each in held_out] == [34] * 5
    assert torch.equal(sorted_rows(torch.cat(held_out)), sorted_rows(pool))
    for number in range(5):
        assert torch.equal(sorted_rows(torch.cat(run.fold(number))), sorted_rows(pool))


class Watched:
    """Builds independent columns, and keeps the first column of the rows that it is given."""

    def __init__(self):
        self.seen = []

    def __call__(self, table, x):
        self.seen.append(set(x[:, 0].tolist()))
        return alone(table, x)


def test_rows_of_the_leaderboard_have_no_part_in_what_it_compares():
    frame = linked(100)[["x"]].assign(y=np.random.default_rng(1).normal(size=100))
    watched = Watched()
    candidates = {"watched": pg.Candidate(watched, 0.05), "alone": pg.Candidate(alone, 0.05)}
    found = pg.search(frame, budget=1.0, candidates=candidates, progress=False)
    table = found.model.table
    pool, test = (set(pg.Tabular(table, alone(table, None)).prepare(part)[:, 0].tolist())
                  for part in _divided(table, frame, 0))  # fmt: skip
    assert watched.seen[0] < pool and not watched.seen[0] & test
    scores = pg.log_likelihood(found.models["watched"], _divided(table, frame, 0)[1], seed=0)
    assert scores.mean == pytest.approx(found.comparison.scores["watched"].mean)
    for seen in watched.seen:
        assert not seen & test or seen == pool | test  # the last fits, to all rows


@pytest.mark.slow
def test_the_family_that_fits_wins_and_scores_are_those_of_unseen_rows():
    frame = linked(missing=0.1)
    # ends far earlier, as held-out rows gain nothing
    found = pg.search(frame, budget="3 min", candidates=TWO, progress=False)
    assert found.best != "alone" and found.comparison.findings["alone"] == "worse"
    assert found.weights["chained"] > 0.9
    test = _divided(found.model.table, frame, 0)[1]
    again = pg.log_likelihood(found.models[found.best], test, seed=0)
    assert again.mean == pytest.approx(found.comparison.scores[found.best].mean)
    drawn = found.model.sample(400, missing=False, seed=0)
    kept = (drawn["label"] == "up") == (drawn["x"] > 0)
    assert list(drawn.columns) == list(frame.columns) and kept.mean() > 0.85
    assert 0.03 < found.model.sample(400, seed=0)["x"].isna().mean() < 0.2
    board = found.to_frame()
    assert board.loc[found.best, "chosen"] and not board.loc["alone", "chosen"]
    assert board.loc["chained", "weight"] == found.weights["chained"]
    assert f"chosen: {found.best}" in str(found)


def two_kinds(n=300, seed=0):
    """Half of the rows are of one family, half of another one."""
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(2, n))
    ring = np.stack([x, x + 0.05 * y], 1)
    cloud = 5 + np.stack([y, x * y], 1)
    return pd.DataFrame(np.where(generator.random(n)[:, None] < 0.5, ring, cloud)).rename(
        columns={0: "x", 1: "y"}
    )


def gaussians(table, x):
    return pg.GaussianMixture(2, 2)


PLAN = {"two": pg.Candidate(gaussians, em=True), "alone": pg.Candidate(alone, 0.05)}


@pytest.mark.slow
def test_a_stack_is_the_mixture_of_its_fits_and_exact_as_they_are():
    found = pg.search(two_kinds(), budget=4.0, candidates=PLAN, progress=False)
    stacked = found.models["stacked"]
    x = _divided(found.model.table, two_kinds(), 0)[1]
    parts = stacked.family.components
    logits = stacked.family.weights().log_softmax(-1)
    by_hand = torch.stack(
        [
            logit + pg.Tabular(stacked.table, part)().log_prob(x)
            for logit, part in zip(logits, parts, strict=True)
        ]
    ).logsumexp(0)
    torch.testing.assert_close(stacked().log_prob(x), by_hand)
    assert found.comparison.scores["stacked"].kind == "exact"
    own = len(parts) // len(found.weights)
    shares = logits.exp().reshape(len(found.weights), own).sum(1)
    assert shares.tolist() == pytest.approx(list(found.weights.values()), abs=1e-5)
    assert sum(found.weights.values()) == pytest.approx(1.0)


def labels(n=400, seed=0):
    generator = np.random.default_rng(seed)
    one = generator.integers(0, 3, n)
    other = np.where(generator.random(n) < 0.8, one, generator.integers(0, 3, n))
    return pd.DataFrame(
        {"one": np.array(["a", "b", "c"])[one], "other": np.array(["u", "v", "w"])[other]}
    )


def tree(table, x):
    return pg.ChowLiu([3, 3])


def test_the_winner_is_trained_again_on_all_rows():
    """A tree is learned in closed form: that of all rows is the answer."""
    frame = labels()
    plan = {"tree": pg.Candidate(tree, em=True)}
    found = pg.search(frame, budget=20.0, candidates=plan, stack=False, progress=False)
    assert found.refitted and found.best == "tree" and found.weights == {"tree": 1.0}
    whole = pg.ChowLiu([3, 3])
    rows = found.model.table.encode(frame).float()
    pg.em(whole, rows)
    torch.testing.assert_close(found.model().log_prob(rows), whole().log_prob(rows))
    assert not torch.allclose(found.models["tree"]().log_prob(rows), whole().log_prob(rows))
    assert found.folds == 3 and "stacked" not in found.models
    assert "the winner was then trained again" in str(found)


def test_a_number_that_is_no_exact_one_is_not_stacked():
    def autoencoder(table, x):
        heads = table.heads()
        decoder = Mixed(pg.nn.MLP(2, [8], Mixed(None, heads).width), heads)
        encoder = pg.heads.Gaussian(pg.nn.MLP(x.shape[1], [8], 4))
        return pg.VAE(pg.standard_normal(2), decoder, encoder)

    plan = {"autoencoder": pg.Candidate(autoencoder, 0.01), **PLAN}
    found = pg.search(two_kinds(100), budget=0.5, candidates=plan, progress=False)
    assert "autoencoder" in found.models and "autoencoder" not in found.weights
    assert found.comparison.scores["autoencoder"].kind == "unbiased"
    assert found.comparison.findings["autoencoder"] in ("worse", "not settled")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "few", "many"),
    [(200, True, False), (2000, False, True)],
    ids=["few rows", "many rows"],
)
def test_families_of_the_portfolio_suit_the_rows_and_are_saved(rows, few, many, tmp_path):
    frame = linked(rows, missing=0.1)
    table = pg.Table.read(frame)
    plan = pg.portfolio(table)
    assert ("autoregressive, dropout" in plan, "variational autoencoder" in plan) == (few, many)
    x = pg.Tabular(table, alone(table, None)).prepare(table.encode(frame).float())
    for name, candidate in plan.items():
        gen = pg.Tabular(table, candidate.build(table, x)).eval()
        pg.save(gen, tmp_path / f"{name}.safetensors")
        again = pg.load(tmp_path / f"{name}.safetensors").eval()
        assert again.sample(5, seed=0).equals(gen.sample(5, seed=0)), name


def bits(rows, columns=40, seed=0, linked=0.0):
    """Bits of different rates; each second one is that before it in a share of the rows."""
    generator = np.random.default_rng(seed)
    rates = np.random.default_rng(9).beta(1, 2, columns)
    x = generator.random((rows, columns)) < rates
    same = generator.random((rows, columns // 2)) < linked
    x[:, 1::2] = np.where(same, x[:, ::2], x[:, 1::2])
    frame = pd.DataFrame(x.astype(int), columns=[f"b{place}" for place in range(columns)])
    return frame, torch.as_tensor(x).float()


def table_of_bits(frame):
    return pg.Table.read(frame).change({name: Flag([0, 1]) for name in frame})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the search took")
@pytest.mark.parametrize("linked", [0.0, 0.3], ids=["independent", "weakly dependent"])
def test_of_few_rows_of_bits_a_search_is_never_worse_than_independent_columns(linked):
    frame, x = bits(80, linked=linked)
    new = bits(3000, seed=1, linked=linked)[1]
    found = pg.search(frame, table=table_of_bits(frame), budget=6.0, progress=False)
    alone = pg.Factorized(40, smoothing=1.0)
    pg.em(alone, x)
    with torch.no_grad():
        ahead = found.model().log_prob(new) - alone().log_prob(new)
    noise = ahead.std().item() / len(new) ** 0.5
    assert ahead.mean() > -0.2 - 3 * noise  # of some 20 nats


def test_a_matrix_of_bits_is_modeled_in_one_pass_where_it_is_wide():
    wide = table_of_bits(bits(60)[0])
    plan = pg.portfolio(wide)
    assert {"logistic regressions", "hidden tree of 4", "masked autoencoder, dropout"} <= set(plan)
    assert not any(name.startswith("autoregressive") for name in plan)
    narrow = pg.portfolio(table_of_bits(bits(60, 6)[0]))
    assert {"autoregressive", "mixture of trees", "hidden tree of 4"} <= set(narrow)
    gone = bits(60)[0].astype(float)
    gone.iloc[0, 0] = np.nan
    assert "logistic regressions" not in pg.portfolio(pg.Table.read(gone))


@pytest.mark.parametrize("levels", [2, 3])
def test_masked_autoencoders_start_at_independent_columns(levels):
    generator = np.random.default_rng(0)
    shares = np.arange(1, levels + 1) / np.arange(1, levels + 1).sum()
    values = generator.choice(levels, size=(50, 31), p=shares)
    frame = pd.DataFrame(values, columns=[f"c{place}" for place in range(31)]).astype(str)
    table = pg.Table.read(frame)
    rows = table.encode(frame).float()
    alone = pg.Factorized(31, levels, smoothing=1.0)
    pg.em(alone, rows)
    for name in ("logistic regressions", "masked autoencoder, dropout"):
        made = pg.portfolio(table)[name].build(table, rows).eval()
        torch.testing.assert_close(made().log_prob(rows), alone().log_prob(rows))


@pytest.mark.filterwarnings("ignore:the mean log-likelihood fell")
def test_em_keeps_what_held_out_rows_are_likeliest_under():
    frame, x = bits(60, 4)
    table = table_of_bits(frame)
    steps = []

    class Worse(pg.Factorized):
        def maximize(self, statistics):
            super().maximize(statistics)
            steps.append(self.logits.detach().clone())
            self.logits.data *= 1 + 0.1 * len(steps)

    gen = pg.Tabular(table, Worse(4, smoothing=1.0))
    course = _by_em(gen, x[:40], x[40:], _Clock(1e9), seed=0)
    assert course == (1, 1.0, 0) and len(steps) > 1 + ROUND
    torch.testing.assert_close(gen.family.logits.detach(), steps[0] * 1.1)


def test_em_ends_when_its_time_is_up_and_says_so():
    frame, x = bits(60, 4)
    gen = pg.Tabular(table_of_bits(frame), pg.HiddenChowLiu(3, (2,) * 4))
    steps, _, cut = _by_em(gen, x[:40], x[40:], _Clock(1e-9), seed=0)
    assert (steps, cut) == (1, 1)


def test_em_of_all_rows_takes_as_many_iterations_as_before():
    frame, x = bits(60, 4)
    gen = pg.Tabular(table_of_bits(frame), pg.HiddenChowLiu(2, (2,) * 4))
    by_hand = pg.HiddenChowLiu(2, (2,) * 4)
    assert _by_em(gen, x, None, _Clock(1e-9), 5, 7)[0] == 7
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pg.em(by_hand, x, max_iter=7, tol=0.0, seed=5)
    torch.testing.assert_close(gen.family().log_prob(x), by_hand().log_prob(x))


@pytest.mark.parametrize(("seconds", "again"), [(0.5, True), (5.0, False)])
def test_what_is_trained_in_a_moment_sees_all_rows_where_no_time_is_left(seconds, again):
    frame, x = bits(60, 4)
    table = table_of_bits(frame)
    plan = {"alone": pg.Candidate(lambda table, x: pg.Factorized(4, smoothing=1.0), em=True)}
    run = _Run(table, plan, x[9:], 10.0, 0, False)
    run.seconds = {"alone": 30.0}
    model = pg.Tabular(table, pg.Factorized(4))
    run.trials = {"alone": [_Trial(model, torch.zeros(10), seconds, 40, 1, 1.0, 0)]}
    found, _ = run.again(["alone"], x[:9], True)
    assert len(found) == again
    whole = pg.Factorized(4, smoothing=1.0)
    pg.em(whole, x)
    for (refitted,) in found:
        torch.testing.assert_close(refitted().log_prob(x), whole().log_prob(x))


def test_the_simplest_that_few_rows_do_not_tell_apart_goes_on():
    run = _Run(None, {}, torch.zeros(50, 1), 1.0, 0, False)
    model = pg.Tabular(table_of_bits(bits(60, 4)[0]), pg.Factorized(4))
    torch.manual_seed(0)
    simple = torch.randn(40).double()
    near, far = simple + 0.02 + 0.2 * torch.randn(40).double(), simple - 3.0
    scores = {"far": far, "simple": simple, "near": near}
    run.trials = {name: [_Trial(model, own, 0.0, 10, 0, 1.0, 0)] for name, own in scores.items()}
    assert set(run.leading(stack=True)) == {"simple", "near"}


def test_a_result_is_not_saved_but_its_model(tmp_path):
    found = pg.search(linked(60), budget=0.3, candidates={"alone": TWO["alone"]}, progress=False)
    with pytest.raises(TypeError, match=r"model of the SearchResult: result\.model"):
        pg.save(found, tmp_path / "found.safetensors")
    pg.save(found.model, tmp_path / "found.safetensors")
    again = pg.load(tmp_path / "found.safetensors")
    assert again.sample(5, seed=0).equals(found.model.sample(5, seed=0))


def test_what_fails_is_named_and_the_others_go_on():
    plan = {"broken": pg.Candidate(broken), "wide": pg.Candidate(too_wide), **TWO}
    found = pg.search(linked(60), budget=0.5, candidates=plan, progress=False)
    assert set(found.models) >= {"alone", "chained"} >= set(found.weights)
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
        (
            linked(80),
            {
                "mixture of 5",
                "autoregressive",
                "autoregressive, dropout",
                "autoregressive, mixtures",
            },
        ),
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
        (lambda: pg.search(linked(60), candidates={"stacked": TWO["alone"]}), "other names"),
        (lambda: pg.search(linked(60), stack="no"), "stack"),
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
    assert set(found.models) == {"alone"} and not found.refitted
    assert found.failures == {"stopped": "interrupted", "later": "interrupted"}
    with pytest.raises(KeyboardInterrupt):
        pg.search(linked(60), candidates={"stopped": plan["stopped"]}, progress=False)


@pytest.mark.filterwarnings("ignore:the search took")
def test_models_whose_time_was_up_are_told():
    found = pg.search(linked(60), budget=0.05, candidates=TWO, progress=False)
    assert set(found.cut_short) == {"alone", "chained"} and min(found.cut_short.values()) > 0
    assert "still gaining when their time was up: alone (" in str(found)


class Rounds(searching._Run):
    """Fits of two seconds each, of which some rounds can be interrupted."""

    def __init__(self, seconds, stopped=99):
        self.trials = {name: [trial(2.0)] for name in TWO}
        self.pool, self.clock, self.stopped, self.seen = torch.zeros(3, 1), seconds, stopped, []

    @property
    def left(self):
        return self.clock

    def _round(self, names, rows, shares, number=0):
        if len(self.seen) == self.stopped:
            raise KeyboardInterrupt
        self.seen.append((number, shares))
        self.clock -= 2.0 * len(names)
        return [trial(2.0) for _ in names]


def trial(seconds):
    return searching._Trial(None, torch.zeros(3), seconds, 3, 0, 1.0, 0)


@pytest.mark.parametrize(
    ("run", "rounds"),
    [
        (Rounds(3.0), 0),  # less than 0.8 times what a round took
        (Rounds(3.3), 1),
        (Rounds(9.0), 2),
        (Rounds(900.0), searching.REFITS),
        (Rounds(900.0, stopped=0), 0),
        (Rounds(900.0, stopped=2), 2),
    ],
    ids=["no time", "one", "two", "as many as there may be", "stopped", "stopped in the third"],
)
def test_fits_of_a_stack_are_repeated_while_there_is_time(run, rounds):
    found = run._fits(list(TWO), [1.0, 3.0], torch.ones(2, 1), searching.REFITS)
    assert len(found) == 2 * rounds == 2 * len(run.seen)
    assert len({number for number, _ in run.seen}) == rounds  # other random numbers each time
    for _, shares in run.seen:
        assert shares[1] == 3 * shares[0]


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


def test_all_of_a_stack_go_on_where_no_candidate_alone_is_near_it():
    run = _Run(None, {}, torch.zeros(50, 1), 1.0, 0, False)
    model = pg.Tabular(table_of_bits(bits(60, 4)[0]), pg.Factorized(4))
    first = torch.tensor([0.0, -9.0]).double().repeat(20)  # each is right about half of the rows
    scores = {"first": first, "second": -9.0 - first}
    run.trials = {name: [_Trial(model, own, 0.0, 10, 0, 1.0, 0)] for name, own in scores.items()}
    assert set(run.leading(stack=True)) == {"first", "second"}
