"""A uniform sample of rows that are read in blocks, the same however they are cut and shared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from probgen.core.conversion import NO_ROWS
from probgen.core.in_memory import is_stream
from probgen.core.streams import RowBlock, as_stream
from probgen.core.together import Together

_MIXERS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)  # odd numbers of 64 bits, with a sign
_SHIFTS = (30, 27, 31)
_STEP = -0x61C8864680B583EB  # 2 ** 64 over the golden ratio


class RowSample:
    r"""At most so many rows of a stream, each subset of that size as likely as any other.

    Row ``i`` has a key that follows from the seed and ``i`` alone, and rows with the smallest keys
    are kept, in their order. Blocks may be of any sizes, and rows may be read by several processes:
    the sample is the same one. Memory is that of twice as many rows and a block. With ``rates`` keys
    are exponential variables of these rates: rows are drawn in proportion to them, one after the
    other, without replacement.

    Parameters
    ----------
    most : int
        The number of rows that are kept; all of them where there are no more.
    seed : int
        Which sample.

    References
    ----------
    Vitter (1985), Random sampling with a reservoir, https://doi.org/10.1145/3147.3165; keys: Steele,
    Lea, Flood (2014), Fast splittable pseudorandom number generators,
    https://doi.org/10.1145/2660193.2660195; rates: Efraimidis, Spirakis (2006), Weighted random
    sampling with a reservoir, https://doi.org/10.1016/j.ipl.2005.11.003

    >>> whole, parts = RowSample(3, seed=0), RowSample(3, seed=0)
    >>> x = torch.arange(100.0)
    >>> whole.add(torch.arange(100), {"x": x})
    >>> for start in (50, 0):
    ...     parts.add(torch.arange(start, start + 50), {"x": x[start : start + 50]})
    >>> torch.equal(whole.rows()["x"], parts.rows()["x"]), len(whole.rows()["x"]), whole.seen
    (True, 3, 100)
    """

    def __init__(self, most: int, seed: int):
        self.most = most
        self.seed = seed
        self.seen = 0
        self._limit: float | None = None  # keys above it are not among the smallest
        self._pieces: list[dict[str, Tensor]] = []
        self._held = 0

    def add(self, numbers: Tensor, rows: Mapping[str, Tensor], rates: Tensor | None = None) -> None:
        """Looks at rows ``(n, ...)`` by name, which have these numbers ``(n,)`` among all rows.

        With ``rates`` ``(n,)``, for all rows or for none, rows of rate 0 are never drawn.
        """
        numbers = numbers.cpu()
        self.seen += len(numbers)
        keys = keys_of(numbers, self.seed)
        if rates is not None:
            keys = _exponential(keys) / rates.cpu().double()
        kept = keys < (math.inf if self._limit is None else self._limit)
        if not kept.any():
            return
        piece = {name: value[kept.to(value.device)].cpu() for name, value in rows.items()}
        self._pieces.append({_KEY: keys[kept], _NUMBER: numbers[kept], **piece})
        self._held += int(kept.sum())
        if self._held >= 2 * self.most:
            self._compact()

    def _compact(self) -> None:
        """Leaves the rows with the smallest keys."""
        if not self._pieces:
            return
        names = self._pieces[0]
        whole = {name: torch.cat([piece[name] for piece in self._pieces]) for name in names}
        if len(whole[_KEY]) > self.most:
            keys, places = whole[_KEY].topk(self.most, largest=False)
            whole = {name: value[places] for name, value in whole.items()}
            self._limit = keys.max().item()
        self._pieces = [whole]
        self._held = len(whole[_KEY])

    def merge(self, together: Together) -> None:
        """The sample of what all processes have looked at, in all of them."""
        if together.world == 1:
            return
        self._compact()
        found = together.gather((self.seen, self._pieces))
        self.seen = sum(seen for seen, _ in found)
        self._pieces = [piece for _, pieces in found for piece in pieces]
        self._compact()

    def rows(self) -> dict[str, Tensor]:
        """The rows that are kept, by name, in their order; nothing where there were none."""
        self._compact()
        if not self._pieces:
            return {}
        whole = dict(self._pieces[0])
        del whole[_KEY]
        order = whole.pop(_NUMBER).argsort()
        return {name: value[order] for name, value in whole.items()}


def drawn_rows(data: Any, most: int, seed: int, max_rows: int, together: Together) -> Any:
    """Rows drawn uniformly from a stream, the same ones in all processes; other data as they are.

    >>> drawn_rows(iter([torch.arange(3.0), torch.arange(3.0, 5.0)]), 9, 0, 2, Together())
    tensor([0., 1., 2., 3., 4.])
    """
    if not is_stream(data):
        return data
    sample = RowSample(int(most), int(seed))
    with together.agreed():
        for block in as_stream(data).blocks(int(max_rows), together.part):
            _check_alone(block)
            sample.add(torch.arange(block.start, block.start + block.size), {"x": block.rows[0]})
    sample.merge(together)
    found = sample.rows()
    if not found:
        raise ValueError(NO_ROWS)
    return found["x"]


def _check_alone(block: RowBlock) -> None:
    if len(block.rows) != 1:
        raise ValueError(
            f"expected a stream of rows alone, got batches of {len(block.rows)} parts; give the first "
            "of each batch: (batch[0] for batch in loader)"
        )
    if block.weights is not None:
        raise ValueError(
            "expected rows that count once each, got a stream with weights; make it without weights=, "
            "or compare with rows drawn in proportion to them"
        )


_KEY, _NUMBER = " key", " number"  # beside names of rows, which have no spaces


def keys_of(numbers: Tensor, seed: int) -> Tensor:
    """Numbers that look random, of 63 bits, for the numbers of rows.

    >>> keys_of(torch.tensor([0, 1]), seed=0).tolist() == keys_of(torch.tensor([1, 0]), 0).tolist()[::-1]
    True
    """
    keys = (numbers.long() + 1) * _STEP + _mixed(torch.tensor(seed + 1) * _STEP)
    return _mixed(keys) & torch.iinfo(torch.int64).max


def _exponential(keys: Tensor) -> Tensor:
    """Keys as exponential variables of rate 1."""
    return -((keys.double() + 0.5) / 2**63).log()


def _mixed(bits: Tensor) -> Tensor:
    """Each bit of the result depends on all bits."""
    for shift, mixer in zip(_SHIFTS[:2], _MIXERS, strict=True):
        bits = (bits ^ _shifted(bits, shift)) * mixer
    return bits ^ _shifted(bits, _SHIFTS[2])


def _shifted(bits: Tensor, places: int) -> Tensor:
    """A shift to the right that fills up with zeros."""
    return (bits >> places) & ((1 << (64 - places)) - 1)
