# %% [markdown]
# # Quickstart: a table in five lines, then handwritten digits
#
# A data frame is modeled, drawn from and completed. Then, step by step: we fit four generative models
# to the 8 x 8 digits that come with scikit-learn, look at what they learned with ArviZ, draw new
# digits, score all of them on held-out images in one honest table, and fill in missing pixels. It
# takes about a minute on a laptop.

# %%
import argparse
from pathlib import Path

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pyro.distributions as dist
import torch
from sklearn.datasets import load_digits
from sklearn.manifold import TSNE

import probgen as pg

parser = argparse.ArgumentParser()
parser.add_argument("--output", type=Path, default=Path("quickstart_output"))
OUTPUT = parser.parse_known_args()[0].output
OUTPUT.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## A table in five lines
#
# Any data frame will do, `pandas.read_csv(path)`: numbers, labels, counts, dates, missing cells.
# Families compete on rows that were held out; the winner draws frames and fills in what is missing.
# The tutorial on tables goes on from here.

# %%
penguins = pg.datasets.load_penguins()
found = pg.search(penguins, budget="5 s", progress=False)
print(found)
print(found.model.sample(5, seed=0).to_string())
print(pg.impute(found.model, penguins, seed=0).frame().head().to_string())

# %% [markdown]
# ## Digits
#
# What `search` did for the table we now do by hand.

# %%
torch.manual_seed(0)
digits = load_digits()
pixels = torch.tensor(digits.data, dtype=torch.float32)
labels = torch.tensor(digits.target)
train = pixels[:1000]
validation = pixels[1000:1350]
test = pixels[1350:]
print(
    f"{len(train)} images of {train.shape[1]} pixels with values 0, 1, ..., 16; {len(test)} held "
    "out"
)
look = {"shape": (8, 8), "bounds": (0.0, 16.0), "cmap": "gray_r"}  # of pictures

# %% [markdown]
# ## A mixture of Gaussians, by EM and by SVI
#
# A model is a module, and `gen()` is its distribution: `gen().sample()`, `gen().log_prob(x)`. A
# mixture has an exact density, so that both routes climb the same likelihood. Pixels are integers:
# `Quantized` gives each integer the probability of its bin, so that the scores of continuous and
# discrete models can be compared.

# %%
spread = train + torch.rand_like(train)  # uniform dequantization, which EM needs to do by hand
by_em = pg.GaussianMixture(20, 64, pg.distributions.Diagonal)
result = pg.em(by_em, spread, n_init=2, seed=0)
print(f"EM: {result.n_iter} steps, mean log-density {result.log_likelihood[-1]:.2f} nats")

by_svi = pg.GaussianMixture(20, 64, pg.distributions.Diagonal)
by_svi.initialize(spread, torch.Generator().manual_seed(0))
history = pg.fit(
    pg.Quantized(by_svi), train, steps=600, optimizer=pg.train.adam(0.03), ema=0.98, seed=0
)
print(f"SVI: {history}")
ax = pg.plot.images(by_em.canonical().means, columns=10, **look)
ax.set_title("means of the components, the heaviest first")
ax.figure.savefig(OUTPUT / "mixture_means.png", dpi=150)

# %% [markdown]
# ## A Bayesian mixture, inspected with ArviZ
#
# The same kind of mixture with priors on weights, means and scales. The guide is a distribution
# over all of them; the component of each image is summed out exactly. The verdict of a fit is loud
# where the guide should not be trusted: here 1,290 parameters are approximated as independent, and
# k-hat says that this is not the exact posterior. (`pg.mcmc` gives exact answers where that
# matters.)

# %%
bayesian = pg.BayesianGaussianMixture(
    components=10,
    dims=64,
    means=pg.Fixed(dist.Normal, loc=torch.full((64,), 8.0), scale=8.0),
    scales=pg.Fixed(dist.LogNormal, loc=torch.ones(64), scale=0.7),
)
bayesian.initialize(spread)
history = pg.fit(
    bayesian,
    spread,
    steps=600,
    batch_size=250,
    optimizer=pg.train.adam(0.02),
    ema=0.98,
    seed=0,
    verdict=False,
)
print(history, f"k-hat {pg.khat(bayesian, spread, particles=100):.1f}")

inference = pg.to_arviz(
    bayesian,
    spread[:200],
    draws=300,
    coords={"cluster": np.arange(10), "pixel": [f"{i // 8},{i % 8}" for i in range(64)]},
    dims={"weights": ["cluster"], "means": ["cluster", "pixel"], "scales": ["cluster", "pixel"]},
    groups=("posterior", "prior", "log_likelihood", "observed_data"),
)
inference.to_netcdf(str(OUTPUT / "bayesian_mixture.nc"))
print(az.summary(inference, var_names=["weights"], kind="stats").round(3).to_string())

weights = {"var_names": ["weights"]}
az.plot_forest(inference, **weights, combined=True)
plt.savefig(OUTPUT / "weights_forest.png", dpi=120, bbox_inches="tight")
az.plot_trace(inference, **weights)
plt.savefig(OUTPUT / "weights_trace.png", dpi=120, bbox_inches="tight")
az.plot_pair(inference, **weights, coords={"cluster": [0, 1, 2]})
plt.savefig(OUTPUT / "weights_pair.png", dpi=120, bbox_inches="tight")
mean, sd = (
    getattr(inference.posterior["means"], name)(("chain", "draw")).values
    for name in ("mean", "std")
)
ax = pg.plot.images(
    torch.tensor(np.stack((mean, 16 * sd / sd.max()))),
    row_labels=["posterior mean", "its sd, scaled"],
    **look,
)
ax.figure.savefig(OUTPUT / "posterior_means_and_sds.png", dpi=150)

# %% [markdown]
# ## A variational autoencoder
#
# Prior, decoder and encoder are any distributions with any networks: here convolutions, and a
# decoder that gives probabilities of the integers 0 to 16. `fit` watches the held-out images and
# keeps the best state.

# %%
decoder = pg.nn.ConvDecoder(
    16, (3 * 3, 8, 8), hidden=(64, 32)
)  # weight, location and scale of 3 components per pixel
encoder = pg.nn.ConvEncoder((1, 8, 8), 2 * 16, hidden=(32, 64))
vae = pg.VAE(
    prior=pg.standard_normal(16),
    decoder=pg.heads.DiscretizedLogisticMixture(decoder, levels=17, components=3, event_ndim=3),
    encoder=pg.heads.Gaussian(encoder, context_ndim=3),
)
image = (-1, 1, 8, 8)
history = pg.fit(
    vae,
    train.view(image),
    pg.ELBO(beta=pg.objectives.linear_warmup(500)),
    steps=1500,
    batch_size=100,
    optimizer=pg.train.adam(2e-3),
    ema=0.99,
    validation=validation.view(image),
    validate_every=100,
    patience=4,
    seed=0,
)
print(history)
ax = pg.plot.images(pg.sample(vae, 60), columns=15, **look)
ax.set_title("draws from the VAE")
ax.figure.savefig(OUTPUT / "vae_samples.png", dpi=150)

with torch.no_grad():
    codes = vae.encode(pixels.view(image)).mean
plane = TSNE(random_state=0).fit_transform(codes)
figure, axes = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
pg.plot.loss_curve(history, ax=axes[0])
pg.plot.embedding(plane, labels, title="codes of all digits (t-SNE)", ax=axes[1])
pg.plot.khats(pg.khat(vae, test[:200].view(image), particles=200), ax=axes[2])
figure.savefig(OUTPUT / "vae.png", dpi=120)

# %% [markdown]
# ## Held-out scores, honestly
#
# Every score knows what kind of number it is. Per-pixel counts are the baseline that a model has to
# beat. The value of a mixture on integers is estimated (`unbiased`: its mean is a lower bound), as
# is that of the VAE, by importance sampling.

# %%
counts = torch.stack([(train == level).float().mean(0) for level in range(17)], -1) * 1000 + 1 / 17
baseline = pg.Fixed(dist.Categorical, probs=counts)
scores = {
    "pixel counts": pg.log_likelihood(baseline, test),
    "mixture, EM": pg.log_likelihood(pg.Quantized(by_em), test, particles=64),
    "mixture, SVI": pg.log_likelihood(pg.Quantized(by_svi), test, particles=64),
    "Bayesian mixture": pg.log_likelihood(pg.Quantized(bayesian), test, particles=8),
    "VAE": pg.log_likelihood(vae, test.view(image), particles=100),
}
for name, score in scores.items():
    print(f"{name:17s} {score}")
print("the VAE is better than counting pixels:", scores["VAE"] > scores["pixel counts"])
try:
    print(scores["VAE"] > scores["mixture, EM"])
except TypeError as error:
    print("the VAE against the mixture:", error)

# %% [markdown]
# ## Missing pixels
#
# NaN means missing, everywhere. The lower half of twenty digits is hidden; the mixture fills it in
# exactly, the VAE by a Markov chain that its encoder drives.

# %%
hidden = test[:20].clone()
hidden[:, 32:] = torch.nan
exact = pg.impute(by_em, hidden + 0.5, draws=2)
chain = pg.impute(vae, hidden.view(image), draws=2, num_steps=100)
print(f"mixture: {exact.kind}; VAE: {chain.kind}, acceptance {chain.acceptance.mean():.2f}")
rows = {
    "held out": test[:20],
    "given": hidden,
    "mixture": exact.draws[0],
    "mixture, again": exact.draws[1],
    "VAE": chain.draws[0].flatten(1),
    "VAE, again": chain.draws[1].flatten(1),
}
ax = pg.plot.images(torch.stack(list(rows.values())), row_labels=list(rows), **look)
ax.figure.savefig(OUTPUT / "imputation.png", dpi=150)
print(f"figures and the posterior (bayesian_mixture.nc) are in {OUTPUT.resolve()}")
