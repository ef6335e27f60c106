"""Rows as bytes: what a model finds likely takes little space, and nothing is lost."""

from probgen.compression.rows import CompressionError, compress, decompress

__all__ = ["CompressionError", "compress", "decompress"]
