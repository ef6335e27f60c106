"""What does not belong

Log-densities of held-out digits, and of the same digits on their side, by one mixture.

howto/anomaly_detection
"""

import probgen as pg

digits = pg.datasets.load_digits()
turned = digits.test.rot90(dims=(-2, -1))
mixture = pg.GaussianMixture(components=20, dims=64, regularization=0.5)
pg.em(mixture, digits.train.flatten(1), max_iter=15, seed=0)

sets = {"held out": digits.test, "turned": turned}
pg.plot.scores({name: pg.log_likelihood(mixture, x.flatten(1)) for name, x in sets.items()})
