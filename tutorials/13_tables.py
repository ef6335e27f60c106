# %% [markdown]
# # Tables: from a data frame to rows like it
#
# A table of penguins, with numbers, names and missing cells. We look at what its columns are taken
# for and correct it, let families compete, draw rows and ask whether they are good and whether they
# give single rows away, fill in what is missing, draw rows for which some columns are known, and
# keep the model in a file. About half a minute on one core.

# %%
import argparse
from pathlib import Path

import numpy as np
import pandas

import probgen as pg
from probgen.table import Continuous, Count, Label

parser = argparse.ArgumentParser()
parser.add_argument("--output", type=Path, default=Path("tables_output"))
OUTPUT = parser.parse_known_args()[0].output
OUTPUT.mkdir(parents=True, exist_ok=True)

frame = pg.datasets.load_penguins()
print(frame.sample(5, random_state=0).to_string())
order = np.random.default_rng(0).permutation(len(frame))
train = frame.iloc[order[:240]].reset_index(drop=True)
held_out = frame.iloc[order[240:]].reset_index(drop=True)

# %% [markdown]
# ## What the columns are
#
# A schema is read off the frame: which columns are numbers, on which grid, which are names, where
# cells are missing. It is a guess, and worth a look.

# %%
table = pg.Table.read(frame)
print(table)

# %% [markdown]
# Two things are known better than that. Lengths and masses are positive, so that draws shall be, and
# masses were weighed in steps of 25 grams. And the three years need no order.

# %%
sizes = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]
table = table.change({name: Continuous(low=0) for name in sizes})
table = table.change(body_mass_g=Continuous(low=0, step=25), year=Label())
print(table)

# %% [markdown]
# A kind that cannot hold what a column has is refused, and the error says what to do.

# %%
try:
    table.change(bill_length_mm=Count())
except ValueError as error:
    print(error)

# %% [markdown]
# ## Families compete
#
# `search` trains families of several kinds within a budget of time, and compares them on rows that
# none of them has seen. The difference to the best one is paired, row by row, with its standard
# error: it says what this many rows can tell apart.

# %%
found = pg.search(train, table=table, budget="12 s", seed=0, progress=False)
print(found)
ax = pg.plot.leaderboard(found.comparison)
ax.figure.savefig(OUTPUT / "leaderboard.png", dpi=110, bbox_inches="tight")

# %% [markdown]
# Penguins that neither the models nor the choice of one has seen are the ones to report.

# %%
print("held-out penguins:", pg.log_likelihood(found.model, held_out, particles=16))

# %% [markdown]
# ## Rows like those of the table
#
# Draws are a frame with the same columns and types, and with cells that are missing as often.

# %%
draws = found.model.sample(1000, seed=0)
print(draws.head().to_string())
axes = pg.plot.columns(frame, draws)
axes[0].figure.savefig(OUTPUT / "columns.png", dpi=110, bbox_inches="tight")
pairs = pg.plot.column_pairs(frame[sizes], draws[sizes])
pairs[0, 0].figure.savefig(OUTPUT / "pairs.png", dpi=110, bbox_inches="tight")

# %% [markdown]
# Are they good? Each column and each pair of columns is compared with held-out rows. Beside it stands
# what real rows get, for a perfect model would get that and not 1. Do they give rows away? A model
# that repeats what it was trained on draws rows that lie closer to these than to others. The last two
# shares say how much, with intervals: 50 % is nothing at all, and where an interval lies above it,
# more rows or a smaller family help.

# %%
quality = pg.evaluate.table_quality(draws, held_out, table=table)
print(quality)
privacy = pg.evaluate.table_privacy(draws, train, held_out, table=table)
print(privacy)

# %% [markdown]
# ## Missing cells
#
# The mass and the sex of half of the held-out penguins are hidden, and drawn given all that is known
# of each. `frame()` has the mean of the draws for numbers and the likeliest name; `frames()` has a
# whole frame for each draw, for analyses that shall know how uncertain the cells are.

# %%
known = held_out.dropna().reset_index(drop=True)
holes = known.copy()
hidden = np.arange(len(holes)) % 2 == 0
holes.loc[hidden, ["body_mass_g", "sex"]] = None
done = pg.impute(found.model, holes, draws=50, seed=0)
guess = done.frame()
print(done)


def error(masses):
    """Root of the mean squared error of hidden masses, grams."""
    return np.sqrt(np.mean((masses - known["body_mass_g"])[hidden] ** 2))


right = (guess["sex"] == known["sex"])[hidden].mean()
print(f"error of the mass: {error(guess['body_mass_g']):.0f} g")
print(f"error of the mean of all penguins: {error(train['body_mass_g'].mean()):.0f} g")
print(f"sex is right for {right:.0%}")

# %% [markdown]
# ## Given some columns
#
# `given` names columns that all draws share: a scenario, or a group that the table has too few rows
# of. The others follow from them.

# %%
group = {"species": "Gentoo", "sex": "female"}
like = found.model.sample(500, given=group, missing=False, seed=0)
real = frame[(frame["species"] == "Gentoo") & (frame["sex"] == "female")]
beside = pandas.DataFrame({"drawn": like[sizes].mean(), "real": real[sizes].mean()})
print(beside.round(1).to_string())
print("islands of the draws:", like["island"].value_counts(normalize=True).round(2).to_dict())

# %% [markdown]
# The same answers questions about a single penguin: which species has so long a bill, and how heavy
# is it? The answer is a distribution, here of two kinds of penguins.

# %%
for length in (38.0, 46.0, 51.0):
    told = found.model.sample(
        500, given={"bill_length_mm": length, "sex": "male"}, missing=False, seed=0
    )
    shares = told["species"].value_counts(normalize=True).round(2).to_dict()
    low, high = told["body_mass_g"].quantile([0.05, 0.95])
    print(f"a bill of {length:.0f} mm: {shares}; between {low:.0f} and {high:.0f} g")

# %% [markdown]
# ## In a file
#
# The schema is part of the model. What is loaded takes frames and gives frames, in any process.

# %%
pg.save(found.model, OUTPUT / "penguins.safetensors")
again = pg.load(OUTPUT / "penguins.safetensors")
same = again.sample(1000, seed=0).equals(draws)
print("the loaded model draws the same rows:", same)
