"""Attribute translation: rows changed to other attributes and back, the loss of StarGAN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn
from torch.func import functional_call

from probgen.core import checks
from probgen.core.loss_parts import note
from probgen.core.missing import has_missing
from probgen.core.module import DistributionModule
from probgen.core.recording import Recorder
from probgen.core.sites import densities
from probgen.core.sums import sum_of
from probgen.core.turns import same_random_state
from probgen.objectives.adversary import Adversary, held_state
from probgen.objectives.base import Objective
from probgen.objectives.cycle import Distance, absolute_distance, drawn_for, weighs
from probgen.objectives.games import Game, LeastSquares
from probgen.objectives.regularizers import Regularizer
from probgen.objectives.schedules import WeightSchedule, at_step
