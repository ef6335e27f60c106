"""At which times a diffusion is trained, and at which ones a solver stops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from probgen.core import checks
from probgen.samplers.reverse import Grid


class NoiseSchedule(Protocol):
    """Levels of signal and noise at times in [0, 1]; :mod:`probgen.distributions.diffusion.schedules` has some."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise levels."""

    def log_snr(self, t: Tensor) -> Tensor:
        """The log signal-to-noise ratio."""

    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of ``log_snr``."""


Times = Callable[[torch.Size, NoiseSchedule, Tensor], Tensor]
Steps = Callable[[int, NoiseSchedule, Tensor], Tensor]


@dataclass(frozen=True)
class UniformTimes:
    """Times uniform on [0, 1].

    ``stratified``, each row has a stratum of its own, which lowers the variance of sums.

    Kingma, Salimans, Poole, Ho (2021), https://arxiv.org/abs/2107.00630, appendix I.1

    >>> t = UniformTimes()(torch.Size([4]), None, torch.zeros(()))
    >>> (t * 4).floor().sort().values
    tensor([0., 1., 2., 3.])
    """

    stratified: bool = True

    def __post_init__(self) -> None:
        checks.flag(stratified=self.stratified)

    def __call__(self, shape: torch.Size, schedule: NoiseSchedule, like: Tensor) -> Tensor:
        if not self.stratified:
            return torch.rand(shape, dtype=like.dtype, device=like.device)
        count = max(shape.numel(), 1)
        places = torch.arange(count, dtype=like.dtype, device=like.device) / count
        return ((torch.rand((), dtype=like.dtype, device=like.device) + places) % 1).reshape(shape)


@dataclass(frozen=True)
class LogNormalTimes:
    r"""Times at which the ratio of noise to signal is log-normal.

    :math:`\log(\sigma / \alpha) \sim N(m, s^2)`.

    Those beyond an end of the schedule are moved to it. Karras et al. (2022),
    https://arxiv.org/abs/2206.00364
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        checks.finite(mean=self.mean)
        checks.positive(std=self.std)

    def __call__(self, shape: torch.Size, schedule: NoiseSchedule, like: Tensor) -> Tensor:
        log_ratio = self.mean + self.std * torch.randn(shape, dtype=like.dtype, device=like.device)
        return schedule.time(-2 * log_ratio).clamp(0, 1)


def uniform_steps(num_steps: int, schedule: NoiseSchedule, like: Tensor) -> Tensor:
    """Equal steps of time, falling from 1 to 0: ``(num_steps + 1,)``.

    >>> uniform_steps(4, None, torch.zeros(()))
    tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000])
    """
    checks.at_least(1, num_steps=num_steps)
    checks.instance(Tensor, like=like)
    return torch.linspace(1, 0, num_steps + 1, dtype=like.dtype, device=like.device)


def quadratic_steps(num_steps: int, schedule: NoiseSchedule, like: Tensor) -> Tensor:
    """Steps of time that shrink towards the data.

    Song, Meng, Ermon (2021), https://arxiv.org/abs/2010.02502, D.2.
    """
    return uniform_steps(num_steps, schedule, like).square()


def log_snr_steps(num_steps: int, schedule: NoiseSchedule, like: Tensor) -> Tensor:
    """Equal steps of the log signal-to-noise ratio.

    Lu et al. (2022), https://arxiv.org/abs/2206.00927.
    """
    checks.at_least(1, num_steps=num_steps)
    checks.has(("log_snr",), "pass CosineSchedule()", schedule=schedule)
    checks.instance(Tensor, like=like)
    start, end = schedule.log_snr(_ends(like))
    return _between(schedule.time(start + (end - start) * _shares(num_steps, like)))


@dataclass(frozen=True)
class KarrasSteps:
    r"""Equal steps of :math:`(\sigma / \alpha)^{1/\rho}`.

    Karras et al. (2022), https://arxiv.org/abs/2206.00364.
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        checks.positive(rho=self.rho)

    def __call__(self, num_steps: int, schedule: NoiseSchedule, like: Tensor) -> Tensor:
        start, end = (-schedule.log_snr(_ends(like)) / (2 * self.rho)).exp()
        roots = start + (end - start) * _shares(num_steps, like)
        return _between(schedule.time(-2 * self.rho * roots.log()))


def grid(schedule: NoiseSchedule, times: Tensor) -> Grid:
    """The levels at some times."""
    return Grid(times, *schedule(times))


def _ends(like: Tensor) -> Tensor:
    return torch.tensor([1.0, 0.0], dtype=like.dtype, device=like.device)


def _shares(num_steps: int, like: Tensor) -> Tensor:
    return torch.linspace(0, 1, num_steps + 1, dtype=like.dtype, device=like.device)


def _between(times: Tensor) -> Tensor:
    """Ends set to 1 and 0, from which rounding moves them."""
    return torch.cat(
        (torch.ones_like(times[:1]), times[1:-1].clamp(0, 1), torch.zeros_like(times[:1]))
    )
