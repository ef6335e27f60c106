"""Bayesian networks and Markov random fields."""

from __future__ import annotations

import torch

from probgen import heads
from probgen.models.bayesian_network import BayesianNetwork, LinearGaussian, ProbabilityTable
from probgen.models.chow_liu import ChowLiu
from probgen.models.corrected_tree import CorrectedTree
from probgen.models.hidden_chow_liu import HiddenChowLiu
from probgen.models.markov_random_field import MarkovRandomField, grid_edges
from probgen.models.mixture_of_trees import MixtureOfTrees
from probgen.nn import MLP
from probgen.objectives.pseudo_likelihood import PseudoLikelihood
from zoo.member import Member, levels, rows


def discrete_network() -> BayesianNetwork:
    """Three variables of 2, 3 and 2 values, fully connected, with random tables."""
    nodes = {
        "a": ProbabilityTable(2),
        "b": ProbabilityTable(3, (2,)),
        "c": ProbabilityTable(2, (2, 3)),
    }
    network = BayesianNetwork(nodes, {"b": ["a"], "c": ["a", "b"]})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
    return network


def discrete_rows() -> tuple:
    """Rows of that network, some values missing."""
    x = torch.stack([torch.randint(k, (6,)) for k in (2, 3, 2)], -1).float()
    return (x.masked_fill(torch.rand(6, 3) < 0.2, torch.nan),)


def linear_network() -> BayesianNetwork:
    """Columns that are no ancestral order."""
    return BayesianNetwork(
        {"y": LinearGaussian(2), "a": LinearGaussian(), "b": LinearGaussian(1)},
        {"b": ["a"], "y": ["a", "b"]},
    )


def mixed_network() -> BayesianNetwork:
    """A hidden label above numbers of a network, one of whose nodes depends on a context."""
    nodes = {
        "k": ProbabilityTable(3),
        "z": heads.Gaussian(MLP(1, [8], 4)),
        "w": heads.Bernoulli(MLP(5, [8], 1)),
    }
    return BayesianNetwork(nodes, {"z": ["k"], "w": ["k", "z", "context"]}, context=2)


def mixed_rows() -> tuple:
    """The label is missing in some rows."""
    x = torch.cat(
        [torch.randint(3, (6, 1)).float(), torch.randn(6, 2), torch.randint(2, (6, 1)).float()], -1
    )
    x[:3, 0] = torch.nan
    return x, torch.randn(6, 2)


def tree() -> ChowLiu:
    """Learned from a few rows."""
    learned = ChowLiu((2, 3, 2))
    learned.initialize(discrete_rows()[0])
    return learned


def hidden_tree() -> HiddenChowLiu:
    """Started from a few rows."""
    started = HiddenChowLiu(2, (2, 3, 2))
    started.initialize(discrete_rows()[0], torch.Generator().manual_seed(0))
    return started


def trees() -> MixtureOfTrees:
    """Two of them, learned from a few rows."""
    learned = MixtureOfTrees(2, (2, 3, 2))
    learned.initialize(discrete_rows()[0].nan_to_num())
    return learned


def field(**arguments: object) -> MarkovRandomField:
    """A grid of 2 x 3 with random potentials."""
    made = MarkovRandomField((2, 3), grid_edges(2, 3), **arguments)
    with torch.no_grad():
        made.pairs.normal_()
    return made


GRAPHICAL: list[Member] = [
    Member("BayesianNetwork of tables", discrete_network, discrete_rows),
    Member("BayesianNetwork, linear-Gaussian", linear_network, rows(3)),
    Member("BayesianNetwork, mixed, given a context", mixed_network, mixed_rows),
    Member("ChowLiu", tree, discrete_rows),
    Member("MixtureOfTrees", trees, discrete_rows),
    Member("HiddenChowLiu", hidden_tree, discrete_rows),
    Member(
        "CorrectedTree",
        lambda: CorrectedTree(hidden_tree(), [8]),
        lambda: (discrete_rows()[0].nan_to_num(),),
    ),
    Member(
        "HiddenChowLiu of numbers",
        lambda: HiddenChowLiu(2, emission=heads.Gaussian(torch.nn.Linear(2, 6))),
        rows(3),
    ),
    Member("MarkovRandomField", field, levels(2, 2, 3)),
    Member(
        "MarkovRandomField given a context",
        lambda: field(levels=3, shared=True, unary=MLP(2, [8], 18)),
        levels(3, 2, 3, context=(2,)),
    ),
    Member(
        "MarkovRandomField, unnormalized",
        lambda: field(limit=1, sweeps=5),
        levels(2, 2, 3),
        PseudoLikelihood,
    ),
]
