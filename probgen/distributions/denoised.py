"""What two distributions that are learned by denoising say of the same noised rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro.distributions as dist
from torch import Tensor


class DenoisedPair(NamedTuple):
    r"""Two predictions at one state, in the unit in which the simple loss counts errors.

    .. math:: L = |f - y|^2, \qquad f = \sqrt{w(t)}\, \hat x(z_t, t)

    Attributes
    ----------
    loss : Tensor
        The simple loss L of the first distribution, ``(*batch,)``.
    own, other : Tensor
        f of the first distribution and of the second one, ``(*batch, *event)``.
    time : Tensor
        t, from 0 (data) to 1 (noise), ``(*batch,)``.
    known : Tensor
        Whether the networks were shown the contexts of both, ``(*batch,)`` or ``()``.
    """

    loss: Tensor
    own: Tensor
    other: Tensor
    time: Tensor
    known: Tensor


class NoiseLevels(NamedTuple):
    r"""Which neighboring levels of noise a consistency loss compares.

    Levels :math:`\varsigma_i = (\varsigma_0^{1/\rho} + \tfrac{i}{N} (\varsigma_N^{1/\rho} -
    \varsigma_0^{1/\rho}))^\rho` of noise to signal; the later one of a pair is that next above a
    draw of :math:`\log \varsigma \sim N(m, s^2)`.

    Attributes
    ----------
    number : int or Tensor
        N.
    mean, std : float
        m and s.
    rho : float
        :math:`\rho`.
    """

    number: int | Tensor
    mean: float
    std: float
    rho: float


class ConsistencyPair(NamedTuple):
    """What is said of the data at two states of one path.

    Attributes
    ----------
    own : Tensor
        At the noisier state, ``(*batch, *event)``.
    other : Tensor
        At the less noisy one, without gradient.
    gap : Tensor
        How much their ratios of noise to signal differ, ``(*batch,)``.
    """

    own: Tensor
    other: Tensor
    gap: Tensor


def denoising_loss_of(distribution: dist.TorchDistribution) -> Callable[[Tensor], Tensor]:
    """The simple loss of a distribution that is learned by denoising.

    Raises ``TypeError`` for others.
    """
    return _method(distribution, "denoising_loss")


def denoised_pair_of(
    distribution: dist.TorchDistribution,
) -> Callable[[Tensor, Any], DenoisedPair]:
    """The predictions of a distribution that is learned by denoising, beside those of another.

    Raises ``TypeError`` for others.
    """
    return _method(distribution, "denoised_pair")


def few_steps_of(distribution: dist.TorchDistribution, name: str) -> Any:
    """What a distribution says for an objective of few steps, such as ``consistency_pair``.

    Raises ``TypeError`` for those that do not.
    """
    return _method(
        distribution,
        name,
        "use a Diffusion for Consistency and ProgressiveDistillation, FlowMatching for Reflow and "
        "MeanFlow",
    )


def _method(
    distribution: dist.TorchDistribution, name: str, instead: str = "train it by ELBO()"
) -> Any:
    method = getattr(distribution, name, None)
    if method is None:
        raise TypeError(
            "expected a distribution that is learned by denoising (a diffusion, flow matching), "
            f"got {type(distribution).__name__}; {instead}"
        )
    return method
