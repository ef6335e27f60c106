"""One name for one thing: public names, Pyro's, and those of the modules of the package."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pyro
from asked.public import public

ROOT = Path(__file__).parent.parent / "probgen"
# draws from a model; the programs of a model call ``pyro.sample``, the scripts around them ours
MEANT = {"sample"}
# a file's verbs, called through their module: ``checkpoint.read(path)``
VERBS = {"load", "read", "write"}
# a head has the name of the distribution that it makes, as users and ``repr`` call both
HEADS = {"Beta", "Categorical", "DiscretizedLogisticMixture", "Gamma", "NegativeBinomial"}
HEADS |= {"Poisson", "StudentT"}
# an estimator of scikit-learn has the name of what it makes, or of scikit-learn's own
ESTIMATORS = {"GaussianMixture", "GenerativeClassifier"}


def alike(names):
    """Names that differ in case alone."""
    found = defaultdict(set)
    for name in names:
        found[name.lower()].add(name)
    return sorted(sorted(group) for group in found.values() if len(group) > 1)


def twice(sources):
    """Module-level classes and functions, private ones apart, that stand in several files."""
    found = defaultdict(set)
    for path, source in sources.items():
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                found[node.name].add(path)
    return {name: sorted(paths) for name, paths in found.items() if len(paths) > 1}


def test_no_public_names_differ_in_case_alone():
    assert alike(public()) == []


def test_no_public_name_hides_one_of_pyro():
    assert public().keys() & set(pyro.__all__) == MEANT


def test_one_name_of_a_class_or_function_is_one_thing():
    sources = {str(path.relative_to(ROOT)): path.read_text() for path in ROOT.rglob("*.py")}
    assert {
        name: paths
        for name, paths in twice(sources).items()
        if name not in VERBS | HEADS | ESTIMATORS
    } == {}


def unbounded(source):
    """What docstrings say of ``max_rows`` where it is no bound on what is handled at once."""
    entries = re.findall(r"\n +max_rows : .*((?:\n {8,}.*)+)", source)
    texts = [" ".join(entry.split()) for entry in entries]
    return [text for text in texts if not re.search(r"\bat (once|a time)\b|in place of", text)]


def test_max_rows_bounds_memory_and_rows_that_are_chosen_have_another_name():
    told = [path.read_text() for path in ROOT.rglob("*.py")]
    assert sum(source.count("max_rows : int") for source in told) > 10
    assert [text for source in told for text in unbounded(source)] == []


def test_rules_find_what_breaks_them():
    assert unbounded(
        "\n    max_rows : int\n        Rows that are\n        scored.\n    seed : int"
    ) == ["Rows that are scored."]
    assert unbounded("\n    max_rows : int\n        Rows scored at once.\n") == []
    assert alike(["Loo", "loo", "fit"]) == [["Loo", "loo"]]
    assert twice({"a.py": "class A: pass", "b.py": "def A(): pass\ndef _b(): pass"}) == {
        "A": ["a.py", "b.py"]
    }
    assert twice({"a.py": "def _b(): pass\ndef f(): pass", "b.py": "def _b(): pass"}) == {}
