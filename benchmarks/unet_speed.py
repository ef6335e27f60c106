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

from collections.abc import Callable
from functools import partial

import torch
from common import command_line, in_turns, without_torchvision
from torch import nn

from probgen.nn.unet import UNet


def theirs(
    size: int, channels: int, width: int, multipliers: tuple[int, ...], blocks: int
) -> nn.Module:
    from diffusers import UNet2DModel

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
    from denoising_diffusion_pytorch.denoising_diffusion_pytorch import Unet

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


def trained(net: nn.Module, run: Callable) -> None:
    net.zero_grad(set_to_none=True)
    run().square().mean().backward()


def compare(
    size: int, channels: int, width: int, multipliers: tuple[int, ...], rounds: int
) -> None:
    nets = networks(size, channels, width, multipliers)
    print(f"64 images of {channels} x {size} x {size}, width {width}, multipliers {multipliers}")
    calls = {(name, "training"): partial(trained, *pair) for name, pair in nets.items()}
    calls |= {(name, "forward"): torch.no_grad()(run) for name, (_, run) in nets.items()}
    found = {key: min(values) for key, values in in_turns(calls, rounds).items()}
    best = {name: (found[name, "training"], found[name, "forward"]) for name in nets}
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
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    without_torchvision()
    torch.manual_seed(0)
    compare(28, 1, 32, (1, 2, 2), arguments.rounds)
    compare(32, 3, 32, (1, 2, 4), arguments.rounds)


if __name__ == "__main__":
    main()
