"""Stick-breaking distribution of mixture weights: the Dirichlet process, truncated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Transform, constraints
from torch.nn.functional import pad

from probgen.core import checks


class SticksToWeights(Transform):
    r"""Pieces broken off a unit stick one after the other; the last piece is what is left.

    .. math:: w_k = v_k \prod_{j<k} (1 - v_j), \qquad w_K = \prod_{j<K} (1 - v_j)

    maps fractions ``(*batch, K - 1)`` in (0, 1) to weights ``(*batch, K)``.

    >>> SticksToWeights()(torch.tensor([0.5, 0.5]))
    tensor([0.5000, 0.2500, 0.2500])
    """

    domain = constraints.independent(constraints.unit_interval, 1)
    codomain = constraints.simplex
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SticksToWeights)

    def _call(self, x: Tensor) -> Tensor:
        return pad(x, (0, 1), value=1.0) * pad((1 - x).cumprod(-1), (1, 0), value=1.0)

    def _inverse(self, y: Tensor) -> Tensor:
        left = (
            y.flip(-1).cumsum(-1).flip(-1)
        )  # summed from the far end: 1 - y.cumsum(-1) would cancel
        limits = torch.finfo(y.dtype)
        return (y / left.clamp(min=limits.tiny))[..., :-1].clamp(limits.tiny, 1 - limits.eps)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        shortened = (
            torch.arange(x.shape[-1]).flip(0).to(x)
        )  # how many later fractions each one shortens
        return (shortened * torch.log1p(-x)).sum(-1)

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-1], shape[-1] + 1))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-1], shape[-1] - 1))


class StickBreaking(dist.TransformedDistribution):
    r"""Weights of a Dirichlet process truncated to K components.

    A prior that leaves unneeded components empty.

    .. math:: v_k \sim \mathrm{Beta}(1, \alpha_k), \qquad w_k = v_k \prod_{j<k} (1 - v_j)

    Parameters
    ----------
    concentration : Tensor
        :math:`\alpha > 0` of shape ``(*batch, K - 1)``; larger values spread the weights over more
        components.

    References
    ----------
    Ishwaran, James (2001), Gibbs sampling methods for stick-breaking priors,
    https://doi.org/10.1198/016214501750332758

    >>> StickBreaking(torch.ones(3)).mean
    tensor([0.5000, 0.2500, 0.1250, 0.1250])
    """

    arg_constraints = {"concentration": constraints.independent(constraints.positive, 1)}

    def __init__(self, concentration: Tensor, validate_args: bool | None = None):
        checks.instance(Tensor, concentration=concentration)
        self.concentration = concentration
        fractions = dist.Beta(torch.ones_like(concentration), concentration).to_event(1)
        super().__init__(fractions, [SticksToWeights()], validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> StickBreaking:
        sizes = torch.Size(batch_shape) + self.concentration.shape[-1:]
        return StickBreaking(self.concentration.expand(sizes), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Expected weights ``(*batch, K)``."""
        return SticksToWeights()(1 / (1 + self.concentration))
