"""What a sampler is here, one chain of steps on a log density of one flat vector.

And Pyro's No-U-Turn sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from pyro.infer import NUTS
from torch import Tensor

from probgen.core.runtime import isolated, validation
from probgen.core.turns import offer, own_random_state, turn


class ChainPlan(NamedTuple):
    """What a chain has to do.

    Attributes
    ----------
    tune, draws : int
        Steps that adapt step size and scales, and steps after them.
    target_accept : float
        Acceptance rate that the step size is adapted to.
    max_tree_depth : int
        Bound on the doublings of a trajectory.
    advance : callable
        To be called after every step.
    """

    tune: int = 1000
    draws: int = 1000
    target_accept: float = 0.8
    max_tree_depth: int = 10
    advance: Callable[[], Any] = int


class ChainSteps(NamedTuple):
    """All steps of one chain, those that adapt first.

    Attributes
    ----------
    points : Tensor
        ``(tune + draws, D)``.
    stats : dict of str to Tensor
        ``(tune + draws,)`` each, under ArviZ's names.
    """

    points: Tensor
    stats: dict[str, Tensor]

    def first(self, count: int) -> ChainSteps:
        """So many steps from the first one on."""
        return ChainSteps(
            self.points[:count], {name: values[:count] for name, values in self.stats.items()}
        )


class ChainInterrupt(KeyboardInterrupt):
    """Ctrl-C in a chain, with the steps that it has made."""

    def __init__(self, steps: ChainSteps):
        super().__init__(steps)  # so that another process can send it
        self.steps = steps


Chain = Callable[[Tensor, int, ChainPlan], ChainSteps]


class ChainSampler(Protocol):
    """Gets ready, once, to draw from a log density ``(D,) -> ()`` at points like ``example``.

    The result runs one chain from a start ``(D,)`` with a seed, as often as it is called.
    """

    def __call__(self, log_density: Callable[[Tensor], Tensor], example: Tensor) -> Chain: ...


class Walk:
    """Chains of a sampler as tasks, for this process and for others.

    Parameters
    ----------
    chain : callable
        What a :class:`ChainSampler` gives.
    """

    def __init__(self, chain: Chain):
        self.chain = chain

    def __call__(
        self, advance: Callable[..., Any], start: Tensor, seed: int, plan: ChainPlan
    ) -> ChainSteps:
        """One chain; ``advance`` is called after every step."""
        with turn(fixed=False):
            return self.chain(start, seed, plan._replace(advance=partial(advance, 1)))


@dataclass(frozen=True)
class PyroNUTS:
    """Pyro's own sampler on the log density as it is: slower, but it takes any program."""

    def __call__(self, log_density: Callable[[Tensor], Tensor], example: Tensor) -> Chain:
        return partial(_by_pyro, log_density)


def _by_pyro(
    log_density: Callable[[Tensor], Tensor], start: Tensor, seed: int, plan: ChainPlan
) -> ChainSteps:
    kernel = RecordingNUTS(
        potential_fn=lambda point: -log_density(point["u"]),
        target_accept_prob=plan.target_accept,
        max_tree_depth=plan.max_tree_depth,
    )
    kernel.initial_params = point = {"u": start}
    points = []
    stats = []
    with (
        own_random_state(seed),
        isolated(),
        validation(False),
    ):
        kernel.setup(plan.tune)
        try:
            for _ in range(plan.tune + plan.draws):
                point = kernel.sample(point)
                points.append(point["u"].detach())
                stats.append({name: value.detach() for name, value in kernel.statistics().items()})
                plan.advance()
                offer()
        except KeyboardInterrupt as error:
            if not stats:
                raise
            raise ChainInterrupt(_steps(points, stats)) from error
        kernel.cleanup()
    return _steps(points, stats)


def _steps(points: list[Tensor], stats: list[dict[str, Tensor]]) -> ChainSteps:
    return ChainSteps(
        torch.stack(points[: len(stats)]),
        {name: torch.stack([step[name] for step in stats]) for name in stats[0]},
    )


class RecordingNUTS(NUTS):
    """Pyro's No-U-Turn kernel that notes what happened in each transition."""

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        self.leaves: list[Any] = []
        self.energy = torch.zeros(())
        return super().sample(params)

    def _build_basetree(self, *args: Any) -> Any:
        """One leapfrog step; its last argument is the energy at the start of the trajectory."""
        self.leaves.append(super()._build_basetree(*args))
        self.energy = args[-1]
        return self.leaves[-1]

    def statistics(self) -> dict[str, Tensor]:
        """Of the transition just made, under ArviZ's names."""
        steps = len(self.leaves)
        potential: Any = self._potential_energy_last
        return {
            "diverging": torch.stack(
                [torch.as_tensor(leaf.diverging) for leaf in self.leaves]
            ).any(),
            "energy": self.energy,
            "lp": -potential,
            "acceptance_rate": torch.stack([leaf.sum_accept_probs for leaf in self.leaves]).mean(),
            "step_size": torch.tensor(float(self.step_size)),
            "n_steps": torch.tensor(steps),
            "tree_depth": torch.tensor(steps.bit_length()),
        }
