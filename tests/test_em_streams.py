"""EM over rows that are read in blocks or shared by processes is EM over rows in memory."""

import copy
from pathlib import Path

import pytest
import torch
from em_rows import NAMES, example
from forked import results
from torch.utils.data import DataLoader, TensorDataset

from probgen.core.row_sample import RowSample
from probgen.core.streams import MemoryRows
from probgen.core.together import Together
from probgen.infer import em_stream
from probgen.infer.em import em
from probgen.infer.em_start import stratified
from probgen.infer.em_stream import Piece
from probgen.models.chow_liu import ChowLiu
from probgen.models.factor_analysis import FactorAnalysis
from probgen.models.mixture import GaussianMixture

WORKER = Path(__file__).with_name("shared_rows_worker.py")
STEPS = {"max_iter": 2, "tol": 0.0, "seed": 3}


class Batches:
    """Batches that can be read again, which counts how often they are."""

    def __init__(self, batches):
        self.batches = batches
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        return iter(self.batches)


class Shrinking(Batches):
    """Loses its last batch after the first pass."""

    def __iter__(self):
        self.passes += 1
        return iter(self.batches if self.passes == 1 else self.batches[:-1])


def fitted(gen, data, **options):
    """A fitted copy, and how it went."""
    other = copy.deepcopy(gen)
    return other, em(other, data, **{**STEPS, **options})


def densities(gen, x):
    return gen().log_prob(x).detach()


SIZES = (1, 7, 24)
EVERY_SIZE = ("mixture Full", "ChowLiu")
CUTS = [
    (name, size)
    for number, name in enumerate(NAMES)
    for size in (SIZES if name in EVERY_SIZE else [SIZES[number % 3]])
]


@pytest.mark.table(quick=8)
@pytest.mark.parametrize(("name", "size"), CUTS)
def test_blocks_give_the_fit_of_rows_in_memory(name, size):
    gen, x, weights = example(name)
    whole, result = fitted(gen, x, weights=weights, n_init=2)
    parts, found = fitted(gen, list(x.split(5)), weights=weights, n_init=2, max_rows=size)
    assert torch.allclose(found.log_likelihood, result.log_likelihood, rtol=1e-10, atol=1e-10)
    assert torch.allclose(densities(parts, x), densities(whole, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["mixture Full", "FactorAnalysis", "HMM of labels", "ChowLiu"])
def test_blocks_of_single_precision_differ_by_its_rounding(name):
    gen, x, weights = example(name)
    gen, x, weights = gen.float(), x.float(), weights.float()
    whole, result = fitted(gen, x, weights=weights)
    parts, found = fitted(gen, list(x.split(5)), weights=weights, max_rows=7)
    assert torch.allclose(found.log_likelihood, result.log_likelihood, rtol=1e-5, atol=1e-5)
    assert torch.allclose(densities(parts, x), densities(whole, x), rtol=1e-4, atol=1e-4)


def rows_of_mixture(count=60):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    return x + 4.0 * (torch.arange(count) % 2)[:, None]


FORMS = {
    "loader": lambda x, w: DataLoader(TensorDataset(x), batch_size=7),
    "rows and weights": lambda x, w: MemoryRows((x,), w),
    "dicts": lambda x, w: [{"x": part} for part in x.split(9)],
    "arrays": lambda x, w: [part.numpy() for part in x.split(9)],
}


@pytest.mark.parametrize("form", FORMS)
def test_streams_of_every_form_are_read(form):
    x = rows_of_mixture()
    own = torch.arange(60).double() % 3 if form == "rows and weights" else None
    gen = GaussianMixture(2, 2).double()
    whole, _ = fitted(gen, x, weights=own)
    parts, _ = fitted(gen, FORMS[form](x, own), max_rows=8)
    assert torch.allclose(densities(parts, x), densities(whole, x), rtol=1e-10)


def test_labels_stand_beside_a_stream():
    x = rows_of_mixture()
    labels = torch.where(torch.arange(60) < 8, torch.arange(60) % 2, torch.nan)
    gen = GaussianMixture(2, 2).double()
    whole, result = fitted(gen, x, labels=labels)
    parts, found = fitted(gen, list(x.split(7)), labels=labels)
    assert torch.allclose(found.log_likelihood, result.log_likelihood, rtol=1e-10)
    assert torch.allclose(parts.means, whole.means, rtol=1e-10)


@pytest.mark.parametrize("starts", [0, 1, 4])
def test_all_starts_share_each_pass(starts):
    batches = Batches(list(rows_of_mixture().split(7)))
    em(GaussianMixture(2, 2).double(), batches, n_init=starts, max_iter=3, tol=0.0, seed=0)
    assert batches.passes == 1 + 1 + 3  # the first look, the start, three steps


def test_the_best_of_several_starts_over_a_stream_is_that_of_memory():
    x = rows_of_mixture()
    gen = GaussianMixture(4, 2).double()
    _, result = fitted(gen, x, n_init=5, max_iter=8)
    _, found = fitted(gen, list(x.split(7)), n_init=5, max_iter=8)
    assert torch.allclose(found.log_likelihood, result.log_likelihood, rtol=1e-9)


def test_a_tree_is_found_by_all_rows_however_few_starts_are_made_of(monkeypatch):
    monkeypatch.setattr(em_stream, "START_ROWS", 2)
    monkeypatch.setattr(em_stream, "FEW", 2)
    x = (torch.arange(90)[:, None] // torch.tensor([1, 2, 4]) % 2).double()
    x[:, 2] = x[:, 0]
    whole, _ = fitted(ChowLiu((2, 2, 2)).double(), x)
    parts, _ = fitted(ChowLiu((2, 2, 2)).double(), list(x.split(7)))
    assert parts.parents.tolist() == whole.parents.tolist() == [-1, 0, 0]


def test_starts_of_some_rows_do_not_depend_on_how_they_are_cut(monkeypatch):
    monkeypatch.setattr(em_stream, "START_ROWS", 10)
    monkeypatch.setattr(em_stream, "FEW", 2)
    x = rows_of_mixture()
    gen = FactorAnalysis(2, factors=1).double()
    cuts = [fitted(gen, list(x.split(size)), max_iter=0)[0].mean for size in (1, 7, 60)]
    assert torch.allclose(cuts[0], cuts[1]) and torch.allclose(cuts[1], cuts[2])
    assert not torch.allclose(cuts[0], x.mean(0))  # it is a sample


def test_rows_are_sampled_uniformly_and_in_their_order():
    counts = torch.zeros(12)
    pairs = 0
    for seed in range(400):
        sample = RowSample(3, seed)
        for start in (8, 0, 4):
            rows = torch.arange(start, start + 4)
            sample.add(rows, {"x": rows})
        kept = sample.rows()["x"]
        assert len(kept) == 3 and (kept.diff() > 0).all()
        counts[kept] += 1
        pairs += int({0, 1} <= set(kept.tolist()))
    deviation = (400 * 0.25 * 0.75) ** 0.5
    assert ((counts - 400 * 0.25).abs() < 4 * deviation).all()
    share = 3 / 12 * 2 / 11
    assert abs(pairs - 400 * share) < 4 * (400 * share) ** 0.5


def test_rows_are_sampled_in_proportion_to_their_rates():
    rates = torch.tensor([0.0, 1.0, 2.0, 5.0])
    counts = torch.zeros(4)
    for seed in range(400):
        sample = RowSample(1, seed)
        for rows in (torch.tensor([2, 3]), torch.tensor([0, 1])):
            sample.add(rows, {"x": rows}, rates[rows])
        counts[sample.rows()["x"]] += 1
    share = rates / rates.sum()
    assert ((counts - 400 * share).abs() <= 4 * (400 * share * (1 - share)).sqrt()).all()


def rare_cluster(rows=20_000, rare=3):
    """Rows about 0, but for a few far away, which a sample of some hundred rows has none of."""
    x = torch.randn(rows, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x[rows // 3 : rows // 3 + rare] += 3000.0
    return x


@pytest.mark.parametrize("weighted", [False, True])
def test_a_start_of_some_rows_finds_a_rare_cluster_that_is_far_away(monkeypatch, weighted):
    monkeypatch.setattr(em_stream, "START_ELEMENTS", 1)
    monkeypatch.setattr(em_stream, "FEW", 200)
    x = rare_cluster()
    weights = torch.ones(len(x)).double() if weighted else None
    starts = []
    for size in (20_000, 3_000):
        gen = GaussianMixture(2, 2).double()
        em(gen, MemoryRows((x,), weights), max_iter=0, seed=0, max_rows=size, progress=False)
        assert gen.means.sum(-1).max() == pytest.approx(6000.0, abs=3)
        starts.append(gen.means)
    assert torch.allclose(*starts)
    monkeypatch.setattr(em_stream, "takes_weights", lambda gen: False)
    gen = GaussianMixture(2, 2).double()
    em(gen, MemoryRows((x,)), max_iter=0, seed=0, progress=False)
    assert gen.means.abs().max() < 3  # a uniform sample misses it


def test_strata_stand_for_all_rows():
    x = rare_cluster(5000)
    found = stratified(
        {"x": x[::50]}, lambda: [Piece(x, {}, torch.arange(5000), 0.0)], Together(), 0, 90
    )
    weights = found["weights"]
    assert len(weights) == 90 and weights.sum() == pytest.approx(5000)
    mean = (weights[:, None] * found["x"]).sum(0) / 5000
    assert (mean - x.mean(0)).abs().max() < 0.4  # 1.8 without the far ones


def wrong_row():
    x = rows_of_mixture()
    x[33, 1] = torch.inf
    return x


REFUSED = {
    "an iterator": (lambda x: iter(x.split(7)), {}, r"rows that can be read again"),
    "a loader that shuffles": (
        lambda x: DataLoader(TensorDataset(x), batch_size=7, shuffle=True),
        {},
        "shuffle=False",
    ),
    "a stream that shrinks": (
        lambda x: Shrinking(list(x.split(7))),
        {},
        "as many rows in every pass over the stream, got 60 and then 56",
    ),
    "no batches": (lambda x: [], {}, "at least one row"),
    "one row": (lambda x: Batches([x[:1]]), {}, "at least two rows, got a stream of 1"),
    "an infinite value": (lambda x: Batches(wrong_row().split(7)), {}, "got inf in row 33"),
    "other columns": (lambda x: Batches([x[:, :1]]), {}, r"expected x of shape \(N, 2\)"),
    "too few weights": (
        lambda x: Batches(x.split(7)),
        {"weights": torch.ones(9)},
        "weights of shape",
    ),
    "too many weights": (
        lambda x: Batches(x.split(7)),
        {"weights": torch.ones(99)},
        r"weights of shape \(60,\)",
    ),
    "negative weights": (
        lambda x: Batches(x.split(7)),
        {"weights": torch.where(torch.arange(60) == 40, -1.0, 1.0)},
        "got -1 in row 40",
    ),
    "weights of nothing": (
        lambda x: Batches(x.split(7)),
        {"weights": torch.zeros(60)},
        "make one row or more",
    ),
    "odd labels": (
        lambda x: Batches(x.split(7)),
        {"labels": torch.where(torch.arange(60) == 21, 0.5, 0.0)},
        "got 0.5 in row 21",
    ),
    "contexts": (lambda x: Batches([(x, x)]), {}, "EM takes no context"),
    "no data": (lambda x: 3, {}, "expected"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_streams_that_cannot_serve_are_refused(case):
    make, options, message = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=message):
        em(GaussianMixture(2, 2).double(), make(rows_of_mixture()), seed=0, **options)


@pytest.mark.parametrize("fabric", [3, "ddp", torch.device("cpu"), int])
def test_what_is_no_fabric_is_refused(fabric):
    with pytest.raises(TypeError, match="expected fabric to be a launched"):
        em(GaussianMixture(2, 2), torch.randn(9, 2), fabric=fabric)


@pytest.mark.slow
def test_two_processes_fit_what_one_fits():
    for found in results(WORKER, "em")[0]:
        assert len(found) == len(NAMES) + 1
        assert {case: value for case, value in found.items() if not value < 1e-10} == {}
