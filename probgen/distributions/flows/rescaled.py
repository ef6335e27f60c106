"""A distribution in other units of every variable, missing values included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from probgen.core import checks
from probgen.core.batched import BatchedDistribution
from probgen.core.kinds import density_kind
from probgen.core.missing import check_event
from probgen.core.truncation import Truncation, truncated, using
from probgen.distributions.conditional import conditional
from probgen.distributions.conditioned import Conditioned, no_closed_form
from probgen.distributions.denoised import (
    ConsistencyPair,
    DenoisedPair,
    denoised_pair_of,
    denoising_loss_of,
    few_steps_of,
)
from probgen.distributions.flows.bijection import Bijection
from probgen.distributions.gibbs import gibbs


class UnitChange(Bijection):
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

    >>> y, ladj = UnitChange(torch.tensor(1.0), torch.tensor(2.0)).call_and_ladj(torch.tensor(5.0))
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

    @property
    def affine(self) -> bool:
        """Whether moments are those of the base, moved and scaled."""
        return self.bounds is None

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


class Rescaled(BatchedDistribution):
    r"""The distribution of x for which x in other units has a base distribution.

    .. math:: \log p(x) = \log p_0(y(x)) + \sum_{d \text{ observed}} \log \frac{d y_d}{d x_d}

    Missing entries (NaN) are handed on as missing, and have no Jacobian; :func:`conditional` works
    where it does for the base.

    Parameters
    ----------
    base_dist : TorchDistribution
        The distribution of y, events ``(*event)``.
    units : Bijection
        From x to y, entry by entry, with the logarithms of the slopes of all entries.

    >>> units = UnitChange(torch.tensor(5.0), torch.tensor(3.0))
    >>> distribution = Rescaled(dist.Normal(torch.zeros(2), 1.0).to_event(1), units)
    >>> x = torch.tensor([4.0, 7.0])
    >>> distribution.log_prob(x), dist.Normal(5.0, 3.0).log_prob(x).sum()
    (tensor(-4.3129), tensor(-4.3129))
    """

    batched = {"base_dist": 0}

    def __init__(self, base_dist: dist.TorchDistribution, units: Any):
        self.base_dist = base_dist
        self.units = units
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]  # torch: a constant
        return self.base_dist.has_rsample

    @property
    def costly_density(self) -> bool:
        """Whether the density of the base costs the solution of an equation."""
        return getattr(self.base_dist, "costly_density", False)

    @property
    def density_kind(self) -> str:
        return density_kind(self.base_dist)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return constraints.independent(self.units.domain, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        """Where the units are affine."""
        if not self.units.affine:
            raise NotImplementedError(
                "the mean of a distribution in units that are not affine has no closed form; average "
                "samples"
            )
        return self.units.loc + self.units.scale * self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        """Where the units are affine."""
        if not self.units.affine:
            raise NotImplementedError(
                "the variance of a distribution in units that are not affine has no closed form; take "
                "that of samples"
            )
        return self.units.scale.square() * self.base_dist.variance

    def log_prob(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        y, ladj = self.units.call_and_ladj(x)
        return self.base_dist.log_prob(y) + summed(
            torch.where(x.isnan(), 0.0, ladj), len(self.event_shape)
        )

    def denoising_loss(self, x: Tensor, end: Tensor | None = None) -> Tensor:
        """The simple loss of the base distribution, in its units.

        ``(*batch, *event) -> (*batch,)``. ``end`` is that of paths, in units of the base.

        Raises ``TypeError`` if the base has none.
        """
        loss: Any = denoising_loss_of(self.base_dist)
        return loss(self.units(x)) if end is None else loss(self.units(x), end)

    def denoised_pair(self, x: Tensor, other: Rescaled) -> DenoisedPair:
        """What the base distribution and that of another one say of noised rows, in its units.

        Raises ``TypeError`` if they are not learned by denoising.
        """
        return denoised_pair_of(self.base_dist)(self.units(x), other.base_dist)

    def consistency_pair(
        self, x: Tensor, levels: tuple, teacher: Rescaled | None, target: Rescaled | None
    ) -> ConsistencyPair:
        """That of the base distribution, in its units, as those of all others."""
        others = (None if other is None else other.base_dist for other in (teacher, target))
        return few_steps_of(self.base_dist, "consistency_pair")(self.units(x), levels, *others)

    def halved_pair(self, x: Tensor, num_steps: int, teacher: Rescaled) -> DenoisedPair:
        """That of the base distribution, in its units."""
        pair = few_steps_of(self.base_dist, "halved_pair")
        return pair(self.units(x), num_steps, teacher.base_dist)

    def mean_velocity_pair(self, x: Tensor, spans: Any) -> Any:
        """That of the base distribution, in its units."""
        return few_steps_of(self.base_dist, "mean_velocity_pair")(self.units(x), spans)

    def sample_pairs(self, sample_shape: Sequence[int] = torch.Size()) -> tuple[Tensor, Tensor]:
        """Draws, and what they are made of in units of the base."""
        x, z = few_steps_of(self.base_dist, "sample_pairs")(sample_shape)
        return self.units.inv(x), z

    def using(self, *arguments: Any, **options: Any) -> Rescaled:
        """With another way of sampling the base distribution, where it has several."""
        return Rescaled(using(self.base_dist, *arguments, **options), self.units)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        with torch.no_grad():
            return self.units.inv(self.base_dist.sample(torch.Size(sample_shape)))

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self.units.inv(self.base_dist.rsample(torch.Size(sample_shape)))


@conditional.register(Rescaled)
class RescaledGiven(Conditioned):
    """What :func:`conditional` makes of a :class:`Rescaled` distribution.

    The conditional of its base, in the units of x.
    """

    batched = {**Conditioned.batched, "given": 0}

    def __init__(self, joint: Rescaled, x: Tensor, mask: Tensor):
        super().__init__(joint, x, mask)
        self.units = joint.units
        self.given = conditional(self.joint.base_dist, self.units(self.observed), self.seen)
        self.density_kind = density_kind(self.given)

    def _draw(self, sample_shape: torch.Size) -> Tensor:
        return self.units.inv(self.given.sample(sample_shape))

    def _log_prob_missing(self, value: Tensor) -> Tensor:
        y, ladj = self.units.call_and_ladj(self.completed(value))
        ladj = torch.where(self.seen, 0.0, ladj)
        return self.given.log_prob(y) + summed(ladj, len(self.event_shape))

    def _moments(self) -> tuple[Tensor, Tensor]:
        if not self.units.affine:
            raise no_closed_form(self.joint)
        moved = Rescaled(self.given, self.units)
        return moved.mean, moved.variance


def summed(values: Tensor, ndim: int) -> Tensor:
    """The sum over the last dims: ``(*batch, *event) -> (*batch,)``."""
    return values.flatten(-ndim).sum(-1) if ndim else values


@truncated.register(Rescaled)
def _(distribution: Rescaled, rule: Truncation) -> Rescaled:
    return distribution.using(rule)


@gibbs.register(Rescaled)
def _(distribution: Rescaled, x: Tensor, mask: Tensor, num_steps: int) -> Tensor:
    checks.at_least(1, num_steps=num_steps)
    units = distribution.units
    drawn = gibbs(distribution.base_dist, torch.where(mask, units(x), torch.nan), mask, num_steps)
    return torch.where(mask, x, units.inv(drawn))
