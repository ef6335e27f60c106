"""Regimes of a series

Large earthquakes a year in the whole world, and the most probable of three hidden rates.

tutorials/06_graphical_and_sequences
"""

import matplotlib.pyplot as plt
import torch

import probgen as pg

COUNTS = """
13 14 8 10 16 26 32 27 18 32 36 24 22 23 22 18 25 21 21 14 8 11 14 23 18 17 19 20 22 19 13 26
13 14 22 24 21 22 26 21 23 24 27 41 31 27 35 26 28 36 39 21 17 22 17 19 15 34 10 15 22 18 15 20
15 22 19 16 30 27 29 23 20 16 21 21 25 16 18 15 18 14 10 15 8 15 6 11 8 7 18 16 13 12 13 20 15
16 12 18 15 16 13 15 16 11 11
"""  # Zucchini, MacDonald (2009), table 1.1
counts = torch.tensor([float(count) for count in COUNTS.split()])
x = counts[None, :, None]  # (sequences, years, columns)
model = pg.HiddenMarkovModel(3, len(counts), pg.sequences.PoissonEmission(3), pseudo_count=0.5)
pg.em(model, x.expand(2, -1, -1), n_init=5, seed=0)  # one sequence twice: the same maximum

with torch.no_grad():
    states = model().most_likely_states(x)[0]
rates = torch.stack([counts[states == state].mean() for state in range(3)])

figure, panel = plt.subplots()
year = range(1900, 1900 + len(counts))
panel.bar(year, counts, width=1.0, color="0.88")
panel.step(year, rates[states], where="mid", color="C1")
panel.set(xlabel="year", ylabel="earthquakes, magnitude 7 or more", xlim=(1899.5, 2006.5))
