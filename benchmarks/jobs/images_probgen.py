"""The job *images* in probgen: a diffusion of MNIST, a grid of draws.

python images_probgen.py MNIST DRAWS.npy STEPS DRAWS
"""

import sys
from pathlib import Path

import numpy

import probgen as pg

data, target, steps, count = sys.argv[1:]
images = pg.datasets.load_mnist(data).train_images.unsqueeze(1) / 127.5 - 1
net = pg.nn.UNet((1, 28, 28), width=16, multipliers=(1, 2, 2))
gen = pg.Diffusion(net, (1, 28, 28))
pg.fit(gen, images, pg.objectives.Denoising(), steps=int(steps), batch_size=64, ema=0.99, seed=0)
draws = pg.sample(gen, int(count), sampler=pg.diffusion.DDIM(25), seed=0)
pg.plot.images(draws[:64]).figure.savefig(Path(target).with_suffix(".png"))
numpy.save(target, draws.numpy())
