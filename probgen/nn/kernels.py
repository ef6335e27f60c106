"""Covariance functions of Gaussian processes, as modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from probgen.core import checks


class RBFKernel(nn.Module):
    r"""Squared exponential covariance with a length scale for each input (ARD).

    .. math:: k(a, b) = s^2 \exp\Bigl(-\tfrac12 \sum_q \frac{(a_q - b_q)^2}{\ell_q^2}\Bigr)

    Inputs that the data do not need get long scales.

    Parameters
    ----------
    dims : int
        Number Q of inputs.
    lengthscale, scale : float
        First values of each :math:`\ell_q` and of s, which are learned.

    References
    ----------
    Rasmussen, Williams (2006), Gaussian processes for machine learning, section 4.2,
    https://gaussianprocess.org/gpml

    >>> kernel = RBFKernel(2)
    >>> kernel(torch.zeros(3, 2), torch.ones(5, 2)).shape, kernel.diagonal(torch.zeros(3, 2))
    (torch.Size([3, 5]), tensor([1., 1., 1.], grad_fn=<ExpandBackward0>))
    """

    def __init__(self, dims: int, *, lengthscale: float = 1.0, scale: float = 1.0):
        checks.at_least(1, dims=dims)
        checks.positive(lengthscale=lengthscale, scale=scale)
        super().__init__()
        self.dims = dims
        self.log_lengthscale = nn.Parameter(torch.full((dims,), float(lengthscale)).log())
        self.log_scale = nn.Parameter(torch.tensor(float(scale)).log())

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Covariances of inputs with each of M others: ``(*batch, Q), (M, Q) -> (*batch, M)``."""
        center = b.detach().mean(-2, keepdim=True)  # products lose differences of far points
        a, b = ((value - center) / self.log_lengthscale.exp() for value in (a, b))
        squares = a.square().sum(-1, keepdim=True) + b.square().sum(-1) - 2 * a @ b.mT
        return (2 * self.log_scale - squares.clamp(min=0) / 2).exp()

    def diagonal(self, a: Tensor) -> Tensor:
        """Variances: ``(*batch, Q) -> (*batch,)``."""
        return (2 * self.log_scale).exp().expand(a.shape[:-1])


class LinearKernel(nn.Module):
    r"""Covariance of linear functions with a scale for each input (ARD).

    .. math:: k(a, b) = \sum_q s_q^2\, a_q b_q

    Parameters
    ----------
    dims : int
        Number Q of inputs.
    scale : float
        First value of each :math:`s_q`, which are learned.

    References
    ----------
    Rasmussen, Williams (2006), Gaussian processes for machine learning, section 4.2,
    https://gaussianprocess.org/gpml

    >>> kernel = LinearKernel(2)
    >>> kernel(torch.ones(3, 2), torch.ones(1, 2)).detach()
    tensor([[2.],
            [2.],
            [2.]])
    """

    def __init__(self, dims: int, *, scale: float = 1.0):
        checks.at_least(1, dims=dims)
        checks.positive(scale=scale)
        super().__init__()
        self.dims = dims
        self.log_scale = nn.Parameter(torch.full((dims,), float(scale)).log())

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Covariances of inputs with each of M others: ``(*batch, Q), (M, Q) -> (*batch, M)``."""
        return a * (2 * self.log_scale).exp() @ b.mT

    def diagonal(self, a: Tensor) -> Tensor:
        """Variances: ``(*batch, Q) -> (*batch,)``."""
        return (a.square() * (2 * self.log_scale).exp()).sum(-1)
