"""What objectives that know no density ask for.

Real rows beside draws of the model in their place.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from probgen.core.missing import has_missing
from probgen.core.recording import Recorder
from probgen.core.runtime import PARTICLES
from probgen.core.sites import Sites, densities
from probgen.objectives.base import check_observed


@runtime_checkable
class FromNoise(Protocol):
    """A distribution whose draws are a function of noise."""

    def noise(self) -> Tensor:
        """Draws the noise."""

    def from_noise(self, z: Tensor) -> Tensor:
        """The draws that noise makes."""


class LatentDraw(NamedTuple):
    """Latents by the names of their sites, the noise of x as ``"x"``, and the fakes made of them."""

    latents: dict[str, Tensor]
    fake: Tensor


class LatentLeaves(Messenger):
    """Keeps the latents of a run, each of which takes gradients; enter it outside of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.latents: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == "x" and not msg["done"] and isinstance(msg["fn"], FromNoise):
            self.latents["x"] = _leaf(msg["fn"].noise())
            msg["value"], msg["done"] = msg["fn"].from_noise(self.latents["x"]), True

    def _pyro_post_sample(self, msg: Any) -> None:
        drawn = msg["name"] != "x" and not msg["is_observed"] and not site_is_subsample(msg)
        if drawn and msg["value"].is_floating_point():
            self.latents[msg["name"]] = _leaf(msg["value"])


def _leaf(value: Tensor) -> Tensor:
    return value if value.requires_grad or not torch.is_grad_enabled() else value.requires_grad_()


class UnconditionedRun(NamedTuple):
    """One run of a model that draws what was observed.

    Attributes
    ----------
    real, fake : Tensor
        Rows of data, and of the model in their place: ``(B, *event)`` each. Gradients pass through
        ``fake``.
    context : tuple
        The other arguments of the programs that are not None.
    sites : dict
        All sites of the run.
    latents : dict
        Where they were asked for, what ``fake`` follows from, taking gradients.
    """

    real: Tensor
    fake: Tensor
    context: tuple
    sites: Sites
    latents: dict[str, Tensor]


def unconditioned_run(
    model: Callable[..., Any],
    batch: tuple,
    objective: nn.Module,
    differentiable: bool = True,
    leaves: bool = False,
) -> UnconditionedRun:
    """Runs the model unconditioned on a batch; refuses what has no gradient to give.

    With ``leaves`` it keeps the latents too.

    Raises ``TypeError`` where the model has no observed site ``"x"`` or its distribution has no
    ``rsample``, ``ValueError`` where rows are incomplete or masked.
    """
    name = type(objective).__name__
    latents = LatentLeaves()
    with (
        torch.set_grad_enabled(differentiable and torch.is_grad_enabled()),
        latents if leaves else nullcontext(),
        Recorder() as run,
        poutine.uncondition(),
    ):
        model(*batch)
    site = run.sites.get("x")
    if site is not None and not site["infer"].get("was_observed"):
        check_observed(name, {"x": site})
    if site is None:
        raise TypeError(
            f"{name}: expected an observed site named 'x', found none; rename the site of the data"
        )
    real = site["infer"]["obs"]
    fake = site["value"]
    if not site["fn"].has_rsample:
        raise TypeError(
            f"{name}: expected a distribution with rsample at site 'x', got "
            f"{type(site['fn']).__name__}, through whose draws no "
            "gradient passes; use ELBO() for a distribution with a density, or a generator of "
            "numbers: GAN(network, base)"
        )
    _check(name, site, real, fake)
    return UnconditionedRun(
        real,
        fake,
        tuple(value for value in batch if value is not real and value is not None),
        densities(run.sites),
        latents.latents,
    )


def _check(name: str, site: dict[str, Any], real: Tensor, fake: Tensor) -> None:
    """Complete rows, each of which counts once, and fakes of their shape."""
    if has_missing(real):
        raise ValueError(
            f"{name}: expected complete rows, got NaN (missing): fakes have no missing entries, "
            "which would tell them "
            "apart; complete the rows first, for instance by impute with a model that has a density"
        )
    plates = [frame.name for frame in site["cond_indep_stack"]]
    if site["mask"] is not None or PARTICLES in plates:
        raise ValueError(
            f"{name}: expected rows without mask or particles at site 'x'; leave rows out of the "
            "batch"
        )
    if fake.shape != real.shape:
        raise ValueError(
            f"{name}: expected draws of the shape of the data {tuple(real.shape)}, got "
            f"{tuple(fake.shape)}; open "
            "data_plate(x, context) around site 'x'"
        )
