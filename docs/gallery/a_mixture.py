"""Clusters and density of a mixture

Petals and sepals of 150 irises: three Gaussians by EM, contours of their density.

howto/clusters
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_iris

import probgen as pg

x = torch.tensor(load_iris().data[:, [2, 1]], dtype=torch.float32)  # cm
x = x + 0.04 * torch.randn_like(x)  # measured to a millimeter
mixture = pg.GaussianMixture(components=3, dims=2)
pg.em(mixture, x, n_init=3, seed=0)

axes = [torch.linspace(0.2, 7.6, 160), torch.linspace(1.7, 4.7, 160)]
grid = torch.stack(torch.meshgrid(*axes, indexing="xy"), -1)
log_density = mixture().log_prob(grid).detach()

figure, panel = plt.subplots()
levels = log_density.max() - torch.tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
panel.contourf(*axes, log_density, levels, cmap="Blues", alpha=0.6)
colors = [f"C{cluster}" for cluster in mixture.predict(x)]
panel.scatter(*x.T, s=9, c=colors, linewidths=0)
panel.set(xlabel="petal length, cm", ylabel="sepal width, cm")
