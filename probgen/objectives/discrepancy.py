"""Discrepancies between two samples, as losses.

Maximum mean discrepancy, energy distance, sliced transport.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.sums import sum_of
from probgen.objectives.base import Objective
from probgen.objectives.samples import unconditioned_run


class Measure(Protocol):
    """How far two samples are apart.

    ``(n, *event), (m, *event) -> ()``; further tensors are context of both.
    """

    descends: bool

    def __call__(self, real: Tensor, fake: Tensor, *context: Any) -> Tensor:
        """A scalar with gradients by both samples."""


@dataclass(frozen=True)
class RBF:
    r"""Sum of Gaussian kernels, :math:`k(d) = \sum_i \exp\big(-d^2 / (2 h_i^2)\big)`.

    Parameters
    ----------
    scales : sequence of float
        Bandwidths :math:`h_i`, in the units of :class:`MMD`.
    """

    scales: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0)

    def __post_init__(self) -> None:
        checks.numbers("positive", scales=self.scales)

    def __call__(self, squares: Tensor) -> Tensor:
        return sum_of((-squares / (2 * h**2)).exp() for h in self.scales)


@dataclass(frozen=True)
class InverseMultiquadric:
    r"""Sum of inverse multiquadrics, :math:`k(d) = \sum_i h_i^2 / (h_i^2 + d^2)`.

    Heavy tails, whose slope reaches far.

    Parameters
    ----------
    scales : sequence of float
        Lengths :math:`h_i`, in the units of :class:`MMD`.

    References
    ----------
    Tolstikhin, Bousquet, Gelly, Schoelkopf (2018), Wasserstein auto-encoders,
    https://arxiv.org/abs/1711.01558
    """

    scales: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0)

    def __post_init__(self) -> None:
        checks.numbers("positive", scales=self.scales)

    def __call__(self, squares: Tensor) -> Tensor:
        return sum_of(h**2 / (h**2 + squares) for h in self.scales)


@dataclass(frozen=True)
class MMD:
    r"""Squared maximum mean discrepancy of two samples.

    .. math:: \mathbb E\,k(x, y) + \mathbb E\,k(x', y') - 2\, \mathbb E\,k(x, x')

    Parameters
    ----------
    kernel : callable
        From squared distances to similarities: :class:`RBF`, :class:`InverseMultiquadric`.
    unit : float, optional
        Length in which distances are measured; default: the median distance between the samples,
        taken as given (no gradient passes through it).
    unbiased : bool
        Whether pairs of a row with itself are left out: the U-statistic, unbiased and negative at
        times. Otherwise the V-statistic, never negative and larger by what the rows of a sample add
        among themselves, O(1/n).

    References
    ----------
    Gretton, Borgwardt, Rasch, Schoelkopf, Smola (2012), A kernel two-sample test,
    https://jmlr.org/papers/v13/gretton12a.html; Li, Swersky, Zemel (2015), Generative moment
    matching networks, https://arxiv.org/abs/1502.02761

    >>> MMD(RBF([1.0]), unit=1.0)(torch.zeros(3, 2), torch.full((3, 2), 9.0))  # far apart: 1 + 1 - 0
    tensor(2.)
    """

    kernel: Callable[[Tensor], Tensor] = field(default_factory=RBF)
    unit: float | None = None
    unbiased: bool = True
    descends = True

    def __post_init__(self) -> None:
        checks.function(kernel=self.kernel)
        checks.positive(**checks.given(unit=self.unit))
        checks.flag(unbiased=self.unbiased)

    def __call__(self, real: Tensor, fake: Tensor, *context: Any) -> Tensor:
        x = _vectors(real, context)
        y = _vectors(fake, context)
        between = _squares(x, y)
        unit = between.detach().median().clamp_min(1e-12) if self.unit is None else self.unit**2
        within = (_average(self.kernel(_squares(s, s) / unit), self.unbiased) for s in (x, y))
        return sum(within) - 2 * self.kernel(between / unit).mean()


@dataclass(frozen=True)
class EnergyDistance:
    r"""Energy distance of two samples: no bandwidth, and a slope that reaches any distance.

    .. math:: 2\, \mathbb E\lVert x - x' \rVert - \mathbb E\lVert x - y \rVert - \mathbb E\lVert x' - y' \rVert

    Parameters
    ----------
    unbiased : bool
        As in :class:`MMD`.

    References
    ----------
    Székely, Rizzo (2013), Energy statistics, https://doi.org/10.1016/j.jspi.2013.03.018

    >>> EnergyDistance()(torch.zeros(3, 1), torch.ones(3, 1))
    tensor(2.)
    """

    unbiased: bool = True
    descends = True

    def __post_init__(self) -> None:
        checks.flag(unbiased=self.unbiased)

    def __call__(self, real: Tensor, fake: Tensor, *context: Any) -> Tensor:
        x = _vectors(real, context)
        y = _vectors(fake, context)
        within = sum(_average(_distances(s, s), self.unbiased) for s in (x, y))
        return 2 * _distances(x, y).mean() - within


@dataclass(frozen=True)
class SlicedWasserstein:
    r"""Squared 2-Wasserstein distance along random directions, where sorting solves transport.

    Samples of one size.

    .. math:: \mathbb E_u\, \tfrac1n \sum_i \big(u^\top x_{(i)} - u^\top x'_{(i)}\big)^2, \qquad \lVert u \rVert = 1

    Parameters
    ----------
    directions : int
        Number of directions, drawn anew at every call.

    References
    ----------
    Deshpande, Zhang, Schwing (2018), Generative modeling using the sliced Wasserstein distance,
    https://arxiv.org/abs/1803.11188

    >>> SlicedWasserstein()(torch.zeros(5, 1), torch.full((5, 1), 2.0))
    tensor(4.)
    """

    directions: int = 128
    descends = True

    def __post_init__(self) -> None:
        checks.at_least(1, directions=self.directions)

    def __call__(self, real: Tensor, fake: Tensor, *context: Any) -> Tensor:
        x = _vectors(real, context)
        y = _vectors(fake, context)
        if len(x) != len(y):
            raise ValueError(
                f"expected samples of one size, got {len(x)} and {len(y)} rows; leave some out"
            )
        u = torch.randn(x.shape[1], self.directions, dtype=x.dtype, device=x.device)
        u = u / u.norm(dim=0)
        return ((x @ u).sort(0).values - (y @ u).sort(0).values).square().mean()


class Discrepancy(Objective):
    r"""Moment matching: draws of the model and rows of data as two samples that are to be alike.

    .. math:: B\, D\big((x_1, \dots, x_B), (x'_1, \dots, x'_B)\big), \qquad x'_b \sim p_\theta(\cdot \mid c_b)

    For implicit distributions (:class:`GAN <probgen.models.gan.GAN>`) and any other distribution of
    x with ``rsample``. There is no second player: the value descends. With a context the pairs (x,
    c) and (x', c) are compared, as vectors side by side. It needs batches of some hundred rows, and
    data of moderate dimension or features of them: what it compares is the batch.

    Parameters
    ----------
    measure : Measure
        :class:`MMD` (the default), :class:`EnergyDistance` or :class:`SlicedWasserstein`.

    Raises
    ------
    TypeError
        At the call, if there is no observed site ``"x"``, or its distribution has no ``rsample``.
    ValueError
        At the call, if rows are incomplete (NaN).

    References
    ----------
    Li, Swersky, Zemel (2015), Generative moment matching networks, https://arxiv.org/abs/1502.02761

    >>> from probgen.core.module import standard_normal
    >>> from probgen.models.gan import GAN
    >>> from probgen.nn.mlp import MLP
    >>> gan = GAN(MLP(2, [8], 2), standard_normal(2))
    >>> Discrepancy(EnergyDistance())(gan.model, gan.guide)(torch.randn(64, 2)).shape
    torch.Size([])
    """

    def __init__(self, measure: Measure | None = None):
        checks.function(**checks.given(measure=measure))
        super().__init__()
        self.measure = measure or MMD()

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
    ) -> Tensor:
        drawn = unconditioned_run(model, batch, self)
        return len(drawn.real) * self.measure(drawn.real, drawn.fake, *drawn.context)


def _vectors(x: Tensor, context: tuple) -> Tensor:
    """Rows as vectors, with those of their context side by side: ``(n, D)``."""
    return torch.cat(
        [part.reshape(len(part), -1) for part in (x, *context) if torch.is_tensor(part)], -1
    )


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances ``(n, m)``, from differences: those of products lose small ones."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _squares(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances ``(n, m)`` by products, which lose little once the samples are centered."""
    center = x.detach().mean(0)
    x = x - center
    y = y - center
    return (x.square().sum(-1, keepdim=True) + y.square().sum(-1) - 2 * x @ y.mT).clamp_min(0)


def _average(values: Tensor, without_diagonal: bool) -> Tensor:
    """Average over pairs ``(n, n)``, of different rows or of all."""
    if not without_diagonal:
        return values.mean()
    n = len(values)
    if n < 2:
        raise ValueError(
            f"expected at least two rows for an unbiased estimate, got {n}; use larger batches"
        )
    return (values.sum() - values.diagonal().sum()) / (n * (n - 1))
