"""U-Nets side by side.

Seconds of a forward and backward pass on one core, at nearly the same number of parameters.

Ours, diffusers' UNet2DModel and the Unet of denoising-diffusion-pytorch, each with the same width,
multipliers and number of blocks and with self-attention at the coarsest level where that is a
choice (the third has linear attention at every level besides). Batches of 64 images. Contestants
take turns; figures are the least times over rounds, in seconds of the processor: neighbors on the
machine disturb those least.

    OMP_NUM_THREADS=1 python benchmarks/unet_speed.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn

try:
    import torchvision  # noqa: F401
except RuntimeError:  # a build without its compiled operations, which nothing here needs
    library = torch.library.Library("torchvision", "DEF")
    for operation in ("nms", "qnms"):
        library.define(operation + "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
from denoising_diffusion_pytorch.denoising_diffusion_pytorch import Unet
from diffusers import UNet2DModel

from probgen.nn.unet import UNet


def theirs(
    size: int, channels: int, width: int, multipliers: tuple[int, ...], blocks: int
) -> UNet2DModel:
    levels = len(multipliers)
    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=blocks,
        block_out_channels=tuple(width * m for m in multipliers),
        norm_num_groups=8,
        attention_head_dim=width * multipliers[-1] // 4,
        down_block_types=("DownBlock2D",) * (levels - 1) + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
    )


def networks(
    size: int, channels: int, width: int, multipliers: tuple[int, ...]
) -> dict[str, tuple[nn.Module, Callable]]:
    x = torch.randn(64, channels, size, size)
    t = torch.rand(64)
    ours = UNet((channels, size, size), width=width, multipliers=multipliers, blocks=2)
    diffusers = theirs(size, channels, width, multipliers, 2)
    ddpm = Unet(dim=width, dim_mults=multipliers, channels=channels)
    return {
        "probgen": (ours, lambda: ours(x, t)),
        "diffusers": (diffusers, lambda: diffusers(x, 1000 * t).sample),
        "denoising-diffusion-pytorch": (ddpm, lambda: ddpm(x, 1000 * t)),
    }


def seconds(net: nn.Module, run: Callable, backward: bool) -> float:
    start = time.process_time()
    if backward:
        net.zero_grad(set_to_none=True)
        run().square().mean().backward()
    else:
        with torch.no_grad():
            run()
    return time.process_time() - start


def compare(
    size: int, channels: int, width: int, multipliers: tuple[int, ...], rounds: int
) -> None:
    nets = networks(size, channels, width, multipliers)
    print(f"64 images of {channels} x {size} x {size}, width {width}, multipliers {multipliers}")
    times = {name: ([], []) for name in nets}
    for turn in range(rounds + 1):
        for name, (net, run) in nets.items():
            for backward in (True, False):
                value = seconds(net, run, backward)
                if turn:
                    times[name][backward].append(value)
    best = {name: (min(both[1]), min(both[0])) for name, both in times.items()}
    for name, (training, forward) in best.items():
        count = sum(parameter.numel() for parameter in nets[name][0].parameters())
        ratios = training / best["probgen"][0], forward / best["probgen"][1]
        print(
            f"  {name:28s} {count:10,d} parameters   forward and backward {training:6.3f} s "
            f"({ratios[0]:4.2f})   "
            f"forward {forward:6.3f} s ({ratios[1]:4.2f})",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    compare(28, 1, 32, (1, 2, 2), arguments.rounds)
    compare(32, 3, 32, (1, 2, 4), arguments.rounds)


if __name__ == "__main__":
    main()
