"""The job *interrupted* in probgen: a VAE trained by two processes, killed, and gone on with.

The same command trains, and trains on. python interrupted_probgen.py MNIST FOLDER STEPS
"""

import sys

from lightning_fabric import Fabric

import probgen as pg

data, folder, steps = sys.argv[1:]
x = (pg.datasets.load_mnist(data).train_images.flatten(1) > 127).float()
fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
fabric.launch()
fabric.seed_everything(0)
encoder = pg.heads.Gaussian(pg.nn.MLP(784, [200], 32))
decoder = pg.heads.Bernoulli(pg.nn.MLP(16, [200], 784))
vae = pg.VAE(pg.standard_normal(16), decoder, encoder)
run = {"checkpoint": f"{folder}/run.ckpt", "checkpoint_every": 50, "resume": True}
pg.fit(vae, x, steps=int(steps), batch_size=64, fabric=fabric, compile=False, seed=0, **run)
if fabric.is_global_zero:
    pg.save(vae, f"{folder}/weights")
