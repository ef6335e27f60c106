# %% [markdown]
# # Your own model
#
# You have a Pyro model; probgen fits it, checks it and compares it. Nothing has to be rewritten:
# `Program(model, guide)` wraps any pair of Pyro functions, and from there `fit`, `mcmc`,
# `to_arviz`, `loo` work as for the built-in families.  The data are scikit-learn's diabetes
# patients (Efron, Hastie, Johnstone, Tibshirani 2004): 442 of them, a measure of disease
# progression after one year, and measurements at its start. Does the effect of the body mass index
# change with age? We let every age group have its own line, and let the data say how similar the
# groups are.

# %%
import argparse
import time
from pathlib import Path

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoMultivariateNormal
from sklearn.datasets import load_diabetes

import probgen as pg

parser = argparse.ArgumentParser()
parser.add_argument("--output", type=Path, default=Path("your_own_model_output"))
OUTPUT = parser.parse_known_args()[0].output
OUTPUT.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)

table = load_diabetes(as_frame=True, scaled=False).frame
AGES = ["19-34", "35-44", "45-54", "55-64", "65-79"]
group = torch.as_tensor(np.digitize(table["age"], [35, 45, 55, 65]))
standardized = (table - table.mean()) / table.std()
bmi = torch.tensor(standardized["bmi"].to_numpy(), dtype=torch.float32)
y = torch.tensor(standardized["target"].to_numpy(), dtype=torch.float32)
print(
    f"{len(y)} patients; per age group: {dict(zip(AGES, group.bincount().tolist(), strict=True))}"
)

# %% [markdown]
# ## Two models
#
# In the pooled model one line serves everybody. In the hierarchical one each age group has its own
# intercept and slope, drawn around common ones (in the non-centered form, which samplers and guides
# like better). The plate `"data"` tells what the rows are: mini-batches, pointwise log-likelihoods
# and cross-validation all follow from it.


# %%
def pooled(group, bmi, y=None):
    intercept = pyro.sample("intercept", dist.Normal(0.0, 1.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("data", len(bmi)):
        pyro.sample("y", dist.Normal(intercept + slope * bmi, noise), obs=y)


def hierarchical(group, bmi, y=None):
    intercept = pyro.sample("intercept", dist.Normal(0.0, 1.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    spread = pyro.sample("spread", dist.HalfNormal(0.5).expand([2]).to_event(1))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("age", len(AGES)):
        offset = pyro.sample("offset", dist.Normal(torch.zeros(2), 1.0).to_event(1)) * spread
        line = pyro.deterministic(
            "line", torch.stack((intercept + offset[:, 0], slope + offset[:, 1]), -1)
        )
    with pyro.plate("data", len(bmi)):
        pyro.sample("y", dist.Normal(line[group, 0] + line[group, 1] * bmi, noise), obs=y)


programs = {
    model.__name__: pg.Program(model, AutoMultivariateNormal(model))
    for model in (pooled, hierarchical)
}

# %% [markdown]
# ## Before the data: what does the prior believe?
#
# Lines drawn from the prior should be possible, and not much narrower or wider than that.

# %%
prior = pg.prior_predictive(programs["hierarchical"], group, bmi, draws=200)
print({name: tuple(values.shape) for name, values in prior.items()})
print(f"prior predictive sd of y: {prior['y'].std():.2f} (the data's is 1)")

# %% [markdown]
# ## Variational inference
#
# `fit` returns the history with a verdict: whether the loss has settled, and how far the guide is
# from the posterior (PSIS k-hat; above 0.7 the approximation should not be trusted).

# %%
options = {
    "batch_size": len(y),
    "optimizer": pg.train.adam(0.02),
    "ema": 0.99,
    "seed": 1,
    "progress": False,
}
for name, program in programs.items():
    history = pg.fit(program, (group, bmi, y), steps=1500, **options)
    print(f"{name}: {history}")

# %% [markdown]
# ## The same posterior by MCMC
#
# The No-U-Turn sampler is exact in the limit; it is slower. Chains that start at draws from the
# guide need less warm-up. Does SVI agree with it?

# %%
began = time.perf_counter()
start = pg.posterior(programs["hierarchical"], group, bmi, y, draws=2)
start.pop("line")  # follows from the others
sizes = {"draws": 150, "tune": 150, "chains": 2}
chains = pg.mcmc(
    programs["hierarchical"], group, bmi, y, init=start, seed=0, progress=False, **sizes
)
print(f"NUTS took {time.perf_counter() - began:.0f} s")
labels = {
    "coords": {"age": AGES, "line_part": ["intercept", "slope"]},
    "dims": {"line": ["line_part"]},
}
by_mcmc = pg.to_arviz(programs["hierarchical"], group, bmi, y, chains=chains, draws=150, **labels)
by_svi = {
    name: pg.to_arviz(
        program, group, bmi, y, draws=600, **(labels if name == "hierarchical" else {})
    )
    for name, program in programs.items()
}
print(
    az.summary(by_mcmc, var_names=["intercept", "slope", "spread", "noise"], kind="all")
    .round(2)
    .to_string()
)

# %%
both = {"NUTS": by_mcmc, "SVI": by_svi["hierarchical"]}
shown = {"var_names": ["line", "slope", "noise"], "combined": True}
if az.__version__.startswith("0."):
    az.plot_forest(list(both.values()), model_names=list(both), **shown)
else:
    az.plot_forest(both, **shown)
plt.savefig(OUTPUT / "forest.png", dpi=120, bbox_inches="tight")
gap = by_mcmc.posterior["line"].mean(("chain", "draw")) - by_svi["hierarchical"].posterior[
    "line"
].mean(("chain", "draw"))
width = by_mcmc.posterior["line"].std(("chain", "draw"))
print(
    f"largest difference of a posterior mean: {float(abs(gap / width).max()):.2f} posterior "
    "standard deviations"
)

# %% [markdown]
# ## Is the model any good? Posterior predictive checks
#
# The mean is easy to get right. The skewness of the residuals asks more: would data from this model
# look like ours?


# %%
def skewness(y):
    centered = y - y.mean(-1, keepdim=True)
    return (centered**3).mean(-1) / (centered**2).mean(-1) ** 1.5


check = pg.predictive_check(programs["hierarchical"], group, bmi, y, statistic=skewness, draws=300)
print(f"skewness of y {check.observed:.2f}, of replicated data {check.replicated.mean():.2f}")
print(
    f"Bayesian p-value {float(check.p_value):.2f}: the data are more skewed than normal noise "
    "allows"
)
if az.__version__.startswith("0."):
    az.plot_ppc(by_svi["hierarchical"], num_pp_samples=50)
else:
    az.plot_ppc_dist(by_svi["hierarchical"], num_samples=50)
plt.savefig(OUTPUT / "predictive_check.png", dpi=120, bbox_inches="tight")

# %% [markdown]
# ## Which model predicts better?
#
# Leave-one-out cross-validation, by importance sampling that corrects for the guide as well. Where
# the guide is too far from the posterior it says so (k-hat), and the draws of the sampler are the
# ones to use. The difference is paired, row by row: that is what its standard error is about.

# %%
scores = {
    "pooled, SVI": by_svi["pooled"],
    "hierarchical, SVI": by_svi["hierarchical"],
    "hierarchical, NUTS": by_mcmc,
}
scores = {name: pg.loo(data) for name, data in scores.items()}
for name, score in scores.items():
    print(f"{name:19s} {score}")
gain = scores["hierarchical, NUTS"].pointwise - scores["pooled, SVI"].pointwise
print(f"hierarchical - pooled: {gain.sum():.1f} ± {gain.std() * len(gain) ** 0.5:.1f} nats")

# %% [markdown]
# ## The picture
#
# One line per age group, with the uncertainty of the posterior.

# %%
draws = by_svi["hierarchical"].posterior["line"].values[0]
grid = np.linspace(-2.2, 3.5, 50)
figure, axes = plt.subplots(1, len(AGES), figsize=(14, 3.2), sharey=True, layout="constrained")
for index, (ax, age) in enumerate(zip(axes, AGES, strict=True)):
    lines = draws[:, index, :1] + draws[:, index, 1:] * grid
    mine = group == index
    pg.plot.curves(grid, lines, x=bmi[mine], y=y[mine], levels=(0.9,), ax=ax)
    ax.set(title=f"age {age}", xlabel="body mass index (sd)", ylabel="")
axes[0].set_ylabel("disease progression (sd)")
figure.savefig(OUTPUT / "lines.png", dpi=120)
by_svi["hierarchical"].to_netcdf(str(OUTPUT / "hierarchical.nc"))
print(f"figures and the posterior are in {OUTPUT.resolve()}")
