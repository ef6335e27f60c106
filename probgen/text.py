"""Text as data: tokenizers, and vocabularies that turn strings into integers and back."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from probgen.core import checks

__all__ = ["Tokenizer", "Vocabulary", "characters", "words"]

Tokenizer = Callable[[str], Sequence[str]]
FORMAT = 1  # of the dict that describes a vocabulary


def words(text: str) -> list[str]:
    """Words and punctuation marks of a text, in lower case.

    >>> words("Two thick sevens, red.")
    ['two', 'thick', 'sevens', ',', 'red', '.']
    """
    checks.text(text=text)
    return re.findall(r"\w+|[^\w\s]", text.lower())


def characters(text: str) -> list[str]:
    """Characters of a text, as they are.

    >>> characters("No 7")
    ['N', 'o', ' ', '7']
    """
    checks.text(text=text)
    return list(text)


class Vocabulary:
    """Tokens and their numbers: strings to integers ``(N, L)``, padded at their ends, and back.

    The numbers are those of the places of the tokens, of which some are declared: ``padding`` stands
    after the end of a text, ``unknown`` for tokens that are none of these, ``begin`` and ``end`` at
    the ends of every text. Encoded texts are

    - contexts of networks with an encoder of texts, ``UNet(shape, context=TextEncoder(len(vocabulary),
      length))``, where the padding is a step that is missing, and a text of padding alone one of
      which nothing is known;
    - events of families of labels, after :meth:`events`, which says by NaN what is missing:
      ``EndToken(Transformer((length,), Categorical(levels=len(vocabulary)),
      Tokens(len(vocabulary), 64)), end=vocabulary.end)``.

    Parameters
    ----------
    tokens : sequence of str
        All tokens, the declared ones among them, each once.
    padding : str
        The token that stands for none.
    unknown : str, optional
        The token that stands for all that are not among them; ``None``: such texts are refused.
    begin, end : str, optional
        Tokens at the ends of every text; ``None``: there are none.
    tokenizer : callable
        A string to its tokens: :func:`words`, :func:`characters`, ``tokenizer.tokenize`` of one of
        Hugging Face's.
    joiner : str, optional
        What stands between tokens where they are put together; default: nothing between characters,
        a space between others, except before punctuation marks.

    Raises
    ------
    ValueError
        If a token stands twice, or a declared one is lacking.

    >>> vocabulary = Vocabulary.of(["two red sevens", "a blue one"])
    >>> ids = vocabulary.encode(["a red one", "two green sevens"], length=4)
    >>> ids
    tensor([[2, 5, 4, 0],
            [7, 1, 6, 0]])
    >>> vocabulary.decode(ids)
    ['a red one', 'two <unknown> sevens']
    """

    def __init__(
        self,
        tokens: Sequence[str],
        *,
        padding: str = "<padding>",
        unknown: str | None = "<unknown>",
        begin: str | None = None,
        end: str | None = None,
        tokenizer: Tokenizer = words,
        joiner: str | None = None,
    ):
        checks.texts(tokens=tokens)
        declared = _declared(padding, unknown, begin, end)
        checks.function(tokenizer=tokenizer)
        checks.text(**checks.given(joiner=joiner))
        self.tokens = tuple(tokens)
        self.tokenizer = tokenizer
        self.joiner = joiner
        self.places = {token: place for place, token in enumerate(self.tokens)}
        if len(self.places) < len(self.tokens):
            twice = next(token for token, count in Counter(self.tokens).items() if count > 1)
            raise ValueError(f"expected each token once, got {twice!r} twice; leave one out")
        for name, token in declared.items():
            if token not in self.places:
                raise ValueError(
                    f"expected the {name} token {token!r} among the tokens, got none; add it, or "
                    "make the vocabulary of texts: Vocabulary.of(texts)"
                )
        self._declared = declared

    @classmethod
    def of(
        cls,
        texts: Iterable[str],
        *,
        tokenizer: Tokenizer = words,
        min_count: int = 1,
        max_size: int | None = None,
        padding: str = "<padding>",
        unknown: str | None = "<unknown>",
        begin: str | None = None,
        end: str | None = None,
        joiner: str | None = None,
    ) -> Vocabulary:
        """The tokens of texts, in alphabetical order, after the declared ones.

        Parameters
        ----------
        texts : iterable of str
            Those of training.
        tokenizer, padding, unknown, begin, end, joiner
            As above.
        min_count : int
            How often a token has to occur.
        max_size : int, optional
            How many tokens there are at most, the declared ones included: the most frequent.

        Raises
        ------
        TypeError
            For what is no text.
        ValueError
            If there is none.
        """
        checks.function(tokenizer=tokenizer)
        declared = _declared(padding, unknown, begin, end)
        checks.at_least(1, min_count=min_count)
        checks.at_least(len(declared) + 1, **checks.given(max_size=max_size))
        counts = Counter(token for text in as_texts(texts) for token in _tokens(tokenizer, text))
        for token in declared.values():
            counts.pop(token, None)
        frequent = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        kept = [token for token, count in frequent if count >= min_count]
        if max_size is not None:
            kept = kept[: max_size - len(declared)]
        return cls(
            [*declared.values(), *sorted(kept)],
            padding=padding,
            unknown=unknown,
            begin=begin,
            end=end,
            tokenizer=tokenizer,
            joiner=joiner,
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        declared = ", ".join(f"{name}={self.places[each]}" for name, each in self._declared.items())
        return f"Vocabulary({len(self)} tokens, {declared})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        return self.to_dict() == other.to_dict() and self.tokenizer is other.tokenizer

    __hash__ = None  # type: ignore[assignment]  # as of a list

    @property
    def padding(self) -> int:
        """The number that stands after the end of a text."""
        return self.places[self._declared["padding"]]

    @property
    def unknown(self) -> int | None:
        """The number of all other tokens; ``None``: they are refused."""
        return self._number("unknown")

    @property
    def begin(self) -> int | None:
        """The number at the beginning of a text, if there is one."""
        return self._number("begin")

    @property
    def end(self) -> int | None:
        """The number at the end of a text, if there is one."""
        return self._number("end")

    def encode(self, texts: Iterable[str], length: int | None = None) -> Tensor:
        """Texts as numbers ``(N, L)``, integers, padded at their ends.

        Parameters
        ----------
        texts : iterable of str
            A list of them; of one text, ``[text]``.
        length : int, optional
            Length L; default: that of the longest.

        Raises
        ------
        TypeError
            For what is no text.
        ValueError
            If a text is longer than ``length``, or has tokens that are none of these while no
            ``unknown`` is declared.
        """
        checks.at_least(1, **checks.given(length=length))
        rows = [self._encoded(text) for text in as_texts(texts)]
        longest = max(map(len, rows))
        length = max(1, longest) if length is None else length
        if longest > length:
            place = next(place for place, row in enumerate(rows) if len(row) > length)
            raise ValueError(
                f"expected texts of at most {length} tokens, got {len(rows[place])} at place "
                f"{place}; give length={longest}, or cut them"
            )
        ids = torch.full((len(rows), length), self.padding)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row, dtype=torch.long)
        return ids

    def decode(self, ids: Any) -> list[str]:
        """Numbers ``(*batch, L)`` as texts, a list of all rows.

        Padding, missing tokens (NaN), and those at the ends of texts are left out.

        Raises
        ------
        ValueError
            If a number is none of a token.
        """
        ids = torch.as_tensor(ids)
        if ids.ndim == 0:
            raise ValueError("expected numbers of shape (*batch, L), got a single one; give rows")
        numbers = ids.to(torch.float64).nan_to_num(self.padding)
        wrong = (numbers < 0) | (numbers >= len(self)) | (numbers != numbers.floor())
        if wrong.any():
            raise ValueError(
                f"expected numbers 0, 1, ..., {len(self) - 1} of tokens, got "
                f"{numbers[wrong][0].item():g}; decode by the vocabulary that encoded them"
            )
        rows = numbers.long().reshape(ids.shape[:-1].numel(), ids.shape[-1]).tolist()
        return [self._joined(row) for row in rows]

    def events(self, ids: Tensor) -> Tensor:
        """Encoded texts as data of a family: floating point, NaN where a token is missing.

        Those that are unknown, which families sum out or :func:`probgen.impute` fills in, and the
        padding after the end, as :func:`probgen.pad` has it. A vocabulary with an ``end`` tells the
        two apart.

        >>> vocabulary = Vocabulary.of(["two red sevens"], end=".")
        >>> vocabulary.events(vocabulary.encode(["two green sevens"], length=5))
        tensor([[5., nan, 4., 2., nan]])
        """
        rows = torch.as_tensor(ids).to(torch.get_default_dtype())
        missing = rows == self.padding
        if self.unknown is not None:
            missing = missing | (rows == self.unknown)
        return rows.masked_fill(missing, torch.nan)

    def counts(self, texts: Iterable[str]) -> Tensor:
        """How often each token occurs in each text, ``(N, V)``, floating point: bags of words.

        Padding, and what stands at the ends of texts, are not counted; tokens that are none of
        these are counted as unknown, or refused where none is declared.

        >>> vocabulary = Vocabulary.of(["two red sevens"])
        >>> vocabulary.counts(["two green, two red"])
        tensor([[0., 2., 1., 0., 2.]])
        """
        rows = [self._inner(text) for text in as_texts(texts)]
        counts = torch.zeros(len(rows), len(self))
        for place, row in enumerate(rows):
            numbers = torch.tensor(row, dtype=torch.long)
            counts[place] += numbers.bincount(minlength=len(self)).to(counts)
        return counts

    def count_unknown(self, texts: Iterable[str]) -> Counter[str]:
        """How often tokens occur in texts that are none of these.

        >>> Vocabulary.of(["two red sevens"]).count_unknown(["two green sevens", "green"])
        Counter({'green': 2})
        """
        return Counter(
            token
            for text in as_texts(texts)
            for token in _tokens(self.tokenizer, text)
            if token not in self.places
        )

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold of it: all but the tokenizer, which is named by the code.

        >>> import json
        >>> vocabulary = Vocabulary.of(["two red sevens"])
        >>> Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary
        True
        """
        described = {"format": FORMAT, "tokens": list(self.tokens), "joiner": self.joiner}
        names = ("padding", "unknown", "begin", "end")
        return described | {name: self._declared.get(name) for name in names}

    @classmethod
    def from_dict(cls, described: Mapping[str, Any], tokenizer: Tokenizer = words) -> Vocabulary:
        """The vocabulary that :meth:`to_dict` describes, with the tokenizer that it was made with.

        Raises ``ValueError`` for another description.
        """
        checks.mapping(described=described)
        names = {"tokens", "joiner", "padding", "unknown", "begin", "end"}
        if set(described) != names | {"format"} or described["format"] != FORMAT:
            raise ValueError(
                f"expected the description of a vocabulary, of format {FORMAT}, got keys "
                f"{sorted(map(str, described))}; give what Vocabulary.to_dict() gave"
            )
        return cls(**{name: described[name] for name in names}, tokenizer=tokenizer)

    def _number(self, name: str) -> int | None:
        token = self._declared.get(name)
        return None if token is None else self.places[token]

    def _encoded(self, text: str) -> list[int]:
        numbers = [self.begin, *self._inner(text), self.end]
        return [number for number in numbers if number is not None]

    def _inner(self, text: str) -> list[int]:
        """The numbers of the tokens, without those at the ends."""
        tokens = _tokens(self.tokenizer, text)
        unknown = self.unknown
        strange = [token for token in tokens if token not in self.places]
        if strange and unknown is None:
            raise ValueError(
                f"expected texts of known tokens, got {len(strange)} unknown ones in {text!r} "
                f"(first: {strange[0]!r}); make the vocabulary with unknown='<unknown>', or of "
                "texts that have them"
            )
        found = (self.places.get(token, unknown) for token in tokens)
        return [number for number in found if number is not None]

    def _joined(self, row: Sequence[int]) -> str:
        """One text of its numbers, up to its end."""
        if self.end is not None and self.end in row:
            row = row[: row.index(self.end)]
        silent = {self.padding, self.begin}
        tokens = [self.tokens[number] for number in row if number not in silent]
        if self.joiner is not None:
            return self.joiner.join(tokens)
        if self.tokenizer is characters:
            return "".join(tokens)
        return re.sub(r" (?=[^\w\s<])", "", " ".join(tokens))


def _tokens(tokenizer: Tokenizer, text: str) -> list[str]:
    """The tokens of a text; ``TypeError`` for what is no list of strings."""
    found: Any = tokenizer(text)
    if isinstance(found, str) or not isinstance(found, Iterable):
        raise TypeError(
            f"expected a tokenizer that gives a list of strings, got {type(found).__name__} for "
            f"{text!r}; let it return the tokens, as str.split does"
        )
    tokens = list(found)
    for token in tokens:
        if not isinstance(token, str):
            raise TypeError(
                f"expected a tokenizer that gives strings, got {type(token).__name__} for {text!r}; "
                "map numbers to strings, or give them as contexts without a vocabulary"
            )
    return tokens


def as_texts(texts: Any) -> list[str]:
    """Texts as a list.

    Raises ``TypeError`` for what is none, ``ValueError`` where there are none.

    >>> as_texts("one text")
    Traceback (most recent call last):
    TypeError: expected a list of texts, got one text; pass ['one text']
    """
    if isinstance(texts, str):
        raise TypeError(f"expected a list of texts, got one text; pass [{texts!r}]")
    if isinstance(texts, type) or not isinstance(texts, Iterable):
        raise TypeError(
            f"expected a list of texts, got {type(texts).__name__}; pass strings in a list"
        )
    found = list(texts)
    for place, text in enumerate(found):
        if not isinstance(text, str):
            raise TypeError(
                f"expected texts, got {type(text).__name__} at place {place}; make it a string, "
                "with '' where there is none"
            )
    if not found:
        raise ValueError("expected at least one text, got none; give more")
    return found


def _declared(
    padding: str, unknown: str | None, begin: str | None, end: str | None
) -> dict[str, str]:
    """The declared tokens that there are, by what they are for."""
    checks.text(padding=padding, **checks.given(unknown=unknown, begin=begin, end=end))
    declared = checks.given(padding=padding, unknown=unknown, begin=begin, end=end)
    if len(set(declared.values())) < len(declared):
        raise ValueError(
            f"expected different tokens for padding, unknown, begin and end, got {declared}; "
            "name each"
        )
    return declared
