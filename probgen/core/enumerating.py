"""Models whose discrete latent sites are summed out although nobody marked them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pyro import poutine
from pyro.poutine.util import site_is_subsample

from probgen.core.sites import Site, is_enumerated

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel


class Enumerating:
    """A model whose discrete latent sites are all summed out, those that do not ask for it too.

    Else as it was.
    """

    def __init__(self, gen: GenerativeModel):
        self._gen = gen

    def model(self, *args: Any) -> Any:
        return poutine.infer_config(self._gen.model, _summed)(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._gen, name)


def _summed(site: Site) -> Any:
    chosen = site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
    return {"enumerate": "parallel"} if chosen and site["fn"].has_enumerate_support else {}


def enumerating(gen: GenerativeModel, latent: Iterable[Site]) -> GenerativeModel:
    """The model with the discrete ones of these sites summed out.

    The model itself where all of them ask for it.
    """
    silent = [
        site for site in latent if not is_enumerated(site) and site["fn"].has_enumerate_support
    ]
    return Enumerating(gen) if silent else gen
