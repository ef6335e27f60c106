"""The autoregressive table against enumeration: every order, every pattern of missing entries."""

import itertools
import math

import pytest
import scipy.stats
import torch
from torch.nn.functional import softplus

import probgen as pg
from probgen import heads
from probgen.distributions.conditional import conditional
from probgen.nn import Constant

NAN = math.nan
LEVELS = (3, 2, 3)
ROWS = torch.cartesian_prod(*(torch.arange(float(count)) for count in LEVELS))
ORDERS = list(itertools.permutations(range(3)))
PATTERNS = list(itertools.product((False, True), repeat=3))


def labels():
    return [heads.Categorical(levels=3), heads.Bernoulli(), heads.Ordinal(levels=3)]


def small(seed=0, **options):
    torch.manual_seed(seed)
    gen = pg.AutoregressiveTable(labels(), [8], **options).eval()
    with torch.no_grad():
        for parameter in gen.net.parameters():
            parameter.mul_(3.0)  # columns that depend on each other
    return gen


def deep_nade(seed=0):
    torch.manual_seed(seed)
    return pg.DeepNADE(3, [8], heads.Bernoulli()).eval()


def observed_first(pattern):
    """The order that puts the observed columns first, in their places, and the others after them."""
    return torch.tensor(sorted(range(3), key=lambda at: (not pattern[at], at)))


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_probabilities_sum_to_one_in_every_order(order):
    gen = small(order=torch.tensor(order))
    assert gen().log_prob(ROWS).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_orders_are_different_joint_distributions():
    """What the documentation says: two orders agree as far as training has made them agree."""
    gen = small()
    first = gen().log_prob(ROWS)
    gen.order = torch.tensor([2, 1, 0])
    assert (gen().log_prob(ROWS) - first).abs().max() > 1e-2


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_partly_observed_row_has_its_marginal_in_the_order_that_puts_it_first(pattern):
    gen = small()
    seen = torch.tensor(pattern)
    part = torch.where(seen, ROWS, NAN)
    marginal = gen().log_prob(part)
    gen.order = observed_first(pattern)
    joint = gen().log_prob(ROWS)
    for row, value in zip(part, marginal, strict=True):
        alike = ((row == ROWS) | ~seen).all(-1)
        torch.testing.assert_close(value, joint[alike].logsumexp(0))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_conditionals_are_joint_over_marginal(pattern):
    gen = small()
    seen = torch.tensor(pattern)
    given = conditional(gen(), ROWS, seen.expand_as(ROWS)).log_prob(ROWS)
    gen.order = observed_first(pattern)
    torch.testing.assert_close(
        given, gen().log_prob(ROWS) - gen().log_prob(torch.where(seen, ROWS, NAN))
    )
    other = torch.where(seen, 1 - ROWS.clamp(max=1), ROWS)
    scored = conditional(gen(), ROWS, seen.expand_as(ROWS)).log_prob(other)
    assert scored.isneginf().all() == any(pattern)


@pytest.mark.parametrize(
    "pattern", [(False,) * 3, (True, False, False), (False, True, True)], ids=str
)
def test_completions_have_the_conditional_frequencies(pattern):
    torch.manual_seed(0)
    gen = small()
    row = torch.where(torch.tensor(pattern), torch.tensor([2.0, 1.0, 0.0]), NAN)
    done = pg.impute(gen, row[None], draws=4000)
    assert done.kind == "exact"
    gen.order = observed_first(pattern)
    masses = conditional(gen(), row, ~row.isnan()).log_prob(ROWS).exp()
    kept = masses > 0
    draws = done.draws[:, 0]
    counts = torch.stack([(draws == each).all(-1).sum() for each in ROWS[kept]])
    assert counts.sum() == len(draws)
    shares = masses[kept].double()
    expected = len(draws) * shares / shares.sum()
    assert scipy.stats.chisquare(counts.numpy(), expected.detach().numpy()).pvalue > 1e-3


@pytest.mark.parametrize("make", [small, deep_nade], ids=["AutoregressiveTable", "DeepNADE"])
@pytest.mark.parametrize(
    "row", [[1.0, 0.0, 1.0], [1.0, NAN, 1.0], [NAN, 0.0, NAN], [NAN] * 3], ids=str
)
def test_training_scores_average_to_the_mean_over_orders_of_the_observed(make, row):
    """The estimate of random orders and cuts against all orders, one after the other."""
    gen = make()
    row = torch.tensor(row)
    mean = 0.0
    for order in ORDERS:
        seen = torch.zeros(3, dtype=torch.bool)
        for at in order:
            if not row[at].isnan():
                mean += gen.given(row, seen).log_prob(row)[at].item() / len(ORDERS)
                seen = seen | (torch.arange(3) == at)
    torch.manual_seed(1)
    with torch.no_grad():
        estimates = gen.train()().log_prob(row.expand(20000, -1))
    error = 5 * estimates.std().item() / 20000**0.5 + 1e-5
    assert estimates.mean().item() == pytest.approx(mean, abs=error)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_mixture_of_tables_is_conditioned_by_the_marginals_of_its_components(pattern):
    parts = [small(0), small(1)]
    seen = torch.tensor(pattern)
    given = conditional(pg.Mixture(parts).eval()(), ROWS, seen.expand_as(ROWS)).log_prob(ROWS)
    for gen in parts:
        gen.order = observed_first(pattern)
    joint = torch.stack([gen().log_prob(ROWS) for gen in parts]).logsumexp(0)
    part = torch.where(seen, ROWS, NAN)
    marginal = torch.stack([gen().log_prob(part) for gen in parts]).logsumexp(0)
    torch.testing.assert_close(given, joint - marginal)


@pytest.mark.filterwarnings("ignore::probgen.train.FitWarning")
def test_trained_in_one_order_the_density_is_exact_and_mixtures_train():
    torch.manual_seed(0)
    part = lambda: pg.AutoregressiveTable(labels(), [4], any_order=False)  # noqa: E731
    gen = part().train()
    assert gen().log_prob(ROWS).exp().sum().item() == pytest.approx(1, abs=1e-5)
    mixture = pg.Mixture([part(), part()])
    x = torch.where(torch.rand_like(ROWS) < 0.2, NAN, ROWS)
    history = pg.fit(mixture, x, steps=3, progress=False, compile=False, seed=0)
    assert all(math.isfinite(loss) for loss in history.loss)
    assert pg.log_likelihood(mixture, x).kind == "exact"
    with pytest.raises(ValueError, match="approximate"):
        pg.fit(pg.Mixture([small(), small()]), x, steps=1, progress=False)


def test_completions_around_a_decoder_of_tables_are_called_heuristic():
    """The chain scores by one order and draws by another."""
    torch.manual_seed(0)
    decoder = pg.AutoregressiveTable(labels(), [4], context=1)
    encoder = heads.Gaussian(pg.nn.MLP(3, [4], 2))
    gen = pg.VAE(heads.Gaussian(Constant(2)), decoder, encoder).eval()
    x = torch.where(torch.rand_like(ROWS) < 0.3, NAN, ROWS)
    assert pg.log_likelihood(gen, x, particles=2).kind == "unbiased"
    assert pg.impute(gen, x, num_steps=3, compile=False).kind == "heuristic"


def test_steps_are_truncated():
    gen = small()
    greedy = gen().using(pg.core.Truncation(top_k=1))
    masses = greedy.log_prob(ROWS).exp()
    assert masses.max() == 1 and masses.sum() == 1
    assert torch.equal(greedy.sample((3,)), ROWS[masses.argmax()].expand(3, -1))


def test_draws_have_the_probabilities():
    torch.manual_seed(0)
    gen = small(order=torch.tensor([1, 2, 0]))
    draws = gen().sample((5000,))
    counts = torch.stack([(draws == each).all(-1).sum() for each in ROWS])
    shares = gen().log_prob(ROWS).exp().detach().double()
    expected = 5000 * shares / shares.sum()
    assert scipy.stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 1e-3


def test_the_network_sees_nothing_of_what_is_not_seen():
    torch.manual_seed(0)
    columns = [
        heads.Gaussian(),
        heads.ZeroInflated(head=heads.Gamma()),
        heads.Categorical(levels=3),
    ]
    gen = pg.AutoregressiveTable(columns, [8]).eval()
    seen = torch.tensor([True, False, False])
    x = torch.tensor([[0.5, 0.0, 2.0], [0.5, 7.0, NAN]])
    first, second = gen.seen(x, seen)
    assert torch.equal(first, second)
    # a zero and a missing entry, an atom and a small number are told apart
    here = gen.seen(torch.zeros(3), torch.tensor([True, True, True]))
    gone = gen.seen(torch.zeros(3), torch.tensor([False, True, True]))
    near = gen.seen(torch.tensor([0.0, 1e-6, 0.0]), torch.tensor([True, True, True]))
    assert not torch.equal(here, gone) and not torch.equal(here, near)


def test_fitted_shows_numbers_in_standard_units():
    torch.manual_seed(0)
    z = torch.randn(400, 1)
    x = torch.cat((1000 + 50 * z, torch.full_like(z, 3.0)), -1)
    x[::7, 0] = NAN
    gen = pg.AutoregressiveTable.fitted([heads.Gaussian(), heads.Poisson()], [4], x)
    shown = gen.seen(x, ~x.isnan())
    known = ~x[:, 0].isnan()
    assert shown[known, 0].mean().abs() < 1e-3
    assert shown[known, 0].std() == pytest.approx(1, abs=1e-2)
    assert (shown[:, 1] == 0).all()  # it does not vary
    assert (shown[~known, 0] == 0).all()


def correlated(count):
    """A number, a label and a count that one hidden number makes, and an amount of some rows."""
    z = torch.randn(count)
    label = (z > 0.5).float() + (z > -0.5)
    visits = torch.poisson((0.8 * z).exp())
    amount = torch.where(label == 2, softplus(z), 0.0)
    return torch.stack((z + 0.3 * torch.randn(count), label, visits, amount), -1)


@pytest.mark.slow
@pytest.mark.parametrize("missing", [False, True], ids=["complete", "NaN"])
def test_correlated_columns_are_fitted_better_than_independent_ones(missing):
    torch.manual_seed(0)
    x, held_out = correlated(600), correlated(400)
    if missing:
        x = x.masked_fill(torch.rand_like(x) < 0.2, NAN)
    columns = lambda: [  # noqa: E731
        heads.Gaussian(),
        heads.Categorical(levels=3),
        heads.Poisson(),
        heads.ZeroInflated(head=heads.LogNormal()),
    ]
    scores = []
    width = heads.Mixed(None, columns()).width
    for gen in (
        pg.AutoregressiveTable.fitted(columns(), [32], x),
        heads.Mixed(Constant(width), columns()),
    ):
        pg.fit(
            gen, x, steps=150, batch_size=200, optimizer=pg.train.adam(1e-2), progress=False, seed=0
        )
        scores.append(pg.log_likelihood(gen, held_out))
    assert scores[0].kind == scores[1].kind == "exact"
    gain = scores[0].value - scores[1].value
    assert gain.mean() > 0.5 + 5 * gain.std() / len(gain) ** 0.5


def test_refusals_say_what_to_do():
    with pytest.raises(ValueError, match=r"permutation of 0, ..., 2, got \[0, 0, 1\]"):
        pg.AutoregressiveTable(labels(), [4], order=torch.tensor([0, 0, 1]))
    with pytest.raises(ValueError, match=r"loc of shape \(3,\), .* got \(2,\); use Autoreg"):
        pg.AutoregressiveTable(labels(), [4], loc=torch.zeros(2))
    with pytest.raises(ValueError, match=r"expected scale > 0, .* a scale of 1"):
        pg.AutoregressiveTable(labels(), [4], scale=torch.zeros(3))
    with pytest.raises(ValueError, match="at least one column"):
        pg.AutoregressiveTable([], [4])
    with pytest.raises(ValueError, match=r"integers from 0 to 2"):
        pg.log_likelihood(small(), torch.tensor([[3.0, 0.0, 0.0]]))
    with pytest.raises(ValueError, match="got NaN where mask is True"):
        conditional(small()(), torch.tensor([[NAN, 0.0, 0.0]]), torch.ones(1, 3) > 0)
