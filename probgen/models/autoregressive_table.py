"""An autoregressive density of rows whose columns are of different types, in any order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.construction import Recorded
from probgen.core.contexts import batch_of, received
from probgen.core.conversion import rows_from
from probgen.core.module import DistributionModule
from probgen.core.unions import WithAtoms, of_entries
from probgen.distributions.any_order import AllOrders, InOrder
from probgen.distributions.orderings import check_orders
from probgen.heads import Head, Mixed
from probgen.heads.mixed import ColumnEntries
from probgen.nn import MLP

MOST_LEVELS = 64  # beyond, a label is shown to the network as a number


class AutoregressiveTable(DistributionModule):
    r"""Autoregressive density of a table: each column given the ones before it, one head per column.

    .. math:: p_o(x \mid c) = \prod_t p_{o_t}\big(x_{o_t};\, r_{o_t}(m \odot e(x),\, m,\, c)\big), \qquad
              m = \text{indicator of the observed among } o_1, \dots, o_{t-1}

    with one network r for all columns and all orders o; e(x) is what it sees of the values: labels
    as indicators, numbers in standard units, atoms of a head as indicators beside the number, and m
    tells it which columns are known. In training mode every row is scored by an order and a cut of
    it drawn at random, as in :class:`DeepNADE`: a *bound* in expectation of the log-density of the
    mixture over orders. In eval mode the density is *exact*, that of ``order``.

    Missing entries (NaN) may have any pattern. A partly observed row is scored by the order that
    puts its observed columns first, in their places of ``order``, which makes the score the exact
    marginal under that order; :func:`conditional` and :func:`impute` draw the missing columns from
    the exact conditional under it. Each order is a joint distribution of its own: scores of rows
    with different patterns are those of different joint distributions, which agree as far as
    training has made them agree. Scoring a row takes D runs of the network, a draw too.

    Parameters
    ----------
    heads : sequence of Head
        One head without network of its own per column, as :class:`probgen.heads.Mixed` takes them.
    hidden : sequence of int
        Sizes of the hidden layers.
    order : Tensor, optional
        ``(D,)``: the columns in the order of their turn, by default as they stand. It may be
        replaced after training: ``gen.order = torch.tensor([2, 0, 1])``.
    loc, scale : Tensor, optional
        ``(D,)``: means and standard deviations of the columns, by which the network sees numbers;
        those of labels are not used. They do not change the heads. :meth:`fitted` takes those of
        data.
    any_order : bool
        Whether training is over all orders. Without, it is by the exact log-likelihood of ``order``,
        at the cost of D runs of the network; then conditionals are right for evidence that comes
        first in it, or is missing in the training rows as it is later. Mixtures of tables are
        trained so, as a bound of each component is none of the mixture.
    context : int
        Width of the context.
    activation, dropout, norm, residual
        As in :class:`probgen.nn.MLP`.

    Raises
    ------
    ValueError
        If ``order`` is no permutation, a scale is not positive, or there are no columns.

    References
    ----------
    Uria, Murray, Larochelle (2014), A deep and tractable density estimator,
    https://arxiv.org/abs/1310.1757; Germain, Gregor, Murray, Larochelle (2015), MADE: masked
    autoencoder for distribution estimation, https://arxiv.org/abs/1502.03509

    >>> from probgen.heads import Bernoulli, Categorical, Gaussian
    >>> gen = AutoregressiveTable([Gaussian(), Categorical(levels=3), Bernoulli()], [16]).eval()
    >>> x = torch.tensor([[0.3, 2.0, 1.0], [torch.nan, 2.0, torch.nan]])
    >>> gen().log_prob(x).shape, gen().sample((5,)).shape
    (torch.Size([2]), torch.Size([5, 3]))
    """

    order: Tensor

    def __init__(
        self,
        heads: Sequence[Head],
        hidden: Sequence[int],
        *,
        order: Tensor | None = None,
        loc: Tensor | None = None,
        scale: Tensor | None = None,
        any_order: bool = True,
        context: int = 0,
        activation: Callable[[], nn.Module] = nn.SiLU,
        dropout: float = 0.0,
        norm: Callable[[int], nn.Module] | None = None,
        residual: bool = False,
    ):
        checks.instances(Head, heads=heads)
        checks.sizes(hidden=hidden)
        checks.instance(Tensor, **checks.given(order=order, loc=loc, scale=scale))
        checks.at_least(0, context=context)
        checks.flag(any_order=any_order)
        super().__init__()
        self.any_order = bool(any_order)
        self.columns = Mixed(None, heads)
        self.dims = len(heads)
        self.context_size = context
        self.register_buffer("order", check_orders(order, self.dims)[0])
        self.seen = ColumnFeatures(heads, loc, scale)
        self.net = MLP(
            self.seen.width + context,
            hidden,
            self.columns.width,
            activation,
            dropout,
            norm,
            residual,
        )

    @classmethod
    def fitted(
        cls, heads: Sequence[Head], hidden: Sequence[int], x: Tensor, **options: Any
    ) -> AutoregressiveTable:
        """With the means and standard deviations of rows ``(N, D)``, NaN = missing.

        Columns that do not vary have scale 1. ``options`` are those of the constructor.
        """
        loc, scale = _moments(rows_from("x", x))
        return cls(heads, hidden, loc=loc, scale=scale, **options)

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        context = received(self, context)
        given = partial(self.given, context=context)
        if self.training and self.any_order:
            return AllOrders(given, self.dims, batch_of(context), self.seen.loc)
        return InOrder(given, self.order, self.seen.loc.expand(*batch_of(context), -1))

    def given(self, x: Tensor, seen: Tensor, context: Tensor | None = None) -> ColumnEntries:
        """The distribution of every column given those that are seen, ``(*batch, D)`` each.

        Values that are not seen are not read; the distributions of columns that are seen mean
        nothing.
        """
        parts = [self.seen(x, seen)]
        parts += [] if context is None else [context.expand(*x.shape[:-1], -1)]
        columns: Any = self.columns(self.net(torch.cat(parts, -1)))
        return columns.entries


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of columns, 1 of those that do not vary; NaN = missing."""
    x = x.double()
    loc = x.nanmean(0).nan_to_num()
    scale = (x - loc).square().nanmean(0).sqrt().nan_to_num()
    return loc, torch.where(scale > 0, scale, 1.0)


class ColumnFeatures(Recorded, nn.Module):
    """What a network sees of a row: features of the columns that are seen, and which these are.

    ``(*batch, D) -> (*batch, width)``: labels as indicators, numbers in standard units. By default
    all columns are seen that are not missing (NaN).
    """

    column: Tensor
    value: Tensor
    loc: Tensor
    scale: Tensor

    def __init__(self, heads: Sequence[Head], loc: Tensor | None, scale: Tensor | None):
        super().__init__()
        real = torch.get_default_dtype()
        dims = len(heads)
        shown = [(at, value) for at, head in enumerate(heads) for value in _shown(head)]
        self.width = len(shown) + dims
        self.register_buffer("column", torch.tensor([at for at, _ in shown]), persistent=False)
        self.register_buffer("value", torch.tensor([value for _, value in shown]), persistent=False)
        self.register_buffer("loc", torch.zeros(dims) if loc is None else loc.to(real))
        self.register_buffer("scale", torch.ones(dims) if scale is None else scale.to(real))
        for name in ("loc", "scale"):
            if (shape := tuple(getattr(self, name).shape)) != (dims,):
                raise ValueError(
                    f"expected {name} of shape ({dims},), one number per column, got {shape}; use "
                    "AutoregressiveTable.fitted(heads, hidden, x)"
                )
        if not (self.scale > 0).all():
            raise ValueError(
                f"expected scale > 0, got {self.scale}; give columns that do not vary a scale of 1"
            )

    @classmethod
    def fitted(cls, heads: Sequence[Head], x: Tensor) -> ColumnFeatures:
        """With the means and standard deviations of rows ``(N, D)``, NaN = missing."""
        return cls(heads, *_moments(x))

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        seen = x.isnan().logical_not() if seen is None else seen
        x = torch.where(seen, x.to(self.loc), self.loc)
        of_column = x.index_select(-1, self.column)
        number = ((x - self.loc) / self.scale).index_select(-1, self.column)
        features = torch.where(self.value.isnan(), number, (of_column == self.value).to(number))
        known = seen.expand(x.shape).to(features)
        return torch.cat((features * known.index_select(-1, self.column), known), -1)


def _shown(head: Head) -> list[float]:
    """Values that have an indicator, and NaN for the number itself."""
    raw = torch.zeros(head.width(1))
    support, _ = of_entries(head(raw).support)
    if isinstance(support, WithAtoms):
        return [math.nan, *support.atoms]
    levels: Any = getattr(support, "upper_bound", math.inf)
    if support.is_discrete and levels < MOST_LEVELS and getattr(support, "lower_bound", 1) == 0:
        return [float(level) for level in range(levels + 1)]
    return [math.nan]
