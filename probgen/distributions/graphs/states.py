"""Names of the values of discrete variables, and their codes 0, 1, ..."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from probgen.distributions.graphs.directed_graph import Graph

States = dict[str, tuple[str, ...]]


def checked_states(states: Mapping[str, Sequence[str]], graph: Graph) -> States:
    """Names of the values of some nodes.

    Raises ``ValueError`` unless each has as many, all different.
    """
    for name, values in states.items():
        levels = graph.levels[graph.index(name)]
        if len(values) != levels or len(set(values)) != levels:
            raise ValueError(
                f"expected different names for the {levels} values of '{name}' (None: not discrete), got "
                f"{tuple(values)}; name each value once"
            )
    return {name: tuple(values) for name, values in states.items()}


def code(states: Mapping[str, Sequence[str]], name: str, value: str) -> int:
    """The code of a state.

    >>> code({"rain": ("no", "yes")}, "rain", "yes")
    1
    """
    if value not in states.get(name, ()):
        known = (
            f"one of {tuple(states[name])}"
            if name in states
            else "as a number, since its states have no names"
        )
        raise ValueError(f"expected a state of '{name}', {known}, got '{value}'; give one of these")
    return list(states[name]).index(value)


def word(states: Sequence[str] | None, value: float) -> str | float | None:
    """The name of a code, the value where there are no names, ``None`` where it is missing.

    >>> word(("no", "yes"), 1.0), word(None, 1.0), word(None, float("nan"))
    ('yes', 1.0, None)
    """
    if math.isnan(value):
        return None
    return value if states is None else states[int(value)]
