"""One loop for every model and every objective."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.entry import as_rows
from probgen.core.keywords import explained
from probgen.core.modes import inference_mode_of
from probgen.core.module import GenerativeModel
from probgen.core.ownership import dense
from probgen.core.program import Program
from probgen.core.rows import row_layout
from probgen.core.runtime import local_parameters, validation
from probgen.core.turns import own_random_state, training
from probgen.diagnostics.verdict import verdict as judge
from probgen.libraries import load
from probgen.objectives import default_objective
from probgen.objectives.base import Prepared
from probgen.train.adapters import as_objective, teachers, trainable, weighs_rows
from probgen.train.arguments import as_scheduler, check_asked
from probgen.train.checkpoint import written_alone
from probgen.train.compiled.policy import Choice, Engine
from probgen.train.data import Source, as_source, held_out
from probgen.train.history import FitWarning, History
from probgen.train.loop import Callback, RunPlan, train
from probgen.train.optimizers import Optimizer, as_optimizer
from probgen.train.rehearsal import check_held_out, check_observes, rehearsed
from probgen.train.rows import Batch
from probgen.train.run import Run
from probgen.train.settings import fingerprint_of
from probgen.train.sizes import check_sizes
from probgen.train.state import begin
from probgen.train.stream import BatchStream
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
    data: Any,
    objective: nn.Module | None = None,
    *,
    weights: Tensor | Sequence[float] | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    drop_last: bool = False,
    rows: Sequence[str] | None = None,
    optimizer: Optimizer | None = None,
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
    progress: bool = True,
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
        Dataset, a DataLoader, or an iterable of batches. ``None`` for programs without arguments.
        NaN = missing. A family of sequences takes a list of them, ``(T_b, *entry)`` each.
    objective : Objective, optional
        Default: :class:`ELBO`, or :class:`EnumeratedELBO` for programs with enumerated sites.
        Pyro's own objectives work where they have a ``differentiable_loss``, and so does a function
        ``loss(model, guide, *arguments)``.
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
    rows : sequence of str, optional
        Names of the arguments that hold rows, of which batches take some; default: those that have
        as many entries as the plate of the rows.
    optimizer : callable, optional
        Makes the optimizer from the parameters; default ``adam(1e-3)``. Parameter groups are the
        caller's choice. Pyro's optimizers work too; the loss here is per row, where ``SVI`` sums it
        over rows.
    scheduler : callable, optional
        Makes a learning-rate scheduler from the optimizer; it advances every step.
    clip : float, optional
        Largest Euclidean norm of the gradient (of the loss per row).
    ema : float, optional
        Decay of an exponential moving average of the parameters after each step, which does not
        hold those from before the first (:func:`probgen.train.run.newest`); validation and the
        final model use the average.
    validation
        Held-out rows (as ``data``); the objective on them is recorded every ``validate_every``
        steps (default: once per epoch), always with the same noise.
    patience : int, optional
        Stop after so many validations without improvement, and restore the best state.
    checkpoint : path, optional
        File for the whole state, written atomically every ``checkpoint_every`` steps (default: once
        per epoch) and at the end; Ctrl-C and SIGTERM are seen between steps. With ``resume=True``
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
    progress : bool
        A progress bar where there is a terminal.
    callbacks : sequence of callable
        Called with the :class:`Run` after every step; setting ``run.stop = "reason"`` ends
        training. They share the random state of the run: one that draws changes the steps after it,
        unless it draws inside ``torch.random.fork_rng()``.
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

    >>> from probgen.heads import Gaussian
    >>> from probgen.nn import Constant
    >>> history = fit(Gaussian(Constant(2)), torch.randn(100, 1) + 3, steps=400, optimizer=adam(0.05), seed=0)
    >>> history.stopped
    '400 steps done'
    """
    check_asked(
        gen,
        objective,
        weights=weights,
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        drop_last=drop_last,
        rows=rows,
        optimizer=optimizer,
        scheduler=scheduler,
        clip=clip,
        ema=ema,
        validation=validation,
        validate_every=validate_every,
        patience=patience,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        resume=resume,
        compile=compile,
        fabric=fabric,
        progress=progress,
        callbacks=callbacks,
        seed=seed,
        verdict=verdict,
    )
    fabric = fabric or _this_process()
    with written_alone(checkpoint, fabric), training(gen), _random_state(seed, fabric):
        source = as_source(
            data,
            batch_size,
            _data_seed(fabric),
            fabric.global_rank,
            fabric.world_size,
            gen,
            rows,
            objective is not None,
            drop_last,
            weights,
            objective is not None and not weighs_rows(as_objective(objective)),
        )
        _settle(gen, source)
        rows_of = rehearsed(gen, source, batch_size)
        check_observes(gen, objective)
        with rows_of(gen.plate, source.rows, source.index(source.first())):
            loss = _objective(gen, source, objective, patience)
        source.to(fabric.device)
        run = Run(
            gen,
            loss,
            source,
            _optimizer(loss, optimizer),
            scheduler and as_scheduler(scheduler),
            fabric,
            clip,
            ema,
            rows_of,
        )
        check_sizes(run)
        run.restores, run.asked["seed"] = patience is not None, seed
        steps = 2000 if steps is None and epochs is None else steps
        batches = (
            []
            if validation is None
            else held_out(validation, source.layout.count(source.peek()), gen)
        )
        check_held_out(gen, batches)
        run.asked["validation"] = fingerprint_of(validation, batches)
        path = begin(run, checkpoint, resume)
        if holds_gradients(fabric):
            run.watch = GradientWatch(run)
        plan = RunPlan(steps, epochs, batches, validate_every, patience, path, checkpoint_every)
        train(run, plan, Engine(run, compile, bool(callbacks)), progress, callbacks)
        if verdict and run.step:
            watched = patience is not None and run.waited >= patience
            descends = _descends(getattr(loss, "elbo", loss))
            _judge(run, batches, judged=descends and not watched)
    return run.history


def _this_process() -> Fabric:
    load("lightning_fabric")  # takes a second: only those who train wait for it
    from lightning_fabric import Fabric

    return Fabric(accelerator="cpu", devices=1)


def _settle(gen: GenerativeModel, source: Source) -> None:
    """The layout of the batches of a loader, as the program reads the first of them.

    Which is checked.
    """
    if isinstance(source, BatchStream):
        source.layout = row_layout(batch := as_rows(gen, *source.peek()), gen.rows_in(batch))
    elif isinstance(gen, Program):
        gen.make_parameters(source.look())


def _objective(
    gen: GenerativeModel, source: Source, objective: nn.Module | None, patience: int | None
) -> nn.Module:
    """The loss as one module that owns the model's and the objective's parameters.

    After a checked first run.
    """
    batch = source.peek()
    chosen = default_objective(gen, *batch) if objective is None else as_objective(objective)
    _warn_of_teachers(chosen, gen)
    if patience is not None and not _descends(chosen):
        raise ValueError(
            "expected an objective whose value tells how good the model is, for patience, got "
            f"{type(chosen).__name__}"
            "; drop patience, and let a callback that scores samples or another objective set "
            "run.stop"
        )
    if isinstance(chosen, Prepared):
        with inference_mode_of(gen):  # a look at a batch is no step of its running averages
            chosen.prepare(gen.model, gen.guide, *batch)
    loss = chosen(gen.model, gen.guide)
    loss.add_module("gen", gen)  # bound methods register no parameters
    dense(loss)
    return loss


def _warn_of_teachers(objective: nn.Module, gen: GenerativeModel) -> None:
    for name in teachers(objective, gen):
        count = trainable(objective.get_submodule(name), gen)
        warnings.warn(
            f"objective part '{name}' is a model with {count} parameters that take gradients and "
            "will be trained; "
            "freeze it with requires_grad_(False) if it is to stay fixed",
            FitWarning,
            stacklevel=5,
        )


def _descends(objective: nn.Module) -> bool:
    """Whether a smaller loss is a better one; Pyro's own objectives do not say, and are bounds."""
    return getattr(objective, "descends", True)


def _optimizer(loss: nn.Module, factory: Optimizer | None) -> torch.optim.Optimizer:
    named = [(name, p) for name, p in loss.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError(
            "expected a model with parameters to learn, got none; is everything Fixed or frozen?"
        )
    return as_optimizer(factory or adam(), named)([p for _, p in named])


def _judge(run: Run, batches: list[Batch], judged: bool) -> None:
    """Attaches the verdict, and warns; scores are those of the validation batches if there are any.

    The loss is not judged where held-out rows ended training, nor in a game.
    """
    with torch.random.fork_rng(), validation(False):
        history = run.history if judged else None
        seen = run.fabric.to_device(run.source.look())
        gen, batch, data_rows = judged_rows(run.gen, run.source, seen)
        held = [run.fabric.to_device(each) for each in batches]
        run.history.verdict = judge(
            gen, *batch, history=history, held_out=held, data_rows=data_rows
        )
    if not run.history.verdict.ok:
        warnings.warn(str(run.history.verdict), FitWarning, stacklevel=4)


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


def _data_seed(fabric: Fabric) -> int:
    """One seed for the order of rows in all processes; then their noise goes separate ways."""
    seed: int = fabric.broadcast(int(torch.randint(2**31, ())))
    if fabric.world_size > 1:
        torch.manual_seed(seed + fabric.global_rank)
    return seed
