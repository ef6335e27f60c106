"""Modules and marginals against closed forms."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.testing import assert_close
from toys import MARGINAL, Distribution, Global, Head, Local, N, Stated

from probgen.core.kinds import density_kind
from probgen.core.marginal import Marginal
from probgen.core.module import Fixed, Independent, LatentVariableModel, data_plate
from probgen.core.program import Program
from probgen.core.weights import log_weights


@pytest.mark.parametrize("scale", [1.0, torch.tensor([1.0, 2.0, 3.0])])
def test_fixed_has_the_batch_of_its_context(scale):
    gen = Fixed(dist.Normal, loc=torch.zeros(3), scale=scale)
    assert (gen().batch_shape, gen().event_shape) == ((), (3,))
    assert (gen(torch.zeros(5, 4, 7)).batch_shape, gen(torch.zeros(5, 4, 7)).event_shape) == (
        (5, 4),
        (3,),
    )
    assert_close(
        gen(torch.zeros(5, 7)).log_prob(x := torch.randn(5, 3)), N(0.0, scale).log_prob(x).sum(-1)
    )


def test_fixed_counts_event_dims_that_the_family_has_already():
    gen = Fixed(dist.Dirichlet, concentration=torch.ones(4, 3), event_ndim=2)
    assert (gen().batch_shape, gen().event_shape) == ((), (4, 3))
    assert Fixed(dist.Normal, event_ndim=0, loc=0.0, scale=1.0)(torch.zeros(5, 2)).batch_shape == (
        5,
    )


def test_fixed_tensors_are_buffers():
    gen = Fixed(dist.Normal, loc=torch.zeros(3), scale=1.0)
    assert gen.double()().sample().dtype == torch.float64
    assert not list(gen.parameters())
    assert set(gen.state_dict()) == {"loc", "scale"}


def test_independent_multiplies_along_the_steps():
    head = Head()
    gen = Independent(head)
    x, context = torch.randn(5, 4, 3), torch.randn(5, 4, 2)
    distribution = gen(context)
    assert (distribution.batch_shape, distribution.event_shape) == ((5,), (4, 3))
    assert_close(distribution.log_prob(x), head(context).log_prob(x).sum(-1))
    assert Independent(head, 2)(context).event_shape == (5, 4, 3)
    assert gen.context_ndim == 2


def test_a_distribution_module_draws_a_row_for_each_row_of_context():
    gen = Head()
    assert gen.model(context=torch.zeros(5, 2)).shape == (5, 3)
    assert Stated(Distribution()).model().shape == (1, 2)
    assert gen.guide() is None


def test_marginal_samples_and_scores_the_same_distribution():
    distribution = Local()()
    assert (distribution.batch_shape, distribution.event_shape, density_kind(distribution)) == (
        (),
        (),
        "unbiased",
    )
    draws = distribution.sample((20_000,))
    assert draws.shape == (20_000,)
    assert draws.mean().item() == pytest.approx(0.0, abs=0.05)
    assert draws.var().item() == pytest.approx(2.0, abs=0.08)
    assert_close(
        Marginal(Local(), particles=20_000).log_prob(torch.ones(3)),
        MARGINAL.log_prob(torch.ones(3)),
        atol=0.03,
        rtol=0,
    )


@pytest.mark.slow
@pytest.mark.parametrize("vectorized", [False, True])
def test_marginal_draws_the_globals_from_the_guide(vectorized):
    gen = Global()
    gen.vectorized = vectorized
    draws = gen().sample((2000,))
    assert draws.shape == (2000,)
    assert draws.mean().item() == pytest.approx(2.0, abs=0.12)
    assert draws.var().item() == pytest.approx(1.25, abs=0.15)
    assert draws[:1000].mean().item() != draws[1000:].mean().item()


def test_marginal_of_a_program_that_cannot_be_vectorized_runs_it_for_each_draw():
    """This program looks at the leftmost dim of a global.

    So that draws to its left would be mixed up.
    """

    def model(x=None, context=None):
        mu = pyro.sample("mu", N(torch.zeros(2), 1.0).to_event(1))
        with data_plate(x, context):
            return pyro.sample("x", N(mu[0] + 10.0, 0.1), obs=x)

    def guide(x=None, context=None):
        pyro.sample("mu", N(torch.zeros(2), 1.0).to_event(1))

    draws = Program(model, guide)().sample((500,))
    assert draws.shape == (500,)
    assert draws.mean().item() == pytest.approx(10.0, abs=0.25)
    assert draws.std().item() == pytest.approx(1.0, abs=0.15)


class Conditional(LatentVariableModel):
    """z ~ N(c1, 1), x | z ~ N(z + c2, 1) for a context (c1, c2): marginally N(c1 + c2, 2)."""

    def __init__(self, prior=None):
        super().__init__()
        self.prior = prior

    def model(self, x=None, context=None):
        with data_plate(x, context):
            z = pyro.sample("z", N(context[..., 0], 1.0))
            return pyro.sample("x", N(z + context[..., 1], 1.0).expand_by(()), obs=x)

    def guide(self, x=None, context=None):
        if x is not None:
            with data_plate(x, context):
                pyro.sample("z", N((context[..., 0] + x - context[..., 1]) / 2, 0.5**0.5))


def test_marginal_has_the_batch_of_its_context():
    context = torch.randn(4, 5, 2)
    distribution, truth = Conditional()(context), N(context.sum(-1), 2**0.5)
    assert distribution.batch_shape == (4, 5)
    draws = distribution.sample((4000,))
    assert draws.shape == (4000, 4, 5)
    assert_close(draws.mean(0), context.sum(-1), atol=0.13, rtol=0)
    assert_close(distribution.log_prob(x := torch.randn(4, 5)), truth.log_prob(x))
    assert_close(distribution.log_prob(x := torch.randn(3, 4, 5)), truth.log_prob(x))
    assert_close(distribution.expand((3, 4, 5)).log_prob(x), truth.log_prob(x))
    assert distribution.expand((3, 4, 5)).sample((2,)).shape == (2, 3, 4, 5)


class Nest(LatentVariableModel):
    """z ~ any module, x | z ~ N(z, 1)."""

    def __init__(self, prior, shrink, scale):
        super().__init__()
        self.prior, self.shrink, self.scale = prior, shrink, scale

    def model(self, x=None, context=None):
        with data_plate(x, context):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", N(z, 1.0), obs=x)

    def guide(self, x=None, context=None):
        if x is not None:
            with data_plate(x, context):
                pyro.sample("z", N(self.shrink * x, self.scale))


def test_a_latent_variable_model_is_the_prior_of_another_although_their_plates_share_a_name():
    """N(0, 2) as the prior gives N(0, 3).

    Both guides are posteriors, so that every weight is exact.
    """
    gen, x = Nest(Local(0.0, 0.5**0.5), 2 / 3, (2 / 3) ** 0.5), torch.randn(6)
    weights, kind = log_weights(gen, x, particles=3)
    assert kind == "unbiased"
    assert_close(weights, N(0.0, 3**0.5).log_prob(x).expand(3, 6))
    assert_close(gen().log_prob(x), N(0.0, 3**0.5).log_prob(x))
    assert gen().sample((20_000,)).var().item() == pytest.approx(3.0, abs=0.12)


def test_marginal_is_a_site_of_any_program():
    def program(x=None):
        with pyro.plate("draws", 2, dim=-2), pyro.plate("data", 4, dim=-1):
            return pyro.sample("part", Local(0.0, 0.5**0.5)(), obs=x)

    assert program().shape == (2, 4)
    trace = poutine.trace(program).get_trace(x := torch.randn(2, 4))
    trace.compute_log_prob()
    assert_close(trace.nodes["part"]["log_prob"], MARGINAL.log_prob(x))


def test_gradients_flow_through_a_marginal():
    gen, x = Local(), torch.randn(6)
    (-gen().log_prob(x).sum()).backward()
    assert gen.loc.grad.abs() > 0
