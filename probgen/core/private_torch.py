"""Torch's private entry points: what the library stands on that torch may change without notice.

This is the only file that touches names of torch's which begin with an underscore, or
``torch.fx.experimental``; every other file takes them from here (``tests/test_layers.py`` checks
that), and ``tests/test_private_torch.py`` asks of each what it is used for. It lies in ``core``
because ``core`` and ``distributions`` need some of them as well as ``compile``. Tried with torch
2.13.0; the nightly job of ``.github/workflows/ci.yml`` tries the newest.

Recording
    ``make_fx``: torch's public tracers (``torch.fx``, ``torch.export``) follow Python code; this
    one follows the operations that the code runs, those of autograd included.
    ``get_proxy_mode``: whether that is going on, so that nobody looks at values.
    ``FakeTensorMode``: one for all operations of a recording; ``make_fx`` would make one for each.
    ``OpOverload``, schemas, tags: which operations write to their arguments, or draw.
Compiling
    ``torch._inductor``: the compiler without ``torch.compile``, which would trace the Python again;
    ``AOTIModelContainerRunnerCpu``: its library called without the checks of ``aoti_load_package``.
Others
    ``pytree``: nested containers of tensors; torch has no public one.
    ``TorchDispatchMode``: the documented way to watch operations, in a private module.
    ``standard_gamma`` and its gradient, ``foreach_lerp_``, ``foreach_norm``: kernels without a public name.
    ``BatchNorm``, ``Dropout``: the bases of theirs for one, two and three dims.
    ``graph_task``: whether a thread is one of autograd's.
    ``memory_key``, ``waits_for_gradient``, ``has_call_hooks``, ``has_step_hooks``: shared storage;
    hooks that are there.
    ``validation_flag``: checks of distributions, switched for one thread.
    ``time_limit_of``: how long processes wait for one another; torch lets it be set, not read.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributions import Distribution
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from probgen.libraries import load

__all__ = [
    "FakeTensorMode",
    "TorchDispatchMode",
    "get_proxy_mode",
    "make_fx",
    "pytree",
]

INDUCTOR = "torch._inductor"
DYNAMO = "torch._dynamo"
COMPILER = (
    DYNAMO,
    "torch._inductor.compile_fx",
    "torch._inductor.standalone_compile",
    "torch._inductor.codegen.cpp",
    "torch._inductor.codegen.cpp_wrapper_cpu",
    "torch._inductor.runtime.cache_dir_utils",
)

BatchNorm = nn.modules.batchnorm._BatchNorm  # of any number of dims
Dropout = nn.modules.dropout._DropoutNd

foreach_lerp_ = torch._foreach_lerp_
foreach_norm = torch._foreach_norm
standard_gamma = torch._standard_gamma
standard_gamma_grad = torch._standard_gamma_grad
is_all_true = torch._is_all_true  # what distributions with validation ask of a tensor


@functools.cache
def load_compiler() -> None:
    """Imports what torch imports when it compiles for the first time, as a whole."""
    load(*COMPILER)


# -- operations of a graph
# ---------------------------------------------------------------------------------


def is_operation(node: fx.Node) -> bool:
    """Whether a node of a graph is one of torch's operations."""
    return isinstance(node.target, torch._ops.OpOverload)


def operation_of(node: fx.Node) -> Any:
    """The operation of a node for which :func:`is_operation` holds."""
    return node.target


def parameters_of(node: fx.Node) -> Sequence[Any]:
    """The parameters of an operation; ``alias_info`` tells which it writes to, or returns."""
    return operation_of(node)._schema.arguments


def operation_named(name: str) -> Callable[..., Any]:
    """The operation whose text is given, such as ``aten.exp.default``."""
    found: Any = torch.ops
    for part in name.split("."):
        found = getattr(found, part)
    return found


# -- recording
# ---------------------------------------------------------------------------------------------


def sharing_shapes(mode: FakeTensorMode) -> AbstractContextManager:
    """Inside, all operations that are recorded find their shapes in one mode."""
    return torch._guards.tracing(torch._guards.TracingContext(mode))


# -- inductor; load_compiler comes first
# -------------------------------------------------------------------


def aot_compile(graph: fx.GraphModule, inputs: tuple[Tensor, ...], options: dict) -> str:
    """Compiles a graph into a library; gives its path."""
    return str(torch._inductor.aot_compile(graph, inputs, options=options))


def standalone_compile(graph: fx.GraphModule, inputs: list[Any], options: dict) -> Callable:
    """Compiles a graph into kernels that Python calls."""
    return torch._inductor.standalone_compile(
        graph,
        inputs,
        dynamic_shapes="from_example_inputs",
        options={"config_patches": options},
    )


def load_library(path: str) -> Callable[[list[Tensor]], list[Tensor]]:
    """The function in a library that :func:`aot_compile` has made."""
    return torch._C._aoti.AOTIModelContainerRunnerCpu(path, 1).run


def known_options(options: dict[str, bool]) -> dict[str, bool]:
    """Those that this version of inductor has."""
    return {key: value for key, value in options.items() if key in torch._inductor.list_options()}


def cpp_compilers() -> Iterator[str]:
    """The names of the C++ compilers that inductor would take."""
    names = torch._inductor.config.cpp.cxx
    yield from filter(None, names if isinstance(names, list | tuple) else (names,))


def cpp_settings() -> list[str]:
    """All settings of inductor that reach its C++ code."""
    values = sorted(torch._inductor.config.get_config_copy().items())
    return [f"{name}={value}" for name, value in values if name.startswith("cpp.")]


def default_cache_folder() -> str:
    """Where inductor keeps its code unless told otherwise."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    return default_cache_dir()


# -- others
# ------------------------------------------------------------------------------------------------


def validates() -> bool:
    """Whether distributions check their arguments at present."""
    return Distribution._validate_args


def validation_flag() -> Any:
    """What stands there for all distributions: a flag, or what looks one up for each thread."""
    return vars(Distribution)["_validate_args"]


def set_validation_flag(flag: Any) -> None:
    """Puts another one there; torch's own setter takes plain flags alone."""
    Distribution._validate_args = flag


def graph_task() -> int:
    """The backward pass that this thread works for, -1 if none."""
    return torch._C._current_graph_task_id()


def memory_key(value: Tensor) -> int:
    """What tensors that share their memory have in common."""
    return value.untyped_storage()._cdata


def waits_for_gradient(parameter: nn.Parameter) -> bool:
    """Whether a parameter has a hook that runs once its gradient is there."""
    return bool(parameter._post_accumulate_grad_hooks)


def has_call_hooks(module: nn.Module) -> bool:
    """Whether something of the user's runs before or after the calls of a module."""
    return bool(module._forward_pre_hooks or module._forward_hooks)


def has_step_hooks(optimizer: torch.optim.Optimizer) -> bool:
    """Whether something of the user's runs before or after the steps of an optimizer."""
    return bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)


def drop_step_hooks(optimizer: torch.optim.Optimizer) -> None:
    """Leaves the hooks of a copied optimizer to the original, with which it shares them."""
    optimizer._optimizer_step_pre_hooks = OrderedDict()
    optimizer._optimizer_step_post_hooks = OrderedDict()


def time_limit_of(device: torch.device) -> timedelta:
    """How long a process waits for the others that it trains with, as the launch was asked for."""
    group: Any = torch.distributed.group.WORLD
    limit: timedelta = group._get_backend(device).options._timeout
    return limit
