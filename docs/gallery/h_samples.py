"""Samples beside real rows

Are samples of two models like 89 real wines (precision), and all wines among them (recall)?

howto/judge_samples
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_wine

import probgen as pg

x = torch.tensor(load_wine().data, dtype=torch.float32)
x = ((x - x.mean(0)) / x.std(0))[torch.randperm(len(x))]
train, real = x[:89], x[89:]

figure, panel = plt.subplots()
measures = ["precision", "recall", "density", "coverage"]
for components, color, shift in ((1, "C1", 0.15), (3, "C0", -0.15)):
    gen = pg.GaussianMixture(components, dims=13, regularization=0.05)
    pg.em(gen, train, n_init=3, seed=0)
    report = pg.sample_report(pg.sample(gen, 89, seed=0), real, train, permutations=20)
    for place, measure in enumerate(measures):
        found = report[measure]
        panel.plot(found.interval, [place + shift] * 2, color=color)
        panel.plot(found.value, place + shift, "o", color=color)
        panel.plot([found.baseline] * 2, [place - 0.35, place + 0.35], color="0.6", ls=":")
for name, color, height in (("one Gaussian", "C1", 3.3), ("three Gaussians", "C0", 2.95)):
    panel.text(0.02, height, name, color=color)
panel.text(0.02, 2.6, "real rows", color="0.5")
panel.set(xlim=(0, 1.02), ylim=(-0.5, 3.5), yticks=range(4), yticklabels=measures)
