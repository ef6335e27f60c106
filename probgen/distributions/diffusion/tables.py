"""Shares of the signal that are left at the times of a diffusion in discrete time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from probgen.core import checks
from probgen.distributions.diffusion.times import NoiseSchedule

Shares = Sequence[float] | Tensor  # a list, an array or a tensor
_READY = "take LinearSchedule(), CosineSchedule() or, for labels, EvenSchedule()"


def from_betas(betas: Shares) -> Tensor:
    r"""Shares of signal from the variances of the noise that each step adds.

    .. math:: \bar\alpha_t = \prod_{s=1}^t (1 - \beta_s)

    Parameters
    ----------
    betas : sequence of float or Tensor
        :math:`\beta_1, \dots, \beta_T`, each in (0, 1); the last one may be 1, which leaves nothing
        of labels.

    Returns
    -------
    Tensor
        :math:`\bar\alpha_1, \dots, \bar\alpha_T`, shape ``(T,)``, double precision.

    Raises
    ------
    TypeError, ValueError
        For what is no vector of two or more such numbers.

    >>> from_betas([0.1, 0.2, 0.5])
    tensor([0.9000, 0.7200, 0.3600], dtype=torch.float64)
    """
    values = _vector(betas)
    inside = (values > 0) & (values < 1)
    inside[-1] |= values[-1] == 1
    if not inside.all():
        place = int((~inside).nonzero()[0])
        raise ValueError(
            f"expected betas in (0, 1), got {values[place].item():g} at place {place}; give the "
            "share of noise that "
            "each step adds"
        )
    return torch.cumprod(1 - values, 0)


def alphas_bar(schedule: Shares) -> Tensor:
    r"""Shares of signal from a schedule given as numbers, which may be betas.

    Numbers that fall are taken for shares of signal :math:`\bar\alpha_t`, numbers that rise or stay
    for the :math:`\beta_t` of :func:`from_betas`.

    Parameters
    ----------
    schedule : sequence of float or Tensor
        ``(T,)``, a list, array or tensor.

    Returns
    -------
    Tensor
        :math:`1 > \bar\alpha_1 > \dots > \bar\alpha_T \ge 0`, shape ``(T,)``, double precision.

    Raises
    ------
    TypeError, ValueError
        For what is no vector of two or more numbers, or neither falls nor rises, or leaves [0, 1].

    >>> alphas_bar([0.9, 0.72, 0.36]), alphas_bar([0.1, 0.2, 0.5])
    (tensor([0.9000, 0.7200, 0.3600], dtype=torch.float64), tensor([0.9000, 0.7200, 0.3600], dtype=torch.float64))
    """
    values = _vector(schedule)
    steps = values.diff()
    if (steps >= 0).all():
        return from_betas(values)
    if not (steps < 0).all():
        other = steps >= 0 if steps[0] < 0 else steps < 0
        place = int(other.nonzero()[0])
        raise ValueError(
            "expected a schedule of shares of signal that fall or of betas that rise, got "
            f"{values[place + 1].item():g} after {values[place].item():g} at place {place + 1}; "
            "betas in any order "
            "are given as from_betas(betas)"
        )
    if not (values[0] < 1 and values[-1] >= 0):
        raise ValueError(
            "expected a schedule of shares of signal that fall within [0, 1), got "
            f"{values[0].item():g} to "
            f"{values[-1].item():g}; leave out the data themselves, at 1"
        )
    return values


def signal_shares(schedule: NoiseSchedule | Shares, num_times: int | None) -> Tensor:
    r"""The shares of signal of a chain, from a schedule or from numbers.

    .. math:: \bar\alpha_i = \alpha_{i / T}^2, \qquad i = 1, \dots, T

    Parameters
    ----------
    schedule : NoiseSchedule, or sequence of float or Tensor
        A schedule that keeps the variance, or numbers ``(T,)`` as for :func:`alphas_bar`.
    num_times : int or None
        T; with numbers, what they say.

    Returns
    -------
    Tensor
        ``(T,)``, double precision.

    Raises
    ------
    ValueError
        If a schedule comes without the number of times, is learned, or does not let signal fall.

    >>> from probgen.distributions.diffusion.schedules import EvenSchedule
    >>> signal_shares(EvenSchedule(), 4), signal_shares([0.9, 0.5], None)
    (tensor([0.7500, 0.5000, 0.2500, 0.0000], dtype=torch.float64), tensor([0.9000, 0.5000], dtype=torch.float64))
    """
    if not callable(schedule):
        values = alphas_bar(schedule)
        if num_times not in (None, len(values)):
            raise ValueError(
                f"expected num_times={len(values)} with as many numbers, got {num_times}; leave it "
                "out"
            )
        return values
    if num_times is None:
        raise ValueError(
            f"expected the number of times of a chain with {type(schedule).__name__}, got none; "
            "give num_times, a few hundred are usual"
        )
    checks.at_least(2, "a few hundred are usual", num_times=num_times)
    return _told(schedule, num_times)


def _told(schedule: Callable, num_times: int) -> Tensor:
    """The shares of signal that a schedule says."""
    t = torch.arange(1, num_times + 1, dtype=torch.float64) / num_times
    alpha = torch.as_tensor(schedule(t)[0])
    values = alpha.detach().double().square()
    if alpha.requires_grad or not (values.diff() < 0).all():
        raise ValueError(
            "expected a schedule without parameters whose signal falls, got "
            f"{type(schedule).__name__}; {_READY}"
        )
    return values


def _vector(schedule: Any) -> Tensor:
    """Numbers in double precision, ``(T,)``."""
    try:
        values = torch.as_tensor(schedule).detach().double()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"expected a schedule of numbers (T,), got {schedule!r}; {_READY}"
        ) from None
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(
            f"expected a schedule of 2 or more numbers (T,), got shape {tuple(values.shape)}; "
            f"{_READY}"
        )
    if not values.isfinite().all():
        place = int((~values.isfinite()).nonzero()[0])
        raise ValueError(
            f"expected a schedule of finite numbers, got {values[place].item()} at place {place}; "
            f"{_READY}"
        )
    return values


def uniform_probabilities(num_times: int, like: Tensor) -> Tensor:
    """Sampling probability 1 / T of each of T times, and 0 of the datum.

    ``(T + 1,)``, in the precision of a tensor.

    >>> uniform_probabilities(2, torch.zeros(()))
    tensor([0.0000, 0.5000, 0.5000])
    """
    return (torch.arange(num_times + 1, device=like.device) > 0).to(like.dtype) / num_times
