"""What every objective is: a module that turns a model and a guide into a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from pyro.infer.elbo import ELBOModule
from torch import Tensor, nn

from probgen.core.described import described
from probgen.core.keywords import call_form
from probgen.core.kinds import KINDS, check_drawn, density_kind
from probgen.core.recording import record_sites
from probgen.core.sites import holds_data, is_summed

INSTEAD = {
    "approximate": "train the unnormalized or denoising form of the same family: contrastive "
    "divergence, denoising",
    "unnormalized": "use PseudoLikelihood() (fields of discrete variables), contrastive divergence "
    "or score matching",
    "implicit": "use an adversarial objective, or a discrepancy between samples such as MMD",
}

Sites = Mapping[str, dict[str, Any]]


@described
class Objective(nn.Module, ABC):
    """A loss of a pair of programs.

    ``objective(model, guide)(*batch)``, in nats summed over the rows of the batch.

    To be minimized. An objective is a module: it may own parameters (a critic) and buffers (a step
    count), which the loss module then contains. Objectives read no value of a tensor, so that a
    whole loss can be one graph.

    Attributes
    ----------
    descends : bool
        Whether a smaller value means a better model. It does not in a game of two players, nor
        where the value is a difference whose gradient alone is meant: such losses are not judged,
        and cannot end training by ``patience``.
    held : tuple of str
        Names of the parts that the loss gives no gradient although their parameters could take one.
        A part that is to be held fixed whatever the loss is stands in a :class:`Frozen
        <probgen.objectives.Frozen>`, one that follows another in an :class:`Average
        <probgen.objectives.Average>`.
    players : mapping of str to nn.Module
        Parts that may be given an optimizer of their own: ``fit(optimizer={"critic": adam(4e-4),
        "model": adam(1e-4)})``. Set in ``__init__``: ``self.players = {"critic": critic}``.
    weighs_rows : bool
        Whether the scales of the sites multiply what a row adds to the loss. Then
        ``fit(weights=...)`` gives rows their weights as scales: the loss is that of rows repeated so
        often. By default it draws rows in proportion to their weights, which is right for every
        objective: for a game or a discrepancy between samples, whose loss is no sum over rows, and
        for one that does not look at scales.
    ignores_constants : bool
        Whether the loss is the same for a log density with a constant added, so that the last bias
        of an energy gets no gradient.

    >>> class LogLikelihood(Objective):
    ...     def differentiable_loss(self, model, guide, *batch):
    ...         return -pyro.poutine.trace(model).get_trace(*batch).log_prob_sum()
    >>> import pyro, torch
    >>> from pyro.distributions import Normal
    >>> loss = LogLikelihood()(lambda x: pyro.sample("x", Normal(0.0, 1.0).expand([3]), obs=x), lambda x: None)
    >>> loss(torch.zeros(3))
    tensor(2.7568)
    """

    descends = True
    held: tuple[str, ...] = ()
    players: Mapping[str, nn.Module] = MappingProxyType({})
    weighs_rows = False
    ignores_constants = False

    def forward(self, model: Callable[..., Any], guide: Callable[..., Any]) -> ELBOModule:
        """The loss of this pair as a module that is called with a batch."""
        return ELBOModule(model, guide, self)  # type: ignore[arg-type]  # any callables, and no ELBO

    @abstractmethod
    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
    ) -> Tensor:
        """The loss of one batch.

        A scalar in nats, summed over rows, whose backward gives every gradient.
        """


@runtime_checkable
class Prepared(Protocol):
    """An objective with parts that depend on the data.

    Buffers of the shape of a batch, lazy parameters of a critic.
    """

    def prepare(self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any) -> None:
        """Makes them from a batch of the usual size.

        :func:`probgen.fit` calls it once, before the first step.
        """


def check_observed(name: str, sites: Sites) -> None:
    """Refuses a run of a model in which nothing is observed; ``ValueError``."""
    if not any(site["is_observed"] for site in sites.values()):
        drawn = ", ".join(f"'{site}'" for site in sites) or "no sites"
        raise ValueError(
            f"{name}: expected data, got none: nothing is observed, the model draws {drawn}; give "
            f"the rows: {call_form('x')}"
        )


def distribution_of_x(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    batch: tuple,
    needs: type,
    objective: nn.Module,
    instead: str,
) -> dict[str, Any]:
    """The observed site ``"x"`` of a run.

    Whose distribution (under ``"fn"``) satisfies the protocol ``needs``.

    Raises ``TypeError`` where it does not, with the methods that it lacks and what to do
    ``instead``.
    """
    site = record_sites(model, guide, batch).model.get("x")
    name = type(objective).__name__
    if site is None:
        raise TypeError(
            f"{name}: expected an observed site named 'x', found none; rename the site of the data"
        )
    check_observed(name, {"x": site})
    if not isinstance(site["fn"], needs):
        distribution = type(site["fn"])
        wanted = ", ".join(
            m
            for m in vars(needs)
            if not m.startswith("_") and getattr(distribution, m, None) is None
        )
        raise TypeError(
            f"{name}: expected a distribution with {wanted} at site 'x', got "
            f"{distribution.__name__}; {instead}"
        )
    return site


def contexts_beside(x: Tensor, batch: tuple) -> list[Any]:
    """The arguments of the programs beside the data, for another model."""
    return [value for value in batch if value is not x and value is not None]


def check_density(
    name: str, site: dict[str, Any], weakest: str, objective: str, of: str = "model"
) -> None:
    """Refuses a site whose density is weaker than ``weakest``; says what to use instead."""
    kind = density_kind(site["fn"])
    if kind != "exact" and KINDS.index(kind) > KINDS.index(weakest):
        distribution = type(site["fn"]).__name__
        advice = INSTEAD.get(kind, "") if of == "model" and site["is_observed"] else ""
        if advice and (own := getattr(site["fn"], "trained_by", "")):
            advice = f"use {own}"
        advice = (
            advice
            or "use a distribution whose log_prob is exact (Gaussian, flow, mixture, "
            "autoregressive)"
        )
        expected = weakest if weakest == "exact" else " or ".join(KINDS[: KINDS.index(weakest) + 1])
        raise ValueError(
            f"{objective}: expected density {expected} at {of} site '{name}', got {kind} "
            f"({distribution}); {advice}"
        )


def check_pair(model: Sites, guide: Sites, weakest: str, objective: str) -> None:
    """Refuses a pair of runs that has no evidence lower bound.

    Densities too weak, latents that do not match.

    Raises ``ValueError`` with the site, what was expected there and what to do.
    """
    if "x" in model and "x" not in guide and not is_summed(model["x"]):
        check_observed(objective, model)
    for name, site in model.items():
        check_density(name, site, weakest, objective)
        if not site["is_observed"] and name not in guide and not is_summed(site):
            raise ValueError(
                f"{objective}: expected the guide to draw the latent site '{name}' of the model, "
                "it does not; add "
                f"pyro.sample('{name}', ...) to the guide, or sum a discrete site out: "
                f"infer={{'enumerate': "
                "'parallel'}} in the model and EnumeratedELBO()"
            )
    for name, site in guide.items():
        if holds_data(site):
            check_drawn(name, site, model)
        check_density(name, site, "exact", objective, "guide")
        if site["is_observed"] or site["infer"].get("is_auxiliary"):
            continue
        if name not in model or model[name]["is_observed"]:
            raise ValueError(
                f"{objective}: expected only latent sites of the model in the guide, got '{name}' "
                "(the model has "
                f"{', '.join(model) or 'no sites'}); rename it, or mark a helper variable with "
                "infer={'is_auxiliary': True}"
            )
