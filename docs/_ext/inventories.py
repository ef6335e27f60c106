"""Links to the documentation of other libraries, at builds that cannot reach their sites.

Sphinx reads an inventory of each site: they are written here, from ``inventories.toml``.
"""

import inspect
import tomllib
import zlib
from pathlib import Path

import probgen

SITES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
FOLDER = Path(__file__).parents[1] / "_generated" / "inventories"
MAPPING = {name: (site["site"], str(FOLDER / f"{name}.inv")) for name, site in SITES.items()}


def inventory(name: str) -> bytes:
    """The file that Sphinx expects: four lines of plain text, then one compressed line a name."""
    head = f"# Sphinx inventory version 2\n# Project: {name}\n# Version: \n"
    head += "# The remainder of this file is compressed using zlib.\n"
    lines = ""
    for target, entry in SITES[name]["names"].items():
        role, location = entry.split()
        lines += f"{target} {role} 1 {location} -\n"
    return head.encode() + zlib.compress(lines.encode())


def aliases() -> dict[str, str]:
    """What docstrings call a type, and its full name: own classes, and last parts of the others."""
    classes = {name for name in probgen.__all__ if inspect.isclass(getattr(probgen, name))}
    others = [name for site in SITES.values() for name in site["names"] if "." in name]
    found = {name: name for name in others}
    found |= {name.rpartition(".")[2]: name for name in others}
    found |= {"nn.Module": "torch.nn.Module", "nn.Parameter": "torch.nn.Parameter"}
    found |= {name: f"probgen.{name}" for name in classes}
    errors = {name for name in SITES["python"]["names"] if name.endswith("Error")}
    found |= {name: f":class:`python:{name}`" for name in errors | {"bool"}}
    return found | {"mapping": ":term:`python:mapping`"}


def write(app, config) -> None:
    """Writes the inventories before Sphinx asks for them."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in SITES:
        (FOLDER / f"{name}.inv").write_bytes(inventory(name))


def setup(app):
    app.connect("config-inited", write)
    return {"parallel_read_safe": True}
