"""Steps per second of Langevin, HMC and block Gibbs kernels.

Beside TorchEBM or a loop written by hand.

Every pair runs the same target, dimension, number of chains and step sizes, in turns, in one
process with one thread; the numbers are medians over the turns. TorchEBM has no Gibbs sampler: that
row stands beside plain torch.

    python benchmarks/mcmc_kernels.py
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import torch
from common import command_line, in_turns, resident
from torch import Tensor, nn
from torchebm.core import BaseModel
from torchebm.samplers import HamiltonianMonteCarlo, LangevinDynamics

from probgen.compile.tracing import compiled
from probgen.distributions.energy.bipartite import Bipartite
from probgen.distributions.energy.units import Binary
from probgen.samplers.hmc import hmc
from probgen.samplers.langevin import langevin

LEAPFROGS = 10
ETA = 1e-3
Sampler = Callable[[Tensor, int], Tensor]


class Energy(nn.Module):
    """A network of two hidden layers in a bowl."""

    def __init__(self, dims: int, width: int):
        super().__init__()
        sizes = (
            nn.Linear(dims, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 1),
        )
        self.net = nn.Sequential(*sizes)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1) + x.square().sum(-1) / 2


class Theirs(BaseModel):
    """The same for TorchEBM."""

    def __init__(self, energy: nn.Module):
        super().__init__()
        self.energy = energy

    def forward(self, x: Tensor) -> Tensor:
        return self.energy(x)


def langevins(energy: nn.Module) -> dict[str, Sampler]:
    sampler = LangevinDynamics(Theirs(energy), step_size=ETA, noise_scale=1.0)
    return {
        "probgen": lambda x, n: langevin(lambda x: -energy(x), x, n, step=2 * ETA),
        "TorchEBM": lambda x, n: sampler.sample(x=x, n_steps=n),
    }


def hmcs(energy: nn.Module) -> dict[str, Sampler]:
    sampler = HamiltonianMonteCarlo(Theirs(energy), step_size=0.05, n_leapfrog_steps=LEAPFROGS)
    return {
        "probgen": lambda x, n: hmc(lambda x: -energy(x), x, n, step=0.05, leapfrogs=LEAPFROGS).x,
        "TorchEBM": lambda x, n: sampler.sample(x=x, n_steps=n),
    }


def gibbs(dims: int, hidden: int) -> dict[str, Sampler]:
    weight = 0.1 * torch.randn(dims, hidden)
    b = torch.randn(dims)
    c = torch.randn(hidden)

    @torch.no_grad()
    def by_hand(v: Tensor, steps: int) -> Tensor:
        for _ in range(steps):
            h = torch.bernoulli(torch.sigmoid(v @ weight + c))
            v = torch.bernoulli(torch.sigmoid(h @ weight.T + b))
        return v

    return {"probgen": Bipartite(Binary(b), weight, c).gibbs, "by hand": by_hand}


def compare(samplers: dict[str, Sampler], x: Tensor, steps: int, turns: int) -> dict[str, float]:
    """Steps per second of each, medians over turns."""
    found = in_turns({name: partial(run, x, steps) for name, run in samplers.items()}, turns)
    return {name: steps / statistics.median(values) for name, values in found.items()}


def report(title: str, rates: dict[str, float]) -> None:
    first, *others = rates
    ratios = ", ".join(f"{rates[first] / rates[other]:.2f} x {other}" for other in others)
    print(
        f"{title:<44}"
        + "".join(f"{name} {rate:>8.0f}/s  " for name, rate in rates.items())
        + ratios,
        flush=True,
    )


def memory(sampler: Sampler, x: Tensor) -> tuple[float, float]:
    """Peak memory of the process, in MiB, after 100 steps (leapfrogs, of HMC).

    And what 10,000 steps add to it.
    """
    sampler(x, 100)
    before = resident()
    sampler(x, 10_000)
    return before, resident() - before


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for dims, width, chains in ((2, 64, 64), (2, 64, 1000), (64, 128, 256), (784, 256, 100)):
        energy = Energy(dims, width).requires_grad_(False)
        x = torch.randn(chains, dims)
        steps = 400 if chains * width < 50_000 else 100
        size = f"{dims} dims, {chains} chains"
        samplers = langevins(energy)
        ten = compiled(
            lambda x, energy=energy: langevin(lambda x: -energy(x), x, 10, step=2 * ETA), x
        )
        report(f"Langevin, {size}", compare(samplers, x, steps, options.turns))

        def together(x: Tensor, n: int, ten: Callable = ten) -> Tensor:
            for _ in range(n // 10):
                x = ten(x)
            return x

        pair = {"probgen, compiled": together, "TorchEBM": samplers["TorchEBM"]}
        report("  the same as one graph of 10 steps", compare(pair, x, steps, options.turns))
        report(
            f"HMC of {LEAPFROGS} leapfrogs, {size}",
            compare(hmcs(energy), x, steps // 10, options.turns),
        )
    for dims, hidden, chains in ((20, 16, 100), (784, 500, 100)):
        x = torch.randint(2, (chains, dims)).float()
        rates = compare(gibbs(dims, hidden), x, 100, options.turns)
        report(f"block Gibbs, {dims} x {hidden} units, {chains} chains", rates)
    energy, x = (
        Energy(64, 128),
        torch.randn(256, 64),
    )  # parameters that want gradients: graphs must not pile up
    machine = gibbs(64, 64)["probgen"]
    for name, sampler, start in (
        ("Langevin", langevins(energy)["probgen"], x),
        ("HMC", lambda x, n: hmcs(energy)["probgen"](x, n // 10), x),
        ("block Gibbs", machine, (x > 0).float()),
    ):
        base, more = memory(sampler, start)
        print(
            f"{name}: peak memory {base:.0f} MiB after 100 steps, {more:+.2f} MiB after 10,000",
            flush=True,
        )


if __name__ == "__main__":
    main()
