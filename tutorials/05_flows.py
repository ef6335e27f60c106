# %% [markdown]
# # Normalizing flows: from two moons to digits, alone and inside a VAE
#
# A normalizing flow is an invertible map, learned so that it carries data to a simple distribution.
# Its density is exact, it is sampled as easily as it is scored, and so it fits wherever a
# distribution is wanted: as a model of data, as the prior or the posterior of another model. About
# half a minute on a laptop.

# %%
import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pyro.distributions as dist
import torch
from sklearn.datasets import make_moons
from torch import nn

import probgen as pg
from probgen.nn import MLP, Standardize

parser = argparse.ArgumentParser()
parser.add_argument("--output", type=Path, default=Path("flows_output"))
OUTPUT = parser.parse_known_args()[0].output
OUTPUT.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)
quiet = {"progress": False, "verdict": False, "seed": 0}

# %% [markdown]
# ## Two moons
#
# `NSF` is a neural spline flow: every variable is bent by a spline whose shape depends on the
# variables before it. Splines act on [-5, 5], so that data should come standardized:
# `pg.Standardized.fitted` does that and counts the determinant, and scores stay densities of the
# data as they were.

# %%
moons = torch.tensor(make_moons(4000, noise=0.06, random_state=0)[0], dtype=torch.float32)
train = moons[:3000]
test = moons[3000:]
flow = pg.Standardized.fitted(pg.NSF(2, layers=3, hidden=(64, 64)), train)
mixture = pg.GaussianMixture(8, 2)
pg.em(mixture, train, seed=0)
history = pg.fit(
    flow, train, steps=500, batch_size=256, optimizer=pg.train.adam(5e-3), ema=0.98, **quiet
)
print(history)
for name, gen in {"mixture of 8 Gaussians": mixture, "spline flow": flow}.items():
    print(f"two moons, {name:24s} {pg.log_likelihood(gen, test)}")

# %% [markdown]
# Both numbers are exact, so that they may be compared (`>` would do it). What the map does can be
# looked at: the data after each layer, on their way to a normal distribution. Colors follow the
# points.

# %%
with torch.no_grad():
    stages = [flow.standardize(moons)]
    for layer in flow.family.layers:
        stages.append(layer()(stages[-1]))
angle = torch.atan2(stages[0][:, 1], stages[0][:, 0])
figure, axes = plt.subplots(1, 6, figsize=(17, 2.9), layout="constrained")
titles = ["data", "after one layer", "after two", "after three: normal"]
for panel, stage, title in zip(axes, stages, titles, strict=False):
    panel.scatter(*stage.T, c=angle, cmap="twilight", s=1.5, linewidths=0)
    panel.set(title=title, xlim=(-3.2, 3.2), ylim=(-3.2, 3.2))
bounds = ((-1.6, 2.6), (-1.1, 1.6))
pg.plot.density(flow, bounds=bounds, ax=axes[4]).set_title("learned")
pg.plot.samples(test, pg.sample(flow, 1000), axes=axes[5])[0].set_title("held out, drawn")
figure.savefig(OUTPUT / "flows.png", dpi=80)

# %% [markdown]
# ## Digits
#
# Pixels are integers, most of them 0 at the margin. Two wrappers make them easy for a flow:
# `Quantized` spreads every integer over its bin (the score is then an *unbiased* estimate of a
# probability), and a histogram per pixel makes the marginals normal, so that the flow has the
# dependence alone to learn. `MAF` is the simplest autoregressive flow, and fast.

# %%
digits = [rows.flatten(1) for rows in pg.datasets.load_digits()]
train, validation, test = digits
pixels = pg.Gaussianized.of(train, 0.0, 17.0, bins=17)
independent = pg.Quantized(pg.Transformed(pg.standard_normal(64), pixels))
flow = pg.Quantized(pg.Transformed(pg.MAF(64, layers=2, hidden=(256,), dropout=0.3), pixels))
selection = {"validation": validation, "validate_every": 100, "patience": 4}
history = pg.fit(
    flow,
    train,
    steps=800,
    batch_size=100,
    optimizer=pg.train.adam(2e-3),
    ema=0.99,
    **selection,
    **quiet,
)
flow.eval()
print(history)

# %% [markdown]
# ## A flow as the prior and as the posterior of a VAE
#
# A VAE takes any conditional distributions. Its posterior is asked for a draw and for the density
# of that draw, which is what an inverse autoregressive flow (`IAF`) gives in one pass. Its base
# here is the usual Gaussian of an encoder, and all that it adds is shape.


# %%
class FlowEncoder(pg.DistributionModule):
    """q(z | x): a Gaussian, reshaped by a flow that sees the same features."""

    def __init__(self, net: nn.Module, dims: int):
        super().__init__()
        self.net = net
        self.flow = pg.IAF(dims, layers=2, context=2 * dims, base=pg.heads.Gaussian(None))

    def forward(self, context=None):
        return self.flow(self.net(context))


def vae(flow_prior: bool, flow_posterior: bool, dims: int = 8) -> pg.VAE:
    net = nn.Sequential(Standardize(8.0, 8.0), MLP(64, [128], 2 * dims, dropout=0.2))
    decoder = pg.heads.DiscretizedLogisticMixture(
        MLP(dims, [128], 3 * 3 * 64, dropout=0.2), levels=17, components=3
    )
    prior = pg.MAF(dims, layers=3, hidden=(32, 32)) if flow_prior else pg.standard_normal(dims)
    return pg.VAE(
        prior, decoder, FlowEncoder(net, dims) if flow_posterior else pg.heads.Gaussian(net)
    )


def trained(gen: pg.VAE) -> pg.VAE:
    schedule = {"steps": 700, "batch_size": 100, "optimizer": pg.train.adam(3e-3), "ema": 0.99}
    pg.fit(
        gen, train, pg.ELBO(beta=pg.objectives.linear_warmup(200)), **schedule, **selection, **quiet
    )
    return gen.eval()


vaes = {
    "VAE": trained(vae(False, False)),
    "VAE, flow prior": trained(vae(True, False)),
    "VAE, flow prior and posterior": trained(vae(True, True)),
}

# %% [markdown]
# ## Scores and their kinds
#
# An exact score (the table of pixel counts) may be compared with estimates from below, and a flow
# or VAE above it is better for sure. Two estimates from below cannot be ranked by that argument:
# the difference might be in the estimates. More particles narrow it, and the bound (one particle)
# shows how much an estimate depends on them.

# %%
counts = torch.stack([(train == level).float().sum(0) for level in range(17)], -1) + 1
baseline = pg.log_likelihood(pg.Fixed(dist.Categorical, probs=counts), test)
print(f"{'pixel counts':32s} {baseline}")
print(f"{'histograms, as a flow':32s} {pg.log_likelihood(independent, test, particles=16)}")
models = {"autoregressive flow": flow, **vaes}
scores = {name: pg.log_likelihood(gen, test, particles=64) for name, gen in models.items()}
for name, score in scores.items():
    bound = pg.log_likelihood(models[name], test, particles=1)
    print(
        f"{name:32s} {score}   better than counting: {score > baseline}   one particle: "
        f"{bound.mean:.2f}"
    )
try:
    print(scores["autoregressive flow"] > scores["VAE"])
except TypeError as error:
    print("the flow against the VAE:", error)

best = vaes["VAE, flow prior and posterior"]
drawn = {
    "data": test[:48],
    "autoregressive flow": pg.sample(flow, 48),
    "VAE with flows": pg.sample(best, 48),
}
figure, axes = plt.subplots(1, 3, figsize=(14, 2.2), layout="constrained")
for panel, (name, rows) in zip(axes, drawn.items(), strict=True):
    pg.plot.images(rows, shape=(8, 8), columns=12, bounds=(0.0, 16.0), cmap="gray_r", ax=panel)
    panel.set_title(name)
figure.savefig(OUTPUT / "digits.png", dpi=80)
print(f"figures are in {OUTPUT.resolve()}")
