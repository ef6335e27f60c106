"""Bad inputs are refused before anything is lost: what was expected, what came, what to do."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from probgen.core.module import DistributionModule, Fixed, LatentVariableModel, data_plate
from probgen.core.program import Program
from probgen.core.score import Score
from probgen.heads import Bernoulli, Categorical, Gaussian, Poisson
from probgen.infer.em import em
from probgen.infer.impute import impute
from probgen.models.factor_analysis import PPCA
from probgen.models.mixture import GaussianMixture
from probgen.models.vae import VAE
from probgen.nn import MLP, Constant
from probgen.scoring import log_likelihood
from probgen.train.checkpoint import CheckpointError, write
from probgen.train.fit import fit
from probgen.train.saved import load, save

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))


def gaussian() -> Gaussian:
    return Gaussian(Constant(6))


def vae(encoder: DistributionModule | None = None) -> VAE:
    prior = Fixed(dist.Normal, loc=torch.zeros(2), scale=1.0)
    return VAE(prior, Gaussian(MLP(2, [8], 6)), encoder or Gaussian(MLP(3, [8], 4)))


class Unnormalized(dist.Normal):
    density_kind = "unnormalized"


class Implicit(dist.Normal):
    density_kind = "implicit"

    def log_prob(self, x):
        raise NotImplementedError(
            "implicit: it can be sampled, not scored; judge it with two-sample metrics"
        )


class Energy(DistributionModule):
    """A family of some distribution with one parameter."""

    def __init__(self, distribution=Unnormalized, dims=3):
        super().__init__()
        self.distribution, self.loc = distribution, nn.Parameter(torch.zeros(dims))

    def forward(self, context=None):
        batch = () if context is None else context.shape[:-1]
        return self.distribution(self.loc, torch.ones_like(self.loc)).to_event(1).expand(batch)


def flow() -> Fixed:
    """A distribution whose conditionals have no closed form."""
    normal = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    return Fixed(
        lambda loc: dist.TransformedDistribution(normal, [dist.transforms.spline(3)]),
        loc=torch.zeros(3),
    )


def without_plate(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu, 1.0).expand([len(y)]).to_event(1), obs=y)


def wrong_size(y):
    with pyro.plate("data", 5):
        pyro.sample(
            "y", dist.Normal(0.0, pyro.param("s", torch.tensor(1.0))).expand([len(y)]), obs=y
        )


def not_an_event(y):
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(pyro.param("mu", torch.zeros(3)), 1.0), obs=y)


def with_global(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def guide_of_mu(y):
    pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))


def guide_of_too_much(y):
    guide_of_mu(y)
    pyro.sample("nu", dist.Normal(0.0, 1.0))


def empty_guide(y):
    pyro.param("loc", torch.tensor(0.0))


def exhausted():
    batches = iter([X])
    next(batches)

    class Once:
        def __iter__(self):
            return batches

    return Once()


def resume(tmp_path, spoil):
    path = tmp_path / "run.safetensors"
    fit(gaussian(), X, steps=1, checkpoint=path, verdict=False)
    spoil(path)
    return fit(gaussian(), X, steps=2, checkpoint=path, resume=True)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def not_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "run.safetensors"


def with_value(value, x=X):
    x = x.clone()
    x[4, 1] = value
    return x


EXACT, OTHER = Score(torch.zeros(3), "exact"), Score(torch.zeros(3), "unbiased", particles=8)

# name: (what is done with a temporary folder, type of the error, what its text says)
CASES = {
    "no rows": (lambda _: fit(gaussian(), X[:0]), ValueError, "at least one row"),
    "no data": (lambda _: fit(gaussian(), None), TypeError, "expected a tensor, array"),
    "unequal lengths": (
        lambda _: fit(gaussian(), (X, X[:3])),
        ValueError,
        r"same number of rows.*\(20, 3\).*\(3, 3\)",
    ),
    "infinity": (
        lambda _: fit(gaussian(), with_value(torch.inf)),
        ValueError,
        r"got inf in row 4, entry 1",
    ),
    "words": (lambda _: fit(gaussian(), np.array([["a"]])), TypeError, "encode categories"),
    "words in a table": (
        lambda _: fit(gaussian(), pd.DataFrame({"a": ["x"]})),
        TypeError,
        r"numeric columns, got \['a'\]",
    ),
    "complex numbers": (lambda _: fit(gaussian(), X + 0j), TypeError, "real numbers"),
    "sparse tensor": (lambda _: fit(gaussian(), X.to_sparse()), TypeError, "dense real tensor"),
    "iterator": (lambda _: fit(gaussian(), iter([X])), TypeError, "read more than once"),
    "dictionary batches": (
        lambda _: fit(gaussian(), [{"pixels": X}]),
        TypeError,
        r"got a dict with keys \['pixels'\]",
    ),
    "empty iterable": (lambda _: fit(gaussian(), []), ValueError, "at least one row"),
    "used-up iterable": (lambda _: fit(gaussian(), exhausted()), ValueError, "at least one row"),
    "batch size 0": (
        lambda _: fit(gaussian(), X, batch_size=0),
        ValueError,
        "batch_size >= 1, got 0",
    ),
    "batch size of batches": (
        lambda _: fit(gaussian(), [X], batch_size=5),
        ValueError,
        "expected no batch_size",
    ),
    "steps and epochs": (lambda _: fit(gaussian(), X, steps=3, epochs=2), ValueError, "drop one"),
    "no steps": (lambda _: fit(gaussian(), X, steps=0), ValueError, "steps >= 1, got 0"),
    "decay of 1": (lambda _: fit(gaussian(), X, ema=1.0), ValueError, r"in \(0, 1\), got 1.0"),
    "clip at 0": (lambda _: fit(gaussian(), X, clip=0.0), ValueError, "clip > 0"),
    "patience alone": (
        lambda _: fit(gaussian(), X, patience=3),
        ValueError,
        "patience needs validation",
    ),
    "resume from nowhere": (
        lambda _: fit(gaussian(), X, resume=True),
        ValueError,
        "resume needs checkpoint",
    ),
    "infinite validation": (
        lambda _: fit(gaussian(), X, validation=X / 0),
        ValueError,
        "got -?inf",
    ),
    "wrong width": (
        lambda _: fit(gaussian(), X[:, :2]),
        ValueError,
        r"expected x of shape \(N, 3\), got \(20, 2\)",
    ),
    "wrong dims": (lambda _: fit(vae(), X[:, :2]), (ValueError, RuntimeError), "got|shapes"),
    "label out of range": (
        lambda _: fit(Categorical(Constant(12), levels=4), with_value(4.0, X * 0)),
        ValueError,
        "got 4",
    ),
    "half a label": (
        lambda _: fit(Categorical(Constant(12), levels=4), with_value(0.5, X * 0)),
        ValueError,
        "got 0.5",
    ),
    "bytes for bits": (
        lambda _: fit(Bernoulli(Constant(3)), with_value(255.0, X * 0)),
        ValueError,
        "got 255",
    ),
    "negative count": (
        lambda _: fit(Poisson(Constant(3)), with_value(-1.0, X * 0)),
        ValueError,
        "got -1",
    ),
    "missing values": (
        lambda _: fit(Energy(dist.Normal), with_value(torch.nan)),
        ValueError,
        "site 'x'.*missing",
    ),
    "nothing to learn": (
        lambda _: fit(Fixed(dist.Normal, loc=torch.zeros(3), scale=1.0), X),
        ValueError,
        "to learn",
    ),
    "all frozen": (
        lambda _: fit(gaussian().requires_grad_(False), X),
        ValueError,
        "parameters to learn",
    ),
    "mini-batches without plate": (
        lambda _: fit(Program(without_plate, guide_of_mu), X[:, 0], batch_size=5),
        ValueError,
        "plate named 'data' for mini-batches of 5 of 20 rows.*batch_size=20",
    ),
    "plate of another size": (
        lambda _: fit(Program(wrong_size), X[:, 0]),
        ValueError,
        "plate 'data'|inside plate",
    ),
    "dims without plate": (lambda _: fit(Program(not_an_event), X), ValueError, r"to_event"),
    "guide lacks a site": (
        lambda _: fit(Program(with_global, empty_guide), X[:, 0]),
        ValueError,
        "'mu'.*add pyro.sample",
    ),
    "guide has another site": (
        lambda _: fit(Program(with_global, guide_of_too_much), X[:, 0]),
        ValueError,
        "'nu'",
    ),
    "unknown number of rows": (
        lambda _: fit(Program(with_global, guide_of_mu), (X[i : i + 5, 0] for i in range(3))),
        TypeError,
        "read more than once",
    ),
    "energy under the ELBO": (lambda _: fit(Energy(), X), ValueError, "site 'x'.*unnormalized"),
    "implicit under the ELBO": (
        lambda _: fit(Energy(Implicit), X),
        ValueError,
        "site 'x'.*implicit",
    ),
    "guide without density": (lambda _: fit(vae(Energy(dims=2)), X), ValueError, "exact"),
    "unwritable folder": (
        lambda p: fit(gaussian(), X, checkpoint=not_a_folder(p)),
        CheckpointError,
        "cannot write",
    ),
    "truncated checkpoint": (lambda p: resume(p, truncate), CheckpointError, "damaged"),
    "foreign checkpoint": (
        lambda p: resume(p, lambda f: f.write_text("{}")),
        CheckpointError,
        "damaged|no safetensors",
    ),
    "saved model as checkpoint": (
        lambda p: resume(p, lambda f: save(gaussian(), f)),
        CheckpointError,
        "probgen.load",
    ),
    "checkpoint of another model": (
        lambda p: resume(
            p, lambda f: (f.unlink(), fit(vae(), X, steps=1, checkpoint=f, verdict=False))
        ),
        CheckpointError,
        "another model.*missing",
    ),
    "nothing to load": (
        lambda p: load(p / "none", into=gaussian()),
        CheckpointError,
        "found no file",
    ),
    "another model to load": (
        lambda p: (write(p / "m", {}, {}), load(p / "m", into=gaussian())),
        CheckpointError,
        "missing",
    ),
    "more components than rows": (lambda _: em(GaussianMixture(30, 3), X), ValueError, "30"),
    "constant column": (
        lambda _: em(GaussianMixture(2, 3), X * torch.tensor([1.0, 0.0, 1.0])),
        ValueError,
        "constant",
    ),
    "one row": (lambda _: em(PPCA(3, factors=1), X[:1]), ValueError, "rows|vary"),
    "all values of a row infinite": (lambda _: em(GaussianMixture(2, 3), X / 0), ValueError, "inf"),
    "no particles": (lambda _: log_likelihood(vae(), X, particles=0), ValueError, "particles >= 1"),
    "score of an implicit model": (
        lambda _: log_likelihood(Energy(Implicit), X),
        NotImplementedError,
        "two-sample",
    ),
    "exact against estimate": (lambda _: EXACT > OTHER, TypeError, "inconclusive"),
    "different rows": (
        lambda _: Score(torch.zeros(4), "exact") < EXACT,
        ValueError,
        "same held-out data",
    ),
    "different units": (lambda _: EXACT.in_bits_per_dim(3) < EXACT, TypeError, "one unit"),
    "mass against density": (
        lambda _: Score(torch.zeros(3), "exact", measure="mass") < EXACT,
        TypeError,
        "quantization",
    ),
    "nothing to impute with": (
        lambda _: impute(flow(), with_value(torch.nan)),
        NotImplementedError,
        "conditional",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name, tmp_path):
    action, error, text = CASES[name]
    torch.manual_seed(0)
    with pytest.raises(error, match=f"(?s){text}"):
        action(tmp_path)


def test_the_table_is_long_enough():
    assert len(CASES) >= 30


def test_batches_larger_than_the_data_are_the_data():
    assert fit(gaussian(), X, steps=1, batch_size=1000, verdict=False).steps == 1


def test_a_refused_fit_leaves_the_model_alone():
    class TwoSites(LatentVariableModel):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

        def model(self, x=None, context=None):
            with data_plate(x, context):
                return pyro.sample("x", dist.Normal(self.w * torch.ones(3), 1.0), obs=x)

        def guide(self, x=None, context=None):
            pass

    gen = TwoSites()
    with pytest.raises(ValueError, match="to_event"):
        fit(gen, X)
    assert gen.w.item() == 1.0 and gen.training
