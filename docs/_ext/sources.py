"""The role ``source``: a dotted name of the package, as a link to the lines that define it.

``{source}`probgen.core.kinds.worst``` shows ``probgen/core/kinds.py: worst`` and leads to that place
on the page that ``sphinx.ext.viewcode`` makes of the file. A name that the file does not define is a
warning, which fails a build with ``-W``.
"""

from docutils import nodes
from sphinx.errors import PycodeError
from sphinx.ext.viewcode import OUTPUT_DIRNAME
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole

logger = logging.getLogger(__name__)


def defined(dotted: str) -> tuple[ModuleAnalyzer, str]:
    """The file of a dotted name, read by Sphinx, and the name inside it.

    Raises ``LookupError`` where there is none.
    """
    parts = dotted.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            analyzer = ModuleAnalyzer.for_module(".".join(parts[:length]))
        except PycodeError:
            continue
        analyzer.find_tags()
        name = ".".join(parts[length:])
        if name in analyzer.tags:
            return analyzer, name
        raise LookupError(f"{analyzer.modname} does not define {name}")
    raise LookupError("there is no such module")


class Source(SphinxRole):
    """A link to the source of a name."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        try:
            analyzer, name = defined(self.text)
        except LookupError as error:
            logger.warning("source of %s: %s", self.text, error, location=self.get_location())
            return [nodes.literal(self.text, self.text)], []
        module = analyzer.modname.replace(".", "/")
        text = nodes.literal("", f"{module}.py: {name}", classes=["source"])
        builder = self.env.app.builder
        if builder.format != "html":
            return [text], []
        told(self.env).setdefault(self.env.docname, set()).add((analyzer.modname, name))
        page = builder.get_relative_uri(self.env.docname, f"{OUTPUT_DIRNAME}/{module}")
        return [nodes.reference("", "", text, refuri=f"{page}#{name}", internal=True)], []


def told(env) -> dict[str, set[tuple[str, str]]]:
    """The names that each page leads to."""
    return env.__dict__.setdefault("probgen_sources", {})


def purge(app, env, docname) -> None:
    told(env).pop(docname, None)


def merge(app, env, docnames, other) -> None:
    told(env).update({name: names for name, names in told(other).items() if name in docnames})


def register(app) -> list:
    """Has viewcode make the pages, and mark the lines, before it writes them."""
    modules = app.env.__dict__.setdefault("_viewcode_modules", {})
    for docname, names in told(app.env).items():
        for module, name in names:
            analyzer = ModuleAnalyzer.for_module(module)
            analyzer.find_tags()  # a build on top of an earlier one has not read the page again
            entry = modules.get(module) or (analyzer.code, analyzer.tags, {}, module)
            modules[module] = entry
            entry[2].setdefault(name, docname)
            page = app.outdir / OUTPUT_DIRNAME / f"{module.replace('.', '/')}.html"
            if page.exists() and f'id="{name}"' not in page.read_text():
                page.unlink()  # of an earlier build, which viewcode would keep
    return []


def setup(app):
    app.add_role("source", Source())
    app.connect("env-purge-doc", purge)
    app.connect("env-merge-info", merge)
    app.connect("html-collect-pages", register, priority=400)  # before viewcode, at 500
    return {"parallel_read_safe": True}
