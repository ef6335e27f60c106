"""Heads for real-valued data: normal with diagonal or full covariance, Student t."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from probgen.core import checks
from probgen.core.module import DistributionModule
from probgen.core.normal import MultivariateNormal
from probgen.heads import distributions
from probgen.heads.base import Head, Positive, raw_values


class Gaussian(Head):
    r"""Independent normal variables, :math:`x_d \sim N(\mu_d, s_d^2)`.

    Raw parameters: ``loc`` and, unless ``scale`` is given, one for
    :math:`s = \text{softplus}(\text{raw}) + \text{min\_scale}`.

    Parameters
    ----------
    net, event_ndim, context_ndim
        As in :class:`Head`.
    scale : float or Tensor or nn.Parameter, optional
        Fixed scale, or (as ``nn.Parameter``) a learned one shared by all rows, of a shape that
        broadcasts to events.
    min_scale : float
        Smallest scale that the network can give; it bounds the density.

    >>> from probgen.nn import MLP
    >>> decoder = Gaussian(MLP(2, [16], 5), scale=nn.Parameter(torch.ones(5)))
    >>> decoder(torch.zeros(7, 2)).sample().shape
    torch.Size([7, 5])
    """

    def __init__(
        self,
        net: nn.Module | None = None,
        *,
        scale: float | Tensor | None = None,
        min_scale: float = 1e-3,
        event_ndim: int = 1,
        context_ndim: int = 1,
    ):
        checks.not_negative(min_scale=min_scale)
        super().__init__(
            net, ("loc", "scale") if scale is None else ("loc",), event_ndim, context_ndim
        )
        self.scale = None if scale is None else Positive(scale)
        self.min_scale = min_scale

    def distribution(self, raw: Tensor) -> dist.TorchDistribution:
        if self.scale is not None:
            return distributions.Normal(raw.squeeze(0), self.scale())
        loc, scale = raw
        return distributions.Normal(loc, softplus(scale) + self.min_scale)


class StudentT(Head):
    r"""Independent Student t variables: heavier tails than normal ones, robust to outliers.

    Raw parameters: ``loc``, ``scale`` (as in :class:`Gaussian`) and, unless ``df`` is given, one
    for the degrees of freedom :math:`\nu = 2 + \text{softplus}(\text{raw})`, so that the variance
    is finite.

    Parameters
    ----------
    net, min_scale, event_ndim, context_ndim
        As in :class:`Gaussian`.
    df : float or Tensor or nn.Parameter, optional
        Fixed or (``nn.Parameter``) learned degrees of freedom, shared by all rows.

    >>> StudentT(df=4.0).width(3)
    6
    """

    def __init__(
        self,
        net: nn.Module | None = None,
        *,
        df: float | Tensor | None = None,
        min_scale: float = 1e-3,
        event_ndim: int = 1,
        context_ndim: int = 1,
    ):
        checks.not_negative(min_scale=min_scale)
        super().__init__(
            net,
            ("loc", "scale", "df") if df is None else ("loc", "scale"),
            event_ndim,
            context_ndim,
        )
        self.df = None if df is None else Positive(df)
        self.min_scale = min_scale

    def distribution(self, raw: Tensor) -> dist.TorchDistribution:
        loc, scale, *rest = raw
        df = 2 + softplus(rest[0]) if self.df is None else self.df()
        return distributions.StudentT(df, loc, softplus(scale) + self.min_scale)


class FullGaussian(DistributionModule):
    r"""Normal vectors with a full covariance, :math:`x \sim N(\mu, L L^\top)`.

    Missing entries are integrated out.

    Raw parameters of D variables: ``loc`` (D values), the diagonal of L before softplus (D), and
    the rest of its lower triangle row by row (D (D - 1) / 2).

    Parameters
    ----------
    net, context_ndim
        As in :class:`Head`.
    min_scale : float
        Smallest entry on the diagonal of L.

    Raises
    ------
    ValueError
        If the network's output is not ``width(D)`` long for any D.

    >>> FullGaussian()(torch.zeros(7, 9)).covariance_matrix.shape
    torch.Size([7, 3, 3])
    """

    unknown_contexts = False
    context_net = "net"

    event_ndim = 1

    def __init__(
        self, net: nn.Module | None = None, *, min_scale: float = 1e-3, context_ndim: int = 1
    ):
        checks.network(**checks.given(net=net))
        checks.not_negative(min_scale=min_scale)
        checks.at_least(0, context_ndim=context_ndim)
        super().__init__()
        self.net = nn.Identity() if net is None else net
        self.min_scale = min_scale
        self.context_ndim = context_ndim

    def width(self, dims: int) -> int:
        """Number of values that the network must give for ``dims`` variables."""
        return dims * (dims + 3) // 2

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        values = raw_values(self, context)
        dims = (math.isqrt(9 + 8 * values.shape[-1]) - 3) // 2
        if self.width(dims) != values.shape[-1] or dims < 1:
            raise ValueError(
                "expected the network of FullGaussian to give D (D + 3) / 2 values (loc and lower "
                "triangle) for D "
                f"variables, got {values.shape[-1]}; set its outputs to head.width(D)"
            )
        loc, diagonal, lower = values.split((dims, dims, self.width(dims) - 2 * dims), -1)
        tril = torch.diag_embed(softplus(diagonal) + self.min_scale)
        row, column = torch.tril_indices(dims, dims, -1, device=tril.device)
        tril[..., row, column] = lower
        return MultivariateNormal(loc, scale_tril=tril)
