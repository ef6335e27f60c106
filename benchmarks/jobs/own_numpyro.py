"""The job *own model* in NumPyro with ArviZ: its posterior, whether to trust it, predictions.

python own_numpyro.py TABLE.csv NEW.csv POSTERIOR.nc PREDICTIONS.csv DRAWS
"""

import sys

import arviz
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pandas
from jax import random
from numpyro.infer import MCMC, NUTS, Predictive

source, new, target, predictions, draws = sys.argv[1:]
frame, rest = pandas.read_csv(source), pandas.read_csv(new)
x, y, x_new = (jnp.array(part.values) for part in (frame["x"], frame["y"], rest["x"]))
group, group_new = jnp.array(frame["group"].values), jnp.array(rest["group"].values)


def model(x, group, y=None):
    mean = numpyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    with numpyro.plate("groups", 5):
        offset = numpyro.sample("offset", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(x)):
        level = mean + spread * offset[group] + slope * x
        numpyro.sample("y", dist.Normal(level, noise), obs=y)


chains = MCMC(NUTS(model), num_warmup=int(draws), num_samples=int(draws), num_chains=2)
chains.run(random.PRNGKey(0), x, group, y)
data = arviz.from_numpyro(chains, log_likelihood=True)
print(arviz.summary(data), arviz.loo(data))
data.to_netcdf(target)
predict = Predictive(model, chains.get_samples())
drawn = predict(random.PRNGKey(1), x_new, group_new)["y"]
lower, upper = jnp.quantile(drawn, jnp.array([0.05, 0.95]), axis=0)
pandas.DataFrame({"lower": lower, "upper": upper}).to_csv(predictions, index=False)
