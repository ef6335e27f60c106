"""A fit and its verdict

The loss of a small variational autoencoder, and what `fit` says of it in the end.

howto/early_stopping
"""

import matplotlib.pyplot as plt

import probgen as pg

digits = pg.datasets.load_digits()
train, validation = (x.flatten(1) / 16 for x in (digits.train, digits.validation))
vae = pg.VAE(
    prior=pg.standard_normal(8),
    decoder=pg.heads.Gaussian(pg.nn.MLP(8, [64], 2 * 64)),
    encoder=pg.heads.Gaussian(pg.nn.MLP(64, [64], 2 * 8)),
)
history = pg.fit(vae, train, steps=500, batch_size=100, validation=validation, seed=0)

figure, panel = plt.subplots()
history.plot(panel)
verdict = str(history.verdict)
