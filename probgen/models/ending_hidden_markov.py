"""Hidden Markov models of sequences that end, sooner in some states than in others."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from probgen.core import checks
from probgen.core.module import DistributionModule
from probgen.core.ragged import Ragged, ragged
from probgen.distributions.criteria import aic, bic
from probgen.distributions.sequences.ending_markov import EndingMarkov
from probgen.distributions.sequences.ends import over_steps
from probgen.distributions.sequences.forward_backward import Posterior
from probgen.distributions.tables import weighted_sum

_LEAST = 1e-30  # a count, so that the logit of an end that never comes is finite


class EndingHiddenMarkovModel(DistributionModule):
    r"""Hidden Markov model that may end after every step, with a hazard for each state.

    .. math:: p(x_{1:L}) = \sum_{z_{1:L}} \pi_{z_1} \prod_{t=1}^{L} p(x_t \mid z_t)
              \prod_{t=2}^{L} (1 - h_{z_{t-1}}) A_{z_{t-1} z_t} \; h_{z_L}^{[L < T]}

    The end is an absorbing state; after the last step T it is sure. Exact density of sequences of 1
    to T steps with missing values, padded at the end as in :class:`VariableLength`, which learns
    the length by itself; here it depends on what was emitted. Fitted by :func:`probgen.em` where
    the family is, or by any objective. The distribution, :class:`EndingMarkov`, also smooths and
    finds the most likely states.

    Parameters
    ----------
    family : HiddenMarkovModel
        The model without end.
    padding : float
        What stands after the end of a sequence: NaN, or a number that is no value.
    pseudo_count : float
        What EM adds to the expected number of ends, and of steps that are not the end, in each
        state.

    >>> from probgen.infer.em import em
    >>> from probgen.models.emissions import GaussianEmission
    >>> from probgen.models.hidden_markov import HiddenMarkovModel
    >>> gen = EndingHiddenMarkovModel(HiddenMarkovModel(2, 5, GaussianEmission(2, 1))).double()
    >>> x = torch.tensor([-3.0, -3.0, -3.0, 3.0, torch.nan]) + 0.1 * torch.randn(50, 5)
    >>> _ = em(gen, x[..., None].double(), seed=0)
    >>> gen.hazards.sort().values.round(decimals=1)     # the end comes after the value 3
    tensor([0., 1.], dtype=torch.float64)
    """

    context_from = "family"
    summed_out = "states: gen().smooth(x), gen().most_likely_states(x)"

    family: Any  # HiddenMarkovModel

    def __init__(
        self, family: DistributionModule, *, padding: float = math.nan, pseudo_count: float = 0.0
    ):
        checks.generative(family=family)
        checks.has(("states", "emission"), "pass a HiddenMarkovModel", family=family)
        checks.number(padding=padding)
        checks.not_negative(pseudo_count=pseudo_count)
        super().__init__()
        self.family = family
        self.context_ndim = family.context_ndim
        self.padding = float(padding)
        self.pseudo_count = pseudo_count
        self.stop = nn.Parameter(torch.zeros(self.family.states))

    @property
    def ragged(self) -> Ragged:  # type: ignore[override]
        """How a list of sequences becomes rows."""
        return ragged(self.family, self.padding)

    def forward(self, context: Tensor | None = None) -> EndingMarkov:
        return EndingMarkov(self.family(context), self.stop, self.padding)

    @property
    def hazards(self) -> Tensor:
        """Probabilities of the end after a step in each state: ``(K,)``."""
        return self.stop.detach().sigmoid()

    @property
    def free_parameters(self) -> int:
        """Number of free parameters: those of the family, and the hazards."""
        return self.family.free_parameters + self.stop.numel() * self.stop.requires_grad

    aic = aic
    bic = bic

    @torch.no_grad()
    def reorder(self, order: Tensor) -> EndingHiddenMarkovModel:
        """Puts the states in another order ``(K,)``, in place; the density stays the same."""
        self.family.reorder(order)
        self.stop.copy_(self.stop[order])
        return self

    @torch.no_grad()
    def expect(self, x: Tensor, weights: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """E-step: that of the family given the ends too, and expected ends in each state."""
        distribution = self()
        x = distribution.whole(x)
        found = distribution.chain(x).posterior(weights)
        statistics = self.family.statistics(found, self._values(distribution, x))
        statistics |= self._ends(distribution, x, found)
        return weighted_sum(found.log_likelihood, weights), statistics

    @torch.no_grad()
    def maximize(self, statistics: dict[str, Tensor]) -> None:
        """M-step: shares of the steps in each state that were the last ones, then the family's."""
        ended, went_on = (
            (statistics[name] + self.pseudo_count).clamp(min=_LEAST).log()
            for name in ("ended", "went on")
        )
        self.stop.copy_(ended - went_on)
        self.family.maximize(statistics)

    def penalty(self, statistics: dict[str, Tensor]) -> Tensor | float:
        """What pseudo-counts make the M-step subtract."""
        stop = self.stop.detach().double()
        own = -self.pseudo_count * (logsigmoid(stop) + logsigmoid(-stop)).sum()
        return own + self.family.penalty(statistics)

    @torch.no_grad()
    def initialize(
        self, x: Tensor, generator: torch.Generator | None = None, weights: Tensor | None = None
    ) -> None:
        """The family's start, and in all states the hazard that gives the mean length."""
        distribution = self()
        x = distribution.whole(x)
        self.family.initialize(self._values(distribution, x), generator)
        mean = distribution.lengths(x).double().mean()
        self.stop.fill_(-(mean - 1).clamp(min=0.1).log())

    def _values(self, distribution: EndingMarkov, x: Tensor) -> Tensor:
        """Sequences with NaN after their ends."""
        after = over_steps(distribution.ends(x).after(distribution.length), distribution.entry_ndim)
        return torch.where(after, torch.nan, x)

    def _ends(self, distribution: EndingMarkov, x: Tensor, found: Posterior) -> dict[str, Tensor]:
        """Expected numbers of ends in each state, and of steps that were not the last: ``(K,)``."""
        length, is_open = distribution.ends(x)
        step = torch.arange(1, distribution.length + 1, device=x.device)[:, None]
        ended = (step == length) & ~is_open & (length < distribution.length)
        marks = {"ended": ended, "went on": step < length}
        return {
            name: torch.einsum("tkr,tr->k", found.marginals, mark.to(found.marginals))
            for name, mark in marks.items()
        }
