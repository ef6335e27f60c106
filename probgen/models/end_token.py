"""Autoregressive families whose sequences end where they say so."""

from __future__ import annotations

import math

import pyro.distributions as dist
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import size_of
from probgen.core.module import DistributionModule
from probgen.core.ragged import Ragged, ragged
from probgen.distributions.sequences.end_or import EndOr
from probgen.distributions.sequences.ended import Ended


class EndToken(DistributionModule):
    r"""An autoregressive family one of whose values ends the sequence.

    .. math:: p(x_{1:L} \mid c) = \prod_{t=1}^{L} p(x_t \mid x_{<t}, c) \; p(\text{end} \mid x_{1:L}, c)^{[L < T]}

    The family is built with one label more than the data have: ``Transformer((T,),
    Categorical(levels=66), Tokens(66, 128))`` for 65 characters, and ``end=65``; the same goes for
    Markov chains, NADE, MADE and recurrent models of labels. Families of vectors get an entry that
    may be the end by :class:`StopOr`.

    Sequences have 0 to T entries; one of T entries has no end token, as the end is sure: the
    probabilities of all sequences sum to one. Rows are padded at the end, draws too, which stop as
    soon as all have ended. In data the first padding or end token is the end. NaN within a sequence
    is missing; where the padding is NaN, trailing NaN is the end, else it is missing as well.
    :func:`probgen.conditional` continues a prefix until the end; :func:`probgen.impute` fills gaps
    by Gibbs sampling.

    Parameters
    ----------
    family : DistributionModule
        A family whose distribution is autoregressive over T steps in their order.
    end : float
        The label, or what all entries of a vector are, at the end.
    padding : float
        What stands after the end in data and draws: NaN, ``end``, or another number that is no
        value.

    References
    ----------
    Sutskever, Vinyals, Le (2014), Sequence to sequence learning with neural networks,
    https://arxiv.org/abs/1409.3215

    >>> import torch
    >>> from probgen.heads import Categorical
    >>> from probgen.models.transformer import Transformer
    >>> from probgen.nn.transformer import Tokens
    >>> letters = Transformer((12,), Categorical(levels=5), Tokens(5, 16), layers=1)
    >>> gen = EndToken(letters, end=4, padding=4)           # the letters 0 to 3
    >>> gen().log_prob(torch.tensor([0.0, 3.0, 4.0])).shape, gen().sample((3,)).shape
    (torch.Size([]), torch.Size([3, 12]))
    """

    context_from = "family"

    def __init__(self, family: DistributionModule, end: float, padding: float = math.nan):
        checks.generative(family=family)
        checks.finite(end=end)
        checks.number(padding=padding)
        super().__init__()
        self.family = family
        self.context_ndim = family.context_ndim
        self.end = float(end)
        self.padding = float(padding)

    @property
    def ragged(self) -> Ragged:  # type: ignore[override]
        """How a list of sequences becomes rows."""
        return ragged(self.family, self.padding)

    def forward(self, context: Tensor | None = None) -> Ended:
        return Ended(self.family(context), self.end, self.padding)


class StopOr(DistributionModule):
    r"""A vector given the state of a sequence model, or the end.

    .. math:: p(\text{end} \mid h) = \sigma(s(h)), \qquad p(x \mid h) = (1 - \sigma(s(h)))\, p_0(x \mid h)

    The emission of a :class:`SequenceModel` whose sequences end: ``EndToken(SequenceModel(network,
    StopOr(emission, nn.Linear(H, 1)), (T, D)), end=-1)``.

    Parameters
    ----------
    emission : DistributionModule
        :math:`p_0`, of vectors ``(D,)`` given ``(*batch, H)``.
    stop : nn.Module
        Network from the state to the logit of the end, ``(*batch, H) -> (*batch, 1)``.
    end : float
        What all entries are at the end; no vector of the data may be that.

    >>> import torch
    >>> from probgen.heads import Bernoulli
    >>> StopOr(Bernoulli(nn.Linear(8, 3)), nn.Linear(8, 1))(torch.zeros(5, 8)).sample().shape
    torch.Size([5, 3])
    """

    context_from = "emission"

    def __init__(self, emission: DistributionModule, stop: nn.Module, end: float = -1.0):
        checks.generative(emission=emission)
        checks.network(stop=stop)
        checks.finite(end=end)
        super().__init__()
        self.emission = emission
        self.stop = stop
        self.end = float(end)
        self.context_ndim = emission.context_ndim

    @property
    def inputs(self) -> int | None:
        """Length of the state, where the emission tells it."""
        return size_of(self.emission)

    def forward(self, context: Tensor | None = None) -> EndOr:
        stop = dist.Bernoulli(logits=self.stop(context).squeeze(-1), validate_args=False)
        return EndOr(self.emission(context), stop, self.end)
