"""Gaussian noise on data, in continuous or discrete time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from probgen.distributions.diffusion.predictions import Prediction
from probgen.distributions.diffusion.times import NoiseSchedule, Steps, grid
from probgen.distributions.diffusion.variances import Variance
from probgen.samplers.reverse import Grid


@dataclass(frozen=True)
class GaussianNoise:
    r"""Gaussian noise added to data.

    .. math:: q(z_t \mid x) = N(\alpha_t x, \sigma_t^2), \qquad
              q(z_s \mid z_t, x) = N\Big(\frac{\alpha_s}{\alpha_t} (1 - c)\, z_t + \alpha_s c\, x,\;
              \sigma_s^2 c\Big), \qquad c = 1 - e^{\lambda_t - \lambda_s}

    Time 0 is the least noisy state; the data given it have a distribution of their own
    (:mod:`probgen.distributions.diffusion.reconstruction`). Times ``t`` have shape ``(*batch,)`` or
    (); states and data ``(*batch, *event)``.

    Attributes
    ----------
    schedule : NoiseSchedule
        Levels of signal and noise.
    prediction : Prediction
        What the network predicts.
    variance : Variance
        Of the reverse steps.
    event_ndim : int
        Number of event dims.
    num_times : int, optional
        Number T of the times 1 / T, ..., 1 of a chain; ``None``: continuous time.
    limit : callable, optional
        ``limit(x, event_ndim)`` brings expected data to where data are, in sampling.
    start : float
        Log signal-to-noise ratio from which deterministic samplers start, where the schedule's lies
        below.
    """

    schedule: NoiseSchedule
    prediction: Prediction
    variance: Variance
    event_ndim: int
    num_times: int | None = None
    limit: Callable[[Tensor, int], Tensor] | None = None
    start: float = -math.inf
    continuous = True

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise with event dims of size one: ``(*batch,) -> (*batch, 1, ...)``."""
        alpha, sigma = self.schedule(t)
        return self.wide(alpha), self.wide(sigma)

    def wide(self, value: Tensor) -> Tensor:
        """Room for the event dims to the right."""
        return value.reshape(*value.shape, *[1] * self.event_ndim)

    def total(self, value: Tensor) -> Tensor:
        """The sum over an event: ``(*batch, *event) -> (*batch,)``."""
        return value.flatten(-self.event_ndim).sum(-1) if self.event_ndim else value

    def marginal(self, x: Tensor, t: Tensor) -> dist.TorchDistribution:
        alpha, sigma = self.levels(t)
        return self._normal(alpha * x, sigma)

    def noised(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Data with standard normal noise added."""
        alpha, sigma = self.levels(t)
        return alpha * x + sigma * noise

    def noise(self, z: Tensor, t: Tensor) -> Tensor:
        """Noise of mean 0 and variance 1, of the shape of z."""
        return torch.randn_like(z)

    def posterior(self, z: Tensor, x: Tensor, t: Tensor, s: Tensor) -> dist.TorchDistribution:
        return self._normal(self.mean(z, x, t, s), (0.5 * self.log_variances(t, s)[0]).exp())

    def prior(self, like: Tensor) -> dist.TorchDistribution:
        scale = self.prior_scale(like[(0,) * like.ndim])
        return dist.Normal(0 * like, scale, validate_args=False).to_event(like.ndim)

    def inputs(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.schedule(t)
        shown = self.prediction.inputs(z, self.wide(alpha), self.wide(sigma))
        return shown, self.prediction.time(t, alpha, sigma)

    def read(self, z: Tensor, output: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """The expected data, and what the network says about the variance."""
        output, raw = self._parts(output)
        x = self.prediction.original(output, z, *self.levels(t))
        return x if self.limit is None else self.limit(x, self.event_ndim), raw

    def original(self, z: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """The expected data that an output tells, without bounds."""
        return self.prediction.original(self._parts(output)[0], z, *self.levels(t))

    def retold(self, z: Tensor, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """An output that tells other expected data x, and the same variance."""
        told = self.prediction.output(x, z, *self.levels(t))
        raw = self._parts(output)[1]
        return told if raw is None else torch.cat((told, raw), -self.event_ndim)

    def shifted(self, z: Tensor, output: Tensor, slope: Tensor, t: Tensor) -> Tensor:
        r"""The output that tells a score larger by a slope.

        By Tweedie's formula :math:`\hat x = (z + \sigma^2 \nabla \log p(z)) / \alpha`.
        """
        alpha, sigma = self.levels(t)
        x = self.original(z, output, t) + sigma.square() / alpha * slope
        return self.retold(z, output, x, t)

    def noise_to_signal(self, t: Tensor) -> Tensor:
        """The ratio of noise to signal at a time."""
        return (-self.schedule.log_snr(t) / 2).exp()

    def estimate(self, z: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """The expected data that an output tells."""
        return self.read(z, output, t)[0]

    def reverse(self, z: Tensor, output: Tensor, t: Tensor, s: Tensor) -> dist.TorchDistribution:
        x, raw = self.read(z, output, t)
        log_variance = self.variance.log_variance(raw, *self.log_variances(t, s))
        return self._normal(self.mean(z, x, t, s), (0.5 * log_variance).exp())

    def mean(self, z: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        r"""The mean of :math:`q(z_s \mid z_t, x)` for times s < t."""
        (here, _), (there, _) = self.levels(t), self.levels(s)
        share = self.wide(self._share(t, s))
        return there / here * (1 - share) * z + there * share * x

    def log_variances(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        r"""Logarithms of :math:`\tilde\beta = \sigma_s^2 c` and :math:`\beta = \sigma_t^2 c`.

        With event dims.
        """
        (_, here), (_, there) = self.schedule(t), self.schedule(s)
        share = self._share(t, s).log()
        return self.wide(2 * there.log() + share), self.wide(2 * here.log() + share)

    def forward_step(self, z: Tensor, s: Tensor, t: Tensor) -> Tensor:
        r"""A draw of :math:`q(z_t \mid z_s)` for times s < t: noise added again."""
        (there, _), (here, _) = self.levels(s), self.levels(t)
        log_variance = self.log_variances(t, s)[1]
        return here / there * z + (0.5 * log_variance).exp() * torch.randn_like(z)

    def path(self, times: Steps, num_steps: int, like: Tensor) -> Grid:
        return grid(self.schedule, times(num_steps, self.schedule, like))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Time derivatives of signal and noise, ``(*batch,)`` each."""
        return _derivative(lambda t: self.schedule(t)[0], t), _derivative(
            lambda t: self.schedule(t)[1], t
        )

    def prior_scale(self, like: Tensor) -> Tensor:
        r"""Standard deviation :math:`\sqrt{\alpha_1^2 + \sigma_1^2}` of pure noise.

        What standardized data become.
        """
        alpha, sigma = self.schedule(torch.ones_like(like))
        return (alpha.square() + sigma.square()).sqrt()

    def _parts(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """What an output tells of the data, and of the variance."""
        if not self.variance.learned:
            return output, None
        told, raw = output.chunk(2, -self.event_ndim)
        return told, raw

    def _share(self, t: Tensor, s: Tensor) -> Tensor:
        return -torch.expm1(self.schedule.log_snr(t) - self.schedule.log_snr(s))

    def _normal(self, mean: Tensor, scale: Tensor) -> dist.TorchDistribution:
        return dist.Normal(mean, scale, validate_args=False).to_event(self.event_ndim)


def _derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """Entry by entry, also where gradients are off."""
    graded = torch.is_grad_enabled()
    with torch.enable_grad():
        t = t.detach().requires_grad_()
        value = function(t) + 0 * t  # some do not depend on it
        return torch.autograd.grad(value.sum(), t, create_graph=graded)[0]
