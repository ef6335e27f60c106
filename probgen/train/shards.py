"""States of which each process writes its own part: shards in a folder beside the checkpoint."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probgen.train.checkpoint import CheckpointError, read
from probgen.train.sharding import is_sharded

Tensors = dict[str, Tensor]
Like = Callable[[tuple[int, ...], torch.dtype], Tensor]


def free_folder(path: Path, step: int) -> str:
    """The name of a folder for the shards of a step, beside those that the file tells of.

    >>> free_folder(Path("run.checkpoint"), 12)
    'run.checkpoint.shards12'
    """
    name = f"{path.name}.shards{step}"
    return f"{name}-again" if path.with_name(name).exists() else name


def parted(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """Those of which this process holds a part, and the others."""
    sharded = {name: value for name, value in tensors.items() if is_sharded(value)}
    return sharded, {name: value for name, value in tensors.items() if name not in sharded}


def write_shards(folder: Path, sharded: Tensors) -> dict[str, Any]:
    """Writes the part of this process, as the others do theirs; gives what the file says of it.

    By :mod:`torch.distributed.checkpoint`, as safetensors: nothing is gathered, and nothing that is
    read will be unpickled.

    Raises
    ------
    CheckpointError
        In all processes, if one of them cannot write; earlier shards are left as they were.
    """
    import torch.distributed.checkpoint as distributed

    rank = torch.distributed.get_rank()
    if rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
    torch.distributed.barrier()
    try:
        distributed.save(
            dict(sharded),
            storage_writer=distributed.HuggingFaceStorageWriter(str(folder), save_distributed=True),
        )
    except distributed.CheckpointException as error:
        raise CheckpointError(
            f"cannot write {folder}: {_reason(error)}; choose a folder that all processes see, that "
            "is writable and has space"
        ) from error
    files = sorted(folder.glob("*.safetensors"))
    own = {file.name: _digest(file) for file in files[rank :: torch.distributed.get_world_size()]}
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, own)
    return {
        "folder": folder.name,
        "files": {name: digest for part in found for name, digest in part.items()},
        "tensors": {
            name: [list(value.shape), str(value.dtype).removeprefix("torch.")]
            for name, value in sharded.items()
        },
    }


def remove_others(path: Path, kept: str | None) -> None:
    """Removes the shards of earlier states, once the file tells of others."""
    for folder in path.parent.glob(f"{path.name}.shards*"):
        if folder.name != kept and folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)


def read_shards(path: Path, told: Mapping[str, Any], like: Like) -> Tensors:
    """The tensors that shards hold, whole, or the part of this process where ``like`` gives these.

    Raises
    ------
    CheckpointError
        For shards that are missing or damaged.
    """
    import torch.distributed.checkpoint as distributed

    try:
        folder = path.with_name(Path(told["folder"]).name)
        files = {folder / Path(name).name: digest for name, digest in told["files"].items()}
        tensors = {
            name: like(tuple(shape), getattr(torch, kind))
            for name, (shape, kind) in told["tensors"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is damaged: it tells of no shards ({error!r}); use an earlier copy"
        ) from error
    for file, digest in files.items():
        _check(path, file, digest)
    together = any(map(is_sharded, tensors.values()))
    try:
        with _quietly():
            distributed.load(
                tensors,
                storage_reader=distributed.HuggingFaceStorageReader(str(folder)),
                no_dist=not together,
            )
    except distributed.CheckpointException as error:
        raise CheckpointError(
            f"cannot read {folder}: {_reason(error)}; use an earlier copy"
        ) from error
    return tensors


def read_whole(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """A file as :func:`probgen.train.checkpoint.read` gives it, with what stands in shards."""
    tensors, metadata = read(path)
    if "shards" in metadata:
        tensors |= read_shards(path, metadata["shards"], whole_like)
    return tensors, metadata


def whole_like(shape: tuple[int, ...], kind: torch.dtype) -> Tensor:
    """Where a tensor is read to that this process holds whole.

    >>> whole_like((2, 3), torch.float64).dtype
    torch.float64
    """
    return torch.empty(shape, dtype=kind)


def _check(path: Path, file: Path, digest: str) -> None:
    if not file.is_file():
        raise CheckpointError(
            f"expected the shard {file} of {path}, found no file; move the file together with the "
            "folders and files whose names begin with its name"
        )
    if _digest(file) != digest:
        raise CheckpointError(
            f"{file} is damaged: its checksum does not fit its content; use an earlier copy"
        )


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _reason(error: BaseException) -> str:
    """What failed, without the places in code that torch tells of every process."""
    failures = getattr(error, "failures", {})
    first = next(iter(failures.values()), (error, None))
    return str(first[0] if isinstance(first, tuple) else first).strip().splitlines()[-1]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without a warning that one process reads alone, which is what is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
