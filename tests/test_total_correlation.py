"""The divergence of a guide in three parts, against integrals on a grid and the full batch."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import probgen as pg
from probgen.diagnostics import total_correlation
from probgen.heads import Gaussian
from probgen.objectives import ELBO, TotalCorrelation


class Table(nn.Module):
    """An encoder that reads mean and scale of two latents from the row itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., :4]


def read_off() -> pg.VAE:
    torch.manual_seed(0)
    return pg.VAE(pg.standard_normal(2), Gaussian(nn.Linear(2, 8)), Gaussian(Table()))


ROWS = torch.tensor([[-1.0, -1.0, 0.0, 0.0], [1.0, 1.2, 0.3, -0.5], [0.0, 0.5, -1.0, 0.2]])


def on_a_grid(posterior: dist.TorchDistribution) -> tuple[float, float, torch.Tensor]:
    """The three parts by sums over a grid of the plane."""
    points = torch.linspace(-9, 9, 721, dtype=torch.float64)
    cell = (points[1] - points[0]).item()
    base = posterior.base_dist
    each = base.log_prob(points[:, None, None])  # (G, N, 2)
    joint = (each[:, None, :, 0] + each[None, :, :, 1]).logsumexp(-1) - math.log(len(ROWS))
    single = each.logsumexp(1) - math.log(len(ROWS))  # (G, 2)
    density = joint.exp() * cell**2
    correlation = (density * (joint - single[:, None, 0] - single[None, :, 1])).sum()
    prior = dist.Normal(0.0, 1.0).log_prob(points).unsqueeze(-1)
    own = (single.exp() * cell * (single - prior)).sum(0)
    entropy = -(density * joint).sum()
    information = entropy - posterior.entropy().mean()
    return information.item(), correlation.item(), own


def test_parts_agree_with_integrals_on_a_grid() -> None:
    gen = read_off().double()
    rows = ROWS.double()
    information, correlation, own = on_a_grid(gen.encode(rows))
    parts = total_correlation(gen, rows, draws=20_000, seed=0)
    for value, truth, name in (
        (parts.mutual_information, information, "mutual_information"),
        (parts.total_correlation, correlation, "total_correlation"),
        (parts.dimension_kl.sum().item(), own.sum().item(), "dimension_kl"),
    ):
        error = parts.stderr[name]
        assert error < 0.01
        assert abs(value - truth) < 4 * error
    closed = torch.distributions.kl_divergence(
        gen.encode(rows).base_dist, dist.Normal(torch.zeros(3, 2).double(), 1.0)
    )
    assert parts.kl == pytest.approx(closed.sum(-1).mean().item(), abs=0.02)


def test_pieces_give_the_same_numbers() -> None:
    gen = read_off()
    whole = total_correlation(gen, ROWS, draws=50, seed=0)
    pieces = total_correlation(gen, ROWS, draws=50, seed=0, max_elements=7)
    assert pieces.mutual_information == pytest.approx(whole.mutual_information, abs=1e-6)
    torch.testing.assert_close(pieces.dimension_kl, whole.dimension_kl)


@pytest.mark.slow
def test_with_weights_one_the_objective_is_the_elbo_on_the_same_draws() -> None:
    gen = read_off()
    torch.manual_seed(1)
    ours = TotalCorrelation(rows=3, beta=1.0)(gen.model, gen.guide)(ROWS)
    torch.manual_seed(1)
    run = pyro_terms(gen)
    torch.testing.assert_close(ours, run)
    many = torch.stack([ours_at(gen, seed) for seed in range(400)])
    elbo = ELBO(particles=400)(gen.model, gen.guide)(ROWS)
    assert abs(many.mean() - elbo) < 4 * many.std() / 20 + 0.3


def ours_at(gen: pg.VAE, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return TotalCorrelation(rows=3, beta=1.0)(gen.model, gen.guide)(ROWS).detach()


def pyro_terms(gen: pg.VAE) -> torch.Tensor:
    """-log p(x | z) - log p(z) + log q(z | x) of one draw."""
    q = gen.encode(ROWS)
    z = q.rsample()
    prior = gen.prior().log_prob(z)
    return (q.log_prob(z) - prior - gen.decode(z).log_prob(ROWS)).sum()


@pytest.mark.slow
@pytest.mark.parametrize("weight", ["alpha", "beta", "gamma"])
def test_on_all_rows_a_weight_multiplies_its_part(weight: str) -> None:
    """The parts of the full batch are those of the diagnostic, in the mean over draws."""
    gen = read_off()
    names = {
        "alpha": "mutual_information",
        "beta": "total_correlation",
        "gamma": "dimension_kl",
    }

    def loss(seed: int, value: float) -> torch.Tensor:
        torch.manual_seed(seed)
        weights = {"alpha": 1.0, "beta": 1.0, "gamma": 1.0, weight: value}
        return TotalCorrelation(rows=3, **weights)(gen.model, gen.guide)(ROWS).detach()

    part = torch.stack([loss(seed, 3.0) - loss(seed, 2.0) for seed in range(600)]) / 3
    parts = total_correlation(gen, ROWS, draws=20_000, seed=0)
    truth = getattr(parts, names[weight])
    truth = truth.sum().item() if weight == "gamma" else truth
    assert abs(part.mean() - truth) < 4 * part.std() / math.sqrt(600)


def test_densities_of_batches_average_to_those_of_all_rows() -> None:
    """The estimate of q(z) for a row, over all batches that hold it, in probability space."""
    gen = read_off()
    q = gen.encode(ROWS).base_dist
    z = torch.randn(3, 2)
    pairs = q.log_prob(z.unsqueeze(1)).detach()
    own = pairs[torch.arange(3), torch.arange(3)]
    from probgen.objectives.total_correlation import log_aggregate

    whole = log_aggregate(pairs, own, 3).joint[0].exp()
    found = []
    for other in (1, 2):
        index = torch.tensor([0, other])
        found.append(log_aggregate(pairs[index][:, index], own[index], 3).joint[0].exp())
    torch.testing.assert_close(torch.stack(found).mean(), whole)


REFUSED = {
    "one row": (lambda: TotalCorrelation(rows=9), ROWS[:1], "batches of 2 to rows=9 rows, got 1"),
    "more rows than there are": (lambda: TotalCorrelation(rows=2), ROWS, "got 3"),
    "another site": (lambda: TotalCorrelation(rows=3, site="w"), ROWS, "got ['z']"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str) -> None:
    objective, rows, message = REFUSED[case]
    gen = read_off()
    with pytest.raises(ValueError) as error:
        objective()(gen.model, gen.guide)(rows)
    assert message in str(error.value)


def test_dependent_dims_are_refused() -> None:
    gen = pg.VAE(pg.GaussianMixture(3, 2), Gaussian(nn.Linear(2, 8)), Gaussian(Table()))
    with pytest.raises(ValueError, match="independent dims at site 'z', got NormalMixture"):
        TotalCorrelation(rows=3)(gen.model, gen.guide)(ROWS)
    with pytest.raises(ValueError, match="standard_normal"):
        total_correlation(gen, ROWS)
