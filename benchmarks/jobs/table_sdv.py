"""The job *table* in SDV: a model of a CSV file, 1,000 rows like it, how good they are.

As its guide has it. python table_sdv.py TABLE.csv DRAWS.csv SYNTHESIZER
"""

import sys

import pandas
import sdv.single_table
from sdv.evaluation import evaluate_quality
from sdv.metadata import Metadata

source, target, name = sys.argv[1:]
tables = {"table": pandas.read_csv(source)}
metadata = Metadata.detect_from_dataframes(tables)
synthesizer = getattr(sdv.single_table, name)(metadata)
synthesizer.fit(tables)
draws = synthesizer.sample(1000)
evaluate_quality(tables, draws, metadata)
draws["table"].to_csv(target, index=False)
