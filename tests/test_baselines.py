"""Control variates that guide sites ask for.

Gradients against enumeration, averages and errors computed by hand.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.fakes import NonreparameterizedBeta
from pyro.infer import TraceGraph_ELBO
from torch import nn

from probgen.core.module import LatentVariableModel, data_plate
from probgen.core.program import Program
from probgen.objectives import ELBO, IWAE, EnumeratedELBO
from probgen.objectives.baselines import Baseline, baseline_of
from probgen.train.fit import fit

X = torch.tensor([0.5, -1.0, 2.0, 4.0])
AVERAGE = {"use_decaying_avg_baseline": True, "baseline_beta": 0.75}


class Mixture(LatentVariableModel):
    """c ~ Bernoulli(0.3), x | c ~ N(w c, 1) per row; q(c | x) = Bernoulli(sigmoid(a_x)).

    With some baseline.

    Under a mask the prior has no divergence in closed form: downstream of c is then its own log p -
    log q as well.
    """

    def __init__(self, baseline=None, infer=None, copies=1, closed=False):
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Parameter(torch.tensor([0.1, -0.4, 0.3, 0.8]).repeat(copies))
        self.w, self.net, self.infer = nn.Parameter(torch.tensor(3.0)), nn.Linear(1, 1), infer or {}
        self.options, self.closed = baseline or (lambda gen, x: None), closed

    def model(self, x=None, context=None):
        prior = dist.Bernoulli(0.3) if self.closed else dist.Bernoulli(0.3).mask(torch.tensor(True))
        with data_plate(x, context):
            c = pyro.sample("c", prior, infer=self.infer)
            return pyro.sample("x", dist.Normal(self.w * c, 1.0), obs=x)

    def guide(self, x=None, context=None):
        asked = self.options(self, x)
        with data_plate(x, context):
            logits = self.a[: len(x)]
            pyro.sample(
                "c",
                dist.Bernoulli(logits=logits),
                infer=self.infer | ({"baseline": asked} if asked else {}),
            )

    def reward(self, c, x):
        """log p(x, c) - log q(c | x) of every row."""
        prior, distribution = dist.Bernoulli(0.3), dist.Bernoulli(logits=self.a[: len(x)])
        return (
            prior.log_prob(c) + dist.Normal(self.w * c, 1.0).log_prob(x) - distribution.log_prob(c)
        )

    def exact(self, x):
        q = self.a[: len(x)].sigmoid()
        both = [self.reward(torch.full_like(x, value), x) for value in (0.0, 1.0)]
        return -((1 - q) * both[0] + q * both[1]).sum()


def net_baseline(gen, x):
    return {
        "nn_baseline": lambda x: gen.net(x).squeeze(-1),
        "nn_baseline_input": gen.w * x[:, None],
    }


ASKED = {
    "average": lambda gen, x: AVERAGE,
    "net": net_baseline,
    "value": lambda gen, x: {"baseline_value": -(x.square()) / 2},
    "number": lambda gen, x: {"baseline_value": -3.0},
    "both": lambda gen, x: AVERAGE | net_baseline(gen, x),
}


def gradients(gen, objective, x=X, seed=0):
    torch.manual_seed(seed)
    loss = objective(gen.model, gen.guide)(x)
    return loss.detach(), torch.autograd.grad(loss, [gen.a, gen.w])


def samples(asked=None, closed=False, copies=3000, **objective):
    """Independent gradients by a, a row of four each.

    Every copy has its own average, settled over some steps.
    """
    gen, elbo = Mixture(ASKED.get(asked), copies=copies, closed=closed), ELBO(**objective)
    for seed in range(12):
        _, (by_a, _) = gradients(gen, elbo, X.repeat(copies), seed)
    return by_a.reshape(copies, 4)


@pytest.mark.parametrize(
    ("asked", "options"),
    [
        *((name, {}) for name in ASKED),
        ("both", {"closed": True}),
        ("both", {"particles": 2}),
        ("both", {"particles": 2, "vectorized": False}),
    ],
)
def test_gradients_average_to_the_exact_ones(asked, options):
    gen = Mixture()
    exact, drawn = torch.autograd.grad(gen.exact(X), gen.a)[0], samples(asked, **options)
    assert ((drawn.mean(0) - exact).abs() < 4.5 * drawn.std(0) / len(drawn) ** 0.5).all()


@pytest.mark.parametrize(
    ("asked", "closed"), [("average", False), ("average", True), ("value", False)]
)
def test_baselines_lower_the_variance(asked, closed):
    assert samples(asked, closed).var(0).sum() < 0.7 * samples(closed=closed).var(0).sum()


@pytest.mark.parametrize("asked", ["average", "value", "number"])
def test_the_value_of_the_loss_is_untouched(asked):
    loss, _ = gradients(Mixture(ASKED[asked]), ELBO())
    torch.testing.assert_close(loss, gradients(Mixture(), ELBO())[0])


@pytest.mark.parametrize("asked", ["net", "value", "both"])
def test_one_step_is_pyros(asked):
    """The value that Pyro takes a baseline for.

    log p - log q of the plates of the site, and its squared error.
    """
    options = ASKED[asked]
    if asked == "value":
        options = lambda gen, x: {"baseline_value": gen.net(x[:, None])[:, 0]}  # noqa: E731
    ours, theirs = Mixture(options), Mixture(options)
    theirs.load_state_dict(ours.state_dict())
    torch.manual_seed(1)
    ELBO()(ours.model, ours.guide)(X).backward()
    torch.manual_seed(1)
    TraceGraph_ELBO().loss_and_grads(theirs.model, theirs.guide, X)
    pyro.clear_param_store()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize("objective", [{}, {"particles": 3}, {"particles": 3, "vectorized": False}])
def test_the_average_is_the_one_by_hand(prepared, objective):
    gen, elbo, expected, state = (
        Mixture(ASKED["average"]),
        ELBO(**objective),
        torch.zeros(4),
        torch.get_rng_state(),
    )
    if prepared:
        elbo.prepare(gen.model, gen.guide, X)
        assert torch.equal(elbo.baselines.average_c, expected) and torch.equal(
            torch.get_rng_state(), state
        )
    particles = elbo.particles
    for seed in range(3):
        torch.manual_seed(seed)
        c = dist.Bernoulli(logits=gen.a.detach()).expand([particles, 4]).sample()
        expected = 0.75 * expected + 0.25 * gen.reward(c, X).mean(0).detach()
        gradients(gen, elbo, seed=seed)
        torch.testing.assert_close(elbo.baselines.average_c, expected)
    gradients(gen, elbo.eval(), seed=7)
    torch.testing.assert_close(elbo.baselines.average_c, expected)


def test_a_batch_of_another_size_uses_and_moves_the_mean():
    gen, elbo = Mixture(ASKED["average"]), ELBO()
    gradients(gen, elbo)
    before = elbo.baselines.average_c.clone()
    torch.manual_seed(3)
    c = dist.Bernoulli(logits=gen.a[:2].detach()).sample()
    reward = gen.reward(c, X[:2]).detach()
    _, (by_a, _) = gradients(gen, elbo, X[:2], seed=3)
    score = (c - gen.a[:2].sigmoid()).detach()
    torch.testing.assert_close(by_a[:2], -score * (reward - before.mean()))
    torch.testing.assert_close(elbo.baselines.average_c, 0.75 * before + 0.25 * reward.mean())


def test_the_network_gets_the_gradient_of_its_squared_error_and_nothing_else_does():
    gen = Mixture(net_baseline)
    torch.manual_seed(0)
    c = dist.Bernoulli(logits=gen.a.detach()).sample()
    error = (
        (gen.reward(c, X).detach() - gen.net((gen.w * X[:, None]).detach())[:, 0]).square().sum()
    )
    expected = torch.autograd.grad(error, list(gen.net.parameters()))
    torch.manual_seed(0)
    loss = ELBO()(gen.model, gen.guide)(X)
    torch.testing.assert_close(
        torch.autograd.grad(loss, list(gen.net.parameters()), retain_graph=True), expected
    )
    plain = Mixture()
    torch.testing.assert_close(torch.autograd.grad(loss, gen.w)[0], gradients(plain, ELBO())[1][1])


def test_averages_are_saved_and_come_back():
    gen, elbo = Mixture(ASKED["average"]), ELBO()
    for seed in range(3):
        gradients(gen, elbo, seed=seed)
    again = ELBO()
    again.load_state_dict(elbo.state_dict())
    torch.testing.assert_close(gradients(gen, elbo, seed=9), gradients(gen, again, seed=9))
    assert torch.equal(elbo.baselines.average_c, again.baselines.average_c)


@pytest.mark.slow
def test_trained_resumed_and_compiled(tmp_path, replayed):
    options = {"seed": 0, "verdict": False, "progress": False, "compile": False}
    make = lambda: Mixture(ASKED["both"])  # noqa: E731
    whole, objectives = fit(make(), X, ELBO(), steps=8, **options), [ELBO() for _ in range(3)]
    gen = make()
    fit(make(), X, objectives[0], steps=4, checkpoint=tmp_path / "state", **options)
    resumed = fit(
        gen, X, objectives[1], steps=8, checkpoint=tmp_path / "state", resume=True, **options
    )
    assert resumed.loss == whole.loss
    compiled = fit(make(), X, objectives[2], steps=8, **options | {"compile": True})
    assert compiled.loss == pytest.approx(whole.loss, rel=1e-4)
    torch.testing.assert_close(
        objectives[1].baselines.average_c, objectives[2].baselines.average_c, rtol=1e-3, atol=1e-4
    )


class Scaled(LatentVariableModel):
    """A shared rate ~ Beta(2, 2) without reparameterized draws.

    x | rate Bernoulli: E log p is a sum of digammas.
    """

    def __init__(self, baseline):
        super().__init__()
        self.log_a, self.baseline = nn.Parameter(torch.tensor([0.5, 0.2])), baseline

    def model(self, x=None, context=None):
        rate = pyro.sample("rate.shared", dist.Beta(2.0, 2.0))
        with data_plate(x, context):
            return pyro.sample("x", dist.Bernoulli(rate), obs=x)

    def guide(self, x=None, context=None):
        distribution = NonreparameterizedBeta(*self.log_a.exp())
        pyro.sample("rate.shared", distribution, infer={"baseline": self.baseline})

    def exact(self, x):
        a, b = self.log_a.exp()
        q, total = dist.Beta(a, b), torch.digamma(a + b)
        expected = x.sum() * (torch.digamma(a) - total) + (1 - x).sum() * (torch.digamma(b) - total)
        return torch.distributions.kl_divergence(q, dist.Beta(2.0, 2.0)) - expected


@pytest.mark.slow
def test_a_shared_draw_without_a_discrete_value():
    x, gen, elbo, drawn = torch.tensor([1.0, 1.0, 0.0, 1.0]), Scaled(AVERAGE), ELBO(), []
    exact = torch.autograd.grad(gen.exact(x), gen.log_a)[0]
    for seed in range(1000):
        torch.manual_seed(seed)
        drawn.append(torch.autograd.grad(elbo(gen.model, gen.guide)(x), gen.log_a)[0])
    drawn = torch.stack(drawn[20:])
    assert ((drawn.mean(0) - exact).abs() < 4.5 * drawn.std(0) / len(drawn) ** 0.5).all()
    assert elbo.baselines.get_buffer("average_rate/shared").shape == ()


def site(**options):
    return {"name": "z", "infer": {"baseline": options}}


NET = nn.Identity()
WRONG = [
    (
        {"use_decaying_average": True},
        r"at guide site 'z', got 'use_decaying_average'; rename or drop it",
    ),
    ({"nn_baseline": NET, "nn_baseline_input": X, "baseline_value": X}, "got both; drop one"),
    ({"nn_baseline": NET}, "got one of them; pass both"),
    ({"nn_baseline_input": X}, "got one of them; pass both"),
    (
        {"use_decaying_avg_baseline": True, "baseline_beta": 1.0},
        r"expected 0 <= baseline_beta < 1 .* got 1.0",
    ),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        baseline_of(site(**options))


@pytest.mark.parametrize(
    "options", [{}, {"baseline_beta": 0.5}, {"use_decaying_avg_baseline": False}]
)
def test_options_that_ask_for_nothing(options):
    assert baseline_of(site(**options)) is None


def test_defaults_are_pyros():
    assert baseline_of(site(use_decaying_avg_baseline=True)) == Baseline(
        use_decaying_avg_baseline=True
    )
    assert Baseline().baseline_beta == 0.90


def test_a_baseline_of_another_shape_is_refused():
    gen = Mixture(lambda gen, x: {"nn_baseline": gen.net, "nn_baseline_input": x[:, None]})
    with pytest.raises(
        ValueError, match=r"shape \(4,\) at guide site 'c'.* got \(4, 1\); drop dims"
    ):
        ELBO()(gen.model, gen.guide)(X)


def test_the_enumerated_objective_takes_them_where_nothing_is_drawn_and_refuses_them_elsewhere():
    summed = Mixture(ASKED["average"], {"enumerate": "parallel"})
    torch.testing.assert_close(EnumeratedELBO()(summed.model, summed.guide)(X), summed.exact(X))
    drawn = Mixture(ASKED["average"])
    with pytest.raises(
        ValueError,
        match=r"EnumeratedELBO: expected guide sites without .* got 'c'; drop it, or use EL",
    ):
        EnumeratedELBO()(drawn.model, drawn.guide)(X)


def test_reparameterized_sites_need_none():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.1 * x, 1.0), infer={"baseline": AVERAGE})

    for objective in (ELBO(), EnumeratedELBO(), IWAE(2)):
        objective(model, guide)(X)
    elbo = ELBO()
    elbo.prepare(model, guide, X)
    assert not list(elbo.baselines.buffers())


def test_a_network_in_the_closure_of_a_program_is_trained():
    net, a = nn.Linear(1, 1), nn.Parameter(torch.zeros(4))
    before = net.weight.detach().clone()

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(3 * pyro.sample("c", dist.Bernoulli(0.3)), 1.0), obs=x)

    def guide(x):
        logits = pyro.param("a", a)
        with pyro.plate("data", len(x), dim=-1):
            options = {"nn_baseline": lambda x: net(x)[:, 0], "nn_baseline_input": x[:, None]}
            pyro.sample("c", dist.Bernoulli(logits=logits), infer={"baseline": options})

    fit(Program(model, guide), X, ELBO(), steps=3, verdict=False, progress=False, compile=False)
    assert not torch.equal(net.weight, before)
