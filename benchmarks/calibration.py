"""Simulation-based calibration of NUTS at length.

Ranks of true values among posterior draws must be uniform.

Two models: effects of schools around a common mean (eight schools with a proper prior on their
spread), and logistic regression of 100 rows with an intercept for each of five groups. For each
site the table gives the p-value of the chi-square test and the share of ranks in each quarter (an
excess at both ends: posteriors too narrow; in the middle: too wide). 1,000 data sets take a few
minutes.

    python benchmarks/calibration.py
    python benchmarks/calibration.py --sims 200 --only schools
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from common import command_line

from probgen.diagnostics.calibration import Calibration, simulation_based_calibration
from probgen.infer.nuts_nutpie import Nutpie

ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools(errors: torch.Tensor, y: torch.Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(5.0))
    with pyro.plate("data", len(y)):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * effect, errors), obs=y)


def logistic(x: torch.Tensor, group: torch.Tensor, y: torch.Tensor) -> None:
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    with pyro.plate("groups", 5):
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ slope + (spread * offset)[group]), obs=y)


def rows() -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(0)
    return torch.randn(100, 3, generator=random), torch.arange(100) % 5, torch.zeros(100)


MODELS: dict[str, tuple[Callable[..., None], tuple[torch.Tensor, ...]]] = {
    "schools": (schools, (ERRORS, torch.zeros(8))),
    "logistic": (logistic, rows()),
}


def report(name: str, found: Calibration, seconds: float) -> None:
    sims = len(next(iter(found.ranks.values())))
    print(f"\n{name}: {sims} data sets in {seconds:.0f} s; all together p = {found.p_value:.3f}")
    for site, ranks in found.ranks.items():
        entries = zip(ranks.reshape(sims, -1).T, found.p_values[site].reshape(-1), strict=True)
        for entry, (column, p) in enumerate(entries):
            quarters = torch.bincount(4 * column // (found.draws + 1), minlength=4) / sims
            shares = " ".join(f"{100 * share:5.1f}" for share in quarters.tolist())
            print(f"  {site + f'[{entry}]':12s} p = {p:.3f}   quarters of the ranks, %: {shares}")


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--sims", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=63)
    parser.add_argument("--thin", type=int, default=8)
    parser.add_argument("--tune", type=int, default=400)
    parser.add_argument("--only", choices=MODELS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in [options.only] if options.only else MODELS:
        model, data = MODELS[name]
        sizes = {
            "sims": options.sims,
            "draws": options.draws,
            "thin": options.thin,
            "tune": options.tune,
        }
        start = time.perf_counter()
        found = simulation_based_calibration(
            model, *data, **sizes, target_accept=0.9, dtype=torch.float64, sampler=Nutpie(), seed=0
        )
        report(name, found, time.perf_counter() - start)


if __name__ == "__main__":
    main()
