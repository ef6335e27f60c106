"""Conditionals against dense algebra, against integration on grids, and against Bayes' rule."""

import math

import pyro.distributions as dist
import pytest
import torch

from probgen.core.missing import MissingAware
from probgen.core.normal import MultivariateNormal
from probgen.distributions.conditional import Clamped, conditional
from probgen.distributions.low_rank import LowRankMultivariateNormal
from probgen.heads import Bernoulli, Categorical, Gaussian, Mixed

D, F64 = 5, torch.float64


def random_covariance(*batch, dims=D):
    factor = torch.randn(*batch, dims, dims, dtype=F64)
    return factor @ factor.mT + 0.1 * torch.eye(dims, dtype=F64)


def dense(loc, covariance, x, seen):
    """Mean and covariance of the missing block of one row, by the textbook formula."""
    gain = covariance[~seen][:, seen] @ covariance[seen][:, seen].inverse()
    mean = loc[~seen] + gain @ (x - loc)[seen]
    return mean, covariance[~seen][:, ~seen] - gain @ covariance[seen][:, ~seen]


def rows_and_masks(rows=6):
    x, mask = torch.randn(rows, D, dtype=F64), torch.rand(rows, D) < 0.5
    mask[0], mask[1] = True, False
    return torch.where(mask, x, torch.nan), mask


def distributions():
    loc, covariance = torch.randn(D, dtype=F64), random_covariance()
    factor, diag = torch.randn(D, 2, dtype=F64), torch.rand(D, dtype=F64) + 0.1
    return {
        "full": dist.MultivariateNormal(loc, covariance),
        "full, aware of NaN": MultivariateNormal(loc, covariance),
        "a covariance each row": MultivariateNormal(
            torch.randn(6, D, dtype=F64), random_covariance(6)
        ),
        "expanded": dist.MultivariateNormal(loc, covariance).expand((6,)),
        "low rank": dist.LowRankMultivariateNormal(loc, factor, diag),
        "low rank, aware of NaN": LowRankMultivariateNormal(loc, factor, diag).expand((6,)),
        "low rank, a distribution each row": LowRankMultivariateNormal(
            torch.randn(6, D, dtype=F64), torch.randn(6, D, 2, dtype=F64), diag.expand(6, D)
        ),
        "independent": dist.Normal(loc, diag).to_event(1),
        "one coordinate each": MissingAware(dist.Normal(loc.expand(6, D), diag), 1),
    }


def covariance_of(distribution):
    return (
        distribution.variance.diag_embed()
        if isinstance(distribution, dist.Independent)
        else distribution.covariance_matrix
    )


@pytest.mark.parametrize("name", distributions())
def test_gaussian_conditionals_are_those_of_dense_algebra(name):
    distribution, (x, mask) = distributions()[name], rows_and_masks()
    given = conditional(distribution, x, mask)
    value = torch.where(mask, x, torch.randn(6, D, dtype=F64))
    mean, variance, log_prob = given.mean, given.variance, given.log_prob(value)
    locs, covariances = distribution.mean.expand(6, D), covariance_of(distribution).expand(6, D, D)
    assert torch.equal(mean[mask], x[mask]) and (variance[mask] == 0).all() and log_prob[0] == 0
    for row in range(1, 6):
        missing = ~mask[row]
        expected_mean, expected = dense(locs[row], covariances[row], x[row], mask[row])
        torch.testing.assert_close(mean[row, missing], expected_mean)
        torch.testing.assert_close(variance[row, missing], expected.diagonal())
        block = torch.distributions.MultivariateNormal(expected_mean, expected).log_prob(
            value[row, missing]
        )
        torch.testing.assert_close(log_prob[row], block)


@pytest.mark.parametrize("name", ["full", "low rank"])
def test_samples_keep_observed_coordinates_and_the_covariance_of_the_rest(name):
    distribution, x = distributions()[name], torch.randn(D, dtype=F64)
    seen = torch.tensor([True, False, True, False, False])
    draws = conditional(distribution, torch.where(seen, x, torch.nan), seen).sample((100_000,))
    mean, covariance = dense(distribution.mean, distribution.covariance_matrix, x, seen)
    assert torch.equal(draws[:, seen], x[seen].expand(100_000, 2))
    # standard errors of the moments of 1e5 draws; 4.5 of them
    scale = covariance.diagonal().sqrt()
    assert ((draws[:, ~seen].mean(0) - mean).abs() < 4.5 * scale / math.sqrt(1e5)).all()
    error = (draws[:, ~seen].T.cov() - covariance).abs()
    assert (error < 4.5 * scale.outer(scale) * math.sqrt(2 / 1e5)).all()


def test_nearly_singular_covariance_in_single_precision():
    time = torch.linspace(0, 1, 30)
    kernel = torch.exp(-((time[:, None] - time).abs() / 0.5)) + 1e-6 * torch.eye(30)
    seen = torch.arange(30) % 3 == 0
    x = time.sin()
    given = conditional(dist.MultivariateNormal(torch.zeros(30), kernel), x, seen)
    mean, covariance = dense(torch.zeros(30, dtype=F64), kernel.double(), x.double(), seen)
    torch.testing.assert_close(given.mean[~seen].double(), mean, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        given.variance[~seen].double(), covariance.diagonal(), atol=1e-5, rtol=0
    )


MIXTURES = {
    "full": lambda: dist.MultivariateNormal(
        torch.randn(3, 2, dtype=F64), random_covariance(3, dims=2) / 4
    ),
    "low rank": lambda: LowRankMultivariateNormal(
        torch.randn(3, 2, dtype=F64),
        torch.randn(3, 2, 1, dtype=F64) / 2,
        torch.full((3, 2), 0.1, dtype=F64),
    ),
    "diagonal": lambda: dist.Normal(torch.randn(3, 2, dtype=F64), 0.4).to_event(1),
    "not normal": lambda: MissingAware(dist.StudentT(3.0, torch.randn(3, 2, dtype=F64), 0.4), 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXTURES)
def test_mixture_conditional_is_the_joint_on_a_grid_normalized_along_a_line(name):
    mixture = dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.5, 0.3, 0.2], dtype=F64)), MIXTURES[name]()
    )
    x = torch.tensor([[0.7, torch.nan], [torch.nan, -0.4]], dtype=F64)
    given = conditional(mixture, x, ~x.isnan())
    line = torch.linspace(-60, 60, 120_001, dtype=F64)
    grid = torch.where(x.isnan(), line[:, None, None], x)
    joint = mixture.log_prob(grid).exp()
    density = joint / torch.trapezoid(joint, line, dim=0)
    torch.testing.assert_close(given.log_prob(grid).exp(), density, atol=1e-5, rtol=1e-5)
    mean = torch.trapezoid(density * line[:, None], line, dim=0)
    variance = torch.trapezoid(density * (line[:, None] - mean).square(), line, dim=0)
    torch.testing.assert_close(given.mean[x.isnan()], mean, atol=2e-3, rtol=1e-3)
    if (
        name != "not normal"
    ):  # a Student with three degrees of freedom has too much variance beyond any grid
        torch.testing.assert_close(given.variance[x.isnan()], variance, atol=1e-4, rtol=1e-4)


def test_mixture_samples_follow_the_conditional_density():
    components = dist.Normal(torch.tensor([[-2.0, -2.0], [2.0, 2.0]]), 1.0).to_event(1)
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.5, 0.5])), components)
    x = torch.tensor([0.5, torch.nan])
    draws = conditional(mixture, x, ~x.isnan()).sample((40_000,))
    weight = torch.sigmoid(
        torch.tensor(2 * 2 * 0.5)
    )  # log odds of the second component: ((x + 2)^2 - (x - 2)^2) / 2
    share = weight * dist.Normal(2.0, 1.0).cdf(torch.tensor(0.0)) + (1 - weight) * dist.Normal(
        -2.0, 1.0
    ).cdf(torch.tensor(0.0))
    assert (draws[:, 0] == 0.5).all()
    assert abs((draws[:, 1] < 0).float().mean() - share) < 4.5 * 0.5 / 200


def test_discrete_mixture_by_enumeration():
    components = MissingAware(dist.Bernoulli(torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.3, 0.6]])), 1)
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.4, 0.6])), components)
    x = torch.tensor([1.0, torch.nan, torch.nan])
    given = conditional(mixture, x, ~x.isnan())
    table = torch.tensor([[1.0, a, b] for a in (0.0, 1.0) for b in (0.0, 1.0)])
    joint = mixture.log_prob(table).exp()
    torch.testing.assert_close(given.log_prob(table).exp(), joint / joint.sum())
    torch.testing.assert_close(given.mean, (table * (joint / joint.sum())[:, None]).sum(0))


def test_blocks_are_conditioned_one_by_one():
    distributions = MultivariateNormal(torch.randn(2, D, dtype=F64), random_covariance(2))
    x, mask = torch.randn(2, D, dtype=F64), torch.rand(2, D) < 0.5
    together, apart = (
        conditional(distributions.to_event(1), x, mask),
        conditional(distributions, x, mask),
    )
    assert together.event_shape == (2, D)
    torch.testing.assert_close(together.mean, apart.mean)
    value = torch.where(mask, x, 0.3)
    torch.testing.assert_close(together.log_prob(value), apart.log_prob(value).sum())


def test_images_with_a_mask_each():
    distribution = MissingAware(dist.Bernoulli(torch.full((4, 6), 0.3)), 2)
    x = torch.where(torch.rand(7, 4, 6) < 0.5, torch.nan, 1.0)
    given = conditional(distribution, x, ~x.isnan())
    draw = given.sample((10,))
    assert draw.shape == (10, 7, 4, 6) and (draw[:, ~x.isnan()] == 1).all()
    expected = (x.isnan() * torch.where(draw == 1, 0.3, 0.7).log()).sum((-2, -1))
    torch.testing.assert_close(given.log_prob(draw), expected)


def test_columns_of_different_types():
    table = Mixed(None, [Gaussian(), Gaussian(), Bernoulli(), Categorical(levels=3)])
    distribution = table(torch.randn(5, table.width))
    x = torch.where(torch.rand(5, 4) < 0.5, torch.nan, distribution.sample())
    given = conditional(distribution, x, ~x.isnan())
    complete = given.sample()
    assert torch.equal(complete[~x.isnan()], x[~x.isnan()])
    torch.testing.assert_close(
        given.log_prob(complete), distribution.log_prob(complete) - distribution.log_prob(x)
    )


def test_log_prob_is_minus_infinity_where_observed_coordinates_differ():
    given = conditional(
        dist.Normal(torch.zeros(2), 1.0).to_event(1), torch.zeros(2), torch.tensor([True, False])
    )
    assert given.log_prob(torch.tensor([0.1, 0.0])) == -math.inf


def test_gradients_reach_the_distribution_and_the_observed_values():
    loc, x = torch.zeros(2, requires_grad=True), torch.tensor([2.0, torch.nan], requires_grad=True)
    given = conditional(
        dist.MultivariateNormal(loc, torch.tensor([[1.0, 0.8], [0.8, 1.0]])), x, ~x.isnan()
    )
    given.mean[1].backward()
    torch.testing.assert_close(loc.grad, torch.tensor([-0.8, 1.0]))
    torch.testing.assert_close(x.grad, torch.tensor([0.8, 0.0]))


def test_distributions_without_closed_form_name_the_alternative():
    distribution = dist.Dirichlet(torch.ones(3))
    with pytest.raises(NotImplementedError, match=r"got Dirichlet; register .* or .* pseudo-Gibbs"):
        conditional(distribution, torch.ones(3) / 3, torch.tensor([True, False, False]))


def test_a_registered_distribution_is_used():
    class Uniform(dist.Dirichlet):
        pass

    @conditional.register(Uniform)
    def _(distribution, x, mask):
        """The uniform distribution of three shares.

        Given the first, the second is uniform on what is left.
        """
        left = 1 - x[..., 0]
        second = dist.Uniform(0.0, left).sample()
        return dist.Delta(torch.stack([x[..., 0], second, left - second], -1), event_dim=1)

    x = torch.tensor([0.4, torch.nan, torch.nan])
    draw = conditional(Uniform(torch.ones(3)), x, ~x.isnan()).sample()
    assert draw[0] == x[0] and draw.sum() == 1


def test_missing_entries_marked_as_observed_are_refused():
    with pytest.raises(ValueError, match="expected observed entries of x to be numbers, got NaN"):
        Clamped(
            MissingAware(dist.Normal(torch.zeros(2), 1.0), 1),
            torch.tensor([torch.nan, 0.0]),
            torch.ones(2) > 0,
        )
