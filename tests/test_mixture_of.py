"""Mixtures of families: a Gaussian mixture as the truth, supports, kinds, experts."""

import itertools
import math

import pyro.distributions as dist
import pytest
import torch

import probgen as pg
from probgen.core.kinds import KINDS, density_kind
from probgen.core.module import DistributionModule, Fixed
from probgen.core.supports import check_support
from probgen.distributions.mixture_of import MixtureOf
from probgen.models.mixture_of import Mixture
from probgen.nn import MLP


def gaussians() -> tuple[Mixture, pg.GaussianMixture]:
    """One distribution as a mixture of two families and as a Gaussian mixture."""
    torch.manual_seed(0)
    means, factors = torch.randn(2, 3), torch.randn(2, 3, 3)
    covariances = factors @ factors.mT + 0.5 * torch.eye(3)
    truth = pg.GaussianMixture(2, 3).assign(torch.tensor([0.25, 0.75]), means, covariances)
    ours = Mixture(
        [
            Fixed(dist.MultivariateNormal, loc=m, covariance_matrix=c)
            for m, c in zip(means, covariances, strict=True)
        ]
    )
    with torch.no_grad():
        ours.weights.value.copy_(torch.tensor([0.25, 0.75]).log())
    return ours, truth


def test_densities_and_responsibilities_are_those_of_a_gaussian_mixture():
    ours, truth = gaussians()
    x = truth().sample((20,))
    torch.testing.assert_close(ours().log_prob(x), truth().log_prob(x))
    torch.testing.assert_close(ours.responsibilities(x), truth.responsibilities(x))
    assert torch.equal(ours.predict(x), truth.predict(x))
    torch.testing.assert_close(ours().mean, truth().mean)
    torch.testing.assert_close(ours().variance, truth().variance)
    assert density_kind(ours()) == "exact"


def test_conditionals_are_those_of_a_gaussian_mixture():
    ours, truth = gaussians()
    x, mask = truth().sample((4,)), torch.tensor([True, False, True])
    given, expected = pg.conditional(ours(), x, mask), pg.conditional(truth(), x, mask)
    torch.testing.assert_close(given.mean, expected.mean)
    torch.testing.assert_close(given.log_prob(x), expected.log_prob(x))
    assert torch.equal(given.sample((3,))[..., 0], x[:, 0].expand(3, 4))


def test_components_count_only_within_their_supports():
    distribution = MixtureOf(
        torch.zeros(3), [dist.Exponential(2.0), dist.Uniform(-1.0, 1.0), dist.Normal(0.0, 1.0)]
    )
    x = torch.linspace(-8, 12, 400_001)
    torch.testing.assert_close(
        torch.trapezoid(distribution.log_prob(x).exp(), x), torch.ones(()), atol=1e-4, rtol=0
    )
    scale = torch.tensor(1.0, requires_grad=True)
    distribution = MixtureOf(torch.zeros(2), [dist.LogNormal(0.0, scale), dist.Normal(0.0, scale)])
    distribution.log_prob(torch.tensor([-1.0, 1.0])).sum().backward()
    assert scale.grad.isfinite()
    counts = MixtureOf(
        torch.zeros(2), [dist.Bernoulli(torch.tensor(0.3)), dist.Poisson(torch.tensor(2.0))]
    )
    torch.testing.assert_close(counts.log_prob(torch.arange(30.0)).exp().sum(), torch.ones(()))


def test_experts_are_chosen_by_the_context():
    torch.manual_seed(1)
    gen = Mixture(
        [pg.heads.Gaussian(MLP(1, [], 2)), pg.heads.StudentT(MLP(1, [], 3))], MLP(1, [4], 2)
    )
    context, x = torch.randn(5, 1), torch.randn(5, 1)
    weights = gen.weights(context).softmax(-1)
    parts = torch.stack([component(context).log_prob(x).exp() for component in gen.components], -1)
    torch.testing.assert_close(gen(context).log_prob(x).exp(), (weights * parts).sum(-1))


def test_kinds_are_the_weakest_and_bounds_are_lost():
    def distribution(kind):
        normal = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        normal.density_kind = kind
        return normal

    kinds = {
        kind: MixtureOf(torch.zeros(2), [distribution("exact"), distribution(kind)]).density_kind
        for kind in KINDS[:4]
    }
    expected = {
        "exact": "exact",
        "unbiased": "unbiased",
        "bound": "approximate",
        "approximate": "approximate",
    }
    assert kinds == expected


def test_masses_do_not_mix_with_densities():
    with pytest.raises(ValueError, match="all masses or all densities"):
        MixtureOf(torch.zeros(2), [dist.Poisson(1.0), dist.Normal(0.0, 1.0)])
    with pytest.raises(ValueError, match="one logit for each component"):
        MixtureOf(torch.zeros(3), [dist.Normal(0.0, 1.0), dist.Normal(0.0, 1.0)])
    with pytest.raises(ValueError, match="one number of event dims"):
        Mixture([])


LINE = {"loc": torch.zeros(3), "scale": torch.ones(3)}
PARTS = {  # what each lies on, as (a point, a log-density)
    "simplex": Fixed(dist.Dirichlet, concentration=torch.tensor([2.0, 1.0, 1.0])),
    "positive": Fixed(dist.Exponential, rate=torch.ones(3)),
    "unit cube": Fixed(dist.Uniform, low=torch.zeros(3), high=torch.ones(3)),
    "all numbers": Fixed(dist.Normal, **LINE),
}
POINTS = {
    "on the simplex": (torch.tensor([0.2, 0.3, 0.5]), {*PARTS}),
    "positive": (torch.tensor([1.0, 2.0, 3.0]), {"positive", "all numbers"}),
    "in the cube": (torch.tensor([0.9, 0.9, 0.9]), {"positive", "unit cube", "all numbers"}),
    "anywhere": (torch.tensor([-1.0, 2.0, 3.0]), {"all numbers"}),
}


@pytest.mark.parametrize("names", list(itertools.permutations(PARTS, 2)), ids=" and ".join)
def test_rows_of_either_component_are_taken_in_any_order(names):
    gen = Mixture([PARTS[name] for name in names])
    for point, inside in POINTS.values():
        densities = [
            PARTS[name]().log_prob(point) if name in inside else torch.tensor(-torch.inf)
            for name in names
        ]
        expected = torch.stack(densities).logsumexp(0) - math.log(2)
        torch.testing.assert_close(gen().log_prob(point), expected)
        if expected.isfinite():
            check_support(gen, point[None])
        else:
            with pytest.raises(ValueError, match=r", or .*, or NaN"):
                check_support(gen, point[None])


def test_supports_that_differ_from_row_to_row_are_left_alone():
    class Bounded(DistributionModule):
        context_size = 1

        def forward(self, context=None):
            return dist.Uniform(context, context + 1.0).to_event(1)

    context = torch.arange(6.0)[:, None]
    check_support(Mixture([Bounded(), Bounded()]), context + 0.5, context)
