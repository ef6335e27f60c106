"""Annealed importance sampling against enumeration and closed forms."""

import math

import pytest
import torch
from torch import nn

from probgen.core.module import standard_normal
from probgen.distributions.energy.visible import BernoulliUnits, CategoricalUnits, GaussianUnits
from probgen.infer.ais import LogZ, annealed_importance, reverse_annealing
from probgen.infer.impute import impute
from probgen.models.deep_boltzmann import DeepBoltzmannMachine
from probgen.models.energy import EnergyBasedModel
from probgen.models.markov_random_field import MarkovRandomField
from probgen.models.normalized import Normalized
from probgen.models.rbm import RBM
from probgen.nn import MLP
from probgen.samplers.hmc import HMC
from probgen.samplers.langevin import Langevin
from probgen.scoring import log_likelihood


def contains(bracket, truth, slack=0.0):
    """Whether the truth lies between the bounds but for four standard errors."""
    low, high = bracket.stderr
    return bracket.lower - 4 * low - slack < truth < bracket.upper + 4 * high + slack


UNITS = [BernoulliUnits(12), GaussianUnits(4), CategoricalUnits(5, levels=3)]


@pytest.mark.table(quick=3)
@pytest.mark.parametrize("kind", UNITS, ids=["bits", "numbers", "labels"])
@pytest.mark.parametrize("limit", [2**12, 1], ids=["exact draws", "chains"])
def test_rbm_constants_lie_in_the_bracket(kind, limit):
    exact = RBM(kind, 8, scale=0.5)
    gen = RBM(kind, 8, limit=limit)
    gen.load_state_dict(exact.state_dict())
    x = exact().sample((50,))
    bracket = annealed_importance(gen, x, temperatures=200, chains=200)
    assert contains(bracket, exact().log_z().item())
    assert bracket.gap < 0.2 and max(bracket.stderr) < 0.1
    assert bracket.start == ("exact" if limit > 1 else "asymptotic")


@pytest.mark.slow
def test_twenty_hidden_units():
    gen = RBM(BernoulliUnits(30), 20, scale=0.4, limit=2**20)
    with torch.no_grad():
        truth = gen().log_z().item()
    gen.limit = 1
    assert contains(annealed_importance(gen, temperatures=300), truth)


def test_deep_machines_and_networks():
    exact = DeepBoltzmannMachine(BernoulliUnits(6), (5, 4, 3), scale=0.7)
    assert contains(
        annealed_importance(exact, exact().sample((50,)), temperatures=300), exact().log_z().item()
    )


class Quadratic(nn.Module):
    def forward(self, x):
        return ((x - 1).square() * torch.tensor([1.0, 4.0, 0.5])).sum(-1) / 2


@pytest.mark.slow
def test_gaussian_energies_have_closed_constants():
    truth = (3 * math.log(2 * math.pi) - math.log(2.0)) / 2
    gen = EnergyBasedModel(Quadratic(), (3,), num_steps=1, annealing=HMC(0.3, leapfrogs=5))
    for rows in (None, torch.randn(100, 3)):
        bracket = annealed_importance(gen, rows, temperatures=50, chains=300)
        assert contains(bracket, truth) and bracket.gap < 0.3
    net = nn.Linear(2, 1, bias=False)  # tilts a normal base: log Z is half its square
    tilted = EnergyBasedModel(net, (2,), base=standard_normal(2), annealing=HMC(0.3, leapfrogs=5))
    assert contains(
        annealed_importance(tilted, temperatures=30, at_once=40),
        net.weight.square().sum().item() / 2,
    )


def test_few_temperatures_bracket_from_both_sides():
    gen = RBM(BernoulliUnits(10), 8, scale=2.0)
    brackets = [annealed_importance(gen, temperatures=3, chains=3) for _ in range(30)]
    truth = gen().log_z().item()
    assert sum(b.lower for b in brackets) / 30 < truth < sum(b.upper for b in brackets) / 30


def test_reverse_annealing_is_unbiased_for_a_distribution_that_tends_to_the_model():
    gen = RBM(BernoulliUnits(8), 6, scale=1.0)
    x = gen().sample((20,))
    score = reverse_annealing(gen, x, temperatures=300, chains=50, at_once=300)
    assert score.kind == "unbiased" and score.particles == 50 and score.measure == "mass"
    assert torch.allclose(score.value, gen().log_prob(x), atol=0.25)
    # few temperatures: another distribution, whose probabilities sum to one all the same
    v = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
    small = RBM(BernoulliUnits(4), 3, scale=1.5)
    other = reverse_annealing(small, v, temperatures=2, chains=4000)
    assert other.value.exp().sum().item() == pytest.approx(1, abs=0.05)
    assert (other.value - small().log_prob(v)).abs().max() > 0.1


def test_normalized_models_score_approximately():
    exact = RBM(BernoulliUnits(6), 4, scale=1.0)
    free = RBM(BernoulliUnits(6), 4, limit=1)
    free.load_state_dict(exact.state_dict())
    bracket, x = annealed_importance(free, temperatures=300), exact().sample((20,))
    gen = Normalized(free, bracket.value)
    score = log_likelihood(gen, x)
    assert score.kind == "approximate" and str(score).startswith("~")
    assert torch.allclose(score.value, exact().log_prob(x), atol=0.1)
    low, high = bracket.log_likelihoods(free().log_prob(x), "mass")
    assert (
        high.mean - low.mean == pytest.approx(abs(bracket.gap), abs=1e-4)
        and low.kind == "approximate"
    )
    assert impute(gen, torch.full((1, 6), torch.nan), num_steps=3).kind == "heuristic"
    with pytest.raises(ValueError, match="lacks its constant"):
        Normalized(exact, 1.0)()


def test_the_estimate_is_the_log_of_a_mean():
    weights = torch.tensor([1.0, 3.0, 5.0])
    found = LogZ(weights.log(), weights.log(), "exact")
    assert found.lower == pytest.approx(math.log(3)) and found.upper == pytest.approx(
        -math.log((1 + 1 / 3 + 0.2) / 3)
    )
    assert found.stderr[0] == pytest.approx(2 / 3 / math.sqrt(3), abs=1e-6)
    assert found.ess[0] == pytest.approx(81 / 35)


def test_chains_back_of_one_ancestor_count_as_one():
    weights = -torch.tensor([1.0, 1.0, 2.0, 4.0, 4.0]).log()
    found = LogZ(weights, weights, "asymptotic", torch.tensor([7, 7, 3, 2, 2]))
    share = torch.tensor([1.0, 2.0, 4.0])  # of 2, 1 and 2 chains; their mean is 2.4
    excess = torch.tensor([2.0, 1.0, 2.0]) * (share / 2.4 - 1)
    assert found.stderr[1] == pytest.approx(math.sqrt(excess.square().sum() * 3 / 2) / 5)
    lone = LogZ(weights, weights, "asymptotic", torch.zeros(5, dtype=torch.long))
    assert lone.stderr[1] == math.inf


def test_the_least_log_likelihood_comes_first_where_the_bracket_crosses():
    crossed = LogZ(torch.tensor([2.0, 2.0]), torch.tensor([1.0, 1.0]), "exact")
    low, high = crossed.log_likelihoods(torch.zeros(3))
    assert crossed.gap == -1 and low.mean == -2 and high.mean == -1


def test_refusals_say_what_to_do():
    with pytest.raises(TypeError, match="annealed"):
        annealed_importance(MarkovRandomField((2,), [(0, 1)]))
    with pytest.raises(ValueError, match="from 0 to 1"):
        annealed_importance(RBM(BernoulliUnits(3), 2), temperatures=[0.0, 0.5])
    with pytest.raises(ValueError, match="leaves distributions invariant"):
        annealed_importance(EnergyBasedModel(MLP(2, [4], 1), (2,), annealing=Langevin(0.1)))
    with pytest.raises(ValueError, match="further layers"):
        reverse_annealing(DeepBoltzmannMachine(BernoulliUnits(3), (2, 2)), torch.zeros(2, 3))


@pytest.mark.parametrize("kind", UNITS, ids=lambda kind: type(kind).__name__)
@pytest.mark.parametrize("hidden", [3, 40])
def test_incomplete_rows_are_refused_in_one_sentence(kind, hidden):
    torch.manual_seed(0)
    rbm = RBM(kind, hidden=hidden)
    x = rbm().sample((8,))
    incomplete = x.clone()
    incomplete[5, 1] = torch.nan
    asked = {
        "x": lambda rows: annealed_importance(rbm, rows, temperatures=5, chains=4),
        "x back": lambda rows: reverse_annealing(rbm, rows, temperatures=5, chains=4),
        "base": lambda rows: reverse_annealing(rbm, x, base=rows, temperatures=5, chains=4),
    }
    for name, ask in asked.items():
        sentence = rf"complete rows {name.split()[0]}, got NaN \(missing\) in row 5; leave"
        with pytest.raises(ValueError, match=sentence):
            ask(incomplete)
        ask(incomplete[~incomplete.isnan().flatten(1).any(1)])  # as the sentence says
