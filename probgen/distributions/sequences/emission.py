"""Emissions of a hidden Markov chain.

One distribution for each state, with steps of expectation maximization in closed form.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.batched import BatchedDistribution
from probgen.core.kinds import density_kind
from probgen.core.missing import fill_missing
from probgen.core.module import DistributionModule

EMPTY = 1e-6  # expected steps of a state that has none
_ROWS_FOR_START = 2**14


class Emission(DistributionModule, ABC):
    r"""One distribution of an observation for each of K states.

    Learned in closed form from weighted observations.

    As a module it is conditional on the state: ``emission(context)`` is the distribution of the
    state that the first K entries of the context, all 0 but one, tell.

    Parameters
    ----------
    states : int
        Number K of states.
    """

    def __init__(self, states: int):
        checks.at_least(1, states=states)
        super().__init__()
        self.states = states

    @abstractmethod
    def distributions(self) -> dist.TorchDistribution:
        """The distributions of all states: batch shape ``(K,)``."""

    @abstractmethod
    def expect(self, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Statistics of observations ``(n, *event)`` under weights ``(K, n)``.

        Which add over observations. One whose D columns are independent under each state takes
        weights of single entries, too: ``(K, n, D)``.
        """

    @abstractmethod
    def maximize(self, statistics: dict[str, Tensor]) -> None:
        """Sets the parameters, in place, to the maximizer given statistics in float64.

        States without any observation get the distribution of all observations.
        """

    def forward(self, context: Tensor | None = None) -> Chosen:
        if context is None or context.shape[-1] < self.states:
            raise ValueError(
                f"expected a context of shape (*batch, {self.states} or more), the state as zeros "
                "and a one, got "
                f"{None if context is None else tuple(context.shape)}; distributions() gives those "
                "of all states"
            )
        return Chosen(self.distributions(), context[..., : self.states].argmax(-1))

    @abstractmethod
    def initialize(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Sets the parameters, in place, to a start suited to observations ``(n, *event)``.

        Random by ``generator``.
        """

    @abstractmethod
    def reorder(self, order: Tensor) -> None:
        """Puts the states in another order ``(K,)``, in place."""


@torch.no_grad()
def from_clusters(
    emission: Emission, x: Tensor, generator: torch.Generator | None, shared: float = 0.2
) -> None:
    """Gives each state a cluster of observations ``(n, *event)``.

    And all states a share of the whole.

    Clusters are those of k-means on standardized columns, from random starts, of at most 16,384
    observations.
    """
    from sklearn.cluster import KMeans

    rows = x.flatten(1).double()
    rows = fill_missing(rows, rows.nanmean(0).nan_to_num())
    if len(rows) > _ROWS_FOR_START:
        kept = torch.randperm(len(rows), generator=generator)[:_ROWS_FOR_START].to(x.device)
        x = x[kept]
        rows = rows[kept]
    scale = rows.std(0, correction=0)
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    clusters = KMeans(emission.states, n_init=1, random_state=seed)
    labels = clusters.fit_predict((rows / torch.where(scale > 0, scale, 1.0)).cpu().numpy())
    member = nn.functional.one_hot(torch.as_tensor(labels).long(), emission.states).mT.to(x)
    weights = (1 - shared) * member + shared / emission.states
    emission.maximize({name: part.double() for name, part in emission.expect(x, weights).items()})


@torch.no_grad()
def permute(module: nn.Module, order: Tensor) -> None:
    """Puts the entries of all parameters that have one for each of K states in another order ``(K,)``."""
    for parameter in module.parameters():
        if len(parameter) == len(order):  # others are shared by all states
            parameter.copy_(parameter[order])


def pooled(statistic: Tensor, rows: Tensor) -> Tensor:
    """Statistics ``(K, ...)`` with the mean over all states in place of those without observations.

    How many there are is told by ``rows``: of states ``(K,)``, or of variables in them ``(K, D)``.
    """
    empty = (rows <= EMPTY).reshape(*rows.shape, *[1] * (statistic.ndim - rows.ndim))
    return torch.where(empty, statistic.mean(0), statistic)


def weighted_columns(values: Tensor, weights: Tensor) -> Tensor:
    """Sums over observations ``(n, D, ...)`` under weights of states: ``(K, D, ...)``.

    The weights ``(K, n)`` are those of whole observations, ``(K, n, D)`` of single entries.

    >>> weighted_columns(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.5]]))
    tensor([[2.5000, 4.0000]])
    """
    if weights.ndim == 2:
        return (weights @ values.flatten(1)).unflatten(-1, values.shape[1:])
    each = values.flatten(2).movedim(1, 0) if values.ndim > 2 else values.mT[..., None]
    sums = weights.movedim(-1, 0) @ each  # (D, K, n) @ (D, n, L)
    return sums.movedim(0, 1).reshape(len(weights), *values.shape[1:])


class Chosen(BatchedDistribution):
    """One of K distributions for each entry of a batch.

    ``distributions`` of batch shape ``(K,)``, ``index`` ``(*batch)`` of integers.

    >>> distribution = Chosen(dist.Normal(torch.tensor([5.0, 10.0]), 1e-6), torch.tensor([1, 0, 1]))
    >>> distribution.sample().round()
    tensor([10.,  5., 10.])
    """

    batched = {"index": 0}

    def __init__(self, distributions: dist.TorchDistribution, index: Tensor):
        self.distributions = distributions
        self.index = index
        super().__init__(index.shape, distributions.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.distributions.support

    @property
    def density_kind(self) -> str:
        return density_kind(self.distributions)

    @property
    def mean(self) -> Tensor:
        """Expected values: ``(*batch, *event)``."""
        return self.distributions.mean[self.index]

    @property
    def variance(self) -> Tensor:
        """Variances, alike."""
        return self.distributions.variance[self.index]

    def log_prob(self, x: Tensor) -> Tensor:
        values = self.distributions.log_prob(x.unsqueeze(-1 - len(self.event_shape)))
        values, index = torch.broadcast_tensors(values, self.index[..., None])
        return values.gather(-1, index[..., :1])[..., 0]

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        event = len(self.event_shape)
        values = self.distributions.sample(torch.Size(sample_shape) + self.batch_shape)
        index = self.index.reshape(*self.batch_shape, 1, *[1] * event)
        return values.take_along_dim(index.expand(*sample_shape, *index.shape), -1 - event).squeeze(
            -1 - event
        )
