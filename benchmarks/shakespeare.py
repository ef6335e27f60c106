"""A small causal transformer on the characters of tiny Shakespeare.

Beside a published score of the same size.

The protocol of the published peer: 4 blocks of width 128, 4 heads, 2,000 steps of 12 x 64
characters, no dropout; the first 90 % of the text to train on, the last 10 % to report. A row is a
character as context and the 64 characters after it as event, so that every one of these has 1 to 64
characters before it. Validation goes through the whole of the last 10 %, in blocks side by side.

    python benchmarks/shakespeare.py --data DIR

``--data`` is a folder with ``tinyshakespeare.txt`` or ``tinyshakespeare.txt.gz``.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import torch
from common import command_line
from torch import Tensor
from torch.nn.functional import one_hot

import probgen as pg
from probgen.models.transformer import Transformer
from probgen.nn.transformer import Tokens

LENGTH = 64
PUBLISHED = {"GPT, 4 x 128, context 64, 2,000 steps": 1.88}


def load(data: Path) -> tuple[Tensor, str]:
    """The text as labels ``(N,)``, and its alphabet."""
    path = data / "tinyshakespeare.txt"
    text = (
        path.read_text()
        if path.is_file()
        else gzip.decompress(path.with_suffix(".txt.gz").read_bytes()).decode()
    )
    alphabet = "".join(sorted(set(text)))
    number = {character: index for index, character in enumerate(alphabet)}
    return torch.tensor([number[character] for character in text]), alphabet


class Passages:
    """Batches of passages that start anywhere in the text; each step draws its own."""

    def __init__(self, text: Tensor, levels: int, steps: int, size: int):
        self.text = text
        self.levels = levels
        self.steps = steps
        self.size = size

    def __len__(self) -> int:
        return self.steps

    def __iter__(self):
        for _ in range(self.steps):
            yield rows(self.text, torch.randint(len(self.text) - LENGTH, (self.size,)), self.levels)


def rows(text: Tensor, starts: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Events ``(B, 64)`` and contexts ``(B, levels)``.

    The character at each start, and what follows it.
    """
    passages = text[starts[:, None] + torch.arange(LENGTH + 1)]
    return passages[:, 1:].float(), one_hot(passages[:, 0], levels).float()


def train(gen: Transformer, text: Tensor, levels: int, options: argparse.Namespace) -> pg.History:
    def optimizer(parameters):
        parameters = list(parameters)
        matrices, others = (
            [p for p in parameters if (p.ndim > 1) == wide] for wide in (True, False)
        )
        groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.99), weight_decay=0.1)

    def one_cycle(optimizer):
        rising = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=100)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, options.steps - 100, eta_min=options.lr / 10
        )
        return torch.optim.lr_scheduler.SequentialLR(optimizer, [rising, falling], [100])

    return pg.fit(
        gen, Passages(text, levels, options.steps, 12), steps=options.steps, optimizer=optimizer, scheduler=one_cycle,
        clip=64.0, compile=options.compile, seed=0, verdict=False,
    )  # fmt: skip


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--characters", type=int, default=0, help="length of a passage to print")
    options = parser.parse_args()
    torch.manual_seed(0)
    text, alphabet = load(options.data)
    levels = len(alphabet)
    cut = int(0.9 * len(text))
    head = pg.heads.Categorical(levels=levels)
    gen = Transformer((LENGTH,), head, Tokens(levels, 128), layers=4, heads=4, context=levels)
    print(f"{sum(p.numel() for p in gen.parameters()):,} parameters", flush=True)
    history = train(gen, text[:cut], levels, options)
    print(
        f"{history.stopped}, {history.seconds / 60:.1f} min, "
        f"{history.seconds / history.steps * 1e3:.0f} ms a step"
    )
    held = text[cut:]
    x, context = rows(held, torch.arange(0, len(held) - LENGTH, LENGTH), levels)
    parts = [
        pg.log_likelihood(gen, *part) for part in zip(x.split(256), context.split(256), strict=True)
    ]
    value = -torch.cat([part.value for part in parts]).mean() / LENGTH
    print(f"\nvalidation, {x.numel():,} characters, nats per character, lower is better")
    for name, score in sorted(
        (PUBLISHED | {"this Transformer": value}).items(), key=lambda row: -row[1]
    ):
        print(f"  {score:6.3f}  {name}")
    seed = one_hot(torch.tensor(alphabet.index("\n")), levels).float()
    for _ in range(
        options.characters // LENGTH
    ):  # passage after passage, each from the last character before it
        passage = gen(seed).sample().long()
        print("".join(alphabet[i] for i in passage), end="")
        seed = one_hot(passage[-1], levels).float()


if __name__ == "__main__":
    main()
