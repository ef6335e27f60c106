"""Translation between sets and to attributes: one scalar against backward passes by hand.

Maps that are known, programs of anyone's own, training that resumes.
"""

import copy
import math
import re

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from torch import nn
from zoo import TRANSLATIONS

import probgen as pg
from probgen.core.loss_parts import noted_parts
from probgen.core.module import standard_normal
from probgen.core.program import Program
from probgen.distributions.implicit import Implicit
from probgen.models.cycle_gan import CycleGAN
from probgen.models.info_gan import Codes
from probgen.models.star_gan import StarGAN
from probgen.nn import MLP
from probgen.nn.side_by_side import SideBySide
from probgen.objectives.attributes import AttributeTranslation
from probgen.objectives.cycle import CycleConsistency
from probgen.objectives.games import LeastSquares, Wasserstein
from probgen.objectives.parts import Average, Frozen
from probgen.objectives.regularizers import R1
from probgen.objectives.schedules import linear_warmup
from probgen.testing import program
from probgen.testing.case import Case
from probgen.testing.case import run as check
from probgen.testing.state import registered
from probgen.train.adapters import teachers
from probgen.train.fit import FitWarning, adam, fit
from probgen.train.unpaired import Unpaired

ROWS = 12
A = torch.randn(ROWS, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
B = torch.randn(ROWS, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) + 1


def translators():
    torch.manual_seed(0)
    gen = CycleGAN(MLP(2, [8], 2), MLP(2, [8], 2)).double()
    critics = [MLP(2, [8], 1).double() for _ in range(2)]
    return gen, critics


def gradients(objective, gen, *batch):
    """The loss, and the gradients of model and objective."""
    loss = objective(gen.model, gen.guide)(*batch)
    loss.backward()
    return loss.detach(), [p.grad for p in (*gen.parameters(), *objective.parameters())]


def gap(x, y):
    return (x - y).abs().mean(-1).sum()


def game(critic, real, fake, weight=0.0):
    """Both players' losses of a game of least squares, with the penalty of the slope."""
    seen = real.clone().requires_grad_()
    (slope,) = torch.autograd.grad(critic(seen).sum(), seen, create_graph=True)
    of_critic = ((critic(real) - 1) ** 2 + critic(fake.detach()) ** 2).mean() / 2
    of_critic = of_critic + weight / 2 * slope.square().sum(-1).mean()
    return ROWS * of_critic, ROWS * ((critic(fake) - 1) ** 2).mean() / 2


def test_one_backward_is_that_of_every_player():
    gen, (critic_a, critic_b) = translators()
    objective = CycleConsistency(
        critic_a, critic_b, cycle=3.0, identity=0.5, regularizers=[R1(2.0)]
    )
    value, found = gradients(objective, gen, A, B)
    fake_a, fake_b = gen.to_a(B), gen.to_b(A)
    pairs = [game(critic_a, A, fake_a, 2.0), game(critic_b, B, fake_b, 2.0)]
    of_critics = pairs[0][0] + pairs[1][0]
    cycle = gap(gen.to_a(fake_b), A) + gap(gen.to_b(fake_a), B)
    identity = gap(gen.to_b(B), B) + gap(gen.to_a(A), A)
    of_model = pairs[0][1] + pairs[1][1] + 3.0 * cycle + 0.5 * identity
    model = list(gen.parameters())
    critics = [*critic_a.parameters(), *critic_b.parameters()]
    expected = torch.autograd.grad(of_model, model, retain_graph=True)
    expected += torch.autograd.grad(of_critics, critics)
    torch.testing.assert_close(found, list(expected))
    torch.testing.assert_close(value, (of_critics + of_model).detach())


def turn(angle):
    net = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(
            torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        )
    return net


@pytest.mark.parametrize(("back", "zero"), [(-0.7, True), (0.7, False)])
def test_nothing_is_lost_by_a_map_and_its_inverse(back, zero):
    gen, (_, critics) = CycleGAN(turn(0.7), turn(back)), translators()
    with noted_parts() as parts:
        CycleConsistency(*critics, cycle=2.0)(gen.model, gen.guide)(A, B)
    assert (parts["cycle"].value.item() < 1e-6) is zero
    assert parts["cycle"].weight == 2.0
    assert set(parts) == {"critic of a", "generator of a", "critic of b", "generator of b", "cycle"}


def test_a_weight_of_zero_leaves_its_term_out_and_a_schedule_counts():
    gen, critics = translators()
    objective = CycleConsistency(*critics, cycle=linear_warmup(4, 0.0, 8.0))
    weights = []
    for mode in (True, True, True, False):
        objective.train(mode)
        with noted_parts() as parts:
            objective(gen.model, gen.guide)(A, B)
        weights.append(float(parts["cycle"].weight))
    assert weights == [0.0, 2.0, 4.0, 8.0]
    with noted_parts() as parts:
        CycleConsistency(*critics, cycle=0.0)(gen.model, gen.guide)(A, B)
    assert "cycle" not in parts and "identity" not in parts


def test_translations_are_what_the_networks_give_whatever_the_chunks_and_the_mode():
    noisy = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5))
    gen = CycleGAN(noisy, nn.Linear(3, 2))
    x = torch.randn(7, 2)
    torch.testing.assert_close(gen.translate(x, max_rows=3), noisy[0](x))
    assert noisy[1].training and not gen.translate(x).requires_grad
    assert gen.translate_back(torch.zeros(7, 3)).shape == (7, 2)


def test_noise_makes_translations_that_are_drawn():
    nets = [SideBySide(MLP(1 + 2, [4], 2)) for _ in range(2)]
    gen = CycleGAN(*nets, base=standard_normal(1))
    x = torch.zeros(50, 2)
    assert gen.translate(x).std(0).min() > 0
    loss = CycleConsistency(MLP(2, [4], 1), MLP(2, [4], 1))(gen.model, gen.guide)
    loss(torch.randn(5, 2), torch.randn(5, 2)).backward()
    assert all(p.grad is not None for p in gen.parameters())


@pytest.mark.slow
def test_two_normal_distributions_are_mapped_on_each_other():
    """On the line, by a shift: the other map that is consistent turns around, and is farther."""
    torch.manual_seed(0)
    a = torch.randn(2000, 1)
    b = 1 + torch.randn(3000, 1)
    gen = CycleGAN(nn.Linear(1, 1), nn.Linear(1, 1))
    for net in (gen.to_a, gen.to_b):
        nn.init.ones_(net.weight)
        nn.init.zeros_(net.bias)
    critics = [MLP(1, [32, 32], 1) for _ in range(2)]
    objective = CycleConsistency(*critics, cycle=1.0, game=Wasserstein(), regularizers=[R1(1.0)])
    rates = {"model": adam(0.01, betas=(0.0, 0.9)), "critic": adam(0.01, betas=(0.0, 0.9))}
    fit(
        gen,
        Unpaired(a, b),
        objective,
        steps=500,
        batch_size=128,
        optimizer=rates,
        ema=0.98,
        seed=0,
        compile=False,
        verdict=False,
    )
    made = gen.translate(a)
    assert (made - (a + 1)).abs().mean() < 0.25
    assert (gen.translate_back(b) - (b - 1)).abs().mean() < 0.25
    assert (gen.translate_back(made) - a).abs().mean() < 0.1


def own_program():
    """Both directions, the sites with names of their own, in the order of nobody."""
    up, down = nn.Linear(2, 2).double(), nn.Linear(2, 2).double()

    def model(first, second):
        none = dist.Normal(first.new_zeros(0), 1.0).to_event(1)
        with pyro.plate("data", len(first)):
            down_of = Implicit(lambda z, c: down(c), none, (2,), context=second)
            pyro.sample("low", down_of, obs=first)
            up_of = Implicit(lambda z, c: up(c), none, (2,), context=first)
            pyro.sample("high", up_of, obs=second)

    return Program(model), CycleGAN(up, down)


def test_any_program_with_a_site_for_each_set_is_one():
    program, gen = own_program()
    objective = CycleConsistency(*translators()[1])
    value = objective(program.model, program.guide)(A, B)
    torch.testing.assert_close(value, objective(gen.model, gen.guide)(A, B))


def one_site(a, b):
    with pyro.plate("data", len(a)):
        pyro.sample("a", dist.Normal(b, 1.0).to_event(1), obs=a)


def without_gradient(a, b):
    with pyro.plate("data", len(a)):
        pyro.sample("a", dist.Poisson(b.exp()).to_event(1), obs=a)
        pyro.sample("b", dist.Normal(a, 1.0).to_event(1), obs=b)


REFUSED = [
    (
        Program(one_site),
        (A, B),
        TypeError,
        "one site that observes the second argument, got 0; use",
    ),
    (Program(without_gradient), (A, B), TypeError, "rsample at site 'a', got .*; use CycleGAN"),
    (translators()[0], (A,), TypeError, "expected rows of two sets, got Tensor; pass fit"),
    (translators()[0], (A, B * math.nan), ValueError, "complete rows, got NaN"),
    (
        translators()[0],
        (A, B[:5]),
        ValueError,
        "as many rows of both sets in a batch, got 12 and 5",
    ),
]


@pytest.mark.parametrize(("gen", "batch", "error", "text"), REFUSED)
def test_what_is_no_translation_is_refused(gen, batch, error, text):
    objective = CycleConsistency(*translators()[1])
    with pytest.raises(error, match=text):
        objective(gen.model, gen.guide)(*batch)


WITHOUT_ROWS = {
    "a draw of CycleGAN": (lambda: pg.sample(translators()[0], 3), TypeError, "call gen.translate"),
    "p(x | b)": (lambda: translators()[0](B).sample(), TypeError, "rows of both sets, got None"),
    "a draw of StarGAN": (
        lambda: pg.sample(changed()[0], 3, ATTRIBUTES),
        TypeError,
        r"rows to change, got None; call gen.translate\(x, attributes\)",
    ),
    "attributes of other rows": (
        lambda: changed()[0].translate(A, ATTRIBUTES[:5]),
        ValueError,
        r"attributes \(12, K\), a row for each of x, got \(5, 3\)",
    ),
}


@pytest.mark.parametrize("case", WITHOUT_ROWS)
def test_translations_need_rows(case):
    call, error, text = WITHOUT_ROWS[case]
    with pytest.raises(error, match=text):
        call()


def test_the_identity_needs_events_of_one_shape():
    gen = CycleGAN(nn.Linear(2, 3), nn.Linear(3, 2))
    objective = CycleConsistency(nn.Linear(2, 1), nn.Linear(3, 1), identity=1.0)
    with pytest.raises(ValueError, match=r"got \(2,\) and \(3,\); pass identity=0.0"):
        objective(gen.model, gen.guide)(torch.zeros(4, 2), torch.zeros(4, 3))


# -- attributes


ATTRIBUTES = torch.eye(3, dtype=torch.float64)[torch.arange(ROWS) % 3]


def changed():
    torch.manual_seed(0)
    gen = StarGAN(SideBySide(MLP(2 + 3, [8], 2)), Codes([3])).double()
    critic = MLP(2, [8], 1).double()
    recognizer = Codes([3], net=MLP(2, [8], 3)).double()
    return gen, critic, recognizer


def test_one_backward_is_that_of_generator_critic_and_recognizer():
    gen, critic, recognizer = changed()
    objective = AttributeTranslation(
        critic,
        recognizer,
        classification=0.7,
        reconstruction=3.0,
        identity=0.4,
        game=LeastSquares(),
    )
    torch.manual_seed(7)
    value, found = gradients(objective, gen, A, ATTRIBUTES)
    torch.manual_seed(7)
    asked = Codes([3]).double()().expand([ROWS]).sample()
    fake = gen.generator(A, asked)
    of_critic, of_generator = game(critic, A, fake)
    cross = nn.functional.cross_entropy
    real = cross(recognizer.net(A), ATTRIBUTES.argmax(-1), reduction="sum")
    made = cross(recognizer.net(fake), asked.argmax(-1), reduction="sum")
    of_generator = of_generator + 0.7 * made + 3.0 * gap(gen.generator(fake, ATTRIBUTES), A)
    of_generator = of_generator + 0.4 * gap(gen.generator(A, ATTRIBUTES), A)
    expected = torch.autograd.grad(of_generator, list(gen.parameters()), retain_graph=True)
    expected += torch.autograd.grad(of_critic, list(critic.parameters()))
    expected += torch.autograd.grad(0.7 * real, list(recognizer.parameters()))
    torch.testing.assert_close(found, list(expected))
    torch.testing.assert_close(value, (of_critic + of_generator + 0.7 * real).detach())


def test_critic_and_recognizer_may_share_layers():
    gen, *_ = changed()
    trunk = nn.Sequential(nn.Linear(2, 8), nn.ReLU()).double()
    critic = nn.Sequential(trunk, nn.Linear(8, 1).double())
    recognizer = Codes([3], net=nn.Sequential(trunk, nn.Linear(8, 3).double())).double()
    objective = AttributeTranslation(critic, recognizer)
    assert len(list(objective.parameters())) == 6
    _, found = gradients(objective, gen, A, ATTRIBUTES)
    assert all(grad is not None for grad in found)


def test_attributes_that_are_asked_for_reach_the_generator():
    def moved(x, attributes):
        return x + attributes @ torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 5.0]])

    class Moved(nn.Module):
        def forward(self, x, attributes):
            return moved(x, attributes)

    gen, x = StarGAN(Moved(), Codes([3])), torch.randn(7, 2)
    wanted = torch.eye(3)[[0, 1, 2, 0, 1, 2, 0]]
    torch.testing.assert_close(gen.translate(x, wanted, max_rows=3), moved(x, wanted))
    torch.testing.assert_close(gen.translate(x, wanted[2]), x + torch.tensor([0.0, 5.0]))


@pytest.mark.slow
def test_three_places_are_learned_as_attributes():
    """Rows of three places: each is moved to where it is asked to be, and keeps what is not asked."""
    torch.manual_seed(0)
    places = torch.tensor([0.0, 3.0, 6.0])
    kind = torch.randint(3, (3000,))
    free = torch.randn(3000)
    x = torch.stack((places[kind] + 0.2 * torch.randn(3000), free), -1) / 3

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.change = MLP(2 + 3, [32], 2)

        def forward(self, x, attributes):
            return x + self.change(torch.cat((x, attributes), -1))

    gen = StarGAN(Residual(), Codes([3]))
    objective = AttributeTranslation(
        MLP(2, [32], 1), Codes([3], net=MLP(2, [32], 3)), regularizers=[R1(0.1)]
    )
    fit(
        gen,
        (x, torch.eye(3)[kind]),
        objective,
        steps=600,
        batch_size=128,
        optimizer=adam(3e-3, betas=(0.0, 0.9)),
        seed=0,
        compile=False,
        verdict=False,
    )
    for level in range(3):
        made = 3 * gen.translate(x[:500], torch.eye(3)[level])
        assert (made[:, 0] - places[level]).abs().mean() < 0.6
        assert (made[:, 1] - free[:500]).abs().mean() < 0.6


# -- training


MEMBERS = pytest.mark.parametrize("member", TRANSLATIONS, ids=lambda member: member.name)
EITHER = pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])


def made(member):
    torch.manual_seed(0)
    return member.gen(), member.objective(), member.data()


def answer(gen, batch):
    """What a program draws in the place of both arguments, in eval mode."""
    torch.manual_seed(1)
    with torch.no_grad(), poutine.uncondition():
        sites = poutine.trace(gen.eval().model).get_trace(*batch).nodes.values()
    return [site["value"] for site in sites if site["type"] == "sample" and is_row(site)]


def is_row(site):
    return site["name"] not in ("data", "_INPUT", "_RETURN")


def run(member, steps=6, **options):
    gen, objective, batch = made(member)
    data = Unpaired(*batch) if isinstance(objective, CycleConsistency) else batch
    settings = {"batch_size": 4, "seed": 3, "verdict": False, "compile": False}
    rates = {"model": adam(1e-3), "critic": adam(4e-3)}
    history = fit(gen, data, objective, steps=steps, optimizer=rates, **settings | options)
    return [p.detach().clone() for p in (*gen.parameters(), *objective.parameters())], history


@pytest.mark.parametrize("promise", [*program.GIVEN[1:], program.runs, program.learns, registered])
@MEMBERS
def test_promises_that_do_not_speak_of_a_distribution_are_kept(member, promise):
    gen, objective, batch = made(member)
    check(promise, Case(gen, *batch, objective), 0)


@MEMBERS
def test_draws_have_the_shape_of_the_arguments_in_their_precision(member):
    gen, _, batch = made(member)
    drawn = answer(gen, batch)
    assert sorted(x.shape for x in drawn) == sorted(x.shape for x in batch)
    assert all(torch.equal(x, y) for x, y in zip(drawn, answer(gen, batch), strict=True))
    double = answer(gen.double(), [x.double() for x in batch])
    assert {x.dtype for x in double} == {torch.float64}


@MEMBERS
def test_copies_and_saved_models_are_the_same_and_independent(member, tmp_path):
    gen, _, batch = made(member)
    before = answer(gen, batch)
    pg.save(gen, tmp_path / "model")
    twin = copy.deepcopy(gen)
    assert all(torch.equal(x, y) for x, y in zip(answer(twin, batch), before, strict=True))
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(0.5)
    assert all(torch.equal(x, y) for x, y in zip(answer(gen, batch), before, strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(answer(twin, batch), before, strict=True))
    pg.load(tmp_path / "model", into=twin)
    assert all(torch.equal(x, y) for x, y in zip(answer(twin, batch), before, strict=True))


@MEMBERS
@EITHER
def test_training_resumes(member, compile, tmp_path, replayed):
    whole, history = run(member, compile=compile)
    run(member, steps=3, checkpoint=tmp_path / "state", compile=compile)
    again, both = run(member, checkpoint=tmp_path / "state", resume=True, compile=compile)
    near = {"rtol": 1e-5, "atol": 1e-6} if compile else {"rtol": 0.0, "atol": 0.0}
    torch.testing.assert_close(again, whole, **near)
    assert both.loss == pytest.approx(history.loss, rel=1e-5 if compile else 0.0)
    assert history.groups == ["model", "critic"] or history.groups == ["critic", "model"]


@pytest.mark.table(quick=2)
@MEMBERS
def test_compiled_steps_are_the_same(member, replayed):
    eager, history = run(member)
    compiled, other = run(member, compile=True)
    assert other.compiled.startswith("from step")
    assert other.loss == pytest.approx(history.loss, rel=1e-4)
    torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-4)


def test_a_player_that_is_a_model_is_meant_to_learn(recwarn):
    gen, critic, recognizer = changed()
    objective = AttributeTranslation(critic, recognizer)
    assert teachers(objective, gen) == []
    fit(gen, (A, ATTRIBUTES), objective, steps=1, verdict=False, compile=False)
    assert not [w for w in recwarn if issubclass(w.category, FitWarning)]
    objective.other = Codes([3], net=nn.Linear(2, 3))
    assert teachers(objective, gen) == ["other"]


def test_translators_are_frozen_and_averaged_as_networks():
    gen, _ = translators()
    assert list(Frozen(gen.to_b).parameters()) == []
    assert Average(gen.to_b, 0.9)(A).shape == A.shape


LABELS = torch.tensor([0, 1, 2, 0])
AS_LABELS = {
    "integers": LABELS,
    "floating point": LABELS.float(),
    "a column": LABELS[:, None],
    "a column in floating point": LABELS[:, None].float(),
    "as many as levels": LABELS[:3],
    "another number of levels": torch.eye(4)[LABELS],
}


@pytest.mark.parametrize("name", AS_LABELS)
def test_labels_are_no_attributes_and_the_advice_makes_them_some(name):
    labels = AS_LABELS[name]
    gen = StarGAN(SideBySide(MLP(2 + 3, [6], 2)), Codes([3]))
    objective = AttributeTranslation(MLP(2, [6], 1), Codes([3], net=MLP(2, [6], 3)))
    x = torch.randn(len(labels), 2)
    quiet = {"steps": 1, "verdict": False, "progress": False, "compile": False}
    with pytest.raises(
        ValueError, match=r"expected attributes \(\d, 3\), got .*; give one-hot"
    ) as told:
        fit(gen, (x, labels), objective, **quiet)
    with pytest.raises(ValueError, match=r"for all rows, got .*; give one-hot"):
        gen.translate(x, labels)
    if labels.shape[-1] == 4:
        return
    advice = re.search(r"torch\.nn\.functional\.one_hot\(.*\)\.float\(\)", str(told.value))
    attributes = eval(advice.group(), {"torch": torch, "labels": labels})
    assert torch.equal(attributes, torch.eye(3)[LABELS[: len(labels)]])
    assert fit(gen, (x, attributes), objective, **quiet).steps == 1


def test_sets_of_other_lengths_are_unpaired_and_the_advice_works():
    gen = CycleGAN(MLP(2, [6], 2), MLP(2, [6], 2))
    objective = CycleConsistency(MLP(2, [6], 1), MLP(2, [6], 1))
    a, b = torch.randn(9, 2), torch.randn(5, 2)
    quiet = {"steps": 1, "verdict": False, "progress": False, "compile": False}
    with pytest.raises(ValueError, match=r"got 9 and 5; pass Unpaired\(a, b\)"):
        fit(gen, (a, b), objective, **quiet)
    assert fit(gen, Unpaired(a, b), objective, **quiet).steps == 1


def test_rows_are_translated_in_any_precision():
    gen, star = (
        CycleGAN(MLP(2, [6], 2), MLP(2, [6], 2)),
        StarGAN(SideBySide(MLP(5, [6], 2)), Codes([3])),
    )
    for kind, other in ((torch.float32, torch.float64), (torch.float64, torch.float32)):
        x, attribute = torch.randn(4, 2, dtype=other), torch.eye(3, dtype=other)[1]
        gen.to(kind), star.to(kind)
        assert torch.equal(gen.translate(x), gen.translate(x.to(kind)))
        made = star.translate(x, attribute)
        assert torch.equal(made, star.translate(x.to(kind), attribute.to(kind)))
        assert made.dtype == kind
