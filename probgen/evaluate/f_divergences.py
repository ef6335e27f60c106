r"""f-divergences as averages over the mixture of both distributions.

With t = log p(x) - log q(x) and m = (p + q) / 2,

.. math:: D_f(p \,\|\, q) = \mathbb E_q f(e^t) = \mathbb E_m h(t), \qquad
          h(t) = \frac{2 f(e^t)}{1 + e^t}.

Multiples of u - 1, of mean zero under q, are added to f so that f'(1) = 0: then h is not negative
and small where p and q are alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from probgen.core import checks
from probgen.core.checks.reports import short as _short

_LARGEST = 600.0  # a log ratio whose exponential float64 holds
_FAR = (2.0**200, 2.0**400)  # ratios that tell the slope of a function at infinity
_GRID = 10.0 ** torch.linspace(-4, 4, 81, dtype=torch.float64)


@dataclass(frozen=True)
class RatioTerm:
    """A divergence by what it averages over the mixture of both distributions.

    Attributes
    ----------
    name : str
        What it is called.
    mixed : callable
        h of log ratios in float64, infinite ones included.
    bounded : bool
        Whether h is bounded, so that the error of its average is known.
    unit : str
        ``"nats"``, or nothing.
    root : bool
        Whether the divergence is the square root of the average.
    """

    name: str
    mixed: Callable[[Tensor], Tensor]
    bounded: bool
    unit: str = ""
    root: bool = False

    def under_first(self, log_ratio: Tensor) -> Tensor:
        """What is averaged over draws of p alone: ``f(u) / u``."""
        return self.mixed(log_ratio) / (2 * log_ratio.sigmoid())

    def under_second(self, log_ratio: Tensor) -> Tensor:
        """What is averaged over draws of q alone: ``f(u)``."""
        return self.mixed(log_ratio) / (2 * (-log_ratio).sigmoid())


def _kl(t: Tensor) -> Tensor:
    first = t.sigmoid()
    spread = torch.where(t.isneginf(), 0.0, first * t)
    return 2 * (spread - first + (-t).sigmoid())


def _jensen_shannon(t: Tensor) -> Tensor:
    entropy = torch.zeros_like(t)
    for side in (t, -t):
        entropy = entropy + torch.where(side.isneginf(), 0.0, side.sigmoid() * logsigmoid(side))
    return (math.log(2) + entropy).clamp(min=0.0)


def _total_variation(t: Tensor) -> Tensor:
    return (t / 2).tanh().abs()


def _squared_hellinger(t: Tensor) -> Tensor:
    near = 2 * (t / 4).sinh().square() / (t / 2).cosh()  # 1 - 1 / cosh(t / 2), without cancellation
    return torch.where(t.abs() > 40, 1 - 1 / (t / 2).cosh(), near)


def _chi_squared(t: Tensor) -> Tensor:
    return 2 * (t.sigmoid() - (-t).sigmoid()).square() / (-t).sigmoid()


TERMS = {
    term.name: term
    for term in (
        RatioTerm("kl", _kl, bounded=False, unit="nats"),
        RatioTerm("reverse kl", lambda t: _kl(-t), bounded=False, unit="nats"),
        RatioTerm("jensen-shannon", _jensen_shannon, bounded=True, unit="nats"),
        RatioTerm("total variation", _total_variation, bounded=True),
        RatioTerm("squared hellinger", _squared_hellinger, bounded=True),
        RatioTerm("hellinger", _squared_hellinger, bounded=True, root=True),
        RatioTerm("chi-squared", _chi_squared, bounded=False),
    )
}


def ratio_term(kind: Any) -> RatioTerm:
    """The divergence of a name, or of a convex function f with f(1) = 0.

    Raises
    ------
    TypeError, ValueError
        For another name, and for a function that is not convex or not 0 at 1.

    >>> ratio_term("kl").mixed(torch.zeros(1))
    tensor([0.])
    >>> ratio_term(lambda u: u.square())
    Traceback (most recent call last):
    ValueError: expected a convex function f of ratios with f(1) = 0, got f(1) = 1; subtract it: lambda u: ...
    """
    if isinstance(kind, str) or not callable(kind):
        checks.one_of((*TERMS, "a convex function f(u)"), kind=kind)
        return TERMS[kind]
    checks.function(kind=kind)
    return _of_function(kind)


def _of_function(f: Callable[[Tensor], Tensor]) -> RatioTerm:
    at_one = _values(f, torch.ones(1, dtype=torch.float64)).item()
    if not abs(at_one) < 1e-9:
        raise ValueError(
            "expected a convex function f of ratios with f(1) = 0, got f(1) = "
            f"{at_one:g}; subtract it: lambda u: f(u) - ({at_one:g})"
        )
    values = _values(f, _GRID)
    slopes = values.diff() / _GRID.diff()
    if not (slopes.diff() >= -1e-7 * (1 + slopes.abs().max())).all():
        raise ValueError(
            "expected a convex function f of ratios u = p / q > 0, got one that is not convex; its "
            "average is no divergence: take another, as lambda u: (u - 1) ** 2"
        )
    near = torch.tensor([1 - 1e-6, 1 + 1e-6], dtype=torch.float64)
    slope = (_values(f, near).diff() / near.diff()).item()
    at_zero = _values(f, torch.zeros(1, dtype=torch.float64)).nan_to_num(nan=math.inf)
    if at_zero.isinf():  # 0 log 0, or truly infinite
        at_zero = _at_zero(f)
    at_infinity = _slope_at_infinity(f)

    def mixed(t: Tensor) -> Tensor:
        within = t.clamp(-_LARGEST, _LARGEST)
        ratio = within.exp()
        term = 2 * (-within).sigmoid() * (_values(f, ratio) - slope * (ratio - 1))
        term = torch.where(t.isneginf(), 2 * (at_zero.item() + slope), term)
        return torch.where(t.isposinf(), 2 * (at_infinity - slope), term)

    return RatioTerm("function", mixed, bounded=False)


def _at_zero(f: Callable[[Tensor], Tensor]) -> Tensor:
    """The limit of a function at 0, as two tiny numbers tell it."""
    values = _values(f, torch.tensor([2.0**-400, 2.0**-200], dtype=torch.float64))
    settled = (values[0] - values[1]).abs() <= 1e-9 * (1 + values.abs().max())
    return values[:1] if settled else torch.full((1,), math.inf, dtype=torch.float64)


def _slope_at_infinity(f: Callable[[Tensor], Tensor]) -> float:
    """The limit of f(u) / u, as two huge numbers tell it."""
    far = torch.tensor(_FAR, dtype=torch.float64)
    slopes = _values(f, far) / far
    settled = (slopes[0] - slopes[1]).abs() <= 1e-9 * (1 + slopes.abs().max())
    return slopes[1].item() if settled else math.inf


def _values(f: Callable[[Tensor], Tensor], ratio: Tensor) -> Tensor:
    """Values of a function of ratios, refused where they are no tensor of that shape."""
    try:
        values = f(ratio)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"expected a function f(u) of a tensor of ratios, got one that fails with it ({error}); "
            "write it with torch's operations: lambda u: u * u.log()"
        ) from error
    if not torch.is_tensor(values) or values.shape != ratio.shape:
        raise TypeError(
            "expected a function f(u) of a tensor of ratios that gives a tensor of its shape, got "
            f"{_short(values)}; write it with torch's operations: lambda u: u * u.log()"
        )
    return values.double()
