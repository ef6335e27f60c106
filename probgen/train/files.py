"""Files that are replaced as a whole and read as a whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

MODE = 0o666  # what the umask leaves of it


def replace(path: Path, content: bytes) -> None:
    """Makes ``content`` that of the file at ``path``, or of what a link there points to.

    Afterwards old or new, whole.

    A new file has the permissions that the umask says, one that exists keeps its own. What earlier
    writers left that were killed is removed. Raises ``OSError``, and leaves an existing file as it
    was.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    mode = _mode(target)
    _sweep(target)
    temporary, handle = _temporary(target)
    try:
        with os.fdopen(handle, "wb") as file:
            if mode is not None:
                temporary.chmod(mode)
            file.write(content)
            file.flush()
            os.fsync(handle)
            temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def content_of(path: Path) -> bytes:
    """All bytes of a file as it was when it was opened.

    Raises ``OSError``, also for what is no regular file.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise FileNotFoundError(f"{path} is no regular file")
        return file.read()


class Held(OSError):
    """A file that another run writes, which is still alive."""


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """No other run, of this process or another one on this computer, writes the file meanwhile.

    The system frees the lock of a process that ends, in whatever way. Where files cannot be locked,
    or the folder cannot be written, there is none. Raises :class:`Held` where another run has it.
    """
    target = Path(os.path.realpath(path))
    lock = target.parent / f"{_prefix(target)[:-1]}.lock"
    handle = _opened(lock)
    try:
        if handle is not None:
            os.truncate(handle, 0)
            os.write(handle, f"process {os.getpid()}".encode())
        yield
    finally:
        if handle is not None:
            lock.unlink(missing_ok=True)  # still ours: whoever opens it now tries another one
            os.close(handle)


def _opened(lock: Path) -> int | None:
    """A handle of the lock's file, locked; ``None`` where there are no locks."""
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_CREAT | os.O_RDWR, MODE)
        except OSError:  # the folder is closed, and writing will say so
            return None
        try:
            free = _lock(handle)
            if free is None:
                os.close(handle)
                return None
            if not free:
                owner = lock.read_text() or "another process"
                raise Held(f"{owner} writes it")
            if _is_there(handle, lock):
                return handle
        except FileNotFoundError:  # it was given back in between
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _is_there(handle: int, lock: Path) -> bool:
    """Whether the name stands for the file that is locked; the owner before may have removed it."""
    found = lock.stat()
    return (found.st_dev, found.st_ino) == (os.fstat(handle).st_dev, os.fstat(handle).st_ino)


def _mode(target: Path) -> int | None:
    """The permissions of the file that is there; refuses what no file can replace."""
    try:
        found = target.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise OSError("there is something there that is no regular file")
    return stat.S_IMODE(found.st_mode)


def _temporary(target: Path) -> tuple[Path, int]:
    """A new file beside the target and its handle, locked.

    Before it is locked another writer may take it for one that was left behind; then there is a
    next one.
    """
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    while True:
        temporary = target.parent / f"{_prefix(target)}{secrets.token_hex(8)}.part"
        handle = os.open(temporary, flags, MODE)
        with contextlib.suppress(FileNotFoundError):
            if _lock(handle) is not False and _is_there(handle, temporary):
                return temporary, handle
        os.close(handle)


def _prefix(target: Path) -> str:
    """Short however long the name of the file is."""
    return f".probgen-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}-"


def _sweep(target: Path) -> None:
    """Removes what earlier writers of the same file left behind.

    Those that no longer hold their lock.
    """
    for left in target.parent.glob(f"{_prefix(target)}*.part"):
        with contextlib.suppress(OSError):
            handle = os.open(left, os.O_RDONLY)
            try:
                if _lock(handle):
                    left.unlink()
            finally:
                os.close(handle)


def _lock(handle: int) -> bool | None:
    """Whether the lock of a file is ours now; ``None`` where the system has no locks for it.

    The system frees it when its writer ends, in whatever way.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # of a file system without locks
        return None
    return True


def _sync_folder(folder: Path) -> None:
    """Makes the new name last through a loss of power.

    Where the system lets folders be synchronized.
    """
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
