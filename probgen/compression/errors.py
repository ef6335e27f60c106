"""What is wrong with compressed bytes."""

from __future__ import annotations


class CompressionError(ValueError):
    """Bytes that are no compressed rows of this model: foreign, cut off, damaged."""
