"""Makes the gallery: each script of ``gallery`` draws one picture, shown with its code.

The docstring of a script is its title, a sentence, and the page that its picture leads to. A
picture is drawn again when its script, the style or the library has changed.
"""

import ast
import contextlib
import hashlib
import io
import runpy
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import pyro

FOLDER = Path(__file__).parents[1] / "gallery"
STYLE = FOLDER / "gallery.mplstyle"
LIBRARY = Path(__file__).parents[2] / "probgen"
GRID = "::::{grid} 1 2 2 3\n:gutter: 3\n\n"
CARD = """:::{{grid-item-card}} {title}
:link: /{page}
:link-type: doc
:img-top: /_generated/gallery/{name}.png
:img-alt: {text}

{text}
:::

"""
CODE = """### {title}

{{doc}}`Read on </{page}>`.

```python
{code}
```

"""


def parts(script: Path) -> dict[str, str]:
    """Title, sentence, page and code of a script."""
    source = script.read_text()
    title, text, page = ast.get_docstring(ast.parse(source)).split("\n\n")
    code = source.split('"""', 2)[2].strip()
    return {"name": script.stem, "title": title, "text": text, "page": page, "code": code}


def draw(script: Path, path: Path) -> None:
    """Runs a script, from the same random numbers every time, and saves its figure."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    with plt.style.context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars
            runpy.run_path(str(script))
        plt.savefig(path)
        plt.close("all")


def digest(*paths: Path) -> str:
    """Of the contents of files."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def write(app, config) -> None:
    """Draws what has changed, and writes cards and code to where the page includes them."""
    plt.switch_backend("Agg")
    pictures = Path(app.srcdir) / "_generated" / "gallery"
    pictures.mkdir(parents=True, exist_ok=True)
    library = sorted(LIBRARY.rglob("*.py"))
    scripts = sorted(FOLDER.glob("*.py"))
    for script in scripts:
        key = pictures / f"{script.stem}.sha256"
        state = digest(script, STYLE, *library)
        if not key.exists() or key.read_text() != state:
            draw(script, pictures / f"{script.stem}.png")
            key.write_text(state)
    entries = [parts(script) for script in scripts]
    text = GRID + "".join(CARD.format(**entry) for entry in entries) + "::::\n\n## The code\n\n"
    text += "".join(CODE.format(**entry) for entry in entries)
    page = pictures.with_suffix(".md")
    if not page.exists() or page.read_text() != text:
        page.write_text(text)


def setup(app):
    app.connect("config-inited", write)
    return {"parallel_read_safe": True}
