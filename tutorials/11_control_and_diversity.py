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


def show(panel, rows, columns=None, title="", **labels):
    """Images of values -1 to 1 as one grid."""
    pg.plot.images(rows, columns=columns, bounds=(-1.0, 1.0), cmap="gray_r", ax=panel, **labels)
    panel.set_title(title, fontsize=11)


def save(figure, name, dpi=90):
    figure.savefig(OUTPUT / name, dpi=dpi, bbox_inches="tight")


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

twos = {}
for name, rule in {"as trained": 1.0, "guidance 3": 3.0, **rules}.items():
    twos[name] = pg.sample(gen, 10, ten[2], guidance=rule, seed=3, max_rows=10)

figure, axes = plt.subplots(1, 2, figsize=(13, 4.8), width_ratios=(1.25, 1), layout="constrained")
pictures = torch.stack(list(twos.values()))
show(axes[0], pictures, title="ten twos, from the same noise", row_labels=list(twos))
panel = axes[1]
recalls = [recall for _, recall, _ in curve.values()]
precisions = [precision for precision, _, _ in curve.values()]
panel.plot(recalls, precisions, "o-", color="0.4", lw=2, label="classifier-free guidance")
for weight, (precision, recall, _) in curve.items():
    panel.annotate(
        f"{weight:g}", (recall, precision), (6, 5), textcoords="offset points", color="0.4"
    )
for (name, (precision, recall, _)), color in zip(
    points.items(), ("#0072b2", "#d55e00", "#009e73", "#cc79a7"), strict=True
):
    panel.plot(recall, precision, "D", color=color, ms=9, label=name)
panel.set(
    xlabel="recall: how much of the data is drawn",
    ylabel="precision: how much of what is drawn is like it",
)
panel.legend(frameon=False)
panel.spines[["top", "right"]].set_visible(False)
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
# draws less true to their class: guidance gives that back, and keeps more diversity than the plain
# model has at the same weight.


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


figure, axes = plt.subplots(3, 1, figsize=(10, 5.2), layout="constrained")
nines = train_x[rare][-counts[9] :]
blank = torch.full((16 - len(nines), 1, 8, 8), -1.0)
show(axes[0], torch.cat((nines, blank)), 16, "all the nines there are to learn from")
for panel, (name, tail) in zip(axes[1:], tails.items(), strict=True):
    for guidance in (1.0, 2.0, 3.0):
        diversity, right = of_rare_digits(tail, guidance)
        print(f"{name:15s} guidance {guidance:.0f}: diversity {diversity:.2f} right {right:.0%}")
    x = pg.sample(tail, 32, ten[9], guidance=3.0, seed=5).reshape(-1, 1, 8, 8)
    told = f"diversity of 7, 8, 9: {diversity:.2f} of real ones, recognized: {right:.0%}"
    show(panel, x, 16, f"{name}, guidance 3   ({told})")
save(figure, "long_tail.png")

# %% [markdown]
# ## Words
#
# Captions are a context like any other: tokens of a vocabulary, which an encoder of texts reads. Each
# picture is a digit in a color, pale or bright. "pale red seven" is exact, "seven" leaves the rest
# open. No picture with a red seven, or with a green two, is among those to learn from: whether the
# model can paint them shows whether it knows the words, or only their combinations.

# %%
COLORS = {"red": (1.0, 0.1, 0.1), "green": (0.1, 1.0, 0.1), "blue": (0.2, 0.4, 1.0)}
TONES = {"pale": 0.45, "bright": 1.0}
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDS = (list(TONES), list(COLORS), NAMES)
PAINT = torch.tensor(list(COLORS.values()))
INK = torch.tensor(list(TONES.values()))
generator = torch.Generator().manual_seed(0)


def compose(count):
    """Pictures, and what is on them: tone, color and digit ``(count, 3)``."""
    place = torch.randint(1200, (count,), generator=generator)
    tone = torch.randint(2, (count,), generator=generator)
    color = torch.randint(3, (count,), generator=generator)
    ink = (train_x[place] + 1) / 2
    painted = ink * (INK[tone][:, None] * PAINT[color])[:, :, None, None]
    return 2 * painted - 1, torch.stack((tone, color, classes[place]), 1)


def caption(attributes, told=(True, True, True)):
    """In words, as far as they are told."""
    rows = zip(WORDS, attributes, told, strict=True)
    return " ".join(words[place] for words, place, shown in rows if shown) or "anything"


def never_seen(attributes):
    """Which pictures show a pair that is kept back."""
    _, color, digit = attributes.unbind(1)
    return ((color == 0) & (digit == 7)) | ((color == 1) & (digit == 2))


pictures, attributes = compose(6000)
seen = ~never_seen(attributes)
told = torch.rand(6000, 3, generator=generator) < 0.8
captions = [caption(*row) for row in zip(attributes.tolist(), told.tolist(), strict=True)]
vocabulary = Vocabulary.of(captions)
tokens = vocabulary.encode(captions, length=3)
print(vocabulary, "for instance:", ", ".join(captions[:3]))
encoder = TextEncoder(len(vocabulary), 3, 32, layers=1, padding=vocabulary.padding)
nn.init.normal_(encoder.embed.weight)  # words that begin far apart are told apart sooner
net = TimeMLP(192, [256, 256, 256], context=encoder)
painter = pg.Diffusion(net, (192,), sampler=pg.diffusion.DPMSolver(12), context_dropout=0.1)
train(painter, (pictures[seen].flatten(1), tokens[seen]), Denoising(), steps=2500)


def paint(texts, count, guidance):
    """So many pictures of each text."""
    tokens = vocabulary.encode(texts, length=3)
    x = pg.sample(painter, count, tokens, guidance=guidance, seed=2)
    return x.unflatten(-1, (3, 8, 8))


# %% [markdown]
# Every word is checked: the digit by the classifier, color and tone by the ink. Once for captions of
# pairs that were in the training data, once for those that never were.


# %%
def read(pictures):
    """What pictures show: tone, color and digit ``(B, 3)``."""
    ink = ((pictures + 1) / 2).clamp(0, 1)
    mean = nn.functional.normalize(ink.mean((-1, -2)), dim=-1)
    color = (mean @ nn.functional.normalize(PAINT, dim=-1).mT).argmax(-1)
    darkest = ink.amax(1).flatten(1).topk(5).values.mean(-1)
    tone = (darkest > 0.7).long()
    gray = (ink.amax(1, keepdim=True) / INK[tone][:, None, None, None]).clamp(0, 1)
    return torch.stack((tone, color, judge.logits(2 * gray - 1).argmax(-1)), 1)


def checked(wanted, guidance):
    """The shares of tones, colors, digits, and of pictures in which all three words are right."""
    drawn = paint([caption(row) for row in wanted.tolist()], 1, guidance)[0]
    right = read(drawn) == wanted
    return [*right.double().mean(0).tolist(), right.all(1).double().mean().item()]


_, asked = compose(900)
unseen = never_seen(asked)
groups = {"pairs of the training data": asked[~unseen][:150], "pairs never seen": asked[unseen]}
real = (read(pictures[:300]) == attributes[:300]).all(1).double().mean()
print(f"real pictures: all words right {real:.0%}")
for guidance in (1.0, 3.0):
    for name, wanted in groups.items():
        tone, color, digit, every = checked(wanted, guidance)
        print(
            f"guidance {guidance:.0f}, {name:27s}: tone {tone:.0%} color {color:.0%} "
            f"digit {digit:.0%} all words {every:.0%}"
        )

texts = (
    "bright blue eight",
    "pale green five",
    "bright red seven",
    "pale green two",
    "red",
    "four",
)
figure, axes = plt.subplots(2, 3, figsize=(12, 3.0), layout="constrained")
for panel, text in zip(axes.flat, texts, strict=True):
    x = paint([text], 8, 2.0)[:, 0]
    kept_back = text in ("bright red seven", "pale green two")
    show(panel, x, 8, f'"{text}"' + (", never seen" if kept_back else ""))
save(figure, "captions.png")
print(f"figures are in {OUTPUT.resolve()}")
