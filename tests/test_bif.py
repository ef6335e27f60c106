"""BIF files: round trips, the dialect of the bnlearn repository, errors, and published answers of small networks."""

import pytest
import torch

import probgen as pg
from probgen.bif import format_bif, parse_bif, read_bif, write_bif
from probgen.models.bayesian_network import BayesianNetwork

ASIA = """
// Lauritzen, Spiegelhalter (1988), Local computations with probabilities on graphical structures
network asia { property author "none"; }
variable asia { type discrete [ 2 ] { yes, no }; }
variable tub { type discrete [ 2 ] { yes, no }; }
variable smoke { type discrete [ 2 ] { yes, no }; }
variable lung { type discrete [ 2 ] { yes, no }; }
variable bronc { type discrete [ 2 ] { yes, no }; }
variable either { type discrete [ 2 ] { yes, no }; }
variable xray { type discrete [ 2 ] { yes, no }; }
variable dysp { type discrete [ 2 ] { yes, no }; }
probability ( asia ) { table 0.01, 0.99; }
probability ( tub | asia ) { (yes) 0.05, 0.95; (no) 0.01, 0.99; }
probability ( smoke ) { table 0.5, 0.5; }
probability ( lung | smoke ) { (no) 1e-2, 0.99; (yes) 0.1, 0.9; } /* any order */
probability ( bronc | smoke ) { table 0.6, 0.3, 0.4, 0.7; }
probability ( either | lung, tub ) { (no, no) 0.0, 1.0; default 1.0, 0.0; }
probability ( xray | either ) { (yes) 0.98, 0.02; (no) 0.05, 0.95; }
probability ( dysp | bronc, either ) {
  (yes, yes) 0.9, 0.1; (no, yes) 0.7, 0.3; (yes, no) 0.8, 0.2; (no, no) 0.1, 0.9;
}
"""


def asia():
    tables = parse_bif(ASIA)
    return tables, BayesianNetwork.from_tables(tables.tables, tables.parents)


@pytest.mark.parametrize(
    ("evidence", "answers"),
    [
        ({}, {"tub": 0.0104, "lung": 0.055, "bronc": 0.45, "either": 0.0648, "xray": 0.1103, "dysp": 0.4360}),
        ({"dysp": "yes"}, {"tub": 0.0189, "lung": 0.1028, "bronc": 0.8340}),
        ({"asia": "yes", "dysp": "yes"}, {"tub": 0.0878, "lung": 0.0995, "bronc": 0.8114}),
    ],
)
def test_asia_gives_the_published_probabilities(evidence, answers):
    """The marginals of the example of Lauritzen and Spiegelhalter, which textbooks repeat."""
    tables, network = asia()
    found = network.marginals(tables.row(**evidence))
    for name, value in answers.items():
        assert found[name][0, 0].item() == pytest.approx(value, abs=6e-5)


def test_all_ways_to_write_a_table_agree():
    tables, _ = asia()
    assert tables.tables["bronc"].tolist() == [pytest.approx([0.6, 0.4]), pytest.approx([0.3, 0.7])]
    assert tables.tables["either"].tolist() == [[[1, 0], [1, 0]], [[1, 0], [0, 1]]]
    assert tables.tables["lung"].tolist() == [pytest.approx([0.1, 0.9]), pytest.approx([0.01, 0.99])]
    assert tables.parents["dysp"] == ("bronc", "either") and tables.states["asia"] == ("yes", "no")


def test_round_trip_is_exact(tmp_path):
    tables, _ = asia()
    torch.manual_seed(0)
    tables.tables["dysp"].copy_(torch.rand(2, 2, 2).softmax(-1))
    write_bif(tables, tmp_path / "asia.bif")
    back = read_bif(tmp_path / "asia.bif")
    assert back[:3] == tables[:3]
    assert all(torch.equal(back.tables[name], table) for name, table in tables.tables.items())


def test_a_learned_network_is_written_and_read():
    tables, network = asia()
    torch.manual_seed(0)
    x = network().sample((500,))
    pg.em(network, x)
    back = parse_bif(format_bif(tables._replace(tables=network.tables)))
    again = BayesianNetwork.from_tables(back.tables, back.parents)
    assert torch.allclose(again().log_prob(x), network().log_prob(x), atol=1e-5)
    counts = (x[:, 2] == 0).float().mean()
    assert back.tables["smoke"][0].item() == pytest.approx(counts.item(), abs=1e-6)


def test_names_with_blanks_and_marks_come_back():
    text = 'variable "a b" { type discrete [3] { "x, y" low "3.5" }; } probability ("a b") { table 0.2 0.3 0.5; }'
    tables = parse_bif(text)
    assert tables.states == {"a b": ("x, y", "low", "3.5")}
    back = parse_bif(format_bif(tables))
    assert back.states == tables.states and torch.equal(back.tables["a b"], tables.tables["a b"])


def test_states_of_the_repository_and_rounded_rows():
    """Bare names such as ``<7.5`` and ``5-12``; rows that miss 1 by rounding are rescaled."""
    text = "variable a { type discrete [ 3 ] { <7.5, 5-12, >=12 }; }\nprobability ( a ) { table 0.333, 0.333, 0.333; }"
    tables = parse_bif(text)
    assert tables.states["a"] == ("<7.5", "5-12", ">=12")
    assert tables.tables["a"].tolist() == pytest.approx([1 / 3] * 3)


A = "variable a { type discrete [ 2 ] { x, y }; }\n"
B = "variable b { type discrete [ 2 ] { u, v }; }\nprobability ( a ) { table 0.5, 0.5; }\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (A + "probabilty ( a ) { }", "line 2: expected 'network' or 'variable' or 'probability', got 'probabilty'"),
        (A + "probability ( c ) { table 1; }", r"line 2: expected one of the variables \('a',\), got 'c'"),
        (A + "probability ( a ) {\n table 0.5, 0.6; }", r"line 3: expected probabilities that sum to 1, not \[1.1\]"),
        (A + "probability ( a ) { table 0.5, 0.25, 0.25; }", "line 2: expected 2 probabilities, not 3"),
        (A + "probability ( a ) { table 0.5, -0.5; }", "line 2: expected a number >= 0, got '-0.5'"),
        (A + "probability ( a ) { table 0.5, nan; }", "line 2: expected a number >= 0, got 'nan'"),
        (A + "probability ( a ) { table 0.5, 0.5", "line 2: expected a number >= 0, got the end of the text"),
        (A + B + "probability ( b | a ) {\n (x) 1, 0; }", r"line 5: expected probabilities of 'b' for \('y',\)"),
        (A + B + "probability ( b | a ) { (z) 1, 0; }", r"line 4: expected one of \('x', 'y'\) \(a\), got 'z'"),
        (A + B + "probability ( b | a ) { (x, x) 1, 0; }", r"line 4: expected '\)', got 'x'"),
        ("variable a { type discrete [ 3 ] { x, y }; }", "line 1: expected 3 states, got '}'"),
        (A, r"probability block for every variable, got none for \['a'\]"),
        ('variable "a { }', "line 1: expected a closing quote"),
    ],
)
def test_errors_name_the_line_and_what_stands_there(text, message):
    with pytest.raises(ValueError, match=message):
        parse_bif(text)


def test_rows_by_the_names_of_states():
    tables, _ = asia()
    row = tables.row(smoke="no", xray="yes")
    assert row.shape == (1, 8) and row[0, 2] == 1 and row[0, 6] == 0 and row.isnan().sum() == 6
    with pytest.raises(ValueError, match=r"a state of smoke, one of \('yes', 'no'\), got 'maybe'"):
        tables.row(smoke="maybe")
