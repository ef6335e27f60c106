"""A training step of an RBM and of an energy-based model through ``fit``.

Beside loops written by hand in torch.

Same networks, chains, batches and optimizer; the losses of the loops are the same difference of log
weights. All of them stand in one process with one thread, in turns; the numbers are milliseconds of
processor time of the median step, once it is compiled.

    python benchmarks/energy_step.py
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable

import torch
from common import command_line
from torch import Tensor, nn
from torch.nn.functional import softplus

import probgen as pg
from probgen.distributions.energy.visible import BernoulliUnits
from probgen.models.energy import EnergyBasedModel
from probgen.models.rbm import RBM
from probgen.objectives.contrastive import ContrastiveDivergence
from probgen.samplers.langevin import Langevin

BATCH = 100
GIBBS = 5
STEPS = 20


class Clock:
    """Processor time at the end of each step; a callback of fit, too."""

    def __init__(self):
        self.times: list[float] = []

    def __call__(self, run: object = None) -> None:
        self.times.append(time.process_time())

    def milliseconds(self) -> float:
        """The median step, first ones (with compilation) left out."""
        kept = self.times[len(self.times) // 4 :]
        return 1e3 * statistics.median(after - before for before, after in itertools.pairwise(kept))


def rbm_by_hand(x: Tensor, steps: int, hidden: int) -> float:
    weight = nn.Parameter(0.01 * torch.randn(x.shape[1], hidden))
    b = nn.Parameter(torch.zeros(x.shape[1]))
    c = nn.Parameter(torch.zeros(hidden))
    optimizer = torch.optim.Adam([weight, b, c], fused=True)
    v = (torch.rand(BATCH, x.shape[1]) < 0.5).float()
    clock = Clock()

    def log_weight(v: Tensor) -> Tensor:
        return v @ b + softplus(v @ weight + c).sum(-1)

    for _ in range(steps):
        rows = x[torch.randint(len(x), (BATCH,))]
        with torch.no_grad():
            for _ in range(GIBBS):
                chance = (v @ weight + c).sigmoid()
                chance = ((torch.rand_like(chance) < chance).float() @ weight.T + b).sigmoid()
                v = (torch.rand_like(chance) < chance).float()
        loss = (log_weight(v) - log_weight(rows)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss.item()
        clock()
    return clock.milliseconds()


def energy_by_hand(x: Tensor, steps: int, net: nn.Module, step: float) -> float:
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    pool = torch.randn(1000, x.shape[1])
    clock = Clock()
    for _ in range(steps):
        rows = x[torch.randint(len(x), (BATCH,))]
        where = torch.randperm(1000)[:BATCH]
        y = pool[where]
        for _ in range(STEPS):
            y = y.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(net(y).sum(), y)
            y = y.detach() - step / 2 * gradient + step**0.5 * torch.randn_like(y)
        pool[where] = y
        loss = (net(rows) - net(y)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss.item()
        clock()
    return clock.milliseconds()


def through_fit(make: Callable, x: Tensor, steps: int, compile: bool) -> float:
    gen, objective = make()
    clock = Clock()
    quiet = {"progress": False, "verdict": False}
    pg.fit(
        gen,
        x,
        objective,
        steps=steps,
        batch_size=BATCH,
        compile=compile,
        seed=0,
        callbacks=[clock],
        **quiet,
    )
    return clock.milliseconds()


def report(title: str, hand: Callable, ours: Callable, turns: int) -> None:
    times: dict[str, list[float]] = {"by hand": [], "eager": [], "compiled": []}
    for _ in range(turns):
        times["by hand"].append(hand())
        times["eager"].append(ours(False))
        times["compiled"].append(ours(True))
    median = {name: statistics.median(values) for name, values in times.items()}
    rows = ", ".join(f"{name} {value:.3f} ms" for name, value in median.items())
    ratios = ", ".join(
        f"{name} / by hand {median[name] / median['by hand']:.2f}" for name in ("eager", "compiled")
    )
    print(f"{title}: {rows}; {ratios}", flush=True)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for dims, hidden, steps in ((20, 16, 800), (784, 500, 60)):
        x = (torch.rand(2000, dims) < 0.3).float()

        def make(dims: int = dims, hidden: int = hidden) -> tuple:
            return RBM(BernoulliUnits(dims), hidden, limit=1), ContrastiveDivergence(
                GIBBS, chains=BATCH
            )

        report(
            f"RBM {dims} x {hidden}, PCD-{GIBBS}",
            lambda x=x, steps=steps, hidden=hidden: rbm_by_hand(x, steps, hidden),
            lambda compile, x=x, steps=steps, make=make: through_fit(make, x, steps, compile),
            options.turns,
        )
    for dims, width, steps in ((2, 64, 200), (64, 256, 100)):
        x = torch.randn(2000, dims)

        def net(dims: int = dims, width: int = width) -> nn.Module:
            return nn.Sequential(
                nn.Linear(dims, width),
                nn.SiLU(),
                nn.Linear(width, width),
                nn.SiLU(),
                nn.Linear(width, 1),
            )

        def model(dims: int = dims, net: Callable = net) -> tuple:
            kernel = Langevin(0.01)
            return EnergyBasedModel(net(), (dims,), kernel=kernel), ContrastiveDivergence(
                STEPS, chains=BATCH, pool=1000
            )

        report(
            f"energy of {dims} dims, width {width}, {STEPS} Langevin steps, pool of 1,000",
            lambda x=x, steps=steps, net=net: energy_by_hand(x, steps, net(), 0.01),
            lambda compile, x=x, steps=steps, model=model: through_fit(model, x, steps, compile),
            options.turns,
        )


if __name__ == "__main__":
    main()
