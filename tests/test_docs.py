"""Every snippet of the documentation runs, page by page, and links inside it lead somewhere."""

import ast
import contextlib
import io
import re
import sys
import traceback
import types
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"
TUTORIALS = sorted((DOCS.parent / "tutorials").glob("*.py"))
DEFINITION = ast.ClassDef | ast.FunctionDef
GENERATED = {"_generated", "_ext", "_static", "reference"}
PAGES = sorted(p for p in DOCS.rglob("*.md") if p.relative_to(DOCS).parts[0] not in GENERATED)
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def snippets(page: Path) -> list[str]:
    """The Python code of a page, in order."""
    return FENCE.findall(page.read_text())


WITH_CODE = [page for page in PAGES if snippets(page)]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_the_snippets_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    pyro.clear_param_store()
    script = types.ModuleType("__main__")  # a reader's script: what it defines is found by name
    monkeypatch.setitem(sys.modules, "__main__", script)
    names = vars(script)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for code in snippets(page):
            try:
                exec(compile(code, str(page), "exec"), names)
            except Exception:
                pytest.fail(f"in\n{code}\n{traceback.format_exc(limit=-3)}")
    plt.close("all")


LINK = re.compile(r"\{doc\}`(?:[^`<]*<)?([^`>]+)>?`|\]\((?!http|#|mailto)([^)#]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_links_inside_the_documentation_lead_somewhere(page):
    for name, path in LINK.findall(FENCE.sub("", page.read_text())):
        target = page.parent / (name or path)
        generated = "reference" in target.parts or "_generated" in target.parts
        tutorial = (DOCS.parent / target.relative_to(DOCS)).with_suffix(".py")
        found = target.exists() or target.with_suffix(".md").exists() or tutorial in TUTORIALS
        assert generated or found, target


SOURCE = re.compile(r"\{source\}`([^`]+)`")
WITH_SOURCES = [page for page in PAGES if SOURCE.search(page.read_text())]


def is_defined(dotted: str) -> bool:
    """Whether a file of the package defines a name: a class, a function, or a method of a class."""
    parts = dotted.split(".")
    paths = [DOCS.parent.joinpath(*parts[:n]).with_suffix(".py") for n in range(1, len(parts))]
    for depth, path in enumerate(paths, 1):
        if path.exists():
            body = ast.parse(path.read_text()).body
            for name in parts[depth:]:
                bodies = {node.name: node.body for node in body if isinstance(node, DEFINITION)}
                if name not in bodies:
                    return False
                body = bodies[name]
            return True
    return False


@pytest.mark.parametrize("page", WITH_SOURCES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_equations_name_code_that_exists(page):
    assert [name for name in SOURCE.findall(page.read_text()) if not is_defined(name)] == []


def test_every_page_of_theory_says_where_its_equations_are():
    theory = {page for page in PAGES if page.parent.name == "theory" and "$$" in page.read_text()}
    assert len(theory) > 8 and theory <= set(WITH_SOURCES)
    assert is_defined("probgen.core.kinds.worst")
    assert not is_defined("probgen.core.kinds.best")
    assert not is_defined("probgen.models.vae.VAE.fit")
    assert not is_defined("probgen.nowhere.vae")


def test_every_page_stands_in_a_table_of_contents():
    listed = {"index"}
    for page in PAGES:
        for block in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), re.DOTALL):
            names = [line for line in block.splitlines() if line and not line.startswith(":")]
            folder = page.parent.relative_to(DOCS).as_posix()
            prefix = "" if folder == "." else folder + "/"
            listed |= {prefix + name for name in names}
    here = {page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES}
    assert here - listed == set()


@pytest.mark.parametrize("script", TUTORIALS, ids=lambda script: script.stem)
def test_a_tutorial_is_a_page_and_shows_its_pictures(script):
    text = script.read_text()
    assert text.startswith("# %% [markdown]\n# # ")
    assert f"\ntutorials/{script.stem}\n" in (DOCS / "tutorials.md").read_text()
    hidden = re.findall(r"plt\.(?:close|imsave)\(", text)  # a notebook shows figures that are open
    assert not hidden
