"""Total correlation told by a discriminator, against its closed form and separate backward passes."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import probgen as pg
from probgen.compile.tracing import Compiled
from probgen.heads import Gaussian
from probgen.nn import MLP
from probgen.objectives import ELBO, FactorVAE
from probgen.objectives.factor_vae import permuted
from probgen.train import adam

MIX = torch.tensor([[1.0, 0.4, 0.0], [0.3, 0.8, 0.5]])  # codes of rows x ~ N(0, I)
SPREAD = 0.5
MIXED = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0)) @ torch.tensor(
    [[1.0, 0.9], [0.0, 0.4]]
)


class Linear(nn.Module):
    """Mean A x and the logarithm of a constant scale."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(MIX.clone())

    def forward(self, x: Tensor) -> Tensor:
        mean = x @ self.mix.T
        return torch.cat([mean, torch.full_like(mean, math.log(SPREAD))], -1)


class LogRatio(nn.Module):
    """log N(z; 0, C) - sum_d log N(z_d; 0, C_dd), as a discriminator at its best gives it."""

    def __init__(self, covariance: Tensor):
        super().__init__()
        self.joint = dist.MultivariateNormal(torch.zeros(2), covariance)
        self.single = dist.Normal(torch.zeros(2), covariance.diagonal().sqrt())

    def forward(self, z: Tensor) -> Tensor:
        return self.joint.log_prob(z) - self.single.log_prob(z).sum(-1)


def read_off() -> pg.VAE:
    torch.manual_seed(0)
    return pg.VAE(pg.standard_normal(2), Gaussian(nn.Linear(2, 6)), Gaussian(Linear()))


def covariance(gen: pg.VAE) -> Tensor:
    """Of the aggregated posterior."""
    scale = gen.encode(torch.zeros(1, 3)).base_dist.scale.detach()[0]
    return MIX @ MIX.T + torch.diag(scale.square())


def closed_form(c: Tensor) -> float:
    """Total correlation of a Gaussian: -log det of the correlations / 2."""
    return -0.5 * (c.logdet() - c.diagonal().log().sum()).item()


def test_the_best_discriminator_gives_the_closed_form() -> None:
    gen = read_off()
    c = covariance(gen)
    truth = closed_form(c)
    assert truth > 0.1
    x = torch.randn(200_000, 3)
    losses = []
    for weight in (1.0, 0.0):
        torch.manual_seed(1)
        objective = FactorVAE(LogRatio(c), weight)
        losses.append(objective(gen.model, gen.guide)(x).item() / len(x))
    assert losses[0] - losses[1] == pytest.approx(truth, abs=0.005)


def test_dims_of_other_rows_are_independent_and_have_their_own_distribution() -> None:
    z = dist.MultivariateNormal(torch.zeros(2), covariance(read_off())).sample((50_000,))
    mixed = permuted(z)
    assert torch.equal(mixed.sort(0).values, z.sort(0).values)
    assert abs(torch.corrcoef(z.T)[0, 1]) > 0.2
    assert abs(torch.corrcoef(mixed.T)[0, 1]) < 4 / math.sqrt(len(z))


def test_one_backward_is_two() -> None:
    gen = read_off().double()
    critic = MLP(2, [8], 1).double()
    x = torch.randn(12, 3, dtype=torch.float64)
    torch.manual_seed(7)
    value = FactorVAE(critic, 5.0)(gen.model, gen.guide)(x)
    value.backward()
    torch.manual_seed(7)
    q = gen.encode(x)
    z = q.rsample()
    mixed = permuted(z.detach())
    kl = torch.distributions.kl_divergence(q.base_dist, dist.Normal(torch.zeros_like(z), 1.0)).sum()
    of_gen = kl - gen.decode(z).log_prob(x).sum() + 5.0 * critic(z).sum()
    softplus = nn.functional.softplus
    of_critic = (softplus(-critic(z.detach())) + softplus(critic(mixed))).sum()
    expected = [
        *torch.autograd.grad(of_gen, list(gen.parameters())),
        *torch.autograd.grad(of_critic, list(critic.parameters())),
    ]
    for p, gradient in zip((*gen.parameters(), *critic.parameters()), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient)
    torch.testing.assert_close(value, of_gen + of_critic)


def test_without_weight_the_model_learns_by_the_elbo() -> None:
    gen = read_off()
    x = torch.randn(12, 3)
    gradients = []
    for objective in (FactorVAE(MLP(2, [8], 1), 0.0), ELBO()):
        torch.manual_seed(3)
        loss = objective(gen.model, gen.guide)(x)
        gradients.append(torch.autograd.grad(loss, list(gen.parameters())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def trained(weight: float, **options: Any) -> tuple[pg.VAE, pg.train.History]:
    """On dependent pairs that the decoder repeats, so that codes of the ELBO are dependent."""
    torch.manual_seed(1)
    decoder = Gaussian(nn.Identity(), scale=0.3)
    gen = pg.VAE(pg.standard_normal(2), decoder, Gaussian(MLP(2, [16], 4)))
    objective = FactorVAE(MLP(2, [32], 1), weight)
    optimizer = {"model": adam(3e-3), "critic": adam(3e-3)}
    settings = {"batch_size": 200, "seed": 0, "verdict": False, "compile": False} | options
    return gen, pg.fit(gen, MIXED, objective, optimizer=optimizer, **settings)


@pytest.mark.slow
def test_compiled_steps_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs run operation by operation instead of being compiled."""
    monkeypatch.setattr(Compiled, "build", lambda self, *examples, **how: self)
    _, eager = trained(5.0, steps=6)
    _, graph = trained(5.0, steps=6, compile=True)
    assert graph.compiled.startswith("from step")
    assert graph.loss == pytest.approx(eager.loss, rel=1e-4)
    assert [*graph.parts] == ["reconstruction", "kl", "total_correlation", "critic"]


@pytest.mark.slow
def test_the_penalty_makes_dims_independent() -> None:
    """By the library's own estimate, which has no discriminator."""
    found = []
    for weight in (0.0, 20.0):
        gen, _ = trained(weight, steps=300)
        found.append(pg.diagnostics.total_correlation(gen, MIXED, seed=0).total_correlation)
    assert found[1] < 0.3 * found[0]


REFUSED = {
    "one row": (lambda: FactorVAE(MLP(2, [4], 1)), 1, "two rows and two dims at least"),
    "another site": (lambda: FactorVAE(MLP(2, [4], 1), site="w"), 3, "got ['z']"),
    "scores of another shape": (lambda: FactorVAE(nn.Flatten(0)), 3, "(3,) scores"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str) -> None:
    objective, rows, message = REFUSED[case]
    gen = read_off()
    with pytest.raises(ValueError) as error:
        objective()(gen.model, gen.guide)(torch.randn(rows, 3))
    assert message in str(error.value)


def test_a_single_code_is_refused() -> None:
    gen = pg.VAE(pg.standard_normal(1), Gaussian(nn.Linear(1, 6)), Gaussian(nn.Linear(3, 2)))
    with pytest.raises(ValueError, match=r"got \(5, 1\); use a latent vector of more dims"):
        FactorVAE(MLP(1, [4], 1))(gen.model, gen.guide)(torch.randn(5, 3))
