"""Features of a small classifier, trained on the spot and kept by the content of its data."""

from __future__ import annotations

import hashlib
import logging
import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from probgen.core import cache as kept
from probgen.core import checks
from probgen.core.conversion import complete_rows, rows_from
from probgen.core.keywords import explained
from probgen.core.turns import same_random_state
from probgen.evaluate.rows import generator


class ClassifierFeatures(nn.Module):
    """The last hidden layer of a classifier, ``(n, *event) -> (n, F)``.

    ``str`` of it says how good it is.

    Attributes
    ----------
    accuracy, stderr : float
        Of the classifier on rows that it was not trained on.
    held_out : int
        Number of those rows.
    """

    location: Tensor
    scale: Tensor
    correct: Tensor
    tested: Tensor

    def __init__(self, event: tuple[int, ...], width: int, classes: int):
        checks.sizes(event=event)
        checks.at_least(1, width=width, classes=classes)
        super().__init__()
        self.event = event
        self.width = width
        for name in ("location", "scale", "correct", "tested"):
            self.register_buffer(name, torch.ones(()))
        image = len(event) in (2, 3)
        self.body = (
            _images(event[0] if len(event) == 3 else 1, width)
            if image
            else _vectors(math.prod(event), width)
        )
        self.head = nn.Linear(width, classes)
        self.image = image

    @property
    def accuracy(self) -> float:
        return (self.correct / self.tested).item()

    @property
    def stderr(self) -> float:
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.held_out)

    @property
    def held_out(self) -> int:
        return int(self.tested)

    def logits(self, x: Tensor) -> Tensor:
        """Of the classes, ``(n, classes)``."""
        return self.head(self(x))

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.event:
            raise ValueError(
                f"expected events of shape {self.event}, got {tuple(x.shape[1:])}; reshape the "
                "samples"
            )
        x = (x.to(self.location) - self.location) / self.scale
        return self.body(x.reshape(len(x), -1, *self.event[-2:]) if self.image else x.flatten(1))

    def __str__(self) -> str:
        error = f"{self.accuracy:.3f} ± {self.stderr:.3f}"
        return f"{self.width} features of a classifier whose accuracy is {error} on {self.held_out} held-out rows"


def _vectors(dims: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dims, 128), nn.ReLU(), nn.Linear(128, width), nn.ReLU())


def _images(channels: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU()]
    layers += [
        nn.Conv2d(16, 32, 3, 2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, 2, padding=1),
        nn.ReLU(),
    ]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, width), nn.ReLU()
    )


@explained
def classifier_features(
    x: Tensor,
    labels: Tensor,
    *,
    width: int = 64,
    steps: int = 600,
    batch_size: int = 128,
    held_out: float = 0.1,
    seed: int = 0,
    cache: Path | None = None,
) -> ClassifierFeatures:
    """Trains a small classifier of the data's own classes, for its features.

    Some seconds, none when it is on disk.

    Distances in them see what matters to the classes, as Inception's do for photographs. They are
    no public standard: numbers compare only where data, settings and seed are the same, which is
    what the cache goes by.

    Parameters
    ----------
    x : Tensor
        ``(N, *event)`` real rows; events ``(H, W)`` and ``(C, H, W)`` are images, all others are
        flattened.
    labels : Tensor
        ``(N,)`` classes 0, 1, ...
    width : int
        F, features of the last hidden layer.
    steps, batch_size : int
        Of Adam, at learning rates from 2e-3 down to 0.
    held_out : float
        Share of rows kept from training, to say how good the features are.
    seed : int
        Of weights, batches and the rows held out; the global generator is left as it was.
    cache : Path, optional
        Folder of the trained classifiers; by default ``classifiers`` in ``$PROBGEN_CACHE`` or
        ``~/.cache/probgen``, which only this user may write. Damaged files, and those of other
        users, are made anew.

    Returns
    -------
    ClassifierFeatures
        In eval mode, without gradients; with ``accuracy``.

    Raises
    ------
    ValueError
        If labels are not one integer per row, or x has NaN.

    >>> _ = torch.manual_seed(0)
    >>> labels = torch.randint(2, (400,))
    >>> found = classifier_features(torch.randn(400, 2) + 6.0 * labels[:, None], labels, steps=50)
    >>> found.accuracy > 0.9, found(torch.zeros(3, 2)).shape
    (True, torch.Size([3, 64]))
    """
    checks.at_least(1, width=width, steps=steps, batch_size=batch_size)
    checks.within("[0, 1)", held_out=held_out)
    checks.is_seed(seed=seed)
    checks.path(**checks.given(cache=cache))
    x = complete_rows("x", x).cpu()
    labels = rows_from("labels", labels).detach().cpu()
    _check(x, labels)
    with same_random_state():
        torch.manual_seed(int(seed))
        net = ClassifierFeatures(tuple(x.shape[1:]), width, int(labels.max()) + 1)
    settings = width, steps, batch_size, held_out, seed, torch.__version__, str(net)
    file = (cache or kept.folder("classifiers")) / f"{_key(x, labels, settings)}.sealed"
    if not _loaded(net, file):
        _train(net, x, labels, steps, batch_size, held_out, seed)
        _save(net, file)
    return net.eval().requires_grad_(False)


def _check(x: Tensor, labels: Tensor) -> None:
    if labels.shape != x.shape[:1] or labels.is_floating_point() or (labels < 0).any():
        got = f"{tuple(labels.shape)} of {labels.dtype}"
        raise ValueError(
            f"expected labels 0, 1, ... of shape ({len(x)},), got {got}; give one class per row"
        )


def _train(
    net: ClassifierFeatures,
    x: Tensor,
    labels: Tensor,
    steps: int,
    batch: int,
    share: float,
    seed: int,
) -> None:
    random = generator(seed)
    order = torch.randperm(len(x), generator=random)
    tested = max(1, round(share * len(x)))
    kept = order[:tested]
    rest = order[tested:]
    values = x[rest].double()
    net.location.fill_(values.mean())
    net.scale.fill_(values.std().clamp(min=1e-12))
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    for _ in range(steps):
        rows = rest[torch.randint(len(rest), (batch,), generator=random)]
        loss = nn.functional.cross_entropy(net.logits(x[rows]), labels[rows].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        hits = [(net.logits(x[part]).argmax(1) == labels[part]).sum() for part in kept.split(1024)]
    net.correct.fill_(float(sum(hits)))
    net.tested.fill_(float(tested))


def _key(x: Tensor, labels: Tensor, settings: tuple) -> str:
    digest = hashlib.sha256(repr((settings, tuple(x.shape), x.dtype, labels.dtype)).encode())
    for values in (x, labels):
        digest.update(values.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _loaded(net: nn.Module, file: Path) -> bool:
    content = kept.read_sealed(file)
    try:
        net.load_state_dict(load(content or b""))
    except (SafetensorError, RuntimeError):  # no file, or none of this network
        return False
    return True


def _save(net: nn.Module, file: Path) -> None:
    try:
        kept.write_sealed(file, save(net.state_dict()))
    except OSError as error:
        logging.getLogger("probgen").warning(
            f"{file} could not be kept ({error}); it is trained anew the next time"
        )
    kept.trim(file)
