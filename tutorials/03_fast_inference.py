# %% [markdown]
# # Fast inference, and when to trust it
#
# One Pyro model, three ways to its posterior: stochastic variational inference (SVI) as Pyro runs
# it, the same SVI compiled into one graph, and the No-U-Turn sampler (NUTS) of nutpie on the
# compiled log density. They race on three models: a classic of eight numbers, a regression with
# groups, a mixture whose labels can switch. ArviZ compares their answers, and the last part asks
# what matters more than speed: when is the fast answer good enough?

# %%
import argparse
import time
from pathlib import Path

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.decomposition import PCA

import probgen as pg

parser = argparse.ArgumentParser()
parser.add_argument("--output", type=Path, default=Path("fast_inference_output"))
OUTPUT = parser.parse_known_args()[0].output
OUTPUT.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)
torch.set_num_threads(1)  # operations this small are over before a second thread has woken up

NUTS, MEAN_FIELD, FULL, REWRITTEN = (
    "#4d4d4d",
    "#e4572e",
    "#2e86ab",
    "#3a9d5d",
)  # the same colors in all pictures
plt.rcParams.update(
    {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "savefig.dpi": 130,
    }
)
summary = {}  # model: what it took, and how good the guide is


def cosine(steps):
    """A learning rate that falls to zero, so that the guide comes to rest."""
    return lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def race(name, make, data, steps, eager_steps, **options):
    """Fits a model as a Pyro program for some steps, and its twin as a compiled graph for all.

    Gives the twin.
    """
    options |= {
        "scheduler": cosine(steps),
        "ema": 0.99,
        "seed": 0,
        "progress": False,
        "verdict": False,
    }
    eager = pg.fit(make(), data, steps=eager_steps, compile=False, **options)
    program = make()
    fast = pg.fit(program, data, steps=steps, compile=True, **options)
    before, after = (1000 * (h.seconds - h.compile_seconds) / h.steps for h in (eager, fast))
    gap = np.abs(np.array(eager.loss) - fast.loss[:eager_steps]).max()
    print(
        f"{name}: SVI {before:.2f} ms per step; compiled in {fast.compile_seconds:.1f} s, then "
        f"{after:.3f} ms"
    )
    print(f"{name}: the losses of {eager_steps} steps differ by at most {gap:.0e} nats per row")
    summary[name] = {"ms/step": before, "compiled": after, "compiling, s": fast.compile_seconds}
    return program


def sample(name, gen, *data, **options):
    """Chains of NUTS, and a note about the time that they took, compilation included."""
    began = time.perf_counter()
    chains = pg.mcmc(gen, *data, chains=4, seed=0, progress=False, **options)
    seconds = time.perf_counter() - began
    diverging = int(chains.stats["diverging"].sum())
    print(
        f"{name}: NUTS took {seconds:.1f} s for {chains.stats['diverging'].numel()} draws, "
        f"{diverging} divergent"
    )
    return chains, seconds


def compare(name, khat, svi, nuts, seconds, **which):
    """Means and 94% intervals of both, the guide's k-hat, effective draws (ESS) per second of NUTS.

    And R-hat.
    """
    old = az.__version__.startswith("0.")  # ArviZ 1.x shows 89% intervals of equal tails
    which |= {} if old else {"ci_prob": 0.94, "ci_kind": "hdi"}
    left = az.summary(svi, kind="stats", round_to="none", **which)
    right = az.summary(nuts, round_to="none", **which)
    columns = ["mean", *[column for column in left.columns if column.startswith("hdi")]]
    right["ESS/s"] = (right["ess_bulk"] / seconds).round()
    table = {f"SVI, k-hat {khat:.2f}": left[columns], "NUTS": right[[*columns, "ESS/s", "r_hat"]]}
    print(pd.concat(table, axis=1).to_string(float_format="{:.4g}".format))
    ratios = svi.posterior.std(("chain", "draw")) / nuts.posterior.std(("chain", "draw"))
    width = np.median(np.concatenate([ratio.values.ravel() for ratio in ratios.values()]))
    numbers = {"k-hat": khat, "width": width, "NUTS, s": seconds, "ESS/s": right["ESS/s"].min()}
    summary[name] = summary.get(name, {}) | numbers


def intervals(ax, values, rows, color, label):
    """Means and 94% intervals of draws (chain, draw, row), one line each."""
    by_row = np.moveaxis(np.asarray(values), -1, 0)
    low, high = np.array([az.hdi(row.ravel(), 0.94) for row in by_row]).T
    ax.hlines(rows, low, high, color=color, lw=2)
    ax.plot(np.mean(values, axis=(0, 1)), rows, "o", color=color, ms=4, label=label)


def ellipse(mean, covariance, mass=0.94):
    """The curve around so much of a normal distribution in the plane, (2, 100)."""
    angle = np.linspace(0, 2 * np.pi, 100)
    circle = np.sqrt(-2 * np.log(1 - mass)) * np.stack((np.cos(angle), np.sin(angle)))
    return np.reshape(mean, (2, 1)) + np.linalg.cholesky(covariance) @ circle


# %% [markdown]
# ## Eight schools
#
# Coaching for a test was tried in eight schools (Rubin 1981): an estimated effect and its standard
# error for each, here in units of ten points (optimizers like numbers near one). How different are
# the schools? Their effects are drawn around a common mean with an unknown spread. We write them as
# `mean + spread * raw`; why, comes at the end.  `fit(..., compile=True)` makes the whole step, from
# the choice of rows to Adam's update, one graph. It draws the same random numbers, so the losses
# are the same up to rounding; what is gone is the Python between the operations. (It needs a C++
# compiler, and keeps its work on disk for the next time.) And `vectorized=True` promises that the
# model works with many draws at once in dims to the left of its own (which is why this tutorial
# indexes with `...`): then 20,000 draws for k-hat are one run.

# %%
SCHOOLS = list("ABCDEFGH")
error = torch.tensor([1.5, 1.0, 1.6, 1.1, 0.9, 1.1, 1.0, 1.8])
estimate = torch.tensor([2.8, 0.8, -0.3, 0.7, -0.1, 0.1, 1.8, 1.2])


def schools(error, estimate=None):
    mean = pyro.sample("mean", dist.Normal(0.0, 0.5))
    spread = pyro.sample("spread", dist.HalfCauchy(0.5))
    with pyro.plate("school", 8):
        raw = pyro.sample("raw", dist.Normal(0.0, 1.0))
        effect = pyro.deterministic("effect", mean + spread * raw)
    with pyro.plate("data", 8):
        pyro.sample("estimate", dist.Normal(effect, error), obs=estimate)


def program(model, guide):
    return pg.Program(model, guide(model), vectorized=True)


few = (error, estimate)
schools_guide = race(
    "schools", lambda: program(schools, AutoNormal), few, 1000, 300, optimizer=pg.train.adam(0.05)
)
chains, seconds = sample("schools", schools, *few, draws=1000, tune=400, target_accept=0.9)
labels = {"coords": {"school": SCHOOLS}}
schools_svi = pg.to_arviz(schools_guide, *few, draws=4000, groups=["posterior"], **labels)
schools_nuts = pg.to_arviz(
    schools_guide, *few, chains=chains, groups=["posterior", "sample_stats"], **labels
)
schools_khat = float(pg.khat(schools_guide, *few, particles=20000))
compare(
    "schools",
    schools_khat,
    schools_svi,
    schools_nuts,
    seconds,
    var_names=["mean", "spread", "effect"],
)

# %%
figure, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
rows = np.arange(8)
ax.hlines(
    rows,
    estimate - 1.88 * error,
    estimate + 1.88 * error,
    color="0.88",
    lw=9,
    label="each school on its own",
)
ax.plot(estimate, rows, "|", color="0.6", ms=9, mew=2)
intervals(ax, schools_svi.posterior["effect"], rows - 0.12, MEAN_FIELD, "SVI")
intervals(ax, schools_nuts.posterior["effect"], rows + 0.12, NUTS, "NUTS")
ax.set(xlabel="effect of coaching (tens of points), 94% intervals", ylabel="school")
ax.set(yticks=rows, yticklabels=SCHOOLS, ylim=(7.6, -0.6))
figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=3)
figure.savefig(OUTPUT / "schools.png")

# %% [markdown]
# ## A hierarchical regression, in mini-batches
#
# Which measurements tell malignant from benign tumors? The Wisconsin table of scikit-learn has ten
# *kinds* of measurement of cell nuclei (radius, texture, ...): of each kind the mean over the
# nuclei, its standard error and the worst value. A kind that does not matter should have three
# small slopes, so each kind has a scale of its own, drawn around a typical one. SVI reads
# mini-batches of 128 rows; NUTS reads all rows each time.  There are two guides. `AutoNormal` is a
# *mean field*: all latent variables are independent. `AutoMultivariateNormal` knows correlations,
# and here must be some. Several columns say nearly the same (radius, perimeter and area of a
# nucleus; mean and worst of each), and the data tell the sum of such slopes better than each of
# them. It has many more parameters, and wants more steps. The mean field trains with
# `compile="auto"`, the default, which times the first steps and compiles only where the others
# amortize the cost.

# %%
table = load_breast_cancer(as_frame=True)
KINDS = [name.removeprefix("mean ") for name in table.data.columns[:10]]
PARTS = ["mean", "error", "worst"]
order = torch.randperm(len(table.data), generator=torch.Generator().manual_seed(0))
standardized = torch.tensor(
    ((table.data - table.data.mean()) / table.data.std()).to_numpy(), dtype=torch.float32
)
measured = standardized.view(-1, 3, 10).transpose(1, 2)[order]  # patients, kinds, parts
malignant = torch.tensor(1 - table.target.to_numpy(), dtype=torch.float32)[order]
train = (measured[:512], malignant[:512])
test = (measured[512:], malignant[512:])
print(
    f"{len(train[1])} tumors to learn from, {len(test[1])} held out; {malignant.mean():.0%} are "
    "malignant"
)


def tumors(measured, malignant=None):
    intercept = pyro.sample("intercept", dist.Normal(0.0, 2.0))
    typical = pyro.sample("typical", dist.LogNormal(-1.0, 0.5))
    with pyro.plate("kind", 10):
        scale = pyro.sample("scale", dist.LogNormal(typical.log(), 0.5))
        slope = pyro.sample("slope", dist.Normal(torch.zeros(3), scale[..., None]).to_event(1))
    with pyro.plate("data", len(measured)):
        logits = intercept + (measured * slope[..., None, :, :]).sum((-2, -1))
        pyro.sample("malignant", dist.Bernoulli(logits=logits), obs=malignant)


quick = {"scheduler": cosine(600), "ema": 0.99, "seed": 0, "progress": False, "verdict": False}
mean_field = program(tumors, AutoNormal)
history = pg.fit(
    mean_field, train, steps=600, batch_size=128, optimizer=pg.train.adam(0.1), **quick
)
print(f"mean field: {history.steps} steps in {history.seconds:.1f} s; compiled: {history.compiled}")
batches = {"batch_size": 128, "optimizer": pg.train.adam(0.02)}
full = race(
    "multivariate", lambda: program(tumors, AutoMultivariateNormal), train, 10000, 200, **batches
)
chains, seconds = sample("tumors", tumors, *train, init=full, draws=250, tune=250)
labels = {"coords": {"kind": KINDS, "part": PARTS}, "dims": {"slope": ["part"]}}
tumors_nuts = pg.to_arviz(
    full, *train, chains=chains, groups=["posterior", "sample_stats"], **labels
)
tumors_svi = {}
for name, gen in {"mean field": mean_field, "multivariate": full}.items():
    khat = float(pg.khat(gen, *train, particles=5000))
    tumors_svi[name] = pg.to_arviz(gen, *train, draws=2000, groups=["posterior"], **labels)
    print(f"\n{name}")
    compare(
        name,
        khat,
        tumors_svi[name],
        tumors_nuts,
        seconds,
        var_names=["intercept", "typical", "scale"],
    )

# %%
figure, axes = plt.subplots(1, 3, figsize=(10, 4.6), sharey=True, sharex=True, layout="constrained")
rows = np.argsort(-tumors_nuts.posterior["scale"].mean(("chain", "draw")).values)
for part, ax in enumerate(axes):
    ax.axvline(0, color="0.85", lw=1)
    slopes = [
        data.posterior["slope"][..., rows, part] for data in (tumors_nuts, *tumors_svi.values())
    ]
    intervals(ax, slopes[0], np.arange(10) - 0.25, NUTS, "NUTS")
    intervals(ax, slopes[2], np.arange(10), FULL, "SVI, multivariate normal")
    intervals(ax, slopes[1], np.arange(10) + 0.25, MEAN_FIELD, "SVI, mean field")
    ax.set(title=PARTS[part], yticks=np.arange(10), yticklabels=[KINDS[row] for row in rows])
axes[0].set(ylim=(9.6, -0.6))
axes[1].set(xlabel="slope (logits per standard deviation), 94% intervals")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
figure.savefig(OUTPUT / "slopes.png")

# %% [markdown]
# ## A mixture, and its labels
#
# Images of five digits (0, 3, 4, 6 and 7, which a plane can tell apart), by their first three
# principal components. The mixture is not told which image shows which digit; the component of each
# image is summed out exactly. Its posterior is the same under all 5! = 120 orders of the
# components. The guide has settled for one order, and chains that start at its draws
# (`init=mixture`, which gives them its scales as well) start in that order.

# %%
digit = torch.tensor(
    load_digits().target[:1000]
)  # of the rows that pg.datasets.load_digits has for training
chosen = torch.isin(digit, torch.tensor([0, 3, 4, 6, 7]))
pixels = pg.datasets.load_digits().train[chosen].flatten(1)
digit = digit[chosen]
pca = PCA(3).fit(pixels)
unit = pca.explained_variance_[0] ** 0.5
scores = torch.tensor(pca.transform(pixels) / unit, dtype=torch.float32)


def make_mixture():
    mixture = pg.BayesianGaussianMixture(components=5, dims=3)
    mixture.initialize(scores, torch.Generator().manual_seed(0))
    return mixture


whole = {"batch_size": len(scores), "optimizer": pg.train.adam(0.02)}
mixture = race("mixture", make_mixture, (scores,), 1500, 60, **whole)
at_guide, seconds = sample("mixture", mixture, scores, init=mixture, draws=300, tune=200)
labels = {
    "dims": {name: ["component", "score"][: 1 + (name != "weights")] for name in at_guide.draws}
}
mixture_svi = pg.to_arviz(mixture, scores, draws=2000, groups=["posterior"], **labels)
mixture_nuts = pg.to_arviz(
    mixture, scores, chains=at_guide, groups=["posterior", "sample_stats"], **labels
)
mixture_khat = float(pg.khat(mixture, scores, particles=5000))
compare("mixture", mixture_khat, mixture_svi, mixture_nuts, seconds, var_names=["weights"])

# %% [markdown]
# Chains that start at random end in different orders: R-hat cries out, though it may be nothing but
# the labels. `relabel` gives all draws one labeling. A chain that stands apart even then is in
# another mode, which no relabeling mends; its log density tells how good that mode is.

# %%
at_random, _ = sample("mixture, random starts", mixture, scores, draws=300, tune=300)
both = {name: torch.cat((at_guide.draws[name], at_random.draws[name])) for name in at_guide.draws}
relabeled = pg.relabel(both, leading=2)


def largest_rhat(draws, chains=slice(None)):
    rhat = az.rhat({name: value[chains].numpy() for name, value in draws.items()})
    return max(float(rhat[name].max()) for name in rhat)


lp = at_random.stats["lp"].mean(1)
print(
    f"largest R-hat, chains from the guide: {largest_rhat(at_guide.draws):.2f}, lp "
    f"{at_guide.stats['lp'].mean():.0f}"
)
print(f"largest R-hat, chains from random starts: {largest_rhat(at_random.draws):.2f}")
for chain in range(4):
    rhat = largest_rhat(relabeled, [0, 1, 2, 3, 4 + chain])
    print(
        f"largest R-hat, random start {chain} with those, relabeled: {rhat:.2f}, lp {lp[chain]:.0f}"
    )

# %%
figure, (left, right) = plt.subplots(
    1, 2, figsize=(10, 4.2), width_ratios=[1.3, 1], layout="constrained"
)
palette = plt.get_cmap("Set2").colors
component = mixture.responsibilities(scores, at_guide.merged).argmax(1)
thinned = az.extract(mixture_nuts).isel(sample=slice(0, None, 30))
guess = mixture_svi.posterior.mean(("chain", "draw"))
for k in range(5):
    left.scatter(*scores[component == k, :2].T, s=10, color=palette[k], alpha=0.6, lw=0)
    for means, scales in zip(
        thinned["means"][k, :2].T.values, thinned["scales"][k, :2].T.values, strict=True
    ):
        left.plot(*ellipse(means, np.diag(scales**2)), color=NUTS, lw=0.4, alpha=0.5)
    means = guess["means"][k].values
    scales = guess["scales"][k, :2].values
    left.plot(*ellipse(means[:2], np.diag(scales**2)), color=MEAN_FIELD, lw=1.5)
    image = OffsetImage(
        pca.inverse_transform(means[None] * unit).reshape(8, 8), zoom=3.5, cmap="gray_r"
    )
    place = {
        "xycoords": ("axes fraction", "data"),
        "box_alignment": (1.1, 0.5),
        "pad": 0.1,
        "annotation_clip": False,
    }
    right.add_artist(
        AnnotationBbox(image, (0, k), bboxprops={"edgecolor": palette[k], "lw": 2}, **place)
    )
intervals(right, mixture_svi.posterior["weights"], np.arange(5) - 0.1, MEAN_FIELD, "SVI")
intervals(right, mixture_nuts.posterior["weights"], np.arange(5) + 0.1, NUTS, "NUTS")
left.set(title="Components (94% of each)", xlabel="first principal component", ylabel="second")
right.set(
    title="Mean image and weight of each",
    xlabel="weight, 94% intervals",
    yticks=[],
    ylim=(4.6, -0.6),
)
figure.legend(*right.get_legend_handles_labels(), loc="outside upper right", ncols=2)
figure.savefig(OUTPUT / "mixture.png")

# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
axes[0].sharey(axes[1])
for ax, draws, title in [
    (axes[0], at_random.draws, "random starts"),
    (axes[1], relabeled, "the same, relabeled"),
]:
    for chain, color in zip(draws["means"][-4:, :, 0, 0], palette, strict=False):
        ax.plot(chain, color=color, lw=0.8)
    ax.set(title=f"Mixture, {title}", xlabel="draw", ylabel="mean of component 0")
energy = np.asarray(tumors_nuts.sample_stats["energy"])
for values, color, label in [
    (energy - energy.mean(), FULL, "marginal"),
    (np.diff(energy), NUTS, "transition"),
]:
    grid, density, *_ = az.kde(values.ravel())
    axes[2].fill_between(grid, density, color=color, alpha=0.5, lw=0, label=label)
axes[2].legend()
axes[2].set(
    title="Tumors, energy of the chains", xlabel="energy (nats), centered", ylabel="density"
)
print(
    f"tumors: BFMI of the chains {az.bfmi(energy).round(2)} (below 0.3 they would explore too "
    "slowly)"
)
figure.savefig(OUTPUT / "chains.png")

# %% [markdown]
# ## When to trust SVI
#
# **A mean field is too narrow where the posterior is correlated.** At its best it gives each
# variable about the width that it has *given all others*. For a normal posterior with covariance C
# (this one is not quite normal) the ratio of widths is `1 / sqrt(diag(C) * diag(inv(C)))`, which
# the draws of NUTS can tell.

# %%
by_nuts = tumors_nuts.posterior["slope"].values.reshape(-1, 30)
correlation = np.abs(np.corrcoef(by_nuts.T) - np.eye(30))
pair = list(np.unravel_index(correlation.argmax(), correlation.shape))
names = [f"{PARTS[index % 3]} {KINDS[index // 3]}" for index in pair]
print(f"largest correlation of two slopes: {correlation.max():.2f} in size, {' and '.join(names)}")
covariance = np.cov(by_nuts.T)
predicted = 1 / np.sqrt(np.diag(covariance) * np.diag(np.linalg.inv(covariance)))
width = {
    name: data.posterior["slope"].values.reshape(-1, 30).std(0) for name, data in tumors_svi.items()
}
print(
    f"width of slopes, guide / NUTS, median: {np.median(predicted):.2f} predicted from "
    "correlations alone;"
)
for name, value in width.items():
    print(
        f"    {name} {np.median(value / by_nuts.std(0)):.2f} (from "
        f"{(value / by_nuts.std(0)).min():.2f})"
    )

# %% [markdown]
# Predictions need not suffer as much. The log score of held-out tumors, per row (higher is better;
# so few rows do not tell small differences):


# %%
def held_out(posterior):
    intercept, slope = (
        torch.tensor(posterior[site].values).flatten(0, 1) for site in ("intercept", "slope")
    )
    distribution = dist.Bernoulli(
        logits=intercept[:, None] + torch.einsum("nkp,skp->sn", test[0], slope)
    )
    return (distribution.log_prob(test[1]).logsumexp(0) - np.log(len(slope))).mean()


for name, data in {**tumors_svi, "NUTS": tumors_nuts}.items():
    print(f"held-out log score, {name}: {held_out(data.posterior):.3f} nats")

# %% [markdown]
# **k-hat tells without NUTS.** It comes from the guide alone: how heavy is the tail of the weights
# that would turn its draws into draws of the posterior? Above 0.7 neither its intervals nor the
# weights should be trusted (Yao, Vehtari, Simpson, Gelman 2018). `fit` ends with a verdict that has
# it, wherever a few seconds are enough to tell.  **A funnel defeats every normal guide; rewriting
# the model helps.** Written as `effect ~ Normal(mean, spread)` the eight schools have another
# posterior in effects and log spread: the smaller the spread, the nearer the effects must be to
# each other. No normal distribution has that shape, with or without correlations. In terms of
# `raw`, as above, most of the funnel is gone, and it is the same model.


# %%
def centered(error, estimate=None):
    mean = pyro.sample("mean", dist.Normal(0.0, 0.5))
    spread = pyro.sample("spread", dist.HalfCauchy(0.5))
    with pyro.plate("school", 8):
        effect = pyro.sample("effect", dist.Normal(mean, spread))
    with pyro.plate("data", 8):
        pyro.sample("estimate", dist.Normal(effect, error), obs=estimate)


def funnel(posterior):
    """Draws of the first effect and the log of the spread, (2, draws)."""
    return np.stack(
        (posterior["effect"][..., 0].values.ravel(), np.log(posterior["spread"].values.ravel()))
    )


funnels = {}
for name, guide in {"mean field": AutoNormal, "multivariate": AutoMultivariateNormal}.items():
    gen = program(centered, guide)
    pg.fit(gen, few, steps=600, optimizer=pg.train.adam(0.05), **quick)
    khat = float(pg.khat(gen, *few, particles=20000))
    funnels[f"{name}, k-hat {khat:.2f}"] = funnel(
        pg.to_arviz(gen, *few, draws=4000, groups=["posterior"]).posterior
    )
    print(f"effect ~ Normal(mean, spread), {name}: k-hat {khat:.2f}")
print(f"effect = mean + spread * raw, mean field: k-hat {schools_khat:.2f}")

# %%
figure, axes = plt.subplots(1, 4, figsize=(15, 4), layout="constrained")
limit = 1.05 * by_nuts.std(0).max()
axes[0].fill_between([0, limit], [0, limit], color="0.95")
axes[0].text(
    0.95 * limit,
    0.87 * limit,
    "as wide as the posterior",
    color="0.5",
    rotation=45,
    ha="right",
    va="top",
)
axes[1].scatter(*by_nuts[:, pair].T, s=4, color=NUTS, alpha=0.35, lw=0, label="NUTS")
for (name, data), color in zip(tumors_svi.items(), (MEAN_FIELD, FULL), strict=True):
    slopes = data.posterior["slope"].values.reshape(-1, 30).T
    axes[0].plot(by_nuts.std(0), slopes.std(1), "o", color=color, ms=5, alpha=0.8, label=name)
    axes[1].plot(
        *ellipse(slopes[pair].mean(1), np.cov(slopes[pair])), color=color, lw=2, label=name
    )
axes[0].set(title="Guides too narrow, a mean field most", xlim=(0, limit), ylim=(0, limit))
axes[0].set(xlabel="sd of each slope, NUTS", ylabel="sd of each slope, SVI")
axes[1].set(
    title="... since it knows no correlations",
    xlabel=f"slope of {names[0]}",
    ylabel=f"slope of {names[1]}",
)
for ax in axes[2:]:
    ax.scatter(*funnel(schools_nuts.posterior), s=4, color=NUTS, alpha=0.25, lw=0, label="NUTS")
    ax.set(xlabel="effect in school A", ylabel="log spread", xlim=(-1.5, 3.5), ylim=(-6, 2))
for (name, draws), color in zip(funnels.items(), (MEAN_FIELD, FULL), strict=True):
    axes[2].plot(*ellipse(draws.mean(1), np.cov(draws)), color=color, lw=2, label=name)
axes[2].set(title="Normal guides miss most of a funnel")
name = f"mean field, k-hat {schools_khat:.2f}"
axes[3].scatter(*funnel(schools_svi.posterior), s=4, color=REWRITTEN, alpha=0.25, lw=0, label=name)
axes[3].set(title="... and less of it once rewritten")
for ax in axes:
    legend = ax.legend(
        loc="lower right" if ax in axes[2:] else "upper left", markerscale=1 if ax is axes[0] else 3
    )
    for handle in legend.legend_handles:
        handle.set_alpha(1)
figure.savefig(OUTPUT / "trust.png")

# %% [markdown]
# **What to do**, in this order:
#
# 1. Look at k-hat. Up to 0.7 the guide will do, and weights can correct what is left.
# 2. Rewrite the model so that latent variables do not scale each other (`mean + spread * raw`)
# where groups are small. 3. Let the guide know correlations: `AutoMultivariateNormal`, for up to
# some hundred latent variables. 4. Let NUTS have the last word on intervals. `pg.mcmc(model, *data,
# init=guide)` starts where the guide is; in a mixture, with its labels. 5. Where only predictions
# count, compare held-out scores instead.  All of it in one table: milliseconds per step of SVI, as
# a program and compiled, and the seconds that compiling took; the guide's k-hat, and how wide its
# marginals are relative to those of NUTS (median); the seconds of NUTS, compilation included, and
# its effective draws per second where they are fewest among the variables of the tables above.

# %%
print(pd.DataFrame(summary).T.to_string(float_format="{:.2f}".format, na_rep="-"))
pd.DataFrame(summary).T.to_csv(OUTPUT / "summary.csv")
tumors_nuts.to_netcdf(str(OUTPUT / "tumors.nc"))
print(f"figures, this table and a posterior (tumors.nc) are in {OUTPUT.resolve()}")
