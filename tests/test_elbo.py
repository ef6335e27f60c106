"""The evidence lower bound against Pyro's, closed forms.

And exact enumeration of discrete latents.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal
from pyro.infer.reparam import LocScaleReparam
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from probgen.core.module import DistributionModule, LatentVariableModel, data_plate
from probgen.core.program import Program
from probgen.objectives import ELBO, EnumeratedELBO, cyclical, default_objective, linear_warmup

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))


class Gaussians(LatentVariableModel):
    """z ~ N(0, I_2), x | z ~ N(W z, 0.5); one site or one per dim, drawn in either order by the
    guide."""

    def __init__(self, sites=("z",), guide_sites=None):
        super().__init__()
        torch.manual_seed(3)
        self.sites, self.guide_sites = sites, guide_sites or sites
        self.w, self.encode = nn.Parameter(torch.randn(3, 2)), nn.Linear(3, 4)

    def draw(self, sites, loc, scale):
        if sites == ("z",):
            return pyro.sample("z", dist.Normal(loc, scale).to_event(1))
        drawn = {
            name: pyro.sample(name, dist.Normal(loc[..., int(name[1])], scale[..., int(name[1])]))
            for name in sites
        }
        return torch.stack([drawn[name] for name in sorted(drawn)], -1)

    def model(self, x=None, context=None):
        with data_plate(x, context):
            z = self.draw(self.sites, torch.zeros(2), torch.ones(2))
            return pyro.sample("x", dist.Normal(z @ self.w.T, 0.5).to_event(1), obs=x)

    def guide(self, x=None, context=None):
        with data_plate(x, context):
            loc, log_scale = self.encode(x).chunk(2, -1)
            self.draw(self.guide_sites, loc, (log_scale / 4).exp())

    def parts(self, x):
        """-E log p(x | z) by its closed form, and KL(q || p) of every row and dim."""
        loc, log_scale = self.encode(x).chunk(2, -1)
        scale = (log_scale / 4).exp()
        square = (x - loc @ self.w.T).square().sum(-1) + (scale.square() @ self.w.square().T).sum(
            -1
        )
        misfit = 0.5 * square / 0.25 + 1.5 * math.log(2 * math.pi * 0.25)
        return misfit, 0.5 * (loc.square() + scale.square() - 1) - log_scale / 4


def value_and_grads(objective, gen, *batch, seed=0):
    torch.manual_seed(seed)
    parameters = list(gen.parameters())
    loss = objective.differentiable_loss(gen.model, gen.guide, *batch)
    return [
        loss.detach(),
        *torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True),
    ]


def value(objective, gen, *batch):
    torch.manual_seed(0)
    return objective.differentiable_loss(gen.model, gen.guide, *batch).detach()


def assert_same(ours, theirs, **tolerance):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **{"rtol": 1e-4, "atol": 1e-4, **tolerance})


def test_closed_form_equals_pyro_mean_field():
    gen = Gaussians()
    assert_same(value_and_grads(ELBO(), gen, X), value_and_grads(TraceMeanField_ELBO(), gen, X))


def test_draws_in_another_order_are_estimated_like_pyro_does():
    gen = Gaussians(("z0", "z1"), ("z1", "z0"))
    assert_same(value_and_grads(ELBO(), gen, X), value_and_grads(Trace_ELBO(), gen, X))


@pytest.mark.table(quick=3)
@pytest.mark.parametrize("sites", [("z",), ("z0", "z1")])
@pytest.mark.parametrize("vectorized", [True, False])
def test_particles_average_to_the_closed_form(sites, vectorized):
    gen, particles = Gaussians(sites), 4000 if vectorized else 200
    misfit, divergence = gen.parts(X)
    loss = value_and_grads(ELBO(particles=particles, vectorized=vectorized), gen, X)[0]
    torch.testing.assert_close(
        loss, (misfit.sum() + divergence.sum()).detach(), rtol=0.02 if vectorized else 0.1, atol=0
    )


def test_without_latents_it_is_the_log_likelihood():
    class Flat(DistributionModule):
        def forward(self, context=None):
            return dist.Normal(torch.zeros(3), 2.0).to_event(1)

    expected = -torch.distributions.Normal(0.0, 2.0).log_prob(X).sum()
    torch.testing.assert_close(ELBO()(Flat().model, Flat().guide)(X), expected)


HALF = torch.tensor([True, False, True, True, False, True])
HANDLERS = [
    (poutine.scale(scale=0.3), poutine.scale(scale=0.3)),
    (poutine.mask(mask=HALF), poutine.mask(mask=HALF)),
    (poutine.scale(scale=torch.tensor(0.7)), poutine.scale(scale=torch.tensor(0.7))),
    (poutine.scale(scale=1.0), poutine.mask(mask=HALF)),
    (poutine.scale(scale=0.5), poutine.scale(scale=1.0)),
]


@pytest.mark.parametrize("handlers", HANDLERS)
@pytest.mark.parametrize("sites", [(("z",), None), (("z0", "z1"), ("z1", "z0"))])
def test_scales_and_masks_count(sites, handlers):
    """A closed form only where model and guide agree on them.

    Pyro's mean-field ELBO takes the guide's for both.
    """
    gen = Gaussians(*sites)
    pair = Program(handlers[0](gen.model), handlers[1](gen.guide))
    agree = sites[1] is None and handlers in HANDLERS[:2]
    torch.testing.assert_close(
        value(ELBO(), pair, X), value((TraceMeanField_ELBO if agree else Trace_ELBO)(), pair, X)
    )


def test_a_transformed_guide_keeps_its_jacobian():
    """A Delta with a log density has a registered divergence that leaves the density out."""

    def model(x):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Exponential(rate), obs=x)

    program = Program(model, AutoNormal(model))
    program.guide(X[:, 0].abs())
    ours, theirs = (
        value_and_grads(loss, program, X[:, 0].abs()) for loss in (ELBO(), Trace_ELBO())
    )
    assert_same(ours, theirs)


@pytest.mark.parametrize("beta", [0.0, 2.5])
def test_beta_weighs_the_divergence(beta):
    gen = Gaussians()
    divergence = gen.parts(X)[1]
    torch.manual_seed(0)
    run = poutine.trace(gen.guide).get_trace(X)
    drawn = (
        -poutine.trace(poutine.replay(gen.model, trace=run))
        .get_trace(X)
        .log_prob_sum(lambda name, _: name == "x")
    )
    loss = value_and_grads(ELBO(beta=beta), gen, X)[0]
    torch.testing.assert_close(loss, (drawn + beta * divergence.sum()).detach())


def test_warmup_counts_training_calls_and_evaluates_its_limit():
    gen, elbo = Gaussians(), ELBO(beta=linear_warmup(2, start=0.5))
    constant = [value_and_grads(ELBO(beta=beta), gen, X)[0] for beta in (0.5, 0.75, 1.0, 1.0)]
    assert_same([value_and_grads(elbo, gen, X)[0] for _ in range(4)], constant)
    resumed = ELBO(beta=linear_warmup(8, start=0.5))
    resumed.load_state_dict(elbo.state_dict())
    assert_same(
        [value_and_grads(resumed, gen, X)[0], value_and_grads(resumed.eval(), gen, X)[0]],
        constant[1:3],
    )
    assert resumed.step == 5
    assert_same([value_and_grads(ELBO(beta=cyclical(10)).eval(), gen, X)[0]], constant[2:3])


@pytest.mark.parametrize("sites", [("z",), ("z0", "z1")])
def test_free_bits_per_latent_dim(sites):
    gen = Gaussians(sites)
    spent = gen.parts(X)[1].mean(0)
    allowance = spent.mean().item()
    charged = len(X) * spent.clamp(min=allowance).sum()
    gradients = torch.autograd.grad(
        charged, list(gen.parameters()), allow_unused=True, materialize_grads=True
    )
    free, none = (
        value_and_grads(ELBO(free_bits=allowance), gen, X),
        value_and_grads(ELBO(beta=0.0), gen, X),
    )
    assert_same(free, [a + b for a, b in zip(none, [charged.detach(), *gradients], strict=True)])


def test_free_bits_of_a_site_that_does_not_split():
    covariance = torch.tensor([[1.0, 0.3], [0.3, 0.5]])

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(x[:, None].expand(-1, 2), covariance))

    x = X[:, 0]
    kl = 0.5 * (covariance.trace() + 2 * x.square() - 2 - covariance.logdet())
    misfit = value(ELBO(beta=0.0), Program(model, guide), x)
    for allowance in (0.01, 3.0):
        loss = value(ELBO(free_bits=allowance), Program(model, guide), x)
        torch.testing.assert_close(loss, misfit + 6 * kl.mean().clamp(min=2 * allowance))


def test_free_bits_of_shared_latents_follow_their_scale():
    def model(x):
        with poutine.scale(scale=0.1):
            mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.deterministic("total", mu.sum())
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(mu.sum(-1), 1.0), obs=x)

    def guide(x):
        with poutine.scale(scale=0.1):
            mu = pyro.sample("mu", dist.Normal(torch.tensor([0.0, 2.0]), 1.0).to_event(1))
            pyro.deterministic("total", mu.sum())

    misfit = value(ELBO(beta=0.0), Program(model, guide), X[:, 0])
    loss = value(ELBO(free_bits=0.5), Program(model, guide), X[:, 0])
    torch.testing.assert_close(loss, misfit + 0.1 * (0.5 + 2.0))


class Discrete(LatentVariableModel):
    """A shared g in {0, 1} with weight 0.4, and per row c in {0, 1, 2} given g; x | c, g normal."""

    def __init__(self, infer=None, ordered=True):
        super().__init__()
        torch.manual_seed(5)
        self.infer, self.ordered = infer or {}, ordered
        self.means, self.prior = nn.Parameter(torch.randn(2, 3)), nn.Parameter(torch.randn(2, 3))
        self.q_g, self.q_c = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.randn(3))

    def model(self, x=None, context=None):
        with poutine.scale(scale=0.4):
            g = pyro.sample("g", dist.Bernoulli(0.3), infer=self.infer).long()
        with data_plate(x, context):
            c = pyro.sample("c", dist.Categorical(logits=self.prior[g]), infer=self.infer)
            return pyro.sample("x", dist.Normal(self.means[g, c], 1.0), obs=x)

    def guide(self, x=None, context=None):
        if self.ordered:
            self.draw_g()
        with data_plate(x, context):
            pyro.sample("c", dist.Categorical(logits=x[:, None] * self.q_c), infer=self.infer)
        if not self.ordered:
            self.draw_g()

    def draw_g(self):
        with poutine.scale(scale=0.4):
            pyro.sample("g", dist.Bernoulli(logits=self.q_g), infer=self.infer)

    def exact(self, x):
        """The negative bound by enumeration over g and the c of each row."""
        q_c, total = (x[:, None] * self.q_c).log_softmax(-1), 0.0
        for g in (0, 1):
            log_q, prior = (
                dist.Bernoulli(logits=self.q_g).log_prob(torch.tensor(float(g))),
                [0.7, 0.3][g],
            )
            rows = (
                self.prior[g].log_softmax(-1)
                + dist.Normal(self.means[g], 1.0).log_prob(x[:, None])
                - q_c
            )
            total = total + log_q.exp() * (
                0.4 * (math.log(prior) - log_q) + (q_c.exp() * rows).sum()
            )
        return -total


def exact_grads(gen, x):
    loss = gen.exact(x)
    return [loss.detach(), *torch.autograd.grad(loss, list(gen.parameters()))]


@pytest.mark.parametrize("ordered", [True, False])
def test_score_function_gradients_average_to_the_exact_ones(ordered):
    gen = Discrete(ordered=ordered)
    ours = value_and_grads(ELBO(particles=20000), gen, X[:, 0])
    assert_same(ours, exact_grads(gen, X[:, 0]), rtol=0.02, atol=0.03)


def test_particles_in_runs_of_their_own_have_the_same_gradients():
    gen, copies = Discrete(), 500
    nn.init.constant_(gen.q_g, 15.0)  # never drawn otherwise, so that only rows are noisy
    ours = value_and_grads(ELBO(particles=8, vectorized=False), gen, X[:, 0].repeat(copies))
    exact = exact_grads(gen, X[:, 0].repeat(copies))
    assert_same([a / copies for a in ours], [a / copies for a in exact], rtol=0.02, atol=0.05)


def test_score_function_gradients_equal_pyros_on_the_same_draws():
    gen = Discrete(ordered=False)
    assert_same(value_and_grads(ELBO(), gen, X[:, 0]), value_and_grads(Trace_ELBO(), gen, X[:, 0]))


def test_other_particles_as_baseline_lower_the_variance():
    gen = Discrete()

    def spread(objective, repeats):
        grads = [value_and_grads(objective, gen, X[:, 0], seed=seed)[-1] for seed in range(repeats)]
        return torch.stack(grads).var(0).sum()

    assert 4 * spread(ELBO(particles=4), 50) < 0.5 * spread(ELBO(), 50)


@pytest.mark.parametrize("kind", ["approximate", "unnormalized", "implicit"])
def test_densities_that_are_no_bound_are_refused_at_the_model(kind):
    distribution = dist.Normal(torch.zeros(6), 1.0)
    distribution.density_kind = kind
    with pytest.raises(ValueError, match=f"site 'x', got {kind}"):
        ELBO()(lambda x: pyro.sample("x", distribution.to_event(1), obs=x), lambda x: None)(X[:, 0])


def test_a_bound_is_refused_at_the_guide():
    distribution = dist.Normal(0.0, 1.0)
    distribution.density_kind = "bound"
    with pytest.raises(ValueError, match="exact at guide site 'z', got bound"):
        ELBO()(
            lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), lambda: pyro.sample("z", distribution)
        )()


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        (["z"], [], "draw the latent site 'z'"),
        ([], ["z"], "got 'z'"),
        (["z", "z"], ["z"], "'z' twice"),
    ],
)
def test_latent_sites_that_do_not_match_are_refused(model, guide, message):
    def program(names):
        return lambda: [pyro.sample(name, dist.Normal(0.0, 1.0)) for name in names]

    with pytest.raises(ValueError, match=message):
        ELBO()(program(model), program(guide))()


def observing(x):
    """Observes a latent of the model: half of what people mean by conditioning a guide."""
    pyro.sample("z", dist.Normal(0.0, 1.0), obs=torch.tensor(0.3))


def repeating(x):
    pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(0.0, 1.0).expand([6]).to_event(1), obs=x)


def one_latent(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 1.0).expand([6]).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("objective", "guide", "name"),
    [(ELBO(), observing, "z"), (ELBO(), repeating, "x"), (EnumeratedELBO(), repeating, "x")],
)
def test_a_guide_that_observes_is_refused(objective, guide, name):
    words = f"expected a guide that draws latent sites, got the observed site '{name}'; leave obs= out of the guide"
    with pytest.raises(ValueError, match=words):
        objective(one_latent, guide)(X[:, 0])


def test_a_guide_may_reparameterize_add_factors_and_fix_a_discrete_value():
    """A fixed value of a discrete latent leaves a bound: the joint density there."""

    @poutine.reparam(config={"z": LocScaleReparam(0.0)})
    def reparameterized(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def factoring(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("f", torch.tensor(0.7), has_rsample=False)

    reparam = poutine.reparam(one_latent, config={"z": LocScaleReparam(0.0)})
    torch.testing.assert_close(
        *(value(ELBO(), Program(reparam, g), X[:, 0]) for g in [reparameterized] * 2)
    )
    plain = Program(one_latent, lambda x: pyro.sample("z", dist.Normal(0.0, 1.0)))
    shifted = value(ELBO(), Program(one_latent, factoring), X[:, 0])
    torch.testing.assert_close(shifted, value(ELBO(), plain, X[:, 0]) + 0.7)

    def discrete(x):
        c = pyro.sample("c", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(c, 1.0).expand([6]).to_event(1), obs=x)

    loss = value(
        ELBO(),
        Program(discrete, lambda x: pyro.sample("c", dist.Delta(torch.tensor(1.0)))),
        X[:, 0],
    )
    torch.testing.assert_close(loss, -math.log(0.3) - dist.Normal(1.0, 1.0).log_prob(X[:, 0]).sum())


def test_enumerated_model_sites_give_the_exact_likelihood():
    means = nn.Parameter(torch.tensor([-1.0, 0.0, 2.0]))
    weights = torch.tensor([0.2, 0.3, 0.5])

    @config_enumerate
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample(
                "x", dist.Normal(means[pyro.sample("c", dist.Categorical(weights))], 1.0), obs=x
            )

    x = X[:, 0]
    exact = (
        -0.3 * (weights.log() + dist.Normal(means, 1.0).log_prob(x[:, None])).logsumexp(-1).sum()
    )
    loss = EnumeratedELBO()(poutine.scale(model, scale=0.3), lambda x: None)(x)
    assert_same(
        [loss, *torch.autograd.grad(loss, means)], [exact, *torch.autograd.grad(exact, means)]
    )


W = torch.tensor([0.5, 2.0, 0.7, 1.0, 3.0, 0.1])


def weighted_mixture(means, scale, local=True):
    """x_b ~ 0.3 N(m_0, 1) + 0.7 N(m_1, 1), with a component of its own for every row.

    Or one for them all.
    """

    def model(x):
        c = (
            None
            if local
            else pyro.sample("c", dist.Bernoulli(0.7), infer={"enumerate": "parallel"})
        )
        with pyro.plate("data", len(x), dim=-1), poutine.scale(scale=scale):
            c = (
                pyro.sample("c", dist.Bernoulli(0.7), infer={"enumerate": "parallel"})
                if local
                else c
            )
            pyro.sample("x", dist.Normal(torch.where(c > 0, means[1], means[0]), 1.0), obs=x)

    return model


@pytest.mark.parametrize(
    "scale", [0.3, torch.tensor(0.3), W, W[:, None].T], ids=["number", "scalar", "rows", "dims"]
)
@pytest.mark.parametrize("particles", [1, 2])
def test_weights_of_rows_around_a_sum(scale, particles):
    means, x = nn.Parameter(torch.tensor([-1.0, 2.0])), X[:, 0]
    rows = (
        torch.tensor([0.3, 0.7]).log() + dist.Normal(means, 1.0).log_prob(x[:, None])
    ).logsumexp(-1)
    exact = -(torch.as_tensor(scale) * rows).sum()
    loss = EnumeratedELBO(particles)(weighted_mixture(means, scale), lambda x: None)(x)
    assert_same(
        [loss, *torch.autograd.grad(loss, means)], [exact, *torch.autograd.grad(exact, means)]
    )


def test_weights_of_rows_around_an_enumerated_guide():
    means, q, x = (
        nn.Parameter(torch.tensor([-1.0, 2.0])),
        nn.Parameter(torch.linspace(-1, 1, 6)),
        X[:, 0],
    )

    def guide(x):
        with pyro.plate("data", len(x), dim=-1), poutine.scale(scale=W):
            pyro.sample("c", dist.Bernoulli(logits=q), infer={"enumerate": "parallel"})

    p_c = torch.stack([1 - q.sigmoid(), q.sigmoid()], -1)
    rows = torch.tensor([0.3, 0.7]).log() + dist.Normal(means, 1.0).log_prob(x[:, None]) - p_c.log()
    exact = -(W * (p_c * rows).sum(-1)).sum()
    loss = EnumeratedELBO()(weighted_mixture(means, W), guide)(x)
    assert_same(
        [loss, *torch.autograd.grad(loss, [means, q])],
        [exact, *torch.autograd.grad(exact, [means, q])],
    )


def test_weights_of_rows_without_a_sum():
    gen = Gaussians()
    misfit, divergence = gen.parts(X)
    pair = Program(
        poutine.scale(gen.model, scale=W), poutine.scale(gen.guide, scale=W), vectorized=True
    )
    loss = value_and_grads(ELBO(particles=4000), pair, X)[0]
    torch.testing.assert_close(
        loss, (W * (misfit + divergence.sum(-1))).sum().detach(), rtol=0.02, atol=0
    )


def test_the_weight_of_a_single_row():
    means, x = torch.tensor([-1.0, 2.0]), X[:1, 0]
    rows = (
        torch.tensor([0.3, 0.7]).log() + dist.Normal(means, 1.0).log_prob(x[:, None])
    ).logsumexp(-1)
    loss = EnumeratedELBO()(weighted_mixture(means, W[:1]), lambda x: None)(x)
    torch.testing.assert_close(loss, -W[0] * rows.sum())


def test_weights_of_rows_in_a_graph():
    """A recorded loss does not compare the scales, whose values it cannot read."""
    means = torch.tensor([-1.0, 2.0])

    def loss(x, weights):
        return EnumeratedELBO()(weighted_mixture(means, weights), lambda x: None)(x)

    with pyro.validation_enabled(False):
        graph = make_fx(loss)(X[:, 0], torch.ones(6))
        torch.testing.assert_close(graph(X[:, 1], W), loss(X[:, 1], W))


def test_scales_that_a_sum_cannot_have_are_refused():
    means, x = torch.tensor([-1.0, 2.0]), X[:, 0]
    with pytest.raises(
        ValueError, match="expected one scale for all sites that depend on an enumerated one"
    ):
        EnumeratedELBO()(weighted_mixture(means, W, local=False), lambda x: None)(x)
    with pytest.raises(
        ValueError, match=r"expected weights of rows .* got weights around c, x, which rows share"
    ):
        EnumeratedELBO()(weighted_mixture(means, torch.ones(6), local=False), lambda x: None)(x)


@pytest.mark.parametrize("particles", [1, 3])
def test_enumerated_guide_sites_give_the_exact_bound(particles):
    gen = Discrete(infer={"enumerate": "parallel"})
    assert_same(value_and_grads(EnumeratedELBO(particles), gen, X[:, 0]), exact_grads(gen, X[:, 0]))


def test_impossible_values_have_no_weight():
    logits = nn.Parameter(torch.tensor([0.0, 0.5, -math.inf]))

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample(
                "c",
                dist.Categorical(torch.tensor([0.5, 0.5, 0.0])),
                infer={"enumerate": "parallel"},
            )
            pyro.sample("x", dist.Normal(c.float(), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("c", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})

    x = X[:, 0]
    q = logits[:2].softmax(-1)
    rows = math.log(0.5) + dist.Normal(torch.arange(2.0), 1.0).log_prob(x[:, None]) - q.log()
    exact = -(q * rows).sum()
    loss = EnumeratedELBO()(model, guide)(x)
    assert_same(
        [loss, *torch.autograd.grad(loss, logits)], [exact, *torch.autograd.grad(exact, logits)]
    )


def bayesian_mixture(enumerate_c):
    @config_enumerate(default=enumerate_c)
    def model(x):
        with pyro.plate("components", 2, dim=-1):
            means = pyro.sample("means", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Categorical(torch.tensor([0.4, 0.6])))
            pyro.sample(
                "x",
                dist.Normal(means[..., c.long()] if means.ndim == 1 else means[c.long()], 1.0),
                obs=x,
            )

    return model


def test_drawn_globals_beside_enumerated_rows_equal_pyros():
    model = bayesian_mixture("parallel")
    program = Program(model, AutoNormal(poutine.block(model, hide=["c"])))
    program.guide(X[:, 0])
    for particles in (1, 2):
        options = {"max_plate_nesting": 1}
        ours = value_and_grads(
            EnumeratedELBO(particles, vectorized=False, **options), program, X[:, 0]
        )
        theirs = value_and_grads(
            TraceEnum_ELBO(num_particles=particles, **options), program, X[:, 0]
        )
        assert_same(ours, theirs)


def test_a_guide_that_tries_its_values_in_sequence_gives_the_exact_bound():
    q, prior, x = nn.Parameter(torch.tensor(0.4)), torch.tensor([0.7, 0.3]), torch.tensor(1.5)

    def model(x):
        c = pyro.sample("c", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(2 * c, 1.0), obs=x)

    def guide(x):
        pyro.sample("c", dist.Bernoulli(logits=q), infer={"enumerate": "sequential"})

    p_c = torch.stack([1 - q.sigmoid(), q.sigmoid()])
    rows = prior.log() + dist.Normal(torch.tensor([0.0, 2.0]), 1.0).log_prob(x) - p_c.log()
    exact, loss = -(p_c * rows).sum(), EnumeratedELBO()(model, guide)(x)
    assert_same([loss, *torch.autograd.grad(loss, q)], [exact, *torch.autograd.grad(exact, q)])


def test_what_rows_share_counts_once_however_often_their_values_are_tried():
    x, mu, q = X[:, 0], torch.tensor(0.7), torch.tensor([0.6, 0.4])

    def model(x):
        loc = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(loc + pyro.sample("c", dist.Bernoulli(0.5)), 1.0), obs=x)

    def guide(x):
        pyro.sample("mu", dist.Delta(mu))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("c", dist.Bernoulli(0.4), infer={"enumerate": "sequential"})

    rows = (
        math.log(0.5)
        + dist.Normal(mu + torch.tensor([0.0, 1.0]), 1.0).log_prob(x[:, None])
        - q.log()
    )
    exact = -(q * rows).sum() - dist.Normal(0.0, 1.0).log_prob(mu)
    torch.testing.assert_close(EnumeratedELBO()(model, guide)(x), exact)


def test_enumerated_objective_refuses_what_the_other_one_does():
    distribution = dist.Normal(torch.zeros(6), 1.0)
    distribution.density_kind = "unnormalized"
    with pytest.raises(ValueError, match=r"EnumeratedELBO: expected .* 'x', got unnormalized"):
        EnumeratedELBO()(
            lambda x: pyro.sample("x", distribution.to_event(1), obs=x), lambda x: None
        )(X[:, 0])


def test_default_objective_looks_at_the_program_and_leaves_the_random_state():
    plain, summed = Gaussians(), Discrete(infer={"enumerate": "parallel"})
    enumerated = Program(bayesian_mixture("parallel"), lambda x: None, vectorized=False)
    state = torch.get_rng_state()
    assert type(default_objective(plain, X)) is ELBO
    assert type(default_objective(summed, X[:, 0])) is EnumeratedELBO
    assert type(default_objective(enumerated, X[:, 0])) is EnumeratedELBO
    assert not default_objective(enumerated, X[:, 0]).vectorized
    assert torch.equal(torch.get_rng_state(), state)
