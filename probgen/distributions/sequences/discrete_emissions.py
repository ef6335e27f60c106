"""Emissions of whole numbers: independent labels, and independent counts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.missing import MissingAware, fill_missing
from probgen.distributions.sequences.emission import EMPTY, Emission, from_clusters, permute, pooled
from probgen.distributions.support import check_columns
from probgen.heads import distributions


class CategoricalEmission(Emission):
    r"""Independent labels 0, 1, ..., L - 1 for each state.

    :math:`p(x \mid k) = \prod_d p_{kd x_d}`; NaN = missing.

    Parameters
    ----------
    states : int
        Number K of states.
    levels : int
        Number L of labels.
    dims : int
        Number D of variables.
    pseudo_count : float
        What EM adds to the expected number of each label in each state.

    >>> CategoricalEmission(3, levels=5).distributions().event_shape
    torch.Size([1])
    """

    def __init__(self, states: int, levels: int, dims: int = 1, *, pseudo_count: float = 0.0):
        checks.at_least(1, levels=levels, dims=dims)
        checks.not_negative(pseudo_count=pseudo_count)
        super().__init__(states)
        self.pseudo_count = pseudo_count
        self.logits = nn.Parameter(torch.randn(states, dims, levels))

    @property
    def free_parameters(self) -> int:
        """Number of free parameters: probabilities sum to 1."""
        return self.logits[..., 1:].numel() * self.logits.requires_grad

    @property
    def probabilities(self) -> Tensor:
        """``(K, D, L)``."""
        return self.logits.detach().softmax(-1)

    def distributions(self) -> MissingAware:
        return MissingAware(distributions.Categorical(self.logits.log_softmax(-1)), 1)

    def expect(self, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Numbers of each label: ``(K, D, L)``."""
        labels = torch.arange(self.logits.shape[-1], dtype=x.dtype, device=x.device)
        return {
            "labels": (weights @ (x[..., None] == labels).to(x).flatten(1)).unflatten(
                -1, self.logits.shape[1:]
            )
        }

    @torch.no_grad()
    def maximize(self, statistics: dict[str, Tensor]) -> None:
        """Shares of the labels; equal ones of a variable that is never observed in a state."""
        labels = pooled(statistics["labels"], statistics["labels"].sum((1, 2))) + self.pseudo_count
        labels = torch.where(labels.sum(-1, keepdim=True) > 0, labels, 1.0)
        self.logits.copy_((labels / labels.sum(-1, keepdim=True)).clamp(min=1e-30).log())

    def penalty(self, statistics: dict[str, Tensor]) -> Tensor | float:
        """What the pseudo-count makes the M-step subtract."""
        logs = self.logits.detach().double().log_softmax(-1)
        return -self.pseudo_count * logs.sum() if self.pseudo_count else 0.0

    def initialize(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Random weights for each combination of state and label."""
        every = torch.ones(1, len(x), dtype=x.dtype, device=x.device)
        labels = self.expect(x, every)["labels"].double() + 1
        noise = torch.rand(self.logits.shape, generator=generator, dtype=torch.float64).to(labels)
        self.maximize({"labels": labels * (0.5 + noise)})

    def reorder(self, order: Tensor) -> None:
        permute(self, order)


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
        return {"counts": weights @ fill_missing(x), "entries": weights @ (~x.isnan()).to(x)}

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
