"""Energy-based models."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from probgen.core.module import standard_normal
from probgen.distributions.energy.visible import BernoulliUnits, CategoricalUnits, GaussianUnits
from probgen.distributions.environments import AnyOrder, HyperGrid
from probgen.models.deep_boltzmann import DeepBoltzmannMachine
from probgen.models.energy import EnergyBasedModel
from probgen.models.gflownet import GFlowNet
from probgen.models.joint_energy import JointEnergyModel
from probgen.models.normalized import Normalized
from probgen.models.rbm import RBM
from probgen.nn import MLP
from probgen.objectives.contrastive import ContrastiveDivergence
from probgen.objectives.hybrid import Hybrid
from probgen.objectives.noise_contrastive import NoiseContrastive
from probgen.objectives.pseudo_likelihood import PseudoLikelihood
from probgen.objectives.score_matching import (
    DenoisingScoreMatching,
    ScoreMatching,
    SlicedScoreMatching,
)
from probgen.objectives.trajectory_balance import TrajectoryBalance
from probgen.samplers.hmc import HMC, MALA
from zoo.member import Member, levels, rows


class Joined(nn.Module):
    """An energy of rows (3,) beside a context of two numbers."""

    def __init__(self):
        super().__init__()
        self.net = MLP(5, [8], 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.net(torch.cat([x, context], -1))


def started(
    gen: RBM | DeepBoltzmannMachine, data: Callable[[], tuple]
) -> RBM | DeepBoltzmannMachine:
    """With the moments of some rows."""
    gen.initialize(data()[0])
    return gen


def binary(limit: int = 2**12, **options: object) -> RBM:
    """Events (2, 3), four hidden units."""
    return started(
        RBM(BernoulliUnits(2, 3), 4, scale=1.0, limit=limit, sweeps=5, **options), levels(2, 2, 3)
    )


def energy(**options: object) -> EnergyBasedModel:
    """Events (3,); a constant would have no gradient in a score."""
    net = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1, bias=False))
    return EnergyBasedModel(net, (3,), num_steps=5, **options)


def classifier() -> JointEnergyModel:
    """Events (3,), four labels."""
    return JointEnergyModel(MLP(3, [8], 4), (3,), base=standard_normal(3), num_steps=5)


def labeled() -> tuple:
    """Rows and labels, some of them not known."""
    label = torch.randint(4, (6,)).float()
    return torch.randn(6, 3), label.masked_fill(torch.arange(6) == 2, torch.nan)


def buffered() -> ContrastiveDivergence:
    """A replay buffer, and a price of large energies."""
    return ContrastiveDivergence(2, chains=4, pool=8, restart=0.1, penalty=0.1)


def flow_network(environment: AnyOrder | HyperGrid, backward: bool = False) -> GFlowNet:
    """A policy, and one back where that is learned."""
    nets = [MLP(environment.inputs, [8], environment.actions) for _ in range(1 + backward)]
    return GFlowNet(environment, *nets)


BOLTZMANN = [
    Member("RBM", binary, levels(2, 2, 3)),
    Member(
        "RBM, enumerated over what is visible",
        lambda: RBM(BernoulliUnits(3), 5, scale=1.0),
        levels(2, 3),
    ),
    Member(
        "RBM of numbers", lambda: started(RBM(GaussianUnits(4), 3, scale=0.5), rows(4)), rows(4)
    ),
    Member("RBM of labels", lambda: RBM(CategoricalUnits(4, levels=3), 3, scale=1.0), levels(3, 4)),
    Member(
        "RBM given a context",
        lambda: RBM(BernoulliUnits(4), 3, scale=1.0, biases=MLP(2, [8], 7)),
        levels(2, 4, context=(2,)),
    ),
    Member(
        "RBM, unnormalized",
        lambda: binary(limit=1),
        levels(2, 2, 3),
        lambda: ContrastiveDivergence(2, chains=5),
    ),
    Member(
        "RBM, unnormalized, by pseudo-likelihood",
        lambda: binary(limit=1),
        levels(2, 2, 3),
        PseudoLikelihood,
    ),
    Member(
        "DeepBoltzmannMachine",
        lambda: DeepBoltzmannMachine(BernoulliUnits(4), (3, 2), scale=1.0),
        levels(2, 4),
    ),
    Member(
        "DeepBoltzmannMachine of labels, three layers, unnormalized",
        lambda: DeepBoltzmannMachine(
            CategoricalUnits(4, levels=3), (3, 2, 3), scale=1.0, limit=1, sweeps=5
        ),
        levels(3, 4),
        lambda: ContrastiveDivergence(2, chains=5),
    ),
    Member(
        "DeepBoltzmannMachine with a mean field",
        lambda: started(
            DeepBoltzmannMachine(GaussianUnits(4), (11, 11), scale=0.3, sweeps=5, limit=1), rows(4)
        ),
        rows(4),
        lambda: ContrastiveDivergence(2, chains=5),
    ),
]
NETWORKS = [
    Member("EnergyBasedModel", energy, rows(3), buffered),
    Member(
        "EnergyBasedModel with a base and noise",
        lambda: energy(base=standard_normal(3), kernel=MALA(0.1)),
        rows(3),
        lambda: NoiseContrastive(standard_normal(3), ratio=2),
    ),
    Member(
        "EnergyBasedModel given a context",
        lambda: EnergyBasedModel(Joined(), (3,), kernel=HMC(0.1, leapfrogs=2), num_steps=5),
        rows(3, context=(2,)),
        lambda: ContrastiveDivergence(2),
    ),
    Member("Normalized", lambda: Normalized(energy(), 3.0), rows(3), ScoreMatching),
    Member("EnergyBasedModel by score matching", energy, rows(3), ScoreMatching),
    Member("EnergyBasedModel by sliced score matching", energy, rows(3), SlicedScoreMatching),
    Member(
        "EnergyBasedModel by denoising", energy, rows(3), lambda: DenoisingScoreMatching([0.1, 0.5])
    ),
    Member(
        "JointEnergyModel", classifier, labeled, lambda: Hybrid(ContrastiveDivergence(2, chains=5))
    ),
]
FLOW_NETWORKS = [
    Member("GFlowNet", lambda: flow_network(HyperGrid(2, levels=3)), levels(3, 2)),
    Member(
        "GFlowNet of bits, by trajectory balance",
        lambda: flow_network(AnyOrder(2, 2), backward=True),
        levels(2, 2, 2),
        lambda: TrajectoryBalance(RBM(BernoulliUnits(2, 2), 3, scale=1.0, limit=1), draws=5),
    ),
]
ENERGY: list[Member] = [*BOLTZMANN, *NETWORKS, *FLOW_NETWORKS]
