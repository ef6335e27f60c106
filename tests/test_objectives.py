"""Importance-weighted bounds and wake-sleep against closed forms and enumeration.

Gradients included.

Rows are replicates: every row has the same x and its own copy of the parameters, so that one call
gives as many independent gradients as there are rows.
"""

import math
from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from probgen.core.module import LatentVariableModel, data_plate
from probgen.core.program import Program
from probgen.objectives import ELBO, IWAE, DReG, EnumeratedELBO, Renyi, WakeSleep

ROWS = 4000


class Rows(LatentVariableModel):
    """A model whose parameters are tables with one entry per row."""

    def __init__(self, rows=ROWS, infer=None, **values):
        super().__init__()
        self.infer = infer or {}
        for name, value in values.items():
            setattr(
                self,
                name,
                nn.Parameter(
                    torch.as_tensor(value).expand(rows, *torch.as_tensor(value).shape).clone()
                ),
            )


class Gaussian(Rows):
    """z ~ N(0, 1), x | z ~ N(w z, 1), q(z | x) = N(a, s): log p(x) = log N(x; 0, 1 + w^2)."""

    def __init__(self, rows=ROWS):
        super().__init__(rows, w=1.2, a=0.1, log_s=-0.2)

    def model(self, x=None, context=None):
        with data_plate(x, context):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(self.w * z, 1.0), obs=x)

    def guide(self, x=None, context=None):
        with data_plate(x, context):
            pyro.sample("z", dist.Normal(self.a, self.log_s.exp()))

    def evidence(self, x):
        return dist.Normal(0.0, (1 + self.w[0] ** 2).sqrt()).log_prob(x).detach()


class Layers(Rows):
    """Two layers: z1 ~ N(0, 1), z2 | z1 ~ N(w z1, 1), x | z2 ~ N(z2, 1).

    The guide draws z1, then z2 given z1.
    """

    def __init__(self, rows=ROWS):
        super().__init__(rows, w=0.7, a=0.2, b=0.5, log_s=-0.3, c=0.1)

    def model(self, x=None, context=None):
        with data_plate(x, context):
            z1 = pyro.sample("z1", dist.Normal(0.0, 1.0))
            z2 = pyro.sample("z2", dist.Normal(self.w * z1, 1.0))
            return pyro.sample("x", dist.Normal(z2, 1.0), obs=x)

    def guide(self, x=None, context=None):
        with data_plate(x, context):
            z1 = pyro.sample("z1", dist.Normal(self.a, self.log_s.exp()))
            pyro.sample(
                "z2", dist.Normal(self.b * z1 + self.c * x, (self.log_s + self.c * z1).exp())
            )


class Binary(Rows):
    """c ~ Bernoulli(p), x | c ~ Bernoulli(r_c), q(c = 1 | x) = sigmoid(logits[x]).

    Everything can be listed.
    """

    def __init__(self, rows=ROWS, infer=None):
        super().__init__(rows, infer, p=0.4, r=[-1.0, 1.5], logits=[-0.5, 0.8])

    def model(self, x=None, context=None):
        with data_plate(x, context):
            c = pyro.sample("c", dist.Bernoulli(logits=self.p), infer=self.infer)
            return pyro.sample("x", dist.Bernoulli(logits=self.likely(c)), obs=x)

    def likely(self, c):
        return torch.where(c > 0, self.r[:, 1], self.r[:, 0])

    def guide(self, x=None, context=None):
        with data_plate(x, context):
            logits = torch.where(x > 0, self.logits[:, 1], self.logits[:, 0])
            pyro.sample("c", dist.Bernoulli(logits=logits), infer=self.infer)

    def tables(self, x):
        """log p(x, c) and log q(c | x) of the first row, for c = 0 and 1."""
        c = torch.tensor([0.0, 1.0])
        log_p = dist.Bernoulli(logits=self.p[0]).log_prob(c) + dist.Bernoulli(
            logits=self.r[0]
        ).log_prob(x)
        return log_p, dist.Bernoulli(logits=self.logits[0, int(x)]).log_prob(c)


def per_row(objective, gen, x):
    """Loss per row, and for each parameter the gradients of all rows."""
    loss = objective(gen.model, gen.guide)(x.expand(ROWS))
    return loss.detach() / ROWS, torch.autograd.grad(loss, list(gen.parameters()))


def assert_mean(samples, expected, sigmas=4.5):
    """Independent samples whose mean is the expected value, within its standard error."""
    stderr = samples.std(0) / len(samples) ** 0.5
    assert ((samples.mean(0) - expected).abs() <= sigmas * stderr + 1e-6).all(), (
        samples.mean(0),
        expected,
        stderr,
    )


def test_bound_rises_from_the_elbo_to_the_evidence():
    gen, x = Gaussian(), torch.tensor(1.5)
    w, a, s = 1.2, 0.1, math.exp(-0.2)
    elbo = (
        -0.5 * ((1.5 - w * a) ** 2 + w**2 * s**2 + math.log(2 * math.pi))
        - 0.5 * (a**2 + s**2 - 1)
        - 0.2
    )
    bounds = [-per_row(IWAE(particles), gen, x)[0].item() for particles in (1, 4, 100)]
    assert bounds[0] == pytest.approx(elbo, abs=0.05)
    assert bounds[0] < bounds[1] - 0.05 < bounds[2] - 0.05
    assert bounds[2] == pytest.approx(gen.evidence(x).item(), abs=0.01)


@pytest.mark.parametrize(
    "objective", [IWAE(3), Renyi(0.5, 3), Renyi(1.0, 3), Renyi(2.0, 3), DReG(3), WakeSleep(3)]
)
@pytest.mark.parametrize("vectorized", [True, False])
def test_with_the_posterior_as_guide_every_bound_is_the_evidence(objective, vectorized):
    gen, x = Gaussian(rows=5), torch.tensor([0.5, -1.0, 0.0, 2.0, 1.0])
    objective.vectorized = vectorized
    precision = 1 + 1.2**2
    gen.a.data, gen.log_s.data = 1.2 * x / precision, torch.full((5,), -0.5 * math.log(precision))
    torch.testing.assert_close(objective(gen.model, gen.guide)(x), -gen.evidence(x).sum())


@pytest.mark.parametrize("make", [Gaussian, Layers])
def test_doubly_reparameterized_gradients_have_the_same_mean_and_less_noise(make):
    gen, x, draws = make(), torch.tensor(1.5), 8
    value, ours = per_row(DReG(draws), gen, x)
    other, theirs = per_row(IWAE(draws), gen, x)
    torch.testing.assert_close(value, other, rtol=0, atol=0.02)
    for name, a, b in zip(dict(gen.named_parameters()), ours, theirs, strict=True):
        assert_mean(a - b, 0.0)
        if name != "w":
            assert a.var() < 0.6 * b.var()


def test_doubly_reparameterized_gradients_do_not_depend_on_how_particles_run():
    def grads(vectorized):
        gen = Layers(rows=1)
        torch.manual_seed(0)
        loss = DReG(1, vectorized=vectorized)(gen.model, gen.guide)(torch.tensor([1.5]))
        return torch.autograd.grad(loss, list(gen.parameters()))

    torch.testing.assert_close(grads(True), grads(False))


def test_one_doubly_reparameterized_draw_has_the_gradient_of_the_path_alone():
    gen = Gaussian(rows=1)
    torch.manual_seed(0)
    noise, x = torch.randn(1), torch.tensor([1.5])
    z = gen.a + gen.log_s.exp() * noise
    log_q = dist.Normal(gen.a.detach(), gen.log_s.exp().detach()).log_prob(z)
    by_hand = log_q - dist.Normal(0.0, 1.0).log_prob(z) - dist.Normal(gen.w * z, 1.0).log_prob(x)
    torch.manual_seed(0)
    loss = DReG(1)(gen.model, gen.guide)(x)
    torch.testing.assert_close(loss, by_hand.sum())
    ours, theirs = (
        torch.autograd.grad(value.sum(), list(gen.parameters())) for value in (loss, by_hand)
    )
    torch.testing.assert_close(ours, theirs)


def test_doubly_reparameterized_bound_can_be_evaluated_without_gradients():
    gen, x = Gaussian(rows=3), torch.ones(3)
    with torch.no_grad():
        torch.manual_seed(0)
        value = DReG(4)(gen.model, gen.guide)(x)
        torch.manual_seed(0)
        torch.testing.assert_close(value, IWAE(4)(gen.model, gen.guide)(x))


def test_renyi_runs_from_the_elbo_to_the_importance_weighted_bound():
    gen, x = Gaussian(rows=50), torch.linspace(-2, 2, 50)

    def loss(objective):
        torch.manual_seed(0)
        return objective(gen.model, gen.guide)(x).detach()

    with torch.no_grad():
        torch.manual_seed(0)
        z = gen.a + gen.log_s.exp() * torch.randn(4, 50)
        log_w = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(gen.w * z, 1.0).log_prob(x)
        log_w = log_w - dist.Normal(gen.a, gen.log_s.exp()).log_prob(z)
        for alpha in (-1.0, 0.5, 2.0):
            power = 1 - alpha
            torch.testing.assert_close(
                loss(Renyi(alpha, 4)), -(log_w * power).exp().mean(0).log().sum() / power
            )
        torch.testing.assert_close(loss(Renyi(0.0, 4)), loss(IWAE(4)))
        torch.testing.assert_close(loss(Renyi(1.0, 4)), -log_w.mean(0).sum())
        torch.testing.assert_close(loss(Renyi(1 - 1e-3, 4)), loss(Renyi(1.0, 4)), rtol=1e-3, atol=0)


def exact_gradients(gen, x, particles, loss_of_draws):
    """Gradient of sum over all draws c_1..c_K of loss_of_draws(log p, log q, probability).

    At the first row.
    """
    log_p, log_q = gen.tables(x)
    total = 0.0
    for draws in product([0, 1], repeat=particles):
        total = total + loss_of_draws(
            log_p[list(draws)], log_q[list(draws)], log_q[list(draws)].sum().exp()
        )
    return [
        grad[0]
        for grad in torch.autograd.grad(total, list(gen.parameters()), materialize_grads=True)
    ]


def renyi_of_draws(alpha):
    def loss(log_p, log_q, probability):
        log_w = log_p - log_q
        if alpha == 1:
            return -probability * log_w.mean()
        power = 1 - alpha
        return -probability * ((power * log_w).logsumexp(0) - math.log(len(log_w))) / power

    return loss


@pytest.mark.parametrize(
    ("objective", "alpha"), [(IWAE(2), 0.0), (IWAE(3), 0.0), (Renyi(0.5, 3), 0.5), (Renyi(1, 2), 1)]
)
def test_discrete_guides_have_the_exact_gradients_on_average(objective, alpha):
    gen, x = Binary(), torch.tensor(1.0)
    exact = exact_gradients(gen, x, objective.particles, renyi_of_draws(alpha))
    for ours, expected in zip(per_row(objective, gen, x)[1], exact, strict=True):
        assert_mean(ours, expected)


def wake_sleep_of_draws(sleep):
    def loss(log_p, log_q, probability):
        share, weight = (log_p - log_q).detach().softmax(0), probability.detach()
        return -weight * (share * (log_p + (1 - sleep) * log_q)).sum()

    return loss


@pytest.mark.parametrize("sleep", [0.0, 0.3, 1.0])
def test_wake_sleep_gradients_are_the_exact_ones_on_average(sleep):
    gen, x = Binary(), torch.tensor(1.0)
    exact = exact_gradients(gen, x, 3, wake_sleep_of_draws(sleep))
    for dreamt in (torch.tensor(0.0), torch.tensor(1.0)):
        log_p, log_q = gen.tables(dreamt)
        dreamed = torch.autograd.grad(-sleep * (log_p.exp().detach() * log_q).sum(), gen.logits)[0][
            0
        ]
        exact[-1] = exact[-1] + dreamed
    for ours, expected in zip(per_row(WakeSleep(3, sleep), gen, x)[1], exact, strict=True):
        assert_mean(ours, expected)


def test_dreams_are_told_in_the_place_of_the_observed_argument():
    gen, seen = Binary(rows=200), []

    def guide(offset, x):
        seen.append((offset, x))
        gen.guide(x)

    offset, x = torch.tensor(7.0), torch.full((200,), 1.0)
    WakeSleep(2, sleep=1.0)(lambda offset, x: gen.model(x), guide)(offset, x)
    assert seen[0][1] is x
    assert seen[1][0] is offset
    assert set(seen[1][1].tolist()) == {0.0, 1.0}
    with pytest.raises(ValueError, match="hand an argument to"):
        WakeSleep(2, sleep=1.0)(lambda x: gen.model(x + 0), gen.guide)(x)


def test_a_bound_is_averaged_in_log_space():
    class Bound(dist.Normal):
        density_kind = "bound"

    gen, x = Gaussian(rows=20), torch.linspace(-1, 1, 20)

    def model(x):
        with data_plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", Bound(gen.w * z, 1.0), obs=x)

    def loss(objective, model):
        torch.manual_seed(0)
        value = objective(model, gen.guide)(x)
        return [value, *torch.autograd.grad(value, [gen.w])]

    for objective in (IWAE(5), Renyi(0.5, 5), DReG(5)):
        torch.testing.assert_close(loss(objective, model), loss(Renyi(1.0, 5), gen.model))
    with pytest.raises(ValueError, match="exact or unbiased at model site 'x', got bound"):
        loss(WakeSleep(5), model)


def shared(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with data_plate(x):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def shared_guide(x):
    pyro.sample("mu", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize("objective", [IWAE(2), Renyi(0.5, 2), DReG(2), WakeSleep(2)])
def test_latents_shared_by_rows_are_refused(objective):
    with pytest.raises(ValueError, match="'mu' outside of it"):
        objective(shared, shared_guide)(torch.zeros(3))


def test_draws_without_gradients_are_refused_where_they_cannot_work():
    gen, x = Binary(rows=3), torch.ones(3)
    with pytest.raises(ValueError, match=r"DReG: expected reparameterized draws .* 'c'"):
        DReG(4)(gen.model, gen.guide)(x)
    with pytest.raises(ValueError, match="at least 2 particles, got 'c'"):
        IWAE(1)(gen.model, gen.guide)(x)


@pytest.mark.parametrize("objective", [IWAE(3), DReG(3), WakeSleep(3)])
def test_helper_variables_of_the_guide_and_factors_of_the_model_are_weighed(objective):
    """AutoNormal draws a helper variable for each latent.

    With the posterior in it every weight is the evidence.
    """
    objective.vectorized, x = False, torch.tensor([0.5, -1.0, 2.0])

    def model(x):
        with data_plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("x", dist.Normal(z, 1.0).log_prob(x))

    program = Program(model, AutoNormal(model))
    program.guide(x)
    values = dict(program.named_parameters())
    values["_guide.locs.z_unconstrained"].data = x / 2
    values["_guide.scales.z_unconstrained"].data = torch.full((3,), math.log(math.expm1(0.5**0.5)))
    loss = objective(program.model, program.guide)(x)
    torch.testing.assert_close(loss, -dist.Normal(0.0, 2**0.5).log_prob(x).sum())


PAIRS = [
    (ELBO(), Gaussian),
    (ELBO(particles=3, free_bits=0.1), Gaussian),
    (ELBO(particles=3), Binary),
    (EnumeratedELBO(), lambda rows: Binary(rows, infer={"enumerate": "parallel"})),
    (IWAE(3), Gaussian),
    (IWAE(3), Binary),
    (Renyi(0.5, 3), Layers),
    (DReG(3), Layers),
    (WakeSleep(3, sleep=0.5), Binary),
]


@pytest.mark.table(quick=1)
@pytest.mark.parametrize(
    ("objective", "make"), PAIRS, ids=lambda part: getattr(part, "__name__", type(part).__name__)
)
def test_losses_and_their_gradients_are_one_graph(objective, make):
    """Recorded on one batch and replayed on another, a loss reads no value while it is built."""
    gen = make(4)
    loss, names, values = (
        objective(gen.model, gen.guide),
        *zip(*gen.named_parameters(), strict=True),
    )
    loss.add_module("gen", gen)
    names = [f"gen.{name}" for name in names]

    def gradients(x, *values):
        leaves = [value.detach().requires_grad_() for value in values]
        total = torch.func.functional_call(loss, dict(zip(names, leaves, strict=True)), (x,))
        return total.detach(), *torch.autograd.grad(total, leaves, materialize_grads=True)

    with pyro.validation_enabled(False):
        graph = make_fx(gradients)(torch.tensor([0.0, 1.0, 1.0, 0.0]), *values)
        x = torch.tensor([1.0, 0.0, 1.0, 1.0])
        torch.manual_seed(0)
        replayed = graph(x, *values)
        torch.manual_seed(0)
        torch.testing.assert_close(replayed, gradients(x, *values))


def test_an_objective_is_a_module_of_its_loss():
    elbo = ELBO(beta=lambda step: step)
    loss = elbo(shared, shared_guide)
    loss.eval()
    assert not elbo.training
    assert "elbo.step" in loss.state_dict()
