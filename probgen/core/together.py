"""Several processes that work on one result: sums, values and errors that all of them share.

Processes are those of a launched ``lightning_fabric.Fabric``, as :func:`probgen.fit` takes it. Each
of them runs the same script and holds the same model; what it holds of the data is a part. Whatever
one of them refuses, all refuse: none waits for another one that gave up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from probgen.core.checks.reports import short, wrong_type
from probgen.core.checksum import checksum
from probgen.core.rows import leaves_of
from probgen.core.streams import RowStream, SeekableRows, telling

OF_CONNECTIONS = ("gloo/", "NCCL", "Connection closed by peer", "Connection reset by peer")
# types of errors that one process may raise for another
KNOWN = (
    torch.linalg.LinAlgError,
    NotImplementedError,
    ValueError,
    TypeError,
    KeyboardInterrupt,
)


@runtime_checkable
class Processes(Protocol):
    """What is asked of a ``lightning_fabric.Fabric``."""

    @property
    def global_rank(self) -> int:
        """The number of this process."""

    @property
    def world_size(self) -> int:
        """How many processes there are."""

    @property
    def device(self) -> torch.device:
        """Where this process computes."""

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """What the process ``src`` passes, in all of them."""

    def all_reduce(self, data: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """The sum over all processes."""


class Together:
    """One process among those of a fabric; alone where there is none.

    Parameters
    ----------
    fabric : lightning_fabric.Fabric, optional
        A fabric that was launched. Default: this process is the only one.

    Raises
    ------
    TypeError
        If it is something else.
    ValueError
        If it was not launched.

    >>> alone = Together()
    >>> alone.part, alone.first, alone.gather("rows")
    ((0, 1), True, ['rows'])
    >>> alone.sums({"rows": torch.tensor(3.0)})
    {'rows': tensor(3., dtype=torch.float64)}
    """

    def __init__(self, fabric: Any = None):
        self.fabric = fabric
        if fabric is None:
            self.rank = 0
            self.world = 1
            return
        if isinstance(fabric, type) or not isinstance(fabric, Processes):
            how = "fabric = lightning_fabric.Fabric(devices=2); fabric.launch()"
            wrong_type("fabric to be a launched lightning_fabric.Fabric", fabric, how)
        self.rank = fabric.global_rank
        self.world = fabric.world_size
        if self.world > 1 and not _are_running():
            raise ValueError(
                f"expected a fabric whose {self.world} processes run, got one that was not "
                "launched; call fabric.launch() first"
            )

    @property
    def part(self) -> tuple[int, int]:
        """The number of this process, and how many there are."""
        return self.rank, self.world

    @property
    def first(self) -> bool:
        """Whether this is the process that does what is done once."""
        return self.rank == 0

    def share(self, value: Any, source: int = 0) -> Any:
        """What one process holds, in all of them; the others pass anything."""
        if self.world == 1:
            return value
        with self._answering():
            return self.fabric.broadcast(value, src=source)

    def gather(self, value: Any) -> list[Any]:
        """What every process holds, in their order, in all of them."""
        if self.world == 1:
            return [value]
        return [self.share(value, source) for source in range(self.world)]

    def total(self, value: float) -> float:
        """The sum of a number of every process; whole numbers stay exact up to 2 ** 53."""
        return float(self.sums({"": torch.tensor(value, dtype=torch.float64)})[""])

    def sums(
        self, parts: Mapping[str, Tensor], layout: Mapping[str, torch.Size] | None = None
    ) -> dict[str, Tensor]:
        """Sums over all processes in float64, by name, in one exchange.

        Parameters
        ----------
        parts : mapping of str to Tensor
            What this process adds; it may be empty where this process has no rows.
        layout : mapping of str to torch.Size, optional
            Names and shapes, the same in all processes; default: those of ``parts``.
        """
        shapes = {name: part.shape for name, part in parts.items()} if layout is None else layout
        if self.world == 1:
            return {name: part.double() for name, part in parts.items()}
        device = self.fabric.device
        none = [torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes.values()]
        held = [
            parts[name].to(device, torch.float64) if name in parts else zero
            for name, zero in zip(shapes, none, strict=True)
        ]
        flat = torch.cat([part.flatten() for part in held])
        with self._answering():
            summed = self.fabric.all_reduce(flat, reduce_op="sum").split([p.numel() for p in held])
        return {
            name: part.reshape(shape)
            for (name, shape), part in zip(shapes.items(), summed, strict=True)
        }

    @torch.no_grad()
    def same_state(self, module: nn.Module) -> None:
        """Parameters and buffers of the first process in all of them, in place."""
        if self.world == 1:
            return
        state = {name: value.cpu() for name, value in module.state_dict().items()}
        module.load_state_dict(self.share(state))

    def check_alike(self, facts: Mapping[str, Any]) -> None:
        """Refuses what is not the same in all processes, which would wait for one another in vain.

        Or work on parts of different wholes. ``ValueError`` in all of them.

        >>> Together().check_alike({"particles": 3})
        """
        everywhere = self.gather(dict(facts))
        for name in facts:
            found = [each.get(name) for each in everywhere]
            if any(each != found[0] for each in found):
                raise ValueError(
                    f"expected the same {name} in all processes, got {_listed(found)}; give all of "
                    "them the same arguments, of data all rows to each, or a stream"
                )

    def check_call(self, gen: Any, data: Any, settings: Mapping[str, Any]) -> None:
        """As :meth:`check_alike`, of a call with a model and data; ``gen`` where its weights matter.

        Data are tensors, or a stream, of which some rows are read.
        """
        if self.world == 1:
            return
        with self.agreed():
            facts = {**settings, "data": checksum(_telling(data))}
            if gen is not None:
                facts["weights of the model"] = checksum(gen.state_dict().values())
        self.check_alike(facts)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Says in a sentence that another process does not answer."""
        try:
            yield
        except RuntimeError as error:
            if not is_of_connection(error):
                raise
            raise RuntimeError(
                f"process {self.rank}: another process has ended, or has not answered in time; its "
                f"own output says why ({str(error).strip().splitlines()[0][:200]})"
            ) from error

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Errors in the block of any process are raised by all of them, when all are done with it.

        The block itself exchanges nothing.
        """
        if self.world == 1:
            yield
            return
        error: BaseException | None = None
        try:
            yield
        except (Exception, KeyboardInterrupt) as raised:
            error = raised
        self.raise_first(error)

    def raise_first(self, error: BaseException | None) -> None:
        """Raises the error of the first process that has one, in all of them."""
        told = None if error is None else (_type_of(error), str(error))
        found = [each for each in self.gather(told) if each is not None]
        if not found:
            return
        if error is not None:
            raise error
        kind, message = found[0]
        raise kind(message)


def is_of_connection(error: BaseException) -> bool:
    """Whether an error says that processes have lost one another.

    >>> is_of_connection(RuntimeError("[gloo/transport] Connection closed by peer"))
    True
    """
    if not isinstance(error, RuntimeError):
        return False
    distributed = torch.distributed
    known = isinstance(error, distributed.DistError) if distributed.is_available() else False
    return known or any(word in str(error) for word in OF_CONNECTIONS)


def _telling(data: Any) -> Sequence[Any]:
    """Tensors of data, or what tells a stream from others."""
    if not isinstance(data, RowStream):
        return leaves_of(tuple(data))
    facts = str((type(data).__name__, data.size, data.names))
    return (facts, *telling(data)) if isinstance(data, SeekableRows) else (facts,)


def _listed(found: Sequence[Any]) -> str:
    return ", ".join(f"{short(each)} in process {rank}" for rank, each in enumerate(found))


def _type_of(error: BaseException) -> type[BaseException]:
    """The type under which others raise an error: one that a sentence alone makes."""
    return next((kind for kind in KNOWN if isinstance(error, kind)), RuntimeError)


def _are_running() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
