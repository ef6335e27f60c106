"""Continuous variables one by one: distribution functions, quantiles, and normal scores."""

from __future__ import annotations

import math
from functools import cache, singledispatch
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
import torch.distributions as td
from torch import Tensor, nn
from torch.distributions import biject_to, constraints

from probgen.core.gammas import log_gamma_gain
from probgen.core.inside import point_inside
from probgen.core.private_torch import standard_gamma_grad
from probgen.distributions.flows.bijection import Bijection
from probgen.heads.intervals import TruncatedNormal
from probgen.heads.mixed import ColumnDistributions

_NODES = 64
_DOUBLINGS = 60
_HALVINGS = 60
_USE = (
    "use margins such as heads.Gaussian, StudentT, Gamma, LogNormal, MixtureOfGaussians, or "
    "Copula.fitted(x)"
)


@singledispatch
def cdf(distribution: td.Distribution, x: Tensor) -> Tensor:
    """The distribution function of single variables, at values inside of their support.

    A function by type of distribution; what torch gives, and that of Student's t.

    Raises
    ------
    ValueError
        If there is none.

    >>> cdf(dist.StudentT(1.0), torch.tensor([0.0, 1.0]))          # a Cauchy distribution
    tensor([0.5000, 0.7500])
    """
    try:
        return distribution.cdf(x)
    except NotImplementedError as error:
        raise ValueError(
            "expected margins with a distribution function, got "
            f"{type(distribution).__name__}, which has none; {_USE}"
        ) from error


@cdf.register(td.StudentT)
def _(distribution: td.StudentT, x: Tensor) -> Tensor:
    r"""By quadrature of the tail, :math:`\int_0^\psi \sin^{\nu - 1}\varphi\, d\varphi`."""
    t = ((x - distribution.loc) / distribution.scale).double()  # near many degrees, angles are tiny
    df = distribution.df.double()
    end = math.pi / 2 - (t.abs() / df.sqrt()).atan()
    constant = log_gamma_gain(df / 2, 0.5) - 0.5 * math.log(math.pi)
    tail = constant.exp() * torch.where(df < 2, _power_tail(df, end), _tail(df, end))
    return torch.where(t < 0, tail, 1 - tail).to(x)


def _tail(df: Tensor, end: Tensor) -> Tensor:
    """The integral over the part of it that is not negligible."""
    nodes, weights = (torch.as_tensor(part).to(end) for part in _legendre())
    width = torch.minimum(end, 14 / df.sqrt())
    angles = end[..., None] - width[..., None] * nodes
    heights = ((df - 1)[..., None] * angles.sin().clamp(min=1e-30).log()).exp()
    return width * (heights @ weights)


def _power_tail(df: Tensor, end: Tensor) -> Tensor:
    r"""The integral in :math:`\varphi^\nu`, where the sine has a root near 0."""
    nodes, weights = (torch.as_tensor(part).to(end) for part in _legendre())
    few = df.clamp(max=2.0)
    angles = end[..., None] * nodes.pow(1 / few[..., None])
    heights = (angles.sin() / angles).pow((few - 1)[..., None])
    return end.pow(few) / few * (heights @ weights)


@cdf.register(td.Gamma)
def _(distribution: td.Gamma, x: Tensor) -> Tensor:
    r"""With the gradient by the concentration, :math:`-p(y)\, \partial y / \partial a` at a share.

    Source: Figurnov, Mohamed, Mnih (2018), Implicit reparameterization gradients,
    https://arxiv.org/abs/1805.08498
    """
    a, y = torch.broadcast_tensors(distribution.concentration, distribution.rate * x)
    with torch.no_grad():
        share = torch.special.gammainc(a, y)
        if not (a.requires_grad or y.requires_grad):
            return share
        inner = y.clamp(min=torch.finfo(y.dtype).tiny)
        slope = (torch.special.xlogy(a - 1, inner) - inner - torch.lgamma(a)).exp()
        turn = -slope * standard_gamma_grad(a, inner)
    return share + slope * (y - y.detach()) + turn * (a - a.detach())


@cdf.register(TruncatedNormal)
def _(distribution: TruncatedNormal, x: Tensor) -> Tensor:
    loc, scale = distribution.loc.double(), distribution.scale.double()
    ends = (
        x.double(),
        torch.full_like(loc, distribution.high),
        torch.full_like(loc, distribution.low),
    )
    whole, top, bottom = (torch.special.ndtr((end - loc) / scale) for end in ends)
    return ((whole - bottom) / (top - bottom)).to(x)


def _support(distribution: Any) -> Any:
    """Where single variables lie; those of a mixture where its components lie."""
    if isinstance(distribution, td.MixtureSameFamily):
        return _support(distribution.component_distribution)
    return distribution.support


@cache
def _legendre() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of Gauss and Legendre on (0, 1)."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return (nodes + 1) / 2, weights / 2


def quantile(distribution: Any, share: Tensor) -> Tensor:
    """The value below which a share of a continuous variable lies, by bisection.

    With gradients, by one step of Newton's method from there.

    >>> quantile(dist.Gamma(torch.tensor(1.0), 1.0), torch.tensor(0.5))        # log 2
    tensor(0.6931)
    """
    with torch.no_grad():
        onto = biject_to(_support(distribution))
        low = torch.full_like(share, -1.0)
        high = torch.full_like(share, 1.0)
        for _ in range(_DOUBLINGS):
            under = cdf(distribution, onto(low)) > share
            over = cdf(distribution, onto(high)) < share
            if not (under | over).any():
                break
            low = torch.where(under, 2 * low, low)
            high = torch.where(over, 2 * high, high)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            below = cdf(distribution, onto(middle)) < share
            low = torch.where(below, middle, low)
            high = torch.where(below, high, middle)
        x = onto((low + high) / 2)
    if not torch.is_grad_enabled():
        return x
    slope = distribution.log_prob(x).detach().exp().clamp(min=torch.finfo(x.dtype).tiny)
    moved = share - cdf(distribution, x)
    return x + (moved - moved.detach()) / slope


class NormalScores(Bijection):
    r"""The map :math:`z_d = \Phi^{-1}(F_d(x_d))` with the distribution functions of continuous margins.

    Scores beyond the precision of a share are the largest that there are: 8, or 5 of margins in
    single precision that are neither normal, lognormal, Gamma, Student t, nor mixtures of such.

    Parameters
    ----------
    margins : TorchDistribution
        Independent columns, events ``(D,)``.

    Raises
    ------
    ValueError
        If a column is discrete, depends on others, or has no distribution function.

    >>> margins = dist.LogNormal(torch.zeros(2), 1.0).to_event(1)
    >>> NormalScores(margins)(torch.tensor([1.0, math.e]))
    tensor([0.0000, 1.0000])
    """

    affine = False

    def __init__(self, margins: Any):
        super().__init__()
        self.blocks = _columns(margins)
        self.sizes = [block.batch_shape[-1] for block in self.blocks]
        self.domain = margins.support.base_constraint
        self.codomain = constraints.real

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        missing = x.isnan()
        pairs = [
            _scores(block, part, gone)
            for block, part, gone in zip(
                self.blocks, x.split(self.sizes, -1), missing.split(self.sizes, -1), strict=True
            )
        ]
        z, slopes = (torch.cat(parts, -1) for parts in zip(*pairs, strict=True))
        return torch.where(missing, torch.nan, z), torch.where(missing, 0.0, slopes)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        eps = torch.finfo(y.dtype).eps
        shares = torch.special.ndtr(y).clamp(eps, 1 - eps).split(self.sizes, -1)
        x = torch.cat(
            [quantile(block, share) for block, share in zip(self.blocks, shares, strict=True)],
            -1,
        )
        return x, -self.call_and_ladj(x)[1]


@singledispatch
def _wide(distribution: Any) -> Any:
    """The distribution in double precision, where that is known: shares near 1 need it."""
    return distribution


@_wide.register(td.Normal)
@_wide.register(td.LogNormal)
def _(distribution: Any) -> Any:
    family = dist.Normal if isinstance(distribution, td.Normal) else dist.LogNormal
    loc, scale = distribution.loc.double(), distribution.scale.double()
    return family(loc, scale, validate_args=False)


@_wide.register(td.Gamma)
def _(distribution: td.Gamma) -> Any:
    a, rate = distribution.concentration.double(), distribution.rate.double()
    return dist.Gamma(a, rate, validate_args=False)


@_wide.register(td.StudentT)
def _(distribution: td.StudentT) -> Any:
    parts = (distribution.df, distribution.loc, distribution.scale)
    return dist.StudentT(*(part.double() for part in parts), validate_args=False)


@_wide.register(td.MixtureSameFamily)
def _(distribution: td.MixtureSameFamily) -> Any:
    component = _wide(distribution.component_distribution)
    if component is distribution.component_distribution:
        return distribution
    weights = dist.Categorical(logits=distribution.mixture_distribution.logits.double())
    return dist.MixtureSameFamily(weights, component, validate_args=False)


def _scores(distribution: Any, x: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
    """Normal scores of single variables, and the logarithms of their slopes."""
    inside = torch.where(missing, point_inside(distribution.support, torch.Size(), x), x)
    wide = _wide(distribution)
    share = cdf(wide, inside if wide is distribution else inside.double())
    eps = torch.finfo(share.dtype).eps
    z = torch.special.ndtri(share.clamp(eps, 1 - eps)).to(x)
    return z, distribution.log_prob(inside) + 0.5 * (z.square() + math.log(2 * math.pi))


def _columns(margins: Any) -> list[Any]:
    """The distributions of blocks of single variables, batch shapes ``(*batch, d)``."""
    parts = margins.distributions if isinstance(margins, ColumnDistributions) else [margins]
    blocks = [_single(part) for part in parts]
    for block in blocks:
        _check(block)
    return blocks


def _single(part: Any) -> Any:
    """What a distribution of independent variables says of each of them."""
    if (
        not isinstance(part, td.Independent)
        or part.reinterpreted_batch_ndims != 1
        or part.base_dist.event_shape
    ):
        raise ValueError(
            "expected margins that are independent columns, events (D,), got "
            f"{type(part).__name__} of events {tuple(part.event_shape)}; give a head, "
            "heads.Gaussian(Constant(2 * D)), or several in heads.Mixed"
        )
    return part.base_dist


def _check(block: Any) -> None:
    if block.support.is_discrete:
        raise ValueError(
            f"expected continuous margins, got {type(block).__name__}, whose shares are no single "
            f"number; {_USE}"
        )


def kernels(centers: Tensor, widths: Tensor) -> dist.TorchDistribution:
    """Mixtures of equal normal distributions, one for each variable: ``(D, M)`` each.

    >>> kernels(torch.zeros(2, 3), torch.ones(2, 3)).batch_shape
    torch.Size([2])
    """
    weights = dist.Categorical(logits=torch.zeros_like(centers))
    return dist.MixtureSameFamily(weights, dist.Normal(centers, widths))


def kernel_margins(x: Tensor, points: int) -> tuple[Tensor, Tensor]:
    r"""Centers and widths ``(D, M)`` of kernel estimates of columns ``(N, D)``.

    Kernels stand at M quantiles of the observed entries. Their widths are Silverman's for the number
    n of these, :math:`0.9 \min(s, \mathrm{IQR} / 1.34)\, n^{-1/5}`, or, where rows are sparse (in
    the tails), the distance to the neighboring kernels.

    Source: Silverman (1986), Density estimation for statistics and data analysis, section 3.4;
    Breiman, Meisel, Purcell (1977), Variable kernel estimates of multivariate densities,
    https://doi.org/10.1080/00401706.1977.10489521

    >>> centers, widths = kernel_margins(torch.arange(5.0)[:, None], 3)
    >>> centers
    tensor([[0.6667, 2.0000, 3.3333]])
    """
    shares = (torch.arange(points).to(x) + 0.5) / points
    centers = torch.stack([column[~column.isnan()].quantile(shares) for column in x.mT])
    counts = (~x.isnan()).sum(0)
    deviation = (x - x.nanmean(0)).square().nanmean(0).sqrt()
    ends = [x.nanquantile(share, 0) for share in (0.25, 0.75)]
    middle = (ends[1] - ends[0]) / 1.34
    spread = torch.where(middle > 0, torch.minimum(deviation, middle), deviation)
    least = 0.9 * spread * counts.to(x).pow(-0.2)
    gaps = nn.functional.pad(centers.diff(), (1, 1), mode="replicate")
    return centers, torch.maximum(least[:, None], (gaps[:, 1:] + gaps[:, :-1]) / 2)
