"""Selective diversity: draws of a generator differ where the data of the same condition do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.construction import Recorded
from probgen.objectives.generator_regularizers import GeneratorRound, sensitivity


class ContextSpread(Recorded, nn.Module):
    r"""How diverse the data of a condition are, between 0 and 1.

    .. math:: s(c) = \frac{1}{D} \sum_d \operatorname{std}(x_d \mid c) \Big/ \max_{c'} \ldots

    of rows with the same context or, with ``neighbors``, of the rows whose contexts are nearest to
    c (each dim in units of its deviation). It is called with contexts, ``(B, C) -> (B,)``; others
    than those of the data count as the nearest one.

    Parameters
    ----------
    x : Tensor
        Rows ``(N, *event)``, complete.
    context : Tensor
        Their contexts ``(N, C)``.
    neighbors : int, optional
        Number of nearest rows, for contexts that are numbers of which no two are the same.

    Raises
    ------
    ValueError
        If rows and contexts do not fit together, a context has one row alone, or all rows of each
        context are the same.

    References
    ----------
    Dubiński, Deja, Wenzel, Rokita, Trzciński (2022), https://arxiv.org/abs/2207.01561

    >>> x = torch.tensor([[0.0], [2.0], [5.0], [5.0]])
    >>> spread = ContextSpread(x, torch.tensor([[0.0], [0.0], [1.0], [1.0]]))
    >>> spread(torch.tensor([[1.0], [0.0]]))
    tensor([0., 1.])
    """

    contexts: Tensor
    scale: Tensor
    spread: Tensor

    def __init__(self, x: Tensor, context: Tensor, *, neighbors: int | None = None):
        checks.instance(Tensor, "pass torch.as_tensor(rows)", x=x, context=context)
        checks.at_least(2, **checks.given(neighbors=neighbors))
        if context.ndim != 2 or len(context) != len(x) or x.ndim < 2:
            raise ValueError(
                "expected rows x of shape (N, *event) and contexts of shape (N, C), got "
                f"{tuple(x.shape)} and {tuple(context.shape)}; give one context for each row"
            )
        if len(x) < 2:
            raise ValueError(
                f"expected two rows or more, whose spread is measured, got {len(x)}; give the "
                "training rows"
            )
        super().__init__()
        scale = context.std(0)
        scale = torch.where(scale > 0, scale, 1.0)
        rows = x.detach().flatten(1)
        if neighbors is None:
            known, spread = _of_equal(rows, context)
        else:
            known, spread = _of_nearest(rows, context, scale, neighbors)
        if not bool(spread.isfinite().all()) or not bool(spread.max() > 0):
            raise ValueError(
                "expected rows that differ in some context, got none, or missing entries; drop "
                "the regularizer, or complete the rows first"
            )
        self.register_buffer("contexts", known)
        self.register_buffer("scale", scale)
        self.register_buffer("spread", spread / spread.max())

    def forward(self, context: Tensor) -> Tensor:
        distances = torch.cdist(context / self.scale, self.contexts / self.scale)
        return self.spread[distances.argmin(-1)]


def _of_equal(rows: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """Each different context, and the mean deviation of its rows."""
    known, group, counts = context.unique(dim=0, return_inverse=True, return_counts=True)
    if bool((counts < 2).any()):
        alone = int((counts < 2).sum())
        raise ValueError(
            f"expected two rows or more of each context, got {alone} contexts of {len(known)} with "
            "one; pass neighbors=20, which takes rows of the nearest contexts together"
        )
    n = counts.to(rows.dtype)[:, None]
    zeros = rows.new_zeros(len(known), rows.shape[1])
    mean = zeros.index_add(0, group, rows) / n
    squares = zeros.index_add(0, group, (rows - mean[group]).square())
    return known, (squares / (n - 1)).sqrt().mean(1)


def _of_nearest(
    rows: Tensor, context: Tensor, scale: Tensor, neighbors: int
) -> tuple[Tensor, Tensor]:
    """Each context, and the mean deviation of the rows with the nearest ones."""
    if neighbors > len(rows):
        raise ValueError(
            f"expected neighbors <= {len(rows)}, the number of rows, got {neighbors}; pass fewer"
        )
    scaled = context / scale
    spread = []
    for piece in scaled.split(256):  # a bounded piece of the table of distances at a time
        nearest = torch.cdist(piece, scaled).topk(neighbors, largest=False).indices
        spread.append(rows[nearest].std(1).mean(-1))
    return context, torch.cat(spread)


class SelectiveDiversity(Recorded, nn.Module):
    r"""Selective diversity increase: other latents make other draws where the data are diverse.

    .. math:: \lambda\, s(c) \Big(\frac{\lVert f(x) - f(x') \rVert_1}{\lVert z - z' \rVert_1}
              + 10^{-5}\Big)^{-1}

    for two draws of the same context c, with norms per entry: :class:`ModeSeeking
    <probgen.objectives.generator_regularizers.ModeSeeking>`, weighted by the spread s of the real
    rows of the condition, so that draws of conditions with consistent data stay alike.

    Parameters
    ----------
    spread : callable
        s, a function of contexts ``(B, C) -> (B,)``: :class:`ContextSpread` of the training data.
    weight : float
        :math:`\lambda`.
    layers : sequence of nn.Module
        Layers of the critic, held fixed, whose outputs together are f; default: the draws
        themselves.

    Raises
    ------
    TypeError
        At the call, where there is no context, or no latents are known that the fakes follow from.
    ValueError
        At the call, if the spread is not one number for each row.

    References
    ----------
    Dubiński, Deja, Wenzel, Rokita, Trzciński (2022), Selectively increasing the diversity of
    GAN-generated samples, https://arxiv.org/abs/2207.01561

    >>> x, context = torch.randn(60, 2), torch.arange(3.0).repeat(20)[:, None]
    >>> penalty = SelectiveDiversity(ContextSpread(x, context), 0.1)
    """

    layers: tuple[nn.Module, ...]
    player = "generator"

    def __init__(
        self,
        spread: Callable[[Tensor], Tensor],
        weight: float = 1.0,
        *,
        layers: Sequence[nn.Module] = (),
    ):
        checks.function("pass ContextSpread(x, context)", spread=spread)
        checks.not_negative(weight=weight)
        checks.functions(layers=layers)
        super().__init__()
        self.spread = spread
        self.weight = weight
        self.__dict__["layers"] = tuple(layers)  # parts of the critic

    def forward(self, played: GeneratorRound) -> Tensor:
        if len(played.context) != 1:
            raise TypeError(
                "SelectiveDiversity: expected rows with a context, got "
                f"{len(played.context) or 'none'}; give fit(gen, (x, context), ...), or use "
                "ModeSeeking()"
            )
        (context,) = played.context
        with torch.no_grad():
            spread = self.spread(context)
        if spread.shape != (len(context),):
            raise ValueError(
                f"SelectiveDiversity: expected a spread of shape ({len(context)},), one number for "
                f"each context, got {tuple(spread.shape)}; let spread(context) give that"
            )
        seen = self._features(played) if self.layers else None
        moved = sensitivity(played, "SelectiveDiversity", seen)
        return self.weight * spread * (moved + 1e-5).reciprocal()

    def _features(self, played: GeneratorRound) -> Callable[[Tensor], Tensor]:
        def seen(x: Tensor) -> Tensor:
            found = played.adversary.features(x, *played.context, layers=self.layers)
            return torch.cat([each.flatten(1) for each in found], 1)

        return seen

    def extra_repr(self) -> str:
        return f"weight={self.weight}"
