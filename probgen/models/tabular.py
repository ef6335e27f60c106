"""A family of the columns of a data frame: frames in, frames out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.contexts import size_of
from probgen.core.conversion import rows_from
from probgen.core.modes import infers
from probgen.core.module import DistributionModule
from probgen.core.seeds import Seed, takes_seed
from probgen.core.supports import DOES_NOT_RUN, support_of
from probgen.core.turns import same_random_state
from probgen.distributions.conditional import conditional
from probgen.distributions.flows.cells import CellTransform
from probgen.distributions.flows.columns import ColumnMaps
from probgen.distributions.flows.rescaled import Rescaled, summed
from probgen.distributions.gibbs import completions
from probgen.distributions.graphical.dependence_tree import (
    family_counts,
    log_shares,
    mutual_information,
    spanning_tree,
    tree_distribution,
)
from probgen.distributions.rounded import Rounded
from probgen.table.kinds import Continuous
from probgen.table.schema import Field, Table

MIDDLE = torch.tensor([0.25, 0.75], dtype=torch.float64)  # between them lies half of a column
FINE = 100  # steps of the precision, in which that half is to be told apart


class Tabular(DistributionModule):
    r"""A family of prepared columns, as a family of the rows of a data frame.

    .. math:: \log p(x) = \log p_0(y) + \sum_{d \text{ continuous}} \log \frac{d y_d}{d x_d}

    All that takes rows (``pg.fit``, ``pg.log_likelihood``, ``pg.impute``, ``pg.em``) takes frames
    with the columns of the table, in any order, of any library; what draws rows (``pg.sample``,
    :meth:`sample`) gives frames. The schema is part of the model, and saved with it.

    Labels, flags and counts go to the family as they are, as codes 0, 1, ...; continuous columns and
    dates after the increasing map that brings them to order one (:class:`Preprocessed
    <probgen.Preprocessed>` says which), columns on a grid with uniform noise on their steps.

    Scores are in the units of the frame: masses of labels, flags, counts and of zeros in a column
    with many of them; densities per unit of a continuous column, per day of dates. A column on a
    grid has a density that is constant on each step (its mass divided by the step, so the mass
    where the step is 1), and makes the kind *unbiased*; else it is that of the family.

    Missing cells are summed out by the family, where it can: a score is that of the known cells
    alone, and which are known adds nothing to it. Frames that are drawn miss as many cells as the
    table did when it was read, by a tree of the pairs of columns that lack cells together
    (:meth:`gaps`), whatever the values are; ``sample(n, missing=False)`` has complete rows.

    Parameters
    ----------
    table : Table
        The schema: ``pg.Table.read(frame)``.
    family : DistributionModule
        The distribution of prepared rows ``(*batch, D)``: :class:`AutoregressiveTable
        <probgen.AutoregressiveTable>`, or any other with ``table.heads()``, such as mixtures of
        ``Mixed(None, table.heads())`` and decoders of variational autoencoders; flows where all
        columns are continuous.

    Raises
    ------
    ValueError
        If the family has events of another width, or is one of real numbers where columns are labels
        or counts.

    >>> import pandas
    >>> from probgen.heads import Mixed
    >>> from probgen.nn import Constant
    >>> frame = pandas.DataFrame({"size": ["s", "l", "s", "l"], "weight": [1.25, 3.5, 1.5, 4.75]})
    >>> table = Table.read(frame)
    >>> gen = Tabular(table, Mixed(Constant(4), table.heads()))
    >>> gen().log_prob(gen.rows(frame)).shape, list(gen.sample(2).columns)
    (torch.Size([4]), ['size', 'weight'])
    """

    context_from = "family"
    names_columns = True  # frames are read by the names of the columns
    gives_frames = True  # what is drawn is shown as a frame
    prepares = frozenset({"discrete", "bounds", "tails", "scale"})

    origin: Tensor
    low: Tensor
    high: Tensor
    whole: Tensor
    atoms: Tensor

    def __init__(self, table: Table, family: DistributionModule):
        checks.instance(Table, "pass pg.Table.read(frame)", table=table)
        checks.generative(family=family)
        super().__init__()
        _check_family(table, family)
        self.table = table
        self.family = family
        self.context_ndim = family.context_ndim
        self.columns = ColumnMaps([field.units for field in table.fields])
        kinds = list(table.kinds.values())
        ends = torch.tensor([kind.ends for kind in kinds], dtype=torch.get_default_dtype())
        zeros = [isinstance(kind, Continuous) and kind.zeros for kind in kinds]
        above = (
            ends[:, 0].isfinite()
            & ends[:, 1].isinf()
            & torch.tensor([isinstance(kind, Continuous) for kind in kinds])
        )
        self.register_buffer("low", ends[:, 0])
        self.register_buffer("high", ends[:, 1])
        self.register_buffer("origin", torch.where(above, ends[:, 0], 0.0))
        self.register_buffer("whole", torch.tensor([kind.whole for kind in kinds]))
        self.register_buffer("atoms", torch.tensor(zeros))
        self._zeros = [place for place, one in enumerate(zeros) if one]

    def forward(self, context: Tensor | None = None) -> Rescaled | Rounded:
        base = self.family(context)
        _check_width(len(self.low), base)
        distribution = Rescaled(base, self._units)
        return (
            Rounded(distribution, self.columns.resolution) if self.columns.on_grid else distribution
        )

    @property
    def _units(self) -> Any:
        """A change of units to :class:`Rescaled`, entry by entry."""
        cells = self.origin, self.low, self.high, self.whole, self.atoms
        return CellTransform(self.columns(), *cells, self._zeros)

    def rows(self, frame: Any) -> Tensor:
        """The rows of a frame as the programs take them, ``(N, D)``; see :meth:`Table.encode`.

        Raises ``ValueError``, too, for columns of numbers that the precision of the model does not
        tell apart, or hold.
        """
        for field in self.table.fields:
            _check_precision(field, self.low.dtype)
        rows = self.table.encode(frame)
        return rows.to(self.low)

    def frame(self, rows: Tensor, like: Any = None) -> Any:
        """The frame of some rows ``(N, D)``; see :meth:`Table.decode` and :meth:`Table.recorded`."""
        return self.table.decode(self.table.recorded(rows), like)

    def completed(self, frame: Any, rows: Tensor, missing: Tensor) -> Any:
        """A frame whose missing cells, ``(N, D)``, are those of some rows; the others stay."""
        known = self.table.encode(frame)
        missing = missing.to(known.device)
        return self.table.decode(torch.where(missing, self.table.recorded(rows), known), frame)

    def center(self, draws: Tensor) -> Tensor:
        """Means of numbers, rounded ones of counts, and the most frequent label.

        ``(draws, N, D) -> (N, D)``.
        """
        mean = draws.mean(0)
        mean = torch.where(self.whole, mean.round(), mean)
        labels = torch.tensor([kind.label for kind in self.table.kinds.values()])
        return torch.where(labels.to(mean.device), draws.mode(0).values, mean)

    def prepare(self, rows: Tensor) -> Tensor:
        """Rows as the family takes them, ``(*batch, D)`` each; on a grid, in the middle of a step."""
        return self._units(rows + self.columns.resolution / 2)

    @takes_seed
    @infers
    @torch.no_grad()
    def sample(
        self,
        n: int,
        context: Tensor | None = None,
        *,
        given: Mapping[str, Any] | None = None,
        missing: bool = True,
        num_steps: int = 500,
        seed: Seed = None,
    ) -> Any:
        """A frame of rows drawn from the model, in eval mode.

        Given values of some columns the others are drawn from their conditional distribution. Draws
        are *exact* where that of the family has a closed form (mixtures, trees, autoregressive
        tables in the order that has the given columns first); ends of Gibbs chains where it has
        none. A given value of a column on a grid says that the number lies anywhere in its step,
        which makes draws *heuristic*, next to exact ones where a step is short. ``pg.impute`` of a
        frame whose other cells are missing draws the same, and says of which kind it is.

        Parameters
        ----------
        n : int
            Rows, for each context if there are.
        context : Tensor, optional
            ``(*batch, *context_event)``.
        given : mapping, optional
            Values that columns have in all rows, by name: ``{"city": "Bern"}``.
        missing : bool
            Whether the frame lacks cells as the table did that was read; given ones are there.
        num_steps : int
            Sweeps of the chains, where there are.
        seed : int or torch.Generator, optional
            The same call with the same seed gives the same frame.

        Raises
        ------
        NotImplementedError
            For given values where the family neither has conditionals nor chains (flows).
        TypeError, ValueError
            For columns that there are not, and values that a column cannot have.

        >>> import pandas
        >>> from probgen.heads import Mixed
        >>> from probgen.nn import Constant
        >>> table = Table.read(pandas.DataFrame({"city": ["Bern", "Rome"], "sold": [3.25, 8.5]}))
        >>> gen = Tabular(table, Mixed(Constant(4), table.heads()))
        >>> gen.sample(3, given={"city": "Bern"})["city"].tolist()
        ['Bern', 'Bern', 'Bern']
        """
        checks.at_least(0, n=n)
        checks.at_least(1, num_steps=num_steps)
        checks.flag(missing=missing)
        known = self.table.row(given)
        if known.isnan().all():
            drawn = self(context).sample(torch.Size((max(1, n),)))[:n]  # of none torch draws none
        else:
            drawn = self._completed(context, known, max(1, n), num_steps)[:n]
        rows = drawn.flatten(0, -2)
        gaps = self.gaps(len(rows), ~known[0].isnan()) if missing else torch.zeros(rows.shape) > 0
        free = self.table.recorded(rows).masked_fill(gaps, torch.nan)
        return self.table.decode(torch.where(known.isnan(), free, known))

    def _completed(self, context: Any, known: Tensor, n: int, num_steps: int) -> Tensor:
        """Draws ``(n, *batch, D)`` given the numbers of a row ``(1, D)``, NaN = not given."""
        distribution = self(context)
        x = known.to(self.low).expand(*(distribution.batch_shape or (1,)), -1)
        return completions(distribution, x, n, num_steps)[0]

    def drawn(self, rows: Tensor) -> Any:
        """The frame of rows ``(N, D)`` that were drawn, without the cells that :meth:`gaps` takes."""
        return self.frame(rows.masked_fill(self.gaps(len(rows)).to(rows.device), torch.nan))

    @torch.no_grad()
    def gaps(self, n: int, present: Tensor | None = None) -> Tensor:
        """Draws which cells are missing, ``(n, D)``: independent of the values, not of each other.

        Given which columns, ``(D,)``, are not missing in these rows.

        By a Chow-Liu tree of the indicators of columns that lacked cells when the table was read,
        whose rates and pairs along the tree are those of its rows (Chow, Liu 1968,
        https://doi.org/10.1109/TIT.1968.1054142).

        >>> import pandas
        >>> from probgen.heads import Mixed
        >>> from probgen.nn import Constant
        >>> table = Table.read(pandas.DataFrame({"a": [0.5, None, 1.5], "b": [1.5, 2.5, 0.5]}))
        >>> gen = Tabular(table, Mixed(Constant(4), table.heads()))
        >>> rates = gen.gaps(1000).double().mean(0)
        >>> (rates - torch.tensor([1 / 3, 0.0])).abs() < 0.1
        tensor([True, True])
        """
        missing = torch.zeros(n, len(self.low), dtype=torch.bool)
        gaps = self.table.gaps
        if not n or gaps is None or not gaps.columns:
            return missing
        pairs = gaps.pairs()
        parents = spanning_tree(mutual_information(pairs))
        levels = (2,) * len(gaps.columns)
        tables = log_shares(family_counts(pairs, parents), levels, 0.0)
        tree: Any = tree_distribution(parents.tolist(), tables, levels)
        if present is not None and present.any():
            there = present[list(gaps.columns)]
            tree = conditional(tree, torch.zeros(len(there)), there)
        found = tree.sample(torch.Size((n,)))
        missing[:, list(gaps.columns)] = found > 0
        return missing

    def inside(self, rows: Any, weights: Any = None) -> tuple[DistributionModule, Tensor, float]:
        """The family, rows as it takes them, and the mean of the logarithms of their slopes.

        What :func:`probgen.em` works with: ``(N, D)``; on a grid, in the middle of a step.
        """
        (x,) = self.settle((rows,))
        y, ladj = self._units.call_and_ladj(x + self.columns.resolution / 2)
        slopes = summed(torch.where(x.isnan(), 0.0, ladj), 1).double()
        share = torch.ones(len(x)) if weights is None else rows_from("weights", weights)
        share = share.to(slopes)
        return self.family, y, float((slopes * share).sum() / share.sum())


def _check_precision(field: Field, dtype: torch.dtype) -> None:
    """Refuses numbers whose differences, or which themselves, are lost in a floating-point type."""
    facts = field.facts
    if field.kind.label or not facts.known:
        return
    info = torch.finfo(dtype)
    lower, upper = torch.tensor(facts.sketch, dtype=torch.float64).quantile(MIDDLE).tolist()
    spread = upper - lower or facts.high - facts.low
    coarse = max(abs(lower), abs(upper)) * info.eps
    held = max(abs(facts.low), abs(facts.high)) <= info.max
    if held and spread > FINE * max(coarse, info.tiny):
        return
    name = field.name
    raise ValueError(
        f"expected numbers in column {name!r} that {str(dtype).removeprefix('torch.')} tells apart, "
        f"got half of them from {lower:.10g} to {upper:.10g}; shift and scale them: "
        f"frame[{name!r}] = (frame[{name!r}] - {lower!r}) / {spread!r}"
    )


def _check_family(table: Table, family: Any) -> None:
    """Refuses a family of other rows, where it tells without a context what its rows are."""
    if size_of(family):
        return
    try:
        with torch.no_grad(), same_random_state():
            distribution = family()
    except DOES_NOT_RUN:
        return
    _check_width(len(table.fields), distribution)
    whole = [name for name, kind in table.kinds.items() if kind.whole]
    if whole and support_of(distribution).check(torch.full((len(table.fields),), 0.5)).all():
        raise ValueError(
            f"expected a family of labels or counts in columns {whole[:3]}, got "
            f"{type(family).__name__}, whose values are real numbers; build one with table.heads(): "
            "pg.AutoregressiveTable(table.heads(), [64])"
        )


def _check_width(width: int, distribution: Any) -> None:
    if tuple(distribution.event_shape) != (width,):
        raise ValueError(
            f"expected a family of rows of {width} columns, got events of shape "
            f"{tuple(distribution.event_shape)}; build it with table.heads()"
        )
