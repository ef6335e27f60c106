"""Clusters, codes, reconstructions and interpolations of every family: an answer or a sentence."""

import pytest
import torch
from zoo import TRANSLATIONS, ZOO

import probgen as pg
from probgen.decisions import Clusters, NoCodes

CLUSTERED = {  # families with one discrete latent for each row
    "enumerated story",
    *(f"GaussianMixture {kind}" for kind in ("Full", "Tied", "Diagonal", "Spherical")),
    *(f"StudentTMixture {kind}" for kind in ("Full", "Tied", "Diagonal", "Spherical")),
    "BayesianGaussianMixture",
    "SemiSupervisedVAE",
    "SemiSupervisedVAE with a prior of labels",
    "VAE with a mixture as prior",
    "Tabular",
    "Tabular on a grid with an atom",
    "Standardized",
    "Preprocessed",
    "Mixture given a context",
    "MixtureOfTrees",
    "JointEnergyModel",
    "InfoGAN",
    "InfoGAN of invariant codes",
}
MEMBERS = {member.name: member for member in ZOO + TRANSLATIONS}


def asked(function, member):
    """The model and its data, and what the function makes of both: a result or an error."""
    torch.manual_seed(0)
    gen, (x, *context) = member.gen(), member.data()
    if function is pg.interpolate:
        ends = [part[:2] for part in context]
        call = lambda: pg.interpolate(gen, x[:2], x[2:4], 3, *ends)  # noqa: E731
    else:
        call = lambda: function(gen, x, *context)  # noqa: E731
    try:
        return x, call()
    except (NoCodes, ValueError) as error:
        return x, error


def check_sentence(error):
    text = str(error)
    assert all(part in text for part in ("expected", "got", ";")), text
    assert "gen" in text or "pg." in text or "take features" in text or "site=" in text, text


@pytest.mark.table(quick=20)
@pytest.mark.parametrize("name", MEMBERS)
def test_a_family_clusters_its_rows_or_says_what_to_ask(name):
    x, found = asked(pg.cluster, MEMBERS[name])
    if name not in CLUSTERED:
        return check_sentence(found)
    assert isinstance(found, Clusters)
    assert found.label.shape == (len(x),)
    torch.testing.assert_close(found.probability.sum(-1), torch.ones(len(x)))
    return None


CODED = ("encode", "reconstruct", "interpolate")
# families that must answer all three, and those that must answer the first
ALL = (
    *("VAE", "FactorAnalysis", "PPCA", "VQVAE", "MAF", "NSF on a mixture", "RealNVP", "FFJORD"),
    *("Transformed", "Glow", "SphereFlow", "Diffusion", "ProbabilityFlow", "DeepMarkovModel"),
)
GUIDED = (
    "story",
    "SemiSupervisedVAE",
    "BayesianPPCA",
    "InfoGAN",
    "LinearGaussianStateSpace",
    "RBM",
)


@pytest.mark.table(quick=30)
@pytest.mark.parametrize("function", CODED)
@pytest.mark.parametrize("name", MEMBERS)
def test_a_family_has_codes_or_says_what_to_ask(name, function):
    x, found = asked(getattr(pg, function), MEMBERS[name])
    must = name in ALL or (name in GUIDED and function == "encode")
    if isinstance(found, Exception):
        assert not must, found
        return check_sentence(found)
    if function == "reconstruct":
        found = found if torch.is_tensor(found) else MEMBERS[name].gen().rows(found)
        assert found.shape == x.shape
    elif function == "interpolate":
        assert found.shape == (2, 3, *x.shape[1:])
    else:
        assert len(found) == len(x)
    assert found.isfinite().all()
    return None
