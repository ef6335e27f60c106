"""What an eager step leaves out is looked at where it changes: once a run, or where it is new."""

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import probgen as pg
from probgen.core import contexts
from probgen.heads import Bernoulli, Gaussian
from probgen.train import adam

torch.manual_seed(0)
ROWS = torch.randn(60, 3)
GIVEN = torch.randn(60, 2)
QUIET = {"verdict": False, "progress": False, "compile": False, "seed": 0}


def head():
    torch.manual_seed(1)
    return Gaussian(nn.Linear(2, 6))


def autoencoder():
    torch.manual_seed(1)
    encoder = Gaussian(nn.Linear(3, 4))
    return pg.VAE(pg.standard_normal(2), Bernoulli(nn.Linear(2, 3)), encoder)


@pytest.mark.parametrize(
    "gen, data",
    [(head(), (ROWS, GIVEN)), (autoencoder(), (ROWS > 0).float())],
    ids=["with contexts", "without"],
)
def test_families_are_asked_what_they_take_as_often_in_a_long_run(gen, data, monkeypatch):
    asked = []
    check = contexts._checked
    monkeypatch.setattr(contexts, "_checked", lambda *a: asked.append(1) or check(*a))
    counts = []
    for steps in (10, 40):
        asked.clear()
        pg.fit(gen, data, steps=steps, batch_size=20, **QUIET)
        counts.append(len(asked))
    assert counts[0] == counts[1] > 0


def batches(changed):
    """Batches of rows and contexts, of which the last one is changed."""
    pairs = list(zip(ROWS.split(20), GIVEN.split(20), strict=True))
    return [*pairs[:-1], changed(*pairs[-1])]


@pytest.mark.parametrize(
    "changed, told",
    [
        (lambda x, c: (x, c.masked_fill(c > 1, torch.nan)), "without missing values"),
        (lambda x, c: (x, c[:, :1]), r"shape \(\*batch, 2\)"),
        (lambda x, c: (x, None), r"shape \(\*batch, 2\), got None"),
    ],
    ids=["NaN", "another size", "none"],
)
def test_a_context_that_comes_later_is_refused_as_one_of_the_first_step(changed, told):
    with pytest.raises(ValueError, match=told):
        pg.fit(head(), batches(changed), epochs=1, **QUIET)


def test_missing_rows_that_come_later_are_integrated_out():
    """Against the same rows with the entry in no term: the loss of the last step is that mean."""
    gen = head()
    data = batches(lambda x, c: (x.masked_fill(torch.eye(20, 3) > 0, torch.nan), c))
    history = pg.fit(gen, data, epochs=1, optimizer=adam(1e-12), **QUIET)
    x, context = data[-1]
    loc, scale = gen(context).mean, gen(context).stddev
    entries = dist.Normal(loc, scale, validate_args=False).log_prob(x)
    assert history.loss[-1] == pytest.approx(-entries.nansum().item() / 20, rel=1e-4)


class Blanking(nn.Module):
    """A program that makes some of its own batch missing, in place."""

    def __init__(self):
        super().__init__()
        self.inner = head()

    def model(self, x, context):
        x[:, 0] = torch.nan
        return self.inner.model(x, context)


def test_what_a_program_writes_into_its_batch_is_seen():
    inside = Blanking()
    gen = pg.Program(inside.model)
    history = pg.fit(gen, (ROWS.clone(), GIVEN), steps=3, batch_size=20, **QUIET)
    assert all(map(torch.isfinite, torch.tensor(history.loss)))
    assert inside.inner.net.bias[0] == head().net.bias[0]  # of which no entry was left


def test_a_network_that_a_callback_puts_in_is_asked_anew():
    def swap(run):
        run.gen.net = nn.Linear(5, 6)

    with pytest.raises(ValueError, match=r"shape \(\*batch, 5\), got \(20, 2\)"):
        pg.fit(head(), (ROWS, GIVEN), steps=3, batch_size=20, callbacks=[swap], **QUIET)


def test_groups_that_a_callback_adds_have_names():
    extra = nn.Parameter(torch.zeros(1))

    def add(run):
        if run.step == 2:
            run.optimizer.optimizer.add_param_group({"params": [extra], "lr": 0.5, "name": "more"})

    history = pg.fit(head(), (ROWS, GIVEN), steps=4, callbacks=[add], **QUIET)
    assert history.groups == ["0", "more"]
    assert [len(rates) for rates in history.learning_rates] == [4, 4]
    assert history.learning_rates[1][2:] == [0.5, 0.5]
