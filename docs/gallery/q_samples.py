"""Draws beside data, in any family

One function shows images, tables, points, series and texts: here digits of a mixture.

howto/log_training
"""

import probgen as pg

digits = pg.datasets.load_digits()
mixture = pg.GaussianMixture(components=40, dims=64, regularization=0.3)
pg.em(mixture, digits.train.flatten(1), max_iter=12, seed=0)

pg.plot.samples(digits.test.flatten(1), pg.sample(mixture, 16, seed=0), shape=(8, 8))
