"""Loops that come again and again as one loop over the repetitions, in the text of a kernel.

A program that goes along a sequence step by step is recorded as a long list of the same operations,
each time with other memory. Where the text of some neighboring loops repeats but for names and
numbers, and memory can be laid out so that these go on by a constant from one repetition to the next,
one of the repetitions is enough: machine code for it is made once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

# repetitions that are worth a loop, loops in one of them at most, and how many repetitions at either
# end may differ from the others
LEAST = 4
PERIOD = 64
# names of memory and whole numbers, the exponents of others left out
TOKEN = re.compile(r"\b([el]?)(v\d+)\b|(?<![\w.])(?<!\de[-+])(\d+)(?![\w.])")


class Unit(NamedTuple):
    """The text of a loop nest, taken apart.

    Attributes
    ----------
    text : str
        What is left is a pattern that other units may have, too.
    tokens : tuple of str
        Names of memory and whole numbers, in the order of the text.
    made : tuple of str
        The memory that it fills, and nobody else.
    """

    text: str
    tokens: tuple[str, ...]
    made: tuple[str, ...]


class Family(NamedTuple):
    """Memory of the same kind in all repetitions, side by side."""

    name: str
    members: tuple[str, ...]


class Step(NamedTuple):
    """A token by repetition: first + by * repetition, of a family or as a number."""

    family: str
    first: int
    by: int


class Roll(NamedTuple):
    """Units from ``start`` on, ``period`` of them at a time, for so many repetitions."""

    start: int
    period: int
    times: int

    def units(self, repetition: int) -> range:
        begin = self.start + repetition * self.period
        return range(begin, begin + self.period)


class Rolled(NamedTuple):
    """A roll whose repetitions from ``begin`` to before ``end`` are one loop."""

    roll: Roll
    begin: int
    end: int
    steps: tuple[tuple[Step | None, ...], ...]


def unit(lines: Sequence[str], kinds: Mapping[str, str], made: Sequence[str]) -> Unit:
    """The pattern of a text: names are counted, and known by their kind alone."""
    names: dict[str, int] = {}
    tokens = []

    def blank(found: re.Match) -> str:
        prefix, name, number = found.groups()
        if number is not None:
            tokens.append(number)
            return "#"
        place = names.setdefault(name, len(names))
        if prefix:
            return f"{prefix}@{place}"
        tokens.append(name)
        return f"@{place}:{kinds.get(name, '')}"

    pattern = TOKEN.sub(blank, "\n".join(lines))
    return Unit(pattern, tuple(tokens), tuple(made))


def rolls(units: Sequence[Unit]) -> Iterator[Roll]:
    """Where patterns repeat, from the first on; of several periods the one that reaches furthest."""
    numbers: dict[str, int] = {}
    seen = [numbers.setdefault(each.text, len(numbers)) for each in units]
    start = 0
    while start < len(seen):
        best = Roll(start, 1, 1)
        for period in range(1, min(PERIOD, (len(seen) - start) // LEAST) + 1):
            if seen[start] != seen[start + period]:
                continue
            end = start
            while end + period < len(seen) and seen[end] == seen[end + period]:
                end += 1
            count = (end - start) // period + 1
            if count >= LEAST and count * period > best.times * best.period:
                best = Roll(start, period, count)
        if best.times > 1:
            yield best
            start += best.times * best.period
        else:
            start += 1


class Rolling:
    """The units of a kernel with the loops over their repetitions.

    Parameters
    ----------
    units : list of Unit
        In their order.
    scalar : callable
        Whether memory is one number under its name, which lives where it is declared.

    Attributes
    ----------
    families : list of Family
        What has to lie side by side.
    """

    def __init__(self, units: Sequence[Unit], scalar: Callable[[str], bool]):
        self._units = units
        self._scalar = scalar
        self._seen: dict[str, set[int]] = {}
        for place, each in enumerate(units):
            for token in each.tokens:
                self._seen.setdefault(token, set()).add(place)
        found = [*rolls(units)]
        self.families = [family for roll in found for family in self._families(roll)]
        self._places = {
            name: (family.name, place)
            for family in self.families
            for place, name in enumerate(family.members)
        }
        self.rolled = {one.roll.start: one for one in map(self._rolled, found) if one is not None}

    def _families(self, roll: Roll) -> Iterator[Family]:
        for offset in range(roll.period):
            made = [
                self._units[roll.units(repetition)[offset]].made for repetition in range(roll.times)
            ]
            for members in zip(*made, strict=True):
                if not self._scalar(members[0]):
                    yield Family(f"all_{members[0]}", members)

    def _rolled(self, roll: Roll) -> Rolled | None:
        begin, end = 0, roll.times
        steps = []
        for offset in range(roll.period):
            tokens = [self._units[roll.units(r)[offset]].tokens for r in range(roll.times)]
            own = []
            for column in zip(*tokens, strict=True):
                step, low, high = self._step(roll, column)
                begin, end = max(begin, low), min(end, high)
                own.append(step)
            steps.append(tuple(own))
        result = Rolled(roll, begin, end, tuple(steps))
        return result if end - begin >= LEAST and self._apart(result) else None

    def _step(self, roll: Roll, column: Sequence[str]) -> tuple[Step | None, int, int]:
        """How a token goes on, and in which repetitions; none at all for one that stays."""
        middle = len(column) // 2
        token = column[middle]
        if column[middle + 1] == token:
            fits = [other == token for other in column]
            return None, *_around(fits, middle)
        if not token.isdigit() and self._scalar(token):
            fits = [self._stays(roll, r, name) for r, name in enumerate(column)]
            return None, *_around(fits, middle)
        places = [self._place(other) for other in column]
        family, at = places[middle]
        by = places[middle + 1][1] - at
        step = Step(family, at - by * middle, by)
        fits = [place == (family, step.first + by * r) for r, place in enumerate(places)]
        return step, *_around(fits, middle)

    def _place(self, token: str) -> tuple[str, int]:
        return ("", int(token)) if token.isdigit() else self._places.get(token, (token, 0))

    def _stays(self, roll: Roll, repetition: int, name: str) -> bool:
        """Whether a number is seen in its own repetition alone."""
        return self._seen[name] <= set(roll.units(repetition))

    def _apart(self, one: Rolled) -> bool:
        """Whether no memory is known under two names within a repetition."""
        moving = {step for own in one.steps for step in own if step is not None and step.family}
        stay = {
            token
            for offset, own in enumerate(one.steps)
            for token, step in zip(
                self._units[one.roll.units(one.begin)[offset]].tokens, own, strict=True
            )
            if step is None
        }
        for repetition in range(one.begin, one.end):
            places = [(step.family, step.first + step.by * repetition) for step in moving]
            if len({*places}) < len(places):
                return False
            if any(self._places.get(token) in places for token in stay):
                return False
        return True

    def lines(self, texts: Sequence[Sequence[str]], kinds: Mapping[str, str]) -> Iterator[str]:
        """All of the text; ``kinds`` gives the types of memory by names of families."""
        place = 0
        while place < len(texts):
            one = self.rolled.get(place)
            if one is None:
                yield from texts[place]
                place += 1
                continue
            roll = one.roll
            for repetition in range(one.begin):
                for index in roll.units(repetition):
                    yield from texts[index]
            yield from self._loop(one, texts, kinds)
            place = roll.units(one.end)[0]

    def _loop(
        self, one: Rolled, texts: Sequence[Sequence[str]], kinds: Mapping[str, str]
    ) -> Iterator[str]:
        yield f"for (int64_t turn = {one.begin}; turn < {one.end}; ++turn) {{"
        moving = dict.fromkeys(
            step for own in one.steps for step in own if step is not None and step.family
        )
        names = {step: f"p{place}" for place, step in enumerate(moving)}
        for step, name in names.items():
            yield (
                f"{kinds[step.family]}* __restrict {name} = {step.family} + "
                f"({step.first} + turn * {step.by}) * {spaced(step.family)};"
            )
        for index, own in zip(one.roll.units(one.begin), one.steps, strict=True):
            yield _renamed("\n".join(texts[index]), own, names)
        yield "}"

    @property
    def loops(self) -> Iterator[int]:
        """The units whose text stands in the kernel."""
        place = 0
        while place < len(self._units):
            one = self.rolled.get(place)
            yield place
            place += 1
            if one is not None:
                yield from range(place, one.roll.units(one.begin + 1)[0])
                place = one.roll.units(one.end)[0]


def spaced(family: str) -> str:
    """The name of the distance between members of a family."""
    return f"far_{family}"


def _around(fits: Sequence[bool], middle: int) -> tuple[int, int]:
    """From where to where all fit, around the middle."""
    if not fits[middle]:
        return middle, middle
    begin, end = middle, middle
    while begin > 0 and fits[begin - 1]:
        begin -= 1
    while end < len(fits) and fits[end]:
        end += 1
    return begin, end


def _renamed(text: str, steps: Sequence[Step | None], names: Mapping[Step, str]) -> str:
    left = iter(steps)

    def other(found: re.Match) -> str:
        prefix, name, _ = found.groups()
        if prefix and name:
            return found.group()
        step = next(left)
        if step is None:
            return found.group()
        return names[step] if step.family else f"({step.first} + turn * {step.by})"

    return TOKEN.sub(other, text)
