"""BIF files: round trips, the dialect of the bnlearn repository, errors.

And published answers of small networks.
"""

import gzip
import itertools
import os
import time

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
        (
            {},
            {
                "tub": 0.0104,
                "lung": 0.055,
                "bronc": 0.45,
                "either": 0.0648,
                "xray": 0.1103,
                "dysp": 0.4360,
            },
        ),
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
    assert tables.tables["lung"].tolist() == [
        pytest.approx([0.1, 0.9]),
        pytest.approx([0.01, 0.99]),
    ]
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
        (
            A + "probabilty ( a ) { }",
            "line 2: expected 'network' or 'variable' or 'probability', got 'probabilty'",
        ),
        (
            A + "probability ( c ) { table 1; }",
            r"line 2: expected one of the variables \('a',\), got 'c'",
        ),
        (
            A + "probability ( a ) {\n table 0.5, 0.6; }",
            r"line 3: expected probabilities that sum to 1, not \[1.1\]",
        ),
        (
            A + "probability ( a ) { table 0.5, 0.25, 0.25; }",
            "line 2: expected 2 probabilities, not 3",
        ),
        (
            A + "probability ( a ) { table 0.5, -0.5; }",
            "line 2: expected a number >= 0, got '-0.5'",
        ),
        (A + "probability ( a ) { table 0.5, nan; }", "line 2: expected a number >= 0, got 'nan'"),
        (
            A + "probability ( a ) { table 0.5, 0.5",
            "line 2: expected a number >= 0, got the end of the text",
        ),
        (
            A + B + "probability ( b | a ) {\n (x) 1, 0; }",
            r"line 5: expected probabilities of 'b' for \('y',\)",
        ),
        (
            A + B + "probability ( b | a ) { (z) 1, 0; }",
            r"line 4: expected one of \('x', 'y'\) \(a\), got 'z'",
        ),
        (A + B + "probability ( b | a ) { (x, x) 1, 0; }", r"line 4: expected '\)', got 'x'"),
        ("variable a { type discrete [ 3 ] { x, y }; }", "line 1: expected 3 states, got '}'"),
        (A, r"probability block for every variable, got none for \['a'\]"),
        ('variable "a { }', "line 1: expected a closing quote"),
    ],
)
def test_errors_name_the_line_and_what_stands_there(text, message):
    with pytest.raises(ValueError, match=message):
        parse_bif(text)


C = "variable a { type discrete [ 2 ] { x, y }; }\nvariable b { type discrete [ 2 ] { x, y }; }\n"
TWICE = {
    "variable": (
        A + A,
        "line 2: expected variables that differ, got 'a' again, which line 1 has already",
    ),
    "state": (
        "variable a { type discrete [ 2 ] { x,\nx }; }",
        "line 2: expected states that differ, got 'x' again",
    ),
    "type": (
        "variable a { type discrete [ 1 ] { x };\ntype discrete [ 1 ] { y }; }",
        "line 2: expected one type, got a second one",
    ),
    "no type": (
        "variable a {\n }",
        "line 2: expected 'type discrete' and the states before it, got '}'",
    ),
    "no states": ("variable a { type discrete [ 0 ] { }; }", "line 1: expected 1 states, got '}'"),
    "network": ("network n { }\nnetwork m { }", "line 2: expected one network, got a second one"),
    "block": (
        A + "probability ( a ) { table 0.5, 0.5; }\n\nprobability ( a ) { table 0.1, 0.9; }",
        "line 4: expected one block for each, got 'a' again, which line 2 has already",
    ),
    "table": (
        A + "probability ( a ) { table 0.5, 0.5;\n table 0.1, 0.9; }",
        "line 3: expected each row, table and default once, got one again that line 2 has already",
    ),
    "row": (
        A + B + "probability ( b | a ) { (x) 1, 0; (y) 1, 0;\n (x) 0, 1; }",
        "line 5: expected each row",
    ),
    "default": (
        A + B + "probability ( b | a ) { default 1, 0;\n default 0, 1; }",
        "line 5: expected each row",
    ),
    "table and row": (
        A + B + "probability ( b | a ) { table 1, 0, 0, 1;\n (x) 0, 1; }",
        "line 5: expected one table, or rows and a default, got both",
    ),
    "own parent": (
        A + "probability ( a | a ) { default 1, 0; }",
        "line 2: expected a child and parents that differ",
    ),
    "parent": (
        C + "probability ( a | b, b ) { default 1, 0; }",
        "line 3: expected a child and .* got 'b' again",
    ),
    "cycle": (
        C + "probability ( a | b ) { default 1, 0; }\nprobability ( b | a ) { default 1, 0; }",
        "line [34]: expected a network without cycles, got (a -> b -> a|b -> a -> b)",
    ),
    "comment": (A + "/* the rest ...", r"line 2: expected the end of a comment, '\*/', got none"),
    "nothing": ("// nothing\n", "line 2: expected 'variable', got the end of the text"),
    "underscore": (
        A + "probability ( a ) { table 0.5, 0_0.5; }",
        "line 2: expected a number >= 0, got '0_0.5'",
    ),
    "no name": ('variable "" { }', "line 1: expected a name"),
}


@pytest.mark.parametrize("case", TWICE)
def test_what_is_said_twice_or_contradicts_itself_is_refused(case):
    text, message = TWICE[case]
    with pytest.raises(ValueError, match=message):
        parse_bif(text)


def test_tables_that_no_memory_holds_are_refused():
    names = [f"v{i}" for i in range(41)]
    text = "".join(f"variable {name} {{ type discrete [ 2 ] {{ x, y }}; }}\n" for name in names)
    with pytest.raises(
        ValueError,
        match=r"line 42: expected a table of at most 33,554,432 entries.* for 40 parents of 'v0'",
    ):
        parse_bif(text + f"probability ( v0 | {', '.join(names[1:])} ) {{ default 0.5, 0.5; }}")
    text = "".join(f"variable v{i} {{ type discrete [ 1 ] {{ x }}; }}\n" for i in range(70))
    with pytest.raises(ValueError, match=r"line 71: .* and 60 parents"):
        parse_bif(
            text
            + f"probability ( v0 | {' '.join(f'v{i}' for i in range(1, 70))} ) {{ default 1; }}"
        )


@pytest.mark.table(quick=2)
@pytest.mark.parametrize("part", ["/* ", "/", '" "', "variable a {", "( ", "property ", "// x\n"])
def test_time_grows_with_the_length_alone(part):
    start = time.perf_counter()
    with pytest.raises(ValueError, match="line"):
        parse_bif(part * 100_000)
    assert time.perf_counter() - start < 5  # what grows with its square takes minutes


JAVA = """
// Bayesian network in the interchange format, produced by JavaBayes
network "Dog Problem" { //2 variables and 2 probability distributions
  property "credal-set constant-density-bounded 1.1" ;
}
variable "family out" { type discrete[2] { "true" "false" }; property "position = (257, 99)" ; }
variable "light-on" { type discrete[2] { "true" "false" }; }
probability ( "light-on" "family out" ) { //2 variable(s) and 4 values
  table 0.6 0.05 // p(lo=true | ...)
        0.4 0.95 ; }
probability ( "family out" ) { table 0.15 0.85 ; }
"""


def test_the_dialect_of_javabayes():
    tables = parse_bif(JAVA)
    assert tables.name == "Dog Problem" and tables.parents == {
        "family out": (),
        "light-on": ("family out",),
    }
    assert tables.tables["light-on"].tolist() == [
        pytest.approx([0.6, 0.4]),
        pytest.approx([0.05, 0.95]),
    ]
    again = parse_bif(format_bif(tables))
    assert again[:3] == tables[:3]


@pytest.mark.parametrize("name", ["asia.bif", "asia.bif.gz"])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-8-sig", "utf-16"])
def test_files_of_other_encodings_and_packed_ones(name, encoding, tmp_path):
    text = ASIA.replace("smoke", "fumée").replace("\n", "\r\n")
    content = text.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    tables = read_bif(tmp_path / name)
    assert tables.parents["lung"] == ("fumée",)
    write_bif(tables, tmp_path / f"back_{name}")
    assert read_bif(tmp_path / f"back_{name}").states == tables.states


def test_files_that_are_none_are_named(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "wrong").write_text("variable a { }")
    packed = gzip.compress(ASIA.encode())
    (tmp_path / "cut").write_bytes(packed[:-20])
    (tmp_path / "flipped").write_bytes(packed[:60] + bytes([packed[60] ^ 255]) + packed[61:])
    for name in ("pipe", "folder", "wrong", "cut", "flipped"):
        with pytest.raises(
            ValueError, match=rf"{tmp_path / name}.*expected|expected.*{tmp_path / name}"
        ):
            read_bif(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_bif(tmp_path / "nothing")
    monkeypatch.setattr("probgen.bif.network.LARGEST_TEXT", 100)
    (tmp_path / "bomb").write_bytes(packed)
    with pytest.raises(ValueError, match="expected at most 100 bytes"):
        read_bif(tmp_path / "bomb")


@pytest.mark.parametrize("name", ['a"b', "a\nb", ""])
def test_names_that_the_format_cannot_hold_are_not_written(name):
    tables = parse_bif(A + "probability ( a ) { table 0.5, 0.5; }")
    with pytest.raises(ValueError, match="expected names without quotes"):
        format_bif(tables._replace(name=name))


CHAIN = """
variable "the season" { type discrete [ 3 ] { dry, wet, "in between" }; }
variable sprinkler { type discrete [ 2 ] { off, on }; }
variable grass { type discrete [ 2 ] { dry, wet }; }
probability ( grass sprinkler "the season" ) {
  (on, dry) 0.1, 0.9; (on, wet) 0.01, 0.99; (off, wet) 0.2, 0.8; (off, "in between") 0.5, 0.5; default 0.95, 0.05;
}
probability ( sprinkler | "the season" ) { table 0.3, 0.9, 0.6, 0.7, 0.1, 0.4; }
probability ( "the season" ) { table 0.5, 0.3, 0.2; }
"""


@pytest.mark.parametrize("text", [ASIA, CHAIN, JAVA], ids=["asia", "chain", "javabayes"])
def test_networks_answer_like_enumeration(text):
    """Sums over all rows, with the numbers looked up in the tables one by one."""
    tables = parse_bif(text)
    network = BayesianNetwork.from_tables(tables.tables, tables.parents)
    last, names = list(tables.states)[-1], list(tables.states)
    sums = {name: torch.zeros(len(states)) for name, states in tables.states.items()}
    for row in itertools.product(*(range(len(states)) for states in tables.states.values())):
        place = dict(zip(names, row, strict=True))
        values = [
            tables.tables[n][(*(place[p] for p in tables.parents[n]), place[n])].item()
            for n in names
        ]
        if place[last] == 0:
            for name in names:
                sums[name][place[name]] += torch.tensor(values).prod()
    found = network.marginals(tables.row(**{last: tables.states[last][0]}))
    for name in names:
        torch.testing.assert_close(
            found[name][0], sums[name] / sums[name].sum(), atol=1e-5, rtol=1e-4
        )


def test_rows_by_the_names_of_states():
    tables, _ = asia()
    row = tables.row(smoke="no", xray="yes")
    assert row.shape == (1, 8) and row[0, 2] == 1 and row[0, 6] == 0 and row.isnan().sum() == 6
    with pytest.raises(ValueError, match=r"a state of smoke, one of \('yes', 'no'\), got 'maybe'"):
        tables.row(smoke="maybe")
