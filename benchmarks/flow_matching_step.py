"""Flow matching beside torchcfm and a loop by hand.

Time of a training step, quality of samples at few network calls.

Time: one step of Adam on the matching loss of a batch, with the same network, batch and optimizer
on all sides; here ``fit`` with ``Denoising()``, eager and compiled, there the loop that torchcfm's
examples show, and the same loop with the five lines of conditional flow matching written out.
Contestants take turns; figures are medians over rounds. With ``--processor`` they are seconds of
the processor, not of the clock, for machines that others use at the same time.

Quality: from eight Gaussians to two moons, the same network, steps and batches; sliced Wasserstein
distance (root mean square over 200 directions) between 10,000 transported points and 10,000 fresh
moons, by Euler and midpoint steps. The baseline is fresh moons against fresh moons.

    OMP_NUM_THREADS=1 python benchmarks/flow_matching_step.py
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch
from common import command_line, cosine
from torch import Tensor, nn
from torchcfm.conditional_flow_matching import (
    ConditionalFlowMatcher,
    ExactOptimalTransportConditionalFlowMatcher,
)

import probgen as pg
from probgen.core.module import DistributionModule
from probgen.distributions.flows.couplings import (
    Coupling,
    EntropicTransport,
    IndependentCoupling,
    OptimalTransport,
)
from probgen.distributions.flows.fixed_steps import Euler, Midpoint
from probgen.models.empirical import Empirical
from probgen.models.flow_matching import FlowMatching
from probgen.nn.time import TimeMLP
from probgen.objectives.denoising import Denoising

Loop = Callable[[int], None]
ADAM = pg.train.adam(1e-3)


def theirs(
    net: nn.Module,
    x: Tensor,
    batch: int,
    matcher: ConditionalFlowMatcher,
    base: Callable,
    cooled: int = 0,
) -> Loop:
    """The loop of torchcfm's examples; its time runs from base to data.

    ``cooled``: so many steps in all.
    """
    optimizer = ADAM(net.parameters())
    scheduler = cosine(cooled)(optimizer) if cooled else None

    def run(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            x1 = x[torch.randint(len(x), (batch,))]
            t, xt, ut = matcher.sample_location_and_conditional_flow(base(x1), x1)
            loss = (net(xt, t) - ut).square().mean()
            loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()

    return run


def by_hand(net: nn.Module, x: Tensor, batch: int) -> Loop:
    optimizer = ADAM(net.parameters())

    def run(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            x1 = x[torch.randint(len(x), (batch,))]
            x0 = torch.randn_like(x1)
            t = torch.rand(batch)
            xt = (1 - t[:, None]) * x0 + t[:, None] * x1
            loss = (net(xt, t) - (x1 - x0)).square().mean()
            loss.backward()
            optimizer.step()

    return run


def milliseconds_of_fit(
    gen: FlowMatching, x: Tensor, batch: int, steps: int, compiled: bool
) -> float:
    """Per step, without the time that compilation takes."""
    options = {
        "steps": steps,
        "batch_size": batch,
        "optimizer": ADAM,
        "progress": False,
        "verdict": False,
        "seed": 0,
    }
    history = pg.fit(gen, x, Denoising(), compile=compiled, **options)
    return 1e3 * (history.seconds - history.compile_seconds) / steps


def milliseconds(loop: Loop, steps: int) -> float:
    loop(10)
    start = time.perf_counter()
    loop(steps)
    return 1e3 * (time.perf_counter() - start) / steps


def speed(dims: int, hidden: list[int], batch: int, steps: int, rounds: int) -> None:
    x = torch.randn(4096, dims)

    def gen(coupling: Coupling) -> FlowMatching:
        return FlowMatching(TimeMLP(dims, hidden), (dims,), coupling=coupling)

    def peer(matcher: ConditionalFlowMatcher) -> Loop:
        return theirs(TimeMLP(dims, hidden), x, batch, matcher, torch.randn_like)

    contestants = {
        "by hand": lambda: milliseconds(by_hand(TimeMLP(dims, hidden), x, batch), steps),
        "eager": lambda: milliseconds_of_fit(gen(IndependentCoupling()), x, batch, steps, False),
        "compiled": lambda: milliseconds_of_fit(gen(IndependentCoupling()), x, batch, steps, True),
        "torchcfm": lambda: milliseconds(peer(ConditionalFlowMatcher(sigma=0.0)), steps),
        "OT eager": lambda: milliseconds_of_fit(gen(OptimalTransport()), x, batch, steps, False),
        "entropic compiled": lambda: milliseconds_of_fit(
            gen(EntropicTransport()), x, batch, steps, True
        ),
        "torchcfm OT": lambda: milliseconds(
            peer(ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)), steps
        ),
    }
    turns = [{name: run() for name, run in contestants.items()} for _ in range(rounds)]
    medians = {name: statistics.median(turn[name] for turn in turns) for name in contestants}
    hand = medians["by hand"]
    theirs_plain = medians["torchcfm"]
    theirs_ot = medians["torchcfm OT"]
    print(
        f"{dims} dims, hidden {hidden}, batch {batch}: ms per step, and ratios by hand / torchcfm "
        "over ours"
    )
    for name, value in medians.items():
        peer_value = theirs_ot if "OT" in name or "entropic" in name else theirs_plain
        print(
            f"  {name:18s} {value:7.3f} ms   {hand / value:5.2f}   {peer_value / value:5.2f}",
            flush=True,
        )


def eight_gaussians(count: int) -> Tensor:
    angles = torch.randint(8, (count,)) * math.pi / 4
    return 5 * torch.stack((angles.cos(), angles.sin()), -1) + 0.3 * torch.randn(count, 2)


def moons(count: int) -> Tensor:
    angles = math.pi * torch.rand(count)
    upper = torch.rand(count) < 0.5
    side = torch.where(upper, 1.0, -1.0)
    x = torch.stack((angles.cos() * side + torch.where(upper, 0.0, 1.0), angles.sin() * side), -1)
    x[:, 1] += torch.where(upper, 0.0, 0.5)
    return 3 * (x + 0.05 * torch.randn(count, 2)) - 1


def sliced_wasserstein(x: Tensor, y: Tensor, directions: int = 200) -> float:
    generator = torch.Generator().manual_seed(0)
    angles = math.pi * torch.rand(directions, generator=generator)
    unit = torch.stack((angles.cos(), angles.sin()))
    return float(((x @ unit).sort(0).values - (y @ unit).sort(0).values).square().mean().sqrt())


class Reversed(nn.Module):
    """A network of torchcfm's direction of time, in ours."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        return -self.net(x, 1 - t)


def trained(
    base: DistributionModule, x: Tensor, steps: int, hidden: list[int], seed: int
) -> dict[str, FlowMatching]:
    options = {
        "steps": steps,
        "batch_size": 256,
        "optimizer": ADAM,
        "scheduler": cosine(steps),
        "seed": seed,
    }
    flows = {}
    for name, coupling in (
        ("independent", IndependentCoupling()),
        ("optimal transport", OptimalTransport()),
    ):
        torch.manual_seed(seed)
        gen = FlowMatching(TimeMLP(2, hidden), (2,), base=base, coupling=coupling)
        pg.fit(gen, x, Denoising(), **options, progress=False, verdict=False)
        flows[f"probgen, {name}"] = gen.eval()
    for name, kind in (
        ("independent", ConditionalFlowMatcher),
        ("optimal transport", ExactOptimalTransportConditionalFlowMatcher),
    ):
        torch.manual_seed(seed)
        net = TimeMLP(2, hidden)
        theirs(net, x, 256, kind(sigma=0.0), lambda x1: eight_gaussians(len(x1)), steps)(steps)
        flows[f"torchcfm, {name}"] = FlowMatching(Reversed(net), (2,), base=base).eval()
    return flows


def quality(steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    base = Empirical(eight_gaussians(50_000))
    x = moons(50_000)
    flows = trained(base, x, steps, [64, 64, 64], seed)
    torch.manual_seed(100)
    start = eight_gaussians(10_000)
    goal = moons(10_000)
    calls = (2, 4, 8, 16, 50)
    baseline = sliced_wasserstein(moons(10_000), goal)
    print(f"8 Gaussians to moons, {steps} steps of 256 rows, seed {seed}; baseline {baseline:.3f}")
    print(f"  {'calls of the network':32s}" + "".join(f"{count:8d}" for count in calls))
    for name, gen in flows.items():
        for kind, cost in ((Euler, 1), (Midpoint, 2)):
            with torch.no_grad():
                ends = [gen().using(kind(count // cost)).transform.inv(start) for count in calls]
            figures = "".join(f"{sliced_wasserstein(end, goal):8.3f}" for end in ends)
            print(f"  {name + ', ' + kind.__name__:32s}{figures}", flush=True)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="0: quality alone")
    parser.add_argument("--steps", type=int, default=500, help="training steps of a round")
    parser.add_argument(
        "--training", type=int, default=4000, help="training steps before samples are judged"
    )
    parser.add_argument(
        "--seeds", type=int, default=3, help="trainings of each, from different seeds"
    )
    parser.add_argument(
        "--processor", action="store_true", help="time of the processor in place of the clock's"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.processor:
        time.perf_counter = time.process_time  # what History counts by, too
    if arguments.rounds:
        speed(2, [64, 64, 64], 256, arguments.steps, arguments.rounds)
        speed(64, [256, 256, 256], 256, arguments.steps, arguments.rounds)
    for seed in range(arguments.seeds):
        quality(arguments.training, seed)


if __name__ == "__main__":
    main()
