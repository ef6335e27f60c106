"""A table and its synthetic rows

Columns of 442 patients beside those of rows drawn from a Gaussian mixture of them.

howto/tables
"""

from sklearn.datasets import load_diabetes

import probgen as pg

frame = load_diabetes(as_frame=True, scaled=False).frame[["age", "bmi", "bp", "target"]]
names = ["age", "body mass index", "blood pressure", "progression"]
x = frame.to_numpy()
mixture = pg.GaussianMixture(components=3, dims=4)
pg.em(mixture, x, n_init=2, seed=0)

axes = pg.plot.columns(x, pg.sample(mixture, 2000, seed=0), names=names, bins=15)
axes[0].figure.set_size_inches(8.0, 2.2)
