"""Draws that several processes make together."""

from __future__ import annotations

from collections.abc import Callable

import torch

from probgen.core.by_blocks import drawn_seed, seed_of
from probgen.core.seeds import seeded
from probgen.core.streams import share
from probgen.core.together import Together
from probgen.infer.simulate import Draws

PART = 64  # draws that have a seed of their own


def shared_draws(draw: Callable[[int, int], Draws], draws: int, together: Together) -> Draws:
    """All draws in all processes, each of which makes a part of them.

    With a fabric every part of 64 draws has a seed of its own, so that the draws are the same for any
    number of processes; without one they come from one sequence of random numbers.

    Parameters
    ----------
    draw : callable
        ``draw(begin, end)`` gives the draws of these numbers by name, ``(end - begin, ...)`` each. It
        exchanges nothing.
    draws : int
        How many there are in all.
    together : Together
        The processes.

    >>> found = shared_draws(lambda begin, end: {"z": torch.arange(begin, end)}, 3, Together())
    >>> found["z"]
    tensor([0, 1, 2])
    """
    if together.fabric is None:
        return draw(0, draws)
    seed = together.share(drawn_seed())
    own: list[Draws] = []
    with together.agreed():
        for number in range(*share(-(-draws // PART), *together.part)):
            begin = number * PART
            with seeded(seed_of(seed, begin)):
                found = draw(begin, min(begin + PART, draws))
            own.append({name: value.cpu() for name, value in found.items()})
    parts = [part for several in together.gather(own) for part in several]
    device = together.fabric.device
    return {name: torch.cat([part[name] for part in parts]).to(device) for name in parts[0]}
