"""Shares of the signal that are left after each step of a diffusion in discrete time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from probgen.core import checks

Shares = Sequence[float] | Tensor  # a list, an array or a tensor
_READY = "take linear_steps(T), cosine_steps(T) or, for labels, even_steps(T)"


def linear_steps(steps: int) -> Tensor:
    r"""Noise that grows evenly, :math:`\beta_t` from :math:`0.1 / T` to :math:`20 / T`.

    At most 0.999.

    .. math:: \bar\alpha_t = \prod_{s=1}^t (1 - \beta_s)

    With T = 1000 it is the schedule of Ho, Jain, Abbeel (2020), https://arxiv.org/abs/2006.11239

    Parameters
    ----------
    steps : int
        Number T of steps, at least 2.

    Returns
    -------
    Tensor
        :math:`\bar\alpha_1, \dots, \bar\alpha_T`, shape ``(T,)``, double precision.

    Raises
    ------
    ValueError
        If ``steps`` is smaller than 2.

    >>> linear_steps(1000)[[0, -1]]
    tensor([9.9990e-01, 4.0358e-05], dtype=torch.float64)
    """
    checks.at_least(2, "a few hundred are usual", steps=steps)
    beta = torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64).clamp(max=0.999)
    return torch.cumprod(1 - beta, 0)


def cosine_steps(steps: int, offset: float = 0.008) -> Tensor:
    r"""Signal that falls as a squared cosine, no single :math:`\beta_t` above 0.999.

    ``(T,)``, double precision.

    .. math:: \bar\alpha_t \propto \cos^2\!\Big(\frac\pi2\, \frac{t / T + s}{1 + s}\Big)

    with the offset s. Nichol, Dhariwal (2021), https://arxiv.org/abs/2102.09672. Raises
    ``ValueError`` if ``steps`` is smaller than 2.

    >>> cosine_steps(1000)[[0, 499, 999]]
    tensor([9.9996e-01, 4.9384e-01, 2.4288e-09], dtype=torch.float64)
    """
    checks.at_least(2, "a few hundred are usual", steps=steps)
    checks.not_negative(offset=offset)
    time = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    left = torch.cos(0.5 * math.pi * (time + offset) / (1 + offset)).square()
    return torch.cumprod((left[1:] / left[:-1]).clamp(min=0.001), 0)


def even_steps(steps: int) -> Tensor:
    r"""Signal that falls by the same amount in each step to nothing.

    :math:`\bar\alpha_t = 1 - t / T`; ``(T,)``.

    For labels that are masked one after the other (Austin et al. 2021,
    https://arxiv.org/abs/2107.03006): every step masks as many. Raises ``ValueError`` if ``steps``
    is smaller than 2.

    >>> even_steps(4)
    tensor([0.7500, 0.5000, 0.2500, 0.0000], dtype=torch.float64)
    """
    checks.at_least(2, "a few hundred are usual", steps=steps)
    return 1 - torch.arange(1, steps + 1, dtype=torch.float64) / steps


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


def even_chances(steps: int, like: Tensor) -> Tensor:
    """The chance 1 / T of each of T steps, none for the datum.

    ``(T + 1,)``, in the precision of a tensor.

    >>> even_chances(2, torch.zeros(()))
    tensor([0.0000, 0.5000, 0.5000])
    """
    return (torch.arange(steps + 1, device=like.device) > 0).to(like.dtype) / steps
