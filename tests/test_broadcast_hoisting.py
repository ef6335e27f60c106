"""Graphs with less to compute against the functions that they came from."""

import pytest
import torch
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from probgen.compile.broadcast_hoisting import hoist_broadcasts
from probgen.compile.mask_indices import index_masks
from probgen.compile.tracing import record_operations

ROWS = 50
DATA = torch.linspace(-2, 2, ROWS)
KEPT = DATA > 0.3


def work(recording, *inputs):
    """Entries that the pointwise operations of a graph compute."""
    FakeTensorProp(recording.graph).propagate(*inputs, *recording.closed_over)
    nodes = [node for node in recording.graph.graph.nodes if node.op == "call_function"]
    pointwise = (node for node in nodes if torch.Tag.pointwise in getattr(node.target, "tags", ()))
    pointwise = (node for node in pointwise if node.target is not torch.ops.aten.clone.default)
    return sum(node.meta["val"].numel() for node in pointwise)


def in_place(x):
    wide = x.expand(ROWS, 3) > 0
    wide.logical_and_(x < 0.5)
    return torch.where(wide, x, 0.0).sum()


def written_through_a_view(x):
    wide = torch.zeros(ROWS, 3)
    wide[0] = x
    return wide.exp().sum(0)


def largest(x):
    wide = x.expand(ROWS, 3)
    return (
        wide.max(1)[0].exp().sum(),
        wide.max(0, keepdim=True)[0],
        wide.amax((0, 1)),
        wide.min(0)[0],
    )


def normal(x):
    """Row by row, as plates make it.

    (x - loc) / scale of each row with the logarithm of each row's scale.
    """
    scale = x[0].exp().expand(ROWS)
    return (-(((DATA - x[1].expand(ROWS)) / scale) ** 2) / 2 - scale.log()).sum()


THIN = {  # function: entries that are left to compute
    "pointwise": (lambda x: x.expand(ROWS, 3).exp().log1p(), 6),
    "sums": (
        lambda x: (
            x.expand(ROWS, 3).exp().sum(),
            x.expand(ROWS, 3).sum(0),
            x.expand(2, 3).mul(2).sum(1),
        ),
        10,
    ),
    "kept dims": (lambda x: x[:, None].expand(3, ROWS).exp().sum((0, 1), keepdim=True), 4),
    "views": (lambda x: x.expand(ROWS, 3).unsqueeze(1).exp().squeeze(1).sum(0), 6),
    "transposed": (lambda x: x.expand(ROWS, 3).t().exp().permute(1, 0).transpose(0, 1).sum(1), 6),
    "numbers": (
        lambda x: (
            (torch.ones(ROWS, 3) * 2 + torch.full_like(x.expand(ROWS, 3), 3.0)).sum() + x.sum()
        ),
        4,
    ),
    "largest": (largest, 2),
    "normal": (normal, 6 * ROWS + 2),
}
SAME = {
    "reshaped": lambda x: x.expand(ROWS, 3).reshape(-1).exp().view(3, ROWS),
    "concatenated": lambda x: torch.cat([x.expand(ROWS, 3), x[:2].sum().expand(ROWS, 1)], 1),
    "in place": in_place,
    "written": written_through_a_view,
    "matrix": lambda x: torch.linspace(0, 1, 30_000).reshape(10_000, 3) @ x,
    "running": lambda x: (
        x.cumsum(0),
        x.expand(4, 3).cumprod(1).cumsum(0),
        x[:, None].expand(3, 50).cumsum(1),
    ),
    "counted": lambda x: (x > 0).expand(2, 3).cumsum(-1) + (x > 1).long().cumprod(0) + x,
    "softmax": lambda x: x.expand(ROWS, 3).log_softmax(1)[:, 1] + DATA,
    "unforeseen": lambda x: x[x > -10].expand(ROWS, 3).exp().sum(),
    "pairs": lambda x: torch.frexp(x.expand(ROWS, 3))[0].sum(0),
    "selected": lambda x: x.expand(ROWS, 3)[KEPT] + DATA[KEPT][:, None],
    "scalars": lambda x: x.sum().expand(()).exp() + x.expand(1, 3).sum(),
}


@pytest.mark.table(quick=10)
@pytest.mark.parametrize("name", [*THIN, *SAME])
def test_results_stay_the_same(name):
    function = THIN[name][0] if name in THIN else SAME[name]
    x = torch.tensor([0.3, -0.2, 0.7])
    thin = hoist_broadcasts(index_masks(record_operations(function, x)), x)
    for point in (x, torch.tensor([1.0, 2.0, -3.0])):
        torch.testing.assert_close(thin(point), function(point))


@pytest.mark.parametrize("name", THIN)
def test_repeated_entries_are_computed_once(name):
    function, entries = THIN[name]
    x = torch.tensor([0.3, -0.2, 0.7])
    recording = record_operations(function, x)
    before = work(recording, x)
    assert work(hoist_broadcasts(recording, x), x) == entries < before


def test_gradients_taken_inside_stay_the_same():
    def gradient(x):
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(normal(leaf), leaf)[0]

    x = torch.tensor([0.3, -0.2])
    thin = hoist_broadcasts(record_operations(gradient, x), x)
    by_hand = torch.stack(
        [(((DATA - x[1]) / x[0].exp()) ** 2 - 1).sum(), (DATA - x[1]).sum() / (2 * x[0]).exp()]
    )
    torch.testing.assert_close(thin(x), by_hand)


def test_masks_become_indices_and_data_are_still_read():
    data = torch.arange(4.0)
    mask = torch.tensor([True, False, True, True])
    recording = index_masks(record_operations(lambda x: (x * data)[mask], torch.ones(4)))
    assert torch.equal(recording(torch.ones(4)), torch.tensor([0.0, 2.0, 3.0]))
    data += 1
    assert torch.equal(recording(torch.ones(4)), torch.tensor([1.0, 3.0, 4.0]))


def test_masks_that_depend_on_inputs_stay():
    recording = record_operations(lambda x: x[x > 0], torch.tensor([1.0, -1.0]))
    assert torch.equal(index_masks(recording)(torch.tensor([1.0, 2.0])), torch.tensor([1.0, 2.0]))
