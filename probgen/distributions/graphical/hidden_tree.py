"""The distribution of columns that hang below a tree of states which are not seen.

Shapes: D columns, n rows, K states. Tables of a tree are ``(D, K, K)`` [parent's state, own state]; a
node without parent uses row 0 alone, as if the state above it were 0.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from functools import lru_cache, singledispatch
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from probgen.core.batched import BatchedDistribution
from probgen.core.kinds import density_kind
from probgen.core.missing import MissingAware, check_event, values_are_known
from probgen.core.supports import check_values
from probgen.distributions.completed import Completed
from probgen.distributions.conditional import conditional
from probgen.distributions.possible import check_possible
from probgen.heads import distributions
from probgen.heads.mixed import ColumnDistributions

NEVER = -1e30  # in place of minus infinity, which has no gradient: sums of some stay finite
SMALLEST = 1e-30  # in place of 0, which has no logarithm
AT_ONCE = 2**22  # numbers of a message to all nodes


class Depth(NamedTuple):
    """Nodes of one depth of a tree, and the places of their parents among those one above."""

    nodes: Tensor
    above: Tensor


@lru_cache(maxsize=64)
def depths(parents: tuple[int, ...]) -> tuple[Depth, ...]:
    """The nodes of a forest by their depth, roots (parent -1) first.

    Raises
    ------
    ValueError
        If some nodes are below themselves, or below what does not exist.

    >>> [depth.nodes.tolist() for depth in depths((1, -1, 1, 0))]
    [[1], [0, 2], [3]]
    """
    found = []
    nodes = [node for node, parent in enumerate(parents) if parent == -1]
    above = [0] * len(nodes)
    while nodes:
        found.append(Depth(torch.tensor(nodes), torch.tensor(above)))
        place = {node: at for at, node in enumerate(nodes)}
        nodes = [node for node, parent in enumerate(parents) if parent in place]
        above = [place[parents[node]] for node in nodes]
    if sum(len(depth.nodes) for depth in found) < len(parents):
        raise ValueError(
            f"expected the parents of a tree, -1 for none, got {list(parents)}: some nodes are "
            "below themselves, or below none that exists"
        )
    return tuple(found)


class Tour(NamedTuple):
    """A walk over a tree along its edges, each node when it is reached first.

    ``order``: the nodes. ``left``: for each of them those that the walk leaves for good before it,
    the lowest first.
    """

    order: list[int]
    left: list[list[int]]


@lru_cache(maxsize=64)
def tour(parents: tuple[int, ...]) -> Tour:
    """The walk from each root (parent -1) that ends a branch before it begins the next.

    >>> tour((-1, 0, 1, 0))
    Tour(order=[0, 1, 2, 3], left=[[], [], [], [2, 1]])
    """
    children: list[list[int]] = [[] for _ in parents]
    for node, parent in enumerate(parents):
        if parent >= 0:
            children[parent].append(node)
    waiting = [node for node, parent in enumerate(parents) if parent < 0][::-1]
    order: list[int] = []
    left: list[list[int]] = []
    path: list[int] = []
    while waiting:
        node = waiting.pop()
        left.append([])
        while path and path[-1] != parents[node]:
            left[-1].append(path.pop())
        path.append(node)
        order.append(node)
        waiting += children[node][::-1]
    return Tour(order, left)


class Messages(NamedTuple):
    """What the columns below each node tell of states: by depth ``(nodes, n, K)``, up to a factor.

    ``own`` of the state of the node, ``up`` of that of its parent; ``log_p`` of rows ``(n,)``.
    """

    own: list[Tensor]
    up: list[Tensor]
    log_p: Tensor


def collect(scores: Tensor, tables: Tensor, tree: Sequence[Depth]) -> Messages:
    r"""Messages from the leaves to the roots: the upward pass of belief propagation.

    .. math:: m_d(j) = \sum_k A_{d,jk}\, p(x_d \mid k) \prod_{c\,\text{below}\,d} m_c(k)

    Each is divided by its largest factor, whose logarithms are summed, so that float32 will do.

    Parameters
    ----------
    scores : Tensor
        Log densities of the columns under each state, ``(D, n, K)``.
    tables : Tensor
        Probabilities of states given the parent's, ``(D, K, K)``.
    tree : sequence of Depth
        From :func:`depths`.

    References
    ----------
    Pearl (1988), Probabilistic Reasoning in Intelligent Systems, chapter 4
    """
    own: list[Tensor] = []
    up: list[Tensor] = []
    total = scores.new_zeros(scores.shape[1])
    below: Tensor | None = None
    for place in reversed(range(len(tree))):
        value = scores[tree[place].nodes]
        if below is not None:
            value = value.index_add(0, tree[place + 1].above, below)
        top = value.detach().amax(-1, keepdim=True)
        own.append((value - top).exp())
        up.append(own[-1] @ tables[tree[place].nodes].mT)
        below = _log(up[-1])
        total = total + top.sum(0)[:, 0]
    assert below is not None
    total = total + below[..., 0].sum(0)
    return Messages(own[::-1], up[::-1], torch.where(total > NEVER / 2, total, -torch.inf))


def _scaled(value: Tensor) -> Tensor:
    """With 1 as the largest factor of each row."""
    return value / value.detach().amax(-1, keepdim=True).clamp(min=SMALLEST)


def _log(value: Tensor) -> Tensor:
    positive = value > 0
    return torch.where(positive, torch.where(positive, value, 1.0).log(), NEVER)


def ratios(
    found: Messages, tables: Tensor, tree: Sequence[Depth]
) -> Iterator[tuple[Depth, Tensor, Tensor]]:
    r"""The downward pass, by depth: what makes joint probabilities of neighbors, and states' own.

    .. math:: p(z_{\mathrm{pa}} = j, z_d = k \mid x) = r_d(j)\, A_{d,jk}\, b_d(k), \qquad
              r_d(j) = \frac{p(z_{\mathrm{pa}} = j \mid x)}{m_d(j)}

    Yields the depth, r, and :math:`p(z_d \mid x)`, each ``(nodes, n, K)``.
    """
    above = torch.zeros_like(found.own[0][:1])
    above[..., 0] = 1
    for depth, own, up in zip(tree, found.own, found.up, strict=True):
        ratio = torch.where(up > 0, above[depth.above] / up, 0.0)
        above = own * (ratio @ tables[depth.nodes])
        yield depth, ratio, above


@singledispatch
def scores_of(entries: Any, x: Tensor) -> Tensor:
    """Log densities of each column of rows ``(n, D)`` under each state: ``(D, n, K)``.

    By type of the distribution of single entries, of batch shape ``(K, D)``; 0 where missing.
    """
    return MissingAware(entries).log_prob(x[:, None]).permute(2, 0, 1)


@scores_of.register(distributions.Categorical)
def _(entries: distributions.Categorical, x: Tensor) -> Tensor:
    """By a product with zeros and ones, whose gradient is one as well."""
    tables = entries.logits.clamp(min=NEVER).permute(1, 2, 0)  # (D, L, K)
    labels = torch.arange(tables.shape[1], dtype=x.dtype, device=x.device)
    return (x.mT[..., None] == labels).to(tables.dtype) @ tables


@singledispatch
def entries_of(emissions: Any) -> Any:
    """The distributions of single entries ``(K, D)`` of independent columns of K states."""
    raise TypeError(
        "expected emissions with independent columns, one distribution for each, got "
        f"{type(emissions).__name__}; use a head, such as heads.Gaussian(nn.Linear(states, 2 * D)), "
        "or a CategoricalEmission"
    )


@entries_of.register(dist.Independent)
@entries_of.register(torch.distributions.Independent)
def _(emissions: Any) -> Any:
    return emissions.base_dist


@entries_of.register(ColumnDistributions)
def _(emissions: ColumnDistributions) -> Any:
    return emissions.entries


class HiddenTree(BatchedDistribution):
    r"""Columns that depend on each other through states which are not seen, and form a tree.

    .. math:: p(x) = \sum_{z_1, \dots, z_D} \prod_{d=1}^D p(z_d \mid z_{\mathrm{pa}(d)})\, p(x_d \mid z_d)

    All sums are exact, also over missing entries (NaN), in a time of D K² for each row.

    Parameters
    ----------
    parents : sequence of int
        The node above each column's own, -1 for none: ``(D,)``.
    transition_logits : Tensor
        Logits of the state of each node given that above it, ``(D, K, K)``; without a node above row
        0 holds.
    emissions : TorchDistribution
        Independent columns under each state: batch shape ``(K,)``, events ``(D,)``.

    Raises
    ------
    ValueError
        If the parents are no tree, or sizes differ.
    TypeError
        If the columns of the emissions are not independent.

    References
    ----------
    Liu, Van den Broeck (2021), Tractable regularization of probabilistic circuits,
    https://arxiv.org/abs/2106.02264; Choi, Tan, Anandkumar, Willsky (2011), Learning latent tree
    graphical models, https://www.jmlr.org/papers/v12/choi11b.html

    >>> states = distributions.Categorical(torch.tensor([[[0.9, 0.1]] * 3, [[0.1, 0.9]] * 3]).log())
    >>> alike = torch.tensor([[9.0, 0.0], [0.0, 9.0]]).repeat(3, 1, 1)
    >>> alike[0] = 0.0
    >>> tree = HiddenTree([-1, 0, 0], alike, MissingAware(states, 1))
    >>> tree.log_prob(torch.tensor([[1.0, 1.0, 1.0], [1.0, torch.nan, torch.nan]])).exp()
    tensor([0.3649, 0.5000])
    """

    def __init__(
        self, parents: Sequence[int], transition_logits: Tensor, emissions: dist.TorchDistribution
    ):
        states = transition_logits.shape[-1]
        expected = ((len(parents), states, states), (states,), (len(parents),))
        given = (transition_logits.shape, emissions.batch_shape, emissions.event_shape)
        if tuple(map(tuple, given)) != expected:
            raise ValueError(
                f"expected logits {expected[0]} and emissions of batch shape {expected[1]} and event "
                f"shape {expected[2]} for {len(parents)} nodes, got {tuple(given[0])}, "
                f"{tuple(given[1])} and {tuple(given[2])}; give each column a node, and each state a "
                "distribution"
            )
        self.emissions: Any = emissions
        self.states = states
        self.parents = tuple(parents)
        self.log_tables = transition_logits.log_softmax(-1)
        self.entries = entries_of(emissions)
        self.tree = tuple(
            Depth(*(part.to(transition_logits.device) for part in depth))
            for depth in depths(tuple(parents))
        )
        super().__init__(torch.Size(), emissions.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.emissions.support

    @property
    def density_kind(self) -> str:
        return density_kind(self.emissions)

    @property
    def tables(self) -> Tensor:
        """Probabilities of states given the parent's, ``(D, K, K)``."""
        return self.log_tables.exp()

    @property
    def max_rows(self) -> int:
        """Rows whose messages to all nodes are made at once."""
        return max(1, AT_ONCE // (self.states * self.event_shape[0]))

    def log_prob(self, x: Tensor) -> Tensor:
        lead, rows = self._rows(x)
        if torch.is_grad_enabled() or len(rows) <= self.max_rows:
            return self.collect(rows).log_p.reshape(lead)
        blocks = [self.collect(block).log_p for block in rows.split(self.max_rows)]
        return torch.cat(blocks).reshape(lead)

    @property
    def order(self) -> list[int]:
        """The columns in the order of :meth:`predictions`, parents before those below them."""
        return tour(self.parents).order

    def predictions(self, rows: int) -> Generator[Tensor, Tensor, None]:
        r"""Log probabilities of the labels of each column given those before it, one after the other.

        .. math:: \log p(x_{o_t} = l \mid x_{o_1}, \dots, x_{o_{t-1}})

        as ``(rows, L)``, in the order of :attr:`order`; after each the column's labels ``(rows,)``
        are sent. The order walks along the edges of the tree, so that all columns together take a
        time of D K² for a row: what is behind the edge to a branch that is done is one message.

        Raises
        ------
        TypeError
            Unless the columns are labels.
        """
        if not isinstance(self.entries, distributions.Categorical):
            raise TypeError(
                f"expected columns of labels, got {type(self.entries).__name__}; build the tree with "
                "levels, or a CategoricalEmission"
            )
        tables = self.tables
        labels = self.entries.logits.permute(1, 0, 2).exp()  # (D, K, L)
        before: dict[int, Tensor] = {}  # of states given what was seen outside of the branch
        seen: dict[int, Tensor] = {}  # of what was seen in the branch given states, up to a factor
        for node, left in zip(*tour(self.parents), strict=True):
            for done in left:
                above = self.parents[done]
                if above >= 0:
                    seen[above] = _scaled(seen[above] * (seen.pop(done) @ tables[done].mT))
            above = self.parents[node]
            if above < 0:
                before[node] = tables[node, 0].expand(rows, -1)
            else:
                weights = before[above] * seen[above]
                weights = weights / weights.sum(-1, keepdim=True).clamp(min=SMALLEST)
                before[node] = weights @ tables[node]
            value = yield (before[node] @ labels[node]).clamp(min=SMALLEST).log()
            seen[node] = labels[node].mT[value.long()]

    def collect(self, rows: Tensor) -> Messages:
        """What rows ``(n, D)`` tell of the states."""
        return collect(scores_of(self.entries, rows), self.tables, self.tree)

    @torch.no_grad()
    def state_probabilities(self, x: Tensor) -> Tensor:
        r"""Probabilities of the states given the row, :math:`p(z_d \mid x)`.

        ``(*batch, D) -> (*batch, D, K)``.
        """
        tables = self.tables

        def found(rows: Tensor) -> Tensor:
            messages = self.collect(rows)
            check_possible(messages.log_p)
            out = rows.new_empty(rows.shape[1], len(rows), self.states)
            for depth, _, own in ratios(messages, tables, self.tree):
                out[depth.nodes] = own
            return out.movedim(0, 1)

        return self._in_blocks(found, x, self.max_rows)

    @torch.no_grad()
    def most_likely_states(self, x: Tensor) -> Tensor:
        r"""The states :math:`\arg\max_z p(z \mid x)`, all together: ``(*batch, D)``, integers."""
        return self._in_blocks(self._best_states, x, max(1, self.max_rows // self.states))

    def _best_states(self, rows: Tensor) -> Tensor:
        """By max-product messages, and back from the roots."""
        value = scores_of(self.entries, rows).clone()
        choice = torch.zeros(*value.shape, dtype=torch.long, device=rows.device)
        for place in reversed(range(len(self.tree))):
            nodes = self.tree[place].nodes
            joint = self.log_tables[nodes, None] + value[nodes].unsqueeze(-2)
            best, choice[nodes] = joint.max(-1)
            if place:
                value.index_add_(0, self.tree[place - 1].nodes[self.tree[place].above], best)
            else:
                check_possible(torch.where(best[..., 0].sum(0) > NEVER / 2, 0.0, -torch.inf))
        states = torch.zeros_like(choice[..., 0])
        above = states[:1]
        for depth in self.tree:
            above = choice[depth.nodes].gather(-1, above[depth.above][..., None])[..., 0]
            states[depth.nodes] = above
        return states.mT

    @torch.no_grad()
    def sample_states(self, x: Tensor, draws: int = 1) -> Tensor:
        r"""Independent draws of all states from :math:`p(z \mid x)`: ``(draws, *batch, D)``, integers."""

        def drawn(rows: Tensor) -> Tensor:
            messages = self.collect(rows)
            check_possible(messages.log_p)
            return self._draw_states(messages.own, draws).movedim(1, 0)

        found = self._in_blocks(drawn, x, max(1, self.max_rows // max(1, draws)))
        return found.movedim(-2, 0)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        nothing = [self.log_tables.new_ones(len(depth.nodes), 1, 1) for depth in self.tree]
        left = shape.numel()
        drawn = [self.log_tables.new_zeros(0, *self.event_shape)]
        while left:
            count = min(left, self.max_rows)
            drawn.append(self._emit(self._draw_states(nothing, count)[:, 0]))
            left -= count
        return torch.cat(drawn).reshape(*shape, *self.event_shape)

    @torch.no_grad()
    def complete(self, x: Tensor, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Exact draws of missing entries (NaN) given the others.

        ``(*batch, D) -> (*sample, *batch, D)``.
        """
        shape = torch.Size(sample_shape)
        states = self.sample_states(x, shape.numel())
        flat = states.reshape(-1, states.shape[-1])
        values = torch.cat([self._emit(part) for part in flat.split(self.max_rows)])
        lead, _ = self._rows(x)
        return torch.where(x.isnan(), values.reshape(*shape, *lead, *self.event_shape), x)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each entry given the observed ones, each ``(*batch, D)``."""
        weights = self.state_probabilities(x).mT  # (*batch, K, D)
        each = self.emissions.mean
        mean = (weights * each).sum(-2)
        spread = self.emissions.variance + (each - mean.unsqueeze(-2)).square()
        return mean, (weights * spread).sum(-2)

    @property
    def mean(self) -> Tensor:
        return self.moments(self.log_tables.new_full(self.shape(), torch.nan))[0]

    @property
    def variance(self) -> Tensor:
        return self.moments(self.log_tables.new_full(self.shape(), torch.nan))[1]

    def expected_counts(
        self, x: Tensor, weights: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        r"""By blocks of rows ``(n, D)``: the rows, their log densities ``(n,)``, transitions, states.

        Transitions are expected numbers :math:`\sum_b w_b\, p(z_{\mathrm{pa}} = j, z_d = k \mid x_b)`,
        ``(D, K, K)``; states :math:`w_b\, p(z_d = k \mid x_b)` as ``(K, n, D)``.
        """
        tables = self.tables
        shares = x.new_ones(len(x)) if weights is None else weights.to(x)
        for rows, share in zip(x.split(self.max_rows), shares.split(self.max_rows), strict=True):
            found = self.collect(rows)
            counts = torch.zeros_like(tables)
            states = tables.new_zeros(rows.shape[1], len(rows), self.states)
            for (depth, ratio, own), below in zip(
                ratios(found, tables, self.tree), found.own, strict=True
            ):
                counts[depth.nodes] = tables[depth.nodes] * ((ratio * share[:, None]).mT @ below)
                states[depth.nodes] = own * share[:, None]
            yield rows, found.log_p, counts, states.permute(2, 1, 0)

    def _draw_states(self, own: list[Tensor], draws: int) -> Tensor:
        """States given messages ``(nodes, n, K)`` by depth: ``(draws, n, D)``."""
        n = own[0].shape[1]
        tables = self.tables
        states = torch.zeros(len(tables), draws, n, dtype=torch.long, device=tables.device)
        above = states[:1]
        for depth, below in zip(self.tree, own, strict=True):
            chosen = tables[depth.nodes[:, None, None], above[depth.above]] * below[:, None]
            above = dist.Categorical(probs=chosen, validate_args=False).sample()
            states[depth.nodes] = above
        return states.movedim(0, -1)

    def _emit(self, states: Tensor) -> Tensor:
        """A draw of each column from the distribution of its state: ``(n, D) -> (n, D)``."""
        values = self.emissions.sample((len(states),))
        return values.take_along_dim(states[:, None], 1)[:, 0]

    def _rows(self, x: Tensor) -> tuple[torch.Size, Tensor]:
        check_event(x, self.event_shape)
        if values_are_known():
            check_values("x", x.reshape(-1, *self.event_shape), self.support)
        lead = self.lead(x)
        return lead, x.expand(lead + self.event_shape).reshape(-1, *self.event_shape)

    def _in_blocks(self, function: Callable[[Tensor], Tensor], x: Tensor, size: int) -> Tensor:
        """What a function makes of rows ``(n, D)``, some at a time: ``(*batch, ...)``."""
        lead, rows = self._rows(x)
        found = torch.cat([function(block) for block in rows.split(size)])
        return found.reshape(*lead, *found.shape[1:])


@conditional.register(HiddenTree)
def _(distribution: HiddenTree, x: Tensor, mask: Tensor) -> Completed:
    return Completed(distribution, x, mask)
