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
        (
            lambda x, c: (x, c[:5]),
            r"same number of rows, got shapes \[\(20, 3\), \(5, 2\)\]; align",
        ),
    ],
    ids=["NaN", "another size", "none", "of fewer rows"],
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


class Shares(pg.DistributionModule):
    """A family that refuses some values of contexts."""

    context_size = 2

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 6)

    def context_check(self, context):
        if (context < 0).any():
            raise ValueError("expected shares of at least 0, got less; give shares")

    def forward(self, context=None):
        loc, scale = self.net(context).chunk(2, -1)
        return dist.Normal(loc, scale.exp()).to_event(1)


def test_values_that_a_family_refuses_are_looked_at_in_every_step():
    with pytest.raises(ValueError, match="at least 0"):
        pg.fit(Shares(), batches(lambda x, c: (x, -c.abs())), steps=9, **QUIET)
    kept = [(x, c.abs()) for x, c in batches(lambda x, c: (x, c))]
    assert pg.fit(Shares(), kept, steps=9, **QUIET).steps == 9


@pytest.mark.parametrize("how", ["callback", "stage", "several sets"])
def test_what_becomes_missing_during_a_run_is_missing_from_then_on(how):
    """As in a run that begins there: the model of then, and data with the gaps."""
    rows = ROWS.clone()
    rows.requires_grad_(False)

    def make():
        torch.manual_seed(1)
        return Gaussian(pg.nn.Constant(6))

    def lose(_):
        rows[::2, 1] = torch.nan

    options = {**QUIET, "batch_size": 60, "optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}
    reference, gen = make(), make()
    pg.fit(reference, ROWS, steps=4, **options)
    gaps = ROWS.clone()
    gaps[::2, 1] = torch.nan
    wanted = pg.fit(reference, gaps, steps=4, **options).loss
    if how == "callback":
        callbacks = [lambda run: lose(run) if run.step == 4 else None]
        found = pg.fit(gen, rows, steps=8, callbacks=callbacks, **options).loss[4:]
    elif how == "stage":
        stages = [pg.train.Stage(steps=4), pg.train.Stage(start=lose, steps=4)]
        found = pg.fit(gen, rows, stages=stages, **options).loss[4:]
    else:
        program = pg.Program(lambda x, other: gen.model(x))
        callbacks = [lambda run: lose(run) if run.step == 4 else None]
        sets = pg.train.Unpaired(rows, torch.zeros(60, 1), plates=["data", None])
        found = pg.fit(program, sets, steps=8, callbacks=callbacks, **options).loss[4:]
    assert found == pytest.approx(wanted, rel=1e-5)
