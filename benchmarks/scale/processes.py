"""Training over processes of one machine: time, bytes and memory of each process, a step.

A VAE 784-h-20 with Adam on rows of 784 numbers, the batch of a step divided between 1, 2 and 4
processes that communicate by gloo; "ddp" holds everything in every process, "sharded" a part of
parameters, gradients and optimizer state in each (``probgen.train.fully_sharded``). Bytes are counted
where they enter a collective, per step after the first five, with what a ring makes of them; memory
is the peak of a process less what it had before the model was made. Time is that of the processor in
one process, the waiting for others left out: neighbors on the machine disturb it least. Losses of the
last step tell that all train the same, but for the noise.

Measured on two cores, another job beside, 652,824 parameters (2.49 MiB), ms of the processor / MiB into
collectives / MiB sent by a ring / MiB of memory: one process 44.5 / 0 / 0 / 115; two, "ddp" 38.8 / 2.49 /
2.49 / 116, "sharded" 58.5 / 4.98 / 2.49 / 122; four, "ddp" 42.2 / 2.49 / 3.74 / 116, "sharded" 43.3 / 4.98 /
3.74 / 115. Of a step of 45 ms little is saved where processes are more than cores, and what shards save
of so small a model is less than what their bookkeeping takes. Losses of the last step: 482.87 by one,
483.13 by two, 482.93 by four processes, whose noise is their own.

    python benchmarks/scale/processes.py
    python benchmarks/scale/processes.py --processes 1 2 --width 64 --steps 4    # does it run
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from launching import MIB, Traffic, Watch, as_script, fabric_of, tell, workers

import probgen as pg

PIXELS, LATENT, WARM = 784, 20, 5


def vae(width: int) -> pg.VAE:
    encoder = pg.nn.MLP(PIXELS, [width], 2 * LATENT)
    decoder = pg.nn.MLP(LATENT, [width], PIXELS)
    prior = pg.standard_normal(LATENT)
    return pg.VAE(prior, pg.heads.Bernoulli(decoder), pg.heads.Gaussian(encoder))


def work(processes: int, strategy: str, width: int, batch: int, steps: int, rows: int) -> None:
    from common import resident

    traffic = Traffic()
    fabric = fabric_of(processes, strategy)
    before = resident("VmRSS")
    torch.manual_seed(0)
    gen = vae(width)
    x = (torch.rand(rows, PIXELS) < 0.3).float()
    watch = Watch(traffic, WARM, time.process_time)
    history = pg.fit(
        gen,
        x,
        steps=WARM + steps,
        batch_size=batch // processes,
        fabric=fabric,
        callbacks=[watch],
        seed=0,
        compile=False,
        progress=False,
        verdict=False,
    )
    tell(
        fabric,
        seconds=watch.seconds,
        steps=watch.steps,
        sent=watch.sent,
        calls=watch.calls,
        ring=traffic.through_a_ring(processes) / watch.steps,
        memory=resident() - before,
        parameters=sum(p.numel() for p in gen.parameters()),
        loss=history.loss[-1],
    )


def row(strategy: str, found: list[dict[str, Any]]) -> str:
    first = found[0]
    seconds = statistics.median(each["seconds"] for each in found)
    payload = sum(first["sent"].values()) / first["steps"] / MIB
    calls = sum(first["calls"].values()) / first["steps"]
    memory = max(each["memory"] for each in found)
    return (
        f"{strategy:10s}{len(found):10d}{1e3 * seconds:12.1f}{payload:12.2f}{calls:8.1f}"
        f"{first['ring'] / MIB:10.2f}{memory:12.0f}{first['loss']:12.4f}"
    )


def main() -> None:
    from common import command_line

    parser = command_line(__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--strategies", nargs="+", default=["ddp", "sharded"])
    parser.add_argument("--width", type=int, default=400)
    parser.add_argument(
        "--batch", type=int, default=512, help="rows of a step, all processes together"
    )
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rows", type=int, default=20_000)
    given = parser.parse_args()
    count = sum(p.numel() for p in vae(given.width).parameters())
    print(f"{count:,} parameters, {4 * count / MIB:.2f} MiB of them, {given.batch} rows a step")
    print(
        f"{'':10s}{'processes':>10s}{'ms a step':>12s}{'MiB a step':>12s}{'calls':>8s}"
        f"{'by ring':>10s}{'memory MiB':>12s}{'loss':>12s}"
    )
    options = {key: getattr(given, key) for key in ("width", "batch", "steps", "rows")}
    for processes in given.processes:
        for strategy in given.strategies if processes > 1 else ["one"]:
            print(
                row(strategy, workers(__file__, processes, strategy=strategy, **options)),
                flush=True,
            )


if __name__ == "__main__":
    as_script(work, main)
