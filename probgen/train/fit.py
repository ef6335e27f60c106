"""One loop for every model and every objective."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.entry import as_rows
from probgen.core.keywords import explained
from probgen.core.kinds import without_guide
from probgen.core.modes import inference_mode_of
from probgen.core.module import GenerativeModel
from probgen.core.ownership import dense
from probgen.core.program import Program
from probgen.core.progress import Reported, quietly
from probgen.core.rows import row_layout
from probgen.core.runtime import local_parameters, validation
from probgen.core.training_record import keep_record
from probgen.core.turns import own_random_state, training
from probgen.diagnostics.verdict import verdict as judge
from probgen.libraries import load
from probgen.objectives import default_objective
from probgen.objectives.base import Prepared
from probgen.train.accumulation import AccumulatedSource
from probgen.train.adapters import (
    as_objective,
    check_loss_takes,
    one_precision,
    players_of,
    teachers,
    trainable,
    weighs_rows,
)
from probgen.train.agreement import BEFORE, END, Agreement, agreeing, told_once
from probgen.train.alike import (
    SHARED_OUT,
    facts_of,
    facts_of_parameters,
    settings_in,
    tell_same_rows,
)
from probgen.train.arguments import as_scheduler, check_asked, check_fabric
from probgen.train.callbacks import Callback, each_step
from probgen.train.checkpoint import CheckpointError, written_alone
from probgen.train.compiled.policy import Choice, Engine
from probgen.train.data import Source, as_source, held_out
from probgen.train.history import INTERRUPTED, FitWarning, History
from probgen.train.interrupted import how_to_go_on
from probgen.train.loggers import EVERY, Logger, Record
from probgen.train.loop import RunPlan, train
from probgen.train.optimizers import Optimizer, as_optimizer, optimizer_of_players
from probgen.train.pairs import PairStream
from probgen.train.pools import APART
from probgen.train.processes import check_processes
from probgen.train.recorded import record_of
from probgen.train.rehearsal import RowsOf, check_held_out, check_observes, rehearsed
from probgen.train.rows import Batch
from probgen.train.run import Run, left_whole
from probgen.train.settings import fingerprint_of
from probgen.train.sharding import check_stages
from probgen.train.sizes import check_sizes
from probgen.train.stages import Left, Stage, Standing, in_order, keeps_average, told
from probgen.train.state import OnDisk
from probgen.train.stream import BatchStream
from probgen.train.streamed import few
from probgen.train.transaction import random_state, set_random_state
from probgen.train.watch import GradientWatch, holds_gradients
from probgen.train.weighted_verdict import judged_rows

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Scheduler = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


def adam(lr: float = 1e-3, **options: Any) -> Optimizer:
    """A factory of fused Adam optimizers, for ``fit(..., optimizer=adam(3e-4))``.

    Source: Kingma, Ba (2015), https://arxiv.org/abs/1412.6980. ``options`` go to
    :class:`torch.optim.Adam`.

    >>> adam(0.01)([nn.Parameter(torch.zeros(2))]).param_groups[0]["lr"]
    0.01
    """
    checks.positive(lr=lr)
    return lambda parameters: torch.optim.Adam(parameters, lr=lr, **{"fused": True, **options})


@explained
def fit(
    gen: GenerativeModel,
    data: Any = None,
    objective: nn.Module | None = None,
    *,
    stages: Sequence[Stage] | None = None,
    weights: Tensor | Sequence[float] | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    drop_last: bool = False,
    accumulate: int | None = None,
    rows: Sequence[str] | None = None,
    optimizer: Optimizer | Mapping[str, Optimizer] | None = None,
    scheduler: Scheduler | None = None,
    clip: float | None = None,
    ema: float | None = None,
    validation: Any = None,
    validate_every: int | None = None,
    patience: int | None = None,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    compile: Choice = "auto",
    fabric: Fabric | None = None,
    progress: Reported = None,
    logger: Logger | Sequence[Logger] | None = None,
    log_every: int | None = None,
    callbacks: Sequence[Callback] = (),
    seed: int | None = None,
    verdict: bool = True,
) -> History:
    r"""Trains any model with any objective by stochastic gradients.

    Minimizes the objective per row of data.

    For the default objective that is SVI, the maximization of the evidence lower bound

    .. math:: \tfrac1N \Big( \sum_i \mathbb E_q[\log p(x_i, z_i \mid \theta) - \log q(z_i \mid x_i)]
              - \mathrm{KL}(q(\theta) \| p(\theta)) \Big),

    and maximum likelihood for models without latents. Programs know nothing of mini-batches: sites
    outside the data plate are scaled by B/N.

    Parameters
    ----------
    gen : GenerativeModel
        A family, or ``Program(model, guide)`` for your own Pyro pair.
    data
        A tensor, array or DataFrame of rows, or a tuple of arguments (``(x, context)``, or whatever
        a Program takes), or a dict of those by name: kept in memory and indexed directly. Or a
        Dataset, a DataLoader, or an iterable of batches. Data larger than memory:
        :mod:`probgen.streams`. Data that are not one table:
        :class:`probgen.train.Unpaired`, :class:`probgen.train.Labeled`, and
        :class:`probgen.train.Pairs` that a function draws. ``None`` for programs without arguments,
        and for an objective that needs no data (a reverse divergence to a given density).
        NaN = missing. A family of sequences takes a list of them, ``(T_b, *entry)`` each.
    objective : Objective, optional
        Default: :class:`ELBO`, or :class:`EnumeratedELBO` for programs with enumerated sites, or
        :class:`Denoising` for flow matching, whose density costs the solution of an equation.
        Pyro's own objectives work where they have a ``differentiable_loss``, and so does a function
        ``loss(model, guide, *arguments)``.
    stages : sequence of Stage, optional
        Several stages, one after the other in one run with one history and one checkpoint, each with
        data, objective and settings of its own (:class:`probgen.train.Stage`); what is given to
        ``fit`` holds for all stages that do not say otherwise.
    weights : Tensor, array or sequence of float, optional
        How often each row counts, ``(N,)``, not negative: 2 is the same as the row given twice, 0 as
        the row left out. The sum of the weights is the number of rows that count, against a prior of
        global latents too, and the loss stays one per row:
        :math:`\sum_i w_i \ell_i / \sum_i w_i`. Where the objective is a sum over rows
        (:attr:`Objective.weighs_rows <probgen.objectives.Objective>`) the terms of a row are scaled;
        elsewhere (games, discrepancies between samples, functions) rows are drawn in proportion to
        their weights, as many in an epoch as there are rows. For data in memory; the rows of
        ``validation`` count once each.
    steps, epochs : int, optional
        How long to train, earlier steps of a resumed run included; 2,000 steps when neither is
        given.
    batch_size : int, optional
        Rows per step and process; default: 128, or all rows where there are fewer or the pair runs
        on all rows only.
    drop_last : bool
        Whether an epoch ends before the last batch where too few rows are left to fill it: other
        rows each time, as the order is drawn anew. By default that batch is smaller. All rows count
        in either case for how many there are.
    accumulate : int, optional
        How many batches make a step together: their gradients are summed, each with its share of
        the rows, so that a step is one with so many times the ``batch_size`` in the memory of one
        batch. Steps are updates: schedules, warm-ups, the turns of players, averages and history
        count these. The last step of an epoch may have fewer batches. What compares rows of a batch
        (games, discrepancies between samples, batch normalization) still does so batch by batch,
        and the gradient is the mean of theirs. Steps are not compiled then.
    rows : sequence of str, optional
        Names of the arguments that hold rows, of which batches take some; default: those that have
        as many entries as the plate of the rows.
    optimizer : callable or mapping, optional
        Makes the optimizer from the parameters; default ``adam(1e-3)``. Parameter groups are the
        caller's choice. Pyro's optimizers work too; the loss here is per row, where ``SVI`` sums it
        over rows. For a game one for each player, by name, of one class: ``{"model": adam(1e-4),
        "critic": adam(4e-4)}``; players are ``"model"``, those that the objective states
        (:attr:`Objective.players <probgen.objectives.Objective>`), and ``"objective"`` for what
        else it owns.
    scheduler : callable, optional
        Makes a learning-rate scheduler from the optimizer; it advances every step.
    clip : float, optional
        Largest Euclidean norm of the gradient (of the loss per row).
    ema : float, optional
        Decay of an exponential moving average of the parameters after each step, which does not
        hold those from before the first (:func:`probgen.train.run.newest`); validation and the
        final model use the average.
    validation
        Held-out rows (as ``data``; ``()`` for an objective without data); the objective on them is
        recorded every ``validate_every`` steps (default: once per epoch), always with the same
        noise.
    patience : int, optional
        Stop after so many validations without improvement, and restore the best state.
    checkpoint : path, optional
        File for the whole state, written atomically every ``checkpoint_every`` steps (default: once
        per epoch) and at the end; Ctrl-C and SIGTERM are seen between steps. After Ctrl-C ``fit``
        warns where it stopped and returns (:attr:`History.interrupted`); a second one raises
        ``KeyboardInterrupt``, after the state is written as well. With ``resume=True``
        an existing file is continued exactly: N steps, resume, N more are 2N steps. Its random
        state goes on and its data are expected; learning rates, clip, ema and batch size that are
        asked otherwise now win, with a warning; so do other validation rows, with which
        ``patience`` starts anew. Without ``resume`` it is refused.
    compile : "auto" or bool
        Whether the step, from the choice of rows to the update, becomes one compiled graph: the
        same losses, as the seed gives them, without the Python in between. ``"auto"`` times the
        first steps and compiles where the remaining ones amortize it (runs are then equal to
        rounding, not bit for bit); ``True`` compiles after the first step. Python values that a program reads
        are then those of that time; tensors, learning rates and annealed weights may change.
    fabric : lightning_fabric.Fabric, optional
        Device, precision and processes; default: this process on the CPU.
    progress : bool, float or None
        Loss, rate and time left: in one line that is renewed where there is a terminal, elsewhere
        in a line every 30 seconds, or every so many as ``progress`` says. ``False``: nothing.
    logger : Logger or sequence of Logger, optional
        A logger of ``lightning_fabric.loggers`` (``CSVLogger``, ``TensorBoardLogger``), or another
        object with ``log_metrics(metrics, step)``, or a list of them: gets loss, parts, gradient
        norm, learning rates, validation and seconds by name, and the settings of the run where it
        has ``log_hyperparams``. ``save()`` is called at the end, whatever ended training.
    log_every : int, optional
        Steps from one line of the log to the next; default 50. The first step, the last one and
        those with a validation are told as well. A run that is resumed goes on counting.
    callbacks : sequence of callable
        Called with the :class:`Run` after every step; setting ``run.stop = "reason"`` ends
        training. They share the random state of the run: one that draws changes the steps after it,
        unless it draws inside ``torch.random.fork_rng()``. Steps are then made one by one, and not
        compiled by ``"auto"``; :class:`probgen.train.Every` wraps functions that only read.
    seed : int, optional
        Makes the run reproducible without touching the caller's random state.
    verdict : bool
        Whether to judge the fit at the end: PSIS k-hat, effective sample size, active units, a
        settled loss.

    Returns
    -------
    History
        Losses per row, validation, wall time, why it stopped, and the verdict.

    Raises
    ------
    ValueError, TypeError
        For data, shapes and arguments that do not fit, before the first step.
    NotCompilable
        With ``compile=True``, where the step cannot be one graph, with the reason.
    NonFiniteLoss
        When the loss or gradient is not finite; the model keeps its last finite state.
    CheckpointError
        When ``checkpoint`` cannot be written at the start or exists already, or ``resume`` finds a
        file of another run.
    KeyboardInterrupt
        At Ctrl-C before the first step, and at a second one.

    >>> from probgen.heads import Gaussian
    >>> from probgen.nn import Constant
    >>> history = fit(Gaussian(Constant(2)), torch.randn(100, 1) + 3, steps=400, optimizer=adam(0.05), seed=0)
    >>> history.stopped
    '400 steps done'
    """
    usual = Stage(
        data,
        objective,
        weights=weights,
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        drop_last=drop_last,
        accumulate=accumulate,
        rows=rows,
        optimizer=optimizer,
        scheduler=scheduler,
        clip=clip,
        ema=ema,
        validation=validation,
        validate_every=validate_every,
        patience=patience,
        compile=compile,
        callbacks=callbacks,
    )
    whole = in_order(stages, usual)
    if fabric is not None:
        check_fabric(fabric=fabric)
    with agreeing(fabric) as agreement, told_once(agreement):
        for number, stage in enumerate(whole):
            with told(number, len(whole)):
                check_asked(
                    gen,
                    stage.objective,
                    **stage.options(),
                    checkpoint=checkpoint,
                    checkpoint_every=checkpoint_every,
                    resume=resume,
                    fabric=fabric,
                    progress=progress,
                    logger=logger,
                    log_every=log_every,
                    seed=seed,
                    verdict=verdict,
                )
        fabric = fabric or _this_process()
        check_stages(fabric, len(whole))
        alone = written_alone(checkpoint, agreement)
        with alone, training(gen), _random_state(seed, fabric), torch.enable_grad():
            file = OnDisk(checkpoint, resume, agreement)
            record = Record(logger, log_every or EVERY)
            work = _Work(
                gen, whole, fabric, file, seed, checkpoint_every, progress, record, agreement
            )
            try:
                for number in range(len(whole)):
                    with told(number, len(whole)):
                        goes_on = work.stage(number)
                    if not goes_on:
                        break
            finally:
                work.leave_record()
                if work.history.interrupted and work.now is not None:
                    warnings.warn(how_to_go_on(*work.now, len(whole)), FitWarning, stacklevel=3)
            if verdict and work.judged is not None and work.history.steps:
                with quietly():
                    _judge(*work.judged)
    return work.history


class _Ready(NamedTuple):
    """A stage that can begin: its data, its loss, and the validation rows."""

    stage: Stage
    source: Source
    rows_of: RowsOf
    loss: nn.Module
    objective: nn.Module
    held_out: Sequence[Batch]


class _Work:
    """The stages of a run, one after the other; a run without stages has one.

    Attributes
    ----------
    history : History
        The record of all of them so far.
    judged : tuple or None
        The last run and its validation batches; none where it was interrupted.
    now : tuple or None
        The last run and its plan.
    """

    def __init__(
        self,
        gen: GenerativeModel,
        stages: Sequence[Stage],
        fabric: Fabric,
        file: OnDisk,
        seed: int | None,
        checkpoint_every: int | None,
        progress: Reported,
        record: Record,
        agreement: Agreement,
    ):
        self.agreement = agreement
        self.gen = gen
        self.stages = stages
        self.fabric = fabric
        self.file = file
        self.seed = seed
        self.checkpoint_every = checkpoint_every
        self.progress = progress
        self.record = record
        self.order = _data_seed(agreement)
        self.history = History()
        self.standing = file.standing or Standing(kept=file.path is not None)
        self.judged: tuple[Run, Sequence[Batch]] | None = None
        self.now: tuple[Run, RunPlan] | None = None
        self._at = -1 if file.standing is None else file.standing.number  # where the file goes on
        self._before: _Ready | None = None
        self._left: Left | None = None
        self._compiled: list[str] = []
        if self._at >= len(stages):
            raise CheckpointError(
                f"expected the stages that {file.path} was written with, it is in stage "
                f"{self._at + 1}, got {len(stages)}; pass the stages of then"
            )
        if told := self.standing.other_lengths(stages):
            warnings.warn(f"{file.path}: {told}", FitWarning, stacklevel=5)

    def stage(self, number: int) -> bool:
        """One stage, from its ``start`` to its end; whether the next one is to begin.

        Of those that are over in the file of a run that goes on nothing but the structure is made
        again.
        """
        stage = self.stages[number]
        try:
            with self.agreement.guard():
                module: Any = self.gen if self._before is None else self._before.loss
                self.standing.call(number, stage, self.gen, module, self)
                ready = self._ready(number, stage)
                self.agreement.check_same(facts_of(ready.source), SHARED_OUT)
                tell_same_rows(ready.source, self.fabric)
                self.agreement.check_same(self._asked_alike(ready))
        except KeyboardInterrupt:
            if not number:
                raise
            self.history.stopped = INTERRUPTED
            self.judged = None
            return False
        if number >= self._at:
            self._train(number, ready)
        self._before = ready
        return self.history.stopped != INTERRUPTED

    # -- what is needed before the first step

    def _ready(self, number: int, stage: Stage) -> _Ready:
        """Data and loss of a stage, after a checked first run."""
        gen = self.gen
        same = self._before if stage.start is None else None
        source = self._source(number, stage, same)
        if same is not None and source is not same.source:
            same = None
        rows_of = rehearsed(gen, source, stage.batch_size) if same is None else same.rows_of
        check_observes(gen, stage.objective)
        known = None
        if same is not None and stage.has_same(same.stage, "objective"):
            known = same.objective
        with rows_of(gen.plate, source.rows, source.index(source.first())):
            chosen, loss = _objective(gen, source, stage.objective, stage.patience, known)
        source.to(self.fabric.device)
        if same is not None and stage.has_same(same.stage, "validation"):
            return _Ready(stage, source, rows_of, loss, chosen, same.held_out)
        batches: Sequence[Batch] = []
        if stage.validation is not None:
            batches = held_out(stage.validation, source.layout.count(source.peek()), gen)
        check_held_out(gen, batches)
        for batch in batches[:1]:
            check_loss_takes(chosen, gen, batch, "give validation rows as the data are")
        return _Ready(stage, source, rows_of, loss, chosen, batches)

    def _source(self, number: int, stage: Stage, same: _Ready | None) -> Source:
        """The batches of a stage; those of the same data go on where they stood."""
        own = stage.objective
        needless = own is not None
        drawn = needless and not weighs_rows(as_objective(own))
        goes_on = self._before is not None and stage.has_same(
            self._before.stage, "data", "weights", "rows", "drop_last"
        )
        if same is not None and goes_on and stage.has_same(same.stage, "batch_size"):
            other = same.stage.objective
            alike = needless == (other is not None)
            if alike and drawn == (needless and not weighs_rows(as_objective(other))):
                return same.source
        source = as_source(
            stage.data,
            stage.batch_size,
            self.order + number * APART,
            self.fabric.global_rank,
            self.fabric.world_size,
            self.gen,
            stage.rows,
            needless,
            stage.drop_last,
            stage.weights,
            drawn,
        )
        if stage.epochs is not None and isinstance(source, PairStream) and source.rows is None:
            raise ValueError(
                "expected steps with Pairs that have no end, got epochs; pass steps, or tell how "
                "many rows make an epoch: Pairs(make, rows)"
            )
        _settle(self.gen, source)
        if goes_on and self._before is not None:
            random = random_state(self)
            source.seek(self._before.source.cursor())
            set_random_state(self, random)  # which loaders move
        return source

    def _asked_alike(self, ready: _Ready) -> dict[str, Any]:
        """What every process is to be asked for alike, or they would wait for one another."""
        given = ready.stage.options() | {
            "checkpoint_every": self.checkpoint_every,
            "checkpoint": self.file.path is not None,
            "validation": bool(ready.held_out),
        }
        return settings_in(given) | facts_of_parameters(ready.loss)

    # -- the steps

    def _train(self, number: int, ready: _Ready) -> None:
        stage = ready.stage
        source: Any = ready.source
        with self.agreement.together():
            check_processes(self.fabric, source)
        if stage.accumulate is not None and stage.accumulate > 1:
            source = AccumulatedSource(source, int(stage.accumulate))
        run = Run(
            self.gen,
            ready.loss,
            source,
            _optimizer(ready.loss, stage.optimizer, self.gen),
            stage.scheduler and as_scheduler(stage.scheduler),
            self.fabric,
            stage.clip,
            stage.ema,
            ready.rows_of,
            self.agreement,
        )
        with left_whole(run):
            with self.agreement.guard():
                self._make_ready(number, run, ready)
                self.agreement.meet(BEFORE)
            plan = self._plan(number, run, ready)
            if self.now is not None:
                run.saved = self.now[0].saved
            self.history.compiled = ""
            engine = Engine(run, stage.compile, each_step(stage.callbacks))
            self.now = run, plan
            with one_precision(ready.objective, self.gen):
                train(run, plan, engine, stage.callbacks, self.record, self.progress)
        self._tell_compiled(number)
        watched = stage.patience is not None and run.waited >= stage.patience
        self.history.descends = _descends(ready.objective) and not watched
        self.judged = None if self.history.interrupted else (run, ready.held_out)
        if not plan.last:
            self._left = Left(run, stage, plan.goes_on)

    def _make_ready(self, number: int, run: Run, ready: _Ready) -> None:
        """What a run does before its first step; what one process refuses all refuse."""
        stage = ready.stage
        if run.sharding is None:  # whose loss is no collective call
            check_sizes(run)
        run.restores = stage.patience is not None
        run.asked["seed"] = self.seed
        run.asked["validation"] = fingerprint_of(stage.validation, ready.held_out)
        self._begin(number, run, stage)
        if holds_gradients(self.fabric):
            run.watch = GradientWatch(run)

    def _begin(self, number: int, run: Run, stage: Stage) -> None:
        """Where the run stands: at its beginning, in its file, or where the stage before has left it."""
        if number == max(self._at, 0):
            run.standing = self.standing
            self.file.begin(run)
            self.history = run.history
            self.standing = run.standing
            if number:
                run.idle = {id(p) for p in run.optimizer.state}
            return
        run.history = self.history
        run.standing = self.standing
        self.standing.begin(number, run.step, run.source.epoch)
        self.history.stages.append(run.step)
        if self._left is not None:
            self._left.hand_over(run, stage)
            run.idle = {id(p) for p in run.optimizer.state}
        run.optimizer.zero_grad(set_to_none=True)  # those of the last step of another loss

    def _plan(self, number: int, run: Run, ready: _Ready) -> RunPlan:
        stage = ready.stage
        last = number == len(self.stages) - 1
        first, epoch = self.standing.began[number]
        steps = stage.steps
        if steps is None and stage.epochs is None:
            steps = 2000
        return RunPlan(
            None if steps is None else first + steps,
            None if stage.epochs is None else epoch + stage.epochs,
            ready.held_out,
            stage.validate_every,
            stage.patience,
            self.file.path,
            self.checkpoint_every,
            first,
            last,
            keeps_average(stage, None if last else self.stages[number + 1]),
        )

    def leave_record(self) -> None:
        """Lets the model tell what trained it, whatever ended training."""
        if self.now is not None and self.history.steps:
            gen: Any = self.gen
            keep_record(gen, record_of(self.now[0]))

    def _tell_compiled(self, number: int) -> None:
        """What came of compiling, stage by stage where there are several."""
        if len(self.stages) == 1:
            return
        if self.history.compiled:
            self._compiled.append(f"stage {number + 1}: {self.history.compiled}")
        self.history.compiled = "; ".join(self._compiled)


def _this_process() -> Fabric:
    load("lightning_fabric")  # takes a second: only those who train wait for it
    from lightning_fabric import Fabric

    return Fabric(accelerator="cpu", devices=1)


def _settle(gen: GenerativeModel, source: Source) -> None:
    """The layout of the batches of a loader, as the program reads the first of them.

    Which is checked.
    """
    if isinstance(source, BatchStream | PairStream):
        source.layout = row_layout(batch := as_rows(gen, *source.peek()), gen.rows_in(batch))
    elif isinstance(gen, Program):
        gen.make_parameters(source.look())


def _objective(
    gen: GenerativeModel,
    source: Source,
    objective: nn.Module | None,
    patience: int | None,
    known: nn.Module | None = None,
) -> tuple[nn.Module, nn.Module]:
    """The objective, and the loss as one module that owns the model's and the objective's parameters.

    After a checked first run; ``known`` is one that a stage before has had on the same data.
    """
    batch = source.peek()
    chosen: Any = known
    if known is None:
        chosen = default_objective(gen, *batch) if objective is None else as_objective(objective)
        _warn_of_teachers(chosen, gen)
        check_loss_takes(chosen, gen, batch)
    if patience is not None and not _descends(chosen):
        raise ValueError(
            "expected an objective whose value tells how good the model is, for patience, got "
            f"{type(chosen).__name__}"
            "; drop patience, and let a callback that scores samples or another objective set "
            "run.stop"
        )
    if known is None and isinstance(chosen, Prepared):
        # a look at a batch is no step of its running averages
        with inference_mode_of(gen), one_precision(chosen, gen):
            chosen.prepare(gen.model, gen.guide, *batch)
    loss = chosen(gen.model, gen.guide)
    loss.add_module("gen", gen)  # bound methods register no parameters
    dense(loss)
    return chosen, loss


def _warn_of_teachers(objective: nn.Module, gen: GenerativeModel) -> None:
    for name in teachers(objective, gen):
        count = trainable(objective.get_submodule(name), gen)
        warnings.warn(
            f"objective part '{name}' is a model with {count} parameters that take gradients and "
            "will be trained; "
            "hold it as probgen.objectives.Frozen(...) if it is to stay fixed",
            FitWarning,
            stacklevel=7,
        )


def _descends(objective: nn.Module) -> bool:
    """Whether a smaller loss is a better one; Pyro's own objectives do not say, and are bounds."""
    return getattr(objective, "descends", True)


def _optimizer(
    loss: nn.Module, factory: Optimizer | Mapping[str, Optimizer] | None, gen: GenerativeModel
) -> torch.optim.Optimizer:
    named = [(name, p) for name, p in loss.named_parameters() if p.requires_grad]
    if not named:
        if isinstance(gen, Program) and gen.latents:
            raise ValueError(f"{without_guide(gen.latents)}; pg.mcmc needs none")
        raise ValueError(
            "expected a model with parameters to learn, got none; is everything Fixed or frozen?"
        )
    if isinstance(factory, Mapping):
        players = players_of(getattr(loss, "elbo", None), gen)
        return optimizer_of_players(factory, players, named)
    return as_optimizer(factory or adam(), named)([p for _, p in named])


def _judge(run: Run, batches: Sequence[Batch]) -> None:
    """Attaches the verdict, and warns; scores are those of the validation batches if there are any.

    The loss is not judged where held-out rows ended training, nor in a game.
    """
    with torch.random.fork_rng(), validation(False):
        history = run.history.since(run.history.stages[-1]) if run.history.descends else None
        seen = run.fabric.to_device(run.source.look())
        gen, batch, data_rows = judged_rows(run.gen, run.source, seen)
        held = [run.fabric.to_device(each) for each in few(batches)]
        found = judge(gen, *batch, history=history, held_out=held, data_rows=data_rows)
        run.history.verdict = run.agreement.from_first(found, END)
    if faults := run.history.verdict.faults:  # all else stands in the history
        warnings.warn("\n".join(faults), FitWarning, stacklevel=4)


@contextlib.contextmanager
def _random_state(seed: int | None, fabric: Fabric) -> Iterator[None]:
    """With a seed: a random state of the run's own, another one in every process.

    Validation is off meanwhile.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(validation(False))
        stack.enter_context(local_parameters())
        if fabric.device.type == "cuda":
            torch.cuda.init()  # what is not in use is not seeded
        if seed is not None:
            stack.enter_context(own_random_state(seed))
        yield


def _data_seed(agreement: Agreement) -> int:
    """One seed for the order of rows in all processes; then their noise goes separate ways."""
    seed = agreement.from_first(int(torch.randint(2**31, ())))
    if agreement.world > 1:
        torch.manual_seed(seed + agreement.rank)
    return seed
