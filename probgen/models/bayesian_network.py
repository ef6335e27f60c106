"""Bayesian networks: directed acyclic graphs of conditional laws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import prod

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.core.missing import check_event
from probgen.core.module import DistributionModule
from probgen.distributions.criteria import aic, bic
from probgen.distributions.graphs.ancestral import Ancestral, Node, family_table
from probgen.distributions.graphs.directed_graph import Graph
from probgen.distributions.graphs.discrete_network import DiscreteNetwork
from probgen.distributions.graphs.factors import LIMIT
from probgen.distributions.graphs.linear_gaussian import expected_moments, network_law, regression
from probgen.distributions.graphs.nodes import LinearGaussian, Table
from probgen.distributions.graphs.states import checked_states, code, word
from probgen.distributions.support import check_columns

__all__ = ["BayesianNetwork", "LinearGaussian", "Table"]

_TABULATED = 2**20


class BayesianNetwork(DistributionModule):
    r"""Bayesian network: a directed acyclic graph whose nodes follow any laws given their parents.

    .. math:: p(x) = \prod_d p(x_d \mid x_{\mathrm{pa}(d)})

    The columns of x ``(*batch, D)`` are those of the nodes, in the order in which they are given.
    What is exact:

    - *All nodes discrete* (:class:`Table`, or any conditional whose support is finite, networks
      included): missing entries (NaN) are summed out by variable elimination, and ``impute``,
      :meth:`marginals`, :meth:`mode` follow.
    - *All nodes* :class:`LinearGaussian`: the joint law is normal, missing entries are integrated
      out.
    - *Mixed*: missing discrete entries are summed out; missing continuous ones only without
      observed descendants.

    Networks of tables and linear-Gaussian ones are fitted by :func:`probgen.em`, on complete rows
    in one step (the closed form); all of them by any objective.

    Parameters
    ----------
    conditionals : mapping of str to DistributionModule
        The law of each node, of events ``(size,)``, given the columns of its parents laid end to
        end.
    parents : mapping of str to sequence of str
        The parents of each node, if any. The parent ``"context"`` is the network's own context, and
        stands last.
    context : int
        Width of that context.
    limit : int
        Largest table, in entries per row of evidence, that an elimination may make.
    states : mapping of str to sequence of str, optional
        Names of the values 0, 1, ... of some nodes.

    Raises
    ------
    ValueError
        If the graph has a cycle (named) or unknown nodes; later, if an elimination would exceed
        ``limit``.

    References
    ----------
    Koller, Friedman (2009), Probabilistic Graphical Models

    >>> rain, wet = Table(2, probs=torch.tensor([0.8, 0.2])), torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    >>> network = BayesianNetwork({"rain": rain, "wet": Table(2, (2,), probs=wet)}, {"wet": ["rain"]})
    >>> network.marginals(network.row(wet=1.0))["rain"]
    tensor([[0.3077, 0.6923]])
    """

    def __init__(
        self,
        conditionals: Mapping[str, DistributionModule],
        parents: Mapping[str, Sequence[str]] | None = None,
        *,
        context: int = 0,
        limit: int = LIMIT,
        states: Mapping[str, Sequence[str]] | None = None,
    ):
        super().__init__()
        self.context_size, self.limit = context, limit
        self.graph = Graph.of(conditionals, parents or {}, context)
        self.states = checked_states(states or {}, self.graph)
        self.conditionals = nn.ModuleList(conditionals.values())
        self._linear = all(isinstance(part, LinearGaussian) for part in self.conditionals)
        self._check_tables()
        tables = all(isinstance(part, Table) for part in self.conditionals)
        discrete, sizes = (
            None not in self.graph.levels,
            (self.graph.shape(name) for name in conditionals),
        )
        self._tabular = discrete and (tables or sum(map(prod, sizes)) <= _TABULATED)

    @classmethod
    def from_tables(
        cls,
        tables: Mapping[str, Tensor],
        parents: Mapping[str, Sequence[str]],
        *,
        limit: int = LIMIT,
        states: Mapping[str, Sequence[str]] | None = None,
    ) -> BayesianNetwork:
        """A network of given probabilities ``(*levels of the parents, levels)``.

        As :func:`probgen.read_bif` gives.

        With the names of the ``states``, :meth:`row` takes them and :meth:`in_words` gives them
        back.
        """
        nodes = {name: Table(t.shape[-1], t.shape[:-1], probs=t) for name, t in tables.items()}
        return cls(nodes, parents, limit=limit, states=states)

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        batch = torch.Size() if context is None else context.shape[:-1]
        if self._linear:
            return self._normal(context)
        nodes = self._nodes(context)
        blank = next(self.parameters()).new_zeros(*batch, self.graph.width)
        if not self._tabular:
            return Ancestral(nodes, blank, self.limit)
        tables = [
            part.log_probs
            if isinstance(part, Table) and not node.own
            else family_table(nodes, index, blank)[0]
            for index, (part, node) in enumerate(zip(self.conditionals, nodes, strict=True))
        ]
        law = DiscreteNetwork(tables, [node.parents for node in nodes], self.limit)
        return law if law.batch_shape == batch else law.expand(batch)

    @property
    def tables(self) -> dict[str, Tensor]:
        """Probabilities of a network of tables, ``(*levels of the parents, levels)`` each.

        As BIF files hold them.
        """
        self._check_em()
        return {
            n: part.log_probs.detach().exp()
            for n, part in zip(self.graph.names, self.conditionals, strict=True)
        }

    @property
    def free_parameters(self) -> int:
        """How many numbers the likelihood determines.

        Rows of a table sum to 1; what does not train is left out.
        """
        self._check_em()
        return sum(part.free_parameters for part in self.conditionals)

    aic, bic = aic, bic

    def row(self, **values: float | str) -> Tensor:
        """One row ``(1, D)`` with these values, or states by name, of some nodes.

        All others missing (NaN).

        >>> BayesianNetwork({"rain": Table(2)}, states={"rain": ("no", "yes")}).row(rain="yes")
        tensor([[1.]])
        """
        x = next(self.parameters()).new_full((1, self.graph.width), torch.nan)
        for name, value in values.items():
            place = self.graph.columns[self.graph.index(name)]
            x[:, place] = code(self.states, name, value) if isinstance(value, str) else value
        return x

    def in_words(self, x: Tensor) -> list[dict[str, str | float | None]]:
        """Rows ``(n, D)``, such as :meth:`mode` or ``impute`` give, with states by name.

        ``None`` where missing.

        >>> network = BayesianNetwork({"rain": Table(2), "n": Table(3)}, states={"rain": ("no", "yes")})
        >>> network.in_words(torch.tensor([[1.0, 2.0], [torch.nan, 0.0]]))
        [{'rain': 'yes', 'n': 2.0}, {'rain': None, 'n': 0.0}]
        """
        check_event(x, torch.Size((self.graph.width,)))
        places = [
            (name, column.start)
            for name, column in zip(self.graph.names, self.graph.columns, strict=True)
        ]
        rows = x.reshape(-1, self.graph.width).tolist()
        return [
            {name: word(self.states.get(name), row[place]) for name, place in places}
            for row in rows
        ]

    @torch.no_grad()
    def marginals(
        self, x: Tensor, context: Tensor | None = None, *, nodes: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Probabilities of each discrete node's values given the observed entries.

        ``(*batch, D) -> (*batch, K)``.

        Where only some ``nodes`` are asked for, what is neither above them nor above an observed
        entry costs nothing.
        """
        if nodes is not None:
            return {name: self.joint(x, name, context=context) for name in nodes}
        found = self._discrete(context).marginals(x)
        return {
            name: found[..., i, :k]
            for i, (name, k) in enumerate(zip(self.graph.names, self.graph.levels, strict=True))
        }

    @torch.no_grad()
    def joint(self, x: Tensor, *nodes: str, context: Tensor | None = None) -> Tensor:
        """Probabilities of all combinations of some nodes' values given the observed entries.

        ``(*batch, *levels)``.

        >>> coins = BayesianNetwork({"a": Table(2), "b": Table(2)})
        >>> coins.joint(coins.row(b=1.0), "a", "b")
        tensor([[[0.0000, 0.5000],
                 [0.0000, 0.5000]]])
        """
        return self._discrete(context).joint_given(x, [self.graph.index(name) for name in nodes])

    @torch.no_grad()
    def mode(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The most probable values of all missing entries together.

        ``(*batch, D) -> (*batch, D)``.
        """
        return self._discrete(context).mode_given(x)

    def expect(self, x: Tensor, weights: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """E-step on rows ``(n, D)``, NaN = missing.

        log-likelihood, and expected counts or moments.
        """
        self._check_em()
        if self._linear:
            return expected_moments(self(), x, weights)
        value, counts = self().expected_counts(x, weights)
        return value, dict(zip(self.graph.names, counts, strict=True))

    @torch.no_grad()
    def maximise(self, statistics: dict[str, Tensor]) -> None:
        """M-step: shares of the counts, or regressions of each node on its parents."""
        centre = self().loc.double() if self._linear else None
        for index, (name, part) in enumerate(zip(self.graph.names, self.conditionals, strict=True)):
            if centre is None:
                part.maximise(statistics[name])
            else:
                part.maximise(
                    *regression(statistics, centre, index, self.graph.above(name), *part.given)
                )

    def penalty(self, statistics: dict[str, Tensor]) -> Tensor | float:
        """What pseudo-counts make the M-step subtract from the log-likelihood."""
        return sum(part.penalty() for part in self.conditionals if isinstance(part, Table))

    @torch.no_grad()
    def initialise(
        self, x: Tensor, generator: torch.Generator | None = None, weights: Tensor | None = None
    ) -> None:
        """Random tables, equal where nothing is seen.

        Or the columns' means and scales, with small random weights.
        """
        self._check_em()
        x = x.to(next(self.parameters()).device)
        if self._linear:
            return self._initialise_linear(x, generator)
        for part in self.conditionals:
            part.initialise(generator)
        for part, counts in zip(
            self.conditionals, self().expected_counts(x, weights)[1], strict=True
        ):
            part.forget(counts.sum(-1) == 0)

    def _initialise_linear(self, x: Tensor, generator: torch.Generator | None) -> None:
        check_columns(x)
        centre = x.double().nanmean(0)
        variance = (x - centre).square().nanmean(0)
        for index, (name, part) in enumerate(zip(self.graph.names, self.conditionals, strict=True)):
            part.initialise(
                centre[index], centre[list(self.graph.above(name))], variance[index], generator
            )

    def _check_em(self) -> None:
        tables = all(isinstance(part, Table) for part in self.conditionals)
        if self.graph.conditioned(*self.graph.names) or not (self._linear or tables):
            raise ValueError(
                "expected a network of tables, or of linear-Gaussian nodes, without a context; use fit"
            )

    def _discrete(self, context: Tensor | None) -> DiscreteNetwork:
        if not self._tabular:
            raise ValueError(
                f"expected a network of discrete nodes with at most {_TABULATED:,} entries in all tables, got levels "
                f"{self.graph.levels}; average draws of impute(network, x) instead"
            )
        return self(context)

    def _normal(self, context: Tensor | None) -> dist.TorchDistribution:
        above = [self.graph.above(name) for name in self.graph.names]
        law = network_law(
            [(part.weight, part.bias, part.log_scale) for part in self.conditionals], above, context
        )
        return law if context is None else law.expand(context.shape[:-1])

    def _nodes(self, context: Tensor | None) -> list[Node]:
        graph, nodes = self.graph, []
        for index, (name, part) in enumerate(zip(graph.names, self.conditionals, strict=True)):
            own = graph.conditioned(name)
            law = partial(self._law, part, context if own else None)
            nodes.append(
                Node(law, graph.above(name), graph.columns[index], graph.levels[index], own, name)
            )
        return nodes

    @staticmethod
    def _law(
        part: DistributionModule, context: Tensor | None, values: Tensor
    ) -> dist.TorchDistribution:
        if context is not None:
            values = torch.cat([values, context.expand(*values.shape[:-1], -1)], -1)
        return part(values) if values.shape[-1] else part()

    def _check_tables(self) -> None:
        for name, part in zip(self.graph.names, self.conditionals, strict=True):
            shape = self.graph.shape(name)
            if (
                isinstance(part, Table)
                and not self.graph.conditioned(name)
                and part.logits.shape != shape
            ):
                raise ValueError(
                    f"expected a table of shape {shape} at '{name}' (levels of its parents, its own; None: not discrete"
                    f"), got {tuple(part.logits.shape)}; give Table the levels of {self.graph.parents[name]}"
                )
