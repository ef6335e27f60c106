"""One run of training as an object with a state: what is saved, resumed, averaged and restored."""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probgen.core.loss_parts import LossParts, noted_parts
from probgen.core.missing import Complete
from probgen.core.module import GenerativeModel
from probgen.core.private_torch import foreach_lerp_, foreach_norm
from probgen.core.rows import tensors_of
from probgen.core.runtime import local_parameters
from probgen.core.sums import sum_of
from probgen.objectives.parts import Average
from probgen.train import state
from probgen.train.accumulation import (
    AccumulatedSource,
    SeveralBatches,
    StepCounters,
    no_reduction,
    summed_parts,
)
from probgen.train.agreement import LOSS, STEP, VALIDATION, Agreement, gathers
from probgen.train.autopsy import NOTHING, Autopsy
from probgen.train.data import Selection, Source
from probgen.train.history import INTERRUPTED, FitWarning, History
from probgen.train.loss_scaling import LossScale
from probgen.train.noted import Series, numbers_of, read_numbers, series_of
from probgen.train.rehearsal import RowScale
from probgen.train.rows import Batch
from probgen.train.settings import asked_of, check_steps
from probgen.train.sharding import LATE, own_part, set_up
from probgen.train.signals import Signals
from probgen.train.stages import Standing
from probgen.train.streamed import HeldOut
from probgen.train.transaction import Buffers
from probgen.train.watch import GradientWatch, check_depends, check_reached, stands_alone

if TYPE_CHECKING:
    from lightning_fabric import Fabric


NARROW = {torch.float16, torch.bfloat16}  # precisions in which no norm is summed


class NonFiniteLoss(FloatingPointError):
    """The loss or its gradient stopped being finite; the model keeps its state before that step.

    Attributes
    ----------
    history : History
        The record up to there.
    """

    def __init__(self, message: str, history: History):
        super().__init__(message)
        self.history = history


class Run:
    """Everything that changes while a model is trained; callbacks receive it after every step.

    Attributes
    ----------
    gen : GenerativeModel
        The model being trained.
    step : int
        Steps done so far.
    history : History
        The record so far.
    stop : str or None
        A callback sets it to the reason why training should end after this step.
    signals : Signals
        What waits until a step is whole.
    agreement : Agreement
        How the processes that train together come to one reason to stop.
    asked : dict
        The settings that the run was made with.
    standing : Standing
        Where it stands among its stages.
    saved : int or None
        At which step its state was written last.
    idle : set of int
        Identities of parameters of which the optimizer keeps something from an earlier stage, and
        that have got no gradient in this one so far.
    kind : str or None
        What its validation is as a log-likelihood, once that is known; empty where it is none.
    """

    def __init__(
        self,
        gen: GenerativeModel,
        loss: nn.Module,
        source: Source,
        optimizer: torch.optim.Optimizer,
        scheduler: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler] | None,
        fabric: Fabric,
        clip: float | None,
        ema: float | None,
        rows_of: Callable[..., AbstractContextManager] = lambda *_: nullcontext(),
        agreement: Agreement | None = None,
    ):
        self.agreement = agreement or Agreement()
        self.rows_of = rows_of
        self.gen = gen
        self.module = loss
        self.source = source
        self.fabric = fabric
        self.scheduler = None if scheduler is None else scheduler(optimizer)
        check_steps(optimizer, self.scheduler)
        self.clip = clip
        self.decay = ema
        with self.agreement.together():
            self.loss, self.optimizer, self.sharding = set_up(fabric, loss, optimizer)
        self.scale = LossScale(fabric)
        self._called = self.plain if stands_alone(fabric) else self.loss
        self.world = fabric.world_size
        self.on_cpu = fabric.device.type == "cpu"
        self.parameters = [p for p in loss.parameters() if p.requires_grad]
        self._stated = len(getattr(gen, "statements", ()))
        self.average: list[Tensor] | None = None
        self.unbounded: list[int] = []  # averages with infinite entries, zeros of a table
        self.best: tuple[float, dict[str, Tensor]] | None = None
        self.waited = 0
        self.history = History()
        self.stop: str | None = None
        self.restores = False
        self.signals = Signals()
        self.buffers = Buffers(loss)
        self._counters = StepCounters(loss)
        self.followers = followers_in(loss)
        self.watch: GradientWatch | None = None
        self.begin_average(0, {})
        self.asked = asked_of(self)
        self.standing = Standing()
        self.saved: int | None = None
        self.agreement.step = lambda: self.history.steps
        self._gathers = self.world > 1 and gathers(self.loss)
        self._own_loss = torch.zeros(())  # of this step and process
        self._uneven = False  # whether some process has had fewer batches in an epoch
        self._shared: list[float] = []  # loss and parts of this step, of all processes
        self.idle: set[int] = set()
        self.kind: str | None = None

    @property
    def step(self) -> int:
        return self.history.steps

    def asked_source(self) -> Source:
        """Where the batches come from, however many of them make a step."""
        source = self.source
        return source.source if isinstance(source, AccumulatedSource) else source

    def advance(self) -> None:
        """One step: a batch, its loss per row and gradient, and an update if both are finite."""
        self.learn(*self.source.choose())

    def learn(self, selection: Selection, rows: int) -> None:
        """One step on the rows chosen, of so many in all processes.

        Which make it together: Ctrl-C, however often, waits until it is whole.
        """
        with self.signals.held() if self.world > 1 else nullcontext():
            self._learn(selection, rows)

    def _learn(self, selection: Selection, rows: int) -> None:
        self.buffers.remember()
        try:
            result, parts = self._gradient(selection, rows)
            skipped = self.scale.overflows(*result[:2])
            if not skipped:
                self.check(result, selection)
        except BaseException:
            with self.signals.held():
                self.buffers.restore()
            raise
        with self.signals.held():
            rates = [[rate] for rate in self.rates()]
            if skipped:
                self._skip()
            else:
                self._use_gradients()
            self.record([[number] for number in result], series_of(parts), rates)

    def _use_gradients(self) -> None:
        if self.idle:
            self.idle -= {id(p) for p in self.parameters if p.grad is not None}
        if self.watch is not None:
            self.watch.see()
        self.update()

    def _skip(self) -> None:
        """A step without an update, whose gradient half precision could not hold."""
        self.scale.lower()
        self.since += 1  # no weights have entered their average

    def _gradient(self, selection: Selection, rows: int) -> tuple[list[float], LossParts]:
        """Loss per row, the norm of its gradient, which the parameters hold then, clipped.

        And the parts of the loss: as numbers, and as they were noted. Of several batches that make
        one step gradients are summed, each with its share of the rows.
        """
        share = rows / self.world
        value, parts = self._backward(selection, share)
        norm = self._clip(self.trained())
        if self.world == 1:
            return [value.item(), norm.item(), *read_numbers(parts, share)], parts
        self._own_loss = value
        loss, *noted = self._shared or self._mean_of(value, parts, share)
        return [loss, norm.item(), *noted], parts

    def _backward(self, selection: Selection, share: float) -> tuple[Tensor, LossParts]:
        """The loss per row of all batches of a step, whose gradient the parameters hold then."""
        if not isinstance(selection, SeveralBatches):
            return self._backward_of_batch(selection, share, True, ())
        *others, last = selection.selections
        self._counters.keep()
        found = []
        for number, chosen in enumerate(others):
            with no_reduction(self.fabric, self.loss, self.world > 1 and self.sharding is None):
                found.append(self._backward_of_batch(chosen, share, first=not number))
            self._counters.put_back()
        found.append(self._backward_of_batch(last, share, not others, found))
        values, parts = zip(*found, strict=True)
        return sum_of(values), summed_parts(parts)

    def _backward_of_batch(
        self,
        selection: Selection,
        share: float,
        first: bool,
        before: Sequence[tuple[Tensor, LossParts]] | None = None,
    ) -> tuple[Tensor, LossParts]:
        """Adds the gradient of a batch to those that the parameters hold, or begins with it.

        ``before``: loss and parts of those before the last batch of a step, which it is then.
        """
        batch = self.fetch(selection)
        source = self.source
        if self._gathers:
            self.agreement.meet(LOSS)
        if self.sharding is not None:
            self.sharding.share_buffers()
        with noted_parts() as parts, Complete(self._complete(batch, selection)):
            index = source.index(selection)
            value = self.per_row(batch, share, index=index, weights=source.scales(selection))
        check_depends(value)
        self._adopt()
        if first:
            for parameter in self.trained():
                parameter.grad = None
        found = value.detach(), parts
        if before is not None:
            self._meet([*before, found], share)
        reduces = before is not None or self.sharding is not None
        with self.agreement.committed() if reduces else nullcontext():
            self.fabric.backward(value)
        return found

    def _meet(self, batches: Sequence[tuple[Tensor, LossParts]], share: float) -> None:
        """All processes have their losses, so that none fails where gradients are waited for.

        The losses and their parts go with it, but for those that an accelerator still computes. An
        epoch ends for all of them where it does for one, which has no more batches.
        """
        if self.world == 1:
            return
        numbers: list[Any] = []
        if self.on_cpu:
            values, parts = zip(*batches, strict=True)
            numbers = [sum_of(values), *numbers_of(summed_parts(parts), share)]
        turned, *self._shared = self.agreement.meet(STEP, [self.source.turned(), *numbers])
        if 0 < turned < 1:
            self._end_epoch()

    def _end_epoch(self) -> None:
        """Ends the epoch as another process does; only batches of unknown number are uneven."""
        source: Any = self.source
        if not source.turned():
            source.end_epoch()
        if self.agreement.first and not self._uneven:
            warnings.warn(
                f"step {self.step + 1}: some processes have fewer batches in an epoch than others, "
                "whose last ones are left out; let every process have as many, as by "
                "DistributedSampler",
                FitWarning,
                stacklevel=9,
            )
        self._uneven = True

    def _mean_of(self, value: Tensor, parts: LossParts, share: float) -> list[float]:
        """Loss and parts, as means over all processes."""
        own = torch.stack([value, *numbers_of(parts, share)])
        mean: Any = self.fabric.all_reduce(own, reduce_op="mean")
        numbers: list[float] = mean.tolist()
        return numbers

    def _complete(self, batch: Batch, selection: Selection) -> Iterable[Tensor]:
        """The tensors of a batch, where the data have no missing values."""
        return () if self.source.missing(selection) else tensors_of(batch)

    def trained(self) -> list[Tensor]:
        """The parameters that the optimizer has."""
        return [p for group in self.optimizer.optimizer.param_groups for p in group["params"]]

    def _adopt(self) -> None:
        """Parameters that a program states for the first time in this step are trained from here on."""
        stated = len(getattr(self.gen, "statements", ()))
        if stated == self._stated:
            return
        if self.sharding is not None:
            raise ValueError(LATE)
        self._stated, known = stated, {id(p): i for i, p in enumerate(self.parameters)}
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]
        late = [p for p in self.parameters if id(p) not in known]
        groups = self.optimizer.param_groups
        own = next((group for group in groups if group.get("name") == "model"), groups[-1])
        own["params"].extend(late)
        if self.average is not None:
            means = self.average
            self.average = [
                means[known[id(p)]] if id(p) in known else p.detach().clone()
                for p in self.parameters
            ]

    def fetch(self, selection: Selection) -> Batch:
        """The batch of a selection, on the device."""
        batch = self.source.batch(selection)
        return batch if self.on_cpu else self.fabric.to_device(batch)

    def check(self, result: list[float], selection: Selection) -> None:
        """Raises :class:`NonFiniteLoss` unless loss and gradient norm of a step are finite."""
        loss, norm, *_ = result
        if not finite_steps([loss], [norm]):
            raise self._failure(loss, norm, selection)

    def record(
        self,
        results: Sequence[Sequence[float]],
        series: Series,
        rates: Sequence[Sequence[float]],
    ) -> None:
        """Counts one step or several made in a row.

        ``results``: their losses, their gradient norms, then each part of the loss; ``rates``: the
        learning rates of each parameter group. Whole lists at once: compiled steps may take less
        time than what would be done for each of them.
        """
        losses, norms, *numbers = results
        self.history.add(losses, norms)
        self.history.add_parts(series, numbers)
        self.history.add_learning_rates(rates)
        if len(rates) != len(self.history.groups):  # a callback has added some
            self.history.groups = self.groups()

    def rates(self) -> list[float]:
        """The learning rate of each parameter group."""
        return [float(group["lr"]) for group in self.optimizer.optimizer.param_groups]

    def groups(self) -> list[str]:
        """The name of each parameter group: that of a player, or its number."""
        groups = self.optimizer.param_groups
        return [str(group.get("name", index)) for index, group in enumerate(groups)]

    def update(self) -> None:
        """Moves the parameters along the gradients that they hold."""
        with torch.no_grad():
            self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()
            if self.average is not None:
                decay: Any = self.decay
                self._move(self.average, newest(decay, self.averaged_steps + 1))
            for follower in self.followers:
                follower.follow()

    def _move(self, average: list[Tensor], weight: float) -> None:
        """The averages with the newest weights in them."""
        before = {index: average[index].clone() for index in self.unbounded}
        present: list[Any] = [own_part(p) for p in self.parameters]
        foreach_lerp_([own_part(mean) for mean in average], present, weight)
        for index, mean in before.items():  # an infinity minus itself is not a number
            same = mean == self.parameters[index]
            average[index].copy_(torch.where(same, mean, average[index]))

    def begin_average(self, since: int, means: dict[str, Tensor]) -> None:
        """Starts the average of the weights after step ``since``.

        Or goes on with the means by name.
        """
        self.average, self.since = None, since if means else self.step
        if self.decay is not None:
            start = dict(zip(self.names(), self.parameters, strict=True))
            self.average = [
                means.get(name, p).detach().to(p.device, copy=True) for name, p in start.items()
            ]
            self.unbounded = [
                index
                for index, mean in enumerate(self.average)
                if not own_part(mean).isfinite().all()
            ]

    @property
    def averaged_steps(self) -> int:
        """After how many steps the weights have entered their average."""
        return self.step - self.since

    def per_row(
        self,
        batch: Batch,
        rows: float | None = None,
        loss: Callable | None = None,
        index: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """The objective of a batch divided by its number of rows, or by ``rows``.

        ``index`` numbers the rows of the batch among all rows, for a guide with parameters for each
        of them; ``weights`` multiply their terms.
        """
        own = self.count(batch)
        plate = self.gen.plate
        total = self.source.total or own
        scaled = RowScale(plate, own, total, weights, self.source.totals)
        with local_parameters(), scaled, self.rows_of(plate, self.source.rows or own, index):
            return (loss or self._called)(*batch) / (rows or own)

    def plain(self, *batch: Any) -> Tensor:
        """The loss in Fabric's precision, of this process alone.

        Fabric's own call of it asks for a backward pass of Fabric's.
        """
        if self.sharding is not None:
            return self.loss(*batch)
        precision = self.fabric.strategy.precision
        with precision.forward_context():
            return precision.convert_output(self.module(*precision.convert_input(batch)))

    def count(self, batch: Batch) -> int:
        """The number of rows in a batch."""
        return self.source.layout.like(batch).count(batch)

    def _clip(self, trained: Sequence[Tensor]) -> Tensor:
        self.scale.unscale(self.optimizer.optimizer)
        if self.sharding is not None:
            return self.sharding.clip(trained, self.clip)
        reached = [p.grad for p in trained if p.grad is not None]
        check_reached(reached)
        if self.clip is not None and self.scale.scaler is not None:
            present: Any = trained
            return nn.utils.clip_grad_norm_(present, self.clip)
        if self.clip is not None:
            norm: Any = self.fabric.clip_gradients(
                self.loss, self.optimizer, max_norm=self.clip, error_if_nonfinite=False
            )
            return norm
        norms: Sequence[Tensor] = foreach_norm(reached)
        kinds = {norm.dtype for norm in norms}
        if len(kinds) > 1 or kinds <= NARROW:
            kind = functools.reduce(torch.promote_types, kinds, torch.float32)
            norms = [norm.to(kind) for norm in norms]
        return torch.linalg.vector_norm(torch.stack(list(norms)))

    def _failure(self, loss: float, norm: float, selection: Selection) -> NonFiniteLoss:
        self.history.stopped = "the loss was not finite"
        error = NonFiniteLoss(
            f"step {self.step + 1}: loss {loss:.4g}, gradient norm {norm:.4g}; the model keeps its "
            "state after step "
            f"{self.step}{self.scale.said()}\n  {self._autopsy(selection)}\n  try a lower learning "
            "rate, clip=..., or look "
            "at the rows named above",
            self.history,
        )
        return self.agreement.shared(error)

    def _autopsy(self, selection: Selection) -> str:
        """What is to be said of a step, by the first of its batches that has something to say."""
        chosen = selection.selections if isinstance(selection, SeveralBatches) else (selection,)
        with self.whole():
            reports = [Autopsy(self, each).report() for each in chosen]
        own = next((each for each in reports if NOTHING not in each), reports[-1])
        finite = self.world > 1 and bool(self._own_loss.isfinite())
        return said_by_all(self.agreement.gather((finite, own), STEP))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with its averaged weights (EMA), where it has them."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the weights with their average."""
        with self.signals.held():
            for parameter, mean in zip(self.parameters, self.average or (), strict=False):
                old = parameter.clone()
                parameter.copy_(mean)
                mean.copy_(old)

    def validate(self, batches: Sequence[Batch]) -> float:
        """Mean objective per validation row, in eval mode, with the same noise every time.

        Remembers the best state.
        """
        training = self.module.training
        self.module.eval()
        try:
            with self.averaged(), torch.no_grad(), torch.random.fork_rng():
                torch.manual_seed(0)
                # those of a stream are read each time
                rows = (
                    batches.rows if isinstance(batches, HeldOut) else sum(map(self.count, batches))
                )
                total = sum_of(
                    self.per_row(self.fabric.to_device(batch), rows, self._evaluated())
                    for batch in batches
                )
                (value,) = self.agreement.meet(VALIDATION, [total.item()])
        finally:
            self.module.train(training)
        with self.signals.held():
            self._remember(value)
        return value

    def _evaluated(self) -> Callable:
        """The loss as it is called without a gradient."""
        return self.module if self.sharding is None else self.sharding

    def whole(self) -> AbstractContextManager:
        """The model with all its parameters in this process, where each holds a part of them.

        All processes are to enter the block, to look at the model or draw from it; what is changed
        inside is lost. Elsewhere the model is whole anyway.
        """
        return nullcontext() if self.sharding is None else self.sharding.gathered()

    def _remember(self, value: float) -> None:
        self.history.validation.append((self.step, value))
        if self.best is not None and not value < self.best[0]:
            self.waited += 1
            return
        with self.averaged():
            self.best = (value, _copy(self.module.state_dict()))
            self.waited = 0

    def leaves(self) -> str:
        """What the run leaves behind if it ends now.

        The best state, the average or the last weights.
        """
        if self.restores and self.best is not None and self.history.stopped != INTERRUPTED:
            return "best"
        return "weights" if self.average is None else "average"

    def finish(self) -> None:
        """Gives the model what the run leaves behind."""
        if self.best is not None and self.leaves() == "best":
            self.module.load_state_dict(self.best[1])
        else:
            self.swap()

    def make_whole(self) -> None:
        """Gives the model all its parameters for good, once a sharded run is over."""
        if self.sharding is not None:
            self.sharding.end()

    # -- the state on disk
    # ---------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Writes the whole state; see :func:`probgen.train.state.write`."""
        state.write(self, path)
        self.saved = self.step  # in all processes or in none

    def load(self, path: Path) -> None:
        """Continues from a state on disk; see :func:`probgen.train.state.restore`."""
        state.restore(self, path)

    def names(self) -> list[str]:
        """The names of the parameters that are averaged, as :attr:`parameters`."""
        return [name for name, p in self.module.named_parameters() if p.requires_grad]


@contextlib.contextmanager
def left_whole(run: Run) -> Iterator[None]:
    """Whatever ends the block in all processes, the model is whole after it.

    What fails in one of them does not wait for the others.
    """
    try:
        yield
    finally:
        if not run.agreement.lost:
            run.make_whole()


def finite_steps(losses: Sequence[float], norms: Sequence[float]) -> int:
    """How many steps come before the first whose loss or gradient norm is not finite.

    >>> finite_steps([1.0, 2.0, float("nan")], [1.0, 1.0, 1.0])
    2
    """
    for done, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return done
    return len(losses)


def said_by_all(reports: Sequence[tuple[bool, str]]) -> str:
    """What processes found, with their numbers, each after whether its own loss was finite.

    Those speak whose loss was not; where that tells nothing, all that have found something.

    >>> print(said_by_all([(True, "the gradient"), (False, "row 17: x = nan")]))
    process 1: row 17: x = nan
    """
    if len(reports) == 1:
        return reports[0][1]
    guilty = [n for n, (finite, _) in enumerate(reports) if not finite]
    telling = [n for n in guilty or range(len(reports)) if NOTHING not in reports[n][1]]
    return "\n  ".join(f"process {n}: {reports[n][1]}" for n in telling or guilty[:1] or [0])


def followers_in(loss: nn.Module) -> list[Average]:
    """The averages of modules that a loss holds; they can follow what the loss holds too."""
    found = [part for part in loss.modules() if isinstance(part, Average)]
    known = {id(part) for part in loss.modules()}
    for follower in found:
        if id(follower.followed) not in known:
            raise ValueError(
                "expected an Average of the model, a part of it or of the objective, got one of "
                f"a {type(follower.followed).__name__} that this run does not train; make it from "
                "the module that is trained, or hold a module fixed by Frozen(module)"
            )
    return found


def newest(decay: float, steps: int) -> float:
    r"""The weight of the newest of so many values in their exponential moving average.

    Which begins without any.

    .. math:: w_t = \frac{1 - d}{1 - d^t}, \qquad m_t = m_{t-1} + w_t (\theta_t - m_{t-1})
              = \frac{\sum_{i=1}^t d^{t-i} \theta_i}{\sum_{i=1}^t d^{t-i}}

    >>> newest(0.5, 1), newest(0.5, 60)
    (1.0, 0.5)
    """
    return (1 - decay) / (1 - decay**steps)


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}
