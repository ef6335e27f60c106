"""Which results of a graph share their memory, and which inputs its operations change in place."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from probgen.core.private_torch import is_operation, operation_of, parameters_of

RUNNING = (
    "running_mean",
    "running_var",
)  # batch normalization changes them although its schema does not say so


def changed_inputs(graph: fx.Graph) -> set[fx.Node]:
    """Inputs that some operation changes in place, be it through a view."""
    bases = shared_memory(graph)
    return {base for base in _changed(graph, bases) if base.op == "placeholder"}


def relax_views(graph: fx.Graph) -> None:
    """Makes views of results reshapes, where nothing is changed in place.

    A compiler may lay out a result in another way than the operation did that was recorded; then
    there is no such view.
    """
    bases = shared_memory(graph)
    changed = _changed(graph, bases)
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.view.default):
        if not bases[node] & changed:
            node.target = torch.ops.aten.reshape.default


def shared_memory(graph: fx.Graph) -> dict[fx.Node, set[fx.Node]]:
    """For every node those in whose memory its result may lie."""
    bases: dict[fx.Node, set[fx.Node]] = {}
    for node in graph.nodes:
        shared = [arg for arg, _ in _aliased(node)] if is_operation(node) else node.all_input_nodes
        bases[node] = set().union(*(bases[arg] for arg in shared)) or {node}
    return bases


def _changed(graph: fx.Graph, bases: dict[fx.Node, set[fx.Node]]) -> set[fx.Node]:
    return {
        base
        for node in graph.nodes
        if is_operation(node)
        for arg, written in _aliased(node)
        if written
        for base in bases[arg]
    }


def _aliased(node: fx.Node) -> Iterator[tuple[fx.Node, bool]]:
    """Arguments that the result may share memory with or that are changed, and whether they are."""
    arguments = parameters_of(node)
    given = {
        argument.name: value for argument, value in zip(arguments, node.args, strict=False)
    } | node.kwargs
    hidden = RUNNING if "batch_norm" in operation_of(node).overloadpacket.__name__ else ()
    for argument in arguments:
        alias = argument.alias_info
        if alias is not None or argument.name in hidden:
            values = given.get(argument.name)
            for value in values if isinstance(values, list | tuple) else [values]:
                if isinstance(value, fx.Node):
                    yield value, argument.name in hidden or alias.is_write
