"""States of discrete networks by name: everywhere the same as by code."""

import copy
import io
import pickle

import pandas as pd
import pytest
import torch

import probgen as pg
from probgen import heads
from probgen.bif import Tables, format_bif, parse_bif
from probgen.distributions.graphical.answers import Marginals
from probgen.models.bayesian_network import BayesianNetwork, LinearGaussian, ProbabilityTable
from probgen.nn import MLP
from probgen.train.checkpoint import CheckpointError

STATES = {"rain": ("no", "yes"), "wet": ("dry", "damp", "soaked")}
NUMBERED = {"level": ("1", "2", "3")}


def clinic(states=STATES):
    """A root with names, its child with names, a child of both without."""
    tables = {
        "rain": torch.tensor([0.8, 0.2]),
        "wet": torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]]),
        "n": torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0)).softmax(-1),
    }
    return BayesianNetwork.from_tables(
        tables, {"wet": ["rain"], "n": ["rain", "wet"]}, states=states
    )


def same(first, second):
    return torch.equal(torch.nan_to_num(first, -1.0), torch.nan_to_num(second, -1.0))


COLUMNS = {"wet": ["soaked", None, "dry"], "n": [3, 0, None]}
CODES = torch.tensor([[torch.nan, 2, 3], [torch.nan, torch.nan, 0], [torch.nan, 0, torch.nan]])
TABLES = {
    "lists": COLUMNS,
    "tuples": {name: tuple(values) for name, values in COLUMNS.items()},
    "pandas": pd.DataFrame(COLUMNS),
    "pandas, categories": pd.DataFrame(
        {"wet": pd.Categorical(COLUMNS["wet"]), "n": pd.array(COLUMNS["n"], dtype="Int64")}
    ),
    "rows by name": [{"wet": "soaked", "n": 3}, {"n": 0}, {"wet": "dry", "n": None}],
    "codes": {"wet": [2, float("nan"), 0], "n": torch.tensor([3.0, 0.0, torch.nan])},
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_tables_of_any_kind_are_encoded(table):
    assert same(clinic().rows(table), CODES)
    found = clinic().marginals(table)
    assert torch.equal(found["rain"], clinic().marginals(CODES)["rain"])


def test_decoding_undoes_encoding():
    network = clinic()
    x = torch.cat([network().sample((50,)), CODES])
    columns = network.names_of(x)
    assert columns["wet"][-3:] == COLUMNS["wet"]
    assert columns["n"][-3:] == COLUMNS["n"]
    assert same(network.rows(columns), x)
    assert same(network.rows(pd.DataFrame(columns)), x)
    assert network.names_of(CODES[None].repeat(2, 1, 1))["n"] == COLUMNS["n"] * 2


def test_nodes_of_numbers_stand_beside_states():
    nodes = {
        "k": ProbabilityTable(2),
        "y": heads.Gaussian(MLP(1, [4], 2)),
        "pair": heads.Gaussian(MLP(1, [4], 4)),
    }
    network = BayesianNetwork(nodes, {"y": ["k"], "pair": ["k"]}, states={"k": ("off", "on")})
    x = torch.tensor([[1.0, 0.5, 2.0, 3.0], [0.0, torch.nan, torch.nan, torch.nan]])
    table = {"k": ["on", "off"], "y": [0.5, None], "pair": [(2.0, 3.0), None]}
    assert same(network.rows(table), x)
    assert same(network.row(k="on", y=0.5, pair=torch.tensor([2.0, 3.0])), x[:1])
    columns = network.names_of(x)
    assert columns["k"] == ["on", "off"]
    assert columns["y"] == [0.5, None]
    assert network.labels["coords"]["node"] == ["k", "y", "pair[0]", "pair[1]"]


WRONG = {
    "unknown node": ({"rian": ["yes"]}, ValueError, "did you mean 'rain'"),
    "unknown state": ({"rain": ["yess"]}, ValueError, r"one of \('no', 'yes'\), got 'yess'; did"),
    "other case": ({"rain": ["YES"]}, ValueError, "got 'YES'; did you mean 'yes'"),
    "code beyond": ({"wet": [3]}, ValueError, r"'wet' among 0, ..., 2 or \('dry'.*got 3"),
    "half a code": ({"n": [0.5]}, ValueError, "'n' among 0, ..., 3, or NaN"),
    "truth": ({"rain": [True]}, ValueError, "got 'True'"),
    "one string": ({"rain": "yes"}, TypeError, r"one row is network\.row\(rain=\.\.\.\)"),
    "lengths": ({"rain": ["yes"], "n": [1, 2]}, ValueError, "columns of one length"),
    "a list": ({"n": [[1]]}, TypeError, r"a number or the name of a state, got \[1\]"),
    "no table": (3, TypeError, "a data frame, columns by name or a list of rows by name"),
    "names of codes": ({"n": ["1"]}, ValueError, "since its states have no names"),
}


@pytest.mark.parametrize(("table", "kind", "message"), WRONG.values(), ids=WRONG)
def test_what_is_no_state_is_refused(table, kind, message):
    with pytest.raises(kind, match=message):
        clinic().rows(table)


def test_the_advice_of_the_refusals_works():
    assert same(clinic().row(rain="yes"), clinic().rows({"rain": ["yes"]}))
    assert same(clinic().rows({"n": [1]}), clinic().row(n=1))


def test_numbers_that_are_names_and_codes_are_refused():
    network = BayesianNetwork({"level": ProbabilityTable(3)}, states=NUMBERED)
    assert network.row(level="3").item() == 2
    assert network.row(level=0).item() == 0  # no name
    for ambiguous in (1, 2.0):
        with pytest.raises(ValueError, match=r"by name.*give a string"):
            network.row(level=ambiguous)
    same_names = BayesianNetwork({"level": ProbabilityTable(3)}, states={"level": ("0", "1", "2")})
    assert same_names.row(level=1).item() == same_names.row(level="1").item() == 1


def test_means_have_no_names():
    with pytest.raises(ValueError, match=r"codes 0, ..., 1 or NaN .* 'rain', got 0\.5; names are"):
        clinic().names_of(torch.tensor([[0.5, 0.0, 0.0]]))


# answers


def test_marginals_go_by_name():
    network = clinic()
    x = torch.cat([network.row(wet="soaked"), network.row(n=2)])
    found = network.marginals(x)
    assert found.names == {**STATES, "n": ("0", "1", "2", "3")}
    for name, states in found.names.items():
        for place, state in enumerate(states):
            assert torch.equal(found[name, state], found[name][..., place])
    assert torch.equal(found["n", 3], found["n"][:, 3])
    assert found.in_words()[1]["rain"]["yes"] == pytest.approx(found["rain"][1, 1].item())
    for key, message in {
        "rian": "did you mean 'rain'",
        ("wet", "damo"): "did you mean 'damp'",
        ("n", 4): "expected a state of 'n'",
        ("wet", "dry", "damp"): "expected a state of 'wet'",
    }.items():
        with pytest.raises(KeyError, match=message):
            found[key]
    assert isinstance(pickle.loads(pickle.dumps(found)), Marginals)
    assert list(copy.deepcopy(found).names) == list(found)


def test_modes_draws_and_imputations_have_names():
    network = clinic()
    x = network.row(wet="soaked")
    mode = network.names_of(network.mode(x))
    pairs = network.joint(x, "rain", "n")[0]
    best = divmod(pairs.argmax().item(), 4)
    assert mode == {"rain": [STATES["rain"][best[0]]], "wet": ["soaked"], "n": [best[1]]}
    torch.manual_seed(0)
    draws = network.names_of(pg.impute(network, x, draws=4000).draws)
    assert set(draws["wet"]) == {"soaked"}
    share = draws["rain"].count("yes") / 4000
    assert share == pytest.approx(network.marginals(x)["rain", "yes"].item(), abs=0.04)
    prior = network.names_of(pg.sample(network, 4000, seed=0))
    assert prior["rain"].count("yes") / 4000 == pytest.approx(0.2, abs=0.04)


def test_unknown_names_are_refused_by_every_question():
    network = clinic()
    x = network.row()
    for ask in (
        lambda: network.joint(x, "rian"),
        lambda: network.marginals(x, nodes=["rian"]),
        lambda: network.probability(x, {"rian": "yes"}),
        lambda: network.row(rian="yes"),
        lambda: network.independent("rian", "wet"),
        lambda: clinic({"rian": ("no", "yes")}),
    ):
        with pytest.raises(ValueError, match="got 'rian'; did you mean 'rain'"):
            ask()


@pytest.mark.parametrize(
    "states",
    [("no",), ("no", "no"), "no", (0, 1), ("no", "yes", "maybe")],
)
def test_names_that_do_not_fit_are_refused(states):
    with pytest.raises(ValueError, match="different names for the 2 values of 'rain'"):
        clinic({"rain": states})


# names stay


def test_names_survive_learning_and_copies():
    network = clinic()
    x = network().sample((200,))
    with pytest.warns(UserWarning):  # three steps are few
        pg.fit(network, x, steps=3, batch_size=50, ema=0.9, compile=False, progress=False, seed=0)
    pg.em(network, x, seed=0)
    for other in (network, copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert other.states == STATES
        assert other.row(wet="damp")[0, 1] == 1


def test_names_come_with_the_tables_of_a_checkpoint(tmp_path):
    """Tables are not loaded into a network whose states stand in another order."""
    network, path = clinic(), tmp_path / "clinic.safetensors"
    pg.save(network, path)
    turned = clinic({"rain": ("yes", "no"), "wet": ("soaked", "dry", "damp")})
    with pytest.raises(CheckpointError, match="expected 'no', got 'yes'"):
        pg.load(path, into=turned)
    again = pg.load(path)
    assert again.states == STATES
    row = again.marginals(again.row(wet="damp"))
    assert torch.equal(
        row["rain", "yes"], network.marginals(network.row(wet="damp"))["rain", "yes"]
    )
    with pytest.raises(CheckpointError, match="states"):
        pg.load(path, into=clinic(None))
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    buffer.seek(0)
    turned = clinic({"rain": ("yes", "no"), "wet": ("soaked", "dry", "damp")})
    turned.load_state_dict(torch.load(buffer))
    assert turned.states == STATES


def test_names_go_through_bif_and_back():
    network = clinic()
    text = format_bif(Tables.of(network, "clinic"))
    tables = parse_bif(text)
    assert tables.name == "clinic"
    assert tables.states == {**STATES, "n": ("0", "1", "2", "3")}
    again = BayesianNetwork.from_tables(tables.tables, tables.parents, states=tables.states)
    x = network().sample((20,))
    assert torch.allclose(again().log_prob(x.double()).float(), network().log_prob(x), atol=1e-5)
    assert again.parents == network.parents


def test_names_label_arviz():
    network = clinic()
    x = network().sample((5,))
    found = pg.to_arviz(network, x, draws=5, groups=["observed_data"], **network.labels)
    assert found["observed_data"]["x"].dims == ("data", "node")
    assert found["observed_data"]["node"].values.tolist() == ["rain", "wet", "n"]


def test_networks_to_be_learned_are_made_of_states():
    states = {**STATES, "n": 4}
    made = BayesianNetwork.of_states(states, {"wet": ["rain"], "n": ["rain", "wet"]})
    assert made.states == STATES
    assert [part.logits.shape for part in made.conditionals] == [(2,), (2, 3), (2, 3, 4)]
    x = clinic()().sample((300,))
    pg.em(made, x)
    counts = torch.stack([(x[x[:, 0] == v, 1, None] == torch.arange(3)).sum(0) for v in range(2)])
    assert torch.allclose(made.tables["wet"], counts / counts.sum(-1, keepdim=True), atol=1e-5)
    with pytest.raises(ValueError, match="did you mean 'rain'"):
        BayesianNetwork.of_states(states, {"wet": ["rian"]})


def test_a_network_without_names_has_no_more_state_than_before():
    assert list(BayesianNetwork({"a": ProbabilityTable(2)}).state_dict()) == [
        "conditionals.0.logits"
    ]
    assert BayesianNetwork({"y": LinearGaussian()}).states == {}


@pytest.mark.parametrize("as_table", [pd.DataFrame, dict], ids=["frame", "mapping"])
def test_columns_are_read_by_name_at_every_door(as_table):
    columns = {"n": [3, 0, 1], "wet": ["soaked", "dry", "damp"], "rain": ["yes", "no", "no"]}
    table, rows = (
        as_table(columns),
        torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [0.0, 1.0, 1.0]]),
    )
    network, other = clinic(), clinic()
    by_name = pg.log_likelihood(network, table).value
    assert torch.equal(by_name, pg.log_likelihood(network, rows).value)
    pg.em(network, table)
    pg.em(other, rows)
    assert all(map(torch.equal, network.parameters(), other.parameters()))
    pg.fit(network, pd.DataFrame(columns), steps=1, compile=False, verdict=False, seed=0)
    pg.fit(other, rows, steps=1, compile=False, verdict=False, seed=0)
    assert all(map(torch.equal, network.parameters(), other.parameters()))


def test_other_columns_are_refused():
    with pytest.raises(ValueError, match="zzz"):
        pg.log_likelihood(clinic(), pd.DataFrame({"zzz": [1], "wet": ["dry"], "n": [0]}))


@pytest.mark.parametrize(
    ("column", "error", "text"),
    [
        (
            torch.zeros(4, 3),
            ValueError,
            r"a number of 'y' in each row, got an entry of shape \(3,\)",
        ),
        ([[1.0], [2.0, 3.0]], ValueError, r"a number of 'y' in each row, got an entry of shape"),
        ([1.0, "two"], TypeError, "a number of 'y' in each row, got 'two'; give numbers"),
    ],
    ids=["several columns", "ragged entries", "text"],
)
def test_a_continuous_node_has_one_number_in_each_row(column, error, text):
    network = BayesianNetwork({"y": LinearGaussian()})
    with pytest.raises(error, match=text):
        pg.log_likelihood(network, {"y": column})
    assert network.rows({"y": [1.0, None]}).isnan().tolist() == [[False], [True]]
