"""Scores, imputations and draws of rows that are read in blocks are those of rows in memory."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from forked import results
from shared_rows_worker import rowwise
from torch.utils.data import DataLoader, TensorDataset

import probgen as pg
import probgen.core.entry
from probgen.core.by_blocks import by_blocks
from probgen.core.module import Fixed
from probgen.core.score import MeanScore, Score
from probgen.core.streams import MemoryRows

WORKER = Path(__file__).with_name("shared_rows_worker.py")
SIZES = (1, 7, 23)


def mixture():
    torch.manual_seed(0)
    return pg.GaussianMixture(2, 3).double()


def rows(count=23):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    x[::4, 0] = torch.nan
    return x


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_mean_of_a_stream_is_that_of_its_rows(size, weighted):
    x = rows()
    weights = torch.arange(23).double() % 4 if weighted else None
    whole = pg.log_likelihood(mixture(), x, weights=weights)
    stream = MemoryRows((x,), weights)
    mean = pg.log_likelihood(mixture(), stream, max_rows=size)
    assert mean.mean == pytest.approx(whole.mean, rel=1e-12)
    assert mean.stderr == pytest.approx(whole.stderr, rel=1e-9)
    assert (mean.kind, mean.unit, mean.measure) == (whole.kind, whole.unit, whole.measure)
    assert mean.rows == (23 if weights is None else int((weights > 0).sum()))
    assert str(mean) == str(whole)


@pytest.mark.parametrize("size", SIZES)
def test_blocks_hold_the_scores_of_their_rows(size):
    whole = pg.log_likelihood(mixture(), rows()).value
    blocks = list(by_blocks(pg.log_likelihood, mixture(), list(rows().split(5)), max_rows=size))
    assert torch.allclose(torch.cat([block.result.value for block in blocks]), whole)
    assert [block.start for block in blocks] == list(range(0, 23, size))
    assert sum(block.size for block in blocks) == 23


@pytest.mark.parametrize("form", ["rows", "batches"])
def test_a_stream_is_read_in_blocks_that_hold_many_numbers(monkeypatch, form):
    """Each costs a probe: of narrow rows there are more in a block."""
    monkeypatch.setattr("probgen.core.by_blocks.AT_ONCE", 2)
    monkeypatch.setattr("probgen.core.by_blocks.NUMBERS", 30)
    x = rows()
    seen = []
    own = pg.core.entry.as_rows

    def counted(gen, *batch):
        seen.append(len(batch[0]))
        return own(gen, *batch)

    monkeypatch.setattr("probgen.scoring.as_rows", counted)
    data = MemoryRows((x,)) if form == "rows" else list(x.split(5))
    found = pg.log_likelihood(mixture(), data)
    # of three numbers each; of rows that can be read from any place on there are eight, or about so
    assert seen == {"rows": [4, 4, 4, 4, 4, 3], "batches": [10, 10, 3]}[form]
    assert found.mean == pytest.approx(pg.log_likelihood(mixture(), x).mean, rel=1e-12)
    seen.clear()
    pg.log_likelihood(mixture(), data, max_rows=7)
    assert seen == [7, 7, 7, 2]


@pytest.mark.parametrize("size", SIZES)
def test_estimates_keep_their_kind_and_their_truth(size):
    y = torch.randn(23, generator=torch.Generator().manual_seed(2))
    truth = dist.Normal(0.0, 2**0.5).log_prob(y)
    found = pg.log_likelihood(rowwise(), MemoryRows((y,)), particles=3, max_rows=size, seed=0)
    assert found.mean == pytest.approx(truth.mean().item(), rel=1e-5)
    assert found.kind == "unbiased" and found.particles == 3


def test_a_seed_gives_the_same_draws_and_leaves_the_random_state():
    x = torch.zeros(9, 3)
    gen = Fixed(dist.Normal, loc=torch.zeros(3), scale=1.0)
    x[:, 0] = torch.nan
    state = torch.get_rng_state()
    once, again, other = (
        [each.result.draws for each in pg.impute(gen, MemoryRows((x,)), seed=seed, max_rows=4)]
        for seed in (0, 0, 1)
    )
    assert all(map(torch.equal, once, again)) and not any(map(torch.equal, once, other))
    assert not torch.equal(once[0][0, :, 0], once[1][0, :, 0])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("size", (1, 7, 11))
def test_blocks_are_imputed_given_their_own_rows(size):
    covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    gen = Fixed(dist.MultivariateNormal, loc=torch.zeros(2), covariance_matrix=covariance)
    x = torch.randn(11, 2, generator=torch.Generator().manual_seed(3))
    x[::2, 1] = torch.nan
    blocks = list(pg.impute(gen, list(x.split(3)), draws=2000, seed=1, max_rows=size))
    mean = torch.cat([block.result.mean() for block in blocks])
    expected = torch.where(x.isnan(), 0.9 * x[:, :1], x)
    assert (mean - expected).abs().max() < 0.06
    assert torch.equal(mean[~x.isnan()], x[~x.isnan()])
    assert {block.result.kind for block in blocks} == {"exact"}


@pytest.mark.table(quick=2)
@pytest.mark.parametrize(
    ("function", "size"),
    [(pg.posterior, 1), (pg.posterior, 7), (pg.posterior, 11), (pg.predictive, 7)],
    ids=lambda each: str(getattr(each, "__name__", each)),
)
def test_blocks_are_drawn_given_their_own_rows(function, size):
    y = 3 * torch.randn(11, generator=torch.Generator().manual_seed(4))
    how = {"draws": 300, "seed": 0, "compile": False, "max_rows": size}
    blocks = list(function(rowwise(), MemoryRows((y,)), **how))
    values = [next(iter(block.result.values())) for block in blocks]
    assert [value.shape for value in values] == [(300, block.size) for block in blocks]
    draws = torch.cat(values, 1)
    spread = 0.5 if function is pg.posterior else 1.5
    assert (draws.mean(0) - y / 2).abs().max() < 4 * (spread / 300) ** 0.5
    assert (draws.var(0) - spread).abs().max() < 4 * spread * (2 / 300) ** 0.5


def test_draws_of_globals_that_are_given_serve_all_blocks():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1e-3), obs=y)

    given = {"mu": torch.tensor([-5.0, 0.0, 5.0])}
    blocks = pg.predictive(
        pg.Program(model), MemoryRows((torch.zeros(9),)), given=given, max_rows=4
    )
    found = torch.cat([block.result["y"] for block in blocks], 1)
    assert (found - given["mu"][:, None]).abs().max() < 0.01


@pytest.mark.parametrize("size", [1, 60])
def test_a_report_of_a_stream_that_is_drawn_whole_is_that_of_its_rows(size):
    samples, real = torch.randn(50, 2), torch.randn(60, 2)
    how = {"permutations": 5, "seed": 0}
    whole = pg.sample_report(samples, real, **how)
    found = pg.sample_report(samples, iter(real.split(size)), max_rows=size, **how)
    assert str(found) == str(whole)
    some = pg.sample_report(MemoryRows((samples,)), MemoryRows((real,)), drawn=45, **how)
    assert some.rows == (45, 45)


# means of scores, and what may be concluded from them


def cut(score, size):
    parts = zip(
        score.value.split(size),
        [None] * 99 if score.weights is None else score.weights.split(size),
        strict=False,
    )
    return [
        Score(value, score.kind, score.unit, score.particles, score.measure, weights)
        for value, weights in parts
    ]


SCORES = {
    "exact": Score(torch.randn(20, generator=torch.Generator().manual_seed(0)).double(), "exact"),
    "far from zero": Score(1e8 + torch.arange(20.0).double(), "exact"),
    "bound": Score(torch.arange(20.0).double(), "bound", particles=5),
    "weights": Score(torch.arange(20.0).double(), "unbiased", weights=1 + torch.arange(20.0) % 3),
    "masses": Score(-torch.arange(20.0).double(), "exact", measure="mass"),
}


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("size", [1, 7, 20])
def test_means_of_parts_are_those_of_the_whole(name, size):
    score = SCORES[name]
    parts = MeanScore.of(cut(score, size))
    assert parts.mean == pytest.approx(score.mean, rel=1e-12)
    assert parts.stderr == pytest.approx(score.stderr, rel=1e-9)
    both = MeanScore.of([MeanScore.of(cut(score, size)[:1]), *cut(score, size)[1:]])
    assert both.stderr == pytest.approx(score.stderr, rel=1e-6)
    bits, whole = (each.in_bits_per_dim(3, 1 / 256) for each in (parts, score))
    assert (bits.mean, bits.stderr) == pytest.approx((whole.mean, whole.stderr), rel=1e-6)
    assert (bits.unit, bits.measure) == (whole.unit, whole.measure)


def test_the_kind_is_the_worst_of_the_blocks():
    kinds = ("exact", "unbiased", "exact")
    parts = [
        Score(torch.zeros(3), kind, particles=k) for kind, k in zip(kinds, (1, 8, 1), strict=True)
    ]
    found = MeanScore.of(parts)
    assert (found.kind, found.particles, found.rows) == ("unbiased", 8, 9)


def mean_score(mean, kind="exact", **options):
    return MeanScore(mean, 0.1, 20, 20.0, kind, **options)


def test_means_compare_as_their_kinds_allow():
    assert mean_score(2.0) > mean_score(1.0) and mean_score(1.0) < mean_score(2.0)
    assert mean_score(2.0, "bound") > mean_score(1.0)
    with pytest.raises(TypeError, match="inconclusive"):
        assert mean_score(1.0) > mean_score(0.5, "bound")
    gain, stderr = mean_score(2.0).difference(SCORES["exact"])
    assert gain == pytest.approx(2.0 - SCORES["exact"].mean)
    assert stderr == pytest.approx(math.hypot(0.1, SCORES["exact"].stderr))
    assert SCORES["exact"].difference(mean_score(2.0))[0] == pytest.approx(-gain)
    with pytest.raises(ValueError, match=r"the same rows, got 20 .* and 19"):
        mean_score(2.0).difference(Score(torch.zeros(19), "exact"))
    with pytest.raises(TypeError, match="different kinds of number"):
        mean_score(2.0).difference(mean_score(1.0, measure="mass"))


# what is refused


def shuffled():
    return DataLoader(TensorDataset(rows()), batch_size=4, shuffle=True)


def infinite():
    x = rows()
    x[17, 1] = torch.inf
    return MemoryRows((x,))


CALLS = {
    "log_likelihood": pg.log_likelihood,
    "impute": lambda gen, data: list(pg.impute(gen, data)),
    "posterior": lambda gen, data: list(pg.posterior(gen, data)),
    "by_blocks": lambda gen, data: list(by_blocks(pg.log_likelihood, gen, data, max_rows=4)),
}


@pytest.mark.parametrize("name", CALLS)
def test_streams_that_cannot_serve_are_refused(name):
    with pytest.raises(TypeError, match="shuffle=False"):
        CALLS[name](mixture(), shuffled())
    with pytest.raises(ValueError, match="got inf in row 17"):
        CALLS[name](mixture(), infinite())


def test_what_stands_beside_a_stream_is_refused():
    with pytest.raises(ValueError, match="weights of a stream in the stream itself"):
        pg.log_likelihood(mixture(), MemoryRows((rows(),)), weights=torch.ones(23))
    with pytest.raises(ValueError, match="contexts of a stream in the stream itself"):
        pg.impute(mixture(), MemoryRows((rows(),)), rows())
    with pytest.raises(ValueError, match="at least one row"):
        pg.log_likelihood(mixture(), iter([]))
    with pytest.raises(ValueError, match="a stream of rows alone"):
        pg.sample_report(rows(), iter([(rows(), rows())]))
    with pytest.raises(ValueError, match="one block of rows or more"):
        MeanScore.of([])


@pytest.fixture(scope="module")
def two_processes():
    found = results(WORKER, "scores")
    assert len(found) == 4
    return found


@pytest.mark.slow
def test_two_processes_score_and_complete_what_one_does(two_processes):
    for found in (*two_processes[0], *two_processes[1]):
        assert {case: value for case, value in found.items() if not value < 1e-6} == {}
    assert len(two_processes[0][0]) == 6 and len(two_processes[1][0]) == 6


@pytest.mark.slow
def test_two_processes_draw_what_one_does(two_processes):
    for found in two_processes[3]:
        assert {case: value for case, value in found.items() if not value < 1e-6} == {}
        assert len(found) == 5 + 4 * 3 + 2


@pytest.mark.slow
def test_two_processes_refuse_the_same(two_processes):
    first, second = two_processes[2]
    assert first == second
    assert "got inf in row 9, entry 1" in first["infinity, em"]
    assert "got inf in row 9, entry 1" in first["infinity, log_likelihood"]
    assert "can be read again" in first["iterator, em"]
    assert "the same rows in all processes" in first["other rows, em"]
    unlike = {case: text for case, text in first.items() if case.startswith("unlike")}
    assert len(unlike) == 14
    told = r"expected the same .* in all processes, got .* in process 0, .* in process 1; "
    assert {case: text for case, text in unlike.items() if not re.search(told, text)} == {}
    assert "expected values up to 9" in first["program, log_likelihood"]
    assert first["empty part, log_likelihood"] == "3"
    assert "at least one row" in first["no rows, log_likelihood"]


# ---------------------------------------------------------------- what holds no rows

NO_ROWS = {
    "an empty list": list,
    "lists in lists": lambda: [[], []],
    "a tuple in a list": lambda: [()],
    "a set": lambda: {1.0, 2.0},
    "a batch without arguments": lambda: [torch.zeros(3, 2), []],
    "batches without arguments": lambda: iter([[]]),
}
READ = {
    "log_likelihood": pg.log_likelihood,
    "impute": pg.impute,
    "posterior": pg.posterior,
    "predictive": pg.predictive,
    "em": pg.em,
}


@pytest.mark.parametrize("reads", READ)
@pytest.mark.parametrize("held", NO_ROWS)
def test_what_holds_no_rows_is_told_by_all_that_read_streams(reads, held):
    gen, data = pg.GaussianMixture(2, 2), NO_ROWS[held]()
    with pytest.raises((TypeError, ValueError), match=r"(?s)expected .* got .*; "):
        found = READ[reads](gen, data)
        list(found) if isinstance(found, Iterator) else found
