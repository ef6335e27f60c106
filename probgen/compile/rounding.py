"""How far results of recorded and compiled operations may lie from the program's.

Operations in another order round in another way. What differs by more is not used.
"""

from __future__ import annotations

import torch

RELATIVE = {
    torch.float64: 1e-6,
    torch.float32: 1e-3,
    torch.bfloat16: 0.05,
    torch.float16: 0.05,
}


def tolerance(dtype: torch.dtype) -> float:
    """Relative difference that rounding may make; integers and flags are the same.

    >>> tolerance(torch.float64), tolerance(torch.int64)
    (1e-06, 0.0)
    """
    return RELATIVE.get(dtype, 0.0)
