"""Readers of the small image sets that examples and benchmarks use; nothing is downloaded."""

from __future__ import annotations

import gzip
import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GZIP_MAGIC = b"\x1f\x8b"
PARTS = {
    "train_images": ("x_train", "train-images-idx3-ubyte"),
    "train_labels": ("y_train", "train-labels-idx1-ubyte"),
    "test_images": ("x_test", "t10k-images-idx3-ubyte"),
    "test_labels": ("y_test", "t10k-labels-idx1-ubyte"),
}


class Mnist(NamedTuple):
    """Images ``(N, 28, 28)`` with values 0, 1, ..., 255, and labels ``(N,)``, all floating-point."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


class Splits(NamedTuple):
    """Rows to train on, to choose by, and to report."""

    train: Tensor
    validation: Tensor
    test: Tensor


def load_mnist(path: str | os.PathLike) -> Mnist:
    """MNIST, or a set in its format, from the four IDX files in a folder or from one NumPy archive.

    Parameters
    ----------
    path : path
        A folder with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
        ``t10k-labels-idx1-ubyte`` (a dot in place of the second hyphen and the ending ``.gz`` are accepted) or with
        ``mnist.npz``; or an ``.npz`` file with ``train_images``, ... or ``x_train``, ....

    Returns
    -------
    Mnist
        Named tuple of floating-point tensors.

    Raises
    ------
    FileNotFoundError, ValueError
        If a part is missing, damaged, or has another number of labels than of images.

    References
    ----------
    LeCun, Cortes, Burges, The MNIST database of handwritten digits, http://yann.lecun.com/exdb/mnist/
    """
    path = Path(path)
    archive = path / "mnist.npz" if (path / "mnist.npz").is_file() else path
    parts = _from_archive(archive) if archive.is_file() else _from_folder(path)
    mnist = Mnist(**{name: torch.as_tensor(parts[name]).to(torch.get_default_dtype()) for name in PARTS})
    for images, labels in (mnist[:2], mnist[2:]):
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"expected images (N, H, W) and labels (N,) in {path}, got {tuple(images.shape)} and "
                f"{tuple(labels.shape)}; the files do not belong together"
            )
    return mnist


def binarize(images: Tensor, seed: int) -> Tensor:
    r"""Pixels drawn once as 0 or 1 with a seed of their own, :math:`x_d \sim \text{Bernoulli}(v_d / 255)`.

    Any shape of values 0, 1, ..., 255 to the same shape. Drawn once and kept, this is *static* binarization; drawn
    anew every epoch, *dynamic*. Scores of the two do not compare. Salakhutdinov, Murray (2008), On the quantitative
    analysis of deep belief networks.

    >>> binarize(torch.tensor([0.0, 255.0, 128.0]), seed=0)[:2]
    tensor([0., 1.])
    """
    if not ((images >= 0) & (images <= 255) & (images == images.round())).all():
        raise ValueError(
            f"expected values 0, 1, ..., 255, got {images.min():g} to {images.max():g}; multiply scaled pixels by 255"
        )
    return torch.bernoulli(images / 255, generator=torch.Generator().manual_seed(seed))


def load_digits() -> Splits:
    """The 8 x 8 digits of scikit-learn, ``(N, 1, 8, 8)`` with levels 0, 1, ..., 16, split in the order of the file.

    1,000 rows to train on, 350 to choose by, 447 to report. Alpaydin, Kaynak (1998), Optical recognition of
    handwritten digits, https://doi.org/10.24432/C50P49

    >>> [tuple(part.shape) for part in load_digits()]
    [(1000, 1, 8, 8), (350, 1, 8, 8), (447, 1, 8, 8)]
    """
    from sklearn import datasets

    images = torch.as_tensor(datasets.load_digits().images).to(torch.get_default_dtype()).unsqueeze(1)
    return Splits(images[:1000], images[1000:1350], images[1350:])


def read_idx(path: str | os.PathLike) -> np.ndarray:
    """An array from a file in the IDX format of MNIST, packed by gzip or not.

    Two zero bytes, one for the type, one for the number of dims; the sizes as 32-bit and the values as big-endian
    numbers. Raises ``ValueError`` for other files and for files that are cut short.
    """
    path = Path(path)
    content = path.read_bytes()
    if content[:2] == GZIP_MAGIC:
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError) as error:
            raise ValueError(f"{path} is a damaged gzip file ({error}); fetch it again") from error
    kind = IDX_TYPES.get(content[2]) if len(content) >= 4 and content[:2] == b"\0\0" else None
    if kind is None:
        raise ValueError(f"expected an IDX file at {path}, got one that begins with {content[:4]!r}; check the path")
    start = 4 + 4 * content[3]
    shape = tuple(np.frombuffer(content[4:start], ">u4").tolist()) if len(content) >= start else ()
    size = math.prod(shape) * np.dtype(kind).itemsize
    if len(shape) != content[3] or len(content) != start + size:
        raise ValueError(
            f"expected {start + size} bytes in {path} for values of shape {shape}, got {len(content)}; fetch it again"
        )
    return np.frombuffer(content, kind, offset=start).reshape(shape).astype(kind[1:])


def _from_archive(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as archive:
        names = {name: next((key for key in (name, keys[0]) if key in archive), None) for name, keys in PARTS.items()}
        missing = [name for name, key in names.items() if key is None]
        if missing:
            raise ValueError(f"expected {', '.join(missing)} in {path}, got {', '.join(archive)}; rename its arrays")
        return {name: archive[key] for name, key in names.items()}


def _from_folder(folder: Path) -> dict[str, np.ndarray]:
    files = {}
    for name, (_, file) in PARTS.items():
        spellings = [spelling + end for spelling in (file, file.replace("-idx", ".idx")) for end in ("", ".gz")]
        found = [folder / spelling for spelling in spellings if (folder / spelling).is_file()]
        if not found:
            raise FileNotFoundError(f"expected {file}, packed or not, or mnist.npz in {folder}, found neither")
        files[name] = read_idx(found[0])
    return files
