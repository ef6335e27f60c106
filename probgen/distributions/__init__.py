"""Distributions beyond those of torch and Pyro: covariance structures, chains, orders."""

import probgen.distributions.closed_divergences  # noqa: F401 - known to torch from here on
from probgen.distributions.autoregressive import Autoregressive
from probgen.distributions.covariance import Diagonal, Full, Spherical, Tied
from probgen.distributions.orderings import random_orders
from probgen.distributions.stick_breaking import StickBreaking
from probgen.distributions.straight_through import straight_through

__all__ = [
    "Autoregressive",
    "Diagonal",
    "Full",
    "Spherical",
    "StickBreaking",
    "Tied",
    "random_orders",
    "straight_through",
]
