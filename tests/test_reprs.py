"""What results show: what they are, sizes and the main number, on a few lines."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import probgen as pg
from probgen.core.score import Score
from probgen.diagnostics.checks import PredictiveCheck
from probgen.diagnostics.leave_one_out import LooResult
from probgen.diagnostics.verdict import FitVerdict
from probgen.train import Labeled, Pairs, Unpaired

MANY = torch.randn(1000, 7)


def model(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


SHOWN = {
    "a score": (lambda: Score(MANY[:, 0], "exact"), "(exact)"),
    "a comparison": (lambda: pg.compare({"a": Score(MANY[:, 0], "exact")}), "best"),
    "a check": (lambda: PredictiveCheck(torch.tensor(9.0), MANY[:, 0]), "p = 0.00; 1000"),
    "checks": (lambda: PredictiveCheck(torch.zeros(7), MANY), "of 7 statistics"),
    "leave-one-out": (lambda: LooResult(MANY[:, 0], MANY[:, 1], 0.5), "elpd_loo"),
    "a verdict": (lambda: FitVerdict(khat=MANY[:, 0], ess=MANY[:, 1], particles=5), "guide: "),
    "digits": (pg.datasets.load_digits, "train=tensor(1000, 1, 8, 8)"),
    "partly labeled rows": (lambda: Labeled(MANY, MANY[:, 0].sign()), "x=tensor(1000, 7)"),
    "two sets of rows": (lambda: Unpaired(MANY, MANY), "Unpaired("),
    "pairs": (lambda: Pairs(lambda n: MANY[:n]), "Pairs("),
    "a program": (lambda: pg.Program(model, AutoNormal(model)), "program.settle((y,))"),
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_repr_is_short_and_tells(name):
    build, words = SHOWN[name]
    text = repr(build())
    assert words in text and text.count("\n") < 6 and len(text) < 500 and " at 0x" not in text


def test_digits_come_with_their_labels():
    images, digits = pg.datasets.load_digits(labels=True)
    from sklearn.datasets import load_digits

    source = load_digits()
    assert torch.equal(torch.cat(digits), torch.as_tensor(source.target))
    assert torch.equal(torch.cat(images)[:, 0].double(), torch.as_tensor(source.images))
    assert [len(part) for part in images] == [len(part) for part in digits] == [1000, 350, 447]
