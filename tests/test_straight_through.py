"""Discrete draws that pass gradients on: values against the mass, gradients against the definition."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

import probgen as pg
from probgen.distributions import straight_through

LOGITS = torch.tensor([[0.3, -1.0, 0.8], [1.5, 0.0, -0.5]])
CASES = {
    "one-hot": dist.OneHotCategorical(logits=LOGITS),
    "category": dist.Categorical(logits=LOGITS),
    "Bernoulli": dist.Bernoulli(logits=LOGITS),
    "independent": dist.Bernoulli(logits=LOGITS).to_event(1),
}


@pytest.mark.parametrize("temperature", [None, 0.5])
@pytest.mark.parametrize("name", CASES)
def test_draws_are_those_of_the_discrete_distribution(name, temperature):
    torch.manual_seed(0)
    plain = CASES[name]
    made = straight_through(plain, temperature=temperature)
    drawn = made.expand((5, 2) if name != "Bernoulli" else (5, 2, 3)).rsample((4000,))
    assert drawn.unique().tolist() == [0.0, 1.0]
    one_hot = dist.OneHotCategorical(logits=LOGITS) if name == "category" else plain
    assert_close(drawn.mean((0, 1)), one_hot.mean, atol=0.015, rtol=0.0)
    value = one_hot.sample()
    assert_close(made.log_prob(value), one_hot.log_prob(value))


@pytest.mark.parametrize("name", ["one-hot", "Bernoulli"])
def test_the_gradient_is_that_of_the_mean(name):
    logits = LOGITS.clone().requires_grad_()
    made = straight_through(type(CASES[name])(logits=logits))
    weight = torch.tensor([1.0, -2.0, 0.5])
    torch.manual_seed(0)
    passed = torch.autograd.grad((made.rsample() * weight).sum(), logits, retain_graph=True)
    mean = torch.autograd.grad((made.probs * weight).sum(), logits)
    assert passed[0].abs().max() > 0.1
    assert_close(passed, mean)


def test_a_temperature_takes_the_gradient_of_the_gumbel_softmax():
    logits = LOGITS.clone().requires_grad_()
    weight = torch.tensor([1.0, -2.0, 0.5])
    torch.manual_seed(0)
    made = straight_through(dist.OneHotCategorical(logits=logits), temperature=0.7)
    drawn = made.rsample()
    passed = torch.autograd.grad((drawn * weight).sum(), logits)
    torch.manual_seed(0)
    noise = torch.distributions.Gumbel(torch.zeros_like(logits), 1.0).sample()
    relaxed = ((logits.log_softmax(-1) + noise) / 0.7).softmax(-1)
    assert_close(drawn, torch.nn.functional.one_hot(relaxed.argmax(-1), 3).float())
    assert_close(passed, torch.autograd.grad((relaxed * weight).sum(), logits))


def test_an_elbo_with_such_a_site_has_the_right_value():
    x = torch.tensor([0.5, -1.0])
    means = torch.tensor([-1.0, 0.0, 2.0])
    prior = torch.tensor([0.2, 0.3, 0.5])

    def model(x):
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.OneHotCategorical(prior))
            pyro.sample("x", dist.Normal((z * means).sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 2):
            pyro.sample("z", straight_through(dist.OneHotCategorical(logits=LOGITS)))

    torch.manual_seed(0)
    loss = pg.ELBO(particles=20000)(model, guide)(x)
    q = LOGITS.log_softmax(-1)
    joint = prior.log() + dist.Normal(means, 1.0).log_prob(x[:, None])
    assert_close(-loss, (q.exp() * (joint - q)).sum(), atol=0.03, rtol=0.0)


@pytest.mark.parametrize("name", CASES)
def test_it_says_that_its_gradient_is_biased(name):
    made = straight_through(CASES[name])
    assert getattr(made, "base_dist", made).biased_gradient


def test_others_are_refused():
    with pytest.raises(TypeError, match=r"expected Bernoulli, .* got Normal; continuous"):
        straight_through(dist.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="no temperature for a point mass"):
        straight_through(dist.Delta(torch.zeros(2)), temperature=1.0)
