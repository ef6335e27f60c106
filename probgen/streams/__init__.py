"""Data larger than memory: files, arrays on disk and data sets of other libraries, row by row.

What :func:`probgen.fit` trains on in windows, and what :func:`probgen.em`,
:func:`probgen.log_likelihood` and others read in blocks.
"""

from probgen.core.by_blocks import BlockResult
from probgen.core.streams import RowBlock, RowStream, SeekableRows
from probgen.streams.arrays import Arrays
from probgen.streams.datasets import Indexed, Iterated
from probgen.streams.parquet import Parquet

__all__ = [
    "Arrays",
    "BlockResult",
    "Indexed",
    "Iterated",
    "Parquet",
    "RowBlock",
    "RowStream",
    "SeekableRows",
]
