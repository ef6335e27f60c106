"""A continuous family of prepared columns, scored in the units of the data."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import constraints

from probgen.core import checks
from probgen.core.columns import examine
from probgen.core.contexts import check_finite, received
from probgen.core.conversion import rows_from
from probgen.core.module import DistributionModule
from probgen.core.supports import check_rescalable, check_values
from probgen.distributions.flows.columns import ColumnMaps
from probgen.distributions.flows.rescaled import Rescaled, UnitChange
from probgen.distributions.rounded import Rounded


class Preprocessed(DistributionModule):
    r"""A continuous family of prepared columns, as a family of the raw ones.

    .. math:: \log p(x \mid c) = \log p_0(y \mid \tilde c) + \sum_d \log \frac{d y_d}{d x_d}

    Each column goes through the increasing map that makes it closest to normal (itself, logarithm,
    logit, inverse hyperbolic sine), then to mean 0 and standard deviation 1; a column that was
    recorded on a grid gets uniform noise on its steps first (dequantization, Theis et al. 2016).
    Contexts are mapped likewise, without noise. Scores are densities of the raw data, the Jacobian
    counted: *exact* where those of the family are, *unbiased* with a grid (then their mean is a
    lower bound; of a column of integers the density is its probability). Samples lie on the grid.

    Missing entries (NaN), closed-form conditionals and imputation are those of the family. Maps are
    buffers: not trained, and saved with the model.

    Parameters
    ----------
    family : DistributionModule
        The distribution of y: a flow, a variational autoencoder, MADE with normal heads, a
        diffusion.
    columns : ColumnMaps
        Of the data, ``(*batch, D)``.
    context : ColumnMaps, optional
        Of the contexts, ``(*batch, C)``; default: these are handed on as they are.

    References
    ----------
    Box, Cox (1964), An analysis of transformations,
    https://doi.org/10.1111/j.2517-6161.1964.tb00553.x; Theis, van den Oord, Bethge (2016),
    https://arxiv.org/abs/1511.01844

    >>> import torch
    >>> from probgen.core.module import standard_normal
    >>> x = torch.stack([torch.linspace(-3, 3, 999).exp(), (torch.arange(999) % 50).float()], 1)
    >>> gen = Preprocessed.fitted(standard_normal(2), x)
    >>> gen.columns.words, gen().density_kind, (gen().sample((5,))[:, 1] % 1).any()
    (['log', 'affine'], 'unbiased', tensor(False))
    """

    context_from = "family"
    prepares = frozenset({"discrete", "bounds", "tails", "scale"})

    def __init__(
        self, family: DistributionModule, columns: ColumnMaps, context: ColumnMaps | None = None
    ):
        super().__init__()
        checks.generative(family=family)
        check_rescalable(family)
        self.family = family
        self.columns = columns
        self.contexts = context
        self.context_ndim = family.context_ndim
        if context is not None:
            self.prepares = self.prepares | {"context"}

    @classmethod
    def fitted(
        cls,
        family: DistributionModule,
        x: Tensor,
        context: Tensor | None = None,
        *,
        bounds: tuple[float, float] = (0.0, 1.0),
        dequantize: bool = True,
    ) -> Preprocessed:
        """With the maps that rows ask for, those of training: ``x (N, D)``, NaN = missing.

        Parameters
        ----------
        family : DistributionModule
            The distribution of prepared columns.
        x : Tensor
            ``(N, D)``.
        context : Tensor, optional
            ``(N, C)``: their columns are prepared as well.
        bounds : (float, float)
            Ends of bounded columns: the logit is tried where all values lie within.
        dequantize : bool
            Whether columns that were recorded on a grid get noise. Without it densities of such
            columns have no bound.

        Raises
        ------
        ValueError
            If rows are no vectors, a column of x has one value at most, numbers are infinite, the
            family is not one on all real numbers, or contexts are not those that it takes.
        """
        checks.generative(family=family)
        check_rescalable(family, centered=True)
        x = rows_from("x", x)
        if context is not None:
            context = received(family, rows_from("context", context))
            check_finite(context)
        for name, rows in (("x", x), ("context", context)):
            if rows is not None and rows.ndim != 2:
                raise ValueError(
                    f"expected {name} of shape (N, D), got {tuple(rows.shape)}; flatten its "
                    "events, or use Standardized"
                )
        check_values("x", x, constraints.real)
        examined = [examine(column, *bounds) for column in x.T]
        if not dequantize:
            examined = [replace(column, resolution=0.0) for column in examined]
        constant = [index for index, column in enumerate(examined) if column.constant]
        if constant:
            raise ValueError(
                f"expected columns that vary, got constant or missing ones at {constant}; leave "
                "them out: a density "
                "has no bound there"
            )
        contexts = None if context is None else ColumnMaps.of(context, *bounds)
        return cls(family, ColumnMaps(examined), contexts)

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        if context is not None and self.contexts is not None:
            context = self.contexts()(context)
        distribution = Rescaled(self.family(context), cast(UnitChange, self.columns()))
        return (
            Rounded(distribution, self.columns.resolution) if self.columns.on_grid else distribution
        )

    def prepare(self, x: Tensor) -> Tensor:
        """x as the family takes it, ``(*batch, D)`` each; on a grid, in the middle of its steps."""
        return self.columns()(x + self.columns.resolution / 2)
