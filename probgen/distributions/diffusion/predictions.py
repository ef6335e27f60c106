"""What a denoising network predicts.

The noise, the data, their velocity, or a preconditioned mixture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from probgen.core import checks


class Prediction(Protocol):
    r"""How a network tells the expected data :math:`\hat x` behind :math:`z = \alpha x + \sigma \varepsilon`.

    Tensors broadcast with each other; levels and times may have any shape.
    """

    def inputs(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the network sees of z."""

    def time(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the network sees of the time."""

    def original(self, output: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The expected data that an output tells."""

    def output(self, x: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The output that tells the data x.

        The target of training, and a way from one prediction to another.
        """

    def weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The factor of the squared error of the data in the simple loss.

        There, outputs count alike at all times.
        """


class _Scaled:
    """Predictions whose networks see the time itself.

    And z divided by the deviation of standardized data.
    """

    def inputs(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return z * (alpha.square() + sigma.square()).rsqrt()

    def time(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return t


@dataclass(frozen=True)
class Epsilon(_Scaled):
    r"""The network predicts the noise: :math:`\hat x = (z - \sigma \hat\varepsilon) / \alpha`.

    Its simple loss is :math:`|\hat\varepsilon - \varepsilon|^2`. Ho, Jain, Abbeel (2020),
    https://arxiv.org/abs/2006.11239

    Where there is hardly any signal, errors of the network are multiplied by :math:`\sigma /
    \alpha`: deterministic samplers start where signal is at most a share ``least_signal`` of the
    noise in any direction of standardized data.
    """

    least_signal: float = 0.1

    def __post_init__(self) -> None:
        checks.within("[0, 1]", least_signal=self.least_signal)

    def original(self, output: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (z - sigma * output) / alpha

    def output(self, x: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (z - alpha * x) / sigma

    def weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha / sigma).square()


@dataclass(frozen=True)
class Original(_Scaled):
    r"""The network predicts the data themselves; its simple loss is :math:`|\hat x - x|^2`.

    Salimans, Ho (2022), https://arxiv.org/abs/2202.00512, section 4
    """

    def original(self, output: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return output

    def output(self, x: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return x

    def weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.ones_like(alpha)


@dataclass(frozen=True)
class Velocity(_Scaled):
    r"""The network predicts :math:`v = \alpha \varepsilon - \sigma x`, well-behaved at both ends.

    .. math:: \hat x = \frac{\alpha z - \sigma \hat v}{\alpha^2 + \sigma^2}

    Its simple loss is :math:`|\hat v - v|^2`. Salimans, Ho (2022), https://arxiv.org/abs/2202.00512
    """

    def original(self, output: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha * z - sigma * output) / (alpha.square() + sigma.square())

    def output(self, x: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha * z - (alpha.square() + sigma.square()) * x) / sigma

    def weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return ((alpha.square() + sigma.square()) / sigma).square()


@dataclass(frozen=True)
class EDM:
    r"""Preconditioning that keeps inputs and targets of the network at unit variance.

    .. math:: \hat x = \frac{d^2}{\varsigma^2 + d^2} y + \frac{\varsigma d}{\sqrt{\varsigma^2 + d^2}}
              F\Big(\frac{y}{\sqrt{\varsigma^2 + d^2}}, \tfrac14 \log \varsigma\Big), \qquad
              y = \frac z\alpha,\ \varsigma = \frac\sigma\alpha

    Parameters
    ----------
    sigma_data : float
        Standard deviation d of the data, whose mean should be near zero: 0.5 for pixels of
        photographs in [-1, 1], 1 for standardized variables; measure it for pictures that are
        nearly all background.

    References
    ----------
    Karras, Aittala, Aila, Laine (2022), https://arxiv.org/abs/2206.00364, table 1
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        checks.positive(sigma_data=self.sigma_data)

    def inputs(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return z * (sigma.square() + (alpha * self.sigma_data).square()).rsqrt()

    def time(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (sigma / alpha).log() / 4

    def original(self, output: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        skip, scale = self._factors(alpha, sigma)
        return skip * z / alpha + scale * output

    def output(self, x: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        skip, scale = self._factors(alpha, sigma)
        return (x - skip * z / alpha) / scale

    def weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self._factors(alpha, sigma)[1].square().reciprocal()

    def _factors(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        ratio = sigma / alpha
        data = self.sigma_data
        total = ratio.square() + data**2
        return data**2 / total, ratio * data * total.rsqrt()


@dataclass(frozen=True)
class LevelPrediction(_Scaled):
    r"""The network predicts what other variables tell about integers.

    The noisy variable itself tells the rest.

    .. math:: \hat x_d = \sum_k y_k\, P_{dk}, \qquad
              P_{dk} \propto \exp\Big(F_{dk}(z, t) - \frac{(z_d - \alpha y_k)^2}{2 \sigma^2}\Big)

    for data among K equally spaced levels :math:`y_k` from a to b, as ``LevelReconstruction`` makes
    them. At little noise the guess is right whatever the network says. The network returns K times
    the channels: ``(*batch, K * C, *rest)`` for events ``(C, *rest)``. The simple loss is
    :math:`|\hat x - x|^2`.

    Parameters
    ----------
    levels : int
        Number K.
    low, high : float
        a and b.

    >>> z, one = torch.tensor([0.9, 0.1]), torch.ones(1)
    >>> LevelPrediction(3).original(torch.zeros(6), z, one, one / 4).round().int().tolist()
    [1, 0]
    """

    levels: int
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        checks.at_least(2, levels=self.levels)
        checks.finite(low=self.low, high=self.high)
        checks.ordered(low=self.low, high=self.high)

    def original(self, output: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        at = next(d for d in range(-z.ndim, 0) if output.shape[d] != z.shape[d])
        logits = output.unflatten(at, (self.levels, z.shape[at]))
        values = torch.linspace(self.low, self.high, self.levels, dtype=z.dtype, device=z.device)
        values = values.reshape(-1, *[1] * -at)
        signal, noise, seen = (part.unsqueeze(at - 1) for part in (alpha, sigma, z))
        shares = (logits - 0.5 * ((seen - signal * values) / noise).square()).softmax(at - 1)
        return (shares * values).sum(at - 1)

    def output(self, x: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        raise NotImplementedError(
            "many outputs tell the same expected level; use another prediction"
        )

    def weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.ones_like(alpha)
