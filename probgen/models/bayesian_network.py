"""Bayesian networks: directed acyclic graphs of conditional distributions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import batch_of, for_each_context
from probgen.core.keywords import explained_by
from probgen.core.missing import check_event
from probgen.core.module import DistributionModule
from probgen.distributions.criteria import aic, bic
from probgen.distributions.graphical.ancestral import DirectedDistribution, GraphNode, family_table
from probgen.distributions.graphical.answers import Marginals
from probgen.distributions.graphical.directed_graph import CONTEXT, Graph, check_graph
from probgen.distributions.graphical.discrete_network import DiscreteNetwork
from probgen.distributions.graphical.evidence import (
    Likelihood,
    as_likelihoods,
    check_rows,
    fitted_likelihoods,
)
from probgen.distributions.graphical.factors import LIMIT, VariableNames
from probgen.distributions.graphical.given import Given
from probgen.distributions.graphical.linear_gaussian import (
    expected_moments,
    network_distribution,
    regression,
)
from probgen.distributions.graphical.nodes import LinearGaussian, ProbabilityTable
from probgen.distributions.graphical.separation import separated
from probgen.distributions.graphical.states import (
    checked_states,
    decoded,
    encoded,
    packed,
    unpacked,
)
from probgen.distributions.support import check_columns

__all__ = ["BayesianNetwork", "LinearGaussian", "ProbabilityTable"]

_TABULATED = 2**20
_asked = explained_by("give what is known as rows: x=network.row({word}=...)")


class BayesianNetwork(DistributionModule):
    r"""Bayesian network.

    A directed acyclic graph whose nodes follow any distributions given their parents.

    .. math:: p(x) = \prod_d p(x_d \mid x_{\mathrm{pa}(d)})

    The columns of x ``(*batch, D)`` are those of the nodes, in the order in which they are given.
    What is exact:

    - *All nodes discrete* (:class:`ProbabilityTable`, or any conditional whose support is finite, networks
      included): missing entries (NaN) are summed out by variable elimination, and ``impute``,
      :meth:`marginals`, :meth:`mode` follow.
    - *All nodes* :class:`LinearGaussian`: the joint distribution is normal, missing entries are
      integrated out.
    - *Mixed*: missing discrete entries are summed out; missing continuous ones only without
      observed descendants.

    Questions are rows with NaN where nothing is known (:meth:`row`, :meth:`rows`). Uncertain
    findings are likelihoods of the states of a node beside the row: ``marginals(row,
    likelihood={"wet": [0.2, 0.9]})``; :meth:`given` makes them a model, which is sampled, imputed
    and scored like any other.

    Networks of tables and linear-Gaussian ones are fitted by :func:`probgen.em`, on complete rows
    in one step (the closed form); all of them by any objective.

    Parameters
    ----------
    conditionals : mapping of str to DistributionModule
        The distribution of each node, of events ``(size,)``, given the columns of its parents laid
        end to end.
    parents : mapping of str to sequence of str
        The parents of each node, if any. The parent ``"context"`` is the network's own context, and
        stands last.
    context : int
        Width of that context.
    limit : int
        Largest table, in entries per row of evidence, that an elimination may make.
    states : mapping of str to sequence of str, optional
        Names of the values 0, 1, ... of some nodes. A checkpoint holds them beside the tables.

    Raises
    ------
    ValueError
        If the graph has a cycle (named) or unknown nodes; later, if an elimination would exceed
        ``limit``.

    References
    ----------
    Koller, Friedman (2009), Probabilistic Graphical Models

    >>> rain, wet = ProbabilityTable(2, probs=torch.tensor([0.8, 0.2])), torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    >>> network = BayesianNetwork({"rain": rain, "wet": ProbabilityTable(2, (2,), probs=wet)}, {"wet": ["rain"]})
    >>> network.marginals(network.row(wet=1.0))["rain"]
    tensor([[0.3077, 0.6923]])
    """

    names_columns = True  # tables are read by the names of the nodes
    conditionals: Any  # nn.ModuleList of what is given, in the order of the nodes

    def __init__(
        self,
        conditionals: Mapping[str, DistributionModule],
        parents: Mapping[str, Sequence[str]] | None = None,
        *,
        context: int = 0,
        limit: int = LIMIT,
        states: Mapping[str, Sequence[str]] | None = None,
    ):
        checks.mapping(conditionals=conditionals, **checks.given(parents=parents, states=states))
        checks.at_least(0, context=context)
        checks.at_least(1, limit=limit)
        named = {f"conditionals[{name!r}]": part for name, part in conditionals.items()}
        checks.instance(nn.Module, "pass a ProbabilityTable, a LinearGaussian or a head", **named)
        super().__init__()
        self.context_size = context
        self.limit = limit
        check_graph(tuple(conditionals), parents or {})
        _check_dims(conditionals, parents or {})
        self.graph = Graph.of(conditionals, parents or {}, context)
        self.states = checked_states(states or {}, self.graph)
        if self.states:
            self.register_buffer("state_names", packed(self.states))
            self.register_load_state_dict_post_hook(_states_as_loaded)
        self.conditionals = nn.ModuleList(conditionals.values())
        self._linear = all(isinstance(part, LinearGaussian) for part in self.conditionals)
        self._check_tables()
        tables = all(isinstance(part, ProbabilityTable) for part in self.conditionals)
        discrete = None not in self.graph.levels
        sizes: Iterable[Any] = (self.graph.shape(name) for name in conditionals)
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

        As :func:`probgen.graphical.read_bif` gives.

        With the names of the ``states``, :meth:`row` and :meth:`rows` take them and
        :meth:`names_of` gives them back. Tables that are no probabilities are refused by name.
        """
        nodes = {name: _table_of(name, table) for name, table in tables.items()}
        return cls(nodes, parents, limit=limit, states=states)

    @classmethod
    def of_states(
        cls,
        states: Mapping[str, int | Sequence[str]],
        parents: Mapping[str, Sequence[str]] | None = None,
        *,
        pseudo_count: float = 0.0,
        equivalent_sample_size: float | None = None,
        limit: int = LIMIT,
    ) -> BayesianNetwork:
        """A network of tables that are not known yet, for :func:`probgen.em` to count.

        Parameters
        ----------
        states : mapping of str to int or sequence of str
            The states of each node by name, or how many there are.
        pseudo_count, equivalent_sample_size : float
            What every table gets, see :class:`ProbabilityTable`.

        >>> from probgen.infer.em import em
        >>> network = BayesianNetwork.of_states(
        ...     {"rain": ("no", "yes"), "wet": 2}, {"wet": ["rain"]}, equivalent_sample_size=4.0
        ... )
        >>> _ = em(network, network.rows({"rain": ["yes", "yes"], "wet": [1, 1]}))
        >>> network.tables["wet"]                        # one pseudo-count for each of four entries
        tensor([[0.5000, 0.5000],
                [0.2500, 0.7500]])
        """
        checks.mapping(states=states, **checks.given(parents=parents))
        levels = {name: k if isinstance(k, int) else len(k) for name, k in states.items()}
        check_graph(tuple(levels), parents or {})
        own: dict[str, Any] = {
            "pseudo_count": pseudo_count,
            "equivalent_sample_size": equivalent_sample_size,
        }
        nodes = {
            name: ProbabilityTable(k, [levels[p] for p in (parents or {}).get(name, ())], **own)
            for name, k in levels.items()
        }
        named = {name: words for name, words in states.items() if not isinstance(words, int)}
        return cls(nodes, parents, limit=limit, states=named)

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        batch = batch_of(context)
        if self._linear:
            return self._normal(context)
        nodes = self._nodes(context)
        blank = next(self.parameters()).new_zeros(*batch, self.graph.width)
        if not self._tabular:
            return DirectedDistribution(nodes, blank, self.limit)
        tables = [
            part.log_probs
            if isinstance(part, ProbabilityTable) and not node.own
            else family_table(nodes, index, blank)[0]
            for index, (part, node) in enumerate(zip(self.conditionals, nodes, strict=True))
        ]
        distribution = DiscreteNetwork(
            tables, [node.parents for node in nodes], self.limit, self._factor_labels
        )
        return distribution if distribution.batch_shape == batch else distribution.expand(batch)

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
    def parents(self) -> dict[str, tuple[str, ...]]:
        """The parents of each node; the network's own context stands last."""
        return self.graph.parents

    @property
    def free_parameters(self) -> int:
        """Number of free parameters.

        Rows of a table sum to 1; what does not train is left out.
        """
        self._check_em()
        return sum(part.free_parameters for part in self.conditionals)

    aic = aic
    bic = bic

    @property
    def labels(self) -> dict[str, dict[str, list[str]]]:
        """What :func:`probgen.to_arviz` calls the columns: ``to_arviz(gen, x, **gen.labels)``.

        >>> BayesianNetwork({"a": ProbabilityTable(2), "b": ProbabilityTable(2)}).labels
        {'coords': {'node': ['a', 'b']}, 'dims': {'x': ['node']}}
        """
        pairs = list(zip(self.graph.names, self.graph.columns, strict=True))
        names = [
            name if column.stop - column.start == 1 else f"{name}[{place - column.start}]"
            for name, column in pairs
            for place in range(column.start, column.stop)
        ]
        return {"coords": {"node": names}, "dims": {"x": ["node"]}}

    def row(self, **values: float | str | Tensor | None) -> Tensor:
        """One row ``(1, D)`` with these values, or states by name, of some nodes.

        All others missing (NaN). Names that are no identifiers come as ``row(**{"a b": 1.0})``.

        Raises
        ------
        ValueError
            For nodes and states that there are not.

        >>> BayesianNetwork({"rain": ProbabilityTable(2)}, states={"rain": ("no", "yes")}).row(rain="yes")
        tensor([[1.]])
        """
        columns = {name: [value] for name, value in values.items()}
        return self.rows(columns or {self.graph.names[0]: [None]})

    def rows(self, table: Any) -> Tensor:
        """Rows ``(n, D)`` of a table whose columns are nodes: states by name, numbers as they are.

        Columns that it lacks, and ``None``, NaN and NA in it, are missing (NaN).

        Parameters
        ----------
        table : mapping of str to sequence, data frame, or sequence of mappings
            ``{"rain": ["yes", None], "n": [0, 2]}``; a frame of pandas, Polars or Arrow; or
            ``[{"rain": "yes"}, {"n": 2}]``.

        Raises
        ------
        ValueError
            For nodes and states that there are not, and columns of different lengths.
        TypeError
            For what is no table.

        >>> nodes = {"rain": ProbabilityTable(2), "n": ProbabilityTable(3)}
        >>> network = BayesianNetwork(nodes, states={"rain": ("no", "yes")})
        >>> network.rows({"rain": ["yes", None], "n": [0, 2]})
        tensor([[1., 0.],
                [nan, 2.]])
        """
        return encoded(table, self.graph, self.states, next(self.parameters()))

    def names_of(self, x: Tensor) -> dict[str, list]:
        """Columns by name of rows ``(*batch, D)``, such as ``mode``, ``impute`` and draws give.

        States by name (codes where they have none), ``None`` where missing; the inverse of
        :meth:`rows`, and what ``pandas.DataFrame`` takes.

        Raises
        ------
        ValueError
            For numbers that are no codes (means of draws).

        >>> nodes = {"rain": ProbabilityTable(2), "n": ProbabilityTable(3)}
        >>> network = BayesianNetwork(nodes, states={"rain": ("no", "yes")})
        >>> network.names_of(torch.tensor([[1.0, 2.0], [torch.nan, 0.0]]))
        {'rain': ['yes', None], 'n': [2, 0]}
        """
        check_event(x, torch.Size((self.graph.width,)))
        return decoded(x, self.graph, self.states)

    @_asked
    @torch.no_grad()
    def marginals(
        self,
        x: Tensor | None = None,
        context: Tensor | None = None,
        *,
        nodes: Sequence[str] | None = None,
        likelihood: Likelihood | None = None,
    ) -> Marginals:
        r"""Probabilities of each discrete node's values given the observed entries.

        ``(*batch, D) -> (*batch, K)`` by the names of nodes; ``found["rain", "yes"]`` is that of
        one state, ``(*batch,)``. Without ``x`` nothing is observed: one row of prior marginals.

        Parameters
        ----------
        nodes : sequence of str, optional
            Where only some are asked for, what is neither above them nor above an observed entry
            costs nothing.
        likelihood : mapping of str to Tensor, sequence or mapping, optional
            Uncertain findings: for some nodes :math:`p(\text{finding} \mid \text{state})` of each
            of their states, ``(K,)`` or one row each ``(*batch, K)``, or by the names of states.
            Only their ratios matter. What is certain is 0 elsewhere, what says nothing is 1
            everywhere. This is Pearl's virtual evidence; where instead the *marginal* of a node is
            known, :meth:`soft_evidence` finds its likelihood.

        Raises
        ------
        ValueError
            If what is observed is impossible; it names observations that exclude each other.

        References
        ----------
        Pearl (1988), Probabilistic Reasoning in Intelligent Systems; Chan, Darwiche (2005), On the
        revision of probabilistic beliefs using uncertain evidence,
        https://doi.org/10.1016/j.artint.2004.09.005

        >>> rain, wet = torch.tensor([0.8, 0.2]), torch.tensor([[0.9, 0.1], [0.1, 0.9]])
        >>> network = BayesianNetwork.from_tables({"rain": rain, "wet": wet}, {"wet": ["rain"]})
        >>> network.marginals(network.row(), likelihood={"wet": [0.2, 0.8]})["rain"]
        tensor([[0.5843, 0.4157]])
        """
        if nodes is not None:
            asked = {
                name: self.joint(x, name, context=context, likelihood=likelihood) for name in nodes
            }
            return Marginals(asked, self.states)
        x = self._as_rows(x)
        found = self._discrete(context, x, likelihood).marginals(x)
        pairs = enumerate(zip(self.graph.names, self.graph.levels, strict=True))
        return Marginals({name: found[..., i, :k] for i, (name, k) in pairs}, self.states)

    @_asked
    @torch.no_grad()
    def joint(
        self,
        x: Tensor | None = None,
        *nodes: str,
        context: Tensor | None = None,
        likelihood: Likelihood | None = None,
    ) -> Tensor:
        """Probabilities of all combinations of some nodes' values given the observed entries.

        ``(*batch, *levels)``; for ``likelihood`` see :meth:`marginals`.

        >>> coins = BayesianNetwork({"a": ProbabilityTable(2), "b": ProbabilityTable(2)})
        >>> coins.joint(coins.row(b=1.0), "a", "b")
        tensor([[[0.0000, 0.5000],
                 [0.0000, 0.5000]]])
        """
        x = self._as_rows(x)
        if not all(isinstance(name, str) for name in nodes):
            raise TypeError(
                f"expected names of nodes one by one, got {nodes}; give network.joint(x, "
                f"{', '.join(map(repr, self.graph.names[:2]))})"
            )
        if not nodes or len(set(nodes)) < len(nodes):
            raise ValueError(f"expected one node or more, each once, got {nodes}; name them")
        distribution = self._discrete(context, x, likelihood)
        return distribution.joint_given(x, [self.graph.index(name) for name in nodes])

    @_asked
    def probability(
        self,
        x: Tensor | None = None,
        event: Mapping[str, float | str] | None = None,
        context: Tensor | None = None,
        *,
        likelihood: Likelihood | None = None,
    ) -> Tensor:
        """Probability that some nodes have these values given the observed entries.

        ``(*batch, D) -> (*batch,)``; for ``likelihood`` see :meth:`marginals`.

        >>> rain, wet = torch.tensor([0.8, 0.2]), torch.tensor([[0.9, 0.1], [0.1, 0.9]])
        >>> network = BayesianNetwork.from_tables({"rain": rain, "wet": wet}, {"wet": ["rain"]})
        >>> network.probability(network.row(wet=1), {"rain": 1})
        tensor([0.6923])
        """
        asked = self._event(event)
        table = self.joint(x, *asked, context=context, likelihood=likelihood)
        place: tuple[Any, ...] = (..., *asked.values())
        return table[place]

    def _event(self, event: Any) -> dict[str, int]:
        """The values of an event by the names of its nodes; refuses what is none."""
        name = self.graph.names[0]
        how = f"give network.probability(x, {{{name!r}: 1}})"
        if not isinstance(event, Mapping) or not event:
            got = event if event is None or isinstance(event, Mapping) else type(event).__name__
            raise TypeError(f"expected an event, values of nodes by their names, got {got}; {how}")
        values = self.row(**event)[0]
        codes = {name: values[self.graph.columns[self.graph.index(name)]] for name in event}
        for name, code in codes.items():
            if code.isnan():
                raise ValueError(
                    f"expected a value of node {name!r} in the event, got {event[name]}; leave the "
                    f"node out, {how}"
                )
        return {name: int(code) for name, code in codes.items()}

    @_asked
    @torch.no_grad()
    def log_evidence(
        self,
        x: Tensor | None = None,
        context: Tensor | None = None,
        *,
        likelihood: Likelihood | None = None,
    ) -> Tensor:
        r"""Log probability of all that is known, :math:`\log p(x_o, e)`, in nats.

        ``(*batch, D) -> (*batch,)``; minus infinity where it is impossible. Unlike other answers it
        depends on the scale of a ``likelihood`` (see :meth:`marginals`).
        """
        x = self._as_rows(x)
        return self._discrete(context, x, likelihood).log_product(x)

    @_asked
    @torch.no_grad()
    def mode(
        self,
        x: Tensor | None = None,
        context: Tensor | None = None,
        *,
        likelihood: Likelihood | None = None,
    ) -> Tensor:
        """The most probable values of all missing entries together, all of them without ``x``.

        ``(*batch, D) -> (*batch, D)``; for ``likelihood`` see :meth:`marginals`.
        """
        x = self._as_rows(x)
        return self._discrete(context, x, likelihood).mode_given(x)

    def given(self, likelihood: Likelihood) -> Given:
        """The network given uncertain findings, as a model.

        ``sample``, ``impute`` and ``log_likelihood`` take it like any other; for ``likelihood`` see
        :meth:`marginals`. It shares its tables with this network.

        >>> coin = BayesianNetwork({"a": ProbabilityTable(2)})
        >>> coin.given({"a": [0.9, 0.1]})().log_prob(coin.row(a=0)).exp()
        tensor([0.9000], grad_fn=<ExpBackward0>)
        """
        found = as_likelihoods(likelihood, self.graph, self.states, next(self.parameters()))
        return Given(self, {self.graph.index(name): value for name, value in found.items()})

    def soft_evidence(
        self,
        x: Tensor,
        marginals: Likelihood,
        context: Tensor | None = None,
        *,
        max_iter: int = 200,
        tol: float = 1e-5,
    ) -> dict[str, Tensor]:
        """Likelihoods under which some nodes have given marginals, beside what rows observe.

        Jeffrey's rule: "rain is now 70 % probable" tells the outcome, whatever was known before;
        the likelihood "what I saw is 7 to 3 for rain" tells what was seen, and is weighed against
        what was known. Several nodes are fitted in turn until all of the marginals hold.

        Parameters
        ----------
        marginals : mapping of str to Tensor, sequence or mapping
            Probabilities of the states of some nodes, ``(K,)`` or ``(*batch, K)``, or by name.
        max_iter : int
            Largest number of rounds over these nodes.
        tol : float
            Largest difference from the marginals.

        Returns
        -------
        dict of str to Tensor
            What ``likelihood`` takes.

        Raises
        ------
        ValueError
            If the marginals cannot hold.

        References
        ----------
        Chan, Darwiche (2005), On the revision of probabilistic beliefs using uncertain evidence,
        https://doi.org/10.1016/j.artint.2004.09.005

        >>> rain, wet = torch.tensor([0.8, 0.2]), torch.tensor([[0.9, 0.1], [0.1, 0.9]])
        >>> network = BayesianNetwork.from_tables({"rain": rain, "wet": wet}, {"wet": ["rain"]})
        >>> found = network.soft_evidence(network.row(), {"rain": [0.3, 0.7]})
        >>> network.marginals(network.row(), likelihood=found)["wet"]
        tensor([[0.3400, 0.6600]])
        """
        targets = as_likelihoods(marginals, self.graph, self.states, next(self.parameters()))
        x = self._as_rows(x)
        check_rows(targets, x.shape[:-1])
        for name, value in targets.items():
            if not ((value.sum(-1) - 1).abs() < 1e-3).all():
                raise ValueError(
                    f"expected a marginal of '{name}' that sums to 1, got {value.tolist()}; "
                    "what needs no sum is a likelihood"
                )
        targets = {
            name: (value / value.sum(-1, keepdim=True)).expand(*x.shape[:-1], -1)
            for name, value in targets.items()
        }

        def reached(likelihood: dict[str, Tensor]) -> Marginals:
            return self.marginals(x, context, nodes=list(targets), likelihood=likelihood)

        return fitted_likelihoods(reached, targets, max_iter=max_iter, tol=tol)

    def independent(self, first: str, second: str, given: Sequence[str] = ()) -> bool:
        """Whether the graph makes two nodes independent given others (d-separation).

        It reads arrows alone: tables may hide a dependence that the graph allows, never one that it
        forbids.

        >>> rain, wet = torch.tensor([0.8, 0.2]), torch.tensor([[0.9, 0.1], [0.1, 0.9]])
        >>> tables = {"rain": rain, "wet": wet, "slip": wet}
        >>> network = BayesianNetwork.from_tables(tables, {"wet": ["rain"], "slip": ["wet"]})
        >>> network.independent("rain", "slip"), network.independent("rain", "slip", ["wet"])
        (False, True)
        """
        checks.texts(given=given)
        for name in (first, second, *given):
            self.graph.index(name)
        if first == second or {first, second} & set(given):
            raise ValueError(
                f"expected two nodes and others given, got '{first}', '{second}' and "
                f"{tuple(given)}; "
                "name each once"
            )
        parents = {
            name: [parent for parent in above if parent != CONTEXT]
            for name, above in self.parents.items()
        }
        return separated(parents, {first}, {second}, given)

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
    def maximize(self, statistics: dict[str, Tensor]) -> None:
        """M-step: shares of the counts, or regressions of each node on its parents."""
        center = self().loc.double() if self._linear else None
        for index, (name, part) in enumerate(zip(self.graph.names, self.conditionals, strict=True)):
            if center is None:
                part.maximize(statistics[name])
            else:
                above = self.graph.above(name)
                weight, bias = part.given
                names = self.graph.names
                found = regression(statistics, center, index, above, weight, bias, names)
                part.maximize(*found)

    def penalty(self, statistics: dict[str, Tensor]) -> Tensor | float:
        """What pseudo-counts make the M-step subtract from the log-likelihood."""
        return sum(
            part.penalty() for part in self.conditionals if isinstance(part, ProbabilityTable)
        )

    @torch.no_grad()
    def initialize(
        self, x: Tensor, generator: torch.Generator | None = None, weights: Tensor | None = None
    ) -> None:
        """Random tables, equal where nothing is seen.

        Or the columns' means and scales, with small random weights.
        """
        self._check_em()
        x = x.to(next(self.parameters()).device)
        if self._linear:
            return self._initialize_linear(x, generator)
        for part in self.conditionals:
            part.initialize(generator)
        for part, counts in zip(
            self.conditionals, self().expected_counts(x, weights)[1], strict=True
        ):
            part.forget(counts.sum(-1) == 0)

    def _initialize_linear(self, x: Tensor, generator: torch.Generator | None) -> None:
        check_columns(x, names=self.graph.names)
        center = x.double().nanmean(0)
        variance = (x - center).square().nanmean(0)
        for index, (name, part) in enumerate(zip(self.graph.names, self.conditionals, strict=True)):
            part.initialize(
                center[index], center[list(self.graph.above(name))], variance[index], generator
            )

    def _check_em(self) -> None:
        tables = all(isinstance(part, ProbabilityTable) for part in self.conditionals)
        if self.graph.conditioned(*self.graph.names) or not (self._linear or tables):
            raise ValueError(
                "expected a network of tables, or of linear-Gaussian nodes, without a context; use "
                "fit"
            )

    def _as_rows(self, x: Any) -> Tensor:
        """Rows as tensors; tables by names are encoded, and of none there is one that is missing."""
        if x is None:
            return self.row()
        if isinstance(x, str):
            raise TypeError(
                f"expected rows x, got the name {x!r}; give what is known first: network.row() "
                "if nothing is"
            )
        x = self.settle((x,))[0] if type(x).__module__ == "numpy" else x
        return x if isinstance(x, Tensor) else self.rows(x)

    def _discrete(
        self, context: Tensor | None, x: Tensor, likelihood: Likelihood | None = None
    ) -> DiscreteNetwork:
        """The distribution that answers questions about rows."""
        if not self._tabular:
            raise ValueError(
                f"expected a network of discrete nodes with at most {_TABULATED:,} entries in all "
                "tables, got levels "
                f"{self.graph.levels}; average draws of impute(network, x) instead"
            )
        distribution = self(context)
        if not likelihood:
            return distribution
        found = as_likelihoods(likelihood, self.graph, self.states, distribution.factors.tables[0])
        check_rows(found, torch.broadcast_shapes(x.shape[:-1], distribution.batch_shape))
        return distribution.given(
            {self.graph.index(name): value.log() for name, value in found.items()}
        )

    @property
    def _factor_labels(self) -> VariableNames:
        return VariableNames(self.graph.names, tuple(map(self.states.get, self.graph.names)))

    def _normal(self, context: Tensor | None) -> dist.TorchDistribution:
        above = [self.graph.above(name) for name in self.graph.names]
        distribution = network_distribution(
            [(part.weight, part.bias, part.log_scale) for part in self.conditionals], above, context
        )
        return for_each_context(distribution, context)

    def _nodes(self, context: Tensor | None) -> list[GraphNode]:
        graph = self.graph
        nodes = []
        for index, (name, part) in enumerate(zip(graph.names, self.conditionals, strict=True)):
            own = graph.conditioned(name)
            distribution = partial(self._distribution, part, context if own else None)
            nodes.append(
                GraphNode(
                    distribution,
                    graph.above(name),
                    graph.columns[index],
                    graph.levels[index],
                    own,
                    name,
                )
            )
        return nodes

    @staticmethod
    def _distribution(
        part: DistributionModule, context: Tensor | None, values: Tensor
    ) -> dist.TorchDistribution:
        if context is not None:
            values = torch.cat([values, context.expand(*values.shape[:-1], -1)], -1)
        return part(values) if values.shape[-1] else part()

    def _check_tables(self) -> None:
        for name, part in zip(self.graph.names, self.conditionals, strict=True):
            shape = self.graph.shape(name)
            if (
                isinstance(part, ProbabilityTable)
                and not self.graph.conditioned(name)
                and part.logits.shape != shape
            ):
                raise ValueError(
                    f"expected a table of shape {shape} at '{name}' (levels of its parents, its "
                    "own; None: not discrete"
                    f"), got {tuple(part.logits.shape)}; give ProbabilityTable the levels of "
                    f"{self.graph.parents[name]}"
                )


def _check_dims(
    conditionals: Mapping[str, nn.Module], parents: Mapping[str, Sequence[str]]
) -> None:
    """Refuses tables of other dims than their parents, before anything is read off them."""
    for name, part in conditionals.items():
        above = tuple(parents.get(name, ()))
        if (
            isinstance(part, ProbabilityTable)
            and CONTEXT not in above
            and part.logits.ndim != len(above) + 1
        ):
            raise ValueError(
                f"expected a table of {len(above) + 1} dims at '{name}', those of its parents "
                f"{above} and its own, got one of shape {tuple(part.logits.shape)}; give a "
                "probability of each value for each combination of the parents' values"
            )


def _table_of(name: str, table: Any) -> ProbabilityTable:
    """A node of given probabilities; what is wrong with them is told with its name."""
    probs = table if isinstance(table, Tensor) else torch.as_tensor(table)
    try:
        if probs.ndim == 0:
            raise ValueError(f"expected one probability for each value, got {probs.item():g}")
        return ProbabilityTable(probs.shape[-1], probs.shape[:-1], probs=probs)
    except ValueError as error:
        raise ValueError(f"table of '{name}': {error}") from None


def _states_as_loaded(network: Any, incompatible: object) -> None:
    """States are those of the checkpoint whose tables were loaded."""
    network.states = unpacked(network.get_buffer("state_names"))
