"""Bayesian models of compiled_svi.py as Pyro programs, with their data.

Probgen and Pyro run the same functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.infer.autoguide.initialization import init_to_feasible, init_to_value
from torch import Tensor, nn

COMPONENTS = 5
GROUPS = 50
STATES = 8
Pair = tuple[Callable[..., Any], Callable[..., Any]]


@dataclass(frozen=True)
class Problem:
    """Data, and a fresh model with its guide at every call of ``pair`` (Pyro) and ``gen``.

    Probgen, if it differs.

    ``forms`` are other ways to write the same model, ``slow_forms`` those that no library runs
    fastest; ``module`` is the loss of a batch per row as a hand-written torch loop would have it.
    Turns of peers whose steps may take microseconds have ``more`` times the steps.
    """

    title: str
    data: tuple[Tensor, ...]
    steps: int
    lr: float
    pair: Callable[[], Pair]
    batch: int | None = None
    elbo: type = Trace_ELBO
    more: int = 1
    gen: Callable[[], Any] | None = None
    forms: dict[str, Callable[[], Pair]] = field(default_factory=dict)
    slow_forms: dict[str, Callable[[], Pair]] = field(default_factory=dict)
    module: Callable[[], nn.Module] | None = None

    @property
    def rows(self) -> int:
        return len(self.data[-1])

    def pairs(self, all_forms: bool) -> dict[str, Callable[[], Pair]]:
        return {"": self.pair, **self.forms, **(self.slow_forms if all_forms else {})}


def rows_of(batch: Tensor, total: int | None) -> pyro.plate:
    """The plate of the rows.

    A mini-batch that was gathered outside counts for all ``total`` rows.
    """
    return pyro.plate("data", total or len(batch), subsample=batch if total else None)


# -- eight schools
# -------------------------------------------------------------------------------------------------

SCHOOLS = (
    torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12]),
    torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18]),
)


def schools(y: Tensor, sigma: Tensor, total: int | None = None) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with rows_of(y, total):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * effect, sigma), obs=y)


# -- Gaussian mixture
# ----------------------------------------------------------------------------------------------

START = torch.linspace(-6.0, 6.0, COMPONENTS)


def clusters() -> tuple[Tensor]:
    torch.manual_seed(1)
    labels = torch.multinomial(torch.tensor([0.3, 0.25, 0.2, 0.15, 0.1]), 2000, replacement=True)
    centers = torch.tensor([-7.0, -3.0, 0.5, 4.0, 8.0])
    scales = torch.tensor([0.7, 1.0, 0.5, 1.2, 0.8])
    return (centers[labels] + scales[labels] * torch.randn(2000),)


def components() -> tuple[Tensor, Tensor, Tensor]:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(COMPONENTS)))
    with pyro.plate("components", COMPONENTS):
        locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
        scales = pyro.sample("scales", dist.LogNormal(0.0, 1.0))
    return weights, locs, scales


def mixture(x: Tensor, total: int | None = None) -> None:
    """Assignments as sites that are summed out by enumeration."""
    weights, locs, scales = components()
    with rows_of(x, total):
        c = pyro.sample("c", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(locs[c], scales[c]), obs=x)


def marginal_mixture(x: Tensor, total: int | None = None) -> None:
    """Assignments summed out by hand."""
    weights, locs, scales = components()
    with rows_of(x, total):
        pyro.sample(
            "x", dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(locs, scales)), obs=x
        )


def mixture_pair(model: Callable[..., None]) -> Pair:
    start = init_to_value(values={"locs": START.clone()}, fallback=init_to_feasible)
    return model, AutoNormal(lambda x, total=None: components(), init_loc_fn=start)


# -- regressions
# ---------------------------------------------------------------------------------------------------


def grouped_rows() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    x = torch.randn(10_000, 20)
    group = torch.randint(GROUPS, (10_000,))
    logits = x @ torch.randn(20) * 0.7 + 0.5 + torch.randn(GROUPS)[group]
    return x, group, torch.bernoulli(logits.sigmoid())


def logistic(x: Tensor, group: Tensor, y: Tensor, total: int | None = None) -> None:
    """Varying intercepts, non-centered."""
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    with pyro.plate("groups", GROUPS):
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
    intercepts = mean + spread * offset
    with rows_of(y, total):
        pyro.sample("y", dist.Bernoulli(logits=x @ slopes + intercepts[group]), obs=y)


def few_rows() -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    x = torch.randn(500, 49)
    return x, x @ torch.randn(49) + 0.5 * torch.randn(500)


def linear(x: Tensor, y: Tensor, total: int | None = None) -> None:
    """49 slopes and a noise scale: 50 latent variables."""
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
    with rows_of(y, total):
        pyro.sample("y", dist.Normal(x @ slopes, noise), obs=y)


# -- Gaussian hidden Markov model
# ----------------------------------------------------------------------------------


def sequences() -> tuple[Tensor]:
    torch.manual_seed(4)
    chain = dist.Categorical(torch.eye(STATES) * 5 + 1)
    z = [torch.randint(STATES, (200,))]
    centers = torch.linspace(-7.0, 7.0, STATES)
    for _ in range(49):
        z.append(dist.Categorical(chain.probs[z[-1]]).sample())
    return (centers[torch.stack(z, 1)] + 0.6 * torch.randn(200, 50),)


class ForwardLoop(dist.TorchDistribution):
    """A Gaussian hidden Markov model whose states are summed out step by step, in log space.

    Rows are the last dim.
    """

    arg_constraints = {}
    support = dist.constraints.real_vector

    def __init__(self, initial: Tensor, transition: Tensor, emission: dist.Normal, steps: int):
        self.initial = initial
        self.transition = transition
        self.emission = emission
        super().__init__(torch.Size(), torch.Size([steps]), validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> ForwardLoop:
        new = type(self)(self.initial, self.transition, self.emission, self.event_shape[0])
        new._batch_shape = torch.Size(batch_shape)
        return new

    def log_prob(self, x: Tensor) -> Tensor:
        distribution = dist.Normal(self.emission.loc[:, None], self.emission.scale[:, None])
        first, *others = distribution.log_prob(x.mT[:, None]).unbind()
        alpha = self.initial.log()[:, None] + first
        for emission in others:
            alpha = self.advance(alpha) + emission
        return alpha.logsumexp(0)

    def advance(self, alpha: Tensor) -> Tensor:
        return (alpha[:, None] + self.transition.log()[..., None]).logsumexp(0)


class ForwardProduct(ForwardLoop):
    """The same sum as a matrix product of shifted exponentials."""

    def advance(self, alpha: Tensor) -> Tensor:
        top = alpha.detach().amax(0)
        return (self.transition.T @ (alpha - top).exp()).log() + top


def parallel_scan(
    initial: Tensor, transition: Tensor, emission: dist.Normal, steps: int
) -> dist.DiscreteHMM:
    return dist.DiscreteHMM(initial.log(), transition.log(), emission, duration=steps)


def hmm_pair(distribution: Callable[..., dist.TorchDistribution]) -> Pair:
    def model(x: Tensor, total: int | None = None) -> None:
        initial = pyro.sample("initial", dist.Dirichlet(torch.ones(STATES)))
        with pyro.plate("states", STATES):
            transition = pyro.sample("transition", dist.Dirichlet(torch.ones(STATES)))
            locs = pyro.sample("locs", dist.Normal(0.0, 5.0))
            scales = pyro.sample("scales", dist.LogNormal(0.0, 1.0))
        with rows_of(x, total):
            pyro.sample(
                "x", distribution(initial, transition, dist.Normal(locs, scales), x.shape[1]), obs=x
            )

    start = init_to_value(
        values={"locs": torch.linspace(-6.0, 6.0, STATES)}, fallback=init_to_feasible
    )
    return model, AutoNormal(model, init_loc_fn=start)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "schools": lambda: Problem(
        title="eight schools, AutoNormal",
        data=SCHOOLS,
        steps=1000,
        lr=0.01,
        more=20,
        pair=lambda: (schools, AutoNormal(schools)),
    ),
    "mixture": lambda: Problem(
        title=f"Gaussian mixture, 2,000 rows, K = {COMPONENTS}, AutoNormal",
        data=clusters(),
        steps=300,
        lr=0.02,
        more=10,
        pair=lambda: mixture_pair(mixture),
        elbo=TraceEnum_ELBO,
        forms={"by hand": lambda: mixture_pair(marginal_mixture)},
    ),
    "logistic": lambda: Problem(
        title="hierarchical logistic regression, batch 256 of 10,000, AutoNormal",
        data=grouped_rows(),
        steps=500,
        lr=0.01,
        batch=256,
        more=20,
        pair=lambda: (logistic, AutoNormal(logistic)),
    ),
    "linear": lambda: Problem(
        title="linear regression, 500 rows, AutoMultivariateNormal of 50 latents",
        data=few_rows(),
        steps=500,
        lr=0.02,
        more=20,
        pair=lambda: (linear, AutoMultivariateNormal(linear, init_loc_fn=init_to_feasible)),
    ),
    "hmm": lambda: Problem(
        title=f"Gaussian HMM, {STATES} states, 200 x 50 steps, AutoNormal",
        data=sequences(),
        steps=50,
        lr=0.02,
        more=10,
        pair=lambda: hmm_pair(ForwardLoop),
        forms={"product": lambda: hmm_pair(ForwardProduct)},
        slow_forms={"parallel scan": lambda: hmm_pair(parallel_scan)},
    ),
}
