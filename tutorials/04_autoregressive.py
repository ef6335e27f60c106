# %% [markdown]
# # Autoregressive models: the chain rule, from counting to convolutions
#
# Any distribution is a product of conditionals, $p(x) = \prod_t p(x_t \mid x_1, \dots, x_{t-1})$.
# Models differ in how they say the conditionals: by a table for everything, by forgetting all but
# the last values, or by a network. Their likelihoods are all *exact*, so they can be compared to
# the last digit. We climb that ladder on the 8 x 8 digits of scikit-learn with their 17 gray
# levels, complete half-hidden images, classify by Bayes' rule with the right to refuse, and find
# images that do not belong.

# %%
import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import probgen as pg

parser = argparse.ArgumentParser()
parser.add_argument("--output", type=Path, default=Path("autoregressive_output"))
OUTPUT = parser.parse_known_args()[0].output
OUTPUT.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(
    1
)  # (1797, 1, 8, 8), values 0, 1, ..., 16
labels = torch.tensor(digits.target)
train = slice(1000)
validation = slice(1000, 1350)
test = slice(1350, None)

# %% [markdown]
# ## How many numbers does a distribution need?
#
# Take nine pixels in the middle of each digit, black or white. The joint table can say everything
# about them, with $2^9 - 1$ probabilities; independence needs nine, and a chain that remembers the
# last k pixels lies in between. All are estimated by counting (`em` does it in one step). More
# freedom is better until the data no longer fill the tables.

# %%
patch = (images[:, 0, 2:5, 2:5] > 8).float().flatten(1)
models = {
    "independent": pg.Factorized(9, smoothing=0.1),
    "joint table": pg.JointTable(9, smoothing=0.1),
}
models |= {f"chain of order {k}": pg.MarkovChain(9, order=k, smoothing=0.1) for k in (1, 2, 4, 6)}
for name, model in models.items():
    pg.em(model, patch[train])
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{name:17s} {count:4d} parameters, held out {pg.log_likelihood(model, patch[test])}")

# %% [markdown]
# ## Whole images
#
# With 64 pixels of 17 levels the joint table would have $17^{64}$ entries. Networks share what
# tables cannot: `MADE` masks the weights of a perceptron so that output t sees the inputs before t
# alone; `PixelCNN` does the same with convolutions, which look for the same strokes everywhere.
# Both give the conditionals of all pixels in one pass. Here the PixelCNN is also told the label, as
# its *context*: it is ten models in one.

# %%
made = pg.MADE(
    64,
    [400],
    pg.heads.DiscretizedLogisticMixture(levels=17, components=3),
    encode=pg.nn.OneHot(17),
    dropout=0.3,
)
pixelcnn = pg.PixelCNN(
    (1, 8, 8),
    pg.heads.Categorical(levels=17),
    pg.nn.Levels(17),
    width=24,
    layers=3,
    reach=2,
    context=10,
    dropout=0.2,
)
onehot = nn.functional.one_hot(labels, 10).float()
settings = {
    "batch_size": 100,
    "optimizer": pg.train.adam(3e-3),
    "ema": 0.98,
    "validate_every": 50,
    "patience": 3,
    "seed": 0,
}
flat = images.flatten(1)
print("MADE:", pg.fit(made, flat[train], steps=600, validation=flat[validation], **settings))
data = (images[train], onehot[train])
held_out = (images[validation], onehot[validation])
print("PixelCNN:", pg.fit(pixelcnn, data, steps=400, validation=held_out, **settings))

counting = {
    "pixel counts": pg.Factorized(64, 17, smoothing=1 / 17),
    "chain": pg.MarkovChain(64, 17, smoothing=0.3),
}
for model in counting.values():
    pg.em(model, flat[train])
scores = {name: pg.log_likelihood(model, flat[test]) for name, model in counting.items()}
scores["MADE"] = pg.log_likelihood(made, flat[test])

# %% [markdown]
# The score of an image without its label is a sum over the ten models, $p(x) = \sum_y p(y)\, p(x
# \mid y)$: exact too. The same ten numbers classify: $p(y \mid x) \propto p(y)\, p(x \mid y)$.


# %%
@torch.no_grad()
def joint(x):
    """log p(x, y) for all ten labels y: (N, 10)."""
    given = [pixelcnn(label.expand(len(x), 10)).log_prob(x) for label in torch.eye(10)]
    return torch.stack(given, 1) + onehot[train].mean(0).log()


by_label = joint(images[test])
scores["PixelCNN"] = pg.Score(by_label.logsumexp(1), "exact", measure="mass")
for name, score in scores.items():
    print(f"{name:12s} {score}")
print("PixelCNN is better than MADE:", scores["PixelCNN"] > scores["MADE"])

# %% [markdown]
# ## Bayes' rule with the right to refuse
#
# A generative classifier knows two things that others do not: how probable each class is, and
# whether the image is one of the kind it knows at all. Refusing the images with the least certain
# label trades coverage for accuracy.

# %%
confidence, guess = by_label.softmax(1).max(1)
right = (guess == labels[test]).float()
order = confidence.argsort(descending=True)
accuracy = right[order].cumsum(0) / torch.arange(1, len(order) + 1)
print(
    f"accuracy {right.mean():.3f}; of the 90 % most certain "
    f"{accuracy[int(0.9 * len(order)) - 1]:.3f}"
)

seen, odd = (joint(x).logsumexp(1) for x in (images[test], images[test].rot90(dims=(2, 3))))
area = (seen.unsqueeze(1) > odd).float().mean()
print(f"digits against digits on their side, by log p(x): area under the curve {area:.3f}")

# %% [markdown]
# ## Where is the surprise?
#
# The chain rule splits $-\log p(x)$ into one number per pixel: what the model did not expect, given
# what came before.

# %%
with torch.no_grad():
    terms = -pixelcnn(onehot[test][:20]).terms(images[test][:20])

# %% [markdown]
# ## Half an image
#
# NaN means missing. Where the missing pixels come last in the order, as the lower half does, a draw
# of them is exact and costs one pass. Where they do not, as the upper half, `impute` visits them
# one by one, each given all others (Gibbs sampling): the chain is exact in the limit only, and says
# so.

# %%
shown = images[test][:20]
context = onehot[test][:20]
lower = shown.clone()
upper = shown.clone()
lower[..., 4:, :], upper[..., :4, :] = torch.nan, torch.nan
below = pg.impute(pixelcnn, lower, context, draws=3)
above = pg.impute(pixelcnn, upper, context, draws=1, num_steps=3)
print(f"lower half: {below.kind}; upper half: {above.kind}")

look = {"shape": (8, 8), "bounds": (0.0, 16.0), "cmap": "gray_r"}
drawn = pg.sample(pixelcnn, 2, onehot[test][:20])
rows = {"held out": shown, "surprise, x 3 nats": terms.reshape(shown.shape) * 3}
rows |= {"drawn": drawn[0], "drawn again": drawn[1]}
ax = pg.plot.images(torch.stack(list(rows.values())), row_labels=list(rows), **look)
ax.figure.savefig(OUTPUT / "surprise_and_samples.png", dpi=150)

rows = {"held out": shown, "upper half": lower}
rows |= {f"completed, {n + 1}": draw for n, draw in enumerate(below.draws)}
rows |= {"lower half": upper, "completed": above.draws[0]}
ax = pg.plot.images(torch.stack(list(rows.values())), row_labels=list(rows), **look)
ax.figure.savefig(OUTPUT / "completions.png", dpi=150)

figure, axes = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
pg.plot.risk_coverage(confidence, 1 - right, ax=axes[0])
pg.plot.scores(
    {
        name: pg.Score(x, "exact", measure="mass")
        for name, x in (("upright", seen), ("turned", odd))
    },
    ax=axes[1],
)
for ax, title in zip(axes, ("Bayes' rule, rejecting", "what does not belong"), strict=True):
    ax.set_title(f"{title}: {ax.get_title(loc='left')}", loc="left")
figure.savefig(OUTPUT / "uses.png", dpi=120)
print(f"figures are in {OUTPUT.resolve()}")
