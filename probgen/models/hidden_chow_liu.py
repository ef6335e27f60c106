"""Hidden Chow-Liu trees: columns that hang below a tree of states which are not seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import WITHOUT
from probgen.core.missing import fill_missing
from probgen.core.module import DistributionModule
from probgen.distributions.criteria import aic, bic, trained
from probgen.distributions.frozen import put
from probgen.distributions.graphical.dependence_tree import (
    family_counts,
    log_shares,
    mutual_information,
    pair_counts,
    rooted_in_the_middle,
    spanning_tree,
)
from probgen.distributions.graphical.hidden_tree import HiddenTree, entries_of
from probgen.distributions.sequences.discrete_emissions import CategoricalEmission
from probgen.distributions.sequences.emission import Emission
from probgen.distributions.tables import weighted_sum

_SHARED = 0.2  # of a column's values that all of its states get alike at the start
_BINS = 8  # of numbers, which the tree is found by
_SPREAD = 1.0  # of the logarithms of random factors at the start


class HiddenChowLiu(DistributionModule):
    r"""Hidden Chow-Liu tree: a state that is not seen above each column, and a tree of these states.

    .. math:: p(x) = \sum_{z_1, \dots, z_D} \prod_{d=1}^D p(z_d \mid z_{\mathrm{pa}(d)})\, p(x_d \mid z_d)

    The tree is that of a :class:`ChowLiu <probgen.ChowLiu>` tree: of all it has the largest sum of
    mutual informations of neighboring columns. With one state columns are independent; with more,
    each edge carries more than the two columns could tell each other, as the states of a chain of a
    hidden Markov model do. Density, missing entries (NaN), ``impute``, and draws are exact, in a
    time of D K² for a row. The distribution, :class:`HiddenTree`, tells the states of a row:
    ``gen().state_probabilities(x)``, ``gen().most_likely_states(x)``, ``gen().sample_states(x)``.

    :func:`probgen.em` finds the tree and learns all tables of labels; of other emissions ``gen.initialize(x)`` finds
    the tree, and :func:`probgen.fit` learns the rest.

    Parameters
    ----------
    states : int
        Number K of states above each column.
    levels : sequence of int, optional
        Number of values 0., 1., ... of each column; for D binary ones ``(2,) * D``.
    emission : DistributionModule, optional
        In place of ``levels``, the distribution of independent columns given their state: an
        :class:`Emission` with such (``PoissonEmission(states, dims)``), or a family that gets a
        context of shape ``(*batch, K)``, zeros and a one at the state: ``heads.Gaussian(nn.Linear(K,
        2 * D))``, or a ``Mixed`` head of columns of several types.
    smoothing : float
        What EM adds to the expected number of each state given each of the parent's, and, with
        ``levels``, of each value given each state.

    Raises
    ------
    ValueError
        Unless one of ``levels`` and ``emission`` is given.
    TypeError
        From :func:`probgen.em`, if the emission is no :class:`Emission`, or its columns are not
        independent.

    References
    ----------
    Liu, Van den Broeck (2021), Tractable regularization of probabilistic circuits,
    https://arxiv.org/abs/2106.02264; Zhang (2004), Hierarchical latent class models for cluster
    analysis, https://www.jmlr.org/papers/v5/zhang04a.html

    >>> from probgen.infer.em import em
    >>> _ = torch.manual_seed(0)
    >>> side = torch.randint(2, (300, 1)).float()
    >>> x = torch.where(torch.rand(300, 5) < 0.1, 1 - side, side)       # five noisy views of one side
    >>> gen = HiddenChowLiu(2, (2,) * 5)
    >>> em(gen, x, seed=0).converged
    True
    >>> gen().log_prob(torch.tensor([[1.0, 1.0, 1.0, torch.nan, torch.nan]])).exp() > 0.3
    tensor([True])
    """

    context_size = 0
    context_hint = WITHOUT
    summed_out = (
        "states: gen().state_probabilities(x), gen().most_likely_states(x), gen().sample_states(x)"
    )
    parents: Tensor
    identity: Tensor
    emission: Any  # an Emission, or any family

    def __init__(
        self,
        states: int,
        levels: Sequence[int] | None = None,
        *,
        emission: DistributionModule | None = None,
        smoothing: float = 0.1,
    ):
        checks.at_least(1, states=states)
        checks.not_negative(smoothing=smoothing)
        if (levels is None) == (emission is None):
            raise ValueError(
                "expected levels or an emission, got "
                f"{'neither' if levels is None else 'both'}; give levels of each column, (2,) * D "
                "for D binary ones, or the emission of columns of other types"
            )
        super().__init__()
        self.states = states
        self.smoothing = smoothing
        self.levels = None if levels is None else tuple(_levels(levels))
        self.emission = emission or CategoricalEmission(
            states, self.levels or (), pseudo_count=smoothing
        )
        checks.generative(emission=self.emission)
        self.register_buffer("identity", torch.eye(states), persistent=False)
        with torch.no_grad():
            emissions = self._emissions()
        entries_of(emissions)  # refuses columns that depend on each other
        if emissions.batch_shape != (states,):
            raise ValueError(
                f"expected an emission of {states} states, got distributions of batch shape "
                f"{tuple(emissions.batch_shape)}; build it with as many states as the tree"
            )
        dims = emissions.event_shape[0]
        self.register_buffer("parents", torch.full((dims,), -1))
        self.transition = nn.Parameter(torch.randn(dims, states, states))

    def forward(self, context: Tensor | None = None) -> HiddenTree:
        return HiddenTree(self.parents.tolist(), self.transition, self._emissions())

    def _emissions(self) -> Any:
        """The distributions of all columns under each state: batch shape ``(K,)``."""
        if isinstance(self.emission, Emission):
            return self.emission.distributions()
        return self.emission(self.identity)

    @torch.no_grad()
    def expect(self, x: Tensor, weights: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """E-step on rows ``(n, D)``.

        log-likelihood, expected transitions ``(D, K, K)``, and the statistics of the emission.
        """
        self._check_closed_form()
        total: dict[str, Tensor] = {}
        values = []
        for rows, value, transitions, states in self().expected_counts(x, weights):
            values.append(value)
            parts = {"transitions": transitions} | self.emission.expect(rows, states)
            for name, part in parts.items():
                total[name] = total.get(name, 0.0) + part.double()
        return weighted_sum(torch.cat(values), weights), total

    @torch.no_grad()
    def maximize(self, statistics: dict[str, Tensor]) -> None:
        """M-step: shares of the smoothed counts, of states and of what they emit."""
        sizes = (self.states,) * len(self.parents)
        put(self.transition, log_shares(statistics["transitions"], sizes, self.smoothing))
        self.emission.maximize(statistics)

    def penalty(self, statistics: dict[str, Tensor]) -> Tensor | float:
        """What ``smoothing`` and pseudo-counts of the emission make the M-step subtract."""
        own: Tensor | float = 0.0
        if self.smoothing:
            logs = self.transition.detach().double().log_softmax(-1)
            roots = self.parents < 0
            own = -self.smoothing * (logs[~roots].sum() + logs[roots, 0].sum())
        of_emission = getattr(self.emission, "penalty", None)
        return own if of_emission is None else own + of_emission(statistics)

    @property
    def free_parameters(self) -> int:
        """Number of free parameters, given the tree."""
        roots = int((self.parents < 0).sum())
        tables = (len(self.parents) - roots) * self.states + roots
        own = tables * (self.states - 1) * self.transition.requires_grad
        return own + getattr(self.emission, "free_parameters", trained(self.emission))

    aic = aic
    bic = bic

    @torch.no_grad()
    def initialize(
        self, x: Tensor, generator: torch.Generator | None = None, weights: Tensor | None = None
    ) -> None:
        """The best tree of rows ``(N, D)``, NaN = missing, and states that stand for values.

        Each state of a column is that of some of its values (of an eighth of all rows, where these
        are no labels), more or less, at random, so that EM starts near the Chow-Liu tree.
        """
        bins, sizes = self._binned(x)
        counts = pair_counts(bins, sizes, None if weights is None else weights[:, None])
        counts = counts if weights is None else counts[0]
        members = self._members(sizes, generator).to(counts)
        if self.transition.requires_grad:
            if self.states > 1:  # else columns are independent, whatever the tree is
                parents = rooted_in_the_middle(spanning_tree(mutual_information(counts)).cpu())
                self.parents.copy_(parents)
            self.transition.copy_(self._first_transitions(counts, members, generator))
        if isinstance(self.emission, Emission):
            self._first_emissions(x, bins, members, weights)

    def _binned(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Labels that stand for the values of each column, NaN = missing, and how many there are."""
        if self.levels is not None:
            return x, self.levels
        ranks = fill_missing(x.double(), torch.inf).argsort(0).argsort(0)
        known = (~x.isnan()).sum(0).clamp(min=1)
        equal = torch.stack([_first_of_equal(*pair) for pair in zip(x.T, ranks.T, strict=True)], 1)
        bins = (equal * _BINS // known).clamp(max=_BINS - 1).to(x)
        return torch.where(x.isnan(), torch.nan, bins), (_BINS,) * x.shape[1]

    def _members(self, sizes: Sequence[int], generator: torch.Generator | None) -> Tensor:
        """Shares of the states of each column in each of its values, ``(D, L, K)``."""
        values = torch.arange(max(sizes))[:, None]
        own = torch.tensor(sizes)[:, None, None]
        states = torch.arange(self.states)
        near = (states % own == values % self.states) & (values < own)
        noise = (_SPREAD * torch.randn(near.shape, generator=generator, dtype=torch.float64)).exp()
        shares = near * noise
        shares = shares / shares.sum(-1, keepdim=True).clamp(min=1e-12)
        return (1 - _SHARED) * shares + _SHARED / self.states

    def _first_transitions(
        self, counts: Tensor, members: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Logits ``(D, K, K)`` of the pairs of values of neighbors, a little at random."""
        pairs = family_counts(counts, self.parents)
        above = members[self.parents.clamp(min=0)].clone()
        above[self.parents < 0] = 1.0
        states = above.mT @ (pairs @ members)
        noise = torch.rand(states.shape, generator=generator, dtype=torch.float64).to(states)
        return (states * (0.5 + noise) + 1e-3 * states.mean((-2, -1), keepdim=True) + 1e-6).log()

    def _first_emissions(
        self, x: Tensor, bins: Tensor, members: Tensor, weights: Tensor | None
    ) -> None:
        """Of the values that the states stand for."""
        total: dict[str, Tensor] = {}
        columns = torch.arange(x.shape[1], device=x.device)
        shares = x.new_ones(len(x)) if weights is None else weights.to(x)
        size = self().max_rows
        for rows, some, share in zip(
            x.split(size), bins.split(size), shares.split(size), strict=True
        ):
            own = members[columns, some.nan_to_num().long()].to(x) * share[:, None, None]
            for name, part in self.emission.expect(rows, own.permute(2, 0, 1)).items():
                total[name] = total.get(name, 0.0) + part.double()
        self.emission.maximize(total)

    def _check_closed_form(self) -> None:
        if not isinstance(self.emission, Emission):
            raise TypeError(
                f"expected an Emission, got {type(self.emission).__name__}; use gen.initialize(x), "
                "which finds the tree, and fit(gen, x)"
            )


def _levels(levels: Any) -> Sequence[int]:
    if isinstance(levels, int):
        raise TypeError(
            f"expected levels of each column, got {levels}; for so many binary ones: (2,) * {levels}"
        )
    checks.sizes(1, 1, levels=levels)
    return levels


def _first_of_equal(column: Tensor, ranks: Tensor) -> Tensor:
    """The smallest rank of rows with the same value, ``(n,)``."""
    _, group = column.nan_to_num(torch.inf).unique(return_inverse=True)
    first = torch.full((int(group.max()) + 1,), len(column), device=column.device)
    return first.scatter_reduce(0, group, ranks, "amin")[group]
