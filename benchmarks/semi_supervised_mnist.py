"""Semi-supervised learning on MNIST: 60,000 images, 100 labels, ten of each digit.

Error on the 10,000 test images of

* a support vector machine on the raw pixels of the 100 labeled images, its C chosen by
  cross-validation on them,
* the classifiers' networks, trained on the 100 labels alone,
* the same machine on the codes of a VAE (M1), which saw all images and no label,
* a Gaussian mixture of these codes by EM, whose components are the digits, 100 of them known,
* ``SemiSupervisedVAE`` of these codes (M1+M2), with alpha = 0.1 N / L; of pixels (M2), of images of
  half the size, in stages.

Every network is dense, with one hidden layer, and nothing is augmented.

Measured, seed 0, two and a half minutes of one core: M1+M2 8.9 %, the machine 21.4 % of pixels and
19.4 % of codes, the network of codes by the 100 labels 25.1 %, the mixture 37.1 %. The number of
latents beside the label, 10, was chosen by errors on the validation images: 8.5 %, and 20.9 with 5.

M2 of pixels takes a minute and a quarter more (``--steps 0 0 4000``: it alone) and has 16.9 %, from
29.7 % of its classifier by the 100 labels. It is trained in stages: the classifier by the labels;
the decoder on all rows, while the classifier is held; both. The labeled rows are repeated until
they are a tenth of the data, and no step of the classifier is long at first. Without stages its
bounds move the classifier away from the labels as long as the decoder does not know them (41 to 80
%). The paper's 12 % are not reached.

What was tried, by errors on the validation images, on which the machine has 18.4 %, mostly in a
loop by hand of the same networks, from the classifier's error by the labels alone:

* as here, 28.2 to 14.0 % in 4,500 steps; from other first weights 16.6 and 18.1 % after 2,000 of
  2,400: where classes settle depends on them;
* bits of half the size that are one where there is any ink: 23.8 to 17.9 % (on the test images 27.1
  to 21.3 %): a better classifier to begin with, and no better a model in the end;
* whole images: 23.7 to 18.4 % after 500 steps of the last stage, 20.1 % after 1,500;
* the entropy of the labels times three (whole images) or four: worse than the labels alone, 24 to
  27 %, 28 to 32 %; dropout of 0.4 in the classifier: 25.0 to 18.0 %.

``--validate`` takes the last 10,000 training images in place of the test images, to choose by.

    OMP_NUM_THREADS=1 python benchmarks/semi_supervised_mnist.py --data DIR

With ``--checkpoint`` what is trained is kept there: a call that was interrupted continues.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from common import command_line, cosine
from torch import Tensor, nn

import probgen as pg
from probgen.datasets import load_mnist
from probgen.nn import MLP
from probgen.train import Labeled, Stage, adam

CODES = 30  # latent numbers of M1
LATENTS = 10  # latent numbers beside the label
WIDTH = 300
SMALL = 200  # width of M2's networks
SIDE = 14  # of M2's images
DRAWS = 4  # codes of each image
DIGITS = 10
PER_DIGIT = 10
SHARE = 0.1  # of labeled rows in each batch
WEIGHT = 0.1  # of the labeled rows' bounds, for M2
PUBLISHED = {  # percent, 100 labels, as recalled from Kingma et al. (2014)
    "neural network of 100 labels": 25.81,
    "transductive support vector machine": 16.81,
    "M2": 11.97,
    "M1 + transductive support vector machine": 11.82,
    "M1+M2": 3.33,
}


class Rows:
    """Images as vectors of bits, and labels of which few are known."""

    def __init__(self, data: Path, seed: int, validate: bool = False):
        mnist = load_mnist(data)
        train = (mnist.train_images, mnist.train_labels)
        test = (mnist.test_images, mnist.test_labels)
        if validate:
            test = (train[0][-10_000:], train[1][-10_000:])
            train = (train[0][:-10_000], train[1][:-10_000])
        self.pixels = train[0].flatten(1)
        self.test_pixels = test[0].flatten(1)
        self.x = (self.pixels > 0.5).float()  # any ink, of 0 to 255
        self.test = (self.test_pixels > 0.5).float()
        self.truth = test[1].long()
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(seed))
        of_digit = [order[train[1][order] == digit] for digit in range(DIGITS)]
        self.few = torch.cat([rows[:PER_DIGIT] for rows in of_digit])
        self.labels = train[1][self.few].long()
        self.y = torch.full((len(self.x),), torch.nan)
        self.y[self.few] = self.labels.float()
        self.alpha = 0.1 * len(self.x) / len(self.few)

    def error(self, predicted: Any) -> float:
        """Percent of the test images."""
        return 100 * (torch.as_tensor(predicted) != self.truth).double().mean().item()


def machine(train: Tensor, labels: Tensor, test: Tensor) -> Any:
    """Predictions of a support vector machine."""
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    grid = GridSearchCV(SVC(), {"C": [0.3, 1.0, 3.0, 10.0, 30.0]}, cv=5)
    return grid.fit(train.numpy(), labels.numpy()).predict(test.numpy())


def supervised(net: nn.Module, x: Tensor, labels: Tensor) -> nn.Module:
    """A network trained on labeled rows alone."""
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.01)
    for _ in range(500):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), labels).backward()
        optimizer.step()
    return net


def vae() -> pg.VAE:
    """M1."""
    decoder = pg.heads.Bernoulli(MLP(CODES, [WIDTH], 784))
    encoder = pg.heads.Gaussian(MLP(784, [WIDTH], 2 * CODES))
    return pg.VAE(pg.standard_normal(CODES), decoder, encoder)


def of_codes(alpha: float) -> pg.SemiSupervisedVAE:
    """The second stage of M1+M2."""
    decoder = pg.heads.Gaussian(MLP(LATENTS + DIGITS, [WIDTH], 2 * CODES))
    encoder = pg.heads.Gaussian(MLP(CODES + DIGITS, [WIDTH], 2 * LATENTS))
    return semi_supervised(decoder, encoder, MLP(CODES, [WIDTH], DIGITS), alpha)


def of_pixels(alpha: float) -> pg.SemiSupervisedVAE:
    """M2."""
    decoder = pg.heads.Bernoulli(MLP(LATENTS + DIGITS, [SMALL], SIDE**2))
    encoder = pg.heads.Gaussian(MLP(SIDE**2 + DIGITS, [SMALL], 2 * LATENTS))
    return semi_supervised(decoder, encoder, MLP(SIDE**2, [SMALL], DIGITS), alpha)


def semi_supervised(
    decoder: pg.DistributionModule,
    encoder: pg.DistributionModule,
    classifier: nn.Module,
    alpha: float,
) -> pg.SemiSupervisedVAE:
    prior = pg.standard_normal(LATENTS)
    gen = pg.SemiSupervisedVAE(prior, decoder, encoder, classifier, DIGITS, alpha=alpha)
    gen.logits.requires_grad_(False)
    return gen


def told_fit(gen: Any, data: Any, checkpoint: Path | None, **options: Any) -> None:
    """What all models here share: the rate of Adam, the seed, and that an interrupted run goes on."""
    history = pg.fit(
        gen,
        data,
        optimizer=adam(2e-3),
        checkpoint=checkpoint,
        resume=checkpoint is not None,
        seed=0,
        verdict=False,
        progress=False,
        **options,
    )
    print(f"{type(gen).__name__}: {history}", flush=True)


def train(gen: Any, data: Any, steps: int, checkpoint: Path | None) -> None:
    told_fit(
        gen,
        data,
        checkpoint,
        steps=steps,
        batch_size=200,
        scheduler=cosine(steps, 1e-4),
    )


def halved(pixels: Tensor) -> Tensor:
    """Bits of images of half the size: whether two by two pixels of 0 to 255 are bright."""
    return (nn.functional.avg_pool2d(pixels.unflatten(1, (28, 28)), 2).flatten(1) > 102).float()


def warm(steps: int) -> Any:
    """A factory of schedules: a rise, for Adam's first steps are as long as any, then a cosine."""

    def rate(step: int) -> float:
        return min(1.0, (step + 1) * 20 / steps) * (0.51 + 0.49 * math.cos(math.pi * step / steps))

    return lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


def train_in_stages(
    gen: pg.SemiSupervisedVAE, x: Tensor, rows: Rows, steps: int, checkpoint: Path | None
) -> None:
    """The decoder learns what a label means from a classifier that is held, then both go on."""
    copies = round(WEIGHT / (1 - WEIGHT) * len(x) / len(rows.few))
    more = rows.few.repeat(copies)
    data = Labeled(torch.cat([x, x[more]]), torch.cat([rows.y, rows.y[more]]), labeled_share=0.2)
    held = steps * 2 // 5

    def hold(gen: pg.SemiSupervisedVAE) -> None:
        gen.classifier.requires_grad_(False)

    def release(gen: pg.SemiSupervisedVAE) -> None:
        gen.classifier.requires_grad_(True)

    told_fit(
        gen,
        data,
        checkpoint,
        stages=[
            Stage(start=hold, steps=held),
            Stage(start=release, steps=steps - held, scheduler=warm(steps - held)),
        ],
        batch_size=100,
    )


def draws_of_codes(first: pg.VAE, x: Tensor, y: Tensor) -> Labeled:
    """Codes drawn from M1, several of each image, which are all alike spread as its prior."""
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = first.encode(x).sample((DRAWS,))
    return Labeled(drawn.flatten(0, 1), y.repeat(DRAWS), labeled_share=SHARE)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--steps", type=int, nargs=3, default=[4000, 6000, 4000], help="M1, M1+M2, M2"
    )
    parser.add_argument("--seed", type=int, default=0, help="which images are labeled")
    parser.add_argument("--validate", action="store_true", help="errors of held-out training rows")
    parser.add_argument("--checkpoint", type=Path, help="folder of what is trained")
    options = parser.parse_args()
    rows = Rows(options.data, options.seed, options.validate)
    errors: dict[str, float] = {}

    def kept(name: str) -> Path | None:
        if options.checkpoint is None:
            return None
        options.checkpoint.mkdir(parents=True, exist_ok=True)
        return options.checkpoint / f"{name}.safetensors"

    def tell(name: str, predicted: Any) -> None:
        errors[name] = rows.error(predicted)
        print(f"{errors[name]:6.2f} %  {name}", flush=True)

    x, few, labels = rows.x, rows.few, rows.labels
    found = machine(rows.pixels[few], labels, rows.test_pixels)
    tell("support vector machine, 100 labels", found)
    torch.manual_seed(0)
    small, small_test = halved(rows.pixels), halved(rows.test_pixels)
    bits = supervised(of_pixels(0.0).classifier, small[few], labels)
    tell("the network of M2's classifier, 100 labels", bits(small_test).argmax(1))
    of_m1, of_m1m2, of_m2 = options.steps
    if of_m1:
        torch.manual_seed(0)
        first = vae()
        train(first, x, of_m1, kept("m1"))
        with torch.no_grad():
            codes = first.encode(x).mean
            test = first.encode(rows.test).mean
        tell("support vector machine of M1's codes", machine(codes[few], labels, test))
        torch.manual_seed(0)
        alone = supervised(of_codes(0.0).classifier, codes[few], labels)
        tell("the network of M1+M2's classifier, 100 labels", alone(test).argmax(1))
        data = draws_of_codes(first, x, rows.y)
        mixture = pg.GaussianMixture(DIGITS, CODES)
        pg.em(mixture, data.x, labels=data.y, max_iter=100, tol=1e-3, seed=0)
        tell("mixture of M1's codes, EM with 100 labels", mixture.predict(test))
        if of_m1m2:
            torch.manual_seed(0)
            second = of_codes(rows.alpha)
            train(second, data, of_m1m2, kept("m1m2"))
            tell("M1+M2", second.predict(test))
    if of_m2:
        torch.manual_seed(0)
        gen = of_pixels(1 / WEIGHT)
        gen.classifier.load_state_dict(bits.state_dict())
        train_in_stages(gen, small, rows, of_m2, kept("m2"))
        tell("M2", gen.predict(small_test))
    shown = "validation" if options.validate else "test"
    print(f"\nerror on the {shown} images, percent; published ones as recalled")
    table = {f"published: {name}": value for name, value in PUBLISHED.items()} | errors
    for name, value in sorted(table.items(), key=lambda row: -row[1]):
        print(f"  {value:6.2f}  {name}")


if __name__ == "__main__":
    main()
