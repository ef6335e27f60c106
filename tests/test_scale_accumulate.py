"""Several batches make one step: it is the step of one batch with the rows of all of them."""

import math
import warnings

import pyro
import pytest
import torch
from pyro.distributions import Delta, Normal

import probgen as pg
from probgen.core.loss_parts import LossPart
from probgen.heads import Gaussian
from probgen.nn import MLP, Constant
from probgen.train import NonFiniteLoss, Stage
from probgen.train.accumulation import AccumulatedSource, summed_parts
from probgen.train.data import as_source

N = 53
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(0)) * 2 + 1
WEIGHTS = torch.randint(4, (N,), generator=torch.Generator().manual_seed(1)).float()
LOADER = [X[start : start + 4] for start in range(0, N, 4)]
WHOLE = [X[start : start + 16] for start in range(0, N, 16)]


def gaussian():
    return Gaussian(Constant(6))


def with_prior():
    """A mean with a prior, shared by all rows; its guide has no width, so that nothing is drawn."""

    def model(x):
        mean = pyro.sample("mean", Normal(torch.zeros(3), 0.1).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", Normal(mean, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.sample("mean", Delta(pyro.param("loc", torch.ones(3))).to_event(1))

    return pg.Program(model, guide)


def fitted(make=gaussian, data=X, **options):
    torch.manual_seed(0)
    gen = make()
    options = {"steps": 11, "optimizer": pg.train.adam(0.05), "compile": False} | options
    history = pg.fit(gen, data, seed=3, verdict=False, progress=False, **options)
    return history, torch.cat([p.detach().flatten() for p in gen.parameters()])


def near(values):
    return pytest.approx(values, rel=1e-4, abs=1e-5)


SAME = {
    "rows": {},
    "rows with weights": {"weights": WEIGHTS},
    "without the last rows": {"drop_last": True},
    "clipped": {"clip": 0.3},
    "averaged": {"ema": 0.8},
    "by a schedule": {"scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.5)},
    "by epochs": {"steps": None, "epochs": 3},
    "validated each epoch": {"validation": X[:20], "patience": 9},
}


@pytest.mark.parametrize("options", SAME.values(), ids=SAME)
def test_steps_of_several_batches_are_those_of_one(options):
    one, values = fitted(batch_size=16, **options)
    several, others = fitted(batch_size=4, accumulate=4, **options)
    assert several.steps == one.steps > 3
    assert several.loss == near(one.loss)
    assert several.gradient_norm == near(one.gradient_norm)
    assert several.learning_rates == one.learning_rates
    assert dict(several.validation) == near(dict(one.validation))
    assert others.tolist() == near(values.tolist())
    plain, _ = fitted(batch_size=4, **options)
    assert plain.loss[1:3] != near(one.loss[1:3])


def test_what_all_rows_share_counts_once():
    one, values = fitted(with_prior, batch_size=16)
    several, others = fitted(with_prior, batch_size=4, accumulate=4)
    assert several.loss == near(one.loss)
    assert others.tolist() == near(values.tolist())


def test_batches_of_a_loader():
    one, values = fitted(data=WHOLE)
    several, others = fitted(data=LOADER, accumulate=4)
    assert several.loss == near(one.loss)
    assert others.tolist() == near(values.tolist())


def test_parts_of_the_loss_are_those_of_all_rows():
    def vae():
        decoder = Gaussian(Constant(6))  # which does not look at what is drawn
        return pg.VAE(pg.standard_normal(2), decoder, Gaussian(MLP(3, [4], 4)))

    def objective():
        return pg.ELBO(beta=pg.objectives.linear_warmup(5))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the rest of the decoder has no gradient
        one, _ = fitted(vae, objective=objective(), batch_size=16)
        several, _ = fitted(vae, objective=objective(), batch_size=4, accumulate=4)
    assert several.weights["kl"] == near(one.weights["kl"])  # a step is an update
    assert several.parts.keys() == one.parts.keys()
    assert several.loss == near(one.loss)


def test_parts_are_summed():
    parts = [{"a": LossPart(torch.tensor(1.0)), "b": LossPart(torch.tensor(2.0), 0.5)}] * 2
    found = summed_parts([*parts, {"a": LossPart(torch.tensor(5.0))}])
    assert {name: part.value.item() for name, part in found.items()} == {"a": 7.0, "b": 4.0}
    assert found["b"].weight == 0.5


def test_players_take_turns_by_updates():
    torch.manual_seed(0)
    gen = pg.GAN(MLP(2, [8], 3), pg.standard_normal(2), (3,))
    game = pg.objectives.Adversarial(MLP(3, [8], 1), critic_steps=3)
    options = {"seed": 0, "verdict": False, "compile": False, "progress": False}
    history = pg.fit(gen, X, game, steps=9, batch_size=8, accumulate=2, **options)
    turns = [not math.isnan(value) for value in history.parts["generator"]]
    assert turns == [False, False, True] * 3


def test_what_is_left_of_an_epoch_is_a_step():
    source = AccumulatedSource(as_source((X,), 4, 0), 4)
    rows = [source.choose()[1] for _ in range(8)]
    assert rows == [16, 16, 16, 5] * 2
    assert source.per_epoch() == 4 and source.batch_size == 16 and source.epoch == 2
    dropping = AccumulatedSource(as_source((X,), 4, 0, drop_last=True), 4)
    assert [dropping.choose()[1] for _ in range(6)] == [16] * 6
    assert dropping.per_epoch() == 3 and dropping.epoch == 2


def test_a_run_goes_on_exactly(tmp_path):
    options = {"batch_size": 4, "accumulate": 3, "ema": 0.9}
    whole, values = fitted(**options)
    fitted(steps=6, checkpoint=tmp_path / "run", **options)
    pieces, others = fitted(checkpoint=tmp_path / "run", resume=True, **options)
    assert pieces.loss == whole.loss
    assert torch.equal(values, others)


def test_the_rows_of_a_step_may_be_shared_out_otherwise(tmp_path):
    whole, _ = fitted(batch_size=16)
    fitted(steps=6, checkpoint=tmp_path / "run", batch_size=16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pieces, _ = fitted(checkpoint=tmp_path / "run", resume=True, batch_size=4, accumulate=4)
    assert pieces.loss == near(whole.loss)


def fourth_powers(model, guide, x):
    return (x - model().mean(0)).pow(4).sum()


@pytest.mark.parametrize("batch", range(3))
def test_no_batch_of_a_step_may_be_infinite(batch):
    data = [torch.zeros(4, 3), torch.zeros(4, 3)]
    data.insert(batch, torch.full((4, 3), 1e15))
    torch.manual_seed(0)
    gen = gaussian()
    start = [p.detach().clone() for p in gen.parameters()]
    options = {"accumulate": 3, "steps": 4, "compile": False, "progress": False}
    with pytest.raises(NonFiniteLoss, match="loss inf") as failed:
        pg.fit(gen, data, fourth_powers, **options)
    assert failed.value.history.steps == 0
    assert all(map(torch.equal, gen.parameters(), start))


def test_stages_accumulate_each_as_many():
    stages = [Stage(steps=3, accumulate=4, batch_size=4), Stage(steps=3, batch_size=16)]
    several, _ = fitted(stages=stages)
    one, _ = fitted(steps=6, batch_size=16)
    assert several.loss == near(one.loss)


def test_such_steps_are_not_compiled():
    with pytest.raises(pg.NotCompilable, match="accumulates several batches"):
        fitted(batch_size=4, accumulate=2, compile=True)
    history, _ = fitted(batch_size=4, accumulate=2, compile="auto")
    assert "accumulates several batches" in history.compiled


BAD = {
    "none": (0, ValueError),
    "a part": (1.5, (TypeError, ValueError)),
    "text": ("two", TypeError),
    "a flag": (True, (TypeError, ValueError)),
}


@pytest.mark.parametrize(("given", "error"), BAD.values(), ids=BAD)
def test_what_is_no_number_of_batches_is_refused(given, error):
    with pytest.raises(error, match="accumulate"):
        fitted(accumulate=given)
