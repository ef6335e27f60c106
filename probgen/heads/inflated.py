"""A head whose values may be some numbers exactly, and those of another head otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.batched import BatchedDistribution
from probgen.core.inside import point_inside
from probgen.core.kinds import density_kind
from probgen.core.unions import WithAtoms
from probgen.heads.base import Head


class Inflated(BatchedDistribution):
    r"""Some numbers with a mass of their own beside another distribution of single variables.

    .. math:: p(x) = \sum_k w_k\, [x = a_k] + w_0\, p_0(x)

    Beside a density, :math:`p_0(x)` counts where x is no atom, and p is a density with respect to
    :math:`\lambda + \sum_k \delta_{a_k}`, Lebesgue measure and a unit mass at each atom: a mass at
    the atoms, a density elsewhere. It is of the kind of :math:`p_0`.

    Parameters
    ----------
    logits : Tensor
        ``(*batch, K)``: log weights of the atoms, relative to that of the other distribution.
    base : TorchDistribution
        :math:`p_0`, of batch shape ``(*batch,)``.
    atoms : tuple of float
        The K numbers.

    >>> distribution = Inflated(torch.zeros(1), dist.Exponential(torch.tensor(1.0)), (0.0,))
    >>> distribution.log_prob(torch.tensor([0.0, 1e-6, -1.0])).exp()
    tensor([0.5000, 0.5000, 0.0000])
    """

    batched = {"logits": 1, "base": 0}

    def __init__(self, logits: Tensor, base: dist.TorchDistribution, atoms: tuple[float, ...]):
        self.logits = logits
        self.base = base
        self.atoms = atoms
        self.density_kind = density_kind(base)
        super().__init__(
            torch.broadcast_shapes(logits.shape[:-1], base.batch_shape), validate_args=False
        )

    @property
    def support(self) -> Any:
        base: Any = self.base.support
        return WithAtoms(base, self.atoms)

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]  # torch: a constant
        return self.base.has_enumerate_support

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = self.base.enumerate_support(expand=False).flatten()
        values = torch.cat((values, values.new_tensor(self.atoms))).unique()
        values = values.reshape(-1, *[1] * len(self.batch_shape))
        return values.expand(-1, *self.batch_shape) if expand else values

    def log_prob(self, x: Tensor) -> Tensor:
        other, weights = self._log_weights
        hits = x.unsqueeze(-1) == self._numbers
        of_atoms = torch.where(hits, weights, -torch.inf).logsumexp(-1)
        support: Any = self.base.support
        inside = support.check(x)
        if not support.is_discrete:  # a single number has no mass under a density
            inside = inside & ~hits.any(-1)
        filled = torch.where(inside, x, point_inside(support, torch.Size(), x))
        of_others = torch.where(inside, other + self.base.log_prob(filled), -torch.inf)
        return torch.logaddexp(of_others, of_atoms)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draws, which are the very numbers where they are atoms."""
        shape = torch.Size(sample_shape)
        other, weights = self._log_weights
        chances = torch.cat((other.unsqueeze(-1), weights), -1).expand(*self.batch_shape, -1)
        index = dist.Categorical(logits=chances).sample(shape)
        drawn = self.base.expand(self.batch_shape).sample(shape)
        return torch.where(index == 0, drawn, self._numbers.to(drawn)[(index - 1).clamp(min=0)])

    @property
    def mean(self) -> Tensor:
        other, weights = self._log_weights
        return other.exp() * self.base.mean + weights.exp() @ self._numbers

    @property
    def variance(self) -> Tensor:
        other, weights = self._log_weights
        squares = self.base.variance + self.base.mean.square()
        second = other.exp() * squares + weights.exp() @ self._numbers.square()
        return second - self.mean.square()

    @property
    def _numbers(self) -> Tensor:
        return self.logits.new_tensor(self.atoms)

    @property
    def _log_weights(self) -> tuple[Tensor, Tensor]:
        """Of the other distribution ``(*batch,)``, and of the atoms ``(*batch, K)``."""
        zero = torch.zeros_like(self.logits[..., :1])
        logs = torch.cat((zero, self.logits), -1).log_softmax(-1)
        return logs[..., 0], logs[..., 1:]


class ZeroInflated(Head):
    r"""Independent variables that are 0, or other declared numbers, with a mass of their own.

    .. math:: p(x_d) = \sum_k w_{dk}\, [x_d = a_k] + w_{d0}\, p_0(x_d)

    with :math:`p_0` of another head: counts with more zeros than a count distribution has, amounts
    that are often nothing, shares that may be 0 or 1. Beside a head of masses this is a mass. Beside
    one of densities :math:`p_0(x)` counts where x is no atom, and p is an *exact* density with
    respect to :math:`\lambda + \sum_k \delta_{a_k}`, Lebesgue measure and a unit mass at each atom:
    a mass at the atoms, a density per unit of x elsewhere. Scores of two models compare where both
    have the same atoms. Draws hit the atoms exactly.

    Raw parameters: the logarithm of each atom's weight over that of the other head, then those of
    the other head.

    Parameters
    ----------
    net, event_ndim, context_ndim
        As in :class:`Head`.
    head : Head
        Head of :math:`p_0`, without network of its own.
    atoms : float or sequence of float
        The numbers :math:`a_k`.

    Raises
    ------
    ValueError
        If there are no atoms, or some are given twice.

    References
    ----------
    Lambert (1992), Zero-inflated Poisson regression, https://doi.org/10.2307/1269547; Ospina,
    Ferrari (2010), Inflated beta distributions, https://arxiv.org/abs/0705.0700

    >>> from probgen.heads import Beta, Gamma
    >>> rain = ZeroInflated(head=Gamma())
    >>> rain(torch.zeros(3)).log_prob(torch.zeros(1)).exp()
    tensor(0.5000)
    >>> ZeroInflated(head=Beta(), atoms=(0.0, 1.0)).width(1)
    4
    """

    def __init__(
        self,
        net: nn.Module | None = None,
        *,
        head: Head,
        atoms: float | Sequence[float] = 0.0,
        event_ndim: int = 1,
        context_ndim: int = 1,
    ):
        checks.instance(Head, head=head)
        given: Any = [atoms] if checks.is_number(atoms) else atoms
        checks.numbers(atoms=given)
        numbers = tuple(map(float, given))
        if len(set(numbers)) != len(numbers):
            raise ValueError(
                f"expected atoms that differ, got {list(numbers)}; give each number once"
            )
        names = tuple(f"logit of {atom:g}" for atom in numbers)
        super().__init__(net, (*names, *head.raw), event_ndim, context_ndim)
        self.head = head
        self.atoms = numbers

    def distribution(self, raw: Tensor) -> dist.TorchDistribution:
        logits, rest = raw.split((len(self.atoms), len(raw) - len(self.atoms)))
        return Inflated(logits.movedim(0, -1), self.head.distribution(rest), self.atoms)
