"""A model as data: the calls that built it, by public names, as JSON and tensors; never code.

A description is a graph. Its nodes are calls, ``{"class": "probgen.VAE", "arguments": {...}}``,
numbered in the order in which they can be made, so that a module that is given to two others is one
node. Defaults stand beside the arguments: they are passed where a later version has others. A value
is a plain JSON value or an object whose first entry says what it is: ``{"node": 3}``, ``{"tensor":
"argument/0", ...}``, ``{"name": "torch.nn.SiLU"}``, ``{"tuple": [...]}``, ``{"opaque": "why"}``.
The classes of all parts of a module stand beside it: they tell where one was replaced afterwards.
"""

from probgen.core.description.building import build
from probgen.core.description.names import NotDescribed, public_name
from probgen.core.description.values import Description, differences, opaque_parts, replaced
from probgen.core.description.writing import describe

__all__ = [
    "Description",
    "NotDescribed",
    "build",
    "describe",
    "differences",
    "opaque_parts",
    "public_name",
    "replaced",
]
