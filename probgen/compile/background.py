"""Compilation in a process of its own, which leaves its result in inductor's cache on disk.

Where this one finds it.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from probgen.compile.backend import KIND, TORCHS, by_inductor
from probgen.compile.tracing import Compiled, NotCompilable
from probgen.core import cache, private_torch
from probgen.core.private_torch import is_operation, operation_named, pytree

COMMAND = f"import sys; from {__name__} import compile_file; compile_file(sys.argv[1])"


class Background:
    """Starts to compile a graph elsewhere.

    Once :meth:`done`, ``graph.build(*examples)`` takes a moment.

    It costs the start of another Python, and a processor core while it lasts. Raises
    ``pickle.PicklingError``, ``AttributeError`` or ``TypeError`` for graphs with operations that
    are no names of torch's.

    Parameters
    ----------
    graph : Compiled
        A graph that is not built yet.
    *examples : Tensor
        Inputs such as it will get.
    """

    def __init__(self, graph: Compiled, *examples: Tensor):
        self._folder = tempfile.TemporaryDirectory(prefix="probgen-", ignore_cleanup_errors=True)
        file = Path(self._folder.name) / "graph.pkl"
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            inputs = graph.inputs(*examples)
        layouts = [(value.shape, value.stride(), value.dtype, value.device) for value in inputs]
        file.write_bytes(
            pickle.dumps((_as_list(graph.module.graph), layouts, torch.get_num_threads()))
        )
        self._log = Path(self._folder.name) / "log.txt"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", COMMAND, str(file)],
                stdout=log,
                stderr=log,
                env=_environment(self._folder.name),
                process_group=0,  # with the compilers that it starts, which end with it
            )

    def done(self) -> bool:
        """Whether it has ended; raises :class:`NotCompilable` if it has failed."""
        code = self._process.poll()
        if code:
            lines = self._log.read_text().strip().splitlines()
            raise NotCompilable(
                "compiling in the background failed "
                f"({lines[-1] if lines else f'exit code {code}'})"
            )
        return code is not None

    def stop(self) -> None:
        """Ends it and what it has started, if it has not ended by itself."""
        if self._process.poll() is None:
            if os.name == "posix":
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
            self._process.wait()
        self._folder.cleanup()


def _environment(folder: str) -> dict[str, str]:
    """That of the other process, whose temporary files go to a folder that ends with it."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        # the very folder of this process, which may be a temporary one
        cache.FOLDER: str(cache.folder(KIND).parent),
        "TMPDIR": folder,
    }
    # torch's own default, which the other process would take for a choice of the user
    if TORCHS in environment and environment[TORCHS] == private_torch.default_cache_folder():
        del environment[TORCHS]
    return environment


class _Earlier(NamedTuple):
    """The place of a node's result among the arguments of a later one."""

    name: str


def _as_list(graph: fx.Graph) -> list[tuple]:
    """The nodes with their very names, which inductor's cache goes by.

    Pickled modules would get new ones.
    """

    def plain(arguments: Any) -> Any:
        return pytree.tree_map(
            lambda x: _Earlier(x.name) if isinstance(x, fx.Node) else x, arguments
        )

    return [
        (
            n.op,
            str(n.target) if is_operation(n) else n.target,
            plain(n.args),
            plain(n.kwargs),
            n.name,
        )
        for n in graph.nodes
    ]


def _from_list(nodes: list[tuple]) -> fx.GraphModule:
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}
    for op, target, args, kwargs, name in nodes:
        if op == "call_function" and isinstance(target, str):
            target = operation_named(target)
        args, kwargs = pytree.tree_map(
            lambda x: made[x.name] if isinstance(x, _Earlier) else x,
            (args, kwargs),
            is_leaf=lambda x: isinstance(x, _Earlier),
        )
        made[name] = graph.create_node(op, target, args, kwargs, name)
    return fx.GraphModule(torch.nn.Module(), graph)


def compile_file(file: str) -> None:
    """What the other process does."""
    nodes, layouts, threads = pickle.loads(Path(file).read_bytes())
    torch.set_num_threads(threads)
    with torch.no_grad():
        by_inductor(
            _from_list(nodes),
            [torch.empty_strided(*size, dtype=d, device=w) for *size, d, w in layouts],
        )
