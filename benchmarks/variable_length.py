r"""Texts and music whose lengths are learned, beside models that draw full length only.

Rows are lines of tiny Shakespeare (1 to 60 characters; a random choice of 1,000 to report, others
to train on) and the JSB chorales (25 to 160 frames of 88 keys). The score is nats per held- out
sequence, the length included where the model has one: a model without lengths is given the lengths,
and its number leaves out what they cost, so that ``given length + a table of lengths`` is the fair
sum. The distance between drawn and real lengths is total variation between histograms, beside its
baseline: that between the held-out lengths and as many of the training ones.

    python benchmarks/variable_length.py --data DIR [--steps 300] [--lines 4000]

``--data`` is a folder with ``tinyshakespeare.txt.gz`` and ``jsb_chorales.npz``.
"""

from __future__ import annotations

import argparse
import gzip
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common import command_line
from torch import Tensor, nn

import probgen as pg

LONGEST = 60
HELD = 1000
FRAMES = 160


def lines_of(data: Path, count: int) -> tuple[list[Tensor], list[Tensor], int]:
    """Lines to train on and to report, as labels, chosen at random, and the number of labels."""
    text = gzip.decompress((data / "tinyshakespeare.txt.gz").read_bytes()).decode()
    number = {character: index for index, character in enumerate(sorted(set(text) - {"\n"}))}
    lines = [line for line in text.split("\n") if 1 <= len(line) <= LONGEST]
    order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [
        torch.tensor([float(number[character]) for character in lines[at]])
        for at in order[: count + HELD]
    ]
    return rows[HELD:], rows[:HELD], len(number)


def chorales_of(data: Path) -> tuple[list[Tensor], list[Tensor]]:
    """Chorales to train on and to report, frames of 88 keys."""
    arrays = np.load(data / "jsb_chorales.npz")
    return tuple(
        list(torch.tensor(arrays[name]).float().split(arrays[f"{name}_lengths"].tolist()))
        for name in ("train", "test")
    )


def distance(drawn: Tensor, real: Tensor, bins: int) -> float:
    """Total variation between the histograms of lengths, in so many bins of one width."""
    top = float(max(drawn.max(), real.max())) + 1
    shares = [torch.histc(part.float(), bins, 0, top) / len(part) for part in (drawn, real)]
    return 0.5 * (shares[0] - shares[1]).abs().sum().item()


def lengths_of(sequences: Sequence[Tensor]) -> Tensor:
    return torch.tensor([len(sequence) for sequence in sequences])


def table_of(train: Sequence[Tensor], held: Sequence[Tensor], most: int) -> float:
    """Nats per held-out length under the shares of the training lengths, one more of each."""
    counts = lengths_of(train).bincount(minlength=most + 1)[1:].double() + 1
    return -(counts / counts.sum()).log()[lengths_of(held) - 1].mean().item()


def report(name: str, gen, held: Sequence[Tensor], bins: int, seconds: float) -> None:
    """Nats per sequence, and how far drawn lengths are from real ones."""
    gen.eval()
    value = -pg.log_likelihood(gen, list(held)).value.mean().item()
    with torch.no_grad():
        drawn = gen().lengths(gen().sample((1000,)))
    real = lengths_of(held)
    gap = distance(drawn, real, bins)
    print(
        f"{name:38s} {value:9.2f} nats   lengths {drawn.float().mean():5.1f} ± "
        f"{drawn.float().std():4.1f} "
        f"(real {real.float().mean():.1f} ± {real.float().std():.1f}), distance {gap:.3f}   "
        f"{seconds:5.0f} s",
        flush=True,
    )


def trained(gen, train: Sequence[Tensor], options: argparse.Namespace, size: int, rate: float):
    """The model, and the seconds that this took."""
    start = time.perf_counter()
    optimizer = lambda parameters: torch.optim.Adam(parameters, rate)  # noqa: E731
    pg.fit(gen, list(train), steps=options.steps, batch_size=size, optimizer=optimizer,
           clip=5.0 * size, compile=False, seed=0, verdict=False, progress=False)  # fmt: skip
    return time.perf_counter() - start


def full_length(name: str, family, held: Sequence[Tensor], most: int, table: float) -> None:
    """What a model without lengths says, given the lengths, and with the cost of these."""
    family.eval()
    value = -pg.log_likelihood(family, pg.pad(list(held), most)).value.mean().item()
    print(
        f"{name:38s} {value:9.2f} nats given the length, {value + table:.2f} with a table of "
        "lengths; draws "
        f"{most} steps always",
        flush=True,
    )


def text(options: argparse.Namespace) -> None:
    train, held, levels = lines_of(options.data, options.lines)
    table = table_of(train, held, LONGEST)
    baseline = _baseline(train, held, 20)
    print(
        f"lines: {len(train)} to train on, {len(held)} to report; baseline of the distance {baseline:.3f}"
    )
    for end in (False, True):
        torch.manual_seed(0)
        head = pg.heads.Categorical(levels=levels + end)
        embed = pg.nn.Tokens(levels + end, 64)
        family = pg.Transformer((LONGEST,), head, embed, layers=2, heads=4)
        gen = pg.EndToken(family, levels) if end else pg.VariableLength(family, most=LONGEST)
        if not end:
            gen.count_lengths(pg.pad(train, LONGEST)).lengths.requires_grad_(False)
        seconds = trained(gen, train, options, 32, 2e-3)
        report(f"Transformer, {'end token' if end else 'lengths'}", gen, held, 20, seconds)
        if not end:
            full_length("Transformer alone", family, held, LONGEST, table)


def music(options: argparse.Namespace) -> None:
    train, held = chorales_of(options.data)
    table = table_of(train, held, FRAMES)
    baseline = _baseline(train, held, 10)
    print(
        f"chorales: {len(train)} to train on, {len(held)} to report; baseline of the distance "
        f"{baseline:.3f}"
    )
    for stops in (False, True):
        torch.manual_seed(0)
        emission = pg.heads.Bernoulli(nn.Linear(64, 88))
        emission = pg.StopOr(emission, nn.Linear(64, 1)) if stops else emission
        family = pg.SequenceModel(pg.nn.RNN(88, 64), emission, (FRAMES, 88))
        gen = pg.EndToken(family, -1) if stops else pg.VariableLength(family, most=FRAMES)
        if not stops:
            gen.lengths.pseudo_count = 0.1
            gen.count_lengths(pg.pad(train, FRAMES)).lengths.requires_grad_(False)
        seconds = trained(gen, train, options, 16, 5e-3)
        report(f"recurrent, {'a stop' if stops else 'lengths'}", gen, held, 10, seconds)
        if not stops:
            full_length("recurrent alone", family, held, FRAMES, table)
    chains(train, held)


def chains(train: Sequence[Tensor], held: Sequence[Tensor]) -> None:
    for ends in (False, True):
        torch.manual_seed(0)
        emission = pg.sequences.CategoricalEmission(12, levels=2, dims=88, pseudo_count=0.1)
        family = pg.HiddenMarkovModel(12, FRAMES, emission, pseudo_count=0.1)
        gen = (
            pg.EndingHiddenMarkovModel(family, pseudo_count=0.1)
            if ends
            else pg.VariableLength(family, most=FRAMES, pseudo_count=0.1)
        )
        start = time.perf_counter()
        pg.em(gen, list(train), max_iter=40, tol=1e-2, seed=0)
        name = f"hidden Markov, {'hazards' if ends else 'lengths'}"
        report(name, gen, held, 10, time.perf_counter() - start)


def _baseline(train: Sequence[Tensor], held: Sequence[Tensor], bins: int) -> float:
    """The distance of held-out lengths from as many of the training ones, mean of 50 choices."""
    torch.manual_seed(0)
    known = lengths_of(train)
    real = lengths_of(held)
    return float(
        np.mean(
            [distance(known[torch.randint(len(known), real.shape)], real, bins) for _ in range(50)]
        )
    )


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lines", type=int, default=4000)
    options = parser.parse_args()
    text(options)
    music(options)


if __name__ == "__main__":
    main()
