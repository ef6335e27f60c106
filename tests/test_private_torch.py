"""Torch's private entry points still are and do what the library takes them for.

The job of the night runs this with the newest torch: what fails here says where to look.
"""

import copy
from datetime import timedelta

import pytest
import torch
from torch import distributed, nn

from probgen.core import private_torch
from probgen.core.private_torch import make_fx

aten = torch.ops.aten


def recorded(function, *inputs):
    return list(make_fx(function)(*inputs).graph.nodes)


def operation(function, *inputs):
    (node,) = (node for node in recorded(function, *inputs) if node.op == "call_function")
    return node


def test_recording_is_seen_from_inside_only():
    seen = []

    def look(x):
        seen.append(private_torch.get_proxy_mode() is not None)
        return x + 1

    make_fx(look)(torch.ones(1))
    assert seen == [True] and private_torch.get_proxy_mode() is None


def test_operations_of_a_graph_and_their_parameters():
    x = torch.ones(3)
    node = operation(lambda x: x.exp_(), x)
    assert private_torch.is_operation(node)
    assert [part.name for part in private_torch.parameters_of(node)] == ["self"]
    assert private_torch.parameters_of(node)[0].alias_info.is_write
    assert private_torch.operation_named("aten.exp_.default") is node.target
    inputs = [node for node in recorded(torch.exp, x) if node.op == "placeholder"]
    assert inputs and not any(map(private_torch.is_operation, inputs))


def test_operations_of_a_recording_share_one_mode_of_shapes():
    with (mode := private_torch.FakeTensorMode()):
        made = torch.empty(3)
    assert made.fake_mode is mode
    with private_torch.sharing_shapes(mode):
        nodes = recorded(lambda x: x.exp().log(), torch.ones(3))
    shapes = [node.meta["val"] for node in nodes if "val" in node.meta]
    assert len(shapes) == 3 and {value.fake_mode for value in shapes} == {mode}


@pytest.mark.slow
def test_inductor_offers_what_is_asked_of_it():
    private_torch.load_compiler()
    assert private_torch.known_options({"fallback_random": True, "no such option": True}) == {
        "fallback_random": True
    }
    assert all(
        callable(getattr(torch._inductor, f"{way}_compile")) for way in ("aot", "standalone")
    )
    assert torch._C._aoti.AOTIModelContainerRunnerCpu
    assert all(isinstance(name, str) for name in private_torch.cpp_compilers())
    assert any(line.startswith("cpp.cxx=") for line in private_torch.cpp_settings())
    assert private_torch.default_cache_folder()


@pytest.mark.parametrize("given", [True, False])
def test_whether_distributions_check(given):
    before = private_torch.validates()
    torch.distributions.Distribution.set_default_validate_args(given)
    try:
        assert private_torch.validates() is given
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


def test_memory_hooks_and_backward_passes():
    x = torch.ones(4)
    assert private_torch.memory_key(x) == private_torch.memory_key(x[1:])
    assert private_torch.memory_key(x) != private_torch.memory_key(x.clone())
    p = nn.Parameter(x)
    assert not private_torch.waits_for_gradient(p)
    p.register_post_accumulate_grad_hook(lambda p: None)
    assert private_torch.waits_for_gradient(p)
    layer = nn.ReLU()
    assert not private_torch.has_call_hooks(layer)
    layer.register_forward_hook(lambda *_: None)
    assert private_torch.has_call_hooks(layer)
    optimizer = torch.optim.SGD([p])
    assert not private_torch.has_step_hooks(optimizer)
    optimizer.register_step_pre_hook(lambda *_: None)
    assert private_torch.has_step_hooks(optimizer)
    twin = copy.copy(optimizer)
    private_torch.drop_step_hooks(twin)
    assert private_torch.has_step_hooks(optimizer) and not private_torch.has_step_hooks(twin)
    inside = []
    p.register_hook(lambda grad: inside.append(private_torch.graph_task()))
    p.sum().backward()
    assert private_torch.graph_task() == -1 and inside[0] >= 0


def test_kernels_without_public_names():
    k = torch.full((20_000,), 2.5)
    draws = private_torch.standard_gamma(k)
    assert abs(float(draws.mean()) - 2.5) < 0.05 and abs(float(draws.var()) - 2.5) < 0.15
    values = [torch.zeros(2), torch.ones(3)]
    private_torch.foreach_lerp_(values, [torch.ones(2), torch.zeros(3)], 0.25)
    torch.testing.assert_close(values, [torch.full((2,), 0.25), torch.full((3,), 0.75)])
    norms = private_torch.foreach_norm([torch.tensor([3.0, 4.0]), torch.tensor([2.0])])
    torch.testing.assert_close(list(norms), [torch.tensor(5.0), torch.tensor(2.0)])


def test_the_time_limit_of_processes_is_that_of_their_launch():
    limit = timedelta(seconds=7)
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=limit)
    try:
        assert private_torch.time_limit_of(torch.device("cpu")) == limit
    finally:
        distributed.destroy_process_group()
