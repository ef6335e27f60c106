"""Rows drawn given values of some columns, against enumeration and closed forms."""

import itertools
import math

import numpy as np
import pandas
import pytest
import torch

import probgen as pg
from probgen.core.kinds import density_kind
from probgen.core.normal import MultivariateNormal
from probgen.distributions.conditional import conditional
from probgen.distributions.rounded import Rounded
from probgen.table import Continuous, Label

LABELS = pandas.DataFrame(
    list(itertools.product(("Bern", "Rome"), ("no", "yes", "?"), (False, True))),
    columns=["city", "answer", "paid"],
)


def measured(rows=400):
    x = np.random.default_rng(0).normal(size=(rows, 3)) @ [[1, 0.8, 0], [0, 0.6, 0.5], [0, 0, 1]]
    return pandas.DataFrame(3 * x + 10, columns=["a", "b", "c"])


def of_labels():
    """Three families over the twelve rows of labels, with random weights."""
    table = pg.Table.read(LABELS)
    torch.manual_seed(0)

    def component():
        heads = table.heads()
        width = pg.heads.Mixed(None, heads).width
        return pg.heads.Mixed(pg.nn.Constant(width, initial=2 * torch.randn(width)), heads)

    auto = pg.AutoregressiveTable(table.heads(), [8], order=torch.tensor([1, 2, 0]))
    for parameter in auto.parameters():
        torch.nn.init.normal_(parameter)
    return {
        "mixture": pg.Tabular(table, pg.Mixture([component() for _ in range(3)])),
        "autoregressive": pg.Tabular(table, auto),
        "independent": pg.Tabular(table, component()),
    }


@pytest.mark.parametrize("given", [{"city": "Rome"}, {"answer": "?", "paid": True}], ids=str)
@pytest.mark.parametrize("family", ["mixture", "autoregressive", "independent"])
def test_draws_of_labels_follow_the_enumerated_conditional(family, given):
    gen = of_labels()[family].eval()
    if family == "autoregressive":  # the joint distribution whose order has what is given first
        names = gen.table.names
        gen.family.order = torch.tensor(
            [names.index(name) for name in [*given, *(n for n in names if n not in given)]]
        )
    masses = gen().log_prob(gen.rows(LABELS)).exp().detach().numpy()
    agrees = (LABELS[list(given)] == list(given.values())).all(axis=1).to_numpy()
    truth = masses * agrees / masses[agrees].sum()
    drawn = of_labels()[family].sample(8000, given=given, seed=1)
    places = {tuple(row): at for at, row in enumerate(LABELS.itertuples(index=False))}
    found = [places[tuple(row)] for row in drawn.itertuples(index=False)]
    shares = np.bincount(found, minlength=12) / 8000
    assert (drawn.dtypes == LABELS.dtypes).all()
    assert abs(shares - truth).max() < 5 * math.sqrt(0.25 / 8000)


def test_draws_of_numbers_follow_the_conditional_normal():
    frame = measured()
    table = pg.Table.read(frame)
    table = table.change({name: Continuous(step=0) for name in table.names})
    gen = pg.Tabular(table, pg.GaussianMixture(1, 3))
    pg.em(gen, frame, seed=0)
    drawn = gen.sample(20_000, given={"b": 14.5}, seed=0)
    mean, covariance = frame.mean().to_numpy(), np.cov(frame.to_numpy().T, bias=True)
    slope = covariance[[0, 2], 1] / covariance[1, 1]
    truth = mean[[0, 2]] + slope * (14.5 - mean[1])
    rest = covariance[np.ix_([0, 2], [0, 2])] - np.outer(slope, covariance[1, [0, 2]])
    assert (drawn["b"] == 14.5).all()
    others = drawn[["a", "c"]].to_numpy()
    assert abs(others.mean(0) - truth).max() < 0.12
    assert abs(np.cov(others.T) - rest).max() < 0.25
    only = pandas.DataFrame({"a": [None], "b": [14.5], "c": [None]}, dtype=float)
    assert pg.impute(gen, only, draws=5).kind == "exact"


def test_a_given_number_is_kept_as_it_was_given_and_seeds_repeat_draws():
    frame = measured().round(1)
    gen = pg.Tabular(pg.Table.read(frame), pg.AutoregressiveTable([pg.heads.Gaussian()] * 3, [8]))
    drawn = gen.sample(6, given={"a": 9.87654321}, seed=3)
    assert drawn["a"].tolist() == [9.87654321] * 6 and drawn["b"].nunique() > 1
    assert drawn.equals(gen.sample(6, given={"a": 9.87654321}, seed=3))
    assert gen.sample(0, given={"a": 9.0}).shape == (0, 3)
    assert gen.sample(4, given={}, seed=1).equals(gen.sample(4, seed=1))


def test_given_columns_under_contexts():
    frame = measured()
    heads = [pg.heads.Gaussian()] * 3
    gen = pg.Tabular(pg.Table.read(frame), pg.AutoregressiveTable(heads, [8], context=2))
    drawn = gen.sample(5, torch.randn(3, 2), given={"c": 9.5}, seed=0)
    assert drawn.shape == (15, 3) and (drawn["c"] == 9.5).all()


def test_what_is_given_is_never_missing_and_the_rest_as_often_as_beside_it():
    frame = measured(600)
    frame.loc[::2, "a"] = None
    frame.loc[::4, "b"] = None  # only where a is missing, too
    gen = pg.Tabular(pg.Table.read(frame), pg.AutoregressiveTable([pg.heads.Gaussian()] * 3, [8]))
    missing = gen.sample(4000, given={"a": 9.0}, seed=0).isna().mean()
    assert missing["a"] == 0 and missing["b"] < 0.01  # the rows with a have b
    missing = gen.sample(4000, given={"c": 9.0}, seed=0).isna().mean()
    assert missing["a"] == pytest.approx(0.5, abs=0.04)
    assert missing["b"] == pytest.approx(0.25, abs=0.04)
    assert not gen.sample(50, given={"c": 9.0}, missing=False).isna().any(axis=None)


def test_kinds_of_the_same_draws_by_impute():
    frame = measured().assign(a=lambda f: f["a"].round())
    table = pg.Table.read(frame).change(
        a=Continuous(step=1), b=Continuous(step=0), c=Continuous(step=0)
    )
    gen = pg.Tabular(table, pg.GaussianMixture(2, 3))
    pg.em(gen, frame, seed=0)
    kinds = {}
    for name in ("a", "b"):
        row = pandas.DataFrame({key: [10.0 if key == name else np.nan] for key in table.names})
        kinds[name] = pg.impute(gen, row).kind
    assert kinds == {"a": "heuristic", "b": "exact"}  # a given step says less than a number


def test_rounded_entries_given_others_have_the_mass_of_their_step():
    joint = MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.6], [0.6, 1.0]]))
    rounded = Rounded(joint, torch.tensor([0.5, 0.0]))
    x = torch.tensor([torch.nan, 1.2])
    given = conditional(rounded, x, ~x.isnan())
    normal = torch.distributions.Normal(0.6 * 1.2, 0.8)
    ends = torch.arange(-3, 4, 0.5)
    truth = normal.cdf(ends + 0.5) - normal.cdf(ends)
    drawn = given.sample((20_000,))
    shares = (drawn[:, :1] == ends).double().mean(0)
    assert (drawn[:, 1] == x[1]).all() and (shares - truth).abs().max() < 0.015
    value = torch.tensor([0.5, 1.2]).expand(20_000, 2)
    mass = given.log_prob(value).exp().mean() * 0.5
    assert density_kind(given) == "unbiased"
    assert mass.item() == pytest.approx(truth[ends == 0.5].item(), abs=0.003)
    with pytest.raises(NotImplementedError, match="without a grid"):
        conditional(rounded, torch.tensor([0.5, torch.nan]), torch.tensor([True, False]))


REFUSED = {
    "a column that there is not": ({"town": "Bern"}, ValueError, "got 'town'; give one of"),
    "a name that is near": ({"cty": "Bern"}, ValueError, "did you mean 'city'"),
    "a label that there is not": ({"city": "Oslo"}, ValueError, "one of 'Bern', 'Rome'"),
    "a value that is missing": ({"city": None}, ValueError, "leave out columns"),
    "no names": (["Bern"], TypeError, "give one"),
    "a number that is a string": ({"sold": "many"}, TypeError, "in column 'sold'"),
    "a number beyond the bounds": ({"sold": -3.0}, ValueError, "sold"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_given_is_refused(case):
    given, kind, words = REFUSED[case]
    frame = pandas.DataFrame({"city": ["Bern", "Rome"] * 9, "sold": np.linspace(1.5, 8.7, 18)})
    table = pg.Table.read(frame).change(city=Label(), sold=Continuous(low=0))
    gen = pg.Tabular(table, pg.AutoregressiveTable(table.heads(), [4]))
    with pytest.raises(kind, match=words):
        gen.sample(2, given=given)


def test_a_flow_refuses_and_rows_of_a_table_are_named():
    frame = measured()
    gen = pg.Tabular(pg.Table.read(frame), pg.NSF(3, layers=1, hidden=[8]))
    with pytest.raises(NotImplementedError, match="expected"):
        gen.sample(2, given={"a": 9.0})
    row = pg.Table.read(LABELS).row({"city": "Rome"}, paid=True)
    assert row[0, [0, 2]].tolist() == [1.0, 1.0] and row[0, 1].isnan()


def test_dates_and_other_libraries():
    days = pandas.to_datetime(["2024-03-01", "2024-03-05", "2024-04-01"] * 6)
    frame = pandas.DataFrame({"day": days, "sold": np.linspace(1.5, 8.7, 18)})
    table = pg.Table.read(frame)
    assert table.row(day=pandas.Timestamp("2024-03-03"))[0, 0] == 2
    polars = pytest.importorskip("polars")
    other = pg.Table.read(polars.from_pandas(frame))
    gen = pg.Tabular(other, pg.AutoregressiveTable(other.heads(), [4]))
    drawn = gen.sample(3, given={"day": pandas.Timestamp("2024-03-03").to_pydatetime()})
    assert drawn["day"].dt.day().to_list() == [3, 3, 3]


@pytest.mark.parametrize("missing", [True, False])
@pytest.mark.parametrize("given", [None, {"sex": "male"}], ids=["none", "some"])
def test_no_rows_are_a_frame_without_rows(given, missing):
    frame = pg.datasets.load_penguins()
    table = pg.Table.read(frame)
    gen = pg.Tabular(table, pg.AutoregressiveTable(table.heads(), [4]))
    assert gen.sample(0, given=given, missing=missing).shape == (0, len(frame.columns))


def test_a_name_that_is_no_string_is_no_column():
    table = pg.Table.read(pandas.DataFrame({"a": [0.5, 1.5]}))
    with pytest.raises(ValueError, match="expected columns of the table, got 0"):
        table.row({0: 1.0})
