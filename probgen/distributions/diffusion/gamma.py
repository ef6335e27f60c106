"""Chains driven by Gamma noise."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from probgen.core import checks
from probgen.distributions.diffusion.additive import AdditiveNoise
from probgen.distributions.diffusion.gamma_distributions import TINY, CenteredGamma, ScaledBeta
from probgen.distributions.diffusion.predictions import Epsilon, Prediction
from probgen.distributions.diffusion.process import at, independent, normal
from probgen.distributions.diffusion.tables import Shares
from probgen.distributions.diffusion.times import NoiseSchedule


class GammaNoise(AdditiveNoise):
    r"""Skewed noise: every step adds a centered Gamma variable.

    .. math:: z_t = \sqrt{1 - \beta_t}\, z_{t-1} + g_t - \operatorname{E} g_t, \qquad
              g_t \sim \Gamma(k_t, \theta_t), \quad \theta_t = \sqrt{\bar\alpha_t}\, \theta, \quad
              k_t = \frac{\beta_t}{\bar\alpha_t \theta^2}

    with shapes k and scales theta. Faded to step t, the variables of all steps have the one scale
    :math:`\theta_t`, so that marginals and posteriors are closed:

    .. math:: z_t - \sqrt{\bar\alpha_t}\, x + \bar k_t \theta_t = \bar g_t \sim \Gamma(\bar k_t, \theta_t), \qquad
              \bar k_t = \frac{1 / \bar\alpha_t - 1}{\theta^2}, \qquad
              \sqrt{\bar\alpha_t / \bar\alpha_s}\; \bar g_s = \bar g_t B, \quad
              B \sim \operatorname{Beta}(\bar k_s, \bar k_t - \bar k_s)

    The *model* has normal distributions, since the support of a Gamma distribution around a
    predicted datum would leave out part of the posterior's: :math:`p(z_s \mid z_t) = N(m,
    \tilde\beta)` with the posterior's mean at :math:`\hat x` and its variance averaged over z_t,
    and :math:`p(z_1) = N(0, 1)`. Divergences from the posteriors above are finite and in closed
    form, the bound is one of this model. Nachmani et al. train on Gamma noise and also *draw* with
    it: ``DDIM(num_steps, eta=1.0)``, whose draws follow another distribution than the one that the
    bound scores.

    Parameters
    ----------
    schedule, num_times, prediction, bounds
        As in :class:`AdditiveNoise <probgen.distributions.diffusion.additive.AdditiveNoise>`.
    theta : float
        Scale of the noise in units of the datum; the skewness of :math:`z_t` is :math:`2 \theta
        \sqrt{\bar\alpha_t / (1 - \bar\alpha_t)}`. Small values are close to normal noise.

    References
    ----------
    Nachmani, Roman, Wolf (2021), Non Gaussian denoising diffusion models,
    https://arxiv.org/abs/2106.07582

    >>> from probgen.distributions.diffusion.schedules import LinearSchedule
    >>> noise = GammaNoise(LinearSchedule(), theta=0.1, num_times=100)
    >>> marginal = noise.marginal(torch.zeros(3, 1), torch.tensor([0.01, 0.5, 1.0]))
    >>> marginal.base_dist.concentration[:, 0].round(decimals=1)
    tensor([2.0000e-01, 1.1712e+03, 2.3155e+06], dtype=torch.float64)
    """

    def __init__(
        self,
        schedule: NoiseSchedule | Shares,
        theta: float = 0.001,
        num_times: int | None = None,
        prediction: Prediction = Epsilon(),  # noqa: B008 (immutable)
        bounds: tuple[float, float] | None = None,
    ):
        checks.positive(theta=theta)
        super().__init__(schedule, num_times, prediction, bounds)
        self.theta = theta

    def marginal(self, x: Tensor, t: Tensor) -> dist.TorchDistribution:
        signal, _ = self.levels(t, x)
        return independent(CenteredGamma(signal * x, *self._shape(t, x)), t.ndim)

    def posterior(self, z: Tensor, x: Tensor, t: Tensor, s: Tensor) -> dist.TorchDistribution:
        mean, _ = self.mean_and_scale(z, x, t, s)
        (k, theta), (k_s, theta_s) = self._shape(t, z), self._shape(s, z)
        sum_of_noise = k * theta + (z - self.levels(t, z)[0] * x).double()
        width = (sum_of_noise * theta_s / theta).clamp(min=TINY)
        return independent(ScaledBeta(mean, width, k_s, k - k_s), t.ndim)

    def prior(self, like: Tensor) -> dist.TorchDistribution:
        return normal(torch.zeros_like(like), torch.ones_like(like), 0)

    def reverse(self, z: Tensor, output: Tensor, t: Tensor, s: Tensor) -> dist.TorchDistribution:
        return normal(*self.mean_and_scale(z, self.estimate(z, output, t), t, s), t.ndim)

    def standard_noise(self, z: Tensor, t: Tensor) -> dist.TorchDistribution:
        k, _ = self._shape(t, z)
        return independent(CenteredGamma(torch.zeros_like(z), k, k.rsqrt()), t.ndim)

    def _shape(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shape and scale of the sum of all noise in z_t, in double precision.

        Which broadcast to x.
        """
        log_signal = at(self.log_signal, t, x).double()
        return torch.expm1(-log_signal) / self.theta**2, self.theta * (0.5 * log_signal).exp()
