"""A second device on a machine that has only the first: tensors that compute on the CPU and refuse it.

A tensor of the stand-in carries real numbers, so that draws, branches on values, whole fits run as
they would on a GPU, and an operation on tensors of both devices raises as it would there. It finds
the tensor that is made without ``device=``, the module that is not registered, the ``numpy()``
without ``cpu()``. It says nothing about kernels: what a GPU computes only a GPU can tell.

The stand-in borrows the name of torch's ``meta`` device, the one device that every build of torch
knows and none uses up: autograd runs its backward passes in the calling thread, as for the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

AUTOCAST = torch.autocast
DEVICE = torch.device("meta")
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default, aten.set_.source_Tensor}  # between devices
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
INDEXING |= {aten._index_put_impl_.default, aten._unsafe_index.Tensor}
# of a list of tensors and one more the kernels take the one from either device
WITH_ONE_NUMBER = {"_foreach_mul_", "_foreach_mul", "_foreach_div_", "_foreach_div"}


class MixedDevices(RuntimeError):
    """What torch raises where tensors of two devices meet."""


class Elsewhere(Tensor):
    """A tensor of the stand-in device; ``values`` are its numbers, on the CPU."""

    values: Tensor
    is_meta = False  # it has numbers
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: Tensor) -> Elsewhere:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
            requires_grad=False,
        )
        made.values = values.detach()
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["values"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> Elsewhere:
        return Elsewhere(inner["values"])

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Elsewhere({self.values})"

    def __format__(self, spec: str) -> str:
        return format(self.values, spec)

    def tolist(self) -> Any:
        return self.values.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.values.numpy(force=True)
        raise TypeError("can't convert a tensor of another device to numpy; use cpu() first")

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.numpy()

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(_as_tensors(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_as_tensors(index), value)

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        device = options.pop("device", self.device)
        return torch.tensor(data, **{"dtype": self.dtype} | options).to(device)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class Operations(TorchDispatchMode):
    """Operations that name the stand-in device, and those on its tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


@contextmanager
def stand_in_device() -> Iterator[torch.device]:
    """While it is open, ``tensor.to(device)`` and ``torch.zeros(3, device=device)`` work."""
    with ExitStack() as opened:
        for name in ("tensor", "as_tensor", "asarray"):
            opened.enter_context(patch.object(torch, name, _made_there(getattr(torch, name))))
        opened.enter_context(patch.object(torch, "autocast", _autocast))
        opened.enter_context(Operations())
        yield DEVICE


def _made_there(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Of Python's numbers torch makes an empty tensor on ``meta``, and does not look at them."""

    def made(data: Any, *args: Any, **options: Any) -> Tensor:
        if not _is_elsewhere(options.get("device")) or torch.is_tensor(data):
            return make(data, *args, **options)
        return make(data, *args, **{**options, "device": "cpu"}).to(DEVICE)

    return made


def _as_tensors(index: Any) -> Any:
    """Lists of an index as tensors: torch makes such tensors on the device itself."""
    if isinstance(index, tuple):
        return tuple(map(_as_tensors, index))
    if isinstance(index, list):
        return torch.tensor(index) if index else torch.tensor(index, dtype=torch.long)
    return index


def _autocast(device_type: str, *args: Any, **kwargs: Any) -> torch.autocast:
    return AUTOCAST(device_type.replace(DEVICE.type, "cpu"), *args, **kwargs)


def _is_elsewhere(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


def _computed(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The operation on the numbers; its results are where its arguments are, or where it says."""
    inputs = [value for value in pytree.tree_leaves((args, kwargs)) if torch.is_tensor(value)]
    known = {id(value.values): value for value in inputs if isinstance(value, Elsewhere)}
    elsewhere = bool(known)
    if elsewhere:
        _refuse_mixed(func, args, kwargs, inputs)
    if func is aten.copy_.default:
        elsewhere = isinstance(args[0], Elsewhere)
    if kwargs.get("device") is not None:
        elsewhere = _is_elsewhere(kwargs["device"])
        kwargs = {**kwargs, "device": torch.device("cpu")}
    _refuse_generator(func, kwargs, elsewhere)
    args, kwargs = pytree.tree_map_only(Elsewhere, lambda value: value.values, (args, kwargs))
    result = func(*args, **kwargs)
    if not elsewhere:
        return result
    if torch.Tag.inplace_view in func.tags:  # what tells the shape follows
        with no_dispatch():
            func(inputs[0], *args[1:])
    return pytree.tree_map_only(
        Tensor, lambda value: known[id(value)] if id(value) in known else Elsewhere(value), result
    )


def _refuse_generator(func: Any, kwargs: dict[str, Any], elsewhere: bool) -> None:
    if elsewhere and kwargs.get("generator") is not None:
        raise MixedDevices(f"{func}: expected a generator of {DEVICE}, got one of cpu")


def _refuse_mixed(func: Any, args: tuple, kwargs: dict[str, Any], inputs: list[Tensor]) -> None:
    """As torch: single numbers and indices may lie on the CPU."""
    if func in COPIES:
        return
    here = [value for value in inputs if not isinstance(value, Elsewhere)]
    if func in INDEXING:
        indices = [value for value in args[1] if value is not None]
        if isinstance(args[0], Elsewhere):
            here = [value for value in here if not any(value is index for index in indices)]
    single = func._schema.name.split("::")[1] in WITH_ONE_NUMBER
    if torch.Tag.pointwise in func.tags or func in INDEXING or single:
        here = [value for value in here if value.ndim]
    if here:
        shapes = [tuple(value.shape) for value in here]
        there = [tuple(value.shape) for value in inputs if isinstance(value, Elsewhere)]
        raise MixedDevices(
            f"{func}: expected all tensors on the same device, got {shapes} on the CPU and "
            f"{there} elsewhere"
        )
