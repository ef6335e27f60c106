# %% [markdown]
# # Decisions: what a density is good for
#
# A model gives every row a probability. That is enough to tell classes apart and to say when a row is
# of no class, to find anomalies at a rate of false alarms that was chosen beforehand, to say how far
# one model is from another, and to write rows in few bytes. About half a minute on one core.

# %%
import argparse
import lzma
from pathlib import Path

import numpy as np
import pandas
import torch
from sklearn.datasets import load_breast_cancer

import probgen as pg

parser = argparse.ArgumentParser()
parser.add_argument("--output", type=Path, default=Path("decisions_output"))
OUTPUT = parser.parse_known_args()[0].output
OUTPUT.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)


def keep(ax, name):
    """Writes a picture."""
    ax.figure.savefig(OUTPUT / f"{name}.png", dpi=110, bbox_inches="tight")


# %% [markdown]
# ## A classifier of densities
#
# Handwritten digits. Eights and nines are left out when the models are made: somebody will ask about
# them all the same. Each of the other digits gets a density of its own, here probabilistic principal
# components in closed form, and the classifier is Bayes' rule over these. The test digits are by
# people who wrote none of the others.

# %%
images, labels = pg.datasets.load_digits(labels=True)
x, x_held, x_test = (part.flatten(1) for part in images)
y, y_held, y_test = labels
clf = pg.GenerativeClassifier({digit: pg.PPCA(64, factors=12) for digit in range(8)})
clf.fit(x[y < 8], y[y < 8])
x_held, y_held = x_held[y_held < 8], y_held[y_held < 8]
asked, truth = x_test[y_test < 8], y_test[y_test < 8]
right = clf.predict(asked) == truth.numpy()
print(f"known digits: {right.mean():.1%} right")

# %% [markdown]
# Probabilities of 64 pixels are nearly 0 or 1, and wrong more often than they say. Held-out rows give
# the temperature at which they are believed best; no label changes by it.

# %%
before = clf.log_posterior(asked)
print(before)
print(clf.calibrate(x_held, y_held))
after = clf.log_posterior(asked)
for name, posterior in (("as they are", before), ("calibrated", after)):
    loss = -posterior.value.gather(1, truth[:, None]).mean()
    error = pg.decisions.calibration_error(posterior.probability, truth)
    print(f"{name:12s} log loss {loss:.3f} nats, calibration error {error:.3f}")
keep(pg.plot.reliability(after.probability, truth), "reliability")

# %% [markdown]
# ## Two reasons to give no answer
#
# *Doubt*: the row is like several classes. `reject` is the cost of no answer, where a wrong one costs
# 1. *Outlier*: the row is like no class, whatever the probabilities of the classes say, for they sum
# to one for any nonsense. `outliers` is the share of rows of known classes that may be lost by this.

# %%
found = clf.decide(x_test, reject=0.1, outliers=0.05)
print(found)
answered = found.reasons == "answer"
is_known = (y_test < 8).numpy()
wrong = (found.labels != y_test.numpy())[answered & is_known].mean()
print(f"known digits answered: {answered[is_known].mean():.1%}")
print(f"wrong among these: {wrong:.1%}")
outlying = (found.reasons == "outlier")[~is_known].mean()
print(f"eights and nines called outliers: {outlying:.1%}")
sure = (clf.log_posterior(x_test).confidence > 0.9).numpy()[~is_known].mean()
print(f"eights and nines of a confidence above 0.9: {sure:.1%}")

# %% [markdown]
# So many would have been answered, wrongly, by the probabilities of the classes alone. The rate of
# outliers holds for rows like the held-out ones; of what other people write, more is rejected. Below
# are rows that were answered, and rows that were rejected as outliers.

# %%
rows = [np.flatnonzero(found.reasons == reason)[:8] for reason in ("answer", "outlier")]
grid = x_test[torch.tensor(np.stack(rows))]
keep(
    pg.plot.images(grid, shape=(8, 8), cmap="gray_r", row_labels=["answered", "like no class"]),
    "rejected",
)

# %% [markdown]
# ## What rejecting buys
#
# Missing pixels are integrated out: no fit knows of them, nothing is filled in. With three tenths of
# the pixels left more answers are wrong, and their confidence says which.

# %%
for share in (0.5, 0.7):
    holes = asked.masked_fill(torch.rand(asked.shape) < share, torch.nan)
    right = clf.predict(holes) == truth.numpy()
    print(f"{share:.0%} of the pixels missing: {right.mean():.1%} right")

# %% [markdown]
# The curve has the share of errors among the surest rows. From it follows the confidence above which
# *new* rows are wrong rarely enough, with a guarantee that counts how few rows it was found by. It is
# one for rows like these: the test digits are by other people, and may just miss it.

# %%
curve = clf.risk_coverage(x_held.masked_fill(torch.rand(x_held.shape) < 0.7, torch.nan), y_held)
print(curve)
print(f"risk if half are answered: {curve.at(0.5):.3f}")
level = curve.confidence_for(0.1)
taken = (clf.log_posterior(holes).confidence >= level).numpy()
print(f"confidence for a risk of 10 % at most: {level:.3f}")
print(f"new rows above it: {taken.mean():.1%}, wrong {1 - right[taken].mean():.1%}")
keep(pg.plot.risk_coverage(curve.confidence, curve.losses), "risk_coverage")

# %% [markdown]
# ## Anomalies
#
# Thirty measurements of cells, from benign and malignant tumors, as logarithms. The model sees benign
# ones only; others, held out, say how low a score may be without being odd. A p-value of 0.01 or less
# comes up for one in a hundred usual rows, however well or badly the model fits.

# %%
cells = load_breast_cancer(as_frame=True)
smallest = cells.data[cells.data > 0].min()
table = np.log(cells.data + smallest)  # some measurements are 0
benign = table[cells.target == 1].sample(frac=1, random_state=0)
fitted, calibration, usual, malignant = (
    (rows - benign[:120].mean()) / benign[:120].std()
    for rows in (benign[:120], benign[120:290], benign[290:], table[cells.target == 0])
)
model = pg.PPCA(30, factors=5)
model.solve(torch.tensor(fitted.to_numpy(), dtype=torch.float32))
detector = pg.AnomalyDetector(model, calibration)
print(detector.uniformity(usual))
odd = detector.p_values(malignant)
print(f"malignant rows with p-values below 0.05: {(odd < 0.05).double().mean():.1%}")
keep(pg.plot.p_values(odd), "p_values")

# %% [markdown]
# Among many rows, some usual ones have low p-values by chance. `detect` chooses the level so that of
# the rows it lists at most a tenth are usual ones, in expectation.

# %%
mixed = pandas.concat([usual, malignant[:60]])
listed = detector.detect(mixed, false_discovery_rate=0.1)
print(listed)
is_odd = torch.arange(len(mixed)) >= len(usual)
print(f"malignant rows listed: {listed.anomalous[is_odd].double().mean():.1%}")
print(f"falsely listed: {(~is_odd)[listed.anomalous].double().mean():.1%}")

# %% [markdown]
# Which measurement is to blame? The one that the others predict worst.

# %%
blamed = detector.blame(malignant)
names, counts = np.unique(blamed.columns, return_counts=True)
for count, name in sorted(zip(counts, names, strict=True), reverse=True)[:4]:
    print(f"{name:24s} {count} of {len(malignant)} malignant rows")

# %% [markdown]
# ## How far apart are two models?
#
# The densities of two digits are far apart where the digits are easy to tell apart. Between normal
# distributions the Kullback-Leibler divergence has a closed form, and is *exact*.

# %%
pairs = {}
for first in range(8):
    for second in range(first):
        one, other = clf.models[first], clf.models[second]
        pairs[second, first] = [pg.divergence(one, other), pg.divergence(other, one)]
nearest = sorted(pairs, key=lambda pair: sum(each.value for each in pairs[pair]))
for pair in (*nearest[:2], nearest[-1]):
    forth, back = pairs[pair]
    print(f"{pair[0]} and {pair[1]}: {forth.value:.1f} and {back.value:.1f} nats ({forth.kind})")

# %% [markdown]
# Models of other families have no closed form: the divergence is an average over draws of both, with
# its standard error. Here are two of digits of black and white pixels: a tree of pixels (Chow and Liu),
# and pixels by themselves. The Jensen-Shannon divergence is log 2, 0.693 nats, at most.

# %%
bits, bits_test = (x > 8).float(), (x_test > 8).float()
tree = pg.ChowLiu([2] * 64, smoothing=1.0)
tree.initialize(bits)
alone = pg.Factorized(64, smoothing=1.0)
pg.em(alone, bits)
told = pg.divergence(tree, alone, draws=20_000, seed=0)
print("Kullback-Leibler:", told)
print("Jensen-Shannon:  ", pg.divergence(tree, alone, "jensen-shannon", seed=0))

# %% [markdown]
# ## Few bytes
#
# A row that a model expects is written in few bits, $-\log_2 p(x)$: the two models of above, and a
# compressor that knows nothing of digits.

# %%
packed = np.packbits(bits_test.numpy().astype(bool)).tobytes()
print(f"one bit a pixel: {len(packed)} bytes; by lzma: {len(lzma.compress(packed))} bytes")
for name, gen in (("pixels alone", alone), ("tree", tree)):
    data = pg.compress(gen, bits_test)
    score = -pg.log_likelihood(gen, bits_test).value.sum() / np.log(2) / 8
    print(f"{name:12s} {len(data)} bytes; the score says {score:.0f}")
same = torch.equal(pg.decompress(tree, data), bits_test)
print("what is read is what was written:", same)

# %% [markdown]
# Bytes and divergences are one thing: whoever writes rows of one model by another pays the divergence
# between them, for each row.

# %%
drawn = pg.sample(tree, 4000, seed=0)
extra = 8 * (len(pg.compress(alone, drawn)) - len(pg.compress(tree, drawn))) / len(drawn)
print(f"extra bits a row: {extra:.2f} paid, {told.value / np.log(2):.2f} by the divergence")

# %% [markdown]
# Bytes that were damaged, or that another model wrote, are refused.

# %%
for gen, given in ((tree, data[:-4]), (alone, data)):
    try:
        pg.decompress(gen, given)
    except pg.CompressionError as error:
        print(error)
