"""Inverses of flows.

Round trips in both precisions and far out, the same as by repeated passes, gradients.
"""

import copy
import warnings

import pytest
import torch
import zuko
from torch.autograd import forward_ad

from probgen.distributions.flows.autoregressive_transform import AutoregressiveTransform
from probgen.distributions.flows.marginal_transform import Gaussianized
from probgen.distributions.flows.spline import SplineTransform
from probgen.distributions.flows.univariate import (
    Affine,
    Bernstein,
    MonotonicIntegral,
    MonotonicNetwork,
    Spline,
    SumOfSquares,
)
from probgen.models.autoregressive_flow import MAF, AutoregressiveFlow, AutoregressiveLayer
from probgen.models.coupling_flow import CouplingFlow

UNIVARIATE = [
    Affine(),
    Spline(),
    SumOfSquares(),
    Bernstein(),
    MonotonicNetwork(),
    MonotonicIntegral(8, (16,)),
]
EXACT = {torch.float32: 2e-5, torch.float64: 1e-10}


def name(value):
    return type(value).__name__


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("univariate", UNIVARIATE, ids=name)
def test_functions_are_inverted_near_and_far(univariate, dtype):
    torch.manual_seed(0)
    univariate = univariate.to(dtype) if isinstance(univariate, torch.nn.Module) else univariate
    near, far = torch.linspace(-12.1, 12.3, 97), torch.tensor([-1e5, -1e3, -20.0, 20.0, 1e3, 1e5])
    x = torch.cat((near, far)).to(dtype).expand(8, 103)
    function = univariate(
        torch.randn(8, 1, univariate.width, dtype=dtype).expand(8, 103, univariate.width)
    )
    with torch.no_grad():
        y, ladj = function.call_and_ladj(x)
        back, inverse_ladj = function.inv.call_and_ladj(y)
        again = function(back)
    assert (y[:, :97].diff(dim=-1) > 0).all()
    torch.testing.assert_close(again, y, atol=EXACT[dtype], rtol=EXACT[dtype])
    slope = ladj.exp().clamp(min=1e-3)
    torch.testing.assert_close(back * slope, x * slope, atol=20 * EXACT[dtype], rtol=EXACT[dtype])
    torch.testing.assert_close(
        inverse_ladj, -ladj, atol=1e-2 if dtype == torch.float32 else 1e-8, rtol=0
    )


@pytest.mark.parametrize("univariate", UNIVARIATE, ids=name)
def test_derivatives_are_those_of_autograd(univariate):
    torch.manual_seed(0)
    univariate = univariate.double() if isinstance(univariate, torch.nn.Module) else univariate
    x = torch.linspace(-15, 15, 61, dtype=torch.double, requires_grad=True)
    raw = torch.randn(61, univariate.width, dtype=torch.double, requires_grad=True)
    for function in (univariate(raw), univariate(raw).inv):
        y, ladj = function.call_and_ladj(x)
        slope = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
        torch.testing.assert_close(ladj, slope.log(), atol=1e-7, rtol=1e-7)
    torch.manual_seed(1)
    direction = torch.randn_like(raw)
    (gradient,) = torch.autograd.grad(y.sum(), raw)
    step = 1e-6 * direction
    ahead, behind = (univariate((raw + sign * step).detach()).inv(x.detach()) for sign in (1, -1))
    torch.testing.assert_close(
        (gradient * direction).sum(), (ahead - behind).sum() / 2e-6, atol=1e-3, rtol=1e-5
    )


def test_the_spline_is_that_of_zuko():
    torch.manual_seed(0)
    raw, x = torch.randn(200, 23, dtype=torch.double), 3 * torch.randn(200, dtype=torch.double)
    peer = zuko.transforms.MonotonicRQSTransform(raw[:, :8], raw[:, 8:16], raw[:, 16:])
    for got, expected in zip(
        SplineTransform(raw).call_and_ladj(x), peer.call_and_ladj(x), strict=True
    ):
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(SplineTransform(raw).inv(x), peer.inv(x))


def test_splines_with_extreme_parameters_stay_finite():
    torch.manual_seed(0)
    raw, y = 30 * torch.randn(20_000, 23), 2 * torch.randn(20_000)
    for part in (
        *SplineTransform(raw).inv.call_and_ladj(y),
        *SplineTransform(raw).call_and_ladj(y),
    ):
        assert part.isfinite().all()


def test_histograms_are_inverted_with_their_slopes():
    torch.manual_seed(0)
    transform = Gaussianized(torch.rand(3, 5, dtype=torch.double) + 0.1, -2.0, 8.0)()
    x = torch.rand(200, 3, dtype=torch.double, requires_grad=True) * 9.9 - 1.95
    z, ladj = transform.call_and_ladj(x)
    torch.testing.assert_close(ladj, torch.autograd.grad(z.sum(), x)[0].log())
    back, inverse_ladj = transform.inv.call_and_ladj(z)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse_ladj, -ladj)


@pytest.mark.table(quick=3)
@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("scale", [1.0, 3.0, 1e3])
@pytest.mark.parametrize("family", [AutoregressiveFlow, CouplingFlow], ids=name)
@pytest.mark.parametrize("univariate", UNIVARIATE[:3], ids=name)
def test_flows_are_inverted_near_and_far(univariate, family, scale, dtype):
    torch.manual_seed(0)
    flow = family(4, univariate, layers=4, hidden=(16, 16), context=2).to(dtype)
    with torch.no_grad():
        for name, parameter in flow.named_parameters():
            parameter.mul_(60 if ".last." in name else 1)
        transform = flow(torch.randn(50, 2, dtype=dtype)).transform
        x = scale * torch.randn(50, 4, dtype=dtype)
        z, ladj = transform.call_and_ladj(x)
        back, inverse_ladj = transform.inv.call_and_ladj(z)
    torch.testing.assert_close(back, x, atol=50 * EXACT[dtype], rtol=50 * EXACT[dtype])
    torch.testing.assert_close(
        inverse_ladj, -ladj, atol=1e-3 if dtype == torch.float32 else 1e-9, rtol=1e-3
    )


def test_the_inverse_is_that_of_repeated_passes():
    """Zuko's own way, with the very same maps."""
    torch.manual_seed(0)
    flow = MAF(6, layers=1, hidden=(16,), context=2).double()
    flow.layers[0].network.last.weight.data.mul_(60)
    ours = flow(torch.randn(9, 2, dtype=torch.double)).transform.transforms[0]
    assert isinstance(ours, AutoregressiveTransform)
    peer = zuko.transforms.AutoregressiveTransform(ours.elements, passes=6)
    y = torch.randn(3, 9, 6, dtype=torch.double)
    torch.testing.assert_close(ours.inv(y), peer.inv(y))


@torch.no_grad()
@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"context": 2},
        {"residual": True, "hidden": (16, 16), "context": 2},
        {"activation": torch.nn.Tanh, "hidden": (7,)},
        {"hidden": (3, 30, 5)},
        {"order": torch.tensor([2, 0, 4, 1, 5, 3])},
    ],
    ids=str,
)
def test_values_alone_are_found_as_by_single_steps(options, dtype):
    """NumPy's way, the one that gradients take, and the equation itself in double precision."""
    torch.manual_seed(0)
    layer = AutoregressiveLayer(6, Affine(), **options).to(dtype)
    for parameter in layer.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    width = options.get("context", 0)
    for lead in [(), (1,), (9,), (3, 4), (0,)]:
        context = torch.randn(*lead, width, dtype=dtype) if width else None
        transform, y = layer(context), 2 * torch.randn(*lead, 6, dtype=dtype)
        x = transform.inv(y)
        assert transform.solve(y) is not None and x.is_contiguous()
        slack = {"atol": 50 * EXACT[dtype], "rtol": 50 * EXACT[dtype]}
        torch.testing.assert_close(x, transform._one_by_one(y), **slack)
        exact = copy.deepcopy(layer).double()(None if context is None else context.double())
        back = exact(x.double()).to(dtype)
        torch.testing.assert_close(back, y, **slack)


@torch.no_grad()
def test_a_row_that_is_not_finite_leaves_the_others_alone():
    torch.manual_seed(0)
    layer = AutoregressiveLayer(4, Affine(), hidden=(8, 8))
    y = torch.randn(5, 4)
    bad = y.clone()
    bad[1, 0], bad[3, 2] = torch.nan, torch.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = layer().inv(bad)
    torch.testing.assert_close(x[[0, 2, 4]], layer().inv(y)[[0, 2, 4]])
    torch.testing.assert_close(x, layer()._one_by_one(bad), equal_nan=True)


@torch.no_grad()
@pytest.mark.parametrize(
    "register", ["register_forward_hook", "register_forward_pre_hook"], ids=str
)
def test_hooks_of_activations_run(register):
    torch.manual_seed(0)
    layer = AutoregressiveLayer(4, Affine(), hidden=(8, 8))
    y = torch.randn(5, 4)
    plain = layer().inv(y)
    before = register == "register_forward_pre_hook"
    hook = (lambda m, i: (3 * i[0],)) if before else (lambda m, i, o: 3 * o)
    getattr(layer.network.activation, register)(hook)
    found = layer().inv(y)
    torch.testing.assert_close(found, layer()._one_by_one(y))
    torch.testing.assert_close(layer()(found), y)
    assert not torch.allclose(found, plain)


@torch.no_grad()
def test_inverses_under_autocast_are_those_of_single_steps():
    torch.manual_seed(0)
    transform, y = AutoregressiveLayer(4, Affine(), hidden=(8, 8))(), torch.randn(5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(transform.inv(y), transform._one_by_one(y))
    assert transform.solve(y) is not None


def test_transformed_functions_and_derivatives_take_the_single_steps():
    """torch.func's tensors have no memory, and dual numbers carry more than values."""
    torch.manual_seed(0)
    layer = AutoregressiveLayer(4, Affine(), hidden=(8, 8)).double().requires_grad_(False)
    transform, y = layer(), torch.randn(5, 4, dtype=torch.double)
    expected = transform._one_by_one(y)
    torch.testing.assert_close(torch.vmap(transform.inv)(y), expected)
    ahead = torch.randn_like(y)
    found, slope = torch.func.jvp(transform.inv, (y,), (ahead,))
    torch.testing.assert_close(found, expected)
    step = 1e-6 * ahead
    difference = (transform.inv(y + step) - transform.inv(y - step)) / 2e-6
    torch.testing.assert_close(slope, difference, atol=1e-7, rtol=1e-6)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(transform.inv(forward_ad.make_dual(y, ahead)))
        torch.testing.assert_close(dual.tangent, slope)


def test_gradients_pass_the_steps():
    torch.manual_seed(0)
    flow = MAF(3, layers=2, hidden=(8,)).double()
    z = torch.randn(5, 3, dtype=torch.double)
    parameters = list(flow.parameters())
    transform = flow().transform
    x = transform.inv(z)
    got = torch.autograd.grad(x.square().sum(), parameters)
    fixed = x.detach().requires_grad_()
    pulled = torch.zeros(5, 3, 3, dtype=torch.double)
    for row in range(5):  # dx/dtheta = -(df/dx)^-1 df/dtheta
        pulled[row] = torch.autograd.functional.jacobian(transform, fixed[row])
    weights = torch.linalg.solve(pulled.mT, (2 * fixed).unsqueeze(-1)).squeeze(-1).detach()
    expected = torch.autograd.grad(-(transform(fixed.detach()) * weights).sum(), parameters)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)
