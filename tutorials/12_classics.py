# %% [markdown]
# # Classics: from a coin to topics
#
# The models that a first course starts with, each exact or nearly so: a prior that is updated by
# counting, clusters that outliers do not move and whose number is not given, signals that are unmixed,
# margins that keep their shape, topics of documents, and a map of images. All of them are generative
# models like every other in this library: `sample`, `log_likelihood`, `to_arviz` work on each. A minute
# on one core.

# %%
import argparse
import math
from pathlib import Path

import arviz as az
import matplotlib.pyplot as plt
import pyro.distributions as dist
import torch
from matplotlib.patches import Ellipse
from sklearn.datasets import load_digits

import probgen as pg

parser = argparse.ArgumentParser()
parser.add_argument("--output", type=Path, default=Path("classics_output"))
OUTPUT = parser.parse_known_args()[0].output
OUTPUT.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)


def save(figure, name):
    """Writes a figure."""
    figure.savefig(OUTPUT / name, dpi=100, bbox_inches="tight")


# %% [markdown]
# ## Updating a prior
#
# Two variants of a page are shown to 300 visitors each, who buy something or not. Before that, one
# in ten is the best guess, as sure as after ten visitors: a Beta distribution. After it, the counts
# are added to its parameters. Nothing is approximated, so that blocks of visitors may come in any
# order.

# %%
bought = torch.bernoulli(torch.tensor([0.10, 0.17]).expand(300, 2))
gen = pg.BetaBinomial(2, a=1.0, b=9.0)
share = torch.linspace(0.001, 0.35, 300)
figure, axes = plt.subplots(1, 3, figsize=(11, 2.6), sharex=True)
for axis, seen in zip(axes, (0, 30, 300), strict=True):
    gen.reset()
    if seen:
        gen.update(bought[:seen])
    heights = gen.posterior().base_dist.log_prob(share[:, None]).exp()
    axis.plot(share, heights, label=["first", "second"])
    axis.set_title(f"after {seen} visitors", fontsize=10)
axes[0].legend(frameon=False)
save(figure, "update.png")

# %% [markdown]
# Which variant is better is a question to draws of the posterior; whether there is a difference at
# all, one to the evidence: the probability of all data under each story, all rates averaged. It
# punishes the second rate by itself.

# %%
draws = gen.posterior().sample((20000,))
print(f"P(the second is better) = {(draws[:, 1] > draws[:, 0]).float().mean().item():.3f}")
prior = {"a": 1.0, "b": 9.0}
apart = pg.BetaBinomial(2, **prior).log_evidence(bought)
same = pg.BetaBinomial(1, **prior).log_evidence(bought.mT.reshape(-1, 1))
print(f"log Bayes factor of two rates: {(apart - same).item():.2f}")
chances = gen.predictive().log_prob(torch.ones(2)).exp()
print("the next visitor of both pages buys twice:", f"{chances.item():.4f}")

# %% [markdown]
# The same model as a Pyro program with its exact guide goes to ArviZ, which wants draws:

# %%
inference = pg.to_arviz(
    gen,
    bought,
    draws=500,
    seed=0,
    dims={"probability": ["variant"]},
    coords={"variant": ["first", "second"]},
)
print(az.summary(inference, var_names=["probability"], kind="stats").round(3).to_string())

# %% [markdown]
# ## Clusters, and outliers
#
# Two clusters, and a few rows that belong to none. A Gaussian mixture has to make room for them; the
# tails of a Student t mixture already have it, and how heavy they are is learned by the same EM.

# %%
centers = torch.tensor([[0.0, 0.0], [6.0, 3.0]])
clean = centers[torch.randint(2, (300,))] + torch.randn(300, 2)
x = torch.cat([clean, 15 * torch.randn(15, 2)])
mixtures = {
    "GaussianMixture": pg.GaussianMixture(2, 2),
    "StudentTMixture": pg.StudentTMixture(2, 2),
}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharex=True, sharey=True)
for axis, (name, mixture) in zip(axes, mixtures.items(), strict=True):
    mixture.initialize(clean, torch.Generator().manual_seed(0))  # both start at the clusters
    pg.em(mixture, x, n_init=0, max_iter=500)
    off = (mixture.means[:, None] - centers).norm(dim=-1).amin(0).max()
    print(f"{name:16s} means off by {off.item():.2f};", pg.log_likelihood(mixture, x))
    axis.scatter(*x.mT, s=4, c=mixture.predict(x), cmap="coolwarm")
    shapes = mixture.covariances if name == "GaussianMixture" else mixture.scales
    for mean, shape in zip(mixture.means, shapes, strict=True):
        values, vectors = torch.linalg.eigh(shape)
        angle = math.degrees(math.atan2(vectors[1, 1], vectors[0, 1]))
        width, height = (4 * values.sqrt()).flip(0).tolist()
        axis.add_patch(Ellipse(mean.tolist(), width, height, angle=angle, fill=False, lw=2))
    axis.set(title=name, xlim=(-20, 20), ylim=(-15, 15))
save(figure, "outliers.png")
print("degrees of freedom:", mixtures["StudentTMixture"].df)

# %% [markdown]
# ## How many clusters?
#
# A Dirichlet-process mixture has no fixed number of them: its posterior is over partitions of the
# rows, and tells the number with its uncertainty. Means and covariances are integrated out, so that a
# sweep of Gibbs sampling only moves rows between clusters, or into one of their own. One chain starts
# with all rows together, the other with each alone: that they meet is what R-hat looks at.

# %%
middles = torch.tensor([[0.0, 0.0], [5.0, 0.0], [2.5, 4.5], [8.0, 4.0]])
grouped = middles[torch.arange(100) % 4] + torch.randn(100, 2)
partitions = pg.dirichlet_process_mixture(grouped, concentration=0.2, draws=300, tune=50, seed=0)
print(partitions)
trace = az.convert_to_dataset(partitions.values)
print(az.summary(trace, var_names=["clusters", "largest_share"]).to_string())
one = partitions.partition()
print("clusters of the partition to show:", len(one.unique()))
counts = partitions.clusters.flatten().bincount()
print("P(four or five clusters) =", f"{(counts[4:6].sum() / counts.sum()).item():.2f}")
order = one.argsort(stable=True)
figure, axes = plt.subplots(1, 3, figsize=(11, 3.2))
axes[0].scatter(*grouped.mT, s=12, c=one, cmap="tab10", vmax=9)
axes[0].set_title("one partition to show", fontsize=10)
axes[1].imshow(partitions.similarity()[order][:, order], cmap="gray_r", vmin=0, vmax=1)
axes[1].set_title("P(two rows are in one cluster)", fontsize=10)
for chain in partitions.clusters:
    axes[2].plot(chain, lw=0.8)
axes[2].set_title("number of clusters, two chains", fontsize=10)
axes[2].set_xlabel("sweep")
save(figure, "clusters.png")

# %% [markdown]
# The partition has the four. Draws have more, as a row or two open a cluster of their own for some
# sweeps: a Dirichlet process says too many, the more so the larger its concentration (Miller, Harrison
# 2013, A simple example of Dirichlet process mixture inconsistency for the number of components). Who
# is with whom is a better question to it than how many there are.

# %% [markdown]
# ## Signals that were mixed
#
# Two microphones hear two sources. Nothing is known of the room; the sources are independent and not
# normal, and that is enough. `ICA` is an exact density whose latents are the sources.

# %%
t = torch.linspace(0, 8, 1500)
saw = 2 * (t % 1) - 1
spikes = torch.sin(7 * t) ** 9 + 0.05 * torch.randn(1500)
sources = torch.stack([saw, spikes], 1)
heard = sources @ torch.tensor([[1.0, 0.7], [0.5, 1.0]])
unmixed = pg.ICA(
    2, pg.heads.MixtureOfGaussians(pg.nn.Constant(18, initial=torch.randn(18)), components=3)
)
print(pg.maximum_likelihood(unmixed, heard, seed=0, tol=1e-3, max_iter=200).converged)
found = unmixed.sources(heard)
agreement = torch.corrcoef(torch.cat([found, sources], 1).mT)[:2, 2:].abs()
print("correlations of what was found with the truth:", agreement.amax(0))
figure, axes = plt.subplots(2, 2, figsize=(9, 2.8), sharex=True)
for row in range(2):
    axes[row, 0].plot(t, heard[:, row], lw=0.7)
    axes[row, 1].plot(t, found[:, row], lw=0.7, color="C1")
axes[0, 0].set_title("heard", fontsize=10)
axes[0, 1].set_title("unmixed", fontsize=10)
save(figure, "unmixed.png")

# %% [markdown]
# ## Margins that keep their shape
#
# Waiting times that depend on each other are neither normal nor independent. A copula takes each
# column's own distribution as it is and describes the dependence alone, of normal scores. Missing
# entries are filled in exactly.

# %%
z = dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.8], [0.8, 1.0]])).sample((800,))
waits = torch.stack([z[:, 0].exp(), -torch.special.ndtr(-z[:, 1]).log()], 1)
copula = pg.Copula.fitted(waits[:600])
normal = pg.GaussianMixture(1, 2)
pg.em(normal, waits[:600])
for name, each in (("Copula", copula), ("normal distribution", normal)):
    print(f"{name:20s}", pg.log_likelihood(each, waits[600:]))
holes = waits[600:].clone()
holes[:, 1] = torch.nan
filled = pg.impute(copula, holes, draws=100, seed=0)
print(
    filled.kind, f"{(filled.mean() - waits[600:])[:, 1].abs().mean().item():.2f}", end=" against "
)
print(f"{(waits[:600, 1].mean() - waits[600:, 1]).abs().mean().item():.2f} by the mean")
figure, axes = plt.subplots(1, 3, figsize=(9, 2.8), sharex=True, sharey=True)
rows = {"data": waits, "Copula": pg.sample(copula, 800), "normal": pg.sample(normal, 800)}
for axis, (name, each) in zip(axes, rows.items(), strict=True):
    axis.scatter(*each.mT, s=3)
    axis.set(title=name, xlim=(-4, 10), ylim=(-2, 6))
save(figure, "copula.png")

# %% [markdown]
# ## Topics
#
# A topic is a distribution of words, a document a mixture of a few topics. To see topics, let the
# "words" be the pixels of small images, and the topics bars (Griffiths, Steyvers 2004, Finding
# scientific topics): each document counts 100 pixels of a few bars. The ten bars come back from the
# counts alone.

# %%
bars = torch.zeros(10, 5, 5)
for k in range(5):
    bars[k, k] = bars[5 + k, :, k] = 0.2
weights = dist.Dirichlet(torch.full((10,), 0.3)).sample((400,))
documents = dist.Multinomial(100, weights @ bars.flatten(1)).sample()
train, test = documents[:300], documents[300:]
models = {k: pg.LatentDirichletAllocation(k, 25).solve(train, seed=0) for k in (2, 5, 10, 15)}
for k, each in models.items():
    print(f"{k:2d} topics: perplexity {each.perplexity(test):.2f}")
topics = models[10].topics
nearest = (topics[:, None] - bars.flatten(1)).abs().sum(-1).amin(0) / 2
print(f"bars found: {int((nearest < 0.25).sum())} of 10")
figure, axes = plt.subplots(2, 10, figsize=(10, 2.2))
for axis, image in zip(axes.flat, [*documents[:10], *topics], strict=True):
    axis.imshow(image.reshape(5, 5), cmap="gray_r")
    axis.set(xticks=[], yticks=[])
axes[0, 0].set_ylabel("documents", fontsize=8)
axes[1, 0].set_ylabel("topics", fontsize=8)
save(figure, "topics.png")
score = pg.log_likelihood(models[10], test, particles=100, seed=0)
print(score, models[10].bound(test), sep="\n")

# %% [markdown]
# The last two lines say what kind of number each is: an estimate that is unbiased for the
# probability, and a bound that needs no draws. The bound is lower, as it has to be.
#
# ## A map of digits
#
# Principal components draw images on a plane. Let each pixel be a smooth function of the place on the
# map in its stead, drawn from a Gaussian process and integrated out: the classes come apart, without
# a label seen. Both are scored on images that were held out.

# %%
digits = load_digits()
x, label = torch.tensor(digits.data).float(), torch.tensor(digits.target)
x = x[:, x.std(0) > 0.5]
x = (x - x.mean(0)) / x.std()
plane = pg.PPCA(x.shape[1], factors=2)
pg.em(plane, x[:1400])
encoder = pg.heads.Gaussian(pg.nn.MLP(x.shape[1], [64], 4))
curved = pg.BayesianGPLVM(x.shape[1], encoder, latents=2, inducing=30)
curved.initialize(x[:1400])
options = {"progress": False, "verdict": False, "seed": 0}
pg.fit(curved, x[:1400], steps=600, batch_size=200, optimizer=pg.train.adam(0.02), **options)
figure, axes = plt.subplots(1, 2, figsize=(9, 4))
for axis, (name, each) in zip(axes, {"PPCA": plane, "BayesianGPLVM": curved}.items(), strict=True):
    place = pg.encode(each, x).detach()
    apart = torch.cdist(place[1400:], place[:1400]).argmin(1)
    share = (label[:1400][apart] == label[1400:]).float().mean()
    value = pg.log_likelihood(each, x[1400:]).value.mean()
    print(f"{name}: nearest image shows the same digit {100 * share:.0f} %, {value:.1f} nats")
    axis.scatter(*place[1400:].mT, c=label[1400:], cmap="tab10", s=8)
    axis.set(title=name, xticks=[], yticks=[])
save(figure, "map.png")

# %% [markdown]
# ## Where to go on
#
# The how-to guides on updating a prior, topics, unmixing, copulas and maps have more on each;
# tutorial 1 continues with mixtures whose parameters are uncertain.
