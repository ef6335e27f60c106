"""Where chains start, and the scales they start with.

At random, at given values, or at draws of a fitted guide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from probgen.core.module import GenerativeModel
from probgen.core.sites import latent_sites
from probgen.infer.log_density import LogDensity, value_and_grad
from probgen.infer.simulate import Draws, Runs, trace_of

Init = Mapping[str, Tensor] | GenerativeModel | Callable[..., Any] | None
GUIDE_DRAWS = 500


class Scaled(NamedTuple):
    """The density of v where u = loc + scale v, up to its constant.

    A diagonal mass matrix by change of variables.

    Attributes
    ----------
    log_density : LogDensity
        Log density of u.
    loc, scale : Tensor
        Center and standard deviations of u, ``(D,)`` each.
    """

    log_density: LogDensity
    loc: Tensor
    scale: Tensor

    def __call__(self, v: Tensor) -> Tensor:
        """``(D,) -> ()``."""
        return self.log_density(self.u(v))

    def u(self, v: Tensor) -> Tensor:
        """``(..., D) -> (..., D)``."""
        return self.loc + self.scale * v

    def v(self, u: Tensor) -> Tensor:
        """``(..., D) -> (..., D)``."""
        return (u - self.loc) / self.scale


def starts(log_density: LogDensity, batch: tuple, init: Init, chains: int) -> tuple[Scaled, Tensor]:
    """The density in the scales of a guide, if ``init`` is one.

    And a start ``(chains, D)`` of each chain, as u.

    Sites without a value start uniformly on (-2, 2) in the unconstrained space, drawn anew until
    the density is finite.

    Raises
    ------
    ValueError
        If given values have the wrong shape or no site knows them, or the density is not finite at
        a start.
    """
    scaled = Scaled(log_density, log_density.origin, torch.ones_like(log_density.origin))
    given: Mapping[str, Tensor] = init if isinstance(init, Mapping) else {}
    if init is not None and not isinstance(init, Mapping):
        drawn = starts_of_guide(log_density.gen, init, batch, chains + GUIDE_DRAWS)
        scaled = _scales(log_density, drawn)
        given = {name: value[:chains] for name, value in drawn.items()}
    _check(log_density, given, chains)
    return scaled, _finite(log_density, given, chains)


def starts_of_guide(
    gen: GenerativeModel, init: GenerativeModel | Callable[..., Any], batch: tuple, draws: int
) -> Draws:
    """Draws of the latent sites of a guide, on its own or that of a model.

    ``(draws, *natural shape)`` each.
    """
    owner, guide = (init, init.guide) if isinstance(init, GenerativeModel) else (gen, init)
    pair = SimpleNamespace(
        plate=owner.plate, max_plate_nesting=owner.max_plate_nesting, vectorized=owner.vectorized
    )
    with torch.no_grad():
        probe = trace_of(guide, batch)
        return Runs(pair, batch, probe, 2**15).of(guide, draws, latent_sites(probe).values())


def _scales(log_density: LogDensity, drawn: Draws) -> Scaled:
    """Means and standard deviations of draws; coordinates that do not vary keep the scale 1."""
    count = len(next(iter(drawn.values())))
    u = log_density.unconstrain(drawn, log_density.origin.expand(count, -1))
    scale = u.std(0)
    return Scaled(log_density, u.mean(0), torch.where((scale > 0) & scale.isfinite(), scale, 1.0))


def _check(log_density: LogDensity, given: Mapping[str, Tensor], chains: int) -> None:
    known = log_density.shapes
    if given and not set(given) & set(known):
        raise ValueError(
            f"expected init to have sites among {', '.join(known)}, got {', '.join(given)}"
        )
    for name, value in given.items():
        if name in known and tuple(value.shape) != (expected := (chains, *known[name])):
            raise ValueError(
                f"expected init['{name}'] of shape {expected}, got {tuple(value.shape)}; one start "
                "for each chain, for "
                "instance posterior(gen, x, draws=chains)"
            )


def _finite(
    log_density: LogDensity, given: Mapping[str, Tensor], chains: int, tries: int = 100
) -> Tensor:
    both = value_and_grad(log_density)
    u = log_density.origin.repeat(chains, 1)
    wrong = list(range(chains))
    for _ in range(tries):
        u[wrong] = torch.empty_like(u[wrong]).uniform_(-2, 2)
        u = log_density.unconstrain(given, u)
        wrong = [
            chain for chain in wrong if not all(part.isfinite().all() for part in both(u[chain]))
        ]
        if not wrong or set(log_density.shapes) <= set(given):
            break
    if wrong:
        raise ValueError(
            f"expected a finite log density and gradient where chain {wrong[0]} starts, got "
            f"{both(u[wrong[0]])[0]:g}; "
            "check the data for infinities and NaN, or give starting points with init="
        )
    return u
