"""Weights of rows: a row of weight two is the row given twice, one of weight zero is left out."""

import copy
import warnings
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler
from zoo import ZOO, Member

import probgen as pg
from probgen.core.given_weights import weights_from
from probgen.core.score import Score
from probgen.objectives import ELBO, IWAE, DReG, Renyi, WakeSleep, default_objective
from probgen.objectives.base import Prepared
from probgen.train.adapters import weighs_rows
from probgen.train.checkpoint import CheckpointError
from probgen.train.data import as_source
from probgen.train.fit import adam, fit
from probgen.train.history import FitWarning
from probgen.train.rehearsal import RowScale
from probgen.train.weighting import RowWeights

COUNTS = torch.tensor([2, 0, 1, 3, 1, 1])
QUIET = {"verdict": False, "progress": False, "seed": 0}


class Loss(NamedTuple):
    """A loss of rows, and its gradient in one vector."""

    value: torch.Tensor
    gradient: torch.Tensor

    def per_row(self, rows: int) -> "Loss":
        return Loss(self.value / rows, self.gradient / rows)

    def near(self, other: "Loss") -> bool:
        sizes = [max(1.0, float(part.abs().max())) for part in other]
        pairs = zip(self, other, sizes, strict=True)
        return all(torch.allclose(one, two, atol=2e-4 * size) for one, two, size in pairs)


def loss_of(gen, objective, batch, weights=None, total=None, seed=0) -> Loss:
    """The objective on all rows, as fit evaluates it with these weights."""
    torch.manual_seed(seed)
    size = len(batch[0])
    module = objective(gen.model, gen.guide)
    trained = [p for p in (*gen.parameters(), *module.parameters()) if p.requires_grad]
    with RowScale(gen.plate, size, size if total is None else total, weights):
        value = module(*batch)
    found = [torch.zeros(1)]
    if trained:
        found = torch.autograd.grad(value, trained, allow_unused=True, materialize_grads=True)
    return Loss(value.detach(), torch.cat([part.flatten() for part in found]))


OBJECTIVES = {
    "IWAE": lambda: IWAE(3),
    "Renyi": lambda: Renyi(0.5, 3),
    "DReG": lambda: DReG(3),
    "wake-sleep": lambda: WakeSleep(3, sleep=0.4),
    "particles": lambda: ELBO(particles=3),
    "Pyro's": Trace_ELBO,
    "Pyro's mean field": TraceMeanField_ELBO,
}


def settled(member: Member):
    """A model in eval mode, its rows as it takes them, and its objective."""
    torch.manual_seed(0)
    gen = member.gen().eval()
    batch = gen.settle(member.data())
    objective = member.objective() if member.objective else default_objective(gen, *batch)
    if isinstance(objective, Prepared):
        objective.prepare(gen.model, gen.guide, *batch)
    return gen, batch, objective.eval()


def a_vae() -> tuple:
    gen = pg.VAE(
        pg.standard_normal(2),
        pg.heads.Gaussian(pg.nn.MLP(2, [4], 6)),
        pg.heads.Gaussian(pg.nn.MLP(3, [4], 4)),
    )
    return gen, torch.randn(6, 3)


def check_weights_scale_rows(gen, batch, objective):
    """Terms of rows are multiplied; what is left without rows belongs to all of them."""
    ones = torch.ones(6)
    without = loss_of(gen, objective, batch)
    assert loss_of(gen, objective, batch, ones).near(without)
    rest = loss_of(gen, objective, batch, 0 * ones)
    each = [loss_of(gen, objective, batch, row) for row in torch.eye(6)]
    counts = COUNTS.float()
    value = sum(c * (own.value - rest.value) for c, own in zip(counts, each, strict=True))
    gradient = sum(c * (own.gradient - rest.gradient) for c, own in zip(counts, each, strict=True))
    found = loss_of(gen, objective, batch, counts)
    assert found.near(Loss(rest.value + value, rest.gradient + gradient))
    return without


@pytest.mark.table(quick=4)
@pytest.mark.parametrize("member", ZOO, ids=lambda member: member.name)
def test_weights_multiply_the_terms_of_rows(member):
    gen, batch, objective = settled(member)
    if not weighs_rows(objective):
        pytest.skip("rows are drawn for this objective")
    first = check_weights_scale_rows(gen, batch, objective)
    if loss_of(gen, objective, batch, seed=1).near(first):  # nothing random: exactly as repeated
        weights = RowWeights(COUNTS.float(), drawn=False)
        repeated = tuple(part.repeat_interleave(COUNTS, 0) for part in batch)
        used = tuple(part[weights.used] for part in batch)
        found = loss_of(gen, objective, used, weights.values[weights.used], weights.total)
        assert found.per_row(5).near(loss_of(gen, objective, repeated).per_row(8))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_of_latent_variables_multiply_the_terms_of_rows(name):
    torch.manual_seed(0)
    gen, x = a_vae()
    assert weighs_rows(OBJECTIVES[name]())
    check_weights_scale_rows(gen, (x,), OBJECTIVES[name]())


# -- fit


def gaussian(dims=2):
    return pg.heads.Gaussian(pg.nn.Constant(2 * dims))


def global_mean():
    """A mean that all rows share, with a prior, and its guide."""

    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    return pg.Program(model, AutoNormal(model))


def local_means(dim=-1):
    """A latent variable for each row, about a mean that is a parameter."""

    def model(x):
        mean = pyro.param("mean", torch.tensor(0.0))
        with pyro.plate("data", len(x), dim=dim):
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.reshape(-1, *(1,) * (-dim - 1)))

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.1))
        shift = pyro.param("shift", torch.tensor(0.0))
        x = x.reshape(-1, *(1,) * (-dim - 1))
        with pyro.plate("data", len(x), dim=dim):
            pyro.sample("z", dist.Normal(slope * x + shift, 0.5**0.5))

    return pg.Program(model, guide)


def sequential_mean():
    """The plate of the rows is a loop."""

    def model(x):
        mean = pyro.param("mean", torch.tensor(0.0))
        for row in pyro.plate("data", len(x)):
            pyro.sample(f"x_{row}", dist.Normal(mean, 1.0), obs=x[row])

    return pg.Program(model)


def clusters():
    """Two means; to which of them a row belongs is summed out."""

    def model(x):
        means = pyro.param("means", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x)):
            both = {"enumerate": "parallel"}
            which = pyro.sample("which", dist.Categorical(torch.ones(2)), infer=both)
            pyro.sample("x", dist.Normal(means[which], 1.0), obs=x)

    return pg.Program(model)


def gan():
    return pg.GAN(pg.nn.MLP(2, [4], 2), pg.standard_normal(2))


def game():
    return pg.objectives.Adversarial(pg.nn.MLP(2, [4], 1))


def own_function(model, guide, *batch):
    return Trace_ELBO().differentiable_loss(model, guide, *batch)


PAIRS = {
    "Gaussian": (gaussian, None, (12, 2)),
    "mixture": (lambda: pg.GaussianMixture(2, 2), None, (12, 2)),
    "VAE": (lambda: a_vae()[0], None, (12, 3)),
    "importance": (lambda: a_vae()[0], lambda: IWAE(2), (12, 3)),
    "global": (global_mean, None, (12,)),
    "local": (local_means, None, (12,)),
    "outer plate": (lambda: local_means(-2), None, (12,)),
    "enumerated": (clusters, None, (12,)),
    "game": (gan, game, (12, 2)),
    "discrepancy": (gan, pg.objectives.Discrepancy, (12, 2)),
    "function": (gaussian, lambda: own_function, (12, 2)),
}


def pair(name):
    """A model from a seed, its objective, rows, and weights some of which are 0."""
    make, objective, shape = PAIRS[name]
    torch.manual_seed(0)
    gen = make()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    weights = torch.tensor([2.0, 0.0, 1.0, 0.5, 3.0, 0.0, 1.0, 1.0, 0.0, 2.5, 1.0, 1.0])
    return gen, objective and objective(), x, weights


@pytest.mark.table(quick=8)
@pytest.mark.parametrize("batch_size", [4, 20])
@pytest.mark.parametrize("name", PAIRS)
def test_a_row_of_weight_zero_is_left_out(name, batch_size):
    options = {"steps": 5, "batch_size": batch_size, "compile": False, "drop_last": True, **QUIET}
    gen, objective, x, weights = pair(name)
    found = fit(gen, x, objective, weights=weights, **options)
    gen, objective, x, weights = pair(name)
    kept = weights > 0
    expected = fit(gen, x[kept], objective, weights=weights[kept], **options)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)


@pytest.mark.table(quick=5)
@pytest.mark.parametrize("name", PAIRS)
def test_equal_weights_are_none(name):
    losses = []
    for weight in (None, 3.0):
        gen, objective, x, _ = pair(name)
        weights = None if weight is None else torch.full((12,), weight)
        options = {"steps": 4, "batch_size": 4, "compile": False, **QUIET}
        losses.append(fit(gen, x, objective, weights=weights, **options).loss)
    if name == "global":  # three times as many rows against one prior
        assert losses[0] != losses[1]
    else:
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "batch_size"),
    [("VAE", 20), ("VAE", 4), ("importance", 4), ("global", 4), ("enumerated", 4), ("game", 20)],
)
def test_compiled_steps_are_the_same(name, batch_size, replayed):
    compiled_and_eager_agree(name, batch_size)


@pytest.mark.slow
def test_really_compiled_steps_are_the_same():
    compiled_and_eager_agree("importance", 4)


def compiled_and_eager_agree(name, batch_size):
    losses = []
    for compiled in (False, True):
        gen, objective, x, weights = pair(name)
        options = {"steps": 5, "batch_size": batch_size, "compile": compiled, **QUIET}
        losses.append(fit(gen, x, objective, weights=weights, drop_last=True, **options).loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("name", ["Gaussian", "VAE", "global", "game"])
def test_resumed_steps_are_the_same(name, tmp_path):
    options = {"batch_size": 4, "compile": False, **QUIET}
    gen, objective, x, weights = pair(name)
    whole = fit(gen, x, objective, weights=weights, steps=6, **options).loss
    for steps in (3, 6):
        gen, objective, x, weights = pair(name)
        file = {"checkpoint": tmp_path / "state", "resume": True}
        found = fit(gen, x, objective, weights=weights, steps=steps, **file, **options)
    assert found.loss == whole


@pytest.mark.parametrize("other", [None, torch.ones(12)])
def test_a_state_of_other_weights_is_refused(other, tmp_path):
    gen, _, x, weights = pair("Gaussian")
    file = {"checkpoint": tmp_path / "state", "resume": True}
    fit(gen, x, weights=weights, steps=1, **file, **QUIET)
    with pytest.raises(CheckpointError, match="other weights or another precision; pass"):
        fit(gen, x, weights=other, steps=2, **file, **QUIET)


@pytest.mark.slow
def test_the_gaussian_of_weighted_rows():
    torch.manual_seed(0)
    x = torch.randn(60, 2).double() * 2 + 1
    weights = torch.rand(60).double()
    gen = gaussian().double()
    fit(gen, x, weights=weights, steps=800, batch_size=60, optimizer=adam(0.03), **QUIET)
    mean = (weights[:, None] * x).sum(0) / weights.sum()
    variance = (weights[:, None] * (x - mean) ** 2).sum(0) / weights.sum()
    assert torch.allclose(gen().mean, mean, atol=1e-3)
    assert torch.allclose(gen().variance, variance, rtol=1e-2)


@pytest.mark.slow
def test_the_mixture_is_that_of_em():
    torch.manual_seed(0)
    x = torch.cat([torch.randn(40, 1), torch.randn(40, 1) + 5])
    weights = torch.rand(80) + torch.arange(80) // 40
    gen = pg.GaussianMixture(2, 1)
    pg.em(gen, x, weights=weights, seed=0, tol=1e-8)
    best = copy.deepcopy(gen)
    with torch.no_grad():
        for parameter in gen.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    fit(gen, x, weights=weights, steps=600, batch_size=80, optimizer=adam(0.02), **QUIET)
    ours, theirs = (pg.log_likelihood(each, x, weights=weights).mean for each in (gen, best))
    assert ours == pytest.approx(theirs, abs=1e-3)
    assert torch.allclose(gen.canonical().weights, best.canonical().weights, atol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("make", [local_means, lambda: local_means(-2)])
def test_local_latent_variables_count_as_their_rows(make):
    """The best guide is exact: slope 1/2 and shift mean/2, about the weighted mean of the rows."""
    torch.manual_seed(0)
    x = torch.randn(40) * 2**0.5 + 1
    weights = torch.rand(40) * 3
    gen = make()
    options = {"steps": 800, "batch_size": 40, "optimizer": adam(0.03), "ema": 0.99}
    fit(gen, x, weights=weights, **options, **QUIET)
    mean = (weights * x).sum() / weights.sum()
    assert gen.statements["mean"].item() == pytest.approx(mean.item(), abs=0.03)
    assert gen.statements["slope"].item() == pytest.approx(0.5, abs=0.03)


def test_a_loop_over_rows_takes_their_weights():
    x = torch.tensor([0.0, 1.0, 5.0])
    weights = torch.tensor([1.0, 2.0, 1.0])
    gen = sequential_mean()
    fit(gen, x, weights=weights, steps=300, optimizer=adam(0.05), **QUIET)
    assert gen.statements["mean"].item() == pytest.approx(7 / 4, abs=0.01)


@pytest.mark.slow
def test_the_posterior_of_what_rows_share_counts_the_sum_of_weights():
    torch.manual_seed(0)
    x = torch.randn(20) + 1
    weights = 4 * torch.rand(20)
    gen = global_mean()
    options = {"steps": 600, "optimizer": adam(0.03), "ema": 0.99}
    history = fit(gen, x, weights=weights, seed=0, progress=False, **options)
    precision = 1 / 4 + weights.sum()
    drawn = pg.posterior(gen, x, draws=4000)["mean"]
    sd = precision.item() ** -0.5
    mean = ((weights * x).sum() / precision).item()
    assert drawn.mean().item() == pytest.approx(mean, abs=0.15 * sd)
    assert drawn.std().item() == pytest.approx(sd, rel=0.15)
    assert history.verdict.khat.item() < 0.7


@pytest.mark.table(quick=1)
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mixture", "baseline: "),
        ("VAE", "guide: k-hat"),
        ("global", "for the whole posterior"),
        ("local", "guide: k-hat"),
        ("enumerated", "baseline: "),
    ],
)
def test_every_fit_is_judged(name, said):
    gen, objective, x, weights = pair(name)
    options = {"steps": 30, "compile": False, "progress": False, "seed": 0}
    with warnings.catch_warnings(action="ignore", category=FitWarning):
        verdict = fit(gen, x, objective, weights=weights, **options).verdict
    assert said in str(verdict) and "not judged" not in str(verdict)


# -- mini-batches


def point():
    """The most probable mean that all rows share."""
    model = global_mean()._model
    return pg.Program(model, AutoDelta(model))


def still(parameters):
    return torch.optim.SGD(parameters, lr=1e-12)


def mean_gradient(gen, x, weights, batch_size):
    """Over the batches of one epoch."""
    seen = []

    def look(run):
        seen.append(torch.cat([p.grad.flatten() for p in run.parameters]))

    options = {"batch_size": batch_size, "optimizer": still, "callbacks": [look], **QUIET}
    fit(gen, x, weights=weights, epochs=1, compile=False, **options)
    return torch.stack(seen).mean(0)


@pytest.mark.parametrize("make", [gaussian, lambda: pg.GaussianMixture(2, 2), point, clusters])
def test_mini_batches_have_the_gradient_of_all_rows_in_the_mean(make):
    torch.manual_seed(0)
    gen = make()
    x = torch.randn(12) if isinstance(gen, pg.Program) else torch.randn(12, 2)
    weights = torch.rand(12) + 0.1
    whole, parts = (mean_gradient(gen, x, weights, size) for size in (12, 4))
    assert torch.allclose(whole, parts, atol=1e-5)


def test_the_gradient_against_a_prior_is_that_of_the_sum_of_weights():
    """The most probable mean: its gradient per row that counts, in closed form."""
    x = torch.tensor([0.5, 2.0, -1.0])
    weights = torch.tensor([1.0, 4.0, 2.0])
    gen = point()
    found = mean_gradient(gen, x, weights, 3)
    (mean,) = (p.item() for p in gen.parameters())
    expected = (mean / 4 - (weights * (x - mean)).sum()) / 7
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_rows_are_drawn_as_often_as_they_weigh():
    weights = torch.tensor([0.5, 2.0, 0.0, 1.5, 1.0])
    rows = RowWeights(weights, drawn=True)
    epochs = [rows.order(torch.Generator().manual_seed(seed)) for seed in range(2000)]
    counts = torch.stack([epoch.bincount(minlength=5) for epoch in epochs]).double()
    expected = 4 * weights.double() / 5
    assert ((counts - expected).abs() < 1).all()
    assert torch.allclose(counts.mean(0), expected, atol=0.05)
    first = torch.stack([epoch[0] for epoch in epochs]).bincount(minlength=5) / 2000
    assert torch.allclose(first.double(), expected / 4, atol=0.04)


def test_whole_numbers_of_rows_are_repeated_exactly():
    weights = torch.tensor([1.0, 0.0, 2.0, 3.0, 4.0])
    rows = RowWeights(weights, drawn=True)
    for seed in range(20):
        repeated = rows.repeated(10, torch.Generator().manual_seed(seed))
        assert repeated.bincount(minlength=5).tolist() == weights.tolist()


@pytest.mark.parametrize("batch_size", [3, 8, 11])
def test_an_epoch_of_draws_has_as_many_rows_as_are_used(batch_size):
    weights = torch.tensor([1.0, 1, 1, 2, 1, 2, 1, 1, 0, 0, 0])
    source = as_source(torch.zeros(11, 1), batch_size, 0, weights=weights, drawn=True)
    seen = []
    while source.epoch == 0:
        seen += source.choose()[0].tolist()
    assert len(seen) == 8 and set(seen) <= set(range(8))


@pytest.mark.slow
def test_a_game_sees_rows_by_their_weights():
    """The best constant of a loss that does not look at scales is the weighted mean."""

    def squares(model, guide, x):
        site = pyro.poutine.trace(model).get_trace(x).nodes["x"]
        return (x - site["fn"].mean).square().sum()

    x = torch.arange(8.0)[:, None]
    weights = torch.tensor([1.0, 1, 1, 1, 3, 3, 3, 3])
    gen = gaussian(1)
    options = {"steps": 1000, "batch_size": 4, "optimizer": adam(0.05), "ema": 0.998}
    fit(gen, x, squares, weights=weights, **options, **QUIET)
    expected = (weights * x[:, 0]).sum() / weights.sum()
    assert gen().mean.item() == pytest.approx(expected.item(), abs=0.1)


# -- what fits, and what is refused


def chooser():
    def model(x):
        mean = pyro.param("mean", torch.tensor(0.0))
        with pyro.plate("data", 12, subsample_size=4) as rows:
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x[rows])

    return pg.Program(model)


def without_plate():
    def model(x):
        mean = pyro.param("mean", torch.tensor(0.0))
        pyro.sample("x", dist.Normal(mean, 1.0).expand([12]).to_event(1), obs=x)

    return pg.Program(model)


def in_the_model():
    x = torch.randn(12)

    def model():
        mean = pyro.param("mean", torch.tensor(0.0))
        with pyro.plate("data", 12):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    return pg.Program(model)


ROWS = torch.zeros(12, 2)
ONES = torch.ones(12)
BAD = {
    "too few": (gaussian, ROWS, torch.ones(11), r"expected weights of shape \(12,\).*got \(11,\)"),
    "a column": (
        gaussian,
        ROWS,
        torch.ones(12, 1),
        r"expected weights of shape \(12,\).*\(12, 1\)",
    ),
    "negative": (gaussian, ROWS, [1.0] * 11 + [-1.0], "not negative, got -1 in row 11"),
    "missing": (gaussian, ROWS, [None] + [1.0] * 11, "finite and not negative, got nan in row 0"),
    "infinite": (gaussian, ROWS, [1.0, float("inf")] * 6, "got inf in row 1"),
    "zeros": (gaussian, ROWS, 0 * ONES, "some weights above 0, got zeros alone"),
    "a loader": (
        gaussian,
        DataLoader(TensorDataset(ROWS), batch_size=4),
        ONES,
        "rows in memory for weights, .* got DataLoader; .*WeightedRandomSampler",
    ),
    "a dataset": (gaussian, TensorDataset(ROWS), ONES, "rows in memory .* got TensorDataset"),
    "batches": (gaussian, [ROWS, ROWS], ONES, "rows in memory for weights, .* got list"),
    "no data": (in_the_model, None, ONES, "rows in memory for weights, .* got None"),
    "rows that are chosen": (
        chooser,
        torch.zeros(12),
        ONES,
        "got one that draws some itself; drop",
    ),
    "no plate": (without_plate, torch.zeros(12), ONES, "expected a plate named 'data' around the"),
}


@pytest.mark.parametrize("name", BAD)
def test_weights_that_do_not_fit_are_refused(name):
    make, data, weights, message = BAD[name]
    with pytest.raises(ValueError, match=message) as caught:
        fit(make(), data, weights=weights, steps=1, **QUIET)
    assert "\n" not in str(caught.value) and "; " in str(caught.value)


@pytest.mark.parametrize("weights", [3, "heavy", print])
def test_what_is_no_weights_is_refused(weights):
    with pytest.raises(TypeError, match="expected weights as"):
        fit(gaussian(), ROWS, weights=weights, steps=1, **QUIET)


def test_rows_in_their_order_alone_are_not_drawn():
    """A guide with parameters for all rows, none of which may come twice."""

    def model(x):
        mean = pyro.param("mean", torch.zeros(12))
        with pyro.plate("data", 12):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    gen = pg.Program(model)
    with pytest.warns(FitWarning, match="every step takes all rows"):
        fit(gen, torch.ones(12), weights=COUNTS.repeat(2), steps=2, **QUIET)
    with pytest.raises(ValueError, match=r"rows drawn by their weights, .* use ELBO"):
        fit(pg.Program(model), torch.ones(12), own_function, weights=ONES, steps=2, **QUIET)


@pytest.mark.slow
def test_the_advice_for_loaders_works():
    weights = torch.tensor([1.0] * 6 + [3.0] * 6)
    x = torch.cat([torch.zeros(6, 1), torch.ones(6, 1)])
    torch.manual_seed(0)
    sampler = WeightedRandomSampler(weights, 120)
    loader = DataLoader(TensorDataset(x), batch_size=12, sampler=sampler)
    gen = gaussian(1)
    fit(gen, loader, steps=400, optimizer=adam(0.05), ema=0.99, **QUIET)
    assert gen().mean.item() == pytest.approx(0.75, abs=0.1)


@pytest.mark.parametrize(
    "form", [list, torch.Tensor.numpy, torch.Tensor.double, torch.Tensor.long, tuple]
)
def test_weights_come_in_all_forms_of_numbers(form):
    weights = COUNTS.float().repeat(2)
    losses = [
        fit(gaussian(), torch.arange(24.0).reshape(12, 2), weights=given, steps=3, **QUIET).loss
        for given in (weights, form(weights) if form is not list else weights.tolist())
    ]
    assert losses[0] == losses[1]


# -- scores


@pytest.fixture
def scored():
    """Rows with counts, the same repeated, and a mixture."""
    torch.manual_seed(0)
    x = torch.randn(6, 2)
    return pg.GaussianMixture(2, 2), x, COUNTS, x.repeat_interleave(COUNTS, 0)


def test_scores_are_those_of_repeated_rows(scored):
    gen, x, counts, repeated = scored
    found, expected = pg.log_likelihood(gen, x, weights=counts), pg.log_likelihood(gen, repeated)
    assert found.mean == pytest.approx(expected.mean)
    assert found.stderr == pytest.approx(expected.stderr)
    assert found.in_bits_per_dim(2).mean == pytest.approx(expected.in_bits_per_dim(2).mean)
    other = pg.GaussianMixture(2, 2)
    differences = [
        one.difference(pg.log_likelihood(other, *rows))
        if counts is None
        else one.difference(pg.log_likelihood(other, *rows, weights=counts))
        for one, rows, counts in ((found, (x,), counts), (expected, (repeated,), None))
    ]
    assert differences[0] == pytest.approx(differences[1])
    assert str(found) == str(expected)


@pytest.mark.parametrize("criterion", ["aic", "bic"])
def test_criteria_are_those_of_repeated_rows(scored, criterion):
    gen, x, counts, repeated = scored
    found = getattr(gen, criterion)(x, weights=counts)
    assert found == pytest.approx(getattr(gen, criterion)(repeated), rel=1e-6)


def test_an_impossible_row_of_weight_zero_does_not_count():
    score = Score(torch.tensor([-1.0, -torch.inf]), "exact", weights=torch.tensor([1.0, 0.0]))
    assert score.mean == -1.0 and score.stderr == torch.inf


def test_scores_of_other_weights_do_not_compare(scored):
    gen, x, counts, _ = scored
    one = pg.log_likelihood(gen, x, weights=counts)
    for other in (pg.log_likelihood(gen, x), pg.log_likelihood(gen, x, weights=torch.ones(6))):
        with pytest.raises(
            ValueError, match="the same weights, got others; pass the same weights="
        ):
            one.difference(other)


def test_scores_refuse_what_fit_refuses(scored):
    gen, x, counts, _ = scored
    calls = (
        lambda: pg.log_likelihood(gen, x, weights=counts[:5]),
        lambda: gen.bic(x, weights=counts[:5]),
        lambda: gen.aic(x, weights=counts[:5]),
        lambda: Score(torch.zeros(6), "exact", weights=counts[:5].float()),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"expected weights of shape \(6,\), .* got \(5,\)"):
            call()


def test_a_score_knows_weights_of_a_tensor():
    assert weights_from(COUNTS, 6).tolist() == [2.0, 0.0, 1.0, 3.0, 1.0, 1.0]
