"""Parts of normalizing flows.

Univariate transforms, ODE solvers, couplings and paths of flow matching, manifolds.
"""

from probgen.distributions.flows.couplings import (
    EntropicTransport,
    IndependentCoupling,
    OptimalTransport,
)
from probgen.distributions.flows.fixed_steps import Euler, Midpoint, Trapezoid
from probgen.distributions.flows.flow import Pushforward
from probgen.distributions.flows.manifolds import (
    Hyperboloid,
    Manifold,
    Rotations,
    Sphere,
    Torus,
)
from probgen.distributions.flows.matching import StraightPath, TrigonometricPath
from probgen.distributions.flows.mean_velocity import MeanSteps
from probgen.distributions.flows.ode import Adaptive, RungeKutta
from probgen.distributions.flows.univariate import Affine, Spline
from probgen.models.quantized import BinNoise

__all__ = [
    "Adaptive",
    "Affine",
    "BinNoise",
    "EntropicTransport",
    "Euler",
    "Hyperboloid",
    "IndependentCoupling",
    "Manifold",
    "MeanSteps",
    "Midpoint",
    "OptimalTransport",
    "Pushforward",
    "Rotations",
    "RungeKutta",
    "Sphere",
    "Spline",
    "StraightPath",
    "Torus",
    "Trapezoid",
    "TrigonometricPath",
]
