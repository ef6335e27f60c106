"""From noise to data and back, given a denoiser.

Ancestral steps, with corrections, guesses noised anew, DDIM, Heun's method, DPM-Solver++.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]


class TimeNode(NamedTuple):
    """A time with its levels of signal and noise, 0-dim tensors."""

    time: Tensor
    alpha: Tensor
    sigma: Tensor

    @property
    def ratio(self) -> Tensor:
        """Noise to signal."""
        return self.sigma / self.alpha


class Grid(NamedTuple):
    """The times that a solver visits, in its order, with the levels of signal and noise there.

    ``(N + 1,)`` each.

    Falling times lead from noise to data, rising ones from data to noise.
    """

    times: Tensor
    alphas: Tensor
    sigmas: Tensor

    def steps(self) -> Iterator[tuple[TimeNode, TimeNode]]:
        """Neighbors in turn."""
        return itertools.pairwise(TimeNode(*levels) for levels in zip(*self, strict=True))


def ancestral(draw: Callable[[Tensor, Tensor, Tensor], Tensor], z: Tensor, times: Tensor) -> Tensor:
    r"""Draws step by step from reverse kernels :math:`p(z_s \mid z_t)`.

    Parameters
    ----------
    draw : callable
        ``draw(z, t, s)`` draws from :math:`p(z_s \mid z_t)`.
    z : Tensor
        Noise at the first time.
    times : Tensor
        Falling times ``(N + 1,)``, or those of each row ``(N + 1, *batch)``.

    References
    ----------
    Ho, Jain, Abbeel (2020), https://arxiv.org/abs/2006.11239

    >>> ancestral(lambda z, t, s: z / 2, torch.ones(2), torch.tensor([1.0, 0.5, 0.0]))
    tensor([0.2500, 0.2500])
    """
    for t, s in itertools.pairwise(times):
        z = draw(z, t, s)
    return z


def predictor_corrector(
    draw: Callable[[Tensor, Tensor, Tensor], Tensor],
    denoise: Denoise,
    z: Tensor,
    grid: Grid,
    corrections: int,
    ratio: float,
) -> Tensor:
    r"""Ancestral steps, each followed by Langevin steps at the level reached.

    .. math:: z \leftarrow z + 2 r^2 (\alpha \hat x(z) - z) + 2 r \sigma\, \varepsilon

    Parameters
    ----------
    draw : callable
        As for :func:`ancestral`.
    denoise, z, grid
        As for :func:`ddim`, falling times.
    corrections : int
        Number of Langevin steps at each level.
    ratio : float
        r, their signal-to-noise ratio.

    References
    ----------
    Song et al. (2021), https://arxiv.org/abs/2011.13456, algorithm 1

    >>> levels = torch.tensor([1.0, 0.5]), torch.tensor([0.6, 1.0]), torch.tensor([0.8, 0.0])
    >>> halve, origin = lambda z, t, s: z / 2, lambda z, t: torch.zeros_like(z)
    >>> predictor_corrector(halve, origin, torch.ones(2), Grid(*levels), corrections=1, ratio=0.5)
    tensor([0.2500, 0.2500])
    """
    for here, there in grid.steps():
        z = draw(z, here.time, there.time)
        for _ in range(corrections):
            pull = there.alpha * denoise(z, there.time) - z
            z = z + 2 * ratio**2 * pull + 2 * ratio * there.sigma * torch.randn_like(z)
    return z


def renoised(
    denoise: Denoise,
    z: Tensor,
    grid: Grid,
    noise: Callable[[Tensor, Tensor], Tensor] = lambda z, t: torch.randn_like(z),
) -> Tensor:
    r"""Guesses of the data, each with new noise of the next level; the last one with none.

    .. math:: z_s = \alpha_s\, \hat x(z_t, t) + \sigma_s\, \varepsilon

    Parameters
    ----------
    denoise, z, grid
        As for :func:`ddim`, falling times.
    noise : callable
        ``noise(z, t)`` draws it, of mean 0 and variance 1; default: normal.

    References
    ----------
    Song, Dhariwal, Chen, Sutskever (2023), Consistency models, https://arxiv.org/abs/2303.01469,
    algorithm 1

    >>> grid = Grid(torch.tensor([1.0, 0.0]), torch.tensor([0.6, 1.0]), torch.tensor([0.8, 0.1]))
    >>> renoised(lambda z, t: z / 2, torch.ones(2), grid)
    tensor([0.5000, 0.5000])
    """
    *steps, (last, end) = grid.steps()
    for here, there in steps:
        x = denoise(z, here.time)
        z = there.alpha * x + there.sigma * noise(x, there.time)
    return end.alpha * denoise(z, last.time)


def ddim(
    denoise: Denoise,
    z: Tensor,
    grid: Grid,
    eta: float = 0.0,
    noise: Callable[[Tensor, Tensor], Tensor] = lambda z, t: torch.randn_like(z),
) -> Tensor:
    r"""Steps that keep the direction of the noise.

    Without new noise, Euler's method in :math:`\sigma / \alpha`.

    .. math:: z_s = \alpha_s \hat x + \sqrt{\sigma_s^2 - \eta^2 \tilde\beta}\; \hat\varepsilon
              + \eta \sqrt{\tilde\beta}\; \varepsilon, \qquad \tilde\beta = \sigma_s^2 \Big(1 -
              \frac{\alpha_t^2 \sigma_s^2}{\alpha_s^2 \sigma_t^2}\Big)

    of first order for ``eta`` 0, and the ancestral steps with the smaller variance for 1.

    Parameters
    ----------
    denoise : callable
        ``denoise(z, t)``, t of shape (), gives the expected data :math:`\hat x`, of the shape of z.
    z : Tensor
        State at the first time.
    grid : Grid
        Falling times; without new noise also rising ones.
    eta : float
        Share of new noise.
    noise : callable
        ``noise(z, t)`` draws it, of mean 0 and variance 1; default: normal.

    References
    ----------
    Song, Meng, Ermon (2021), https://arxiv.org/abs/2010.02502

    >>> grid = Grid(torch.tensor([1.0, 0.0]), torch.tensor([0.6, 1.0]), torch.tensor([0.8, 0.0]))
    >>> ddim(lambda z, t: z / 2, torch.ones(2), grid)
    tensor([0.5000, 0.5000])
    """
    for here, there in grid.steps():
        x = denoise(z, here.time)
        seen = (z - here.alpha * x) / here.sigma
        if eta:
            fresh = eta * there.sigma * (1 - (there.ratio / here.ratio).square()).sqrt()
            kept = (there.sigma.square() - fresh.square()).clamp(min=0).sqrt()
            z = there.alpha * x + kept * seen + fresh * noise(z, there.time)
        else:
            z = there.alpha * x + there.sigma * seen
    return z


def heun(
    denoise: Denoise,
    z: Tensor,
    grid: Grid,
    raised: Grid | None = None,
    inflation: float = 1.0,
    correct_last: bool = False,
) -> Tensor:
    r"""Heun's method, of second order, for the probability-flow equation in :math:`y = z / \alpha`.

    .. math:: \frac{dy}{d\varsigma} = \frac{y - \hat x}{\varsigma}, \qquad \varsigma = \frac{\sigma}{\alpha}

    Two calls of the denoiser a step, and one for the last.

    Parameters
    ----------
    denoise, z, grid
        As for :func:`ddim`.
    raised : Grid, optional
        Noisier levels ``(N,)`` to which fresh noise lifts the state before each step ("churn").
    inflation : float
        Factor of the standard deviation of that noise.
    correct_last : bool
        Whether the last step is corrected too; where it ends with next to no noise, Euler's step is
        the better one.

    References
    ----------
    Karras, Aittala, Aila, Laine (2022), algorithm 2, https://arxiv.org/abs/2206.00364

    >>> grid = Grid(torch.tensor([1.0, 0.0]), torch.ones(2), torch.tensor([2.0, 1.0]))
    >>> heun(lambda z, t: torch.zeros_like(z), torch.ones(1), grid)
    tensor([0.5000])
    """
    steps = list(grid.steps())
    lifted = (
        [None] * len(steps)
        if raised is None
        else [TimeNode(*levels) for levels in zip(*raised, strict=True)]
    )
    for index, ((here, there), lift) in enumerate(zip(steps, lifted, strict=True)):
        y = z / here.alpha
        if lift is not None:
            added = (lift.ratio.square() - here.ratio.square()).clamp(min=0).sqrt()
            y = y + inflation * added * torch.randn_like(y)
            here = lift
        size = there.ratio - here.ratio
        slope = (y - denoise(here.alpha * y, here.time)) / here.ratio
        ahead = y + size * slope
        if correct_last or index + 1 < len(steps):
            corrected = (ahead - denoise(there.alpha * ahead, there.time)) / there.ratio
            ahead = y + size * (slope + corrected) / 2
        z = there.alpha * ahead
    return z


def dpm_solver(denoise: Denoise, z: Tensor, grid: Grid) -> Tensor:
    r"""DPM-Solver++ (2M).

    An exponential integrator that extrapolates the last two estimates of the data.

    .. math:: z_s = \frac{\sigma_s}{\sigma_t} z_t - \alpha_s (e^{-h} - 1)
              \Big(\big(1 + \tfrac{1}{2r}\big) \hat x_t - \tfrac{1}{2r} \hat x_{t'}\Big), \qquad h =
              \log\tfrac{\alpha_s}{\sigma_s} - \log\tfrac{\alpha_t}{\sigma_t},\ r = \tfrac{h'}{h}

    of second order at one call of the denoiser a step; the first and the last step do not
    extrapolate.

    Parameters
    ----------
    denoise, z, grid
        As for :func:`ddim`.

    References
    ----------
    Lu, Zhou, Bao, Chen, Li, Zhu (2022), https://arxiv.org/abs/2211.01095

    >>> grid = Grid(torch.tensor([1.0, 0.0]), torch.ones(2), torch.tensor([2.0, 1.0]))
    >>> dpm_solver(lambda z, t: torch.zeros_like(z), torch.ones(1), grid)
    tensor([0.5000])
    """
    steps = list(grid.steps())
    earlier = None
    for index, (here, there) in enumerate(steps):
        x = denoise(z, here.time)
        size = here.ratio.log() - there.ratio.log()
        guess = x
        if earlier is not None and index + 1 < len(steps):
            before, last = earlier
            guess = x + (size / (2 * last)) * (x - before)
        z = (there.sigma / here.sigma) * z - there.alpha * torch.expm1(-size) * guess
        earlier = x, size
    return z
