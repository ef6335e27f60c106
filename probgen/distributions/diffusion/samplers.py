"""How a diffusion is sampled: one small object for each method, to be given as an argument."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from probgen.core import checks
from probgen.distributions.diffusion.gaussian import GaussianNoise
from probgen.distributions.diffusion.process import Denoiser, Process
from probgen.distributions.diffusion.times import Steps, grid, uniform_steps
from probgen.samplers.reverse import (
    Grid,
    ancestral,
    ddim,
    dpm_solver,
    heun,
    predictor_corrector,
    renoised,
)


class ReverseSampler(Protocol):
    """Takes pure noise at time 1 to the state at time 0.

    Every sampler asks the network through the denoiser, ``predict``, ``denoise`` or ``reverse``.

    Attributes
    ----------
    stochastic : bool
        Whether it draws from the very distribution that is scored, so that the data are drawn given
        the last state too.
    """

    stochastic: bool

    def __call__(self, denoiser: Denoiser, z: Tensor) -> Tensor:
        """The state at time 0."""


@dataclass(frozen=True)
class Ancestral:
    """The steps of the generative chain itself, of which the bound speaks.

    One call of the network each. In discrete time with all T steps, draws follow the distribution
    that the bound scores; with fewer, chains go through a subset of its times.

    Ho, Jain, Abbeel (2020), https://arxiv.org/abs/2006.11239

    Parameters
    ----------
    num_steps : int
        Number of steps.
    times : callable
        Where they end, for instance :func:`uniform_steps
        <probgen.distributions.diffusion.times.uniform_steps>` or ``KarrasSteps()``.
    """

    num_steps: int = 256
    times: Steps = uniform_steps
    stochastic = True

    def __post_init__(self) -> None:
        checks.at_least(1, num_steps=self.num_steps)
        checks.function(times=self.times)

    def __call__(self, denoiser: Denoiser, z: Tensor) -> Tensor:
        draw = lambda z, t, s: denoiser.reverse(z, t, s).sample()  # noqa: E731
        return ancestral(draw, z, _path(self, denoiser, z).times)


@dataclass(frozen=True)
class PredictorCorrector:
    r"""Predictor-corrector sampling: an ancestral step, then Langevin steps at the level reached.

    .. math:: z \leftarrow z + 2 r^2 \sigma^2\, \nabla \log p(z) + 2 r \sigma\, \varepsilon, \qquad
              \nabla \log p(z) = \frac{\alpha \hat x(z) - z}{\sigma^2}

    1 + ``corrections`` calls of the network a step. Langevin steps leave the distribution of a
    level as it is, up to the size of the steps, and mend what the steps between levels have got
    wrong. The size is that of Song et al. (2021) for a score of the norm that noise has on average,
    :math:`\sqrt D / \sigma`, so that draws do not depend on each other.

    Parameters
    ----------
    num_steps : int
        Number of levels.
    corrections : int
        Langevin steps at each of them; 0: ancestral steps alone.
    ratio : float
        r, signal to noise of a Langevin step, between 0 and 1.
    times : callable
        Where ancestral steps end.

    Raises
    ------
    TypeError
        At a call, if the noise of the process is not Gaussian.

    References
    ----------
    Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole (2021), Score-based generative modeling
    through stochastic differential equations, https://arxiv.org/abs/2011.13456, algorithm 1
    """

    num_steps: int = 100
    corrections: int = 1
    ratio: float = 0.16
    times: Steps = uniform_steps
    stochastic = False

    def __post_init__(self) -> None:
        checks.at_least(1, num_steps=self.num_steps)
        checks.at_least(0, corrections=self.corrections)
        checks.within("(0, 1)", ratio=self.ratio)
        checks.function(times=self.times)

    def __call__(self, denoiser: Denoiser, z: Tensor) -> Tensor:
        if not isinstance(denoiser.process, GaussianNoise):
            raise TypeError(
                "expected Gaussian noise for Langevin steps, got "
                f"{type(denoiser.process).__name__}; draw by Ancestral(num_steps)"
            )
        draw = lambda z, t, s: denoiser.reverse(z, t, s).sample()  # noqa: E731
        path = _path(self, denoiser, z)
        return predictor_corrector(draw, denoiser.denoise, z, path, self.corrections, self.ratio)


@dataclass(frozen=True)
class DDIM:
    r"""Deterministic steps, or with a share ``eta`` of new noise; one call of the network each.

    .. math:: z_s = \alpha_s \hat x + \sqrt{\sigma_s^2 - \eta^2 \tilde\beta}\; \hat\varepsilon
              + \eta \sqrt{\tilde\beta}\; \varepsilon_s

    With ``eta`` 0 it is Euler's method for the probability-flow equation in units of noise to
    signal. New noise has the distribution of the process: with ``eta`` 1 states are the mean of the
    posterior at the expected data, plus Gaussian, Gamma or mixture noise.

    With small steps and right predictions deterministic steps keep the marginals for every noise
    whose distribution is the same at each time but for its scale (normal, mixtures): the slope is
    the mean one given the state. Gamma noise, more symmetric the later the time, keeps them nearly.

    Parameters
    ----------
    num_steps : int
        Number of steps.
    eta : float
        Share of new noise, from 0 to 1.
    times : callable
        Where steps end.

    References
    ----------
    Song, Meng, Ermon (2021), Denoising diffusion implicit models,
    https://arxiv.org/abs/2010.02502; Nachmani, Roman, Wolf (2021), Non Gaussian denoising diffusion
    models, https://arxiv.org/abs/2106.07582 (the noise of the process)
    """

    num_steps: int = 50
    eta: float = 0.0
    times: Steps = uniform_steps
    stochastic = False

    def __post_init__(self) -> None:
        checks.at_least(1, num_steps=self.num_steps)
        checks.within("[0, 1]", eta=self.eta)
        checks.function(times=self.times)

    def __call__(self, denoiser: Denoiser, z: Tensor) -> Tensor:
        z, path = _begun(self, denoiser, z)
        return ddim(denoiser.denoise, z, path, self.eta, denoiser.process.noise)

    def encode(self, denoiser: Denoiser, z: Tensor) -> Tensor:
        """From time 0 to time 1, without new noise."""
        _check_deterministic(self.eta, "eta")
        return ddim(denoiser.denoise, z, _rising(_path(self, denoiser, z)))


@dataclass(frozen=True)
class ConsistencySteps:
    r"""Guesses of the data, each noised anew to the next level: one call of the network a step.

    .. math:: z_s = \alpha_s\, \hat x(z_t, t) + \sigma_s\, \varepsilon_s, \qquad x = \hat x(z, t) \text{ last}

    For a diffusion trained by :class:`Consistency <probgen.objectives.Consistency>`, whose guess is
    the point of the data to which a state leads: a draw of the data in one step. Of another
    diffusion guesses are means of the data, and one step gives the mean of all.

    Parameters
    ----------
    num_steps : int
        Number of steps.
    times : callable
        Where steps begin, and where the last one ends.

    References
    ----------
    Song, Dhariwal, Chen, Sutskever (2023), Consistency models, https://arxiv.org/abs/2303.01469,
    algorithm 1
    """

    num_steps: int = 1
    times: Steps = uniform_steps
    stochastic = False

    def __post_init__(self) -> None:
        checks.at_least(1, num_steps=self.num_steps)
        checks.function(times=self.times)

    def __call__(self, denoiser: Denoiser, z: Tensor) -> Tensor:
        z, path = _begun(self, denoiser, z)
        return renoised(denoiser.denoise, z, path, denoiser.process.noise)


@dataclass(frozen=True)
class Heun:
    r"""The second-order method of EDM, with fresh noise before each step by ``churn``.

    2 N - 1 calls of the network.

    Karras, Aittala, Aila, Laine (2022), https://arxiv.org/abs/2206.00364, algorithm 2

    It steps in the noise level itself, which suits the schedule and times of EDM (``EDMSchedule``,
    ``KarrasSteps``). On the far wider range of a variance-preserving schedule ten steps and fewer
    go astray: there :class:`DPMSolver` needs fewer.

    Parameters
    ----------
    num_steps : int
        Number of steps.
    churn : float
        Noise added over the whole path; a step raises the level by the factor :math:`1 + churn /
        num\_steps`, at most :math:`\sqrt 2`, and never above that of time 1.
    between : (float, float)
        Range of noise to signal in which noise is added.
    inflation : float
        Factor of the standard deviation of that noise.
    times : callable
        Where steps end.
    """

    num_steps: int = 25
    churn: float = 0.0
    between: tuple[float, float] = (0.0, float("inf"))
    inflation: float = 1.0
    times: Steps = uniform_steps
    stochastic = False

    def __post_init__(self) -> None:
        checks.at_least(1, num_steps=self.num_steps)
        checks.not_negative(churn=self.churn)
        checks.pair((0.05, 50.0), between=self.between)
        checks.positive(inflation=self.inflation)
        checks.function(times=self.times)

    def __call__(self, denoiser: Denoiser, z: Tensor) -> Tensor:
        z, path = _begun(self, denoiser, z)
        raised = self._raised(denoiser.process, path) if self.churn else None
        return heun(denoiser.denoise, z, path, raised, self.inflation)

    def encode(self, denoiser: Denoiser, z: Tensor) -> Tensor:
        """From time 0 to time 1, without fresh noise."""
        _check_deterministic(self.churn, "churn")
        return heun(denoiser.denoise, z, _rising(_path(self, denoiser, z)), correct_last=True)

    def _raised(self, process: Process, path: Grid) -> Grid:
        if not isinstance(process, GaussianNoise):
            raise TypeError(
                f"expected Gaussian noise for churn={self.churn}, got {type(process).__name__}; "
                "set churn to 0"
            )
        ratios = (path.sigmas / path.alphas)[:-1]
        factor = 1 + min(self.churn / self.num_steps, 2**0.5 - 1)
        low, high = self.between
        lifted = torch.where((ratios >= low) & (ratios <= high), ratios * factor, ratios).clamp(
            max=ratios[0]
        )
        times = torch.where(
            lifted > ratios, process.schedule.time(-2 * lifted.log()), path.times[:-1]
        )
        return grid(process.schedule, times)


@dataclass(frozen=True)
class DPMSolver:
    """DPM-Solver++ (2M).

    Second order at one call of the network a step; good samples from 10 to 20 steps.

    Lu, Zhou, Bao, Chen, Li, Zhu (2022), https://arxiv.org/abs/2211.01095
    """

    num_steps: int = 20
    times: Steps = uniform_steps
    stochastic = False

    def __post_init__(self) -> None:
        checks.at_least(1, num_steps=self.num_steps)
        checks.function(times=self.times)

    def __call__(self, denoiser: Denoiser, z: Tensor) -> Tensor:
        return dpm_solver(denoiser.denoise, *_begun(self, denoiser, z))

    def encode(self, denoiser: Denoiser, z: Tensor) -> Tensor:
        """From time 0 to time 1."""
        return dpm_solver(denoiser.denoise, z, _rising(_path(self, denoiser, z)))


def _path(
    sampler: Ancestral | PredictorCorrector | DDIM | ConsistencySteps | Heun | DPMSolver,
    denoiser: Denoiser,
    z: Tensor,
) -> Grid:
    return denoiser.process.path(sampler.times, sampler.num_steps, z)


def _begun(
    sampler: DDIM | ConsistencySteps | Heun | DPMSolver, denoiser: Denoiser, z: Tensor
) -> tuple[Tensor, Grid]:
    """Noise and times, where the process lets a sampler start later than at time 1."""
    process = denoiser.process
    if not process.continuous:
        raise TypeError(
            f"{type(sampler).__name__}: expected a diffusion of real data, got "
            f"{type(process).__name__}; draw labels by Ancestral(num_steps)"
        )
    path = _path(sampler, denoiser, z)
    if process.start == -math.inf:
        return z, path
    schedule = process.schedule
    one = torch.ones_like(path.times[0])
    first = schedule.time(schedule.log_snr(one).clamp(min=process.start)).clamp(0, 1)
    scale = (torch.stack(schedule(first)).norm() / torch.stack(schedule(one)).norm()).to(z)
    return scale * z, grid(schedule, path.times * first)


def _rising(path: Grid) -> Grid:
    return Grid(*(levels.flip(0) for levels in path))


def _check_deterministic(noise: float, name: str) -> None:
    if noise:
        raise ValueError(
            f"expected a deterministic sampler to encode with, got {name}={noise}; set it to 0"
        )
