"""Increasing maps of columns, each its own: line, logarithm, logits, inverses of sinh and softplus."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import logsigmoid, softplus

from probgen.core.columns import (
    AFFINE,
    ASINH,
    EDGE,
    LOG,
    LOGIT,
    NAMES,
    SOFT_LOGIT,
    SOFTPLUS,
    Column,
    examine,
)
from probgen.core.construction import Recorded
from probgen.core.inside import point_inside
from probgen.distributions.flows.bijection import Bijection


class ColumnMaps(Recorded, nn.Module):
    r"""Maps that bring columns to order one and close to normal, with their Jacobian.

    .. math:: y_d = \frac{f_d(x_d) - m_d}{s_d}, \qquad f_d(x) \in \Big\{x,\; \log x,\;
              \operatorname{logit}\tfrac{x - a_d}{b_d - a_d},\;
              \operatorname{asinh}\tfrac{x - c_d}{r_d},\; r_d \log(e^{x / r_d} - 1)\Big\}

    A soft logit is continued by straight lines beyond the outer 0.5 % of its range, and so takes any
    number. All numbers are buffers: they are not trained, and are saved with the model.

    Parameters
    ----------
    columns : sequence of Column
        One for each entry of an event vector, see :func:`probgen.core.columns.examine`. To load
        a state, ``[Column()] * D`` will do: all numbers are in it.

    >>> maps = ColumnMaps.of(torch.linspace(-3, 3, 101).exp()[:, None])
    >>> maps.words
    ['log']
    """

    kind: Tensor
    loc: Tensor
    scale: Tensor
    first: Tensor
    second: Tensor
    resolution: Tensor

    def __init__(self, columns: Sequence[Column]):
        super().__init__()
        self.register_buffer("kind", torch.tensor([column.map for column in columns]))
        numbers = {
            "loc": [column.loc for column in columns],
            "scale": [column.scale for column in columns],
            "first": [_ends(column)[0] for column in columns],
            "second": [_ends(column)[1] for column in columns],
            "resolution": [column.resolution for column in columns],
        }
        for name, values in numbers.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.get_default_dtype()))
        self.on_grid = any(column.resolution > 0 for column in columns)
        self.register_load_state_dict_post_hook(_grid_as_loaded)

    @classmethod
    def of(cls, rows: Tensor, low: float = 0.0, high: float = 1.0) -> ColumnMaps:
        """The maps that rows ``(N, D)`` ask for, NaN = missing."""
        return cls([examine(column, low, high) for column in rows.T])

    @property
    def words(self) -> list[str]:
        """The name of the map of every column."""
        return [NAMES[kind] for kind in self.kind.tolist()]

    def forward(self, context: Tensor | None = None) -> ColumnTransform:
        return ColumnTransform(self.kind, self.loc, self.scale, self.first, self.second)


def _grid_as_loaded(maps: Any, _: object) -> None:
    """Whether there is a grid is asked at every score: once, where buffers change."""
    maps.on_grid = bool((maps.resolution > 0).any())


def _ends(column: Column) -> tuple[float, float]:
    """The two numbers of a map, beside mean and scale."""
    if column.map in (ASINH, SOFTPLUS):
        return column.center, column.spread
    return column.low, column.high


class _Within(constraints.Constraint):
    """Positive, bounded or any real numbers, column by column."""

    words = "in the range of each column (positive where it has a logarithm, bounded where a logit)"

    def __init__(self, kind: Tensor, low: Tensor, high: Tensor):
        self.kind = kind
        self.low = low
        self.high = high
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        bounded = (value >= self.low) & (value <= self.high)
        right = torch.where(self.kind == LOGIT, bounded, value == value)
        positive = (self.kind == LOG) | (self.kind == SOFTPLUS)
        return torch.where(positive, value >= 0, right)

    def __repr__(self) -> str:
        return self.words.removeprefix("in ")


@point_inside.register(_Within)
def _(support: _Within, event: torch.Size, like: Tensor) -> Tensor:
    middle = torch.where(support.kind == LOGIT, (support.low + support.high) / 2, 0.0)
    return torch.where(support.kind == LOG, 1.0, middle).to(like).expand(event)


class ColumnTransform(Bijection):
    """The map of :class:`ColumnMaps`, entry by entry: ``(*batch, D)`` each way.

    The logarithms of each entry's slope are apart, as :class:`Rescaled
    <probgen.distributions.flows.rescaled.Rescaled>` wants them for missing entries.
    """

    codomain = constraints.real
    affine = False  # moments have no closed form

    def __init__(self, kind: Tensor, loc: Tensor, scale: Tensor, first: Tensor, second: Tensor):
        super().__init__()
        self.kind = kind
        self.loc = loc
        self.scale = scale
        self.first = first
        self.second = second
        self.domain = _Within(kind, first, second)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tiny = torch.finfo(x.dtype).tiny
        eps = torch.finfo(x.dtype).eps
        log = torch.where(self.kind == LOG, x, 1.0).clamp(min=tiny).log()
        hard = self.kind == LOGIT
        bounded = hard | (self.kind == SOFT_LOGIT)
        width = torch.where(bounded, self.second - self.first, 1.0)
        whole = torch.where(bounded, (x - self.first) / width, 0.5)
        share = torch.where(hard, whole.clamp(eps, 1 - eps), whole.clamp(EDGE, 1 - EDGE))
        beyond = torch.where(hard, 0.0, (whole - share) / (EDGE * (1 - EDGE)))
        up = share.log()
        down = torch.log1p(-share)
        spread = torch.where(self.kind == ASINH, self.second, 1.0)
        ratio = torch.where(self.kind == ASINH, (x - self.first) / spread, 0.0)
        soft = self.kind == SOFTPLUS
        unit = torch.where(soft, self.second, 1.0)
        small = (-torch.expm1(-torch.where(soft, x / unit, 1.0).clamp(min=tiny))).log()
        slopes = -log, -up - down - width.log(), -_half_log1p_square(ratio) - spread.log(), -small
        y = self._chosen(x, log, up - down + beyond, ratio.asinh(), x + unit * small)
        ladj = self._chosen(torch.zeros_like(x), *slopes)
        return (y - self.loc) / self.scale, ladj - self.scale.log()

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        y = self.loc + self.scale * y
        log = torch.where(self.kind == LOG, y, 0.0)
        hard = self.kind == LOGIT
        bounded = hard | (self.kind == SOFT_LOGIT)
        whole = torch.where(bounded, y, 0.0)
        edge = math.log((1 - EDGE) / EDGE)
        logit = torch.where(hard, whole, whole.clamp(-edge, edge))
        beyond = (whole - logit) * (EDGE * (1 - EDGE))
        width = torch.where(bounded, self.second - self.first, 1.0)
        arc = torch.where(self.kind == ASINH, y, 0.0)
        spread = torch.where(self.kind == ASINH, self.second, 1.0)
        unit = torch.where(self.kind == SOFTPLUS, self.second, 1.0)
        part = torch.where(self.kind == SOFTPLUS, y / unit, 0.0)
        x = self._chosen(
            y,
            log.exp(),
            self.first + width * (logit.sigmoid() + beyond),
            self.first + spread * arc.sinh(),
            unit * softplus(part),
        )
        slopes = (
            log,
            logsigmoid(logit) + logsigmoid(-logit) + width.log(),
            _log_cosh(arc) + spread.log(),
            logsigmoid(part),
        )
        return x, self._chosen(torch.zeros_like(y), *slopes) + self.scale.log()

    def _chosen(
        self, affine: Tensor, log: Tensor, logit: Tensor, asinh: Tensor, soft: Tensor
    ) -> Tensor:
        found = torch.where(self.kind == AFFINE, affine, asinh)
        found = torch.where(self.kind == SOFTPLUS, soft, found)
        found = torch.where(self.kind == LOG, log, found)
        return torch.where((self.kind == LOGIT) | (self.kind == SOFT_LOGIT), logit, found)


def _half_log1p_square(ratio: Tensor) -> Tensor:
    """log(1 + r^2) / 2, for any r whose square may overflow."""
    return torch.hypot(torch.ones_like(ratio), ratio).log()


def _log_cosh(y: Tensor) -> Tensor:
    return y.abs() + torch.log1p((-2 * y.abs()).exp()) - torch.log(torch.full_like(y, 2.0))
