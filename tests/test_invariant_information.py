"""Codes that two views agree on.

The information against other routes, and clusters that are found by it.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, mutual_info_score
from torch import nn

from probgen.core.module import standard_normal
from probgen.models.gan import GAN
from probgen.models.info_gan import Codes, InfoGAN
from probgen.nn import MLP
from probgen.nn.side_by_side import SideBySide
from probgen.objectives.adversarial import Adversarial
from probgen.objectives.invariant_information import InvariantInformation, joint_information
from probgen.objectives.schedules import linear_warmup
from probgen.train.fit import adam, fit

CENTRES = 3 * torch.tensor([[1.0, 0.0], [-0.5, 0.87], [-0.5, -0.87]])


def info_gan(levels=3, numbers=0, net=None):
    generator = GAN(SideBySide(MLP(2 + levels + numbers, [6], 2)), standard_normal(2), (2,))
    return InfoGAN(
        generator, Codes([levels], numbers), Codes([levels], numbers, net or MLP(2, [8], levels))
    )


def jitter(x):
    return x + 0.3 * torch.randn_like(x)


def test_hard_levels_have_the_mutual_information_of_their_counts():
    one, other = torch.randint(3, (40,)), torch.randint(3, (40,))
    both = torch.cat([one, other]), torch.cat([other, one])  # the roles are averaged
    found = joint_information(torch.eye(3)[one], torch.eye(3)[other])
    assert found.item() == pytest.approx(mutual_info_score(*both), abs=1e-6)


@pytest.mark.parametrize("balance", [1.0, 1.7])
def test_soft_levels_have_that_of_their_joint_table(balance):
    p, q = torch.randn(5, 4).softmax(-1), torch.randn(5, 4).softmax(-1)
    table = sum(torch.outer(a, b) + torch.outer(b, a) for a, b in zip(p, q, strict=True)) / 10
    by_hand = sum(
        table[i, j] * (table[i, j] / (table[i].sum() * table[:, j].sum()) ** balance).log()
        for i in range(4)
        for j in range(4)
    )
    torch.testing.assert_close(joint_information(p, q, balance), by_hand)


def test_certain_levels_have_gradients():
    logits = torch.tensor([[500.0, 0.0, 0.0], [0.0, 500.0, 0.0]], requires_grad=True)
    p = logits.softmax(-1)
    assert joint_information(p, p).item() == pytest.approx(math.log(2), abs=1e-6)
    joint_information(p, p).backward()
    assert logits.grad.isfinite().all()


def test_it_stands_beside_another_objective():
    """Its loss is that of the other plus the weighted information of two views.

    Drawn one after the other.
    """
    gen, critic, x = info_gan(3, 1, MLP(2, [8], 5)), MLP(2, [6], 1), torch.randn(20, 2)
    other = Adversarial(critic, information=1.0)
    views = lambda x: x * 2  # noqa: E731 (nothing random in it)
    torch.manual_seed(3)
    both = InvariantInformation(views, other, weight=0.7, balance=1.2)(gen.model, gen.guide)(x)
    torch.manual_seed(3)
    for _ in range(2):  # draws of the guide
        gen.guide(x)
    alone = other(gen.model, gen.guide)(x)
    (p,) = gen.recognize(2 * x).probabilities()
    torch.testing.assert_close(both, alone - 0.7 * 20 * joint_information(p, p, 1.2))


def test_the_balance_may_rise():
    gen, x = info_gan(), torch.randn(20, 2)
    objective = InvariantInformation(lambda x: x, balance=linear_warmup(2, 1.0, 3.0))
    (p,) = gen.recognize(x).probabilities()
    for balance in (1.0, 2.0, 3.0, 3.0):
        torch.testing.assert_close(
            objective(gen.model, gen.guide)(x), -20 * joint_information(p, p, balance)
        )
    assert objective.step == 4
    objective.step.zero_()
    torch.testing.assert_close(
        objective.eval()(gen.model, gen.guide)(x), -20 * joint_information(p, p, 3.0)
    )


@pytest.mark.slow
def test_clusters_are_what_the_views_do_not_change():
    label = torch.arange(240) % 3
    x = CENTRES[label] + 0.4 * torch.randn(240, 2)
    gen = info_gan(net=MLP(2, [32], 3))
    options = {
        "batch_size": 80,
        "optimizer": adam(1e-2),
        "verdict": False,
        "compile": False,
        "seed": 0,
    }
    history = fit(gen, x, InvariantInformation(jitter), steps=150, **options)
    found = gen.recognize(x).probabilities()[0].argmax(-1)
    assert adjusted_rand_score(label, found) > 0.95
    assert history.loss[-1] == pytest.approx(-math.log(3), abs=0.1)


def test_missing_entries_and_critics_of_unknown_size_go_through():
    gen, x = info_gan(), torch.randn(20, 2)
    x[0, 0] = torch.nan
    assert InvariantInformation(jitter)(gen.model, gen.guide)(x).isfinite()
    critic = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(1))
    fit(
        gen,
        x[1:],
        InvariantInformation(jitter, Adversarial(critic)),
        steps=2,
        compile=False,
        verdict=False,
    )
    assert critic[0].weight.shape == (4, 2)


def test_the_distribution_of_the_code_has_to_have_levels():
    gen, x = info_gan(), torch.randn(4, 2)
    with pytest.raises(ValueError, match="expected the guide to draw 'label', it has code"):
        InvariantInformation(jitter, site="label")(gen.model, gen.guide)(x)

    def guide(x):
        with pyro.plate("data", 4):
            pyro.sample("code", dist.Normal(x[:, 0], 1.0))

    with pytest.raises(TypeError, match="distribution of categories at site 'code', got Normal"):
        InvariantInformation(jitter)(gen.model, guide)(x)
    with pytest.raises(ValueError, match="balance >= 1"):
        InvariantInformation(jitter, balance=0.5)
