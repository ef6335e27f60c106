"""Speed of autoregressive flows beside zuko's, the same networks and splines on both sides.

Sampling: the inverse of all layers without gradients, incremental here, one pass of the network per
variable there. Training: one step of Adam on the mean negative log-density of a batch; here ``fit``
(eager and compiled), there the loop that zuko's documentation shows. Every figure is a median over
rounds in which the contestants take turns; samplers are timed by the processor.

    OMP_NUM_THREADS=1 python benchmarks/flow_speed.py
    OMP_NUM_THREADS=1 python benchmarks/flow_speed.py --only sampling --rounds 5

On one core that others use too the sampling of 64 dims, MAF / NSF: of 100 rows 10.5 / 10.5 times as
fast as zuko's (between 9.9 and 12.9 for MAF in several runs), of 1,000 rows 27 / 53 times.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
import zuko
from common import command_line, in_turns, timed
from torch import Tensor

import probgen as pg
from probgen.models.autoregressive_flow import MAF, NSF

HIDDEN = (64, 64)
LAYERS = 3
OURS = {"MAF": MAF, "NSF": NSF}
ZUKOS = {"MAF": zuko.flows.MAF, "NSF": zuko.flows.NSF}


def flows(name: str, dims: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    return (
        OURS[name](dims, layers=LAYERS, hidden=HIDDEN),
        ZUKOS[name](dims, transforms=LAYERS, hidden_features=HIDDEN),
    )


@torch.no_grad()
def sampling(name: str, dims: int, rows: int, rounds: int) -> None:
    ours, theirs = flows(name, dims)
    contestants = {
        "probgen": lambda: ours().sample((rows,)),
        "zuko": lambda: theirs().sample((rows,)),
    }
    found = in_turns(contestants, rounds)
    medians = {key: statistics.median(values) for key, values in found.items()}
    ratio = medians["zuko"] / medians["probgen"]
    figures = "  ".join(f"{key} {1e3 * value:8.1f} ms" for key, value in medians.items())
    print(
        f"sampling  {name}  {dims:3d} dims  {rows:5d} rows   {figures}   {ratio:5.1f} times",
        flush=True,
    )


def zukos_loop(flow: torch.nn.Module, x: Tensor, batch: int) -> Callable[[int], None]:
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3, fused=True)

    def run(steps: int) -> None:
        for _ in range(steps):
            rows = x[torch.randint(len(x), (batch,))]
            loss = -flow().log_prob(rows).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def milliseconds_of_fit(
    flow: torch.nn.Module, x: Tensor, batch: int, steps: int, compiled: bool
) -> float:
    """Per step, without the time that compilation takes."""
    options = {"steps": steps, "batch_size": batch, "progress": False, "verdict": False, "seed": 0}
    history = pg.fit(flow, x, compile=compiled, **options)
    return 1e3 * (history.seconds - history.compile_seconds) / steps


def training(name: str, dims: int, batch: int, steps: int, rounds: int) -> None:
    x = torch.randn(4096, dims)
    torch.manual_seed(0)
    loop = zukos_loop(flows(name, dims)[1], x, batch)
    loop(10)
    times: dict[str, list[float]] = {"eager": [], "compiled": [], "zuko": []}
    for _ in range(rounds):
        for key in ("eager", "compiled"):
            torch.manual_seed(0)
            times[key].append(
                milliseconds_of_fit(flows(name, dims)[0], x, batch, steps, key == "compiled")
            )
        times["zuko"].append(1e3 * timed(loop, steps)[0] / steps)
    medians = {key: statistics.median(values) for key, values in times.items()}
    eager = medians["zuko"] / medians["eager"]
    ratio = medians["zuko"] / medians["compiled"]
    figures = "  ".join(f"{key} {value:6.2f} ms" for key, value in medians.items())
    print(
        f"training  {name}  {dims:3d} dims  batch {batch}   {figures}   {eager:4.2f} and "
        f"{ratio:4.2f} times",
        flush=True,
    )


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200, help="training steps per round")
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 1000], help="draws at once")
    parser.add_argument("--only", choices=("sampling", "training"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    for rows in arguments.rows if arguments.only != "training" else ():
        for name in OURS:
            sampling(name, 64, rows, arguments.rounds)
    for dims in (8, 64) if arguments.only != "sampling" else ():
        for name in OURS:
            training(name, dims, 128, arguments.steps, arguments.rounds)


if __name__ == "__main__":
    main()
