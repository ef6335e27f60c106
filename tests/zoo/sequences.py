"""Hidden Markov and state space models."""

from __future__ import annotations

import torch
from torch import nn

from probgen import heads
from probgen.models.autoregressive_flow import IAF
from probgen.models.deep_markov import DeepMarkovModel
from probgen.models.nade import NADE
from probgen.models.sequence import SequenceModel
from probgen.nn.recurrent import RNN, Combiner, GatedTransition
from probgen.nn.temporal import TemporalConvolution
from zoo.hidden_markov import HIDDEN_MARKOV
from zoo.member import Member, levels


def padded(*event: int, context: tuple[int, ...] | None = None):
    """Binary sequences that end early in some rows."""

    def data() -> tuple:
        x, *rest = levels(2, *event, context=context)()
        x[1, 2:], x[4, 1:] = torch.nan, torch.nan
        return x, *rest

    return data


def deep_markov(combiner=None, context: int = 0) -> DeepMarkovModel:
    """Events (4, 3), two latents."""
    emission, network = heads.Bernoulli(nn.Linear(2 + context, 3)), RNN(3 + context, 6)
    combiner = combiner or heads.Gaussian(Combiner(2, 6))
    return DeepMarkovModel(
        heads.Gaussian(GatedTransition(2, 5, context)), emission, network, combiner, (4, 2)
    )


RECURRENT = [
    Member(
        "SequenceModel RNN",
        lambda: SequenceModel(RNN(3, 6), heads.Bernoulli(nn.Linear(6, 3)), (4, 3)),
        padded(4, 3),
    ),
    Member(
        "SequenceModel RNN given a context",
        lambda: SequenceModel(
            RNN(5, 6, cell=nn.LSTMCell), heads.Bernoulli(nn.Linear(6, 3)), (4, 3)
        ),
        padded(4, 3, context=(2,)),
    ),
    Member(
        "SequenceModel RNN with NADE frames",
        lambda: SequenceModel(RNN(3, 6), NADE(3, 5, heads.Bernoulli(), context=6), (4, 3)),
        padded(4, 3),
    ),
    Member(
        "SequenceModel of convolutions",
        lambda: SequenceModel(
            TemporalConvolution(3, 6, (1, 2)), heads.Bernoulli(nn.Linear(6, 3)), (4, 3)
        ),
        padded(4, 3),
    ),
    Member("DeepMarkovModel", deep_markov, padded(4, 3)),
    Member(
        "DeepMarkovModel with a flow guide",
        lambda: deep_markov(
            IAF(2, layers=1, hidden=(8,), context=8, base=heads.Gaussian(Combiner(2, 6)))
        ),
        padded(4, 3),
    ),
    Member(
        "DeepMarkovModel given a context",
        lambda: deep_markov(context=2),
        padded(4, 3, context=(2,)),
    ),
]
SEQUENCES: list[Member] = [*RECURRENT, *HIDDEN_MARKOV]
