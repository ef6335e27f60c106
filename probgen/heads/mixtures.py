"""A head whose variables each follow a mixture of normal distributions."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from probgen.core import checks
from probgen.heads.base import Head
from probgen.heads.distributions import Normal


class MixtureOfGaussians(Head):
    r"""Independent variables, each a mixture of K normal distributions.

    .. math:: p(x_d) = \sum_k \pi_{dk}\, N(x_d; \mu_{dk}, s_{dk}^2)

    Raw parameters per variable: K logits, K locations, K scales. Locations are relative to a grid
    from -1 to 1, so that raw values around 0 suit standardized data; :math:`s =
    \text{softplus}(\text{raw}) + \text{min\_scale}`.

    Parameters
    ----------
    net, event_ndim, context_ndim
        As in :class:`probgen.heads.Head`.
    components : int
        Number K of normal distributions.
    min_scale : float
        Smallest scale; it bounds the density.

    References
    ----------
    Bishop (1994), Mixture density networks, https://publications.aston.ac.uk/id/eprint/373/

    >>> head = MixtureOfGaussians(components=5)
    >>> head(torch.zeros(7, head.width(2))).log_prob(torch.zeros(7, 2)).shape
    torch.Size([7])
    """

    def __init__(
        self,
        net: nn.Module | None = None,
        *,
        components: int,
        min_scale: float = 1e-2,
        event_ndim: int = 1,
        context_ndim: int = 1,
    ):
        checks.at_least(1, components=components)
        checks.not_negative(min_scale=min_scale)
        names = tuple(
            f"{name} {k}" for name in ("logit", "loc", "scale") for k in range(components)
        )
        super().__init__(net, names, event_ndim, context_ndim)
        self.components = components
        self.min_scale = min_scale

    def distribution(self, raw: Tensor) -> dist.TorchDistribution:
        logits, loc, scale = raw.movedim(0, -1).split(self.components, -1)
        grid = torch.linspace(-1, 1, 2 * self.components + 1, dtype=raw.dtype, device=raw.device)[
            1::2
        ]
        parts = Normal(loc + grid, softplus(scale) + self.min_scale)
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), parts)
