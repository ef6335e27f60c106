"""Files that are made once and found again.

In a folder of the user's own, checked before they are believed.

What is kept may be machine code that runs when it is loaded, so that nobody else may be able to put
it there. ``PROBGEN_CACHE`` names the folder, by default ``probgen`` in ``$XDG_CACHE_HOME`` or
``~/.cache``; ``PROBGEN_CACHE_LIMIT`` its size in bytes (``500M``, ``2G``), above which what was
used last longest ago goes.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

FOLDER = "PROBGEN_CACHE"
LIMIT = "PROBGEN_CACHE_LIMIT"
DEFAULT_LIMIT = 2 * 2**30
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_PART = ".part-"
_DAY = 86_400


def folder(kind: str) -> Path:
    """The private folder of one kind of files; it is there.

    Where no such folder can be had (no home, a full disk, a folder of somebody else), it is a fresh
    one for temporary files, which ends with the process; the logger ``probgen`` says why.

    >>> import stat
    >>> stat.filemode(folder("examples").stat().st_mode)
    'drwx------'
    """
    try:
        return private(root() / kind)
    except (OSError, RuntimeError) as error:  # pathlib raises RuntimeError where there is no home
        _tell(f"{error}; what is made now is kept for this process only")
        return temporary(kind)


def temporary(kind: str) -> Path:
    """A private folder that ends with this process.

    >>> temporary("examples") == temporary("examples")
    True
    """
    path = _temporary(os.getpid()) / kind  # not that of a process that has forked
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def root() -> Path:
    """The folder that all kinds stand in, as the environment names it.

    Whether it is private is not checked yet.
    """
    if given := os.environ.get(FOLDER):
        return Path(given).expanduser().absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "probgen"


def private(path: Path) -> Path:
    """A folder that only this user may read and write, made if it is not there; its real path.

    Raises ``PermissionError`` where it, or a folder above it, could be exchanged by others.
    """
    for place in (path.parent, path):
        if place.is_symlink():
            raise PermissionError(
                f"expected a folder at {place}, got a link; remove it, or set {FOLDER}"
            )
    path = path.resolve()
    for place in reversed((path, *path.parents)):
        if not place.exists():
            place.mkdir(mode=0o700, exist_ok=True)
    _check(path)
    if stat.S_IMODE(path.stat().st_mode) != 0o700:
        path.chmod(0o700)
    return path


def _check(path: Path) -> None:
    trusted = {
        0,
        Path(path.anchor).lstat().st_uid,
    }  # in a container the owner of everything may have another number
    for depth, place in enumerate((path, *path.parents)):
        found = place.lstat()
        ours = _mine(found) or (depth > 0 and found.st_uid in trusted)
        forbidden = stat.S_IWGRP | stat.S_IWOTH if depth < 2 else stat.S_IWOTH
        open_to_others = os.name == "posix" and found.st_mode & forbidden
        if (
            depth > 0 and found.st_mode & stat.S_ISVTX
        ):  # as of /tmp: what others own there cannot be moved
            open_to_others = False
        if not stat.S_ISDIR(found.st_mode) or not ours or open_to_others:
            got = f"{stat.filemode(found.st_mode)} of user {found.st_uid}"
            raise PermissionError(
                f"expected a folder that only you may change at {place}, got {got}; set {FOLDER}"
            )


def _mine(found: os.stat_result) -> bool:
    user = getattr(os, "getuid", None)
    return user is None or found.st_uid == user()


@functools.cache
def _temporary(process: int) -> Path:
    path = tempfile.mkdtemp(prefix="probgen-")

    @atexit.register
    def _remove() -> None:
        if os.getpid() == process:
            shutil.rmtree(path, ignore_errors=True)

    return Path(path)


@functools.cache
def _tell(message: str) -> None:
    logging.getLogger("probgen").warning(message)


def read(file: Path) -> bytes | None:
    """The content of a plain file of this user's own.

    Nothing where there is none, or something else.

    >>> read(Path("no such file")) is None
    True
    """
    flags = [getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY")]
    try:
        handle = os.open(file, functools.reduce(int.__or__, flags, os.O_RDONLY))
    except OSError:
        return None
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or not _mine(found) or found.st_size > limit():
            return None
        with suppress(OSError), open(handle, "rb", closefd=False) as opened:
            _used(handle, found)
            return opened.read()
        return None
    finally:
        os.close(handle)


def _used(handle: int, found: os.stat_result) -> None:
    """Notes when a file was last of use, which many file systems do not."""
    if os.utime in os.supports_fd:
        with suppress(OSError):  # of a file system that cannot be written
            os.utime(handle, ns=(time.time_ns(), found.st_mtime_ns))


def write(file: Path, content: bytes) -> None:
    """Written elsewhere and then moved, so that another process never reads half a file."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=file.parent, prefix=_PART)
    try:
        with os.fdopen(handle, "wb") as opened:
            opened.write(content)
        Path(part).replace(file)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def read_sealed(file: Path) -> bytes | None:
    """What :func:`write_sealed` has written.

    Nothing where the file is not there or is not as it was written.
    """
    digest, _, content = (read(file) or b"").partition(b"\n")
    return content if digest.decode("ascii", "replace") == _digest(content) else None


def write_sealed(file: Path, content: bytes) -> None:
    """One file that carries the digest of its content; it names no other file.

    >>> file = folder("examples") / "file"
    >>> write_sealed(file, b"content")
    >>> read_sealed(file)
    b'content'
    """
    write(file, _digest(content).encode() + b"\n" + content)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def limit() -> int:
    """Bytes that the cache may take, by ``PROBGEN_CACHE_LIMIT``."""
    given = os.environ.get(LIMIT, "").strip()
    if not given:
        return DEFAULT_LIMIT
    number = given.upper().removesuffix("B")
    unit = ""
    if number[-1:] in set("KMGT"):
        number, unit = number[:-1].strip(), number[-1]
    if not (number.isascii() and number.isdigit()):
        _tell(
            f"expected a size such as 500M or 2G in {LIMIT}, got {given!r}; correct it, until then "
            "it is 2G"
        )
        return DEFAULT_LIMIT
    return int(number) * _UNITS[unit]


def trim(*spared: Path) -> None:
    """Removes what was used last longest ago, as far as the cache exceeds its limit.

    What is spared stays.
    """
    try:
        files = sorted(_files(root()))
    except RuntimeError:  # there is no home
        return
    now = time.time()
    total = sum(size for _, size, _ in files)
    most = limit()
    for used, size, path in files:
        left_over = path.name.startswith(_PART) and now - used > _DAY
        if left_over or (total > most and path not in spared):
            with suppress(OSError):  # another process was faster
                path.unlink()
            total -= size


def _files(place: Path) -> Iterator[tuple[float, int, Path]]:
    """When last used, the size and the name of every plain file below a folder.

    Links are not followed.
    """
    with suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            with suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    yield from _files(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    found = entry.stat(follow_symlinks=False)
                    yield max(found.st_atime, found.st_mtime), found.st_size, Path(entry.path)
