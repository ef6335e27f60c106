"""Bayesian networks and Markov random fields."""

from __future__ import annotations

import torch

from probgen.core import heads
from probgen.models.bayesian_network import BayesianNetwork, LinearGaussian, Table
from probgen.nn import MLP
from zoo.member import Member, rows


def discrete_network() -> BayesianNetwork:
    """Three variables of 2, 3 and 2 values, fully connected, with random tables."""
    nodes = {"a": Table(2), "b": Table(3, (2,)), "c": Table(2, (2, 3))}
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
        {"y": LinearGaussian(2), "a": LinearGaussian(), "b": LinearGaussian(1)}, {"b": ["a"], "y": ["a", "b"]}
    )


def mixed_network() -> BayesianNetwork:
    """A hidden label above numbers of a network, one of whose nodes depends on a context."""
    nodes = {"k": Table(3), "z": heads.Gaussian(MLP(1, [8], 4)), "w": heads.Bernoulli(MLP(5, [8], 1))}
    return BayesianNetwork(nodes, {"z": ["k"], "w": ["k", "z", "context"]}, context=2)


def mixed_rows() -> tuple:
    """The label is missing in some rows."""
    x = torch.cat([torch.randint(3, (6, 1)).float(), torch.randn(6, 2), torch.randint(2, (6, 1)).float()], -1)
    x[:3, 0] = torch.nan
    return x, torch.randn(6, 2)


GRAPHICAL: list[Member] = [
    Member("BayesianNetwork of tables", discrete_network, discrete_rows),
    Member("BayesianNetwork, linear-Gaussian", linear_network, rows(3)),
    Member("BayesianNetwork, mixed, given a context", mixed_network, mixed_rows),
]
