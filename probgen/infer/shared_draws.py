"""What several processes draw together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from probgen.core.by_blocks import drawn_seed, seed_of
from probgen.core.seeds import seeded
from probgen.core.streams import share
from probgen.core.together import Together
from probgen.infer.simulate import Draws

PART = 64  # draws that have a seed of their own

Result = TypeVar("Result")


def shared_parts(
    work: Callable[[int, int], Result], total: int, size: int, together: Together
) -> list[Result]:
    """What ``work(begin, end)`` gives for each part of so many things, in their order, in all processes.

    Each process does some of the parts, and exchanges nothing meanwhile. Every part has a seed of its
    own, so that what is drawn does not depend on how many processes there are.

    >>> shared_parts(lambda begin, end: end - begin, 5, 2, Together())
    [2, 2, 1]
    """
    seed = together.share(drawn_seed())
    own: list[Result] = []
    with together.agreed():
        for number in range(*share(-(-total // size), *together.part)):
            begin = number * size
            with seeded(seed_of(seed, begin)):
                own.append(work(begin, min(begin + size, total)))
    return [part for several in together.gather(own) for part in several]


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

    def on_processor(begin: int, end: int) -> Draws:
        return {name: value.cpu() for name, value in draw(begin, end).items()}

    parts = shared_parts(on_processor, draws, PART, together)
    device = together.fabric.device
    return {name: torch.cat([part[name] for part in parts]).to(device) for name in parts[0]}
