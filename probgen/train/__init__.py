"""One loop for every model and objective, its record, and states on disk."""

from probgen.train.checkpoint import CheckpointError, load, save
from probgen.train.fit import adam, fit
from probgen.train.history import FitWarning, History
from probgen.train.run import NonFiniteLoss, Run

__all__ = [
    "CheckpointError",
    "FitWarning",
    "History",
    "NonFiniteLoss",
    "Run",
    "adam",
    "fit",
    "load",
    "save",
]
