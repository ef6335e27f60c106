"""A fit and its verdict

The loss of a small variational autoencoder, and what `fit` says of it in the end.

howto/early_stopping
"""

import textwrap

import matplotlib.pyplot as plt

import probgen as pg

digits = pg.datasets.load_digits()
train, validation = (x.flatten(1).gt(7).float() for x in (digits.train, digits.validation))
vae = pg.VAE(
    prior=pg.standard_normal(8),
    decoder=pg.heads.Bernoulli(pg.nn.MLP(8, [64], 64)),
    encoder=pg.heads.Gaussian(pg.nn.MLP(64, [64], 2 * 8)),
)
options = {"optimizer": pg.train.adam(3e-3), "compile": False, "seed": 0}
history = pg.fit(vae, train, steps=300, batch_size=200, validation=validation, **options)

figure, panel = plt.subplots()
pg.plot.loss_curve(history, ax=panel)
lines = [textwrap.shorten(line, 72, placeholder=" …") for line in str(history.verdict).splitlines()]
panel.set_title("\n".join(lines), loc="left", fontsize=6.5)
