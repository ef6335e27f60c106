"""Noise of known distribution added to a fading signal, in discrete time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from probgen.core import checks
from probgen.core.construction import Recorded
from probgen.distributions.diffusion.predictions import Epsilon, Prediction
from probgen.distributions.diffusion.process import at, refuse_missing, table_path, wide
from probgen.distributions.diffusion.schedules import TabulatedSchedule
from probgen.distributions.diffusion.tables import Shares, signal_shares
from probgen.distributions.diffusion.times import NoiseSchedule
from probgen.samplers.reverse import Grid


class AdditiveNoise(Recorded, nn.Module, ABC):
    r"""A fading datum plus noise of mean 0 and variance 1, at the times 1 / T, ..., 1.

    .. math:: z_t = \alpha_t x + \sigma_t \epsilon_t, \qquad \bar\alpha_t = \alpha_t^2 = 1 - \sigma_t^2

    The network is called with :math:`z_t` and t. Time 0 is the datum itself, whose distribution
    given :math:`z_{1/T}` is normal around the expected datum :math:`\hat x`, with the scale
    :math:`\sigma_{1/T} / \alpha_{1/T}` of the noise left.

    Parameters
    ----------
    schedule : Schedule, or sequence of float or Tensor
        A schedule that keeps the variance, as :class:`LinearSchedule
        <probgen.distributions.diffusion.schedules.LinearSchedule>`; or the numbers :math:`1 >
        \bar\alpha_1 > \dots > \bar\alpha_T > 0`, or :math:`\beta_t` that rise, shape ``(T,)``.
    num_times : int, optional
        The number T of times; with numbers, what they say.
    prediction : Prediction
        What the network predicts.
    bounds : (float, float), optional
        Where data lie: :math:`\hat x` is moved into them.

    Raises
    ------
    ValueError
        If the signal does not fall within (0, 1), or there are fewer than 2 times.
    """

    continuous = True
    start = -torch.inf
    log_signal: Tensor
    time_probabilities: Tensor

    def __init__(
        self,
        schedule: NoiseSchedule | Shares,
        num_times: int | None = None,
        prediction: Prediction = Epsilon(),  # noqa: B008 (immutable)
        bounds: tuple[float, float] | None = None,
    ):
        checks.has(("inputs", "original"), "pass Velocity() or Epsilon()", prediction=prediction)
        checks.pair(**checks.given(bounds=bounds))
        super().__init__()
        signal = signal_shares(schedule, num_times)
        if signal[-1] == 0:
            raise ValueError(
                "expected a schedule of shares of signal that fall within (0, 1), got 0 at the "
                "end, where numbers could not be told from noise; leave it out"
            )
        log_signal = torch.cat((signal.new_zeros(1), signal.log()))
        # differences of logarithms stay exact where steps are small
        self.register_buffer("log_signal", log_signal.to(torch.get_default_dtype()))
        ratio = signal.logit()
        time_probabilities = torch.cat((ratio.new_zeros(2), -ratio.diff() / (ratio[0] - ratio[-1])))
        self.register_buffer("time_probabilities", time_probabilities.to(torch.get_default_dtype()))
        self.schedule = TabulatedSchedule(signal)
        self.num_times = len(signal)
        self.prediction = prediction
        self.bounds = bounds

    @abstractmethod
    def marginal(self, x: Tensor, t: Tensor) -> dist.TorchDistribution:
        """The distribution of z_t given the datum.

        ``(*batch, *event)``, ``(*batch,)`` to events of that shape.
        """

    @abstractmethod
    def posterior(self, z: Tensor, x: Tensor, t: Tensor, s: Tensor) -> dist.TorchDistribution:
        """The distribution of z_s given z_t and the datum, 0 < s < t."""

    @abstractmethod
    def prior(self, like: Tensor) -> dist.TorchDistribution:
        """The distribution of z_1 that the model starts from, events of the shape of a tensor."""

    @abstractmethod
    def reverse(self, z: Tensor, output: Tensor, t: Tensor, s: Tensor) -> dist.TorchDistribution:
        """The model's distribution of z_s given z_t and what the network said of it, s >= 0."""

    @abstractmethod
    def standard_noise(self, z: Tensor, t: Tensor) -> dist.TorchDistribution:
        r"""The distribution of :math:`\epsilon_t`, of the shape of z, t > 0."""

    def noise(self, z: Tensor, t: Tensor) -> Tensor:
        """Noise of mean 0 and variance 1, distributed as that of the state at a time."""
        return self.standard_noise(z, t.clamp(min=1 / self.num_times)).sample()

    def inputs(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.prediction.inputs(z, *self.levels(t, z)), self._told(t, z)

    def loss(self, output: Tensor, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        r"""The simple loss, the squared error of what the network predicts, one number a row."""
        levels = self.levels(t, z)
        weight = self.prediction.weight(*levels)
        error = weight * (x - self.prediction.original(output, z, *levels)).square()
        return error.flatten(t.ndim).sum(-1) if error.ndim > t.ndim else error

    def estimate(self, z: Tensor, output: Tensor, t: Tensor) -> Tensor:
        r"""The datum :math:`\hat x` that the output of the network means, of the shape of z."""
        x = self.original(z, output, t)
        return x if self.bounds is None else x.clamp(*self.bounds)

    def original(self, z: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """The expected data that an output tells, without bounds."""
        return self.prediction.original(output, z, *self.levels(t, z))

    def retold(self, z: Tensor, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The output that tells other expected data x."""
        return self.prediction.output(x, z, *self.levels(t, z))

    def shifted(self, z: Tensor, output: Tensor, slope: Tensor, t: Tensor) -> Tensor:
        """Refused: the score does not follow from the expected data."""
        raise TypeError(
            "expected Gaussian noise for guidance by a score, which follows from the expected data "
            f"there alone, got {type(self).__name__}; use Diffusion, or a rule such as "
            "ClassifierFree"
        )

    def noise_to_signal(self, t: Tensor) -> Tensor:
        """The ratio of noise to signal at a time."""
        signal, noise = self.levels(t, t)
        return noise / signal

    def levels(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise in z_t, which broadcast to x."""
        log_signal = at(self.log_signal, t, x)
        return (0.5 * log_signal).exp(), (-torch.expm1(log_signal)).sqrt()

    def mean_and_scale(self, z: Tensor, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        r"""Mean of z_s given z_t and the datum, and its scale on average over z_t.

        At s = 0 that of the datum given z at 1 / T.

        .. math:: \alpha_s x + \frac{\alpha_t}{\alpha_s} \frac{\sigma_s^2}{\sigma_t^2} (z_t - \alpha_t x),
                  \qquad \tilde\beta = \frac{\sigma_s^2}{\sigma_t^2} \Big(1 -
                  \frac{\alpha_t^2}{\alpha_s^2}\Big)
        """
        (signal, noise), (signal_s, noise_s) = self.levels(t, z), self.levels(s, z)
        mean = signal_s * x + signal / signal_s * (noise_s / noise).square() * (z - signal * x)
        fading = at(self.log_signal, t, z) - at(self.log_signal, s, z)
        scale = noise_s / noise * (-torch.expm1(fading)).sqrt()
        return mean, torch.where(wide(s, z) == 0, torch.expm1(-self.log_signal[1]).sqrt(), scale)

    def path(self, times: Callable, num_steps: int, like: Tensor) -> Grid:
        path = table_path(times, num_steps, self.num_times, self.schedule, like)
        return Grid(path, *self.levels(path, path))

    def support(self, event_ndim: int) -> constraints.Constraint:
        return constraints.independent(constraints.real, event_ndim)

    def check(self, x: Tensor) -> None:
        """Refuses missing entries."""
        refuse_missing(x)

    def _told(self, t: Tensor, z: Tensor) -> Tensor:
        """What the network sees of the time."""
        return self.prediction.time(t, *self.levels(t, t)).to(z.dtype)
