"""Labels of few rows: the semi-supervised VAE against quadrature, mixtures with labels against formulas."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot
from torch.testing import assert_close

import probgen as pg
from probgen.core.loss_parts import noted_parts
from probgen.core.module import standard_normal
from probgen.distributions.covariance import Diagonal, Full, Tied
from probgen.heads import Bernoulli, Gaussian
from probgen.nn import MLP, ConvDecoder, ConvEncoder
from probgen.objectives import ELBO, IWAE, EnumeratedELBO
from probgen.train import Labeled, adam

nan = torch.nan
X = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1], [1, 0, 1, 1], [0, 1, 0, 0]]).float()
Y = torch.tensor([0.0, nan, 2.0, nan, 1.0])
KNOWN = ~Y.isnan()
LABEL = Y.nan_to_num().long()

# a grid over the one latent number, with the weights of the trapezoidal rule
GRID = torch.linspace(-9.0, 9.0, 1201)[:, None]
STEP = (GRID[1] - GRID[0]).log()


def semi_supervised(prior=None, alpha=0.0):
    torch.manual_seed(0)
    decoder = Bernoulli(MLP(1 + 3, [8], 4))
    encoder = Gaussian(MLP(4 + 3, [8], 2))
    prior = standard_normal(1) if prior is None else prior()
    gen = pg.SemiSupervisedVAE(prior, decoder, encoder, nn.Linear(4, 3), 3, alpha=alpha)
    with torch.no_grad():
        gen.logits.copy_(torch.tensor([0.4, -0.6, 0.1]))
    return gen


def prior_of_labels():
    return Gaussian(nn.Linear(3, 2))


def label_rows(k, rows):
    return one_hot(torch.tensor(k), 3).float().expand(rows, 3)


def log_joint(gen, k):
    """log p(y = k) p(z | k) p(x | k, z) on the grid: (points, rows)."""
    label = label_rows(k, len(GRID))
    prior = gen.prior(label)
    x_given = gen.decode(GRID, label)
    by_row = torch.stack([x_given.log_prob(x) for x in X], 1)
    return gen.logits.log_softmax(-1)[k] + prior.log_prob(GRID)[:, None] + by_row


def log_evidence(gen):
    """log p(x, y) of all labels, by quadrature: (rows, 3)."""
    return torch.stack([(log_joint(gen, k) + STEP).logsumexp(0) for k in range(3)], 1)


def bounds(gen):
    """The bound L(x, y) of all labels, by quadrature over q(z | x, y): (rows, 3)."""
    found = []
    for k in range(3):
        q = gen.encode(X, label_rows(k, len(X)))
        log_q = torch.stack([q.log_prob(z.expand(len(X), 1)) for z in GRID])
        found.append(((log_q + STEP).exp() * (log_joint(gen, k) - log_q)).sum(0))
    return torch.stack(found, 1)


def bound(gen):
    """What Kingma et al. (2014) maximize without the classifier's term: (rows,)."""
    each = bounds(gen)
    log_q = gen.classify(X).logits
    missing = (log_q.exp() * (each - log_q)).sum(1)
    return torch.where(KNOWN, each.gather(1, LABEL[:, None])[:, 0], missing)


def gradients(loss, gen):
    found = torch.autograd.grad(loss, list(gen.parameters()), materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in found])


PRIORS = {"p(z)": None, "p(z | y)": prior_of_labels}


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_scores_are_those_of_rows_with_their_labels_and_of_rows_alone(prior):
    gen = semi_supervised(prior, alpha=3.0)
    truth = log_evidence(gen).detach()
    joint = torch.where(KNOWN, truth.gather(1, LABEL[:, None])[:, 0], truth.logsumexp(1))
    for score, exact in [
        (pg.log_likelihood(gen, X, Y, particles=4000, seed=0), joint),
        (pg.log_likelihood(gen, X, particles=4000, seed=0), truth.logsumexp(1)),
    ]:
        assert score.kind == "unbiased"
        assert_close(score.value, exact, atol=0.1, rtol=0.0)


def test_given_labels_the_distribution_is_that_of_rows_of_their_class():
    gen = semi_supervised(prior_of_labels)
    conditional = log_evidence(gen) - gen.logits.log_softmax(-1)
    given = gen(LABEL)
    given.particles = 4000
    torch.manual_seed(0)
    truth = conditional.gather(1, LABEL[:, None])[:, 0]
    assert_close(given.log_prob(X), truth, atol=0.1, rtol=0.0)
    unknown = gen(Y)
    unknown.particles = 4000
    marginal = log_evidence(gen).logsumexp(1)
    assert_close(unknown.log_prob(X), torch.where(KNOWN, truth, marginal), atol=0.1, rtol=0.0)


def test_draws_given_labels_have_the_means_of_their_classes():
    gen = semi_supervised(prior_of_labels)
    drawn = pg.sample(gen, 4000, torch.arange(3), seed=0)
    assert drawn.shape == (4000, 3, 4)
    for k in range(3):
        label = label_rows(k, len(GRID))
        weights = (gen.prior(label).log_prob(GRID) + STEP).exp()
        mean = (weights[:, None] * gen.decode(GRID, label).mean).sum(0)
        assert_close(drawn[:, k].mean(0), mean.detach(), atol=0.04, rtol=0.0)
    without = pg.sample(gen, 4000, seed=0).mean(0)
    shares = gen.logits.softmax(-1).detach()
    assert_close(without, (shares[:, None] * drawn.mean(0)).sum(0), atol=0.04, rtol=0.0)


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_the_loss_is_the_bound_of_the_paper(prior):
    gen = semi_supervised(prior)
    truth = bound(gen)
    joint = log_evidence(gen)
    exact = torch.where(KNOWN, joint.gather(1, LABEL[:, None])[:, 0], joint.logsumexp(1))
    assert (truth < exact).all()
    torch.manual_seed(0)
    loss = EnumeratedELBO(particles=4000)(gen.model, gen.guide)(X, Y)
    assert_close(-loss, truth.sum(), atol=0.15, rtol=0.0)
    slopes = gradients(-loss, gen)
    assert_close(slopes, gradients(truth.sum(), gen), atol=0.1, rtol=0.02)


@pytest.mark.parametrize("objective", [EnumeratedELBO, ELBO, IWAE], ids=lambda kind: kind.__name__)
def test_alpha_adds_the_classifiers_loss_on_labels_and_is_noted(objective):
    def loss(alpha):
        gen = semi_supervised(alpha=alpha)
        torch.manual_seed(1)
        with noted_parts() as parts:
            value = objective(particles=3)(gen.model, gen.guide)(X, Y)
        return gen, value, parts

    gen, value, parts = loss(2.0)
    without = loss(0.0)[1]
    error = -gen.classify(X[KNOWN]).log_prob(LABEL[KNOWN]).sum()
    assert_close(value - without, 2.0 * error)
    if objective is not IWAE:
        assert_close(parts["classification"].value, 2.0 * error.detach())
        assert_close(sum(part.value for part in parts.values()), value.detach())


def test_the_bound_of_labeled_rows_says_nothing_about_the_classifier():
    gen = semi_supervised()
    loss = EnumeratedELBO(particles=2)(gen.model, gen.guide)(X[KNOWN], Y[KNOWN])
    slopes = torch.autograd.grad(loss, list(gen.classifier.parameters()), materialize_grads=True)
    assert all((slope == 0).all() for slope in slopes)


def test_weights_of_rows_multiply_bound_and_classifier():
    gen = semi_supervised(alpha=1.5)
    weights = torch.tensor([2.0, 0.5, 1.0, 3.0, 0.25])

    def loss(rows, weights):
        torch.manual_seed(0)
        with pyro.poutine.scale(scale=weights):
            objective = EnumeratedELBO(particles=4000)
            return objective(gen.model, gen.guide)(X[rows], Y[rows])

    whole = loss(range(5), weights)
    error = torch.where(KNOWN, -1.5 * gen.classify(X).log_prob(LABEL), 0.0)
    truth = (weights * (error - bound(gen))).sum()
    assert_close(whole, truth, atol=0.2, rtol=0.0)


def test_labels_of_other_forms_mean_the_same():
    gen = semi_supervised()
    labels = torch.tensor([0, 2, 2, 1, 1])

    def score(y):
        return pg.log_likelihood(gen, X, y, seed=0).value

    assert_close(score(labels), score(labels.double()))
    assert_close(score([0.0, None, 2.0, None, 1.0]), score(Y))


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.tensor([0, 1, 2, 3, 0]), r"expected y with values that .*got 3 in row 3"),
        (torch.tensor([0.0, 0.5, 0, 0, 0]), r"got 0.5 in row 1"),
        (LABEL[:, None], r"expected labels y of shape \(N,\), got \(5, 1\); .*y\[:, 0\]"),
        (one_hot(LABEL), r"one-hot ones y.argmax\(-1\)"),
    ],
)
def test_other_labels_are_refused(y, message):
    gen = semi_supervised()
    with pytest.raises(ValueError, match=message):
        pg.log_likelihood(gen, X, y)


@pytest.mark.parametrize("rows", [X.double(), X.half(), X.numpy(), X.long(), X.tolist(), X[None]])
def test_labels_are_predicted_of_rows_of_any_form(rows):
    gen = semi_supervised()
    wanted = gen.classifier(X).argmax(1)
    assert torch.equal(gen.predict(rows).reshape(-1), wanted)


def test_images_get_their_labels_as_channels():
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 36, 3))
    gen = pg.SemiSupervisedVAE(
        standard_normal(2),
        Bernoulli(ConvDecoder(2 + 3, (1, 8, 8), hidden=(4,)), event_ndim=3),
        Gaussian(ConvEncoder((1 + 3, 8, 8), 4, hidden=(4,)), context_ndim=3),
        classifier,
        3,
    )
    x = torch.rand(5, 1, 8, 8).round()
    loss = EnumeratedELBO(particles=2)(gen.model, gen.guide)(x, Y)
    assert loss.isfinite()
    assert gen.predict(x).shape == (5,)
    assert gen.predict(x[:, None]).shape == (5, 1)
    assert pg.sample(gen, 2, torch.arange(3)).shape == (2, 3, 1, 8, 8)


def test_missing_pixels_are_integrated_out():
    gen = semi_supervised()
    gaps = X.clone()
    gaps[:, 1] = nan
    filled = [gaps.nan_to_num(value) for value in (0.0, 1.0)]
    both = [log_evidence_of(gen, x) for x in filled]
    truth = torch.stack(both).logsumexp(0)
    score = pg.log_likelihood(gen, gaps, Y, particles=4000, seed=0).value
    assert_close(score, truth, atol=0.1, rtol=0.0)


@pytest.mark.parametrize("labels", [Y, None], ids=["some labels", "none"])
def test_missing_pixels_are_imputed_from_their_conditional(labels):
    gen = semi_supervised(alpha=2.0)
    gaps = X.clone()
    gaps[:, 1] = nan
    both = [log_evidence_of(gen, gaps.nan_to_num(value), labels) for value in (0.0, 1.0)]
    truth = torch.stack(both).softmax(0)[1]
    given = () if labels is None else (labels,)
    done = pg.impute(gen, gaps, *given, draws=800, num_steps=20, seed=0)
    assert done.kind == "asymptotic"
    assert_close(done.mean()[:, 1], truth, atol=0.06, rtol=0.0)


def log_evidence_of(gen, x, labels=Y):
    return pg.log_likelihood(gen, x, labels, particles=20_000, seed=1).value


def clusters(rows, seed):
    """Three classes of noisy patterns of 12 bits, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.tensor([[1] * 4 + [0] * 8, [0] * 4 + [1] * 4 + [0] * 4, [0] * 8 + [1] * 4])
    y = torch.randint(3, (rows,), generator=generator)
    flipped = torch.rand(rows, 12, generator=generator) < 0.2
    return (patterns[y].bool() ^ flipped).float(), y


@pytest.mark.slow
def test_rows_without_a_label_teach_the_classifier():
    x, y = clusters(600, 0)
    held_out, truth = clusters(1000, 1)
    few = torch.cat([(y == k).nonzero()[:2, 0] for k in range(3)])
    labels = torch.full((600,), nan)
    labels[few] = y[few].float()
    torch.manual_seed(0)
    encoder, decoder = Gaussian(MLP(12 + 3, [16], 2)), Bernoulli(MLP(1 + 3, [16], 12))
    classifier = MLP(12, [16], 3)
    gen = pg.SemiSupervisedVAE(standard_normal(1), decoder, encoder, classifier, 3, alpha=30.0)
    data = Labeled(x, labels, labeled_share=0.1)
    options = {"optimizer": adam(2e-2), "seed": 0, "verdict": False, "progress": False}
    pg.fit(gen, data, steps=200, batch_size=60, compile=False, **options)
    alone = MLP(12, [16], 3)
    supervised = torch.optim.Adam(alone.parameters(), 5e-3)
    for _ in range(300):
        supervised.zero_grad()
        nn.functional.cross_entropy(alone(x[few]), y[few]).backward()
        supervised.step()
    error, of_few = (
        (found != truth).float().mean()
        for found in (gen.predict(held_out), alone(held_out).argmax(1))
    )
    by_counts = held_out.unflatten(1, (3, 4)).sum(2).argmax(1)  # what the truth says, but for ties
    assert error < (by_counts != truth).float().mean() + 0.02
    assert error < of_few - 0.05


# -- mixtures


def two_normals(rows=200, labeled=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = (torch.arange(rows) % 2).long()
    noise = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    x = noise * torch.tensor([1.0, 0.5]) + torch.tensor([[0.0, 0.0], [1.8, 0.4]])[y]
    known = torch.arange(rows) < labeled
    return x, torch.where(known, y.double(), nan), y


def log_component(gen, x):
    """log p(x, k), entries of x that are missing left out: (rows, K)."""
    found = []
    for row in x:
        seen = ~row.isnan()
        covariance = gen.covariances[:, seen][:, :, seen]
        normal = dist.MultivariateNormal(gen.means[:, seen], covariance)
        found.append(gen.weights.log() + normal.log_prob(row[seen]))
    return torch.stack(found)


def value_of(gen, x, labels):
    joint = log_component(gen, x)
    own = joint.gather(1, labels.nan_to_num().long()[:, None])[:, 0]
    return torch.where(labels.isnan(), joint.logsumexp(1), own).mean()


@pytest.mark.parametrize("gaps", [False, True], ids=["complete", "missing entries"])
@pytest.mark.parametrize("kind", [Full, Diagonal])
def test_likelihood_of_mixtures_with_labels(kind, gaps):
    x, labels, _ = two_normals()
    if gaps:
        x = x.clone()
        x[::5, 0] = nan
    gen = pg.GaussianMixture(2, 2, kind).double()
    result = pg.em(gen, x, labels=labels, seed=0)
    assert_close(result.log_likelihood[-1], value_of(gen, x, labels))
    assert (result.log_likelihood.diff() > -1e-9).all()
    blocks = pg.GaussianMixture(2, 2, kind).double()
    pg.em(blocks, x, labels=labels, seed=0, max_rows=30)
    assert_close(blocks.means, gen.means)


def test_a_step_is_the_formula_with_known_responsibilities():
    x, labels, _ = two_normals()
    gen = pg.GaussianMixture(2, 2).double()
    pg.em(gen, x, labels=labels, max_iter=0, seed=0)
    shares = log_component(gen, x).softmax(1)
    shares = torch.where(labels.isnan()[:, None], shares, one_hot(labels.nan_to_num().long()))
    means = shares.mT @ x / shares.sum(0)[:, None]
    gap = x[:, None] - means
    covariances = torch.einsum("nk,nki,nkj->kij", shares, gap, gap) / shares.sum(0)[:, None, None]
    pg.em(gen, x, labels=labels, n_init=0, max_iter=1, tol=0.0)
    assert_close(gen.weights, shares.mean(0))
    assert_close(gen.means, means)
    assert_close(gen.covariances, covariances)


def test_with_all_labels_it_is_discriminant_analysis():
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    x, _, y = two_normals()
    gen = pg.GaussianMixture(2, 2, Tied).double()
    result = pg.em(gen, x, labels=y)
    assert result.n_iter <= 2
    theirs = LinearDiscriminantAnalysis(solver="lsqr", store_covariance=True).fit(x, y)
    assert_close(gen.means, torch.as_tensor(theirs.means_))
    assert_close(gen.covariances[0], torch.as_tensor(theirs.covariance_))
    assert_close(gen.responsibilities(x), torch.as_tensor(theirs.predict_proba(x)))


def test_weights_are_repeated_rows_with_their_labels():
    x, labels, _ = two_normals(60, 10)
    counts = torch.arange(60) % 3
    weighted, repeated = (pg.GaussianMixture(2, 2).double() for _ in range(2))
    pg.em(weighted, x, labels=labels, weights=counts.double(), seed=0)
    rows = counts.bool()
    again = [part[rows].repeat_interleave(counts[rows], 0) for part in (x, labels)]
    pg.em(repeated, again[0], labels=again[1], seed=0)
    assert_close(weighted.means, repeated.means, atol=1e-3, rtol=0.0)


def test_the_fixed_point_is_that_of_a_program_that_observes_labels():
    x, labels, _ = two_normals()
    gen = pg.GaussianMixture(2, 2).double()
    pg.em(gen, x, labels=labels, tol=1e-12, max_iter=2000, seed=0)
    loc = gen.means.clone().requires_grad_()
    logits = gen.weights.log().requires_grad_()

    def program(x, y):
        with pyro.plate("data", len(x)):
            y = pg.observe("y", dist.Categorical(logits=logits), y)
            normal = dist.MultivariateNormal(loc[y.long()], gen.covariances[y.long()])
            pyro.sample("x", normal, obs=x)

    loss = EnumeratedELBO()(program, lambda *batch: None)(x, labels)
    assert_close(-loss / len(x), value_of(gen, x, labels))
    assert_close(torch.autograd.grad(loss, loc)[0], torch.zeros(2, 2).double(), atol=1e-3, rtol=0)


def test_components_are_classes_and_rows_without_a_label_help():
    x, labels, y = two_normals(2000, 6, seed=1)
    gen = pg.GaussianMixture(2, 2, Tied).double()
    pg.em(gen, x, labels=labels, seed=0)
    error = (gen.predict(x) != y).double().mean()
    truth = pg.GaussianMixture(2, 2, Tied).double()
    pg.em(truth, x, labels=y)
    assert error < (truth.predict(x) != y).double().mean() + 0.01
    swapped = pg.GaussianMixture(2, 2, Tied).double()
    pg.em(swapped, x, labels=1 - labels, seed=0)
    assert_close(swapped.means.flip(0), gen.means, atol=1e-3, rtol=0.0)


def test_components_without_any_label_are_found():
    x, labels, y = two_normals(600, 40)
    far = torch.tensor([-6.0, 6.0]) + 0.3 * torch.randn(100, 2, dtype=torch.float64)
    x = torch.cat([x, far])
    labels = torch.cat([labels, torch.full((100,), nan)])
    gen = pg.GaussianMixture(3, 2).double()
    pg.em(gen, x, labels=labels, seed=0)
    assert (gen.predict(far) == 2).all()
    assert (gen.predict(x[:600]) == y).double().mean() > 0.8


REFUSED = [
    ({"labels": torch.zeros(3)}, "a label for each of 200 rows"),
    ({"labels": torch.full((200,), -1)}, r"got -1 in row 0; .*torch.where\(labels < 0"),
    ({"labels": torch.full((200,), 2)}, "expected labels 0, ..., 1, got 2; use 3 components"),
    ({"labels": torch.full((200,), 0.5)}, "got 0.5 in row 0"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_labels_that_say_nothing_are_refused(options, message):
    x, _, _ = two_normals()
    with pytest.raises(ValueError, match=message):
        pg.em(pg.GaussianMixture(2, 2).double(), x, **options)


def test_families_without_components_refuse_labels():
    x, labels, _ = two_normals()
    with pytest.raises(
        TypeError, match="expect and initialize take labels, got PPCA; take a Gauss"
    ):
        pg.em(pg.PPCA(2, factors=1).double(), x, labels=labels)


def test_unknown_labels_as_the_advice_says():
    x, labels, _ = two_normals()
    numbers = labels.nan_to_num(-1.0)
    gen, same = (pg.GaussianMixture(2, 2).double() for _ in range(2))
    pg.em(gen, x, labels=labels, seed=0)
    pg.em(same, x, labels=torch.where(numbers < 0, torch.nan, numbers), seed=0)
    assert_close(gen.means, same.means)
