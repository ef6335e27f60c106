"""Digits, completed

The lower half is missing (NaN). A mixture that has seen other digits draws it: exact draws.

howto/missing_values
"""

import matplotlib.pyplot as plt
import torch

import probgen as pg

digits = pg.datasets.load_digits()
train, test = digits.train.flatten(1), digits.test.flatten(1)  # 8 x 8 pixels, 0 to 16
mixture = pg.GaussianMixture(components=30, dims=64, regularization=0.5)
pg.em(mixture, train, max_iter=15, seed=0)

gaps = test[:8].clone()
gaps[:, 32:] = torch.nan
drawn = pg.impute(mixture, gaps, draws=3, seed=0)

rows = {"truth": test[:8], "seen": gaps, "draws": drawn.draws[0], "": drawn.draws[1]}
rows[" "] = drawn.draws[2]
figure, panels = plt.subplots(5, 8)
figure.get_layout_engine().set(h_pad=0.01, w_pad=0.01, hspace=0, wspace=0)
for line, (name, images) in zip(panels, rows.items(), strict=True):
    line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for panel, image in zip(line, images.reshape(-1, 8, 8), strict=True):
        panel.imshow(image, cmap="Blues", vmin=0, vmax=16)
        panel.set(xticks=[], yticks=[], facecolor="0.94")
        panel.spines[:].set_visible(False)
