"""One loop: it reaches known optima, repeats itself, resumes exactly.

And loses nothing when something breaks.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from lightning_fabric import Fabric
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from probgen.compile.tracing import Compiled
from probgen.core.module import DistributionModule, LatentVariableModel, data_plate
from probgen.core.program import Program
from probgen.train.checkpoint import CheckpointError
from probgen.train.fit import adam, fit
from probgen.train.history import FitWarning
from probgen.train.rehearsal import RowScale
from probgen.train.run import NonFiniteLoss


class Normal(DistributionModule):
    def __init__(self):
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))

    def forward(self, context=None):
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(1)


class LinearGaussian(LatentVariableModel):
    """z ~ N(0, 1), x | z ~ N(w z, 1); dropout in the guide makes every random draw count."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.full((2,), 0.5))
        self.encoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 2))

    def model(self, x=None, context=None):
        with data_plate(x, context):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(self.w * z[..., None], 1.0).to_event(1), obs=x)

    def guide(self, x=None, context=None):
        with data_plate(x, context):
            loc, log_scale = self.encoder(x).unbind(-1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))


def rows(n=60, seed=0):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def make():
    torch.manual_seed(1)
    return LinearGaussian()


def parameters(gen):
    return torch.cat([p.detach().reshape(-1) for p in gen.parameters()])


@pytest.mark.slow
def test_maximum_likelihood_of_a_gaussian_is_its_moments():
    x, gen = rows(500), Normal()
    history = fit(gen, x, steps=400, optimizer=adam(0.05), batch_size=500, seed=0)
    torch.testing.assert_close(gen.loc.detach(), x.mean(0), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        gen.log_scale.detach().exp(), x.std(0, correction=0), atol=1e-3, rtol=0
    )
    entropy = (0.5 * (2 * math.pi * math.e * x.var(0, correction=0)).log()).sum()
    assert history.loss[-1] == pytest.approx(entropy.item(), abs=1e-3)


def test_minibatch_loss_is_unbiased_for_models_with_globals():
    """Averaged over batches the scaled loss is the loss of the whole data.

    And so is its gradient.
    """
    y = rows(12)[:, 0]

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def full(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        with pyro.plate("data", 12, subsample_size=len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    value = {"mu": torch.tensor(0.7)}
    exact = (
        pyro.poutine.trace(pyro.poutine.condition(model, value)).get_trace(y).log_prob_sum() / 12
    )
    for program in (model, full):
        parts = []
        for batch in y.split(4):
            with RowScale("data", 4, 12):
                trace = pyro.poutine.trace(pyro.poutine.condition(program, value)).get_trace(batch)
            parts.append(trace.log_prob_sum() / 4)
        torch.testing.assert_close(torch.stack(parts).mean(), exact)


@pytest.mark.slow
def test_programs_train_on_minibatches():
    y = rows(4000)[:, 0]

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 2.0), obs=y)

    gen = Program(model, AutoNormal(model))
    options = {"ema": 0.99, "seed": 0, "compile": False, "verdict": False}
    fit(gen, y, steps=800, batch_size=100, optimizer=adam(0.02), **options)
    precision = len(y) / 4 + 1 / 100
    assert gen._guide.locs.mu.item() == pytest.approx((y.sum() / 4 / precision).item(), abs=0.02)
    assert gen._guide.scales.mu.item() == pytest.approx(precision**-0.5, rel=0.15)
    assert not list(pyro.get_param_store())


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_and_leaves_the_callers_random_state():
    runs = []
    for _ in range(2):
        gen = make()
        state = torch.get_rng_state()
        history = fit(gen, rows(), steps=20, batch_size=16, seed=5)
        assert torch.equal(state, torch.get_rng_state())
        runs.append((history.loss, parameters(gen)))
    assert runs[0][0] == runs[1][0] and torch.equal(runs[0][1], runs[1][1])
    other = fit(make(), rows(), steps=20, batch_size=16, seed=6)
    assert other.loss != runs[0][0]


def settings(path):
    return {
        "validation": rows(30, seed=1),
        "validate_every": 3,
        "ema": 0.9,
        "clip": 1.0,
        "scheduler": lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95),
        "checkpoint": path,
        "seed": 3,
        "verdict": False,
    }


@pytest.mark.table(quick=1)
@pytest.mark.parametrize(
    "data",
    [lambda: rows(), lambda: DataLoader(TensorDataset(rows()), batch_size=16, shuffle=True)],
    ids=["rows", "loader"],
)
def test_resume_is_bit_equal(tmp_path, data):
    size = {"batch_size": 16} if torch.is_tensor(data()) else {}
    whole = make()
    expected = fit(whole, data(), steps=22, **size, **settings(tmp_path / "a.safetensors"))
    fit(make(), data(), steps=11, **size, **settings(tmp_path / "b.safetensors"))
    resumed = make()
    again = {**settings(tmp_path / "b.safetensors"), "seed": 99}
    history = fit(resumed, data(), steps=22, resume=True, **size, **again)
    assert history.loss == expected.loss and history.validation == expected.validation
    assert history.gradient_norm == expected.gradient_norm
    assert torch.equal(parameters(whole), parameters(resumed))


def test_resume_refuses_another_run(tmp_path):
    path = tmp_path / "a.safetensors"
    fit(make(), rows(), steps=2, checkpoint=path, verdict=False)
    with pytest.raises(CheckpointError, match="expected the 60 rows"):
        fit(make(), rows(50), steps=4, checkpoint=path, resume=True)
    with pytest.raises(CheckpointError, match="another model"):
        fit(Normal(), rows(), steps=4, checkpoint=path, resume=True)


def weighted(values, decay):
    """The average by its definition, in double precision."""
    weights = torch.tensor(
        [decay ** (len(values) - i) for i in range(1, len(values) + 1)], dtype=torch.float64
    )
    return (weights @ torch.stack(values).double() / weights.sum()).float()


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999, 1 - 1e-9])
@pytest.mark.parametrize("compile", [False, True])
def test_the_average_of_the_weights_holds_none_from_before_the_first_step(
    decay, compile, monkeypatch
):
    monkeypatch.setattr(Compiled, "build", lambda self, *examples, **how: self)  # replayed
    gen, seen = Normal(), []
    watch = [lambda run: seen.append(parameters(run.gen))]
    fit(
        gen,
        rows(),
        steps=9,
        ema=decay,
        optimizer=adam(0.1),
        callbacks=watch,
        compile=compile,
        verdict=False,
    )
    torch.testing.assert_close(parameters(gen), weighted(seen, decay), rtol=1e-5, atol=1e-6)


def test_patience_restores_the_best_state():
    """Trained on the wrong data, the validation loss soon rises."""
    gen, states = Normal(), []

    def remember(run):
        states.append((run.history.validation[-1][1], parameters(run.gen)))

    history = fit(
        gen,
        rows() + 5,
        steps=500,
        optimizer=adam(0.1),
        validation=rows(seed=2),
        validate_every=1,
        patience=5,
        callbacks=[remember],
        verdict=False,
    )
    assert "no improvement in 5 validations" in history.stopped and history.steps < 200
    assert torch.equal(parameters(gen), min(states, key=lambda s: s[0])[1])


@pytest.mark.slow
def test_patience_speaks_for_the_loss():
    """A falling training loss is no reason to train on where held-out rows have said enough."""
    watched = {
        "validation": rows(seed=2),
        "validate_every": 1,
        "optimizer": adam(0.1),
        "steps": 500,
    }
    history = fit(Normal(), rows() + 5, patience=5, **watched)
    assert history.verdict.settled is None and history.verdict.ok
    with pytest.warns(FitWarning, match="still changing"):
        history = fit(Normal(), rows() + 5, **watched | {"steps": 20})
    assert history.verdict.settled is False


def test_validation_uses_the_same_noise_every_time():
    gen = make()
    frozen = [torch.optim.SGD, {"lr": 0.0}]
    history = fit(
        gen,
        rows(),
        steps=4,
        validation=rows(seed=4),
        validate_every=1,
        optimizer=lambda p: frozen[0](p, **frozen[1]),
        verdict=False,
    )
    assert len({value for _, value in history.validation}) == 1


def test_nan_stops_with_an_autopsy_and_the_last_finite_state(tmp_path):
    gen, x, states = Normal(), rows(), []

    def spoil(run):
        states.append(parameters(run.gen))
        if run.step == 3:
            x[7] = float("nan")

    with pytest.raises(NonFiniteLoss) as caught:
        fit(gen, x, steps=10, callbacks=[spoil], checkpoint=tmp_path / "c.safetensors")
    assert "step 4" in str(caught.value)
    assert "model site 'x': log_prob is not finite in row 7 of the data" in str(caught.value)
    assert caught.value.history.steps == 3
    assert torch.equal(parameters(gen), states[-1])


def test_interrupting_returns_the_history_so_far(tmp_path):
    def interrupt(run):
        if run.step == 4:
            raise KeyboardInterrupt

    gen = make()
    path = tmp_path / "d.safetensors"
    history = fit(gen, rows(), steps=10, callbacks=[interrupt], checkpoint=path, seed=0)
    assert history.steps == 4 and history.stopped == "interrupted"
    assert fit(make(), rows(), steps=10, checkpoint=path, resume=True, seed=0).steps == 10


def test_callbacks_may_stop_and_epochs_count():
    def enough(run):
        run.stop = "enough" if run.step == 3 else None

    assert fit(Normal(), rows(), steps=10, callbacks=[enough]).stopped == "enough"
    history = fit(Normal(), rows(), epochs=3, batch_size=25)
    assert history.steps == 9 and history.stopped == "3 epochs done"
    assert fit(Normal(), [rows(5), rows(4)], epochs=2).steps == 4


def test_a_full_disk_does_not_end_training(tmp_path, monkeypatch):
    path = tmp_path / "e.safetensors"

    def fill(run):
        if run.step == 2:
            monkeypatch.setattr(
                "os.fsync", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
            )

    with pytest.warns(UserWarning, match="No space left.*earlier checkpoint is kept"):
        history = fit(
            make(), rows(), steps=4, checkpoint=path, checkpoint_every=1, callbacks=[fill]
        )
    assert history.steps == 4
    monkeypatch.undo()
    assert fit(make(), rows(), steps=4, checkpoint=path, resume=True).steps == 4


def test_mixed_precision_follows_full_precision():
    runs = []
    for precision in ("32-true", "bf16-mixed"):
        fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
        runs.append(
            fit(make(), rows(), steps=60, batch_size=30, fabric=fabric, seed=2, verdict=False).loss
        )
    assert runs[0] != runs[1]  # rounding shows that the precision was used
    assert sum(runs[1]) == pytest.approx(sum(runs[0]), rel=0.02)


@pytest.mark.slow
def test_pyros_own_objectives_train_the_same_model():
    from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

    x = rows()
    for objective in (
        Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1),
        TraceMeanField_ELBO(),
    ):
        losses = fit(
            make(), x, objective, steps=200, optimizer=adam(0.02), seed=0, verdict=False
        ).loss
        ours = fit(make(), x, steps=200, optimizer=adam(0.02), seed=0, verdict=False).loss
        assert sum(losses[-50:]) / 50 == pytest.approx(sum(ours[-50:]) / 50, abs=0.15)


def test_averages_of_weights_carry_no_graph():
    seen = []
    fit(
        make(),
        rows(),
        steps=3,
        ema=0.9,
        callbacks=[lambda run: seen.extend(m.requires_grad for m in run.average)],
    )
    assert seen and not any(seen)
