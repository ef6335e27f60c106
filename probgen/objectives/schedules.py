"""Weights of an objective that change with the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from probgen.core import checks

WeightSchedule = Callable[[Tensor], Tensor]


def linear_warmup(steps: int, start: float = 0.0, stop: float = 1.0) -> WeightSchedule:
    r"""A weight that rises linearly: :math:`\beta_t = a + (b - a) \min(t / T, 1)`.

    Source: Bowman et al. (2016), https://arxiv.org/abs/1511.06349 (annealing of the divergence).

    >>> linear_warmup(10)(torch.tensor([0.0, 5.0, 20.0, math.inf]))
    tensor([0.0000, 0.5000, 1.0000, 1.0000])
    """
    checks.at_least(1, steps=steps)
    checks.finite(start=start, stop=stop)
    return lambda step: start + (stop - start) * (step / steps).clamp(max=1.0)


def cyclical(
    period: int, ramp: float = 0.5, start: float = 0.0, stop: float = 1.0
) -> WeightSchedule:
    r"""A weight that rises again and again.

    In each period a linear rise over the share ``ramp``, then a plateau.

    .. math:: \beta_t = a + (b - a) \min\!\big((t \bmod P) / (r P), 1\big), \qquad \beta_\infty = b.

    Source: Fu et al. (2019), Cyclical annealing schedule, https://arxiv.org/abs/1903.10145

    >>> cyclical(10)(torch.tensor([0.0, 2.5, 7.0, 10.0, 12.5, math.inf]))
    tensor([0.0000, 0.5000, 1.0000, 0.0000, 0.5000, 1.0000])
    """
    checks.at_least(1, period=period)
    checks.within("(0, 1]", ramp=ramp)
    checks.finite(start=start, stop=stop)
    rising = linear_warmup(1, start, stop)
    return lambda step: rising(
        torch.where(step.isinf(), torch.ones_like(step), step % period / (ramp * period))
    )


def geometric(steps: int, start: float, stop: float) -> WeightSchedule:
    r"""A weight that goes from one value to another by equal factors.

    .. math:: \beta_t = a (b / a)^{\min(t / T, 1)}

    >>> geometric(2, 1.0, 0.01)(torch.tensor([0.0, 1.0, 2.0, math.inf]))
    tensor([1.0000, 0.1000, 0.0100, 0.0100])
    """
    checks.at_least(1, steps=steps)
    checks.positive(start=start, stop=stop)
    ratio = math.log(stop / start)
    return lambda step: start * ((step / steps).clamp(max=1.0) * ratio).exp()


def doubling(steps: int, start: int = 10, stop: int = 1280) -> WeightSchedule:
    r"""A number of levels that doubles, as often as it takes and each for as many steps.

    .. math:: N_t = \min\big(N_0 2^{\lfloor t / K \rfloor}, N_1\big), \qquad
              K = T / (\lfloor \log_2 (N_1 / N_0) \rfloor + 1)

    Source: Song, Dhariwal (2024), Improved techniques for training consistency models,
    https://arxiv.org/abs/2310.14189, section 3.4

    >>> doubling(300, 10, 40)(torch.tensor([0.0, 99.0, 100.0, 250.0, math.inf]))
    tensor([10., 10., 20., 40., 40.])
    """
    checks.at_least(1, steps=steps)
    checks.at_least(2, start=start)
    checks.at_least(start, stop=stop)
    period = max(1.0, steps / (math.floor(math.log2(stop / start)) + 1))
    return lambda step: (start * 2 ** (step / period).floor()).clamp(max=float(stop))


def at_step(weight: float | WeightSchedule, step: Tensor, training: bool) -> float | Tensor:
    """A weight at a step count (a 0-dim tensor of integers).

    That of a schedule, in eval mode at infinity.

    >>> at_step(2.0, torch.tensor(3), True), at_step(linear_warmup(4), torch.tensor(3), True)
    (2.0, tensor(0.7500))
    """
    if not callable(weight):
        return weight
    kind = torch.get_default_dtype()
    return weight(step.to(kind) if training else torch.full_like(step, math.inf, dtype=kind))


def at_next_step(weight: float | WeightSchedule, step: Tensor, training: bool) -> float | Tensor:
    """The same, and counts the step: in training, where the weight depends on it.

    >>> step = torch.tensor(3)
    >>> at_next_step(linear_warmup(4), step, True), step
    (tensor(0.7500), tensor(4))
    """
    return all_at_next_step([weight], step, training)[0] if callable(weight) else weight


def all_at_next_step(
    weights: Sequence[float | WeightSchedule], step: Tensor, training: bool
) -> list[float | Tensor]:
    """The same of several weights at one step, which is counted where any depends on it.

    >>> step = torch.tensor(3)
    >>> all_at_next_step([2.0, linear_warmup(4)], step, True), step
    ([2.0, tensor(0.7500)], tensor(4))
    """
    now = [at_step(weight, step, training) for weight in weights]
    if training and any(callable(weight) for weight in weights):
        step.add_(1)
    return now
