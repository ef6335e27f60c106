"""Values that no argument of an annotation may have."""

from __future__ import annotations

import math
import re
from typing import Any

from torch import nn

import probgen as pg
from probgen.distributions.covariance import Covariance

INT = (0, -1, 1.5, "x", True)
FLOAT = (math.nan, math.inf, -1.0, "x")
BOOL = ("yes", 2)
SIZES = (3, "x", (0,), (1.5,), (2, "x"))
NUMBERS = (3, "x", (math.nan,), ())
FUNCTION = (3, "x")

# what the members of a union refuse; a value is bad where all of them do
REFUSED: dict[str, tuple] = {
    "int": INT,
    "float": FLOAT,
    "bool": BOOL,
    "str": (3,),
    "Seed": (-1, 1.5, "x", True),
    "Jobs": (0, 1.5, "x", True),  # -1: all cores
    "Choice": ("nonsense", "yes", 2),
    "Standardize": ("nonsense", 2),
    "Sequence[int]": SIZES,
    "tuple[int, ...]": SIZES,
    "tuple[int, int]": (*SIZES, (2, 2, 2)),
    "tuple[int, int, int]": (*SIZES, (2, 2)),
    "Shape": (*SIZES, (2, 2)),
    "torch.Size": SIZES,
    "Sequence[float]": NUMBERS,
    "Sequence[str]": (3, "x", (3,)),
    "Iterable[str]": (3, "x", (3,)),
    "Collection[str]": (3, "x", (3,)),
    "Sequence[tuple[int, int]]": (3, "x", [(0,)]),
    "Sequence[DistributionModule]": (3, [3], [pg.GaussianMixture]),
    "Sequence[SeriesComponent]": (3, [3], [pg.sequences.LocalLevel]),
    "Sequence[Head]": (3, [3], [pg.heads.Gaussian]),
    "Sequence[Regularizer]": (3, [3], [pg.objectives.R1]),
    "Sequence[Tensor]": (3, [3]),
    "Sequence[Callback]": (3, [3], print),
    "Callback": (3, "x"),
    "Logger": (3, "x", pg.train.Logger),
    "Sequence[Logger]": (3, "x", pg.train.Logger),
    "Reported": ("bar", 0, -1.0, math.nan),
    "tuple[float, float]": (3, "x", (1.0,), (1.0, -1.0)),
    "Bounds": (3, "x", (1.0,), (1.0, -1.0)),
    "Tensor": (3, "x"),
    "Shares": (3, "x"),
    "nn.Module": (3, "x", nn.ReLU),
    "DistributionModule": (3, nn.ReLU(), pg.GaussianMixture),
    "LatentVariableModel": (3, nn.ReLU(), pg.VAE, pg.GaussianMixture),
    "GenerativeModel": (3, nn.ReLU(), pg.GaussianMixture, len),
    "Head": (3, nn.ReLU(), pg.heads.Gaussian),
    "Objective": (3, pg.ELBO),
    "Optimizer": (3, "x", len("x")),
    "Scheduler": (3, "x"),
    "Path": (3, pg.flows.StraightPath),
    "os.PathLike": (3,),
    "torch.dtype": (3, "float32", True),
    "Activation": (3, "x", nn.ReLU()),
    "Weight": ("x", math.nan, math.inf, nn.ReLU),
    "Norm": (3, "x", nn.ReLU()),
    "Network": (3, "x", nn.ReLU()),
    "Callable[[], nn.Module]": (3, "x", nn.ReLU()),
    "Callable[[int], nn.Module]": (3, "x", nn.ReLU()),
    "Callable[[int, int], nn.Module]": (3, "x", nn.GRUCell(1, 1)),
    "Axes": (3, "x"),
    "type[Covariance]": (3, "x", nn.ReLU, pg.distributions.Full(1, 1)),
}
CLASSES: dict[str, Any] = {
    "Game": pg.objectives.Hinge,
    "Kernel": pg.samplers.Langevin,
    "Measure": pg.objectives.MMD,
    "Matcher": pg.objectives.MMD,
    "Coupling": pg.flows.OptimalTransport,
    "Solver": pg.flows.Adaptive,
    "Manifold": pg.flows.Sphere,
    "Sampler": pg.diffusion.DDIM,
    "Threshold": pg.diffusion.StaticThreshold,
    "Rule": pg.guidance.Interval,
    "Times": pg.diffusion.UniformTimes,
    "Steps": pg.diffusion.KarrasSteps,
    "Univariate": pg.flows.Affine,
    "Visible": pg.energy.BernoulliUnits,
    "Variance": pg.diffusion.PosteriorVariance,
    "Prediction": pg.diffusion.Velocity,
    "Reconstruction": pg.diffusion.GaussianReconstruction,
    "AdditiveNoise": pg.diffusion.GammaNoise,
    "LabelNoise": pg.diffusion.UniformNoise,
    "Diffusion": pg.Diffusion,
    "NonGaussianDiffusion": pg.NonGaussianDiffusion,
    "CategoricalDiffusion": pg.CategoricalDiffusion,
    "CausalNetwork": pg.nn.RNN,
    "Features": pg.evaluate.RandomFeatures,
    "Truncation": pg.Truncation,
    "Schedule": pg.diffusion.CosineSchedule,
    "NoiseSchedule": pg.diffusion.CosineSchedule,
    "History": pg.History,
}
assert issubclass(pg.distributions.Full, Covariance)
OPTIONAL = {"None", "Seed", "Jobs", "Init", "Reported"}  # the last four include None
# functions, mappings and other objects, of which a number is none
OTHERS = re.compile(
    r"Callable|Mapping|Function|Wrap|Step|Distributions|Classifier|Fabric|Given|Init|Losses|Tables|Transform"
    r"|constraints|dist\.|td\.|arviz|xarray|Sequence\[tuple\]"
)


def bad_values(annotation: str) -> list[Any]:
    """Values of which an annotation has none, ``None`` too where it is not optional.

    >>> bad_values("bool | None")
    ['yes', 2]
    """
    members = _members(annotation)
    refused = [_refused(member) for member in members if member != "None"]
    if not refused or any(each is None for each in refused):
        return []
    found = [
        value
        for value in refused[0]
        if all(any(_same(value, other) for other in others) for others in refused[1:])
    ]
    return found if set(members) & OPTIONAL else [*found, None]


def _refused(member: str) -> tuple | None:
    if member in REFUSED:
        return REFUSED[member]
    if member in CLASSES:
        return (3, "x", CLASSES[member])
    return FUNCTION if OTHERS.search(member) else None


def _members(annotation: str) -> list[str]:
    """The members of a union at the top level."""
    members, depth = [""], 0
    for letter in annotation:
        depth += (letter == "[") - (letter == "]")
        if letter == "|" and not depth:
            members.append("")
        else:
            members[-1] += letter
    return [member.strip() for member in members]


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and (a is b or repr(a) == repr(b))
