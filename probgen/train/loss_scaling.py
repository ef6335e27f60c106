"""Half precision: the loss is scaled so that small gradients survive, and an overflow skips a step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

LEAST = 2.0**-14  # the smallest normal number of half precision: what less multiplies is lost


class LossScale:
    r"""The factor by which a loss is multiplied before its gradient is taken in half precision.

    .. math:: g = \tfrac1s \nabla (s L)

    Where sL overflows in the gradient the parameters stay as they are and s is lowered; after many
    steps without one it is raised. Precisions without a scaler have none of this.

    Source: Micikevicius et al. (2018), Mixed precision training, https://arxiv.org/abs/1710.03740

    Parameters
    ----------
    fabric : lightning_fabric.Fabric
        Whose precision may have a scaler (``"16-mixed"``).

    Attributes
    ----------
    scaler : torch.amp.GradScaler or None
        What keeps s.

    >>> class Plain:
    ...     class strategy:
    ...         precision = None
    >>> LossScale(Plain).scaler, LossScale(Plain).overflows(1.0, math.inf)
    (None, False)
    """

    def __init__(self, fabric: Fabric):
        self.scaler: Any = getattr(fabric.strategy.precision, "scaler", None)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divides the gradients by the scale, once they are complete."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def overflows(self, loss: float, norm: float) -> bool:
        """Whether a step is to be skipped: the gradient is not finite because of its scale alone."""
        if self.scaler is None or math.isfinite(norm) or not math.isfinite(loss):
            return False
        return self.scaler.get_scale() >= LEAST

    def lower(self) -> None:
        """Goes on with a smaller scale after a step that was skipped."""
        self.scaler.update()

    def said(self) -> str:
        """What an error tells of the scale where it has fallen to nothing."""
        if self.scaler is None or self.scaler.get_scale() >= LEAST:
            return ""
        return (
            f"; the loss scale has fallen to {self.scaler.get_scale():.3g} without a finite "
            "gradient, so that half precision is not to blame alone"
        )
