"""Flows of integers on scikit-learn's digits.

Glow with uniform and with learned noise, integer discrete flow.

Rows in the order of the file: 1,000 to train, 350 to choose by, 447 to report. Scores are negative
log-likelihoods of the 17 levels of 64 pixels, nats per image. Those of Glow are unbiased estimates
of masses, printed for 1 particle (in the mean a lower bound) and for many; those of the integer
flow are exact. The published ones are those of teaching notebooks on the same split.

    OMP_NUM_THREADS=1 python benchmarks/digits_glow.py
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from common import adamw, command_line, cosine, ranking
from torch import nn

import probgen as pg
from probgen.datasets import Splits, load_digits
from probgen.distributions.flows.marginal_transform import Gaussianized
from probgen.models.glow import Glow
from probgen.models.integer_flow import IntegerFlow
from probgen.models.quantized import BinNoise, Quantized
from probgen.models.transformed import Transformed
from probgen.nn import Standardize
from probgen.nn.invertible import CouplingNet

LEVELS = 17
SHAPE = (1, 8, 8)
PUBLISHED = {
    "per-pixel count table": 106.5,
    "mixture of categorical products": 99.9,
    "neural spline flow, dequantized, particles: 1": 95.6,
    "neural spline flow, dequantized, particles: 64": 92.1,
    "VAE, 500 importance samples": 93.4,
    "autoregressive convolutions (exact)": 86.6,
}


def glow(rows: Splits, layers: int, options: argparse.Namespace) -> Transformed:
    """Glow of pixels whose marginals have been made normal by histograms.

    It has the dependence alone to learn.
    """
    noisy = rows.train + torch.rand_like(rows.train)
    histogram = Gaussianized.of(noisy, 0.0, LEVELS, bins=LEVELS)
    network = partial(CouplingNet, hidden=options.hidden, dropout=options.dropout)
    flow = Glow(SHAPE, scales=2, flow_steps=layers, network=network)
    flow.initialize(histogram()(noisy))
    return Transformed(flow, histogram)


def uniform(rows: Splits, layers: int, options: argparse.Namespace) -> Quantized:
    return Quantized(glow(rows, layers, options))


def learned(rows: Splits, layers: int, options: argparse.Namespace) -> Quantized:
    noise = nn.Sequential(
        Standardize(8.0, 8.0), CouplingNet(SHAPE, 2, options.hidden)
    )  # starts at uniform noise
    return Quantized(glow(rows, layers, options), BinNoise(noise, event_ndim=3, context_ndim=3))


def integers(rows: Splits, layers: int, options: argparse.Namespace) -> IntegerFlow:
    network = partial(CouplingNet, hidden=options.hidden, dropout=options.dropout)
    flow = IntegerFlow(SHAPE, levels=LEVELS, scales=2, flow_steps=layers, network=network)
    flow.initialize(rows.train)
    return flow


class Setup(NamedTuple):
    """How a model is made, its steps per scale and its learning rate.

    Chosen from about ten runs by validation rows.
    """

    make: Callable[[Splits, int, argparse.Namespace], nn.Module]
    layers: int
    rate: float


MODELS = {
    "Glow, uniform noise": Setup(uniform, 4, 5e-3),
    "Glow, learned noise": Setup(learned, 4, 5e-3),
    "integer discrete flow": Setup(integers, 2, 1e-2),
}


def train(gen: nn.Module, rows: Splits, rate: float, options: argparse.Namespace) -> pg.History:
    """Averaged weights that do best on the validation rows are kept."""

    schedule = {
        "steps": options.steps,
        "batch_size": 100,
        "optimizer": adamw(rate, weight_decay=options.decay, betas=(0.9, 0.99)),
        "scheduler": cosine(options.steps),
        "clip": 50.0,
    }
    selection = {"ema": 0.99, "validation": rows.validation, "validate_every": 50, "patience": 8}
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", pg.FitWarning
        )  # stopped by the validation rows, not by convergence
        return pg.fit(
            gen, rows.train, **schedule, **selection, seed=options.seed, compile=options.compile
        )


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--only", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--decay", type=float, default=1e-2)
    parser.add_argument("--particles", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    rows = load_digits()
    ours = {}
    for name in options.only:
        torch.manual_seed(options.seed)
        setup = MODELS[name]
        gen = setup.make(rows, setup.layers, options)
        started = time.perf_counter()
        history = train(gen, rows, setup.rate, options)
        print(
            f"{name}: {history.stopped}, {time.perf_counter() - started:.0f} s, {history.verdict}",
            flush=True,
        )
        for part, particles in (
            ("train", 1),
            ("validation", 1),
            ("test", 1),
            ("test", options.particles),
        ):
            score = pg.log_likelihood(gen, getattr(rows, part), particles=particles)
            print(f"    {part:10s} {score}", flush=True)
            if part == "test":
                kind = "exact" if score.kind == "exact" else f"particles: {score.particles}"
                ours[f"this {name}, {kind}"] = -score.mean
    ranking("test rows, ", PUBLISHED, ours)


if __name__ == "__main__":
    main()
