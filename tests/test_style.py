"""Style-based generators, against filters made row by row and closed forms."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

import probgen as pg
from probgen.compile.tracing import Compiled
from probgen.nn import (
    MLP,
    DCGANCritic,
    DCGANGenerator,
    Equalized,
    ModulatedConvolution,
    PixelNorm,
    SideBySide,
    StyleGenerator,
    StyleTruncation,
)
from probgen.objectives import R1, Adversarial, PathLength
from probgen.train import adam


def explicit(layer: ModulatedConvolution, x: Tensor, style: Tensor) -> Tensor:
    """Filters for each row, as the paper writes them."""
    scale = 1 / math.sqrt(layer.weight[0].numel())
    rows = []
    for image, s in zip(x, layer.scales(style), strict=True):
        own = layer.weight * scale * s[None, :, None, None]
        if layer.demodulate:
            own = own / own.square().sum((1, 2, 3), keepdim=True).sqrt()
        rows.append(conv2d(image[None], own, padding=layer.weight.shape[-1] // 2)[0])
    return torch.stack(rows)


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
def test_modulated_convolution_has_filters_of_each_row(kernel: int, demodulate: bool) -> None:
    torch.manual_seed(0)
    layer = ModulatedConvolution(3, 5, 4, kernel, demodulate=demodulate).double()
    x = torch.randn(6, 3, 7, 8, dtype=torch.float64)
    style = torch.randn(6, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(x, style), explicit(layer, x, style))


@pytest.mark.parametrize("loud", [1.0, 30.0])
def test_demodulated_outputs_have_unit_variance(loud: float) -> None:
    torch.manual_seed(0)
    layer = ModulatedConvolution(8, 4, 4)
    style = loud * torch.randn(1, 4).expand(500, 4)
    out = layer(torch.randn(500, 8, 9, 9), style)[..., 1:-1, 1:-1]  # without the padding
    torch.testing.assert_close(out.var((0, 2, 3)), torch.ones(4), rtol=0.05, atol=0.0)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 5, 8), (2, 7, 3)])
def test_images_of_any_size_and_leading_dims(shape: tuple[int, int, int]) -> None:
    generator = StyleGenerator(4, shape, (6, 5), width=8, noisy=False)
    images = generator(torch.randn(2, 3, 4))
    assert images.shape == (2, 3, *shape)
    assert images.abs().max() <= 1
    images.square().sum().backward()
    assert all(p.grad is not None for p in generator.parameters())
    z = torch.randn(2, 3, 4)
    generator.eval()
    torch.testing.assert_close(generator(z)[1], generator(z[1]))


def test_layers_have_the_styles_that_they_are_said_to_have() -> None:
    """The image by styles that differ from a layer on is that of the other noise if it is the first."""
    torch.manual_seed(0)
    generator = StyleGenerator(4, (1, 8, 8), (4, 4, 4), width=8, noisy=False)
    generator.eval().requires_grad_(False)
    one, other = generator.style(torch.randn(2, 1, 4))
    images = []
    for start in range(generator.styles + 1):
        w = [one] * start + [other] * (generator.styles - start)
        images.append(generator.from_styles(torch.stack(w, -2)))
    torch.testing.assert_close(images[0], generator.from_styles(other.expand(1, 6, 8)))
    assert generator.styles == 6
    steps = [float((a - b).abs().max()) for a, b in pairwise(images)]
    assert min(steps) > 0  # every layer takes its own


def test_mixing_takes_another_rows_style_from_a_random_layer_on() -> None:
    torch.manual_seed(0)
    generator = StyleGenerator(4, (1, 4, 4), (2, 2), width=3, mixing=0.5)
    z = torch.randn(4000, 4)
    seen = []
    generator.from_styles = lambda w: seen.append(w) or w  # type: ignore[method-assign]
    generator(z)
    style = generator.style(z)
    others = style.roll(1, 0)
    own = (seen[0] == style[:, None]).all(-1)
    assert ((seen[0] == others[:, None]).all(-1) | own).all()
    starts = own.sum(1)  # layers with a row's own style come first
    assert (own == (torch.arange(4) < starts[:, None])).all()
    shares = torch.bincount(starts, minlength=5) / len(z)
    torch.testing.assert_close(
        shares, torch.tensor([0.0, 1 / 6, 1 / 6, 1 / 6, 1 / 2]), atol=0.03, rtol=0
    )


def test_the_style_that_is_mixed_in_gives_no_gradient_to_its_noise() -> None:
    """Path lengths are those of a row's own noise."""
    torch.manual_seed(0)
    generator = StyleGenerator(4, (1, 4, 4), (2, 2), width=3, mixing=1.0, noisy=False)
    z = torch.randn(5, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(generator(z)[0].sum(), z)
    assert slope[0].abs().sum() > 0 and slope[1:].abs().sum() == 0


def test_noise_has_a_learned_strength_that_begins_at_zero() -> None:
    torch.manual_seed(0)
    generator = StyleGenerator(4, (1, 8, 8), (4, 4)).eval()
    z = torch.randn(3, 4)
    assert torch.equal(generator(z), generator(z))
    for layer in generator.layers:
        nn.init.ones_(layer.strength)
    assert not torch.equal(generator(z), generator(z))
    generator(z).square().sum().backward()
    assert all(layer.strength.grad != 0 for layer in generator.layers)


def trained_styles() -> StyleGenerator:
    torch.manual_seed(0)
    generator = StyleGenerator(4, (1, 8, 8), (4, 4), width=6, decay=0.1, noisy=False)
    for _ in range(60):
        generator(torch.randn(200, 4))
    return generator.eval()


def test_the_running_mean_is_the_mean_style() -> None:
    generator = trained_styles()
    styles = generator.style(torch.randn(20_000, 4))
    error = (generator.mean_style - styles.mean(0)).abs() / styles.std(0)
    assert error.max() < 0.1


@pytest.mark.parametrize("layers", [None, 2])
def test_truncation_is_a_line_from_the_mean_style(layers: int | None) -> None:
    generator = trained_styles()
    z = torch.randn(3, 4)
    style = generator.style(z)[:, None].expand(3, generator.styles, 6)
    mean = generator.mean_style.expand_as(style)
    for psi in (0.0, 0.3, 1.0):
        w = mean + psi * (style - mean)
        if layers is not None:
            w = torch.cat([w[:, :layers], style[:, layers:]], 1)
        found = StyleTruncation(psi, layers)(generator)(z)
        torch.testing.assert_close(found, generator.from_styles(w))
    torch.testing.assert_close(StyleTruncation(1.0)(generator)(z), generator(z))


def test_truncation_is_chosen_where_one_samples() -> None:
    gan = pg.GAN(trained_styles(), pg.standard_normal(4))
    before = {name: value.clone() for name, value in gan.state_dict().items()}
    plain = pg.sample(gan, 200, seed=0)
    assert torch.equal(plain, pg.sample(gan, 200, sampler=StyleTruncation(1.0), seed=0))
    spread = [
        float(pg.sample(gan, 200, sampler=StyleTruncation(psi), seed=0).var(0).sum())
        for psi in (0.0, 0.5, 1.0)
    ]
    assert spread[0] == pytest.approx(0.0, abs=1e-9)
    assert spread[0] < spread[1] < spread[2]
    mean = pg.sample(gan, 1, sampler=StyleTruncation(0.0), seed=0)[0]
    w = gan.generator.mean_style.expand(gan.generator.styles, -1)
    torch.testing.assert_close(mean, gan.generator.from_styles(w[None])[0])
    assert gan().using(StyleTruncation(0.5)).density_kind == "implicit"
    assert all(torch.equal(value, before[name]) for name, value in gan.state_dict().items())


def test_a_context_enters_beside_the_noise() -> None:
    generator = SideBySide(StyleGenerator(4 + 3, (1, 8, 8), (4, 4)))
    gan = pg.GAN(generator, pg.standard_normal(4), (1, 8, 8))
    assert gan.context_size == 3
    context = torch.eye(3)
    draws = pg.sample(gan, 5, context, sampler=StyleTruncation(0.5), seed=0)
    assert draws.shape == (5, 3, 1, 8, 8)


def test_a_generator_without_styles_is_refused_and_the_advice_works() -> None:
    gan = pg.GAN(DCGANGenerator(3, (1, 8, 8), (4,)), pg.standard_normal(3))
    with pytest.raises(TypeError, match=r"got DCGANGenerator; use nn.StyleGenerator, or Trunc"):
        pg.sample(gan, 2, sampler=StyleTruncation(0.5))
    assert pg.sample(gan, 2, sampler=pg.Truncation(temperature=0.5)).shape == (2, 1, 8, 8)
    with pytest.raises(ValueError, match="inputs=3"):
        StyleGenerator(4, (1, 8, 8), (4, 4))(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="odd kernel, got 4; pass 5"):
        ModulatedConvolution(2, 3, 4, 4)


@pytest.mark.slow
def test_compiled_steps_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compiled, "build", lambda self, *examples, **how: self)
    x = torch.randn(24, 1, 8, 8).tanh()
    found = []
    for compile in (False, True):
        torch.manual_seed(0)
        gan = pg.GAN(StyleGenerator(4, (1, 8, 8), (4, 4), width=6), pg.standard_normal(4))
        critic = DCGANCritic((1, 8, 8), (4,))
        regularizers = {"regularizers": [R1(1.0)], "generator_regularizers": [PathLength(0.1)]}
        objective = Adversarial(critic, **regularizers)
        settings = {"batch_size": 8, "seed": 0, "verdict": False, "compile": compile}
        optimizer = adam(1e-3, betas=(0.0, 0.99))
        history = pg.fit(gan, x, objective, steps=6, optimizer=optimizer, **settings)
        found.append((history, gan.state_dict()))
    (eager, ours), (graph, theirs) = found
    assert graph.compiled.startswith("from step")
    assert graph.loss == pytest.approx(eager.loss, rel=1e-4)
    assert ours["generator.mean_style"].abs().max() > 0
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-5)


LAYERS = {
    "linear": lambda: nn.Linear(200, 300),
    "convolution": lambda: nn.Conv2d(30, 40, 3),
    "transposed": lambda: nn.ConvTranspose2d(30, 40, 3),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_an_equalized_layer_keeps_variances_and_learns_in_units_of_its_scale(kind: str) -> None:
    torch.manual_seed(0)
    layer = Equalized(LAYERS[kind](), rate=0.1, gain=math.sqrt(2.0))
    linear = kind == "linear"
    x = torch.randn(300, 200) if linear else torch.randn(20, 30, 9, 9)
    out = layer(x)
    inner = out if linear else out[..., 2:-2, 2:-2]
    assert inner.var().item() == pytest.approx(2.0, rel=0.1)
    learned = layer.layer.weight
    assert learned.std().item() == pytest.approx(10.0, rel=0.05)
    with torch.no_grad():
        layer.layer.bias.add_(1.0)
    torch.testing.assert_close(layer(x), out + 0.1)


def test_a_step_of_adam_moves_weights_by_a_share_of_their_scale() -> None:
    torch.manual_seed(0)
    layer = Equalized(nn.Linear(200, 300), rate=0.1, gain=math.sqrt(2.0))
    inputs = torch.eye(200)
    before = layer(inputs).detach()
    layer(inputs).square().sum().backward()
    layer.layer.bias.requires_grad_(False).grad = None
    torch.optim.Adam(layer.parameters(), lr=0.01).step()
    moved = (layer(inputs).detach() - before).abs().mean().item()
    assert moved == pytest.approx(0.01 * 0.1 * before.std().item(), rel=0.05)


def test_an_equalized_convolution_takes_any_leading_dims() -> None:
    layer = Equalized(nn.Conv2d(3, 5, 3))
    x = torch.randn(2, 4, 3, 6, 6)
    torch.testing.assert_close(layer(x)[1], layer(x[1]))


def test_pixel_norm_gives_unit_mean_squares() -> None:
    x = torch.randn(4, 6, 3, 2)
    torch.testing.assert_close(PixelNorm(-3)(x).square().mean(-3), torch.ones(4, 3, 2))
    with pytest.raises(TypeError, match=r"got ReLU; pass nn.Linear"):
        Equalized(nn.ReLU())
    assert MLP(2, [4], 1)(torch.zeros(3, 2)).shape == (3, 1)
