"""Every head in every composition, complete rows and rows with missing entries.

Scored against scipy, or where the network decides by integrals (sums) to one; fitted, drawn and
completed.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from head_cases import CASES

import probgen as pg
from probgen import heads
from probgen.diagnostics.column_advice import column_advice
from probgen.diagnostics.marginals import marginals
from probgen.nn import MLP, Constant

NAN = math.nan
ROWS = 6
SECOND = 0.1  # what a second component has more in all raw parameters
LOGITS = [0.3, -0.2]
GAUSSIAN = [0.2, -0.3]
BERNOULLI = [0.8]


@dataclass(frozen=True)
class Composition:
    """How a head is put to use.

    ``make(case)`` builds it, ``log_prob(case, x)`` is its log density by scipy, of entries apart in
    each component: ``(K, N, D)``; ``None`` where a network of earlier entries decides.
    """

    make: Any
    dims: int
    log_prob: Any = None
    kind: str = "exact"
    completes: tuple = ("exact",)
    mixed: bool = False


def stacked(raw, variables):
    return torch.tensor(raw).repeat_interleave(variables)


def alone(case, more=0.0):
    return case.make(Constant(2 * len(case.raw), initial=stacked(case.raw, 2) + more))


def columns(case):
    return [case.make(), heads.Gaussian(), heads.Bernoulli(), case.make()]


def raw_of_columns(case, more=0.0):
    return torch.tensor([*case.raw, *GAUSSIAN, *BERNOULLI, *case.raw]) + more


def mixed(case, more=0.0):
    raw = raw_of_columns(case, more)
    return heads.Mixed(Constant(len(raw), initial=raw), columns(case))


def mixture(part):
    def made(case):
        weights = Constant(2, initial=torch.tensor(LOGITS))
        return pg.Mixture([part(case), part(case, SECOND)], weights)

    return made


def vae(case):
    """A decoder that looks away, and an encoder that says what the prior says."""
    decoder, encoder = MLP(1, [], 2 * len(case.raw)), MLP(2, [], 2)
    with torch.no_grad():
        for net in (decoder, encoder):
            net.last.weight.zero_()
            net.last.bias.zero_()
        decoder.last.bias.copy_(stacked(case.raw, 2))
    prior = heads.Gaussian(Constant(2))
    return pg.VAE(prior, case.make(decoder), heads.Gaussian(encoder))


def with_small_weights(gen):
    with torch.no_grad():
        for parameter in gen.net.parameters() if isinstance(gen, pg.MADE) else ():
            parameter.mul_(0.3)
    return gen


def of_entries(case, x, more=0.0):
    """Log densities of entries of the head, ``(N, D)``."""
    return case.log_prob(np.array(case.raw) + more, x)


def of_columns(case, x, more=0.0):
    raw = np.array(GAUSSIAN) + more
    scale = np.log1p(np.exp(raw[1])) + 1e-3
    share = scipy.special.expit(BERNOULLI[0] + more)
    parts = (
        of_entries(case, x[:, 0], more),
        scipy.stats.norm.logpdf(x[:, 1], raw[0], scale),
        scipy.stats.bernoulli.logpmf(x[:, 2], share),
        of_entries(case, x[:, 3], more),
    )
    return np.stack(parts, -1)


def two(entries):
    weights = scipy.special.log_softmax(LOGITS)

    def both(case, x):
        return np.stack([entries(case, x), entries(case, x, SECOND)]), weights

    return both


def one(entries):
    return lambda case, x: (entries(case, x)[None], np.zeros(1))


def table(case):
    return pg.AutoregressiveTable(columns(case), [4])


COMPOSITIONS = {
    "alone": Composition(alone, 2, one(of_entries)),
    "Mixed": Composition(mixed, 4, one(of_columns), mixed=True),
    "Mixture": Composition(mixture(alone), 2, two(of_entries)),
    "mixture of Mixed": Composition(mixture(mixed), 4, two(of_columns), mixed=True),
    "VAE": Composition(vae, 2, one(of_entries), kind="unbiased", completes=("asymptotic",)),
    "MADE": Composition(lambda case: with_small_weights(pg.MADE(2, [4], case.make())), 2),
    "NADE": Composition(lambda case: pg.NADE(2, 4, case.make()), 2),
    "AutoregressiveTable": Composition(table, 4, mixed=True),
}
CELLS = [
    pytest.param(
        case, composition, missing, id=f"{head}, {name}, {'NaN' if missing else 'complete'}"
    )
    for head, case in CASES.items()
    for name, composition in COMPOSITIONS.items()
    for missing in (False, True)
]
cells = pytest.mark.parametrize("case, composition, missing", CELLS)
table_of = pytest.mark.table


def rows(case, composition, missing):
    """Values of the head, atoms among them; the last column or any other is missing in some."""
    few = case.few
    picked = few[torch.linspace(0, len(few) - 1, 2 * ROWS).long()].reshape(2, ROWS)
    picked[0, :2] = few[:1]
    if composition.mixed:
        flags = torch.arange(ROWS) % 2.0
        x = torch.stack((picked[0], torch.linspace(-1, 1, ROWS), flags, picked[1]), -1)
    else:
        x = picked.mT.clone()
    if missing:
        x[::2, -1] = NAN
        if composition.log_prob is not None:
            x[1::2, 0] = NAN
            x[1] = NAN
    return x


def reference(case, composition, x):
    """Log densities of rows by scipy, missing entries left out."""
    known = ~x.isnan()
    filled = torch.where(known, x, case.few[0] if not composition.mixed else 0.0)
    if composition.mixed:
        filled[:, [0, 3]] = torch.where(known[:, [0, 3]], x[:, [0, 3]], case.few[0])
    terms, weights = composition.log_prob(case, filled.double().numpy())
    sums = np.where(known.numpy(), terms, 0.0).sum(-1) + weights[:, None]
    return torch.as_tensor(scipy.special.logsumexp(sums, 0), dtype=torch.float32)


@table_of(quick=24)
@cells
def test_scored(case, composition, missing):
    torch.manual_seed(0)
    gen = composition.make(case).eval()
    x = rows(case, composition, missing)
    score = pg.log_likelihood(gen, x, particles=2, compile=False)
    assert score.kind == composition.kind
    if composition.log_prob is not None:
        expected = reference(case, composition, x)
        torch.testing.assert_close(score.value, expected, rtol=1e-3, atol=1e-3)
        return
    # the chain rule: the last entry, summed or integrated out, leaves the density of the others
    values = case.points
    pairs = x[:1].repeat(len(values), 1)
    pairs[:, -1] = values
    with torch.no_grad():
        total = (gen().log_prob(pairs) + case.weights.log()).logsumexp(0)
        pairs[:1, -1] = NAN
        left = gen().log_prob(pairs[:1])[0]
        torch.testing.assert_close(total, left, rtol=0, atol=2e-2)
        torch.testing.assert_close(score.value, gen().log_prob(x))


@pytest.mark.filterwarnings("ignore::probgen.train.FitWarning")
@table_of(quick=24)
@cells
def test_fitted(case, composition, missing):
    torch.manual_seed(0)
    gen = composition.make(case)
    before = [parameter.detach().clone() for parameter in gen.parameters()]
    x = rows(case, composition, missing)
    history = pg.fit(gen, x, steps=2, batch_size=ROWS, progress=False, seed=0, compile=False)
    assert all(math.isfinite(loss) for loss in history.loss)
    after = list(gen.parameters())
    assert all(parameter.isfinite().all() for parameter in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


@table_of(quick=12)
@pytest.mark.parametrize("composition", COMPOSITIONS.values(), ids=COMPOSITIONS.keys())
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_drawn(case, composition):
    torch.manual_seed(0)
    gen = composition.make(case).eval()
    x = pg.sample(gen, 400, seed=0)
    assert x.shape == (400, composition.dims)
    own = x[:, [0, 3]] if composition.mixed else x
    support = case.make()(torch.tensor(case.raw)).support
    assert support.check(own.unsqueeze(-1)).all()
    for atom in case.atoms:
        assert ((own == atom).float().mean(0) > 0.05).all()
        assert ((own == atom).float().mean(0) < 0.95).all()


@table_of(quick=12)
@pytest.mark.parametrize("composition", COMPOSITIONS.values(), ids=COMPOSITIONS.keys())
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_completed(case, composition):
    torch.manual_seed(0)
    gen = composition.make(case).eval()
    x = rows(case, composition, True)
    done = pg.impute(gen, x, draws=3, num_steps=5, compile=False, seed=0)
    assert done.kind in composition.completes
    known = ~x.isnan()
    assert torch.equal(done.draws[:, known], x[known].expand(3, -1))
    own = done.draws[..., [0, 3]] if composition.mixed else done.draws
    support = case.make()(torch.tensor(case.raw)).support
    assert support.check(own.unsqueeze(-1)).all()


def test_draws_of_a_mixture_have_the_moments_of_the_density():
    """Means of completions against the mean of the conditional by enumeration of an atom and a grid."""
    torch.manual_seed(0)
    case = CASES["ZeroInflated Gamma"]
    gen = mixture(alone)(case).eval()
    x = torch.tensor([[0.0, NAN]])
    done = pg.impute(gen, x, draws=20000, seed=0)
    values = case.points
    pairs = torch.stack((torch.zeros_like(values), values), -1)
    with torch.no_grad():
        masses = gen().log_prob(pairs).exp() * case.weights
        masses = masses / gen().log_prob(x).exp()
    assert masses.sum().item() == pytest.approx(1, abs=1e-4)
    mean = (masses * values).sum().item()
    second = (masses * values.square()).sum().item()
    error = 5 * math.sqrt((second - mean**2) / 20000)
    assert done.mean()[0, 1].item() == pytest.approx(mean, abs=error)
    share = (done.draws[:, 0, 1] == 0).float().mean().item()
    assert share == pytest.approx(masses[0].item(), abs=5 * 0.5 / math.sqrt(20000))


def test_components_with_other_atoms_are_refused_and_the_advice_works():
    inflated = heads.ZeroInflated(Constant(3), head=heads.Gamma())
    plain = heads.Gamma(Constant(2))
    with pytest.raises(ValueError, match=r"the same atoms, .* got \(\) and \(0.0,\); give every"):
        pg.Mixture([inflated, plain])()
    both = pg.Mixture(
        [inflated, heads.ZeroInflated(Constant(3), head=heads.LogNormal(), atoms=0.0)]
    )
    assert both().log_prob(torch.zeros(1)).exp().item() == pytest.approx(0.5)


def test_ordinal_regression_finds_the_thresholds():
    """Against the frequencies of the labels, which free thresholds reproduce exactly."""
    torch.manual_seed(0)
    shares = torch.tensor([0.5, 0.1, 0.15, 0.25])
    x = torch.arange(4.0).repeat_interleave((shares * 200).long())[:, None]
    head = heads.Ordinal(Constant(1), levels=4)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = -head().log_prob(x).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    found = head().log_prob(torch.arange(4.0)[:, None]).exp()
    torch.testing.assert_close(found, shares, rtol=0, atol=1e-3)
    assert (head.thresholds.diff() > 0).all()


def test_heads_of_columns_refuse_in_a_sentence():
    with pytest.raises(
        ValueError, match="expected low, high or both, got none of them; give an end"
    ):
        heads.TruncatedGaussian()
    with pytest.raises(ValueError, match="low"):
        heads.TruncatedGaussian(low=1.0, high=0.0)
    with pytest.raises(ValueError, match=r"expected atoms that differ, got \[0.0, 0.0\]"):
        heads.ZeroInflated(head=heads.Poisson(), atoms=(0, 0))
    with pytest.raises(ValueError, match=r"numbers between 0 and 1, without these"):
        pg.log_likelihood(heads.Beta(Constant(2)), torch.tensor([[0.5], [1.0]]))
    taken = heads.ZeroInflated(Constant(4), head=heads.Beta(), atoms=(0.0, 1.0))
    assert pg.log_likelihood(taken, torch.tensor([[0.5], [1.0]])).kind == "exact"
    with pytest.raises(ValueError, match="positive numbers, or 0"):
        pg.log_likelihood(
            heads.ZeroInflated(Constant(3), head=heads.Gamma()), torch.tensor([[0.5], [-1.0]])
        )


def test_atoms_of_counts_may_lie_outside_of_them():
    """A code beside counts: it sums to one with them, and is enumerated where they are."""
    head = heads.ZeroInflated(Constant(3), head=heads.Categorical(levels=2), atoms=(-1.0,))
    values = head().base_dist.enumerate_support()
    assert values.flatten().tolist() == [-1.0, 0.0, 1.0]
    assert head().log_prob(values).exp().sum().item() == pytest.approx(1)
    assert head().support.is_discrete


def test_other_units_and_scores_are_refused_where_numbers_have_a_mass():
    gen = heads.ZeroInflated(Constant(6), head=heads.Gaussian())
    with pytest.raises(ValueError, match="single numbers have a mass, which other units do not"):
        pg.Standardized(gen)
    with pytest.raises(ValueError, match="a distribution of real variables with a density"):
        pg.fit(gen, torch.randn(20, 2), pg.objectives.ScoreMatching(), steps=1, progress=False)


def amounts(count=400):
    torch.manual_seed(0)
    x = torch.randn(count, 2).exp()
    x[torch.rand(count) < 0.4, 0] = 0.0
    x[::9, 1] = NAN
    return x


def test_the_baseline_of_atoms_is_the_best_of_independent_columns():
    """Independent columns with the same atoms, fitted by gradients, come to the same score."""
    x = amounts().clamp(max=3)
    columns = [heads.ZeroInflated(head=heads.Gaussian()), heads.Gaussian()]
    gen = heads.Mixed(Constant(5), columns)
    optimizer = torch.optim.LBFGS(gen.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = -gen().log_prob(x).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    found = marginals(x, x, gen().support)
    fitted = gen().log_prob(x).mean().item()
    assert found.own.mean().item() == pytest.approx(fitted, abs=0.02)


def test_advice_about_atoms_is_followed():
    x = amounts()
    plain = heads.Mixed(Constant(4), [heads.Gaussian(), heads.Gaussian()])
    told = [finding.text for finding in column_advice(plain, x)]
    assert any("ZeroInflated(head=..., atoms=0)" in text for text in told)
    taken = [heads.ZeroInflated(head=heads.Gaussian(), atoms=0), heads.Gaussian()]
    left = [finding.text for finding in column_advice(heads.Mixed(Constant(5), taken), x)]
    assert not any("atoms=" in text for text in left)


def test_labels_beside_numbers_are_not_told_to_be_dequantized():
    x = torch.stack((torch.randn(300), torch.randint(3, (300,)).float()), -1)
    gen = heads.Mixed(Constant(5), [heads.Gaussian(), heads.Categorical(levels=3)])
    assert not any("few values" in finding.text for finding in column_advice(gen, x))


def test_positive_columns_are_not_told_to_be_mapped():
    x = torch.cat((amounts()[:, 1:], torch.randn(400, 1)), -1)
    for head, told in ((heads.Gaussian(), True), (heads.LogNormal(), False)):
        gen = heads.Mixed(Constant(4), [head, heads.Gaussian()])
        texts = [finding.text for finding in column_advice(gen, x)]
        assert any("heavy tails" in text for text in texts) == told


def test_scores_compare_where_the_atoms_are_the_same():
    x = amounts()[:, :1]
    of = {
        "plain": heads.Gaussian(Constant(2)),
        "atom": heads.ZeroInflated(Constant(3), head=heads.Gaussian()),
        "column": heads.Mixed(Constant(3), [heads.ZeroInflated(head=heads.LogNormal())]),
        "other": heads.ZeroInflated(Constant(4), head=heads.Gaussian(), atoms=(0.0, 1.0)),
    }
    scores = {name: pg.log_likelihood(gen, x) for name, gen in of.items()}
    assert scores["plain"].measure == "density"
    assert scores["atom"].measure == scores["column"].measure == "density with atoms at 0"
    scores["atom"].difference(scores["column"])
    for name in ("plain", "other"):
        with pytest.raises(TypeError, match="the same atoms, got a density with atoms at 0 and a"):
            scores["atom"].difference(scores[name])
    with pytest.raises(ValueError, match="report it in nats"):
        scores["atom"].in_bits_per_dim(1)
