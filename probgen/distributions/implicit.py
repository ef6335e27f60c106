"""Distributions that can be drawn from but not scored: what a network makes of noise."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core.batched import BatchedDistribution
from probgen.core.foreign import row_by_row
from probgen.core.truncation import Truncation, changed_by, tempered, truncated
from probgen.distributions.conditional import conditional

OBJECTIVES = "Adversarial(critic) or Discrepancy(MMD())"
UNSCORED = (
    "this distribution is implicit: it can be drawn from, but its density is not known, nor are "
    "conditionals. To train it use "
    "{objective}; to judge it compare draws with held-out rows: "
    "probgen.sample_report(draws, rows)"
)


class Implicit(BatchedDistribution):
    r"""The distribution of :math:`x = g(z, c)` for noise :math:`z \sim p_0`.

    Draws with gradients, and no density.

    .. math:: P(x \in A \mid c) = P_0\big(g(z, c) \in A\big)

    Parameters
    ----------
    generator : callable
        g: ``(*batch, *noise) -> (*batch, *event)``; with a context it is called with both,
        ``generator(z, context)``.
    base_dist : TorchDistribution
        The distribution of z; its draws carry gradients where it has ``rsample``.
    event_shape : sequence of int
        Shape of x.
    context : Tensor, optional
        ``(*batch, *context_event)``, the batch shape of the distribution.
    context_ndim : int
        Number of event dims of the context.
    support : Constraint
        Where the entries of x lie.
    trained_by : str
        The objective that trains it, which errors advise.

    Raises
    ------
    NotImplementedError
        From ``log_prob``, with the objective and the measure to use instead.
    ValueError
        From ``rsample``, if the generator does not give events of ``event_shape``.

    References
    ----------
    Mohamed, Lakshminarayanan (2016), Learning in implicit generative models,
    https://arxiv.org/abs/1610.03483

    >>> distribution = Implicit(torch.exp, dist.Normal(torch.zeros(2), 1.0).to_event(1), (2,))
    >>> distribution.rsample((5,)).shape, distribution.density_kind
    (torch.Size([5, 2]), 'implicit')
    """

    batched = {"base_dist": 0}
    has_rsample = True
    density_kind = "implicit"

    def __init__(
        self,
        generator: Callable[..., Tensor],
        base_dist: dist.TorchDistribution,
        event_shape: Sequence[int],
        *,
        context: Tensor | None = None,
        context_ndim: int = 1,
        support: constraints.Constraint = constraints.real,
        trained_by: str = OBJECTIVES,
    ):
        self.generator = generator
        self.context = context
        self.context_ndim = context_ndim
        self._support = support
        self.trained_by = trained_by
        batch = (
            base_dist.batch_shape
            if context is None
            else context.shape[: context.ndim - context_ndim]
        )
        self.base_dist = base_dist if base_dist.batch_shape == batch else base_dist.expand(batch)
        super().__init__(batch, torch.Size(event_shape), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(
            self._support, len(self.event_shape) - self._support.event_dim
        )

    def log_prob(self, x: Tensor) -> Tensor:
        raise NotImplementedError(UNSCORED.format(objective=self.trained_by))

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self.from_noise(self.noise(sample_shape))

    def noise(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draws z, which :meth:`from_noise` makes draws of x: ``(*sample, *batch, *noise)``."""
        return self.base_dist(torch.Size(sample_shape))

    def from_noise(self, z: Tensor) -> Tensor:
        """g(z, c), ``(*sample, *batch, *noise) -> (*sample, *batch, *event)``."""
        lead = z.shape[: z.ndim - len(self.base_dist.event_shape)]
        if self.context is None:
            x = row_by_row(self.generator, z, ndims=[len(self.base_dist.event_shape)])
        else:
            event = self.context.shape[self.context.ndim - self.context_ndim :]
            ndims = [len(self.base_dist.event_shape), self.context_ndim]
            x = row_by_row(self.generator, z, self.context.expand(*lead, *event), ndims=ndims)
        if x.shape != lead + self.event_shape:
            raise ValueError(
                f"expected the generator to give {tuple(lead)} + events {tuple(self.event_shape)} "
                "for noise of shape "
                f"{tuple(z.shape)}, got {tuple(x.shape)}; keep all leading dims in it, or correct "
                "the event shape"
            )
        return x

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    def using(self, rule: Truncation | Callable[[Any], Callable[..., Tensor]]) -> Implicit:
        """The same generator on noise of another deviation, ``Truncation(temperature=0.7)``.

        Or what a rule makes of the generator: ``nn.StyleTruncation(0.7)``, which is called with it.
        """
        if isinstance(rule, Truncation) or not callable(rule):
            return changed_by(self, rule)
        new = copy.copy(self)
        new.generator = rule(self.generator)
        return new


@truncated.register(Implicit)
def _(distribution: Implicit, rule: Truncation) -> Implicit:
    new = copy.copy(distribution)
    new.base_dist = tempered(distribution.base_dist, rule)
    return new


@conditional.register(Implicit)
def _(distribution: Implicit, x: Tensor, mask: Tensor) -> dist.TorchDistribution:
    raise NotImplementedError(
        UNSCORED.format(objective=distribution.trained_by)
        + ". Missing entries (NaN) can be drawn by a family with a density"
    )
