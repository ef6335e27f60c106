# %% [markdown]
# # Latent variables: hierarchies, tokens, and labels that are mostly missing
#
# A variational autoencoder has one vector of latents with a prior that is chosen beforehand. Here
# are its relatives: latents on several levels, a prior that is made of the encoder, latents that
# are tokens, and a latent that is a label, known for a few rows. All of them are Pyro programs with
# a guide, trained by the same `fit` and scored by the same `log_likelihood`, which says of each
# number what it is. About a minute on one core.

# %%
import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pyro.distributions as dist
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.distributions import constraints

import probgen as pg
from probgen.heads import Bernoulli, Categorical, Gaussian
from probgen.latents import Level, VampPrior
from probgen.nn import MLP, Codebook, Tokens
from probgen.train import Labeled

parser = argparse.ArgumentParser()
parser.add_argument("--output", type=Path, default=Path("latents_output"))
OUTPUT = parser.parse_known_args()[0].output
OUTPUT.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)

digits = load_digits()
pixels = torch.bernoulli(torch.tensor(digits.images / 16, dtype=torch.float32)).flatten(1)
labels = torch.tensor(digits.target)
x = pixels[:1347]
held_out = pixels[1347:]
quiet = {"progress": False, "verdict": False, "seed": 0, "batch_size": 100, "compile": False}
adam = pg.train.adam(2e-3)


def warmup(steps):
    """The divergence counts little at first, so that no latent is given up before it is used."""
    return pg.ELBO(beta=pg.objectives.linear_warmup(steps, start=0.1))


def score(name, gen):
    """The log-likelihood of the held-out digits, in nats a digit."""
    found = pg.log_likelihood(gen, held_out, particles=100)
    print(f"{name:28s} {found}")
    return found


def drawn_in(axis, rows, title, columns):
    """Images as a grid."""
    look = {"shape": (8, 8), "bounds": (0.0, 1.0), "cmap": "gray_r"}
    pg.plot.images(rows, columns=columns, ax=axis, **look).set_title(title, fontsize=9)


def save(figure, name):
    figure.savefig(OUTPUT / name, dpi=90, bbox_inches="tight")


# %% [markdown]
# ## A prior that is made of the encoder
#
# The best prior of a VAE is the average of its encoder over all data, for then what is drawn from
# the prior looks to the decoder like what it was trained on. `VampPrior` learns a few inputs whose
# encodings are that average. The encoder is one module in two places, with one set of weights.


# %%
def vae(prior):
    return pg.VAE(prior, Bernoulli(MLP(8, [128], 64)), encoder())


def encoder():
    return Gaussian(MLP(64, [128], 16))


plain = vae(pg.standard_normal(8))
pg.fit(plain, x, warmup(300), steps=1000, optimizer=adam, **quiet)
shared = encoder()
inputs = x[torch.randperm(len(x))[:40]]
prior = VampPrior(shared, inputs, support=constraints.unit_interval, learned_weights=True)
vamp = pg.VAE(prior, Bernoulli(MLP(8, [128], 64)), shared)
pg.fit(vamp, x, warmup(300), steps=1000, optimizer=adam, **quiet)
normal_score = score("VAE, normal prior", plain)
vamp_score = score("VAE, VampPrior", vamp)

# %% [markdown]
# The learned inputs, the most probable first: prototypes of the digits.

# %%
order = prior.logits.argsort(descending=True)
figure, axis = plt.subplots(figsize=(6, 2))
drawn_in(axis, prior.pseudo_inputs[order][:30], "pseudo-inputs", 15)
save(figure, "pseudo_inputs.png")

# %% [markdown]
# ## Levels
#
# A hierarchy draws the upper latents first, the lower ones given them, the pixels given both. Its
# guide goes the same way down, with what the pixels say at each level. Which level knows what?
# Below, each column keeps one draw of the upper level while the lower one is drawn anew: the upper
# level has chosen the digit, the lower one its strokes.

# %%
levels = Level.dense(64, [4, 8], width=128)
hierarchy = pg.HierarchicalVAE(levels, Bernoulli(MLP(128, [128], 64)))
pg.fit(hierarchy, x, warmup(400), steps=1000, optimizer=adam, **quiet)
hierarchy_score = score("two levels", hierarchy)


@torch.no_grad()
def lower_levels(columns, rows):
    """Mean pixels: one draw of the upper level for each column, the lower one drawn in each row."""
    top, lowest = hierarchy.levels
    upper = top.step(top.prior().sample((columns,)))
    state = upper.expand(rows, *upper.shape)
    lower = lowest.prior(state).sample()
    return hierarchy.decoder(lowest.step(torch.cat([state, lower], -1))).mean


figure, axis = plt.subplots(figsize=(6, 3))
drawn = lower_levels(12, 5)
drawn_in(axis, drawn.flatten(0, 1), "one draw of the upper level in each column", 12)
save(figure, "levels.png")

# %% [markdown]
# How much the dims of a latent depend on each other is a number too, with its error: the total
# correlation of the VAE's codes, and what becomes of it under the objective that charges for it.

# %%
untangled = vae(pg.standard_normal(8))
charged = pg.objectives.TotalCorrelation(rows=len(x), beta=6.0)
pg.fit(untangled, x, charged, steps=1000, optimizer=adam, **quiet)
for name, gen in (("ELBO", plain), ("TotalCorrelation(beta=6)", untangled)):
    parts = pg.diagnostics.total_correlation(gen, x, draws=2, seed=0)
    error = parts.stderr["total_correlation"]
    print(
        f"{name:25s} total correlation {parts.total_correlation:5.2f} ± {error:.2f} nats, "
        f"mutual information {parts.mutual_information:5.2f}"
    )

# %% [markdown]
# ## Tokens
#
# `VQVAE` says an image in four tokens out of 32. Any family over integers is their prior; here a
# Transformer. Two fits: the tokens first, under a uniform prior, then their prior, of the tokens as
# they then are. The score is a *bound*, for it counts only the tokens that the encoder chooses.

# %%
grid = nn.Sequential(nn.Unflatten(-1, (1, 8, 8)), nn.Conv2d(1, 32, 4, 2, 1), nn.SiLU())
convolutions = nn.Sequential(grid, nn.Conv2d(32, 8, 4, 2, 1))
back = nn.Sequential(
    nn.ConvTranspose2d(8, 32, 4, 2, 1),
    nn.SiLU(),
    nn.ConvTranspose2d(32, 1, 4, 2, 1),
    nn.Flatten(-3),
)
decoder = Bernoulli(back, context_ndim=3)
uniform = pg.Fixed(dist.Categorical, event_ndim=2, logits=torch.zeros(2, 2, 32))
tokenizer = pg.VQVAE(convolutions, decoder, Codebook(32, 8), uniform)
pg.fit(tokenizer, x, steps=800, optimizer=pg.train.adam(3e-3), **quiet)
tokens = tokenizer.tokens(x)
words = pg.Transformer((2, 2), Categorical(levels=32), Tokens(32, 32), layers=2, heads=2)
pg.fit(words, tokens, steps=250, optimizer=adam, **quiet)
told = pg.VQVAE(convolutions, tokenizer.decoder, tokenizer.quantizer, words)
score("four tokens, uniform prior", tokenizer)
token_score = score("four tokens, Transformer", told)
print("codes in use:", len(tokens.unique()), "of 32")

figure, axes = plt.subplots(1, 2, figsize=(8, 2))
for axis, prior, by in zip(
    axes, (uniform, words), ("at random", "by the Transformer"), strict=True
):
    with torch.no_grad():
        codes = tokenizer.quantizer.embed(pg.sample(prior, 40, seed=1).long()).movedim(-1, -3)
        drawn_in(axis, tokenizer.decoder(codes).mean, f"tokens drawn {by}", 10)
save(figure, "tokens.png")

# %% [markdown]
# ## Labels that are mostly missing
#
# The label is one more latent variable, observed in a few rows: five of each digit here, NaN in the
# others, where it is summed out. The same classifier trained on the fifty labels alone is the
# comparison.

# %%
known = torch.cat([(labels[:1347] == k).nonzero()[:5, 0] for k in range(10)])
partly = torch.full((1347,), torch.nan)
partly[known] = labels[known].float()


def errors(predicted):
    return 100 * (predicted != labels[1347:]).float().mean().item()


supervised = Categorical(MLP(64, [128], 10, dropout=0.3), levels=10)
targets = partly[known].unsqueeze(-1)
pg.fit(supervised, (targets, x[known]), steps=300, **{**quiet, "batch_size": 50})
alone = supervised(held_out).base_dist.probs.argmax(-1).squeeze(-1)
semi = pg.SemiSupervisedVAE(
    pg.standard_normal(4),
    Bernoulli(MLP(14, [128], 64)),
    Gaussian(MLP(74, [128], 8)),
    MLP(64, [128], 10, dropout=0.3),
    10,
    alpha=10.0,
)
pg.fit(semi, Labeled(x, partly, labeled_share=0.1), steps=1200, optimizer=adam, **quiet)
print(f"errors of 450 digits by 50 labels: {errors(alone):.1f} % supervised", end=", ")
print(f"{errors(semi.predict(held_out)):.1f} % with the 1,297 unlabeled digits")

# %% [markdown]
# And it draws: each row a style, each column a label.

# %%
with torch.no_grad():
    styles = semi.prior().sample((5, 1)).expand(5, 10, 4)
    each = torch.eye(10).expand(5, 10, 10)
    pictures = semi.decode(styles, each).mean
figure, axis = plt.subplots(figsize=(5, 2.5))
drawn_in(axis, pictures.flatten(0, 1), "a style in each row, a label in each column", 10)
save(figure, "styles.png")

best = max(normal_score.mean, vamp_score.mean, hierarchy_score.mean)
print(f"best score of the three latent-variable models: {best:.2f} nats a digit")
