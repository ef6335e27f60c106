"""Latent-variable models whose latents are drawn at another temperature."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyro.poutine.messenger import Messenger

from probgen.core.sites import in_plate, is_deterministic
from probgen.core.truncation import Truncation, tempered

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel


class TemperedLatents(Messenger):
    """Latent sites of a plate at another temperature, in draws and in densities.

    The site of the data and those outside of the plate, which all rows share, stay as they are.
    """

    def __init__(self, rule: Truncation, plate: str, data: str = "x"):
        super().__init__()
        self.rule = rule
        self.plate = plate
        self.data = data

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        latent = msg["name"] != self.data and not msg["is_observed"] and not is_deterministic(msg)
        if latent and in_plate(msg, self.plate):
            msg["fn"] = tempered(msg["fn"], self.rule)


class Tempered:
    """A model with its latents at another temperature; else, and in its guide, as it was."""

    def __init__(self, gen: GenerativeModel, rule: Truncation):
        self._gen = gen
        self._rule = rule

    def __call__(self, context: Any = None) -> Any:
        return self._gen(context).using(self._rule)

    def model(self, *args: Any) -> Any:
        return TemperedLatents(self._rule, self._gen.plate)(self._gen.model)(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._gen, name)
