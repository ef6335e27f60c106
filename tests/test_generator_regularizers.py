"""Penalties of the generator, and a critic that judges for others, against hand-written gradients."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from probgen.core.module import standard_normal
from probgen.heads import Gaussian
from probgen.models.coupling_flow import RealNVP
from probgen.models.gan import GAN
from probgen.models.info_gan import Codes, InfoGAN
from probgen.models.vae import VAE
from probgen.nn import MLP
from probgen.nn.side_by_side import SideBySide
from probgen.objectives.adversarial import Adversarial
from probgen.objectives.adversary import Adversary
from probgen.objectives.base import Objective
from probgen.objectives.games import Wasserstein
from probgen.objectives.generator_regularizers import (
    DiversitySensitive,
    FeatureMatching,
    ModeSeeking,
    PathLength,
)
from probgen.objectives.regularizers import R1, R2, GradientPenalty, Lazy, Scheduled
from probgen.objectives.schedules import geometric, linear_warmup
from probgen.train.fit import adam, fit

ROWS = 12
X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))


def players(generator=None):
    torch.manual_seed(1)
    gan = GAN(generator or MLP(3, [8], 2), standard_normal(3)).double()
    critic = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    return gan, critic


def noise():
    return torch.randn(ROWS, 3, dtype=torch.float64)


def lengths(gan, z, y):
    """The norm of J'y of each row, from the whole Jacobian."""
    jacobians = [
        torch.autograd.functional.jacobian(gan.generator, row, create_graph=True) for row in z
    ]
    return torch.stack([(j.T @ one).norm() for j, one in zip(jacobians, y, strict=True)])


def path_length(gan, critic, x, z):
    y = torch.randn(ROWS, 2, dtype=torch.float64)
    norms = lengths(gan, z, y)
    return 3.0 * (norms - 0.1 * norms.detach().mean()).square().mean()


def ratio(gan, z):
    other = noise()
    apart = (gan.generator(z) - gan.generator(other)).abs().mean(-1)
    return apart / (z - other).abs().mean(-1)


def diversity(gan, critic, x, z):
    return -5.0 * ratio(gan, z).clamp(max=0.2).mean()


def seeking(gan, critic, x, z):
    return 2.0 * (1 / (ratio(gan, z) + 1e-5)).mean()


def last_features(gan, critic, x, z):
    gap = critic[:2](x).mean(0) - critic[:2](gan.generator(z)).mean(0)
    return 7.0 * gap.square().mean()


def two_layers(gan, critic, x, z):
    fake = gan.generator(z)
    first = critic[0](x).mean(0) - critic[0](fake).mean(0)
    last = critic(x).mean(0) - critic(fake).mean(0)
    return first.square().mean() + last.square().mean()


HAND_WRITTEN = {
    "path length": (lambda critic: PathLength(3.0, decay=0.1), path_length),
    "diversity": (lambda critic: DiversitySensitive(5.0, bound=0.2), diversity),
    "mode seeking": (lambda critic: ModeSeeking(2.0), seeking),
    "feature matching": (lambda critic: FeatureMatching(7.0), last_features),
    "of two layers": (lambda critic: FeatureMatching(layers=[critic[0], critic[2]]), two_layers),
}


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_one_backward_is_two(name):
    (gan, critic), x = players(), torch.randn(ROWS, 2).double()
    make, penalty = HAND_WRITTEN[name]
    objective = Adversarial(critic, Wasserstein(), generator_regularizers=[make(critic)])
    torch.manual_seed(7)
    value = objective(gan.model, gan.guide)(x)
    value.backward()
    torch.manual_seed(7)
    z = noise()
    fake = gan.generator(z)
    of_critic = (critic(fake.detach()) - critic(x)).mean()
    of_generator = -critic(fake).mean() + penalty(gan, critic, x, z)
    expected = [
        *torch.autograd.grad(ROWS * of_critic, list(critic.parameters())),
        *torch.autograd.grad(ROWS * of_generator, list(gan.parameters()), allow_unused=True),
    ]
    for p, gradient in zip((*critic.parameters(), *gan.parameters()), expected, strict=True):
        missing = torch.zeros_like(p)
        torch.testing.assert_close(
            missing if p.grad is None else p.grad, missing if gradient is None else gradient
        )
    torch.testing.assert_close(value, ROWS * (of_critic + of_generator))


def test_path_length_of_a_linear_generator_has_a_closed_form():
    linear = nn.Linear(3, 2)
    gan, critic = players(linear)
    penalty = PathLength(1.0, decay=1.0)
    objective = Adversarial(critic, Wasserstein(), generator_regularizers=[penalty])
    torch.manual_seed(7)
    objective(gan.model, gan.guide)(torch.zeros(ROWS, 2).double()).backward()
    torch.manual_seed(7)
    noise()
    norms = (torch.randn(ROWS, 2, dtype=torch.float64) @ linear.weight).norm(dim=-1)
    assert penalty.mean.item() == pytest.approx(norms.mean().item(), rel=1e-6)
    assert penalty.mean.requires_grad is False


def judged(critic):
    adversary = Adversary(critic).train()
    before = copy.deepcopy(adversary.state_dict())
    x = torch.randn(6, 2, requires_grad=True)
    torch.manual_seed(0)
    score = adversary.judge(x)
    score.sum().backward()
    after = adversary.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in critic.parameters())
    return x, score


CRITICS = {
    "plain": lambda: MLP(2, [4], 1),
    "batch norm": lambda: nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)),
    "spectral norm": lambda: nn.Sequential(spectral_norm(nn.Linear(2, 4)), nn.Linear(4, 1)),
}


@pytest.mark.parametrize("kind", CRITICS)
def test_a_judge_gives_gradients_to_events_alone(kind):
    torch.manual_seed(0)
    critic = CRITICS[kind]()
    x, score = judged(critic)
    torch.manual_seed(0)
    expected = critic(x).squeeze(-1)
    torch.testing.assert_close(score, expected)
    torch.testing.assert_close(x.grad, torch.autograd.grad(expected.sum(), x)[0])


def test_features_are_what_the_last_layer_is_given():
    critic = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), spectral_norm(nn.Linear(5, 1)))
    adversary = Adversary(SideBySide(critic))
    x, c = torch.randn(6, 2), torch.randn(6, 1)
    [found] = adversary.features(x, c)
    torch.testing.assert_close(found, critic[:2](torch.cat([x, c], -1)).detach())
    assert [f.shape[-1] for f in adversary.features(x, c, layers=[critic[0], critic[1]])] == [5, 5]
    with pytest.raises(ValueError, match="expected layers of the critic that run on an event"):
        adversary.features(x, c, layers=[nn.Linear(2, 2)])


class LearnedSimilarity(Objective):
    """Reconstructions that look alike to a critic, which learns beside (VAE-GAN)."""

    descends = False

    def __init__(self, critic):
        super().__init__()
        self.adversary = Adversary(critic)

    def differentiable_loss(self, model, guide, x):
        z = model.__self__.encoder(x).rsample()
        again = model.__self__.decoder(z).mean
        [seen], [real] = self.adversary.features(again), self.adversary.features(x)
        alike = (seen - real).square().sum()
        return (
            alike
            - self.adversary.judge(again).sum()
            + len(x) * self.adversary(x, again, both=False)
        )


def vae():
    return VAE(standard_normal(2), Gaussian(MLP(2, [8], 4)), Gaussian(MLP(2, [8], 4)))


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("compile", [False, True])
def test_features_and_judge_serve_other_objectives(compile, replayed):
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        gen, objective = vae(), LearnedSimilarity(MLP(2, [8], 1))
        options = {"optimizer": {"critic": adam(1e-3), "model": adam(1e-2)}, "compile": compile}
        losses.append(fit(gen, X, objective, steps=5, seed=0, verdict=False, **options).loss)
        compile = False
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def everything(critic):
    return Adversarial(
        critic,
        regularizers=[Scheduled(R1(1.0), geometric(5, 1.0, 0.1)), R2(0.1)],
        generator_regularizers=[
            PathLength(),
            DiversitySensitive(0.1),
            ModeSeeking(0.1),
            Scheduled(FeatureMatching(), linear_warmup(4)),
        ],
    )


def run(steps=6, make=everything, **options):
    torch.manual_seed(0)
    gan, critic = GAN(MLP(3, [8], 2), standard_normal(3)), MLP(2, [8], 1)
    objective = make(critic)
    settings = {"batch_size": 20, "verdict": False, "seed": 3, "compile": False} | options
    history = fit(gan, X, objective, steps=steps, validation=X[:10], **settings)
    return {**gan.state_dict(), **objective.state_dict()}, history


@pytest.mark.slow
def test_compiled_steps_are_the_same(replayed):
    eager, history = run()
    graph, compiled = run(compile=True)
    assert compiled.compiled.startswith("from step")
    assert compiled.loss == pytest.approx(history.loss, rel=1e-4)
    assert graph["generator_regularizer_modules.0.mean"] > 0
    for name in eager:
        torch.testing.assert_close(graph[name], eager[name], rtol=1e-3, atol=1e-5)


def test_resumed_bit_for_bit(tmp_path):
    whole, history = run()
    run(steps=3, checkpoint=tmp_path / "state")
    again, both = run(checkpoint=tmp_path / "state", resume=True)
    assert both.loss == history.loss and both.validation == history.validation
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert whole["adversary.regularizer_modules.0.step"] == 6


def test_a_lazy_penalty_is_there_at_every_kth_step_and_not_compiled():
    lazy = lambda critic: Adversarial(critic, regularizers=[Lazy(R1(1.0), every=3)])  # noqa: E731
    _, history = run(make=lazy)
    present = [value != 0 for value in history.parts["penalty"]]
    assert present == [True, False, False] * 2
    with pytest.raises(RuntimeError, match="reads the value of a tensor"):
        run(make=lazy, compile=True)


def info_gan():
    generator = GAN(SideBySide(MLP(5, [8], 2)), standard_normal(3), (2,))
    return InfoGAN(generator, Codes([2]), Codes([2], net=MLP(2, [8], 2)))


MODELS = {
    "noise of a GAN": (lambda: GAN(MLP(3, [8], 2), standard_normal(3)), {"x"}),
    "codes beside noise": (info_gan, {"code", "x"}),
    "a latent site": (vae, {"z"}),
}


@pytest.mark.parametrize("kind", MODELS)
def test_latents_of_many_models(kind):
    make, names = MODELS[kind]
    gen, seen = make(), []

    def look(played):
        seen.append(set(played.drawn.latents))
        return played.drawn.fake.mean(-1)

    penalties = [PathLength(), DiversitySensitive(), ModeSeeking(), look]
    objective = Adversarial(MLP(2, [8], 1), generator_regularizers=penalties)
    loss = objective(gen.model, gen.guide)(X)
    loss.backward()
    assert loss.isfinite() and objective.generator_regularizers[0].mean > 0
    assert seen == [names]


def test_a_model_without_latents_is_refused():
    objective = Adversarial(MLP(2, [8], 1), generator_regularizers=[PathLength()])
    with pytest.raises(TypeError, match="PathLength: expected a model whose draws of x follow"):
        fit(RealNVP(2, layers=2), X, objective, steps=1)


@pytest.mark.parametrize("wrapped", [lambda penalty: penalty, lambda penalty: Lazy(penalty, 2)])
@pytest.mark.parametrize(
    ("name", "penalty", "other"),
    [
        ("generator_regularizers", R1(1.0), "regularizers"),
        ("generator_regularizers", GradientPenalty(), "regularizers"),
        ("regularizers", PathLength(), "generator_regularizers"),
        ("regularizers", ModeSeeking(), "generator_regularizers"),
        ("regularizers", DiversitySensitive(), "generator_regularizers"),
        ("regularizers", FeatureMatching(), "generator_regularizers"),
    ],
)
def test_penalties_of_the_other_player_are_refused(name, penalty, other, wrapped):
    """And accepted where the message says that they belong."""
    with pytest.raises(TypeError, match=rf"expected penalties .*; .*\b{other}=\[\.\.\.\]"):
        Adversarial(nn.Linear(2, 1), **{name: [wrapped(penalty)]})
    Adversarial(nn.Linear(2, 1), **{other: [wrapped(penalty)]})


@pytest.mark.parametrize("name", ["regularizers", "generator_regularizers"])
@pytest.mark.parametrize(
    ("penalty", "text"),
    [
        (lambda played: None, "expected a regularizer that gives a tensor.*got NoneType"),
        (lambda played: 3.0, "expected a regularizer that gives a tensor.*got float"),
        (lambda: 3.0, r"penalties of one argument in .*, got one that takes \(\)"),
    ],
)
def test_what_is_no_penalty_is_refused(name, penalty, text):
    gan, critic = players()
    with pytest.raises(TypeError, match=text):
        Adversarial(critic, **{name: [penalty]})(gan.model, gan.guide)(X.double())


def test_fakes_have_to_pass_gradients():
    gan, critic = players()
    objective = Adversarial(critic, augment=lambda x: x.detach())
    with pytest.raises(ValueError, match=r"scores that depend on the fakes.*without detach"):
        objective(gan.model, gan.guide)(X.double())
