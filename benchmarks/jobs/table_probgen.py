"""The job *table* in probgen: a model of a CSV file, 1,000 rows like it, how good they are.

python table_probgen.py TABLE.csv DRAWS.csv BUDGET
"""

import sys

import pandas

import probgen as pg

source, target, budget = sys.argv[1:]
frame = pandas.read_csv(source)
found = pg.search(frame, budget=budget, seed=0)
print(found)
draws = found.model.sample(1000, seed=0)
print(pg.evaluate.table_quality(draws, frame))
draws.to_csv(target, index=False)
