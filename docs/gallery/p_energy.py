"""Chains down an energy

An energy of a ring, learned by telling it from noise, and the Langevin chains that draw from it.

tutorials/07_energy_and_gan
"""

import pyro.distributions as dist
import torch

import probgen as pg

angle = 6.28 * torch.rand(2000)
x = 2 * torch.stack([angle.cos(), angle.sin()], 1) + 0.15 * torch.randn(2000, 2)
noise = pg.Fixed(dist.Normal, loc=torch.zeros(2), scale=1.8)
chains = {"kernel": pg.samplers.Langevin(0.02), "num_steps": 80}
gen = pg.EnergyBasedModel(pg.nn.MLP(2, [48, 48], 1), (2,), base=noise, **chains)
options = {"optimizer": pg.train.adam(0.01), "compile": False, "verdict": False, "seed": 0}
pg.fit(gen, x, pg.objectives.NoiseContrastive(noise, ratio=2), steps=300, batch_size=200, **options)

pg.plot.paths(gen, 60, x=x[:500], seed=0)
