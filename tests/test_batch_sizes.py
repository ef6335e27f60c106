"""Batches that are smaller than the others: dropped, tried before the first step, never empty."""

import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from probgen.core.module import DistributionModule, standard_normal
from probgen.core.program import Program
from probgen.heads import Gaussian
from probgen.infer.em import em
from probgen.models.gan import GAN
from probgen.models.mixture import GaussianMixture
from probgen.models.vae import VAE
from probgen.nn.mlp import MLP
from probgen.objectives.adversarial import Adversarial
from probgen.train.data import InMemory, as_source
from probgen.train.fit import fit
from probgen.train.history import FitWarning

QUIET = {"progress": False, "verdict": False, "compile": False, "seed": 0}


class Normal(DistributionModule):
    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(2))

    def forward(self, context=None):
        return dist.Normal(self.loc, 1.0).to_event(1)


def normalized():
    encoder = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4))
    return VAE(standard_normal(2), Gaussian(MLP(2, [4], 4)), Gaussian(encoder))


def gan():
    return GAN(MLP(2, [4], 2), standard_normal(2))


def packed():
    return Adversarial(MLP(6, [4], 1), packing=3)


def rows(n):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0))


def drawn(source, steps):
    return [tuple(source.choose()[0].tolist()) for _ in range(steps)]


# -- the last batch dropped


@pytest.mark.parametrize("n", [7, 8, 9, 12])
def test_an_epoch_without_its_last_batch_is_torchs(n):
    """A loader that drops its last batch visits as many rows, in batches of the same size."""
    source = as_source(rows(n), 4, seed=1, drop_last=True)
    per_epoch = len(DataLoader(TensorDataset(rows(n)), batch_size=4, drop_last=True))
    assert source.per_epoch() == source.left() == per_epoch and source.left_over() == 0
    epochs = [drawn(source, per_epoch) for _ in range(30)]
    assert source.epoch == 30 and source.cursor()["position"] == 0
    assert {len(batch) for epoch in epochs for batch in epoch} == {4}
    assert all(len({row for batch in epoch for row in batch}) == 4 * per_epoch for epoch in epochs)
    assert {row for epoch in epochs for batch in epoch for row in batch} == set(range(n))


def test_by_default_the_last_batch_is_smaller():
    source = as_source(rows(9), 4, seed=1)
    assert [len(batch) for batch in drawn(source, 6)] == [4, 4, 1] * 2
    assert source.left_over() == 1 and source.per_epoch() == 3


@pytest.mark.parametrize("n", [3, 4])
def test_the_only_batch_is_not_dropped(n):
    source = as_source(rows(n), 4, seed=1, drop_last=True)
    assert source.per_epoch() == 1 and source.choose() == (None, n) and source.epoch == 1
    data = TensorDataset(rows(n))
    assert fit(Normal(), data, epochs=2, batch_size=4, drop_last=True, **QUIET).steps == 2


@pytest.mark.parametrize("world", [2, 3])
def test_processes_drop_the_same_rows(world):
    shares = [InMemory((rows(14),), 2, 5, rank, world, drop_last=True) for rank in range(world)]
    batches = [drawn(source, 2 * source.per_epoch()) for source in shares]
    assert {len(batch) for own in batches for batch in own} == {2}
    assert {source.epoch for source in shares} == {2}


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_dropping_resumes_exactly(steps, tmp_path):
    settings = {"batch_size": 4, "drop_last": True, **QUIET}
    whole = fit(Normal(), rows(11), steps=6, **settings)
    path = {"checkpoint": tmp_path / "run.safetensors"}
    fit(Normal(), rows(11), steps=steps, **settings, **path)
    again = fit(Normal(), rows(11), steps=6, resume=True, **settings, **path)
    assert again.loss == whole.loss


@pytest.mark.parametrize(("before", "now"), [(False, True), (True, False)])
def test_another_choice_wins_with_a_word(before, now, tmp_path):
    settings = {"batch_size": 4, **QUIET, "checkpoint": tmp_path / "run.safetensors"}
    fit(Normal(), rows(9), steps=2, drop_last=before, **settings)
    with pytest.warns(FitWarning, match=f"drop_last={before}; .* drop_last={now}, as asked now"):
        history = fit(Normal(), rows(9), epochs=2, drop_last=now, resume=True, **settings)
    assert history.steps == (4 if now else 5)


def test_what_is_dropped_counts_for_how_many_rows_there_are():
    """A global's divergence weighs 1/N of all rows: at its prior the loss is the likelihood's."""

    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0 * mu, 1.0).expand([2]).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(3.0))
        pyro.sample("mu", dist.Normal(loc, 1.0))

    optimizer = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0)}
    settings = {"batch_size": 4, "epochs": 1, **optimizer, **QUIET}
    for drop in (False, True):
        history = fit(Program(model, guide), rows(9), drop_last=drop, **settings)
        assert history.parts["kl"] == pytest.approx([4.5 / 9] * (2 if drop else 3))


@pytest.mark.parametrize("options", [{"drop_last": True}, {"batch_size": 3}], ids=str)
@pytest.mark.parametrize("made", ["loader", "list"])
def test_batches_that_are_made_already_are_not_made_again(options, made):
    loader = DataLoader(TensorDataset(rows(9)), batch_size=4)
    with pytest.raises(ValueError, match=r"batches that are made already.*where they are made"):
        fit(Normal(), loader if made == "loader" else list(loader), steps=1, **options, **QUIET)


# -- sizes that the loss does not take

ONE = "Expected more than 1 value per channel"
SMALL = {
    "a last batch of one row": (normalized, None, 9, 4, f"single rows.*{ONE}.*leave 1 over"),
    "rows one by one": (normalized, None, 8, 1, f"single rows.*{ONE}.*larger batch_size"),
    "one row in all": (normalized, None, 1, 4, f"single rows.*{ONE}.*pass more rows"),
    "less than a pack": (gan, packed, 14, 4, "batches of 2 rows.*for a pack.*leave 2 over"),
}


@pytest.mark.parametrize("loader", [False, True])
@pytest.mark.parametrize("kind", SMALL)
def test_sizes_that_fail_are_found_before_the_first_step(kind, loader, tmp_path):
    make, objective, n, size, message = SMALL[kind]
    data = DataLoader(TensorDataset(rows(n)), batch_size=size) if loader else rows(n)
    settings = QUIET if loader else {"batch_size": size, **QUIET}
    path, gen = tmp_path / "run.safetensors", make()
    before = {name: value.clone() for name, value in gen.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        fit(gen, data, objective and objective(), steps=9, checkpoint=path, **settings)
    assert not path.exists() and gen.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in gen.state_dict().items())


@pytest.mark.parametrize("kind", ["a last batch of one row", "less than a pack"])
@pytest.mark.parametrize("advice", ["drop_last", "another size"])
def test_the_advice_helps(kind, advice):
    make, objective, n, size, _ = SMALL[kind]
    options = {"drop_last": True, "batch_size": size}
    options = options if advice == "drop_last" else {"batch_size": n}
    history = fit(make(), rows(n), objective and objective(), epochs=3, **options, **QUIET)
    assert all(map(math.isfinite, history.loss))


@pytest.mark.parametrize("made", ["rows", "loader"])
def test_trying_a_size_changes_nothing(made):
    """Steps before the last batch are those of a run on which none is left over."""
    losses = []
    for drop in (False, True):
        torch.manual_seed(1)
        gen, data = normalized(), rows(11)
        options = {"batch_size": 4, "drop_last": drop}
        if made == "loader":
            data = DataLoader(TensorDataset(data), **options)
        options = {} if made == "loader" else options
        losses.append(fit(gen, data, steps=2, **options, **QUIET).loss)
    assert losses[0] == losses[1]


def test_one_row_is_enough_for_validation():
    history = fit(normalized(), rows(8), validation=rows(1), epochs=1, batch_size=4, **QUIET)
    assert math.isfinite(history.validation[-1][1])
    history = fit(normalized(), rows(8), validation=rows(5), epochs=1, batch_size=4, **QUIET)
    assert math.isfinite(history.validation[-1][1])


# -- no rows

NOTHING = torch.zeros(0, 2)
EMPTY = {
    "tensor": NOTHING,
    "array": NOTHING.numpy(),
    "frame": pd.DataFrame(NOTHING.numpy(), columns=["a", "b"]),
    "series": pd.Series([], dtype=float),
    "tuple": (NOTHING,),
    "dict": {"x": NOTHING},
    "list": [],
    "list of nothing": [NOTHING],
    "data set": TensorDataset(NOTHING),
    "loader": DataLoader(TensorDataset(NOTHING)),
    "a batch without rows": [rows(4), NOTHING],
}


def program():
    def model(x):
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    return Program(model, lambda x: None)


@pytest.mark.parametrize("make", [Normal, program], ids=["family", "program"])
@pytest.mark.parametrize("kind", EMPTY)
def test_no_rows_are_refused(make, kind):
    with pytest.raises(ValueError, match="expected data with at least one row, got none"):
        fit(make(), EMPTY[kind], steps=3, **QUIET)
    with pytest.raises(ValueError, match="expected data with at least one row, got none"):
        fit(make(), rows(4), validation=EMPTY[kind], steps=3, **QUIET)


def test_no_rows_are_refused_by_em():
    with pytest.raises(ValueError, match="expected at least two rows, got x of shape"):
        em(GaussianMixture(2, 2), NOTHING)


def test_arrays_of_one_row_are_rows():
    assert fit(Normal(), np.zeros((1, 2), dtype="float32"), steps=1, **QUIET).steps == 1
