"""States on disk: safetensors with a JSON header, written atomically, checked on load.

Never unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from probgen.train.files import Held, content_of, held, replace

if TYPE_CHECKING:
    from probgen.train.agreement import Agreement

FORMAT = "probgen-2"
FIRST = "probgen-1"  # its checksum is of the tensors alone; still read
_OF_MODEL = re.compile(r"(missing |unexpected )?gen\.")  # in a run; the rest is its objective's
UNSEALED = b"0" * 64


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, read, or does not belong to this model."""


def write(path: str | os.PathLike, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Writes tensors and JSON-able metadata to one file.

    Afterwards it is the old one or the new one, whole.

    A link is written through to the file that it points to.

    Raises
    ------
    CheckpointError
        If the folder cannot be written or the disk is full, or for what a file cannot hold; an
        earlier file at ``path`` is left as it was.
    """
    content = _sealed({name: _plain(name, value) for name, value in tensors.items()}, metadata)
    try:
        replace(Path(path), content)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot write {path}: {error}; choose a folder that is writable and has space"
        ) from error


@contextlib.contextmanager
def written_alone(path: str | os.PathLike | None, agreement: Agreement) -> Iterator[None]:
    """One run at a time writes a file; of several processes that train together the first one.

    Raises
    ------
    CheckpointError
        In all of them, if another run that is alive writes it.
    """
    refusal = ""
    with contextlib.ExitStack() as stack:
        if path is not None and agreement.first:
            try:
                stack.enter_context(held(Path(path)))
            except Held as error:
                refusal = str(error)
        refusal = agreement.from_first(refusal)
        if refusal:
            raise CheckpointError(
                f"expected a checkpoint that no other run writes, got {path}, {refusal}; wait "
                "until that "
                "run ends, or choose another path"
            )
        yield


def _plain(name: str, value: Any) -> Tensor:
    """A tensor of its own memory on the CPU."""
    if is_lazy(value):
        raise CheckpointError(
            f"expected {name} with values, got a lazy parameter without a shape; call the module "
            "on some rows before"
        )
    if (
        not torch.is_tensor(value)
        or value.layout is not torch.strided
        or value.is_quantized
        or value.is_meta
    ):
        kind = f"a {value.layout} tensor" if torch.is_tensor(value) else type(value).__name__
        how = "drop it"
        if torch.is_tensor(value) and value.is_meta:
            kind = "one on the meta device"
            how = "give it values first: module.to_empty(device='cpu'), and fill them"
        raise CheckpointError(
            f"expected {name} to be a dense tensor, got {kind}, which a file cannot hold; {how}"
        )
    return value.detach().cpu().resolve_conj().resolve_neg().contiguous().clone()


def _sealed(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> bytes:
    """A safetensors file whose header has the SHA-256 of the file with zeros in its place."""
    header = {"format": FORMAT, "checksum": UNSEALED.decode(), "metadata": json.dumps(metadata)}
    try:
        content = bytearray(to_bytes(tensors, header))
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"a tensor is of a kind that no file can hold ({error}); convert it"
        ) from error
    place = content.index(b'"checksum":"' + UNSEALED) + len(b'"checksum":"')
    content[place : place + len(UNSEALED)] = hashlib.sha256(content).hexdigest().encode()
    return bytes(content)


def read(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what :func:`write` wrote.

    Raises :class:`CheckpointError` for missing, foreign or damaged files.
    """
    try:
        content = content_of(Path(path))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise CheckpointError(
            f"expected a checkpoint at {path}, found no file; check the path"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot read {path}: {error}; check the path and its permissions"
        ) from error
    header = _header(path, content)
    try:
        if header["format"] == FORMAT:
            _check_seal(path, content, header["checksum"])
        tensors = from_bytes(content)
        if header["format"] == FIRST and int(header["checksum"]) != _checksum(tensors):
            raise _damaged(path)
        metadata = json.loads(header["metadata"])
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged or no safetensors file ({error}); use an earlier copy"
        ) from error
    if not isinstance(metadata, dict):
        raise CheckpointError(
            f"{path} is damaged: its metadata are no names with values; use an earlier copy"
        )
    return tensors, metadata


def _header(path: str | os.PathLike, content: bytes) -> dict[str, str]:
    """Format, checksum and metadata as text."""
    length = int.from_bytes(content[:8], "little")
    try:
        entries = json.loads(content[8 : 8 + length] if length <= len(content) else b"")
        found = entries.get("__metadata__", {})
        header = {name: found.get(name, "") for name in ("format", "checksum", "metadata")}
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged or no safetensors file ({error}); use an earlier copy"
        ) from error
    if header["format"] not in (FORMAT, FIRST):
        raise CheckpointError(
            f"expected format {FORMAT} in {path}, got {header['format'] or None}; it was not saved "
            "here, or by a later "
            "version of probgen"
        )
    return header


def _check_seal(path: str | os.PathLike, content: bytes, checksum: str) -> None:
    name = b'"checksum":"'
    place = content.find(name + checksum.encode()) + len(name)
    found = hashlib.sha256(content[:place] + UNSEALED)
    found.update(memoryview(content)[place + len(UNSEALED) :])
    if place < len(name) or found.hexdigest() != checksum:
        raise _damaged(path)


def _damaged(path: str | os.PathLike) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged: its checksum does not fit its content; use an earlier copy"
    )


def _checksum(tensors: dict[str, Tensor]) -> int:
    """The checksum of the first format."""
    total = 0
    for name in sorted(tensors):
        value = tensors[name].reshape(-1)
        total = zlib.crc32(name.encode(), total)
        total = zlib.crc32(value.view(torch.uint8).numpy().data, total) if value.numel() else total
    return total


def left_behind(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> dict[str, Tensor]:
    """The state of the model that a run of :func:`probgen.fit` leaves.

    From the whole state of the run.
    """
    names = {name: name for name in tensors if name.startswith("module/")}
    if metadata.get("leaves") == "best":
        names = {
            "module/" + name.removeprefix("best/"): name
            for name in tensors
            if name.startswith("best/")
        }
    else:
        names |= {
            "module/" + name.removeprefix("ema/"): name
            for name in tensors
            if name.startswith("ema/")
        }
    own = "module/gen."
    return {
        name[len(own) :]: tensors[source] for name, source in names.items() if name.startswith(own)
    }


def frozen_in(module: nn.Module) -> list[str]:
    """The parameters that do not train.

    >>> layer = nn.Linear(2, 1)
    >>> layer.bias.requires_grad_(False).ndim
    1
    >>> frozen_in(layer)
    ['bias']
    """
    named = module.named_parameters(remove_duplicate=False)
    return [name for name, parameter in named if not parameter.requires_grad]


def freeze(module: nn.Module, frozen: Sequence[str], others: bool) -> None:
    """Lets parameters of these names train no more; and all others, if asked, again."""
    names = set(frozen)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name in names:
            parameter.requires_grad_(False)
        elif others and parameter.is_floating_point():
            parameter.requires_grad_(True)


@runtime_checkable
class Awaiting(Protocol):
    """A module some of whose parameters come into being at its first run.

    A Program with an AutoGuide.
    """

    def awaits(self, name: str) -> bool:
        """Whether the first run may make an entry of that name."""


def load_into(module: nn.Module, tensors: dict[str, Tensor], path: str | os.PathLike) -> None:
    """``load_state_dict`` that compares names and shapes first.

    And says all differences at once.
    """
    check_fits(module, tensors, path)
    module.load_state_dict(tensors)


def check_fits(module: nn.Module, tensors: dict[str, Tensor], path: str | os.PathLike) -> None:
    """Raises :class:`CheckpointError` with all names and shapes in which a state differs from a module's own."""
    own = module.state_dict()
    awaited = {name for name in tensors if isinstance(module, Awaiting) and module.awaits(name)}
    problems = [f"missing {name}" for name in own if name not in tensors]
    problems += [
        f"unexpected {name}" for name in tensors if name not in own and name not in awaited
    ]
    problems += [
        f"{name}: expected shape {tuple(own[name].shape)}, got {tuple(tensors[name].shape)}"
        for name in own
        if name in tensors and own[name].shape != tensors[name].shape
    ]
    if not problems:
        return
    shown = "; ".join(problems[:8])
    of_run = any(name.startswith("gen.") for name in own)
    if of_run and not any(_OF_MODEL.match(problem) for problem in problems):
        raise CheckpointError(
            f"{path} belongs to another objective ({shown}); pass the one that it was trained with"
        )
    raise CheckpointError(
        f"{path} belongs to another model ({shown}); build the model with the arguments that it "
        "was saved with"
    )
