"""The distribution of what an invertible map takes to a simple distribution.

Change of variables.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import singledispatch
from typing import Any, NamedTuple, Self

import pyro.distributions as dist
import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import Transform, constraints

from probgen.core import checks
from probgen.core.batched import BatchedDistribution
from probgen.core.kinds import density_kind, worst
from probgen.core.missing import check_event, values_are_known
from probgen.core.truncation import Truncation, tempered, truncated, using
from probgen.distributions.conditional import conditional
from probgen.distributions.flows.bijection import ComposedTransform, Inverted
from probgen.distributions.flows.complete import INCOMPLETE, refuse_incomplete
from probgen.distributions.guidance.classifier_free import as_rule
from probgen.distributions.guidance.rule import Rule, check_rule, guided


class _BaseDraw(NamedTuple):
    """A draw, what it is scored with, and whether gradients were recorded."""

    x: Tensor
    version: int
    log_prob: Tensor
    graded: bool


class Pushforward(BatchedDistribution):
    r"""The distribution of x for which :math:`f(x)` has a base distribution.

    The distribution of a normalizing flow.

    .. math:: \log p(x) = \log p_0(f(x)) + \log\left|\det \frac{\partial f}{\partial x}\right|, \qquad
              x = f^{-1}(z),\ z \sim p_0

    Value and determinant come from one evaluation of the map, in either direction. A draw of
    ``rsample`` remembers its density: scoring that very tensor again costs nothing, as a guide does
    after drawing.

    Draws under guidance are of another distribution than that of the density: they come from
    ``Pushforward(base_dist, drawn_through)``, and there is no ``rsample``.

    Parameters
    ----------
    base_dist : TorchDistribution
        The distribution of z, events ``(*event)``.
    transform : Transform
        The map f from x to z: a :class:`Bijection`, or any bijective transform of torch or zuko.

    Raises
    ------
    ValueError
        From ``log_prob``: if the rightmost dims of x are not ``event_shape``, if an entry is
        missing (NaN), or, under validation, if x lies outside of the domain of f.

    References
    ----------
    Rezende, Mohamed (2015), Variational inference with normalizing flows,
    https://arxiv.org/abs/1505.05770; Papamakarios et al. (2021), Normalizing flows for
    probabilistic modeling and inference, https://arxiv.org/abs/1912.02762

    >>> log = torch.distributions.transforms.ExpTransform().inv
    >>> distribution = Pushforward(dist.Normal(torch.zeros(2), 1.0).to_event(1), log)
    >>> x = torch.tensor([1.0, 2.0])
    >>> distribution.log_prob(x), dist.LogNormal(0.0, 1.0).log_prob(x).sum()
    (tensor(-2.7713), tensor(-2.7713))
    """

    batched = {"base_dist": 0}
    forgotten = ("_drawn",)
    transform: Any  # a Transform, to which zuko gives call_and_ladj
    rerouted: Callable[[Any], Any] | None = None  # from the map of the density to that of draws

    def __init__(self, base_dist: dist.TorchDistribution, transform: Transform):
        checks.instance(torch.distributions.Distribution, base_dist=base_dist)
        checks.instance(Transform, transform=transform)
        self.base_dist = base_dist
        self.transform = transform
        self._drawn: _BaseDraw | None = None
        self.density_kind = worst(density_kind(base_dist), density_kind(transform))
        event_shape = transform.inverse_shape(base_dist.event_shape)
        super().__init__(base_dist.batch_shape, event_shape, validate_args=False)

    @classmethod
    def through(
        cls, base_dist: dist.TorchDistribution, transforms: Iterable[Transform]
    ) -> Pushforward:
        """The distribution of x for which ``f_L(... f_1(x))`` has the base distribution."""
        return cls(base_dist, ComposedTransform(*transforms))

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]  # torch: a constant
        return self.rerouted is None and self.base_dist.has_rsample

    @property
    def drawn_through(self) -> Any:
        """The map f whose inverse makes draws: that of the density, unless draws are guided."""
        return self.transform if self.rerouted is None else self.rerouted(self.transform)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        domain = self.transform.domain
        return constraints.independent(domain, len(self.event_shape) - domain.event_dim)

    def log_prob(self, x: Tensor) -> Tensor:
        if (drawn := self._remembered(x)) is not None:
            return drawn
        self._check(x)
        if self.batch_shape and x.shape != self.batch_shape + self.event_shape:
            x = x.expand(broadcast_shape(x.shape, self.batch_shape + self.event_shape))
        z, ladj = self.transform.call_and_ladj(x)
        return self.base_dist.log_prob(z) + _summed(
            ladj, len(self.event_shape) - self.transform.domain.event_dim
        )

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        if self.rerouted is not None:
            raise NotImplementedError(
                "expected a flow without guidance for rsample, whose draws have the density of the "
                "flow, got a guided one; use sample()"
            )
        if not self.has_rsample:
            raise NotImplementedError(
                f"{type(self.base_dist).__name__}, the base of this flow, has no rsample; use "
                "sample(), or a base "
                "that has (a normal, or another flow)"
            )
        z = self.base_dist.rsample(torch.Size(sample_shape))
        x, ladj = self.transform.inv.call_and_ladj(z)
        log_prob = self.base_dist.log_prob(z) - _summed(
            ladj, len(self.base_dist.event_shape) - self.transform.codomain.event_dim
        )
        if not x.is_inference():
            self._drawn = _BaseDraw(x, x._version, log_prob, torch.is_grad_enabled())
        return x

    def rsample_and_log_prob(
        self, sample_shape: Sequence[int] = torch.Size()
    ) -> tuple[Tensor, Tensor]:
        """Draws and their log-densities for one evaluation of the map, with gradients for both."""
        x = self.rsample(sample_shape)
        return x, self.log_prob(x)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        with torch.no_grad():
            return self.drawn_through.inv(self.base_dist.sample(torch.Size(sample_shape)))

    def using(self, sampler: Any = None, guidance: Rule | float | None = None) -> Self:
        """The same flow drawn in another way.

        ``Truncation(temperature=0.7)``: with noise of less deviation, a distribution of its own. A
        solver, ``Midpoint(10)``, where the map is a differential equation: solved in another way.
        ``MeanSteps(1)``, of flow matching with mean velocities.
        ``guidance``, of flow matching: draws by a velocity that a rule changes, or that of
        classifier-free guidance with a number as its weight; densities never use it.
        """
        new = self
        if isinstance(sampler, Truncation):
            new = using(self, sampler)
        elif sampler is not None:
            new = drawn_by(sampler, self)
        check_rule(**checks.given(guidance=guidance))
        return new if guidance is None else guided(new, as_rule(guidance))

    def made_of(self, base_dist: dist.TorchDistribution, transform: Transform) -> Self:
        """The same kind of flow from another base, of the same shape, or by another map."""
        new = copy.copy(self)
        new.base_dist = base_dist
        new.transform = transform
        new._drawn = None
        new.density_kind = worst(density_kind(base_dist), density_kind(transform))
        return new

    def _remembered(self, x: Tensor) -> Tensor | None:
        """The log-density of the last draw.

        If x is that draw and its gradients are there if they are wanted.
        """
        drawn = self._drawn
        if drawn is None or drawn.x is not x or drawn.version != x._version:
            return None
        return drawn.log_prob if drawn.graded or not torch.is_grad_enabled() else None

    def _check(self, x: Tensor) -> None:
        check_event(x, self.event_shape)
        refuse_incomplete(x)
        if (
            self._validate_args
            and values_are_known()
            and not (inside := self.support.check(x)).all()
        ):
            raise ValueError(
                f"expected x in the domain of the flow, {self.support}, got an event that begins "
                "with "
                f"{x[~inside].flatten()[0].item():g}; move the data into it, or begin the flow "
                "with a map of it"
            )


@singledispatch
def drawn_by(sampler: Any, flow: Any) -> Any:
    """A flow drawn by a sampler, whose type decides: by default its map, solved in that way."""
    return flow.made_of(flow.base_dist, using(flow.transform, sampler))


def _summed(ladj: Tensor, ndim: int) -> Tensor:
    """Determinants of parts of an event, summed over the last dims."""
    return ladj.flatten(-ndim).sum(-1) if ndim > 0 else ladj


@density_kind.register(ComposedTransform)
def _(transform: ComposedTransform) -> str:
    return worst("exact", *map(density_kind, transform.transforms))


@density_kind.register(Inverted)
def _(transform: Inverted) -> str:
    return density_kind(transform.base)


@truncated.register(Pushforward)
def _(distribution: Pushforward, rule: Truncation) -> Pushforward:
    return distribution.made_of(tempered(distribution.base_dist, rule), distribution.transform)


@conditional.register(Pushforward)
def _(distribution: Pushforward, x: Tensor, mask: Tensor) -> dist.TorchDistribution:
    raise NotImplementedError(INCOMPLETE)
