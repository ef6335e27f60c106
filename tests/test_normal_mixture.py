"""The density of a Gaussian mixture by matrix products, beside the formula of each component."""

import pyro.distributions as dist
import pytest
import torch

import probgen as pg
from probgen.distributions.covariance import Diagonal, Full, Spherical, Tied
from probgen.distributions.normal_mixture import NormalMixture

ROWS = {
    "complete": torch.randn(400, 3, generator=torch.Generator().manual_seed(0)),
    "missing": torch.tensor([[0.3, torch.nan, 1.0], [torch.nan] * 3, [1.0, 2.0, 3.0]]),
    "one row": torch.tensor([0.1, 0.2, 0.3]),
    "far away": torch.tensor([[1e4, -1e4, 2e4], [0.0, 0.0, 0.0]]),
    "infinite": torch.tensor([[torch.inf, 0.0, 0.0], [0.0, 0.0, 0.0]]),
    "draws of rows": torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(1)),
}


def mixture(form, seed=0):
    torch.manual_seed(seed)
    gen = pg.GaussianMixture(4, 3, form)
    with torch.no_grad():
        for parameter in gen.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return gen


def by_component(gen, x):
    """The definition, in float64, without the class that is tested."""
    x = x.double()
    tril = gen.covariance.scale_tril.detach().double()
    parts = []
    for k, weight in enumerate(gen.weights.double()):
        seen = ~x.isnan()
        sigma = tril[k] @ tril[k].mT
        rows = []
        for row, known in zip(x.reshape(-1, 3), seen.reshape(-1, 3), strict=True):
            normal = dist.MultivariateNormal(
                gen.means[k].double()[known], sigma[known][:, known], validate_args=False
            )
            rows.append(normal.log_prob(row[known]) if known.any() else row.new_zeros(()))
        parts.append(torch.stack(rows) + weight.log() if rows else x.new_zeros(0))
    return torch.stack(parts).logsumexp(0).reshape(x.shape[:-1])


@pytest.mark.parametrize("form", [Full, Tied, Diagonal, Spherical])
@pytest.mark.parametrize("rows", [name for name in ROWS if name != "infinite"])
def test_density_without_gradient_is_that_of_its_components(form, rows):
    gen = mixture(form)
    x = ROWS[rows]
    with torch.no_grad():
        found = gen().log_prob(x)
    assert found.shape == x.shape[:-1]
    torch.testing.assert_close(found.double(), by_component(gen, x), rtol=2e-6, atol=2e-4)


@pytest.mark.parametrize("form", [Full, Diagonal])
@pytest.mark.parametrize("rows", list(ROWS))
def test_density_with_and_without_gradient_agree(form, rows):
    gen = mixture(form)
    x = ROWS[rows]
    with torch.no_grad():
        without = gen().log_prob(x)
    graded = gen().log_prob(x)
    assert graded.requires_grad
    torch.testing.assert_close(without, graded.detach(), rtol=2e-6, atol=2e-4, equal_nan=True)


def test_expanded_mixtures_keep_their_class_and_density():
    gen = mixture(Full)
    x = ROWS["complete"]
    with torch.no_grad():
        once = gen().log_prob(x)
        expanded = gen().expand((len(x),))
        assert isinstance(expanded, NormalMixture)
        assert torch.equal(expanded.log_prob(x), once)
        assert expanded.log_prob(x[0]).shape == (len(x),)
        assert gen().expand((2, 1)).log_prob(x).shape == (2, len(x))


def test_gradients_reach_rows_and_parameters():
    gen = mixture(Full)
    x = ROWS["complete"][:3].clone().requires_grad_()
    gen().log_prob(x).sum().backward()
    assert x.grad is not None and all(p.grad is not None for p in gen.parameters())
    gen.requires_grad_(False)
    assert gen().log_prob(x).requires_grad  # rows alone ask for it
    assert not gen().log_prob(x.detach()).requires_grad
