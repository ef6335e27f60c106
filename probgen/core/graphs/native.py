"""Graphs as machine code, by torch's inductor: a library that needs no Python while it runs, kept on disk."""

from __future__ import annotations

import copy
import getpass
import hashlib
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, fx

Run = Callable[[list[Tensor]], Sequence[Tensor]]

SHARED = {"fallback_random": True, "cpp.vec_isa_ok": True, "cpp_cache_precompile_headers": False}
LIBRARY = SHARED | {"memory_planning": True, "aot_inductor.precompile_headers": False}
WRAPPED = SHARED | {"size_asserts": False, "alignment_asserts": False}


def by_inductor(graph: fx.GraphModule, inputs: Sequence[Tensor], library: bool = True) -> Run:
    """A graph for inputs such as these as a function of a list of them, from the cache on disk where it is there.

    On a processor it is a library of its own, whose call takes some microseconds. Without ``library``, where inductor
    cannot make one, and on other devices, Python calls its kernels one by one: some tens of microseconds, built in
    about half the time. A library that is there already is taken in any case.
    """
    with _quiet():
        if all(value.device.type == "cpu" for value in inputs) and (library or _found(_note(graph, inputs))):
            try:
                return _load(_library(graph, inputs))
            except Exception:  # whatever this newer part of torch cannot do, the older one may
                pass
        return _wrapped(graph, inputs)


def _wrapped(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Run:
    options = _known(WRAPPED)
    how = {"dynamic_shapes": "from_example_inputs", "options": {"config_patches": options}}
    call = _twice(lambda: torch._inductor.standalone_compile(graph, list(inputs), **how))
    return lambda values: call(*values)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch tells its own developers."""
    log = logging.getLogger("torch._inductor")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _load(library: str) -> Run:
    return torch._C._aoti.AOTIModelContainerRunnerCpu(library, 1).run


def _library(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> str:
    """Where the library of a graph stands on disk; it is made if it is not there yet."""
    note = _note(graph, inputs)
    if found := _found(note):
        return found
    made = _twice(lambda: str(torch._inductor.aot_compile(_plain(graph), tuple(inputs), options=_known(LIBRARY))))
    note.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=note.parent, delete=False) as file:
        file.write(made)
    Path(file.name).replace(note)
    return made


def _known(options: dict[str, bool]) -> dict[str, bool]:
    """Those that this version of inductor has."""
    return {key: value for key, value in options.items() if key in torch._inductor.list_options()}


def _note(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Path:
    """The file that says where the library of a graph stands."""
    return _cache() / f"{_key(graph, inputs)}.txt"


def _found(note: Path) -> str | None:
    return note.read_text() if note.exists() and Path(note.read_text()).exists() else None


def _cache() -> Path:
    given = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    return Path(given or f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}") / "probgen"


def _key(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> str:
    """What the machine code depends on."""
    layouts = [(tuple(value.shape), value.stride(), value.dtype) for value in inputs]
    machine = torch.__version__, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), LIBRARY
    return hashlib.sha256(repr((graph.code, layouts, machine)).encode()).hexdigest()


def _plain(graph: fx.GraphModule) -> fx.GraphModule:
    """A copy that gives a tuple and has forgotten the tensors that it was recorded with."""
    plain = fx.GraphModule(graph, copy.deepcopy(graph.graph))
    for node in plain.graph.nodes:
        node.meta.clear()
    output = plain.graph.output_node()
    output.args = (tuple(output.args[0]),)
    plain.recompile()
    return plain


def _twice(make: Callable[[], object]) -> object:
    """Compilers of several processes may get into each other's way at the cache; not twice."""
    try:
        return make()
    except Exception as error:
        if "No such file" not in str(error):
            raise
        return make()
