"""A step as a transaction.

What failed or was interrupted leaves data cursor, random state and buffers as they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from probgen.train.run import Run


class OnDevice(Protocol):
    """What draws on a device: a run, or several of them one after the other."""

    @property
    def fabric(self) -> Any:
        """Lightning's Fabric, which knows the device."""


SMALL = (
    2**16
    # entries of a buffer that is copied before each step; others by their version, which batch norm
    # forgets
)
LARGE = 2**24  # entries of one that is not copied


@contextmanager
def transaction(run: Run) -> Iterator[None]:
    """Moves cursor and random state back to the last whole step where the block raises.

    Steps that were whole before, in a block of several, stay.
    """
    cursor = run.source.cursor()
    random = random_state(run)
    steps = run.step
    try:
        yield
    except BaseException:
        with run.signals.held():
            run.source.seek(cursor)
            for _ in range(run.step - steps):
                run.source.choose()
            if run.step == steps:
                set_random_state(run, random)
        raise


def random_state(run: OnDevice) -> dict[str, Tensor]:
    """The state of the random generators that a run draws from, by device."""
    state = {"cpu": torch.get_rng_state()}
    if run.fabric.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(run.fabric.device)
    return state


def set_random_state(run: OnDevice, state: dict[str, Tensor]) -> None:
    """Puts back what :func:`random_state` gave."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and run.fabric.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], run.fabric.device)


class Buffers:
    """The buffers of a module, which a step may change before it fails.

    Running means, chains, baselines.

    >>> layer = nn.BatchNorm1d(1)
    >>> buffers = Buffers(layer)
    >>> buffers.remember()
    >>> _ = layer(torch.tensor([[0.0], [float("nan")]]))
    >>> buffers.restore()
    >>> layer.running_mean
    tensor([0.])
    """

    def __init__(self, module: nn.Module):
        self._places = [(m._buffers, name) for m in module.modules() for name in m._buffers]
        self._seen: dict[int, tuple[Tensor, int]] = {}
        self._copies: dict[int, Tensor] = {}

    def remember(self) -> None:
        """Copies those that may have changed since the last time."""
        for index, (holder, name) in enumerate(self._places):
            value = holder.get(name)
            if value is None or value.numel() > LARGE:
                self._seen.pop(index, None)
                continue
            seen = self._seen.get(index)
            if seen is None or seen[0] is not value:
                self._copies[index] = value.detach().clone()
            elif value.numel() <= SMALL or seen[1] != value._version:
                self._copies[index].copy_(value.detach())
            self._seen[index] = value, value._version

    @torch.no_grad()
    def restore(self) -> None:
        """Puts back what was there at the last time."""
        for index, (value, version) in self._seen.items():
            holder, name = self._places[index]
            holder[name] = value
            if value.numel() <= SMALL or value._version != version:
                value.copy_(self._copies[index])
