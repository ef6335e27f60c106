"""The parts of a loss as numbers per row, for the history of a run."""

from __future__ import annotations

import torch
from torch import Tensor

from probgen.core.loss_parts import LossParts
from probgen.train.history import History

Series = tuple[tuple[str, str], ...]


def series_of(parts: LossParts) -> Series:
    """Which series of the history these parts go on: the attribute, and the name in it.

    >>> from probgen.core.loss_parts import LossPart
    >>> series_of({"kl": LossPart(torch.tensor(2.0), 0.5)})
    (('parts', 'kl'), ('weights', 'kl'))
    """
    weighted = [name for name, part in parts.items() if part.is_weighted]
    return (*(("parts", name) for name in parts), *(("weights", name) for name in weighted))


def numbers_of(parts: LossParts, rows: float) -> list[Tensor]:
    """The values of :func:`series_of`, in double precision: parts per row, weights as they are.

    One by one, since each vector that a compiled step makes of them takes it some time.
    """
    values = [part.value.double() / rows for part in parts.values()]
    weights = [part.weight for part in parts.values() if part.is_weighted]
    given = [w if torch.is_tensor(w) else torch.full_like(values[0], w) for w in weights]
    return [*values, *(weight.double() for weight in given)]


def read_numbers(parts: LossParts, rows: float) -> list[float]:
    """The values of :func:`numbers_of`, of a step whose loss is known already."""
    values = [part.value.item() / rows for part in parts.values()]
    return values + [float(part.weight) for part in parts.values() if part.is_weighted]


# -- on disk


def series_tensors(history: History) -> dict[str, Tensor]:
    """What a history has of every step, by name."""
    series = {"loss": history.loss, "gradient_norm": history.gradient_norm}
    series |= {f"parts/{name}": values for name, values in history.parts.items()}
    series |= {f"weights/{name}": values for name, values in history.weights.items()}
    series |= {f"learning_rates/{i}": values for i, values in enumerate(history.learning_rates)}
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in series.items()}


def with_series(tensors: dict[str, Tensor]) -> History:
    """A history with the series of :func:`series_tensors`.

    >>> with_series(series_tensors(History([3.0], [1.0], {"kl": [1.0]}))).parts
    {'kl': [1.0]}
    """
    rates = _under(tensors, "learning_rates/")
    return History(
        tensors["loss"].tolist(),
        tensors["gradient_norm"].tolist(),
        _under(tensors, "parts/"),
        _under(tensors, "weights/"),
        [rates[group] for group in sorted(rates, key=int)],
    )


def _under(tensors: dict[str, Tensor], kind: str) -> dict[str, list[float]]:
    found = {name.removeprefix(kind): name for name in tensors if name.startswith(kind)}
    return {key: tensors[name].tolist() for key, name in found.items()}
