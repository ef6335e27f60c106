# %% [markdown]
# # Energies and GANs: models without a density to read off
#
# Some models say how rows compare and not how likely they are; others only draw. They are trained
# by objectives of their own and scored with more care, and stand wherever a distribution stands:
# `pg.fit`, `pg.sample`, `pg.impute`, as a prior of another model. About two minutes on a laptop.

# %%
import argparse
import itertools
import math
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pyro.distributions as dist
import torch
from sklearn.datasets import load_digits
from torch import nn

import probgen as pg

parser = argparse.ArgumentParser()
parser.add_argument("--output", type=Path, default=Path("energy_and_gan_output"))
OUTPUT = parser.parse_known_args()[0].output
OUTPUT.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)
quiet = {
    "progress": False,
    "verdict": False,
    "seed": 0,
    "compile": False,
}  # trainings of seconds do not amortize compiling


def falling(steps):
    """Learning rates that fall to nothing along a line."""
    return partial(
        torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.02, total_iters=steps
    )


def show(panel, rows, columns=None, title="", **look):
    """Images as one grid, between 0 and 1 where nothing else is said."""
    look = {"bounds": (0.0, 1.0), "cmap": "gray_r", **look}
    pg.plot.images(rows, shape=(8, 8), columns=columns, ax=panel, **look)
    panel.set_title(title, fontsize=10)


def bare(panel, title=None):
    panel.set(xticks=[], yticks=[])
    if title:
        panel.set_title(title, fontsize=10)


# %% [markdown]
# ## A restricted Boltzmann machine
#
# It gives every picture of black and white pixels a weight: $\log p(v) = \log \sum_h e^{b^\top v +
# c^\top h + v^\top W h} - \log Z$. With 10 hidden units Z is a sum over 1,024 states: an exact
# density, maximum likelihood as for any other family. With 100 it is out of reach, and `fit` takes
# contrastive divergence: its 100 persistent chains show what the model believes, and the gradient
# makes that rarer and the data likelier.

# %%
bits = [(rows.flatten(1) >= 8).float() for rows in pg.datasets.load_digits()]
train, validation, test = bits
small, wide = (pg.RBM(pg.energy.BernoulliUnits(64), hidden=hidden) for hidden in (10, 100))
small.initialize(train)
wide.initialize(train)
schedule = {"batch_size": 100, "ema": 0.99}
pg.fit(
    small,
    train,
    steps=400,
    optimizer=pg.train.adam(3e-2),
    scheduler=falling(400),
    **schedule,
    **quiet,
)
chains = pg.objectives.ContrastiveDivergence(num_steps=2, chains=100)
print(
    pg.fit(
        wide,
        train,
        chains,
        steps=1500,
        optimizer=pg.train.adam(6e-3),
        scheduler=falling(1500),
        **schedule,
        **quiet,
    )
)

# %% [markdown]
# The loss of contrastive divergence is a difference that measures nothing. Annealed importance
# sampling does: from independent pixels to the machine (a log Z that is too low in expectation) and
# back (too high). More temperatures tighten the bracket, down to the noise of its ends; on the
# small machine the truth is known.

# %%
temperatures = [3, 10, 30, 100, 300, 1000]
brackets = {
    name: [
        pg.energy.annealed_importance(rbm, train, temperatures=number) for number in temperatures
    ]
    for name, rbm in {"small": small, "wide": wide}.items()
}
print(
    f"small machine, enumerated: log Z = {small().log_z():.2f}; annealed: {brackets['small'][-1]}"
)
print(f"wide machine, annealed: {brackets['wide'][-1]}")

# %% [markdown]
# A score is of the kind of what it stands on. `Normalized` puts the estimate in the place of log Z:
# *approximate*, and such numbers are reported, not ranked. A conservative one can be:
# `reverse_annealing` scores the model whose draws are ends of annealed chains, without bias, so
# that it may lie above an exact score with proof.

# %%
pixels = pg.Factorized(64)
tree = pg.ChowLiu([2] * 64)
for baseline in (pixels, tree):
    pg.em(baseline, train)
baselines = {"independent pixels": pixels, "tree of pixels": tree, "small machine": small}
scores = {name: pg.log_likelihood(gen, test) for name, gen in baselines.items()}
scores["wide machine"] = pg.log_likelihood(
    pg.Normalized(wide, brackets["wide"][-1].value), test, particles=1
)
scores["wide machine, reverse"] = pg.energy.reverse_annealing(
    wide, test, base=train, temperatures=300, chains=4
)
for name, score in scores.items():
    print(f"{name:24s} {score}")
print("wide machine without its constant:", pg.log_likelihood(wide, test, particles=1))
print(
    "wide machine better than the tree:", scores["wide machine, reverse"] > scores["tree of pixels"]
)
try:
    print(scores["wide machine"] > scores["small machine"])
except TypeError as error:
    print("approximate against exact:", error)

# %% [markdown]
# Chains of block Gibbs steps draw, and chains with some pixels clamped complete. The kind of
# completions says so: *asymptotic*, where those of the small machine are *exact*.

# %%
moments = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
film = [wide().init_chains((8,))]
for before, after in itertools.pairwise(moments):
    film.append(wide().chain(film[-1], after - before))
halves = test[[0, 4, 8, 12, 16, 20, 24, 28]].clone()
truth = halves.clone()
halves[:, 32:] = torch.nan
torch.manual_seed(0)
completions = {
    name: pg.impute(rbm, halves, draws=200) for name, rbm in {"small": small, "wide": wide}.items()
}
print(
    "completions: small machine",
    completions["small"].kind + "; wide machine",
    completions["wide"].kind,
)


# %%
def gibbs(panel):
    """Film strips of Gibbs chains."""
    words = [str(moment) if moment < 1000 else "1k" for moment in moments]
    show(panel, torch.stack(film, 1), title="Gibbs chains: steps from noise", column_labels=words)


figure, axes = plt.subplots(
    1, 4, figsize=(15, 3.1), width_ratios=[1.2, 1.45, 1.0, 1.1], layout="constrained"
)
order = wide.weight.norm(dim=0).argsort(descending=True)
look = {"cmap": "RdBu_r", "bounds": (-1.5, 1.5)}
show(axes[0], wide.weight.T[order[:80]], 10, "what 80 hidden units look for", **look)
gibbs(axes[1])
drawn = completions["wide"]
shown = torch.stack([halves, *drawn.draws[:4], drawn.mean(), truth], 1)
words = ["given", *"1234", "mean", "true"]
show(axes[2], shown, title="lower halves, clamped chains", column_labels=words)
known = {"small": small().log_z().item(), "wide": brackets["wide"][-1].value}
for name, color in {"small": "#0072b2", "wide": "#d55e00"}.items():
    there, back = (
        [getattr(b, way).mean() - known[name] for b in brackets[name]]
        for way in ("forwards", "backwards")
    )
    axes[3].fill_between(temperatures, there, back, color=color, alpha=0.15, linewidth=0)
    axes[3].plot(
        temperatures, there, "^-", color=color, markersize=4, linewidth=1, label=f"{name} machine"
    )
    axes[3].plot(temperatures, back, "v-", color=color, markersize=4, linewidth=1)
axes[3].axhline(0, color="k", linewidth=0.8)
axes[3].set(xscale="log", xlabel="temperatures", ylabel="nats")
axes[3].set_title("error of log Z, one chain there or back", fontsize=10)
axes[3].legend(fontsize=8, frameon=False, loc="lower right")
figure.savefig(OUTPUT / "machines.png", dpi=80)

# %% [markdown]
# ## An energy in the plane
#
# `EnergyBasedModel` takes any network as $-\log p$ up to a constant. It learns by telling data from
# noise (which finds the constant too) or by matching slopes of the log-density (which does not know
# it). In the plane Z can be had from a grid as well.


# %%
def spirals(n):
    turn = math.pi * (0.25 + 1.9 * torch.rand(n).sqrt())
    side = torch.randint(2, (n, 1)) - 0.5
    return side * 0.8 * torch.stack([turn * turn.cos(), turn * turn.sin()], 1) + 0.1 * torch.randn(
        n, 2
    )


points = spirals(5000)
held_out = spirals(1000)
noise = pg.Fixed(dist.Normal, loc=torch.zeros(2), scale=1.8)
axis = torch.linspace(-4, 4, 201)
grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
cell = 2 * math.log(axis[1] - axis[0])
mixture = pg.GaussianMixture(12, 2)
pg.em(mixture, points, seed=0)
print(f"{'mixture of 12 Gaussians':24s} {pg.log_likelihood(mixture, held_out)}")
contrast = pg.objectives.NoiseContrastive(noise, ratio=4)
energies = {}
for name, objective in {
    "noise contrast": contrast,
    "denoising": pg.objectives.DenoisingScoreMatching(0.1),
}.items():
    torch.manual_seed(0)
    gen = pg.EnergyBasedModel(
        pg.nn.MLP(2, [64, 64, 64], 1),
        (2,),
        kernel=pg.samplers.Langevin(0.01),
        num_steps=90,
        base=noise,
    )
    plan = {
        "steps": 1000,
        "batch_size": 256,
        "optimizer": pg.train.adam(5e-3),
        "scheduler": falling(1000),
        "ema": 0.99,
    }
    pg.fit(gen, points, objective, **plan, **quiet)
    bracket = pg.energy.annealed_importance(gen, temperatures=100, chains=200)
    with torch.no_grad():
        surface = gen().log_prob(grid)
    exact = (surface.flatten().logsumexp(0) + cell).item()
    print(f"{name}: log Z = {exact:.2f} by the grid; {bracket}")
    print(f"{name:24s} {pg.log_likelihood(pg.Normalized(gen, exact), held_out, particles=1)}")
    energies[name] = gen
print(
    f"noise contrast: log Z = {contrast.log_normalizer.item():.2f} as learned along with the "
    "network"
)

# %%
bounds = ((-3.6, 3.6), (-3.6, 3.6))


def chains(panel):
    """Chains that roll down the energy, over the data."""
    pg.plot.paths(energies["noise contrast"], 28, x=points[:1500], seed=1, ax=panel)


figure, axes = plt.subplots(1, 3, figsize=(16, 4.4), layout="constrained")
chains(axes[0])
for panel, (name, gen) in zip(axes[1:], energies.items(), strict=True):
    pg.plot.density(gen, bounds=bounds, log=True, ax=panel)
    panel.set_title(f"learned by {name}")
figure.savefig(OUTPUT / "energy.png", dpi=80)

# %% [markdown]
# ## Two players
#
# A `GAN` is a network of noise: draws, and no density. The critic belongs to its objective; game
# and penalties are arguments. On eight modes the plain game runs after its critic and ends anywhere
# (longer training helps some seeds out: look at several). A relativistic game whose critic pays for
# its slope, on real rows (`R1`) and on fakes (`R2`), spreads over all modes, with a thread of draws
# between them that no continuous map avoids. `fit(ema=)` hands over the averaged generator.

# %%
angles = 2 * math.pi * torch.arange(8) / 8
centers = 1.4 * torch.stack([angles.cos(), angles.sin()], 1)
spread = 0.05
ring = centers[torch.randint(8, (20_000,))] + spread * torch.randn(20_000, 2)


def judged(x):
    """Modes that have draws within three standard deviations, and the share of such draws."""
    distance, nearest = torch.cdist(x, centers).min(1)
    good = distance < 3 * spread
    return nearest[good].unique().numel(), good.double().mean().item()


slopes = [pg.objectives.R1(0.02), pg.objectives.R2(0.02)]
recipes = {
    "plain": {},
    "relativistic, R1, R2": {"game": pg.objectives.Relativistic(), "regularizers": slopes},
}
shots = [25, 75, 150, 300, 600, 1200]
window = grid * 2.3 / 4
films = {name: [] for name in recipes}
print(f"{'data':30s} {judged(ring)[0]} of 8 modes, {judged(ring)[1]:.1%} of draws near one")
for seed, (name, recipe) in itertools.product(range(3), recipes.items()):
    torch.manual_seed(seed)
    gan = pg.GAN(pg.nn.MLP(2, [64] * 3, 2, nn.ReLU), pg.standard_normal(2))
    critic = pg.nn.MLP(2, [64] * 3, 1, partial(nn.LeakyReLU, 0.2))

    @torch.no_grad()
    def shoot(run, gan=gan, critic=critic, film=films[name]):
        if run.step in shots:
            with torch.random.fork_rng(devices=[]):  # who looks on does not change the run
                draws = pg.sample(gan, 1500)
            film.append((run.step, draws, critic(window).squeeze(-1)))

    plan = {
        "steps": 1200,
        "batch_size": 128,
        "ema": 0.98,
        "callbacks": [shoot] if seed == 0 else [],
    }
    pg.fit(
        gan,
        ring,
        pg.objectives.Adversarial(critic, **recipe),
        optimizer=pg.train.adam(betas=(0.5, 0.999)),
        **plan,
        **quiet,
    )
    modes, good = judged(pg.sample(gan, 2500))
    print(f"{f'{name}, seed {seed}':30s} {modes} of 8 modes, {good:.1%} of draws near one")


# %%
def played(panel, step, draws, opinion):
    """Fakes of the moment, not averaged, over what the critic thinks of the place.

    Violet is real.
    """
    panel.imshow(
        opinion,
        origin="lower",
        extent=(-2.3, 2.3, -2.3, 2.3),
        cmap="PuOr",
        interpolation="bilinear",
    )
    panel.scatter(*centers.T, s=60, facecolor="none", edgecolor="k", linewidth=0.6)
    panel.scatter(*draws.T, s=1.5, c="k", linewidths=0)
    panel.set(xlim=(-2.3, 2.3), ylim=(-2.3, 2.3))
    bare(panel, f"step {step}: {judged(draws)[0]} of 8 modes")


figure, axes = plt.subplots(2, len(shots), figsize=(15, 5.4))
for row, (name, shooting) in zip(axes, films.items(), strict=True):
    for panel, shot in zip(row, shooting, strict=True):
        played(panel, *shot)
    row[0].set_ylabel(name)
figure.tight_layout()
figure.savefig(OUTPUT / "ring.png", dpi=80)

# %% [markdown]
# ## Digits from a GAN, and what may be said of them
#
# `log_likelihood` refuses, and says what to do instead: compare draws with held-out rows. Every
# number stands beside its baseline, the same number for real rows against real ones. The writers of
# the test rows are others than those of the training rows: the baseline is not zero, nor the accuracy
# of the classifier one half. A generator that makes one digit well has a fine precision, and no
# recall.

# %%
images, unseen = (rows / 8 - 1 for rows in pg.datasets.load_digits()[::2])
plain = nn.Sequential(pg.nn.MLP(16, [128] * 2, 64, nn.ReLU), nn.Tanh(), nn.Unflatten(-1, (1, 8, 8)))
judge = nn.Sequential(nn.Flatten(), pg.nn.MLP(64, [128] * 2, 1, partial(nn.LeakyReLU, 0.2)))
images_of = pg.nn.DCGANGenerator(16, (1, 8, 8), hidden=(64, 32), norm=None)
sloped = pg.objectives.Adversarial(
    pg.nn.DCGANCritic((1, 8, 8), hidden=(32, 64)), regularizers=[pg.objectives.R1(1.0)]
)
gans = {
    "plain MLP": (pg.GAN(plain, pg.standard_normal(16)), pg.objectives.Adversarial(judge)),
    "DCGAN with R1": (pg.GAN(images_of, pg.standard_normal(16)), sloped),
}
reports = {}
drawn = {}
for name, (gan, objective) in gans.items():
    plan = {"steps": 1500, "batch_size": 64, "scheduler": falling(1500), "ema": 0.995}
    pg.fit(
        gan, images, objective, optimizer=pg.train.adam(1e-3, betas=(0.0, 0.99)), **plan, **quiet
    )
    torch.manual_seed(0)
    drawn[name] = ((pg.sample(gan, 1000) + 1) * 8).round() / 8 - 1  # pixels have 17 levels
    reports[name] = pg.sample_report(drawn[name], unseen, images, permutations=100)
    print(f"{name}: {reports[name]}")
try:
    pg.log_likelihood(gan, unseen)
except NotImplementedError as error:
    print("log_likelihood:", error)

# %%
with torch.no_grad():
    corners = torch.randn(10, 16)
    share = torch.linspace(0, math.pi / 2, 10)[:, None, None]
    walks = gan.generator(
        (share.cos() * corners + share.sin() * corners.roll(1, 0)).transpose(0, 1)
    )
figure, axes = plt.subplots(
    1, 5, figsize=(16, 3.1), width_ratios=[1, 1, 1, 1, 1.3], layout="constrained"
)
pictures = {
    "real, unseen": unseen,
    "plain MLP": drawn["plain MLP"],
    "DCGAN with R1": drawn["DCGAN with R1"],
}
for panel, (name, rows) in zip(
    axes, {**pictures, "DCGAN, between two draws": walks.flatten(0, 1)}.items(), strict=False
):
    show(panel, rows[:100].reshape(-1, 8, 8), 10, name, bounds=(-1.0, 1.0))
shown = [
    "Fréchet distance",
    "sliced Wasserstein",
    "energy test",
    "classifier test",
    "precision",
    "recall",
    "coverage",
]
for height, (name, report) in zip((0.12, -0.12), reports.items(), strict=True):
    ratio = [report[line].value / report[line].baseline for line in shown]
    places = [place + height for place in range(len(shown))]
    axes[4].hlines(places, 1, ratio, color="0.8", linewidth=1.5, zorder=1)
    axes[4].scatter([max(value, 0.06) for value in ratio], places, s=22, label=name, zorder=2)
axes[4].axvline(1, color="k", linewidth=0.8)
axes[4].set(xscale="log", yticks=range(len(shown)), xlim=(0.05, 150))
axes[4].set_yticklabels(shown, fontsize=8)
axes[4].invert_yaxis()
axes[4].set_title("a multiple of real against real", fontsize=10)
axes[4].legend(fontsize=7, frameon=False, loc="lower right")
figure.savefig(OUTPUT / "digits.png", dpi=80)

# %% [markdown]
# ## An adversary inside an autoencoder
#
# The critic may look at codes in place of pictures: `MatchedLatents` asks that the codes of all
# digits, taken together, follow the prior (an adversarial autoencoder), where the ELBO asks it of
# each digit. The prior is a ring here. Whether codes of unseen digits follow it is a question for a
# two-sample test.


# %%
def on_a_ring(angle, radius, scale):
    places = radius * torch.stack([angle.cos(), angle.sin()], -1)
    return dist.MixtureSameFamily(
        dist.Categorical(torch.ones_like(angle)), dist.Normal(places, scale).to_event(1)
    )


prior = pg.Fixed(on_a_ring, angle=2 * math.pi * torch.arange(16) / 16, radius=2.0, scale=0.35)
torch.manual_seed(1)
adversary = pg.objectives.Adversary(
    pg.nn.MLP(2, [128] * 2, 1, partial(nn.LeakyReLU, 0.2)), regularizers=[pg.objectives.R1(0.02)]
)
matched = pg.objectives.MatchedLatents(adversary, weight=10.0, beta=0.1)
digits = load_digits().target
codes = {}
for name, objective in {"ELBO": pg.ELBO(), "adversarial": matched}.items():
    torch.manual_seed(0)
    autoencoder = pg.VAE(
        prior,
        pg.heads.Bernoulli(pg.nn.MLP(2, [128] * 2, 64)),
        pg.heads.Gaussian(pg.nn.MLP(64, [128] * 2, 4)),
    )
    plan = {"steps": 1000, "batch_size": 128, "scheduler": falling(1000), "ema": 0.99}
    pg.fit(
        autoencoder,
        train,
        objective,
        optimizer=pg.train.adam(2e-3, betas=(0.5, 0.99)),
        **plan,
        **quiet,
    )
    torch.manual_seed(0)
    with torch.no_grad():
        codes[name], found = autoencoder.encode(train).sample(), autoencoder.encode(test).sample()
        told = autoencoder.decode(found).log_prob(test).mean()
    real, reference = prior().sample((2, len(found)))
    print(f"codes by {name:12s} {pg.evaluate.energy_test(found, real, reference=reference)}")
    print(
        f"{'':21s} {told:.2f} nats of reconstruction; "
        f"{pg.log_likelihood(autoencoder, test, particles=200)}"
    )

# %% [markdown]
# ## A machine as a prior: a deep belief network
#
# Twelve bits, and a sigmoid layer that draws a digit from them. Its bits are independent in the
# prior, and those of real digits are not: a restricted Boltzmann machine, fitted to the codes,
# takes the prior's place, and all is trained on together. The machine is small enough to be exact,
# so any objective takes it as it is; and 4,096 codes can be enumerated, so that the scores are
# exact too. A larger machine has no density to offer, which the ELBO says.


# %%
every_code = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 12)


@torch.no_grad()
def enumerated(gen, x):
    """The exact log-likelihood: the sum over all codes."""
    given = gen.decode(every_code)
    joint = (
        torch.stack([given.log_prob(row) for row in x], 1)
        + gen.prior().log_prob(every_code)[:, None]
    )
    return pg.Score(joint.logsumexp(0), "exact", measure="mass")


torch.manual_seed(0)
coins = pg.Fixed(dist.Bernoulli, logits=torch.zeros(12))
belief = pg.VAE(
    coins, pg.heads.Bernoulli(pg.nn.MLP(12, [], 64)), pg.heads.Bernoulli(pg.nn.MLP(64, [128], 12))
)
pg.fit(
    belief,
    train,
    pg.objectives.IWAE(particles=8),
    steps=900,
    optimizer=pg.train.adam(6e-3),
    **schedule,
    **quiet,
)
print(f"{'12 independent bits':32s} {enumerated(belief, test)}")
print(f"{'the same, not enumerated':32s} {pg.log_likelihood(belief, test)}")
with torch.no_grad():
    seen = belief.encode(train).sample((5,)).flatten(0, 1)
machine = pg.RBM(pg.energy.BernoulliUnits(12), hidden=6, scale=0.3)
machine.initialize(seen)
pg.fit(machine, seen, steps=400, batch_size=200, optimizer=pg.train.adam(2e-2), ema=0.98, **quiet)
deep = pg.VAE(machine, belief.decoder, belief.encoder)
before = enumerated(belief, test)
gain, error = enumerated(deep, test).difference(before)
print(f"{'bits of a machine':32s} {enumerated(deep, test)}   gain {gain:.2f} ± {error:.2f}")
pg.fit(
    deep,
    train,
    pg.objectives.IWAE(particles=8),
    steps=400,
    optimizer=pg.train.adam(3e-3),
    **schedule,
    **quiet,
)
after = enumerated(deep, test)
gain, error = after.difference(before)
print(f"{'and trained on together':32s} {after}   gain {gain:.2f} ± {error:.2f}")
try:
    large = pg.RBM(pg.energy.BernoulliUnits(16), hidden=16)
    pg.fit(
        pg.VAE(
            large,
            pg.heads.Bernoulli(pg.nn.MLP(16, [], 64)),
            pg.heads.Bernoulli(pg.nn.MLP(64, [], 16)),
        ),
        train,
        steps=1,
        **quiet,
    )
except ValueError as error:
    print("a machine of 16 and 16 units:", error)


# %%
def coded(panel, name):
    """Codes, colored by digit, over the density of the prior."""
    panel.contourf(axis, axis, prior().log_prob(grid).exp(), levels=8, cmap="Greys", vmax=0.25)
    pg.plot.embedding(codes[name], digits[: len(train)], ax=panel).get_legend().remove()
    panel.set(xlim=(-3.4, 3.4), ylim=(-3.4, 3.4), xlabel="", ylabel="", aspect="equal")


@torch.no_grad()
def around(panel):
    """What is decoded along the ring, drawn in its place."""
    for radius, number in ((1.4, 16), (2.05, 24), (2.7, 32)):
        turn = 2 * math.pi * torch.arange(number) / number
        places = radius * torch.stack([turn.cos(), turn.sin()], 1)
        for (x, y), ink in zip(
            places.tolist(), autoencoder.decode(places).mean.reshape(-1, 8, 8), strict=True
        ):
            black = torch.cat(
                [torch.zeros(8, 8, 3), ink[:, :, None]], -1
            )  # transparent where there is no ink
            panel.imshow(black, extent=(x - 0.27, x + 0.27, y - 0.27, y + 0.27))
    panel.set(xlim=(-3.1, 3.1), ylim=(-3.1, 3.1), aspect="equal")


figure, axes = plt.subplots(1, 5, figsize=(15, 3.3))
coded(axes[0], "ELBO")
coded(axes[1], "adversarial")
around(axes[2])
look = {"cmap": "RdBu_r", "bounds": (-5.0, 5.0)}
show(axes[3], belief.decoder.net.last.weight.T, 4, **look)
with torch.no_grad():
    pictures = deep.decode(pg.sample(machine, 100)).mean
show(axes[4], pictures, 10)
titles = ["codes by the ELBO", "codes matched by an adversary", "... and what they decode to"]
for panel, title in zip(
    axes, [*titles, "what each of 12 bits draws", "draws of the belief network"], strict=True
):
    bare(panel, title)
figure.tight_layout()
figure.savefig(OUTPUT / "latents.png", dpi=80)

# %% [markdown]
# ## All on one page

# %%
figure, axes = plt.subplots(
    1, 5, figsize=(17, 3.4), width_ratios=[1.3, 1.5, 1, 1, 1], layout="constrained"
)
chains(axes[0])
gibbs(axes[1])
played(axes[2], *films["relativistic, R1, R2"][-1])
coded(axes[3], "adversarial")
around(axes[4])
bare(axes[2], "a critic, and fakes on all modes")
bare(axes[3], "codes that match a ring")
bare(axes[4], "the digits along it")
figure.savefig(OUTPUT / "energy_and_gan.png", dpi=80)
print(f"figures are in {OUTPUT.resolve()}")
