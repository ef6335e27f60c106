"""Students of a teacher, and how far they are from it, against enumeration and closed forms."""

from __future__ import annotations

import itertools

import pytest
import torch

import probgen as pg
from probgen.heads import Bernoulli, Gaussian
from probgen.nn import MLP
from probgen.objectives import SoftTargets
from probgen.train import Pairs, adam

ALL = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)))


def teacher(seed: int = 0) -> pg.MADE:
    torch.manual_seed(seed)
    gen = pg.MADE(4, [16], Bernoulli())
    with torch.no_grad():
        for parameter in gen.parameters():
            parameter.mul_(3.0)  # far from uniform
    return gen


def divergence(p, q) -> torch.Tensor:
    """KL(p | q) by all 16 events."""
    ours = p().log_prob(ALL)
    return (ours.exp() * (ours - q().log_prob(ALL))).sum()


def test_soft_targets_over_the_teachers_draws_are_the_divergence() -> None:
    """Weighted by the teacher's probabilities of all events: value and gradient."""
    mine, student = teacher(), teacher(1)
    objective = SoftTargets(mine)
    weights = mine().log_prob(ALL).exp().detach()
    losses = [objective(student.model, student.guide)(row[None]) for row in ALL]
    loss = (torch.stack(losses) * weights).sum()
    exact = divergence(mine, student)
    torch.testing.assert_close(loss, exact)
    ours = torch.autograd.grad(loss, list(student.parameters()))
    truth = torch.autograd.grad(exact, list(student.parameters()))
    for one, other in zip(ours, truth, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


STUDENTS = {
    "soft targets": lambda mine: SoftTargets(mine),
    "draws": lambda mine: None,
}


@pytest.mark.slow
@pytest.mark.parametrize("how", STUDENTS)
def test_a_student_comes_close_and_the_teacher_stays(how: str) -> None:
    mine, student = teacher(), teacher(1)
    before = [p.clone() for p in mine.parameters()]
    start = divergence(mine, student).item()
    data = Pairs(lambda n: (pg.sample(mine, n),))
    options = {"optimizer": adam(1e-2), "seed": 0, "verdict": False, "progress": False}
    pg.fit(student, data, STUDENTS[how](mine), steps=400, batch_size=64, **options)
    assert divergence(mine, student).item() < 0.05 * start
    for parameter, value in zip(mine.parameters(), before, strict=True):
        torch.testing.assert_close(parameter, value, rtol=0, atol=0)


@pytest.mark.slow
def test_a_distilled_run_is_resumed_exactly_and_compiled_alike(tmp_path, replayed) -> None:
    x = teacher()().sample((60,))
    options = {"seed": 0, "verdict": False, "progress": False, "batch_size": 20}

    def run(**more) -> list[torch.Tensor]:
        student = teacher(1)
        pg.fit(student, x, SoftTargets(teacher()), **options, **more)
        return list(student.parameters())

    whole = run(steps=12, compile=False)
    path = tmp_path / "run.safetensors"
    run(steps=5, compile=False, checkpoint=path)
    again = run(steps=12, compile=False, checkpoint=path, resume=True)
    compiled = run(steps=12, compile=True)
    for one, two, three in zip(whole, again, compiled, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
        torch.testing.assert_close(one, three, rtol=1e-4, atol=1e-6)


REFUSED = {
    "a student without conditionals": (
        lambda: (teacher(), Bernoulli(pg.nn.Constant(4))),
        TypeError,
        "probgen.train.Pairs",
    ),
    "a teacher without conditionals": (
        lambda: (Bernoulli(pg.nn.Constant(4)), teacher()),
        TypeError,
        "expected a teacher with conditionals",
    ),
    "other orders": (
        lambda: (teacher(), pg.MADE(4, [8], Bernoulli(), orders=torch.tensor([[3, 2, 1, 0]]))),
        ValueError,
        "the same order",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_distilled_so_is_refused(case: str) -> None:
    make, error, message = REFUSED[case]
    mine, student = make()
    with pytest.raises(error, match=message):
        SoftTargets(mine)(student.model, student.guide)(ALL)


def test_given_contexts_the_advice_to_learn_from_draws_works() -> None:
    torch.manual_seed(0)
    teacher, student = (Gaussian(MLP(2, [8], 4)) for _ in range(2))
    context = torch.randn(20, 2)
    with pytest.raises(TypeError, match=r"x = probgen\.sample\(teacher, 1, context\)\[0\], then"):
        SoftTargets(teacher)(student.model, student.guide)(torch.zeros(20, 2), context)
    x = pg.sample(teacher, 1, context)[0]
    assert pg.fit(student, (x, context), steps=1, verdict=False, progress=False).steps == 1
