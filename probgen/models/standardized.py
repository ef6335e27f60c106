"""Continuous families in standard units, scored in the units of the data."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core import checks
from probgen.core.contexts import ignores, size_of
from probgen.core.conversion import rows_from
from probgen.core.entry import as_rows, check_some_rows
from probgen.core.module import DistributionModule, asked_inside
from probgen.core.ragged import Ragged
from probgen.core.supports import check_rescalable, check_values
from probgen.distributions.flows.rescaled import Rescaled, UnitChange

Bounds = tuple[float | Tensor, float | Tensor]


class Standardized(DistributionModule):
    r"""A continuous family of standardized variables, as a family of the raw ones.

    The Jacobian is counted.

    .. math:: \log p(x) = \log p_0(y) + \sum_d \log \frac{d y_d}{d x_d}, \qquad y_d = \frac{x_d - m_d}{s_d}
              \;\text{ or, on } (a_d, b_d), \;
              y_d = \frac{\operatorname{logit}\left(\frac{x_d - a_d}{b_d - a_d}\right) - m_d}{s_d}

    Scores are densities of the raw data, so that they compare with those of families that take the
    data as they are. Missing entries (NaN), closed-form conditionals and imputation are those of
    the family. m, s, a, b are buffers: they are not trained, and are saved with the model.
    Expectation maximization: ``em(gen.family, gen.standardize(x))``.

    Parameters
    ----------
    family : DistributionModule
        The distribution of y.
    loc, scale : float or Tensor
        m and s > 0, which broadcast to events; see :meth:`fitted` for those of some data.
    bounds : (float or Tensor, float or Tensor), optional
        a < b: the ends of variables that are bounded. ``Standardized(Gaussian(net), bounds=(0,
        1))`` is a distribution of logit-normal variables.

    Raises
    ------
    ValueError
        If a scale is not positive, an upper bound not above its lower one, or the family is one of
        labels or counts.

    >>> import pyro.distributions as dist
    >>> from probgen.core.module import Fixed
    >>> x = 100 + 20 * torch.randn(500, 3)
    >>> gen = Standardized.fitted(Fixed(dist.Normal, loc=torch.zeros(3), scale=1.0), x)
    >>> bool(gen().log_prob(x).mean() < -12), gen.standardize(x).std(0, correction=0).round(decimals=3)
    (True, tensor([1., 1., 1.]))
    """

    context_from = "family"
    prepares = frozenset({"scale"})

    loc: Tensor
    scale: Tensor
    low: Tensor | None
    high: Tensor | None

    def __init__(
        self,
        family: DistributionModule,
        loc: float | Tensor = 0.0,
        scale: float | Tensor = 1.0,
        *,
        bounds: Bounds | None = None,
    ):
        checks.generative(family=family)
        checks.numeric(loc=loc, scale=scale)
        checks.bounds(**checks.given(bounds=bounds))
        super().__init__()
        check_rescalable(family)
        self.family = family
        self.context_ndim = family.context_ndim
        real = torch.get_default_dtype()
        for name, value in (("loc", loc), ("scale", scale)):
            self.register_buffer(name, torch.as_tensor(value).to(real))
        for name, bound in zip(("low", "high"), bounds or (None, None), strict=True):
            self.register_buffer(name, None if bound is None else torch.as_tensor(bound).to(real))
        if not (self.scale > 0).all():
            raise ValueError(
                f"expected scale > 0, got {self.scale}; drop constant variables, or give them a "
                "scale"
            )

    @classmethod
    def fitted(
        cls, family: DistributionModule, x: Tensor, *, bounds: Bounds | None = None
    ) -> Standardized:
        """With the means and standard deviations of rows ``(N, *event)``, NaN = missing.

        After the logit, if any.

        Raises
        ------
        ValueError
            If a variable is constant or never observed, x does not lie within the bounds, or the
            family is not one on all real numbers.
        """
        checks.generative(family=family)
        check_rescalable(family, centered=True)
        if size_of(family) == 0 or ignores(family):
            (like,) = as_rows(family, x, support=constraints.real, missing=True)
        else:  # its events are not known without a context
            (like,) = family.settle((x,))
            check_some_rows(like)
            if not like.is_floating_point():  # programs keep integers and flags as they are
                like = like.to(torch.get_default_dtype())
            if not like.numel():
                raise ValueError(
                    f"expected rows x of at least one value, got {tuple(like.shape)}; give columns"
                )
            check_values("x", like, constraints.real)
        x = rows_from("x", x)  # in the precision that it came in
        x = x if x.is_floating_point() else like
        if bounds is not None and not ((x >= bounds[0]) & (x <= bounds[1]) | x.isnan()).all():
            low, high = (f(x[~x.isnan()]).item() for f in (torch.min, torch.max))
            raise ValueError(
                f"expected x within the bounds {bounds}, got {low:g} to {high:g}; widen the bounds"
            )
        y = cls(family, bounds=bounds).standardize(x).double()
        loc = y.nanmean(0)
        scale = (y - loc).square().nanmean(0).sqrt()
        if not (scale > 1e-12 * loc.abs()).all():
            wrong = (~(scale > 1e-12 * loc.abs())).flatten().nonzero().flatten().tolist()
            raise ValueError(
                f"expected variables that vary, got constant or missing ones at {wrong}; remove "
                "them, or give loc and "
                "scale yourself"
            )
        return cls(family, loc, scale, bounds=bounds)

    @property
    def summed_out(self) -> str | None:  # type: ignore[override]
        """What the density of the family sums out."""
        return asked_inside(self.family.summed_out, "gen.standardize(x)")

    @property
    def ragged(self) -> Ragged | None:  # type: ignore[override]
        """How a list of sequences becomes rows, if the family is one of sequences."""
        return self.family.ragged

    def forward(self, context: Tensor | None = None) -> Rescaled:
        return Rescaled(self.family(context), self._units)

    def standardize(self, x: Tensor) -> Tensor:
        """x in the units of the family, as its own ``initialize`` takes it.

        ``(*batch, *event)``, any shape.
        """
        return self._units(x)

    @property
    def _units(self) -> UnitChange:
        bounds = None if self.low is None or self.high is None else (self.low, self.high)
        return UnitChange(self.loc, self.scale, bounds)
