"""A regression and its uncertainty

Disease progression over the body mass index: the posterior of the curve of a Pyro program.

howto/posterior_predictive_check
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoMultivariateNormal
from sklearn.datasets import load_diabetes

import probgen as pg

data = load_diabetes(scaled=False)
index = torch.tensor(data.data[:, 2], dtype=torch.float32)
x, y = (index - 26) / 5, torch.tensor(data.target, dtype=torch.float32) / 100


def curve(weights, x):
    return weights[..., 0, None] + weights[..., 1, None] * x + weights[..., 2, None] * x**2


def model(x, y):
    weights = pyro.sample("weights", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(curve(weights, x), noise), obs=y)


program = pg.Program(model, AutoMultivariateNormal(model, init_scale=0.05))
options = {"optimizer": pg.train.adam(0.03), "compile": False, "verdict": False, "seed": 0}
pg.fit(program, (x, y), steps=300, **options)
weights = pg.posterior(program, x, y, draws=500, seed=0)["weights"].reshape(500, 3)

at = torch.linspace(-1.6, 3.2, 60)
ax = pg.plot.curves(26 + 5 * at, curve(weights, at), x=index, y=y, levels=(0.5, 0.95))
ax.set(xlabel="body mass index", ylabel="progression / 100")
