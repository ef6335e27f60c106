"""Parts of graphical models: tables, linear Gaussian nodes, grids, and files in BIF."""

from probgen.bif import format_bif, parse_bif, read_bif, write_bif
from probgen.models.bayesian_network import LinearGaussian, ProbabilityTable
from probgen.models.markov_random_field import grid_edges

__all__ = [
    "LinearGaussian",
    "ProbabilityTable",
    "format_bif",
    "grid_edges",
    "parse_bif",
    "read_bif",
    "write_bif",
]
