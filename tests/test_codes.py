"""Codes, reconstructions, interpolations and clusters: against closed forms and the models' own words."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import probgen as pg
from probgen.decisions import NoCodes


def normal_rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def vae(latents=2):
    torch.manual_seed(0)
    head = lambda a, b: pg.heads.Gaussian(pg.nn.MLP(a, [4], 2 * b))  # noqa: E731
    return pg.VAE(pg.standard_normal(latents), head(latents, 3), head(3, latents))


def ppca():
    torch.manual_seed(0)
    return pg.PPCA(4, factors=2)


def closed_form(gen, x):
    """Posterior means of the factors (Bishop 2006, 12.42), and what they make."""
    loadings, mean, noise = gen.loadings.detach(), gen.mean.detach(), gen.noise.item()
    middle = loadings.T @ loadings + noise * torch.eye(2)
    z = (x - mean) @ loadings @ torch.linalg.inv(middle)
    return z, z @ loadings.T + mean


def test_factors_are_those_of_the_closed_form():
    gen, x = ppca(), normal_rows(5, 4)
    z, made = closed_form(gen, x)
    torch.testing.assert_close(pg.encode(gen, x), z, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(pg.reconstruct(gen, x), made, atol=1e-5, rtol=1e-4)


def test_codes_are_counted_in_other_units_too():
    gen, x = ppca(), normal_rows(5, 4)
    raw = pg.Standardized(gen, loc=torch.full((4,), 10.0), scale=2.0)
    z, made = closed_form(gen, x)
    torch.testing.assert_close(pg.encode(raw, 2 * x + 10), z, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(pg.reconstruct(raw, 2 * x + 10), 2 * made + 10, atol=1e-3, rtol=1e-3)


def test_incomplete_rows_are_completed_by_their_codes_or_refused():
    gen, x = ppca(), normal_rows(3, 4)
    x[:, 0] = torch.nan
    assert pg.reconstruct(gen, x).isfinite().all()
    torch.testing.assert_close(pg.encode(gen, x), gen.posterior(x).mean)
    with pytest.raises(ValueError, match="complete them first"):
        pg.encode(pg.MAF(4, layers=1, hidden=(4,)), x)


def test_a_variational_code_is_the_mean_of_the_guide():
    gen, x = vae(), normal_rows(5, 3)
    with torch.no_grad():
        mean = gen.encode(x).mean
        made = gen.decode(mean).mean
    torch.testing.assert_close(pg.encode(gen, x), mean)
    torch.testing.assert_close(pg.reconstruct(gen, x), made)


def test_levels_of_a_hierarchy_are_named():
    levels = pg.latents.Level.dense(3, [2, 4], width=8)
    gen, x = pg.HierarchicalVAE(levels, pg.heads.Gaussian(pg.nn.MLP(8, [8], 6))), normal_rows(5, 3)
    assert pg.encode(gen, x, site="z2", draws=3).shape == (5, 4)
    with pytest.raises(ValueError, match="site='z1'"):
        pg.encode(gen, x)


def test_hidden_units_of_an_rbm_are_their_probabilities():
    torch.manual_seed(0)
    gen = pg.RBM(pg.energy.BernoulliUnits(3), 2)
    x = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    energy = []  # of both values of each unit, the others summed out by their independence
    with torch.no_grad():
        field = gen().field
        for unit in range(2):
            weight = field.weight[:, unit]
            energy.append(field.bias[unit] + (x * weight[-3:]).sum(1))
    torch.testing.assert_close(pg.encode(gen, x), torch.stack(energy, 1).sigmoid())


def test_states_are_smoothed():
    torch.manual_seed(0)
    gen, x = pg.LinearGaussianStateSpace(2, 3, 4), normal_rows(5, 4, 3)
    torch.testing.assert_close(pg.encode(gen, x), gen().smooth(x)[0].detach())


def glow():
    torch.manual_seed(0)
    return pg.Glow((1, 4, 4), scales=2, flow_steps=1)


INVERTIBLE = {
    "flow": (lambda: pg.NSF(4, layers=2, hidden=(8,)), (4,)),
    "Glow": (glow, (1, 4, 4)),
    "units": (lambda: pg.Standardized(pg.MAF(4, layers=1, hidden=(4,)), 1.0, 2.0), (4,)),
}


@pytest.mark.parametrize(("make", "event"), INVERTIBLE.values(), ids=INVERTIBLE)
def test_what_can_be_inverted_gives_rows_back(make, event):
    gen, x = make(), normal_rows(3, *event)
    assert pg.encode(gen, x).flatten(1).shape == (3, x[0].numel())
    torch.testing.assert_close(pg.reconstruct(gen, x), x, atol=1e-3, rtol=1e-3)
    line = pg.interpolate(gen, x, x.flip(0), 5)
    torch.testing.assert_close(line[:, 0], x, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(line[:, -1], x.flip(0), atol=1e-3, rtol=1e-3)


def test_interpolation_is_linear_in_codes_or_keeps_their_norm():
    gen = pg.NSF(16, layers=1, hidden=(8,))
    a, b = normal_rows(4, 16), normal_rows(4, 16, seed=1)
    first, last = pg.encode(gen, a), pg.encode(gen, b)
    straight = pg.encode(gen, pg.interpolate(gen, a, b, 3)[:, 1])
    torch.testing.assert_close(straight, (first + last) / 2, atol=1e-3, rtol=1e-3)
    round_ = pg.encode(gen, pg.interpolate(gen, a, b, 3, spherical=True)[:, 1])
    torch.testing.assert_close(
        round_.norm(dim=1), (first.norm(dim=1) + last.norm(dim=1)) / 2, atol=1e-3, rtol=1e-3
    )
    cosine = torch.cosine_similarity
    torch.testing.assert_close(cosine(first, round_), cosine(last, round_), atol=1e-3, rtol=1e-3)
    same = pg.interpolate(gen, a, a, 3, spherical=True)
    torch.testing.assert_close(same[:, 1], a, atol=1e-3, rtol=1e-3)


def mixture():
    torch.manual_seed(0)
    return pg.GaussianMixture(3, 2)


def by_hand(gen, x):
    joint = torch.stack(
        [
            dist.MultivariateNormal(*moments).log_prob(x)
            for moments in zip(gen.means, gen.covariances, strict=True)
        ],
        1,
    )
    return (joint + gen.weights.log()).softmax(1).detach()


UNITS = {
    "plain": lambda gen: (gen, lambda x: x),
    "units": lambda gen: (pg.Standardized(gen, 1.0, 2.0), lambda x: 2 * x + 1),
}


@pytest.mark.parametrize("make", UNITS.values(), ids=UNITS)
def test_clusters_are_bayes_rule(make):
    gen, x = mixture(), normal_rows(9, 2)
    model, units = make(gen)
    found = pg.cluster(model, units(x))
    assert found.kind == "exact"
    torch.testing.assert_close(found.probability, by_hand(gen, x), atol=1e-4, rtol=1e-4)
    assert (found.label == found.probability.argmax(1)).all()
    assert found.sizes.sum() == 9


def story(x):
    """Two components of one column, each row from one of them."""
    with pyro.plate("data", len(x)):
        kind = pyro.sample(
            "kind", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"}
        )
        at = torch.tensor([-1.0, 1.0])[kind]
        return pyro.sample("x", dist.Normal(at, 1.0), obs=x)


def test_a_program_is_clustered_by_its_discrete_latent():
    x = torch.tensor([-2.0, 0.0, 0.5])
    found = pg.cluster(pg.Program(story, lambda x: None), x)
    odds = 0.7 / 0.3 * (2 * x).exp()
    assert found.kind == "exact"
    torch.testing.assert_close(found.probability[:, 1], odds / (1 + odds))


def wide_story(x):
    """The same, with a shift of all rows."""
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    return story(x - shift)


def at_nothing(x):
    pyro.sample("shift", dist.Normal(0.0, 1e-6))


def test_a_program_with_other_latents_is_clustered_by_draws():
    x = torch.tensor([-2.0, 0.0, 3.0])
    found = pg.cluster(pg.Program(wide_story, at_nothing), x, draws=60)
    odds = 0.7 / 0.3 * (2 * x).exp()
    assert found.kind == "approximate"
    torch.testing.assert_close(found.probability[:, 1], odds / (1 + odds), atol=0.2, rtol=0)


def test_a_mixture_as_prior_clusters_by_latents():
    gen = vae()
    gen = pg.VAE(mixture(), gen.decoder, gen.encoder)
    x = normal_rows(4, 3)
    z = pg.posterior(gen, x, draws=400, seed=1)["z"]
    expected = torch.stack([by_hand(gen.prior, draw) for draw in z]).mean(0)
    found = pg.cluster(gen, x, draws=1000)
    assert found.kind == "approximate"
    torch.testing.assert_close(found.probability, expected, atol=0.05, rtol=0)


def test_known_labels_are_certain():
    torch.manual_seed(0)
    gen = pg.JointEnergyModel(pg.nn.MLP(2, [4], 3), (2,))
    x = normal_rows(2, 2)
    found = pg.cluster(gen, x, torch.tensor([2.0, torch.nan]))
    assert found.kind == "exact"
    assert found.probability[0].tolist() == [0.0, 0.0, 1.0]
    torch.testing.assert_close(found.probability[1], gen.classify(x).probs[1].detach())


def test_tables_are_clustered_and_made_again_in_frames():
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"a": draw.normal(size=60), "b": draw.normal(size=60)})
    gen = pg.Tabular(pg.Table.read(frame), ppca_of_two())
    made = pg.reconstruct(gen, frame)
    assert list(made.columns) == ["a", "b"]
    clustered = pg.Tabular(pg.Table.read(frame), pg.GaussianMixture(2, 2))
    assert pg.cluster(clustered, frame).probability.shape == (60, 2)


def ppca_of_two():
    torch.manual_seed(0)
    return pg.PPCA(2, factors=1)


WRONG = {
    "no latents": (
        lambda: pg.encode(pg.standard_normal(2), normal_rows(2, 2)),
        NoCodes,
        "features",
    ),
    "components": (lambda: pg.encode(mixture(), normal_rows(2, 2)), NoCodes, "responsibilities"),
    "no clusters": (lambda: pg.cluster(ppca(), normal_rows(2, 4)), NoCodes, "gen.posterior"),
    "no decoder": (lambda: pg.reconstruct(mixture(), normal_rows(2, 2)), NoCodes, "gen.predict"),
    "ends": (
        lambda: pg.interpolate(ppca(), normal_rows(2, 4), normal_rows(3, 4)),
        ValueError,
        "as many rows",
    ),
    "translation": (
        lambda: pg.interpolate(
            pg.CycleGAN(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)),
            normal_rows(2, 2),
            normal_rows(2, 2),
        ),
        (NoCodes, TypeError, ValueError),
        ";",
    ),
    "site": (lambda: pg.encode(vae(), normal_rows(2, 3), site="y"), ValueError, "site='z'"),
    "discrete site": (
        lambda: pg.cluster(pg.Program(story, lambda x: None), torch.zeros(2), site="x"),
        ValueError,
        "site='kind'",
    ),
}


@pytest.mark.parametrize(("call", "kind", "words"), WRONG.values(), ids=WRONG)
def test_what_has_no_codes_says_what_to_ask(call, kind, words):
    with pytest.raises(kind, match=words):
        call()
