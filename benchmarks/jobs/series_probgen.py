"""The job *series* in probgen: trend and season of a monthly series, a forecast with intervals.

python series_probgen.py SERIES.csv FORECAST.csv STEPS
"""

import sys

import pandas

import probgen as pg
from probgen.sequences import LocalTrend, Seasonal, StructuralTimeSeries

source, target, steps = sys.argv[1:]
series = pandas.read_csv(source, index_col=0, parse_dates=True)["value"]
gen = StructuralTimeSeries(LocalTrend() + Seasonal(12), length=len(series))
print(pg.maximum_likelihood(gen, series))
ahead = pg.forecast_series(gen, series, int(steps), seed=0)
ahead.to_frame(0.9).to_csv(target)
