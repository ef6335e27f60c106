"""A loss that stops being finite names the rows of the data and the entries that are to blame."""

import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from probgen.core.module import DistributionModule, LatentVariableModel, data_plate
from probgen.core.program import Program
from probgen.models.autoregressive_flow import MAF
from probgen.models.standardized import Standardized
from probgen.train.culprits import culprits
from probgen.train.fit import fit
from probgen.train.run import NonFiniteLoss

N, BATCH, ROW = 40, 8, 23
# of a distribution whose density at 1e18 no float32 holds, which holds the squares of the data
SCALE = 0.01
QUIET = {"progress": False, "verdict": False, "seed": 0}


class Normal(DistributionModule):
    def __init__(self, dims=3):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(dims))

    def forward(self, context=None):
        return dist.Normal(self.loc, SCALE).to_event(1)


class LogNormal(Normal):
    def forward(self, context=None):
        return dist.LogNormal(self.loc, 1.0).to_event(1)


class Latent(LatentVariableModel):
    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(3))

    def model(self, x=None, context=None):
        with data_plate(x, context):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z + self.loc, SCALE).to_event(1), obs=x)

    def guide(self, x=None, context=None):
        with data_plate(x, context):
            pyro.sample("z", dist.Normal(self.loc.expand(len(x), 3), 1.0).to_event(1))


class Given(DistributionModule):
    """Normals around a multiple of the context."""

    context_size = 3

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.ones(3))

    def forward(self, context=None):
        return dist.Normal(self.slope * context, SCALE).to_event(1)


def regression():
    weights = nn.Parameter(torch.zeros(2))

    def model(covariates, exposure, y=None):
        pyro.param("weights", lambda: weights)
        with pyro.plate("data", len(covariates)):
            loc = covariates @ pyro.param("weights", lambda: weights) + exposure
            pyro.sample("y", dist.Normal(loc, SCALE), obs=y)

    return Program(model)


def image():
    """A family of events (2, 3)."""

    class Image(DistributionModule):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(2, 3))

        def forward(self, context=None):
            return dist.Normal(self.loc, SCALE).to_event(2)

    return Image()


def planted(*shape, at, value=1e18, row=ROW, low=-1.0):
    x = torch.rand(N, *shape) + low
    x[(row, *at)] = value
    return x


def cases():
    """A family, data with one bad entry, and the name of this entry."""
    return {
        "normal": (Normal, planted(3, at=(1,)), "x[1] = 1e+18"),
        "image": (image, planted(2, 3, at=(1, 2)), "x[1, 2] = 1e+18"),
        "head given contexts": (
            Given,
            (torch.rand(N, 3), planted(3, at=(0,))),
            "context[0] = 1e+18",
        ),
        "flow": (lambda: Standardized(MAF(3), 0.0, SCALE), planted(3, at=(2,)), "x[2] = 1e+18"),
        "latents": (Latent, planted(3, at=(0,)), "x[0] = 1e+18"),
        "one of several arguments": (
            regression,
            {"covariates": torch.rand(N, 2), "exposure": planted(at=()), "y": torch.rand(N)},
            "exposure = 1e+18",
        ),
        "another argument": (
            regression,
            (torch.rand(N, 2), torch.rand(N), planted(at=())),
            "y = 1e+18",
        ),
    }


def failure(gen, data, **options):
    with pytest.raises(NonFiniteLoss) as caught:
        fit(gen, data, **{"steps": 12} | QUIET | options)
    return str(caught.value)


MODES = {
    "all rows": {"batch_size": N},
    "batches": {"batch_size": BATCH},
    "uneven batches": {"batch_size": 7},
    "compiled": {"batch_size": BATCH, "compile": True},
}


@pytest.mark.table(quick=12)
@pytest.mark.parametrize("case", cases())
@pytest.mark.parametrize("mode", ["all rows", "batches", "uneven batches"])
def test_the_row_and_entry_of_the_data_are_named(case, mode):
    make, data, entry = cases()[case]
    text = failure(make(), data, compile=False, **MODES[mode])
    assert f"in row {ROW} of the data" in text
    assert f"row {ROW}: {entry} (half of that column lies in" in text
    assert text.count(" = ") == 1


@pytest.mark.parametrize("case", ["normal"])
def test_compiled_steps_name_the_same_row(case, replayed):
    make, data, entry = cases()[case]
    late = [part.clone() for part in (data if isinstance(data, tuple) else (data,))]
    text = failure(make(), tuple(late), steps=40, **MODES["compiled"])
    assert f"in row {ROW} of the data" in text and f"row {ROW}: {entry}" in text


def test_resumed_runs_name_the_same_row(tmp_path):
    x = planted(3, at=(1,))
    path = tmp_path / "run.safetensors"
    options = {"batch_size": BATCH, "checkpoint": path, "compile": False}
    fit(Normal(), x, steps=2, **options, **QUIET)
    text = failure(Normal(), x, resume=True, **options)
    assert int(re.match(r"step (\d+)", text)[1]) > 2
    assert f"in row {ROW} of the data" in text and f"row {ROW}: x[1] = 1e+18" in text


def test_a_loader_has_batches_and_rows_in_them():
    x = planted(3, at=(1,))
    order = torch.randperm(N).tolist()
    loader = DataLoader(TensorDataset(x), batch_size=BATCH, sampler=order)
    place = order.index(ROW)
    text = failure(Normal(), loader, compile=False)
    batch, row = place // BATCH, place % BATCH
    assert f"in row {row} of batch {batch} of epoch 0 of the loader" in text
    assert f"row {row}: x[1] = 1e+18" in text


def test_batches_out_of_support_are_named_by_their_column():
    """The rows of a loader are not looked at beforehand; -1 has no logarithm."""
    good = torch.rand(BATCH, 3) + 0.5
    bad = good.clone()
    bad[2, 1] = -1.0
    text = failure(LogNormal(), [good, good, bad], compile=False)
    assert "model site 'x': log_prob is not finite in row 2 of batch 2 of epoch 0" in text
    assert "row 2: x[1] = -1 (half of that column" in text


def test_several_rows_and_entries_are_all_named():
    x = torch.rand(N, 3)
    x[3, 0] = x[3, 2] = x[31, 1] = 1e18
    text = failure(Normal(), x, compile=False)
    assert "in rows 3, 31 of the data" in text
    assert "row 3: x[0] = 1e+18 (" in text and ", x[2] = 1e+18 (" in text
    assert "row 31: x[1] = 1e+18 (" in text


def test_gradients_that_are_not_finite_where_the_loss_is_name_their_row():
    """The slope of a square root at 0, of an objective that asks for no log_prob."""

    def loss(model, guide, x):
        return (x * guide.__self__.loc.exp()).sqrt().sum()

    x = torch.rand(N, 3) + 1
    x[ROW, 2] = 0.0
    text = failure(Normal(), x, objective=loss, compile=False, batch_size=BATCH)
    assert f"loss or gradient is not finite in row {ROW} of the data alone" in text
    assert f"row {ROW}: x[2] = 0 (" in text and "not finite: the gradient of 'gen.loc'" in text


def test_a_step_that_was_too_large_blames_no_row():
    def too_large(run):
        with torch.no_grad():
            run.gen.loc.fill_(1e18)

    text = failure(Normal(), torch.rand(N, 3), compile=False, callbacks=[too_large])
    assert "step 2" in text and f"and {N - 10} more of the data" in text


def test_the_search_leaves_parameters_noise_and_modes_alone():
    gen = Normal()
    x = planted(3, at=(1,))
    before = torch.get_rng_state()
    failure(gen, x, compile=False, seed=None, batch_size=N)
    drawn = torch.get_rng_state()
    torch.set_rng_state(before)
    failure(Normal(), x.clone(), compile=False, seed=None, batch_size=N)
    assert torch.equal(drawn, torch.get_rng_state()) and not gen.loc.any()


@pytest.mark.parametrize("bad", [set(), {0}, {99}, {3, 4, 5}, set(range(100))])
def test_culprits_are_found_by_halving(bad):
    calls = []

    def breaks(some):
        calls.append(some)
        return bool(bad & set(some))

    assert culprits(range(100), breaks) == sorted(bad)[:10]
    assert len(calls) <= 96
