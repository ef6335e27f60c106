"""Compilation in a process of its own, which leaves its result in inductor's cache on disk.

Where this one finds it.
"""

from __future__ import annotations

import functools
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from probgen.compile.backend import KIND, by_inductor
from probgen.compile.tracing import Compiled, NotCompilable
from probgen.core import cache

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
        self._folder = tempfile.TemporaryDirectory(prefix="probgen")
        file = Path(self._folder.name) / "graph.pkl"
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            inputs = graph.inputs(*examples)
        layouts = [(value.shape, value.stride(), value.dtype, value.device) for value in inputs]
        file.write_bytes(
            pickle.dumps((_as_list(graph.module.graph), layouts, torch.get_num_threads()))
        )
        self._log = Path(self._folder.name) / "log.txt"
        paths = os.pathsep.join(filter(None, sys.path))
        # the very folder of this process, which may be a temporary one
        environment = os.environ | {
            "PYTHONPATH": paths,
            cache.FOLDER: str(cache.folder(KIND).parent),
        }
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", COMMAND, str(file)], stdout=log, stderr=log, env=environment
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
        """Ends it, if it has not ended by itself."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()


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
            str(n.target) if _is_operation(n) else n.target,
            plain(n.args),
            plain(n.kwargs),
            n.name,
        )
        for n in graph.nodes
    ]


def _from_list(nodes: list[tuple]) -> fx.GraphModule:
    graph = fx.Graph()
    made = {}
    for op, target, args, kwargs, name in nodes:
        if op == "call_function" and isinstance(target, str):
            target = functools.reduce(getattr, target.split("."), torch.ops)
        args, kwargs = pytree.tree_map(
            lambda x: made[x.name] if isinstance(x, _Earlier) else x,
            (args, kwargs),
            is_leaf=lambda x: isinstance(x, _Earlier),
        )
        made[name] = graph.create_node(op, target, args, kwargs, name)
    return fx.GraphModule(torch.nn.Module(), graph)


def _is_operation(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload)


def compile_file(file: str) -> None:
    """What the other process does."""
    import torch._dynamo  # inductor expects it to be there

    nodes, layouts, threads = pickle.loads(Path(file).read_bytes())
    torch.set_num_threads(threads)
    with torch.no_grad():
        by_inductor(
            _from_list(nodes),
            [torch.empty_strided(*size, dtype=d, device=w) for *size, d, w in layouts],
        )
