# %% [markdown]
# # Control and diversity: guidance, rare classes, words
#
# A conditional model that does what it is told tends to do always the same. This tutorial turns the
# knobs between both: the strength of guidance and what it costs, four ways to win diversity back,
# a class of three rows that learns from its neighbors, and a model that paints captions, whose every
# word is checked. All of it on digits of 8 x 8 pixels. About a minute on one core.

# %%
import argparse
import copy
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

import probgen as pg
from probgen.guidance import CADS, Autoguidance, Interval, Repulsion
from probgen.nn import TextEncoder, TimeMLP, UNet
from probgen.objectives import ClassBalancing, Denoising
from probgen.text import Vocabulary

parser = argparse.ArgumentParser()
parser.add_argument("--output", type=Path, default=Path("control_output"))
OUTPUT = parser.parse_known_args()[0].output
OUTPUT.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)

digits = load_digits()
order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)[order] / 8 - 1
classes = torch.tensor(digits.target)[order]
labels = nn.functional.one_hot(classes, 10).float()
train_x = images[:1200]
train_c = labels[:1200]
test_x = images[1200:1600]
test_c = labels[1200:1600]
ten = torch.eye(10)


def train(gen, data, objective, steps, lr=3e-3):
    """Adam with a learning rate that falls to zero, and an average of the last parameters."""
    history = pg.fit(
        gen,
        data,
        objective,
        steps=steps,
        batch_size=64,
        optimizer=pg.train.adam(lr),
        scheduler=lambda optimizer: CosineAnnealingLR(optimizer, steps),
        clip=100.0,
        ema=0.99,
        compile=False,
        progress=False,
        verdict=False,
        seed=0,
    )
    print(f"{type(objective).__name__:14s} {history}")
    return gen.eval()


def model():
    """A diffusion of digits given their class, which one row in ten is not told."""
    net = UNet((1, 8, 8), width=16, multipliers=(1, 2), attention=0, context=10)
    sampler = pg.diffusion.DPMSolver(12)
    return pg.Diffusion(net, (1, 8, 8), sampler=sampler, context_dropout=0.1)


def tiles(rows, columns):
    """Images as one grid, with a margin between them."""
    height, width = rows.shape[-2:]
    padded = nn.functional.pad(rows, (1, 1, 1, 1), value=-2.0)
    grid = padded.reshape(-1, columns, *padded.shape[-3:]).permute(0, 3, 1, 4, 2)
    return grid.reshape(-1, columns * (width + 2), rows.shape[-3])


def show(panel, rows, columns, title="", label=""):
    grid = tiles(rows, columns).squeeze(-1)
    if grid.ndim == 3:
        grid = (grid.clamp(-1, 1) + 1) / 2
    panel.imshow(grid, cmap=CMAP, vmin=-1, vmax=1, interpolation="nearest")
    panel.set(xticks=[], yticks=[], frame_on=False)
    panel.set_title(title, color="white", fontsize=11)
    panel.set_ylabel(label, color="white", rotation=0, ha="right", va="center", fontsize=10)


def save(figure, name, dpi=90):
    figure.savefig(OUTPUT / name, dpi=dpi, bbox_inches="tight", facecolor="black")


CMAP = plt.cm.inferno.copy()
CMAP.set_under("black")

# %% [markdown]
# ## The model, and an early copy of it
#
# One diffusion, told the class of most rows. A copy is taken after the first steps: a weaker
# version of the same model will be of use below.

# %%
early = train(model(), (train_x, train_c), Denoising(), steps=100)
gen = train(copy.deepcopy(early).train(), (train_x, train_c), Denoising(), steps=500)
judge = pg.evaluate.classifier_features(images, classes)
print(judge)


def draw(guidance):
    """A digit for each held-out one, of its class."""
    return pg.sample(gen, 1, test_c, guidance=guidance, seed=1)[0]


def judged(drawn):
    """Precision, recall, and the share that is recognized as its class."""
    precision, recall = pg.evaluate.precision_recall(drawn, test_x, features=judge, splits=0)
    right = judge.logits(drawn).argmax(-1) == test_c.argmax(-1)
    return precision.value, recall.value, right.double().mean().item()


# %% [markdown]
# ## How strongly?
#
# Guidance moves each step away from what the model expects without the class. A number is its
# weight: 0 leaves the class out, 1 is the model as it was trained, more exaggerates. *Precision* is
# the share of draws that lie among held-out digits, *recall* the share of held-out digits that lie
# among draws. The curve of both is what a strength buys, and what it costs.

# %%
strengths = (1.0, 1.25, 1.5, 2.0, 3.0)
drawn = {weight: draw(weight) for weight in strengths}
curve = {weight: judged(x) for weight, x in drawn.items()}
for weight, (precision, recall, right) in curve.items():
    print(f"weight {weight:4.2f}: precision {precision:.2f} recall {recall:.2f} right {right:.0%}")

# %% [markdown]
# ## Diversity back
#
# Each of these rules is given where one samples, as a number is, and rules compose:
#
# - `Interval`: guidance at medium noise alone. At high noise it would drive all draws to one mode.
# - `Autoguidance`: away from what the *early copy* says, which makes the same mistakes, only more of
#   them. No class is left out, and nothing pulls draws together.
# - `CADS`: the class itself is noisy at first, so that draws start out freely.
# - `Repulsion`: draws of a class keep off each other. They are one set, not independent draws.

# %%
rules = {
    "interval of 3": Interval(3.0, between=(0.2, 0.6)),
    "autoguidance 2": Autoguidance(early, 2.0),
    "CADS of 2": CADS(2.0, between=(0.5, 0.9), scale=1.0),
    "repulsion of 2": Repulsion(4.0, base=2.0),
}
points = {name: judged(draw(rule)) for name, rule in rules.items()}
for name, (precision, recall, right) in points.items():
    print(f"{name:14s}: precision {precision:.2f} recall {recall:.2f} right {right:.0%}")

eights = {}
for name, rule in {"as trained": 1.0, "guidance 3": 3.0, **rules}.items():
    eights[name] = pg.sample(gen, 14, ten[8], guidance=rule, seed=3, max_rows=14)

figure, axes = plt.subplots(1, 2, figsize=(13, 4.6), facecolor="black", width_ratios=(1.35, 1))
show(axes[0], torch.cat(list(eights.values())), 14, "fourteen eights each")
for row, name in enumerate(eights):
    axes[0].text(-2, 10 * row + 4.5, name, color="white", ha="right", va="center", fontsize=11)
panel = axes[1]
recalls = [recall for _, recall, _ in curve.values()]
precisions = [precision for precision, _, _ in curve.values()]
panel.plot(recalls, precisions, "o-", color="#fca50a", lw=2, label="classifier-free guidance")
for weight, (precision, recall, _) in curve.items():
    panel.annotate(
        f"{weight:g}", (recall, precision), (6, 5), textcoords="offset points", color="#fca50a"
    )
for (name, (precision, recall, _)), color in zip(
    points.items(), ("#6ce5e8", "#e8708a", "#9fe870", "#b69cff"), strict=True
):
    panel.plot(recall, precision, "D", color=color, ms=9, label=name)
panel.set(xlabel="recall: how much of the data is drawn", ylabel="precision", facecolor="black")
panel.tick_params(colors="white")
panel.xaxis.label.set_color("white")
panel.yaxis.label.set_color("white")
for side in panel.spines.values():
    side.set_color("#555555")
panel.legend(facecolor="black", labelcolor="white", framealpha=0.6)
figure.tight_layout(pad=0.6)
save(figure, "control_and_diversity.png", dpi=80)

# %% [markdown]
# ## A long tail
#
# Now the classes are not alike: 120 rows of the digit 0, fewer of each next one, three of the digit
# 9. Of the rarest the model learns the few rows by heart, and draws them again. `ClassBalancing`
# draws predictions for one class towards those for the others, most where there is much noise, that
# is in what classes share. The last part of the training is enough for it; here both models go on
# from the same weights. A small network of the pixels as numbers will do.

# %%
counts = [round(120 * 40 ** (-k / 9)) for k in range(10)]
print("rows of each digit:", counts)
rare = torch.cat([(classes[:1200] == k).nonzero()[: counts[k], 0] for k in range(10)])
rows = (train_x[rare].flatten(1), train_c[rare])
start = pg.Diffusion(
    TimeMLP(64, [256, 256, 256], context=10),
    (64,),
    sampler=pg.diffusion.DPMSolver(12),
    context_dropout=0.1,
)
train(start, rows, Denoising(), steps=900)
tails = {
    "as before": train(copy.deepcopy(start).train(), rows, Denoising(), steps=300),
    "class balancing": train(copy.deepcopy(start).train(), rows, ClassBalancing(ten), steps=300),
}

# %% [markdown]
# Diversity is the mean distance of two draws of a class, in the features of the classifier, over that
# of two real ones; `right` is the share that is recognized. Without guidance class balancing makes
# draws less true to their class: a weight of 2 gives that back, and keeps more diversity than the
# plain model has at the same weight.


# %%
def spread(x):
    return torch.pdist(judge(x)).mean().item()


def of_rare_digits(gen, guidance):
    """Diversity of draws of the three rarest digits, and the share that is recognized."""
    found = []
    for k in (7, 8, 9):
        x = pg.sample(gen, 80, ten[k], guidance=guidance, seed=5).reshape(-1, 1, 8, 8)
        right = (judge.logits(x).argmax(-1) == k).double().mean().item()
        found.append((spread(x) / spread(images[classes == k]), right))
    return torch.tensor(found).mean(0).tolist()


figure, axes = plt.subplots(3, 1, figsize=(10, 4.6), facecolor="black")
nines = train_x[rare][-counts[9] :]
blank = torch.full((16 - len(nines), 1, 8, 8), -2.0)
show(axes[0], torch.cat((nines, blank)), 16, "all the nines there are to learn from")
for panel, (name, tail) in zip(axes[1:], tails.items(), strict=True):
    for guidance in (1.0, 2.0):
        diversity, right = of_rare_digits(tail, guidance)
        print(f"{name:15s} guidance {guidance:.0f}: diversity {diversity:.2f} right {right:.0%}")
    x = pg.sample(tail, 32, ten[9], guidance=2.0, seed=5).reshape(-1, 1, 8, 8)
    told = f"diversity of 7, 8, 9: {diversity:.2f} of real ones, recognized: {right:.0%}"
    show(panel, x, 16, f"{name}, guidance 2   ({told})")
figure.tight_layout(pad=0.5)
save(figure, "long_tail.png")

# %% [markdown]
# ## Words
#
# Captions are a context like any other: tokens of a vocabulary, which the network attends to. Each
# picture has two digits in two colors. "red seven, blue two" is exact, "seven, blue two" leaves a
# color open. No picture with a red seven, or with a green two, is among those to learn from: whether
# the model can paint them shows whether it knows the words, or only pairs of them.

# %%
COLORS = {"red": (1.0, 0.1, 0.1), "green": (0.1, 1.0, 0.1), "blue": (0.2, 0.4, 1.0)}
PAINT = torch.tensor(list(COLORS.values()))
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NEVER = ((0, 7), (1, 2))  # red seven, green two
generator = torch.Generator().manual_seed(0)


def compose(count):
    """Pictures, and the place in the list, class and color of both digits."""
    place = torch.randint(1200, (count, 2), generator=generator)
    color = torch.randint(3, (count, 2), generator=generator)
    ink = (train_x[place] + 1) / 2  # (count, 2, 1, 8, 8)
    painted = ink * PAINT[color][:, :, :, None, None]
    return painted.permute(0, 2, 3, 1, 4).flatten(-2) * 2 - 1, classes[place], color


def caption(digit, color, told):
    """Two digits in words, the colors as far as they are told."""
    names = list(COLORS)
    words = [
        f"{names[c]} {NAMES[d]}" if shown else NAMES[d]
        for d, c, shown in zip(digit, color, told, strict=True)
    ]
    return ", ".join(words)


def without(digit, color):
    """Which pictures have none of the pairs that are kept back."""
    found = torch.zeros(digit.shape, dtype=torch.bool)
    for c, d in NEVER:
        found |= (digit == d) & (color == c)
    return ~found.any(1)


pictures, digit, color = compose(6000)
kept = without(digit, color)
told = torch.rand(6000, 2, generator=generator) < 0.8
captions = [
    caption(*row) for row in zip(digit.tolist(), color.tolist(), told.tolist(), strict=True)
]
vocabulary = Vocabulary.of(captions)
tokens = vocabulary.encode(captions, length=5)
print(vocabulary, "for instance:", captions[0])
encoder = TextEncoder(len(vocabulary), 5, 32, layers=1, padding=vocabulary.padding)
net = UNet((3, 8, 16), width=16, multipliers=(1, 2), attention=1, context=encoder)
painter = pg.Diffusion(net, (3, 8, 16), sampler=pg.diffusion.DPMSolver(12), context_dropout=0.1)
train(painter, (pictures[kept], tokens[kept]), Denoising(), steps=400)

# %% [markdown]
# Every word is checked, by the classifier of digits and by the color of the ink: of captions like
# those that the model has seen, and of the pairs that it has not.


# %%
def read(picture):
    """The digit and the color of both halves of pictures."""
    halves = ((picture + 1) / 2).clamp(0, 1).unflatten(-1, (2, 8)).movedim(-2, 1)
    ink = halves.amax(2, keepdim=True) * 2 - 1
    seen = judge.logits(ink.flatten(0, 1)).argmax(-1).unflatten(0, ink.shape[:2])
    mean = nn.functional.normalize(halves.mean((-1, -2)), dim=-1)
    return seen, (mean @ nn.functional.normalize(PAINT, dim=-1).mT).argmax(-1)


def checked(digit, color, guidance):
    """The shares of digits, of colors, and of pictures in which all four words are right."""
    every = torch.ones_like(digit)
    asked = [
        caption(*row) for row in zip(digit.tolist(), color.tolist(), every.tolist(), strict=True)
    ]
    x = pg.sample(painter, 1, vocabulary.encode(asked, length=5), guidance=guidance, seed=2)[0]
    seen, painted = read(x)
    right = (seen == digit) & (painted == color)
    return (seen == digit).double().mean(), (painted == color).double().mean(), right.all(1)


known = (
    torch.randint(10, (150, 2), generator=generator),
    torch.randint(3, (150, 2), generator=generator),
)
fair = without(*known)
both = (
    torch.randint(10, (150, 2), generator=generator),
    torch.randint(3, (150, 2), generator=generator),
)
pair = torch.tensor(NEVER)[torch.arange(150) % 2]
both[0][:, 0] = pair[:, 1]
both[1][:, 0] = pair[:, 0]
asked = {"pairs seen in training": (known[0][fair], known[1][fair]), "pairs never seen": both}
for guidance in (1.0, 3.0):
    for name, (digit, color) in asked.items():
        digits_right, colors_right, all_right = checked(digit, color, guidance)
        print(
            f"guidance {guidance:.0f}, {name:22s}: digits {digits_right:.0%}, "
            f"colors {colors_right:.0%}, all four words {all_right.double().mean():.0%}"
        )

texts = (
    "red seven, blue three",
    "green two, red zero",
    "blue five, green five",
    "four, red nine",
    "eight, one",
)
figure, axes = plt.subplots(len(texts), 1, figsize=(9, 4.4), facecolor="black")
for panel, text in zip(axes, texts, strict=True):
    x = pg.sample(painter, 8, vocabulary.encode([text], length=5)[0], guidance=3.0, seed=7)
    show(panel, x, 8)
    panel.text(-3, 4.5, text, color="white", ha="right", va="center", fontsize=12)
figure.tight_layout(pad=0.4)
save(figure, "captions.png")
print(f"figures are in {OUTPUT.resolve()}")
