"""Networks that know the time against the same computation written out.

And leading dims against a loop over rows.
"""

import math

import pytest
import torch
from torch.nn.functional import conv2d, gelu, group_norm, layer_norm, linear, silu

from probgen.nn.conditioning import Conditioning, FourierTime
from probgen.nn.dit import DiT, ModulatedBlock
from probgen.nn.encodings import FourierFeatures
from probgen.nn.time import TimeMLP
from probgen.nn.transformer import Attention, CausalAttention
from probgen.nn.unet import Mixing, Residual, UNet

NETWORKS = {
    "TimeMLP": (lambda **o: TimeMLP(6, [8, 8, 5], **o), (6,)),
    "TimeMLP of waves": (
        lambda **o: TimeMLP(6, [8, 8], encoding=FourierFeatures(6, 4, 0.5), **o),
        (6,),
    ),
    "UNet": (lambda **o: UNet((2, 8, 8), width=8, multipliers=(1, 2), **o), (2, 8, 8)),
    "UNet of odd size": (
        lambda **o: UNet((1, 7, 5), width=8, multipliers=(1, 1, 2), blocks=2, **o),
        (1, 7, 5),
    ),
    "UNet whose finest level is wider": (
        lambda **o: UNet((1, 4, 4), width=4, multipliers=(2, 3), **o),
        (1, 4, 4),
    ),
    "DiT of images": (
        lambda **o: DiT((2, 8, 4), patch=2, width=16, layers=2, heads=2, **o),
        (2, 8, 4),
    ),
    "DiT of sequences": (
        lambda **o: DiT((6, 3), patch=3, width=16, layers=2, heads=2, **o),
        (6, 3),
    ),
    "DiT of vectors": (lambda **o: DiT((6,), patch=2, width=16, layers=2, heads=2, **o), (6,)),
}


def built(name, **options):
    """A network away from the zeros that it starts from, and the shape of its events."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    net = make(**options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net, shape


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_start_at_zero(name):
    make, shape = NETWORKS[name]
    assert (make()(torch.randn(3, *shape), torch.rand(3)) == 0).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_do_not_depend_on_leading_dims_and_all_inputs_matter(name):
    net, shape = built(name, context=3)
    x, t, context = torch.randn(2, 3, *shape), torch.rand(2, 3), torch.randn(2, 3, 3)
    together = net(x, t, context)
    assert together.shape == x.shape
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(
                net(x[i, j], t[i, j], context[i, j]), together[i, j], atol=1e-4, rtol=1e-4
            )
    torch.testing.assert_close(
        net(x, t[0], context[0]), net(x, t[0].expand(2, 3), context[0].expand(2, 3, 3))
    )
    for other in (
        net(x, 1 - t, context),
        net(x, t, -context),
        net(x, t, None),
        net(-x, t, context),
    ):
        assert (other - together).flatten(2).abs().amax(-1).min() > 1e-3
    together.square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_of_nan_and_no_context_are_the_same_unknown_context(name):
    net, shape = built(name, context=3)
    x, t, context = torch.randn(4, *shape), torch.rand(4), torch.randn(4, 3)
    context[1], context[2, 0] = torch.nan, torch.nan
    value, unknown = net(x, t, context), net(x, t)
    torch.testing.assert_close(value[1:3], unknown[1:3], atol=1e-5, rtol=1e-4)
    assert (value[[0, 3]] - unknown[[0, 3]]).flatten(1).abs().amax(-1).min() > 1e-3
    value.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("name", "axis"), [("TimeMLP", 0), ("UNet", 0), ("DiT of images", 0), ("DiT of sequences", 1)]
)
def test_outputs_may_be_wider_than_inputs(name, axis):
    shape = list(NETWORKS[name][1])
    shape[axis] *= 2
    net, event = built(name, outputs=shape[axis])
    assert net(torch.randn(3, *event), torch.rand(3)).shape == (3, *shape)


@pytest.mark.parametrize("name", NETWORKS)
def test_wrong_inputs_are_refused_with_advice(name):
    net, shape = built(name)
    with pytest.raises(ValueError, match=r"expected x of shape \(\*batch, "):
        net(torch.zeros(5, *shape[:-1], shape[-1] + 1), torch.rand(5))
    with pytest.raises(ValueError, match="expected no context"):
        net(torch.zeros(5, *shape), torch.rand(5), torch.zeros(5, 2))
    net, _ = built(name, context=3)
    with pytest.raises(ValueError, match=r"expected a context of shape \(\*batch, 3\)"):
        net(torch.zeros(5, *shape), torch.rand(5), torch.zeros(5, 2))


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="divisible by patch 3"):
        DiT((1, 8, 8), patch=3)
    with pytest.raises(ValueError, match="attention at 0 to 2 levels"):
        UNet((1, 8, 8), multipliers=(1, 2), attention=3)
    with pytest.raises(ValueError, match="one hidden layer"):
        TimeMLP(2, [])
    with pytest.raises(ValueError, match="slowest < fastest"):
        FourierTime(4, 2.0, 1.0)


def test_time_is_seen_through_cosines_and_sines_of_frequencies_in_equal_ratios():
    t = torch.tensor([0.0, 0.3, -2.0])
    frequencies = torch.tensor([0.5, 1.0, 2.0, 4.0])
    angles = t[:, None] * frequencies
    torch.testing.assert_close(
        FourierTime(4, 0.5, 4.0)(t), torch.cat((angles.cos(), angles.sin()), -1)
    )


def test_products_of_waves_are_a_normal_kernel():
    """Bochner: the mean of cos w(x - y) over normal w is the density's characteristic function."""
    torch.manual_seed(0)
    x, y = torch.randn(2, 30, 3)
    features = FourierFeatures(3, count=20_000, scale=0.8)
    waves = [features(each)[:, 3:] for each in (x, y)]
    kernel = (-0.5 * (0.8 * (x - y)).square().sum(-1)).exp()
    torch.testing.assert_close((waves[0] * waves[1]).sum(-1) / 20_000, kernel, atol=0.03, rtol=0)
    torch.testing.assert_close(features(x)[:, :3], x)
    with pytest.raises(ValueError, match=r"expected x of shape \(\*batch, 3\), got \(5, 2\)"):
        features(torch.zeros(5, 2))


def test_conditioning_is_its_formula():
    module = Conditioning(5, context=2, time=FourierTime(4))
    t, context = torch.rand(7), torch.randn(7, 2)
    context[3] = torch.nan
    features = module.time[2](silu(module.time[0](FourierTime(4)(t))))
    for row in range(7):
        known = (
            linear(context[row], module.known.weight, module.known.bias)
            if row != 3
            else module.unknown
        )
        torch.testing.assert_close(module(t, context)[row], silu(features[row] + known))


def test_mlp_is_its_formula():
    net = TimeMLP(2, [4, 4, 3], embedding=5)
    torch.nn.init.normal_(net.last.weight)
    x, t = torch.randn(6, 2), torch.rand(6)
    parts = net.modulations(net.conditioning(t)).split([4, 4, 4, 4, 3, 3], -1)
    h = net.first(x)
    for i, layer in enumerate(net.layers):
        update = silu(layer(layer_norm(h, (4,))) * (1 + parts[2 * i]) + parts[2 * i + 1])
        h = h + update if i < 2 else update
    torch.testing.assert_close(net(x, t), net.last(h))


def test_residual_block_is_its_formula():
    block = Residual(4, 6, 5)
    torch.nn.init.normal_(block.leave[2].weight)
    x, e = torch.randn(3, 4, 5, 5), torch.randn(3, 5)
    h = conv2d(silu(group_norm(x, 4)), block.enter[2].weight, block.enter[2].bias, padding=1)
    scale, shift = block.modulation(e)[:, :, None, None].chunk(2, 1)
    h = conv2d(
        silu(group_norm(h, 2) * (1 + scale) + shift),
        block.leave[2].weight,
        block.leave[2].bias,
        padding=1,
    )
    torch.testing.assert_close(block(x, e), conv2d(x, block.skip.weight, block.skip.bias) + h)


def softmax_attention(attention, h):
    """Head by head."""
    size = h.shape[-1] // attention.heads
    q, k, v = (part.split(size, -1) for part in attention.inputs(h).chunk(3, -1))
    mixed = [(a @ b.mT / math.sqrt(size)).softmax(-1) @ c for a, b, c in zip(q, k, v, strict=True)]
    return attention.out(torch.cat(mixed, -1))


def test_attention_over_all_positions_is_its_formula():
    attention, h = Attention(6, 2), torch.randn(3, 4, 6)
    torch.testing.assert_close(attention(h), softmax_attention(attention, h))
    causal = CausalAttention(6, 2)
    causal.load_state_dict(attention.state_dict())
    torch.testing.assert_close(causal(h)[:, -1], attention(h)[:, -1])
    mixing, x = Mixing(8, 2), torch.randn(3, 8, 3, 2)
    torch.nn.init.normal_(mixing.attention.out.weight)
    expected = softmax_attention(mixing.attention, group_norm(x, 8).flatten(2).mT).mT.unflatten(
        2, (3, 2)
    )
    torch.testing.assert_close(mixing(x), x + expected)


def test_modulated_block_is_its_formula():
    block, h, e = ModulatedBlock(8, 2), torch.randn(3, 4, 8), torch.randn(3, 8)
    torch.testing.assert_close(block(h, e), h)
    torch.nn.init.normal_(block.modulation.weight)
    shift, scale, gate, shift2, scale2, gate2 = block.modulation(e)[:, None].chunk(6, -1)
    g = h + gate * softmax_attention(block.attention, layer_norm(h, (8,)) * (1 + scale) + shift)
    hidden = gelu(block.mlp[0](layer_norm(g, (8,)) * (1 + scale2) + shift2), approximate="tanh")
    torch.testing.assert_close(block(h, e), g + gate2 * block.mlp[2](hidden), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in NETWORKS if "DiT" in name])
def test_patches_are_tokens_and_back(name):
    net, shape = built(name)
    x = torch.randn(5, *shape)
    tokens = net._tokens(x)
    torch.testing.assert_close(net._events(tokens), x)
    second = [lambda: x[:, 2:4], lambda: x[:, 3:].mT, lambda: x[:, :, :2, 2:4]][len(shape) - 1]()
    torch.testing.assert_close(tokens[:, 1], second.reshape(5, -1))


def test_unet_uses_its_skips_and_coarse_levels():
    """Every pixel reaches every other by attention.

    Without it and with one level, only its neighborhood.
    """
    near = UNet((1, 24, 24), width=8, multipliers=(1,), attention=0)
    far = UNet((1, 24, 24), width=8, multipliers=(1, 1), attention=1)
    for net, reaches in ((near, False), (far, True)):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        for module in net.modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.register_forward_hook(
                    lambda module, inputs, output: inputs[0]
                )  # they see all pixels
        x = torch.randn(1, 1, 24, 24, requires_grad=True)
        (gradient,) = torch.autograd.grad(net(x, torch.rand(1))[0, 0, 0, 0], x)
        assert (gradient[0, 0, -1, -1] != 0) == reaches and gradient[0, 0, 1, 1] != 0
