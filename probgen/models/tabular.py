"""A family of the columns of a data frame: frames in, frames out."""

from __future__ import annotations

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
from probgen.distributions.flows.cells import CellTransform
from probgen.distributions.flows.columns import ColumnMaps
from probgen.distributions.flows.rescaled import Rescaled, summed
from probgen.distributions.rounded import Rounded
from probgen.table.kinds import Continuous
from probgen.table.schema import Table


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
    where the step is 1), and makes the kind *unbiased*; else it is that of the family. Missing
    cells are those of the family, which sums them out where it can.

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
        ends = self.low, self.high
        return CellTransform(self.columns(), self.origin, *ends, self.whole, self.atoms)

    def rows(self, frame: Any) -> Tensor:
        """The rows of a frame as the programs take them, ``(N, D)``; see :meth:`Table.encode`."""
        return self.table.encode(frame).to(self.low)

    def frame(self, rows: Tensor, like: Any = None) -> Any:
        """The frame of some rows ``(N, D)``; see :meth:`Table.decode`."""
        return self.table.decode(rows, like)

    def completed(self, frame: Any, rows: Tensor, missing: Tensor) -> Any:
        """A frame whose missing cells, ``(N, D)``, are those of some rows; the others stay."""
        known = self.table.encode(frame)
        missing = missing.to(known.device)
        return self.table.decode(torch.where(missing, self.table.exact(rows), known), frame)

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
    def sample(self, n: int, context: Tensor | None = None, *, seed: Seed = None) -> Any:
        """A frame of ``n`` rows drawn from the model, in eval mode, for each context if there are."""
        checks.at_least(0, n=n)
        drawn = self(context).sample(torch.Size((max(1, n),)))[:n]  # of none torch draws none
        return self.frame(drawn.flatten(0, -2))

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
