"""Promises about what a model holds: parameters, buffers, copies, saved states, precision."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from probgen.testing.case import Case, require, require_close


def registered(case: Case) -> None:
    """its tensors are parameters or buffers, and its parts submodules."""
    known = {id(tensor) for tensor in (*case.gen.parameters(), *case.gen.buffers())}
    for path, module in case.gen.named_modules():
        for key, value in vars(module).items():
            parts = value if isinstance(value, list | tuple) else [value]
            name = f"{path}.{key}".lstrip(".")
            loose = any(isinstance(part, Tensor) and id(part) not in known for part in parts)
            require(
                not loose,
                f"'{name}' is a plain tensor, which .to(device) leaves behind; use register_buffer",
            )
            hidden = any(isinstance(part, nn.Module) for part in parts)
            require(
                not hidden,
                f"'{name}' hides modules from parameters(); use nn.ModuleList, or assign each "
                "module",
            )


def copied(case: Case) -> None:
    """a deepcopy is the same distribution, and independent of the original."""
    before = case.fingerprint()
    twin = replace(case, gen=copy.deepcopy(case.gen))
    require_close(
        "of the copy", twin.fingerprint(), before, "something that the model needs is not copied"
    )
    _disturb(twin.gen)
    require_close(
        "after changing a copy",
        case.fingerprint(),
        before,
        "the copy shares parameters with the original",
    )


def saved(case: Case) -> None:
    """its state_dict brings it back."""
    before = case.fingerprint()
    state = copy.deepcopy(case.gen.state_dict())
    _disturb(case.gen)
    case.gen.load_state_dict(state)
    hint = "make what changes a parameter or a persistent buffer, and compute nothing from them in __init__"
    require_close("after load_state_dict", case.fingerprint(), before, hint)


def double(case: Case) -> None:
    """it follows .double(), and so .to(device)."""
    if case.x.dtype != torch.float32:
        return
    context = None if case.context is None else case.context.double()
    twin = replace(case, gen=copy.deepcopy(case.gen).double(), x=case.x.double(), context=context)
    dtype = twin.distribution.sample().dtype
    hint = "use buffers, or torch.zeros_like(parameter), in place of new tensors"
    require(dtype == torch.float64, f"expected samples of float64, got {dtype}; {hint}")
    if case.kind == "exact":
        hint = "precisions disagree: a tensor is made in single precision, or large numbers cancel"
        require_close("log_prob of double precision", case.fingerprint(), twin.fingerprint(), hint)


@torch.no_grad()
def _disturb(gen: nn.Module) -> None:
    for parameter in gen.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))


CHECKS = (registered, copied, saved, double)
