"""Diversity by condition: weights that follow the spread of the data, and showers with known answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import probgen as pg
from probgen.compile.tracing import Compiled
from probgen.datasets import calorimeter_showers, channel_sums
from probgen.nn import MLP, SideBySide
from probgen.objectives import R1, Adversarial, ContextSpread, ModeSeeking, SelectiveDiversity
from probgen.objectives.games import Wasserstein
from probgen.train import adam

SCALES = torch.tensor([0.0, 1.0, 4.0])


def rows(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three conditions, of deviations 0, 1 and 4 around means of their own."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (n,), generator=generator)
    noise = torch.randn(n, 2, 3, generator=generator)
    x = 10 * label[:, None, None] + SCALES[label][:, None, None] * noise
    return x, torch.stack([label.float(), 1 - label.float()], 1)


def test_the_spread_follows_that_of_the_data() -> None:
    x, context = rows(6000)
    known = torch.stack([torch.arange(3.0), 1 - torch.arange(3.0)], 1)
    spread = ContextSpread(x, context)
    torch.testing.assert_close(spread(known), SCALES / 4, atol=0.02, rtol=0)
    by_hand = torch.stack([x[context[:, 0] == k].std(0).mean() for k in range(3)])
    torch.testing.assert_close(spread(known), by_hand / by_hand.max())
    torch.testing.assert_close(spread(known + 0.2), spread(known))


def test_the_spread_of_contexts_that_do_not_repeat() -> None:
    """x = m(c) + c e, so that the deviation is c itself."""
    generator = torch.Generator().manual_seed(0)
    context = torch.rand(4000, 1, generator=generator)
    x = context * torch.randn(4000, 5, generator=generator)
    asked = torch.tensor([[0.2], [0.5], [0.8]])
    found = ContextSpread(x, context, neighbors=200)(asked)
    torch.testing.assert_close(found / found[-1], asked[:, 0] / 0.8, atol=0.05, rtol=0)
    with pytest.raises(ValueError, match=r"contexts of 3999 with one; pass neighbors=20"):
        ContextSpread(x, context)


REFUSED = {
    "no context": (torch.zeros(4, 2), torch.zeros(3, 1), "one context for each row"),
    "no differences": (torch.ones(4, 2), torch.zeros(4, 1), "expected rows that differ"),
    "missing": (torch.full((4, 2), math.nan), torch.zeros(4, 1), "complete the rows first"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_data_without_spread_are_refused(case: str) -> None:
    x, context, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        ContextSpread(x, context)
    with pytest.raises(ValueError, match="neighbors <= 4"):
        ContextSpread(torch.randn(4, 2), torch.randn(4, 1), neighbors=5)


def players() -> tuple[pg.GAN, nn.Module]:
    torch.manual_seed(1)
    gan = pg.GAN(SideBySide(MLP(3 + 2, [8], 2)), pg.standard_normal(3), (2,))
    critic = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    return gan.double(), SideBySide(critic).double()


@pytest.mark.parametrize("by_features", [False, True])
def test_one_backward_is_two(by_features: bool) -> None:
    (gan, critic), spread = players(), lambda c: c[:, 0].square()
    x = torch.randn(12, 2, dtype=torch.float64)
    c = torch.randn(12, 2, dtype=torch.float64)
    layers = [critic.net[0], critic.net[1]] if by_features else []
    penalty = SelectiveDiversity(spread, 3.0, layers=layers)
    torch.manual_seed(7)
    objective = Adversarial(critic, Wasserstein(), generator_regularizers=[penalty])
    value = objective(gan.model, gan.guide)(x, c)
    value.backward()
    torch.manual_seed(7)
    one = torch.randn(12, 3, dtype=torch.float64)
    other = torch.randn(12, 3, dtype=torch.float64)
    fake, again = gan.generator(one, c), gan.generator(other, c)

    def seen(y: Tensor) -> Tensor:
        linear = critic.net[0](torch.cat([y, c], 1))
        return torch.cat([linear, linear.tanh()], 1) if by_features else y

    ratio = (seen(fake) - seen(again)).abs().mean(1) / (one - other).abs().mean(1)
    term = (3.0 * c[:, 0].square() / (ratio + 1e-5)).mean()
    of_generator = -critic(fake, c).mean() + term
    of_critic = (critic(fake.detach(), c) - critic(x, c)).mean()
    expected = [
        *torch.autograd.grad(12 * of_critic, list(critic.parameters())),
        *torch.autograd.grad(12 * of_generator, list(gan.parameters())),
    ]
    for p, gradient in zip((*critic.parameters(), *gan.parameters()), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient)


def test_with_spread_one_it_is_mode_seeking() -> None:
    losses = []
    for penalty in (SelectiveDiversity(lambda c: torch.ones(len(c)), 2.0), ModeSeeking(2.0)):
        gan, critic = players()
        torch.manual_seed(0)
        objective = Adversarial(critic, generator_regularizers=[penalty])
        x = torch.zeros(5, 2, dtype=torch.float64)
        losses.append(objective(gan.model, gan.guide)(x, x.clone()))
    torch.testing.assert_close(*losses)


def test_what_does_not_fit_is_refused_and_the_advice_works() -> None:
    gan, critic = pg.GAN(MLP(3, [8], 2), pg.standard_normal(3)), MLP(2, [8], 1)
    make = partial(Adversarial, critic)
    x = torch.zeros(5, 2)
    with pytest.raises(TypeError, match=r"expected rows with a context, got none"):
        penalty = SelectiveDiversity(lambda c: c)
        make(generator_regularizers=[penalty])(gan.model, gan.guide)(x)
    assert make(generator_regularizers=[ModeSeeking()])(gan.model, gan.guide)(x).isfinite()
    gan, critic = players()
    objective = Adversarial(critic, generator_regularizers=[SelectiveDiversity(lambda c: c)])
    for rows in (0, 1):
        with pytest.raises(ValueError, match=f"two rows or more.*, got {rows}; give the training"):
            ContextSpread(torch.zeros(rows, 2), torch.zeros(rows, 1))
    with pytest.raises(ValueError, match=r"a spread of shape \(5,\), .* got \(5, 2\)"):
        objective(gan.model, gan.guide)(x.double(), torch.zeros(5, 2).double())


def trained(
    make: Callable[..., nn.Module | ModeSeeking | None], **options: Any
) -> tuple[Tensor, Any]:
    """Deviation of draws given each of three conditions, whose data have 0, 0.1 and 0.4."""
    torch.manual_seed(0)
    x, context = rows(600)
    x = x[:, 0, :2] / 10
    gan = pg.GAN(SideBySide(MLP(3 + 2, [16], 2)), pg.standard_normal(3), (2,))
    penalty = make(x, context)
    penalties = {"regularizers": [R1(0.1)], "generator_regularizers": [penalty] if penalty else []}
    objective = Adversarial(SideBySide(MLP(4, [16], 1)), **penalties)
    optimizer = adam(5e-3, betas=(0.5, 0.9))
    settings = {"batch_size": 100, "verdict": False, "seed": 0, "compile": False} | options
    history = pg.fit(gan, (x, context), objective, optimizer=optimizer, **settings)
    known = torch.stack([torch.arange(3.0), 1 - torch.arange(3.0)], 1)
    return pg.sample(gan, 500, known, seed=0).std(0).mean(-1), history


def selective(x: Tensor, context: Tensor) -> SelectiveDiversity:
    return SelectiveDiversity(ContextSpread(x, context), 0.03)


def test_compiled_steps_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compiled, "build", lambda self, *examples, **how: self)
    _, eager = trained(selective, steps=6)
    _, graph = trained(selective, steps=6, compile=True)
    assert graph.compiled.startswith("from step")
    assert graph.loss == pytest.approx(eager.loss, rel=1e-4)


@pytest.mark.slow
def test_draws_differ_where_the_data_do_and_are_alike_elsewhere() -> None:
    """Without it none differ, with mode seeking all do."""
    found = {}
    for make in (lambda x, c: None, lambda x, c: ModeSeeking(0.03), selective):
        found[len(found)], _ = trained(make, steps=400)
    plain, seeking, ours = found.values()
    assert plain[2] < 0.2
    assert seeking[0] > 0.2
    assert ours[0] < 0.1
    assert 0.25 < ours[2] < 0.55


# -- showers


@pytest.mark.parametrize("kind", [0.0, 1.0])
@pytest.mark.parametrize("energy", [0.25, 1.0])
def test_whole_showers_have_the_moments_of_the_closed_form(energy: float, kind: float) -> None:
    n = 20_000
    context = torch.tensor([[energy, kind]]).expand(n, 2)
    images = calorimeter_showers(n, 0, size=8, context=context).images
    total = images.double().sum((1, 2, 3))
    mean = 400 * energy
    variance = mean + mean**2 * (math.exp(0.16) - 1) * kind
    assert total.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / n))
    assert total.var().item() == pytest.approx(variance, rel=0.08)
    torch.testing.assert_close(channel_sums(images).sum(1).double(), total)


def test_channels_share_the_pixels() -> None:
    image = torch.arange(16.0).reshape(1, 4, 4)
    chess = image[0, ::2, ::2].sum() + image[0, 1::2, 1::2].sum()
    quarters = [image[0, 0, 1] + image[0, 1, 0], image[0, 0, 3] + image[0, 1, 2]]
    quarters += [image[0, 2, 1] + image[0, 3, 0], image[0, 2, 3] + image[0, 3, 2]]
    assert channel_sums(image).tolist() == [float(chess), *map(float, quarters)]
    with pytest.raises(ValueError, match="add a dim"):
        channel_sums(torch.ones(4, 4))


def test_the_spread_of_showers_is_that_of_their_kind() -> None:
    showers = calorimeter_showers(4000, 0, size=8)
    again = calorimeter_showers(4000, 0, size=8)
    assert torch.equal(showers.images, again.images)
    spread = ContextSpread(showers.images.log1p(), showers.context)
    known = torch.tensor([[e, k] for k in (0.0, 1.0) for e in (0.25, 0.5, 0.75, 1.0)])
    alike, diverse = spread(known).chunk(2)
    assert (diverse > 1.5 * alike).all()


BAD = {
    "a shape": (torch.ones(3, 1), "shape (3, 2), got (3, 1)"),
    "an energy": (torch.tensor([[-1.0, 0.0]] * 3), "positive energies, got -1 to -1"),
    "a kind": (torch.tensor([[1.0, 0.5]] * 3), "kinds 0 or 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_contexts_that_are_none_are_refused(case: str) -> None:
    context, message = BAD[case]
    with pytest.raises(ValueError) as error:
        calorimeter_showers(3, 0, context=context)
    assert message in str(error.value)
