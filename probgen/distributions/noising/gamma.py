"""Chains driven by Gamma noise."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from probgen.core import checks
from probgen.distributions.noising.additive import AdditiveNoise, at, independent, standard_normal
from probgen.distributions.noising.gamma_distributions import TINY, CenteredGamma, ScaledBeta
from probgen.distributions.noising.schedules import Shares


class GammaNoise(AdditiveNoise):
    r"""Skewed noise: every step adds a centerd Gamma variable.

    .. math:: x_t = \sqrt{1 - \beta_t}\, x_{t-1} + g_t - \operatorname{E} g_t, \qquad
              g_t \sim \Gamma(k_t, \theta_t), \quad \theta_t = \sqrt{\bar\alpha_t}\, \theta, \quad
              k_t = \frac{\beta_t}{\bar\alpha_t \theta^2}

    with shapes k and scales theta. Faded to step t, the variables of all steps have the one scale
    :math:`\theta_t`, so that marginals and posteriors are closed:

    .. math:: x_t - \sqrt{\bar\alpha_t}\, x_0 + \bar k_t \theta_t = \bar g_t \sim \Gamma(\bar k_t, \theta_t), \qquad
              \bar k_t = \frac{1 / \bar\alpha_t - 1}{\theta^2}, \qquad
              \sqrt{\bar\alpha_t / \bar\alpha_s}\; \bar g_s = \bar g_t B, \quad
              B \sim \operatorname{Beta}(\bar k_s, \bar k_t - \bar k_s)

    The *model* has normal distributions, since the support of a Gamma distribution around a
    predicted datum would leave out part of the posterior's: :math:`p(x_s \mid x_t) = N(m,
    \tilde\beta)` with the posterior's mean at :math:`\hat x_0` and its variance averaged over x_t,
    and :math:`p(x_T) = N(0, 1)`. Divergences from the posteriors above are finite and in closed
    form, the bound is one of this model. Nachmani et al. train on Gamma noise and also *draw* with
    it: :func:`with_own_noise <probgen.distributions.noising.chain.with_own_noise>`, whose draws
    follow another distribution than the one that the bound scores.

    Parameters
    ----------
    schedule, bounds
        As in :class:`AdditiveNoise <probgen.distributions.noising.additive.AdditiveNoise>`.
    theta : float
        Scale of the noise in units of the datum; the skewness of :math:`x_t` is :math:`2 \theta
        \sqrt{\bar\alpha_t / (1 - \bar\alpha_t)}`. Small values are close to normal noise.

    References
    ----------
    Nachmani, Roman, Wolf (2021), Non Gaussian denoising diffusion models,
    https://arxiv.org/abs/2106.07582

    >>> from probgen.distributions.noising.schedules import linear_steps
    >>> noise = GammaNoise(linear_steps(100), theta=0.1)
    >>> noise.marginal(torch.zeros(3, 1), torch.tensor([1, 50, 100])).base_dist.concentration[:, 0].round(decimals=1)
    tensor([1.0000e-01, 1.2478e+03, 4.9042e+06], dtype=torch.float64)
    """

    def __init__(
        self, schedule: Shares, theta: float = 0.001, bounds: tuple[float, float] | None = None
    ):
        checks.positive(theta=theta)
        super().__init__(schedule, bounds)
        self.theta = theta

    def marginal(self, x_0: Tensor, t: Tensor) -> dist.TorchDistribution:
        return independent(
            CenteredGamma(self.scales(t, x_0)[0] * x_0, *self._shape(t, x_0)), t.ndim
        )

    def posterior(self, x_t: Tensor, x_0: Tensor, t: Tensor, s: Tensor) -> dist.TorchDistribution:
        mean, _ = self.mean_and_scale(x_t, x_0, t, s)
        (k, theta), (k_s, theta_s) = self._shape(t, x_t), self._shape(s, x_t)
        sum_of_noise = k * theta + (x_t - self.scales(t, x_t)[0] * x_0).double()
        width = (sum_of_noise * theta_s / theta).clamp(min=TINY)
        return independent(ScaledBeta(mean, width, k_s, k - k_s), t.ndim)

    def prior(self, shape: torch.Size) -> dist.TorchDistribution:
        return standard_normal(self.log_signal, shape)

    def reverse(self, x_t: Tensor, output: Tensor, t: Tensor, s: Tensor) -> dist.TorchDistribution:
        mean, scale = self.mean_and_scale(x_t, self.estimate(x_t, output, t), t, s)
        return independent(dist.Normal(mean, scale, validate_args=False), t.ndim)

    def noise(self, x_t: Tensor, t: Tensor) -> dist.TorchDistribution:
        k, _ = self._shape(t, x_t)
        return independent(CenteredGamma(torch.zeros_like(x_t), k, k.rsqrt()), t.ndim)

    def _shape(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shape and scale of the sum of all noise in x_t, in double precision.

        Which broadcast to x.
        """
        log_signal = at(self.log_signal, t, x).double()
        return torch.expm1(-log_signal) / self.theta**2, self.theta * (0.5 * log_signal).exp()
