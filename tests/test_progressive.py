"""Networks that grow: blends at both ends, what a level sees, and stages that grow them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, interpolate

import probgen as pg
from probgen.compile.tracing import Compiled
from probgen.nn import Equalized, Fade, ProgressiveCritic, ProgressiveGenerator
from probgen.objectives import R1, Adversarial
from probgen.train import Stage, adam

SHAPE = (1, 8, 8)
HIDDEN = (4, 3, 2)
X = torch.randn(24, *SHAPE, generator=torch.Generator().manual_seed(0)).tanh()


def pair() -> tuple[ProgressiveGenerator, ProgressiveCritic]:
    torch.manual_seed(0)
    generator = ProgressiveGenerator(5, SHAPE, HIDDEN)
    return generator, ProgressiveCritic(SHAPE, HIDDEN, fade=generator.fade)


def up(x: Tensor, times: int) -> Tensor:
    return interpolate(x, scale_factor=2.0**times)


def plainly(layer: Equalized, x: Tensor) -> Tensor:
    """A convolution of 3 x 3 pixels by the weights of a layer that changes the size as well."""
    return conv2d(layer.factor * x, layer.layer.weight, layer.layer.bias, padding=1)


def alone(generator: ProgressiveGenerator, z: Tensor) -> Tensor:
    """The newest size without what it is blended with; images of twice the size are made."""
    h = generator.start(z)
    for block in generator.blocks:
        h = block[1:](plainly(block[0], up(h, 1)))
    return up(generator.last(generator.images[-1](h)), len(HIDDEN) - generator.levels)


def judged_alone(critic: ProgressiveCritic, x: Tensor) -> Tensor:
    h = critic.images[-1](avg_pool2d(x, 2 ** (len(HIDDEN) - critic.levels)))
    for block in reversed(critic.blocks):
        h = block[3:](avg_pool2d(plainly(block[2], block[:2](h)), 2))
    spread = (h.var(0, unbiased=False) + 1e-8).sqrt().mean()
    return critic.head(torch.cat([h, spread.expand(len(h), 1, *h.shape[2:])], 1)).squeeze(-1)


@pytest.mark.parametrize("level", [2, 3])
def test_the_blend_begins_with_the_old_and_ends_with_the_new(level: int) -> None:
    generator, critic = pair()
    generator.eval()
    z = torch.randn(6, 5)
    while generator.levels < level - 1:
        generator.grow(steps=10)
        critic.grow()
    generator.fade.share.fill_(1.0)
    before, seen = generator(z), critic(X)
    smaller = avg_pool2d(before, 2 ** (len(HIDDEN) - generator.levels))
    torch.testing.assert_close(up(smaller, len(HIDDEN) - generator.levels), before)
    generator.grow(steps=10)
    critic.grow()
    assert generator.fade.share == 0
    torch.testing.assert_close(generator(z), before)
    torch.testing.assert_close(critic(X), seen)
    generator.fade.share.fill_(1.0)
    torch.testing.assert_close(generator(z), alone(generator, z), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(critic(X), judged_alone(critic, X), rtol=1e-4, atol=1e-4)
    assert (generator(z) - before).abs().max() > 0.01
    assert (critic(X) - seen).abs().max() > 1e-4
    generator.fade.share.fill_(0.25)
    half = torch.lerp(before.atanh(), alone(generator, z).atanh(), 0.25).tanh()
    torch.testing.assert_close(generator(z), half, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_critic_sees_as_much_as_the_generator_can_make(level: int) -> None:
    generator = ProgressiveGenerator(5, SHAPE, HIDDEN, levels=level)
    critic = ProgressiveCritic(SHAPE, HIDDEN, fade=generator.fade, levels=level)
    factor = 2 ** (3 - level)
    blurred = up(avg_pool2d(X, factor), 3 - level)
    torch.testing.assert_close(critic(X), critic(blurred))
    if level > 1:
        coarser = up(avg_pool2d(X, 2 * factor), 4 - level)
        assert (critic(X) - critic(coarser)).abs().max() > 1e-4
    assert generator(torch.randn(2, 3, 5)).shape == (2, 3, *SHAPE)
    assert critic(torch.randn(2, 3, *SHAPE)).shape == (2, 3)


def test_every_step_of_training_advances_the_share() -> None:
    generator, _ = pair()
    generator.grow(steps=4)
    shares = []
    for _ in range(6):
        generator(torch.randn(3, 5))
        shares.append(float(generator.fade.share))
    assert shares == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    generator.grow(steps=4)
    generator.eval()(torch.randn(3, 5))
    assert generator.fade.share == 0


def test_the_critic_sees_a_lack_of_diversity() -> None:
    _, critic = pair()
    same = X[:1].expand(8, *SHAPE)
    (slope,) = torch.autograd.grad(critic(X[:8])[0], critic.head[0].layer.weight)
    assert slope[:, -1].abs().sum() > 0
    (slope,) = torch.autograd.grad(critic(same)[0], critic.head[0].layer.weight)
    inner = slope[:, -1].abs().sum()
    assert inner < 1e-3  # the deviation of equal rows is (nearly) 0


def run(path: Path | None = None, **options: Any) -> tuple[pg.GAN, Adversarial, Any]:
    """Three sizes in three stages."""
    generator, critic = pair()
    gan = pg.GAN(generator, pg.standard_normal(5))
    objective = Adversarial(critic, regularizers=[R1(1.0)])

    def grow(gen: pg.GAN) -> None:
        gen.generator.grow(steps=4)
        critic.grow()

    stages = [Stage(steps=3), Stage(start=grow, steps=8), Stage(start=grow, steps=8)]
    settings = {"batch_size": 8, "seed": 0, "verdict": False, "compile": False} | options
    history = pg.fit(
        gan,
        X,
        objective,
        stages=stages[: settings.pop("count", 3)],
        optimizer=adam(1e-3, betas=(0.0, 0.99)),
        checkpoint=path,
        **settings,
    )
    return gan, objective, history


def states(gan: pg.GAN, objective: Adversarial) -> dict[str, Tensor]:
    return {**gan.state_dict(), **objective.state_dict()}


@pytest.mark.slow
def test_stages_grow_both_and_compiled_steps_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs run operation by operation; the share goes on inside of them."""
    monkeypatch.setattr(Compiled, "build", lambda self, *examples, **how: self)
    gan, objective, history = run()
    graph, other, compiled = run(compile=True)
    assert history.stages == [0, 3, 11]
    assert gan.generator.levels == 3 and gan.generator.fade.share == 1
    assert "stage 3: from step" in compiled.compiled
    assert compiled.loss == pytest.approx(history.loss, rel=1e-3)
    expected, found = states(gan, objective), states(graph, other)
    assert not [name for name in expected if "fade" in name and name.startswith("adversary")]
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-3)


def test_a_growing_run_goes_on_from_its_file(tmp_path: Path) -> None:
    gan, objective, history = run()
    run(tmp_path / "state", count=2)
    again, other, both = run(tmp_path / "state", resume=True)
    assert both.loss == history.loss
    expected, found = states(gan, objective), states(again, other)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_grown_generator_is_loaded_into_one_of_its_size(tmp_path: Path) -> None:
    generator, _ = pair()
    generator.grow(steps=7)
    gan = pg.GAN(generator, pg.standard_normal(5))
    pg.save(gan, tmp_path / "gan.safetensors")
    other = pg.GAN(ProgressiveGenerator(5, SHAPE, HIDDEN, levels=2), pg.standard_normal(5))
    pg.load(tmp_path / "gan.safetensors", into=other)
    assert torch.equal(pg.sample(gan, 3, seed=0), pg.sample(other, 3, seed=0))
    assert other.generator.fade.share == 0


def test_what_does_not_fit_is_refused() -> None:
    generator, critic = pair()
    for _ in range(2):
        generator.grow(steps=1)
        critic.grow()
    with pytest.raises(ValueError, match="one of 3 levels; give more entries"):
        generator.grow(steps=1)
    with pytest.raises(ValueError, match="one of 3 levels; give more entries"):
        critic.grow()
    with pytest.raises(ValueError, match=r"multiples of 4, got 6 x 8; pad them"):
        ProgressiveGenerator(5, (1, 6, 8), HIDDEN)
    with pytest.raises(ValueError, match="levels <= 3"):
        ProgressiveGenerator(5, SHAPE, HIDDEN, levels=4)
    with pytest.raises(ValueError, match=r"inputs=3"):
        generator(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="expected images of shape"):
        critic(torch.zeros(2, 1, 4, 8))
    with pytest.raises(TypeError, match=r"pass fade=generator\.fade"):
        ProgressiveCritic(SHAPE, HIDDEN, fade=0.5)


def test_copies_are_independent() -> None:
    generator, critic = pair()
    other = copy.deepcopy(generator)
    other.grow(steps=3)
    assert generator.levels == 1 and generator.fade.share == 1 and critic.fade is generator.fade
    assert isinstance(copy.deepcopy(critic).fade, Fade)
