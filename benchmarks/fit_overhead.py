"""Time per training step of one VAE (784-400-20, batch 128).

Probgen.fit beside what people would use instead.

Every peer trains the same architecture with Adam on the same rows, one epoch per round, rounds
interleaved; the table gives medians and the ratio to a hand-written torch loop with fused Adam.
Set-up (trainers, data loaders) is not timed. Peers whose libraries are not there are left out.

    python benchmarks/fit_overhead.py --rounds 5

On one core that others use too (OMP_NUM_THREADS=1, 5 rounds): 1.27 times the loop by hand (median
of paired ratios 1.32), Pyro 1.73. The aim was 1.10. In seconds of the processor a step takes 1.7 ms
more than the 6.1 of the loop: 0.8 of Python and of starting operations, as with networks of four
units; the rest are the norm of the gradient, two changes of sign as large as the batch, and caches.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import probgen as pg

BATCH = 128
PIXELS = 784
HIDDEN = 400
LATENT = 20


def networks() -> tuple[nn.Module, nn.Module]:
    encoder = nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.Softplus(), nn.Linear(HIDDEN, 2 * LATENT))
    decoder = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.Softplus(), nn.Linear(HIDDEN, PIXELS))
    return encoder, decoder


def negative_elbo(encoder: nn.Module, decoder: nn.Module, x: Tensor) -> Tensor:
    loc, raw = encoder(x).chunk(2, -1)
    scale = nn.functional.softplus(raw) + 1e-3
    z = loc + scale * torch.randn_like(loc)
    fit = nn.functional.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
    return (fit + (0.5 * (loc**2 + scale**2 - 1) - scale.log()).sum()) / len(x)


def by_hand(x: Tensor) -> float:
    encoder, decoder = networks()
    optimizer = torch.optim.Adam(
        [*encoder.parameters(), *decoder.parameters()], lr=1e-3, fused=True
    )
    began = time.perf_counter()
    order = torch.randperm(len(x))
    for start in range(0, len(x), BATCH):
        loss = negative_elbo(encoder, decoder, x[order[start : start + BATCH]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
    return time.perf_counter() - began


def probgen(x: Tensor) -> float:
    encoder, decoder = networks()
    vae = pg.VAE(
        pg.standard_normal(LATENT), pg.heads.Bernoulli(decoder), pg.heads.Gaussian(encoder)
    )
    return pg.fit(
        vae, x, epochs=1, batch_size=BATCH, verdict=False, progress=False, compile=False
    ).seconds


def pyro_svi(x: Tensor) -> float:
    encoder, decoder = networks()

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, raw = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, nn.functional.softplus(raw) + 1e-3).to_event(1))

    pyro.clear_param_store()
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO())
    with pyro.validation_enabled(False):
        began = time.perf_counter()
        order = torch.randperm(len(x))
        for start in range(0, len(x), BATCH):
            svi.step(x[order[start : start + BATCH]])
        return time.perf_counter() - began


def pythae(x: Tensor) -> float:
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = networks()[0]
            self.latent_dim = LATENT

        def forward(self, x: Tensor) -> ModelOutput:
            loc, log_var = self.net(x.flatten(1)).chunk(2, -1)
            return ModelOutput(embedding=loc, log_covariance=log_var)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = networks()[1]

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.net(z).sigmoid())

    config = VAEConfig(input_dim=(PIXELS,), latent_dim=LATENT, reconstruction_loss="bce")
    with tempfile.TemporaryDirectory() as folder:
        training = BaseTrainerConfig(
            folder, num_epochs=1, per_device_train_batch_size=BATCH, learning_rate=1e-3
        )
        trainer = BaseTrainer(
            VAE(config, Encoder(), Decoder()),
            BaseDataset(x, torch.zeros(len(x))),
            training_config=training,
        )
        trainer.prepare_training()
        began = time.perf_counter()
        trainer.train_step(1)
        return time.perf_counter() - began


def lightning(x: Tensor) -> float:
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = networks()

        def training_step(self, batch: list[Tensor]) -> Tensor:
            return negative_elbo(self.encoder, self.decoder, batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=1e-3, fused=True)

        def on_train_start(self) -> None:
            self.began = time.perf_counter()

        def on_train_end(self) -> None:
            self.seconds = time.perf_counter() - self.began

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), BATCH, shuffle=True)
    options = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    module = Module()
    pl.Trainer(accelerator="cpu", devices=1, max_epochs=1, logger=False, **options).fit(
        module, loader
    )
    return module.seconds


PEERS = {
    "torch, written by hand": by_hand,
    "probgen.fit": probgen,
    "Pyro SVI.step": pyro_svi,
    "Pythae BaseTrainer": pythae,
    "Lightning Trainer": lightning,
}

LIBRARIES = {"Pythae BaseTrainer": "pythae.trainers", "Lightning Trainer": "lightning.pytorch"}


def usable() -> dict[str, Callable[[Tensor], float]]:
    """The peers whose libraries are there and fit this torch.

    Lightning's metrics import torchvision where it is installed, which fails if it was built for
    another torch.
    """
    found = dict(PEERS)
    for name, library in LIBRARIES.items():
        try:
            importlib.import_module(library)
        except (ImportError, RuntimeError) as error:
            print(f"{name} is left out: {str(error).partition(chr(10))[0]}")
            del found[name]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=25_600)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "pythae"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.manual_seed(0)
    x = (torch.rand(arguments.rows, PIXELS) < 0.2).float()
    peers = usable()
    times: dict[str, list[float]] = {name: [] for name in peers}
    for turn in range(arguments.rounds + 1):
        for name, peer in peers.items():
            seconds = peer(x)
            if turn:  # the first round warms caches up
                times[name].append(seconds)
    steps = -(-arguments.rows // BATCH)
    base = statistics.median(times["torch, written by hand"])
    print(f"{steps} steps a round, {arguments.rounds} rounds, {torch.get_num_threads()} threads")
    print(
        f"{'':26s}{'ms/step (median)':>18s}{'range':>16s}{'ratio':>8s}{'median of paired ratios':>26s}"
    )
    for name, values in times.items():
        low = min(values) / steps * 1e3
        high = max(values) / steps * 1e3
        paired = statistics.median(
            v / b for v, b in zip(values, times["torch, written by hand"], strict=True)
        )
        middle = statistics.median(values)
        print(
            f"{name:26s}{middle / steps * 1e3:18.2f}{f'{low:.2f}-{high:.2f}':>16s}{middle / base:8.2f}{paired:26.2f}"
        )


if __name__ == "__main__":
    main()
