"""The distribution of complete events given some of their coordinates.

Where it has a closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import singledispatch, wraps
from typing import Any

import pyro.distributions as dist
import torch
import torch.distributions as td
from pyro.distributions import ExpandedDistribution
from pyro.distributions.util import broadcast_shape
from torch import Tensor

from probgen.core import checks
from probgen.core.missing import MissingAware, check_event, values_are_known
from probgen.core.normal import MultivariateNormal
from probgen.core.private_torch import validates
from probgen.core.supports import check_values, support_of
from probgen.distributions.conditioned import Conditioned
from probgen.distributions.low_rank import LowRankMultivariateNormal
from probgen.heads.mixed import ColumnDistributions


def of_events(function: Callable[..., Any]) -> Any:
    """A function by type of distribution, whose ``x`` are events of it: a decorator.

    >>> of_events(lambda distribution, x, mask: 0)(dist.Normal(0.0, 1.0).expand([2]).to_event(1), torch.zeros(5, 3), 1)
    Traceback (most recent call last):
    ValueError: expected x of shape (*batch, 2), got (5, 3); reshape x to events of shape (2,), ...
    """
    by_type = singledispatch(function)

    @wraps(function)
    def checked(distribution: td.Distribution, x: Tensor, mask: Tensor) -> Any:
        checks.instance(td.Distribution, "pass gen(context)", distribution=distribution)
        checks.instance(Tensor, "pass a tensor: pg.pad makes one of a list of sequences", x=x)
        _check_given(distribution, x, mask)
        return by_type(distribution, x, mask)

    checked.register = by_type.register  # type: ignore[attr-defined]
    checked.dispatch = by_type.dispatch  # type: ignore[attr-defined]
    checked.registry = by_type.registry  # type: ignore[attr-defined]
    return checked


def _check_given(distribution: td.Distribution, x: Tensor, mask: Tensor) -> None:
    """Refuses other events, other rows.

    And under validation observed values outside of the support.
    """
    event = distribution.event_shape
    check_event(x, event)
    batch = x.shape[: x.ndim - len(event)]
    pairs = zip(reversed(batch), reversed(distribution.batch_shape), strict=False)
    if any(one != other and 1 not in (one, other) for one, other in pairs):
        raise ValueError(
            f"expected x of as many rows as the distribution has, got {tuple(batch)} for "
            f"{tuple(distribution.batch_shape)}; give each row its context"
        )
    if validates() and values_are_known():
        observed = torch.where(mask, x, torch.nan)
        check_values("x", observed.reshape(-1, *event), support_of(distribution))


@of_events
def conditional(distribution: td.Distribution, x: Tensor, mask: Tensor) -> dist.TorchDistribution:
    r"""The distribution of complete events given their observed coordinates, in closed form.

    .. math:: p(x \mid x_o = \text{given}) = \delta(x_o - \text{given})\; p(x_m \mid x_o = \text{given})

    Samples are complete events whose observed coordinates are exactly those of ``x``. ``log_prob``
    is :math:`\log p(x_m \mid x_o)`, the density of the missing block (minus infinity where the
    observed coordinates of its argument are not those of ``x``). Every row may have its own mask.

    A function by type of distribution (``functools.singledispatch``), with closed forms for
    multivariate normals, full and low-rank; for independent distributions and columns; for mixtures
    of these, whose weights are updated by the likelihoods of the observed coordinates. Others are
    added from outside by ``@conditional.register(MyDistribution)``.

    Parameters
    ----------
    distribution : Distribution
        A distribution of events of shape ``(*event)``.
    x : Tensor
        Observed values ``(*batch, *event)``; entries that are not observed are not read, and may be
        NaN.
    mask : Tensor of bool
        True = observed, broadcastable to ``x``.

    Returns
    -------
    TorchDistribution
        Events ``(*event)``, with ``sample``, ``log_prob``, ``mean`` and ``variance``.

    Raises
    ------
    NotImplementedError
        If no closed form is registered for the type of ``distribution``.
    TypeError
        If ``x`` is no tensor.
    ValueError
        If an observed entry of ``x`` is NaN, or ``x`` has other events.

    >>> distribution = dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.8], [0.8, 1.0]]))
    >>> given = conditional(distribution, torch.tensor([2.0, torch.nan]), torch.tensor([True, False]))
    >>> given.mean, given.variance
    (tensor([2.0000, 1.6000]), tensor([0.0000, 0.3600]))
    """
    if distribution.event_shape:
        name = type(distribution).__name__
        raise NotImplementedError(
            f"expected a distribution whose conditionals have a closed form, got {name}; register "
            "one with "
            f"@conditional.register({name}), or use a latent-variable model whose decoder has one: "
            "impute(gen, x) then samples by Metropolis-corrected pseudo-Gibbs"
        )
    base: Any = distribution
    return Clamped(MissingAware(base), x, mask)


@singledispatch
def observed(distribution: td.Distribution, x: Tensor) -> Tensor:
    """Which entries of data are observed: those that are not NaN.

    A function by type of distribution: sequences that are padded by NaN end with their last value,
    and their ends are observed.

    >>> observed(dist.Normal(torch.zeros(2), 1.0), torch.tensor([1.0, torch.nan]))
    tensor([ True, False])
    """
    return ~x.isnan()


@conditional.register(td.Independent)
def _(distribution: td.Independent, x: Tensor, mask: Tensor) -> dist.TorchDistribution:
    base = distribution.base_dist
    ndim = distribution.reinterpreted_batch_ndims
    if base.event_shape:
        return conditional(base, x, mask).to_event(ndim)
    return Clamped(MissingAware(base, ndim), x, mask)


@conditional.register(ExpandedDistribution)
def _(distribution: ExpandedDistribution, x: Tensor, mask: Tensor) -> dist.TorchDistribution:
    shape = broadcast_shape(x.shape, distribution.shape())
    return conditional(distribution.base_dist, x.expand(shape), mask)


@conditional.register(ColumnDistributions)
def _(distribution: ColumnDistributions, x: Tensor, mask: Tensor) -> ColumnDistributions:
    blocks = (tensor.split(distribution.sizes, -1) for tensor in torch.broadcast_tensors(x, mask))
    return ColumnDistributions(
        [conditional(*block) for block in zip(distribution.distributions, *blocks, strict=True)]
    )


@conditional.register(td.MultivariateNormal)
def _(distribution: td.MultivariateNormal, x: Tensor, mask: Tensor) -> Clamped:
    """With observed coordinates put first.

    The Cholesky factor of the covariance holds that of the conditional.
    """
    tril = distribution._unbroadcasted_scale_tril
    mask = mask.expand(broadcast_shape(mask.shape, distribution.event_shape))
    order = (
        mask.logical_not().byte().argsort(stable=True, dim=-1)
    )  # stable: the missing block stays lower triangular
    first = mask.take_along_dim(order, -1)
    factor = torch.linalg.cholesky(_permute(tril @ tril.mT, order))
    known = factor * first.unsqueeze(-2)
    square = torch.where(first.unsqueeze(-1), known, 0.0) + torch.diag_embed((~first).to(tril))
    deviation = torch.where(mask, x - distribution.loc, 0.0)
    deviation = deviation.take_along_dim(order.expand_as(deviation), -1)
    inverse = order.argsort(-1)
    shift = known @ torch.linalg.solve_triangular(square, deviation.unsqueeze(-1), upper=False)
    free = torch.where(first.unsqueeze(-2), 0.0, factor) + torch.diag_embed(first.to(tril))
    loc = distribution.loc + shift.squeeze(-1).take_along_dim(inverse.expand_as(deviation), -1)
    return Clamped(
        MultivariateNormal(loc, scale_tril=_permute(free, inverse), validate_args=False), x, mask
    )


def _permute(matrix: Tensor, order: Tensor) -> Tensor:
    """Rows and columns in the given order: ``(*batch, D, D), (*batch, D) -> (*batch, D, D)``."""
    matrix = matrix.expand(
        *broadcast_shape(matrix.shape[:-2], order.shape[:-1]), *matrix.shape[-2:]
    )
    return matrix.take_along_dim(order.unsqueeze(-1), -2).take_along_dim(order.unsqueeze(-2), -1)


@conditional.register(td.LowRankMultivariateNormal)
def _(distribution: td.LowRankMultivariateNormal, x: Tensor, mask: Tensor) -> Clamped:
    """Given the observed coordinates the factors have their posterior.

    The noise of missing coordinates is free.
    """
    factor = distribution._unbroadcasted_cov_factor
    diag = distribution._unbroadcasted_cov_diag
    joint = LowRankMultivariateNormal(distribution.loc, factor, diag, validate_args=False)
    z = joint.posterior(torch.where(mask, x, torch.nan))
    loc = distribution.loc + torch.einsum("...dk,...k->...d", factor, z.loc)
    free = LowRankMultivariateNormal(loc, factor @ z.scale_tril, diag, validate_args=False)
    return Clamped(free, x, mask)


@conditional.register(td.MixtureSameFamily)
def _(distribution: td.MixtureSameFamily, x: Tensor, mask: Tensor) -> dist.MixtureSameFamily:
    r"""Bayes' rule for the weights.

    :math:`p(x_o) = p(x_o, x_m) / p(x_m \mid x_o)` at any :math:`x_m`, here a draw.
    """
    joint = distribution.component_distribution
    ndim = len(distribution.event_shape)
    x, mask = (tensor.unsqueeze(-1 - ndim) for tensor in torch.broadcast_tensors(x, mask))
    given = conditional(joint, x, mask)
    complete = given.sample()
    evidence = joint.log_prob(complete) - given.log_prob(complete)
    weights = dist.Categorical(logits=distribution.mixture_distribution.logits + evidence)
    return dist.MixtureSameFamily(weights, given)


class Clamped(Conditioned):
    r"""Distribution of complete events with fixed observed coordinates.

    The missing ones follow another distribution.

    .. math:: x_o = \text{given}, \qquad x_m \sim \text{free}_m \quad
              (\text{the marginal of } \texttt{free} \text{ over the missing coordinates})

    Parameters
    ----------
    free : TorchDistribution
        A distribution of complete events that integrates NaN out exactly; what it says about
        observed coordinates is not used.
    x : Tensor
        ``(*batch, *event)``; entries that are not observed are not read.
    mask : Tensor of bool
        True = observed, broadcastable to ``x``.

    Raises
    ------
    ValueError
        If an observed entry of ``x`` is NaN.

    >>> free = MissingAware(dist.Normal(torch.zeros(2), 1.0), 1)
    >>> distribution = Clamped(free, torch.ones(2), torch.tensor([True, False]))
    >>> distribution.mean, distribution.log_prob(torch.tensor([1.0, 0.0]))
    (tensor([1., 0.]), tensor(-0.9189))
    """

    def __init__(self, free: dist.TorchDistribution, x: Tensor, mask: Tensor):
        super().__init__(free, x, mask)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]  # torch: a constant
        return self.joint.has_rsample

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self.completed(self.joint.rsample(torch.Size(sample_shape)))

    def _draw(self, sample_shape: torch.Size) -> Tensor:
        return self.joint.sample(sample_shape)

    def _log_prob_missing(self, value: Tensor) -> Tensor:
        return self.joint.log_prob(torch.where(self.seen, torch.nan, value))

    def _moments(self) -> tuple[Tensor, Tensor]:
        return self.joint.mean, self.joint.variance
