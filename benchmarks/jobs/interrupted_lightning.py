"""The job *interrupted* in Lightning: a VAE trained by two processes, killed, and gone on with.

The same command trains, and trains on. python interrupted_lightning.py MNIST FOLDER STEPS
"""

import sys
from pathlib import Path

import lightning
import numpy
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence
from torch.utils.data import DataLoader, TensorDataset

data, folder, steps = sys.argv[1:]
path = Path(data)
pixels = numpy.load(path / "mnist.npz" if path.is_dir() else path)["train_images"]
x = torch.tensor(pixels).flatten(1).gt(127).float()


class VAE(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(784, 200), nn.SiLU(), nn.Linear(200, 32))
        self.decoder = nn.Sequential(nn.Linear(16, 200), nn.SiLU(), nn.Linear(200, 784))

    def training_step(self, batch, index):
        (rows,) = batch
        loc, scale = self.encoder(rows).chunk(2, -1)
        posterior = Independent(Normal(loc, nn.functional.softplus(scale) + 1e-6), 1)
        prior = Independent(Normal(torch.zeros_like(loc), 1.0), 1)
        pixels = Independent(Bernoulli(logits=self.decoder(posterior.rsample())), 1)
        loss = (kl_divergence(posterior, prior) - pixels.log_prob(rows)).mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


lightning.seed_everything(0)
vae = VAE()
saved = ModelCheckpoint(dirpath=folder, every_n_train_steps=50, save_last=True)
trainer = lightning.Trainer(
    accelerator="cpu",
    devices=2,
    strategy="ddp",
    max_steps=int(steps),
    callbacks=[saved],
    logger=False,
)
trainer.fit(vae, DataLoader(TensorDataset(x), batch_size=64, shuffle=True), ckpt_path="last")
if trainer.is_global_zero:
    torch.save(vae.state_dict(), f"{folder}/weights")
