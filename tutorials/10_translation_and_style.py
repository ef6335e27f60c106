# %% [markdown]
# # Translation and style: changing rows, and what is drawn at which layer
#
# Three games beyond noise that becomes an image: two networks that translate between sets without
# a single pair, one network that changes rows to whatever attributes are asked for, and a generator
# whose layers take a style each. In the first two the truth is known here, so that one can see when
# a translation is right, and when it only looks so. About a minute on one core.

# %%
import argparse
import math
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from torch import nn
from torch.nn.functional import affine_grid, grid_sample

import probgen as pg
from probgen.evaluate import precision_recall
from probgen.nn import MLP
from probgen.objectives import R1, Adversarial, AttributeTranslation, CycleConsistency, Relativistic
from probgen.train import Unpaired, adam

parser = argparse.ArgumentParser()
parser.add_argument("--output", type=Path, default=Path("translation_and_style_output"))
OUTPUT = parser.parse_known_args()[0].output
OUTPUT.mkdir(parents=True, exist_ok=True)
quiet = {"progress": False, "verdict": False, "seed": 0, "compile": False}


def falling(steps):
    """Learning rates that fall along a line."""
    return partial(
        torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.05, total_iters=steps
    )


def save(figure, name):
    figure.savefig(OUTPUT / name, dpi=90, bbox_inches="tight")


# %% [markdown]
# ## Two sets, and no pair
#
# One set is an arc in the plane, denser towards its end. The other is such an arc too, turned and
# bent; its points are others, so that no point of one set has its partner in the other. We know the
# map and tell nobody.


# %%
def arc(n):
    """Points of an arc, and how far along it they are."""
    along = 1.5 * math.pi * torch.rand(n).pow(0.75)
    radius = 1 + 0.12 * torch.randn(n)
    return torch.stack((radius * along.cos(), radius * along.sin()), -1), along


def truth(x):
    """Turned by some 126 degrees, then bent."""
    cosine, sine = math.cos(2.2), math.sin(2.2)
    first, second = (x @ torch.tensor([[cosine, sine], [-sine, cosine]])).unbind(-1)
    return torch.stack((first + 0.25 * second.square() - 0.1, 0.8 * second), -1)


torch.manual_seed(0)
a = arc(3000)[0]
b = truth(arc(3000)[0])
points, along = arc(800)
partners = truth(points)

# %% [markdown]
# `CycleGAN` is a program of both sets with a network for each direction, `CycleConsistency` its
# objective: a critic for each set, and a term for what does not come back. That translations look
# like the other set and come back does not say which point becomes which: **any** map that does both
# is a solution. What decides is where the networks begin. Here is a start in closed form: the linear
# map that gives one set the mean and the covariance of the other. There are as many as there are
# signs of the principal components; the skewness along each of them tells the right one.


# %%
class Translator(nn.Module):
    """A linear map, and a residual that begins at zero."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.change = MLP(2, [64, 64], 2)
        nn.init.eye_(self.linear.weight)
        for last in (self.linear.bias, self.change.last.weight, self.change.last.bias):
            nn.init.zeros_(last)

    def forward(self, x):
        moved = self.linear(x)
        return moved + self.change(moved)


def components(x):
    """Principal components in the direction of their skewness, times their deviations."""
    centered = x - x.mean(0)
    variances, basis = torch.linalg.eigh(centered.T @ centered / len(x))
    return basis * (centered @ basis).pow(3).mean(0).sign() * variances.sqrt()


def begin_at_components(net, source, target, signs=(1.0, 1.0)):
    """Lets the linear map give one set the mean and the covariance of the other."""
    weight = components(target) @ torch.diag(torch.tensor(signs)) @ components(source).inverse()
    net.linear.weight.data.copy_(weight)
    net.linear.bias.data.copy_(target.mean(0) - weight @ source.mean(0))


def translated(signs, cycle):
    torch.manual_seed(1)
    to_b, to_a = Translator(), Translator()
    if signs is not None:
        begin_at_components(to_b, a, b, signs)
        begin_at_components(to_a, b, a, signs)
    gen = pg.CycleGAN(to_b, to_a)
    critics = [MLP(2, [64, 64], 1) for _ in range(2)]
    objective = CycleConsistency(*critics, cycle=cycle, game=Relativistic(), regularizers=[R1(0.1)])
    rates = {"model": adam(2e-3, betas=(0.0, 0.99)), "critic": adam(4e-3, betas=(0.0, 0.99))}
    schedule = {"steps": 500, "batch_size": 256, "scheduler": falling(500), "ema": 0.98}
    pg.fit(gen, Unpaired(a, b), objective, optimizer=rates, **schedule, **quiet)
    return gen


starts = {
    "identity, no cycle": (None, 0.0),
    "identity, cycle": (None, 10.0),
    "wrong sign, cycle": ((1.0, -1.0), 1.0),
    "right signs, cycle": ((1.0, 1.0), 1.0),
}
translations = {name: translated(*start) for name, start in starts.items()}

# %% [markdown]
# Every point keeps the color of where it began, so that colors tell who became whom. From the
# identity, without a cycle, points are thrown together; with one they come back, and hardly left. From
# the wrong sign a translation looks like the other set, comes back, and is **wrong**: it has turned
# the arc around. No loss shows that. With the right signs the game does the bending.


# %%
def scatter(axis, x, title):
    axis.scatter(*x.T, c=along, s=5, cmap="plasma", linewidths=0)
    axis.set(xlim=(-1.9, 1.9), ylim=(-1.7, 1.7), xticks=[], yticks=[], aspect="equal")
    axis.set_title(title, fontsize=9)


figure, axes = plt.subplots(2, 5, figsize=(12, 4.8))
scatter(axes[0, 0], partners, "the truth")
scatter(axes[1, 0], points, "one set")
for column, (name, gen) in zip(axes.T[1:], translations.items(), strict=True):
    made = gen.translate(points)
    back = gen.translate_back(made)
    error = (made - partners).norm(dim=-1).mean()
    lost = (back - points).norm(dim=-1).mean()
    scatter(column[0], made, name)
    scatter(column[1], back, "and back")
    print(f"{name:20s} from the truth {error:.3f}, from where it began {lost:.3f}")
save(figure, "arcs.png")

# %% [markdown]
# ## Attributes that are asked for
#
# `StarGAN` is one network of a row and of the attributes that it shall have. Digits get one of three
# colors and one of three slants; each is seen with one combination alone, and what a digit is nobody
# tells. A recognizer learns the attributes from real images, and the generator is told by it.


# %%
torch.manual_seed(0)
digits = load_digits()
gray = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)
INKS = torch.tensor([[0.85, 0.1, 0.15], [0.1, 0.6, 0.2], [0.1, 0.25, 0.9]])


def rendered(gray, levels):
    """Digits in a color and with a slant, ``(N, 1, 8, 8), (N, 2) -> (N, 3, 8, 8)``."""
    color, slant = levels.unbind(-1)
    theta = torch.eye(2, 3).repeat(len(gray), 1, 1)
    theta[:, 0, 1] = 0.5 * (slant - 1)
    grid = affine_grid(theta, list(gray.shape), align_corners=False)
    ink = grid_sample(gray, grid, align_corners=False)
    return 1 - 2 * ink * (1 - INKS[color][:, :, None, None])


def vectors(levels):
    """One-hot blocks side by side, ``(N, 2) -> (N, 6)``."""
    return torch.cat([torch.eye(3)[column] for column in levels.unbind(-1)], -1)


known, unseen = slice(0, 1347), slice(1347, None)
levels = torch.randint(3, (1797, 2))
x = rendered(gray, levels)

# %% [markdown]
# The generator has the parts that the true map needs, as in every translation: a slant is a shear,
# which an affine map of the places gives and a convolution would have to erase and to draw anew; a
# color is a map of each pixel. Both begin as the identity.


# %%
class Changer(nn.Module):
    """Takes pixels from other places, by an affine map, and changes each where it is."""

    def __init__(self, width=24):
        super().__init__()
        act = nn.LeakyReLU(0.2)
        self.warp = MLP(3 * 64 + 6, [64], 6)
        self.change = nn.Sequential(
            nn.Conv2d(3 + 6, width, 1), act, nn.Conv2d(width, width, 1), act, nn.Conv2d(width, 3, 1)
        )
        for last in (self.warp.last, self.change[-1]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.register_buffer("still", torch.eye(2, 3))

    def forward(self, x, attributes):
        told = self.warp(torch.cat((x.flatten(1), attributes), -1)).unflatten(-1, (2, 3))
        grid = affine_grid(self.still + told, list(x.shape), align_corners=False)
        moved = 1 + grid_sample(x - 1, grid, align_corners=False)  # the paper is white
        asked = attributes[:, :, None, None].expand(-1, -1, 8, 8)
        return moved + self.change(torch.cat((moved, asked), 1))


seen = nn.Sequential(
    nn.Conv2d(3, 24, 3, 2, 1),
    nn.LeakyReLU(0.2),
    nn.Conv2d(24, 48, 3, 2, 1),
    nn.LeakyReLU(0.2),
    nn.Flatten(),
)
star = pg.StarGAN(Changer(), pg.Codes([3, 3]))
objective = AttributeTranslation(
    nn.Sequential(seen, nn.Linear(192, 1)),
    pg.Codes([3, 3], net=nn.Sequential(seen, nn.Linear(192, 6)), context_ndim=3),
    reconstruction=10.0,
    game=Relativistic(),
    regularizers=[R1(0.3)],
)
pg.fit(
    star,
    (x[known], vectors(levels[known])),
    objective,
    steps=600,
    batch_size=64,
    optimizer=adam(2e-3, betas=(0.0, 0.99)),
    scheduler=falling(600),
    ema=0.99,
    **quiet,
)

# %% [markdown]
# Held-out digits, each asked for attributes at random, beside their true partners: the same digits,
# rendered with what was asked for. Whether the digit is still there is told by a classifier.

# %%
asked = torch.randint(3, (450, 2))
changed = star.translate(x[unseen], vectors(asked))
wanted = rendered(gray[unseen], asked)
reader = SVC(gamma=0.01, C=10).fit(x[known].flatten(1), labels[known])


def kept(images):
    return 100 * (torch.tensor(reader.predict(images.flatten(1))) == labels[unseen]).float().mean()


print(f"digits read right: changed {kept(changed):.1f} %, true partners {kept(wanted):.1f} %")
error, before = ((rows - wanted).abs().mean() for rows in (changed, x[unseen]))
print(f"error to the true partner {error:.3f}, of digits left as they are {before:.3f}")


def colored(axis, images, title, **labels):
    """Images ``(rows, columns, 3, 8, 8)`` as one."""
    pg.plot.images(images, bounds=(-1.0, 1.0), ax=axis, **labels).set_title(title, fontsize=9)


every = torch.cartesian_prod(torch.arange(3), torch.arange(3)).flip(1)
chosen = torch.tensor([0, 3, 5, 8, 14, 20, 31])
some = x[unseen][chosen]
grids = {
    "changed": [star.translate(some, vectors(each[None])[0]) for each in every],
    "true partners": [rendered(gray[unseen][chosen], each.expand(7, 2)) for each in every],
}
figure, axes = plt.subplots(1, 3, figsize=(12, 4.3), width_ratios=[1, 9, 9])
colored(axes[0], some[:, None], "given")
for axis, (name, images) in zip(axes[1:], grids.items(), strict=True):
    colored(axis, torch.stack(images, 1), name)
save(figure, "attributes.png")

# %% [markdown]
# ## A style for each layer
#
# A `StyleGenerator` makes a style of the noise by a mapping network, and the style scales the
# filters of every layer. So one may give different layers different styles, and one may draw styles
# towards their mean. Upright digits in three colors:

# %%
torch.manual_seed(0)


def upright(images):
    color = torch.randint(3, (len(images),))
    return rendered(images, torch.stack((color, torch.ones_like(color)), -1))


painted = torch.cat([upright(gray[known]) for _ in range(4)])
generator = pg.nn.StyleGenerator(
    16, (3, 8, 8), (48, 32), width=32, layers=3, noisy=False, mixing=0.5
)
gan = pg.GAN(generator, pg.standard_normal(16))
critic = pg.nn.DCGANCritic((3, 8, 8), hidden=(24, 48))
pg.fit(
    gan,
    painted,
    Adversarial(critic, Relativistic(), regularizers=[R1(0.2)]),
    steps=800,
    batch_size=64,
    optimizer=adam(5e-3, betas=(0.0, 0.99)),
    scheduler=falling(800),
    ema=0.99,
    **quiet,
)

# %% [markdown]
# Styles mixed: the first layers take the style of the row and choose the digit, the last ones that of
# the column and choose the color, which nobody has told them. And truncation, chosen where one
# samples: styles nearer to their mean give draws that are more typical (precision) and less diverse
# (recall). At 0 all are one image.


# %%
@torch.no_grad()
def mixed(rows, columns, coarse):
    """Images of which so many first layers have the style of the row."""
    gan.eval()
    shape = (len(rows), len(columns), -1)
    layers = [generator.style(rows)[:, None].expand(*shape)] * coarse
    layers += [generator.style(columns)[None].expand(*shape)] * (generator.styles - coarse)
    return generator.from_styles(torch.stack(layers, -2))


shares = [0.0, 0.5, 0.7, 0.85, 1.0, 1.25]
rules = [pg.nn.StyleTruncation(psi) for psi in shares]
real = upright(gray[unseen])
found = [
    precision_recall(pg.sample(gan, 800, sampler=rule, seed=0), real, reference=painted[:1347])
    for rule in rules
]
for psi, (precision, recall) in zip(shares, found, strict=True):
    print(f"psi {psi:4.2f}: precision {precision.value:.2f}, recall {recall.value:.2f}")

torch.manual_seed(3)
figure, axes = plt.subplots(1, 4, figsize=(14, 3.6), layout="constrained")
colored(axes[0], pg.sample(gan, 100, seed=0).unflatten(0, (10, 10)), "draws")
colored(
    axes[1], mixed(torch.randn(8, 16), torch.randn(8, 16), 2), "styles of row and column, mixed"
)
film = [pg.sample(gan, 8, sampler=rule, seed=1) for rule in rules]
colored(axes[2], torch.stack(film), "truncated", row_labels=[f"psi {psi:g}" for psi in shares])
axes[3].plot(
    [recall.value for _, recall in found], [precision.value for precision, _ in found], "o-"
)
for psi, (precision, recall) in zip(shares, found, strict=True):
    axes[3].annotate(
        f"{psi:g}", (recall.value, precision.value), (4, 4), textcoords="offset points"
    )
axes[3].set(xlabel="recall: diversity", ylabel="precision: quality")
axes[3].set_title("truncation", fontsize=9)
save(figure, "style.png")
print(f"figures are in {OUTPUT.resolve()}")
