"""The job *classifier* in probgen: which digit, how sure, and is it a digit of those known at all.

python classifier_probgen.py TRAIN.csv HELD_OUT.csv NEW.csv ANSWERS.csv
"""

import sys

import pandas

import probgen as pg

train, held_out, new = (pandas.read_csv(path) for path in sys.argv[1:4])
y, y_held = train.pop("label"), held_out.pop("label")
clf = pg.GenerativeClassifier({label: pg.PPCA(64, factors=12) for label in sorted(set(y))})
clf.fit(train, y)
print(clf.calibrate(held_out, y_held))
found = clf.decide(new, reject=0.1, outliers=0.05)
print(found)
answers = pandas.DataFrame(clf.log_posterior(new).probability, columns=clf.labels)
answers["answered"] = found.reasons == "answer"
answers.to_csv(sys.argv[4], index=False)
