"""Distributions of discrete variables that interact in pairs.

Exact where an elimination is affordable, else unnormalized.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core import checks
from probgen.core.batched import BatchedDistribution
from probgen.core.missing import check_event, has_missing
from probgen.distributions.gibbs import gibbs
from probgen.distributions.graphical.discrete_network import FactorGraph
from probgen.distributions.graphical.factors import Factors
from probgen.samplers.gibbs_discrete import coloring, gibbs_sweeps, neighbor_logits


class FieldKernel(Protocol):
    """What moves chains of a field, and leaves its distribution invariant.

    As :class:`SwendsenWang <probgen.samplers.SwendsenWang>`.
    """

    def __call__(
        self,
        x: Tensor,
        unary: Tensor,
        pairs: Tensor,
        edges: Tensor,
        num_steps: int,
        free: Tensor,
    ) -> Tensor:
        """States ``(N, D)`` after so many steps, of which only ``free`` entries move."""


class Pairwise(NamedTuple):
    r"""Potentials of variables and pairs.

    :math:`\log \phi(x) = \sum_i u_i(x_i) + \sum_{(i, j)} w_{ij}(x_i, x_j)`.

    Attributes
    ----------
    unary : Tensor
        ``(*batch, D, K)``.
    pairs : Tensor
        ``(E, K, K)``.
    edges : Tensor of int
        ``(E, 2)``.
    scopes : tuple of (int, int)
        The same edges.
    """

    unary: Tensor
    pairs: Tensor
    edges: Tensor
    scopes: tuple[tuple[int, int], ...]

    @property
    def batch(self) -> torch.Size:
        """Batch dims of the unary potentials."""
        return self.unary.shape[:-2]

    def factors(self, limit: int) -> Factors:
        """The same as tables: one for each variable, one for each edge."""
        nodes, levels = self.unary.shape[-2:]
        scopes = (*((v,) for v in range(nodes)), *self.scopes)
        return Factors(
            (*self.unary.unbind(-2), *self.pairs.unbind(0)), scopes, (levels,) * nodes, limit
        )

    def score(self, x: Tensor) -> Tensor:
        """The log of the product of all potentials: ``(*batch, D) -> (*batch,)``, integers."""
        single = self.unary.expand(*x.shape, -1).take_along_dim(x.unsqueeze(-1), -1).squeeze(-1)
        first = x[..., self.edges[:, 0]]
        second = x[..., self.edges[:, 1]]
        return single.sum(-1) + self.pairs[
            torch.arange(len(self.pairs), device=x.device), first, second
        ].sum(-1)

    def pseudo_score(self, x: Tensor) -> Tensor:
        r"""The log pseudo-likelihood :math:`\sum_i \log p(x_i \mid x_{-i})`.

        ``(*batch, D) -> (*batch,)``, integers.
        """
        logits = neighbor_logits(x, self.unary, self.pairs, self.edges)
        return logits.log_softmax(-1).take_along_dim(x.unsqueeze(-1), -1).sum((-2, -1))

    def expand(self, batch: torch.Size) -> Pairwise:
        """The same with batch dims, if it had any: one without suits every row."""
        if not self.batch:
            return self
        return self._replace(unary=self.unary.expand(*batch, *self.unary.shape[-2:]))


class ExactField(FactorGraph):
    """A pairwise field that is summed by variable elimination.

    Exact density, exact independent draws.

    Parameters
    ----------
    field : Pairwise
        The potentials.
    event_shape : sequence of int
        Shape of an event, whose entries in raster order are the variables.
    limit : int
        Largest table, in entries per row, that an elimination may make.
    """

    def __init__(self, field: Pairwise, event_shape: Sequence[int], limit: int):
        self.field = field
        super().__init__(field.factors(limit), event_shape)

    def pseudo_log_prob(self, x: Tensor) -> Tensor:
        """The log pseudo-likelihood of complete rows, ``(*batch, *event) -> (*batch,)``."""
        return self.field.pseudo_score(_labels(x, self.event_shape))


class GibbsField(BatchedDistribution):
    """A pairwise field that is too wide to sum.

    ``log_prob`` lacks the constant log Z, draws are ends of Gibbs chains.

    Parameters
    ----------
    field : Pairwise
        The potentials.
    event_shape : sequence of int
        Shape of an event, whose entries in raster order are the variables.
    sweeps : int
        Length of the chain that each draw ends; they start at independent uniform values.
    kernel : FieldKernel, optional
        What moves the chains, by so many of its steps; default: Gibbs sweeps.

    Raises
    ------
    ValueError
        From ``log_prob``, if x has missing entries (NaN).

    >>> ring = ((0, 1), (1, 2), (2, 3), (3, 0))
    >>> field = Pairwise(torch.zeros(4, 2), torch.eye(2).expand(4, 2, 2), torch.tensor(ring), ring)
    >>> distribution = GibbsField(field, (4,), sweeps=10)
    >>> distribution.log_prob(torch.tensor([0.0, 1.0, 1.0, 1.0])), distribution.density_kind
    (tensor(2.), 'unnormalized')
    """

    batched = {"field": 0}
    density_kind = "unnormalized"

    def __init__(
        self,
        field: Pairwise,
        event_shape: Sequence[int],
        sweeps: int,
        kernel: FieldKernel | None = None,
    ):
        self.field = field
        self.sweeps = sweeps
        self.kernel = kernel
        super().__init__(field.batch, torch.Size(event_shape))

    @property
    def support(self) -> constraints.Constraint:
        levels = self.field.unary.shape[-1]
        base = constraints.boolean if levels == 2 else constraints.integer_interval(0, levels - 1)
        return constraints.independent(base, len(self.event_shape))

    def log_prob(self, x: Tensor) -> Tensor:
        return self.field.score(_labels(x, self.event_shape)).expand(self.lead(x))

    def pseudo_log_prob(self, x: Tensor) -> Tensor:
        """The log pseudo-likelihood of complete rows, ``(*batch, *event) -> (*batch,)``."""
        return self.field.pseudo_score(_labels(x, self.event_shape)).expand(self.lead(x))

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        x = self.field.pairs.new_full(torch.Size(sample_shape) + self.shape(), torch.nan)
        return self.completed(x, self.sweeps)

    @torch.no_grad()
    def completed(self, x: Tensor, sweeps: int) -> Tensor:
        """Ends of chains over the missing entries (NaN) given the others.

        ``(*lead, *event)``, as ``x``.
        """
        lead, (nodes, levels) = (
            x.shape[: x.ndim - len(self.event_shape)],
            self.field.unary.shape[-2:],
        )
        unary, pairs, edges, _ = self.field
        unary = (
            unary.expand(*lead, nodes, levels).reshape(-1, nodes, levels)
            if self.field.batch
            else unary[None]
        )
        free = x.isnan().reshape(-1, nodes)
        start = torch.where(
            free,
            torch.randint(levels, free.shape, device=x.device),
            x.nan_to_num().reshape_as(free).long(),
        )
        kernel = _by_sites if self.kernel is None else self.kernel
        return kernel(start, unary, pairs, edges, sweeps, free).to(x.dtype).reshape(x.shape)


def _by_sites(
    x: Tensor, unary: Tensor, pairs: Tensor, edges: Tensor, num_steps: int, free: Tensor
) -> Tensor:
    """Gibbs sweeps, as a kernel."""
    colors = [group.to(x.device) for group in coloring(edges, x.shape[-1])]
    return gibbs_sweeps(x, unary, pairs, edges, colors, num_steps, free)


@gibbs.register(GibbsField)
def _(distribution: GibbsField, x: Tensor, mask: Tensor, num_steps: int) -> Tensor:
    checks.at_least(1, num_steps=num_steps)
    return distribution.completed(torch.where(mask, x, torch.nan), num_steps)


def _labels(x: Tensor, event_shape: torch.Size) -> Tensor:
    """Integers ``(*batch, D)``; refuses missing entries."""
    check_event(x, event_shape)
    if has_missing(x):
        raise ValueError(
            "expected complete rows, got NaN (missing): what is not normalized cannot be "
            "integrated; use a field "
            "narrow enough for variable elimination (a larger limit), or complete the rows first"
        )
    return x.flatten(-len(event_shape)).long()
