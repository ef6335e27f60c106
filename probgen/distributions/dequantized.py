"""A density on the line turned into masses of integers, by integrating it over their bins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core import checks
from probgen.core.batched import BatchedDistribution
from probgen.core.kinds import density_kind, worst
from probgen.core.missing import check_event, has_missing
from probgen.core.truncation import Truncation, truncated, using
from probgen.distributions.denoised import DenoisedPair, denoised_pair_of, denoising_loss_of
from probgen.distributions.gibbs import completions, gibbs


class Dequantized(BatchedDistribution):
    r"""Integers x whose masses are those of a continuous distribution over the bins :math:`[x, x+1)^D`.

    .. math:: P(x) = \int_{[0,1)^D} p(x + u)\,du = \mathbb E_{u \sim q(u \mid x)}\, \frac{p(x + u)}{q(u \mid x)}

    ``log_prob`` draws one u, uniform unless ``noise`` says otherwise. Its kind is *unbiased* with
    either noise: :math:`\exp` of it averages to P(x) for every q that is positive on the whole bin,
    whatever its parameters, so that draws may be averaged in probability space; what q changes is
    how many it takes. By Jensen's inequality its mean is a lower bound of log P(x) as well, the
    *variational bound* that fitting p and q maximizes, tight where :math:`q(u \mid x) \propto p(x +
    u)`; an average over a finite number K of draws in probability space has its expected logarithm
    between that bound and log P(x).

    How fast such averages converge depends on the tails of q towards the ends of the bin: their
    variance is finite if :math:`\int p(x + u)^2 / q(u \mid x)\,du` is, as with uniform noise, or
    noise that falls off more slowly than u there. It is infinite with logit-normal noise, whose
    averages come out too low more often than not.

    Missing entries (NaN) stay missing; q sees them as 0, and must integrate them out too.

    Parameters
    ----------
    base_dist : TorchDistribution
        A continuous distribution with events ``(*event)``.
    noise : callable, optional
        ``x -> q(u | x)``: integers ``(*batch, *event)`` to a distribution of ``batch_shape``
        ``(*batch,)`` and events ``(*event)`` that has an exact, positive density on all of
        :math:`(0, 1)^D`, none outside, and ``rsample``.

    Raises
    ------
    ValueError
        From ``log_prob``: if the distribution that ``noise`` gives has other shapes, no exact
        density, or no ``rsample``.

    References
    ----------
    Theis, van den Oord, Bethge (2016), A note on the evaluation of generative models,
    https://arxiv.org/abs/1511.01844; Ho, Chen, Srinivas, Duan, Abbeel (2019), Flow++,
    https://arxiv.org/abs/1902.00275

    >>> distribution = Dequantized(dist.Uniform(torch.zeros(2), 4.0).to_event(1))
    >>> distribution.log_prob(torch.tensor([3.0, 0.0])).exp()
    tensor(0.0625)
    """

    batched = {"base_dist": 0}

    def __init__(
        self,
        base_dist: dist.TorchDistribution,
        noise: Callable[[Tensor], dist.TorchDistribution] | None = None,
    ):
        self.base_dist = base_dist
        self.noise = noise
        self.density_kind = worst("unbiased", density_kind(base_dist))
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=False)

    @property
    def costly_density(self) -> bool:
        """Whether it costs the solution of an equation, which a simple loss leaves out."""
        return self.noise is None and getattr(self.base_dist, "costly_density", False)

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> constraints.Constraint:
        return constraints.independent(
            constraints.integer_interval(-(2**24), 2**24), len(self.event_shape)
        )

    def log_prob(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        x = x.expand(torch.broadcast_shapes(x.shape, self.shape()))  # its own u for every particle
        if self.noise is None:
            return self.base_dist.log_prob(x + torch.rand(x.shape, dtype=x.dtype, device=x.device))
        missing = x.isnan()
        q = self._checked(self.noise(torch.where(missing, 0.0, x)), x)
        u = q.rsample()
        seen = torch.where(missing, torch.nan, u) if has_missing(x) else u
        return self.base_dist.log_prob(x + u) - q.log_prob(seen)

    def denoising_loss(self, x: Tensor) -> Tensor:
        """The simple loss of the continuous distribution at x + u, u uniform.

        ``(*batch, *event) -> (*batch,)``.

        Raises ``TypeError`` if that distribution has none, or the noise is learned, for which this
        loss has no meaning.
        """
        loss = denoising_loss_of(self.base_dist)
        return loss(self._noisy(x))

    def denoised_pair(self, x: Tensor, other: Dequantized) -> DenoisedPair:
        """What the continuous distribution and another one say of noised x + u, u uniform.

        Raises ``TypeError`` as ``denoising_loss`` does.
        """
        pair = denoised_pair_of(self.base_dist)
        return pair(self._noisy(x), other.base_dist)

    def using(self, *arguments: Any, **options: Any) -> Dequantized:
        """With another way of sampling the continuous distribution, where it has several."""
        return Dequantized(using(self.base_dist, *arguments, **options), self.noise)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self.base_dist.sample(torch.Size(sample_shape)).floor()

    def _noisy(self, x: Tensor) -> Tensor:
        if self.noise is not None:
            raise TypeError(
                "expected uniform noise with a denoising loss, got learned noise; train it by "
                "ELBO()"
            )
        x = x.expand(torch.broadcast_shapes(x.shape, self.shape()))
        return x + torch.rand(x.shape, dtype=x.dtype, device=x.device)

    def _checked(self, q: dist.TorchDistribution, x: Tensor) -> dist.TorchDistribution:
        if q.shape() != x.shape or q.event_shape != self.event_shape:
            raise ValueError(
                f"expected noise of batch shape {tuple(x.shape[: x.ndim - len(self.event_shape)])} "
                "and events "
                f"{tuple(self.event_shape)} for x of shape {tuple(x.shape)}, got "
                f"{tuple(q.batch_shape)} and "
                f"{tuple(q.event_shape)}; set event_ndim and context_ndim of the module that gives "
                "it"
            )
        if density_kind(q) != "exact" or not q.has_rsample:
            raise ValueError(
                f"expected noise with an exact density and rsample, got {type(q).__name__} of "
                f"density {density_kind(q)!r} "
                f"and has_rsample={q.has_rsample}; use BinNoise, or a flow in Standardized(..., "
                "bounds=(0, 1))"
            )
        return q


@truncated.register(Dequantized)
def _(distribution: Dequantized, rule: Truncation) -> Dequantized:
    return distribution.using(rule)


@gibbs.register(Dequantized)
def _(distribution: Dequantized, x: Tensor, mask: Tensor, num_steps: int) -> Tensor:
    """Completions of x + u with u uniform, whatever distribution u has given x.

    Near the conditional distribution, not it.
    """
    checks.at_least(1, num_steps=num_steps)
    y = torch.where(mask, x + torch.rand_like(x), torch.nan)
    drawn = completions(distribution.base_dist, y, 1, num_steps)[0].squeeze(0)
    return torch.where(mask, x, drawn.floor())
