"""Families of short sequences of labels whose lengths vary.

And all the sequences that there are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from probgen import heads
from probgen.core.ragged import pad
from probgen.models.deep_markov import DeepMarkovModel
from probgen.models.emissions import CategoricalEmission
from probgen.models.end_token import EndToken, StopOr
from probgen.models.ending_hidden_markov import EndingHiddenMarkovModel
from probgen.models.hidden_markov import HiddenMarkovModel
from probgen.models.made import MADE
from probgen.models.markov_chain import MarkovChain
from probgen.models.nade import NADE
from probgen.models.sequence import SequenceModel
from probgen.models.transformer import Transformer
from probgen.models.variable_length import VariableLength, VariableLengthLatents
from probgen.nn.recurrent import RNN, Combiner, GatedTransition
from probgen.nn.transformer import Tokens

STEPS = 4


def transformer(levels: int) -> Transformer:
    """Tokens 0 to levels - 1, with weights so large that entries differ."""
    gen = Transformer(
        (STEPS,), heads.Categorical(levels=levels), Tokens(levels, 8), layers=1, heads=2
    )
    return spread(gen)


def spread(gen: Any, factor: float = 6.0) -> Any:
    """The model with larger weights: initial ones make all distributions nearly flat."""
    with torch.no_grad():
        for parameter in gen.parameters():
            parameter.copy_(
                torch.randn_like(parameter) * 0.7 if parameter.ndim < 2 else parameter * factor
            )
    return gen


def chain(levels: int) -> MarkovChain:
    return spread(MarkovChain(STEPS, levels=levels, order=2))


def hidden_markov(**options: Any) -> HiddenMarkovModel:
    """Labels 0 and 1."""
    return spread(HiddenMarkovModel(3, STEPS, CategoricalEmission(3, levels=2), **options), 2.0)


def recurrent(emission: Callable[[nn.Module], Any] = heads.Bernoulli) -> SequenceModel:
    """Frames of one binary value."""
    return spread(SequenceModel(RNN(1, 6), emission(nn.Linear(6, 1)), (STEPS, 1)), 3.0)


def stopping(net: nn.Module) -> StopOr:
    return StopOr(heads.Bernoulli(net), nn.Linear(6, 1))


def deep_markov() -> DeepMarkovModel:
    """Frames of one binary value."""
    parts = heads.Gaussian(GatedTransition(2, 5)), heads.Bernoulli(nn.Linear(2, 1))
    return DeepMarkovModel(*parts, RNN(1, 6), heads.Gaussian(Combiner(2, 6)), (STEPS, 2))


def with_lengths(family: Any, **options: Any) -> Any:
    """Lengths that are not equally likely."""
    wrapper = VariableLengthLatents if isinstance(family, DeepMarkovModel) else VariableLength
    gen = wrapper(family, most=STEPS, **options)
    with torch.no_grad():
        gen.lengths.net.value.copy_(torch.randn_like(gen.lengths.net.value))
    return gen


NAN = math.nan
EXACT = {
    "lengths of a hidden Markov model": lambda padding=NAN: with_lengths(
        hidden_markov(), padding=padding
    ),
    "a hidden Markov model that ends": lambda padding=NAN: spread(
        EndingHiddenMarkovModel(hidden_markov(), padding=padding), 1.0
    ),
    "lengths of a Markov chain": lambda padding=NAN: with_lengths(chain(2), padding=padding),
    "lengths of a transformer": lambda padding=NAN: with_lengths(transformer(2), padding=padding),
    "lengths of a recurrent model": lambda padding=NAN: with_lengths(recurrent(), padding=padding),
    "empty sequences too": lambda padding=NAN: with_lengths(chain(2), least=0, padding=padding),
    "end token of a transformer": lambda padding=NAN: EndToken(transformer(3), 2, padding),
    "end token of a Markov chain": lambda padding=NAN: EndToken(chain(3), 2, padding),
    "end token of NADE": lambda padding=NAN: EndToken(
        spread(NADE(STEPS, 6, heads.Categorical(levels=3)), 2.0), 2, padding
    ),
    "end token of MADE": lambda padding=NAN: EndToken(
        spread(MADE(STEPS, (12,), heads.Categorical(levels=3)), 1.0), 2, padding
    ),
    "end of a recurrent model": lambda padding=NAN: EndToken(recurrent(stopping), -1, padding),
}


def every_sequence(gen: Any) -> list[Tensor]:
    """All sequences of labels 0 and 1 of all lengths that the model has."""
    entry = tuple(gen().event_shape[1:])
    least = 0 if isinstance(gen, EndToken) else 1
    if isinstance(gen, VariableLength | VariableLengthLatents):
        least = gen.lengths.least
    found = []
    for length in range(least, STEPS + 1):
        words = itertools.product((0.0, 1.0), repeat=length)
        found += [torch.tensor(word).reshape(length, *entry) for word in words]
    return found


def every_row(gen: Any) -> Tensor:
    """All sequences as padded rows."""
    return pad(every_sequence(gen), STEPS, padding_of(gen))


def padding_of(gen: Any) -> float:
    return gen.ragged.padding
