"""How much signal and noise a diffusion has at each time.

Schedules with accurate log signal-to-noise ratios.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from probgen.core import checks
from probgen.core.construction import Recorded


class Schedule(Recorded, nn.Module, ABC):
    r"""Levels of signal and noise at times from 0 (data) to 1 (noise).

    ``schedule(t) -> (alpha, sigma)``.

    .. math:: z_t = \alpha_t x + \sigma_t \varepsilon, \qquad
              \lambda_t = \log \frac{\alpha_t^2}{\sigma_t^2} \text{ falling from } t = 0 \text{ to }
              t = 1

    A schedule of one's own writes ``log_snr`` and its inverse, and derives from
    :class:`VariancePreserving` or writes ``forward`` too. Times and levels have any one shape
    ``(*batch,)``.
    """

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """The log signal-to-noise ratio, falling in t."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """The time at which the log signal-to-noise ratio has a value.

        The inverse of :meth:`log_snr`.
        """

    @abstractmethod
    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise levels."""


class VariancePreserving(Schedule):
    r"""Schedules that keep the variance of standardized data: :math:`\alpha_t^2 + \sigma_t^2 = 1`.

    .. math:: \alpha_t^2 = \operatorname{sigmoid}(\lambda_t), \qquad \sigma_t^2 = \operatorname{sigmoid}(-\lambda_t)
    """

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_snr = self.log_snr(t)
        return (-0.5 * softplus(-log_snr)).exp(), (-0.5 * softplus(log_snr)).exp()


class _Exploding(Schedule):
    """Schedules that leave the signal as it is and add noise."""

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), (-0.5 * self.log_snr(t)).exp()


class LinearSchedule(VariancePreserving):
    r"""The schedule of DDPM: noise is added at a rate that rises linearly.

    .. math:: \alpha_t^2 = \exp\Big(-\int_0^\tau \beta_0 + u (\beta_1 - \beta_0)\, du\Big),
              \qquad \tau = \tau_0 + (1 - \tau_0)\, t

    Parameters
    ----------
    beta_min, beta_max : float
        Rates at both ends.
    start : float
        :math:`\tau_0 > 0`, which leaves some noise at t = 0: its standard deviation is about 0.01.

    References
    ----------
    Ho, Jain, Abbeel (2020), https://arxiv.org/abs/2006.11239; Song et al. (2021),
    https://arxiv.org/abs/2011.13456

    >>> alpha, sigma = LinearSchedule()(torch.tensor([0.0, 1.0]))
    >>> alpha, sigma
    (tensor([0.9999, 0.0066]), tensor([0.0105, 1.0000]))
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, start: float = 1e-3):
        checks.finite(beta_min=beta_min, beta_max=beta_max, start=start)
        super().__init__()
        if not (0 < beta_min <= beta_max and 0 < start < 1):
            raise ValueError(
                f"expected 0 < beta_min <= beta_max and 0 < start < 1, got "
                f"{beta_min}, {beta_max} and {start}; the default is LinearSchedule(0.1, 20.0)"
            )
        self.beta_min = beta_min
        self.beta_max = beta_max
        self.start = start

    def log_snr(self, t: Tensor) -> Tensor:
        tau = self.start + (1 - self.start) * t
        total = tau * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * tau)
        return -(total + (-torch.expm1(-total)).log())

    def time(self, log_snr: Tensor) -> Tensor:
        total = softplus(-log_snr)
        root = (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * total).sqrt()
        return (2 * total / (self.beta_min + root) - self.start) / (1 - self.start)


class CosineSchedule(VariancePreserving):
    r"""Signal falls like a cosine, between two log signal-to-noise ratios.

    .. math:: \lambda_t = -2 \log \tan(a + (b - a)\, t), \qquad
              a = \arctan e^{-\lambda_0 / 2},\ b = \arctan e^{-\lambda_1 / 2}

    Parameters
    ----------
    log_snr_max, log_snr_min : float
        :math:`\lambda_0 > \lambda_1`.

    References
    ----------
    Nichol, Dhariwal (2021), Improved DDPM, https://arxiv.org/abs/2102.09672; with such ends:
    Hoogeboom, Heek, Salimans (2023), Simple diffusion, https://arxiv.org/abs/2301.11093

    >>> CosineSchedule().log_snr(torch.tensor([0.0, 0.5, 1.0]))
    tensor([ 10.,   0., -10.])
    """

    def __init__(self, log_snr_max: float = 10.0, log_snr_min: float = -10.0):
        checks.finite(log_snr_max=log_snr_max, log_snr_min=log_snr_min)
        super().__init__()
        _check_ends(log_snr_max, log_snr_min)
        self.low = math.atan(math.exp(-log_snr_max / 2))
        self.rest = math.atan(math.exp(log_snr_min / 2))
        self.width = math.pi / 2 - self.low - self.rest

    def log_snr(self, t: Tensor) -> Tensor:
        angle, complement = (
            self.low + self.width * t,
            self.rest + self.width * (1 - t),
        )  # both accurate near zero
        return 2 * (complement.sin().log() - angle.sin().log())

    def time(self, log_snr: Tensor) -> Tensor:
        return ((-0.5 * log_snr).exp().atan() - self.low) / self.width


class EvenSchedule(VariancePreserving):
    r"""Signal that falls evenly to nothing: :math:`\alpha_t^2 = 1 - t`.

    For labels that are masked one after the other: in each of T steps as many. Only a chain in
    discrete time can be without any signal at its end. Austin et al. (2021), Structured denoising
    diffusion models in discrete state-spaces, https://arxiv.org/abs/2107.03006

    >>> EvenSchedule().log_snr(torch.tensor([0.25, 0.5]))
    tensor([1.0986, 0.0000])
    """

    def log_snr(self, t: Tensor) -> Tensor:
        return (1 - t).log() - t.log()

    def time(self, log_snr: Tensor) -> Tensor:
        return (-log_snr).sigmoid()


class VarianceExploding(_Exploding):
    r"""Noise that grows geometrically on a signal that stays.

    :math:`\sigma_t = \sigma_0^{1 - t} \sigma_1^t`.

    Parameters
    ----------
    sigma_min, sigma_max : float
        :math:`\sigma_0 < \sigma_1`, for data of about unit variance.

    References
    ----------
    Song, Ermon (2019), https://arxiv.org/abs/1907.05600; Song et al. (2021),
    https://arxiv.org/abs/2011.13456

    >>> VarianceExploding(0.01, 100.0)(torch.tensor([0.0, 0.5, 1.0]))[1]
    tensor([1.0000e-02, 1.0000e+00, 1.0000e+02])
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0):
        checks.finite(sigma_min=sigma_min, sigma_max=sigma_max)
        super().__init__()
        _check_sigmas(sigma_min, sigma_max)
        self.start = math.log(sigma_min)
        self.range = math.log(sigma_max) - math.log(sigma_min)

    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * (self.start + self.range * t)

    def time(self, log_snr: Tensor) -> Tensor:
        return (-0.5 * log_snr - self.start) / self.range


class EDMSchedule(_Exploding):
    r"""Noise that grows like a power of time: even steps of time are the steps of Karras et al.

    .. math:: \sigma_t = \big(\sigma_0^{1/\rho} + t\, (\sigma_1^{1/\rho} - \sigma_0^{1/\rho})\big)^\rho

    Parameters
    ----------
    sigma_min, sigma_max : float
        Ends, for data of standard deviation one half.
    rho : float
        The power.

    References
    ----------
    Karras, Aittala, Aila, Laine (2022), https://arxiv.org/abs/2206.00364

    >>> EDMSchedule()(torch.tensor([0.0, 1.0]))[1]
    tensor([2.0000e-03, 8.0000e+01])
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0):
        checks.finite(sigma_min=sigma_min, sigma_max=sigma_max)
        checks.positive(rho=rho)
        super().__init__()
        _check_sigmas(sigma_min, sigma_max)
        self.rho = rho
        self.start = sigma_min ** (1 / rho)
        self.range = sigma_max ** (1 / rho) - self.start

    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * self.rho * (self.start + self.range * t).log()

    def time(self, log_snr: Tensor) -> Tensor:
        return ((-0.5 * log_snr / self.rho).exp() - self.start) / self.range


class LearnedSchedule(VariancePreserving):
    r"""A monotone network between two ends, all learned by maximizing the variational bound.

    .. math:: \lambda_t = \lambda_0 - e^{r}\, \frac{m(t) - m(0)}{m(1) - m(0)}, \qquad
              m(t) = t + \sum_k a_k \operatorname{sigmoid}(b_k (t - c_k)),\quad a_k, b_k > 0

    In continuous time the bound depends on the ends, and on the shape between them only through
    what the network sees as the time; in discrete time it depends on all of the schedule. The
    simple loss of ``Denoising`` takes a schedule as given.

    Parameters
    ----------
    log_snr_max, log_snr_min : float
        Ends to start from.
    hidden : int
        Number of sigmoids.

    References
    ----------
    Kingma, Salimans, Poole, Ho (2021), Variational diffusion models,
    https://arxiv.org/abs/2107.00630

    >>> LearnedSchedule().log_snr(torch.tensor([0.0, 1.0]))
    tensor([ 10., -10.], grad_fn=<SubBackward0>)
    """

    def __init__(self, log_snr_max: float = 10.0, log_snr_min: float = -10.0, hidden: int = 32):
        checks.finite(log_snr_max=log_snr_max, log_snr_min=log_snr_min)
        checks.at_least(1, hidden=hidden)
        super().__init__()
        _check_ends(log_snr_max, log_snr_min)
        self.start = nn.Parameter(torch.tensor(float(log_snr_max)))
        self.log_range = nn.Parameter(torch.tensor(math.log(log_snr_max - log_snr_min)))
        self.weight = nn.Parameter(torch.full((hidden,), -3.0))
        self.slope = nn.Parameter(torch.full((hidden,), 10.0))
        self.center = nn.Parameter(torch.linspace(0, 1, hidden))

    def log_snr(self, t: Tensor) -> Tensor:
        ends = self._rising(
            torch.stack((torch.zeros_like(self.start), torch.ones_like(self.start)))
        )
        return self.start - self.log_range.exp() * (self._rising(t) - ends[0]) / (ends[1] - ends[0])

    def time(self, log_snr: Tensor) -> Tensor:
        low = torch.zeros_like(log_snr)
        high = torch.ones_like(log_snr)
        with torch.no_grad():
            for _ in range(50):
                middle = (low + high) / 2
                noisier = self.log_snr(middle) < log_snr
                low = torch.where(noisier, low, middle)
                high = torch.where(noisier, middle, high)
            t = (low + high) / 2
            near = 1e-3
            slope = (self.log_snr(t + near) - self.log_snr(t - near)) / (2 * near)
        return t - (self.log_snr(t) - log_snr) / slope  # has the gradients of the inverse

    def _rising(self, t: Tensor) -> Tensor:
        steps = (softplus(self.slope) * (t.unsqueeze(-1) - self.center)).sigmoid()
        return t + (softplus(self.weight) * steps).sum(-1)


class TabulatedSchedule(VariancePreserving):
    r"""Given shares of signal at evenly spaced times, and what lies between them on a line.

    .. math:: \lambda_{(i - 1) / (T - 1)} = \log \frac{\bar\alpha_i}{1 - \bar\alpha_i},
              \qquad i = 1, \dots, T

    with log signal-to-noise ratios linear in time from one to the next. The least noisy state of
    the table, :math:`x_1` in the notation of DDPM, stands at time 0 and the noisiest one at time 1:
    a chain through all of them has T - 1 steps, ``Diffusion(..., steps=T - 1)``, and the
    reconstruction. The table is a buffer: it is saved and loaded with the model.

    Parameters
    ----------
    alphas_bar : Tensor
        :math:`1 > \bar\alpha_1 > \dots > \bar\alpha_T > 0`, shape ``(T,)``, best in double
        precision.

    Raises
    ------
    ValueError
        If there are fewer than two, or they do not fall within (0, 1).

    References
    ----------
    Ho, Jain, Abbeel (2020), Denoising diffusion probabilistic models,
    https://arxiv.org/abs/2006.11239

    >>> alpha, sigma = TabulatedSchedule(torch.tensor([0.99, 0.5, 0.01]))(torch.tensor([0.0, 0.5, 1.0]))
    >>> alpha.square(), sigma.square()
    (tensor([0.9900, 0.5000, 0.0100]), tensor([0.0100, 0.5000, 0.9900]))
    """

    ratios: Tensor

    def __init__(self, alphas_bar: Tensor):
        checks.vector(alphas_bar=alphas_bar)
        super().__init__()
        shape = tuple(alphas_bar.shape)
        if len(shape) != 1 or shape[0] < 2:
            raise ValueError(
                f"expected alphas_bar of shape (T,), T >= 2, got {shape}; give one share a step"
            )
        ratios = alphas_bar.double().logit()
        if not (ratios.isfinite().all() and (ratios.diff() < 0).all()):
            raise ValueError(
                "expected alphas_bar that fall strictly within (0, 1), got "
                f"{alphas_bar[0].item():g} to "
                f"{alphas_bar[-1].item():g}; from_betas(betas) gives such"
            )
        self.register_buffer("ratios", ratios.to(torch.get_default_dtype()))

    def log_snr(self, t: Tensor) -> Tensor:
        place = t * (len(self.ratios) - 1)
        before = self._before(place.detach().floor().long())
        start = self._at(before)
        end = self._at(before + 1)
        return start + (place - before) * (end - start)  # beyond the ends the line goes on

    def time(self, log_snr: Tensor) -> Tensor:
        after = torch.searchsorted(-self.ratios, -log_snr.detach().contiguous(), right=True)
        before = self._before(after - 1)
        start = self._at(before)
        end = self._at(before + 1)
        return (before + (log_snr - start) / (end - start)) / (len(self.ratios) - 1)

    def _before(self, place: Tensor) -> Tensor:
        """Places that have one after them."""
        return place.clamp(0, len(self.ratios) - 2)

    def _at(self, place: Tensor) -> Tensor:
        # not by brackets, which read the value of a place without dims: no graph could be recorded
        return self.ratios.index_select(0, place.reshape(-1)).reshape(place.shape)


def _check_ends(log_snr_max: float, log_snr_min: float) -> None:
    if not log_snr_min < log_snr_max:
        raise ValueError(
            f"expected log_snr_min < log_snr_max, got {log_snr_min} and {log_snr_max}; exchange "
            "them"
        )


def _check_sigmas(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"expected 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}; "
            "sigma_min is the noise nearest to the data"
        )
