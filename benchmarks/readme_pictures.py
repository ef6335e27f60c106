"""Makes the pictures that the README begins with.

``python benchmarks/readme_pictures.py --data DIR``, DIR with ``mnist.npz``, writes into ``docs``:
ways between digits of 28 x 28 pixels, the columns of a table beside those of its synthetic rows, a
forecast, and the posterior of a program. ``--only table`` makes one of them. A few minutes on one
core, nearly all of them for the digits.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoMultivariateNormal
from sklearn.datasets import load_diabetes

import probgen as pg

PAIRS = ((2, 3, 5, 7, 9), (0, 8, 6, 1, 4))  # digits to go from and to
DOCS = Path(__file__).parents[1] / "docs"
# Box, Jenkins (1976), Time series analysis, series G: thousands of airline passengers a month
PASSENGERS = """
112 118 132 129 121 135 148 148 136 119 104 118 115 126 141 135 125 149 170 170 158 133 114 140
145 150 178 163 172 178 199 199 184 162 146 166 171 180 193 181 183 218 230 242 209 191 172 194
196 196 236 235 229 243 264 272 237 211 180 201 204 188 235 227 234 264 302 293 259 229 203 229
242 233 267 269 270 315 364 347 312 274 237 278 284 277 317 313 318 374 413 405 355 306 271 306
315 301 356 348 355 422 465 467 404 347 305 336 340 318 362 348 363 435 491 505 404 359 310 337
360 342 406 396 420 472 548 559 463 407 362 405 417 391 419 461 472 535 622 606 508 461 390 432
"""


def save(figure, name, dpi=100):
    """Writes a picture with 64 colors, which is a third of the bytes."""
    from PIL import Image

    path = DOCS / name
    figure.savefig(path, dpi=dpi)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} KB")


def digits(data, steps=2500):
    """Ways from one held-out digit to another, by the codes of a VAE."""
    found = np.load(data / "mnist.npz")
    train, test = (
        torch.tensor(found[f"{part}_images"]).flatten(1).gt(127).float()
        for part in ("train", "test")
    )
    vae = pg.VAE(
        pg.standard_normal(32),
        pg.heads.Bernoulli(pg.nn.MLP(32, [500], 784)),
        pg.heads.Gaussian(pg.nn.MLP(784, [500], 2 * 32)),
    )
    history = pg.fit(
        vae,
        train,
        steps=steps,
        batch_size=200,
        optimizer=pg.train.adam(2e-3),
        ema=0.995,
        compile=False,
        verdict=False,
        seed=0,
        progress=60,
    )
    print(history, pg.log_likelihood(vae, test[:500], particles=16), sep="\n")
    labels = torch.tensor(found["test_labels"])
    ones, others = ([int((labels == digit).nonzero()[3]) for digit in side] for side in PAIRS)
    look = {"shape": (28, 28), "columns": 12, "cmap": "gray_r"}
    ax = pg.plot.interpolation(vae, test[ones], test[others], **look)
    middles = np.arange(len(ones)) * 30 + 13.5
    ax.set_yticks(middles, [f"{one} to {other}" for one, other in zip(*PAIRS, strict=True)])
    ax.figure.set_size_inches(9.0, 3.9)
    save(ax.figure, "readme_digits.png")


def table(data=None):
    """Columns of a table, real and synthetic."""
    frame = pg.datasets.load_penguins()
    schema = pg.Table.read(frame)
    gen = pg.Tabular(schema, pg.AutoregressiveTable(schema.heads(), hidden=[64]))
    options = {"optimizer": pg.train.adam(0.01), "compile": False, "verdict": False, "seed": 0}
    pg.fit(gen, frame, steps=600, batch_size=100, **options)
    synthetic = gen.sample(2000, seed=0)
    shown = ["species", "bill_length_mm", "flipper_length_mm", "body_mass_g"]
    axes = pg.plot.columns(frame[shown], synthetic[shown], bins=20)
    axes[0].figure.set_size_inches(10.0, 2.7)
    save(axes[0].figure, "readme_table.png")


def bend(weights, x):
    """A parabola for each draw of its weights."""
    return weights[..., 0, None] + weights[..., 1, None] * x + weights[..., 2, None] * x**2


def regression(x, y=None):
    """Disease progression given the body mass index: a program of one's own."""
    weights = pyro.sample("weights", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(bend(weights, x), noise), obs=y)


def posterior(data=None):
    """What a program of one's own has learned: its curve, and what new patients may have."""
    patients = load_diabetes(scaled=False)
    index = torch.tensor(patients.data[:, 2], dtype=torch.float32)
    x, y = (index - 26) / 5, torch.tensor(patients.target, dtype=torch.float32) / 100
    program = pg.Program(regression, AutoMultivariateNormal(regression, init_scale=0.05))
    options = {"optimizer": pg.train.adam(0.03), "compile": False, "verdict": False, "seed": 0}
    pg.fit(program, (x, y), steps=400, **options)
    drawn = pg.posterior(program, x, y, draws=1000, seed=0)
    weights, noise = drawn["weights"].reshape(1000, 3), drawn["noise"].reshape(1000, 1)
    at = torch.linspace(-1.6, 3.2, 60)
    lines = bend(weights, at)
    figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.2), sharey=True, layout="constrained")
    for ax, draws, title in (
        (axes[0], lines, "the curve"),
        (axes[1], lines + noise * torch.randn_like(lines), "new patients"),
    ):
        pg.plot.curves(26 + 5 * at, draws, x=index, y=y, levels=(0.5, 0.95), ax=ax)
        ax.set(xlabel="body mass index", ylabel="", title=title)
    axes[0].set_ylabel("disease progression / 100")
    save(figure, "readme_posterior.png")


def structural(length):
    """Level, slope and eleven seasonal states; the deviations of their noise are learned."""
    gen = pg.LinearGaussianStateSpace(states=13, dims=1, length=length)
    move = torch.zeros(13, 13)
    move[0, 0] = move[0, 1] = move[1, 1] = 1.0
    move[2, 2:] = -1.0
    move[range(3, 13), range(2, 12)] = 1.0
    deviations = torch.tensor([0.03, 0.001, 0.01, *[1e-4] * 10])
    with torch.no_grad():
        gen.transition.copy_(move)
        gen.emission.zero_()[0, [0, 2]] = 1.0
        gen.transition_cov.log_scale.copy_(deviations.log())
        gen.initial_cov.log_scale.fill_(-1.0)
        gen.emission_cov.log_scale.fill_(-4.0)
    for part in (gen.transition, gen.emission, gen.transition_cov.lower, gen.initial_cov.lower):
        part.requires_grad_(False)
    return gen


def forecast(data=None):
    """Two years of airline passengers, ahead of what was seen."""
    counts = torch.tensor([float(count) for count in PASSENGERS.split()])
    seen = counts[:-24].log()[None, :, None]
    center = seen.mean()
    gen = structural(seen.shape[1])
    options = {"optimizer": pg.train.adam(0.05), "compile": False, "verdict": False, "seed": 0}
    print(pg.fit(gen, seen - center, steps=60, **options))
    with torch.no_grad():
        ahead = gen().forecast(seen - center, length=24).sample((4000,))[:, 0, :, 0]
    draws = (ahead + center).exp()
    low, high = draws.quantile(torch.tensor([0.05, 0.95]), 0)
    inside = ((counts[-24:] > low) & (counts[-24:] < high)).double().mean()
    print(f"months inside of 90 %: {inside:.0%}")
    months = 1949 + torch.arange(len(counts)) / 12
    ax = pg.plot.forecast(draws, counts, start=len(counts) - 24, time=months)
    ax.set(xlabel="year", ylabel="thousands of passengers a month", xlim=(1953, 1961))
    ax.figure.set_size_inches(8.0, 3.2)
    save(ax.figure, "readme_forecast.png")


PICTURES = {"table": table, "forecast": forecast, "posterior": posterior, "digits": digits}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="a folder with mnist.npz")
    parser.add_argument("--only", choices=PICTURES)
    arguments = parser.parse_args()
    plt.switch_backend("Agg")
    for name, make in PICTURES.items():
        if arguments.only in (None, name):
            torch.manual_seed(0)
            make(arguments.data)
