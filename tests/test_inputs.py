"""What people pass as rows works like the clean tensor that it stands for, or is refused clearly.

The whole product of families, functions and inputs is ``benchmarks/robustness/inputs.py``.
"""

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from inputs import BARE, CASES, SAMPLES, WORKS, WRONG, Row, at_doors, samples

import probgen as pg
from probgen.core.conversion import is_nested, nested, rows_from
from probgen.core.entry import as_rows
from probgen.core.in_memory import in_memory
from probgen.core.module import Fixed
from probgen.distributions.support import responsibilities

PAIRS = [
    pytest.param("GaussianMixture Full", "em", marks=pytest.mark.slow),
    ("GaussianMixture Full", "log_likelihood"),
    ("GaussianMixture Full", "impute"),
    ("MADE given a context", "log_likelihood"),
    ("VAE given a context", "posterior"),
    pytest.param("JointTable", "fit", marks=pytest.mark.slow),
    ("Program", "log_likelihood"),
    (SAMPLES, "frechet_distance"),
]
DRESSED = ("array float64", "masked array", "None in a list", "frame of objects", "tensor float16")


def failures(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.trial.outcome in (BARE, WRONG)]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "door"), PAIRS)
def test_no_input_is_silently_wrong_or_refused_in_foreign_words(family, door):
    found = samples if family == SAMPLES else None
    rows = list(found([door], CASES) if found else at_doors(family, [door], CASES))
    assert len(rows) > 80
    assert not failures(rows)


def test_other_forms_of_good_rows_work():
    rows = list(at_doors("GaussianMixture Full", ["log_likelihood"], DRESSED))
    assert [row.trial.outcome for row in rows] == [WORKS] * len(DRESSED)


def test_the_table_is_long_enough():
    assert len(CASES) * len(PAIRS) >= 500


GOOD = [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (
            [[1.0, 2.0], [3.0]],
            ValueError,
            r"expected rows of x of one shape, got \(2,\) and \(1,\)",
        ),
        ([["a", 2.0]], TypeError, "expected numbers in x, got str 'a' in row 0.*encode categories"),
        ("rows.csv", TypeError, "expected x as a tensor.*got str 'rows.csv'; read the file first"),
        ((row for row in GOOD), TypeError, "got a generator; make a list of it"),
        ({"a": 1}, TypeError, "got a dict; pass its values one by one"),
        (torch.zeros(2).to("meta"), TypeError, "got one on the meta device"),
    ],
)
def test_the_sentence_says_what_was_given(given, error, text):
    with pytest.raises(error, match=f"(?s){text}"):
        rows_from("x", given)


def test_the_advice_for_dims_between_helps():
    gen, x = pg.heads.Gaussian(pg.nn.Constant(4)), torch.tensor(GOOD).unsqueeze(1)
    with pytest.raises(ValueError, match=r"x.reshape\(len\(x\), 2\)"):
        pg.log_likelihood(gen, x)
    assert as_rows(gen, x.reshape(len(x), 2))[0].shape == (3, 2)


def test_lists_hold_missing_values_and_other_rows():
    torch.testing.assert_close(
        nested([[1, None]]), torch.tensor([[1.0, torch.nan]]).double(), equal_nan=True
    )
    assert torch.equal(
        nested([torch.ones(2), [0, 1]]), torch.tensor([[1.0, 1.0], [0.0, 1.0]]).double()
    )
    assert is_nested(GOOD)
    assert not is_nested([torch.ones(2)])


FORMS = {
    "tensors": lambda x: list(x),
    "arrays": lambda x: list(x.numpy()),
    "tuples": lambda x: [tuple(row) for row in x.tolist()],
    "fractions": lambda x: [[Fraction(entry) for entry in row] for row in x.tolist()],
    "decimals": lambda x: [[Decimal(entry) for entry in row] for row in x.tolist()],
    "numbers of NumPy": lambda x: [[np.float32(entry) for entry in row] for row in x.tolist()],
    "numbers of torch": lambda x: [list(row) for row in x],
}
DOORS = {
    "score": lambda gen, x: pg.log_likelihood(gen, x).value,
    "fit": lambda gen, x: pg.fit(gen, x, steps=2, verdict=False, seed=0).loss,
    "validation": lambda gen, x: (
        pg.fit(
            gen, BLOBS, steps=2, validation=x, validate_every=2, verdict=False, seed=0
        ).validation
    ),
    "em": lambda gen, x: pg.em(gen, x, max_iter=3, tol=0.0, seed=0).log_likelihood,
}
BLOBS = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.table(quick=7)
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("form", FORMS)
def test_a_list_of_rows_is_the_tensor_of_them_at_every_door(form, door):
    def found(x):
        torch.manual_seed(0)
        return torch.as_tensor(DOORS[door](pg.GaussianMixture(2, 3), x))

    torch.testing.assert_close(found(FORMS[form](BLOBS)), found(BLOBS))


@pytest.mark.parametrize("door", ["score", "fit", "em"])
@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([["a"] * 3] * 2, "expected numbers in x, got str 'a' in row 0.*encode categories"),
        ([[1j] * 3] * 2, "expected numbers in x, got a complex"),
        ([torch.zeros(3), torch.zeros(2)], r"expected rows of x of one shape, got \(3,\) and"),
    ],
)
def test_a_list_of_wrong_rows_is_refused_alike_at_every_door(given, text, door):
    with pytest.raises((TypeError, ValueError), match=text):
        DOORS[door](pg.GaussianMixture(2, 3), given)


def test_a_list_of_batches_stays_one():
    batches = [torch.zeros(4, 3), torch.ones(4, 3)]
    assert in_memory(list(BLOBS), pg.GaussianMixture(2, 3))
    assert not in_memory(batches, pg.GaussianMixture(2, 3))
    assert not in_memory([(batch,) for batch in batches], pg.GaussianMixture(2, 3))
    scalars = Fixed(dist.Normal, event_ndim=0, loc=0.0, scale=1.0)
    assert not in_memory([torch.zeros(4), torch.ones(4)], scalars)  # events are numbers
    program = pg.Program(lambda x: None, lambda x: None)
    assert not in_memory([torch.zeros(4)], program) and not in_memory([(1.0, 2.0)], program)


def test_missing_values_stand_among_any_numbers():
    given = [[Fraction(1, 2), None], [Decimal("0.25"), math.nan]]
    expected = torch.tensor([[0.5, torch.nan], [0.25, torch.nan]])
    torch.testing.assert_close(rows_from("x", given, torch.float32), expected, equal_nan=True)


def test_rows_become_numbers_of_the_familys_own_type():
    for dtype in (torch.float32, torch.float64):
        gen = pg.GaussianMixture(2, 2).to(dtype)
        for given in (GOOD, torch.tensor(GOOD).half(), torch.tensor(GOOD).long()):
            assert as_rows(gen, given)[0].dtype == dtype


def test_a_family_may_keep_integers():
    class Lookup(pg.DistributionModule):
        keeps_integers = True
        context_size = 0

        def forward(self, context=None):
            return torch.distributions.Categorical(torch.ones(3) / 3)

    gen = Lookup()
    assert gen.settle((torch.tensor([0, 2]),))[0].dtype == torch.long


def test_statistics_of_incomplete_data_miss_what_the_data_miss():
    torch.manual_seed(0)
    gen, x = pg.GaussianMixture(1, 1), torch.randn(200, 1)
    x[::2] = torch.nan
    found = pg.predictive_check(gen, x, statistic=lambda rows: rows.isnan().sum(), draws=5)
    assert (found.replicated == 100).all() and found.observed == 100
    with pytest.raises(ValueError, match=r"leaves out missing values.*nanmean"):
        pg.predictive_check(gen, x, statistic=torch.mean, draws=5)
    pg.predictive_check(gen, x, statistic=torch.nanmean, draws=5)


def test_rows_too_far_from_all_components_are_named():
    gen, x = pg.GaussianMixture(2, 2), torch.zeros(5, 2)
    x[3] = 1e30
    with pytest.raises(
        ValueError, match=r"got 1e\+30 in row 3; rescale x, or take float64: gen.double()"
    ):
        gen.responsibilities(x)
    assert gen.double().responsibilities(x.double()).isfinite().all()
    with pytest.raises(ValueError, match="too far from all, row 1"):
        responsibilities(torch.tensor([[0.0, -torch.inf], [-torch.inf, -torch.inf]]))
