"""Terms that a guide adds to the loss: counted by objectives with rows' weights, never by scores."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

import probgen as pg
from probgen.core.loss_parts import noted_parts
from probgen.objectives import IWAE, EnumeratedELBO

X = torch.tensor([0.5, -1.0, 2.0])
PAID = torch.tensor([1.0, 0.0, 3.0])


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x, weight=None):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        if weight is not None:
            pg.core.penalty("pull", weight * PAID[: len(x)])


def punished(x):
    return guide(x, torch.tensor(2.0))


@pytest.mark.parametrize(
    "objective",
    [pg.ELBO(), pg.ELBO(beta=0.5), pg.ELBO(particles=3), IWAE(particles=3), EnumeratedELBO()],
    ids=["ELBO", "beta", "particles", "IWAE", "EnumeratedELBO"],
)
@pytest.mark.parametrize("scale", [1.0, torch.tensor([1.0, 5.0, 2.0])], ids=["plain", "weights"])
def test_losses_grow_by_it(objective, scale):
    if isinstance(objective, IWAE):
        scale = 1.0  # which it takes as part of the density of a row
    losses = []
    for each in (guide, punished):
        torch.manual_seed(0)
        scaled = [pyro.poutine.scale(program, scale=scale) for program in (model, each)]
        losses.append(objective(*scaled)(X))
    assert_close(losses[1] - losses[0], (2 * scale * PAID).sum())


def test_its_gradient_is_whole():
    weight = torch.tensor(2.0, requires_grad=True)
    loss = pg.ELBO(beta=0.1)(model, lambda x: guide(x, weight))(X)
    (slope,) = torch.autograd.grad(loss, weight)
    assert_close(slope, PAID.sum())


def test_it_is_a_part_of_its_own():
    with noted_parts() as parts:
        loss = pg.ELBO(beta=0.1, free_bits=0.01)(model, punished)(X)
    assert_close(parts["pull"].value, 2 * PAID.sum())
    assert not parts["pull"].is_weighted
    assert_close(sum(value * weight for value, weight in parts.values()), loss.detach())


@pytest.mark.parametrize("each", [guide, punished])
def test_scores_are_those_without_it(each):
    program = pg.Program(model, each, vectorized=True)
    truth = dist.Normal(0.0, 2**0.5).log_prob(X)
    assert_close(pg.log_likelihood(program, X, particles=2).value, truth)
    weights, kind = pg.core.log_weights(program, X, particles=2)
    assert kind == "unbiased"
    assert_close(weights, truth.expand(2, 3))
