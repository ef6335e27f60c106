"""Discrete draws whose gradient passes straight through to what made them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import Any

import pyro.distributions as dist
import torch
import torch.distributions as td
from torch import Tensor

from probgen.core import checks
from probgen.core.keywords import explained

Shape = Sequence[int]


class _StraightThrough:
    """Draws of a discrete distribution, with gradients that they do not have.

    Attributes
    ----------
    biased_gradient : bool
        Estimates that use the gradient of a draw, as evidence bounds do, are right in their value
        and biased in their gradient.
    """

    has_rsample = True
    biased_gradient = True
    temperature: float | None = None

    def rsample(self: Any, sample_shape: Shape = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape)
        if self.temperature is None:
            code = self.sample(shape)
            source = self.probs.expand_as(code)
        else:
            code, source = self._relaxed(shape)
        return code + (source - source.detach())


class StraightThroughOneHot(_StraightThrough, dist.OneHotCategorical):
    """One-hot draws with the gradient of the probabilities, or of a Gumbel softmax."""

    def expand(self, batch_shape: Shape, _instance: Any = None) -> StraightThroughOneHot:
        new = self._get_checked_instance(StraightThroughOneHot, _instance)
        new.temperature = self.temperature
        return super().expand(torch.Size(batch_shape), _instance=new)

    def _relaxed(self, shape: torch.Size) -> tuple[Tensor, Tensor]:
        logits = self.logits.expand(self._extended_shape(shape))
        noisy = logits + td.Gumbel(torch.zeros_like(logits), 1.0, validate_args=False).sample()
        best = noisy.detach().argmax(-1, keepdim=True)
        code = (best == torch.arange(noisy.shape[-1], device=noisy.device)).to(noisy.dtype)
        return code, (noisy / self.temperature).softmax(-1)


class StraightThroughBernoulli(_StraightThrough, dist.Bernoulli):
    """Draws of 0 and 1 with the gradient of the probability, or of a relaxed draw."""

    def expand(self, batch_shape: Shape, _instance: Any = None) -> StraightThroughBernoulli:
        new = self._get_checked_instance(StraightThroughBernoulli, _instance)
        new.temperature = self.temperature
        return super().expand(torch.Size(batch_shape), _instance=new)

    def _relaxed(self, shape: torch.Size) -> tuple[Tensor, Tensor]:
        logits = self.logits.expand(self._extended_shape(shape))
        uniform = torch.rand_like(logits).clamp(torch.finfo(logits.dtype).tiny, 1 - 1e-7)
        noisy = logits + uniform.log() - (-uniform).log1p()
        return (noisy.detach() > 0).to(noisy.dtype), (noisy / self.temperature).sigmoid()


class StraightThroughDelta(dist.Delta):
    """A point mass whose point has a gradient that the way to it has not: a quantized vector."""

    biased_gradient = True

    def expand(self, batch_shape: Shape, _instance: Any = None) -> StraightThroughDelta:
        new = self._get_checked_instance(StraightThroughDelta, _instance)
        return super().expand(torch.Size(batch_shape), _instance=new)


@explained
def straight_through(distribution: Any, *, temperature: float | None = None) -> Any:
    r"""Straight-through estimator: draws codes, and passes the gradient on as if they were continuous.

    .. math:: b \sim p, \qquad \partial b / \partial \theta := \partial \operatorname{E}[b] / \partial \theta

    Values and densities are those of the discrete distribution, so that an evidence bound with such
    a site in its guide is right. Its gradient is **biased** (``biased_gradient`` of what is
    returned), without the noise of score-function terms; Pyro's
    ``RelaxedOneHotCategoricalStraightThrough`` has the density of a relaxed variable instead, which
    is no bound together with a discrete prior.

    Parameters
    ----------
    distribution : Bernoulli, OneHotCategorical, Categorical, Delta, or independent ones of these
        Categories become one-hot vectors, since their numbers have no direction. A ``Delta`` at a
        quantized vector, whose gradient was passed on already, is only marked.
    temperature : float, optional
        With one, draws are the largest of logits with Gumbel noise, and the gradient is that of
        their softmax at this temperature: less biased, the colder, and noisier.

    Raises
    ------
    TypeError
        For other distributions.

    References
    ----------
    Bengio, Léonard, Courville (2013), Estimating or propagating gradients through stochastic
    neurons, https://arxiv.org/abs/1308.3432; Jang, Gu, Poole (2017), Categorical reparameterization
    with Gumbel-Softmax, https://arxiv.org/abs/1611.01144

    >>> logits = torch.zeros(3, requires_grad=True)
    >>> draw = straight_through(dist.OneHotCategorical(logits=logits)).rsample()
    >>> draw.detach().sum(), (draw * torch.arange(3.0)).sum().backward(), logits.grad
    (tensor(1.), None, tensor([-0.3333,  0.0000,  0.3333]))
    """
    return _by_type(distribution, temperature)


@singledispatch
def _by_type(distribution: Any, temperature: float | None) -> Any:
    raise TypeError(
        "expected Bernoulli, OneHotCategorical, Categorical or Delta, got "
        f"{type(distribution).__name__}; continuous distributions that have rsample need no "
        "straight-through draws, others take score-function terms as they are"
    )


def _with(distribution: Any, temperature: float | None) -> Any:
    checks.positive(**checks.given(temperature=temperature))
    distribution.temperature = temperature
    return distribution


@_by_type.register(td.OneHotCategorical)
@_by_type.register(td.Categorical)
def _(distribution: td.OneHotCategorical | td.Categorical, temperature: float | None) -> Any:
    made = StraightThroughOneHot(logits=distribution.logits, validate_args=False)
    return _with(made, temperature)


@_by_type.register(td.Bernoulli)
def _(distribution: td.Bernoulli, temperature: float | None) -> Any:
    made = StraightThroughBernoulli(logits=distribution.logits, validate_args=False)
    return _with(made, temperature)


@_by_type.register(dist.Delta)
def _(distribution: dist.Delta, temperature: float | None) -> Any:
    if temperature is not None:
        raise ValueError(
            "expected no temperature for a point mass, which has no noise; leave it out"
        )
    return StraightThroughDelta(
        distribution.v, distribution.log_density, distribution.event_dim, validate_args=False
    )


@_by_type.register(td.Independent)
def _(distribution: td.Independent, temperature: float | None) -> Any:
    made = _by_type(distribution.base_dist, temperature)
    return made.to_event(distribution.reinterpreted_batch_ndims)
