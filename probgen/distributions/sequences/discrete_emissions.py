"""Emissions of whole numbers: independent labels, and independent counts."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from probgen.core import checks
from probgen.core.missing import MissingAware, fill_missing
from probgen.distributions.sequences.emission import (
    EMPTY,
    Emission,
    from_clusters,
    permute,
    pooled,
    weighted_columns,
)
from probgen.distributions.support import check_columns
from probgen.heads import distributions


class UnequalLabels(distributions.Categorical):
    """Labels of several variables, of which each has levels of its own.

    Parameters
    ----------
    log_probs : Tensor
        Normalized log masses ``(*batch, D, levels)``, minus infinity beyond those of a variable.
    levels : Tensor
        How many each of the D variables has, ``(D,)``.

    >>> labels = UnequalLabels(torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]).log(), torch.tensor([2, 3]))
    >>> labels.support.check(torch.tensor([2.0, 2.0]))
    tensor([False,  True])
    """

    def __init__(self, log_probs: Tensor, levels: Tensor):
        self.levels = levels
        super().__init__(log_probs, validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.integer_interval(0, self.levels - 1)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> UnequalLabels:
        return UnequalLabels(self.logits.expand(*batch_shape, -1), self.levels)


class CategoricalEmission(Emission):
    r"""Independent labels 0, 1, ..., L - 1 for each state.

    :math:`p(x \mid k) = \prod_d p_{kd x_d}`; NaN = missing.

    Parameters
    ----------
    states : int
        Number K of states.
    levels : int or sequence of int
        Number L of labels; a sequence has that of each of the D variables.
    dims : int, optional
        Number D of variables; default 1, or that of ``levels``.
    pseudo_count : float
        What EM adds to the expected number of each label in each state.

    Raises
    ------
    ValueError
        If ``dims`` is another number than that of ``levels``.

    >>> CategoricalEmission(3, levels=5).distributions().event_shape
    torch.Size([1])
    >>> CategoricalEmission(3, levels=(2, 5)).distributions().event_shape
    torch.Size([2])
    """

    sizes: Tensor

    def __init__(
        self,
        states: int,
        levels: int | Sequence[int],
        dims: int | None = None,
        *,
        pseudo_count: float = 0.0,
    ):
        each = _levels_of_each(levels, dims)
        checks.not_negative(pseudo_count=pseudo_count)
        super().__init__(states)
        self.pseudo_count = pseudo_count
        self.register_buffer("sizes", torch.tensor(each), persistent=False)
        self.logits = nn.Parameter(torch.randn(states, len(each), max(each)))

    @property
    def unequal(self) -> bool:
        """Whether some variables have fewer levels than others."""
        return bool((self.sizes < self.logits.shape[-1]).any())

    @property
    def exists(self) -> Tensor:
        """Which levels are those of a variable: ``(D, L)``."""
        return torch.arange(self.logits.shape[-1], device=self.sizes.device) < self.sizes[:, None]

    @property
    def free_parameters(self) -> int:
        """Number of free parameters: probabilities sum to 1."""
        return int((self.sizes - 1).sum()) * self.states * self.logits.requires_grad

    @property
    def probabilities(self) -> Tensor:
        """``(K, D, L)``."""
        return self._log_masses().detach().exp()

    def _log_masses(self) -> Tensor:
        if not self.unequal:
            return self.logits.log_softmax(-1)
        return self.logits.masked_fill(~self.exists, -torch.inf).log_softmax(-1)

    def distributions(self) -> MissingAware:
        masses = self._log_masses()
        base = (
            UnequalLabels(masses, self.sizes) if self.unequal else distributions.Categorical(masses)
        )
        return MissingAware(base, 1)

    def expect(self, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Numbers of each label: ``(K, D, L)``."""
        labels = torch.arange(self.logits.shape[-1], dtype=x.dtype, device=x.device)
        return {"labels": weighted_columns((x[..., None] == labels).to(x), weights)}

    @torch.no_grad()
    def maximize(self, statistics: dict[str, Tensor]) -> None:
        """Shares of the labels; equal ones of a variable that is never observed in a state."""
        labels = pooled(statistics["labels"], statistics["labels"].sum((1, 2))) + self.pseudo_count
        labels = torch.where(self.exists, labels, 0.0)
        labels = torch.where(labels.sum(-1, keepdim=True) > 0, labels, self.exists.to(labels))
        self.logits.copy_((labels / labels.sum(-1, keepdim=True)).clamp(min=1e-30).log())

    def penalty(self, statistics: dict[str, Tensor]) -> Tensor | float:
        """What the pseudo-count makes the M-step subtract."""
        if not self.pseudo_count:
            return 0.0
        logs = self.logits.detach().double().masked_fill(~self.exists, -torch.inf).log_softmax(-1)
        return -self.pseudo_count * torch.where(self.exists, logs, 0.0).sum()

    def initialize(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Random weights for each combination of state and label."""
        every = torch.ones(1, len(x), dtype=x.dtype, device=x.device)
        labels = self.expect(x, every)["labels"].double() + 1
        noise = torch.rand(self.logits.shape, generator=generator, dtype=torch.float64).to(labels)
        self.maximize({"labels": labels * (0.5 + noise)})

    def reorder(self, order: Tensor) -> None:
        permute(self, order)


def _levels_of_each(levels: int | Sequence[int], dims: int | None) -> tuple[int, ...]:
    """Numbers of levels of D variables."""
    if isinstance(levels, int | Integral):
        dims = 1 if dims is None else dims
        checks.at_least(1, levels=levels, dims=dims)
        return (int(levels),) * dims
    checks.sizes(1, 1, levels=levels)
    if dims not in (None, len(levels)):
        raise ValueError(
            f"expected dims={len(levels)}, the number of variables that levels are given of, got "
            f"{dims}; leave dims out"
        )
    return tuple(map(int, levels))


class PoissonEmission(Emission):
    r"""Independent counts in each state.

    :math:`p(x|k) = \prod_d \operatorname{Po}(x_d; \lambda_{kd})`; NaN = missing.

    Parameters
    ----------
    states : int
        Number K of states.
    dims : int
        Number D of variables.

    >>> PoissonEmission(3).distributions().log_prob(torch.zeros(1)).shape
    torch.Size([3])
    """

    def __init__(self, states: int, dims: int = 1):
        checks.at_least(1, states=states, dims=dims)
        super().__init__(states)
        self.log_rate = nn.Parameter(torch.randn(states, dims))

    @property
    def rates(self) -> Tensor:
        """Expected counts ``(K, D)``."""
        return self.log_rate.detach().exp()

    def distributions(self) -> MissingAware:
        return MissingAware(distributions.Poisson(self.log_rate), 1)

    def expect(self, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Sums of counts, and how many there are: ``(K, D)`` each."""
        return {
            "counts": weighted_columns(fill_missing(x), weights),
            "entries": weighted_columns((~x.isnan()).to(x), weights),
        }

    @torch.no_grad()
    def maximize(self, statistics: dict[str, Tensor]) -> None:
        """Mean counts: of all states where a state has none, the present ones where none has any."""
        entries = statistics["entries"]
        counts, entries = (pooled(statistics[name], entries) for name in ("counts", "entries"))
        rates = (counts / entries.clamp(min=EMPTY)).clamp(min=1e-9).log()
        self.log_rate.copy_(torch.where(entries > EMPTY, rates, self.log_rate.double()))

    def initialize(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Clusters of observations."""
        check_columns(x, constant=True)
        from_clusters(self, x, generator)

    def reorder(self, order: Tensor) -> None:
        permute(self, order)
