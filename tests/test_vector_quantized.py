"""VQ-VAE against sums over all configurations of tokens; training by stages, at once, resumed, compiled."""

import itertools

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import probgen as pg
from probgen.heads import Bernoulli, Categorical
from probgen.nn import Codebook, FiniteScalarQuantizer
from probgen.nn.encodings import Levels, OneHot
from probgen.nn.transformer import Tokens
from probgen.objectives import IWAE

X = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)))
TOKENS = torch.tensor(list(itertools.product([0.0, 1.0, 2.0], repeat=2)))


def hidden():
    return nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 4)


def tiny(quantizer=None, prior=None):
    """Rows (4,), tokens (2,) of 3 values."""
    torch.manual_seed(0)
    encoder = nn.Sequential(*hidden(), nn.Unflatten(-1, (2, 2)))
    decoder = nn.Sequential(nn.Flatten(-2), *hidden())
    uneven = pg.Fixed(dist.Categorical, logits=torch.randn(2, 3))
    quantizer = quantizer or Codebook(3, 2)
    return pg.VQVAE(encoder, Bernoulli(decoder, context_ndim=2), quantizer, prior or uneven)


@torch.no_grad()
def joint(gen, x=X):
    """log p(x, k) for all k: (rows, 9)."""
    likelihood = gen.decode(TOKENS).log_prob(x[:, None])
    return gen.prior().log_prob(TOKENS) + likelihood


def quantizers():
    return {"codebook": Codebook(3, 2), "grid": FiniteScalarQuantizer((3, 1 + 1))}


def test_scores_are_the_terms_of_the_tokens_of_rows_and_bounds():
    gen = tiny().eval()
    score = pg.log_likelihood(gen, X)
    assert score.kind == "bound"
    chosen = (gen.tokens(X)[:, None] == TOKENS).all(-1)
    assert (chosen.sum(1) == 1).all()
    assert_close(score.value, joint(gen)[chosen])
    assert (score.value <= joint(gen).logsumexp(1)).all()
    assert gen().density_kind == "bound"
    assert_close(gen().log_prob(X), score.value)


class Determined(nn.Module):
    """Logits by which two codes make the four bits certain."""

    def forward(self, code):
        return 40.0 * code.flatten(-2)


def test_the_bound_is_tight_where_rows_determine_their_tokens():
    """Codes are the corners (-1, -1), (-1, 1), (1, -1), (1, 1) of two bits each."""
    grid = FiniteScalarQuantizer((3, 3))
    encoder = nn.Sequential(nn.Linear(4, 4), nn.Unflatten(-1, (2, 2)))
    with torch.no_grad():
        encoder[0].weight.copy_(20 * torch.eye(4))
        encoder[0].bias.fill_(-10.0)
    torch.manual_seed(0)
    prior = pg.Fixed(dist.Categorical, logits=torch.randn(2, 9))
    gen = pg.VQVAE(encoder, Bernoulli(Determined(), context_ndim=2), grid, prior)
    corners = [0, 2, 6, 8]  # of the 3 x 3 grid
    assert sorted(gen.tokens(X).unique().tolist()) == corners
    every = torch.tensor(list(itertools.product(range(9), repeat=2))).float()
    with torch.no_grad():
        full = prior().log_prob(every) + gen.decode(every).log_prob(X[:, None])
    certain = torch.tensor([[k in corners for k in pair] for pair in every.tolist()]).all(1)
    score = pg.log_likelihood(gen, X)
    assert score.kind == "bound"
    assert_close(score.value, full[:, certain].logsumexp(1), atol=1e-5, rtol=1e-5)
    assert (score.value <= full.logsumexp(1)).all()


def test_samples_have_the_frequencies_of_the_enumeration():
    gen = tiny()
    with torch.no_grad():
        gen.decoder.net[-1].weight.mul_(4.0)
    drawn = pg.sample(gen, 20000, seed=0)
    shares = (drawn[:, None] == X).all(-1).float().mean(0)
    assert_close(shares, joint(gen).logsumexp(1).exp(), atol=0.01, rtol=0.0)


@pytest.mark.parametrize("objective", [pg.ELBO(), IWAE(particles=3)], ids=["ELBO", "IWAE"])
def test_the_loss_is_minus_the_bound_and_the_commitment(objective):
    gen = tiny().eval()
    made = gen.encode(X)
    paid = made.commitment.sum()
    loss = objective(gen.model, gen.guide)(X)
    assert_close(loss - paid, -pg.log_likelihood(gen, X).value.sum())
    weights, kind = pg.core.log_weights(gen, X, particles=2)
    assert kind == "bound"
    assert_close(weights[0].sum(), paid - loss)


def test_the_encoders_gradient_is_that_of_its_codes_and_the_commitment():
    gen = tiny().eval()
    z = gen.encoder(X).detach().requires_grad_()
    pg.ELBO()(gen.model, gen.guide)(X).backward()
    passed = gen.encoder[2].bias.grad
    code = gen.encode(X).code.detach().mT.requires_grad_()
    loss = -gen.decoder(code).log_prob(X).sum()
    loss.backward()
    pulled = 2 * 0.25 * (z - code.detach())
    assert_close(passed, (code.grad + pulled).sum(0).flatten())


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("name", quantizers())
def test_a_plain_fit_trains_all_parts_and_notes_the_commitment(name):
    quantizer = quantizers()[name]
    levels = quantizer.num_codes
    prior = pg.MADE(2, [16], Categorical(levels=levels), encode=OneHot(levels))
    gen = tiny(quantizer, prior)
    torch.manual_seed(1)
    x = X[torch.tensor([0, 3, 12, 15])].repeat(16, 1)
    before = pg.log_likelihood(gen, x).mean
    history = pg.fit(
        gen, x, steps=200, optimizer=pg.train.adam(0.02), seed=0, progress=False, verdict=False
    )
    assert {"reconstruction", "kl", "commitment"} <= set(history.parts)
    total = sum(torch.tensor(history.parts[part]) for part in history.parts)
    assert_close(total, torch.tensor(history.loss), atol=1e-4, rtol=1e-4)
    after = pg.log_likelihood(gen, x).mean
    assert after > before
    assert after > -2.0  # four kinds of rows: log 4 is 1.39


@pytest.mark.slow
def test_two_stages_of_plain_fits():
    uniform = pg.Fixed(dist.Categorical, logits=torch.zeros(2, 3))
    gen = tiny(prior=uniform)
    x = X[torch.tensor([0, 3, 12, 15])].repeat(16, 1)
    how = {"optimizer": pg.train.adam(0.02), "seed": 0, "progress": False, "verdict": False}
    pg.fit(gen, x, steps=150, **how)
    first = pg.log_likelihood(gen, x).mean
    prior = pg.Transformer((2,), Categorical(levels=3), Tokens(3, 8), layers=1, heads=2)
    pg.fit(prior, gen.tokens(x), steps=100, **how)
    whole = pg.VQVAE(gen.encoder, gen.decoder, gen.quantizer, prior)
    assert torch.equal(whole.tokens(x), gen.tokens(x))
    assert pg.log_likelihood(whole, x).mean > first


def image(prior_context=0):
    """Events (1, 4, 4), tokens (1, 2, 2) under a PixelCNN."""
    encoder = nn.Sequential(nn.Conv2d(1, 4, 2, stride=2), nn.SiLU(), nn.Conv2d(4, 2, 1))
    decoder = nn.ConvTranspose2d(2, 1, 2, stride=2)
    prior = pg.PixelCNN(
        (1, 2, 2), Categorical(levels=6), Levels(6), width=4, layers=1, context=prior_context
    )
    likelihood = Bernoulli(decoder, event_ndim=3, context_ndim=3)
    return pg.VQVAE(encoder, likelihood, Codebook(6, 2), prior)


def test_images_have_images_of_tokens_and_contexts_of_the_prior():
    torch.manual_seed(0)
    gen = image(prior_context=3)
    x = torch.bernoulli(torch.full((7, 1, 4, 4), 0.5))
    context = torch.randn(7, 3)
    assert gen.tokens(x).shape == (7, 1, 2, 2)
    score = pg.log_likelihood(gen, x, context)
    token = gen.tokens(x)
    with torch.no_grad():
        truth = gen.prior(context).log_prob(token) + gen.decode(token).log_prob(x)
    assert_close(score.value, truth)
    assert gen(context).sample().shape == x.shape
    assert pg.sample(gen, 2, context).shape[-3:] == (1, 4, 4)


def states(gen):
    return {name: value.clone() for name, value in gen.state_dict().items()}


def trained(steps, path=None, resume=False, compile=False, gen=None):
    torch.manual_seed(3)
    gen = gen or tiny(Codebook(3, 2), None)
    x = torch.bernoulli(torch.full((40, 4), 0.4), generator=torch.Generator().manual_seed(1))
    options = {"batch_size": 8, "checkpoint": path, "resume": resume, "compile": compile}
    history = pg.fit(gen, x, steps=steps, seed=0, progress=False, verdict=False, **options)
    return states(gen), history.loss


def test_a_resumed_run_is_one_run_bit_for_bit(tmp_path):
    whole, losses = trained(20)
    trained(10, tmp_path / "run.safetensors")
    resumed, again = trained(20, tmp_path / "run.safetensors", resume=True)
    assert losses == again
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert whole["quantizer.counts"].sum() > 0


@pytest.mark.slow
def test_a_compiled_run_keeps_the_codebook_of_the_eager_one():
    eager, losses = trained(20)
    compiled, others = trained(20, compile=True)
    assert_close(torch.tensor(losses), torch.tensor(others), atol=1e-4, rtol=1e-4)
    for name, value in eager.items():
        assert_close(value, compiled[name], atol=1e-4, rtol=1e-4)


def test_imputation_does_not_claim_to_converge():
    gen = tiny()
    x = X.clone()
    x[:, 0] = torch.nan
    done = pg.impute(gen, x, draws=2, num_steps=3, seed=0)
    assert done.kind == "heuristic"
    assert not done.draws.isnan().any()


def test_priors_of_other_places_are_refused():
    with pytest.raises(
        ValueError, match=r"expected a prior of tokens in 1 dims, .*got events \(2, 2, 3\)"
    ):
        tiny(prior=pg.Fixed(dist.Categorical, event_ndim=3, logits=torch.zeros(2, 2, 3, 3)))


@pytest.mark.parametrize(
    "prior",
    [
        pg.Fixed(dist.Categorical, logits=torch.zeros(2, 2)),
        pg.Fixed(dist.Categorical, logits=torch.zeros(2, 4)),
        pg.MADE(2, [8], Categorical(levels=4), encode=OneHot(4)),
        pg.Transformer((2,), Categorical(levels=2), Tokens(2, 8), layers=1),
    ],
    ids=["fewer", "more", "more of a MADE", "fewer of a Transformer"],
)
def test_priors_of_other_codes_are_refused(prior):
    """Tokens without a probability, and probable tokens without a code."""
    with pytest.raises(ValueError, match=r"expected a prior of tokens 0, 1, \.\.\., 2, .*; give"):
        tiny(prior=prior)


def test_tokens_of_other_places_are_refused_by_shape():
    gen = tiny(prior=pg.Fixed(dist.Categorical, logits=torch.zeros(3, 3)))
    text = r"site 'k': expected values of shape \(\*batch, 3\), got \(16, 2\); give guide and model"
    with pytest.raises(ValueError, match=text):
        pg.fit(gen, X, steps=1, progress=False)


def test_one_token_for_a_row():
    """Vectors without places: the sum over all tokens of each row by hand."""
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(4, 2), Bernoulli(nn.Linear(2, 4))
    prior = pg.Fixed(dist.Categorical, event_ndim=0, logits=torch.randn(5))
    gen = pg.VQVAE(encoder, decoder, Codebook(5, 2), prior)
    pg.fit(gen, X, steps=3, verdict=False, progress=False, compile=False, seed=0)
    gen.eval()
    codes = gen.quantizer.codes
    nearest = torch.cdist(encoder(X), codes).argmin(1)
    assert torch.equal(gen.tokens(X).long(), nearest)
    each = prior().log_prob(torch.arange(5.0)) + decoder(codes).log_prob(X[:, None])
    own = each.gather(1, nearest[:, None])[:, 0].detach()
    assert_close(pg.log_likelihood(gen, X).value, own)
    frequency = pg.sample(gen, 20_000, seed=0).mean(0)
    mean = (prior().probs[:, None] * decoder(codes).mean).sum(0).detach()
    assert_close(frequency, mean, atol=0.02, rtol=0)


def test_the_verdict_says_that_nothing_is_known_of_a_guide_that_draws_nothing():
    gen = tiny()
    judged = pg.fit(gen, X, steps=50, progress=False, compile=False, seed=0).verdict
    assert judged.khat.isnan().all() and judged.share_unreliable is None
    assert "k-hat is known of none of 16 rows: the guide leaves out values" in str(judged)
    assert "%" not in str(judged) and "nan" not in str(judged)
