"""What a function may not do while its operations are recorded.

And what it may do in another way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from probgen.compile.mutation_analysis import changed_inputs
from probgen.core.private_torch import is_all_true, is_operation, operation_of

aten = torch.ops.aten
READS = {
    *(
        Tensor.item,
        Tensor.__bool__,
        Tensor.__int__,
        Tensor.__float__,
        Tensor.__index__,
        Tensor.__complex__,
    ),
    *(
        torch.is_nonzero,
        Tensor.is_nonzero,
        torch.equal,
        Tensor.equal,
        torch.allclose,
        Tensor.allclose,
    ),
}
COPIES = {Tensor.tolist, Tensor.numpy, Tensor.__array__}


class Strict(TorchFunctionMode):
    """Sees to it that no value of a tensor becomes a Python number unnoticed.

    Reads of tensors that the function closes over would be taken for constants, and copies to lists
    and arrays are not seen at all by the tracer: here both meet it as operations, and it refuses.
    Checks of values are left out, and ``out[mask] = values[mask]`` becomes a choice entry by entry,
    whose shape does not depend on the mask.
    """

    def __init__(self) -> None:
        super().__init__()
        self._selected: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("generator") is not None:
            raise RuntimeError(
                "it draws from a random generator of its own; use torch's default one"
            )
        if func is is_all_true:  # what distributions with validation ask
            return True
        if func is torch.nn.functional.one_hot:
            return _one_hot(*args, **kwargs)
        if func in COPIES:
            aten.equal(aten.alias(args[0]), aten.alias(args[0]))
        elif func in READS:
            args = tuple(aten.alias(value) if torch.is_tensor(value) else value for value in args)
        elif func is Tensor.__setitem__ and self._is_selection(*args):
            return args[0].copy_(torch.where(args[1], self._selected[id(args[2])][1], args[0]))
        result = func(*args, **kwargs)
        if func is Tensor.__getitem__ and _is_mask(*args):
            self._selected[id(result)] = (result, *args)
        return result

    def _is_selection(self, out: Tensor, mask: Any, values: Any) -> bool:
        _, source, by = self._selected.get(id(values), (None, None, None))
        if source is None or by is not mask:
            return False
        return _is_mask(out, mask) and source.shape == out.shape


def _is_mask(tensor: Tensor, index: Any) -> bool:
    return torch.is_tensor(index) and index.dtype == torch.bool and index.shape == tensor.shape


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """Without torch's look at the smallest label."""
    if num_classes < 0:
        return torch.nn.functional.one_hot(tensor, num_classes)
    return (tensor.unsqueeze(-1) == torch.arange(num_classes, device=tensor.device)).long()


def why_not_general(graph: fx.Graph, closed_over: Mapping[fx.Node, Tensor]) -> str | None:
    """Why the operations of a graph are not those that other values would need, if so.

    Tensors closed over that need no gradient, and that no operation changes, have the same values
    every time.
    """
    fixed = {
        node for node, tensor in closed_over.items() if not tensor.requires_grad
    } - changed_inputs(graph)
    for node in graph.nodes:
        operation = is_operation(node)
        if operation and _shaping(node, closed_over) - fixed:
            return "the shape of a tensor depends on values (x[mask], nonzero, unique); use torch.where or masks"
        drawn = operation and torch.Tag.nondeterministic_seeded in node.target.tags
        if node.op == "call_function" and not drawn and set(node.all_input_nodes) <= fixed:
            fixed.add(node)
    return None


def _shaping(node: fx.Node, closed_over: Mapping[fx.Node, Tensor]) -> set[fx.Node]:
    """Arguments whose values decide on the shape of the result."""
    if node.target is aten.index.Tensor:
        given: Any = node.args[1]
        indices = [index for index in given if index is not None]
        kinds = {
            i: closed_over[i].dtype if i in closed_over else i.meta["val"].dtype for i in indices
        }
        return {index for index, kind in kinds.items() if kind in (torch.bool, torch.uint8)}
    target = operation_of(node)
    name = target.overloadpacket.__name__
    if torch.Tag.dynamic_output_shape in target.tags or name == "_pack_padded_sequence":
        return set(node.all_input_nodes)
    return set()
