"""Vocabularies: strings to integers and back, what is unknown, what is refused, texts as events."""

import itertools
import json
import math

import pytest
import torch

import probgen as pg
from probgen.heads import Categorical
from probgen.nn import Tokens
from probgen.text import Vocabulary, characters, words

TEXTS = ["Two red sevens, top", "one red six", "one blue six"]


def test_tokens_are_the_words_of_the_texts_after_the_declared_ones():
    vocabulary = Vocabulary.of(TEXTS)
    assert vocabulary.tokens[:2] == ("<padding>", "<unknown>")
    assert vocabulary.tokens[2:] == (",", "blue", "one", "red", "sevens", "six", "top", "two")
    assert (vocabulary.padding, vocabulary.unknown) == (0, 1)
    assert (vocabulary.begin, vocabulary.end) == (None, None)
    assert len(vocabulary) == 10


@pytest.mark.parametrize("tokenizer", [words, characters, str.split])
@pytest.mark.parametrize("ends", [{}, {"end": "<end>"}, {"begin": "<begin>", "end": "<end>"}])
def test_what_is_encoded_is_decoded(tokenizer, ends):
    texts = ["two red sevens, top", "one six", ""]
    vocabulary = Vocabulary.of(texts, tokenizer=tokenizer, **ends)
    ids = vocabulary.encode(texts, length=24)
    assert ids.dtype == torch.long and ids.shape == (3, 24)
    assert vocabulary.decode(ids) == texts
    assert vocabulary.decode(ids.reshape(3, 1, 24)) == texts
    lengths = [len(tokenizer(text)) + len(ends) for text in texts]
    assert (ids != vocabulary.padding).sum(1).tolist() == lengths
    assert vocabulary.encode(texts).shape[1] == max(lengths)


def test_ends_stand_at_the_ends():
    vocabulary = Vocabulary.of(["a b"], begin="(", end=")")
    a, b = vocabulary.places["a"], vocabulary.places["b"]
    begin, end = vocabulary.begin, vocabulary.end
    assert vocabulary.encode(["a b", "b"]).tolist() == [[begin, a, b, end], [begin, b, end, 0]]


def test_rare_tokens_are_left_out():
    texts = ["a a a b b c", "a d"]
    assert Vocabulary.of(texts, min_count=2).tokens[2:] == ("a", "b")
    assert Vocabulary.of(texts, max_size=5).tokens[2:] == ("a", "b", "c")  # ties by the alphabet
    vocabulary = Vocabulary.of(texts, min_count=2)
    assert vocabulary.encode(["a c"]).tolist() == [[2, 1]]
    assert vocabulary.count_unknown(texts) == {"c": 1, "d": 1}


def test_unknown_tokens_are_missing_values_of_events():
    vocabulary = Vocabulary.of(["two red sevens"])
    rows = vocabulary.events(vocabulary.encode(["two green sevens", "two"]))
    expected = torch.tensor([[4.0, math.nan, 3.0], [4.0, math.nan, math.nan]])
    torch.testing.assert_close(rows, expected, equal_nan=True)


def test_a_description_survives_json():
    vocabulary = Vocabulary.of(TEXTS, begin="(", end=")", tokenizer=characters, joiner="")
    described = json.loads(json.dumps(vocabulary.to_dict()))
    again = Vocabulary.from_dict(described, characters)
    assert again == vocabulary
    assert torch.equal(again.encode(TEXTS), vocabulary.encode(TEXTS))
    assert again != Vocabulary.from_dict(described, words)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (2, 3, 0), (0, 0)])
def test_rows_without_tokens_are_empty_texts(shape):
    assert Vocabulary.of(TEXTS).decode(torch.zeros(shape)) == [""] * math.prod(shape[:-1])


REFUSED = [
    (lambda v: v.encode("two"), TypeError, r"expected a list of texts, got one text; pass \['two'"),
    (lambda v: v.encode(3), TypeError, "expected a list of texts, got int; pass strings"),
    (lambda v: v.encode(["two", 3]), TypeError, "expected texts, got int at place 1; make it"),
    (lambda v: v.encode(["two", None]), TypeError, "got NoneType at place 1; .*with '' where"),
    (lambda v: v.encode([]), ValueError, "expected at least one text, got none; give more"),
    (lambda v: v.encode(["a", "a b c"], 2), ValueError, "at most 2 tokens, got 3 at place 1; give"),
    (lambda v: v.decode([[1, 99]]), ValueError, r"numbers 0, 1, ..., 9 of tokens, got 99; decode"),
    (lambda v: v.decode([[-1]]), ValueError, "got -1; decode"),
    (lambda v: v.decode([[0.5]]), ValueError, "got 0.5; decode"),
    (lambda v: v.decode(3), ValueError, "shape .*, got a single one; give rows"),
    (lambda v: Vocabulary(["a", "a"]), ValueError, "each token once, got 'a' twice; leave one"),
    (lambda v: Vocabulary(["a"]), ValueError, "padding token '<padding>' among the tokens, got no"),
    (lambda v: Vocabulary.of(["a"], end="<padding>"), ValueError, "expected different tokens"),
    (lambda v: Vocabulary.from_dict({"tokens": []}), ValueError, "of format 1, got keys"),
    (lambda v: words(3), TypeError, "got 3"),
    (lambda v: Vocabulary.of(["a"], tokenizer=len), TypeError, "list of strings, got int for 'a'"),
    (
        lambda v: Vocabulary.of(["a"], tokenizer=lambda t: t),
        TypeError,
        "list of strings, got str for 'a'",
    ),
    (lambda v: Vocabulary.of(["a"], tokenizer=lambda t: [1]), TypeError, "gives strings, got int"),
]


@pytest.mark.parametrize(("use", "error", "message"), REFUSED)
def test_what_is_no_text_is_refused(use, error, message):
    with pytest.raises(error, match=message):
        use(Vocabulary.of(TEXTS))


def test_without_an_unknown_token_unknown_ones_are_refused_and_the_advice_works():
    strict = Vocabulary.of(TEXTS, unknown=None)
    assert strict.encode(["one red six"]).shape == (1, 3)
    message = r"got 2 unknown ones in 'two pink cats' \(first: 'pink'\); make .*unknown='<unknown>'"
    with pytest.raises(ValueError, match=message):
        strict.encode(["two pink cats"])
    vocabulary = Vocabulary.of(TEXTS, unknown="<unknown>")
    assert vocabulary.decode(vocabulary.encode(["two pink cats"])) == ["two <unknown> <unknown>"]


@pytest.mark.slow
def test_texts_are_events_of_a_family_whose_sequences_end():
    """The probabilities of all texts sum to one, draws are texts, unknown words are summed out."""
    vocabulary = Vocabulary.of(["a b"], end=".")
    levels = len(vocabulary)
    torch.manual_seed(0)
    letters = pg.Transformer((3,), Categorical(levels=levels), Tokens(levels, 8), layers=1)
    gen = pg.EndToken(letters, end=vocabulary.end)
    others = [label for label in range(levels) if label != vocabulary.end]
    all_rows = [row for length in (0, 1, 2) for row in itertools.product(others, repeat=length)]
    ended = pg.pad([[*row, vocabulary.end] for row in all_rows], 3)
    whole = torch.tensor(list(itertools.product(others, repeat=3)), dtype=torch.float32)
    told = gen().log_prob(torch.cat((ended, whole)))
    assert told.logsumexp(0).item() == pytest.approx(0.0, abs=1e-5)

    texts = ["a b", "b", ""]
    events = vocabulary.events(vocabulary.encode(texts, length=3))
    places = [
        (ended.nan_to_num(-1) == row).all(1).nonzero().item() for row in events.nan_to_num(-1)
    ]
    torch.testing.assert_close(gen().log_prob(events), told[places])
    strange = vocabulary.events(vocabulary.encode(["pink b"], length=3))
    b, end = vocabulary.places["b"], vocabulary.end
    summed = gen().log_prob(
        torch.tensor([[first, b, end] for first in others], dtype=torch.float32)
    )
    assert strange[0, 0].isnan() and summed.logsumexp(0) <= 0
    filled = pg.impute(gen, strange, draws=50).draws
    assert set(filled[..., 0].flatten().tolist()) <= set(map(float, others))
    assert (filled[..., 1] == b).all()
    assert len(vocabulary.decode(gen().sample((5,)))) == 5
