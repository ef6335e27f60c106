"""Parameters, gradients and optimizer state of which each of several processes holds a part."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probgen.core.checks.reports import wrong_type, wrong_value
from probgen.libraries import load

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import Strategy

HALF_AN_HOUR = timedelta(minutes=30)
TIMEOUT = "pass datetime.timedelta(minutes=5), or leave it out"
LATE = (
    "expected all parameters before the first step where processes hold parts of them, got one "
    "that the program states later; state it in every run of the program, or train with "
    "strategy='ddp'"
)


def fully_sharded(timeout: timedelta = HALF_AN_HOUR) -> Strategy:
    r"""A strategy of Fabric: each process holds a part of parameters, gradients and optimizer state.

    Of n processes each keeps an n-th of each parameter (of its first dim), with what the optimizer
    keeps of that and its average (``fit(ema=)``). Before the loss of a batch the parameters are
    gathered, and afterwards each process gets its part of the gradient and drops the rest. Losses are
    those of one process with the whole batch, up to rounding, as with ``strategy="ddp"``, which holds
    everything in every process. Per step a process receives :math:`(n - 1) / n` of the parameters and
    as much of the gradients.

    It stands on :func:`torch.distributed.fsdp.fully_shard`, and runs on GPUs (nccl) and on the CPU
    (gloo). After :func:`probgen.fit` the model is whole in every process. Callbacks that look at it
    or draw from it do so inside ``with run.whole():``, in all processes. A checkpoint is a file and a
    folder of shards beside it; each process writes its own, and any number of processes goes on from
    them. Parameters without dims are held by all.

    Parameters
    ----------
    timeout : datetime.timedelta
        How long processes wait for one another before they say that one is gone.

    Returns
    -------
    lightning_fabric.strategies.Strategy
        For ``Fabric(strategy=fully_sharded(), devices=...)``.

    Raises
    ------
    TypeError
        If ``timeout`` is no timedelta.
    ValueError
        If it is not positive.

    References
    ----------
    Rajbhandari et al. (2020), ZeRO: Memory optimizations toward training trillion parameter models,
    https://arxiv.org/abs/1910.02054; Zhao et al. (2023), PyTorch FSDP, https://arxiv.org/abs/2304.11277

    >>> from lightning_fabric import Fabric
    >>> fabric = Fabric(accelerator="cpu", devices=2, strategy=fully_sharded())
    >>> fabric.world_size
    2
    """
    if not isinstance(timeout, timedelta):
        wrong_type("timeout as a datetime.timedelta", timeout, TIMEOUT)
    if timeout <= timedelta(0):
        wrong_value("timeout > 0", timeout, TIMEOUT)
    strategy: Strategy = _strategy_class()(timeout)
    return strategy


@functools.cache
def _strategy_class() -> type:
    load("lightning_fabric")
    from lightning_fabric.strategies import ModelParallelStrategy

    class FullySharded(ModelParallelStrategy):
        """Whole batches are spread over all processes, and none of them shares one."""

        def __init__(self, timeout: timedelta):
            super().__init__(_shard, timeout=timeout)

        @property
        def distributed_sampler_kwargs(self) -> dict[str, Any]:
            return {"num_replicas": self.world_size, "rank": self.global_rank}

    return FullySharded


class _Shell(nn.Module):
    """Around the loss, so that hooks and another class come to none of the user's modules."""

    def __init__(self, loss: nn.Module):
        super().__init__()
        self.loss = loss

    def forward(self, *batch: Any) -> Tensor:
        value: Tensor = self.loss(*batch)
        return value


@torch.no_grad()
def _shard(module: nn.Module, _: Any = None) -> nn.Module:
    """Gives each process its part of the parameters that the first process has."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    world = torch.distributed.get_world_size()
    if world == 1:
        return module
    for value in (*module.parameters(), *module.buffers()):
        torch.distributed.broadcast(value.data, 0)
    mesh = init_device_mesh(next(module.parameters()).device.type, (world,))
    scalars = {p for p in module.parameters() if not p.ndim}
    fully_shard(module, mesh=mesh, reshard_after_forward=False, ignored_params=scalars)
    return module


def own_part(value: Tensor) -> Tensor:
    """What this process holds of a tensor: all of it, unless it is sharded.

    >>> own_part(torch.ones(2))
    tensor([1., 1.])
    """
    return value.to_local() if is_sharded(value) else value  # type: ignore[attr-defined]


def is_sharded(value: Tensor) -> bool:
    """Whether this process holds a part of a tensor alone."""
    if type(value) in (Tensor, nn.Parameter):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def set_up(
    fabric: Fabric, loss: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Any, Any, Sharding | None]:
    """Loss and optimizer as Fabric wraps them, and what knows of their parts where they are sharded.

    Raises
    ------
    ValueError
        For strategies that keep parts of the parameters in other ways.
    """
    if not _is_ours(fabric):
        return (*fabric.setup(loss, optimizer), None)
    if fabric.world_size == 1:
        return fabric.setup_module(loss), fabric.setup_optimizers(optimizer), None
    shell = _Shell(loss)
    before = dict(loss.named_parameters())
    wrapped = fabric.setup_module(shell)
    after = dict(loss.named_parameters())
    replaced = {id(p): after[name] for name, p in before.items()}
    for group in optimizer.param_groups:
        group["params"] = [replaced.get(id(p), p) for p in group["params"]]
    sharding = Sharding(fabric, loss, shell, before)
    return wrapped, fabric.setup_optimizers(optimizer), sharding


def _is_ours(fabric: Fabric) -> bool:
    """Whether the strategy is that of :func:`fully_sharded`; other ones that shard are refused."""
    from lightning_fabric.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

    strategy = fabric.strategy
    if isinstance(strategy, _strategy_class()):
        _check_precision(fabric)
        return True
    if isinstance(strategy, DeepSpeedStrategy | FSDPStrategy | ModelParallelStrategy):
        raise ValueError(
            "expected one process, strategy='ddp' or strategy=probgen.train.fully_sharded(), got "
            f"{type(strategy).__name__}, whose parts of parameters fit cannot put together; pass "
            "fully_sharded(), which shards parameters, gradients and optimizer state"
        )
    return False


def _check_precision(fabric: Fabric) -> None:
    if getattr(fabric.strategy.precision, "scaler", None) is not None:
        raise ValueError(
            "expected a precision without loss scaling for fully_sharded(), got '16-mixed'; pass "
            "precision='bf16-mixed', or strategy='ddp'"
        )


class Sharding:
    """The parameters of a run of which each process holds a part, and how they become whole.

    Parameters
    ----------
    fabric : lightning_fabric.Fabric
        The processes.
    loss : nn.Module
        Whose parameters are sharded.
    shell : nn.Module
        The module around it that gathers them.
    before : dict of str to Parameter
        The parameters as they were; they give their memory up until :meth:`end`.
    """

    def __init__(
        self, fabric: Fabric, loss: nn.Module, shell: Any, before: dict[str, nn.Parameter]
    ):
        self.fabric = fabric
        self.loss = loss
        self.shell = shell
        self.before = before
        self.names = [name for name, p in loss.named_parameters() if is_sharded(p)]
        for name in self.names:
            before[name].data = before[name].new_empty(0)

    def __call__(self, *batch: Any) -> Tensor:
        """The loss of a batch, after which no process keeps what was gathered for it."""
        try:
            value: Tensor = self.shell(*batch)
        finally:
            self.shell.reshard()
        return value

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside, the modules have whole parameters."""
        self.shell.unshard()
        try:
            yield
        finally:
            self.shell.reshard()

    def like(self, shape: tuple[int, ...], kind: torch.dtype) -> Tensor:
        """A tensor of which this process holds a part, to be filled."""
        from torch.distributed.tensor import Shard, empty

        mesh, places = self._mesh(), [Shard(0)]
        part: Tensor = empty(*shape, dtype=kind, device_mesh=mesh, placements=places)
        return part

    def in_parts(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of a state that was written whole, as this process holds them."""
        from torch.distributed.tensor import Shard, distribute_tensor

        shapes = {name: self.before_shape(name) for name in self.names}
        kept = {f"{kind}/{name}" for kind in ("module", "ema", "best") for name in self.names}
        states = {f"optimizer.state.{name}.": shape for name, shape in shapes.items()}

        def sharded(name: str, value: Tensor) -> bool:
            of_optimizer = (shape for start, shape in states.items() if name.startswith(start))
            return name in kept or value.shape in of_optimizer

        return {
            name: distribute_tensor(
                value.to(self.fabric.device), self._mesh(), [Shard(0)], src_data_rank=None
            )
            if sharded(name, value)
            else value
            for name, value in tensors.items()
        }

    def before_shape(self, name: str) -> torch.Size:
        """The shape of a whole parameter."""
        return self.loss.get_parameter(name).shape

    def _mesh(self) -> Any:
        held: Any = self.loss.get_parameter(self.names[0])
        return held.device_mesh

    @torch.no_grad()
    def share_buffers(self) -> None:
        """Gives all processes the buffers of the first, as DDP does."""
        kinds: dict[torch.dtype, list[Tensor]] = {}
        for buffer in self.loss.buffers():
            if buffer.is_floating_point() and buffer.numel():
                kinds.setdefault(buffer.dtype, []).append(buffer)
        for buffers in kinds.values():
            together = torch.cat([buffer.reshape(-1) for buffer in buffers])
            torch.distributed.broadcast(together, 0)
            sizes = [buffer.numel() for buffer in buffers]
            for buffer, value in zip(buffers, together.split(sizes), strict=True):
                buffer.copy_(value.view(buffer.shape))

    @torch.no_grad()
    def clip(self, trained: Sequence[Tensor], largest: float | None) -> Tensor:
        """The norm of the whole gradient, which is scaled down to a bound where there is one."""
        from probgen.train.watch import check_reached

        held = [p for p in trained if p.grad is not None]
        check_reached([p.grad for p in held if p.grad is not None])
        parts = []
        for p in held:
            assert p.grad is not None
            if not is_sharded(p.grad):
                mean: Any = self.fabric.all_reduce(p.grad, reduce_op="mean")
                p.grad.copy_(mean)
            parts.append(own_part(p.grad))
        norm = self._norm([is_sharded(p.grad) for p in held], parts)  # type: ignore[arg-type]
        if largest is not None:
            factor = (largest / (norm + 1e-6)).clamp(max=1.0)
            for part in parts:
                part.mul_(factor.to(part.dtype))
        return norm

    def _norm(self, sharded: Sequence[bool], parts: Sequence[Tensor]) -> Tensor:
        """Of parts that differ from process to process, and of what all of them hold."""
        squares = [part.double().square().sum() for part in parts]
        zero = torch.zeros((), dtype=torch.float64, device=self.fabric.device)
        own = sum((s for s, part in zip(squares, sharded, strict=True) if part), zero)
        shared = sum((s for s, part in zip(squares, sharded, strict=True) if not part), zero)
        total: Any = self.fabric.all_reduce(own, reduce_op="sum")
        return (total + shared).sqrt()

    @torch.no_grad()
    def end(self) -> None:
        """Gives the modules whole parameters for good, the ones that they had before the run."""
        self.shell.reshard()
        held: dict[str, Any] = dict(self.loss.named_parameters())
        whole = {name: held[name].full_tensor() for name in self.names}
        for module in self.loss.modules():
            for name, p in list(module.named_parameters(recurse=False)):
                if is_sharded(p):
                    place = next(at for at in self.names if held[at] is p)
                    original = self.before[place]
                    original.data = whole[place]
                    setattr(module, name, original)


def check_stages(fabric: Fabric, count: int) -> None:
    """Refuses several stages of a sharded run; ``ValueError``."""
    if count > 1 and _is_ours(fabric):
        raise ValueError(
            f"expected one stage with fully_sharded(), got {count}; train them by a call of fit "
            "each, or with strategy='ddp'"
        )
