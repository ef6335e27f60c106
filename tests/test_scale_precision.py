"""Half precision with a scaled loss: an overflow skips a step, and what is not finite ends the run."""

import math
import warnings

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision

import probgen as pg
from probgen.heads import Gaussian
from probgen.nn import MLP
from probgen.train import NonFiniteLoss
from probgen.train.loss_scaling import LEAST

X = torch.randn(48, 3, generator=torch.Generator().manual_seed(0))


def half(scale=2.0**10, **options):
    """Half precision on the CPU, where Fabric takes bfloat16 unless it is given the scaler."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, **options)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    return Fabric(accelerator="cpu", devices=1, plugins=plugin), scaler


def flow():
    torch.manual_seed(0)
    return Gaussian(MLP(1, [8], 6)), (X, torch.ones(len(X), 1))


def fitted(fabric, **options):
    gen, data = flow()
    options = {"steps": 8, "optimizer": pg.train.adam(0.02), "compile": False} | options
    history = pg.fit(
        gen, data, batch_size=16, fabric=fabric, seed=1, verdict=False, progress=False, **options
    )
    return history, torch.cat([p.detach().flatten() for p in gen.parameters()])


PLAIN = Fabric(accelerator="cpu", devices=1)
OPTIONS = {
    "plain": {},
    "clipped": {"clip": 0.1},
    "averaged": {"ema": 0.9},
    "accumulated": {"accumulate": 2},
    "not fused": {"optimizer": lambda parameters: torch.optim.Adam(parameters, 0.02)},
    "fused and clipped": {"optimizer": pg.train.adam(0.02, fused=True), "clip": 0.1},
    "momentum": {"optimizer": lambda parameters: torch.optim.SGD(parameters, 0.02, 0.9)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients_are_those_of_single_precision_up_to_rounding(options):
    fabric, _ = half()
    history, _ = fitted(fabric, **options)
    single, _ = fitted(PLAIN, **options)
    assert history.skipped == []
    assert history.loss == pytest.approx(single.loss, rel=0.01)
    assert history.gradient_norm == pytest.approx(single.gradient_norm, rel=0.03)


def scheduled(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)


def test_an_overflow_skips_the_step_and_lowers_the_scale():
    fabric, scaler = half(2.0**40)
    values = []

    def look(run):
        average = torch.cat([mean.flatten() for mean in run.average])
        now = torch.cat([p.detach().flatten() for p in run.parameters])
        values.append((now, average))

    options = {"ema": 0.5, "steps": 40, "scheduler": scheduled, "callbacks": [look]}
    history, _ = fitted(fabric, **options)
    count = len(history.skipped)
    assert 10 < count < 35 and history.skipped == list(range(count))
    assert scaler.get_scale() == 2.0 ** (40 - count)
    start = torch.cat([p.detach().flatten() for p in flow()[0].parameters()])
    for now, average in values[:count]:
        assert torch.equal(now, start) and torch.equal(average, start)
    assert not torch.equal(values[count][0], start)
    torch.testing.assert_close(
        values[count][1], values[count][0]
    )  # of one step, which is all of it
    assert history.learning_rates[0][: count + 1] == [0.02] * (count + 1)
    assert history.learning_rates[0][count + 1] == 0.01
    assert all(map(math.isfinite, history.loss))


def test_a_run_goes_on_exactly_with_its_scale(tmp_path):
    options = {"growth_interval": 3, "scale": 2.0**34}
    whole, values = fitted(half(**options)[0], steps=40, checkpoint=tmp_path / "whole")
    fitted(half(**options)[0], steps=25, checkpoint=tmp_path / "run")
    pieces, others = fitted(half()[0], steps=40, checkpoint=tmp_path / "run", resume=True)
    assert whole.skipped and pieces.loss == whole.loss
    assert pieces.skipped == whole.skipped
    assert torch.equal(values, others)


def infinite(model, guide, x, context):
    return (x - model(None, context)).square().sum() * math.inf


def without_gradient(model, guide, x, context):
    """A finite loss whose gradient is never a number: that of a root at zero."""
    mean = model(None, context)
    return mean.square().sum() + (mean - mean.detach()).square().sum().sqrt()


@pytest.mark.parametrize(
    ("objective", "told"),
    [(infinite, "loss inf"), (without_gradient, "loss scale has fallen")],
    ids=["loss", "gradient"],
)
def test_what_no_scale_makes_finite_ends_the_run(objective, told):
    fabric, scaler = half()
    gen, data = flow()
    start = [p.detach().clone() for p in gen.parameters()]
    options = {"fabric": fabric, "verdict": False, "compile": False, "progress": False, "seed": 0}
    with pytest.raises(NonFiniteLoss, match=told) as failed:
        pg.fit(gen, data, objective, steps=100, batch_size=16, **options)
    assert all(map(torch.equal, gen.parameters(), start))
    if told != "loss inf":
        assert scaler.get_scale() < LEAST
        assert len(failed.value.history.skipped) == 10 + 15


def test_players_of_a_game_share_a_scale():
    torch.manual_seed(0)
    gan = pg.GAN(MLP(2, [8], 3), pg.standard_normal(2), (3,))
    critic = MLP(3, [8], 1)
    optimizer = {"model": pg.train.adam(1e-3), "critic": pg.train.adam(4e-3)}
    fabric, _ = half(2.0**30)
    before = [p.detach().clone() for p in (*gan.parameters(), *critic.parameters())]
    options = {"steps": 30, "batch_size": 16, "optimizer": optimizer, "compile": False}
    game = pg.objectives.Adversarial(critic)
    history = pg.fit(gan, X, game, fabric=fabric, seed=0, verdict=False, progress=False, **options)
    assert 0 < len(history.skipped) < 30
    moved = zip(before, (*gan.parameters(), *critic.parameters()), strict=True)
    assert not any(torch.equal(old, new) for old, new in moved)


KINDS = {
    "bf16-mixed": torch.float32,
    "16-true": torch.float16,
    "bf16-true": torch.bfloat16,
    "64-true": torch.float64,
}


@pytest.mark.parametrize(("precision", "kind"), KINDS.items(), ids=KINDS)
def test_other_precisions_have_no_scale(precision, kind):
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    gen, data = flow()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = pg.fit(
            gen, data, steps=8, fabric=fabric, seed=1, verdict=False, compile=False, progress=False
        )
    assert {p.dtype for p in gen.parameters()} == {kind}
    single, _ = fitted(PLAIN, steps=1)
    assert history.skipped == [] and history.loss[0] == pytest.approx(single.loss[0], rel=0.1)


def test_half_precision_is_not_compiled():
    with pytest.raises(pg.NotCompilable, match="bf16-mixed"):
        fitted(half()[0], compile=True)
