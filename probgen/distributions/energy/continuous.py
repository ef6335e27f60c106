"""The distribution of an energy function: known up to a constant, drawn from by Markov chains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import pyro.distributions as dist
import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.batched import BatchedDistribution
from probgen.core.kinds import density_kind
from probgen.core.missing import check_event, has_missing
from probgen.distributions.gibbs import gibbs
from probgen.samplers.langevin import LogWeight, Moved

Energy = Callable[[Tensor], Tensor]


class TransitionKernel(Protocol):
    """Steps of Markov chains, such as ``Langevin(0.1)``, ``MALA(0.1)``, ``HMC(0.1)``."""

    adjusted: bool

    def __call__(
        self, log_weight: LogWeight, x: Tensor, num_steps: int, free: Tensor | None = None
    ) -> Moved: ...


class EnergyDistribution(BatchedDistribution):
    r"""The distribution whose density is :math:`p(x) \propto p_0(x)\, e^{-E(x)}`.

    Or :math:`e^{-E(x)}` without a base.

    Parameters
    ----------
    function : callable
        E, ``(*lead, *event) -> (*lead,)``; lead broadcasts with ``batch_shape``.
    start : TorchDistribution
        The distribution that chains start from, with an exact density.
    kernel : TransitionKernel
        Steps of the chains.
    num_steps : int
        Length of the chains that make draws.
    tilted : bool
        Whether ``start`` is the base :math:`p_0`.
    batch_shape : sequence of int
        Batch dims of what E closes over.
    annealing : TransitionKernel, optional
        Steps of annealed chains, which have to be exact; default: ``kernel``.

    Raises
    ------
    ValueError
        From ``log_prob``, if x has missing entries (NaN).

    >>> from probgen.samplers.hmc import MALA
    >>> start = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    >>> EnergyDistribution(lambda x: x.square().sum(-1) / 2, start, MALA(0.5), 20).log_prob(torch.ones(3, 2))
    tensor([-1., -1., -1.])
    """

    density_kind = "unnormalized"

    def __init__(
        self,
        function: Energy,
        start: dist.TorchDistribution,
        kernel: TransitionKernel,
        num_steps: int,
        *,
        tilted: bool = False,
        batch_shape: torch.Size | tuple = torch.Size(),
        annealing: TransitionKernel | None = None,
    ):
        self.function = function
        self.start = start
        self.kernel = kernel
        self.num_steps = num_steps
        self.tilted = tilted
        self.annealing = kernel if annealing is None else annealing
        self.inner = torch.broadcast_shapes(torch.Size(batch_shape), start.batch_shape)
        super().__init__(self.inner, start.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.start.support

    def log_prob(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        if has_missing(x):
            raise ValueError(
                "expected complete rows, got NaN (missing): what is not normalized cannot be "
                "integrated; complete the "
                "rows first: impute()"
            )
        return self._spread(self._log_weight(x), x)

    def energy(self, x: Tensor) -> Tensor:
        """E of rows: ``(*batch, *event) -> (*batch,)``."""
        return self._spread(self.function(self._widened(x)), x)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self.states(torch.Size(sample_shape))

    # -- chains
    # --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def chain_from(self, x: Tensor) -> Tensor:
        """States of chains that begin at rows ``(*lead, *event)``."""
        return self._widened(x)

    @torch.no_grad()
    def init_chains(self, shape: torch.Size | tuple) -> Tensor:
        """States drawn from the start.

        ``(*shape, *batch, *event)``, batch dims being those of E.
        """
        return self.start.expand(self.inner).sample(torch.Size(shape))

    @torch.no_grad()
    def chain(self, state: Tensor, num_steps: int) -> Tensor:
        """States after so many steps of the kernel."""
        return self.kernel(self._log_weight, state, num_steps).x

    def chain_log_weight(self, state: Tensor) -> Tensor:
        """The log weight of states."""
        return self._log_weight(state)

    @torch.no_grad()
    def states(self, shape: torch.Size | tuple) -> Tensor:
        """Ends of chains: ``(*shape, *batch, *event)``."""
        extra = self.batch_shape[: len(self.batch_shape) - len(self.inner)]
        begin = self.start.expand(self.batch_shape[len(extra) :]).sample(torch.Size(shape) + extra)
        return self.chain(begin, self.num_steps)

    @torch.no_grad()
    def completed(self, x: Tensor, num_steps: int) -> Tensor:
        """Ends of chains over the missing entries (NaN) given the others: ``(*lead, *event)``."""
        lead = self._lead(x)
        start = self.start.expand(torch.broadcast_shapes(lead, self.inner)).sample()
        free = x.isnan().expand(start.shape)
        return self.kernel(self._log_weight, torch.where(free, start, x), num_steps, free).x

    def path(self, x: Tensor | None = None) -> GeometricPath:
        """Distributions from the start.

        Or from the normal distribution with the moments of rows ``(N, *event)``.

        To this one.
        """
        if density_kind(self.start) != "exact" or not self.annealing.adjusted:
            raise ValueError(
                "expected a start with an exact density and a kernel that leaves distributions "
                "invariant for annealing, got "
                f"{type(self.start).__name__} and {self.annealing}; give the model "
                "annealing=HMC(step)"
            )
        if x is None:
            return GeometricPath(self, self.start, self.annealing)
        scale = x.std(0)
        if len(x) < 2 or not (scale > 0).all():
            raise ValueError(
                f"expected rows that vary in every entry, got {len(x)} rows with constant ones; "
                "leave x out, and the "
                "known distribution is that of the start"
            )
        base = dist.Normal(x.mean(0), scale).to_event(len(self.event_shape))
        return GeometricPath(self, base, self.annealing)

    def _log_weight(self, x: Tensor) -> Tensor:
        x = self._widened(x)
        return self.start.log_prob(x) - self.function(x) if self.tilted else -self.function(x)

    def _widened(self, x: Tensor) -> Tensor:
        """Rows that broadcast with what the energy closes over."""
        return (
            x.expand(torch.broadcast_shapes(self._lead(x), self.inner) + self.event_shape)
            if self.inner
            else x
        )

    def _spread(self, value: Tensor, x: Tensor) -> Tensor:
        plain = self._lead(x) == value.shape and self.batch_shape in (value.shape, torch.Size())
        return (
            value
            if plain
            else value.expand(torch.broadcast_shapes(self._lead(x), self.batch_shape))
        )

    def _lead(self, x: Tensor) -> torch.Size:
        return x.shape[: x.ndim - len(self.event_shape)]


class GeometricPath(NamedTuple):
    r"""Distributions between a known one and an energy's.

    :math:`\log p^*_\beta = (1 - \beta) \log p_0 + \beta \log p^*`.

    Attributes
    ----------
    distribution : EnergyDistribution
        The end.
    base : TorchDistribution
        The known distribution, with an exact density.
    kernel : TransitionKernel
        Leaves the distributions between them invariant.
    """

    distribution: EnergyDistribution
    base: dist.TorchDistribution
    kernel: TransitionKernel

    def log_z(self) -> Tensor:
        r"""log Z at :math:`\beta = 0`: zero."""
        return self.base.log_prob(self.base.mean).new_zeros(self.distribution.batch_shape)

    def start(self, chains: int) -> Tensor:
        r"""Independent states at :math:`\beta = 0`: ``(chains, *batch, *event)``."""
        return self.base.expand(self.distribution.batch_shape).sample((chains,))

    def log_weight(self, state: Tensor) -> Tensor:
        r"""Log weight of states at :math:`\beta = 1`."""
        return self.distribution.log_prob(state)

    def advance(
        self, state: Tensor, old: Tensor, new: Tensor, num_steps: int
    ) -> tuple[Tensor, Tensor]:
        r"""Log weights at the new :math:`\beta` less those at the old one.

        And states after steps at the new one.
        """

        def between(x: Tensor) -> Tensor:
            return torch.lerp(self.base.log_prob(x), self.distribution.log_prob(x), new)

        ratio = (new - old) * (self.distribution.log_prob(state) - self.base.log_prob(state))
        return ratio, self.kernel(between, state, num_steps).x if num_steps else state

    def events(self, state: Tensor) -> Tensor:
        """The states are events."""
        return state


@gibbs.register(EnergyDistribution)
def _(distribution: EnergyDistribution, x: Tensor, mask: Tensor, num_steps: int) -> Tensor:
    checks.at_least(1, num_steps=num_steps)
    return distribution.completed(torch.where(mask, x, torch.nan), num_steps)
