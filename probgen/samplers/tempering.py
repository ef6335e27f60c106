"""Parallel tempering: chains of flatter distributions beside the one asked for, which swap states."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from probgen.core import checks
from probgen.samplers.gibbs_discrete import coloring, gibbs_sweeps
from probgen.samplers.langevin import LogWeight, Moved, per_chain

_LADDER = (1.0, 0.8, 0.6, 0.4, 0.2)


class Exchanged(NamedTuple):
    """Where chains at several temperatures have come to.

    Attributes
    ----------
    x : Tensor
        Ends of all chains, those of the distribution itself first: ``(R, *lead, *event)``.
    swaps : Tensor
        Share of accepted swaps of each pair of neighboring temperatures: ``(R - 1,)``; where one is
        near zero, there should be a temperature between the two.
    """

    x: Tensor
    swaps: Tensor


@torch.no_grad()
def parallel_tempering(
    log_weight: LogWeight,
    move: Callable[[Tensor, float], Tensor],
    x: Tensor,
    num_steps: int,
    betas: Sequence[float],
) -> Exchanged:
    r"""Chains of :math:`p^*(x)^{\beta}` for several :math:`\beta`, which swap their states.

    After each move, neighbors i and j swap with probability

    .. math:: \min\big(1, \exp[(\beta_i - \beta_j)(\log p^*(x_j) - \log p^*(x_i))]\big),

    even pairs and odd pairs in turn. The product of all distributions is invariant; those with a
    small beta pass from mode to mode.

    Parameters
    ----------
    log_weight : callable
        :math:`\log p^*`: ``(*lead, *event) -> (*lead,)``.
    move : callable
        Leaves :math:`p^*(x)^{\beta}` invariant: from states ``(*lead, *event)`` and beta to states.
    x : Tensor
        Starts ``(R, *lead, *event)``, also those where earlier chains ended.
    num_steps : int
        Number of moves, each with its swaps.
    betas : sequence of float
        R inverse temperatures, from 1 downwards; evenly spaced logarithms are a good start.

    References
    ----------
    Swendsen, Wang (1986), Replica Monte Carlo simulation of spin-glasses,
    https://doi.org/10.1103/PhysRevLett.57.2607; Geyer (1991), Markov chain Monte Carlo maximum
    likelihood, https://hdl.handle.net/11299/58440; Syed et al. (2022), Non-reversible parallel
    tempering, https://doi.org/10.1111/rssb.12464

    >>> _ = torch.manual_seed(0)
    >>> weight = lambda x: -(x.abs() - 3).square().sum(-1)         # two modes, far from each other
    >>> def move(x, beta):
    ...     other = x + 2 * torch.randn_like(x)
    ...     yes = torch.rand(len(x)).log() < beta * (weight(other) - weight(x))
    ...     return torch.where(yes[:, None], other, x)
    >>> ends = parallel_tempering(weight, move, 3 * torch.ones(4, 500, 1), 200, (1.0, 0.3, 0.1, 0.03))
    >>> ((ends.x[0] > 0).float().mean() - 0.5).abs() < 0.1
    tensor(True)
    """
    _check_betas(betas)
    ladder = [float(beta) for beta in betas]
    if x.ndim < 2 or len(x) != len(ladder):
        raise ValueError(
            f"expected x of shape ({len(ladder)}, *lead, *event), starts of each temperature, got "
            f"{tuple(x.shape)}; give x.expand({len(ladder)}, *x.shape)"
        )
    states = list(x)
    accepted = torch.zeros(len(ladder) - 1)
    tried = torch.zeros(len(ladder) - 1)
    for step in range(num_steps):
        states = [move(state, beta) for state, beta in zip(states, ladder, strict=True)]
        values = [log_weight(state) for state in states]
        for i in range(step % 2, len(ladder) - 1, 2):
            ratio = (ladder[i] - ladder[i + 1]) * (values[i + 1] - values[i])
            yes = torch.rand_like(ratio).log() < ratio
            swap = per_chain(yes, states[i])
            states[i], states[i + 1] = (
                torch.where(swap, states[i + 1], states[i]),
                torch.where(swap, states[i], states[i + 1]),
            )
            accepted[i] += yes.double().mean().item()
            tried[i] += 1
    return Exchanged(torch.stack(states), accepted / tried.clamp(min=1))


@dataclass(frozen=True)
class ParallelTempering:
    """A kernel of continuous variables at several temperatures, to be passed to models.

    ``kernel(log_weight, x, num_steps, free) -> Moved``, as of :class:`HMC <probgen.samplers.HMC>`:
    ``EnergyBasedModel(net, shape, kernel=ParallelTempering(HMC(0.1)))``. A step is one of the kernel
    at each temperature, with :func:`parallel_tempering`'s swaps.

    Parameters
    ----------
    kernel : TransitionKernel
        ``HMC(0.1)`` or ``MALA(0.1)``, which leave distributions invariant.
    betas : sequence of float
        Inverse temperatures, from 1 downwards.

    >>> from probgen.samplers.hmc import HMC
    >>> ParallelTempering(HMC(0.1))(lambda x: -x.square().sum(-1) / 2, torch.zeros(5, 2), 3).x.shape
    torch.Size([5, 2])
    """

    kernel: Any  # Callable[[LogWeight, Tensor, int, Tensor | None], Moved]
    betas: Sequence[float] = _LADDER
    adjusted = True

    def __post_init__(self) -> None:
        checks.callable_("give HMC(0.1)", kernel=self.kernel)
        if not getattr(self.kernel, "adjusted", False):
            raise ValueError(
                "expected a kernel that leaves distributions invariant, got "
                f"{type(self.kernel).__name__}; give HMC(0.1) or MALA(0.1)"
            )
        _check_betas(self.betas)

    def __call__(
        self, log_weight: LogWeight, x: Tensor, num_steps: int, free: Tensor | None = None
    ) -> Moved:
        rates: list[Tensor] = []

        def move(state: Tensor, beta: float) -> Tensor:
            moved = self.kernel(lambda y: beta * log_weight(y), state, 1, free)
            if beta == 1.0:
                rates.append(moved.acceptance)
            return moved.x

        starts = x.expand(len(self.betas), *x.shape)
        ends = parallel_tempering(log_weight, move, starts, num_steps, self.betas).x[0]
        return Moved(ends, torch.stack(rates).mean(0) if rates else torch.zeros_like(log_weight(x)))


@dataclass(frozen=True)
class TemperedGibbs:
    """Gibbs chains of a field at several temperatures, to be passed to it.

    ``kernel(x, unary, pairs, edges, num_steps, free) -> x``: a step is a sweep at each temperature,
    with :func:`parallel_tempering`'s swaps. For couplings that frustrate each other, as of spin
    glasses, which :class:`SwendsenWang <probgen.samplers.SwendsenWang>` does not help.

    Parameters
    ----------
    betas : sequence of float
        Inverse temperatures, from 1 downwards.

    >>> TemperedGibbs((1.0, 0.5))
    TemperedGibbs(betas=(1.0, 0.5))
    """

    betas: Sequence[float] = _LADDER

    def __post_init__(self) -> None:
        _check_betas(self.betas)

    def __call__(
        self,
        x: Tensor,
        unary: Tensor,
        pairs: Tensor,
        edges: Tensor,
        num_steps: int,
        free: Tensor | None = None,
    ) -> Tensor:
        colors = [group.to(x.device) for group in coloring(edges, x.shape[-1])]
        free = torch.ones_like(x, dtype=torch.bool) if free is None else free
        first, second = edges.unbind(-1)
        each = torch.arange(len(edges), device=x.device)

        def log_weight(state: Tensor) -> Tensor:
            single = unary.expand(*state.shape, -1).take_along_dim(state[..., None], -1)
            return single.sum((-2, -1)) + pairs[each, state[:, first], state[:, second]].sum(-1)

        def move(state: Tensor, beta: float) -> Tensor:
            return gibbs_sweeps(state, beta * unary, beta * pairs, edges, colors, 1, free)

        starts = x.expand(len(self.betas), *x.shape)
        return parallel_tempering(log_weight, move, starts, num_steps, self.betas).x[0]


def _check_betas(betas: Any) -> None:
    checks.numbers(betas=betas)
    values = [float(beta) for beta in betas]
    falling = all(a > b for a, b in itertools.pairwise(values))
    if len(values) < 2 or not math.isclose(values[0], 1.0) or not falling or values[-1] <= 0:
        raise ValueError(
            f"expected inverse temperatures from 1 downwards, got {betas}; give (1.0, 0.5, 0.25)"
        )
