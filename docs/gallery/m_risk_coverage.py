"""When to refuse an answer

Ten densities of digits classify by Bayes' rule: the error of the surest answers, over their share.

howto/classify_with_reject
"""

import torch
from sklearn.datasets import load_digits

import probgen as pg

digits = load_digits()
x = torch.tensor(digits.data, dtype=torch.float32)
labels = torch.tensor(digits.target)
train, test = slice(0, 1000), slice(1000, None)
models = [pg.PPCA(64, factors=6).solve(x[train][labels[train] == digit]) for digit in range(10)]
joint = torch.stack([pg.log_likelihood(model, x[test]).value for model in models], 1)
best = joint.topk(2)
margin = best.values[:, 0] - best.values[:, 1]  # log odds of the answer against the next one
wrong = best.indices[:, 0] != labels[test]

pg.plot.risk_coverage(margin, wrong.float())
