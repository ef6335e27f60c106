"""Users' own programs, against conjugate posteriors and evidences."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn
from torch.testing import assert_close
from toys import MARGINAL, Local, N

from probgen.core.program import Program
from probgen.core.weights import log_weights
from probgen.scoring import log_likelihood


def conjugate(y):
    """mu ~ N(0, 10), y ~ N(mu, s) with a parameter s."""
    mu = pyro.sample("mu", N(0.0, 10.0))
    scale = pyro.param("noise.scale", torch.ones(()), constraint=dist.constraints.positive)
    with pyro.plate("data", len(y)):
        pyro.sample("y", N(mu, scale), obs=y)


def mean_field(y):
    pyro.sample(
        "mu",
        N(
            pyro.param("loc", torch.zeros(())),
            pyro.param("sd", lambda: torch.ones(()), constraint=dist.constraints.positive),
        ),
    )


def posterior_of_conjugate(y, scale=1.0):
    """Mean and standard deviation of mu given y, and log p(y)."""
    variance = 1 / (1 / 100 + len(y) / scale**2)
    covariance = scale**2 * torch.eye(len(y)) + 100.0
    return (
        variance * y.sum() / scale**2,
        variance**0.5,
        dist.MultivariateNormal(torch.zeros(len(y)), covariance).log_prob(y),
    )


def set_free(program, mean, sd):
    with torch.no_grad():
        program.statements["loc"].fill_(mean)
        program.statements["sd"].fill_(math.log(sd))


def set_factorized(program, mean, sd):
    program._guide.locs.mu, program._guide.scales.mu = mean, torch.tensor(sd)


def set_joint(program, mean, sd):
    program._guide.loc, program._guide.scale = nn.Parameter(mean[None]), torch.tensor([sd])


@pytest.mark.parametrize(
    ("guide", "set_posterior"),
    [
        (lambda: mean_field, set_free),
        (lambda: AutoNormal(conjugate), set_factorized),
        (lambda: AutoMultivariateNormal(conjugate), set_joint),
    ],
)
def test_programs_of_plain_functions_own_their_parameters(guide, set_posterior):
    """With the posterior for a guide, every draw of the ELBO is the log evidence."""
    y, program = 3.0 + torch.randn(12), Program(conjugate, guide())
    loss = Trace_ELBO()(program.model, program.guide)
    loss(y).backward()
    assert all(
        parameter.grad.abs().sum() > 0
        for name, parameter in program.named_parameters()
        if "tril" not in name
    )
    mean, sd, evidence = posterior_of_conjugate(y)
    set_posterior(program, mean, sd)
    assert_close(-loss(y), evidence, atol=1e-3, rtol=0)
    with torch.no_grad():
        program.statements["noise/scale"].fill_(math.log(2.0))
    mean, sd, evidence = posterior_of_conjugate(y, 2.0)
    set_posterior(program, mean, sd)
    assert_close(-loss(y), evidence, atol=1e-3, rtol=0)
    assert not pyro.get_param_store().keys()


def test_programs_do_not_share_parameters():
    first, second = Program(conjugate, mean_field), Program(conjugate, mean_field)
    y = torch.ones(3)
    for program in (first, second):
        program.model(y), program.guide(y)
    with torch.no_grad():
        first.statements["loc"].fill_(5.0)
    assert second.statements["loc"].item() == 0.0


def test_parameters_of_statements_load_into_a_fresh_program():
    y, first, second = torch.ones(3), Program(conjugate, mean_field), Program(conjugate, mean_field)
    for program in (first, second):
        program.model(y), program.guide(y)
    with torch.no_grad():
        first.statements["sd"].fill_(0.7)
    second.load_state_dict(first.state_dict())
    site = poutine.trace(second.guide).get_trace(y).nodes["mu"]["fn"]
    assert site.scale.item() == pytest.approx(math.exp(0.7))


def test_a_statement_without_initial_value_is_refused():
    program = Program(lambda y: pyro.param("a"))
    with pytest.raises(ValueError, match="no initial value"):
        program.model(torch.zeros(1))


class Regression(PyroModule):
    """A user's Bayesian regression: weights with a prior, a constrained parameter."""

    def __init__(self):
        super().__init__()
        self.weight = PyroSample(N(torch.zeros(2), 3.0).to_event(1))
        self.noise = PyroParam(torch.tensor(1.0), constraint=dist.constraints.positive)

    def forward(self, covariates, y):
        loc = covariates @ self.weight
        with pyro.plate("data", len(y)):
            return pyro.sample("y", N(loc, self.noise), obs=y)


def test_pyro_modules_work_unchanged():
    """With the posterior for a guide, every draw of the ELBO is the log evidence."""
    covariates, y, noise = torch.randn(12, 2), torch.randn(12), 0.5
    program = Program(model := Regression(), AutoMultivariateNormal(model))
    model.noise = torch.tensor(noise)
    loss = Trace_ELBO()(program.model, program.guide)
    loss(covariates, y)
    precision = covariates.T @ covariates / noise**2 + torch.eye(2) / 9
    tril = torch.linalg.cholesky(precision.inverse())
    program._guide.loc = nn.Parameter(torch.linalg.solve(precision, covariates.T @ y / noise**2))
    program._guide.scale, program._guide.scale_tril = (
        tril.diagonal(),
        tril / tril.diagonal()[:, None],
    )
    covariance = noise**2 * torch.eye(12) + 9 * covariates @ covariates.T
    evidence = dist.MultivariateNormal(torch.zeros(12), covariance).log_prob(y)
    assert_close(-loss(covariates, y), evidence, atol=1e-3, rtol=0)
    assert {"_model.noise_unconstrained", "_guide.loc"} <= {
        name for name, _ in program.named_parameters()
    }
    assert not pyro.get_param_store().keys()


def test_pyro_module_statements_keep_the_parameters_of_the_module():
    """The gradient of the loss vanishes at the least-squares solution.

    And the score is its likelihood.
    """
    network = nn.Linear(2, 1)

    def model(covariates, y):
        regression = pyro.module("network", network)
        with pyro.plate("data", len(y)):
            pyro.sample("y", N(regression(covariates).squeeze(-1), 1.0), obs=y)

    covariates, y = torch.randn(50, 2), torch.randn(50)
    program = Program(model)
    loss = Trace_ELBO()(program.model, program.guide)
    loss(covariates, y).backward()
    assert network.weight.grad.abs().sum() > 0.1
    assert {id(parameter) for parameter in program.parameters()} == {
        id(parameter) for parameter in network.parameters()
    }
    design = torch.cat([covariates, torch.ones(50, 1)], 1)
    solution = torch.linalg.lstsq(design, y[:, None]).solution.squeeze()
    with torch.no_grad():
        network.weight.copy_(solution[None, :2]), network.bias.copy_(solution[2:])
    network.zero_grad()
    loss(covariates, y).backward()
    assert_close(network.weight.grad, torch.zeros(1, 2), atol=1e-4, rtol=0)
    score = log_likelihood(program, covariates, y)
    assert score.kind == "exact"
    assert_close(score.value, N(design @ solution, 1.0).log_prob(y))
    assert not pyro.get_param_store().keys()


@pytest.mark.parametrize("vectorized", [False, True])
def test_what_an_auto_guide_draws_in_unconstrained_space_counts_with_its_density(vectorized):
    """AutoNormal set to the posterior of the rows' latents: every weight is the marginal."""
    gen, x = Local(), torch.tensor([0.5, -1.0, 1.5])
    program = Program(gen.model, guide := AutoNormal(gen.model), vectorized=vectorized)
    program.guide(x)
    guide.locs.z, guide.scales.z = x / 2, torch.full((3,), 0.5**0.5)
    weights, kind = log_weights(program, x, particles=4)
    assert kind == "unbiased"
    assert_close(weights, MARGINAL.log_prob(x).expand(4, 3))


def test_programs_take_any_arguments():
    def model(a, *, b, n):
        with pyro.plate("data", n):
            return pyro.sample("y", N(a, 1.0), obs=b)

    program = Program(model)
    assert_close(program.model(0.0, b=torch.ones(3), n=3), torch.ones(3))
    assert program.guide(0.0, b=None, n=3) is None


def test_the_plate_may_have_any_name():
    def model(y):
        with pyro.plate("people", len(y)):
            pyro.sample("y", N(0.0, 1.0), obs=y)

    y = torch.randn(4)
    assert_close(log_likelihood(Program(model, plate="people"), y).value, N(0.0, 1.0).log_prob(y))
    assert_close(log_likelihood(Program(model), y).value, N(0.0, 1.0).log_prob(y))  # it is found
    with pytest.raises(ValueError, match=r"plate named 'rows' .* \(its plates are people\)"):
        log_likelihood(Program(model, plate="rows"), y)


def test_scores_leave_running_programs_alone():
    """A score taken inside a program adds no site to it and meets none of its handlers."""

    def program():
        with pyro.plate("data", 2), poutine.scale(scale=3.0):
            pyro.sample("y", N(0.0, 1.0))
            values.append(log_likelihood(Local(0.0, 0.5**0.5), torch.ones(5)).value)

    values = []
    trace = poutine.trace(program).get_trace()
    assert [
        name for name, site in trace.nodes.items() if site["type"] == "sample" and name != "data"
    ] == ["y"]
    assert_close(values[0], MARGINAL.log_prob(torch.ones(5)))
