r"""Moments of the components of a Gaussian mixture under the posterior of the component: what the E-step of EM needs.

With posteriors :math:`r_{kb} = p(k \mid x_b)` these are, for each component, the expected number of rows
:math:`\sum_b r_{kb}`, the first moment :math:`\sum_b r_{kb} (x_b - \mu_k)` and the scatter
:math:`\sum_b r_{kb} (x_b - \mu_k)(x_b - \mu_k)^\top`, about the present means and in float64. Three ways of summing:

* ``Quadratic``: log-densities and moments are linear in products of variables, two matrix products in all; loses the
  digits of (distance / scale) squared, so it is used where this leaves most of them.
* ``Whitened``: in the coordinates of each component, which loses none; twice the arithmetic.
* ``Observed``: rows with the same missing entries, by conditional moments.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from probgen.core.missing import has_missing
from probgen.core.threads import one_core, side_by_side
from probgen.distributions.covariance import Covariance

_WIDEST = 4096  # features of a row beyond which a block of rows holds too few of them for matrix products
_FEWEST = 4096  # rows that are worth a thread
_ROUNDING = 16  # in units of the last digit: what sums of products lose


class Mixture(NamedTuple):
    """The parameters: log weights ``(K,)``, means ``(K, D)``, covariances."""

    log_weights: Tensor
    means: Tensor
    covariance: Covariance

    @property
    def constant(self) -> Tensor:
        """Log of weight times density at the mean: ``(K,)``, float64."""
        dims = self.means.shape[1]
        return self.log_weights.double() - self.covariance.log_det - 0.5 * dims * math.log(2 * math.pi)


@torch.no_grad()
def moments(x: Tensor, mixture: Mixture) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-likelihood of rows ``(n, D)``, NaN = missing, summed, and their moments about the present means.

    The moments are ``rows`` (K,), ``first`` (K, D), ``scatter`` in the shape of the covariance's form, and ``noise``
    (K, D), the rounding in the scatter's diagonal.
    """
    with one_core() as cores:
        return _moments(x, mixture, cores)


def _moments(x: Tensor, mixture: Mixture, cores: int) -> tuple[Tensor, dict[str, Tensor]]:
    total, sums = 0.0, {}
    for step, pieces, _ in _steps(x, mixture, cores):
        value, *raw = map(sum, zip(*side_by_side(partial(_sum, step), pieces), strict=True))
        total = total + value
        for name, part in zip(("rows", "first", "scatter", "noise"), step.finish(*raw), strict=True):
            sums[name] = sums.get(name, 0.0) + part
    return total, sums


@torch.no_grad()
def weighted_moments(x: Tensor, weights: Tensor, mixture: Mixture) -> dict[str, Tensor]:
    """The same moments under given weights of each component, ``(K, n)``, in place of the posteriors of the mixture."""
    sums: dict[str, Tensor] = {}
    with one_core() as cores:
        for step, pieces, index in _steps(x, mixture, cores):
            parts = weights[:, index].split([len(piece) for piece in pieces], -1)
            raw = map(
                sum, zip(*side_by_side(partial(_sum_weighted, step), zip(pieces, parts, strict=True)), strict=True)
            )
            for name, part in zip(("rows", "first", "scatter", "noise"), step.finish(*raw), strict=True):
                sums[name] = sums.get(name, 0.0) + part
    return sums


@torch.no_grad()
def log_joint(x: Tensor, mixture: Mixture) -> Tensor:
    r""":math:`\log p(k, x_b)` of rows: ``(n, D) -> (n, K)``; NaN = missing."""
    out = x.new_empty(len(x), len(mixture.means))
    with one_core() as cores:
        for step, pieces, index in _steps(x, mixture, cores):
            out[index] = torch.cat(side_by_side(partial(_evaluate, step), pieces)).to(x.dtype)
    return out


def _sum(step: Quadratic | Whitened | Observed, x: Tensor) -> tuple[Tensor | float, ...]:
    """Log-likelihood and raw moments of rows, in float64."""
    buffers, totals = step.buffers(), (0.0, 0.0, 0.0, 0.0)
    for block in _blocks(x, step.block):
        joint, work = step.joint(block, buffers)
        value, posterior = _normalise(joint)
        parts = (value.sum(dtype=torch.float64), posterior.sum(1), *step.sums(posterior, *work))
        totals = tuple(old + part.double() for old, part in zip(totals, parts, strict=True))
    return totals


def _sum_weighted(step: Quadratic | Whitened | Observed, rows: tuple[Tensor, Tensor]) -> tuple[Tensor | float, ...]:
    """Raw moments of rows under their weights ``(K, n)``, in float64."""
    buffers, totals = step.buffers(), (0.0, 0.0, 0.0)
    for block, weights in zip(*(_blocks(part, step.block, dim) for dim, part in enumerate(rows)), strict=True):
        _, work = step.joint(block, buffers)
        weights = weights.to(work[0].dtype)
        parts = (weights.sum(1), *step.sums(weights, *work))
        totals = tuple(old + part.double() for old, part in zip(totals, parts, strict=True))
    return totals


def _evaluate(step: Quadratic | Whitened | Observed, x: Tensor) -> Tensor:
    buffers = step.buffers()
    return torch.cat([step.joint(block, buffers)[0].mT.clone() for block in _blocks(x, step.block)])


def _blocks(x: Tensor, rows: int, dim: int = 0) -> tuple[Tensor, ...]:
    """Blocks of about equal size, of at most so many rows."""
    count = x.shape[dim]
    return x.split(-(-count // -(-count // rows)), dim)


def _normalise(joint: Tensor) -> tuple[Tensor, Tensor]:
    """Log-likelihoods ``(n,)`` and posteriors ``(K, n)``, the latter in place.

    Posteriors stop at the root of the smallest number: below it processors compute many times slower.
    """
    top = joint.amax(0)
    joint.sub_(top).clamp_(min=0.5 * math.log(torch.finfo(joint.dtype).tiny)).exp_()
    total = joint.sum(0)
    return top + total.log(), joint.div_(total)


Step = tuple["Quadratic | Whitened | Observed", tuple[Tensor, ...], slice | Tensor]


def _steps(x: Tensor, mixture: Mixture, cores: int) -> Iterator[Step]:
    """Ways to sum, each with its rows in pieces that share the work, and the places of these rows."""
    pieces = _blocks(x, max(_FEWEST, -(-len(x) // cores))) if x.device.type == "cpu" else (x,)
    if not any(side_by_side(has_missing, pieces)):
        yield _best(x, mixture), pieces, slice(None)
        return
    patterns, index = x.isnan().logical_not().unique(dim=0, return_inverse=True)
    members = index.argsort().split(index.bincount(minlength=len(patterns)).tolist())
    tril = mixture.covariance.scale_tril.double()
    sigma = tril @ tril.mT
    for seen, rows in zip(patterns, members, strict=True):
        yield Observed(mixture, sigma, seen), (x[rows],), rows


def _best(x: Tensor, mixture: Mixture) -> Quadratic | Whitened:
    """The fastest way that leaves three fifths of the digits of a log density."""
    if mixture.covariance.width <= _WIDEST:
        step = Quadratic(mixture, x.dtype)
        magnitude = step.magnitude()
        for dtype in (x.dtype, torch.float64):
            if magnitude < torch.finfo(dtype).eps ** -0.4:
                return step if dtype == x.dtype else Quadratic(mixture, dtype)
    return Whitened(mixture, x.dtype)


def _block(x: Tensor, width: int) -> int:
    """How many rows of ``width`` numbers stay in the cache of a processor, or fill a graphics card.

    Blocks reuse their buffers: memory fresh from the operating system costs more time than the arithmetic done in it.
    """
    return max(128, (2**22 if x.device.type == "cpu" else 2**28) // (width * x.element_size()))


class Quadratic:
    r"""Log densities as linear functions of products of variables, about the centre c of the mixture.

    .. math:: \log p(k, x) = C_k f(z) + b_k^\top z + a_k, \qquad z = x - c
    """

    def __init__(self, mixture: Mixture, dtype: torch.dtype):
        means, self.covariance = mixture.means.double(), mixture.covariance
        weights, variances = mixture.log_weights.double().exp(), self.covariance.variance
        self.centre = (weights @ means).to(dtype)[:, None]
        self.shift = means - self.centre[:, 0]
        self.spread = (weights @ (variances + self.shift.square())).sqrt()
        linear, quadratic = self.covariance.solve(self.shift), self.covariance.coefficients()
        constant = mixture.constant - 0.5 * (linear * self.shift).sum(-1)
        self.quadratic, self.linear, self.constant = (part.to(dtype) for part in (quadratic, linear, constant[:, None]))
        self.widths = (means.shape[1], self.covariance.width, len(means))
        self.block = _block(self.centre, sum(self.widths))

    def magnitude(self) -> float:
        """Size of the terms that make up a log density, at the means of the components and one deviation off."""
        points = torch.cat([self.shift, self.spread[None]]).mT.contiguous()
        products = self.covariance.features(points, out=points.new_empty(self.covariance.width, points.shape[1]))
        terms = self.quadratic.double().square() @ products.square()
        return terms.sqrt().max().item()

    def buffers(self) -> list[Tensor]:
        return [self.centre.new_empty(width, self.block) for width in self.widths]

    def joint(self, x: Tensor, buffers: list[Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        z, features, joint = (buffer[:, : len(x)] for buffer in buffers)
        self.covariance.features(z.copy_(x.mT).sub_(self.centre), out=features)
        return torch.addmm(self.constant, self.linear, z, out=joint).addmm_(self.quadratic, features), (z, features)

    def sums(self, posterior: Tensor, z: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        return posterior @ z.mT, self.covariance.scatter(posterior, z, features)

    def finish(self, rows: Tensor, first: Tensor, scatter: Tensor) -> tuple[Tensor, ...]:
        """From moments about the centre to moments about the means."""
        outer, centred = self.covariance.outer, first - rows[:, None] * self.shift
        noise = _ROUNDING * torch.finfo(self.linear.dtype).eps * rows[:, None] * self.spread.square()
        return rows, centred, scatter - outer(first, self.shift) - outer(self.shift, centred), noise


class Whitened:
    r"""Log densities as squared lengths in the coordinates of each component.

    .. math:: \log p(k, x) = a_k - \tfrac12 |y_k|^2, \qquad y_k = L_k^{-1} (x - \mu_k)
    """

    def __init__(self, mixture: Mixture, dtype: torch.dtype):
        means, self.covariance = mixture.means.double(), mixture.covariance
        self.components, self.dims = means.shape
        self.tril = self.covariance.scale_tril.double()
        identity = torch.eye(self.dims, dtype=torch.float64, device=means.device)
        inverse = torch.linalg.solve_triangular(self.tril, identity, upper=False)
        self.centre = (mixture.log_weights.double().exp() @ means).to(dtype)
        offset = inverse @ (self.centre - means)[..., None]
        self.matrix, self.offset = inverse.flatten(0, 1).to(dtype), offset.flatten(0, 1).to(dtype)
        self.constant = mixture.constant.to(dtype)[:, None]
        self.block = _block(self.centre, 2 * self.components * self.dims)

    def buffers(self) -> list[Tensor]:
        return [self.centre.new_empty(self.components * self.dims, self.block) for _ in range(2)]

    def joint(self, x: Tensor, buffers: list[Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, free = (buffer[:, : len(x)] for buffer in buffers)
        torch.addmm(self.offset, self.matrix, (x - self.centre).mT, out=y)
        y, free = (part.unflatten(0, (self.components, self.dims)) for part in (y, free))
        return torch.mul(y, y, out=free).sum(1).mul_(-0.5).add_(self.constant), (y, free)

    def sums(self, posterior: Tensor, y: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
        root = posterior.sqrt()[:, None]
        y.mul_(root)  # in place, so that the scatter is one matrix by itself
        return torch.mul(y, root, out=free).sum(-1), torch.bmm(y, y.mT)

    def finish(self, rows: Tensor, first: Tensor, scatter: Tensor) -> tuple[Tensor, ...]:
        """From the coordinates of the components to those of the data."""
        first, scatter = (self.tril @ first[..., None])[..., 0], self.tril @ scatter @ self.tril.mT
        return rows, first, self.covariance.reduce(scatter), torch.zeros_like(first)


class Observed:
    r"""Rows of which the same variables o are observed; the others enter by their conditional moments.

    .. math:: E[x - \mu_k \mid x_o] = B_k y_k, \quad \operatorname{Cov}[x \mid x_o] = \Sigma_k - B_k B_k^\top,
              \qquad y_k = L_{k,oo}^{-1} (x_o - \mu_{k,o}), \quad B_k = \Sigma_{k, \cdot o} L_{k,oo}^{-\top}

    References
    ----------
    Ghahramani, Jordan (1994), Supervised learning from incomplete data via an EM approach,
    https://proceedings.neurips.cc/paper/1993/hash/f2201f5191c4e92cc5af043eebfd0946-Abstract.html
    """

    def __init__(self, mixture: Mixture, sigma: Tensor, seen: Tensor):
        self.covariance, self.seen = mixture.covariance, seen
        self.means = mixture.means[:, seen].double()
        tril = torch.linalg.cholesky(sigma[:, seen][:, :, seen])
        identity = torch.eye(tril.shape[-1], dtype=tril.dtype, device=tril.device)
        self.inverse = torch.linalg.solve_triangular(tril, identity, upper=False)
        self.gain = sigma[:, :, seen] @ self.inverse.mT
        self.left = sigma - self.gain @ self.gain.mT
        log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = mixture.log_weights.double() - log_det - 0.5 * self.means.shape[1] * math.log(2 * math.pi)
        self.constant = constant[:, None]
        self.block = _block(self.means, 3 * sigma[..., 0].numel())

    def buffers(self) -> list[Tensor]:
        return []

    def joint(self, x: Tensor, buffers: list[Tensor]) -> tuple[Tensor, tuple[Tensor]]:
        y = self.inverse @ (x[:, self.seen].double() - self.means[:, None]).mT
        return self.constant - 0.5 * y.square().sum(1), (y,)

    def sums(self, posterior: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        weighted = y * posterior[:, None]
        return weighted.sum(-1), torch.bmm(weighted, y.mT)

    def finish(self, rows: Tensor, first: Tensor, scatter: Tensor) -> tuple[Tensor, ...]:
        """From the coordinates of the observed variables to those of all."""
        scatter = self.gain @ scatter @ self.gain.mT + rows[:, None, None] * self.left
        first = (self.gain @ first[..., None])[..., 0]
        return rows, first, self.covariance.reduce(scatter), torch.zeros_like(first)
