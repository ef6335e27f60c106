"""Neighboring states of the probability-flow equation, which losses for few steps compare."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from probgen.core.missing import values_are_known
from probgen.distributions.denoised import NoiseLevels
from probgen.distributions.diffusion.times import NoiseSchedule, UniformTimes
from probgen.samplers.reverse import Denoise, Grid, ddim


def neighbors(
    schedule: NoiseSchedule, lead: torch.Size, levels: NoiseLevels, like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Times t and s < t of neighboring levels ``(*batch,)``, and whether s is 0.

    >>> from probgen.distributions.diffusion.schedules import VarianceExploding
    >>> levels = NoiseLevels(2, 0.0, 1.0, 1.0)
    >>> t, s, least = neighbors(VarianceExploding(0.5, 1.5), torch.Size([6]), levels, torch.zeros(1))
    >>> bool((s < t).all()), bool((least == (s == 0)).all())
    (True, True)
    """
    ends = torch.tensor([0.0, 1.0], dtype=like.dtype, device=like.device)
    logs = -schedule.log_snr(ends) / 2
    first, last = (logs / levels.rho).exp()
    cut = _normal_cdf((logs - levels.mean) / levels.std)
    # tails beyond what the dtype resolves would be infinite
    share = (cut[0] + (cut[1] - cut[0]) * UniformTimes()(lead, schedule, like)).clamp(
        1e-6, 1 - 1e-6
    )
    log_ratio = levels.mean + levels.std * math.sqrt(2) * torch.erfinv(2 * share - 1)
    place = ((log_ratio / levels.rho).exp() - first) / (last - first)
    count = torch.as_tensor(levels.number, dtype=like.dtype, device=like.device)
    index = torch.minimum((place * count).ceil().clamp(min=1), count)
    return (
        _time_at(schedule, index / count, first, last, levels.rho),
        _time_at(schedule, (index - 1) / count, first, last, levels.rho),
        index == 1,
    )


def step_between(process: Any, t: Tensor, s: Tensor) -> Grid:
    """One step from times t to times s, both ``(*batch,)``."""
    times = torch.stack((t, s))
    return Grid(times, *process.levels(times))


def two_steps(denoise: Denoise, process: Any, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
    r"""The data of which one step of DDIM from t to s makes what two steps by ``denoise`` make.

    .. math:: \tilde x = \frac{z_s - (\sigma_s / \sigma_t)\, z_t}{\alpha_s - (\sigma_s / \sigma_t)\, \alpha_t}

    Salimans, Ho (2022), https://arxiv.org/abs/2202.00512, appendix G
    """
    times = torch.stack((t, (t + s) / 2, s.clamp(min=0)))
    grid = Grid(times, *process.levels(times))
    reached = ddim(denoise, z, grid)
    share = grid.sigmas[2] / grid.sigmas[0]
    return (reached - share * z) / (grid.alphas[2] - share * grid.alphas[0])


def check_same_levels(own: NoiseSchedule, other: NoiseSchedule, like: Tensor) -> None:
    """Refuses a teacher of another schedule; ``ValueError``."""
    times = torch.linspace(0, 1, 5, dtype=like.dtype, device=like.device)
    pairs = zip(own(times), other(times), strict=True)
    if values_are_known() and not all(torch.allclose(a, b, rtol=1e-3) for a, b in pairs):
        raise ValueError(
            "expected a teacher with the same levels of signal and noise at the same times, got "
            "others; give both the same schedule"
        )


def _time_at(
    schedule: NoiseSchedule, place: Tensor, first: Tensor, last: Tensor, rho: float
) -> Tensor:
    time = schedule.time(-2 * rho * (first + place * (last - first)).log()).clamp(0, 1)
    return torch.where(place == 0, 0.0, torch.where(place == 1, 1.0, time))


def _normal_cdf(value: Tensor) -> Tensor:
    return (1 + torch.erf(value / math.sqrt(2))) / 2
