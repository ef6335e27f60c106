"""States on disk: safetensors with a JSON header, written atomically, checked on load, never unpickled."""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

FORMAT = "probgen-1"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, read, or does not belong to this model."""


def write(path: str | os.PathLike, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Writes tensors and JSON-able metadata to one file: afterwards it is the old one or the new one, whole.

    Raises
    ------
    CheckpointError
        If the folder cannot be written or the disk is full; an earlier file at ``path`` is left as it was.
    """
    path = Path(path)
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    header = {"format": FORMAT, "checksum": str(_checksum(tensors)), "metadata": json.dumps(metadata)}
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".part", delete=False) as file:
            temporary = Path(file.name)
            file.write(to_bytes(tensors, header))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"cannot write {path}: {error}; choose a folder that is writable and has space"
        ) from error


def read(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what :func:`write` wrote; raises :class:`CheckpointError` for missing, foreign or damaged files."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"expected a checkpoint at {path}, found no file; check the path")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file ({error}); use an earlier copy") from error
    if header.get("format") != FORMAT:
        raise CheckpointError(f"expected format {FORMAT} in {path}, got {header.get('format')}; it was not saved here")
    if int(header["checksum"]) != _checksum(tensors):
        raise CheckpointError(f"{path} is damaged: its checksum does not fit its content; use an earlier copy")
    return tensors, json.loads(header["metadata"])


def _checksum(tensors: dict[str, Tensor]) -> int:
    total = 0
    for name in sorted(tensors):
        value = tensors[name].reshape(-1)
        total = zlib.crc32(name.encode(), total)
        total = zlib.crc32(value.view(torch.uint8).numpy().data, total) if value.numel() else total
    return total


def save(module: nn.Module, path: str | os.PathLike) -> None:
    """Saves the parameters and buffers of a module.

    >>> import tempfile, os
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(nn.Linear(2, 1), os.path.join(folder, "linear.safetensors"))
    ...     _ = load(nn.Linear(2, 1), os.path.join(folder, "linear.safetensors"))
    """
    write(path, module.state_dict(), {"class": type(module).__name__})


def load(module: nn.Module, path: str | os.PathLike) -> nn.Module:
    """Loads parameters and buffers into a module of the same structure, and returns it.

    A training checkpoint of :func:`probgen.fit` serves as well: its model is taken (EMA weights where it has them).
    Raises :class:`CheckpointError` naming the entries that are missing, unexpected or of another shape; the module
    is untouched then.
    """
    tensors, metadata = read(path)
    if "cursor" in metadata:
        averaged = {
            "module/" + name[len("ema/") :]: value for name, value in tensors.items() if name.startswith("ema/")
        }
        tensors = {**tensors, **averaged}
        prefix = "module/gen."
        tensors = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
    load_into(module, tensors, path)
    return module


@runtime_checkable
class Awaiting(Protocol):
    """A module some of whose parameters come into being at its first run: a Program with an AutoGuide."""

    def awaits(self, name: str) -> bool:
        """Whether the first run may make an entry of that name."""


def load_into(module: nn.Module, tensors: dict[str, Tensor], path: str | os.PathLike) -> None:
    """``load_state_dict`` that compares names and shapes first, and says all differences at once."""
    own = module.state_dict()
    awaited = {name for name in tensors if isinstance(module, Awaiting) and module.awaits(name)}
    problems = [f"missing {name}" for name in own if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in own and name not in awaited]
    problems += [
        f"{name}: expected shape {tuple(own[name].shape)}, got {tuple(tensors[name].shape)}"
        for name in own
        if name in tensors and own[name].shape != tensors[name].shape
    ]
    if problems:
        raise CheckpointError(
            f"{path} belongs to another model ({'; '.join(problems[:8])}); build the model with the arguments that it "
            "was saved with"
        )
    module.load_state_dict(tensors)
