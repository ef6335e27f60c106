"""Lines of progress, logs and pictures of runs: what they say, when, and that they change nothing."""

import csv
import io
import sys
import tempfile
import threading
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from noisy_run import ROWS, STEPS, identical, run
from torch import nn

import probgen as pg
from probgen.core.module import DistributionModule
from probgen.core.progress import Progress
from probgen.energy import annealed_importance, reverse_annealing
from probgen.train.history import FitWarning
from probgen.train.run import NonFiniteLoss


class Clock:
    """Seconds that pass when somebody says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    encoding = "utf-8"

    def isatty(self):
        return True

    @property
    def screen(self):
        """What stands on it: carriage returns begin the line anew."""
        lines = []
        for line in self.getvalue().split("\n"):
            cells = []
            for piece in line.split("\r"):
                cells[: len(piece)] = piece
            lines.append("".join(cells).rstrip())
        return lines


@pytest.fixture
def clock():
    return Clock()


def passed(progress, clock, steps, seconds=1.0, said=None):
    for _ in range(steps):
        clock.now += seconds
        progress.advance(1, said)


# -- progress


def test_a_terminal_has_one_line_that_is_renewed(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    with Progress("fit", 40, stream=stream, clock=clock) as progress:
        passed(progress, clock, 10, said=lambda: f"loss {progress.done}")
        assert stream.screen == [
            "fit:  25 % █████░░░░░░░░░░░░░░░ 10 of 40 steps, 1/s, 0:30 left, loss 10"
        ]
    assert len(stream.screen) == 2 and stream.screen[1] == ""
    assert "in 0:10, loss 10" in stream.screen[0]


def test_a_terminal_is_not_written_to_more_often_than_it_can_be_read(clock):
    stream = Terminal()
    with Progress("fit", stream=stream, clock=clock) as progress:
        passed(progress, clock, 400, seconds=0.001)
        assert not stream.getvalue()  # what is over soon shows nothing
        passed(progress, clock, 1600, seconds=0.001)
        assert 10 <= stream.getvalue().count("\r") <= 20
    assert stream.screen[0].startswith("fit: 2,000 steps, 1,000/s, in 0:02")


WIDE = {  # the bar gives way first
    70: "fit:   5 % █░░░░░░░░░░░░░░░░░░░ 2 of 40 steps, 1/s, 0:38 left",
    50: "fit:   5 % ░░░░░░░░ 2 of 40 steps, 1/s, 0:38 left",
    42: "fit:   5 % 2 of 40 steps, 1/s, 0:38 left",
    30: "fit:   5 % 2 of 40 steps, ...",
}


@pytest.mark.parametrize("columns", WIDE)
def test_a_line_is_as_wide_as_the_terminal(columns, clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    with Progress("fit", 40, stream=stream, clock=clock) as progress:
        passed(progress, clock, 2)
        assert stream.screen == [WIDE[columns]] and len(WIDE[columns]) < columns


def test_a_terminal_of_few_letters_has_a_bar_too(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    stream.encoding = "ascii"
    with Progress("fit", 4, stream=stream, clock=clock) as progress:
        passed(progress, clock, 2)
    stream.getvalue().encode("ascii")
    assert "##########.........." in stream.getvalue()


ASKED = [  # what is asked, whether lines are the default, seconds between them
    (None, True, 30),
    (None, False, None),
    (True, False, 30),
    (np.True_, False, 30),
    (5, False, 5),
    (4.0, True, 4),
    (False, True, None),
    (np.False_, True, None),
]


@pytest.mark.parametrize(("asked", "lines", "seconds"), ASKED)
def test_elsewhere_there_is_a_line_now_and_then(asked, lines, seconds, clock):
    stream = io.StringIO()
    with Progress("fit", 120, asked=asked, lines=lines, stream=stream, clock=clock) as progress:
        passed(progress, clock, 60)
    written = stream.getvalue().splitlines()
    if seconds is None:
        assert not written
        return
    assert len(written) == 60 / seconds + 1
    assert written[0].startswith(f"fit: {seconds} of 120 steps (")
    assert written[-1] == "fit: 60 of 120 steps (50 %), 1/s, in 1:00"
    assert "\r" not in stream.getvalue()


def test_what_is_shorter_than_that_says_nothing(clock):
    stream = io.StringIO()
    with Progress("fit", 120, lines=True, stream=stream, clock=clock) as progress:
        passed(progress, clock, 29)
    assert not stream.getvalue()


def test_the_time_left_is_by_the_rate_of_late(clock):
    stream = io.StringIO()
    with Progress("fit", 200, asked=20, stream=stream, clock=clock) as progress:
        passed(progress, clock, 2, seconds=10)  # while it compiles
        passed(progress, clock, 80, seconds=0.5)
    before, *_, last = stream.getvalue().splitlines()[:-1]
    assert "10 s each" not in before and "0.1/s, 33:00 left" in before
    assert "2/s, 0:" in last


def test_what_was_done_before_tells_nothing_of_the_rate(clock):
    stream = io.StringIO()
    with Progress("fit", 1000, asked=10, done=900, stream=stream, clock=clock) as progress:
        passed(progress, clock, 10)
        progress.skip(990)
        passed(progress, clock, 10)
    assert stream.getvalue().splitlines() == [
        "fit: 910 of 1,000 steps (91 %), 1/s, 1:30 left",
        "fit: 1,000 of 1,000 steps (100 %), 1/s, 0:00 left",
        "fit: 1,000 of 1,000 steps (100 %), 1/s, in 0:20",
    ]


def test_what_runs_inside_shows_no_line_of_its_own(clock):
    stream = Terminal()
    for outer in (None, False):
        with Progress("fit", asked=outer, stream=stream, clock=clock):
            inner = Progress("log_likelihood", asked=True, stream=stream, clock=clock)
            with inner:
                passed(inner, clock, 10)
    assert "log_likelihood" not in stream.getvalue()
    with Progress("log_likelihood", stream=stream, clock=clock) as after:
        passed(after, clock, 10)
    assert "log_likelihood" in stream.getvalue()


def test_two_threads_share_the_line_of_a_terminal(clock):
    stream = Terminal()
    with Progress("one", stream=stream, clock=clock) as progress:
        passed(progress, clock, 2)

        def other():
            with Progress("two", stream=stream, clock=clock) as second:
                passed(second, clock, 2)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "two" not in stream.getvalue()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("closed")])
def test_a_stream_that_fails_ends_nothing(error, clock):
    class Full(Terminal):
        def write(self, text):
            raise error

    with Progress("fit", stream=Full(), clock=clock) as progress:
        passed(progress, clock, 3)
    assert progress.done == 3


def gaussian():
    return pg.heads.Gaussian(pg.nn.Constant(4))


def mu_of(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def vae():
    return pg.VAE(
        pg.standard_normal(2),
        pg.heads.Gaussian(pg.nn.MLP(2, [4], 4)),
        pg.heads.Gaussian(pg.nn.MLP(2, [4], 4)),
    )


X = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
HOLES = torch.where(torch.tensor([True, False]), X, torch.nan)[:5]
BITS = (X[:5] > 0).float()
CHAINS = {"draws": 4, "tune": 4, "chains": 2, "sampler": pg.PyroNUTS()}
LASTING = {
    "fit": lambda **options: pg.fit(gaussian(), X, steps=20, verdict=False, **options),
    "em": lambda **options: pg.em(
        pg.GaussianMixture(2, dims=2), X, max_iter=20, tol=0.0, n_init=2, **options
    ),
    "mcmc": lambda **options: pg.mcmc(mu_of, X[:, 0], **CHAINS, **options),
    "log_likelihood": lambda **options: pg.log_likelihood(vae(), X, particles=8, **options),
    "impute": lambda **options: pg.impute(vae(), HOLES, num_steps=20, **options),
    "annealed_importance": lambda **options: annealed_importance(
        pg.RBM(pg.energy.BernoulliUnits(2), hidden=2), temperatures=20, chains=5, **options
    ),
    "reverse_annealing": lambda **options: reverse_annealing(
        pg.RBM(pg.energy.BernoulliUnits(2), hidden=2), BITS, temperatures=20, chains=5, **options
    ),
    "simulation_based_calibration": lambda **options: pg.diagnostics.simulation_based_calibration(
        mu_of, X[:9, 0], sims=3, draws=3, thin=1, tune=4, sampler=pg.PyroNUTS(), **options
    ),
}


def reported(**options):
    with tempfile.TemporaryDirectory() as folder:
        pg.report(gaussian(), X[:20], f"{folder}/page.html", **options)


LASTING["report"] = reported
SAYS = {"fit": "loss", "em": "nats a row", "mcmc": "chain 2", "log_likelihood": "mean"}


@pytest.mark.table(quick=4)
@pytest.mark.parametrize("name", LASTING)
def test_everything_that_lasts_counts_to_its_end(name, capsys):
    LASTING[name](progress=1e-9, seed=0)
    found = capsys.readouterr()
    last = found.err.splitlines()[-1]
    done, total = last.removeprefix(f"{name}: ").split(" (")[0].split(" of ")
    assert done == total.split()[0] and "(100 %)" in last and " in 0:" in last
    assert SAYS.get(name, "") in last
    assert not found.out


@pytest.mark.table(quick=2)
@pytest.mark.parametrize("name", LASTING)
def test_it_says_nothing_where_it_is_short_or_not_asked(name, capsys):
    for asked in (None, False):
        LASTING[name](progress=asked, seed=0)
    found = capsys.readouterr()
    assert not found.err and not found.out


@pytest.mark.slow
def test_a_fit_has_one_line_of_its_own(monkeypatch):
    monkeypatch.setattr("probgen.core.progress.WAIT", 0.0)
    for asked in (None, False):
        monkeypatch.setattr("sys.stderr", Terminal())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pg.fit(vae(), X, steps=4, progress=asked, compile=False)
        lines = sys.stderr.screen
        assert lines == [""] if asked is False else len(lines) == 2
        assert "fit: 100 %" in lines[0] or asked is False


@pytest.mark.table(quick=2)
@pytest.mark.parametrize("name", LASTING)
@pytest.mark.parametrize("wrong", ["bar", 0, -1.0, float("nan")])
def test_what_is_no_progress_is_refused(name, wrong):
    with pytest.raises((TypeError, ValueError), match="expected progress to be True, False, None"):
        LASTING[name](progress=wrong)


def test_gibbs_sweeps_are_counted(capsys):
    made = pg.MADE(2, [4], pg.heads.Bernoulli())
    holes = torch.where(torch.tensor([False, True]), BITS, torch.nan)
    pg.impute(made, holes, num_steps=7, progress=1e-9)
    assert "impute: 7 of 7 steps (100 %)" in capsys.readouterr().err.splitlines()[-1]


def test_stages_have_a_line_each(capsys):
    stages = [pg.train.Stage(steps=4), pg.train.Stage(steps=6)]
    pg.fit(gaussian(), X, stages=stages, progress=1e-9, verdict=False)
    told = capsys.readouterr().err.splitlines()
    assert any(line.startswith("fit, stage 1: 4 of 4 steps") for line in told)
    assert any(line.startswith("fit, stage 2: 10 of 10 steps") for line in told)


# -- logs


class Log:
    """A logger of one's own: what it was given."""

    def __init__(self, fails=()):
        self.lines, self.settings, self.saved, self.fails = [], [], 0, fails

    def log_metrics(self, metrics, step=None):
        if step in self.fails:
            raise ConnectionError("the server is gone")
        self.lines.append((step, metrics))

    def log_hyperparams(self, params):
        self.settings.append(params)

    def save(self):
        self.saved += 1

    @property
    def steps(self):
        return [step for step, _ in self.lines]


def same(metrics, history, step):
    """Whether a line of a log is what the history has of the step."""
    assert metrics["loss"] == history.loss[step - 1]
    assert metrics["gradient_norm"] == history.gradient_norm[step - 1]
    assert metrics["learning_rate"] == history.learning_rates[0][step - 1]
    assert {k.removeprefix("parts/") for k in metrics if k.startswith("parts/")} == {*history.parts}
    for name, values in history.parts.items():
        assert metrics[f"parts/{name}"] == values[step - 1]
    assert metrics.get("validation") == dict(history.validation).get(step)
    assert 0 < metrics["seconds"] <= history.seconds


def test_a_logger_gets_what_the_history_has():
    log = Log()
    options = {"steps": 25, "validation": X[:20], "validate_every": 6, "clip": 9.0}
    history = pg.fit(vae(), X, logger=log, log_every=10, verdict=False, seed=3, **options)
    assert log.steps == [1, 6, 10, 12, 18, 20, 24, 25]
    for step, metrics in log.lines:
        same(metrics, history, step)
    assert log.saved == 1
    (settings,) = log.settings
    expected = {"model": "VAE", "objective": "ELBO", "rows": 100, "batch_size": 100, "clip": 9.0}
    expected |= {"optimizer": "Adam", "learning_rate": 1e-3, "steps": 25, "seed": 3}
    assert expected.items() <= settings.items() and None not in settings.values()


def test_logging_changes_nothing():
    identical(run(), run(logger=[Log(), Log()], log_every=1))


def test_groups_of_parameters_have_rates_of_their_own():
    critic = pg.nn.MLP(2, [4], 1)
    gan = pg.GAN(pg.nn.MLP(2, [4], 2), pg.standard_normal(2))
    log = Log()
    optimizer = {"model": pg.train.adam(1e-4), "critic": pg.train.adam(4e-4)}
    objective = pg.objectives.Adversarial(critic)
    pg.fit(gan, X, objective, steps=2, optimizer=optimizer, logger=log, verdict=False)
    last = log.lines[-1][1]
    assert last["learning_rate/model"] == 1e-4 and last["learning_rate/critic"] == 4e-4
    assert {"parts/critic", "parts/generator"} <= last.keys()


def test_a_run_that_goes_on_goes_on_counting(tmp_path):
    first, second = Log(), Log()
    run(tmp_path / "state", steps=5, logger=first, log_every=2)
    run(tmp_path / "state", resume=True, logger=second, log_every=2)
    assert first.steps == [1, 2, 3, 4, 5]  # 3: a validation
    assert second.steps == [6, 8, 9, 10, 12]
    whole = Log()
    run(logger=whole, log_every=2)
    for step, metrics in second.lines:
        expected = dict(whole.lines)[step]
        assert {**metrics, "seconds": 0} == {**expected, "seconds": 0}


def test_stages_go_on_counting():
    log = Log()
    stages = [pg.train.Stage(steps=3), pg.train.Stage(steps=4)]
    pg.fit(gaussian(), X, stages=stages, logger=log, log_every=5, verdict=False)
    assert log.steps == [1, 3, 5, 7] and len(log.settings) == 1


def test_the_last_figures_are_handed_out_when_a_run_fails_or_is_interrupted():
    import signal

    def stop(run):
        if run.step == 7:
            signal.raise_signal(signal.SIGINT)

    log = Log()
    with pytest.warns(FitWarning, match="interrupted at step 7"):
        run(logger=log, callbacks=[stop])
    assert log.steps[-1] == 7 and log.saved == 1

    x = ROWS.clone()

    def spoil(run):
        if run.step == 7:
            x[:] = torch.nan

    log = Log()
    with pytest.raises(NonFiniteLoss):
        run(data=x, logger=log, callbacks=[spoil])
    assert log.steps[-1] == 7 and log.saved == 1


def test_a_logger_that_fails_does_not_end_training():
    broken, whole = Log(fails=(4,)), Log()
    with pytest.warns(FitWarning, match=r"Log.log_metrics failed after step 4 \(ConnectionError"):
        _, history = run(logger=[broken, whole], log_every=4)
    assert history.steps == STEPS
    assert broken.steps == [1, 3] and whole.steps == [1, 3, 4, 6, 8, 9, 12]


WRONG = ["logs", 3, io.StringIO(), [Log(), "logs"], Log, {"a": Log()}]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: type(wrong).__name__)
def test_what_takes_no_numbers_is_refused(wrong):
    with pytest.raises(TypeError, match=r"expected .*got .*; (pass a logger such as|call it)"):
        pg.fit(gaussian(), X, logger=wrong, steps=1)


def test_a_file_of_commas_has_every_line(tmp_path):
    from lightning_fabric.loggers import CSVLogger

    logger = CSVLogger(tmp_path, name="run", flush_logs_every_n_steps=1000)
    history = pg.fit(
        vae(),
        X,
        steps=30,
        logger=logger,
        log_every=10,
        validation=X,
        validate_every=15,
        seed=0,
        verdict=False,
    )
    with (tmp_path / "run" / "version_0" / "metrics.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [int(line["step"]) for line in lines] == [1, 10, 15, 20, 30]
    for line in lines:
        step = int(line["step"])
        assert float(line["loss"]) == history.loss[step - 1]
        assert float(line["parts/kl"]) == history.parts["kl"][step - 1]
    assert [bool(line["validation"]) for line in lines] == [False, False, True, False, True]


def test_tensorboard_has_the_curves_and_the_pictures(tmp_path):
    pytest.importorskip("tensorboard")
    from lightning_fabric.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    pictures = pg.train.snapshots(scatter, logger, every=20)
    history = pg.fit(
        gaussian(), X, steps=40, logger=logger, log_every=10, callbacks=[pictures], verdict=False
    )
    events = EventAccumulator(logger.log_dir).Reload()
    losses = events.Scalars("loss")
    assert [event.step for event in losses] == [1, 10, 20, 30, 40]
    torch.testing.assert_close(
        torch.tensor([event.value for event in losses]),
        torch.tensor([history.loss[event.step - 1] for event in losses]),
    )
    assert [event.step for event in events.Images("samples")] == [20, 40]


# -- compiled steps


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("every", [7, 50])
def test_steps_stay_compiled_and_in_blocks(replayed, every):
    log, seen = Log(), []
    options = {"steps": 200, "batch_size": 25, "compile": True, "seed": 0, "verdict": False}
    note = pg.train.Every(every, lambda run: seen.append((run.step, run.history.loss[-1])))
    history = pg.fit(gaussian(), X, logger=log, log_every=every, callbacks=[note], **options)
    assert history.compiled.startswith("from step 2")
    assert log.steps == sorted({1, 200, *range(every, 201, every)})
    assert seen == [(step, history.loss[step - 1]) for step in range(every, 201, every)]
    for step, metrics in log.lines:
        assert metrics["loss"] == history.loss[step - 1]
    assert history.loss == pg.fit(gaussian(), X, **options).loss


def test_functions_that_are_given_as_they_are_are_told_of_every(recwarn):
    pg.fit(gaussian(), X, steps=2, callbacks=[lambda run: None], verdict=False)
    assert any("probgen.train.Every(50, callback)" in str(each.message) for each in recwarn)


# -- pictures


def scatter(gen):
    return plt.subplots()[1].scatter(*gen().sample((20,)).T).axes


class Experiment:
    """What TensorBoard's writer has of pictures, by one of its two methods."""

    def __init__(self, method):
        self.given = []
        setattr(self, method, self._take)

    def _take(self, tag, image, step, **how):
        self.given.append((tag, image, step, how))


class Images(Log):
    def __init__(self, method):
        super().__init__()
        self.experiment = Experiment(method)


class Watched(DistributionModule):
    """Notes the mode in which it is drawn from."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(2))
        self.modes = []

    def forward(self, context=None):
        return dist.Normal(self.loc, 1.0).to_event(1)


def test_pictures_are_drawn_at_intervals_and_change_nothing(tmp_path):
    drawn = []

    def draw(gen):
        assert not gen.training and not torch.is_grad_enabled()
        drawn.append(gen().sample((3,)))
        return plt.subplots()[0]

    before = plt.get_fignums()
    images, figures = Images("add_image"), Images("add_figure")
    to = [tmp_path / "pictures", images, figures]
    pictures = pg.train.snapshots(draw, to, every=5, name="draws")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        identical(run(), run(callbacks=[pictures]))
    assert len(drawn) == 2 and plt.get_fignums() == before
    files = sorted(file.name for file in (tmp_path / "pictures").iterdir())
    assert files == ["draws_000005.png", "draws_000010.png"]
    (tag, pixels, step, how), _ = images.experiment.given
    assert (tag, step, how) == ("draws", 5, {"dataformats": "HWC"}) and pixels.shape[2] == 3
    assert [given[2] for given in figures.experiment.given] == [5, 10]


def test_pictures_of_the_same_weights_are_the_same():
    drawn = []

    def draw(gen):
        drawn.append(gen().sample((3,)))
        return plt.figure()

    options = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0), "steps": 4, "verdict": False}
    pictures = pg.train.snapshots(draw, Images("add_figure"), every=2, seed=7)
    pg.fit(gaussian(), X, callbacks=[pictures], **options)
    assert torch.equal(*drawn)


def test_pictures_show_the_average_of_the_weights():
    seen = []

    def draw(gen):
        seen.append(gen.loc.detach().clone())
        return plt.figure()

    gen = Watched()
    pictures = pg.train.snapshots(draw, Images("add_figure"), every=4)
    pg.fit(
        gen,
        X + 9,
        steps=4,
        ema=0.9,
        optimizer=pg.train.adam(0.1),
        callbacks=[pictures],
        verdict=False,
    )
    torch.testing.assert_close(seen[0], gen.loc.detach())  # what the run leaves behind


def test_a_picture_that_fails_does_not_end_training():
    pictures = pg.train.snapshots(lambda gen: 3, Images("add_figure"), every=2)
    with pytest.warns(FitWarning, match="picture 'samples' failed after step 2.*axes or a figure"):
        history = pg.fit(gaussian(), X, steps=6, callbacks=[pictures], verdict=False)
    assert history.steps == 6


@pytest.mark.parametrize("wrong", [3, Log(), Images, [Log()]])
def test_what_takes_no_pictures_is_refused(wrong):
    with pytest.raises(TypeError, match=r"expected .*got .*;"):
        pg.train.snapshots(scatter, wrong)
