"""StarGAN: one network that changes rows to whatever attributes are asked for."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.arguments import dtype_of
from probgen.core.construction import Recorded
from probgen.core.contexts import is_labels, one_hot_call
from probgen.core.modes import infers
from probgen.core.module import DistributionModule, data_plate
from probgen.core.program import Program
from probgen.distributions.implicit import Implicit

OBJECTIVE = "AttributeTranslation(critic, recognizer)"


class _OfRows:
    """A network of rows and attributes, at these rows, called as one of noise and attributes."""

    def __init__(self, net: nn.Module, x: Tensor):
        self.net = net
        self.x = x

    def __call__(self, z: Tensor, attributes: Tensor) -> Tensor:
        made: Tensor = self.net(self.x, attributes)
        return made


class _Changed(Recorded, nn.Module):
    """The program of rows and their attributes."""

    def __init__(self, generator: nn.Module, attributes: DistributionModule):
        super().__init__()
        self.generator = generator
        self.attributes = attributes

    def forward(self, x: Tensor, attributes: Tensor | None = None) -> Tensor:
        if x is None:
            raise TypeError(
                "StarGAN: expected rows to change, got None; call gen.translate(x, attributes)"
            )
        if attributes is not None:
            self.check(x, attributes)
        with data_plate(x):
            asked = pyro.sample("attributes", self.attributes(), obs=attributes)
            none = dist.Normal(x.new_zeros(0), 1.0).to_event(1)
            generator = _OfRows(self.generator, x)
            changed = Implicit(generator, none, x.shape[1:], context=asked, trained_by=OBJECTIVE)
            return pyro.sample("x", changed, obs=x)

    def check(self, x: Tensor, attributes: Tensor, one_for_all: str = "") -> None:
        """Refuses labels, and vectors of another length than p(c) has; ``ValueError``."""
        (width,) = self.attributes().event_shape
        labels = is_labels(attributes, 1, width, attributes.shape[-1:] == (width,))
        if attributes.shape[-1:] == (width,) and not labels:
            return
        column = attributes.ndim < 2 or attributes.shape[-1] == 1
        how = one_hot_call(attributes if column else attributes[..., 0], width)
        raise ValueError(
            f"expected attributes ({x.shape[0] if x.ndim else 1}, {width}){one_for_all}, got "
            f"{attributes.dtype} of shape {tuple(attributes.shape)}; give one-hot categories side "
            f"by side, {how} if there is one"
        )


class StarGAN(Program):
    r"""StarGAN: one generator that changes rows to any of several attributes.

    .. math:: c' \sim p(c), \qquad x' = G(x, c'), \qquad G(G(x, c'), c) \approx x

    A program of rows and their attributes, ``model(x, attributes)``, with two observed sites in
    plate ``"data"``: ``"attributes"``, and ``"x"``, the implicit distribution of what G makes of the
    rows with them. Unconditioned it draws attributes to ask for, and the rows changed to have them.
    Trained by ``fit(gen, (x, attributes), AttributeTranslation(critic, recognizer))``.

    Parameters
    ----------
    generator : nn.Module
        G, called as ``generator(x, attributes)``: ``(B, *event), (B, K) -> (B, *event)``. One that
        begins near the identity keeps what it need not change.
    attributes : DistributionModule
        p(c), the attributes that are asked for in training, vectors ``(K,)``: ``Codes([3, 2])`` are
        a category of three levels and one of two, as one-hot blocks side by side.

    Raises
    ------
    TypeError
        At the call, without rows: attributes alone make none.
    ValueError
        At the call, if the generator does not give events of the shape of the rows.

    References
    ----------
    Choi, Choi, Kim, Ha, Kim, Choo (2018), StarGAN: unified generative adversarial networks for
    multi-domain image-to-image translation, https://arxiv.org/abs/1711.09020

    >>> from probgen.models.info_gan import Codes
    >>> from probgen.nn.side_by_side import SideBySide
    >>> gen = StarGAN(SideBySide(nn.Linear(2 + 3, 2)), Codes([3]))
    >>> gen.translate(torch.zeros(5, 2), torch.eye(3)[1]).shape
    torch.Size([5, 2])
    """

    def __init__(self, generator: nn.Module, attributes: DistributionModule):
        checks.network(generator=generator)
        checks.generative(attributes=attributes)
        super().__init__(_Changed(generator, attributes))

    @property
    def generator(self) -> nn.Module:
        program: _Changed = self._model  # type: ignore[assignment]
        return program.generator

    @infers
    @torch.no_grad()
    def translate(self, x: Tensor, attributes: Tensor, *, max_rows: int = 1000) -> Tensor:
        """Rows changed to have the attributes, ``(N, *event) -> (N, *event)``.

        In eval mode, without gradients.

        Parameters
        ----------
        x : Tensor
            The rows.
        attributes : Tensor
            ``(N, K)``, or ``(K,)`` for all rows.
        max_rows : int
            Rows changed at once.

        Raises
        ------
        ValueError
            For attributes that do not fit the rows.
        """
        checks.instance(Tensor, x=x, attributes=attributes)
        checks.at_least(1, max_rows=max_rows)
        program: _Changed = self._model  # type: ignore[assignment]
        (width,) = program.attributes().event_shape
        program.check(x, attributes, f", or ({width},) for all rows")
        if attributes.ndim not in (1, 2) or (attributes.ndim == 2 and len(attributes) != len(x)):
            raise ValueError(
                f"expected attributes ({len(x)}, K), a row for each of x, got "
                f"{tuple(attributes.shape)}; give (K,) for the same ones everywhere"
            )
        kind = dtype_of(self)
        asked = attributes.to(kind).expand(len(x), attributes.shape[-1])
        pairs = zip(x.to(kind).split(max_rows), asked.split(max_rows), strict=True)
        return torch.cat([self.generator(rows, wanted) for rows, wanted in pairs])
