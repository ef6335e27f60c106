"""What a family shows of itself: the arguments that it was built with, on a line or a few."""

import copy
import pickle

import pytest
import torch
from torch import nn
from zoo import ZOO, Member

import probgen as pg
from probgen.core.described import shown
from probgen.core.module import DistributionModule, LatentVariableModel
from probgen.heads import Bernoulli, Gaussian
from probgen.nn import MLP, Constant

OWN = [m for m in ZOO if isinstance(m.gen(), DistributionModule | LatentVariableModel)]
LINES = 20
WIDTH = 100


@pytest.mark.parametrize("member", OWN, ids=lambda member: member.name)
def test_families_are_shown_in_a_few_lines(member: Member):
    gen = member.gen()
    text = repr(gen)
    lines = text.splitlines()
    assert text.startswith(type(gen).__name__ + "(") and text.endswith(")")
    assert len(lines) <= LINES and max(map(len, lines)) <= WIDTH
    assert not any(word in text for word in ("tensor([", "Parameter containing", " at 0x"))
    assert repr(copy.deepcopy(gen)) == text
    assert gen.state_dict().keys() == member.gen().state_dict().keys()


TEXTS = {
    "GaussianMixture(components=3, dims=2)": lambda: pg.GaussianMixture(3, 2),
    "GaussianMixture(components=3, dims=2, covariance=Tied)": lambda: pg.GaussianMixture(
        3, dims=2, covariance=pg.distributions.Tied
    ),
    "Fixed(family=Normal, event_ndim=1, loc=tensor(3), scale=1.0)": lambda: pg.standard_normal(3),
    "NSF(dims=4, layers=2, bins=6, hidden=(8, 8))": lambda: pg.NSF(4, 2, bins=6, hidden=(8, 8)),
    "Gaussian(net=Linear(in_features=2, out_features=4, bias=True))": lambda: Gaussian(
        nn.Linear(2, 4)
    ),
    f"Gaussian(net=MLP({2 * 4 + 4 + 4 * 6 + 6} parameters))": lambda: Gaussian(MLP(2, [4], 6)),
    "Bernoulli(net=Constant(5 parameters))": lambda: Bernoulli(Constant(5)),
    "ELBO(particles=4)": lambda: pg.ELBO(particles=4),
    "Empirical(rows=tensor(1000, 2))": lambda: pg.Empirical(torch.zeros(1000, 2)),
}


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_shown(text):
    assert repr(TEXTS[text]()) == text


def test_long_calls_take_a_line_for_each_argument():
    vae = pg.VAE(pg.standard_normal(2), Gaussian(MLP(2, [4], 6)), Gaussian(MLP(3, [4], 4)))
    assert repr(pg.Standardized(vae)) == "\n".join(
        [
            "Standardized(",
            "  family=VAE(",
            "    prior=Fixed(family=Normal, event_ndim=1, loc=tensor(2), scale=1.0),",
            "    decoder=Gaussian(net=MLP(42 parameters)),",
            "    encoder=Gaussian(net=MLP(36 parameters))",
            "  )",
            ")",
        ]
    )


def test_containers_are_cut():
    assert shown(list(range(9))) == "[0, 1, 2, 3, ... 5 more]"
    assert shown({str(i): torch.zeros(i) for i in range(6)}).endswith("'3': tensor(3), ... 2 more}")
    assert shown((1,)) == "(1,)" and shown("a" * 99).endswith("...")
    assert shown(nn.LazyLinear(2)).startswith("LazyLinear(")


def test_pickles_keep_it():
    gen = pickle.loads(pickle.dumps(pg.GaussianMixture(3, 2)))
    assert repr(gen) == "GaussianMixture(components=3, dims=2)"


class Shifted(pg.DistributionModule):
    """A user's own family, built in two steps."""

    context_size = 0

    def __init__(self, base, shift=0.0):
        super().__init__()
        self.base = base
        self.shift = shift

    def forward(self, context=None):
        return self.base(context)


class Doubled(Shifted):
    def __init__(self, **options):
        super().__init__(pg.standard_normal(2), **options)


def test_families_of_ones_own_show_themselves_too():
    assert repr(Shifted(Bernoulli(Constant(2)), 3)) == (
        "Shifted(base=Bernoulli(net=Constant(2 parameters)), shift=3)"
    )
    assert repr(Doubled(shift=2.0)) == "Doubled(shift=2.0)"
    with pytest.raises(
        TypeError, match="expected arguments that Doubled takes, got shfit; did you"
    ):
        Doubled(shfit=2.0)
