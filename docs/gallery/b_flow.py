"""The density of a flow

Two moons, and the exact density of a neural spline flow trained on them.

tutorials/05_flows
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import make_moons

import probgen as pg

x = torch.tensor(make_moons(2000, noise=0.08, random_state=0)[0], dtype=torch.float32)
flow = pg.Standardized.fitted(pg.NSF(2, layers=2, hidden=[48, 48]), x)
options = {"optimizer": pg.train.adam(8e-3), "ema": 0.97, "verdict": False, "seed": 0}
pg.fit(flow, x, steps=180, batch_size=256, compile=False, **options)

axes = [torch.linspace(-1.6, 2.6, 200), torch.linspace(-1.1, 1.6, 150)]
grid = torch.stack(torch.meshgrid(*axes, indexing="xy"), -1)
with torch.no_grad():
    density = flow().log_prob(grid).exp()

figure, panel = plt.subplots()
panel.pcolormesh(*axes, density, cmap="Blues", vmin=0, rasterized=True)
panel.scatter(*x[:250].T, s=3, color="C1", linewidths=0)
panel.set(xticks=[], yticks=[])
panel.spines[:].set_visible(False)
