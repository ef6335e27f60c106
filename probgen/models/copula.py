"""Copulas: any margins, and the dependence of any family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from probgen.core import checks
from probgen.core.contexts import WITHOUT, common_size, distribution_given
from probgen.core.conversion import rows_from
from probgen.core.entry import as_rows
from probgen.core.module import DistributionModule, Fixed
from probgen.core.normal import MultivariateNormal
from probgen.core.supports import check_values
from probgen.distributions.flows.rescaled import Rescaled
from probgen.distributions.frozen import put
from probgen.distributions.margins import (
    NormalScores,
    kernel_margins,
    kernels,
)
from probgen.distributions.support import check_columns

_MOST = 0.999  # of a correlation at the start


class CorrelatedNormal(DistributionModule):
    r"""Normal variables of mean 0 and variance 1: their correlations alone are learned.

    .. math:: z \sim N(0, R), \qquad R = L L^\top, \quad |L_d| = 1

    The core of a Gaussian copula. Exact density, also of rows with missing entries (NaN).

    Parameters
    ----------
    dims : int
        Number D of variables.

    >>> CorrelatedNormal(3)().variance
    tensor([1., 1., 1.], grad_fn=<ExpandBackward0>)
    """

    context_size = 0
    context_hint = WITHOUT

    def __init__(self, dims: int):
        checks.at_least(1, dims=dims)
        super().__init__()
        self.dims = dims
        self.lower = nn.Parameter(torch.zeros(dims * (dims - 1) // 2))

    @property
    def _tril(self) -> Tensor:
        unit = torch.eye(self.dims, dtype=self.lower.dtype, device=self.lower.device)
        row, column = torch.tril_indices(self.dims, self.dims, -1, device=unit.device)
        unit = unit.index_put((row, column), self.lower)
        return unit / unit.norm(dim=-1, keepdim=True)

    @property
    def correlations(self) -> Tensor:
        """The matrix R: ``(D, D)``."""
        tril = self._tril.detach()
        return tril @ tril.mT

    def forward(self, context: Tensor | None = None) -> MultivariateNormal:
        tril = self._tril
        return MultivariateNormal(tril.new_zeros(self.dims), scale_tril=tril)

    @torch.no_grad()
    def initialize(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """The correlations of rows ``(N, D)``, of pairs that were both observed."""
        (x,) = as_rows(self, x)
        x = x.double()
        seen = (~x.isnan()).double()
        z = torch.where(seen > 0, x, 0.0)
        squares = z.square().mT @ seen
        products = z.mT @ z / (squares * squares.mT).sqrt().clamp(min=1e-30)
        values, vectors = torch.linalg.eigh(products.clamp(-_MOST, _MOST).fill_diagonal_(1.0))
        matrix = (vectors * values.clamp(min=1 - _MOST)) @ vectors.mT  # pairs may not fit together
        tril = torch.linalg.cholesky(matrix)
        tril = tril / tril.diagonal()[:, None]
        row, column = torch.tril_indices(self.dims, self.dims, -1)
        put(self.lower, tril[row, column])


class Copula(DistributionModule):
    r"""Copula: margins of any shape, joined by the dependence of another family.

    .. math:: p(x) = p_0(z) \prod_{d=1}^D \frac{f_d(x_d)}{\varphi(z_d)}, \qquad z_d = \Phi^{-1}(F_d(x_d))

    Variables are turned into normal scores by their own distribution functions, and the core is a
    family of the scores: by default correlated normal ones (the Gaussian copula), a
    :class:`StudentTMixture <probgen.StudentTMixture>` for variables that are extreme together, a
    flow. Exact density where the core's is; missing entries (NaN), conditionals and imputation are
    those of the core. Margins are exactly those given if those of the core are standard normal.

    Parameters
    ----------
    margins : DistributionModule
        Independent continuous columns with a distribution function, events ``(D,)``:
        ``heads.Gamma(Constant(2 * D))``, or ``heads.Mixed(net, [heads.Gaussian(), heads.LogNormal(),
        ...])`` for columns of different kinds. :meth:`fitted` takes the margins from data.
    core : DistributionModule, optional
        Family of normal scores, events ``(D,)``; default: ``CorrelatedNormal(D)``.

    Raises
    ------
    ValueError
        If margins are not independent, not continuous, or have no distribution function, or the
        core has other events.

    References
    ----------
    Nelsen (2006), An introduction to copulas, https://doi.org/10.1007/0-387-28678-0; margins from
    data: Liu, Lafferty, Wasserman (2009), The nonparanormal,
    https://www.jmlr.org/papers/v10/liu09a.html

    >>> _ = torch.manual_seed(0)
    >>> z = torch.randn(500, 1)
    >>> x = torch.cat([z, (z + 0.5 * torch.randn(500, 1)).exp()], 1)        # a normal, a lognormal margin
    >>> gen = Copula.fitted(x)
    >>> bool(gen.core.correlations[0, 1] > 0.8), gen().log_prob(x).shape
    (True, torch.Size([500]))
    """

    context_hint = "build its parts with context={size}"
    prepares = frozenset({"scale", "tails"})

    def __init__(self, margins: DistributionModule, core: DistributionModule | None = None):
        checks.generative(margins=margins, **checks.given(core=core))
        super().__init__()
        self.margins = margins
        if common_size([margins]) == 0:
            with torch.no_grad():
                own = margins()
                NormalScores(own)(own.sample())  # refuses what has none
                dims = own.event_shape[0]
            self.core = CorrelatedNormal(dims) if core is None else core
            _check_core(self.core, dims)
        elif core is None:
            raise ValueError(
                "expected a core beside margins that depend on a context, got None; give "
                "CorrelatedNormal(D), for D variables"
            )
        else:
            self.core = core
        self.context_ndim = margins.context_ndim

    @classmethod
    def fitted(cls, x: Any, core: DistributionModule | None = None, *, points: int = 200) -> Copula:
        """With margins that are kernel estimates of rows ``(N, D)``, NaN = missing.

        A core with a start of its own begins at the normal scores of the rows: the default one is
        then complete (correlations of normal scores), others are fitted by :func:`probgen.fit`, or
        by ``em(gen.core, gen.scores(x))``. The margins have nothing to train.

        Parameters
        ----------
        x : Tensor, array or frame
            ``(N, D)``.
        core : DistributionModule, optional
            Family of normal scores.
        points : int
            Kernels of each margin at most.

        Raises
        ------
        ValueError
            If a column is constant or never observed, or a number infinite.
        """
        checks.at_least(2, points=points)
        checks.generative(**checks.given(core=core))
        x = rows_from("x", x)
        if x.ndim != 2 or not x.numel():
            raise ValueError(
                f"expected x of shape (N, D), got {tuple(x.shape)}; give one observation per row"
            )
        x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        check_values("x", x, constraints.real)
        check_columns(x)
        centers, widths = kernel_margins(x, min(points, len(x)))
        gen = cls(Fixed(kernels, centers=centers, widths=widths), core)
        start = getattr(gen.core, "initialize", None)
        if start is not None:
            start(gen.scores(x))
        return gen

    @property
    def context_size(self) -> int | None:
        """What the margins declare, or the core."""
        return common_size([self.margins, self.core])

    def forward(self, context: Tensor | None = None) -> Rescaled:
        margins = NormalScores(distribution_given(self.margins, context))
        return Rescaled(distribution_given(self.core, context), margins)

    @torch.no_grad()
    def scores(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The normal scores of rows, what the core is a distribution of: ``(N, D) -> (N, D)``."""
        x, context = (*as_rows(self, x, context, missing=True), None)[:2]
        return NormalScores(distribution_given(self.margins, context))(x)


def _check_core(core: DistributionModule, dims: int) -> None:
    if common_size([core]) != 0:
        return
    with torch.no_grad():
        event = tuple(core().event_shape)
    if event != (dims,):
        raise ValueError(
            f"expected a core with events of shape ({dims},), as the margins have, got {event}; "
            "give it as many variables"
        )
