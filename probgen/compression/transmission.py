"""Events along the steps of a distribution, through a channel."""

from __future__ import annotations

import torch
from torch import Tensor

from probgen.compression.channels import Channel
from probgen.compression.steps import EntryStep, Steps


def aligned(x: Tensor) -> Tensor:
    """A copy that starts at an aligned place of memory, row by row.

    Sums in a product of matrices are ordered by where the numbers lie.
    """
    return x.clone(memory_format=torch.contiguous_format)


def sent_rows(steps: Steps, coded: Tensor, channel: Channel, first: int = 0) -> None:
    """Values ``(n, entries)`` into a channel.

    Raises
    ------
    ValueError
        Where a value has no probability, with its row and column; ``first`` is the number of the
        first of these rows.
    """
    step = next(steps, None)
    while step is not None:
        places = step.places.flatten().to(coded.device)
        values = coded[:, places]
        symbols = values.long() - step.lowest
        _check_possible(step, symbols, first)
        channel.code(_flat(step), symbols.reshape(-1))
        step = _next(steps, aligned(values).reshape(len(coded), *step.places.shape))


def received_rows(steps: Steps, channel: Channel, dtype: torch.dtype | None = None) -> Tensor:
    """Values ``(n, entries)`` out of a channel, of the type of the rows that are coded."""
    dtype = dtype or torch.get_default_dtype()
    parts = []
    places = []
    step = next(steps, None)
    while step is not None:
        logs = step.log_masses
        symbols = channel.code(_flat(step), None).reshape(logs.shape[:-1])
        values = aligned((symbols + step.lowest).to(logs.device, dtype))
        parts.append(values.reshape(len(values), -1))
        places.append(step.places.flatten())
        step = _next(steps, values)
    order = torch.cat(places).argsort()
    return aligned(torch.cat(parts, -1)[:, order.to(parts[0].device)])


def _flat(step: EntryStep) -> Tensor:
    """Log masses, row by row, ``(M, L)``."""
    return step.log_masses.reshape(-1, step.log_masses.shape[-1]).cpu()


def _next(steps: Steps, values: Tensor) -> EntryStep | None:
    try:
        return steps.send(values)
    except StopIteration:
        return None


def _check_possible(step: EntryStep, symbols: Tensor, first: int) -> None:
    """Refuses values without a probability, and those that the step does not have."""
    logs = step.log_masses.reshape(len(symbols), -1, step.log_masses.shape[-1])
    outside = (symbols < 0) | (symbols >= logs.shape[-1])
    own = logs.gather(-1, symbols.clamp(0, logs.shape[-1] - 1).unsqueeze(-1)).squeeze(-1)
    wrong = outside | ~(own > -torch.inf)
    if wrong.any():
        row, entry = wrong.nonzero()[0].tolist()
        column = int(step.places.flatten()[entry])
        raise ValueError(
            "expected rows that the model gives some probability, got none for "
            f"{int(symbols[row, entry]) + step.lowest} in row {first + row}, entry {column}; train "
            "with pseudo-counts (smoothing=1), or leave the row out"
        )
