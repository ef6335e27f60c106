"""Variables recorded on a grid, under a continuous distribution: uniform noise on every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core import checks
from probgen.core.batched import BatchedDistribution
from probgen.core.kinds import density_kind, worst
from probgen.core.missing import check_event
from probgen.core.truncation import Truncation, truncated, using
from probgen.distributions.conditional import conditional
from probgen.distributions.conditioned import Conditioned, no_closed_form
from probgen.distributions.denoised import DenoisedPair, denoised_pair_of, denoising_loss_of
from probgen.distributions.gibbs import completions, gibbs


class Rounded(BatchedDistribution):
    r"""Variables x recorded on grids of steps :math:`\delta_d`.

    As averages of a density over the steps.

    .. math:: \bar p(x) = \mathbb E_{u \sim U(0, 1)^D}\, p(x + \delta \odot u), \qquad
              P(x) = \bar p(x) \prod_{d:\, \delta_d > 0} \delta_d

    A density in the units of x: a variable with :math:`\delta_d = 1` counts as with its
    probability, one with :math:`\delta_d = 0` is continuous. ``log_prob`` draws one u, so that its
    kind is *unbiased*, and its mean is a lower bound of :math:`\log \bar p(x)` by Jensen's
    inequality. Missing entries (NaN) stay missing. See :class:`Dequantized
    <probgen.distributions.dequantized.Dequantized>` for integers and learned noise.

    Parameters
    ----------
    base_dist : TorchDistribution
        The continuous distribution, with events ``(*event)``.
    resolution : Tensor
        :math:`\delta \ge 0`, which broadcasts to events. Grids contain 0.

    References
    ----------
    Theis, van den Oord, Bethge (2016), A note on the evaluation of generative models,
    https://arxiv.org/abs/1511.01844

    >>> distribution = Rounded(dist.Uniform(torch.zeros(2), 4.0).to_event(1), torch.tensor([0.5, 0.0]))
    >>> distribution.log_prob(torch.tensor([3.5, 0.1])).exp(), distribution.sample()[0] % 0.5
    (tensor(0.0625), tensor(0.))
    """

    batched = {"base_dist": 0}

    def __init__(self, base_dist: dist.TorchDistribution, resolution: Tensor):
        self.base_dist = base_dist
        self.resolution = resolution
        self.density_kind = worst("unbiased", density_kind(base_dist))
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=False)

    @property
    def costly_density(self) -> bool:
        """Whether the density of the base costs the solution of an equation."""
        return getattr(self.base_dist, "costly_density", False)

    @constraints.dependent_property
    def support(self) -> Any:
        return self.base_dist.support

    def log_prob(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        return self.base_dist.log_prob(self._noisy(x))

    def denoising_loss(self, x: Tensor) -> Tensor:
        """The simple loss of the continuous distribution at noisy x.

        ``(*batch, *event) -> (*batch,)``.

        Raises ``TypeError`` if that distribution has none.
        """
        return denoising_loss_of(self.base_dist)(self._noisy(x))

    def denoised_pair(self, x: Tensor, other: Rounded) -> DenoisedPair:
        """What the continuous distribution and another one say of noised rows near x.

        Raises ``TypeError`` if they are not learned by denoising.
        """
        return denoised_pair_of(self.base_dist)(self._noisy(x), other.base_dist)

    def using(self, *arguments: Any, **options: Any) -> Rounded:
        """With another way of sampling the continuous distribution, where it has several."""
        return Rounded(using(self.base_dist, *arguments, **options), self.resolution)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self.rounded(self.base_dist.sample(torch.Size(sample_shape)))

    def rounded(self, y: Tensor) -> Tensor:
        """The ends of the steps below y; entries without a grid as they are."""
        step = torch.where(self.resolution > 0, self.resolution, 1.0)
        return torch.where(self.resolution > 0, (y / step).floor() * step, y)

    def _noisy(self, x: Tensor) -> Tensor:
        x = x.expand(torch.broadcast_shapes(x.shape, self.shape()))  # its own u for every particle
        return x + self.resolution * torch.rand(x.shape, dtype=x.dtype, device=x.device)


@truncated.register(Rounded)
def _(distribution: Rounded, rule: Truncation) -> Rounded:
    return distribution.using(rule)


@conditional.register(Rounded)
class RoundedGiven(Conditioned):
    """What :func:`conditional` makes of a :class:`Rounded` distribution whose given entries have no grid.

    The conditional of its base, whose draws are rounded. A given entry on a grid says of the base
    only in which step it lies: then there is no closed form.
    """

    batched = {**Conditioned.batched, "given": 0}

    def __init__(self, joint: Rounded, x: Tensor, mask: Tensor):
        super().__init__(joint, x, mask)
        if (self.seen & (joint.resolution > 0)).any():
            raise NotImplementedError(
                "expected given entries without a grid, got some that were recorded in steps, which has "
                "no closed form; take pg.impute(gen, x), whose draws are then heuristic, or "
                "Continuous(step=0) for the column"
            )
        self.given = conditional(self.joint.base_dist, self.observed, self.seen)
        self.density_kind = worst("unbiased", density_kind(self.given))

    def _draw(self, sample_shape: torch.Size) -> Tensor:
        return self.joint.rounded(self.given.sample(sample_shape))

    def _log_prob_missing(self, value: Tensor) -> Tensor:
        return self.given.log_prob(self.joint._noisy(self.completed(value)))

    def _moments(self) -> tuple[Tensor, Tensor]:
        raise no_closed_form(self.joint)


@gibbs.register(Rounded)
def _(distribution: Rounded, x: Tensor, mask: Tensor, num_steps: int) -> Tensor:
    """Completions of noisy x.

    Near the conditional distribution, not it, where the distribution is steep in a step.
    """
    checks.at_least(1, num_steps=num_steps)
    y = torch.where(mask, distribution._noisy(x), torch.nan)
    drawn = completions(distribution.base_dist, y, 1, num_steps)[0].squeeze(0)
    return torch.where(mask, x, distribution.rounded(drawn))
