"""Families with an E- and an M-step, rows with missing entries for them, and weights."""

import torch
from test_em_conformance import ALL, made

WHOLE = ("MixtureOfTrees",)  # takes no missing entries
CLOSED_AT_THE_END = ("MarkovChain",)  # missing entries come last
NAMES = sorted(ALL)


def example(name, rows=24):
    """A family in float64, rows ``(24, *event)`` with missing entries, and weights, one of them 0."""
    gen, x = made(name, rows)
    generator = torch.Generator().manual_seed(5)
    gone = torch.rand(x.shape, generator=generator) < 0.1
    if name in CLOSED_AT_THE_END:
        gone = gone.cummax(-1).values
    if name not in WHOLE:
        x = x.masked_fill(gone, torch.nan)
    weights = torch.rand(rows, generator=generator).double() + 0.5
    weights[3] = 0.0
    return gen, x, weights
