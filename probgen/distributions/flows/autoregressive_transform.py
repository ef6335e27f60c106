"""Transforms of one variable after the other, or of one half given the other."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform

from probgen.distributions.flows.bijection import Bijection, Invertible

Transforms = Callable[[torch.Size], Generator[Transform, Tensor, None]]


class AutoregressiveTransform(Invertible):
    r"""Every variable transformed by a map that depends on the variables before it.

    .. math:: y_d = f(x_d;\, r_d(x_{<d})), \qquad
              \log\left|\det \frac{\partial y}{\partial x}\right| = \sum_d \log f'(x_d;\,
              r_d(x_{<d}))

    Two callables say the same maps: ``elements`` for all variables of a given x at once (one pass),
    ``transforms`` for one after the other while x comes into being. With running activations in the
    latter the inverse costs about one pass, where repeating passes until all variables are right
    costs D of them.

    Parameters
    ----------
    elements : callable
        ``x -> transform``, which acts on the entries of x, of shape ``(*batch, D)``.
    transforms : callable
        ``lead -> generator`` that yields the transform of each variable in turn, to act on
        ``(*lead,)``, and is sent the variable's value.
    order : sequence of int
        The variable that comes t-th; numbers of Python, so that a graph has no value to follow.
    density_kind : str
        The kind of the determinants.
    solve : callable, optional
        ``y -> x``, the inverse by a quicker way, or ``None`` where there is none for this y.

    References
    ----------
    Papamakarios, Pavlakou, Murray (2017), Masked autoregressive flow,
    https://arxiv.org/abs/1705.07057
    """

    def __init__(
        self,
        elements: Callable[[Tensor], Any],
        transforms: Transforms,
        order: Sequence[int],
        density_kind: str = "exact",
        solve: Callable[[Tensor], Tensor | None] | None = None,
    ):
        super().__init__()
        self.elements = elements
        self.transforms = transforms
        self.order = order
        self.solve = solve
        self.density_kind = density_kind

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, ladj = self.elements(x).call_and_ladj(x)
        return y, ladj.sum(-1)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x = self._inverse(y)
        return x, -self.call_and_ladj(x)[1]  # one pass more costs less than D small determinants

    def _call(self, x: Tensor) -> Tensor:
        return self.elements(x)(x)

    def _inverse(self, y: Tensor) -> Tensor:
        solved = None if self.solve is None else self.solve(y)
        return self._one_by_one(y) if solved is None else solved

    def _one_by_one(self, y: Tensor) -> Tensor:
        transforms = self.transforms(y.shape[:-1])
        found: list[Tensor] = []
        columns = y.movedim(-1, 0).contiguous().unbind(0)
        transform = next(transforms)
        for variable in self.order:
            if found:
                transform = transforms.send(found[-1])
            found.append(transform._inverse(columns[variable]))
        transforms.close()
        values = dict(zip(self.order, found, strict=True))
        return torch.stack([values[variable] for variable in range(len(found))], -1)


class CouplingTransform(Bijection):
    r"""One half of the variables transformed given the other half, which stays as it is.

    The halves change places.

    .. math:: y = (f(x_2;\, r(x_1)),\, x_1), \qquad
              \log\left|\det \frac{\partial y}{\partial x}\right| = \sum_d \log f'(x_{2d};\,
              r_d(x_1))

    Both directions cost one pass.

    Parameters
    ----------
    elements : callable
        ``x1 -> transform``, which acts on the entries of x2.
    first : int
        Number of variables of x1, the first ones of x.
    density_kind : str
        The kind of the determinants.

    References
    ----------
    Dinh, Sohl-Dickstein, Bengio (2017), Density estimation using Real NVP,
    https://arxiv.org/abs/1605.08803
    """

    def __init__(self, elements: Callable[[Tensor], Any], first: int, density_kind: str = "exact"):
        super().__init__()
        self.elements = elements
        self.first = first
        self.density_kind = density_kind

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept = x[..., : self.first]
        other = x[..., self.first :]
        moved, ladj = self.elements(kept).call_and_ladj(other)
        return torch.cat((moved, kept), -1), ladj.sum(-1)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        split = y.shape[-1] - self.first
        moved = y[..., :split]
        kept = y[..., split:]
        other, ladj = self.elements(kept).inv.call_and_ladj(moved)
        return torch.cat((kept, other), -1), ladj.sum(-1)
