# %% [markdown]
# # Series: trends, seasons, regimes
#
# Twelve years of airline passengers, split into a trend, a season and noise, forecast with error
# bars that are checked on months kept aside, and with a year filled in that was lost. Then a century
# of the Nile: how many regimes did it have, and when did they change? Less than half a minute on one
# core.

# %%
import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas
import torch

import probgen as pg
from probgen.sequences import GaussianEmission, LocalLevel, LocalTrend, Seasonal

parser = argparse.ArgumentParser()
parser.add_argument("--output", type=Path, default=Path("series_output"))
OUTPUT = parser.parse_known_args()[0].output
OUTPUT.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)


def save(ax, name):
    """Writes the figure that some axes belong to."""
    ax.figure.savefig(OUTPUT / name, dpi=110, bbox_inches="tight")


# %% [markdown]
# ## A series and its calendar
#
# Thousands of passengers of international airlines, month by month (Box and Jenkins 1976, Time series
# analysis: forecasting and control, series G). Peaks grow along with the level, so that logarithms are
# what adds up. The last two years are kept aside.

# %%
PASSENGERS = """
112 118 132 129 121 135 148 148 136 119 104 118 115 126 141 135 125 149 170 170 158 133 114 140
145 150 178 163 172 178 199 199 184 162 146 166 171 180 193 181 183 218 230 242 209 191 172 194
196 196 236 235 229 243 264 272 237 211 180 201 204 188 235 227 234 264 302 293 259 229 203 229
242 233 267 269 270 315 364 347 312 274 237 278 284 277 317 313 318 374 413 405 355 306 271 306
315 301 356 348 355 422 465 467 404 347 305 336 340 318 362 348 363 435 491 505 404 359 310 337
360 342 406 396 420 472 548 559 463 407 362 405 417 391 419 461 472 535 622 606 508 461 390 432
"""
months = pandas.period_range("1949-01", periods=144, freq="M", name="month")
passengers = pandas.Series([float(word) for word in PASSENGERS.split()], months)
logs = np.log(passengers)
train = logs[:"1958-12"]
held_out = logs["1959-01":]

# %% [markdown]
# ## A sum of parts
#
# A structural series is a sum of parts that each have a meaning: a trend whose slope may change, a
# season of twelve months that may change, too, and noise. The Kalman filter sums all paths of the parts
# out, so that the likelihood is exact, and so is its gradient: `maximum_likelihood` needs a few dozen
# passes. It finds four standard deviations. That of the slope is zero: these years need no slope that
# changes.

# %%
model = pg.sequences.StructuralTimeSeries(LocalTrend() + Seasonal(12), length=144)
print(pg.maximum_likelihood(model, train))
trend, season = model.components
print(
    f"steps of the level {trend.std:.4f}, of the slope {trend.slope_std:.4f}, of the season "
    f"{season.std:.4f}; noise {model.noise_std:.4f}"
)

# %% [markdown]
# Each part, given all months that were observed, with its own standard deviation. A season of 0.2 in
# logarithms is 22 % more passengers than in a month without one.

# %%
with torch.no_grad():
    parts = model().components(train)
figure, axes = plt.subplots(3, 1, figsize=(7.5, 5.5), sharex=True, layout="constrained")
when = train.index.to_timestamp()
axes[0].plot(when, train, color="black", lw=0.8, label="observed")
for ax, name in zip(axes, ("level", "slope", "seasonal"), strict=True):
    low, high = (end.flatten() for end in parts[name].intervals(0.9))
    ax.plot(when, parts[name].mean.flatten(), color="C0", label=name)
    ax.fill_between(when, low, high, color="C0", alpha=0.3, lw=0, label="90 %")
    ax.set_ylabel(name)
axes[0].legend(frameon=False, fontsize="small")
save(axes[0], "components.png")
summer = parts["seasonal"].mean.flatten()[train.index.month == 7]
print(
    "July against the trend: " + ", ".join(f"{np.expm1(float(july)):+.0%}" for july in summer[::3])
)

# %% [markdown]
# ## Two years ahead
#
# `forecast_series` takes the series and goes on with its calendar. What comes out is a distribution:
# its mean, intervals, and whole futures. The frame is in logarithms; quantiles survive `exp`, so that
# its ends are those of the passengers.

# %%
ahead = pg.forecast_series(model, train, 24, seed=0)
table = np.exp(ahead.to_frame(level=0.9))
table["observed"] = passengers
print(table.head(6).round(0).to_string())

# %% [markdown]
# Are the error bars right? Count the months inside, and look at how far off the middle is, beside the
# rule that has no model: the same month a year ago, which the second year has to take from two years
# back.

# %%
truth = torch.tensor(held_out.to_numpy())
for level in (0.5, 0.9):
    low, high = (end.flatten() for end in ahead.intervals(level))
    inside = ((truth > low) & (truth < high)).float().mean()
    print(f"inside of the {level:.0%} intervals: {inside:.0%}")
naive = np.tile(train[-12:].to_numpy(), 2)
error = np.abs(np.expm1(ahead.mean.flatten().numpy() - held_out)).mean()
print(f"error of the forecast: {error:.1%}")
print(f"error of the same month before: {np.abs(np.expm1(naive - held_out)).mean():.1%}")
ax = pg.plot.forecast(ahead.draws.exp(), ahead.observed.exp(), time=1949 + np.arange(144) / 12)
ax.plot(1959 + np.arange(24) / 12, passengers[-24:], "o", ms=3, color="C3", label="held out")
ax.set(xlabel="year", ylabel="thousands of passengers", xlim=(1954, 1961))
save(ax, "forecast.png")

# %% [markdown]
# Twenty-four months that come from one origin are not independent: if the level drifts, all of them
# are off. A fair count takes many origins: from 1955 on, each month is forecast one to twelve months
# before, with the parameters as they are (which saw most of these months). Here the intervals are
# rather too wide than too narrow.

# %%
hits = []
for end in range(72, 132):
    one = pg.forecast_series(model, logs[:end], 12, draws=2)
    low, high = (bound.flatten() for bound in one.intervals(0.9))
    future = torch.tensor(logs[end : end + 12].to_numpy())
    hits.append((future > low) & (future < high))
hits = torch.stack(hits).float()
print(
    f"coverage over 60 origins: one month {hits[:, 0].mean():.0%}, a year {hits[:, 11].mean():.0%}"
)

# %% [markdown]
# A maximum over a year is no matter of single months. Futures are drawn as a whole, so that such
# questions are answered by counting them.

# %%
busiest = ahead.draws[:, :12, 0].exp().amax(1)
print(
    f"busiest month of 1959: {busiest.median():.0f} thousand, observed {passengers['1959'].max():.0f}"
)
print(f"P(a month of 1959 above 550 thousand) = {(busiest > 550).float().mean():.2f}")

# %% [markdown]
# ## A year is lost
#
# A gap is NaN and nothing else. The filter steps over it, the likelihood is that of what was observed,
# and `impute` draws what may have been, with both sides known.

# %%
gap = slice("1953-07", "1954-06")
holes = logs.copy()
holes[gap] = np.nan
careful = pg.sequences.StructuralTimeSeries(LocalTrend() + Seasonal(12), length=144)
pg.maximum_likelihood(careful, holes)
filled = pg.impute(careful, holes, draws=400, seed=0)
print(filled)
lost = torch.tensor(holes.isna().to_numpy())
drawn = filled.draws.reshape(400, 144)[:, lost]
true = torch.tensor(logs[gap].to_numpy())
low, high = drawn.quantile(0.05, 0), drawn.quantile(0.95, 0)
line = holes.interpolate()[gap]
print(
    f"error of what is filled in: {np.abs(np.expm1(drawn.mean(0).numpy() - logs[gap])).mean():.1%}"
)
print(f"error of a straight line: {np.abs(np.expm1(line - logs[gap])).mean():.1%}")
print(f"lost months inside of 90 %: {int(((true > low) & (true < high)).sum())} of 12")

# %% [markdown]
# ## Which parts?
#
# A start from anywhere has no probability, so that whole densities compare only between models with
# the same such parts. What came next compares between all: how likely were the months from 1959 on,
# given those before, from which the parameters were learned?

# %%
candidates = {
    "trend and season": LocalTrend() + Seasonal(12),
    "level and season": LocalLevel() + Seasonal(12),
    "trend, season fixed": LocalTrend() + Seasonal(12, fixed=True),
    "trend alone": [LocalTrend()],
}
series = torch.tensor(logs.to_numpy()).reshape(1, 144, 1)
for name, components in candidates.items():
    one = pg.sequences.StructuralTimeSeries(components, length=144).double()
    pg.maximum_likelihood(one, train)
    with torch.no_grad():
        told = (one().log_prob(series) - one().log_prob(series[:, :120])).item() / 24
    print(f"{name:20s} {told:6.3f} nats a month")

# %% [markdown]
# ## How many regimes had the Nile?
#
# The flow at Aswan, 1871 to 1970, in 10^8 cubic meters a year (Cobb 1978, The problem of the Nile). A
# hidden Markov model has states that stay for a while. Their number is chosen by BIC, where N is the
# number of years, and by years that were not used: the last thirty given the first seventy.

# %%
NILE = """
1120 1160 963 1210 1160 1160 813 1230 1370 1140 995 935 1110 994 1020 960 1180 799 958 1140
1100 1210 1150 1250 1260 1220 1030 1100 774 840 874 694 940 833 701 916 692 1020 1050 969
831 726 456 824 702 1120 1100 832 764 821 768 845 864 862 698 845 744 796 1040 759
781 865 845 944 984 897 822 1010 771 676 649 846 812 742 801 1040 860 874 848 890
744 749 838 1050 918 986 797 923 975 815 1020 906 901 1170 912 746 919 718 714 740
"""
flow = torch.tensor([float(word) for word in NILE.split()]).reshape(1, 100, 1)
regimes = {}
for states in (1, 2, 3, 4):
    scores = []
    for seen in (flow, flow[:, :70]):
        hmm = pg.HiddenMarkovModel(states, 100, GaussianEmission(states, dims=1), pseudo_count=0.1)
        pg.em(hmm, list(seen), n_init=3, max_iter=300, seed=0)
        with torch.no_grad():
            scores.append((hmm, hmm().log_prob(flow) - hmm().log_prob(seen)))
    regimes[states] = scores[0][0].canonical()
    bic = regimes[states].bic(flow)
    print(
        f"{states} states: BIC {bic:7.1f}, the last 30 years {scores[1][1].item() / 30:.3f} nats a year"
    )
best = min(regimes, key=lambda states: regimes[states].bic(flow))
print("BIC takes", best)

# %% [markdown]
# The most likely path has one change: the flow fell in 1899, and stayed low. More states are not
# needed, which BIC and the years that were not used say alike.

# %%
chosen = regimes[best]
path = chosen().most_likely_states(flow)[0]
changes = 1871 + 1 + np.flatnonzero(np.diff(path))
means = [flow[0, path == state].mean().item() for state in path.unique()]
print("mean flows:", ", ".join(f"{mean:.0f}" for mean in means), "| changes:", changes.tolist())
ax = pg.plot.states(chosen, flow, time=1871 + np.arange(100))
ax.set(xlabel="year", ylabel="flow of the Nile")
save(ax, "regimes.png")
