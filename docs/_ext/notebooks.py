"""Shows the tutorials as notebooks, with what they print and draw where that is known.

With ``PROBGEN_RUN_TUTORIALS=1`` MyST-NB runs them and keeps the outputs in ``build/tutorials``, by
the code of the notebook. Without it, outputs that were kept are shown, else code and prose alone.
"""

import os
from pathlib import Path

import jupytext
import nbformat
from jupyter_cache import get_cache

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "build" / "tutorials"
RUN = os.environ.get("PROBGEN_RUN_TUTORIALS") == "1"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def notebook(path: Path) -> nbformat.NotebookNode:
    """The notebook of a script in the percent format."""
    book = jupytext.read(path, fmt="py:percent")
    book.metadata = nbformat.from_dict({"kernelspec": KERNEL})
    for index, cell in enumerate(book.cells):
        cell.id = f"cell-{index}"  # the same at every build, so that Sphinx reads no page twice
    return book


def with_outputs(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with the outputs of an earlier run, if there was one of the same code."""
    if not CACHE.exists():
        return book
    try:
        return get_cache(CACHE).merge_match_into_notebook(book)[1]
    except KeyError:
        return book


def write(app, config) -> None:
    """Writes the notebooks into ``tutorials``, which is not committed."""
    folder = Path(app.srcdir) / "tutorials"
    folder.mkdir(exist_ok=True)
    for script in sorted((ROOT / "tutorials").glob("*.py")):
        book = notebook(script) if RUN else with_outputs(notebook(script))
        path = folder / f"{script.stem}.ipynb"
        text = nbformat.writes(book)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def setup(app):
    if RUN:
        os.environ.pop("MPLBACKEND", None)  # kernels then draw into the notebook
    app.connect("config-inited", write)
    return {"parallel_read_safe": True}
