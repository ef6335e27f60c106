"""Markov random fields: discrete variables that interact in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import for_each_context, input_size
from probgen.core.foreign import row_by_row
from probgen.core.keywords import explained
from probgen.core.module import DistributionModule
from probgen.distributions.graphical.pairwise_field import (
    ExactField,
    FieldKernel,
    GibbsField,
    Pairwise,
)
from probgen.samplers.belief_propagation import Beliefs, belief_propagation


@explained
def grid_edges(*shape: int, periodic: bool = False) -> list[tuple[int, int]]:
    """Pairs of neighbors of a grid whose points are numbered in raster order.

    ``periodic`` closes it to a torus.

    >>> grid_edges(2, 2)
    [(0, 1), (0, 2), (1, 3), (2, 3)]
    """
    checks.sizes(shape=shape)
    checks.flag(periodic=periodic)
    number = torch.arange(prod(shape)).reshape(shape)
    edges = []
    for point in product(*map(range, shape)):
        for dim in reversed(range(len(shape))):
            following = (point[dim] + 1) % shape[dim]
            if shape[dim] > 1 and (following or (periodic and shape[dim] > 2)):
                edges.append(
                    (int(number[point]), int(number[(*point[:dim], following, *point[dim + 1 :])]))
                )
    return edges


class MarkovRandomField(DistributionModule):
    r"""Markov random field of discrete variables with a table for each edge of a graph.

    .. math:: p(x) = \frac1Z \exp\Big(\sum_i u_i(x_i) + \sum_{(i, j) \in E} w_{ij}(x_i, x_j)\Big)

    Where variable elimination makes no table larger than ``limit`` (trees, narrow grids), the
    density is *exact*: log Z, missing entries, independent draws, ``impute``; maximum likelihood by
    ``fit``. Elsewhere it is *unnormalized*: draws and imputations are ends of Markov chains, ``fit``
    takes the objective ``PseudoLikelihood()``.

    Parameters
    ----------
    shape : sequence of int
        Shape of an event, whose D entries in raster order are the variables: ``(D,)``, or that of a
        grid.
    edges : sequence of (int, int)
        Pairs of variables that interact, as :func:`grid_edges` lists them.
    levels : int
        Number K of values 0., 1., ... of each variable.
    shared : bool
        Whether all variables have the same u and all edges the same w, as in the Ising model.
    unary : nn.Module, optional
        Network from a context to u, ``(*batch, C) -> (*batch, D * K)``, one variable after the
        other: a conditional random field.
    limit : int
        Largest table, in entries per row, for which the field is summed exactly.
    sweeps : int
        Length of the chains, where it is not.
    kernel : FieldKernel, optional
        What moves these chains in place of Gibbs sweeps of single variables:
        :class:`SwendsenWang <probgen.samplers.SwendsenWang>`, whose clusters pass through a phase
        transition, or :class:`TemperedGibbs <probgen.samplers.TemperedGibbs>`.

    Raises
    ------
    ValueError
        If edges join what are no two different variables.

    References
    ----------
    Besag (1974), Spatial interaction and the statistical analysis of lattice systems,
    https://doi.org/10.1111/j.2517-6161.1974.tb00999.x

    >>> field = MarkovRandomField((3, 3), grid_edges(3, 3), shared=True)
    >>> _ = field.pairs.data.copy_(torch.eye(2))
    >>> field().log_prob(torch.ones(3, 3)).exp()
    tensor(0.1508, grad_fn=<ExpBackward0>)
    """

    unknown_contexts = False
    context_hint = "build it with unary=, a network of {size} inputs"
    edges: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        edges: Sequence[tuple[int, int]],
        *,
        levels: int = 2,
        shared: bool = False,
        unary: nn.Module | None = None,
        limit: int = 2**16,
        sweeps: int = 200,
        kernel: FieldKernel | None = None,
    ):
        checks.sizes(shape=shape)
        checks.whole_pairs(edges=edges)
        checks.at_least(1, levels=levels)
        checks.flag(shared=shared)
        checks.network(**checks.given(unary=unary))
        checks.at_least(0, limit=limit)
        checks.at_least(1, sweeps=sweeps)
        checks.callable_("give SwendsenWang()", **checks.given(kernel=kernel))
        super().__init__()
        self.shape = torch.Size(shape)
        self.levels = levels
        self.limit = limit
        self.sweeps = sweeps
        self.kernel = kernel
        self.nodes = prod(shape)
        self.neighbors = tuple((int(a), int(b)) for a, b in edges)
        self._check(self.neighbors)
        self.register_buffer(
            "edges",
            torch.tensor(self.neighbors, dtype=torch.long).reshape(-1, 2),
            persistent=False,
        )
        self.pairs = nn.Parameter(torch.zeros(1 if shared else len(edges), levels, levels))
        self.net = unary
        if unary is None:
            self.unary = nn.Parameter(torch.zeros(1 if shared else self.nodes, levels))

    @property
    def context_size(self) -> int | None:
        """What the network of the unary takes."""
        return 0 if self.net is None else input_size(self.net)

    def forward(self, context: Tensor | None = None) -> ExactField | GibbsField:
        field = self.potentials(context)
        exact = field.factors(self.limit).plan().largest <= self.limit
        distribution = (
            ExactField(field, self.shape, self.limit)
            if exact
            else GibbsField(field, self.shape, self.sweeps, self.kernel)
        )
        return for_each_context(distribution, context)

    def potentials(self, context: Tensor | None = None) -> Pairwise:
        """Log potentials: u ``(*batch, D, K)`` and w ``(E, K, K)``."""
        if self.net is None:
            unary = self.unary.expand(self.nodes, -1)
        else:
            checks.context(context, self.context_size or None)
            unary = row_by_row(self.net, context, ndims=[1]).unflatten(
                -1, (self.nodes, self.levels)
            )
        return Pairwise(
            unary, self.pairs.expand(len(self.edges), -1, -1), self.edges, self.neighbors
        )

    @torch.no_grad()
    def belief_propagation(
        self,
        context: Tensor | None = None,
        *,
        max_iter: int = 200,
        damping: float = 0.0,
        tol: float = 1e-6,
    ) -> Beliefs:
        """Marginals and log Z by messages, for each row of the context or one.

        Exact on trees, else approximate.
        """
        unary, pairs, edges, _ = self.potentials(context)
        rows = unary.reshape(-1, self.nodes, self.levels)
        return belief_propagation(rows, pairs, edges, max_iter=max_iter, damping=damping, tol=tol)

    def _check(self, edges: Sequence[tuple[int, int]]) -> None:
        wrong = [
            edge
            for edge in edges
            if not (len({*edge}) == 2 and all(0 <= v < self.nodes for v in edge))
        ]
        if wrong or self.levels < 2:
            raise ValueError(
                "expected levels >= 2 and edges between two of the variables 0, ..., "
                f"{self.nodes - 1}, got levels "
                f"{self.levels} and {wrong[:3]}"
            )
