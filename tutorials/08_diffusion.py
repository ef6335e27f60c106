# %% [markdown]
# # Diffusion and flow matching: from noise to digits, and inside a VAE
#
# A diffusion model adds noise to data by a fixed recipe and learns to take it away. Flow matching
# learns the velocity of a path between noise and data. Both are trained by regression, sampled by
# as many or as few calls of a network as one likes, steered by labels, and made to fill holes. Here
# both are distributions like all others: fitted, scored, completed, and plugged into a VAE. About
# a minute on one core.

# %%
import argparse
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import pyro.distributions as dist
import torch
from sklearn.datasets import load_digits, make_moons
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

import probgen as pg
from probgen.distributions.flows.ode import Rademacher
from probgen.nn import MLP, Standardize, TimeMLP, UNet

parser = argparse.ArgumentParser()
parser.add_argument("--output", type=Path, default=Path("diffusion_output"))
OUTPUT = parser.parse_known_args()[0].output
OUTPUT.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)


def train(gen, data, objective, steps, lr=2e-3, batch_size=100, **options):
    """Adam with a learning rate that falls to zero, and an average of the last parameters."""
    schedule = {
        "scheduler": lambda optimizer: CosineAnnealingLR(optimizer, steps),
        "optimizer": pg.train.adam(lr),
    }
    quiet = {"progress": False, "verdict": False, "seed": 0, "compile": False, **options}
    history = pg.fit(
        gen,
        data,
        objective,
        steps=steps,
        batch_size=batch_size,
        ema=0.99,
        clip=100.0,
        **schedule,
        **quiet,
    )
    print(f"{type(gen).__name__:13s} {history}")
    return gen.eval()


def save(figure, name, dpi=90):
    figure.savefig(OUTPUT / name, dpi=dpi, bbox_inches="tight")


# %% [markdown]
# ## Two moons
#
# The network sees a noisy point and the time, and tells the noise (here: a mixture of noise and
# data, `Velocity`). `Denoising()` is the squared error of what it tells, at random times. The
# second model is trained by the same objective: its distribution is another one, and says so. Pairs
# of data and noise are matched by optimal transport within each batch, so that paths do not cross
# and come out straight.

# %%
moons = torch.tensor(make_moons(5000, noise=0.06, random_state=0)[0], dtype=torch.float32)
moons = (moons - moons.mean(0)) / moons.std(0)
train_moons = moons[:4000]
test_moons = moons[4000:]
diffusion = pg.Diffusion(TimeMLP(2, [96, 96, 96]), (2,), sampler=pg.diffusion.DPMSolver(20))
matching = pg.FlowMatching(TimeMLP(2, [96, 96, 96]), (2,), coupling=pg.flows.OptimalTransport())
train(diffusion, train_moons, pg.objectives.Denoising(), steps=700, lr=4e-3, batch_size=200)
train(matching, train_moons, pg.objectives.Denoising(), steps=700, lr=4e-3, batch_size=200)

# %% [markdown]
# Top: data as noise is added. Bottom, to be read from right to left: pure noise as the network
# takes it away. At every time both clouds should have the same distribution, and the colors show
# where each point ends. The loop that takes noise away is written out: estimate the data, then mix
# data and noise in the proportions of the next time (DDIM).


# %%
@torch.no_grad()
def reverse_path(gen, z, steps, context=None):
    """All states from noise at time 1 to data at time 0.

    And the estimates of the data on the way.
    """
    distribution = gen(context)
    process = gen.process
    states = [z]
    estimates = []
    for t, s in pairwise(torch.linspace(1, 0, steps + 1)):
        (signal, noise), (next_signal, next_noise) = process.levels(t), process.levels(s)
        x = distribution.denoiser.denoise(states[-1], t)
        states.append(next_signal * x + next_noise * (states[-1] - signal * x) / noise)
        estimates.append(x)
    return torch.stack(states), torch.stack(estimates)


def angle(points):
    return torch.atan2(points[:, 1], points[:, 0])


noise = torch.randn(3000, 2)
backward, _ = reverse_path(diffusion, noise, 50)
figure, axes = plt.subplots(2, 6, figsize=(15, 5.2), layout="constrained")
for column, t in enumerate((0.0, 0.2, 0.4, 0.6, 0.8, 1.0)):
    signal, scale = diffusion.schedule(torch.tensor(t))
    forward = signal * moons[:3000] + scale * noise
    states = backward[round(50 * (1 - t))]
    for panel, points, ends in (
        (axes[0, column], forward, moons[:3000]),
        (axes[1, column], states, backward[-1]),
    ):
        panel.scatter(*points.T, c=angle(ends), cmap="twilight", s=2, linewidths=0, alpha=0.8)
        panel.set(xlim=(-3, 3), ylim=(-3, 3), xticks=[], yticks=[])
    axes[0, column].set_title(f"time {t:.1f}")
axes[0, 0].set_ylabel("noise added  →")
axes[1, 0].set_ylabel("←  taken away")
save(figure, "moons.png", dpi=70)

# %% [markdown]
# The paths themselves, from noise (time 1) to data (time 0). Those of the diffusion bend: few large
# steps would miss the turns. Those of flow matching are nearly straight.


# %%
def draw_paths(panel, gen, title, **options):
    pg.plot.paths(gen, 250, seed=0, ax=panel, **options).set_title(title, loc="left", y=1.08)


fine = pg.diffusion.DDIM(50)
figure, axes = plt.subplots(1, 2, figsize=(12, 5.2), layout="constrained")
draw_paths(axes[0], diffusion, "diffusion", sampler=fine)
draw_paths(axes[1], matching, "flow matching, optimal pairs")
save(figure, "paths.png", dpi=80)

# %% [markdown]
# ## What a likelihood of a diffusion is
#
# Four numbers for the same rows. The mixture's and the flow's are exact. The diffusion's is a
# *bound*: an estimate of something below the truth. The same network also defines an ordinary
# differential equation, a flow with a density of its own: another model, whose score tells about
# the diffusion only *approximately*. Flow matching has a density that is exact up to the solver.
# The kinds decide what may be concluded: a bound above an exact score proves something, one below
# it does not.

# %%
mixture = pg.GaussianMixture(8, 2)
spline = pg.NSF(2, layers=2, hidden=(64, 64))
pg.em(mixture, train_moons, seed=0)
train(spline, train_moons, None, steps=250, lr=5e-3, batch_size=256)
scores = {
    "mixture of 8 Gaussians": pg.log_likelihood(mixture, test_moons),
    "spline flow": pg.log_likelihood(spline, test_moons),
    "diffusion, bound": pg.log_likelihood(diffusion, test_moons, particles=100),
    "diffusion, its equation": pg.log_likelihood(
        pg.ProbabilityFlow(diffusion), test_moons, particles=1
    ),
    "flow matching": pg.log_likelihood(matching, test_moons),
}
for name, score in scores.items():
    print(f"two moons, {name:24s} {score}")

# %% [markdown]
# ## Digits
#
# A small U-Net sees the noisy image, the time and the label. `LevelReconstruction` says that pixels
# are integers: the score is then a bound of a probability, comparable with all other models of
# integers. The schedule ends at the noise from which levels can just be told apart: more precision
# is hard to learn and costs likelihood. In training a label is hidden now and then, so that the
# model knows digits in general too: guidance needs both.  Rows are split at random. In the order of
# the file test digits are by other writers than training digits, and every comparison of samples
# would see that first.

# %%
digits = load_digits()
order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)[order]
classes = torch.tensor(digits.target)[order]
labels = nn.functional.one_hot(classes, 10).float()
train_x = images[:1200]
train_c = labels[:1200]
test_x = images[1200:]
test_c = labels[1200:]


def u_net():
    return UNet((1, 8, 8), width=16, multipliers=(1, 2), attention=0, context=10, dropout=0.1)


digit = pg.Diffusion(
    u_net(),
    (1, 8, 8),
    schedule=pg.diffusion.CosineSchedule(log_snr_max=7.0),
    reconstruction=pg.diffusion.LevelReconstruction(17),
    sampler=pg.diffusion.DPMSolver(20),
    context_dropout=0.15,
)
train(digit, (train_x, train_c), pg.objectives.Denoising(), steps=500, lr=3e-3, batch_size=64)


# %%
def show(panel, rows, columns=None, title="", label="", **labels):
    """Images of levels 0 to 16 as one grid."""
    look = {"bounds": (0.0, 16.0), "cmap": "gray_r", **labels}
    pg.plot.images(rows, shape=(8, 8), columns=columns, ax=panel, **look)
    panel.set_title(title, fontsize=11)
    panel.set_ylabel(label)


ten = torch.eye(10)
noise = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(4))
states, estimates = reverse_path(digit.eval(), noise, 60, ten)
times = torch.tensor([0, 12, 20, 26, 31, 36, 41, 46, 52, 59])
moments = [f"{1 - step / 60:.2f}" for step in (times + 1).tolist()]
seen, expected = (
    8 + 8 * rows[..., 0, :, :].transpose(0, 1) for rows in (states[times + 1], estimates[times])
)
figure, axes = plt.subplots(1, 2, figsize=(13, 6.6), layout="constrained")
for panel, rows, title in (
    (axes[0], seen, "what the network sees, from noise to digits"),
    (axes[1], expected, "what it expects the digits to be"),
):
    show(panel, rows, title=title, column_labels=moments, label="time above")
save(figure, "denoising.png")

figure, axes = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
draw_paths(axes[0], diffusion, "diffusion: it bends", sampler=fine)
draw_paths(axes[1], matching, "flow matching: nearly straight")
show(axes[2], seen, title="noise becomes digits of given classes", column_labels=moments)
save(figure, "diffusion.png", dpi=64)

# %% [markdown]
# ## How few calls of the network?
#
# Samplers are arguments: `gen(context).using(DDIM(8))`. From the same noise, each with a budget of
# calls. The number is the Fréchet distance between 200 samples and the held-out digits, in features
# of a small classifier of digits that is trained on the spot; beside it stands what real digits get
# against real digits, which is the best that a model can hope for. The network of the flow starts
# as that of the diffusion: what a digit is need not be learned twice.

# %%
features = pg.evaluate.classifier_features(images, classes, steps=400)
print(features)


def frechet(samples):
    return pg.evaluate.frechet_distance(samples, test_x, reference=train_x, features=features)


flow = pg.FlowMatching(u_net(), (1, 8, 8), context_dropout=0.15)
flow.net.load_state_dict(digit.net.state_dict())
dequantized = (train_x + torch.rand(4, *train_x.shape)).flatten(0, 1) / 8.5 - 1
train(
    flow, (dequantized, train_c.repeat(4, 1)), pg.objectives.Denoising(), steps=200, batch_size=64
)


def from_flow(solver, context):
    return ((flow(context).using(solver).sample() + 1) * 8.5).floor().clamp(0, 16)


def from_diffusion(sampler, context):
    return digit(context).using(sampler).sample()


budgets = (2, 4, 8)
samplers = {
    "ancestral": lambda calls, c: from_diffusion(pg.diffusion.Ancestral(calls), c),
    "DDIM": lambda calls, c: from_diffusion(pg.diffusion.DDIM(calls), c),
    "Heun": lambda calls, c: from_diffusion(
        pg.diffusion.Heun(calls // 2, times=pg.diffusion.KarrasSteps()), c
    ),
    "DPM-Solver++": lambda calls, c: from_diffusion(pg.diffusion.DPMSolver(calls), c),
    "flow matching": lambda calls, c: from_flow(pg.flows.Midpoint(calls // 2), c),
}
figure, axes = plt.subplots(len(samplers), len(budgets), figsize=(12, 7), layout="constrained")
for row, (name, draw) in zip(axes, samplers.items(), strict=True):
    for panel, calls in zip(row, budgets, strict=True):
        torch.manual_seed(1)
        few = draw(calls, ten.repeat(2, 1))
        many = draw(calls, train_c[:200])
        result = frechet(many)
        show(
            panel,
            few,
            10,
            f"{calls} calls: {result.value:.0f}",
            name if calls == budgets[0] else "",
        )
        print(f"{name:14s} {calls:3d} calls   {result}")
figure.suptitle(f"Fréchet distance to held-out digits; real digits get {result.baseline:.0f}")
save(figure, "samplers.png")

# %% [markdown]
# ## Guidance by class
#
# The estimate with the label, minus the one without, points to what is typical of the label. A
# weight of 1 is the model as it is, and more goes further that way: the classifier recognizes more
# samples, which become more alike, so that in the end the share of held-out digits that have a
# sample beside them falls. That is a trade, and both numbers should be told.

# %%
strengths = (1.0, 2.0, 4.0)
figure, axes = plt.subplots(1, len(strengths), figsize=(13, 2.8), layout="constrained")
for panel, strength in zip(axes, strengths, strict=True):
    torch.manual_seed(2)
    wanted = classes[:200]
    drawn = digit(train_c[:200]).using(pg.diffusion.DPMSolver(12), guidance=strength).sample()
    accuracy = (features.logits(drawn).argmax(1) == wanted).double().mean()
    density_kind, coverage = pg.evaluate.density_coverage(
        drawn, test_x, reference=train_x, features=features
    )
    print(f"guidance {strength:.0f}: recognized {accuracy:.1%}   {coverage}")
    first = torch.cat([drawn[(wanted == k).nonzero()[:5, 0]] for k in range(10)])
    shown = first.reshape(10, 5, 8, 8).transpose(0, 1)
    show(
        panel,
        shown,
        None,
        f"guidance {strength:.0f}\nrecognized {accuracy:.0%}, coverage {coverage.value:.2f}",
    )
save(figure, "guidance.png")

# %% [markdown]
# ## Missing halves
#
# `impute` draws what is missing given the rest (RePaint: known pixels are noised like data and put
# in at every step). It is not told the label. The draws are *heuristic*, and the result says so:
# unlike the exact conditionals of a mixture they come without a guarantee. Three draws of each show
# what the upper half leaves open.

# %%
chosen = torch.tensor([int((test_c.argmax(1) == k).nonzero()[2]) for k in range(10)])
holes = test_x[chosen].clone()
holes[:, :, 4:] = torch.nan
done = pg.impute(digit, holes, draws=3, num_steps=200)
print("completions are", done.kind)
figure, panel = plt.subplots(figsize=(8, 4.1), layout="constrained")
words = ["held out", "given", "drawn", "drawn", "drawn"]
show(panel, torch.stack([test_x[chosen], holes, *done.draws])[:, :, 0], row_labels=words)
save(figure, "halves.png")

# %% [markdown]
# ## Scores of digits
#
# `Denoising()` weighs times for the eye. The default objective of `fit` is the bound itself; some
# steps of it, from where the other left off, raise the likelihood, and the samples are measured
# again to see what that does to them. All numbers are masses of integers in nats, of 300 held-out
# digits, and the labels help those that get them.

# %%
some = (test_x[:300], test_c[:300])
by_denoising = {
    "diffusion, no labels": pg.log_likelihood(digit, some[0], particles=16),
    "diffusion, given labels": pg.log_likelihood(digit, *some, particles=16),
}
before = frechet(digit(train_c[:600]).sample())
train(digit, (train_x, train_c), None, steps=100, lr=3e-4, batch_size=64)
samples = digit(train_c[:600]).sample()
after = frechet(samples)
flat_train = train_x.flatten(1)
flat_test = test_x[:300].flatten(1)
counts = torch.stack([(flat_train == level).float().sum(0) for level in range(17)], -1) + 1
by_em = pg.GaussianMixture(20, 64, pg.distributions.Diagonal)
pg.em(by_em, flat_train + torch.rand_like(flat_train), n_init=2, seed=0)
maf = pg.Transformed(
    pg.MAF(64, layers=2, hidden=(256,), dropout=0.3),
    pg.Gaussianized.of(flat_train, 0.0, 17.0, bins=17),
)
maf = train(pg.Quantized(maf), flat_train, None, steps=400)
flow.solver = pg.flows.RungeKutta(6)
flow.probes = Rademacher(1)
matched = pg.Quantized(pg.Standardized(flow, 8.5, 8.5))
digit_scores = {
    "pixel counts": pg.log_likelihood(pg.Fixed(dist.Categorical, probs=counts), flat_test),
    "mixture of 20 Gaussians": pg.log_likelihood(pg.Quantized(by_em), flat_test, particles=16),
    "autoregressive flow": pg.log_likelihood(maf, flat_test, particles=16),
    "flow matching, given labels": pg.log_likelihood(matched, *some, particles=1),
    **by_denoising,
    "the same, then by the bound": pg.log_likelihood(digit, *some, particles=16),
}
for name, score in digit_scores.items():
    print(f"{name:34s} {score}")
beaten = digit_scores["diffusion, given labels"] > digit_scores["pixel counts"]
print("the diffusion, told the labels, is better than counting pixels:", beaten)
print(
    f"Fréchet distance by denoising {before.value:.1f}, then by the bound {after.value:.1f}, baseline "
    f"{after.baseline:.1f}"
)

# %% [markdown]
# ## The honest table of samples
#
# Each number beside what real training digits get against the same held-out digits: at the baseline a
# model cannot be told from data by that number, and below it nothing can be concluded. A small gap
# that one line misses another may see: a model this small is told from data by its density, and by
# a plain logistic regression on the features. A model that copied its training rows would get the
# baseline everywhere; the last line would tell, by a value near 1. Below one half samples lie farther
# from the training rows than fresh digits do.

# %%
print(pg.sample_report(samples, test_x, train_x, features=features))

# %% [markdown]
# ## A diffusion inside a VAE
#
# The codes of a VAE are no normal distribution, whatever its prior says, and samples suffer: the
# prior draws codes that no digit has. Latent diffusion replaces the prior by one that is learned:
# `vae.prior` is any distribution, so a diffusion of 8 codes will do, trained on codes while the
# rest stays as it is.

# %%
DIMS = 8
encoder = nn.Sequential(Standardize(8.0, 8.0), MLP(64, [256], 2 * DIMS, dropout=0.1))
decoder = pg.heads.DiscretizedLogisticMixture(
    MLP(DIMS, [256], 3 * 3 * 64, dropout=0.1), levels=17, components=3
)
vae = pg.VAE(pg.standard_normal(DIMS), decoder, pg.heads.Gaussian(encoder))
train(vae, flat_train, pg.ELBO(beta=0.3), steps=800, lr=3e-3)
with torch.no_grad():
    codes = vae.encode(flat_train).sample((8,)).flatten(0, 1)
prior = pg.Standardized.fitted(
    pg.Diffusion(TimeMLP(DIMS, [128, 128, 128]), (DIMS,), sampler=pg.diffusion.DPMSolver(20)), codes
)
train(prior.family, prior.standardize(codes), pg.objectives.Denoising(), steps=800, batch_size=200)
latent = pg.VAE(prior, decoder, pg.heads.Gaussian(encoder)).eval()
drawn = {"normal prior": pg.sample(vae, 1200), "diffusion prior": pg.sample(latent, 1200)}
for name, rows in drawn.items():
    print(f"VAE, {name:16s} {frechet(rows.reshape(-1, 1, 8, 8))}")
    print(
        f"VAE, {name:16s} "
        f"{pg.log_likelihood(vae if name == 'normal prior' else latent, flat_test, particles=64)}"
    )


# %%
@torch.no_grad()
def recognized(points):
    """What the classifier sees in the digits of some codes.

    Classes, and the share of clear cases.
    """
    seen = features.logits(vae.decode(points).sample().reshape(-1, 1, 8, 8)).softmax(-1).max(-1)
    return seen.indices, (seen.values > 0.9).double().mean()


clouds = {
    "codes of digits": codes[:1200],
    "normal prior": vae.prior().sample((1200,)),
    "diffusion": prior().sample((1200,)),
}
figure, axes = plt.subplots(1, 3, figsize=(15, 4.4), layout="constrained")
for panel, (name, points) in zip(axes, clouds.items(), strict=True):
    seen, clear = recognized(points)
    print(f"{name:16s} clear digits: {clear:.0%}")
    title = f"{name}: {clear:.0%} clear digits"
    pg.plot.embedding(points, seen, basis=codes, title=title, ax=panel)
    panel.set(xlim=(-4, 4), ylim=(-4, 4))
save(figure, "codes.png", dpi=70)
figure, axes = plt.subplots(1, 3, figsize=(13, 2.6), layout="constrained")
for panel, (name, rows) in zip(axes, {"held out": test_x, **drawn}.items(), strict=True):
    show(panel, rows[:60].reshape(-1, 8, 8), 15, name)
save(figure, "latent.png")
print(f"figures are in {OUTPUT.resolve()}")
