"""What the preparation of columns and contexts is worth to a flow, in held-out nats per row.

One masked autoregressive flow (affine, or ``--spline``) on three versions of the same rows: as they
are, standardized, and prepared by ``Preprocessed.fitted`` (a map, a scale and, on grids, uniform
noise for each column; contexts likewise). All scores are densities in the original units, on the
same held-out rows; columns that were recorded on a grid are scored with the same uniform noise on
each step for all three, the logarithm averaged, so that none gains by peaks on points.

    python benchmarks/preprocessing.py --data DIR    # DIR/wine_red.csv.gz; without: synthetic only

``contexts``: rows given contexts of scale 1e4, which "standardized" leaves as they are.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from common import command_line
from scipy import stats
from torch import Tensor

import probgen as pg
from probgen.core.columns import examine
from probgen.models.preprocessed import Preprocessed

Rows = tuple[Tensor, Tensor | None]
DRAWS = 16
SHARE = 0.8  # of the rows, for training


def copula(rows: int, seed: int, marginal: stats.rv_continuous) -> Tensor:
    """Three variables with a normal copula of correlation 0.7 and the same marginals."""
    numbers = np.random.default_rng(seed)
    normal = numbers.multivariate_normal(np.zeros(3), 0.3 * np.eye(3) + 0.7, size=rows)
    return torch.as_tensor(marginal.ppf(stats.norm.cdf(normal))).float()


def counts(rows: int, seed: int) -> Tensor:
    """Three counts with a rate in common."""
    numbers = np.random.default_rng(seed)
    rate = numbers.gamma(2.0, 3.0, size=(rows, 1))
    return torch.as_tensor(numbers.poisson(rate * np.array([0.5, 1.0, 2.0]))).float()


def given_contexts(rows: int, seed: int) -> Rows:
    """Two variables that depend on contexts with mean 5e4 and standard deviation 1e4."""
    numbers = torch.Generator().manual_seed(seed)
    own = torch.randn(rows, 2, generator=numbers)
    noise = torch.randn(rows, 2, generator=numbers)
    x = torch.stack([own[:, 0] * own[:, 1], (2 * own[:, 0]).sin()], 1) + 0.1 * noise
    return x, 5e4 + 1e4 * own


def data_sets(folder: Path | None, rows: int) -> Iterator[tuple[str, Rows]]:
    yield "beta(0.4, 0.3)", (copula(rows, 0, stats.beta(0.4, 0.3)).clamp(1e-6, 1 - 1e-6), None)
    yield "Student t, 2 df", (copula(rows, 1, stats.t(2)), None)
    yield "counts", (counts(rows, 2), None)
    yield "contexts", given_contexts(rows, 3)
    from sklearn.datasets import load_breast_cancer

    x = load_breast_cancer().data[:, :10]
    yield "breast cancer, means", (shuffled(torch.as_tensor(x).float()), None)
    if folder is not None:
        import pandas as pd

        table = pd.read_csv(folder / "wine_red.csv.gz").to_numpy()
        yield "red wine with quality", (shuffled(torch.as_tensor(table).float()), None)


def shuffled(x: Tensor) -> Tensor:
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]


def families(
    x: Tensor, context: Tensor | None, arguments: argparse.Namespace
) -> dict[str, torch.nn.Module]:
    """The same flow as it is, standardized, and prepared."""

    def flow() -> torch.nn.Module:
        torch.manual_seed(0)
        width = 0 if context is None else context.shape[1]
        kind = pg.NSF if arguments.spline else pg.MAF
        return kind(x.shape[1], layers=arguments.layers, hidden=(64, 64), context=width)

    return {
        "as it is": flow(),
        "standardized": pg.Standardized(flow(), x.mean(0), x.std(0)),
        "prepared": Preprocessed.fitted(flow(), x, context),
    }


@torch.no_grad()
def held_out(gen: torch.nn.Module, x: Tensor, context: Tensor | None, grid: Tensor) -> Tensor:
    """Log-densities of noisy rows, averaged over the noise.

    A prepared flow adds the same noise itself.
    """
    torch.manual_seed(1)
    prepared = isinstance(gen, Preprocessed)
    steps = torch.zeros_like(grid) if prepared else grid
    scores = [gen(context).log_prob(x + steps * torch.rand(x.shape)) for _ in range(DRAWS)]
    return torch.stack(scores).mean(0)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="compile steps: repaid by many")
    parser.add_argument("--spline", action="store_true")
    parser.add_argument("--only", default="", help="part of a name")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{'data':24}{'flow':16}{'held-out nats per row':>26}   ok  seconds  verdict")
    for name, (x, context) in data_sets(arguments.data, arguments.rows):
        if arguments.only in name:
            compare(name, x, context, arguments)


def compare(name: str, x: Tensor, context: Tensor | None, arguments: argparse.Namespace) -> None:
    cut = int(SHARE * len(x))
    grid = torch.tensor([examine(column).resolution for column in x.T])
    given = (None, None) if context is None else (context[:cut], context[cut:])
    for words, gen in families(x[:cut], given[0], arguments).items():
        began = time.perf_counter()
        data = x[:cut] if context is None else (x[:cut], given[0])
        options = {"steps": arguments.steps, "batch_size": 256, "clip": 10.0, "seed": 0}
        options["compile"] = arguments.compile
        try:
            history = pg.fit(gen, data, optimizer=pg.train.adam(2e-3), progress=False, **options)
            verdict = history.verdict.ok
            worst = str(history.verdict).splitlines()[0]
        except FloatingPointError as error:
            verdict = False
            worst = str(error).splitlines()[0]
        seconds = time.perf_counter() - began
        score = held_out(gen.eval(), x[cut:], given[1], grid)
        mean = score.mean().item()
        stderr = score.std().item() / len(score) ** 0.5
        shown = f"{mean:.2f} ± {stderr:.2f}"
        print(
            f"{name:24}{words:16}{shown:>26}  {verdict!s:5}{seconds:7.0f}  {worst[:80]}", flush=True
        )


if __name__ == "__main__":
    main()
