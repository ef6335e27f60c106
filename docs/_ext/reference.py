"""Writes one page of the API reference for each public namespace, before Sphinx reads the pages.

The lists come from ``__all__``, so that a public name cannot lack an entry.
"""

import importlib
import inspect
from pathlib import Path

import probgen

STUB = ".. autosummary::\n   :toctree: generated\n   :nosignatures:\n\n"


def namespaces() -> dict[str, object]:
    """The top level, and every public module of it, by dotted name."""
    found = {"probgen": probgen}
    for name in probgen.__all__:
        value = getattr(probgen, name)
        if inspect.ismodule(value):
            found[f"probgen.{name}"] = value
    # which needs a library that probgen alone does not load
    found["probgen.sklearn"] = importlib.import_module("probgen.sklearn")
    return found


def public_names(module) -> list[str]:
    """What is documented on the page of a namespace: all but its modules."""
    values = {name: getattr(module, name) for name in module.__all__}
    own = {name for name, value in values.items() if not inspect.ismodule(value)}
    if module is not probgen:  # what also stands at the top is documented there
        own -= {name for name in own if values[name] is vars(probgen).get(name)}
    return sorted(own, key=list(module.__all__).index)


def group_of(value) -> str:
    """The heading under which a name stands."""
    if inspect.isclass(value) and issubclass(value, Warning | Exception):
        return "Errors and warnings"
    if inspect.isclass(value):
        return "Classes"
    if callable(value):
        return "Functions"
    return "Values"


def page(dotted: str, module) -> str:
    """The page of one namespace."""
    title = dotted
    lines = [title, "=" * len(title), "", inspect.getdoc(module) or "", ""]
    lines += [f".. currentmodule:: {dotted}", ""]
    groups: dict[str, list[str]] = {}
    for name in public_names(module):
        groups.setdefault(group_of(getattr(module, name)), []).append(name)
    for heading in ("Classes", "Functions", "Values", "Errors and warnings"):
        names = groups.get(heading, [])
        if names:
            entries = "".join(f"   {name}\n" for name in names)
            lines += [heading, "-" * len(heading), "", STUB + entries]
    pages = [f"   generated/{dotted}.{name}\n" for name in public_names(module)]
    lines += [".. toctree::\n   :hidden:\n", "".join(pages)]
    return "\n".join(lines)


def write(app, config) -> None:
    """Writes the pages into ``reference``, which is not committed."""
    folder = Path(app.srcdir) / "reference"
    folder.mkdir(exist_ok=True)
    found = namespaces()
    for dotted in found:
        text = page(dotted, importlib.import_module(dotted))
        replace(folder / f"{dotted}.rst", text)
    entries = {f"{dotted}.{name}" for dotted in found for name in public_names(found[dotted])}
    forget(folder, set(found) | {"index"})
    forget(folder / "generated", entries)
    index = "API reference\n=============\n\n"
    index += "Families and the verbs of most scripts stand at the top level; parts of them in\n"
    index += "namespaces.\n\n.. toctree::\n   :maxdepth: 1\n\n"
    index += "".join(f"   {dotted}\n" for dotted in found)
    replace(folder / "index.rst", index)


def forget(folder: Path, known: set[str]) -> None:
    """Removes the pages that an earlier build wrote for names that are public no more."""
    for path in folder.glob("*.rst"):
        if path.stem not in known:
            path.unlink()


def replace(path: Path, text: str) -> None:
    """Writes what has changed only, so that Sphinx reads no page twice."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def setup(app):
    app.connect("config-inited", write)  # before Sphinx and autosummary look for pages
    return {"parallel_read_safe": True}
