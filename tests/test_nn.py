"""Networks against the same computation written out, and leading dims against a loop over rows."""

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, linear, silu

from probgen.nn import MLP, Constant, ConvDecoder, ConvEncoder, ResidualBlock, Standardize


def rows_one_by_one(net, x, event_ndim):
    lead = x.shape[: x.ndim - event_ndim]
    rows = [net(row[None])[0] for row in x.flatten(0, len(lead) - 1)]
    return torch.stack(rows).unflatten(0, lead)


def test_mlp_is_its_formula():
    net, x = MLP(3, [5, 4], 2, activation=nn.Tanh), torch.randn(7, 3)
    h = x
    for layer in net.hidden:
        h = (h @ layer[0].weight.T + layer[0].bias).tanh()
    torch.testing.assert_close(net(x), h @ net.last.weight.T + net.last.bias)
    flat = MLP(3, [], 2)
    torch.testing.assert_close(flat(x), linear(x, flat.last.weight, flat.last.bias))


def test_residual_layers_add_their_input():
    net, x = MLP(4, [4, 6, 6], 2, residual=True), torch.randn(7, 4)
    h = x + silu(net.hidden[0][0](x))
    h = silu(net.hidden[1][0](h))
    h = h + silu(net.hidden[2][0](h))
    torch.testing.assert_close(net(x), net.last(h))


@pytest.mark.parametrize("norm", [None, nn.LayerNorm, nn.BatchNorm1d])
def test_mlp_rows_do_not_depend_on_leading_dims(norm):
    net, x = MLP(3, [5], 2, norm=norm, dropout=0.5).eval(), torch.randn(4, 6, 3)
    torch.testing.assert_close(net(x), rows_one_by_one(net, x, 1))
    assert net(x[0, 0]).shape == (2,)
    assert net(x[:, :0]).shape == (4, 0, 2)


def test_dropout_drops_in_training_only():
    net, x = MLP(3, [400], 1, dropout=0.25), torch.randn(1, 3)
    hidden = net.hidden[0]
    dropped = (hidden(x) == 0).float().mean().item()
    assert dropped == pytest.approx(0.25, abs=0.08)
    assert (hidden.eval()(x) != 0).all()


def test_residual_block_is_its_formula():
    block, x = ResidualBlock(2), torch.randn(3, 2, 5, 5)
    first, second = block.layers[1], block.layers[3]
    h = conv2d(silu(x), first.weight, first.bias, padding=1)
    torch.testing.assert_close(block(x), x + conv2d(silu(h), second.weight, second.bias, padding=1))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 7), (1, 28, 28)])
def test_images_of_any_size_fold_and_unfold_their_leading_dims(shape):
    encoder = ConvEncoder(shape, 5, hidden=(4, 8))
    decoder = ConvDecoder(5, (2 * shape[0], *shape[1:]), hidden=(8, 4))
    x = torch.randn(2, 3, *shape)
    codes = encoder(x)
    torch.testing.assert_close(codes, rows_one_by_one(encoder, x, 3), rtol=1e-4, atol=1e-5)
    images = decoder(codes)
    assert images.shape == (2, 3, 2 * shape[0], *shape[1:])
    torch.testing.assert_close(images, rows_one_by_one(decoder, codes, 1), rtol=1e-4, atol=1e-5)


def test_the_encoder_and_decoder_see_every_pixel_and_code():
    encoder, decoder = (
        ConvEncoder((1, 9, 9), 2, hidden=(4, 4)),
        ConvDecoder(2, (1, 9, 9), hidden=(4, 4)),
    )
    x, z = torch.randn(1, 1, 9, 9, requires_grad=True), torch.randn(1, 2, requires_grad=True)
    assert (torch.autograd.grad(encoder(x).sum(), x)[0] != 0).all()
    jacobian = torch.autograd.functional.jacobian(decoder, z)
    assert (jacobian != 0).flatten(0, 3).any(0).all() and (jacobian != 0).flatten(4).any(-1).all()


def test_constant_ignores_its_context():
    constant = Constant(2, 3, initial=torch.arange(3.0), context_ndim=3)
    expected = torch.arange(3.0).expand(4, 2, 3)
    torch.testing.assert_close(constant(torch.randn(4, 1, 8, 8)).detach(), expected)
    torch.testing.assert_close(constant().detach(), expected[0])
    constant(torch.randn(4, 1, 8, 8)).sum().backward()
    torch.testing.assert_close(constant.value.grad, torch.full((2, 3), 4.0))


def test_standardize_gives_zero_mean_and_unit_variance():
    x = torch.randn(50, 3) * torch.tensor([1.0, 5.0, 0.1]) + 7
    z = Standardize(x.mean(0), x.std(0))(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(z.std(0), torch.ones(3))


@pytest.mark.parametrize(
    ("net", "x", "message"),
    [
        (
            MLP(3, [], 2),
            torch.zeros(4, 5),
            r"expected inputs of shape \(\*batch, 3\), got \(4, 5\); .* inputs=5",
        ),
        (
            ConvDecoder(3, (1, 8, 8)),
            torch.zeros(4, 5),
            r"expected inputs of shape \(\*batch, 3\), got \(4, 5\)",
        ),
        (
            ConvEncoder((1, 8, 8), 2),
            torch.zeros(4, 64),
            r"shape \(\*batch, 1, 8, 8\), got \(4, 64\); unflatten",
        ),
    ],
)
def test_wrong_shapes_are_refused(net, x, message):
    with pytest.raises(ValueError, match=message):
        net(x)


def test_constant_columns_cannot_be_standardized():
    with pytest.raises(ValueError, match="expected positive std"):
        Standardize(0.0, torch.tensor([1.0, 0.0]))
