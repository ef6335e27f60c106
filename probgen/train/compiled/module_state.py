"""What hangs on a module, for those who must know whether a program changes it.

Values, names, Python numbers.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PLAIN = (bool, int, float, complex, str, type(None))


def attached(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers and other tensors among the attributes of a module and its parts.

    By name.
    """
    return {name: value for name, value in _attributes(module) if torch.is_tensor(value)}


def plain_values(module: nn.Module) -> dict[str, str]:
    """Python numbers, strings and flags among the attributes, and which parameters are trained.

    As text.

    >>> plain_values(nn.Dropout(0.5))["p"]
    '0.5'
    """
    values = {name: repr(value) for name, value in _attributes(module) if isinstance(value, PLAIN)}
    trained = {
        f"{name}.requires_grad": repr(p.requires_grad) for name, p in module.named_parameters()
    }
    return values | trained


def python_random() -> tuple[Any, ...]:
    """Where the random numbers of Python and NumPy stand, which no graph follows."""
    state: Any = np.random.get_state()  # noqa: NPY002 (not to draw, to see who does)
    name, keys, *rest = state
    return random.getstate(), name, keys.tobytes(), *rest


@contextlib.contextmanager
def preserved(module: nn.Module, *others: Tensor) -> Iterator[None]:
    """Puts back whatever happens to a module's tensors and attributes, and to other tensors.

    Inside the block.
    """
    given = [*attached(module).values(), *others]
    values = [
        (value.detach(), value.detach().clone()) for value in given if value.layout is torch.strided
    ]
    places = [(place, dict(place)) for part in module.modules() for place in _places(part)]
    try:
        yield
    finally:
        for place, kept in places:
            place.update(kept)
        for value, before in values:
            if not torch.equal(value, before):
                value.copy_(before)


def _places(module: nn.Module) -> list[dict[str, Any]]:
    return [vars(module), module._parameters, module._buffers]


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, part in module.named_modules():
        for place in _places(part):
            for name, value in place.items():
                yield f"{path}.{name}" if path else name, value
