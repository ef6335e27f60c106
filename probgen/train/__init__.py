"""One loop for every model and objective, its record, and states on disk."""

from probgen.core.training_record import TrainingRecord, training_records
from probgen.train.callbacks import Every
from probgen.train.checkpoint import CheckpointError
from probgen.train.fit import adam, fit
from probgen.train.history import FitWarning, History
from probgen.train.labeled import Labeled
from probgen.train.loggers import Logger
from probgen.train.muon import muon
from probgen.train.pairs import Pairs
from probgen.train.run import NonFiniteLoss, Run
from probgen.train.saved import load, save
from probgen.train.sharding import fully_sharded
from probgen.train.snapshots import snapshots
from probgen.train.stages import Stage
from probgen.train.unpaired import Unpaired

__all__ = [
    "CheckpointError",
    "Every",
    "FitWarning",
    "History",
    "Labeled",
    "Logger",
    "NonFiniteLoss",
    "Pairs",
    "Run",
    "Stage",
    "TrainingRecord",
    "Unpaired",
    "adam",
    "fit",
    "fully_sharded",
    "load",
    "muon",
    "save",
    "snapshots",
    "training_records",
]
