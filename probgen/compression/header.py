"""What stands before the symbols: of which model they are, how many rows, and two checksums."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from probgen.compression.errors import CompressionError
from probgen.core.described import call_of
from probgen.train.saved import description_of

MAGIC = b"pg"
VERSION = 1
FIXED = struct.Struct("<2sB4sIIB")  # magic, version, model, checksums of the file and of the rows
HOW = {"symbols": 0, "bits back": 1}


class Header(NamedTuple):
    """The first bytes of a file.

    Attributes
    ----------
    model : bytes
        The first four bytes of the fingerprint of model and contexts.
    rows_sum : int
        Checksum of the rows.
    how : int
        One of the values of :data:`HOW`.
    numbers : tuple of int
        Number of rows, and what the way of coding needs.
    """

    model: bytes
    rows_sum: int
    how: int
    numbers: tuple[int, ...]


def model_digest(gen: Any, context: Tensor | None) -> bytes:
    """Four bytes that other weights, another description and other contexts change.

    >>> model_digest(nn.Linear(1, 1), None) == model_digest(nn.Linear(1, 1), None)
    False
    """
    digest = hashlib.sha256()
    if isinstance(gen, nn.Module):
        state = gen.state_dict()
        calls, tensors = description_of(gen, state)
        told = json.dumps(calls, sort_keys=True, default=str) if calls else call_of(gen)
        digest.update(told.encode())
        _add(digest, [*sorted(state.items()), *sorted(tensors.items())])
    if context is not None:
        _add(digest, [("context", context)])
    return digest.digest()[:4]


def _add(digest: Any, named: Iterable[tuple[str, Any]]) -> None:
    for name, value in named:
        if torch.is_tensor(value):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            flat = value.detach().cpu().clone(memory_format=torch.contiguous_format).reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes())


def rows_sum(x: Tensor) -> int:
    """Checksum of rows of integers, of whatever type.

    >>> rows_sum(torch.tensor([[1.0, 2.0]])) == rows_sum(torch.tensor([[1, 2]]))
    True
    """
    return zlib.crc32(np.ascontiguousarray(x.detach().cpu().long().numpy()).tobytes())


def file_bytes(header: Header, words: np.ndarray) -> bytes:
    """A header, and words of 32 bits."""
    body = b"".join(map(_number, header.numbers)) + words.astype("<u4").tobytes()
    checked = FIXED.pack(MAGIC, VERSION, header.model, 0, header.rows_sum, header.how) + body
    return (
        FIXED.pack(MAGIC, VERSION, header.model, zlib.crc32(checked), header.rows_sum, header.how)
        + body
    )


def read_header(data: bytes, counts: dict[int, int]) -> tuple[Header, np.ndarray]:
    """The header and the words; ``CompressionError`` for what is no such file, or damaged.

    ``counts`` says how many numbers each way of coding needs.
    """
    if len(data) < FIXED.size or data[:2] != MAGIC:
        raise CompressionError(
            f"expected bytes of probgen.compress, got {len(data)} others; pass what compress gave"
        )
    magic, version, model, file_sum, rows, how = FIXED.unpack_from(data)
    if version != VERSION:
        raise CompressionError(
            f"expected bytes of version {VERSION}, got version {version}; decompress them with the "
            "version of probgen that compressed them"
        )
    body = data[FIXED.size :]
    if zlib.crc32(FIXED.pack(magic, version, model, 0, rows, how) + body) != file_sum:
        raise CompressionError(
            f"expected the bytes that compress gave, got {len(data)} that are damaged or cut off; "
            "copy the file again"
        )
    numbers = []
    for _ in range(counts[how]):
        number, body = _first_number(body)
        numbers.append(number)
    return Header(model, rows, how, tuple(numbers)), np.frombuffer(body, dtype="<u4").astype(
        np.uint32
    )


def _number(value: int) -> bytes:
    r"""An integer of either sign in as few bytes as it needs, seven bits in each.

    >>> _number(-3), _first_number(_number(-300) + b"rest")
    (b'\x05', (-300, b'rest'))
    """
    code = 2 * value if value >= 0 else -2 * value - 1
    parts = []
    while code >= 128:
        parts.append(code % 128 + 128)
        code //= 128
    return bytes([*parts, code])


def _first_number(data: bytes) -> tuple[int, bytes]:
    code = shift = 0
    for place, byte in enumerate(data):
        code += (byte % 128) << shift
        shift += 7
        if byte < 128:
            value = code // 2 if code % 2 == 0 else -(code + 1) // 2
            return value, data[place + 1 :]
    raise CompressionError("expected a number in the header, got its end; copy the file again")
