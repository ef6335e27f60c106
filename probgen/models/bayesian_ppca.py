"""Bayesian PCA: the number of factors is decided by the data."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import WITHOUT, received
from probgen.core.missing import MissingAware
from probgen.core.module import LatentVariableModel, data_plate
from probgen.distributions.low_rank import LowRankMultivariateNormal


class BayesianPPCA(LatentVariableModel):
    r"""Probabilistic PCA with priors on all parameters.

    Columns of the loadings that the data do not need vanish.

    .. math::
        \alpha_k \sim \mathrm{Gamma}(a, b), \quad W_{dk} \sim N(0, 1 / \alpha_k), \quad \mu_d \sim
        N(0, s^2), \quad \sigma^2 \sim \mathrm{InverseGamma}(a, b), \\ z \sim N(0, I_K), \quad x
        \sim N(W z + \mu, \sigma^2 I_D)

    Sites ``"alpha"`` ``(K,)``, ``"W"`` ``(D, K)``, ``"mean"`` ``(D,)``, ``"noise"`` (the variance,
    a scalar), and ``"z"`` ``(K,)`` and ``"x"`` ``(D,)`` in plate ``"data"``. Missing coordinates
    (NaN) are integrated out exactly.

    The guide is free for the loadings, the mean and the noise, all independent, and exact for the
    rest: :math:`q(\alpha \mid W)` is the conjugate Gamma distribution and :math:`q(z \mid x, W,
    \mu, \sigma^2)` the Gaussian posterior of the factors. The evidence lower bound is therefore
    that of a model from which both are integrated out.

    Parameters
    ----------
    dims : int
        Length D of an event.
    factors : int
        Largest number K of factors, ``1 <= K < D``.
    a, b : float
        Shape and rate of the priors of precisions. The defaults are wide for columns with variances
        near one: standardize the data. Columns of W count as absent at lengths of about
        :math:`\sqrt{b}`.
    mean_scale : float
        Scale s of the prior of the mean.

    References
    ----------
    Bishop (1999), Bayesian PCA, NIPS 11; Bishop (1999), Variational principal components, ICANN

    >>> gen = BayesianPPCA(5, factors=3)
    >>> gen.model(torch.zeros(10, 5)).shape, gen().sample((4,)).shape
    (torch.Size([10, 5]), torch.Size([4, 5]))
    """

    context_size = 0
    context_hint = WITHOUT

    def __init__(
        self, dims: int, *, factors: int, a: float = 1e-3, b: float = 1e-3, mean_scale: float = 10.0
    ):
        checks.at_least(1, dims=dims, factors=factors)
        checks.positive(a=a, b=b, mean_scale=mean_scale)
        super().__init__()
        if not 1 <= factors < dims:
            raise ValueError(
                f"expected 1 <= factors < dims, got factors={factors}, dims={dims}; use fewer "
                "factors"
            )
        self.a = a
        self.b = b
        self.mean_scale = mean_scale
        self.loadings_loc = nn.Parameter(torch.randn(dims, factors) / dims**0.5)
        self.loadings_log_scale = nn.Parameter(torch.full((dims, factors), -3.0))
        self.mean_loc = nn.Parameter(torch.zeros(dims))
        self.mean_log_scale = nn.Parameter(torch.full((dims,), -3.0))
        self.noise_loc = nn.Parameter(torch.zeros(()))
        self.noise_log_scale = nn.Parameter(torch.full((), -3.0))

    def model(self, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        received(self, context)
        zeros = torch.zeros_like(self.loadings_loc)
        alpha = pyro.sample("alpha", dist.Gamma(zeros[0] + self.a, self.b).to_event(1))
        loadings = pyro.sample("W", dist.Normal(zeros, alpha.rsqrt().unsqueeze(-2)).to_event(2))
        mean = pyro.sample("mean", dist.Normal(zeros[:, 0], self.mean_scale).to_event(1))
        noise = pyro.sample("noise", dist.InverseGamma(zeros[0, 0] + self.a, self.b))
        with data_plate(x, context):
            z = pyro.sample("z", dist.Normal(zeros[0], 1.0).to_event(1))
            loc = mean + torch.einsum("...dk,...k->...d", loadings, z)
            return pyro.sample(
                "x", MissingAware(dist.Normal(loc, noise.sqrt().unsqueeze(-1)), 1), obs=x
            )

    def guide(self, x: Tensor | None = None, context: Tensor | None = None) -> None:
        received(self, context)
        dims = len(self.mean_loc)
        loadings = pyro.sample(
            "W", dist.Normal(self.loadings_loc, self.loadings_log_scale.exp()).to_event(2)
        )
        mean = pyro.sample(
            "mean", dist.Normal(self.mean_loc, self.mean_log_scale.exp()).to_event(1)
        )
        noise = pyro.sample("noise", dist.LogNormal(self.noise_loc, self.noise_log_scale.exp()))
        rate = self.b + loadings.square().sum(-2) / 2
        pyro.sample("alpha", dist.Gamma(torch.full_like(rate, self.a + dims / 2), rate).to_event(1))
        if x is None:
            return
        with data_plate(x, context):
            distribution = LowRankMultivariateNormal(
                mean, loadings, noise.unsqueeze(-1).expand(mean.shape)
            )
            pyro.sample("z", distribution.posterior(x))
