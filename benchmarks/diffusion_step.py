"""What the library adds to a U-Net.

A training step and 50 DDIM steps, around one and the same network.

Contestants call the very same U-Net of this library (16 x 16 pixels, width 24): a loop written by
hand in few lines, denoising-diffusion-pytorch's GaussianDiffusion, and a hand-written loop on
diffusers' schedulers. Training is loss, backward and Adam for 64 images, velocity prediction
throughout; ``fit`` is a whole step of training, data included. Sampling is 50 deterministic steps
for 16 images. They take turns, in another order every round; figures are medians of seconds of the
processor, which neighbors on the machine disturb least, and ratios are medians of ratios within
rounds. Then the peak memory of sampling by 5 and by 50 steps.

    OMP_NUM_THREADS=1 python benchmarks/diffusion_step.py
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from functools import partial

import torch
from common import command_line, in_turns, seconds, without_torchvision
from torch import Tensor, nn

import probgen as pg
from probgen.compile.cost_model import Profile
from probgen.distributions.diffusion.samplers import DDIM
from probgen.models.diffusion import Diffusion
from probgen.nn.unet import UNet
from probgen.objectives.denoising import Denoising

SHAPE = (1, 16, 16)


def network() -> UNet:
    torch.manual_seed(0)
    return UNet(SHAPE, width=24, multipliers=(1, 2, 2))


def adam(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)


def updated(optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> Callable[[], None]:
    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def by_hand(images: Tensor) -> tuple[Callable[[], None], Callable[[], Tensor]]:
    """Cosine schedule, velocity prediction, DDIM: what one writes without any library."""
    net = network()

    def levels(t: Tensor) -> tuple[Tensor, Tensor]:
        angle = (t * (torch.pi / 2 - 0.02) + 0.01).view(-1, 1, 1, 1)
        return angle.cos(), angle.sin()

    def loss() -> Tensor:
        t = torch.rand(len(images))
        noise = torch.randn_like(images)
        alpha, sigma = levels(t)
        target = alpha * noise - sigma * images
        return (net(alpha * images + sigma * noise, t) - target).square().sum() / len(images)

    @torch.no_grad()
    def sample() -> Tensor:
        z = torch.randn(16, *SHAPE)
        times = torch.linspace(1, 0, 51)
        for t, s in zip(times[:-1].split(1), times[1:].split(1), strict=True):
            (alpha, sigma), (after, less) = levels(t), levels(s)
            v = net(z, t.expand(16))
            z = after * (alpha * z - sigma * v) + less * (sigma * z + alpha * v)
        return z

    return updated(adam(net), loss), sample


def ours(images: Tensor) -> tuple[Callable[[], None], Callable[[], Tensor]]:
    gen = Diffusion(network(), SHAPE)
    loss = Denoising()(gen.model, gen.guide)
    step = updated(adam(gen), lambda: loss(images) / len(images))
    distribution = gen().using(DDIM(50))
    return step, lambda: distribution.sample((16,))


class Worn(nn.Module):
    """The network as denoising-diffusion-pytorch wants it."""

    channels = out_dim = 1
    self_condition = random_or_learned_sinusoidal_cond = False

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor, t: Tensor, _: Tensor | None = None) -> Tensor:
        return self.net(x, t / 1000)


def lucidrains(images: Tensor) -> tuple[Callable[[], None], Callable[[], Tensor]]:
    import denoising_diffusion_pytorch.denoising_diffusion_pytorch as module

    module.tqdm = lambda pairs, **_: pairs  # no progress bar
    gen = module.GaussianDiffusion(
        Worn(), image_size=16, timesteps=1000, sampling_timesteps=50, objective="pred_v"
    )
    pixels = (images + 1) / 2
    return updated(adam(gen), lambda: gen(pixels)), lambda: gen.sample(batch_size=16)


def diffusers(images: Tensor) -> tuple[Callable[[], None], Callable[[], Tensor]]:
    from diffusers import DDIMScheduler

    net = network()
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    scheduler.set_timesteps(50)

    def loss() -> Tensor:
        t = torch.randint(1000, (len(images),))
        noise = torch.randn_like(images)
        target = scheduler.get_velocity(images, noise, t)
        return (net(scheduler.add_noise(images, noise, t), t / 1000) - target).square().sum() / len(
            images
        )

    @torch.no_grad()
    def sample() -> Tensor:
        z = torch.randn(16, *SHAPE)
        for t in scheduler.timesteps:
            z = scheduler.step(net(z, (t / 1000).expand(16)), t, z).prev_sample
        return z

    return updated(adam(net), loss), sample


def show(title: str, found: dict[str, list[float]]) -> None:
    print(f"\n{title}: ms, and as a multiple of the loop written by hand")
    for name, values in found.items():
        ratios = [value / base for value, base in zip(values, found["by hand"], strict=True)]
        print(
            f"  {name:30s} {1000 * statistics.median(values):8.1f}   "
            f"{statistics.median(ratios):.3f}"
        )


def fit_step(images: Tensor, steps: int) -> float:
    """Seconds of the processor of one step of ``fit``, its fixed costs taken off."""
    many = images.repeat(4, 1, 1, 1)
    spent = []
    for count in (1, 1 + steps):
        gen = Diffusion(network(), SHAPE)
        fit = partial(pg.fit, gen, many, Denoising(), steps=count, batch_size=64)
        quiet = {"compile": False, "progress": False, "verdict": False}
        spent.append(seconds(lambda fit=fit, quiet=quiet: fit(**quiet)))
    return (spent[1] - spent[0]) / steps


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    without_torchvision()
    random.seed(0)
    images = torch.randn(64, *SHAPE).clamp(-1, 1)
    made = {
        "by hand": by_hand,
        "probgen": ours,
        "denoising-diffusion-pytorch": lucidrains,
        "diffusers": diffusers,
    }
    both = {name: make(images) for name, make in made.items()}
    show(
        "training step, 64 images",
        in_turns({n: pair[0] for n, pair in both.items()}, arguments.rounds, 4),
    )
    print(f"  {'probgen, fit':30s} {1000 * fit_step(images, 40):8.1f}")
    show(
        "50 DDIM steps, 16 images",
        in_turns({n: pair[1] for n, pair in both.items()}, max(3, arguments.rounds // 3)),
    )
    distribution = Diffusion(network(), SHAPE)()
    print("\npeak memory of sampling 16 images, MB:", end=" ")
    for steps in (5, 50):
        with Profile() as profile:
            distribution.using(DDIM(steps)).sample((16,))
        print(f"{steps} steps {profile.peak / 1e6:.3f}", end="   ")
    print()


if __name__ == "__main__":
    main()
