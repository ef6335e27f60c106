"""Distributions beyond those of torch and Pyro: covariance structures, chains, orders."""

from probgen.samplers.hmc import HMC, MALA
from probgen.samplers.langevin import Langevin

__all__ = ["HMC", "MALA", "Langevin"]
