"""Memory of training by the number of parameters, in one process and in several that share them.

A network of square layers learns by Adam in ``pg.fit``, in single precision. By arithmetic a process
holds 16 bytes a parameter: 4 of the parameter, 4 of its gradient, 8 of Adam's two averages, and with
``--ema`` 4 more. Of n processes, "ddp" holds that in each, besides 4 in buckets of gradients;
"sharded" (``probgen.train.fully_sharded``) 16 / n, and while a loss is computed the 4 of the whole
parameters. Measured is what a process holds after the last step, and its peak, each
less what it had before the model was made; at sizes beyond ``--largest`` the table has the arithmetic
alone.

Measured with ``--steps 2`` on two cores that other jobs shared, MiB by arithmetic / after the last
step / at the peak; "sent" is what a process sends by a ring in a step, MiB:

============== ==================== ==================== ==================== ======
parameters     one process          two, "ddp"           two, "sharded"       sent
============== ==================== ==================== ==================== ======
100,352        1.5 / 12 / 12        1.9 / 14 / 15        1.1 / 17 / 17        0.38
1,002,528      15 / 27 / 27         19 / 37 / 38         11 / 59 / 60         3.82
9,999,392      153 / 170 / 171      191 / 229 / 229      114 / 201 / 277      38.15
100,026,368    1526 / 1560 / 1584   1908 / 1975 / 1976   1145 / 797 / 1608    381.57
============== ==================== ==================== ==================== ======

So memory is that of the arithmetic and some 12 to 40 MiB. The peak of a sharded run is where the model
is whole: when it is shared out, and when it is put together again; after a step what was gathered has
been given back, half of the 16 bytes. Milliseconds of the processor a step, 100 million parameters:
526 in one process, 844 "ddp", 1986 "sharded".

    python benchmarks/scale/parameters.py
    python benchmarks/scale/parameters.py --processes 1 --largest 1e5 --steps 2     # does it run
"""

from __future__ import annotations

import time

import torch
from launching import MIB, Traffic, Watch, as_script, fabric_of, tell, workers
from torch import nn

import probgen as pg

LAYERS, WARM, BATCH = 8, 2, 32
SIZES = (1e5, 1e6, 1e7, 1e8)


def width_of(parameters: float) -> int:
    return max(round((parameters / LAYERS) ** 0.5), 2)


def network(parameters: float) -> pg.heads.Gaussian:
    """A normal distribution whose location is a chain of square layers of one of the numbers."""
    width = width_of(parameters)
    layers = [nn.Sequential(nn.Linear(width, width, bias=False), nn.SiLU()) for _ in range(LAYERS)]
    return pg.heads.Gaussian(nn.Sequential(*layers), scale=1.0)


def work(processes: int, strategy: str, parameters: float, steps: int, ema: float | None) -> None:
    from common import resident

    traffic = Traffic()
    fabric = fabric_of(processes, strategy)
    torch.manual_seed(0)  # the same rows in every process
    x = torch.randn(4 * BATCH, width_of(parameters))
    before = resident("VmRSS")
    gen = network(parameters)
    watch = Watch(traffic, WARM, time.process_time)
    pg.fit(
        gen,
        (x, x),
        steps=WARM + steps,
        batch_size=BATCH,
        ema=ema,
        fabric=fabric,
        callbacks=[watch],
        seed=0,
        compile=False,
        progress=False,
        verdict=False,
    )
    count = sum(p.numel() for p in gen.parameters())
    ring = traffic.through_a_ring(processes) / watch.steps
    memory = {"memory": resident() - before, "between": watch.resident - before}
    tell(fabric, seconds=watch.seconds, ring=ring, parameters=count, **memory)


def expected(strategy: str, processes: int, parameters: float, ema: float | None) -> float:
    """Bytes of a process while it trains."""
    state = 16 + 4 * (ema is not None)
    more = {"one": 0.0, "ddp": 4.0, "sharded": 4.0}[strategy]
    return parameters * (state / (processes if strategy == "sharded" else 1) + more)


def main() -> None:
    from common import command_line

    parser = command_line(__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES)
    parser.add_argument("--largest", type=float, default=1e8, help="what is measured")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--ema", type=float)
    given = parser.parse_args()
    print(
        f"{'':10s}{'processes':>10s}{'parameters':>16s}{'arithmetic MiB':>16s}{'between steps':>14s}{'peak':>10s}"
        f"{'ms a step':>12s}{'MiB by ring':>12s}"
    )
    for size in given.sizes:
        for processes in given.processes:
            for strategy in ("ddp", "sharded") if processes > 1 else ("one",):
                count = LAYERS * width_of(size) ** 2
                line = f"{strategy:10s}{processes:10d}{count:16,d}"
                line += f"{expected(strategy, processes, count, given.ema) / MIB:16,.1f}"
                if size <= given.largest:
                    options = {"strategy": strategy, "parameters": size, "steps": given.steps}
                    found = workers(__file__, processes, ema=given.ema, **options)
                    memory = max(each["memory"] for each in found)
                    between = max(each["between"] for each in found)
                    line += f"{between:14,.0f}{memory:10,.0f}{1e3 * found[0]['seconds']:12.1f}"
                    line += f"{found[0]['ring'] / MIB:12.2f}"
                print(line, flush=True)


if __name__ == "__main__":
    as_script(work, main)
