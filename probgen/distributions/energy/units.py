"""Units of Boltzmann machines.

Distributions of independent variables whose natural parameters are shifted by other units.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import one_hot, softplus


class Units(Protocol):
    r"""Independent variables given an input a to their features.

    :math:`p(v \mid a) \propto e^{u(v) + \phi(v)^\top a}`.

    Variables ``(*batch, D)``, features and inputs ``(*batch, F)`` with F a multiple of D.
    """

    @property
    def values(self) -> int | None:
        """How many values a variable has; ``None`` for numbers."""

    @property
    def batch(self) -> torch.Size:
        """Batch dims of the parameters."""

    def features(self, v: Tensor) -> Tensor:
        r""":math:`\phi(v)`."""

    def spread(self, mask: Tensor) -> Tensor:
        """A mask of variables as one of features."""

    def log_weight(self, v: Tensor) -> Tensor:
        """u(v) of each variable."""

    def log_partition(self, a: Tensor) -> Tensor:
        r""":math:`\log \int e^{u(v) + \phi(v)^\top a}\,dv` of each variable."""

    def sample(self, a: Tensor) -> Tensor:
        """Draws given the input."""

    def moments(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each variable given the input."""

    def mean(self) -> Tensor:
        """Expected features without input, ``(*batch, F)``."""

    def shifted(self, a: Tensor) -> Units:
        """The same units with a constant input."""

    def mixed(self, base: Units, beta: Tensor) -> Units:
        r"""Units with :math:`(1 - \beta) u_0(v) + \beta u(v)`."""

    def expand(self, batch: torch.Size) -> Units:
        """Parameters with these batch dims."""


class Binary(NamedTuple):
    r"""Variables 0. and 1. with :math:`u(v) = b v`.

    >>> Binary(torch.zeros(3)).log_partition(torch.zeros(3))
    tensor([0.6931, 0.6931, 0.6931])
    """

    bias: Tensor

    @property
    def values(self) -> int:
        return 2

    @property
    def batch(self) -> torch.Size:
        return self.bias.shape[:-1]

    def features(self, v: Tensor) -> Tensor:
        return v

    def spread(self, mask: Tensor) -> Tensor:
        return mask

    def log_weight(self, v: Tensor) -> Tensor:
        return self.bias * v

    def log_partition(self, a: Tensor) -> Tensor:
        return softplus(self.bias + a)

    def sample(self, a: Tensor) -> Tensor:
        probability = (self.bias + a).sigmoid()
        return (torch.rand_like(probability) < probability).to(probability.dtype)

    def moments(self, a: Tensor) -> tuple[Tensor, Tensor]:
        probability = (self.bias + a).sigmoid()
        return probability, probability * (1 - probability)

    def mean(self) -> Tensor:
        return self.bias.sigmoid()

    def shifted(self, a: Tensor) -> Binary:
        return Binary(self.bias + a)

    def mixed(self, base: Binary, beta: Tensor) -> Binary:
        return Binary(torch.lerp(base.bias, self.bias, beta))

    def expand(self, batch: torch.Size) -> Binary:
        return Binary(self.bias.expand(*batch, -1))

    def table(self, weight: Tensor) -> Tensor:
        """Inputs to the H hidden units from each value of each variable.

        ``(F, H) -> (D, K, H)``.
        """
        return torch.stack([torch.zeros_like(weight), weight], 1)


class NormalUnits(NamedTuple):
    r"""Real variables with :math:`u(v) = m v - \lambda v^2 / 2` and features :math:`s v`.

    >>> NormalUnits(torch.zeros(1), torch.ones(1), torch.ones(1)).log_partition(torch.zeros(1))  # half of log 2 pi
    tensor([0.9189])
    """

    linear: Tensor
    precision: Tensor
    scale: Tensor

    @property
    def values(self) -> None:
        return None

    @property
    def batch(self) -> torch.Size:
        return self.linear.shape[:-1]

    def features(self, v: Tensor) -> Tensor:
        return self.scale * v

    def spread(self, mask: Tensor) -> Tensor:
        return mask

    def log_weight(self, v: Tensor) -> Tensor:
        return v * (self.linear - self.precision * v / 2)

    def log_partition(self, a: Tensor) -> Tensor:
        total = self.linear + self.scale * a
        return (total.square() / self.precision + (2 * math.pi / self.precision).log()) / 2

    def sample(self, a: Tensor) -> Tensor:
        total = self.linear + self.scale * a
        return total / self.precision + torch.randn_like(total) * self.precision.rsqrt()

    def moments(self, a: Tensor) -> tuple[Tensor, Tensor]:
        mean = (self.linear + self.scale * a) / self.precision
        return mean, self.precision.reciprocal().expand_as(mean)

    def mean(self) -> Tensor:
        return self.scale * self.linear / self.precision

    def shifted(self, a: Tensor) -> NormalUnits:
        return self._replace(linear=self.linear + self.scale * a)

    def mixed(self, base: NormalUnits, beta: Tensor) -> NormalUnits:
        linear, precision = (
            torch.lerp(old, new, beta) for old, new in zip(base[:2], self[:2], strict=True)
        )
        return NormalUnits(linear, precision, self.scale)

    def expand(self, batch: torch.Size) -> NormalUnits:
        return NormalUnits(*(part.expand(*batch, -1) for part in self))


class LabelUnits(NamedTuple):
    r"""Variables 0., ..., K - 1 with a logit for each value.

    The features are indicators of the values.

    >>> LabelUnits(torch.zeros(2, 3)).features(torch.tensor([0.0, 2.0]))
    tensor([1., 0., 0., 0., 0., 1.])
    """

    logits: Tensor  # (*batch, D, K)

    @property
    def values(self) -> int:
        return self.logits.shape[-1]

    @property
    def batch(self) -> torch.Size:
        return self.logits.shape[:-2]

    def features(self, v: Tensor) -> Tensor:
        return one_hot(v.long(), self.values).to(self.logits.dtype).flatten(-2)

    def spread(self, mask: Tensor) -> Tensor:
        return mask.repeat_interleave(self.values, -1)

    def log_weight(self, v: Tensor) -> Tensor:
        logits = self.logits.expand(*torch.broadcast_shapes(v.shape, self.logits.shape[:-1]), -1)
        return logits.gather(-1, v.long().expand(logits.shape[:-1]).unsqueeze(-1)).squeeze(-1)

    def log_partition(self, a: Tensor) -> Tensor:
        return self._total(a).logsumexp(-1)

    def sample(self, a: Tensor) -> Tensor:
        total = self._total(a)
        noise = (
            torch.rand_like(total).clamp(torch.finfo(total.dtype).tiny).log().neg().log()
        )  # minus Gumbel noise
        return (total - noise).argmax(-1).to(total.dtype)

    def moments(self, a: Tensor) -> tuple[Tensor, Tensor]:
        probabilities = self._total(a).softmax(-1)
        values = torch.arange(self.values, dtype=probabilities.dtype, device=probabilities.device)
        mean = probabilities @ values
        return mean, (probabilities * (values - mean[..., None]).square()).sum(-1)

    def mean(self) -> Tensor:
        return self.logits.softmax(-1).flatten(-2)

    def shifted(self, a: Tensor) -> LabelUnits:
        return LabelUnits(self._total(a))

    def mixed(self, base: LabelUnits, beta: Tensor) -> LabelUnits:
        return LabelUnits(torch.lerp(base.logits, self.logits, beta))

    def expand(self, batch: torch.Size) -> LabelUnits:
        return LabelUnits(self.logits.expand(*batch, *self.logits.shape[-2:]))

    def table(self, weight: Tensor) -> Tensor:
        """Inputs to the H hidden units from each value of each variable.

        ``(F, H) -> (D, K, H)``.
        """
        return weight.unflatten(0, (-1, self.values))

    def _total(self, a: Tensor) -> Tensor:
        return self.logits + a.unflatten(-1, self.logits.shape[-2:])


class Stacked(NamedTuple):
    """Units side by side: the first ``sizes[0]`` variables are those of ``parts[0]``, and so on."""

    parts: tuple
    sizes: tuple[int, ...]  # of the variables
    widths: tuple[int, ...]  # of the features

    @property
    def values(self) -> int | None:
        counts = {part.values for part in self.parts}
        return counts.pop() if len(counts) == 1 else None

    @property
    def batch(self) -> torch.Size:
        return torch.broadcast_shapes(*(part.batch for part in self.parts))

    def features(self, v: Tensor) -> Tensor:
        return _joined(
            [part.features(piece) for part, piece in zip(self.parts, self.cut(v), strict=True)]
        )

    def spread(self, mask: Tensor) -> Tensor:
        return _joined(
            [part.spread(piece) for part, piece in zip(self.parts, self.cut(mask), strict=True)]
        )

    def log_weight(self, v: Tensor) -> Tensor:
        return _joined(
            [part.log_weight(piece) for part, piece in zip(self.parts, self.cut(v), strict=True)]
        )

    def log_partition(self, a: Tensor) -> Tensor:
        return _joined([part.log_partition(piece) for part, piece in self._inputs(a)])

    def sample(self, a: Tensor) -> Tensor:
        return _joined([part.sample(piece) for part, piece in self._inputs(a)])

    def moments(self, a: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = zip(*(part.moments(piece) for part, piece in self._inputs(a)), strict=True)
        return _joined(mean), _joined(variance)

    def mean(self) -> Tensor:
        return _joined([part.mean() for part in self.parts])

    def shifted(self, a: Tensor) -> Stacked:
        return self._replace(parts=tuple(part.shifted(piece) for part, piece in self._inputs(a)))

    def mixed(self, base: Stacked, beta: Tensor) -> Stacked:
        return self._replace(
            parts=tuple(
                part.mixed(old, beta) for part, old in zip(self.parts, base.parts, strict=True)
            )
        )

    def expand(self, batch: torch.Size) -> Stacked:
        return self._replace(parts=tuple(part.expand(batch) for part in self.parts))

    def cut(self, v: Tensor) -> tuple[Tensor, ...]:
        """The variables of each part."""
        return v.split(self.sizes, -1)

    def _inputs(self, a: Tensor) -> Iterable[tuple[Any, Tensor]]:
        return zip(self.parts, a.split(self.widths, -1), strict=True)


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    lead = torch.broadcast_shapes(*(piece.shape[:-1] for piece in pieces))
    return torch.cat([piece.expand(*lead, -1) for piece in pieces], -1)
