"""A forecast with its error bars

A state-space model continues a series it has not seen: mean and 90 % of the next 24 steps.

howto/forecast
"""

import matplotlib.pyplot as plt
import torch

import probgen as pg

time = torch.arange(72.0)
phase = 6.28 * torch.rand(60, 1)
x = (torch.sin(0.3 * time + phase) + 0.2 * torch.randn(60, 72))[..., None]  # (series, steps, 1)
seen, future = x[-1:, :48], x[-1, 48:, 0]

model = pg.LinearGaussianStateSpace(states=2, dims=1, length=72)
pg.em(model, x[:-1], max_iter=110, tol=1e-3, seed=0)
with torch.no_grad():
    ahead = model().forecast(seen, length=24)
    mean, sd = ahead.mean[0, :, 0], ahead.variance[0, :, 0].sqrt()

figure, panel = plt.subplots()
panel.plot(time[:48], seen[0, :, 0], ".", color="0.6", ms=4, label="seen")
panel.plot(time[48:], mean, color="C0", label="forecast")
panel.fill_between(time[48:], mean - 1.645 * sd, mean + 1.645 * sd, color="C0", alpha=0.2, lw=0)
panel.plot(time[48:], future, ".", color="C1", ms=4, label="what came")
panel.set(xlabel="step", ylim=(-2.1, 2.1))
panel.legend(loc="lower left", ncols=3)
