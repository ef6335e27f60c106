"""Distributions made sharper or cut to their likeliest values, with the density that this gives."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import pyro.distributions as dist
import torch
import torch.distributions as td
from pyro.distributions import ExpandedDistribution
from torch import Tensor

from probgen.core import checks
from probgen.core.missing import MissingAware
from probgen.core.signatures import signature_of


@dataclass(frozen=True)
class Truncation:
    r"""Temperature, top-k and top-p (nucleus) sampling, of every step of a distribution.

    .. math:: p'(x_t \mid x_{<t}) \propto p(x_t \mid x_{<t})^{1/\tau}\; [x_t \in V_t]

    where :math:`V_t` are the k likeliest values, and of these the smallest set of likeliest ones
    whose probability is at least ``top_p``. The temperature comes first, then ``top_k``, then
    ``top_p``. Given to ``gen(context).using(Truncation(...))`` it gives another distribution,
    normalized at every step: its ``log_prob`` is that of the distribution that its draws have, and
    its density has the kind that it had before. The model itself does not change.

    Autoregressive distributions are changed at every step, where entries have finitely many values
    (categories, binary values, levels); normal and Laplace entries take a temperature alone. In
    flows, latent-variable models and generators, as there is usage, the temperature multiplies the
    standard deviation of normal noise: of the base, of the latent sites in the plate of the data,
    of what enters the generator.

    Parameters
    ----------
    temperature : float
        :math:`\tau`: below 1 sharper, above 1 flatter; 0: the likeliest values alone, equally
        likely where there are several.
    top_k : int, optional
        k >= 1. Of values that are equally likely the lower ones come first, so that ``top_k=1`` is
        greedy and gives always the same.
    top_p : float, optional
        Above 0 and at most 1, which leaves all values.

    Raises
    ------
    TypeError, ValueError
        For what is no number, or one outside of its range.

    References
    ----------
    Holtzman, Buys, Du, Forbes, Choi (2020), The curious case of neural text degeneration,
    https://arxiv.org/abs/1904.09751 (top-p); Fan, Lewis, Dauphin (2018), Hierarchical neural story
    generation, https://arxiv.org/abs/1805.04833 (top-k); Kingma, Dhariwal (2018), Glow,
    https://arxiv.org/abs/1807.03039 (temperature of a flow)

    >>> Truncation(top_p=0.7).log_masses(torch.tensor([0.5, 0.1, 0.4]).log()).exp()
    tensor([0.5556, 0.0000, 0.4444])
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        checks.within("[0, inf)", "1 changes nothing", temperature=self.temperature)
        checks.at_least(1, **checks.given(top_k=self.top_k))
        checks.within("(0, 1]", "1 leaves all values", **checks.given(top_p=self.top_p))

    @property
    def truncates(self) -> bool:
        """Whether some values may be left out."""
        return self.top_k is not None or (self.top_p is not None and self.top_p < 1)

    @property
    def changes(self) -> bool:
        """Whether it may change anything."""
        return self.truncates or self.temperature != 1

    def log_masses(self, log_masses: Tensor) -> Tensor:
        """Log masses of finitely many values, changed and normalized.

        ``(*batch, levels)``.
        """
        if self.temperature == 0:
            best = log_masses == log_masses.amax(-1, keepdim=True)
            log_masses = torch.where(best, 0.0, -torch.inf).to(log_masses)
        elif self.temperature != 1:
            log_masses = log_masses / self.temperature
        if self.truncates:
            log_masses = torch.where(self._kept(log_masses), log_masses, -torch.inf)
        return log_masses.log_softmax(-1)

    def _kept(self, log_masses: Tensor) -> Tensor:
        """Which values stay: the first ones, when the likeliest come first."""
        order = log_masses.argsort(stable=True, dim=-1, descending=True)
        rank = order.argsort(-1)
        kept = rank < (log_masses.shape[-1] if self.top_k is None else self.top_k)
        if self.top_p is None or self.top_p == 1:
            return kept
        masses = torch.where(kept, log_masses, -torch.inf).softmax(-1)
        falling = masses.gather(-1, order)
        before = falling.cumsum(-1) - falling
        return kept & (before < self.top_p).gather(-1, rank)


@singledispatch
def truncated(distribution: td.Distribution, rule: Truncation) -> dist.TorchDistribution:
    """The distribution that a rule makes of another one, normalized.

    A function by type of distribution (``functools.singledispatch``); others are added from outside
    by ``@truncated.register(MyDistribution)``.

    Raises
    ------
    NotImplementedError
        For a distribution that has no steps over finitely many values, nor normal noise.

    >>> from probgen.heads.distributions import Categorical
    >>> truncated(Categorical(torch.tensor([0.5, 0.1, 0.4]).log()), Truncation(top_k=1)).probs
    tensor([1., 0., 0.])
    """
    raise NotImplementedError(
        "expected a distribution that is drawn step by step (autoregressive) from finitely many "
        "values, or made of "
        f"normal noise (a flow, a VAE, a GAN), got {type(distribution).__name__}; draw from it "
        "without temperature, "
        "top_k and top_p"
    )


@singledispatch
def tempered(noise: td.Distribution, rule: Truncation) -> dist.TorchDistribution:
    """The noise that a model makes data of, with its standard deviation times the temperature.

    What is not normal is changed by :func:`truncated`.

    >>> tempered(dist.Normal(torch.zeros(2), 1.0), Truncation(0.5)).scale
    tensor([0.5000, 0.5000])
    """
    return truncated(noise, rule)


@tempered.register(td.Normal)
def _(noise: td.Normal, rule: Truncation) -> dist.Normal:
    return dist.Normal(noise.loc, noise.scale * _of_numbers(noise, rule), validate_args=False)


@tempered.register(td.MultivariateNormal)
def _(noise: td.MultivariateNormal, rule: Truncation) -> dist.MultivariateNormal:
    scale_tril = noise.scale_tril * _of_numbers(noise, rule)
    return dist.MultivariateNormal(noise.loc, scale_tril=scale_tril, validate_args=False)


@truncated.register(td.Normal)
def _(distribution: td.Normal, rule: Truncation) -> dist.Normal:
    factor = _of_numbers(distribution, rule) ** 0.5
    return dist.Normal(distribution.loc, distribution.scale * factor, validate_args=False)


@truncated.register(td.Laplace)
def _(distribution: td.Laplace, rule: Truncation) -> dist.Laplace:
    factor = _of_numbers(distribution, rule)
    return dist.Laplace(distribution.loc, distribution.scale * factor, validate_args=False)


@truncated.register(td.Independent)
def _(distribution: td.Independent, rule: Truncation) -> dist.TorchDistribution:
    return _independent(distribution, truncated(distribution.base_dist, rule))


@tempered.register(td.Independent)
def _(noise: td.Independent, rule: Truncation) -> dist.TorchDistribution:
    return _independent(noise, tempered(noise.base_dist, rule))


@truncated.register(ExpandedDistribution)
def _(distribution: ExpandedDistribution, rule: Truncation) -> dist.TorchDistribution:
    return truncated(distribution.base_dist, rule).expand(distribution.batch_shape)


@tempered.register(ExpandedDistribution)
def _(noise: ExpandedDistribution, rule: Truncation) -> dist.TorchDistribution:
    return tempered(noise.base_dist, rule).expand(noise.batch_shape)


def using(distribution: Any, *arguments: Any, **options: Any) -> Any:
    """A distribution drawn in another way.

    By its own ``using``, or as :class:`Truncation` says.

    Raises
    ------
    TypeError
        If the distribution may be drawn in one way only.

    >>> using(dist.Normal(0.0, 1.0).to_event(0), Truncation(0.25)).scale
    tensor(0.5000)
    """
    if len(arguments) == 1 and isinstance(arguments[0], Truncation) and not options:
        rule = arguments[0]
        return truncated(distribution, rule) if rule.changes else distribution
    method = getattr(distribution, "using", None)
    if "guidance" in options and not _takes(method, "guidance"):
        raise TypeError(
            "expected a distribution that can be guided (a diffusion, flow matching), got "
            f"{type(distribution).__name__}; drop guidance"
        )
    if method is None:
        raise TypeError(
            "expected a distribution that may be sampled in several ways (a diffusion, flow "
            "matching), got "
            f"{type(distribution).__name__}; drop using()"
        )
    return method(*arguments, **options)


def changed_by(distribution: Any, rule: Truncation) -> Any:
    """What ``using`` is for a distribution that may be truncated, and drawn in one way else.

    Raises
    ------
    TypeError
        For anything but a :class:`Truncation`.
    """
    if not isinstance(rule, Truncation):
        raise TypeError(
            f"expected Truncation(temperature, top_k, top_p), got {rule!r}; "
            f"{type(distribution).__name__} is drawn in "
            "no other ways"
        )
    return using(distribution, rule)


def _takes(method: Any, name: str) -> bool:
    """Whether a method has an argument of that name, or any."""
    signature = None if method is None else signature_of(method)
    if signature is None:
        return False
    parameters = signature.parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _independent(outer: td.Independent, base: dist.TorchDistribution) -> dist.TorchDistribution:
    ndim = outer.reinterpreted_batch_ndims
    return MissingAware(base, ndim) if isinstance(outer, MissingAware) else base.to_event(ndim)


def _of_numbers(distribution: td.Distribution, rule: Truncation) -> float:
    """The temperature for real numbers, which have no likeliest values to count."""
    if rule.truncates or rule.temperature == 0:
        raise NotImplementedError(
            "expected finitely many values for top_k, top_p and temperature=0, got real numbers "
            f"({type(distribution).__name__}); give a temperature above 0 alone"
        )
    return rule.temperature
