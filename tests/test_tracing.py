"""Recorded functions give what the functions give, draw what they draw.

And refuse what they cannot follow.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from probgen.compile.mutation_analysis import changed_inputs
from probgen.compile.random_numbers import FILLS
from probgen.compile.tracing import Compiled, NotCompilable, compiled, record_operations

aten = torch.ops.aten
LOOK = "; look at probgen/compile/{}, which relies on it"


def draws(function, *inputs):
    """What a function gives from a seed, and where the generator stands afterwards."""
    torch.manual_seed(5)
    return function(*inputs), torch.get_rng_state()


def same_draws(function, *inputs, build=False):
    graph = compiled(function, *inputs) if build else Compiled(record_operations(function, *inputs))
    expected, found = draws(function, *inputs), draws(graph, *inputs)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(expected[1], found[1])
    return graph


# -- values and gradients
# --------------------------------------------------------------------------------------------


def test_gradients_inside_and_tensors_closed_over_are_current():
    w, scale = torch.randn(3, requires_grad=True), torch.ones(3)

    def loss_and_gradient(x):
        with torch.enable_grad():
            loss = ((x @ w.diag()) * scale).square().sum()
            return {"loss": loss.detach(), "gradient": torch.autograd.grad(loss, w)[0]}

    x = torch.randn(4, 3)
    graph = record_operations(loss_and_gradient, x)
    assert {id(t) for t in graph.closed_over} == {id(w), id(scale)}
    scale.mul_(3)
    with torch.no_grad():
        w.add_(1)
    torch.testing.assert_close(graph(x), loss_and_gradient(x))


@pytest.mark.slow
def test_layouts_are_those_of_torch():
    """Compiled code goes by strides.

    Those of tensors closed over, and of results that it lays out in its own way.

    The derivative of a softmax comes out contiguous, in torch; compilers keep the strides of its
    argument.
    """
    part, repeated = torch.arange(24.0).view(4, 6)[:, ::2], torch.tensor([2.0]).expand(4)
    turned = torch.arange(12.0).view(3, 4).T

    def function(x):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            value = (leaf.log_softmax(0).T * torch.arange(12.0).view(3, 4)).sum()
            flat = torch.autograd.grad(value, leaf)[0].reshape(-1)
        return flat, (x + part + turned).sum(1) * repeated

    x = torch.randn(4, 3)
    torch.testing.assert_close(compiled(function, x)(x), function(x))


def test_changes_in_place_are_found_also_through_views_and_batch_statistics():
    norm, kept, used = nn.BatchNorm1d(3), torch.zeros(2, 3), torch.ones(3)

    def function(x):
        kept[1].T.add_(used)
        return norm(x) + kept[0]

    graph = record_operations(function, torch.randn(5, 3))
    expected = {
        id(t) for t in (kept, norm.running_mean, norm.running_var, norm.num_batches_tracked)
    }
    assert {id(t) for t in graph.changed} == expected


# -- draws
# -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_draws_before_and_after_some_that_depend_on_values():
    """Only those before can be made outside of the graph.

    All use the generator in the program's order.
    """

    def mixed(a):
        first = torch.randn(3) + torch.empty(4).exponential_(2.0).sum()
        gamma, uniform = torch._standard_gamma(a), torch.rand(20)
        kept = torch.nn.functional.dropout(a, 0.5)
        labels = torch.multinomial(a, 2, replacement=True), torch.bernoulli(a / 9), torch.poisson(a)
        return first, gamma * uniform.sum(), kept, *labels, torch.normal(a, 1.0), torch.randperm(5)

    graph = same_draws(mixed, torch.tensor([1.0, 2.0, 3.0]), build=True)
    assert (
        graph.random
        and not Compiled(record_operations(lambda x: x + torch.rand(2), torch.ones(2))).random
    )


@pytest.mark.parametrize("fill", FILLS)
def test_fills_are_made_outside_of_the_graph(fill):
    numbers = (0.3,) if fill in ("geometric_", "bernoulli_") else ()
    graph = same_draws(lambda x: x + getattr(torch.empty(3, 7), fill)(*numbers) * 2, torch.ones(7))
    assert not graph.random, (
        f"torch.Tensor.{fill} is no longer recorded by that name" + LOOK.format("random_numbers.py")
    )


def test_draws_that_nobody_uses_are_drawn():
    same_draws(
        lambda x: (torch.rand(3), torch._standard_gamma(x), x * torch.randn(2))[2], torch.ones(2)
    )


@pytest.mark.table(quick=6)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 3, 15, 16, 40])
def test_several_calls_in_a_row_draw_what_single_ones_draw(size, dtype):
    """Small tensors of neighboring calls are filled together."""

    def function(x):
        small = torch.randn(2, 3).sum() + torch.randn(5)[1] + torch.randn(3, dtype=dtype).prod()
        return x + torch.randn(size, dtype=dtype).sum() + torch.rand(2).sum() + small

    x, graph = torch.zeros(2), Compiled(record_operations(function, torch.zeros(2)))
    calls = graph.repeatedly(6)
    for _ in range(2):
        expected = draws(lambda: [function(x + i) for i in range(6)])
        found = draws(lambda: calls([x + i] for i in range(6)))
        torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0)
        assert torch.equal(expected[1], found[1])


# -- what is refused, and what is not
# --------------------------------------------------------------------------------

number, several = torch.tensor(2.0), torch.tensor([2.0, 3.0])
READS = {
    "if": lambda x: x if x.sum() > 0 else -x,
    "item": lambda x: x * x.sum().item(),
    "item of a tensor closed over": lambda x: x * number.item(),
    "flag closed over": lambda x: x if number else -x,
    "int closed over": lambda x: x * int(number),
    "tolist": lambda x: x * x.tolist()[0],
    "tolist closed over": lambda x: x * several.tolist()[0],
    "numpy": lambda x: x * float(x.detach().numpy().sum()),
    "array": lambda x: x * float(memoryview(x.__array__())[0]),
    "equal": lambda x: x * torch.equal(several, several),
    "allclose": lambda x: x * torch.allclose(x, several),
    "range": lambda x: x * len(range(number.long())),
    "format": lambda x: x * float(f"{x[0]}"),
}


@pytest.mark.table(quick=6)
@pytest.mark.parametrize("function", READS.values(), ids=READS)
def test_values_that_become_python_numbers_are_refused(function):
    with pytest.raises(NotCompilable, match="reads the value of a tensor"):
        record_operations(function, torch.ones(2))


def test_the_reason_names_the_line_of_the_program():
    def program(x):
        return x * 2 if x.sum() > 0 else x

    with pytest.raises(
        NotCompilable, match=r"\(at test_tracing.py:\d+: return x \* 2 if x.sum\(\) > 0 else x\)"
    ):
        record_operations(program, torch.ones(2))


def test_random_generators_of_their_own_are_refused():
    own = torch.Generator().manual_seed(0)
    for function in (
        lambda x: x + torch.randn(2, generator=own),
        lambda x: x + torch.empty(2).normal_(generator=own),
    ):
        with pytest.raises(NotCompilable, match="generator of its own"):
            record_operations(function, torch.ones(2))


def test_numbers_made_tensors_remain_numbers():
    graph = record_operations(
        lambda x: x * torch.tensor(3.0).item() + torch.tensor([4.0, 5.0]), torch.ones(2)
    )
    assert graph(torch.ones(2)).tolist() == [7.0, 8.0]


def test_checks_of_values_are_left_out():
    distribution = torch.distributions.Normal(torch.zeros(2), 1.0, validate_args=True)
    x, labels = torch.randn(2), torch.tensor([2, 0])
    graph = record_operations(
        lambda x: (distribution.log_prob(x), nn.functional.one_hot(labels, 3)), x
    )
    assert torch.equal(graph(x)[0], distribution.log_prob(x))
    assert torch.equal(graph(x)[1], nn.functional.one_hot(labels, 3))


def test_choices_by_a_mask_do_not_depend_on_its_shape():
    def spline(x):
        out, inside = x.exp(), x > 0
        out[inside] = x[inside]
        return out

    graph = record_operations(spline, torch.tensor([1.0, -1.0, 2.0]))
    assert graph.refusal is None
    for x in (torch.tensor([1.0, 1.0, 1.0]), torch.tensor([-1.0, -1.0, 3.0])):
        assert torch.equal(graph(x), spline(x))


def test_shapes_that_depend_on_values_are_told():
    kept = torch.tensor([True, False])
    w = torch.ones(2, requires_grad=True)
    for function in (
        lambda x: x[x > 0].sum(),
        lambda x: x.nonzero(),
        lambda x: x.sum() + w[w > 0].sum(),
    ):
        assert (
            "shape of a tensor depends on values"
            in record_operations(function, torch.ones(2)).refusal
        )
    assert (
        record_operations(
            lambda x: x[kept].sum() + x[torch.tensor([0, 1])].sum(), torch.ones(2)
        ).refusal
        is None
    )


@pytest.mark.slow
@pytest.mark.parametrize("in_place", [False, True])
def test_factors_of_additions_are_kept_beside_products(in_place):
    """Of ``x + alpha a b`` inductor makes one product of matrices, in which alpha is lost."""
    a, b, x = torch.randn(8, 4), torch.randn(4, 8), torch.randn(8, 8)

    def function(x):
        return (x * 1).add_(a @ b, alpha=0.1) if in_place else torch.add(x, a @ b, alpha=0.1)

    torch.testing.assert_close(compiled(function, x)(x), x + 0.1 * (a @ b))


def test_recurrent_layers_have_graphs():
    layer, x = nn.LSTM(2, 3), torch.randn(4, 1, 2)

    def gradient(x):
        with torch.enable_grad():
            return torch.autograd.grad(layer(x)[0].square().sum(), layer.weight_hh_l0)[0]

    torch.testing.assert_close(record_operations(gradient, x)(x), gradient(x))


def test_recording_leaves_no_trace():
    flags = torch.backends.mkldnn.enabled, torch.get_rng_state()
    record_operations(lambda x: x + torch.rand(2), torch.ones(2))
    with pytest.raises(NotCompilable):
        record_operations(lambda x: x + torch.rand(2) * x.sum().item(), torch.ones(2))
    assert flags[0] == torch.backends.mkldnn.enabled and torch.equal(
        flags[1], torch.get_rng_state()
    )


# -- what these graphs rely on in torch
# ------------------------------------------------------------------------------


def test_torch_refuses_to_read_values_while_it_records():
    """Not so, an if in a program would be frozen unnoticed."""
    with pytest.raises(RuntimeError, match="value out of a tracing tensor") as caught:
        make_fx(lambda x: x if x.sum() > 0 else -x)(torch.ones(2))
    assert caught, "make_fx follows one branch of an if" + LOOK.format(
        "tracing.py: record_operations, _reason"
    )


def test_torch_marks_draws_and_changes_in_place():
    tags = [
        op.tags
        for op in (
            aten.randn.default,
            aten.bernoulli.default,
            aten._standard_gamma.default,
            aten.normal_.default,
        )
    ]
    assert all(torch.Tag.nondeterministic_seeded in tag for tag in tags), LOOK.format(
        "draws.py: is_random"
    )
    written = {
        a.name
        for a in aten.add_.Tensor._schema.arguments
        if a.alias_info is not None and a.alias_info.is_write
    }
    assert written == {"self"}, "schemas no longer say what is changed" + LOOK.format(
        "mutation_analysis.py"
    )
    assert aten.view.default._schema.arguments[0].alias_info is not None, LOOK.format(
        "mutation_analysis.py"
    )
    assert torch.Tag.dynamic_output_shape in aten.nonzero.default.tags, LOOK.format(
        "tracing_mode.py: refusal"
    )


def test_recorded_nodes_know_shape_layout_and_device():
    graph = make_fx(lambda x: x + torch.randn(3, 2).T)(torch.ones(2, 3))
    node = next(node for node in graph.graph.nodes if node.target is aten.randn.default)
    told = node.meta.get("tensor_meta"), node.meta.get("val")
    assert all(part is not None for part in told), "make_fx keeps no meta data" + LOOK.format(
        "draws.py: _free"
    )
    assert told[0].shape == (3, 2) and told[0].stride == (2, 1) and told[0].dtype == torch.float32
    assert told[1].device == torch.device("cpu")


def test_parameters_are_recorded_as_the_objects_that_they_are():
    p, hidden = nn.Parameter(torch.ones(2)), torch.ones(2)
    graph = make_fx(lambda x: x * p * p.data + hidden)(torch.ones(2))
    found = {id(getattr(graph, node.target)) for node in graph.graph.find_nodes(op="get_attr")}
    assert found == {id(p), id(hidden)}, "make_fx keeps copies" + LOOK.format("tracing.py: _lift")


def test_batch_statistics_are_known_by_the_names_of_their_arguments():
    norm = nn.BatchNorm1d(3)
    graph = make_fx(lambda x: norm(x))(torch.randn(5, 3))
    changed = {id(getattr(graph, node.target)) for node in graph.graph.find_nodes(op="get_attr")}
    assert id(norm.running_mean) in changed
    names = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
    assert any("batch_norm" in name for name in names), f"recorded as {names}" + LOOK.format(
        "aliases.py: RUNNING"
    )
    assert not changed_inputs(graph.graph)  # none is an input yet


def test_modes_see_what_tensors_are_asked_for():
    """Without that, values of tensors closed over would be frozen unnoticed."""
    asked = []

    class Asked(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            asked.append(func)
            return func(*args, **(kwargs or {}))

    x = torch.tensor(1.0)
    with Asked():
        x.item(), bool(x), int(x), float(x), x.tolist(), x.numpy(), [0, 1][x.long()]
    expected = {
        Tensor.item,
        Tensor.__bool__,
        Tensor.__int__,
        Tensor.__float__,
        Tensor.tolist,
        Tensor.numpy,
    }
    assert expected | {Tensor.__index__} <= set(asked), "not every read is seen" + LOOK.format(
        "tracing_mode.py: READS"
    )
    with Asked():
        nn.functional.one_hot(torch.tensor([0]), 2)
        torch.distributions.Normal(0.0, 1.0, validate_args=True).log_prob(x)
    assert nn.functional.one_hot in asked and torch._is_all_true in asked, LOOK.format(
        "tracing_mode.py: Strict"
    )
