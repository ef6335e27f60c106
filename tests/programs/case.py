"""What one of the programs that people bring is.

A pair, what it is called with, and the loss that its script uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Pair(NamedTuple):
    """A model and a guide as their script has them, and the arguments of one call."""

    model: Callable[..., Any]
    guide: Callable[..., Any] | None
    args: tuple = ()
    kwargs: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Case:
    """One program.

    Attributes
    ----------
    name : str
        Short and unique, for instance ``"baseball_partially_pooled"``.
    make : callable
        Gives a fresh :class:`Pair`, always the same one: it seeds torch where it makes data.
    loss : callable or None
        Gives the objective of Pyro that the script uses, for instance ``lambda: Trace_ELBO()``;
        ``None`` where the script has no guide (NUTS alone).
    options : mapping
        Keyword arguments that ``Program(model, guide, ...)`` needs, each a changed line for the
        user.
    changed : int
        Lines that a user changes beyond replacing SVI and its loop.
    nuts : bool
        Whether every latent of the model is continuous or can be enumerated, so that NUTS applies.
    refused : mapping of str to str
        Quantities (``"log_likelihood"``, ``"khat"``, ``"to_arviz"``, ``"predictive"``, ``"mcmc"``,
        ``"fit"``, ``"compile"``) that are undefined for this program, with a word of the reason
        that must be given.
    """

    name: str
    make: Callable[[], Pair]
    loss: Callable[[], Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    changed: int = 0
    nuts: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)
