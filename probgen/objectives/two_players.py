"""What every game of critics and a model is as an objective."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from probgen.core.turns import same_random_state
from probgen.objectives.base import Objective


class TwoPlayers(Objective, ABC):
    """An objective whose value is that of a game: it measures no progress.

    Its steps are counted in a buffer, for weights that change with them.
    """

    descends = False
    ignores_constants = True
    step: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def prepare(self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any) -> None:
        """Computes the loss once, in eval mode, for what a first call makes and refuses.

        Lazy parameters of critics come into being, and shapes are checked before training; modes
        and random state stay as they were.
        """
        training = self.training
        self.eval()
        try:
            with torch.no_grad(), same_random_state():
                self.differentiable_loss(model, guide, *batch)
        finally:
            self.train(training)
