"""Torch's distributions of single variables.

With a ``log_prob`` that costs what the bare loss function costs; those of counts and of Gamma
variables, whose terms cancel in single precision, are summed in double, at two to three times that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.nn.functional import logsigmoid

from probgen.core import checks
from probgen.core.gammas import log_gamma_gain
from probgen.core.truncation import Truncation, truncated

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def _in_double(
    distribution: Any, family: Callable[..., Any], value: Tensor, **parameters: Tensor
) -> Tensor:
    """Log densities whose terms cancel in single precision, in the precision of the first parameter."""
    if distribution._validate_args:
        distribution._validate_sample(value)
    wide = {name: parameter.double() for name, parameter in parameters.items()}
    found = family(**wide, validate_args=False).log_prob(value.double())
    return found.to(torch.result_type(value, next(iter(parameters.values()))))


class Normal(dist.Normal):
    """Normal distribution; a scale of fewer dims than ``loc`` is never expanded.

    Which spares most of the work.

    >>> Normal(torch.zeros(3), torch.ones(1)).log_prob(torch.zeros(3))
    tensor([-0.9189, -0.9189, -0.9189])
    """

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None):
        self._given_scale = scale
        super().__init__(loc, scale, validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        z = (value - self.loc) / self._given_scale
        return torch.addcmul(-self._given_scale.log() - HALF_LOG_2PI, z, z, value=-0.5)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Normal:
        new = super().expand(batch_shape, _instance=self.__new__(Normal))
        new._given_scale = self._given_scale
        return new


class Poisson(dist.Poisson):
    """Poisson distribution of counts, from the logarithm of its rate.

    Exact where the rate itself underflows.

    >>> Poisson(torch.tensor(-200.0)).log_prob(torch.tensor(1.0))
    tensor(-200.)
    """

    def __init__(self, log_rate: Tensor, validate_args: bool | None = None):
        self.log_rate = log_rate
        super().__init__(log_rate.exp(), validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        wide, log_rate = value.double(), self.log_rate.double()
        terms = wide * log_rate - log_rate.exp() - (wide + 1).lgamma()  # large, and they cancel
        return terms.to(torch.result_type(value, self.log_rate))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Poisson:
        return Poisson(self.log_rate.expand(batch_shape), validate_args=self._validate_args)


class NegativeBinomial(dist.NegativeBinomial):
    """Negative binomial distribution, whose log masses are sums in double precision.

    In single precision their terms cancel where counts are large.

    >>> NegativeBinomial(torch.tensor(1e7), logits=torch.tensor(1e-7).log()).log_prob(torch.tensor(0.0))
    tensor(-1.0000)
    """

    def log_prob(self, value: Tensor) -> Tensor:
        return _in_double(
            self, dist.NegativeBinomial, value, logits=self.logits, total_count=self.total_count
        )


class Binomial(dist.Binomial):
    """Binomial distribution, whose log masses are sums in double precision.

    >>> Binomial(10**6, torch.tensor(1e-6)).log_prob(torch.tensor(0.0))
    tensor(-1.0000)
    """

    def log_prob(self, value: Tensor) -> Tensor:
        return _in_double(
            self, dist.Binomial, value, logits=self.logits, total_count=self.total_count
        )


class BetaBinomialCounts(dist.BetaBinomial):
    """Beta-binomial distribution, whose log masses are sums in double precision.

    >>> BetaBinomialCounts(torch.tensor(1e6), torch.tensor(1e6), 1).log_prob(torch.tensor(1.0)).exp()
    tensor(0.5000)
    """

    def log_prob(self, value: Tensor) -> Tensor:
        return _in_double(
            self,
            dist.BetaBinomial,
            value,
            concentration1=self.concentration1,
            concentration0=self.concentration0,
            total_count=self.total_count,
        )


class StudentT(dist.StudentT):
    """Student t distribution, right for many degrees of freedom too.

    >>> StudentT(torch.tensor(1e8)).log_prob(torch.tensor(0.0)).exp()        # of a normal one
    tensor(0.3989)
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        square = ((value - self.loc) / self.scale).square()
        return (
            log_gamma_gain(self.df / 2, 0.5)
            - 0.5 * (math.pi * self.df).log()
            - self.scale.log()
            - 0.5 * (self.df + 1) * torch.log1p(square / self.df)
        )


class Gamma(dist.Gamma):
    """Gamma distribution of positive numbers: at 0 the density is 0 or infinite.

    >>> Gamma(torch.tensor(2.0), torch.tensor(1.0)).support
    GreaterThan(lower_bound=0.0)
    """

    support = constraints.positive  # type: ignore[assignment]  # torch: zeros too

    def log_prob(self, value: Tensor) -> Tensor:
        return _in_double(self, dist.Gamma, value, rate=self.rate, concentration=self.concentration)


class Categorical(dist.Categorical):
    """Categorical distribution whose labels are floating-point values.

    Like the data of every other distribution.

    Parameters
    ----------
    log_probs : Tensor
        Normalized log masses ``(*batch, levels)``; they are not normalized again.

    >>> distribution = Categorical(torch.tensor([0.25, 0.75]).log())
    >>> distribution.enumerate_support(), distribution.log_prob(torch.tensor(1.0)).exp()
    (tensor([0., 1.]), tensor(0.7500))
    """

    def __init__(self, log_probs: Tensor, validate_args: bool | None = None):
        self.logits = self._param = log_probs
        self._num_events = log_probs.shape[-1]
        Distribution.__init__(self, log_probs.shape[:-1], validate_args=validate_args)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return super().sample(torch.Size(sample_shape)).to(self.logits.dtype)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return super().enumerate_support(expand).to(self.logits.dtype)

    @property
    def mode(self) -> Tensor:
        return super().mode.to(self.logits.dtype)

    @property
    def mean(self) -> Tensor:
        """Of the labels as numbers."""
        return self.logits.exp() @ self._labels

    @property
    def variance(self) -> Tensor:
        """Of the labels as numbers."""
        return (self.logits.exp() * (self._labels - self.mean[..., None]).square()).sum(-1)

    @property
    def _labels(self) -> Tensor:
        return torch.arange(self._num_events, dtype=self.logits.dtype, device=self.logits.device)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Categorical:
        new = Categorical(self.logits.expand(*batch_shape, -1), validate_args=False)
        new._validate_args = self._validate_args
        return new


@truncated.register(torch.distributions.Categorical)
def _(
    distribution: torch.distributions.Categorical, rule: Truncation
) -> Categorical | dist.Categorical:
    checks.instance(Truncation, rule=rule)
    log_masses = rule.log_masses(distribution.logits)
    if isinstance(distribution, Categorical):
        return Categorical(log_masses, validate_args=False)
    return dist.Categorical(logits=log_masses, validate_args=False)


@truncated.register(torch.distributions.Bernoulli)
def _(distribution: torch.distributions.Bernoulli, rule: Truncation) -> Categorical:
    """As two labels, 0 and 1, one of which may be impossible."""
    logits = distribution.logits
    log_masses = torch.stack((logsigmoid(-logits), logsigmoid(logits)), -1)
    return Categorical(rule.log_masses(log_masses), validate_args=False)


@truncated.register(torch.distributions.Binomial)
def _(distribution: torch.distributions.Binomial, rule: Truncation) -> Categorical:
    """As the labels 0, ..., n, where n is the same in all rows."""
    log_masses = distribution.log_prob(distribution.enumerate_support()).movedim(0, -1)
    return Categorical(rule.log_masses(log_masses), validate_args=False)
