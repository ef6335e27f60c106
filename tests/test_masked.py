"""Masked networks: what every output sees, by autograd; steps against one pass; loaded degrees."""

import pytest
import torch

from probgen.models.autoregressive_flow import MAF
from probgen.nn.masked import Degrees, MaskedMLP

KINDS = {"even": Degrees.even, "random": Degrees.random}
NETWORKS = [
    {"hidden": (16, 16)},
    {"hidden": (9,), "context": 2},
    {"hidden": (16, 16), "context": 2, "residual": True},
    {"hidden": (12, 12), "context": 2, "direct": True},
    {"hidden": ()},
    {"hidden": (), "context": 2},
    {"hidden": (3, 2)},
]
networks = pytest.mark.parametrize("options", NETWORKS, ids=str)
kinds = pytest.mark.parametrize("kind", KINDS)


def network(orders, outputs, kind, **options):
    """One for each of the orders, with degrees of that kind."""
    lowest = -1 if "context" in options else 0
    degrees = [KINDS[kind](order, options["hidden"], lowest) for order in orders]
    options = {"direct": False, **options}
    net = MaskedMLP(orders.shape[-1], outputs=outputs, degrees=degrees, **options)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # no mask is hidden by a zero
    return net


@kinds
@networks
@pytest.mark.parametrize("dims", [1, 2, 5])
@pytest.mark.parametrize("features", [1, 3])
@pytest.mark.parametrize("count", [1, 2])
def test_steps_give_what_one_pass_gives(options, dims, features, count, kind):
    torch.manual_seed(0)
    orders = torch.stack([torch.randperm(dims) for _ in range(count)])
    net = network(orders, 3, kind, features=features, **options)
    context = torch.randn(7, 2) if "context" in options else None
    x = torch.randn(4, 7, dims, features)
    index = torch.tensor([count - 1])
    expected = net(x.flatten(-2), context, index)
    for graded in (True, False):
        with torch.set_grad_enabled(graded):
            steps = net.steps(torch.Size((4, 7)), context, index)
            got = {}
            raw = next(steps)
            for t, variable in enumerate(orders[-1].tolist()):
                got[variable] = raw
                raw = steps.send(x[..., variable, :]) if t + 1 < dims else None
        torch.testing.assert_close(torch.stack([got[d] for d in range(dims)], -2), expected)


@kinds
@networks
def test_outputs_see_the_variables_before_theirs_and_no_others(options, kind):
    torch.manual_seed(0)
    order = torch.tensor([2, 0, 3, 1])
    net = network(order.unsqueeze(0), 2, kind, activation=torch.nn.SiLU, **options)
    context = torch.randn(2) if "context" in options else None
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, context), torch.randn(4))
    moved = jacobian.abs().sum(1)
    place = order.argsort()
    before = place[:, None] > place
    assert (moved[~before] == 0).all()
    if options["hidden"] != (3, 2):  # too narrow for all of them
        assert (moved[before] > 0).all()


def test_contexts_are_seen_by_all():
    for options in NETWORKS:
        if "context" in options:
            net = network(torch.arange(4).unsqueeze(0), 2, "even", **options)
            seen = torch.autograd.functional.jacobian(
                lambda c, net=net: net(torch.zeros(4), c), torch.randn(2)
            )
            assert (seen.abs().sum((1, 2)) > 0).all()


def test_a_loaded_state_brings_its_degrees():
    """Masks and turns are those of the weights, also where the network was built for another order."""
    one, other = (
        network(torch.randperm(5).unsqueeze(0), 2, "random", hidden=(8,), direct=True)
        for _ in range(2)
    )
    other.load_state_dict(one.state_dict())
    x = torch.randn(6, 5)
    torch.testing.assert_close(other(x), one(x))
    assert str(other.turns) == str(one.turns)


def test_a_loaded_flow_is_inverted_in_the_order_that_it_brings():
    torch.manual_seed(0)
    one = MAF(4, layers=1, orders=[torch.tensor([2, 0, 3, 1])])
    other = MAF(4, layers=1)
    other.load_state_dict(one.state_dict())
    x = torch.randn(6, 4)
    transform = other().transform
    torch.testing.assert_close(transform(x), one().transform(x))
    torch.testing.assert_close(transform.inv(transform(x)), x)
