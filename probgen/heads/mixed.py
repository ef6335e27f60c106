"""Tables whose columns are of different types."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from probgen.core import checks
from probgen.core.batched import BatchedDistribution
from probgen.core.missing import MissingAware, check_event
from probgen.core.module import DistributionModule
from probgen.core.sums import sum_of
from probgen.core.truncation import Truncation, truncated
from probgen.heads.base import Head, raw_values


class _MixedColumns(constraints.cat):
    """Constraints of consecutive columns; a table is discrete only when all its columns are."""

    @property
    def is_discrete(self) -> bool:  # type: ignore[override]  # torch: a constant
        return all(part.is_discrete for part in self.cseq)


class ColumnDistributions(BatchedDistribution):
    """Independent distributions of consecutive blocks of columns.

    As one distribution of rows ``(*batch, D)``.

    Parameters
    ----------
    distributions : sequence of MissingAware
        Distributions of one batch shape, with events of shape ``(d_1,), (d_2,), ...`` that sum to
        D.
    """

    batched = {"distributions": 0}

    def __init__(self, distributions: Sequence[dist.TorchDistribution]):
        self.distributions = list(distributions)
        self.sizes = [distribution.event_shape[0] for distribution in self.distributions]
        super().__init__(
            self.distributions[0].batch_shape, torch.Size([sum(self.sizes)]), validate_args=False
        )

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]  # torch: a constant
        return all(distribution.has_rsample for distribution in self.distributions)

    @property
    def support(self) -> Any:
        supports: list[Any] = [distribution.support for distribution in self.distributions]
        columns = [support.base_constraint for support in supports]
        return constraints.independent(_MixedColumns(columns, -1, self.sizes), 1)

    def log_prob(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        blocks = x.split(self.sizes, -1)
        return sum_of(
            distribution.log_prob(block)
            for distribution, block in zip(self.distributions, blocks, strict=True)
        )

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return torch.cat(
            [distribution.sample(torch.Size(sample_shape)) for distribution in self.distributions],
            -1,
        )

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return torch.cat(
            [distribution.rsample(torch.Size(sample_shape)) for distribution in self.distributions],
            -1,
        )

    @property
    def entries(self) -> ColumnEntries:
        """The distributions of single entries, with the columns as a batch dim: ``(*batch, D)``."""
        return ColumnEntries(
            [MissingAware(distribution.base_dist) for distribution in self.distributions]
        )

    @property
    def mean(self) -> Tensor:
        return torch.cat([distribution.mean for distribution in self.distributions], -1)

    @property
    def variance(self) -> Tensor:
        return torch.cat([distribution.variance for distribution in self.distributions], -1)

    @property
    def mode(self) -> Tensor:
        return torch.cat([distribution.mode for distribution in self.distributions], -1)


class ColumnEntries(BatchedDistribution):
    """Distributions of single variables, of several types, side by side along the last batch dim.

    The log density of a missing entry (NaN) is 0.

    Parameters
    ----------
    distributions : sequence of TorchDistribution
        Of batch shapes ``(*batch, d_1), (*batch, d_2), ...``; events have no dims.

    >>> both = ColumnEntries([dist.Normal(torch.zeros(2), 1.0), dist.Poisson(torch.ones(1))])
    >>> both.batch_shape, both.log_prob(torch.tensor([0.0, 0.0, 1.0]))
    (torch.Size([3]), tensor([-0.9189, -0.9189, -1.0000]))
    """

    def __init__(self, distributions: Sequence[dist.TorchDistribution]):
        self.distributions = list(distributions)
        self.sizes = [distribution.batch_shape[-1] for distribution in self.distributions]
        super().__init__(
            torch.Size((*self.distributions[0].batch_shape[:-1], sum(self.sizes))),
            validate_args=False,
        )

    @property
    def support(self) -> Any:
        return _MixedColumns(
            [distribution.support for distribution in self.distributions], -1, self.sizes
        )

    def log_prob(self, x: Tensor) -> Tensor:
        blocks = zip(self.distributions, x.split(self.sizes, -1), strict=True)
        return torch.cat([distribution.log_prob(block) for distribution, block in blocks], -1)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape)
        return torch.cat([distribution.sample(shape) for distribution in self.distributions], -1)


@truncated.register(ColumnEntries)
def _(distribution: ColumnEntries, rule: Truncation) -> ColumnEntries:
    return ColumnEntries([truncated(each, rule) for each in distribution.distributions])


@truncated.register(ColumnDistributions)
def _(distribution: ColumnDistributions, rule: Truncation) -> ColumnDistributions:
    return ColumnDistributions(
        [truncated(distribution, rule) for distribution in distribution.distributions]
    )


class Mixed(DistributionModule):
    r"""Independent columns of different types given the context, any of them missing (NaN).

    .. math:: p(x \mid c) = \prod_d p_d(x_d \mid \text{net}(c))

    Parameters
    ----------
    net : callable or None
        Network ``(*batch, C) -> (*batch, mixed.width)``; ``None``: the context itself holds the raw
        parameters.
    columns : sequence of Head
        One head without network of its own per column, in the order of the columns. The same head
        object in consecutive places makes those columns one block, which is faster: ``[Gaussian()]
        * 8 + [Bernoulli()] * 2``.

    Raises
    ------
    ValueError
        If the network does not give ``width`` values, or rows do not have one entry per column.

    >>> from probgen.heads import Bernoulli, Categorical, Gaussian
    >>> table = Mixed(None, [Gaussian()] * 2 + [Bernoulli(), Categorical(levels=4)])
    >>> table.width
    9
    >>> table(torch.zeros(9)).log_prob(torch.tensor([torch.nan, torch.nan, 1.0, 3.0])).exp()    # 1/2 times 1/4
    tensor(0.1250)
    """

    unknown_contexts = False
    context_net = "net"

    event_ndim = 1
    blocks: Any  # nn.ModuleList of heads

    def __init__(self, net: nn.Module | None, columns: Sequence[Head], *, context_ndim: int = 1):
        checks.network(**checks.given(net=net))
        checks.families(columns=columns)
        checks.at_least(0, context_ndim=context_ndim)
        super().__init__()
        if not columns:
            raise ValueError("expected at least one column, got none; give one head per column")
        runs = [list(same) for _, same in groupby(columns, key=id)]
        self.net = nn.Identity() if net is None else net
        self.context_ndim = context_ndim
        self.blocks = nn.ModuleList([run[0] for run in runs])
        self.sizes = [len(run) for run in runs]

    @property
    def width(self) -> int:
        """Number of values per row that the network must give."""
        return sum(self._widths)

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        raw = raw_values(self, context)
        if raw.shape[-1] != self.width:
            raise ValueError(
                f"expected the network of Mixed to give {self.width} values per row, got "
                f"{raw.shape[-1]}; "
                "set its outputs to mixed.width"
            )
        parts = raw.split(self._widths, -1)
        return ColumnDistributions(
            [head(part) for head, part in zip(self.blocks, parts, strict=True)]
        )

    @property
    def _widths(self) -> list[int]:
        return [head.width(size) for head, size in zip(self.blocks, self.sizes, strict=True)]
