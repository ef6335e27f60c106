"""Families of sequences whose lengths are learned and drawn too."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.construction import Recorded
from probgen.core.module import DistributionModule, LatentVariableModel, asked_inside
from probgen.core.ragged import Ragged, ragged
from probgen.distributions.criteria import aic, bic, trained
from probgen.distributions.sequences.ends import is_padding, reading_missing
from probgen.distributions.sequences.lengths import WithLength, length_logits
from probgen.distributions.tables import weighted_sum
from probgen.nn import Constant

_LEAST = 1e-30  # a count, so that the logarithm of a length that never occurs is finite


class LengthTable(Recorded, nn.Module):
    r"""Probabilities of the lengths of sequences, by a table, a network or a distribution.

    Parameters
    ----------
    most, least : int
        Largest and smallest length.
    net : nn.Module, optional
        From the context to the logits of all lengths, ``(*batch, most - least + 1)``, or to a
        distribution of whole numbers, which is truncated to these lengths (a head of one variable:
        ``Poisson(Constant(1))``). Default: a learned table, the same for all rows.
    padding : float
        What stands after the end of a sequence.
    pseudo_count : float
        What counting adds to the number of sequences of each length.
    context_ndim : int
        Number of event dims of a context.
    """

    def __init__(
        self,
        most: int,
        least: int = 1,
        net: nn.Module | None = None,
        *,
        padding: float = math.nan,
        pseudo_count: float = 0.0,
        context_ndim: int = 1,
    ):
        checks.at_least(1, most=most)
        checks.at_least(0, least=least, context_ndim=context_ndim)
        checks.network(**checks.given(net=net))
        checks.number(padding=padding)
        checks.not_negative(pseudo_count=pseudo_count)
        super().__init__()
        if least > most:
            raise ValueError(f"expected least <= most, got {least=}, {most=}; exchange them")
        self.most = most
        self.least = least
        self.padding = float(padding)
        self.pseudo_count = pseudo_count
        table = Constant(most - least + 1, context_ndim=context_ndim)
        self.net = table if net is None else net
        every = torch.arange(least, most + 1, dtype=torch.get_default_dtype())
        self.register_buffer("every", every, persistent=False)

    every: Tensor

    def forward(self, context: Tensor | None = None) -> Tensor:
        return length_logits(self.net(context), self.every)

    def around(self, distribution: Any, context: Tensor | None = None) -> WithLength:
        """The distribution of sequences and lengths, for one of sequences of the largest length."""
        return WithLength(distribution, self(context), least=self.least, padding=self.padding)

    def values(self, x: Tensor) -> Tensor:
        """Sequences with NaN in place of the padding."""
        return torch.where(is_padding(x, self.padding), torch.nan, x)

    @property
    def table(self) -> Tensor:
        """The logits, where they are a table.

        Raises
        ------
        TypeError
            If they are a network's.
        """
        if not isinstance(self.net, Constant):
            raise TypeError(
                f"expected a table of lengths to count into, got {type(self.net).__name__}; leave "
                "lengths=None, or "
                "use fit(gen, x)"
            )
        return self.net.value

    @torch.no_grad()
    def expect(
        self, distribution: WithLength, x: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Log probability of the lengths of rows, and how many have each length ``(L,)``."""
        found = distribution.ends(distribution.whole(x))
        mass = distribution.log_mass(found)
        logs = torch.where(distribution.possible(found), self.table.log_softmax(-1), -torch.inf)
        shares = logs.softmax(-1).double()
        counts = shares.sum(0) if weights is None else weights.double() @ shares
        return weighted_sum(mass, weights), counts

    @torch.no_grad()
    def count(self, counts: Tensor) -> None:
        """Sets the table to the shares of counts ``(L,)``."""
        shares = (counts + self.pseudo_count) / (counts + self.pseudo_count).sum()
        self.table.copy_(shares.clamp(min=_LEAST).log())


@runtime_checkable
class ByExpectation(Protocol):
    """A family that expectation maximization fits."""

    def expect(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]: ...

    def maximize(self, statistics: dict[str, Tensor]) -> None: ...

    def initialize(self, x: Tensor, generator: torch.Generator | None = None) -> None: ...


class VariableLength(DistributionModule):
    r"""A family of sequences, with their lengths learned and drawn as well.

    .. math:: p(T, x_{1:T} \mid c) = p(T \mid c)\, p(x_{1:T} \mid c)

    For every family whose events have time as their first dim and that leaves out missing steps at
    the end: hidden Markov and linear Gaussian state space models, Markov chains, recurrent models,
    transformers. :class:`VariableLengthLatents` is for families with latents (deep Markov models).
    Where steps themselves tell the end, :class:`EndToken` and :class:`EndingSteps` learn when.

    Rows are padded at the end, draws too. NaN within a sequence is missing. Where the padding is
    NaN, trailing NaN is the end of the sequence; with another padding NaN is missing everywhere,
    and a row without any padding is at least as long as what is seen of it. Fitted by
    :func:`probgen.em` where the family is (lengths are counted), or by any objective. Given a
    prefix, :func:`probgen.conditional` goes on until the end; ``gen().lengths(x)`` tells lengths.

    Parameters
    ----------
    family : DistributionModule
        The family of sequences of the largest length.
    most : int
        The largest length, that of the family's events.
    least : int
        The smallest length.
    lengths : nn.Module, optional
        From the context of the family to logits ``(*batch, most - least + 1)``, or a head of one
        whole number, truncated to these lengths. Default: a learned table.
    padding : float
        What stands after the end of a sequence: NaN, or a number that is no value.
    pseudo_count : float
        What EM adds to the number of sequences of each length.

    Raises
    ------
    ValueError
        If the family has events of another length.

    >>> from probgen.infer.em import em
    >>> from probgen.models.markov_chain import MarkovChain
    >>> gen = VariableLength(MarkovChain(3), most=3)
    >>> x = torch.tensor([[1.0, torch.nan, torch.nan], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, torch.nan, torch.nan]])
    >>> _ = em(gen, x)
    >>> gen().length_probabilities.detach().round(decimals=2), gen().lengths(gen().sample((4,))).shape
    (tensor([0.5000, 0.0000, 0.5000]), torch.Size([4]))
    """

    context_from = "family"

    def __init__(
        self,
        family: DistributionModule,
        most: int,
        *,
        least: int = 1,
        lengths: nn.Module | None = None,
        padding: float = math.nan,
        pseudo_count: float = 0.0,
    ):
        checks.generative(family=family)
        super().__init__()
        if isinstance(family, LatentVariableModel):
            raise TypeError(
                f"expected a family that states its distribution, got {type(family).__name__}, "
                "which has latents; use "
                "VariableLengthLatents"
            )
        self.family = family
        self.context_ndim = family.context_ndim
        options: dict[str, Any] = {"padding": padding, "pseudo_count": pseudo_count}
        options |= {"context_ndim": family.context_ndim}
        self.lengths = LengthTable(most, least, lengths, **options)

    @property
    def summed_out(self) -> str | None:  # type: ignore[override]
        """What the density of the family sums out."""
        return asked_inside(self.family.summed_out, "gen.lengths.values(x)")

    @property
    def ragged(self) -> Ragged:  # type: ignore[override]
        """How a list of sequences becomes rows."""
        return ragged(self.family, self.lengths.padding, "most={0}, around one with ")

    def forward(self, context: Tensor | None = None) -> WithLength:
        return self.lengths.around(self.family(context), context)

    @torch.no_grad()
    def expect(self, x: Tensor, weights: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """E-step: that of the family on what its sequences hold, and the numbers of the lengths."""
        own = () if weights is None else (weights,)
        mass, counts = self.lengths.expect(self(), x, weights)
        value, statistics = self._counted.expect(self._values(x), *own)
        return mass + value, {"lengths": counts, **{f"of {k}": v for k, v in statistics.items()}}

    @torch.no_grad()
    def maximize(self, statistics: dict[str, Tensor]) -> None:
        """M-step: shares of the lengths, and the family's own."""
        self.lengths.count(statistics["lengths"])
        self._counted.maximize(_of_family(statistics))

    def penalty(self, statistics: dict[str, Tensor]) -> Tensor | float:
        """What pseudo-counts of lengths, and those of the family, make the M-step subtract."""
        own = getattr(self.family, "penalty", None)
        logs = self.lengths.table.detach().double().log_softmax(-1)
        table = -self.lengths.pseudo_count * logs.sum() if self.lengths.pseudo_count else 0.0
        return table if own is None else table + own(_of_family(statistics))

    @property
    def free_parameters(self) -> int:
        """Number of free parameters; probabilities of lengths sum to 1."""
        own = trained(self.lengths)
        own = own - 1 if own and isinstance(self.lengths.net, Constant) else own
        return own + getattr(self.family, "free_parameters", trained(self.family))

    aic = aic
    bic = bic

    @torch.no_grad()
    def initialize(
        self, x: Tensor, generator: torch.Generator | None = None, weights: Tensor | None = None
    ) -> None:
        """All lengths alike, and the family's own start."""
        own = {} if weights is None else {"weights": weights}
        self.lengths.table.zero_()
        self._counted.initialize(self._values(x), generator, **own)

    def count_lengths(self, x: Tensor, weights: Tensor | None = None) -> VariableLength:
        """Sets the probabilities of lengths to their shares in rows ``(N, *event)``, in place.

        For families that :func:`probgen.fit` trains; ``gen.lengths.requires_grad_(False)`` keeps
        them.
        """
        self.lengths.table.data.zero_()
        self.lengths.count(self.lengths.expect(self(), x, weights)[1])
        return self

    def _values(self, x: Tensor) -> Tensor:
        distribution = self()
        x = distribution.whole(x)
        return distribution.without_padding(x, distribution.ends(x))

    @property
    def _counted(self) -> Any:
        """The family, if expectation maximization fits it."""
        if not isinstance(self.family, ByExpectation):
            raise TypeError(
                "expected a family with expect, maximize and initialize, got "
                f"{type(self.family).__name__}; use "
                "fit(gen, x)"
            )
        return self.family


def _of_family(statistics: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the family calls its statistics."""
    return {name[3:]: value for name, value in statistics.items() if name.startswith("of ")}


class VariableLengthLatents(LatentVariableModel):
    r"""A family of sequences with latents, with the lengths learned and drawn as well.

    .. math:: p(T, x_{1:T}, z \mid c) = p(T \mid c)\, p(x_{1:T}, z \mid c)

    The guide is the family's own, which sees the values of the sequence, NaN after its end.

    Parameters
    ----------
    family : LatentVariableModel
        The family of sequences of the largest length, site ``"x"`` of events ``(T, *entry)``: a
        :class:`DeepMarkovModel`, a Bayesian hidden Markov model.
    most, least, lengths, padding
        As in :class:`VariableLength`.

    >>> from probgen.models.deep_markov import DeepMarkovModel
    >>> from probgen.heads import Bernoulli, Gaussian
    >>> from probgen.nn.recurrent import RNN, Combiner, GatedTransition
    >>> steps, guide = Gaussian(GatedTransition(2, 8)), Gaussian(Combiner(2, 8))
    >>> family = DeepMarkovModel(steps, Bernoulli(nn.Linear(2, 4)), RNN(4, 8), guide, (10, 2))
    >>> gen = VariableLengthLatents(family, most=10, padding=-1.0)
    >>> (gen().sample((5,)) == -1).any(-1).sum(-1).shape
    torch.Size([5])
    """

    context_from = "family"

    def __init__(
        self,
        family: LatentVariableModel,
        most: int,
        *,
        least: int = 1,
        lengths: nn.Module | None = None,
        padding: float = math.nan,
    ):
        checks.instance(
            LatentVariableModel, "VariableLength takes families without latents", family=family
        )
        super().__init__()
        self.family = family
        self.context_ndim = family.context_ndim
        options: dict[str, Any] = {"padding": padding, "context_ndim": family.context_ndim}
        self.lengths = LengthTable(most, least, lengths, **options)

    @property
    def ragged(self) -> Ragged:  # type: ignore[override]
        """How a list of sequences becomes rows."""
        return ragged(self.family, self.lengths.padding, "most={0}, around one with ")

    @property
    def vectorized(self) -> bool:  # type: ignore[override]
        """Whether the programs of the family accept draws to the left of their plates."""
        return self.family.vectorized

    def model(self, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        distribution = lambda values: self.lengths.around(values, context)  # noqa: E731
        with self._values(x) as values, _Lengths(distribution, x):
            return self.family.model(values, context)

    def guide(self, x: Tensor | None = None, context: Tensor | None = None) -> None:
        with self._values(x) as values:
            self.family.guide(values, context)

    @contextmanager
    def _values(self, x: Tensor | None) -> Iterator[Tensor | None]:
        """The sequences as the family takes them, in a block in which it looks for NaN."""
        if x is None:
            yield None
            return
        with reading_missing():
            yield self.lengths.values(x)


class _Lengths(Messenger):
    """The distribution at site ``"x"`` with random lengths, and the padded data there."""

    def __init__(self, distribution: Any, x: Tensor | None):
        super().__init__()
        self.distribution = distribution
        self.x = x

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] == "x" and not isinstance(msg["fn"], WithLength):
            msg["fn"] = self.distribution(msg["fn"])
            msg["value"] = self.x if msg["is_observed"] else msg["value"]
