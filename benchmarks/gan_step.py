"""Time of a training step of a GAN.

Two players in one backward, beside a loop of torch with two backward passes.

Same networks, batch and optimizers, rounds interleaved on one thread; processor time (so that a
busy machine does not matter). The loop is the usual one: the critic's loss on real rows and
detached fakes, its backward and step, then the generator's loss through the critic (frozen
meanwhile, so that no gradient of its parameters is wasted), its backward and step. It updates the
critic before the generator looks at it; ours updates both at once, from one run of the critic on
the fakes. The compiled loop is torch.compile of both halves' forward passes; it was slower than the
plain loop where this was measured, so that compiled steps are to be compared with both.

    OMP_NUM_THREADS=1 python benchmarks/gan_step.py --rounds 7
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable

import torch
from common import command_line
from torch import Tensor, nn
from torch.nn.functional import softplus

from probgen.core.module import standard_normal
from probgen.models.gan import GAN
from probgen.nn import MLP
from probgen.nn.dcgan import DCGANCritic, DCGANGenerator
from probgen.objectives.adversarial import Adversarial
from probgen.train.fit import adam, fit
from probgen.train.run import Run

WARM = 5
Networks = Callable[[], tuple[nn.Module, nn.Module]]


def small() -> tuple[nn.Module, nn.Module]:
    return MLP(2, [128] * 3, 2, nn.ReLU), MLP(2, [128] * 3, 1, nn.LeakyReLU)


def images() -> tuple[nn.Module, nn.Module]:
    return DCGANGenerator(32, (1, 28, 28), hidden=(64, 32)), DCGANCritic(
        (1, 28, 28), hidden=(32, 64)
    )


CASES = {
    "MLP 3 x 128, 256 points": (small, (2,), 2, 256),
    "DCGAN 32-64, 64 images": (images, (1, 28, 28), 32, 64),
}


def loop(
    networks: Networks, x: Tensor, noise: int, batch: int, steps: int, compiled: bool
) -> Callable[[], float]:
    """The hand-written loop, ready to be timed."""
    generator, critic = networks()
    run = [torch.compile(part) if compiled else part for part in (generator, critic)]
    optimizers = [
        torch.optim.Adam(part.parameters(), lr=2e-4, betas=(0.5, 0.99), fused=True)
        for part in (generator, critic)
    ]

    def go(steps: int = steps) -> float:
        began = time.process_time()
        for _ in range(steps):
            real = x[torch.randint(len(x), (batch,))]
            fake = run[0](torch.randn(batch, noise))
            optimizers[1].zero_grad()
            loss = softplus(-run[1](real)).mean() + softplus(run[1](fake.detach())).mean()
            loss.backward()
            optimizers[1].step()
            optimizers[0].zero_grad()
            critic.requires_grad_(False)
            second = softplus(-run[1](fake)).mean()
            second.backward()
            critic.requires_grad_(True)
            optimizers[0].step()
            (loss + second).item()
        return (time.process_time() - began) / steps

    go(3)
    return go


def ours(
    networks: Networks, x: Tensor, noise: int, batch: int, steps: int, compiled: bool
) -> Callable[[], float]:
    """probgen.fit, timed between two of its steps.

    Without what comes before the first, or compiling.
    """

    def go() -> float:
        generator, critic = networks()
        gan = GAN(generator, standard_normal(noise), x.shape[1:])
        marks = []

        def mark(run: Run) -> None:
            if run.step in (WARM, WARM + steps):
                marks.append(time.process_time())

        options = {
            "steps": WARM + steps,
            "batch_size": batch,
            "compile": compiled,
            "verdict": False,
            "progress": False,
        }
        fit(
            gan,
            x,
            Adversarial(critic),
            optimizer=adam(2e-4, betas=(0.5, 0.99)),
            callbacks=[mark],
            **options,
        )
        return (marks[1] - marks[0]) / steps

    return go


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--eager-only", action="store_true")
    parser.add_argument("--compiled-only", action="store_true")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    print(
        f"{'':28s}{'':10s}{'loop, ms':>10s}{'probgen, ms':>13s}{'ratio (median of pairs)':>25s}{'range':>14s}"
    )
    kinds = [False] * (not arguments.compiled_only) + [True] * (not arguments.eager_only)
    for name in arguments.cases:
        networks, event, noise, batch = CASES[name]
        steps = arguments.steps if event == (2,) else arguments.steps // 4
        x = torch.randn(4096, *event).clamp(-1, 1)
        for compiled in kinds:
            make = {
                "networks": networks,
                "x": x,
                "noise": noise,
                "batch": batch,
                "steps": steps,
                "compiled": compiled,
            }
            theirs = loop(**make)
            own = ours(**make)
            times = [(theirs(), own()) for _ in range(arguments.rounds)]
            ratios = [b / a for a, b in times]
            middle = [statistics.median(column) * 1e3 for column in zip(*times, strict=True)]
            kind = "compiled" if compiled else "eager"
            spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
            print(
                f"{name:28s}{kind:10s}{middle[0]:10.2f}{middle[1]:13.2f}{statistics.median(ratios):25.2f}{spread:>14s}",
                flush=True,
            )


if __name__ == "__main__":
    main()
