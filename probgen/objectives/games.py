"""Games of a critic and a generator: what each of them minimizes, given the critic's scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from probgen.core import checks

Function = Callable[[Tensor], Tensor]


class Game(Protocol):
    """Two losses, entry by entry: ``(B,), (B,) -> (B,)`` from scores of real rows and of fakes."""

    def critic(self, real: Tensor, fake: Tensor) -> Tensor:
        """What the critic minimizes."""

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        """What the generator minimizes; only the scores of fakes depend on it."""


@dataclass(frozen=True)
class NonSaturating:
    r"""The game of Goodfellow et al. (2014) with the generator's loss that does not saturate.

    :math:`s` are logits.

    .. math:: L_C = \operatorname{softplus}(-s) + \operatorname{softplus}(s'), \qquad
              L_G = \operatorname{softplus}(-s')

    Parameters
    ----------
    smoothing : float
        Share by which the target of real rows is less than one, which keeps the critic's scores
        finite (Salimans et al. 2016, https://arxiv.org/abs/1606.03498).

    References
    ----------
    Goodfellow et al. (2014), https://arxiv.org/abs/1406.2661

    >>> NonSaturating().critic(torch.zeros(1), torch.zeros(1))  # 2 log 2
    tensor([1.3863])
    """

    smoothing: float = 0.0

    def __post_init__(self) -> None:
        checks.within("[0, 1)", smoothing=self.smoothing)

    def critic(self, real: Tensor, fake: Tensor) -> Tensor:
        return softplus(-real) + self.smoothing * real + softplus(fake)

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return softplus(-fake)


@dataclass(frozen=True)
class LeastSquares:
    r"""Least-squares GAN.

    :math:`L_C = \tfrac12 (s - 1)^2 + \tfrac12 s'^2`, :math:`L_G = \tfrac12 (s' - 1)^2`.

    References
    ----------
    Mao et al. (2017), https://arxiv.org/abs/1611.04076

    >>> LeastSquares().generator(torch.zeros(1), torch.zeros(1))
    tensor([0.5000])
    """

    def critic(self, real: Tensor, fake: Tensor) -> Tensor:
        return 0.5 * (real - 1).square() + 0.5 * fake.square()

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return 0.5 * (fake - 1).square()


@dataclass(frozen=True)
class Hinge:
    r"""Hinge game: :math:`L_C = \max(0, 1 - s) + \max(0, 1 + s')`, :math:`L_G = -s'`.

    References
    ----------
    Lim, Ye (2017), Geometric GAN, https://arxiv.org/abs/1705.02894; Miyato et al. (2018),
    https://arxiv.org/abs/1802.05957

    >>> Hinge().critic(torch.tensor([2.0]), torch.tensor([-0.5]))
    tensor([0.5000])
    """

    def critic(self, real: Tensor, fake: Tensor) -> Tensor:
        return relu(1 - real) + relu(1 + fake)

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return -fake


@dataclass(frozen=True)
class Wasserstein:
    r"""Wasserstein game: :math:`L_C = s' - s`, :math:`L_G = -s'`, for critics of bounded slope.

    The bound comes from a regularizer (``GradientPenalty()``) or from the critic itself (spectral
    normalization).

    References
    ----------
    Arjovsky, Chintala, Bottou (2017), https://arxiv.org/abs/1701.07875

    >>> Wasserstein().critic(torch.tensor([2.0]), torch.tensor([-0.5]))
    tensor([-2.5000])
    """

    def critic(self, real: Tensor, fake: Tensor) -> Tensor:
        return fake - real

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return -fake


@dataclass(frozen=True)
class Relativistic:
    r"""Relativistic game: real rows and fakes are compared in pairs.

    .. math:: L_C = \operatorname{softplus}(s' - s), \qquad L_G = \operatorname{softplus}(s - s')

    With ``R1`` and ``R2`` as regularizers it converges locally, and leaves no mode out in practice
    (Huang et al. 2024).

    References
    ----------
    Jolicoeur-Martineau (2019), https://arxiv.org/abs/1807.00734; Huang, Gokaslan, Kuleshov, Tompkin
    (2024), The GAN is dead; long live the GAN!, https://arxiv.org/abs/2501.05441

    >>> Relativistic().critic(torch.tensor([1.0]), torch.tensor([1.0]))
    tensor([0.6931])
    """

    def critic(self, real: Tensor, fake: Tensor) -> Tensor:
        return softplus(fake - real)

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return softplus(real - fake)


@dataclass(frozen=True)
class FDivergence:
    r"""Variational bound of an f-divergence, which the critic raises and the generator lowers.

    .. math:: D_f(p \,\|\, q) = \sup_T\; \mathbb E_{x \sim p}[T(x)] - \mathbb E_{x' \sim q}[f^*(T(x'))],
              \qquad T = g_f(s)

    with q the generator's distribution. Made by :meth:`kullback_leibler`,
    :meth:`reverse_kullback_leibler`, :meth:`jensen_shannon`, :meth:`pearson` or
    :meth:`squared_hellinger`, or from functions of your own.

    Parameters
    ----------
    statistic : callable
        :math:`g_f`, from any scores s to values T in the domain of :math:`f^*`.
    conjugate : callable
        :math:`f^* \circ g_f`, a function of the scores too.
    alternative : bool
        Whether the generator raises :math:`\mathbb E_q[T]` in place of :math:`\mathbb E_q[f^*(T)]`
        with the opposite sign, as it does in the game that does not saturate.

    References
    ----------
    Nowozin, Cseke, Tomioka (2016), f-GAN, https://arxiv.org/abs/1606.00709

    >>> FDivergence.pearson().critic(torch.tensor([2.0]), torch.tensor([2.0]))  # f*(2) - 2
    tensor([1.])
    """

    statistic: Function
    conjugate: Function
    alternative: bool = False

    def __post_init__(self) -> None:
        checks.function(statistic=self.statistic, conjugate=self.conjugate)
        checks.flag(alternative=self.alternative)

    @classmethod
    def kullback_leibler(cls, alternative: bool = False) -> FDivergence:
        r"""KL(p || q), :math:`f(u) = u \log u`; covers modes."""
        return cls(_identity, _exp_minus_one, alternative)

    @classmethod
    def reverse_kullback_leibler(cls, alternative: bool = False) -> FDivergence:
        r"""KL(q || p), :math:`f(u) = -\log u`; avoids what is not in the data."""
        return cls(_minus_exp_minus, _minus_one, alternative)

    @classmethod
    def jensen_shannon(cls, alternative: bool = False) -> FDivergence:
        r"""Twice the Jensen-Shannon divergence.

        :math:`f(u) = u \log u - (u + 1) \log \tfrac{u + 1}{2}`.
        """
        return cls(_log_two_sigmoid, _softplus_minus_log_two, alternative)

    @classmethod
    def pearson(cls, alternative: bool = False) -> FDivergence:
        r"""Pearson's :math:`\chi^2(p \| q) = \mathbb E_q[(p/q - 1)^2]`, :math:`f(u) = (u - 1)^2`."""
        return cls(_identity, _quarter_square, alternative)

    @classmethod
    def squared_hellinger(cls, alternative: bool = False) -> FDivergence:
        r"""Squared Hellinger distance, :math:`f(u) = (\sqrt u - 1)^2`."""
        return cls(_one_minus_exp_minus, torch.expm1, alternative)

    def bound(self, real: Tensor, fake: Tensor) -> Tensor:
        """Lower bound of the divergence from scores of real rows and fakes.

        ``(B,), (B',) -> ()``.
        """
        return self.statistic(real).mean() - self.conjugate(fake).mean()

    def critic(self, real: Tensor, fake: Tensor) -> Tensor:
        return self.conjugate(fake) - self.statistic(real)

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return -self.statistic(fake) if self.alternative else -self.conjugate(fake)


def _identity(s: Tensor) -> Tensor:
    return s


def _exp_minus_one(s: Tensor) -> Tensor:
    return (s - 1).exp()


def _minus_exp_minus(s: Tensor) -> Tensor:
    return -(-s).exp()


def _minus_one(s: Tensor) -> Tensor:
    return s - 1


def _log_two_sigmoid(s: Tensor) -> Tensor:
    return math.log(2) - softplus(-s)


def _softplus_minus_log_two(s: Tensor) -> Tensor:
    return softplus(s) - math.log(2)


def _quarter_square(s: Tensor) -> Tensor:
    return s.square() / 4 + s


def _one_minus_exp_minus(s: Tensor) -> Tensor:
    return -torch.expm1(-s)
