"""Chow-Liu trees on eight sets of binary data: held-out log-likelihood, in nats per row.

    python benchmarks/chow_liu.py --data DIR                 # the trees: seconds
    python benchmarks/chow_liu.py --data DIR --components 20 # also mixtures of trees, chosen on the validation rows

DIR holds ``binary/NAME.npz`` with arrays ``train``, ``valid``, ``test`` of zeros and ones.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

import probgen as pg
from probgen.models.chow_liu import ChowLiu

KNOWN = {  # negative test log-likelihood of a Chow-Liu tree with add-one smoothing, computed independently
    "nltcs": 6.759,
    "plants": 16.524,
    "jester": 58.227,
    "baudio": 44.375,
    "dna": 87.735,
    "adult": 18.53,
    "connect4": 20.58,
    "ocr_letters": 48.87,
}


def rows(folder: Path, name: str) -> dict[str, torch.Tensor]:
    stored = np.load(folder / "binary" / f"{name}.npz")
    return {part: torch.tensor(stored[part], dtype=torch.float32) for part in ("train", "valid", "test")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="*", default=list(KNOWN))
    arguments = parser.parse_args()
    print(f"{'':12s}{'rows':>7s}{'columns':>9s}{'fit s':>8s}{'test NLL':>22s}{'known':>9s}{'less':>8s}")
    for name in arguments.sets:
        data = rows(arguments.data, name)
        tree = ChowLiu((2,) * data["train"].shape[1])
        began = time.perf_counter()
        tree.initialise(data["train"])
        seconds = time.perf_counter() - began
        score = pg.log_likelihood(tree, data["test"])
        shape = "{:7d}{:9d}".format(*data["train"].shape)
        nll = -score.value.double().mean().item()
        print(f"{name:12s}{shape}{seconds:8.2f}{nll:14.3f} ({score.kind}){KNOWN[name]:9.3f}{nll - KNOWN[name]:8.3f}")


if __name__ == "__main__":
    main()
