"""Arguments that are rare: kinds of tensors and arrays, no draws, folders for files, wrong functions.

Each is taken for what it means, or refused in a sentence whose advice a test follows.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.lib.recfunctions import structured_to_unstructured
from torch import nn
from zoo import ZOO, sampled

import probgen as pg
from probgen.core.conversion import rows_from
from probgen.diagnostics import pareto_khat
from probgen.graphical import ProbabilityTable, parse_bif
from probgen.train import CheckpointError

QUIET = {"progress": False, "compile": False, "verdict": False, "seed": 0}
X = torch.arange(6.0).reshape(2, 3)
DATES = np.array([["2020-01-01", "2020-01-03"]], dtype="M8[D]")
FIELDS = np.array([(0.0, 1.0), (2.0, 3.0)], dtype=[("a", "f4"), ("b", "f4")])

# what is given, a word of the advice, what the advice gives, and the rows that it should be
ODD = {
    "nested": (
        torch.nested.as_nested_tensor(list(X), layout=torch.jagged),
        "list(x.unbind())",
        lambda x: list(x.unbind()),
        X,
    ),
    "quantized": (
        torch.quantize_per_tensor(X, 1.0, 0, torch.qint8),
        "x.dequantize()",
        lambda x: x.dequantize(),
        X,
    ),
    "sparse": (X.to_sparse(), "x.to_dense()", lambda x: x.to_dense(), X),
    "compressed": (X.to_sparse_csr(), "x.to_dense()", lambda x: x.to_dense(), X),
    "complex": (torch.complex(X, X), "x.real, x.imag", lambda x: torch.cat([x.real, x.imag], 1), X),
    "complex array": (X.numpy() * (1 + 1j), "x.real, x.imag", lambda x: np.hstack([x.real]), X),
    "dates": (
        DATES,
        "numpy.timedelta64(1, 'D')",
        lambda x: (x - x.min()) / np.timedelta64(1, "D"),
        torch.tensor([[0.0, 2.0]]),
    ),
    "durations": (
        DATES - DATES.min(),
        "numpy.timedelta64(1, 's')",
        lambda x: x / np.timedelta64(1, "s"),
        torch.tensor([[0.0, 2 * 86400.0]]),
    ),
    "dates of a frame": (
        pd.DataFrame({"day": DATES[0]}),
        "numpy.timedelta64(1, 'D')",
        lambda x: (x - x.min()) / np.timedelta64(1, "D"),
        torch.tensor([[0.0], [2.0]]),
    ),
    "fields": (
        FIELDS,
        "structured_to_unstructured(x)",
        structured_to_unstructured,
        torch.tensor([[0.0, 1.0], [2.0, 3.0]]),
    ),
}


@pytest.mark.filterwarnings("ignore:.*(quantize|CSR|nested)")
@pytest.mark.parametrize("name", ODD)
def test_what_is_no_dense_real_numbers_is_refused_with_advice_that_works(name):
    given, advice, follow, right = ODD[name]
    with pytest.raises(TypeError, match="expected") as refusal:
        rows_from("x", given, torch.float32)
    assert advice in str(refusal.value)
    made = rows_from("x", follow(given), torch.float32)
    torch.testing.assert_close(made[:, : right.shape[1]].float(), right)


@pytest.mark.filterwarnings("ignore:.*(quantize|CSR|nested)")
@pytest.mark.parametrize("name", ["nested", "quantized", "sparse", "complex"])
@pytest.mark.parametrize("door", ["log_likelihood", "em", "impute", "fit"])
def test_so_it_is_at_every_door(name, door):
    gen = pg.GaussianMixture(1, 3)
    with pytest.raises(TypeError, match="expected"):
        getattr(pg, door)(gen, ODD[name][0])


@pytest.mark.parametrize("data", [torch.nested.nested_tensor(list(X)), memoryview(X.numpy())])
def test_what_has_no_shape_is_no_data(data):
    with pytest.raises(TypeError, match="expected a"):
        pg.fit(pg.GaussianMixture(1, 3), data, steps=1, **QUIET)


def test_rows_far_from_an_origin_that_a_family_has_are_told_to_be_moved():
    torch.manual_seed(0)
    x = torch.randn(20, 10, 2).cumsum(1) + 1e5
    gen = pg.LinearGaussianStateSpace(2, 2, 10)
    with pytest.raises(torch.linalg.LinAlgError, match=r"expected covariances .* subtract"):
        pg.em(gen, x, max_iter=10, seed=0)
    y = (x - x.mean((0, 1))) / x.std((0, 1))
    assert pg.em(gen, y, max_iter=10, tol=0, seed=0).log_likelihood.isfinite().all()
    assert (
        pg.em(gen.double(), x.double(), max_iter=10, tol=0, seed=0).log_likelihood.isfinite().all()
    )


def test_large_unsigned_integers_stay_positive():
    large = np.array([[2**63, 5]], dtype=np.uint64)
    assert rows_from("x", large, torch.float64).tolist() == [[2.0**63, 5.0]]
    assert rows_from("x", large[:, 1:], torch.float64).dtype == torch.int64


@pytest.mark.table(quick=2)
@pytest.mark.parametrize(
    "form", [pd.DataFrame, np.ndarray.tolist, lambda a: a.astype(">f4"), lambda a: a.astype(object)]
)
def test_a_report_takes_real_rows_in_any_form(form):
    torch.manual_seed(0)
    samples, real = torch.randn(60, 2), torch.randn(60, 2)
    expected = pg.sample_report(samples, real, permutations=5)
    found = pg.sample_report(samples, form(real.numpy()), permutations=5)
    assert str(found) == str(expected)


@pytest.mark.table(quick=21)
@pytest.mark.parametrize("member", ZOO, ids=lambda member: member.name)
def test_no_draws_have_the_shape_and_dtype_of_draws(member):
    gen = member.gen()
    context = (*member.data(), None)[1]
    some = sampled(gen, 1, context)
    none = sampled(gen, 0, context)
    assert (none.shape, none.dtype) == ((0, *some.shape[1:]), some.dtype)
    if context is not None:
        assert pg.sample(gen, 1, context[:0]).shape == (1, 0, *some.shape[2:])


def test_drawing_refuses_a_context_that_would_change_nothing():
    gen = pg.heads.Gaussian(pg.nn.Constant(4))
    with pytest.raises(ValueError, match="expected no context"):
        pg.sample(gen, 2, torch.zeros(5, 3))
    assert pg.sample(gen, 2).shape == (2, 2)


@pytest.mark.parametrize("sampler", [5, "DDIM", pg.diffusion.DDIM])
def test_what_is_no_sampler_is_refused_before_the_network_runs(sampler):
    gen = pg.Diffusion(pg.nn.TimeMLP(3), (3,))
    with pytest.raises(TypeError, match="expected"):
        pg.sample(gen, 2, sampler=sampler)
    assert pg.sample(gen, 2, sampler=pg.diffusion.DDIM(2)).shape == (2, 3)


@pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 3)])
@pytest.mark.parametrize("question", ["marginals", "mode"])
def test_impossible_evidence_of_any_shape_is_told(batch, question):
    first = ProbabilityTable(2, probs=torch.tensor([1.0, 0.0]))
    gen = pg.BayesianNetwork({"a": first, "b": ProbabilityTable(2, (2,))}, {"b": ["a"]})
    x = torch.tensor([1.0, torch.nan]).expand(*batch, 2)
    with pytest.raises(ValueError, match="impossible combination in row 0: a = 1"):
        getattr(gen, question)(x)


def test_packed_sequences_are_unpacked_as_advised():
    gen = pg.HiddenMarkovModel(2, 3, pg.sequences.GaussianEmission(2, 1))
    sequences = [torch.zeros(3, 1), torch.zeros(2, 1)]
    with pytest.raises(TypeError, match=r"unpack_sequence\(x\)"):
        pg.log_likelihood(gen, nn.utils.rnn.pack_sequence(sequences))
    unpacked = nn.utils.rnn.unpack_sequence(nn.utils.rnn.pack_sequence(sequences))
    value = pg.log_likelihood(gen, unpacked).value
    torch.testing.assert_close(value, pg.log_likelihood(gen, sequences).value)


def no_arguments():
    return None


@pytest.mark.parametrize(
    "options",
    [{"objective": nn.MSELoss()}, {"objective": lambda m, g: None}, {"optimizer": no_arguments}],
    ids=["a loss module", "a lambda", "an optimizer"],
)
def test_functions_that_take_other_arguments_are_named_with_what_they_take(options):
    with pytest.raises(TypeError, match="expected the arguments of the") as refusal:
        pg.fit(pg.MAF(3, layers=1), X, steps=1, **options, **QUIET)
    assert "let it take the" in str(refusal.value)


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="got the folder") as refusal:
        pg.fit(pg.MAF(3, layers=1), X, steps=1, checkpoint=tmp_path, **QUIET)
    advised = str(refusal.value).rpartition(": ")[2]
    pg.fit(pg.MAF(3, layers=1), X, steps=1, checkpoint=advised, **QUIET)
    with pytest.raises(ValueError, match="null characters"):
        pg.fit(pg.MAF(3, layers=1), X, steps=1, checkpoint="a\0b", **QUIET)


def test_another_objective_is_not_called_another_model(tmp_path):
    gen = pg.MAF(3, layers=1)
    run = {"checkpoint": tmp_path / "run", **QUIET}
    pg.fit(gen, X, steps=1, **run)
    with pytest.raises(CheckpointError, match="another objective"):
        pg.fit(gen, X, pg.objectives.IWAE(2), steps=2, resume=True, **run)
    with pytest.raises(CheckpointError, match="another model"):
        pg.fit(pg.MAF(3, layers=2), X, steps=2, resume=True, **run)


@pytest.mark.parametrize(
    ("module", "advice", "follow"),
    [
        (lambda: nn.LazyLinear(2), "call the module", lambda module: module(X)),
        (
            lambda: nn.Linear(2, 2, device="meta"),
            "module.to_empty(device='cpu')",
            lambda module: module.to_empty(device="cpu"),
        ),
    ],
)
def test_modules_without_values_are_not_saved(module, advice, follow, tmp_path):
    made = module()
    with pytest.raises(CheckpointError, match="expected weight") as refusal:
        pg.save(made, tmp_path / "weights")
    assert advice in str(refusal.value)
    follow(made)
    pg.save(made, tmp_path / "weights")


@pytest.mark.parametrize("seed", [torch.tensor(3), np.int64(3), 3])
def test_a_whole_number_in_any_form_is_a_seed(seed):
    gen = pg.MAF(2, layers=1)
    assert torch.equal(pg.sample(gen, 2, seed=seed), pg.sample(gen, 2, seed=3))


def test_the_tail_index_of_whole_numbers_is_no_whole_number():
    weights = torch.arange(200)
    torch.testing.assert_close(pareto_khat(weights), pareto_khat(weights.float()))


def test_a_mark_of_the_byte_order_is_no_part_of_the_text():
    text = "network n {} variable a { type discrete [2] {x, y}; } probability (a) { table 1 0; }"
    assert parse_bif("\ufeff" + text).states == parse_bif(text).states
