"""Cluster moves of pairwise fields: many variables change together, also where neighbors agree for long."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_EXACT = 1e-4  # of the largest potential, up to which a table is that of equal and other values


@torch.no_grad()
def swendsen_wang(
    x: Tensor,
    unary: Tensor,
    pairs: Tensor,
    edges: Tensor,
    num_steps: int,
    free: Tensor | None = None,
) -> Tensor:
    r"""Ends of chains that redraw all clusters of a field, which leave its distribution invariant.

    An edge that is satisfied (its ends are equal where its coupling J > 0, unequal where J < 0)
    becomes a bond with probability :math:`1 - e^{-|J|}`. All variables of a cluster that bonds hold
    together then move by the same d, modulo K,

    .. math:: p(d) \propto \exp \sum_{i \in \text{cluster}} u_i\big((x_i + d) \bmod K\big).

    At the critical point of the Ising model a step forgets the past in a few rounds where single
    sites need thousands of sweeps; where couplings frustrate each other clusters percolate, and
    single sites are better.

    Parameters
    ----------
    x : Tensor of int
        Starts ``(N, D)``; not changed.
    unary, pairs, edges : Tensor
        Log potentials ``(N or 1, D, K)``, ``(E, K, K)`` and pairs of variables ``(E, 2)``, as of
        ``gen.potentials()``.
    num_steps : int
        Number of rounds over all clusters.
    free : Tensor of bool, optional
        Which variables may change, broadcastable to x; clusters of others stay.

    Raises
    ------
    ValueError
        If a table of ``pairs`` is no sum of one number for equal values, and of terms of each end;
        those of two values always are.

    References
    ----------
    Swendsen, Wang (1987), Nonuniversal critical dynamics in Monte Carlo simulations,
    https://doi.org/10.1103/PhysRevLett.58.86; Fortuin, Kasteleyn (1972),
    https://doi.org/10.1016/0031-8914(72)90045-6

    >>> _ = torch.manual_seed(0)
    >>> couple, edges = torch.eye(2)[None], torch.tensor([[0, 1]])
    >>> x = swendsen_wang(torch.zeros(9999, 2, dtype=torch.long), torch.zeros(1, 2, 2), couple, edges, 3)
    >>> (x[:, 0] == x[:, 1]).float().mean().round(decimals=1)         # e / (1 + e) = 0.73
    tensor(0.7000)
    """
    unary, couplings = equal_or_not(unary, pairs, edges)
    for _ in range(num_steps):
        cluster = _clusters(x, couplings, edges)
        weights = _moved_weights(x, unary, cluster)
        if free is not None:
            weights[..., 1:].masked_fill_(
                _held(cluster, free.expand(x.shape))[..., None], -torch.inf
            )
        drawn = torch.distributions.Categorical(logits=weights, validate_args=False).sample()
        x = (x + drawn.gather(1, cluster)) % unary.shape[-1]
    return x


@torch.no_grad()
def wolff(
    x: Tensor,
    unary: Tensor,
    pairs: Tensor,
    edges: Tensor,
    num_steps: int,
    free: Tensor | None = None,
) -> Tensor:
    r"""Ends of chains that move the cluster of one variable chosen at random.

    Clusters are those of :func:`swendsen_wang`. The move is always accepted where there is no
    field, else with probability :math:`\min(1, \exp \sum_i [u_i(x_i + d) - u_i(x_i)])`. Large
    clusters are chosen more often, so that a step decorrelates more than its share of variables.
    All chains are computed at once, for which every step finds all clusters.

    Parameters
    ----------
    x, unary, pairs, edges, free
        As of :func:`swendsen_wang`.
    num_steps : int
        Number of clusters.

    References
    ----------
    Wolff (1989), Collective Monte Carlo updating for spin systems,
    https://doi.org/10.1103/PhysRevLett.62.361

    >>> one = torch.zeros(1, dtype=torch.long)[:, None]
    >>> wolff(one, torch.zeros(1, 1, 2), torch.zeros(0, 2, 2), torch.zeros(0, 2, dtype=torch.long), 3)
    tensor([[1]])
    """
    levels = unary.shape[-1]
    unary, couplings = equal_or_not(unary, pairs, edges)
    for _ in range(num_steps):
        cluster = _clusters(x, couplings, edges)
        seed = torch.randint(x.shape[-1], (len(x), 1), device=x.device)
        own = cluster.gather(1, seed)
        weights = _moved_weights(x, unary, cluster)
        if free is not None:
            weights[..., 1:].masked_fill_(
                _held(cluster, free.expand(x.shape))[..., None], -torch.inf
            )
        weights = weights.take_along_dim(own[..., None], 1)[:, 0]
        step = torch.randint(1, levels, (len(x), 1), device=x.device)
        gain = weights.gather(1, step) - weights[:, :1]
        step = step * (torch.rand_like(gain).log() < gain)
        x = (x + step * (cluster == own)) % levels
    return x


@dataclass(frozen=True)
class SwendsenWang:
    """The moves :func:`swendsen_wang`, to be passed to a field.

    ``kernel(x, unary, pairs, edges, num_steps, free) -> x``.

    >>> import probgen as pg
    >>> grid = pg.graphical.grid_edges(4, 4)
    >>> pg.MarkovRandomField((4, 4), grid, limit=1, sweeps=3, kernel=SwendsenWang())().sample().shape
    torch.Size([4, 4])
    """

    def __call__(
        self,
        x: Tensor,
        unary: Tensor,
        pairs: Tensor,
        edges: Tensor,
        num_steps: int,
        free: Tensor | None = None,
    ) -> Tensor:
        return swendsen_wang(x, unary, pairs, edges, num_steps, free)


@dataclass(frozen=True)
class Wolff:
    """The moves :func:`wolff`, to be passed to a field.

    ``kernel(x, unary, pairs, edges, num_steps, free) -> x``.

    >>> Wolff()
    Wolff()
    """

    def __call__(
        self,
        x: Tensor,
        unary: Tensor,
        pairs: Tensor,
        edges: Tensor,
        num_steps: int,
        free: Tensor | None = None,
    ) -> Tensor:
        return wolff(x, unary, pairs, edges, num_steps, free)


def equal_or_not(unary: Tensor, pairs: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    r"""Tables as :math:`w(a, b) = J [a = b] + f(a) + g(b)`: unary potentials with f and g, and J ``(E,)``.

    >>> couple = torch.tensor([[[2.0, 0.0], [1.0, 3.0]]])
    >>> equal_or_not(torch.zeros(1, 2, 2), couple, torch.tensor([[0, 1]]))[1]
    tensor([2.])
    """
    levels = pairs.shape[-1]
    identity = torch.eye(levels).to(pairs)
    centered = pairs - pairs.mean(-1, keepdim=True) - pairs.mean(-2, keepdim=True)
    centered = centered + pairs.mean((-2, -1), keepdim=True)
    couplings = centered.diagonal(dim1=-2, dim2=-1).sum(-1) / max(levels - 1, 1)
    left = centered - couplings[:, None, None] * (identity - 1 / levels)
    if pairs.numel() and left.abs().max() > _EXACT * (1 + pairs.abs().max()):
        worst = int(left.abs().amax((1, 2)).argmax())
        raise ValueError(
            "expected tables of one number for equal values and terms of each end, as of a Potts "
            f"model, got others at edge {worst}; take Gibbs chains, the default of a field, or "
            "variables of two values"
        )
    rest = pairs - couplings[:, None, None] * identity
    first = rest.mean(-1)
    second = rest.mean(-2) - rest.mean((-2, -1))[:, None]
    for side, part in enumerate((first, second)):
        unary = unary.index_add(-2, edges[:, side], part.expand(*unary.shape[:-2], -1, -1))
    return unary, couplings


def _clusters(x: Tensor, couplings: Tensor, edges: Tensor) -> Tensor:
    """The least variable of the cluster of each: ``(N, D)``, for bonds drawn given x."""
    first, second = edges.unbind(-1)
    satisfied = (x[:, first] == x[:, second]) == (couplings > 0)
    bonds = satisfied & (torch.rand(satisfied.shape, device=x.device) < -(-couplings.abs()).expm1())
    label = torch.arange(x.shape[-1], device=x.device).expand(x.shape)
    while True:
        one, other = label[:, first], label[:, second]
        low = torch.minimum(one, other)
        split = bonds & (one != other)
        if not split.any():
            return label
        low = torch.where(split, low, torch.maximum(one, other))
        label = label.scatter_reduce(1, one, torch.minimum(one, low), "amin")
        label = label.scatter_reduce(1, other, torch.minimum(other, low), "amin")
        while not torch.equal(label, shorter := label.gather(1, label)):
            label = shorter


def _moved_weights(x: Tensor, unary: Tensor, cluster: Tensor) -> Tensor:
    """Log weights of moving each cluster by 0, ..., K - 1, at its least variable: ``(N, D, K)``."""
    levels = unary.shape[-1]
    places = (x[..., None] + torch.arange(levels, device=x.device)) % levels
    each = unary.expand(*x.shape, -1).gather(-1, places)
    index = cluster[..., None].expand(each.shape)
    return torch.zeros_like(each).scatter_add(1, index, each)


def _held(cluster: Tensor, free: Tensor) -> Tensor:
    """Whether a cluster has a variable that stays, at its least variable: ``(N, D)``."""
    none = torch.zeros_like(free, dtype=torch.long)
    return none.scatter_add(1, cluster, (~free).long()) > 0
