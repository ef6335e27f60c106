"""Samples beside real rows

Distances of two models' samples from real rows, in units of what other real rows get.

howto/judge_samples
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_wine

import probgen as pg

x = torch.tensor(load_wine().data, dtype=torch.float32)
x = ((x - x.mean(0)) / x.std(0))[torch.randperm(len(x))]
train, real = x[:89], x[89:]
models = {"one Gaussian": 1, "three Gaussians": 3}
figure, panel = plt.subplots()
for shift, (name, components) in zip((0.12, -0.12), models.items(), strict=True):
    gen = pg.GaussianMixture(components, dims=13, regularization=0.05)
    pg.em(gen, train, n_init=3, seed=0)
    report = pg.sample_report(pg.sample(gen, 89, seed=0), real, train, permutations=50)
    print(report)
