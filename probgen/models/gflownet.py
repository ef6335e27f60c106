"""Generative flow networks: objects built step by step, by a policy that learns to sample."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import WITHOUT, received
from probgen.core.missing import fill_missing
from probgen.core.module import LatentVariableModel, data_plate
from probgen.distributions.environments import Environment
from probgen.distributions.trajectories import BackwardTrajectories, Determined, ForwardTrajectories


class GFlowNet(LatentVariableModel):
    r"""Generative flow network (GFlowNet): a policy that builds discrete objects, in orders of its choice.

    .. math::
        P_F(\tau) = \prod_{t=1}^T P_F(a_t \mid s_{t-1}), \qquad x = x(s_T), \qquad
        p(x) = \sum_{\tau \to x} P_F(\tau)

    The latent variable is the trajectory :math:`\tau`; what explains an object is a backward policy
    :math:`P_B(\tau \mid x)`, the guide. Sites ``"trajectory"`` (T actions, integers) and ``"x"``, in
    plate ``"data"``.

    Trained by :class:`TrajectoryBalance <probgen.objectives.TrajectoryBalance>` it samples in
    proportion to a reward: ``fit(gen, None, TrajectoryBalance(log_reward), steps=2000)``. Trained on
    rows, by ``fit(gen, x)``, it is an order-agnostic autoregressive model (Uria, Murray, Larochelle
    2014). Objects have many trajectories, so that ``log_likelihood`` is *unbiased*; one that is set
    in a fixed order has one, and any autoregressive family takes its place, with an *exact* density
    and the same objective.

    Parameters
    ----------
    environment : Environment
        How objects are built: :class:`HyperGrid <probgen.energy.HyperGrid>`, :class:`AnyOrder
        <probgen.energy.AnyOrder>`, or what has their methods.
    net : nn.Module
        Logits of the A actions from the features of a state: ``MLP(environment.inputs, [64],
        environment.actions)``. Those of impossible actions are not used.
    backward : nn.Module, optional
        Logits of the last action, likewise; default: all that may have been last are equally
        likely.

    References
    ----------
    Bengio, Jain, Korablyov, Precup, Bengio (2021), Flow network based generative models for
    non-iterative diverse candidate generation, https://arxiv.org/abs/2106.04399; Bengio, Lahlou,
    Deleu, Hu, Tiwari, Bengio (2023), GFlowNet foundations, https://arxiv.org/abs/2111.09266; as a
    model and a guide: Malkin et al. (2023), GFlowNets and variational inference,
    https://arxiv.org/abs/2210.00580

    >>> from probgen.distributions.environments import HyperGrid
    >>> from probgen.nn import MLP
    >>> grid = HyperGrid(2, levels=8)
    >>> gen = GFlowNet(grid, MLP(grid.inputs, [16], grid.actions))
    >>> gen().sample((5,)).shape, gen().density_kind
    (torch.Size([5, 2]), 'unbiased')
    """

    context_size = 0
    context_hint = WITHOUT

    nothing: Tensor

    def __init__(self, environment: Environment, net: nn.Module, backward: nn.Module | None = None):
        checks.has(("allowed", "removable"), "pass AnyOrder(dims)", environment=environment)
        checks.network(net=net, **checks.given(backward=backward))
        super().__init__()
        self.environment = environment
        self.net = net
        self.backward_net = backward
        self.register_buffer("nothing", torch.zeros(environment.actions), persistent=False)

    def model(self, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        received(self, context)
        with data_plate(x, context):
            actions = pyro.sample(
                "trajectory", ForwardTrajectories(self.environment, self.net, self.nothing)
            )
            return pyro.sample("x", self.build(actions), obs=x)

    def guide(self, x: Tensor | None = None, context: Tensor | None = None) -> None:
        received(self, context)
        if x is None:
            return
        with data_plate(x, context):
            pyro.sample("trajectory", self.encode(x))

    def build(self, actions: Tensor) -> dist.TorchDistribution:
        """What a trajectory builds: ``(*batch, T) -> batch_shape (*batch,)``."""
        counts = nn.functional.one_hot(actions.long(), len(self.nothing)).sum(-2)
        x = self.environment.built(counts.to(self.nothing))
        return Determined(x, len(self.environment.shape), self.environment.support)

    def encode(self, x: Tensor) -> dist.TorchDistribution:
        """The backward policy from objects: ``(*batch, *event) -> batch_shape (*batch,)``."""
        counts = self.environment.counts(fill_missing(x))
        return BackwardTrajectories(self.environment, self.backward_net, counts)
