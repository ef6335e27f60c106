"""The job *classifier* in scikit-learn: which digit, how sure, and is it one of those known at all.

python classifier_sklearn.py TRAIN.csv HELD_OUT.csv NEW.csv ANSWERS.csv
"""

import sys

import numpy
import pandas
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

train, held_out, new = (pandas.read_csv(path) for path in sys.argv[1:4])
y, y_held = train.pop("label"), held_out.pop("label")
fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(train, y)
clf = CalibratedClassifierCV(FrozenEstimator(fitted)).fit(held_out, y_held)
outliers = LocalOutlierFactor(novelty=True).fit(train)
lowest = numpy.quantile(outliers.score_samples(held_out), 0.05)
answers = pandas.DataFrame(clf.predict_proba(new), columns=clf.classes_)
usual = outliers.score_samples(new) >= lowest
answers["answered"] = usual & (answers.max(axis=1) >= 0.9)
print(answers["answered"].mean())
answers.to_csv(sys.argv[4], index=False)
