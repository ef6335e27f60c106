"""What has to be the same in every process before they train together."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from probgen.core.rows import tensors_of
from probgen.train.history import FitWarning
from probgen.train.settings import fingerprint, fingerprint_of
from probgen.train.stream import BatchStream
from probgen.train.watch import readable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning_fabric import Fabric

    from probgen.train.data import Source

SHARED_OUT = (
    "give every process all rows, of which each takes its share, or a DataLoader with a "
    "DistributedSampler"
)
LENGTHS = (  # each decides when processes wait for one another
    "steps",
    "epochs",
    "batch_size",
    "drop_last",
    "accumulate",
    "clip",
    "ema",
    "validation",
    "validate_every",
    "patience",
    "checkpoint",
    "checkpoint_every",
)


def facts_of(source: Source) -> dict[str, Any]:
    """What of the data is to be the same, by the names that messages use.

    Batches of loaders are each process's own.
    """
    facts: dict[str, Any] = {"form of data": type(source).__name__}
    data = None if isinstance(source, BatchStream) else source.contents()
    if data is not None:
        facts["shapes of data"] = [tuple(part.shape) for part in tensors_of(tuple(data))]
        facts["checksum of data"] = fingerprint(source)
    return facts


def tell_same_rows(source: Any, fabric: Fabric) -> None:
    """Warns where each of several processes begins with the same batch of a loader of its own."""
    if fabric.world_size == 1 or not isinstance(source, BatchStream):
        return
    number = int(fingerprint_of([], [source.peek()]) or "0", 16)
    found = fabric.all_gather(torch.tensor(number, device=fabric.device))
    if len(set(torch.as_tensor(found).tolist())) == 1:
        warnings.warn(
            f"each of {fabric.world_size} processes gets the same batches, so that more of them add "
            "nothing; share the rows out: give the data set itself, pg.streams.Iterated(dataset) for "
            "one that is iterated, or a DataLoader with a DistributedSampler",
            FitWarning,
            stacklevel=2,
        )


def facts_of_parameters(loss: nn.Module) -> dict[str, Any]:
    """How many parameters are trained, and the shape of each.

    >>> facts_of_parameters(nn.Linear(2, 1))
    {'number of trained parameters': 2, 'shape of weight': (1, 2), 'shape of bias': (1,)}
    """
    trained = [(name, p) for name, p in loss.named_parameters() if p.requires_grad]
    shapes = {f"shape of {readable(n)}": None if is_lazy(p) else tuple(p.shape) for n, p in trained}
    return {"number of trained parameters": len(trained)} | shapes


def settings_in(given: Mapping[str, Any]) -> dict[str, Any]:
    """Of the settings of a run those that processes wait for one another by."""
    return {name: given[name] for name in LENGTHS}
