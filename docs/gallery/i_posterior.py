"""A posterior in ArviZ

Progression of diabetes on body mass index and blood pressure: the posterior of a Pyro program.

howto/arviz_coords
"""

import arviz as az
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoMultivariateNormal
from sklearn.datasets import load_diabetes

import probgen as pg

data = load_diabetes()
x = torch.tensor(data.data[:, [2, 3]], dtype=torch.float32)
x = x / x.std(0)
y = torch.tensor((data.target - data.target.mean()) / data.target.std(), dtype=torch.float32)


def model(x, y):
    mass = pyro.sample("body mass", dist.Normal(0.0, 1.0))
    pressure = pyro.sample("blood pressure", dist.Normal(0.0, 1.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(mass * x[:, 0] + pressure * x[:, 1], noise), obs=y)


program = pg.Program(model, AutoMultivariateNormal(model, init_scale=0.05))
options = {"optimizer": pg.train.adam(0.02), "compile": False, "verdict": False, "seed": 0}
pg.fit(program, (x, y), steps=300, **options)
posterior = pg.to_arviz(program, x, y, draws=2000, groups=("posterior",))

figure, panel = plt.subplots()
outline = {"contour_kwargs": {"colors": "w", "linewidths": 0.8}}
names = ["body mass", "blood pressure"]
az.plot_pair(posterior, var_names=names, kind="kde", kde_kwargs=outline, ax=panel)
