"""C++ compiled by the system's own compiler, kept on disk, and found again."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from probgen.core import cache
from probgen.core.turns import turn

KIND = "kernels"
COMPILERS = ("g++", "clang++", "c++")
# the order of sums and the reading of errors are all that they leave to the compiler: NaN and
# infinity stay what they are
FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-fno-trapping-math"),
    *("-ffp-contract=off", "-fopenmp-simd", "-fPIC", "-shared", "-w"),
)
LIBRARIES = (("-lmvec", "-lm"), ("-lm",))
SECONDS = 120


class NotCompiled(Exception):
    """There is no machine code of a text; the message says why."""


def load(text: str) -> ctypes.CDLL:
    """The library of a C++ text, from the cache where it is there.

    Its functions are ``extern "C"``. Raises ``NotCompiled`` where there is no compiler, or it fails.
    """
    content = cache.read_sealed(_file(text))
    return _loaded(_made(text) if content is None else content)


def _file(text: str) -> Path:
    return (
        cache.folder(KIND)
        / f"{digest(text, FLAGS, compiler_version(_compiler()), this_machine())}.sealed"
    )


def _loaded(content: bytes) -> ctypes.CDLL:
    file = cache.temporary(KIND) / f"{digest(content)}.so"
    with turn():
        try:
            cache.write(file, content)
            return ctypes.CDLL(str(file))
        except OSError as error:
            raise NotCompiled(f"the machine code cannot be loaded ({error})") from error
        finally:
            file.unlink(missing_ok=True)


def _compiler() -> str:
    for name in (os.environ.get("CXX", ""), *COMPILERS):
        if name and shutil.which(name):
            return name
    raise NotCompiled("there is no C++ compiler")


def _made(text: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="probgen-") as folder:
        source, made = Path(folder, "kernel.cpp"), Path(folder, "kernel.so")
        source.write_text(text)
        told = ""
        for libraries in LIBRARIES:
            command = [_compiler(), *FLAGS, str(source), "-o", str(made), *libraries]
            told = _told(command)
            if made.exists():
                break
        else:
            raise NotCompiled(f"the C++ compiler fails: {told.strip()[:200]}")
        content = made.read_bytes()
    with suppress(OSError):  # such as a full disk
        file = _file(text)
        cache.write_sealed(file, content)
        cache.trim(file)
    return content


def _told(command: Sequence[str]) -> str:
    """What the compiler says; it is out of reach of Ctrl-C, which would pass for a failure."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, process_group=0
        ).stderr
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)


def digest(*parts: object) -> str:
    """One name for all that something depends on.

    >>> digest("a", 1) == digest("a", 1) != digest("a1")
    True
    """
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def this_machine() -> str:
    """What a library must have in common with the process that loads it."""
    return digest(machine())


@functools.cache
def machine() -> tuple[str, ...]:
    """The processor with its features, and the versions of what makes code for it."""
    information = Path("/proc/cpuinfo")  # of Linux
    lines = information.read_text().splitlines() if information.exists() else []
    features = sorted(
        {line for line in lines if line.startswith(("flags", "Features", "model name"))}
    )
    try:
        own = version("probgen")
    except PackageNotFoundError:
        own = "not installed"
    system = f"{platform.system()} {platform.machine()} {platform.libc_ver()} {sys.implementation.cache_tag}"
    return torch.__version__, torch.backends.cpu.get_cpu_capability(), own, system, *features


@functools.cache
def compiler_version(compiler: str) -> str:
    """What a compiler tells of itself."""
    try:
        told = subprocess.run(
            [compiler, "--version"],
            capture_output=True,
            text=True,
            timeout=60,
            process_group=0,  # out of reach of Ctrl-C, which would pass for another version
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        told = type(error).__name__
    return f"{compiler} {shutil.which(compiler)} {told}"
