"""Chains of latent vectors, each given the one before.

Reparameterized draws, and densities in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints, kl_divergence, register_kl

from probgen.core.batched import BatchedDistribution
from probgen.core.missing import check_event


class _ChainDraw(NamedTuple):
    """A draw, the distribution of every step with what was drawn from it.

    And whether gradients were recorded.
    """

    z: Tensor
    steps: list[tuple[dist.TorchDistribution, Tensor]]
    graded: bool


class LatentChain(BatchedDistribution):
    r"""Latent vectors that follow each other.

    :math:`p(z_{1:T}) = \prod_t p(z_t \mid z_{t-1}, c_t)`.

    Draws are made step by step and keep their gradients where the distribution of a step does;
    their log density is that of the steps as they were drawn, which is cheap for distributions that
    only know the density of their own draws. Other values are scored by one call of ``transition``
    for all steps. The divergence of two chains is known step by step, given the last draw of the
    first: see :func:`divergence_along`.

    Parameters
    ----------
    transition : callable
        Distribution of events ``(Z,)`` given ``(*lead, Z + C)``, the last latents and an input; its
        density must be exact.
    start : Tensor
        :math:`z_0`, ``(Z,)``.
    length : int
        Number T of steps.
    inputs : Tensor, optional
        :math:`c_t`, ``(*batch, T, C)``.
    counts : Tensor of bool, optional
        Which steps belong to the chain, ``(*batch, T)``: a number of first steps in every row. The
        others are left out of ``log_prob``.
    beyond : LatentChain, optional
        How draws go on after the steps that belong to the chain; by default as before.

    Raises
    ------
    ValueError
        From ``log_prob``: if z does not have events ``(T, Z)``.

    >>> walk = LatentChain(lambda z: dist.Normal(z, 1.0).to_event(1), torch.zeros(2), 5)
    >>> z = walk.rsample((3,))
    >>> z.shape, walk.log_prob(z).shape
    (torch.Size([3, 5, 2]), torch.Size([3]))
    """

    forgotten = ("_drawn",)

    def __init__(
        self,
        transition: Callable[[Tensor], dist.TorchDistribution],
        start: Tensor,
        length: int,
        inputs: Tensor | None = None,
        counts: Tensor | None = None,
        beyond: LatentChain | None = None,
    ):
        self.transition = transition
        self.start = start
        self.inputs = inputs
        self.counts = counts
        self.beyond = beyond
        self._drawn: _ChainDraw | None = None
        shapes = [
            () if inputs is None else inputs.shape[:-2],
            () if counts is None else counts.shape[:-1],
        ]
        super().__init__(
            torch.broadcast_shapes(*shapes), torch.Size((length, *start.shape)), validate_args=False
        )

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]  # torch: a constant
        return self._first().has_rsample

    @property
    def support(self) -> Any:
        return constraints.independent(self._first().support, 1)

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        lead = self.shape(torch.Size(sample_shape))[:-2]
        z = self.start.expand(*lead, -1)
        kept = []
        steps = []
        for t in range(self.event_shape[0]):
            distribution = self.distribution(z, t)
            steps.append((distribution, distribution()))
            kept.append(
                steps[-1][1] if self.counts is None else self._or_beyond(steps[-1][1], z, t)
            )
            z = kept[-1]
        self._drawn = _ChainDraw(torch.stack(kept, -2), steps, torch.is_grad_enabled())
        return self._drawn.z

    def log_prob(self, z: Tensor) -> Tensor:
        check_event(z, self.event_shape)
        return self.total(self._terms(z)).expand(self.lead(z))

    def total(self, terms: Tensor) -> Tensor:
        """The sum over the steps that belong to the chain: ``(*lead, T) -> (*lead,)``."""
        return (terms if self.counts is None else torch.where(self.counts, terms, 0.0)).sum(-1)

    def distribution(self, z: Tensor, t: int) -> dist.TorchDistribution:
        """The distribution of step t given the latents of the step before.

        ``(*lead, Z) -> batch_shape (*lead,)``.
        """
        return self.transition(
            with_inputs(z, None if self.inputs is None else self.inputs[..., t, :])
        )

    def _or_beyond(self, drawn: Tensor, z: Tensor, t: int) -> Tensor:
        """The draw of step t, exchanged where the sequence has ended.

        That is not scored and needs no gradients.
        """
        if self.beyond is None or self.counts is None:
            return drawn
        with torch.no_grad():
            after = self.beyond.distribution(z, t).sample()
        return torch.where(self.counts[..., t, None], drawn, after)

    def distributions(self, z: Tensor) -> dist.TorchDistribution:
        """The distributions of all steps given latents.

        ``(*lead, T, Z) -> batch_shape (*lead, T)``.
        """
        z = z.expand(torch.broadcast_shapes(z.shape, self.shape()))
        before = torch.cat((self.start.expand(*z.shape[:-2], 1, -1), z[..., :-1, :]), -2)
        return self.transition(with_inputs(before, self.inputs))

    def drawn(self) -> Tensor | None:
        """The last draw that carries gradients, if there is one."""
        return self._drawn.z if self._drawn is not None and self._drawn.graded else None

    def _terms(self, z: Tensor) -> Tensor:
        """Log density of every step: ``(*lead, T, Z) -> (*lead, T)``."""
        kept = self._drawn
        if kept is not None and z is kept.z and (kept.graded or not torch.is_grad_enabled()):
            return torch.stack(
                [distribution.log_prob(drawn) for distribution, drawn in kept.steps], -1
            )
        return self.distributions(z).log_prob(z)

    def _first(self) -> dist.TorchDistribution:
        return self.distribution(self.start.expand(*self.batch_shape, -1), 0)


def with_inputs(z: Tensor, inputs: Tensor | None) -> Tensor:
    """``(*lead, Z)`` and ``(*batch, C)``, repeated for ``lead``, as ``(*lead, Z + C)``."""
    return z if inputs is None else torch.cat((z, inputs.expand(*z.shape[:-1], -1)), -1)


@register_kl(LatentChain, LatentChain)
def divergence_along(q: LatentChain, p: LatentChain) -> Tensor:
    r"""Divergence of two chains along the last draw of the first.

    An unbiased estimate, steps in closed form.

    .. math:: \sum_t \mathrm{KL}\big(q(z_t \mid z_{t-1}) \,\|\, p(z_t \mid z_{t-1})\big), \qquad z \sim q

    Its mean is :math:`\mathrm{KL}(q \| p)`, and it varies less than the difference of log densities
    (Krishnan, Shalit, Sontag 2017, https://arxiv.org/abs/1609.09869).

    Raises
    ------
    NotImplementedError
        If q has not been drawn from with gradients, or the divergence of its steps has no closed
        form.
    """
    z = q.drawn()
    if z is None:
        raise NotImplementedError(
            "expected a chain that rsample() was called on, got one without a draw"
        )
    return q.total(kl_divergence(q.distributions(z), p.distributions(z)))
