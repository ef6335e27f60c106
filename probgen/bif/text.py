"""BIF text as tokens with their lines, taken one after the other."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn

_TOKEN = re.compile(
    r"""(?P<space>\s+) | (?P<comment>//[^\n]*) | (?P<open>/\*) | (?P<quoted>"[^"\n]*")
    | (?P<mark>[{}()\[\];,|]) | (?P<word>[^\s{}()\[\];,|"]+)""",
    re.VERBOSE,
)
_MARKS = set("{}()[];,|")


class Reader:
    """Tokens of BIF text, taken one after the other.

    >>> reader = Reader('variable "a b" { }')
    >>> reader.take("network", "variable"), reader.name(), reader.next
    ('variable', 'a b', '{')
    """

    def __init__(self, text: str):
        self.tokens = list(_tokens(text.removeprefix("﻿")))  # the mark of an editor
        self.place = 0
        self.last = text.count("\n") + 1

    @property
    def more(self) -> bool:
        return self.place < len(self.tokens)

    @property
    def next(self) -> str:
        """The token that stands next, in quotes if it does; empty at the end."""
        return self.tokens[self.place][0] if self.more else ""

    @property
    def line(self) -> int:
        """Where the next token stands."""
        return self.tokens[self.place][1] if self.more else self.last

    def fail(self, expected: str, got: str = "", back: int = 0) -> NoReturn:
        """Raises for the token that stands next, or so many before it."""
        self.place -= back
        found = f"'{shortened(self.next)}'" if self.more else "the end of the text"
        refuse(self.line, expected, got or found)

    def once(self, name: str, what: str, lines: dict[str, int]) -> None:
        """Notes the line of the name that was taken last; raises if it has one already."""
        if name in lines:
            self.fail(what, f"'{name}' again, which line {lines[name]} has already", back=1)
        lines[name] = self.tokens[self.place - 1][1]

    def take(self, *allowed: str) -> str:
        """The next token, which must be one of those given."""
        if self.next not in allowed:
            self.fail(" or ".join(f"'{token}'" for token in allowed))
        self.place += 1
        return self.tokens[self.place - 1][0]

    def name(self) -> str:
        if self.next in ("", '""') or self.next in _MARKS:
            self.fail("a name")
        self.place += 1
        return self.tokens[self.place - 1][0].strip('"')

    def number(self) -> float:
        try:
            value = float(self.next.replace("_", "?"))  # float reads 1_0 as 10
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            self.fail("a number >= 0")
        self.place += 1
        return value

    def list(self, item: Callable, end: str) -> list:
        """Items separated by commas or blanks, up to and with the end mark."""
        items = []
        while self.next != end:
            items.append(item())
            if self.next == ",":
                self.place += 1
        self.take(end)
        return items

    def block(self, statement: Callable[[], object]) -> None:
        """``{ ... }`` with any properties, which are skipped, and statements."""
        self.take("{")
        while self.next != "}":
            if self.next == "property":
                while self.more and self.next != ";":
                    self.place += 1
                self.take(";")
            else:
                statement()
        self.take("}")


def refuse(line: int, expected: str, got: str) -> NoReturn:
    """Raises ``ValueError`` for a line of the text."""
    raise ValueError(f"line {line}: expected {expected}, got {got}; correct the BIF text")


def shortened(text: str, most: int = 40) -> str:
    """What messages show of a token, however long.

    >>> shortened("a" * 100, most=5)
    'aaaaa...'
    """
    return text if len(text) <= most else text[:most] + "..."


def some_names(names: Iterable[str], most: int = 20) -> str:
    """What messages show of names, however many.

    >>> some_names(["a", "b", "c"], most=2)
    "('a', 'b', ...)"
    """
    listed = tuple(names)
    return str(listed) if len(listed) <= most else f"{str(listed[:most])[:-1]}, ...)"


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    place = 0
    line = 1
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None:
            raise ValueError(
                f"line {line}: expected a closing quote, got {text[place : place + 20]!r}; close it"
            )
        end = found.end()
        if found.lastgroup == "open":
            end = text.find("*/", end) + 2
            if end < 2:
                raise ValueError(
                    f"line {line}: expected the end of a comment, '*/', got none; close it"
                )
        elif found.lastgroup not in ("space", "comment"):
            yield found.group(), line
        line += text.count("\n", place, end)
        place = end
