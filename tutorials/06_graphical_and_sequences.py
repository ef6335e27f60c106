# %% [markdown]
# # Graphs: networks, trees, fields, and chains of hidden states
#
# Where it is known who depends on whom, a graph says so, and its answers can be exact: a small
# medical network read from a file, asked questions and learned from records with gaps; a tree and a
# field of pixels, learned from digits; and a hidden Markov model of a century of earthquakes, with
# the posterior of its transitions in ArviZ. It takes about half a minute.

# %%
import argparse
import dataclasses
from pathlib import Path

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro.distributions as dist
import torch

import probgen as pg
from probgen.distributions.graphical.dependence_tree import mutual_information, pair_counts

parser = argparse.ArgumentParser()
parser.add_argument("--output", type=Path, default=Path("graphical_output"))
OUTPUT = parser.parse_known_args()[0].output
OUTPUT.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)
torch.set_num_threads(1)
plt.rcParams.update(
    {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "font.size": 9}
)

# %% [markdown]
# ## A network from a file
#
# The chest clinic of Lauritzen and Spiegelhalter (1988): a visit to Asia raises the risk of
# tuberculosis, smoking those of lung cancer and bronchitis; an X-ray does not tell tuberculosis
# from cancer, and all three make short of breath. `read_bif` reads the files of the bnlearn
# repository; here the text itself.

# %%
ASIA = """
network asia { }
variable asia { type discrete [ 2 ] { no, yes }; }
variable tub { type discrete [ 2 ] { no, yes }; }
variable smoke { type discrete [ 2 ] { no, yes }; }
variable lung { type discrete [ 2 ] { no, yes }; }
variable bronc { type discrete [ 2 ] { no, yes }; }
variable either { type discrete [ 2 ] { no, yes }; }
variable xray { type discrete [ 2 ] { no, yes }; }
variable dysp { type discrete [ 2 ] { no, yes }; }
probability ( asia ) { table 0.99, 0.01; }
probability ( tub | asia ) { (no) 0.99, 0.01; (yes) 0.95, 0.05; }
probability ( smoke ) { table 0.5, 0.5; }
probability ( lung | smoke ) { (no) 0.99, 0.01; (yes) 0.9, 0.1; }
probability ( bronc | smoke ) { (no) 0.7, 0.3; (yes) 0.4, 0.6; }
probability ( either | lung, tub ) { (no, no) 1.0, 0.0; default 0.0, 1.0; }
probability ( xray | either ) { (no) 0.95, 0.05; (yes) 0.02, 0.98; }
probability ( dysp | bronc, either ) {
  (no, no) 0.9, 0.1; (yes, no) 0.2, 0.8; (no, yes) 0.3, 0.7; (yes, yes) 0.1, 0.9;
}
"""
asia = pg.graphical.parse_bif(ASIA)
network = pg.BayesianNetwork.from_tables(asia.tables, asia.parents)
print(f"{len(asia.tables)} nodes; exact answers by variable elimination: {network().plan}")

# %% [markdown]
# A question is a row of x with NaN where nothing is known. All marginals come from one pass back
# through the elimination; `log_prob` of the row is the probability of the evidence, `mode` the most
# probable whole story.

# %%
findings = {
    "nothing known": {},
    "short of breath": {"dysp": "yes"},
    "... back from Asia": {"dysp": "yes", "asia": "yes"},
    "... X-ray is dark": {"dysp": "yes", "asia": "yes", "xray": "yes"},
    "... and smokes": {"dysp": "yes", "asia": "yes", "xray": "yes", "smoke": "yes"},
}
diseases = ["tub", "lung", "bronc"]
rows = torch.cat([asia.row(**evidence) for evidence in findings.values()])
marginals = network.marginals(rows)
answers = pd.DataFrame(
    {name: marginals[name][:, 1].numpy() for name in diseases}, index=list(findings)
)
answers["P(evidence)"] = network().log_prob(rows).exp().detach().numpy()
print(answers.round(4).to_string())
story = network.mode(rows[-1:])[0]
names = zip(asia.states.items(), story.long().tolist(), strict=True)
print("most probable story:", ", ".join(f"{name} {states[code]}" for (name, states), code in names))

# %% [markdown]
# ## Learning from records with gaps
#
# Half of all entries of 2,000 records are lost. EM sums the gaps out exactly; keeping complete
# records only leaves a handful of rows. Scores are on 5,000 new records, and all numbers are exact.

# %%
records = network().sample((2000,))
fresh = network().sample((5000,))
gaps = records.masked_fill(torch.rand_like(records) < 0.5, torch.nan)


def untaught():
    nodes = {
        name: pg.graphical.ProbabilityTable(2, (2,) * len(asia.parents[name]), pseudo_count=0.1)
        for name in asia.tables
    }
    return pg.BayesianNetwork(nodes, asia.parents)


learners = {
    "complete records only": gaps[~gaps.isnan().any(-1)],
    "EM on all with gaps": gaps,
    "no gaps": records,
}
print(f"{'the true network':22s} {pg.log_likelihood(network, fresh)}")
for name, data in learners.items():
    learned = untaught()
    result = pg.em(learned, data, tol=1e-6, max_iter=1000, seed=0)
    print(
        f"{name:22s} {pg.log_likelihood(learned, fresh)}   ({len(data)} rows, {result.n_iter} "
        "steps)"
    )
filled = pg.impute(network, gaps[:3], draws=500)
print(
    f"gaps filled in, {filled.kind}: P(bronchitis) of three records", filled.mean()[:, 4].tolist()
)

# %% [markdown]
# ## Which pixel depends on which? A tree, and a field
#
# The ink of scikit-learn's digits, 8 x 8 bits. A Chow-Liu tree finds, in closed form, the tree of
# pixels that explains most; a Markov random field couples all neighbors of the grid. The field's
# constant Z sums 2 ** 64 images: variable elimination needs tables of 256 entries, so that maximum
# likelihood is exact.

# %%
digits = pg.datasets.load_digits()
train, test = (part.flatten(1).gt(7).float() for part in (digits.train, digits.test))
apart = pg.Fixed(dist.Bernoulli, probs=(train.sum(0) + 1) / (len(train) + 2))
tree = pg.ChowLiu((2,) * 64)
pg.em(tree, train)
field = pg.MarkovRandomField((64,), pg.graphical.grid_edges(8, 8))
options = {
    "batch_size": len(train),
    "optimizer": pg.train.adam(0.1),
    "compile": False,
    "progress": False,
    "verdict": False,
}
history = pg.fit(field, train, steps=120, **options)
print(f"field: {field().factors.plan()}; {history}")
for name, gen in {"independent pixels": apart, "tree": tree, "field": field}.items():
    print(f"{name:19s} {pg.log_likelihood(gen, test)}")
upper = test[:500].clone()
upper[:, 32:] = torch.nan
for name, gen in {"tree": tree, "field": field}.items():
    given = gen().marginals(upper)[:, 32:, 1].detach()
    right = (given.gt(0.5) == test[:500, 32:].bool()).float().mean()
    print(f"lower half given the upper half, {name}: {100 * right:.1f} % of the bits right")
beliefs = field.belief_propagation(damping=0.3)
truth = field()
error = (beliefs.nodes[0, :, 1] - truth.mean.detach()).abs().max()
gap = beliefs.log_partition.item() - truth.log_partition().item()
print(f"loopy belief propagation: marginals off by up to {error:.3f}, log Z by {gap:.2f} nats")

# %% [markdown]
# ## A century of earthquakes
#
# Earthquakes of magnitude 7 or more per year in the whole world, 1900 to 2006 (Zucchini, MacDonald
# 2009, table 1.1). Counts of one Poisson distribution would have a variance like their mean; these
# have not. A hidden Markov model lets the rate change between a few regimes. By maximum likelihood
# first, for two to four of them.

# %%
QUAKES = """
13 14 8 10 16 26 32 27 18 32 36 24 22 23 22 18 25 21 21 14 8 11 14 23 18 17 19 20 22 19 13 26 13 14 22 24 21 22 26 21
23 24 27 41 31 27 35 26 28 36 39 21 17 22 17 19 15 34 10 15 22 18 15 20 15 22 19 16 30 27 29 23 20 16 21 21 25 16 18 15
18 14 10 15 8 15 6 11 8 7 18 16 13 12 13 20 15 16 12 18 15 16 13 15 16 11 11
"""
counts = torch.tensor([float(count) for count in QUAKES.split()])
years = 1900 + np.arange(len(counts))
x = counts.reshape(1, -1, 1)
print(f"{len(counts)} years, mean {counts.mean():.1f}, variance {counts.var():.1f}")
for states in (2, 3, 4):
    by_em = pg.HiddenMarkovModel(states, len(counts), pg.sequences.PoissonEmission(states))
    pg.em(
        by_em, x.expand(2, -1, -1), tol=1e-5, n_init=3, seed=0
    )  # the same sequence twice: the same maximum
    free = states**2 + states - 1
    value = by_em().log_prob(x).item()
    print(
        f"{states} regimes: log-likelihood {value:.2f}, BIC "
        f"{free * np.log(len(counts)) - 2 * value:.1f}"
    )

# %% [markdown]
# ## How long does a regime last? The posterior
#
# 107 numbers do not determine nine transition probabilities. With priors (Dirichlet distributions
# on the rows of the transition matrix, a Gamma distribution on rates) and the hidden states summed
# out, NUTS draws from the exact posterior. Regimes are named by their rates.

# %%
REGIMES = ["quiet", "usual", "busy"]
sticky = pg.Fixed(dist.Dirichlet, concentration=torch.ones(3, 3) + 2 * torch.eye(3))
rates = pg.Fixed(dist.Gamma, concentration=torch.tensor([4.0]), rate=0.2)
bayesian = pg.BayesianHiddenMarkovModel(
    3, len(counts), pg.sequences.poisson_emission, {"rates": rates}, transition=sticky
)
chains = pg.mcmc(bayesian, x, draws=300, tune=300, chains=2, seed=0, progress=False)
chains = dataclasses.replace(chains, draws=bayesian.in_order(chains.draws, "rates"))
inference = pg.to_arviz(
    bayesian,
    x,
    chains=chains,
    coords={"regime": REGIMES, "next": REGIMES},
    dims={
        "initial": ["regime"],
        "rates": ["regime", "per_year"],
        "transitions": ["regime", "next"],
    },
    groups=("posterior", "sample_stats"),
)
print(az.summary(inference, var_names=["rates", "transitions"]).round(2).to_string())
inference.to_netcdf(str(OUTPUT / "earthquakes.nc"))
values = chains.merged
with torch.no_grad():
    distribution = bayesian.given(values)
    regimes = distribution.smooth(x[0])  # of each draw: probabilities of the regimes, year by year
level = (regimes * values["rates"][..., 0][:, None]).sum(-1)
lasts = 1 / (1 - values["transitions"].diagonal(dim1=-2, dim2=-1))
for index, name in enumerate(REGIMES):
    low, mid, high = lasts[:, index].quantile(lasts.new_tensor([0.05, 0.5, 0.95])).tolist()
    print(f"a {name} regime lasts {mid:.0f} years on average (90 %: {low:.0f} to {high:.0f})")

# %% [markdown]
# ## The picture

# %%
COLOURS = ["#2e86ab", "#8d99a6", "#e4572e"]
figure, axes = plt.subplots(
    1, 4, figsize=(15, 3.4), width_ratios=[1.15, 0.8, 1.6, 1], layout="constrained"
)
places = np.arange(len(findings))[::-1]
for index, (disease, label) in enumerate(
    zip(diseases, ("tuberculosis", "lung cancer", "bronchitis"), strict=True)
):
    axes[0].barh(
        places - 0.27 * (index - 1), answers[disease], 0.25, color=COLOURS[::-1][index], label=label
    )
axes[0].set_yticks(places, list(findings))
axes[0].set(title="What the clinic should believe", xlim=(0, 1), xlabel="probability")
axes[0].legend(loc="lower right", fontsize=7)
axes[1].imshow(train.mean(0).reshape(8, 8), cmap="Greys", vmax=1.6)
shared = mutual_information(pair_counts(train, tree.levels))
for child, parent in enumerate(tree.parents.tolist()):
    if parent >= 0 and shared[child, parent] > 0.01:  # pixels that are never inked tell nothing
        (i, j), (k, m) = divmod(child, 8), divmod(parent, 8)
        axes[1].plot([j, m], [i, k], color=COLOURS[2], lw=1.6)
axes[1].set(title="The best tree of pixels", xticks=[], yticks=[])
pg.plot.forecast(level, counts, levels=(0.9,), start=0, time=years, ax=axes[2])
axes[2].set(xlabel="year", ylabel="earthquakes", xlim=(1899.5, 2006.5))
axes[2].set_title("Earthquakes a year, and their hidden rate", loc="left", y=1.1)
for index, (name, color) in enumerate(zip(REGIMES, COLOURS, strict=True)):
    stays = inference.posterior["transitions"].values[..., index, index].ravel()
    grid, density, *_ = az.kde(stays, bound_correction=True)
    axes[3].fill_between(grid, density, color=color, alpha=0.4, lw=0, label=name)
axes[3].set(
    title="P(the regime stays another year)",
    xlim=(0.3, 1),
    ylim=(0, None),
    yticks=[],
    xlabel="probability",
)
axes[3].legend(loc="upper left")
figure.savefig(OUTPUT / "graphical.png", dpi=80)
print(f"the picture and the posterior (earthquakes.nc) are in {OUTPUT.resolve()}")
