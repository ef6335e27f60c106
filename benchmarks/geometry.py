"""Held-out nats on the sphere, a torus and rotations: Riemannian flow matching beside others.

The data are made, so that their true density is known up to what is said below:

- *earth*: places of earthquakes, in the manner of the catalogues: ten faults (arcs of great circles
  between random places), places along them with a scatter of 0.04 radians, and one place in ten
  anywhere. Beside mixtures of von Mises-Fisher distributions by EM, the best number of components
  on validation rows, and SphereFlow.
- *torus*: pairs of dihedral angles: six normal spots of different widths and slants, wrapped. Beside
  CircularFlow, and the true density.
- *rotations*: eight orientations of a part, with normal angular errors of 0.3 radians. Beside
  kernels of that form on all training rows, of the best width on validation rows, and the true
  density.

Densities are with respect to area, radians, and angles of rotation (total volume 8 pi^2).

    python benchmarks/geometry.py            # some minutes of one core
    python benchmarks/geometry.py --smoke    # a few steps of each, to see that all runs
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import command_line, cosine
from torch import Tensor

import probgen as pg
from probgen.flows import Manifold, Rotations, Sphere, Torus

Split = tuple[Tensor, Tensor, Tensor]


def split(x: Tensor) -> Split:
    """Rows for training, validation and test."""
    return x[: len(x) * 6 // 10], x[len(x) * 6 // 10 : len(x) * 8 // 10], x[len(x) * 8 // 10 :]


def earth(count: int) -> Tensor:
    sphere, like = Sphere(2), torch.zeros(())
    starts, ends = sphere.draw(torch.Size([10]), like), sphere.draw(torch.Size([10]), like)
    fault = torch.randint(10, (count,))
    along, _ = sphere.geodesic(starts[fault], sphere.log(starts, ends)[fault], torch.rand(count, 1))
    scattered = sphere.onto(along + 0.04 * torch.randn(count, 3))
    anywhere = sphere.draw(torch.Size([count]), like)
    return torch.where(torch.rand(count, 1) < 0.1, anywhere, scattered)


class Spots:
    """Wrapped normal spots on the torus, with their density."""

    def __init__(self) -> None:
        self.means = math.pi * (2 * torch.rand(6, 2) - 1)
        self.roots = torch.tril(0.1 + 0.25 * torch.rand(6, 2, 2))

    def draw(self, count: int) -> Tensor:
        spot = torch.randint(6, (count,))
        apart = (self.roots[spot] @ torch.randn(count, 2, 1)).squeeze(-1)
        return Torus(2).onto(self.means[spot] + apart)

    def log_prob(self, x: Tensor) -> Tensor:
        turns = 2 * math.pi * torch.cartesian_prod(*[torch.arange(-1.0, 2.0)] * 2)
        spots = torch.distributions.MultivariateNormal(self.means, scale_tril=self.roots)
        terms = spots.log_prob(x[:, None, None] + turns[:, None])  # rows, turns, spots
        return terms.flatten(1).logsumexp(1) - math.log(6)


def kernels(x: Tensor, centers: Tensor, width: float) -> Tensor:
    """Log-density of rotations around centers with normal angular errors, none beyond half a turn.

    The normal density of the error, by the volume of a ball of rotations in the place of that of
    vectors: (2 - 2 cos r) / r^2.
    """
    rotations = Rotations()
    parts = []
    for rows in x.split(100):
        r = rotations.distance(rows[:, None], centers[None]).clamp(min=1e-4)
        normal = -0.5 * (r / width).square() - 3 * math.log(width * math.sqrt(2 * math.pi))
        log = normal - ((2 - 2 * r.cos()) / r.square()).log()
        parts.append(log.logsumexp(1) - math.log(len(centers)))
    return torch.cat(parts)


def orientations(count: int) -> tuple[Tensor, Tensor]:
    rotations = Rotations()
    centers = rotations.draw(torch.Size([8]), torch.zeros(()))
    at = centers[torch.randint(8, (count,))]
    error = rotations.vector(at, 0.3 * torch.randn(count, 3))
    return rotations.geodesic(at, error, 1.0)[0], centers


def fitted(gen: Any, x: Tensor, objective: Any, steps: int) -> Any:
    pg.fit(
        gen,
        x,
        objective,
        steps=steps,
        batch_size=256,
        optimizer=pg.train.adam(3e-3),
        scheduler=cosine(steps),
        clip=100.0,
        ema=0.99,
        compile=False,
        progress=False,
        verdict=False,
        seed=0,
    )
    return gen.eval()


def matched(manifold: Manifold, x: Tensor, steps: int) -> Any:
    torch.manual_seed(0)
    net = pg.nn.TimeMLP(manifold.inputs, [128, 128, 128], outputs=manifold.outputs)
    gen = pg.RiemannianFlowMatching(net, manifold)
    return fitted(gen, x, pg.objectives.Denoising(), steps)


class Fishers:
    """A mixture of von Mises-Fisher distributions on the sphere, by EM."""

    def __init__(self, x: Tensor, components: int, max_iter: int):
        self.means = x[torch.randperm(len(x))[:components]]
        self.k = torch.full((components,), 20.0)
        self.log_weights = torch.full((components,), -math.log(components))
        for _ in range(max_iter):
            shares = self.terms(x).softmax(1)
            total = shares.sum(0).clamp(min=1e-6)
            mean = shares.mT @ x / total[:, None]
            length = mean.norm(dim=1).clamp(1e-3, 1 - 1e-5)
            self.means = mean / mean.norm(dim=1, keepdim=True)
            self.k = self.solved(length)
            self.log_weights = (total / total.sum()).log()

    @staticmethod
    def solved(length: Tensor) -> Tensor:
        """The concentration k of a mean length: coth k - 1 / k, by Newton's method."""
        k = (3 * length - length**3) / (1 - length**2)  # Banerjee et al. (2005)
        for _ in range(5):
            mean = 1 / torch.tanh(k) - 1 / k
            slope = 1 / k**2 - 1 / torch.sinh(k.clamp(max=40)) ** 2
            k = (k - (mean - length) / slope).clamp(1e-2, 5e3)
        return k

    def terms(self, x: Tensor) -> Tensor:
        constant = self.k.log() - math.log(2 * math.pi) - (-torch.expm1(-2 * self.k)).log()
        return self.log_weights + constant + self.k * (x @ self.means.mT - 1)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.terms(x).logsumexp(1)


def scored(log_prob: Callable[[Tensor], Tensor], x: Tensor) -> str:
    """Minus the mean log-density, with its standard error."""
    with torch.no_grad():
        found = -torch.cat([log_prob(rows) for rows in x.split(500)])
    return f"{found.mean():7.3f} ± {found.std() / len(found) ** 0.5:.3f}"


def exactly(gen: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: gen().log_prob(x)


def on_earth(count: int, steps: int, smoke: bool) -> dict[str, str]:
    train, validation, test = split(earth(count))
    tried = (5,) if smoke else (10, 20, 40, 80, 160)
    mixtures = {number: Fishers(train, number, 5 if smoke else 200) for number in tried}
    best = max(tried, key=lambda number: float(mixtures[number].log_prob(validation).mean()))
    torch.manual_seed(0)
    splines = fitted(pg.SphereFlow(transforms=4, bins=16), train, pg.ELBO(), steps // 2)
    return {
        "uniform": scored(lambda x: torch.full((len(x),), -math.log(4 * math.pi)), test),
        f"von Mises-Fisher mixture, {best}": scored(mixtures[best].log_prob, test),
        "SphereFlow": scored(exactly(splines), test),
        "RiemannianFlowMatching": scored(exactly(matched(Sphere(2), train, steps)), test),
    }


def on_torus(count: int, steps: int, smoke: bool) -> dict[str, str]:
    spots = Spots()
    train, _, test = split(spots.draw(count))
    torch.manual_seed(0)
    splines = fitted(pg.CircularFlow(2, transforms=6, bins=16), train, pg.ELBO(), steps // 2)
    return {
        "uniform": scored(lambda x: torch.full((len(x),), -2 * math.log(2 * math.pi)), test),
        "CircularFlow": scored(exactly(splines), test),
        "RiemannianFlowMatching": scored(exactly(matched(Torus(2), train, steps)), test),
        "the true density": scored(spots.log_prob, test),
    }


def of_rotations(count: int, steps: int, smoke: bool) -> dict[str, str]:
    x, centers = orientations(count)
    train, validation, test = split(x)
    widths = (0.2,) if smoke else (0.05, 0.1, 0.15, 0.2, 0.3)
    mean = lambda width: float(kernels(validation, train, width).mean())  # noqa: E731
    best = max(widths, key=mean)
    return {
        "uniform": scored(lambda x: torch.full((len(x),), -math.log(8 * math.pi**2)), test),
        f"kernels of width {best}": scored(partial(kernels, centers=train, width=best), test),
        "RiemannianFlowMatching": scored(exactly(matched(Rotations(), train, steps)), test),
        "the true density": scored(partial(kernels, centers=centers, width=0.3), test),
    }


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.rows, arguments.steps = 200, 4
    kinds = {"earth": on_earth, "torus": on_torus, "rotations": of_rotations}
    for name, compared in kinds.items():
        torch.manual_seed(1)
        print(f"{name}: nats per held-out row, less is better")
        for model, nats in compared(arguments.rows, arguments.steps, arguments.smoke).items():
            print(f"  {model:32s} {nats}", flush=True)


if __name__ == "__main__":
    main()
