"""Data that are not one table: unpaired sets, partly labeled rows, rows that a function draws, none."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from probgen.compile.tracing import Compiled
from probgen.core.program import Program
from probgen.heads import Gaussian
from probgen.nn import Constant
from probgen.objectives import ELBO, Objective
from probgen.train import CheckpointError, FitWarning, Labeled, Pairs, Unpaired, adam, fit
from probgen.train.data import as_source, held_out
from probgen.train.forms import Request
from probgen.train.pools import Order

WORKER = str(Path(__file__).with_name("forms_worker.py"))
generator = torch.Generator().manual_seed(0)
A = torch.randn(13, 2, generator=generator) + 1
B = torch.randn(30, 2, generator=generator) - 2
X = torch.randn(60, 2, generator=generator)
Y = (X[:, 0] > 0).float()
Y[7:] = torch.nan
PLATES = ["data", "others"]


class Shift(nn.Module):
    """Two samples with a common place, one of them shifted."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(2))
        self.shift = nn.Parameter(torch.zeros(2))

    def forward(self, a, b):
        with pyro.plate("data", len(a)):
            pyro.sample("a", dist.Normal(self.place, 1.0).to_event(1), obs=a)
        with pyro.plate("others", len(b)):
            pyro.sample("b", dist.Normal(self.place + self.shift, 1.0).to_event(1), obs=b)


class Classifier(nn.Module):
    """A normal distribution of rows, and of the known labels given the rows."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(2))
        self.net = nn.Linear(2, 1)

    def forward(self, x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.place, 1.0).to_event(1), obs=x)
            labels = dist.Bernoulli(logits=self.net(x)[:, 0]).mask(~y.isnan())
            pyro.sample("y", labels, obs=y.nan_to_num())


def noisy_pairs(n):
    x = torch.randn(n, 2)
    return x, x[:, :1] > 0


FORMS = {
    "unpaired": (Shift, lambda: Unpaired(A, B, plates=PLATES)),
    "unpaired, of other sizes": (Shift, lambda: Unpaired(A, B, batch_sizes=[3, 8], plates=PLATES)),
    "unpaired, weighted": (
        Shift,
        lambda: Unpaired(A, B, weights=[None, torch.arange(30.0)], plates=PLATES),
    ),
    "labeled": (Classifier, lambda: Labeled(X, Y)),
    "labeled shares": (Classifier, lambda: Labeled(X, Y, labeled_share=0.5)),
    "drawn": (Classifier, lambda: Pairs(lambda n: (torch.randn(n, 2), torch.ones(n)))),
    "drawn in pools": (
        Classifier,
        lambda: Pairs(lambda n: (torch.randn(n, 2), torch.ones(n)), rows=20, pool=3),
    ),
}
STEPS = 11


def run(form, path=None, resume=False, compile=False, callbacks=(), **settings):
    torch.manual_seed(1)
    kind, make = FORMS[form]
    module = kind()
    usual = {
        "steps": STEPS,
        "batch_size": 6,
        "optimizer": adam(0.05),
        "validation": make(),
        "validate_every": 4,
        "seed": 2,
        "verdict": False,
        "progress": False,
    }
    history = fit(
        Program(module),
        make(),
        checkpoint=path,
        resume=resume,
        compile=compile,
        callbacks=callbacks,
        **usual | settings,
    )
    return module, history


def identical(one, other, **near):
    (module, history), (again, resumed) = one, other
    near = near or {"rtol": 0, "atol": 0}
    torch.testing.assert_close(dict(module.state_dict()), dict(again.state_dict()), **near)
    torch.testing.assert_close(torch.tensor(history.loss), torch.tensor(resumed.loss), **near)
    torch.testing.assert_close(
        torch.tensor(history.validation), torch.tensor(resumed.validation), **near
    )


def interrupt_at(step):
    def callback(state):
        if state.step == step:
            signal.raise_signal(signal.SIGINT)

    return callback


@pytest.mark.table(quick=2)
@pytest.mark.parametrize("step", [3, 5, 7])
@pytest.mark.parametrize("form", FORMS)
def test_runs_go_on_from_their_file(form, step, tmp_path):
    expected = run(form)
    _, stopped = run(form, tmp_path / "state", callbacks=[interrupt_at(step)])
    assert stopped.steps == step
    identical(expected, run(form, tmp_path / "state", resume=True))


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("form", FORMS)
def test_compiled_steps_choose_the_same_rows(form, monkeypatch):
    monkeypatch.setattr(Compiled, "build", lambda self, *examples, **how: self)  # replayed
    compiled = run(form, compile=True)
    identical(run(form), compiled, rtol=1e-4, atol=1e-5)
    assert compiled[1].compiled == "from step 2 on"


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("form", FORMS)
def test_a_seed_tells_all_and_another_one_something_else(form):
    identical(run(form), run(form))
    assert run(form)[1].loss != run(form, seed=3)[1].loss


@pytest.mark.table(quick=2)
@pytest.mark.parametrize("form", FORMS)
def test_a_failed_step_moves_no_cursor(form, tmp_path):
    """The step after it has the rows that it would have had."""
    failures = [3]

    def failing(state):
        choose = state.source.choose

        def chosen():
            result = choose()
            if failures and state.step == failures[0]:
                failures.pop()
                raise KeyboardInterrupt
            return result

        state.source.choose = chosen

    def once(state):
        if state.step == 1:
            failing(state)

    expected = run(form)
    _, history = run(form, tmp_path / "state", callbacks=[once])
    assert history.stopped == "interrupted" and history.steps == 3
    identical(expected, run(form, tmp_path / "state", resume=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unpaired", "labeled_shares", "stages"])
def test_two_processes_equal_one(kind):
    def losses(command):
        output = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, timeout=300, check=False
        )
        lines = [line for line in output.stdout.splitlines() if line.startswith("RESULT")]
        assert lines, output.stderr[-2000:]
        return json.loads(lines[0].removeprefix("RESULT"))

    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", WORKER, "2", kind]
    alone = losses([WORKER, "1", kind])
    assert losses(two) == pytest.approx(alone, rel=1e-5)
    assert len(alone) == 20


# -- unpaired sets


def test_every_set_is_shuffled_by_itself_and_begins_anew_where_it_ends():
    a, b = torch.arange(5.0), torch.arange(12.0)
    source = as_source(Unpaired(a, b), 4, seed=0)
    rows = [source.batch(source.choose()[0]) for _ in range(15)]
    first = torch.cat([batch[0] for batch in rows])
    second = torch.cat([batch[1] for batch in rows])
    for seen, whole in ((first, a), (second, b)):
        passes = seen.split(len(whole))
        assert all(torch.equal(each.sort().values, whole) for each in passes)
        assert not torch.equal(passes[0], passes[1])
    assert source.epoch == 5  # of the set that needs the most batches
    pairs = torch.stack([first[:60], second[:60]], 1).unique(dim=0)
    assert len(pairs) > 30  # of 60: no row of one set belongs to one of the other


def test_epochs_and_validation_are_those_of_the_longest_set():
    calls = []
    _, history = run(
        "unpaired",
        steps=None,
        epochs=2,
        validate_every=None,
        callbacks=[lambda state: calls.append(state.source.epoch)],
    )
    assert calls == [0] * 4 + [1] * 5 + [2]
    assert [step for step, _ in history.validation] == [5, 10]


@pytest.mark.slow
def test_the_maximum_is_that_of_both_samples():
    module, _ = run("unpaired", steps=600, compile=False, validation=None, validate_every=None)
    torch.testing.assert_close(module.place.detach(), A.mean(0), atol=0.2, rtol=0)
    torch.testing.assert_close((module.place + module.shift).detach(), B.mean(0), atol=0.2, rtol=0)


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("sizes", [[3, 8], [13, 30], [5, 5]])
def test_the_loss_estimates_that_of_all_rows_of_both_sets(sizes):
    """A prior over the common place counts once for all of them."""

    def model(a, b):
        place = pyro.sample("place", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(a)):
            pyro.sample("a", dist.Normal(place, 1.0).to_event(1), obs=a)
        with pyro.plate("others", len(b)):
            pyro.sample("b", dist.Normal(place - 1, 1.0).to_event(1), obs=b)

    guide = pyro.infer.autoguide.AutoDelta(model)
    data = Unpaired(A, B, batch_sizes=sizes, plates=PLATES)
    settings = {"compile": False, "verdict": False, "progress": False, "seed": 0}
    gen = Program(model, guide)
    still = {"optimizer": lambda p: torch.optim.SGD(p, 0.0)}
    history = fit(gen, data, steps=1 if sizes == [13, 30] else 300, **still, **settings)
    (place,) = (p.detach() for p in gen.parameters())
    whole = (
        dist.Normal(place, 1.0).log_prob(A).sum()
        + dist.Normal(place - 1, 1.0).log_prob(B).sum()
        + dist.Normal(0.0, 1.0).log_prob(place).sum()
    )
    losses = torch.tensor(history.loss)
    slack = 1e-4 if len(losses) == 1 else 4 * float(losses.std()) / len(losses) ** 0.5
    assert float(losses.mean()) == pytest.approx(-float(whole) / len(A), abs=slack)


def test_validation_covers_every_row_of_the_longest_set_in_order():
    a, b = torch.arange(5.0), torch.arange(12.0)
    batches = held_out(Unpaired(a, b), 4)
    assert torch.equal(torch.cat([batch[1] for batch in batches]), b)
    assert torch.equal(torch.cat([batch[0] for batch in batches]), torch.arange(12.0) % 5)


def test_rows_of_weight_zero_are_in_no_batch_and_others_as_often_as_they_weigh():
    a, b = torch.arange(4.0), torch.arange(10.0)
    weights = torch.tensor([0.0, 1.0, 3.0, 0.0])
    source = as_source(Unpaired(a, b, weights=[weights, None]), 4, seed=0)
    seen = torch.cat([source.batch(source.choose()[0])[0] for _ in range(300)])
    counts = torch.bincount(seen.long(), minlength=4).double()
    torch.testing.assert_close(counts / counts.sum(), weights.double() / 4, atol=0.02, rtol=0)


def test_a_side_may_be_a_tuple_whose_rows_stay_together():
    a = (torch.arange(6.0), torch.arange(6.0) * 10)
    source = as_source(Unpaired(a, torch.arange(9.0)), 4, seed=0)
    (x, context), b = source.batch(source.choose()[0])
    assert torch.equal(context, x * 10) and len(b) == 4

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = nn.Parameter(torch.zeros(()))

        def forward(self, a, b):
            x, context = a
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.slope * context, 1.0), obs=x)

    module = Pair()
    fit(
        Program(module),
        Unpaired(a, torch.arange(9.0)),
        steps=300,
        batch_size=4,
        optimizer=adam(0.01),
        compile=False,
        progress=False,
        verdict=False,
    )
    assert float(module.slope.detach()) == pytest.approx(0.1, abs=1e-3)


def test_arrays_of_numpy_and_batches_larger_than_a_set():
    data = Unpaired(np.zeros((3, 2), np.float32), np.ones((9, 2), np.float32))
    source = as_source(data, 5, seed=0)
    assert [tuple(part.shape) for part in source.batch(source.choose()[0])] == [(5, 2), (5, 2)]


# -- partly labeled rows


@pytest.mark.parametrize(
    "labels", [[0, None, 1], torch.tensor([0, -1, 1]), np.array([0, np.nan, 1])]
)
def test_unknown_labels_become_nan(labels):
    data = Labeled(torch.zeros(3, 1), labels, unknown=-1)
    torch.testing.assert_close(data.y.float(), torch.tensor([0, torch.nan, 1]), equal_nan=True)
    assert data.known.tolist() == [True, False, True]


def test_every_batch_has_its_share_of_labeled_rows():
    source = as_source(Labeled(X, Y, labeled_share=0.25), 8, seed=0)
    seen = set()
    for _ in range(40):
        selection, rows = source.choose()
        x, y = source.batch(selection)
        assert rows == 8 and y.isnan().logical_not().tolist() == [True] * 2 + [False] * 6
        assert torch.equal(x, X[source.index(selection)])
        seen |= set(source.index(selection).tolist())
    assert seen == set(range(60))


def test_weights_make_the_loss_that_of_all_rows():
    """The mean over many batches is the loss of the whole set, with a tenth of its labels seen."""
    module = Classifier()
    with torch.no_grad():
        module.net.weight.fill_(0.7)
    gen = Program(module)
    source = as_source(Labeled(X, Y, labeled_share=0.5), 10, seed=0, gen=gen)

    def per_row(x, y):
        rows = -dist.Normal(module.place, 1.0).to_event(1).log_prob(x)
        known = ~y.isnan()
        labels = dist.Bernoulli(logits=module.net(x)[:, 0])
        return rows - torch.where(known, labels.log_prob(y.nan_to_num()), 0.0)

    with torch.no_grad():
        values = []
        for _ in range(12 * 60):
            selection, rows = source.choose()
            loss = (source.scales(selection) * per_row(*source.batch(selection))).sum() / rows
            values.append(loss)
        expected = per_row(X, Y).mean()
    mean = torch.stack(values)
    slack = 4 * mean.std() / len(mean) ** 0.5 + 1e-3
    assert abs(mean.mean() - expected) < slack


def test_the_loss_of_a_step_has_these_weights():
    _, history = run("labeled shares", steps=1, validation=None, validate_every=None)
    torch.manual_seed(1)
    module = Classifier()
    source = as_source(FORMS["labeled shares"][1](), 6, 0, gen=Program(module))
    assert sum(source.scales(source.first())) == pytest.approx(6)
    assert source.total == 60
    factors = source.scales(source.first())
    assert factors.tolist() == pytest.approx([7 / 60 / 0.5] * 3 + [53 / 60 / 0.5] * 3)
    assert len(history.loss) == 1


def test_an_objective_without_weights_is_told_about():
    def loss(model, guide, x, y):
        return -pyro.poutine.trace(model).get_trace(x, y).log_prob_sum()

    settings = {"steps": 3, "batch_size": 6, "verdict": False, "progress": False}
    with pytest.warns(
        FitWarning, match="a share of 0.5 is labeled, in the data it is 0.117"
    ) as told:
        fit(Program(Classifier()), Labeled(X, Y, labeled_share=0.5), loss, **settings)
    assert told[0].filename == __file__


# -- rows that a function draws


def test_rows_are_drawn_once_per_pool_and_follow_from_the_seed():
    calls = []

    def make(n):
        calls.append(n)
        return torch.randn(n, 2)

    settings = {"steps": 7, "batch_size": 4, "seed": 0, "verdict": False, "progress": False}
    fit(Gaussian(Constant(4)), Pairs(make, pool=3), **settings, compile=False)
    assert calls == [4, 12, 12, 12]  # a look at a batch first


def test_rows_are_drawn_without_gradients_from_the_model_as_it_is():
    gen = Gaussian(Constant(4))
    seen = []

    def make(n):
        assert not torch.is_grad_enabled()
        seen.append(gen.net.value.detach().clone() if hasattr(gen.net, "value") else None)
        return gen().sample((n,)) + 1

    fit(gen, Pairs(make), steps=5, batch_size=8, compile=False, verdict=False, progress=False)
    assert len(seen) == 6


def test_a_pool_is_in_the_file(tmp_path):
    """What was drawn from a model that has changed since is not drawn again."""

    def made(path=None, resume=False, callbacks=()):
        torch.manual_seed(0)
        gen = Gaussian(Constant(4))
        history = fit(
            gen,
            Pairs(lambda n: gen().sample((n,)) + 1, pool=4),
            steps=10,
            batch_size=8,
            optimizer=adam(0.1),
            checkpoint=path,
            resume=resume,
            callbacks=callbacks,
            compile=False,
            verdict=False,
            progress=False,
        )
        return gen, history.loss

    gen, losses = made()
    made(tmp_path / "state", callbacks=[interrupt_at(6)])
    again, resumed = made(tmp_path / "state", resume=True)
    assert losses == resumed
    torch.testing.assert_close(dict(gen.state_dict()), dict(again.state_dict()), rtol=0, atol=0)


# -- no data


def to_a_normal(gen, draws=64):
    target = dist.Normal(torch.tensor([1.0, -2.0]), 0.5).to_event(1)

    def loss(model, guide):
        q = gen()
        x = q.rsample((draws,))
        return (q.log_prob(x) - target.log_prob(x)).mean()

    return loss


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("compile", [False, True])
def test_an_objective_without_data_trains_validates_and_is_judged(compile, monkeypatch):
    monkeypatch.setattr(Compiled, "build", lambda self, *examples, **how: self)
    gen = Gaussian(Constant(4))
    history = fit(
        gen,
        None,
        to_a_normal(gen),
        steps=400,
        optimizer=adam(0.05),
        validation=(),
        validate_every=20,
        seed=0,
        compile=compile,
        progress=False,
    )
    torch.testing.assert_close(gen().mean, torch.tensor([1.0, -2.0]), atol=0.05, rtol=0)
    assert len(history.validation) == 20 and history.validation[-1][1] < 0.01
    assert history.verdict is not None
    assert history.compiled == ("from step 2 on" if compile else "")


def test_an_objective_without_data_is_stopped_by_patience_and_goes_on_from_its_file(tmp_path):
    def made(path=None, resume=False, callbacks=()):
        torch.manual_seed(0)
        gen = Gaussian(Constant(4))
        return gen, fit(
            gen,
            None,
            to_a_normal(gen),
            steps=400,
            optimizer=adam(0.2),
            validation=(),
            validate_every=5,
            patience=2,
            checkpoint=path,
            resume=resume,
            callbacks=callbacks,
            seed=0,
            compile=False,
            verdict=False,
            progress=False,
        )

    gen, history = made()
    assert "no improvement" in history.stopped
    made(tmp_path / "state", callbacks=[interrupt_at(12)])
    again, resumed = made(tmp_path / "state", resume=True)
    assert resumed.loss == history.loss and resumed.validation == history.validation
    torch.testing.assert_close(dict(gen.state_dict()), dict(again.state_dict()), rtol=0, atol=0)


# -- numbers of rows


class Effects(nn.Module):
    """A place for each row, looked up by its number, which is data like any other."""

    def __init__(self, rows):
        super().__init__()
        self.places = nn.Embedding(rows, 2)

    def forward(self, rows, x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.places(rows), 1.0).to_event(1), obs=x)


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("compile", [False, True])
def test_numbers_of_rows_are_one_more_argument(compile, monkeypatch):
    monkeypatch.setattr(Compiled, "build", lambda self, *examples, **how: self)
    torch.manual_seed(0)
    module = Effects(len(X))
    history = fit(
        Program(module),
        (torch.arange(len(X)), X),
        steps=300,
        batch_size=20,
        optimizer=lambda parameters: torch.optim.SGD(parameters, 5.0),
        compile=compile,
        seed=0,
        verdict=False,
        progress=False,
    )
    torch.testing.assert_close(module.places.weight.detach(), X, atol=0.05, rtol=0)
    assert bool(history.compiled) == compile


BY_NAME = {
    "default": None,
    "of the library": ELBO(),
    "of Pyro": pyro.infer.Trace_ELBO(),
    "a function": lambda model, guide, *batch: ELBO()(model, guide)(*batch),
    "a function of one argument": lambda model, guide, x: ELBO()(model, guide)(x),
}


@pytest.mark.parametrize("name", BY_NAME)
def test_arguments_by_name_are_one_argument_of_an_objective(name):
    """The loss is the same as by place, for training and for validation rows."""
    histories = []
    for given in ({"x": A}, A):
        place = nn.Parameter(torch.zeros(2))

        class Normal(nn.Module):
            def __init__(self, place):
                super().__init__()
                self.place = place

            def forward(self, x):
                with pyro.plate("data", len(x)):
                    pyro.sample("x", dist.Normal(self.place, 1.0).to_event(1), obs=x)

        options = {"steps": 3, "validate_every": 1, "compile": False, "seed": 0, "verdict": False}
        history = fit(
            Program(Normal(place)),
            given,
            BY_NAME[name],
            validation=given,
            progress=False,
            **options,
        )
        histories.append((history.loss, history.validation))
    assert histories[0] == histories[1]


# -- what is refused


class Changing:
    """Rows, and at last rows and contexts."""

    def __init__(self):
        self.calls = 0

    def __call__(self, n):
        self.calls += 1
        rows = torch.randn(n, 2)
        return rows if self.calls < 4 else (rows, rows)


class WithoutData(Objective):
    """Pulls the model's draws to zero."""

    def differentiable_loss(self, model, guide):
        return model().square().mean()


GAUSSIAN = lambda: Gaussian(Constant(4))  # noqa: E731
REFUSED = {
    "one set": (lambda: Unpaired(A), TypeError, "two sets"),
    "sizes of other sets": (lambda: Unpaired(A, B, batch_sizes=[1]), ValueError, "each of 2 sets"),
    "no rows": (lambda: run_on(Unpaired(A, B[:0])), ValueError, "set 2: expected data"),
    "parts of other lengths": (
        lambda: run_on(Unpaired((A, A[:3]), B)),
        ValueError,
        "parts of set 1",
    ),
    "weights of fit": (
        lambda: run_on(Unpaired(A, B), weights=torch.ones(13)),
        ValueError,
        "set by set",
    ),
    "weights of other rows": (
        lambda: run_on(Unpaired(A, B, weights=[torch.ones(3), None])),
        ValueError,
        "weights of shape \\(13,\\)",
    ),
    "a plate of a further set": (
        lambda: run_on(Unpaired(A, B, batch_sizes=[4, 5])),
        ValueError,
        "plate 'others' of 5 rows; name them: Unpaired",
    ),
    "infinite numbers": (lambda: run_on(Unpaired(A, B / 0)), ValueError, "finite numbers"),
    "labels of other rows": (lambda: Labeled(X, Y[:3]), ValueError, "each of 60 rows, got 3"),
    "all labels": (
        lambda: run_on(Labeled(X, X[:, 0], labeled_share=0.5), Classifier),
        ValueError,
        "got 60 and 0; drop labeled_share",
    ),
    "weights beside shares": (
        lambda: run_on(Labeled(X, Y, labeled_share=0.5), Classifier, weights=torch.ones(60)),
        ValueError,
        "no weights",
    ),
    "a share of one row": (
        lambda: run_on(Labeled(X, Y, labeled_share=0.5), Classifier, batch_size=1),
        ValueError,
        "give 2 or more",
    ),
    "another number of rows": (
        lambda: fit(GAUSSIAN(), Pairs(lambda n: torch.randn(n + 1, 2)), progress=False),
        ValueError,
        "as many rows as it is asked for",
    ),
    "epochs without end": (
        lambda: fit(GAUSSIAN(), Pairs(lambda n: torch.randn(n, 2)), epochs=3, progress=False),
        ValueError,
        "tell how many rows make an epoch",
    ),
    "other arguments than at first": (
        lambda: fit(GAUSSIAN(), Pairs(Changing()), steps=9, batch_size=5, progress=False),
        ValueError,
        "1 tensors, got 2 or others; let it give the same arguments",
    ),
    "named arguments of several sets": (
        lambda: run_on(Unpaired(A, B, plates=PLATES), rows=["a"]),
        ValueError,
        "rows in memory.*got Unpaired; leave rows out",
    ),
    "named arguments of batches": (
        lambda: fit(GAUSSIAN(), [X[:9], X[9:]], rows=["x"], steps=2, progress=False),
        ValueError,
        "rows in memory.*got list; leave rows out",
    ),
    "data for an objective without": (
        lambda: fit(GAUSSIAN(), X, WithoutData(), steps=2, progress=False),
        TypeError,
        r"arguments of the loss \(model, guide\), got 3",
    ),
    "validation rows for an objective without": (
        lambda: fit(GAUSSIAN(), None, WithoutData(), validation=X, steps=2, progress=False),
        TypeError,
        r"arguments of the loss \(model, guide\), got 3 .*; give validation rows as the data are",
    ),
    "no function": (lambda: Pairs(3), TypeError, "function make"),
    "a batch size without data": (
        lambda: fit(gen := GAUSSIAN(), None, to_a_normal(gen), batch_size=4, progress=False),
        ValueError,
        "no batch_size without data",
    ),
}


def run_on(data, kind=Shift, **settings):
    return fit(Program(kind()), data, steps=2, progress=False, **settings)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_with_what_to_do(name):
    call, kind, text = REFUSED[name]
    with pytest.raises(kind, match=text):
        call()


def test_other_sets_than_those_of_the_file_are_refused(tmp_path):
    run("unpaired", tmp_path / "state")
    original = FORMS["unpaired"]
    FORMS["unpaired"] = (Shift, lambda: Unpaired(A, B + 1, plates=PLATES))
    try:
        with pytest.raises(CheckpointError, match="got others of as many rows"):
            run("unpaired", tmp_path / "state", resume=True, validation=None, validate_every=None)
    finally:
        FORMS["unpaired"] = original


@pytest.mark.parametrize(
    "other",
    [
        lambda: Labeled(X, Y),
        lambda: Pairs(lambda n: (X[:n], Y[:n]), rows=60),
    ],
    ids=["without shares", "drawn"],
)
def test_another_form_than_that_of_the_file_is_refused(other, tmp_path):
    """The same rows: what is kept of the place among them is of another kind."""
    options = {"steps": 3, "batch_size": 10, "progress": False, "checkpoint": tmp_path / "state"}
    fit(Program(Classifier()), Labeled(X, Y, labeled_share=0.3), **options)
    with pytest.raises(CheckpointError, match=r"data of the form that .* pass that form"):
        fit(Program(Classifier()), other(), resume=True, **options)


def test_an_order_goes_on_from_any_place():
    order = Order(torch.arange(7), seed=3)
    order.take(10)
    place = order.epoch, order.position
    following = order.take(12)
    again = Order(torch.arange(7), seed=0)
    again.seek(3, *place)
    assert torch.equal(following, again.take(12))


def test_requests_are_what_sources_are_made_of():
    source = Unpaired(A, B).source(Request(None, batch_size=4, world=2, rank=1))
    other = Unpaired(A, B).source(Request(None, batch_size=4, world=2, rank=0))
    whole = Unpaired(A, B).source(Request(None, batch_size=8))
    pieces = [each.choose()[0] for each in (other, source)]
    expected, rows = whole.choose()
    assert rows == 8
    for place in (0, 1):
        both = torch.stack([piece[place] for piece in pieces], 1).flatten()
        assert torch.equal(both, expected[place])
