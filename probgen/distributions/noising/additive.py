"""Chains that add noise of known distribution to a fading signal.

What they share, and Gaussian noise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from probgen.core import checks
from probgen.core.missing import has_missing, values_are_known
from probgen.distributions.noising.schedules import Shares, alphas_bar


class AdditiveNoise(nn.Module, ABC):
    r"""A chain from data to noise.

    In which each state is the fading datum plus noise of mean 0 and variance 1.

    .. math:: x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon_t, \qquad
              \hat x_0 = \frac{x_t - \sqrt{1 - \bar\alpha_t}\, \hat\epsilon}{\sqrt{\bar\alpha_t}}

    with the output :math:`\hat\epsilon` of a network, called with x_t and the time t / T. Steps t
    and s < t are integers ``(*batch,)``; s = 0 is the datum itself, whose distribution given x_1 is
    normal around :math:`\hat x_0` with the scale :math:`\sqrt{(1 - \bar\alpha_1) / \bar\alpha_1}`
    of the noise that x_1 holds, in units of the datum.

    Parameters
    ----------
    schedule : sequence of float or Tensor
        :math:`1 > \bar\alpha_1 > \dots > \bar\alpha_T > 0`, shape ``(T,)``, as
        :func:`linear_steps <probgen.distributions.noising.schedules.linear_steps>` gives them, or
        :math:`\beta_t` that rise.
    bounds : (float, float), optional
        Where data lie: :math:`\hat x_0` is moved into them.

    Raises
    ------
    ValueError
        If the schedule does not fall within (0, 1), or has fewer than 2 steps.
    """

    continuous = True
    log_signal: Tensor
    chances: Tensor

    def __init__(self, schedule: Shares, bounds: tuple[float, float] | None = None):
        checks.pair(**checks.given(bounds=bounds))
        super().__init__()
        schedule = alphas_bar(schedule)
        if schedule[-1] == 0:
            raise ValueError(
                "expected a schedule of shares of signal that fall within (0, 1), got 0 at the "
                "end, where numbers "
                "could not be told from noise; leave it out"
            )
        log_signal = torch.cat((schedule.new_zeros(1), schedule.log())).to(
            torch.get_default_dtype()
        )
        self.register_buffer(
            "log_signal", log_signal
        )  # differences of logarithms stay exact where steps are small
        ratio = schedule.logit()
        chances = torch.cat((ratio.new_zeros(2), -ratio.diff() / (ratio[0] - ratio[-1])))
        self.register_buffer("chances", chances.to(torch.get_default_dtype()))
        self.steps = len(schedule)
        self.bounds = bounds

    @abstractmethod
    def marginal(self, x_0: Tensor, t: Tensor) -> dist.TorchDistribution:
        """The distribution of x_t given the datum.

        ``(*batch, *event)``, ``(*batch,)`` to events of that shape.
        """

    @abstractmethod
    def posterior(self, x_t: Tensor, x_0: Tensor, t: Tensor, s: Tensor) -> dist.TorchDistribution:
        """The distribution of x_s given x_t and the datum, 0 < s < t."""

    @abstractmethod
    def prior(self, shape: torch.Size) -> dist.TorchDistribution:
        """The distribution of x_T that the model starts from, events of that shape."""

    @abstractmethod
    def reverse(self, x_t: Tensor, output: Tensor, t: Tensor, s: Tensor) -> dist.TorchDistribution:
        """The model's distribution of x_s given x_t and what the network said of it, s >= 0."""

    @abstractmethod
    def noise(self, x_t: Tensor, t: Tensor) -> dist.TorchDistribution:
        r"""The distribution of :math:`\epsilon_t`, of the shape of x_t."""

    def loss(self, output: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        r"""The simple loss :math:`\lVert \epsilon_t - \hat\epsilon \rVert^2`, one number a row."""
        signal, noise = self.scales(t, x_t)
        error = ((x_t - signal * x_0) / noise - output).square()
        return error.flatten(t.ndim).sum(-1) if error.ndim > t.ndim else error

    def estimate(self, x_t: Tensor, output: Tensor, t: Tensor) -> Tensor:
        r"""The datum :math:`\hat x_0` that the output of the network means, of the shape of x_t."""
        signal, noise = self.scales(t, x_t)
        x_0 = (x_t - noise * output) / signal
        return x_0 if self.bounds is None else x_0.clamp(*self.bounds)

    def scales(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of datum and noise in x_t, which broadcast to x."""
        log_signal = at(self.log_signal, t, x)
        return (0.5 * log_signal).exp(), (-torch.expm1(log_signal)).sqrt()

    def mean_and_scale(
        self, x_t: Tensor, x_0: Tensor, t: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor]:
        r"""Mean of x_s given x_t and the datum, and its scale on average over x_t.

        At s = 0 that of x_0 given x_1.

        .. math:: \sqrt{\bar\alpha_s}\, x_0 + \sqrt{\frac{\bar\alpha_t}{\bar\alpha_s}} \frac{1 - \bar\alpha_s}
                  {1 - \bar\alpha_t} (x_t - \sqrt{\bar\alpha_t}\, x_0), \qquad \tilde\beta = \frac{1
                  - \bar\alpha_s}{1 - \bar\alpha_t} (1 - \bar\alpha_t / \bar\alpha_s)
        """
        (signal, noise), (signal_s, noise_s) = self.scales(t, x_t), self.scales(s, x_t)
        mean = signal_s * x_0 + signal / signal_s * (noise_s / noise).square() * (
            x_t - signal * x_0
        )
        fading = at(self.log_signal, t, x_t) - at(self.log_signal, s, x_t)
        scale = noise_s / noise * (-torch.expm1(fading)).sqrt()
        return mean, torch.where(
            at(s, None, x_t) == 0, torch.expm1(-self.log_signal[1]).sqrt(), scale
        )

    def support(self, event_ndim: int) -> constraints.Constraint:
        return constraints.independent(constraints.real, event_ndim)

    def check(self, x: Tensor) -> None:
        """Refuses missing entries."""
        refuse_missing(x)


class GaussianNoise(AdditiveNoise):
    r"""Normal noise: the chain of denoising diffusion.

    With the variances of its posterior in the reverse distribution.

    .. math:: q(x_t \mid x_0) = N(\sqrt{\bar\alpha_t}\, x_0, 1 - \bar\alpha_t), \qquad
              p(x_s \mid x_t) = q(x_s \mid x_t, \hat x_0), \qquad p(x_T) = N(0, 1)

    Parameters
    ----------
    schedule, bounds
        As in :class:`AdditiveNoise`.

    References
    ----------
    Ho, Jain, Abbeel (2020), Denoising diffusion probabilistic models,
    https://arxiv.org/abs/2006.11239

    >>> from probgen.distributions.noising.schedules import linear_steps
    >>> GaussianNoise(linear_steps(100)).marginal(torch.ones(3, 2), torch.tensor([1, 50, 100])).mean[:, 0]
    tensor([0.9995, 0.2724, 0.0045])
    """

    def marginal(self, x_0: Tensor, t: Tensor) -> dist.TorchDistribution:
        signal, noise = self.scales(t, x_0)
        return _normal(signal * x_0, noise, t)

    def posterior(self, x_t: Tensor, x_0: Tensor, t: Tensor, s: Tensor) -> dist.TorchDistribution:
        return _normal(*self.mean_and_scale(x_t, x_0, t, s), t)

    def prior(self, shape: torch.Size) -> dist.TorchDistribution:
        return standard_normal(self.log_signal, shape)

    def reverse(self, x_t: Tensor, output: Tensor, t: Tensor, s: Tensor) -> dist.TorchDistribution:
        return _normal(*self.mean_and_scale(x_t, self.estimate(x_t, output, t), t, s), t)

    def noise(self, x_t: Tensor, t: Tensor) -> dist.TorchDistribution:
        return independent(dist.Normal(torch.zeros_like(x_t), 1.0, validate_args=False), t.ndim)


def at(table: Tensor, t: Tensor | None, x: Tensor) -> Tensor:
    """Entries of a table for steps ``(*batch,)``, with as many dims as ``x``.

    Without steps the table itself.

    >>> at(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([2, 1]), torch.zeros(2, 4, 4)).shape
    torch.Size([2, 1, 1])
    """
    value = table if t is None else table[t]
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim))


def independent(distribution: dist.TorchDistribution, batch_ndim: int) -> dist.TorchDistribution:
    """The distribution with all but the first dims made event dims."""
    return distribution.to_event(len(distribution.batch_shape) - batch_ndim)


def standard_normal(like: Tensor, shape: torch.Size) -> dist.TorchDistribution:
    """Independent standard normals of a shape, in the precision of a tensor."""
    return independent(dist.Normal(like.new_zeros(shape), 1.0, validate_args=False), 0)


def refuse_missing(x: Tensor) -> None:
    """Raises ``ValueError`` if an entry is NaN; in a recorded graph NaN gives NaN."""
    if values_are_known() and has_missing(x):
        raise ValueError(
            "expected complete rows, got NaN (missing): the bound of a diffusion cannot integrate "
            "missing entries "
            "out; complete them first (impute with a mixture, factor analysis or a VAE; diffusions "
            "with "
            "AbsorbingNoise impute, too)"
        )


def _normal(mean: Tensor, scale: Tensor, t: Tensor) -> dist.TorchDistribution:
    return independent(dist.Normal(mean, scale, validate_args=False), t.ndim)
