"""Sites of which some rows are observed, and the others latent."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from probgen.core import checks
from probgen.core.conversion import rows_from
from probgen.core.inside import point_inside
from probgen.core.keywords import explained
from probgen.core.missing import values_are_known
from probgen.core.supports import check_values, support_of

UNKNOWN = "where it is unknown give NaN, or say what stands for it: observe(..., unknown={value})"


@explained
def observe(name: str, distribution: Any, value: Any = None, *, unknown: int | None = None) -> Any:
    r"""Site whose rows with a missing value are latent, the others observed.

    .. math:: p(y) \prod_{b: y_b \text{ known}} p(x_b \mid y_b) \prod_{b: y_b \text{ missing}}
              \sum_{y} p(y)\, p(x_b \mid y)

    for a program with a child x. Missing rows of a discrete site with finitely many values are
    summed out exactly, so that a density that was exact stays exact, unless the guide draws them.
    Others the guide has to draw. It draws ``name_unobserved``, for all rows; the draws of observed
    rows count nothing, and are not used. Values are missing at random.

    The sites are those of ``pyro.sample(name, distribution, obs=value, obs_mask=known)``:
    ``name_observed``, ``name_unobserved``, and the deterministic ``name``, which holds both. Pyro's
    own statement asks for complete values and for a mask, and leaves it to
    :func:`pyro.infer.config_enumerate` to sum out.

    Parameters
    ----------
    name : str
        Name of the site.
    distribution : TorchDistribution
        Of all rows, ``batch_shape`` as the plates around have it.
    value : Tensor, optional
        ``(*batch, *event)``. A row is missing where its entries are NaN; without any value all rows
        are.
    unknown : int, optional
        What stands for a missing value besides NaN, which integers lack, such as -1.

    Returns
    -------
    Tensor
        The observed values, and those drawn or enumerated in the missing rows.

    Raises
    ------
    ValueError
        For values outside of the support, and where some entries of an event are missing and others
        are not.

    References
    ----------
    Kingma, Mohamed, Rezende, Welling (2014), Semi-supervised learning with deep generative models,
    https://arxiv.org/abs/1406.5298; Rubin (1976), Inference and missing data,
    https://doi.org/10.1093/biomet/63.3.581

    >>> import pyro.distributions as dist
    >>> from probgen.core.program import Program
    >>> from probgen.core.weights import log_weights
    >>> def mixture(x, y):
    ...     with pyro.plate("data", len(x)):
    ...         y = observe("y", dist.Categorical(torch.tensor([0.25, 0.75])), y)
    ...         pyro.sample("x", dist.Normal(4.0 * y, 1.0), obs=x)
    >>> log_weights(Program(mixture), torch.zeros(2), torch.tensor([0.0, torch.nan]))
    (tensor([[-2.3052, -2.3042]]), 'exact')
    """
    checks.text(name=name)
    checks.has(
        ("has_enumerate_support", "log_prob"),
        "pass a distribution such as pyro.distributions.Categorical(probs)",
        distribution=distribution,
    )
    checks.number(**checks.given(unknown=unknown))
    latent: Any = {"enumerate": "parallel"} if distribution.has_enumerate_support else {}
    if value is None:
        drawn = pyro.sample(f"{name}_unobserved", distribution, infer=latent)
        return pyro.deterministic(name, drawn, event_dim=distribution.event_dim)
    value = torch.as_tensor(value) if checks.is_number(value) else rows_from(name, value)
    entries = value.isnan() if unknown is None else value.isnan() | (value == unknown)
    event_dim = distribution.event_dim
    missing = entries.flatten(-event_dim).any(-1) if event_dim else entries
    if values_are_known():
        how = UNKNOWN if unknown is None else ""
        _check(name, torch.where(entries, torch.nan, value), distribution, how)
    with poutine.mask(mask=missing):
        drawn = pyro.sample(f"{name}_unobserved", distribution, infer=latent)
    filled = torch.where(entries, _possible(distribution, drawn), value)
    if not drawn.is_floating_point():
        filled = filled.to(drawn.dtype)
    with poutine.mask(mask=~missing):
        pyro.sample(f"{name}_observed", distribution, obs=filled)
    both = torch.where(entries, drawn, filled)
    return pyro.deterministic(name, both, event_dim=event_dim)


def _check(name: str, value: Tensor, distribution: Any, unknown: str) -> None:
    """Refuses values outside of the support, and events that are missing in part; ``ValueError``."""
    check_values(name, value, support_of(distribution), unknown=unknown)
    if distribution.event_dim:
        entries = value.isnan().flatten(-distribution.event_dim)
        partial = entries.any(-1) & ~entries.all(-1)
        if partial.any():
            row = ", ".join(map(str, partial.nonzero()[0].tolist()))
            raise ValueError(
                f"expected rows of '{name}' that are known or missing as a whole, got some entries "
                f"(NaN) missing in row {row}; mark all of them missing, or observe the parts as "
                "sites of their own"
            )


def _possible(distribution: Any, drawn: Tensor) -> Tensor:
    """A value of positive density for each row, in place of what is missing.

    Densities of it are finite and have gradients, which masks leave out.
    """
    if distribution.has_enumerate_support:
        return distribution.enumerate_support(expand=False)[0]
    try:
        point = point_inside(distribution.support, distribution.event_shape, drawn)
    except NotImplementedError:
        return drawn.detach()
    return point.detach().expand(distribution.batch_shape + distribution.event_shape)
