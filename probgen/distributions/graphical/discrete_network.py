"""Distributions of several discrete variables, directed and undirected.

With exact answers by variable elimination.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from graphlib import TopologicalSorter
from math import prod
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core.batched import expanded
from probgen.core.missing import check_event, has_missing, values_are_known
from probgen.distributions.completed import Completed
from probgen.distributions.conditional import conditional
from probgen.distributions.graphical.elimination import EliminationPlan, at_values
from probgen.distributions.graphical.factors import LIMIT, Factors, VariableNames

_AT_ONCE = 2**24


class _DiscreteDistribution(dist.TorchDistribution):
    """What both distributions share: a product of tables with a known sum."""

    arg_constraints: dict = {}
    has_rsample = False
    density_kind = "exact"

    def __init__(self, factors: Factors, event_shape: Sequence[int] | None = None):
        self.factors = factors
        event = torch.Size(event_shape or (len(factors.levels),))
        super().__init__(factors.batch, event)

    @property
    def support(self) -> constraints.Constraint:
        top = (
            torch.tensor(self.factors.levels, device=self.factors.tables[0].device).reshape(
                self.event_shape
            )
            - 1
        )
        base = constraints.boolean if (top == 1).all() else constraints.integer_interval(0, top)
        return constraints.independent(base, len(self.event_shape))

    @property
    def plan(self) -> EliminationPlan:
        """How missing entries are summed out, and what that costs."""
        return self.factors.plan(evidence=True)

    @abstractmethod
    def relevant(self, x: Tensor) -> tuple[Factors, list[int] | slice]:
        """The product that the density of rows ``(*lead, D)`` is the sum of.

        And the variables that are in it.
        """

    @abstractmethod
    def log_partition(self) -> Tensor | float:
        """The log of the sum of all products."""

    @abstractmethod
    def given(self, likelihoods: Mapping[int, Tensor]) -> _DiscreteDistribution:
        r"""The distribution given uncertain evidence.

        As likelihoods of the values of some variables.

        .. math:: p(x \mid e) \propto p(x) \prod_v \lambda_v(x_v), \qquad
                  \lambda_v(k) = p(e_v \mid x_v = k)

        Pearl's virtual evidence: each finding depends on its variable alone. Factors common to all
        values of a variable do not matter here; what is not mentioned has the likelihood 1.

        Parameters
        ----------
        likelihoods : mapping of int to Tensor
            Log likelihoods ``(*batch, K)`` of the values of variables, by their places.

        References
        ----------
        Pearl (1988), Probabilistic Reasoning in Intelligent Systems, section 2.2.2

        >>> tables = [torch.tensor([0.5, 0.5]), torch.tensor([[0.9, 0.1], [0.2, 0.8]])]
        >>> distribution = DiscreteNetwork([table.log() for table in tables], [(), (0,)])
        >>> distribution.given({1: torch.tensor([0.25, 0.75]).log()}).marginals(torch.tensor([torch.nan, torch.nan]))
        tensor([[0.3158, 0.6842],
                [0.2895, 0.7105]])
        """

    def log_product(self, x: Tensor) -> Tensor:
        r"""The log of the product of all tables, summed over missing entries (NaN).

        Of a network given likelihoods this is :math:`\log p(x_o, e)`.
        """
        flat, lead = self._flat(x)
        factors, kept = self.relevant(flat)
        return factors.log_sum(flat[..., kept], lead)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.log_product(x) - self.log_partition()

    def joint_given(self, x: Tensor, variables: Sequence[int]) -> Tensor:
        """Probabilities of some variables together given the observed entries.

        ``(*batch, *event) -> (*batch, *levels)``.

        One sum for each combination of their values; of a network over the variables above them
        and above what is observed alone.
        """
        check_event(x, self.event_shape)
        flat = x.flatten(-len(self.event_shape))
        places = list(variables)
        levels = [self.factors.levels[v] for v in variables]
        axes = [torch.arange(k, dtype=x.dtype, device=x.device) for k in levels]
        values = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(
            -1, *(1,) * (flat.ndim - 1), len(levels)
        )
        agrees = (flat[..., places].isnan() | (flat[..., places] == values)).all(-1)
        asked = flat.repeat(len(values), *(1,) * flat.ndim)
        asked[..., places] = values.expand(*asked.shape[:-1], -1)
        joint = self.log_product(asked.reshape(-1, *x.shape)).where(agrees, -torch.inf)
        self._check_possible(joint.logsumexp(0), x)
        return joint.softmax(0).movedim(0, -1).unflatten(-1, levels)

    @torch.no_grad()
    def complete(self, x: Tensor, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Exact draws of missing entries (NaN) given the others.

        ``(*batch, *event) -> (*sample, *batch, *event)``.
        """
        flat, lead = self._flat(x)
        draws = self.factors.draw(flat, lead, torch.Size(sample_shape).numel())
        return draws.reshape(*sample_shape, *lead, *self.event_shape)

    def mode_given(self, x: Tensor) -> Tensor:
        """The most probable completion of each row, all missing entries (NaN) together.

        Same shape as ``x``.
        """
        flat, lead = self._flat(x)
        return self.factors.mode(flat, lead).reshape(*lead, *self.event_shape)

    def marginals(self, x: Tensor) -> Tensor:
        """Probabilities of each entry's values given the observed ones.

        ``(*batch, *event) -> (*batch, *event, K)``.
        """
        flat, lead = self._flat(x)
        found = self.factors.marginals(flat, lead)
        return found.reshape(*lead, *self.event_shape, found.shape[-1])

    @property
    def mean(self) -> Tensor:
        return self.moments(self.factors.tables[0].new_full(self.event_shape, torch.nan))[0]

    @property
    def variance(self) -> Tensor:
        return self.moments(self.factors.tables[0].new_full(self.event_shape, torch.nan))[1]

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each entry given the observed ones, each ``(*batch, *event)``."""
        marginals = self.marginals(x)
        values = torch.arange(marginals.shape[-1], dtype=marginals.dtype, device=marginals.device)
        mean = marginals @ values
        return mean, marginals @ values.square() - mean.square()

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> _DiscreteDistribution:
        return expanded(self, torch.Size(batch_shape), {"factors": 0})

    def _check_possible(self, totals: Tensor, x: Tensor) -> None:
        """Raises ``ValueError`` where rows ``(*batch, *event)`` have probability zero."""
        flat, lead = self._flat(x)
        factors, kept = self.relevant(flat)
        factors.check_possible(totals, flat[..., kept], lead)

    def _flat(self, x: Tensor) -> tuple[Tensor, torch.Size]:
        check_event(x, self.event_shape)
        if self._validate_args:
            self._check_values(x)
        lead = torch.broadcast_shapes(x.shape[: x.ndim - len(self.event_shape)], self.batch_shape)
        return x.flatten(-len(self.event_shape)), lead

    def _check_values(self, x: Tensor) -> None:
        top = torch.tensor(self.factors.levels, device=x.device).reshape(self.event_shape)
        wrong = ~(((x >= 0) & (x < top) & (x % 1 == 0)) | x.isnan())
        if wrong.any():
            place = wrong.nonzero()[0].tolist()[x.ndim - len(self.event_shape) :]
            where = self._called(place)
            raise ValueError(
                f"expected values 0, ..., {int(top[tuple(place)]) - 1} or NaN (missing) {where}, "
                "got "
                f"{x[wrong][0].item():g}; recode x"
            )

    def _called(self, place: list[int]) -> str:
        """What errors call an entry of an event."""
        names = self.factors.labels.names
        return f"of '{names[place[0]]}'" if names else f"in column {place}"


class FactorGraph(_DiscreteDistribution):
    r"""Discrete variables whose joint mass is a product of tables.

    Normalized by variable elimination.

    .. math:: p(x) = \frac1Z \prod_f \phi_f(x_{s(f)}), \qquad Z = \sum_x \prod_f \phi_f(x_{s(f)})

    ``log_prob`` sums missing entries (NaN) out; draws are exact and independent.

    Parameters
    ----------
    factors : Factors
        Log tables and their variables.
    event_shape : sequence of int, optional
        Shape of an event, of D entries; default ``(D,)``.

    Raises
    ------
    ValueError
        From what needs an elimination, if its largest table exceeds ``factors.limit``.

    References
    ----------
    Kschischang, Frey, Loeliger (2001), Factor graphs and the sum-product algorithm,
    https://doi.org/10.1109/18.910572

    >>> attract = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> distribution = FactorGraph(Factors((attract, attract), ((0, 1), (1, 2)), (2, 2, 2)))
    >>> distribution.log_prob(torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, torch.nan]])).exp()
    tensor([0.2672, 0.3655])
    """

    def relevant(self, x: Tensor) -> tuple[Factors, slice]:
        return self.factors, slice(None)

    def log_partition(self) -> Tensor:
        return self.factors.log_partition()

    def given(self, likelihoods: Mapping[int, Tensor]) -> FactorGraph:
        return FactorGraph(self.factors.times(likelihoods), self.event_shape)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape)
        draws = self.factors.draw(None, self.batch_shape, shape.numel())
        return draws.reshape(*shape, *self.batch_shape, *self.event_shape)


class DiscreteNetwork(_DiscreteDistribution):
    r"""Discrete variables with a conditional table each: the distribution of a Bayesian network.

    .. math:: p(x) = \prod_d p(x_d \mid x_{\mathrm{pa}(d)})

    ``log_prob`` looks complete rows up, and sums missing entries (NaN) out by variable elimination.

    Parameters
    ----------
    tables : sequence of Tensor
        Log masses ``(*levels of the parents, levels)`` of each variable, with batch dims to the
        left if need be.
    parents : sequence of sequence of int
        The parents of each variable.
    limit : int
        Largest table, in entries per row, that an elimination may make.
    labels : VariableNames
        What errors call the variables and their values.

    References
    ----------
    Pearl (1988), Probabilistic Reasoning in Intelligent Systems

    >>> tables = [torch.tensor([0.5, 0.5]), torch.tensor([[0.9, 0.1], [0.2, 0.8]])]
    >>> distribution = DiscreteNetwork([table.log() for table in tables], [(), (0,)])
    >>> distribution.log_prob(torch.tensor([[0.0, 1.0], [torch.nan, 1.0]])).exp()
    tensor([0.0500, 0.4500])
    """

    def __init__(
        self,
        tables: Sequence[Tensor],
        parents: Sequence[Sequence[int]],
        limit: int = LIMIT,
        labels: VariableNames = VariableNames(),  # noqa: B008  (a tuple)
    ):
        scopes = tuple((*above, v) for v, above in enumerate(parents))
        levels = tuple(table.shape[-1] for table in tables)
        super().__init__(Factors(tuple(tables), scopes, levels, limit, labels))

    def relevant(self, x: Tensor) -> tuple[Factors, list[int] | slice]:
        """Without variables that nothing observed descends from.

        Their tables sum to 1 (Shachter 1986).

        https://doi.org/10.1287/opre.34.6.871
        """
        if not (has_missing(x) and values_are_known()):
            return self.factors, slice(None)
        unseen = x.isnan().flatten(0, -2).all(0).tolist() if x.ndim > 1 else x.isnan().tolist()
        seen = tuple(v for v, gone in enumerate(unseen) if not gone)
        kept = _above(self._families, seen + self.factors.softly_observed)
        return (
            (self.factors, slice(None))
            if len(kept) == len(unseen)
            else (self.factors.only(kept), list(kept))
        )

    @property
    def _families(self) -> tuple[tuple[int, ...], ...]:
        """The parents of each variable and itself: the scopes without those of likelihoods."""
        return self.factors.scopes[: len(self.factors.levels)]

    def log_partition(self) -> Tensor | float:
        """The log probability of the uncertain evidence, 0 without any."""
        if not self.factors.likelihoods:
            return 0.0
        kept = _above(self._families, self.factors.softly_observed)
        total = self.factors.only(kept).log_partition()
        unseen = self.factors.tables[0].new_full(self.shape(), torch.nan)
        self._check_possible(total, unseen)
        return total

    def given(self, likelihoods: Mapping[int, Tensor]) -> DiscreteNetwork:
        new = copy.copy(self)
        new.factors = self.factors.times(likelihoods)
        new._batch_shape = torch.broadcast_shapes(self.batch_shape, new.factors.batch)
        return new

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        factors = self.factors
        if factors.likelihoods:
            return self.complete(factors.tables[0].new_full(self.shape(), torch.nan), sample_shape)
        tables = factors.rows(shape)
        x = torch.zeros(prod(shape), len(factors.levels), dtype=torch.long, device=tables[0].device)
        for v in _ancestral(factors.scopes):
            logits = at_values(tables[v], factors.scopes[v], x, factors.scopes[v][:-1])
            x[:, v] = torch.distributions.Categorical(logits=logits, validate_args=False).sample()
        return x.to(tables[0].dtype).reshape(*shape, -1)

    @torch.enable_grad()
    def expected_counts(
        self, x: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        r"""How often each entry of each table is used by rows ``(n, D)``.

        In expectation given what they observe.

        Each row counts as often as its weight ``(n,)`` says.

        .. math:: n_{d}(j, k) = \sum_b p(x_{\mathrm{pa}(d)} = j, x_d = k \mid x_{b,o})
                  = \sum_b \frac{\partial \log p(x_{b,o})}{\partial \log \theta_{djk}}

        Returns
        -------
        (Tensor, list of Tensor)
            The log-likelihood of all rows, and counts of the shapes of the tables.
        """
        if self.factors.likelihoods:
            raise ValueError(
                "expected rows without uncertain evidence to count, got likelihoods; add them as "
                "observed children of their variables"
            )
        tables = tuple(table.detach().requires_grad_() for table in self.factors.tables)
        fixed = self.factors._replace(tables=tables)
        total = 0.0
        counts = [torch.zeros_like(t) for t in tables]
        weights = x.new_ones(len(x)) if weights is None else weights
        size = max(1, _AT_ONCE // max(1, self.plan.operations))
        for rows, share in zip(x.split(size), weights.split(size), strict=True):
            value = (fixed.log_sum(rows, rows.shape[:-1]) * share).sum(dtype=torch.float64)
            found = torch.autograd.grad(value, tables)
            total = total + value.detach()
            counts = [c + f for c, f in zip(counts, found, strict=True)]
        return torch.as_tensor(total), counts


@lru_cache(maxsize=512)
def _above(scopes: tuple[tuple[int, ...], ...], some: tuple[int, ...]) -> tuple[int, ...]:
    """Some variables, the variables above them, and one without parents in any case, in order."""
    found = {next(scope[-1] for scope in scopes if len(scope) == 1)}
    left = list(some)
    while left:
        v = left.pop()
        if v not in found:
            found.add(v)
            left += scopes[v][:-1]
    return tuple(sorted(found))


@lru_cache(maxsize=64)
def _ancestral(scopes: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    return tuple(TopologicalSorter({scope[-1]: scope[:-1] for scope in scopes}).static_order())


@conditional.register(_DiscreteDistribution)
def _(distribution: _DiscreteDistribution, x: Tensor, mask: Tensor) -> Completed:
    return Completed(distribution, x, mask)
