"""Ways of summing the moments of the components of a Gaussian mixture over rows."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from probgen.distributions.covariance import Covariance

_ROUNDING = 16  # in units of the last digit: what sums of products lose


class MixtureParameters(NamedTuple):
    """The parameters: log weights ``(K,)``, means ``(K, D)``, covariances."""

    log_weights: Tensor
    means: Tensor
    covariance: Covariance

    @property
    def constant(self) -> Tensor:
        """Log of weight times density at the mean: ``(K,)``, float64."""
        dims = self.means.shape[1]
        return (
            self.log_weights.double() - self.covariance.log_det - 0.5 * dims * math.log(2 * math.pi)
        )


def _block(x: Tensor, width: int) -> int:
    """How many rows of ``width`` numbers stay in the cache of a processor, or fill a graphics card.

    Blocks reuse their buffers: memory fresh from the operating system costs more time than the
    arithmetic done in it.
    """
    return max(128, (2**22 if x.device.type == "cpu" else 2**28) // (width * x.element_size()))


class Quadratic:
    r"""Log densities as linear functions of products of variables.

    About the center c of the mixture.

    .. math:: \log p(k, x) = C_k f(z) + b_k^\top z + a_k, \qquad z = x - c
    """

    def __init__(self, mixture: MixtureParameters, dtype: torch.dtype):
        means = mixture.means.double()
        self.covariance = mixture.covariance
        weights = mixture.log_weights.double().exp()
        variances = self.covariance.variance
        self.center = (weights @ means).to(dtype)[:, None]
        self.shift = means - self.center[:, 0]
        self.spread = (weights @ (variances + self.shift.square())).sqrt()
        linear = self.covariance.solve(self.shift)
        quadratic = self.covariance.coefficients()
        constant = mixture.constant - 0.5 * (linear * self.shift).sum(-1)
        self.quadratic, self.constant = (part.to(dtype) for part in (quadratic, constant[:, None]))
        self.coefficients = torch.cat((self.constant, linear.to(dtype), self.quadratic), -1)
        self.widths = (self.coefficients.shape[1], len(means))
        self.block = _block(self.center, sum(self.widths))

    def magnitude(self) -> float:
        """Size of the terms that make up a log density.

        At the means of the components and one deviation off.
        """
        points = torch.cat([self.shift, self.spread[None]]).mT.contiguous()
        products = self.covariance.features(
            points, out=points.new_empty(self.covariance.width, points.shape[1])
        )
        terms = self.quadratic.double().square() @ products.square()
        return terms.sqrt().max().item()

    def buffers(self, rows: int) -> list[Tensor]:
        products, joint = (self.center.new_empty(width, rows) for width in self.widths)
        products[0] = 1.0
        return [products, joint]

    def joint(self, x: Tensor, buffers: list[Tensor]) -> tuple[Tensor, tuple[Tensor]]:
        products, joint = (buffer[:, : len(x)] for buffer in buffers)
        _, z, features = products.tensor_split((1, 1 + x.shape[1]))
        self.covariance.features(torch.sub(x.mT, self.center, out=z), out=features)
        return torch.mm(self.coefficients, products, out=joint), (products,)

    def sums(self, posterior: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
        last = 1 + len(self.center)
        # the taller factor first: its transpose is up to a half slower in double precision
        _, first, features = (products @ posterior.mT).mT.tensor_split((1, last), -1)
        return first, self.covariance.scatter(features, posterior, products[1:last])

    def finish(self, rows: Tensor, first: Tensor, scatter: Tensor) -> tuple[Tensor, ...]:
        """From moments about the center to moments about the means."""
        outer = self.covariance.outer
        scatter = self.covariance.unpacked(scatter)
        centered = first - rows[:, None] * self.shift
        noise = (
            _ROUNDING * torch.finfo(self.constant.dtype).eps * rows[:, None] * self.spread.square()
        )
        return (
            rows,
            centered,
            scatter - outer(first, self.shift) - outer(self.shift, centered),
            noise,
        )


class Whitened:
    r"""Log densities as squared lengths in the coordinates of each component.

    .. math:: \log p(k, x) = a_k - \tfrac12 |y_k|^2, \qquad y_k = L_k^{-1} (x - \mu_k)
    """

    def __init__(self, mixture: MixtureParameters, dtype: torch.dtype):
        means = mixture.means.double()
        self.covariance = mixture.covariance
        self.components, self.dims = means.shape
        self.tril = self.covariance.scale_tril.double()
        identity = torch.eye(self.dims, dtype=torch.float64, device=means.device)
        inverse = torch.linalg.solve_triangular(self.tril, identity, upper=False)
        self.center = (mixture.log_weights.double().exp() @ means).to(dtype)
        offset = inverse @ (self.center - means)[..., None]
        self.matrix = inverse.flatten(0, 1).to(dtype)
        self.offset = offset.flatten(0, 1).to(dtype)
        self.constant = mixture.constant.to(dtype)[:, None]
        self.block = _block(self.center, 2 * self.components * self.dims)

    def buffers(self, rows: int) -> list[Tensor]:
        return [self.center.new_empty(self.components * self.dims, rows) for _ in range(2)]

    def joint(self, x: Tensor, buffers: list[Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, free = (buffer[:, : len(x)] for buffer in buffers)
        torch.addmm(self.offset, self.matrix, (x - self.center).mT, out=y)
        y, free = (part.unflatten(0, (self.components, self.dims)) for part in (y, free))
        return torch.mul(y, y, out=free).sum(1).mul_(-0.5).add_(self.constant), (y, free)

    def sums(self, posterior: Tensor, y: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
        root = posterior.sqrt()[:, None]
        y.mul_(root)  # in place, so that the scatter is one matrix by itself
        return torch.mul(y, root, out=free).sum(-1), torch.bmm(y, y.mT)

    def finish(self, rows: Tensor, first: Tensor, scatter: Tensor) -> tuple[Tensor, ...]:
        """From the coordinates of the components to those of the data."""
        first = (self.tril @ first[..., None])[..., 0]
        scatter = self.tril @ scatter @ self.tril.mT
        return rows, first, self.covariance.reduce(scatter), torch.zeros_like(first)


class RowsOfPattern:
    r"""Rows of which the same variables o are observed.

    The others enter by their conditional moments.

    .. math:: E[x - \mu_k \mid x_o] = B_k y_k, \quad \operatorname{Cov}[x \mid x_o] = \Sigma_k - B_k B_k^\top,
              \qquad y_k = L_{k,oo}^{-1} (x_o - \mu_{k,o}), \quad B_k = \Sigma_{k, \cdot o}
              L_{k,oo}^{-\top}

    References
    ----------
    Ghahramani, Jordan (1994), Supervised learning from incomplete data via an EM approach,
    https://proceedings.neurips.cc/paper/1993/hash/f2201f5191c4e92cc5af043eebfd0946-Abstract.html
    """

    def __init__(self, mixture: MixtureParameters, sigma: Tensor, seen: Tensor):
        self.covariance = mixture.covariance
        self.seen = seen
        self.means = mixture.means[:, seen].double()
        tril = torch.linalg.cholesky(sigma[:, seen][:, :, seen])
        identity = torch.eye(tril.shape[-1], dtype=tril.dtype, device=tril.device)
        self.inverse = torch.linalg.solve_triangular(tril, identity, upper=False)
        self.gain = sigma[:, :, seen] @ self.inverse.mT
        self.left = sigma - self.gain @ self.gain.mT
        log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = (
            mixture.log_weights.double()
            - log_det
            - 0.5 * self.means.shape[1] * math.log(2 * math.pi)
        )
        self.constant = constant[:, None]
        self.block = _block(self.means, 3 * sigma[..., 0].numel())

    def buffers(self, rows: int) -> list[Tensor]:
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
