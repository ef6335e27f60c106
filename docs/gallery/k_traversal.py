"""What latents do

One latent of a small variational autoencoder at a time, from low to high.

howto/plots
"""

import probgen as pg

digits = pg.datasets.load_digits()
x = digits.train.flatten(1).gt(7).float()
vae = pg.VAE(
    prior=pg.standard_normal(5),
    decoder=pg.heads.Bernoulli(pg.nn.MLP(5, [64], 64)),
    encoder=pg.heads.Gaussian(pg.nn.MLP(64, [64], 2 * 5)),
)
options = {"optimizer": pg.train.adam(5e-3), "compile": False, "seed": 0, "verdict": False}
pg.fit(vae, x, steps=300, batch_size=200, **options)

pg.plot.traversal(vae, shape=(8, 8), cmap="gray_r")
