"""Answers of a discrete network, by the names of its variables and of their states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from probgen.distributions.graphical.directed_graph import did_you_mean


class Marginals(dict[str, Tensor]):
    """Probabilities of the values of some variables, each ``(*batch, K)``.

    ``found["rain"]`` is the array; ``found["rain", "yes"]`` the probability ``(*batch,)`` of one
    state, by its name, or by its code where there are no names.

    Attributes
    ----------
    names : dict of str to tuple of str
        The states of each variable, ``"0"``, ``"1"``, ... where they have no names.

    Raises
    ------
    KeyError
        For variables and states that there are not.

    >>> import torch
    >>> found = Marginals({"rain": torch.tensor([[0.25, 0.75]])}, {"rain": ("no", "yes")})
    >>> found["rain", "yes"], found.names
    (tensor([0.7500]), {'rain': ('no', 'yes')})
    >>> found.in_words()
    [{'rain': {'no': 0.25, 'yes': 0.75}}]
    """

    def __init__(self, tables: Mapping[str, Tensor], states: Mapping[str, Sequence[str]]):
        super().__init__(tables)
        self.names = {
            name: tuple(states.get(name) or map(str, range(table.shape[-1])))
            for name, table in tables.items()
        }

    def __missing__(self, key: object) -> Tensor:
        """What is no variable: a variable and a state of it."""
        name, *state = key if isinstance(key, tuple) else (key,)
        if name not in self:
            raise KeyError(f"expected the name of a variable, {did_you_mean(list(self), name)}")
        if len(state) != 1 or str(state[0]) not in self.names[name]:
            got = state[0] if len(state) == 1 else tuple(state)
            raise KeyError(f"expected a state of '{name}', {did_you_mean(self.names[name], got)}")
        return self[name][..., self.names[name].index(str(state[0]))]

    def in_words(self) -> list[dict[str, dict[str, float]]]:
        """Probabilities by variable and state, one entry for each row."""
        columns = {
            name: table.reshape(-1, table.shape[-1]).tolist() for name, table in self.items()
        }
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return [
            {name: dict(zip(self.names[name], row[name], strict=True)) for name in row}
            for row in rows
        ]
