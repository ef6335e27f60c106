"""Graphs as machine code, by torch's inductor.

A library that needs no Python while it runs, kept on disk.

Why not by torch's own caches and packages alone (torch 2.13; six inputs of 8 entries, one core):

- Kernels that Python calls (``standalone_compile``) are kept by inductor's own cache; nothing is
  added here but a folder that is private. A call takes 7.0 microseconds, that of a library 1.8.
- ``aot_compile`` makes a library anew at every call: 13 seconds, where the file that is kept here
  is found in 0.05, recording included.
- ``aoti_compile_and_package`` and ``aoti_load_package`` do not keep anything either: who calls them
  names the file, so the key of :func:`_key` would stay ours. They need an exported program in
  place of a graph, take 21 seconds, and a call takes 15 microseconds; the package is unpacked and
  loaded as it is found, where :func:`probgen.core.cache.read_sealed` checks owner and digest first.
"""

from __future__ import annotations

import copy
import logging
import os
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from probgen.core import cache, private_torch
from probgen.core.machine_code import compiler_version, digest, machine, this_machine
from probgen.core.turns import turn

CompiledCall = Callable[[list[Tensor]], Sequence[Tensor]]

SHARED = {"fallback_random": True, "cpp.vec_isa_ok": True, "cpp_cache_precompile_headers": False}
LIBRARY = SHARED | {"memory_planning": True, "aot_inductor.precompile_headers": False}
WRAPPED = SHARED | {"size_asserts": False, "alignment_asserts": False}

KIND = "libraries"
TORCHS = "TORCHINDUCTOR_CACHE_DIR"
VARIABLES = (
    "CXX",
    "CPATH",
    "CPLUS_INCLUDE_PATH",
    "LIBRARY_PATH",
    "OMP_PREFIX",
    "TORCHINDUCTOR_DEBUG_COMPILE",
)
FAILURES = (
    *(
        ArithmeticError,
        AssertionError,
        AttributeError,
        ImportError,
        LookupError,
        NotImplementedError,
        OSError,
    ),
    *(RuntimeError, TypeError, ValueError, subprocess.SubprocessError),
)


def by_inductor(
    graph: fx.GraphModule, inputs: Sequence[Tensor], library: bool = True
) -> CompiledCall:
    """A graph for inputs such as these as a function of a list of them.

    From the cache on disk where it is there.

    On a processor it is a library of its own, whose call takes some microseconds. Without
    ``library``, where inductor cannot make one, and on other devices, Python calls its kernels one
    by one: some tens of microseconds, built in about half the time. A library that is there already
    is taken in any case.
    """
    private_torch.load_compiler()
    with _quiet():
        if all(value.device.type == "cpu" for value in inputs):
            with suppress(
                *FAILURES
            ):  # whatever this newer part of torch cannot do, the older one may
                run = _kept(graph, inputs)
                if run is not None or library:
                    return _built(graph, inputs) if run is None else run
        with _own_folder():
            return _wrapped(graph, inputs)


def _kept(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> CompiledCall | None:
    content = cache.read_sealed(_file(graph, inputs))
    try:
        return None if content is None else _load(content)
    except (OSError, RuntimeError, ValueError):  # what this machine cannot load is made anew
        return None


def library_of(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> bytes:
    """The library of a graph, as :func:`library_from` takes it in another process.

    Raises one of ``FAILURES`` where inductor cannot make one.
    """
    private_torch.load_compiler()
    with _quiet():
        found = cache.read_sealed(_file(graph, inputs))
        return _made(graph, inputs) if found is None else found


def library_from(content: bytes, machine: str) -> CompiledCall:
    """A function from the library that a process of this kind of machine has made."""
    if machine != this_machine():
        raise RuntimeError(
            "expected machine code of this kind of processor and these versions of torch and probgen, "
            "got another one's; take the same everywhere"
        )
    return _load(content)


def _built(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> CompiledCall:
    return _load(_made(graph, inputs))


def _made(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> bytes:
    """Made in a folder of this process alone, from which the cache gets it whole."""
    with _own_folder(), tempfile.TemporaryDirectory(prefix="probgen-") as folder:
        options = private_torch.known_options(LIBRARY) | {"aot_inductor.output_path": folder}
        made = Path(
            _twice(lambda: private_torch.aot_compile(_plain(graph), tuple(inputs), options))
        )
        beside = made.with_suffix(
            ".json"
        )  # of calls that are no machine code, which the library looks up there
        library, calls = (path.read_bytes() if path.exists() else b"" for path in (made, beside))
    content = b"%d\n%b%b" % (len(library), library, calls)
    with suppress(OSError):  # such as a full disk
        file = _file(graph, inputs)
        cache.write_sealed(file, content)
        cache.trim(file)
    return content


def _wrapped(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> CompiledCall:
    options = private_torch.known_options(WRAPPED)
    call: Any = _twice(lambda: private_torch.standalone_compile(graph, list(inputs), options))
    return lambda values: call(*values)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch tells its own developers."""
    log = logging.getLogger(private_torch.INDUCTOR)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _load(content: bytes) -> CompiledCall:
    """From a file of this process alone: to change one that is loaded would end the process."""
    size, _, rest = content.partition(b"\n")
    library = rest[: int(size)]
    calls = rest[int(size) :]
    file = (
        cache.temporary(KIND) / f"{digest(content)}.so"
    )  # one name for one content, which is then loaded once
    beside = file.with_suffix(".json")
    with turn():
        try:
            cache.write(file, library)
            if calls:
                cache.write(beside, calls)
            return private_torch.load_library(str(file))
        finally:
            file.unlink(missing_ok=True)
            beside.unlink(missing_ok=True)


def _file(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Path:
    return cache.folder(KIND) / f"{_key(graph, inputs)}.sealed"


@contextmanager
def _own_folder() -> Iterator[None]:
    """With torch's own cache in a private folder for this kind of machine.

    Unless the user has chosen one.

    By default torch keeps its machine code under a name in the folder for temporary files that
    others can guess.
    """
    before = os.environ.get(TORCHS)
    if before not in (None, "", private_torch.default_cache_folder()):
        yield
        return
    os.environ[TORCHS] = str(cache.folder(f"inductor-{digest(machine(), _compiler())[:16]}"))
    try:
        yield
    finally:
        os.environ.pop(TORCHS)
        if before is not None:
            os.environ[TORCHS] = before


def _key(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> str:
    """What the machine code depends on."""
    layouts = [(tuple(value.shape), value.stride(), value.dtype) for value in inputs]
    return digest(graph.code, layouts, torch.get_num_threads(), LIBRARY, machine(), _compiler())


def _compiler() -> tuple[str, ...]:
    """The compiler that inductor will take, its version, and all settings that reach it."""
    compilers = map(compiler_version, private_torch.cpp_compilers())
    variables = [
        f"{name}={value}" for name, value in sorted(os.environ.items()) if name in VARIABLES
    ]
    return *compilers, *private_torch.cpp_settings(), *variables


def _plain(graph: fx.GraphModule) -> fx.GraphModule:
    """A copy that gives a tuple and has forgotten the tensors that it was recorded with."""
    plain = fx.GraphModule(graph, copy.deepcopy(graph.graph))
    for node in plain.graph.nodes:
        node.meta.clear()
    output = plain.graph.output_node()
    results: Any = output.args[0]
    output.args = (tuple(results),)
    plain.recompile()
    return plain


def _twice(make: Callable[[], Any]) -> Any:
    """Compilers of several processes may get into each other's way at the cache; not twice."""
    try:
        return make()
    except (OSError, RuntimeError) as error:
        if "No such file" not in str(error):
            raise
        return make()
