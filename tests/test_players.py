"""Players with optimizers of their own: one optimizer with named groups."""

import pytest
import torch
from pyro.optim import ClippedAdam
from torch import nn
from torch.optim.lr_scheduler import StepLR

from probgen.core.module import standard_normal
from probgen.core.program import Program
from probgen.models.gan import GAN
from probgen.nn import MLP
from probgen.objectives.adversarial import Adversarial
from probgen.objectives.adversary import Adversary
from probgen.objectives.base import Objective
from probgen.train.fit import adam, fit

X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))


def pair():
    torch.manual_seed(0)
    return GAN(MLP(3, [8], 2), standard_normal(3)), MLP(2, [8], 1)


OWN = {"critic": adam(4e-3, betas=(0.0, 0.99)), "model": adam(1e-3)}


def run(optimizer, steps=6, **options):
    gan, critic = pair()
    settings = {"batch_size": 20, "verdict": False, "seed": 3, "compile": False} | options
    history = fit(gan, X, Adversarial(critic), steps=steps, optimizer=optimizer, **settings)
    return gan, critic, history


def groups(gan, critic):
    options = [
        {"params": critic.parameters(), "lr": 4e-3, "betas": (0.0, 0.99)},
        {"params": gan.parameters(), "lr": 1e-3},
    ]
    return torch.optim.Adam(options, fused=True)


def weights(gan, critic):
    return [p.detach().clone() for p in (*gan.parameters(), *critic.parameters())]


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("compile", [False, True])
def test_players_are_parameter_groups(compile, replayed):
    gan, critic = pair()
    options = {"batch_size": 20, "verdict": False, "seed": 3, "compile": compile}
    by_hand = lambda _: groups(gan, critic)  # noqa: E731
    expected = fit(gan, X, Adversarial(critic), steps=6, optimizer=by_hand, **options)
    *found, history = run(OWN, compile=compile)
    assert history.loss == expected.loss
    assert all(map(torch.equal, weights(*found), weights(gan, critic)))
    assert history.groups == ["critic", "model"] and expected.groups == ["0", "1"]
    assert [rates[-1] for rates in history.learning_rates] == [4e-3, 1e-3]


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("compile", [False, True])
def test_players_resume_and_follow_a_schedule(compile, tmp_path, replayed):
    options = {
        "scheduler": lambda o: StepLR(o, 2, 0.5),
        "compile": compile,
        "ema": 0.9,
        "clip": 1.0,
    }
    *whole, history = run(OWN, **options)
    run(OWN, steps=3, checkpoint=tmp_path / "state", **options)
    *again, both = run(OWN, checkpoint=tmp_path / "state", resume=True, **options)
    near = 1e-6 if compile else 0.0
    assert both.loss == pytest.approx(history.loss, rel=near, abs=near)
    for one, other in zip(weights(*again), weights(*whole), strict=True):
        torch.testing.assert_close(one, other, rtol=near, atol=near)
    assert both.groups == ["critic", "model"] and both.learning_rates == history.learning_rates


class TwoCritics(Objective):
    """Two games over the same rows, and a scale of the objective's own."""

    descends = False

    def __init__(self, one, other):
        super().__init__()
        self.one, self.other = Adversary(one), Adversary(other)
        self.scale = nn.Parameter(torch.ones(()))

    def differentiable_loss(self, model, guide, x):
        fake = self.scale * model.__self__().rsample((len(x),))
        return len(x) * (self.one(x, fake) + self.other(x, fake))


def two(optimizer):
    gan, critic = pair()
    return fit(gan, X, TwoCritics(critic, MLP(2, [4], 1)), steps=1, optimizer=optimizer)


def test_places_tell_players_of_one_name_apart():
    names = ["one.critic", "other.critic", "model", "objective"]
    history = two({name: adam(1e-3) for name in names})
    assert history.groups == names
    with pytest.raises(ValueError, match=r"'one.critic', 'other.critic', 'model', 'objective'"):
        two({"critic": adam(1e-3)})
    assert two({"objective": adam(1e-3), "model": adam(1e-4)}).groups == ["objective", "model"]


REFUSED = {
    "misspelt": (
        {"critics": adam(1e-3), "model": adam(1e-3)},
        "expected optimizers of 'critic', 'model', 'objective', got one of 'critics'; use these",
    ),
    "left out": ({"model": adam(1e-3)}, r"leave out 4 parameters .*add the player that has them"),
    "nothing of its own": (
        {**OWN, "objective": adam(1e-3)},
        "to learn in 'objective', got none that are its own; leave it out",
    ),
    "two classes": (
        {"critic": adam(1e-3), "model": lambda p: torch.optim.SGD(p, 0.1)},
        r"of one class for all players.* got critic: Adam, model: SGD; give all of them adam",
    ),
    "bounds of Pyro's": (
        {"critic": ClippedAdam({"lr": 0.1}), "model": adam(1e-3)},
        "of one class",
    ),
    "none": ({}, "optimizers of players by name, got none"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_before_the_first_step(kind):
    optimizer, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        run(optimizer)


def test_what_is_no_optimizer_is_refused_as_ever():
    with pytest.raises(TypeError, match="expected a function that makes an optimizer"):
        run({"critic": 0.1, "model": adam(1e-3)})


def test_models_without_players_have_one():
    gan, _ = pair()
    program = Program(gan.model, gan.guide)
    assert fit(
        program,
        X,
        lambda model, guide, x: (gan.generator(torch.ones(len(x), 3)) - x).square().sum(),
        steps=1,
        optimizer={"model": adam(1e-3)},
        verdict=False,
    ).groups == ["model"]
