"""Sequences whose lengths are learned: by themselves, by an end token, by hazards of states."""

from __future__ import annotations

import torch
from torch import nn

from probgen import heads
from probgen.core.ragged import pad
from probgen.models.deep_markov import DeepMarkovModel
from probgen.models.emissions import GaussianEmission
from probgen.models.end_token import EndToken, StopOr
from probgen.models.ending_hidden_markov import EndingHiddenMarkovModel
from probgen.models.hidden_markov import HiddenMarkovModel
from probgen.models.markov_chain import MarkovChain
from probgen.models.sequence import SequenceModel
from probgen.models.state_space import LinearGaussianStateSpace
from probgen.models.transformer import Transformer
from probgen.models.variable_length import VariableLength, VariableLengthLatents
from probgen.nn import Constant
from probgen.nn.recurrent import RNN, Combiner, GatedTransition
from probgen.nn.transformer import Tokens
from zoo.member import Member

OVER = -9.0  # stands after the ends
LENGTHS = (4, 2, 1, 3, 4, 2)


def ragged(*entry: int, levels: int = 0, context: tuple[int, ...] = (), padding: float = OVER):
    """Six sequences of 1 to 4 steps, of labels or of real numbers."""

    def data() -> tuple:
        draw = (lambda *shape: torch.randint(levels, shape).float()) if levels else torch.randn
        x = pad([draw(length, *entry) for length in LENGTHS], 4, padding)
        return (x, torch.randn(6, *context)) if context else (x,)

    return data


def letters(context: int = 0) -> Transformer:
    """Labels 0 to 2, and the end."""
    embed, head = Tokens(4, 8), heads.Categorical(levels=4)
    return Transformer((4,), head, embed, layers=1, heads=2, context=context)


def frames(stop: bool = False, context: int = 0) -> SequenceModel:
    """Binary frames, which may be the end."""
    emission = heads.Bernoulli(nn.Linear(6, 3))
    if stop:
        emission = StopOr(emission, nn.Linear(6, 1), end=OVER)
    return SequenceModel(RNN(3 + context, 6), emission, (4, 3))


def deep_markov() -> DeepMarkovModel:
    parts = heads.Gaussian(GatedTransition(2, 5)), heads.Bernoulli(nn.Linear(2, 3))
    return DeepMarkovModel(*parts, RNN(3, 6), heads.Gaussian(Combiner(2, 6)), (4, 2))


def hidden_markov() -> HiddenMarkovModel:
    return HiddenMarkovModel(3, 4, GaussianEmission(3, 2))


VARIABLE_LENGTH = [
    Member(
        "VariableLength hidden Markov model",
        lambda: VariableLength(hidden_markov(), most=4, padding=OVER),
        ragged(2),
    ),
    Member(
        "VariableLength state space model",
        lambda: VariableLength(LinearGaussianStateSpace(2, 2, 4), most=4, padding=OVER),
        ragged(2),
    ),
    Member(
        "VariableLength Markov chain, of Poisson lengths",
        lambda: VariableLength(
            MarkovChain(4, 3), most=4, lengths=heads.Poisson(Constant(1)), padding=OVER
        ),
        ragged(levels=3),
    ),
    Member(
        "VariableLength recurrent model given a context",
        lambda: VariableLength(frames(context=2), most=4, lengths=nn.Linear(2, 4), padding=OVER),
        ragged(3, levels=2, context=(2,)),
    ),
    Member(
        "VariableLengthLatents deep Markov model",
        lambda: VariableLengthLatents(deep_markov(), most=4, padding=OVER),
        ragged(3, levels=2),
    ),
    Member("EndToken transformer", lambda: EndToken(letters(), 3, padding=OVER), ragged(levels=3)),
    Member(
        "EndToken transformer given a context",
        lambda: EndToken(letters(context=2), 3, padding=3),
        ragged(levels=3, context=(2,), padding=3.0),
    ),
    Member(
        "EndToken recurrent model",
        lambda: EndToken(frames(stop=True), OVER, padding=OVER),
        ragged(3, levels=2),
    ),
    Member(
        "EndingHiddenMarkovModel",
        lambda: EndingHiddenMarkovModel(hidden_markov(), padding=OVER),
        ragged(2),
    ),
]
