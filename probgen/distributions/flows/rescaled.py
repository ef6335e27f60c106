"""A distribution in other units of every variable, missing values included."""

from __future__ import annotations

import copy
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from probgen.core import checks
from probgen.core.kinds import density_kind
from probgen.core.missing import check_event
from probgen.core.truncation import Truncated, truncated, using
from probgen.distributions.conditional import conditional
from probgen.distributions.dequantized import denoising_loss_of
from probgen.distributions.flows.bijection import Bijection
from probgen.distributions.gibbs import gibbs


class Units(Bijection):
    r"""Every variable in other units, on its own.

    .. math:: y_d = \frac{x_d - m_d}{s_d}, \qquad \text{or} \qquad
              y_d = \frac{\operatorname{logit}\left(\frac{x_d - a_d}{b_d - a_d}\right) - m_d}{s_d}
              \quad \text{for } a_d < x_d < b_d

    Shares nearer to 0 or 1 than the precision of x are taken for those next to it, so that the ends
    themselves map to finite numbers.

    Parameters
    ----------
    loc, scale : Tensor
        m and s > 0, which broadcast to events.
    bounds : (Tensor, Tensor), optional
        a and b.

    >>> y, ladj = Units(torch.tensor(1.0), torch.tensor(2.0)).call_and_ladj(torch.tensor(5.0))
    >>> y, ladj.exp()
    (tensor(2.), tensor(0.5000))
    """

    def __init__(self, loc: Tensor, scale: Tensor, bounds: tuple[Tensor, Tensor] | None = None):
        super().__init__()
        self.loc = loc
        self.scale = scale
        self.bounds = bounds
        self.domain = constraints.real if bounds is None else constraints.interval(*bounds)
        self.codomain = constraints.real

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        ladj = -self.scale.log().expand_as(x)
        if self.bounds is not None:
            low, high = self.bounds
            eps = torch.finfo(x.dtype).eps
            share = ((x - low) / (high - low)).clamp(eps, 1 - eps)
            log = share.log()
            rest = torch.log1p(-share)
            x = log - rest
            ladj = ladj - log - rest - (high - low).log()
        return (x - self.loc) / self.scale, ladj

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x = self.loc + self.scale * y
        ladj = self.scale.log().expand_as(y)
        if self.bounds is not None:
            low, high = self.bounds
            ladj = ladj + logsigmoid(x) + logsigmoid(-x) + (high - low).log()
            x = low + (high - low) * x.sigmoid()
        return x, ladj


class Rescaled(dist.TorchDistribution):
    r"""The distribution of x for which x in other units has a base distribution.

    .. math:: \log p(x) = \log p_0(y(x)) + \sum_{d \text{ observed}} \log \frac{d y_d}{d x_d}

    Missing entries (NaN) are handed on as missing, and have no Jacobian; :func:`conditional` works
    where it does for the base.

    Parameters
    ----------
    base_dist : TorchDistribution
        The distribution of y, events ``(*event)``.
    units : Units
        From x to y.

    >>> units = Units(torch.tensor(5.0), torch.tensor(3.0))
    >>> distribution = Rescaled(dist.Normal(torch.zeros(2), 1.0).to_event(1), units)
    >>> x = torch.tensor([4.0, 7.0])
    >>> distribution.log_prob(x), dist.Normal(5.0, 3.0).log_prob(x).sum()
    (tensor(-4.3129), tensor(-4.3129))
    """

    arg_constraints: dict = {}

    def __init__(self, base_dist: dist.TorchDistribution, units: Units):
        self.base_dist = base_dist
        self.units = units
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:
        return self.base_dist.has_rsample

    @property
    def density_kind(self) -> str:
        return density_kind(self.base_dist)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return constraints.independent(self.units.domain, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        """Where the units are affine."""
        if self.units.bounds is not None:
            raise NotImplementedError(
                "the mean of a distribution on bounded units has no closed form; average samples"
            )
        return self.units.loc + self.units.scale * self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        """Where the units are affine."""
        if self.units.bounds is not None:
            raise NotImplementedError(
                "the variance of a distribution on bounded units has no closed form; take that of "
                "samples"
            )
        return self.units.scale.square() * self.base_dist.variance

    def log_prob(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        y, ladj = self.units.call_and_ladj(x)
        return self.base_dist.log_prob(y) + summed(
            torch.where(x.isnan(), 0.0, ladj), len(self.event_shape)
        )

    def denoising_loss(self, x: Tensor) -> Tensor:
        """The simple loss of the base distribution, in its units.

        ``(*batch, *event) -> (*batch,)``.

        Raises ``TypeError`` if the base has none.
        """
        return denoising_loss_of(self.base_dist)(self.units(x))

    def using(self, *arguments: Any, **options: Any) -> Rescaled:
        """With another way of sampling the base distribution, where it has several."""
        return Rescaled(using(self.base_dist, *arguments, **options), self.units)

    def sample(self, sample_shape: torch.Size | tuple = torch.Size()) -> Tensor:
        with torch.no_grad():
            return self.units.inv(self.base_dist.sample(torch.Size(sample_shape)))

    def rsample(self, sample_shape: torch.Size | tuple = torch.Size()) -> Tensor:
        return self.units.inv(self.base_dist.rsample(torch.Size(sample_shape)))

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> Rescaled:
        return Rescaled(self.base_dist.expand(batch_shape), self.units)


class RescaledGiven(dist.TorchDistribution):
    """What :func:`conditional` makes of a :class:`Rescaled` distribution.

    The conditional of its base, in the units of x.

    Parameters
    ----------
    given : TorchDistribution
        The conditional of the base.
    units : Units
        From x to the units of the base.
    x, mask : Tensor
        Values, and which of them are observed: ``(*batch, *event)``.
    """

    arg_constraints: dict = {}
    has_rsample = False

    def __init__(self, given: dist.TorchDistribution, units: Units, x: Tensor, mask: Tensor):
        shape = torch.broadcast_shapes(x.shape, mask.shape, given.shape())
        self.given = given
        self.units = units
        self.x = x.expand(shape)
        self.mask = mask.expand(shape)
        super().__init__(
            shape[: len(shape) - len(given.event_shape)], given.event_shape, validate_args=False
        )

    @property
    def density_kind(self) -> str:
        return density_kind(self.given)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return constraints.independent(self.units.domain, len(self.event_shape))

    def sample(self, sample_shape: torch.Size | tuple = torch.Size()) -> Tensor:
        with torch.no_grad():
            return torch.where(
                self.mask, self.x, self.units.inv(self.given.sample(torch.Size(sample_shape)))
            )

    def log_prob(self, value: Tensor) -> Tensor:
        ndim = len(self.event_shape)
        differs = summed(((value != self.x) & self.mask).to(value.dtype), ndim) > 0
        y, ladj = self.units.call_and_ladj(torch.where(self.mask, self.x, value))
        total = self.given.log_prob(y) + summed(torch.where(self.mask, 0.0, ladj), ndim)
        return torch.where(differs, -torch.inf, total)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> RescaledGiven:
        new = copy.copy(self)
        shape = torch.Size(batch_shape) + self.event_shape
        new.given, new.x, new.mask = (
            self.given.expand(batch_shape),
            self.x.expand(shape),
            self.mask.expand(shape),
        )
        new._batch_shape = torch.Size(batch_shape)
        return new


def summed(values: Tensor, ndim: int) -> Tensor:
    """The sum over the last dims: ``(*batch, *event) -> (*batch,)``."""
    return values.flatten(-ndim).sum(-1) if ndim else values


@truncated.register(Rescaled)
def _(distribution: Rescaled, rule: Truncated) -> Rescaled:
    return distribution.using(rule)


@conditional.register(Rescaled)
def _(distribution: Rescaled, x: Tensor, mask: Tensor) -> RescaledGiven:
    units = distribution.units
    return RescaledGiven(conditional(distribution.base_dist, units(x), mask), units, x, mask)


@gibbs.register(Rescaled)
def _(distribution: Rescaled, x: Tensor, mask: Tensor, steps: int) -> Tensor:
    checks.at_least(1, steps=steps)
    units = distribution.units
    drawn = gibbs(distribution.base_dist, torch.where(mask, units(x), torch.nan), mask, steps)
    return torch.where(mask, x, units.inv(drawn))
