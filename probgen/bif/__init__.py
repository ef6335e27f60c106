"""Discrete networks as text.

The Bayesian Interchange Format, as the bnlearn repository writes it.
"""

from probgen.bif.network import Tables, format_bif, parse_bif, read_bif, write_bif

__all__ = ["Tables", "format_bif", "parse_bif", "read_bif", "write_bif"]
