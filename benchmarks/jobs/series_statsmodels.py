"""The job *series* in statsmodels: trend and season of a monthly series, a forecast with intervals.

python series_statsmodels.py SERIES.csv FORECAST.csv STEPS
"""

import sys

import pandas
from statsmodels.tsa.statespace.structural import UnobservedComponents

source, target, steps = sys.argv[1:]
series = pandas.read_csv(source, index_col=0, parse_dates=True)["value"]
model = UnobservedComponents(series, level="local linear trend", seasonal=12)
found = model.fit()
print(found.summary())
ahead = found.get_forecast(int(steps)).summary_frame(alpha=0.1)
ahead = ahead.rename(columns={"mean_ci_lower": "lower", "mean_ci_upper": "upper"})
ahead.to_csv(target)
