"""EM of a Gaussian mixture beside scikit-learn and pomegranate.

Time, memory, and the log-likelihood reached.

Every peer starts from the same weights, means and covariances and takes the same number of steps on
the same rows, turn by turn; tables give medians, ratios to scikit-learn, and the mean
log-likelihood of the final parameters computed by one function in float64. Peak memory (Linux) is
that of a process of its own, less what it held before the fit. With one thread (OMP_NUM_THREADS=1)
seconds are those of the processor, which neighbors disturb least, with more those on the wall.

Log densities of held-out rows are scored by ``log_likelihood``, with all its checks, beside one
E-step of the same rows and scikit-learn's ``score_samples``, turn by turn; seconds of the
processor, and the largest error in nats beside torch's own distributions in float64.

    python benchmarks/em_mixture.py                   # 200,000 rows of 16 variables, 20 components
    python benchmarks/em_mixture.py --data DIR        # also 16 principal components of DIR/mnist.npz
    python benchmarks/em_mixture.py --only optimum    # all forms of covariance; the digits, too
    python benchmarks/em_mixture.py --only score --rows 1000000

Peers that are not installed (pip install pomegranate) are left out.

On one core that others use too (OMP_NUM_THREADS=1), float32 / float64: EM 15.4 / 12.5 times as fast
as scikit-learn (--only speed --repeats 3); log densities of 1,000,000 rows, checks included, in 1.02
/ 1.02 of an E-step, 13.6 / 10.8 times as fast as scikit-learn, with errors of 9e-5 / 2e-13 nats.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from common import in_turns

import probgen as pg

FORMS = {
    "full": pg.distributions.Full,
    "tied": pg.distributions.Tied,
    "diag": pg.distributions.Diagonal,
    "spherical": pg.distributions.Spherical,
}


class Mixture(NamedTuple):
    """Parameters, in float64: ``(K,)``, ``(K, D)``, ``(K, D, D)``."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray


def synthetic(rows: int, dims: int, components: int) -> np.ndarray:
    """Overlapping clusters with full covariances."""
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(components, dims, 2 * dims)) / (2 * dims) ** 0.5
    factors = np.linalg.cholesky(roots @ roots.transpose(0, 2, 1))
    labels = rng.integers(components, size=rows)
    noise = rng.normal(size=(rows, dims))
    x = 2 * rng.normal(size=(components, dims))[labels]
    for k in range(components):
        x[labels == k] += noise[labels == k] @ factors[k].T
    return x


def mnist(folder: Path, rows: int, dims: int) -> np.ndarray:
    """Principal components of the training images, each with variance 1."""
    images = np.load(folder / "mnist.npz")["train_images"][:rows].reshape(-1, 784) / 255
    images = images - images.mean(0)
    values, vectors = np.linalg.eigh(images.T @ images / len(images))
    return images @ vectors[:, -dims:] / values[-dims:] ** 0.5


def start(x: np.ndarray, components: int, form: str = "full", extra: float = 0.0) -> Mixture:
    """Rows as means, the covariance of all rows in the form asked for."""
    dims = x.shape[1]
    covariance = np.cov(x.T) + extra * np.eye(dims)
    if form == "diag":
        covariance = np.diag(np.diag(covariance))
    if form == "spherical":
        covariance = np.eye(dims) * np.trace(covariance) / dims
    means = x[np.random.default_rng(1).choice(len(x), components, replace=False)]
    return Mixture(np.full(components, 1 / components), means, np.stack([covariance] * components))


def probgen(
    x: np.ndarray, begin: Mixture, steps: int, form: str = "full", extra: float = 0.0
) -> Callable[[], Mixture]:
    rows = torch.as_tensor(x)
    gen = pg.GaussianMixture(*begin.means.shape, FORMS[form], regularization=extra).to(rows.dtype)
    gen.assign(*(torch.as_tensor(part) for part in begin))

    def fit() -> Mixture:
        pg.em(gen, rows, max_iter=steps, tol=0.0, n_init=0)
        return Mixture(
            *(part.double().numpy() for part in (gen.weights, gen.means, gen.covariances))
        )

    return fit


def scikit_learn(
    x: np.ndarray, begin: Mixture, steps: int, form: str = "full", extra: float = 0.0
) -> Callable:
    from sklearn.mixture import GaussianMixture

    precisions = np.linalg.inv(begin.covariances)
    shapes = {
        "full": lambda p: p,
        "tied": lambda p: p[0],
        "diag": lambda p: np.diagonal(p, axis1=1, axis2=2),
    }
    precisions = (shapes | {"spherical": lambda p: p[:, 0, 0]})[form](precisions)
    given = dict(
        zip(
            ("weights_init", "means_init", "precisions_init"), (*begin[:2], precisions), strict=True
        )
    )
    given = {name: value.astype(x.dtype) for name, value in given.items()}
    model = GaussianMixture(
        len(begin.weights),
        covariance_type=form,
        max_iter=steps,
        tol=0.0,
        reg_covar=extra,
        init_params="random",
        **given,
    )

    def fit() -> Mixture:
        model.fit(x)
        found = model.covariances_
        eye = np.eye(x.shape[1])
        shapes = {"full": lambda: found, "tied": lambda: np.stack([found] * len(begin.weights))}
        shapes |= {
            "diag": lambda: found[:, None] * eye,
            "spherical": lambda: found[:, None, None] * eye,
        }
        return Mixture(
            *(part.astype(float) for part in (model.weights_, model.means_, shapes[form]()))
        )

    return fit


def pomegranate(x: np.ndarray, begin: Mixture, steps: int) -> Callable[[], Mixture]:
    from pomegranate.distributions import Normal
    from pomegranate.gmm import GeneralMixtureModel

    rows = torch.as_tensor(x)
    weights, means, covariances = (
        torch.tensor(part).to(rows.dtype) for part in begin
    )  # copies: changed in place
    parts = [Normal(mean, covariance) for mean, covariance in zip(means, covariances, strict=True)]
    model = GeneralMixtureModel(parts, priors=weights, max_iter=steps, tol=-np.inf)

    def fit() -> Mixture:
        model.fit(rows)
        means, covariances = (
            torch.stack([getattr(d, name) for d in parts]) for name in ("means", "covs")
        )
        return Mixture(
            *(part.detach().double().numpy() for part in (model.priors, means, covariances))
        )

    return fit


PEERS = {"probgen": probgen, "scikit-learn": scikit_learn, "pomegranate": pomegranate}


def mean_log_likelihood(mixture: Mixture, x: np.ndarray) -> float:
    """By torch's own distributions, in float64."""
    return log_densities(mixture, x).mean().item()


def log_densities(mixture: Mixture, x: np.ndarray) -> torch.Tensor:
    """Of every row, by torch's own distributions, in float64."""
    weights, means, covariances = (torch.as_tensor(part) for part in mixture)
    parts = torch.distributions.MultivariateNormal(means, covariances, validate_args=False)
    distribution = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(weights), parts, validate_args=False
    )
    blocks = torch.as_tensor(x, dtype=torch.float64).split(4096)
    return torch.cat([distribution.log_prob(rows) for rows in blocks])


def extra_memory(argv: list[str], peer: str, data: str, dtype: str) -> float:
    """Peak memory of a fit, less the memory before it, in MB; in a process of its own."""
    command = [sys.executable, __file__, *argv, "--alone", peer, data, dtype]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(run.stdout.splitlines()[-1])


def alone(x: np.ndarray, peer: str, arguments: argparse.Namespace) -> None:
    """Fits once more in this process, where the kernel's record of the peak is started anew."""
    PEERS[peer](x[:1000], start(x, arguments.components), 1)()  # what the library itself loads
    fit = PEERS[peer](x, start(x, arguments.components), 2)
    if not Path("/proc/self/clear_refs").exists():
        return print("nan")
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    fit()
    return print(resident("VmHWM") - before)


def resident(field: str) -> float:
    """Memory of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def speed(data: dict[str, np.ndarray], arguments: argparse.Namespace, argv: list[str]) -> None:
    """Interleaved fits of all peers, in both precisions."""
    peers = [name for name in PEERS if name != "pomegranate" or find_spec("pomegranate")]
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for title, rows in data.items():
        for dtype in ("float32", "float64"):
            torch.set_default_dtype(getattr(torch, dtype))
            x = rows.astype(dtype)
            times = {name: [] for name in peers}
            found = {}
            for turn in range(arguments.repeats + 1):
                for name in peers:
                    steps = arguments.steps if turn else 2  # the first turn warms up
                    fit = PEERS[name](x, start(rows, arguments.components), steps)
                    began = clock()
                    found[name] = fit()
                    times[name] += [clock() - began] * bool(turn)
            torch.set_default_dtype(torch.float32)
            reached = {name: mean_log_likelihood(mixture, rows) for name, mixture in found.items()}
            memory = {name: extra_memory(argv, name, title, dtype) for name in peers}
            print(
                f"\n{title}, {dtype}: {len(x):,} x {x.shape[1]}, {arguments.components} full "
                "components"
            )
            report(times, reached, memory)


def score(data: dict[str, np.ndarray], arguments: argparse.Namespace) -> None:
    """Log-likelihoods of all rows beside an E-step and scikit-learn's, in both precisions."""
    for title, rows in data.items():
        begin = start(rows, arguments.components)
        mixture = scikit_learn(rows[:20_000], begin, 5)()
        for dtype in ("float32", "float64"):
            x = rows.astype(dtype)
            contestants = scorers(torch.as_tensor(x), mixture)
            values = contestants["probgen"]().value
            found = in_turns(contestants, arguments.repeats)
            medians = {name: statistics.median(times) for name, times in found.items()}
            error = (values[:20_000].double() - log_densities(mixture, rows[:20_000])).abs().max()
            figures = "   ".join(f"{name} {value:.3f} s" for name, value in medians.items())
            step, peer = (medians[name] / medians["probgen"] for name in ("E-step", "scikit-learn"))
            print(f"\n{title}, {dtype}, log densities of {len(x):,} rows: {figures}")
            print(f"{1 / step:.2f} E-steps, {peer:.1f} times scikit-learn, error {error:.1e} nats")


def scorers(x: torch.Tensor, mixture: Mixture) -> dict[str, Callable]:
    """Functions of nothing that score all rows under one mixture, or take an E-step of it."""
    from sklearn.mixture import GaussianMixture

    gen = pg.GaussianMixture(*mixture.means.shape).to(x.dtype)
    gen.assign(*(torch.as_tensor(part) for part in mixture))
    peer = GaussianMixture(len(mixture.weights))
    peer.weights_, peer.means_, peer.covariances_ = (
        part.astype(x.numpy().dtype) for part in mixture
    )
    roots = np.linalg.cholesky(np.linalg.inv(mixture.covariances))
    peer.precisions_cholesky_ = roots.astype(x.numpy().dtype)
    return {
        "probgen": lambda: pg.log_likelihood(gen, x),
        "E-step": lambda: gen.expect(x),
        "scikit-learn": lambda: peer.score_samples(x.numpy()),
    }


def report(
    times: dict[str, list[float]], reached: dict[str, float], memory: dict[str, float]
) -> None:
    """One line per peer."""
    print(
        f"{'':14s}{'median s':>10s}{'range':>14s}{'speed-up':>10s}{'log-likelihood':>17s}{'peak MB':>9s}"
    )
    for name, values in times.items():
        span = f"{min(values):.2f}-{max(values):.2f}"
        ratio = statistics.median(b / v for v, b in zip(values, times["scikit-learn"], strict=True))
        line = f"{name:14s}{statistics.median(values):10.3f}{span:>14s}{ratio:9.1f}x"
        print(f"{line}{reached[name]:17.6f}{memory[name]:9.0f}")


def optimum(data: dict[str, np.ndarray], arguments: argparse.Namespace) -> None:
    """The same steps from the same start.

    log-likelihoods must agree, whatever the form of the covariances.
    """
    from sklearn.datasets import load_digits

    cases = {title: (x, 0.0, arguments.components) for title, x in data.items()}
    cases["digits"] = (load_digits().data, 1e-1, 10)
    print(
        f"\n{'after 30 steps':26s}{'scikit-learn':>14s}{'float64':>14s}{'less':>10s}{'float32':>14s}{'less':>10s}"
    )
    for title, (x, extra, components) in cases.items():
        for form in FORMS:
            begin = start(x, components, form, extra)
            truth = mean_log_likelihood(scikit_learn(x, begin, 30, form, extra)(), x)
            line = f"{title + ', ' + form:26s}{truth:14.6f}"
            for dtype in ("float64", "float32"):
                value = mean_log_likelihood(probgen(x.astype(dtype), begin, 30, form, extra)(), x)
                line += f"{value:14.6f}{value - truth:10.1e}"
            print(line)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a folder with mnist.npz")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dims", type=int, default=16)
    parser.add_argument("--components", type=int, default=20)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=("speed", "score", "optimum"))
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    warnings.filterwarnings("ignore")
    sources = {
        "synthetic": partial(synthetic, arguments.rows, arguments.dims, arguments.components)
    }
    if arguments.data:
        sources["MNIST"] = partial(mnist, arguments.data, arguments.rows, arguments.dims)
    if arguments.alone:
        peer, title, dtype = arguments.alone
        torch.set_default_dtype(getattr(torch, dtype))
        return alone(sources[title]().astype(dtype), peer, arguments)
    data = {title: source() for title, source in sources.items()}
    print(f"{torch.get_num_threads()} threads, load average {os.getloadavg()[0]:.1f}")
    parts = {
        "speed": lambda: speed(data, arguments, argv),
        "score": lambda: score(data, arguments),
        "optimum": lambda: optimum(data, arguments),
    }
    for name, part in parts.items():
        if arguments.only in (None, name):
            part()


if __name__ == "__main__":
    main(sys.argv[1:])
