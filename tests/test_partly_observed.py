"""Sites with rows that are observed and rows that are latent, against sums and integrals by hand."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate
from torch import nn
from torch.testing import assert_close

import probgen as pg
from probgen.objectives import IWAE, EnumeratedELBO, WakeSleep
from probgen.train import adam

N = dist.Normal
X = torch.tensor([0.3, -1.0, 2.0, 0.7, -0.2, 1.5])
Y = torch.tensor([0, -1, 2, -1, -1, 1])
KNOWN = Y >= 0
GAPS = torch.where(KNOWN, Y.double(), torch.nan).float()


class Labels(nn.Module):
    """y ~ Categorical, x | y ~ N(mean of y, 1), and what a guide may make of y."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.2, -0.5, 0.1]))
        self.means = nn.Parameter(torch.tensor([-1.0, 0.5, 2.0]))
        self.slopes = nn.Parameter(torch.tensor([-0.3, 0.1, 0.4]))

    def joint(self, x):
        """log p(x, y) of all y: (rows, 3)."""
        return self.logits.log_softmax(-1) + N(self.means, 1.0).log_prob(x[:, None])

    def truth(self, x=X, y=Y):
        joint = self.joint(x)
        given = joint.gather(1, y.clamp(min=0)[:, None])[:, 0]
        return torch.where(y >= 0, given, joint.logsumexp(1))

    def ours(self, x, y=None):
        with pyro.plate("data", len(x)):
            y = pg.observe("y", dist.Categorical(logits=self.logits), y, unknown=-1)
            pyro.sample("x", N(self.means[y], 1.0), obs=x)

    def theirs(self, x, y, known):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.logits), obs=y, obs_mask=known)
            pyro.sample("x", N(self.means[y], 1.0), obs=x)

    def nothing(self, *args):
        pass

    def guess(self, x, *args):
        return dist.Categorical(logits=x[:, None] * self.slopes)

    def drawn(self, x, *args):
        with pyro.plate("data", len(x)):
            pyro.sample("y_unobserved", self.guess(x))

    def summed(self, x, *args):
        with pyro.plate("data", len(x)):
            pyro.sample("y_unobserved", self.guess(x), infer={"enumerate": "parallel"})

    def elbo(self):
        q = self.guess(X).logits
        missing = (q.exp() * (self.joint(X) - q)).sum(1)
        return torch.where(KNOWN, self.truth(), missing)


DATA = {
    "unknown integers": ("ours", (X, Y)),
    "NaN": ("ours", (X, GAPS)),
    "float64": ("ours", (X, GAPS.double())),
    "Pyro's mask": ("theirs", (X, Y.clamp(min=0), KNOWN)),
}
GUIDES = {"nothing": Labels.truth, "summed": Labels.elbo}


def program_of(labels, model, guide):
    model = getattr(labels, model)
    if model.__name__ == "theirs":
        model = config_enumerate(model)
    return pg.Program(model, getattr(labels, guide))


def gradients(loss, labels):
    found = torch.autograd.grad(loss, list(labels.parameters()), materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in found])


@pytest.fixture(params=DATA)
def data(request):
    return DATA[request.param]


@pytest.mark.parametrize("guide", GUIDES)
def test_missing_rows_are_summed_out_and_others_are_not(data, guide):
    model, batch = data
    labels = Labels()
    program = program_of(labels, model, guide)
    loss = EnumeratedELBO()(program.model, program.guide)(*batch)
    truth = GUIDES[guide](labels).sum()
    assert_close(-loss, truth)
    assert_close(gradients(-loss, labels), gradients(truth, labels), atol=1e-5, rtol=1e-4)


def test_rows_keep_the_exactness_of_their_density(data):
    model, batch = data
    labels = Labels()
    score = pg.log_likelihood(program_of(labels, model, "nothing"), *batch)
    assert (score.kind, score.particles) == ("exact", 1)
    assert_close(score.value, labels.truth().detach())


@pytest.mark.table(quick=1)
def test_a_guide_that_draws_the_missing_rows_makes_scores_unbiased(data):
    model, batch = data
    labels = Labels()
    program = program_of(labels, model, "drawn")
    score = pg.log_likelihood(program, *batch, particles=4000, seed=0)
    assert score.kind == "unbiased"
    assert_close(score.value, labels.truth().detach(), atol=0.05, rtol=0.0)
    assert_close(score.value[KNOWN], labels.truth().detach()[KNOWN])


@pytest.mark.table(quick=3)
@pytest.mark.parametrize(
    ("objective", "truth", "runs"),
    [
        (pg.ELBO(particles=20000), Labels.elbo, 1),
        (IWAE(particles=200), Labels.truth, 30),
        (WakeSleep(particles=20000), Labels.truth, 1),
    ],
    ids=["ELBO", "IWAE", "WakeSleep"],
)
def test_bounds_on_draws_of_the_missing_rows(data, objective, truth, runs):
    model, batch = data
    labels = Labels()
    program = program_of(labels, model, "drawn")
    torch.manual_seed(0)
    loss = sum(objective(program.model, program.guide)(*batch) for _ in range(runs)) / runs
    truth = truth(labels).sum()
    assert_close(-loss, truth, atol=0.05, rtol=0.0)
    wanted = gradients(truth, labels)[:6]  # of the model
    assert_close(gradients(-loss, labels)[:6], wanted, atol=0.03, rtol=0.0)


def test_dreams_of_partly_observed_sites_are_refused(data):
    model, batch = data
    program = program_of(Labels(), model, "drawn")
    with pytest.raises(ValueError, match=r"got 'y' of which some are missing; .* use sleep=0"):
        WakeSleep(particles=3, sleep=0.5)(program.model, program.guide)(*batch)
    assert WakeSleep(particles=3)(program.model, program.guide)(*batch).isfinite()


@pytest.mark.table(quick=2)
def test_the_guides_gradient_is_that_of_the_missing_rows(data):
    model, batch = data
    labels = Labels()
    program = program_of(labels, model, "drawn")
    torch.manual_seed(0)
    loss = pg.ELBO(particles=50000)(program.model, program.guide)(*batch)
    wanted = gradients(labels.elbo().sum(), labels)
    assert_close(gradients(-loss, labels), wanted, atol=0.03, rtol=0.0)


@pytest.mark.table(quick=2)
def test_a_guide_that_is_certain_of_observed_rows_leaves_nothing_out(data):
    model, batch = data
    labels = Labels()

    def certain(x, *args):
        with pyro.plate("data", len(x)):
            logits = torch.where(KNOWN[:, None], torch.tensor([50.0, 0.0, -50.0]), 0.0)
            pyro.sample("y_unobserved", dist.Categorical(logits=logits))

    program = pg.Program(getattr(labels, model), certain)
    assert pg.log_likelihood(program, *batch).kind == "unbiased"


WEIGHTS = torch.tensor([1.0, 2.0, 0.0, 1.0, 3.0, 1.0]).repeat(8)


@pytest.mark.table(quick=1)
@pytest.mark.parametrize(
    ("how", "weights"),
    [
        ({}, None),
        ({}, WEIGHTS),
        pytest.param({"compile": True}, WEIGHTS, marks=pytest.mark.slow),
        ({"batch_size": 24}, None),
        pytest.param({"batch_size": 24, "compile": True}, WEIGHTS, marks=pytest.mark.slow),
    ],
    ids=["whole", "weights", "compiled", "mini-batches", "all"],
)
def test_training_climbs_the_likelihood_that_is_meant(how, weights, request):
    if "batch_size" not in how:  # of the two that compile one needs the compiler
        request.getfixturevalue("replayed")
    torch.manual_seed(0)
    x = X.repeat(8) + 0.1 * torch.randn(48)
    y = Y.repeat(8)
    labels = Labels()
    labels.slopes.requires_grad_(False)
    program = pg.Program(labels.ours)
    how = {"compile": False, "seed": 0, "progress": False, "verdict": False} | how
    pg.fit(program, (x, y), steps=150, weights=weights, optimizer=adam(0.03), **how)
    by_hand = Labels()
    optimizer = adam(0.03)([by_hand.logits, by_hand.means])
    for _ in range(150):
        optimizer.zero_grad()
        value = by_hand.truth(x, y)
        (-(value if weights is None else weights * value).sum() / 48).backward()
        optimizer.step()
    reached = [model.truth(x, y).detach() for model in (labels, by_hand)]
    tolerance = 0.1 if "batch_size" in how else 1e-3
    assert_close(*reached, atol=tolerance, rtol=0.0)


@pytest.mark.table(quick=1)
def test_labels_of_missing_rows_come_from_their_conditional(data):
    model, batch = data
    labels = Labels()
    program = program_of(labels, model, "nothing")
    drawn = pg.posterior(program, *batch, draws=4000, discrete=True, seed=0)["y"]
    assert (drawn[:, KNOWN] == Y[KNOWN]).all()
    shares = torch.stack([(drawn[:, ~KNOWN] == label).float().mean(0) for label in range(3)], 1)
    truth = labels.joint(X)[~KNOWN].softmax(1).detach()
    assert_close(shares, truth, atol=0.03, rtol=0.0)


def test_without_labels_all_rows_are_missing():
    labels = Labels()
    score = pg.log_likelihood(pg.Program(labels.ours), X)
    assert score.kind == "exact"
    assert_close(score.value, labels.joint(X).logsumexp(1).detach())


@pytest.mark.slow
def test_a_guide_is_judged_by_its_draws_of_missing_rows():
    labels = Labels()

    def right(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("y_unobserved", dist.Categorical(logits=labels.joint(x)))

    program = pg.Program(labels.ours, right)
    khat = pg.khat(program, X, Y, particles=200, seed=0)
    assert (khat[~KNOWN] < 0.5).all()


# -- continuous sites


class Chain(nn.Module):
    """z ~ N(loc, 1), partly observed, x | z ~ N(z, sd): x of rows without z is N(loc, 1 + sd^2)."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.4))
        self.log_sd = nn.Parameter(torch.tensor(-0.5))

    def model(self, x, z=None):
        with pyro.plate("data", len(x)):
            z = pg.observe("z", N(self.loc, 1.0), z)
            pyro.sample("x", N(z, self.log_sd.exp()), obs=x)

    def posterior(self, x):
        precision = 1 + (-2 * self.log_sd).exp()
        loc = (self.loc + x * (-2 * self.log_sd).exp()) / precision
        return N(loc, precision.rsqrt())

    def guide(self, x, z=None):
        with pyro.plate("data", len(x)):
            pyro.sample("z_unobserved", self.posterior(x))

    def truth(self, x, z):
        sd = self.log_sd.exp()
        known = N(self.loc, 1.0).log_prob(z.nan_to_num()) + N(z.nan_to_num(), sd).log_prob(x)
        return torch.where(z.isnan(), N(self.loc, (1 + sd**2).sqrt()).log_prob(x), known)


Z = torch.tensor([0.5, torch.nan, 1.0, torch.nan, -0.4, torch.nan])


@pytest.mark.table(quick=1)
@pytest.mark.parametrize(
    "objective", [pg.ELBO(particles=50), IWAE(particles=50)], ids=["ELBO", "IWAE"]
)
def test_a_right_guide_gives_the_closed_form(objective):
    chain = Chain()
    program = pg.Program(chain.model, chain.guide)
    score = pg.log_likelihood(program, X, Z, particles=3)
    assert score.kind == "unbiased"
    truth = chain.truth(X, Z)
    assert_close(score.value, truth.detach())
    torch.manual_seed(0)
    draws = [objective(program.model, program.guide)(X, Z) for _ in range(200)]
    loss = sum(draws) / len(draws)
    assert_close(-loss, truth.sum(), atol=0.05, rtol=0.0)
    assert_close(gradients(-loss, chain), gradients(truth.sum(), chain), atol=0.15, rtol=0.0)


@pytest.mark.slow
def test_continuous_missing_rows_come_from_the_posterior():
    chain = Chain()
    drawn = pg.posterior(pg.Program(chain.model, chain.guide), X, Z, draws=5000, seed=0)["z"]
    assert (drawn[:, ~Z.isnan()] == Z[~Z.isnan()]).all()
    q = chain.posterior(X[Z.isnan()])
    assert_close(drawn[:, Z.isnan()].mean(0), q.mean.detach(), atol=0.05, rtol=0.0)
    assert_close(drawn[:, Z.isnan()].std(0), q.stddev.expand(3).detach(), atol=0.03, rtol=0.0)


@pytest.mark.slow
def test_nuts_sums_missing_labels_out_and_draws_missing_numbers():
    def model(x, y, z):
        shift = pyro.sample("shift", N(0.0, 1.0))
        with pyro.plate("data", len(x)):
            y = pg.observe("y", dist.Categorical(torch.tensor([0.5, 0.5])), y)
            z = pg.observe("z", N(shift, 1.0), z)
            pyro.sample("x", N(z + 2.0 * y, 0.5), obs=x)

    x, y, z = torch.tensor([1.5]), torch.tensor([torch.nan]), torch.tensor([torch.nan])
    chains = pg.mcmc(model, x, y, z, draws=1000, tune=300, chains=1, seed=0, progress=False)
    grid = torch.linspace(-8, 8, 4001)
    density = sum(N(grid + 2.0 * label, 1.25**0.5).log_prob(x).exp() for label in (0, 1))
    density = density * N(0.0, 1.0).log_prob(grid).exp()
    mean = (grid * density).sum() / density.sum()
    assert abs(chains.draws["shift"].mean() - mean) < 0.15


# -- supports, events, refusals

SUPPORTS = {
    "gamma": dist.Gamma(torch.tensor(2.0), 1.0),
    "simplex": dist.Dirichlet(torch.ones(3)),
    "poisson": dist.Poisson(torch.tensor(3.0)),
    "vector": N(torch.zeros(2), 1.0).to_event(1),
    "covariance": dist.Wishart(torch.tensor(9.0), covariance_matrix=torch.eye(2)),
}


@pytest.mark.parametrize("name", SUPPORTS)
def test_what_stands_in_missing_rows_has_a_density_and_no_gradient(name):
    distribution = SUPPORTS[name]
    torch.manual_seed(0)
    value = distribution.expand([4]).sample()
    gaps = value.clone()
    gaps[1] = torch.nan
    weight = torch.tensor(1.5, requires_grad=True)

    def model(value):
        with pyro.plate("data", 4), pyro.poutine.scale(scale=weight):
            return pg.observe("z", distribution, value)

    def guide(value):
        with pyro.plate("data", 4), pyro.poutine.scale(scale=weight):
            pyro.sample("z_unobserved", distribution)

    loss = pg.ELBO()(model, guide)(gaps)
    known = distribution.log_prob(value)[[0, 2, 3]].sum()
    assert_close(-loss, weight * known)
    (slope,) = torch.autograd.grad(-loss, weight)
    assert_close(slope, known)
    with pyro.poutine.trace() as traced:
        both = model(gaps)
    assert_close(both[[0, 2, 3]], value[[0, 2, 3]])
    assert distribution.support.check(both).all()
    assert traced.trace.nodes["z_observed"]["mask"].tolist() == [True, False, True, True]


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.where(Y == 2, 7, Y), r"expected y with values that are .*got 7 in row 2"),
        (torch.where(KNOWN, 0.5, torch.nan), r"got 0.5 in row 0"),
    ],
)
def test_values_outside_of_the_support_are_found(y, message):
    with pytest.raises(ValueError, match=message):
        pg.log_likelihood(pg.Program(Labels().ours), X, y)


def test_events_that_are_missing_in_part_are_refused_and_parts_may_be_sites():
    x = torch.tensor([[1.0, 2.0], [torch.nan, 0.5]])

    def whole(x):
        with pyro.plate("data", len(x)):
            pg.observe("x", N(torch.zeros(2), 1.0).to_event(1), x)

    with pytest.raises(ValueError, match=r"missing in row 1; .* sites of their own"):
        pg.log_likelihood(pg.Program(whole, lambda x: None), x)

    def parts(x):
        with pyro.plate("data", len(x)):
            for at in range(2):
                pg.observe(f"x{at}", N(0.0, 1.0), x[:, at])

    def guide(x):
        with pyro.plate("data", len(x)):
            for at in range(2):
                pyro.sample(f"x{at}_unobserved", N(0.0, 1.0))

    score = pg.log_likelihood(pg.Program(parts, guide), x)
    normal = N(0.0, 1.0).log_prob
    truth = torch.stack([normal(x[0]).sum(), normal(x[1, 1])])
    assert_close(score.value, truth)


@pytest.mark.slow
def test_missing_rows_of_x_are_imputed_from_what_is_known_of_them():
    """x ~ Categorical, and a child x's context says something about."""
    table = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])

    def model(x=None, context=None):
        with pyro.plate("data", len(context)):
            x = pg.observe("x", dist.Categorical(torch.tensor([0.5, 0.5])), x)
            pyro.sample("child", dist.Categorical(table[x]), obs=context[:, 0])

    x = torch.tensor([0.0, torch.nan, torch.nan])
    child = torch.tensor([[0.0], [0.0], [2.0]])
    done = pg.impute(pg.Program(model), x, child, draws=3000, seed=0)
    assert done.kind == "exact"
    assert done.missing.tolist() == [False, True, True]
    assert_close(done.draws.mean(0), torch.tensor([0.0, 1 / 8, 6 / 7]), atol=0.03, rtol=0.0)

    def guide(x=None, context=None):
        with pyro.plate("data", len(context)):
            pyro.sample("x_unobserved", dist.Categorical(torch.tensor([0.5, 0.5])))

    done = pg.impute(pg.Program(model, guide), x, child, draws=3000, seed=0)
    assert done.kind == "heuristic"
    assert_close(done.draws.mean(0), torch.tensor([0.0, 0.5, 0.5]), atol=0.04, rtol=0.0)


@pytest.mark.slow
def test_the_fit_of_a_partly_observed_site_gets_a_verdict():
    labels = Labels()
    program = pg.Program(labels.ours, labels.drawn)
    with pytest.warns(UserWarning, match="too short to tell"):
        history = pg.fit(program, (X, Y), steps=3, progress=False, seed=0)
    assert history.verdict is not None
    assert pg.verdict(program, X, Y) is not None


def test_a_mask_beside_missing_values_gets_advice_that_works():
    def masked(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", N(0.0, 1.0), obs=x, obs_mask=~x.isnan())

    def advised(x):
        with pyro.plate("data", len(x)):
            pg.observe("x", N(0.0, 1.0), x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x_unobserved", N(0.0, 1.0))

    with pytest.raises(
        ValueError, match=r"site 'x_observed': .* state the site by probgen.observe"
    ):
        pg.log_likelihood(pg.Program(masked, guide), Z)
    score = pg.log_likelihood(pg.Program(advised, guide), Z)
    assert_close(score.value, torch.where(Z.isnan(), 0.0, N(0.0, 1.0).log_prob(Z.nan_to_num())))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((torch.ones(3), GAPS), {}, TypeError, "pass a distribution such as .*Categorical"),
        ((dist.Categorical(torch.ones(3)), "abc"), {}, TypeError, "expected y as a tensor"),
        ((dist.Categorical(torch.ones(3)), GAPS), {"unknown": "?"}, TypeError, "number unknown"),
    ],
)
def test_what_is_no_site_is_refused_in_a_sentence(arguments, options, error, message):
    with pytest.raises(error, match=message):
        pg.observe("y", *arguments, **options)


@pytest.mark.parametrize("value", [[0, None, 2], [0.0, float("nan"), 2.0]])
def test_lists_are_values_and_none_is_unknown(value):
    torch.manual_seed(0)
    y = pg.observe("y", dist.Categorical(torch.tensor([0.0, 1.0, 0.0])), value)
    assert y.tolist() == [0, 1, 2]  # what is drawn is the one probable value


def test_a_number_is_a_value():
    assert pg.observe("y", dist.Categorical(torch.ones(3)), 1).item() == 1
