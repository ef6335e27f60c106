"""Class-balancing diffusion: the loss told again from what the network was asked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import probgen as pg
from probgen.diffusion import Epsilon, Original, Velocity
from probgen.nn import TimeMLP
from probgen.objectives import ClassBalancing, Denoising
from probgen.train import adam

CLASSES = torch.eye(3)
WEIGHT = 0.7
COMMITMENT = 0.3


class Asked(nn.Module):
    """A network that keeps what it was asked, and what it said."""

    context_size = 3

    def __init__(self):
        super().__init__()
        self.net = TimeMLP(2, [8], context=3)
        nn.init.normal_(self.net.last.weight)
        self.calls: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def forward(self, z: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        output = self.net(z, t, context)
        if output.requires_grad:
            output.retain_grad()
        self.calls.append((z, t, context, output))
        return output


def data(rows: int = 40) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(rows, 2), CLASSES[torch.randint(3, (rows,))]


def diffusion(prediction, **options) -> pg.Diffusion:
    return pg.Diffusion(Asked(), (2,), prediction=prediction, **options)


def noise_of(gen: pg.Diffusion, x: Tensor, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    alpha, sigma = (level[:, None] for level in gen.schedule(t))
    return (z - alpha * x) / sigma, alpha, sigma


def epsilon(gen, x, z, t):
    return noise_of(gen, x, z, t)[0]


def velocity(gen, x, z, t):
    noise, alpha, sigma = noise_of(gen, x, z, t)
    return alpha * noise - sigma * x


def along_a_line(gen, x, z, t):
    return (z - (1 - t[:, None]) * x) / t[:, None] - x


MODELS = {
    "noise": (lambda **how: diffusion(Epsilon(), **how), epsilon),
    "velocity": (lambda **how: diffusion(Velocity(), **how), velocity),
    "data": (lambda **how: diffusion(Original(), **how), lambda gen, x, z, t: x),
    "flow matching": (lambda **how: pg.FlowMatching(Asked(), (2,), **how), along_a_line),
}


def asked(gen, x, context, objective) -> tuple[Tensor, list]:
    """The loss, and the two calls of the network that it took."""
    gen.net.calls.clear()
    loss = objective(gen.model, gen.guide)(x, context)
    assert len(gen.net.calls) == 2
    return loss, gen.net.calls


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_those_of_the_paper(name: str) -> None:
    """|y - f|² + tau t (|f - sg f'|² + gamma |sg f - f'|²) at one state, and no gradient through sg."""
    make, wanted = MODELS[name]
    x, context = data()
    gen = make()
    objective = ClassBalancing(CLASSES, WEIGHT, commitment=COMMITMENT)
    loss, calls = asked(gen, x, context, objective)
    (z, t, own_context, own), (same_z, same_t, other_context, other) = calls
    torch.testing.assert_close(same_z, z, rtol=0, atol=0)
    torch.testing.assert_close(same_t, t, rtol=0, atol=0)
    torch.testing.assert_close(own_context, context, rtol=0, atol=0)
    assert bool((other_context != context).any())
    error = own - wanted(gen, x, z, t)
    apart = own - other
    share = WEIGHT * t[:, None]
    truth = error.square() + share * (1 + COMMITMENT) * apart.square()
    torch.testing.assert_close(loss, truth.sum(), rtol=1e-3, atol=1e-3)
    loss.backward()
    close = {"rtol": 1e-3, "atol": 2e-3}
    torch.testing.assert_close(own.grad, 2 * (error + share * apart), **close)
    torch.testing.assert_close(other.grad, -2 * COMMITMENT * share * apart, **close)


WITHOUT = {
    "no weight": lambda: ClassBalancing(CLASSES, 0.0),
    "one context for all": lambda: ClassBalancing(torch.full((2, 3), 0.5)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("why", WITHOUT)
def test_where_there_is_nothing_to_balance_it_is_the_simple_loss(name: str, why: str) -> None:
    x, context = data()
    if why == "one context for all":
        context = torch.full((len(x), 3), 0.5)
    gen = MODELS[name][0]()
    loss, calls = asked(gen, x, context, WITHOUT[why]())
    error = calls[0][3] - MODELS[name][1](gen, x, *calls[0][:2])
    torch.testing.assert_close(loss, error.square().sum(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["velocity", "flow matching"])
def test_rows_whose_context_is_dropped_add_the_simple_loss_alone(name: str) -> None:
    make, wanted = MODELS[name]
    x, context = data(200)
    gen = make(context_dropout=0.4).train()
    loss, calls = asked(gen, x, context, ClassBalancing(CLASSES, WEIGHT, commitment=COMMITMENT))
    (z, t, own_context, own), (*_, other_context, other) = calls
    unknown = (own_context + other_context).isnan().any(-1)
    assert 0.5 < unknown.float().mean() < 0.8  # 1 - 0.6 * 0.6
    share = torch.where(unknown, 0.0, WEIGHT * (1 + COMMITMENT) * t)
    truth = (own - wanted(gen, x, z, t)).square().sum(-1) + share * (own - other).square().sum(-1)
    torch.testing.assert_close(loss, truth.sum(), rtol=1e-3, atol=1e-3)


class Table(nn.Module):
    """A prediction for each class, whatever the state."""

    context_size = 2

    def __init__(self, values: Tensor):
        super().__init__()
        self.values = nn.Parameter(values)

    def forward(self, z: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        return context @ self.values


def at_the_end(shape, schedule, like: Tensor) -> Tensor:
    return torch.ones(shape)


def test_at_pure_noise_predictions_shrink_to_the_mean_of_the_classes() -> None:
    """By 1 + tau (1 + gamma), which guidance of that weight undoes: there the gradient vanishes."""
    means = torch.tensor([[3.0], [-1.0]])
    labels = torch.arange(20_000) % 2
    shrunk = means.mean() + (means - means.mean()) / (1 + WEIGHT * (1 + COMMITMENT))
    slopes = {}
    for name, values in {"shrunk": shrunk, "means": means}.items():
        net = Table(values.clone())
        gen = pg.Diffusion(net, (1,), prediction=Original(), times=at_the_end)
        objective = ClassBalancing(torch.eye(2), WEIGHT, commitment=COMMITMENT)
        torch.manual_seed(0)
        contexts = torch.eye(2)[labels]
        (objective(gen.model, gen.guide)(means[labels], contexts) / len(labels)).backward()
        slopes[name] = net.values.grad.abs().max().item()
    assert slopes["shrunk"] < 0.03 < 1.0 < slopes["means"]


COUNTS = {
    "alike": (None, torch.full((3,), 1 / 3)),
    "as in the data": (torch.tensor([60, 30, 10]), torch.tensor([0.6, 0.3, 0.1])),
    "a class without rows": (torch.tensor([1, 0, 1]), torch.tensor([0.5, 0.0, 0.5])),
}


@pytest.mark.parametrize("case", COUNTS)
def test_other_classes_are_drawn_in_proportion_to_counts(case: str) -> None:
    counts, shares = COUNTS[case]
    gen = MODELS["velocity"][0]()
    x, context = data(4000)
    *_, calls = asked(gen, x, context, ClassBalancing(CLASSES, counts=counts))
    found = calls[1][2].mean(0)
    torch.testing.assert_close(found, shares, rtol=0, atol=4 * 0.5 / 4000**0.5)


class Embedded(nn.Module):
    """A network of labels."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(3, 4)
        self.net = TimeMLP(2, [8], context=4)

    def forward(self, z: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        assert context is not None and not context.is_floating_point()
        return self.net(z, t, self.embedding(context))


WRAPPED = {
    "labels": lambda: pg.Diffusion(Embedded(), (2,), context_ndim=0),
    "standardized": lambda: pg.Standardized(diffusion(Velocity()), 2.0, 4.0),
    "bins": lambda: pg.Quantized(diffusion(Velocity())),
    "probability flow": lambda: pg.ProbabilityFlow(diffusion(Velocity())),
    "learned variance": lambda: pg.Diffusion(
        TimeMLP(2, [8], context=3, outputs=4),
        (2,),
        num_times=4,
        variance=pg.diffusion.LearnedVariance(),
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_around_a_diffusion_and_by_labels(name: str) -> None:
    """The part beside the simple loss is positive, and gone where there is one class alone."""
    gen = WRAPPED[name]()
    x, context = data()
    x = x.round() if name == "bins" else x
    classes = CLASSES
    if name == "labels":
        context, classes = context.argmax(-1), torch.arange(3)
    losses = []
    for objective in (Denoising(), ClassBalancing(classes, 0.0), ClassBalancing(classes)):
        torch.manual_seed(1)
        if isinstance(objective, Denoising):
            torch.rand(len(x))  # the classes that the others draw
        losses.append(objective(gen.model, gen.guide)(x, context))
    torch.testing.assert_close(losses[1], losses[0])
    assert losses[2] >= losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["velocity", "flow matching"])
def test_a_run_is_resumed_exactly_and_compiled_alike(name: str, tmp_path) -> None:
    rows = data(60)
    options = {"seed": 0, "verdict": False, "progress": False, "batch_size": 20}

    def run(**more) -> list[Tensor]:
        torch.manual_seed(3)
        net = TimeMLP(2, [8], context=3)
        kind = pg.Diffusion if name == "velocity" else pg.FlowMatching
        gen = kind(net, (2,), context_dropout=0.2)
        pg.fit(gen, rows, ClassBalancing(CLASSES), **options, **more)
        return list(gen.parameters())

    whole = run(steps=9, compile=False)
    path = tmp_path / "run.safetensors"
    run(steps=4, compile=False, checkpoint=path)
    again = run(steps=9, compile=False, checkpoint=path, resume=True)
    compiled = run(steps=9, compile=True)
    for one, two, three in zip(whole, again, compiled, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
        torch.testing.assert_close(one, three, rtol=1e-4, atol=1e-5)


def test_its_parts_are_noted() -> None:
    gen = pg.Diffusion(TimeMLP(2, [8], context=3), (2,))
    options = {"compile": False, "verdict": False, "progress": False, "seed": 0}
    history = pg.fit(gen, data(), ClassBalancing(CLASSES, 0.5), steps=3, **options)
    assert {"denoising", "balance"} <= set(history.parts)


def parted(steps: int, weight: float) -> float:
    """How far apart the draws of two classes end, of which one has two rows."""
    torch.manual_seed(0)
    labels = torch.cat((torch.zeros(198), torch.ones(2))).long()
    x = torch.randn(200, 2) + 2.0 * labels[:, None]
    x[-2:] = 2.0  # two rows that are the same
    gen = pg.Diffusion(TimeMLP(2, [32], context=2), (2,), sampler=pg.diffusion.DDIM(20))
    rows = (x, torch.eye(2)[labels])
    pg.fit(
        gen,
        rows,
        ClassBalancing(torch.eye(2), weight),
        steps=steps,
        optimizer=adam(5e-3),
        compile=False,
        verdict=False,
        progress=False,
        seed=0,
    )
    return pg.sample(gen.eval(), 400, torch.eye(2)[1], seed=0).std(0).mean().item()


@pytest.mark.slow
def test_draws_of_a_class_with_two_rows_spread() -> None:
    assert parted(150, 1.0) > 1.2 * parted(150, 0.0)


def normal() -> pg.heads.Gaussian:
    return pg.heads.Gaussian(nn.Linear(3, 4))


def model() -> pg.Diffusion:
    return pg.Diffusion(TimeMLP(2, [8], context=3), (2,))


REFUSED = {
    "no context": (
        lambda x, c: (model(), ClassBalancing(CLASSES), (x,)),
        ValueError,
        r"expected a context tensor beside the rows, got none; give fit\(gen, \(x, context\)",
    ),
    "contexts of another form": (
        lambda x, c: (model(), ClassBalancing(torch.arange(3)), (x, c)),
        ValueError,
        r"expected contexts of shape \(\), as those of the classes, got \(3,\)",
    ),
    "another family": (
        lambda x, c: (normal(), ClassBalancing(CLASSES), (x, c)),
        TypeError,
        "expected a distribution with denoised_pair at site 'x', got MissingAware; use a Diffusion",
    ),
    "a mixture in units": (
        lambda x, c: (pg.Standardized(normal(), 0.0, 1.0), ClassBalancing(CLASSES), (x, c)),
        TypeError,
        "learned by denoising",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_balanced_is_refused(case: str) -> None:
    make, error, message = REFUSED[case]
    gen, objective, batch = make(*data())
    with pytest.raises(error, match=message):
        objective(gen.model, gen.guide)(*batch)


ARGUMENTS = {
    "one class": (lambda: ClassBalancing(torch.eye(1)), "2 classes or more"),
    "too few counts": (
        lambda: ClassBalancing(CLASSES, counts=torch.ones(2)),
        r"counts of shape \(3,\)",
    ),
    "no counts": (lambda: ClassBalancing(CLASSES, counts=torch.zeros(3)), "a positive sum"),
    "a negative weight": (lambda: ClassBalancing(CLASSES, -1.0), "weight >= 0"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments_that_make_no_sense_are_refused(case: str) -> None:
    make, message = ARGUMENTS[case]
    with pytest.raises(ValueError, match=message):
        make()
