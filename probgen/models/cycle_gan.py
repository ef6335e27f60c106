"""CycleGAN: two networks that translate between two sets without pairs."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.arguments import dtype_of
from probgen.core.construction import Recorded
from probgen.core.modes import infers
from probgen.core.module import DistributionModule, data_plate
from probgen.core.program import Program
from probgen.distributions.implicit import Implicit

OBJECTIVE = "CycleConsistency(critic_a, critic_b)"


class _Translations(Recorded, nn.Module):
    """The program of both directions."""

    def __init__(self, to_b: nn.Module, to_a: nn.Module, base: DistributionModule | None):
        super().__init__()
        self.to_b = to_b
        self.to_a = to_a
        self.base = base

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        if a is None or b is None:
            raise TypeError(
                "CycleGAN: expected rows of both sets, got None; call gen.translate(a) or "
                "gen.translate_back(b), which need rows of one"
            )
        if len(a) != len(b):
            raise ValueError(
                f"expected as many rows of both sets in a batch, got {len(a)} and {len(b)}; "
                "pass Unpaired(a, b), with one of batch_sizes for both"
            )
        with data_plate(a):
            made_b = pyro.sample("b", self.translated(self.to_b, a, b.shape[1:]), obs=b)
            made_a = pyro.sample("a", self.translated(self.to_a, b, a.shape[1:]), obs=a)
        return made_a, made_b

    def translated(self, net: nn.Module, x: Tensor, event_shape: torch.Size) -> Implicit:
        """The distribution of what a network makes of rows."""
        given: Any = {"context": x, "context_ndim": x.ndim - 1, "trained_by": OBJECTIVE}
        if self.base is None:
            none = dist.Normal(x.new_zeros(0), 1.0).to_event(1)
            return Implicit(_Alone(net), none, event_shape, **given)
        return Implicit(net, self.base(), event_shape, **given)

    def translate(self, net: nn.Module, x: Tensor, max_rows: int) -> Tensor:
        checks.instance(Tensor, x=x)
        checks.at_least(1, max_rows=max_rows)
        x = x.to(dtype_of(self))
        made = []
        for part in x.split(max_rows):
            noise = () if self.base is None else (self.base().sample((len(part),)),)
            made.append(net(*noise, part))
        return torch.cat(made)


class _Alone:
    """A network of the context alone, called as one of noise and context."""

    def __init__(self, net: nn.Module):
        self.net = net

    def __call__(self, z: Tensor, context: Tensor) -> Tensor:
        made: Tensor = self.net(context)
        return made


class CycleGAN(Program):
    r"""CycleGAN: translation between two sets of rows that no pair connects.

    .. math:: \hat x_b = G(x_a), \qquad \hat x_a = F(x_b), \qquad
              F(G(x_a)) \approx x_a, \quad G(F(x_b)) \approx x_b

    A program of rows of both sets, ``model(a, b)``, with two observed sites in plate ``"data"``:
    ``"b"``, the distribution of what G makes of a, and ``"a"``, of what F makes of b. Both are
    implicit: they are drawn from and have no density. Rows of a batch are pairs by chance alone.
    Trained by ``fit(gen, Unpaired(a, b), CycleConsistency(critic_a, critic_b))``.

    That translations look like the other set and come back does not say *which* row of it they
    become: any other map of that kind is as good a solution, such as one that consistently changes
    classes. What decides is how the networks begin and what they do with ease. Networks that begin
    near the identity, and that have the parts which the true map needs (a convolution moves
    nothing far: a rotation needs a dense layer or one that knows coordinates), find it.

    Parameters
    ----------
    to_b, to_a : nn.Module
        G, from events of a to events of b ``(B, *event_a) -> (B, *event_b)``, and F back. With
        ``base`` they are called with noise first, ``net(z, rows)``.
    base : DistributionModule, optional
        The distribution of noise z, for translations that are drawn; that of one row, without
        context. Its draws are what cycles must not need: beside a large weight of the cycle they
        are ignored.

    Raises
    ------
    TypeError
        At the call, without rows of both sets.
    ValueError
        At the call, for another number of rows of a than of b, and if a network does not give
        events of the other set.

    References
    ----------
    Zhu, Park, Isola, Efros (2017), Unpaired image-to-image translation using cycle-consistent
    adversarial networks, https://arxiv.org/abs/1703.10593; Almahairi et al. (2018), Augmented
    CycleGAN, https://arxiv.org/abs/1802.10151 (noise)

    >>> gen = CycleGAN(nn.Linear(2, 3), nn.Linear(3, 2))
    >>> gen.translate(torch.zeros(5, 2)).shape, gen.translate_back(torch.zeros(5, 3)).shape
    (torch.Size([5, 3]), torch.Size([5, 2]))
    >>> rows = gen.settle((torch.zeros(5, 2), torch.zeros(5, 3)))
    >>> print(gen)
    Program: rows are plate 'data'
    site  role      distribution  shape   plates
    b     observed  Implicit      (5, 3)  data
    a     observed  Implicit      (5, 2)  data
    """

    def __init__(self, to_b: nn.Module, to_a: nn.Module, *, base: DistributionModule | None = None):
        checks.network(to_b=to_b, to_a=to_a)
        checks.generative(**checks.given(base=base))
        super().__init__(_Translations(to_b, to_a, base))

    @property
    def to_b(self) -> nn.Module:
        return self._networks.to_b

    @property
    def to_a(self) -> nn.Module:
        return self._networks.to_a

    @property
    def _networks(self) -> _Translations:
        networks: _Translations = self._model  # type: ignore[assignment]
        return networks

    @infers
    @torch.no_grad()
    def translate(self, a: Tensor, *, max_rows: int = 1000) -> Tensor:
        """Rows of the first set as rows of the second, ``(N, *event_a) -> (N, *event_b)``.

        In eval mode, without gradients.

        Parameters
        ----------
        a : Tensor
            The rows.
        max_rows : int
            Rows translated at once.
        """
        return self._networks.translate(self.to_b, a, max_rows)

    @infers
    @torch.no_grad()
    def translate_back(self, b: Tensor, *, max_rows: int = 1000) -> Tensor:
        """Rows of the second set as rows of the first, ``(N, *event_b) -> (N, *event_a)``.

        As :meth:`translate`.

        Parameters
        ----------
        b : Tensor
            The rows.
        max_rows : int
            Rows translated at once.
        """
        return self._networks.translate(self.to_a, b, max_rows)
