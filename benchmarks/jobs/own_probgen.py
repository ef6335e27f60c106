"""The job *own model* in probgen: a Pyro program, its posterior, whether to trust it, predictions.

python own_probgen.py TABLE.csv NEW.csv POSTERIOR.nc PREDICTIONS.csv DRAWS
"""

import sys

import arviz
import pandas
import pyro
import pyro.distributions as dist
import torch

import probgen as pg

source, new, target, predictions, draws = sys.argv[1:]
frame, rest = pandas.read_csv(source), pandas.read_csv(new)
x, y, x_new = (torch.tensor(part.values).float() for part in (frame["x"], frame["y"], rest["x"]))
group, group_new = torch.tensor(frame["group"].values), torch.tensor(rest["group"].values)


def model(x, group, y=None):
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("groups", 5):
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(mean + spread * offset[group] + slope * x, noise), obs=y)


program = pg.Program(model)
chains = pg.mcmc(program, x, group, y, draws=int(draws), tune=int(draws), chains=2, seed=0)
data = pg.to_arviz(program, x, group, y, chains=chains)
print(arviz.summary(data), arviz.loo(data))
data.to_netcdf(target)
drawn = pg.predictive(program, x_new, group_new, None, given=chains, seed=0)["y"]
lower, upper = drawn.quantile(torch.tensor([0.05, 0.95]), 0)
pandas.DataFrame({"lower": lower, "upper": upper}).to_csv(predictions, index=False)
