"""Glow: determinants against autograd, inverses in single precision, initialization.

A Gaussian as the truth.
"""

import math

import pyro.distributions as dist
import pytest
import torch

import probgen as pg
from probgen.models.glow import Glow
from probgen.nn.invertible import ActNorm, AffineCoupling, CouplingNet, InvertibleConv

SHAPE = (4, 2, 2)
LAYERS = {
    "ActNorm": lambda: ActNorm(4),
    "InvertibleConv": lambda: InvertibleConv(4),
    "AffineCoupling": lambda: AffineCoupling(SHAPE),
}


def disturbed(module: torch.nn.Module, amount: float = 0.2) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(amount * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("reach", [1.0, 30.0])
def test_log_determinant_is_that_of_the_jacobian(name, reach):
    torch.manual_seed(0)
    layer, x = disturbed(LAYERS[name]()), reach * torch.randn(1, *SHAPE)
    y, log_det = layer(x)
    jacobian = torch.autograd.functional.jacobian(
        lambda flat: layer(flat.view(1, *SHAPE))[0].flatten(), x.flatten()
    )
    torch.testing.assert_close(
        log_det[0], jacobian.double().slogdet()[1].float(), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(layer.inverse(y), x, rtol=1e-4, atol=1e-4 * reach)


@pytest.mark.parametrize("reach", [1.0, 100.0])
def test_every_scale_goes_back_and_counts_its_volume(reach):
    torch.manual_seed(1)
    glow = disturbed(Glow((1, 4, 4), scales=2, flow_steps=2), 0.05)
    scale, x = glow.scales[0], reach * torch.randn(3, 1, 4, 4)
    kept, latents, log_det = scale.encode(x, None)
    torch.testing.assert_close(scale.decode(kept, latents, None), x, rtol=1e-3, atol=1e-4 * reach)

    def flat(row):
        return torch.cat(scale.encode(row.view(1, 1, 4, 4), None)[:2], 1).flatten()

    truth = [
        torch.autograd.functional.jacobian(flat, row.flatten()).double().slogdet()[1] for row in x
    ]
    torch.testing.assert_close(log_det.double(), torch.stack(truth), rtol=1e-4, atol=1e-3)


def test_density_is_the_change_of_variables_of_all_scales_together():
    torch.manual_seed(2)
    glow = disturbed(Glow((1, 4, 4), scales=2, flow_steps=1)).double()
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)

    def white(row):
        """Independent standard normal variables."""
        rows, parts = row.view(1, 1, 4, 4), []
        for scale in glow.scales:
            rows, latents, _ = scale.encode(rows, None)
            distribution = glow.head(scale.raw(rows, None)).base_dist
            parts.append(((latents - distribution.loc) / distribution.scale).flatten())
        return torch.cat(parts)

    for row, value in zip(x, glow().log_prob(x), strict=True):
        volume = torch.autograd.functional.jacobian(white, row.flatten()).slogdet()[1]
        truth = dist.Normal(0.0, 1.0).log_prob(white(row.flatten())).sum() + volume
        torch.testing.assert_close(value, truth)


def test_initialization_standardizes_what_reaches_every_layer():
    torch.manual_seed(3)
    glow = disturbed(Glow((2, 4, 4), scales=2, flow_steps=2))
    x = 7 + 3 * torch.randn(200, 2, 4, 4)
    glow.initialize(x)
    rows = x
    for scale in glow.scales:
        y = torch.nn.functional.pixel_unshuffle(rows, 2)
        for layer in scale.layers:
            y, _ = layer(y)
            if isinstance(layer, ActNorm):
                torch.testing.assert_close(
                    y.mean((0, 2, 3)), torch.zeros(y.shape[1]), atol=1e-4, rtol=0
                )
                torch.testing.assert_close(
                    y.std((0, 2, 3)), torch.ones(y.shape[1]), atol=1e-4, rtol=0
                )
        rows = y[:, : scale.kept]


@pytest.mark.slow
def test_correlated_pixels_are_learned():
    torch.manual_seed(4)
    factor = torch.tensor(
        [[1.0, 0, 0, 0], [0.9, 0.3, 0, 0], [0.5, -0.5, 0.4, 0], [0.0, 0.7, 0.2, 0.3]]
    )
    truth = dist.MultivariateNormal(torch.arange(4.0), scale_tril=factor)
    x = truth.sample((4000,)).view(-1, 1, 2, 2)
    glow = Glow(
        (1, 2, 2),
        scales=1,
        flow_steps=2,
        network=lambda shape, outputs: CouplingNet(shape, outputs, hidden=8),
    )
    glow.initialize(x)
    independent = -sum(0.5 * math.log(2 * math.pi * math.e * v) for v in factor.square().sum(-1))
    pg.fit(
        glow,
        x,
        steps=200,
        batch_size=500,
        optimizer=lambda p: torch.optim.Adam(p, lr=1e-2),
        compile=False,
        seed=0,
    )
    reached = glow().log_prob(truth.sample((4000,)).view(-1, 1, 2, 2)).mean()
    assert -truth.entropy() - 0.05 < reached < -truth.entropy() + 0.05
    assert reached > independent + 1


def test_a_context_of_images_is_seen_where_it_is():
    torch.manual_seed(5)
    glow = disturbed(Glow((1, 4, 4), scales=1, flow_steps=1, context=1, context_ndim=3))
    context, other = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    other[..., 0, 0] = 1.0
    x = torch.randn(1, 1, 4, 4)
    assert not torch.equal(glow(context).log_prob(x), glow(other).log_prob(x))
    assert glow(context.expand(2, 3, 1, 4, 4)).sample((5,)).shape == (5, 2, 3, 1, 4, 4)


def test_refusals_say_what_to_do():
    with pytest.raises(ValueError, match="divisible by 2 \\*\\* scales = 4"):
        Glow((1, 6, 6), scales=2)
    with pytest.raises(ValueError, match=r"expected a context of shape \(\*batch, 3\)"):
        Glow((1, 4, 4), context=3)(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"expected a context of shape \(\*batch, 3\)"):
        Glow((1, 4, 4), context=3)()
    with pytest.raises(ValueError, match="NaN"):
        Glow((1, 4, 4))().log_prob(torch.full((1, 1, 4, 4), torch.nan))
