"""Students of a teacher, and how far they are from it, against enumeration and closed forms."""

from __future__ import annotations

import itertools

import pyro.distributions as dist
import pytest
import torch

import probgen as pg
from probgen.core.module import Fixed
from probgen.evaluate import kl_divergence
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


# -- the divergence by draws


def normal(loc: float, scale: float) -> Fixed:
    return Fixed(dist.Normal, loc=torch.full((3,), loc), scale=scale)


PAIRS = {
    "normal distributions": (
        lambda: (normal(0.0, 1.0), normal(0.5, 2.0)),
        lambda p, q: torch.distributions.kl_divergence(p(), q()).item(),
    ),
    "tables of bits": (lambda: (teacher(), teacher(1)), lambda p, q: divergence(p, q).item()),
    "one distribution": (lambda: (teacher(), teacher()), lambda p, q: 0.0),
}


@pytest.mark.parametrize("case", PAIRS)
@pytest.mark.parametrize("max_rows", [2**12, 700])
def test_the_divergence_by_draws_agrees_with_the_exact_one(case: str, max_rows: int) -> None:
    make, truth = PAIRS[case]
    p, q = make()
    found = kl_divergence(p, q, draws=4000, seed=0, max_rows=max_rows)
    assert found.kind == "unbiased"
    assert found.draws == 4000
    assert abs(found.value - truth(p, q)) <= 4 * found.stderr + 1e-9


def test_with_contexts_it_is_the_mean_over_them() -> None:
    torch.manual_seed(0)
    p, q = (Gaussian(MLP(2, [8], 4)) for _ in range(2))
    contexts = torch.randn(5, 2)
    exact = torch.distributions.kl_divergence(p(contexts).base_dist, q(contexts).base_dist)
    found = kl_divergence(p, q, contexts, draws=3000, seed=0)
    assert abs(found.value - exact.sum(-1).mean().item()) < 4 * found.stderr


def test_of_a_latent_variable_model_it_is_an_upper_bound() -> None:
    """Two latents with a poor guide: more draws of the guide tighten the bound from above."""
    torch.manual_seed(0)
    vae = pg.VAE(pg.standard_normal(1), Gaussian(MLP(1, [8], 6)), Gaussian(MLP(3, [8], 2)))
    found = kl_divergence(normal(0.0, 1.0), vae, draws=2000, seed=0)
    assert found.kind == "upper bound"
    p = normal(0.0, 1.0)
    x = p().sample((2000,))
    fine = pg.log_likelihood(vae, x, particles=500).value
    assert found.value > (p().log_prob(x) - fine).mean().item() - 4 * found.stderr


UNKNOWN = {
    "of a latent-variable model": (
        lambda: (pg.PPCA(3, factors=1), normal(0.0, 1.0)),
        None,
    ),
    "from a generator": (
        lambda: (pg.GAN(MLP(2, [8], 3), pg.standard_normal(2)), normal(0.0, 1.0)),
        "expected p with an exact density, got implicit",
    ),
    "to a generator": (
        lambda: (normal(0.0, 1.0), pg.GAN(MLP(2, [8], 3), pg.standard_normal(2))),
        "expected q with a density that is exact, unbiased or a bound, got implicit",
    ),
    "of other events": (
        lambda: (normal(0.0, 1.0), pg.standard_normal(2)),
        r"the same events, got \(3,\) and \(2,\)",
    ),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_densities_that_give_no_divergence_are_refused(case: str) -> None:
    make, message = UNKNOWN[case]
    p, q = make()
    if message is None:
        assert kl_divergence(p, q, draws=10, seed=0).kind == "unbiased"  # a closed form
        return
    with pytest.raises(ValueError, match=message):
        kl_divergence(p, q, draws=10, seed=0)
