"""One run of training as an object with a state: what is saved, resumed, averaged and restored."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probgen.core.module import GenerativeModel
from probgen.core.runtime import local_parameters
from probgen.train import checkpoint as disk
from probgen.train.data import Selection, Source
from probgen.train.history import History
from probgen.train.rehearsal import RowScale, autopsy
from probgen.train.rows import Batch

if TYPE_CHECKING:
    from lightning_fabric import Fabric


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
    ):
        self.rows_of = rows_of
        self.gen, self.module, self.source, self.fabric = gen, loss, source, fabric
        self.scheduler = None if scheduler is None else scheduler(optimizer)
        self.clip, self.decay = clip, ema
        self.loss, self.optimizer = fabric.setup(loss, optimizer)
        self.parameters = [p for p in loss.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters] if ema is not None else None
        self.best: tuple[float, dict[str, Tensor]] | None = None
        self.waited, self.history, self.stop = 0, History(), None

    @property
    def step(self) -> int:
        return self.history.steps

    def advance(self) -> None:
        """One step: a batch, its loss per row and gradient, and an update if both are finite."""
        self.learn(*self.source.choose())

    def learn(self, selection: Selection, rows: int) -> None:
        """One step on the rows chosen, of so many in all processes."""
        batch = self.fetch(selection)
        value = self.per_row(batch, rows / self.fabric.world_size, index=self.source.index(selection))
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(value)
        norm = self._clip()
        value = self.fabric.all_reduce(value.detach(), reduce_op="mean") if self.fabric.world_size > 1 else value
        self.note([value.item(), norm.item()], selection)
        self.update()

    def fetch(self, selection: Selection) -> Batch:
        """The batch of a selection, on the device."""
        batch = self.source.batch(selection)
        return batch if self.fabric.device.type == "cpu" else self.fabric.to_device(batch)

    def note(self, result: list[float], selection: Selection) -> None:
        """Records loss and gradient norm of a step, or raises :class:`NonFiniteLoss`."""
        loss, norm = result
        if not (abs(loss) < float("inf") and norm < float("inf")):
            raise self._failure(loss, norm, self.fetch(selection))
        self.history.loss.append(loss)
        self.history.gradient_norm.append(norm)

    @torch.no_grad()
    def update(self) -> None:
        """Moves the parameters along the gradients that they hold."""
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        if self.average is not None:
            torch._foreach_lerp_(self.average, self.parameters, 1 - self.decay)

    def per_row(
        self, batch: Batch, rows: float | None = None, loss: Callable | None = None, index: Tensor | None = None
    ) -> Tensor:
        """The objective of a batch divided by its number of rows, or by ``rows``.

        ``index`` numbers the rows of the batch among all rows, for a guide with parameters for each of them.
        """
        own, plate = self._count(batch), self.gen.plate
        total = self.source.rows or own
        with local_parameters(), RowScale(plate, own, total), self.rows_of(plate, total, index):
            return (loss or self.loss)(*batch) / (rows or own)

    def _count(self, batch: Batch) -> int:
        return self.source.layout.like(batch).count(batch)

    def _clip(self) -> Tensor:
        if self.clip is not None:
            return self.fabric.clip_gradients(self.loss, self.optimizer, max_norm=self.clip, error_if_nonfinite=False)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        norms = torch._foreach_norm([p.grad for p in trained if p.grad is not None])
        kind = _wide(norms)
        return torch.linalg.vector_norm(torch.stack([norm.to(kind) for norm in norms]))

    def _failure(self, loss: float, norm: float, batch: Batch) -> NonFiniteLoss:
        self.history.stopped = "the loss was not finite"
        return NonFiniteLoss(
            f"step {self.step + 1}: loss {loss:.4g}, gradient norm {norm:.4g}; the model keeps its state after step "
            f"{self.step}\n  {autopsy(self.gen, self.module, batch)}\n  try a lower learning rate, clip=..., or look "
            "at the rows named above",
            self.history,
        )

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
        for parameter, mean in zip(self.parameters, self.average or (), strict=False):
            old = parameter.clone()
            parameter.copy_(mean)
            mean.copy_(old)

    def validate(self, batches: list[Batch]) -> float:
        """Mean objective per validation row, in eval mode, with the same noise every time; remembers the best state."""
        training = self.module.training
        self.module.eval()
        with self.averaged(), torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            rows = sum(map(self._count, batches))
            total = sum(self.per_row(self.fabric.to_device(batch), rows, self.module) for batch in batches)
            value = self.fabric.all_reduce(total, reduce_op="mean") if self.fabric.world_size > 1 else total
            value = value.item()
            self.module.train(training)
            self.history.validation.append((self.step, value))
            if self.best is None or value < self.best[0]:
                self.best, self.waited = (value, _copy(self.module.state_dict())), 0
            else:
                self.waited += 1
        return value

    def finish(self, restore_best: bool) -> None:
        """Leaves the model with the best state where there is one to restore, else with its averaged weights."""
        if restore_best and self.best is not None:
            self.module.load_state_dict(self.best[1])
        else:
            self.swap()

    # -- the state on disk ---------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Writes the whole state from the first process; see :func:`probgen.train.checkpoint.write`."""
        state = self.optimizer.state_dict()["state"]
        tensors = {f"module/{name}": value for name, value in self.module.state_dict().items()}
        for index, entries in state.items():
            tensors |= {f"optimizer/{index}/{k}": torch.as_tensor(v) for k, v in entries.items() if v is not None}
        for name, mean in zip(self._names(), self.average or (), strict=False):
            tensors[f"ema/{name}"] = mean
        if self.best is not None:
            tensors |= {f"best/{name}": value for name, value in self.best[1].items()}
        tensors["random/cpu"] = torch.get_rng_state()
        if self.fabric.device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state(self.fabric.device)
        history = self.history
        tensors["history/loss"] = torch.tensor(history.loss, dtype=torch.float64)
        tensors["history/gradient_norm"] = torch.tensor(history.gradient_norm, dtype=torch.float64)
        if self.fabric.is_global_zero:
            disk.write(path, tensors, self._metadata())

    def _metadata(self) -> dict[str, Any]:
        groups = [
            {k: v for k, v in group.items() if k != "params"} for group in self.optimizer.state_dict()["param_groups"]
        ]
        return {
            "cursor": self.source.cursor(),
            "rows": self.source.rows,
            "groups": groups,
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "validation": self.history.validation,
            "seconds": self.history.seconds,
            "best": None if self.best is None else self.best[0],
            "waited": self.waited,
            "torch": torch.__version__,
        }

    def load(self, path: Path) -> None:
        """Continues from a state on disk; raises :class:`CheckpointError` if it belongs to another run."""
        tensors, metadata = disk.read(path)
        if "cursor" not in metadata:
            raise disk.CheckpointError(f"{path} holds a saved model, not a training state; use probgen.load for it")
        if metadata["rows"] != self.source.rows:
            raise disk.CheckpointError(
                f"expected the {metadata['rows']} rows that {path} was trained on, got {self.source.rows}; pass them"
            )
        disk.load_into(self.module, _under(tensors, "module/"), path)
        self._load_optimizer(tensors, metadata, path)
        for name, mean in zip(self._names(), self.average or (), strict=False):
            mean.copy_(tensors[f"ema/{name}"])
        if metadata["best"] is not None:
            self.best = (metadata["best"], _under(tensors, "best/"))
        self.waited = metadata["waited"]
        self.history = History(
            tensors["history/loss"].tolist(),
            tensors["history/gradient_norm"].tolist(),
            [tuple(pair) for pair in metadata["validation"]],
            metadata["seconds"],
        )
        self.source.seek(metadata["cursor"])
        torch.set_rng_state(tensors["random/cpu"])
        if "random/cuda" in tensors and self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random/cuda"], self.fabric.device)

    def _load_optimizer(self, tensors: dict[str, Tensor], metadata: dict[str, Any], path: Path) -> None:
        own = self.optimizer.state_dict()
        if len(own["param_groups"]) != len(metadata["groups"]):
            raise disk.CheckpointError(
                f"{path} has {len(metadata['groups'])} parameter groups, the optimizer "
                f"{len(own['param_groups'])}; pass the optimizer that it was written with"
            )
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _under(tensors, "optimizer/").items():
            index, key = name.split("/")
            state.setdefault(int(index), {})[key] = value
        groups = [
            {**saved, "params": group["params"]}
            for saved, group in zip(metadata["groups"], own["param_groups"], strict=True)
        ]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        if self.scheduler is not None and metadata["scheduler"] is not None:
            self.scheduler.load_state_dict(metadata["scheduler"])

    def _names(self) -> list[str]:
        return [name for name, p in self.module.named_parameters() if p.requires_grad]


def _wide(values: Sequence[Tensor]) -> torch.dtype:
    """The precision of the most precise one, at least single."""
    return functools.reduce(torch.promote_types, (value.dtype for value in values), torch.float32)


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}
