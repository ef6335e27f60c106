"""What bounds on the expected data do to draws of diffusions: scikit-learn's digits in [-1, 1].

One small network for each prediction (the noise, the velocity, the data), trained alike on the
default schedule, then every sampler with every threshold, at 10 and 50 steps. Each row tells the
largest absolute value of the draws, the share of pixels outside of the data's range (by more than
0.01), and the sliced Wasserstein and the Fréchet distance of the pixels to held-out digits, as many
as there are draws; the first row tells what other real digits have.

    python benchmarks/thresholds.py --markdown thresholds.md      # two minutes of one core
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from common import command_line
from torch import Tensor

import probgen as pg

THRESHOLDS = {
    "none": None,
    "static": pg.diffusion.StaticThreshold(-1.0, 1.0),
    "dynamic": pg.diffusion.DynamicThreshold(low=-1.0, high=1.0),
}
SAMPLERS = {
    "ancestral": pg.diffusion.Ancestral,
    "DDIM": pg.diffusion.DDIM,
    "DPMSolver": pg.diffusion.DPMSolver,
}
PREDICTIONS = {
    "noise": pg.diffusion.Epsilon(),
    "velocity": pg.diffusion.Velocity(),
    "data": pg.diffusion.Original(),
}
HEAD = "| predicted | sampler | steps | threshold | largest | outside, % | sliced W. | Fréchet |"


def digits() -> tuple[Tensor, Tensor]:
    """Rows ``(N, 64)`` in [-1, 1] in random order: 1,000 to train, 797 held out."""
    rows = torch.cat([part.flatten(1) for part in pg.datasets.load_digits()]) / 8 - 1
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return rows[order[:1000]], rows[order[1000:]]


def trained(prediction: object, rows: Tensor, steps: int) -> pg.Diffusion:
    torch.manual_seed(0)
    gen = pg.Diffusion(pg.nn.TimeMLP(64, [256, 256]), (64,), prediction=prediction)
    pg.fit(
        gen,
        rows,
        pg.objectives.Denoising(),
        steps=steps,
        batch_size=128,
        ema=0.995,
        compile=False,
        verdict=False,
        progress=False,
        seed=0,
    )
    return gen.eval()


def numbers(drawn: Tensor, held_out: Tensor) -> str:
    sliced = pg.evaluate.sliced_wasserstein_distance(drawn, held_out, splits=0).value
    frechet = pg.evaluate.frechet_distance(drawn, held_out, splits=0, standardize=False).value
    outside = 100 * (drawn.abs() > 1.01).float().mean()
    return f"{drawn.abs().max():.2f} | {outside:.1f} | {sliced:.3f} | {frechet:.2f} |"


def rows_of(name: str, gen: pg.Diffusion, held_out: Tensor, counts: list[int]) -> list[str]:
    """All samplers and thresholds; the default one is that which the model was made with."""
    lines = []
    for kind, sampler in SAMPLERS.items():
        for count in counts:
            for threshold, rule in {"default": gen.limit.threshold, **THRESHOLDS}.items():
                before, gen.limit.threshold = gen.limit.threshold, rule
                torch.manual_seed(1)
                drawn = gen().using(sampler(count)).sample((len(held_out),))
                gen.limit.threshold = before
                told = f"| {name} | {kind} | {count} | {threshold} |"
                lines.append(f"{told} {numbers(drawn, held_out)}")
                print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--steps", type=int, default=3000, help="of training")
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 50], help="of steps")
    parser.add_argument("--markdown", type=Path, help="where to write the table")
    arguments = parser.parse_args()
    rows, held_out = digits()
    lines = [HEAD, "|---|---|--:|---|--:|--:|--:|--:|"]
    lines.append(f"| real digits | | | | {numbers(rows[: len(held_out)], held_out)}")
    print("\n".join(lines), flush=True)
    for name, prediction in PREDICTIONS.items():
        began = time.process_time()
        gen = trained(prediction, rows, arguments.steps)
        print(f"{name}: {time.process_time() - began:.0f} s of training", flush=True)
        lines += rows_of(name, gen, held_out, arguments.counts)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
