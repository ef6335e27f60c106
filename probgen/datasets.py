"""Readers of the small image sets that examples and benchmarks use; nothing is downloaded.

And a table of penguins, pictures with captions composed of digits, and simulated showers of particles.
"""

from __future__ import annotations

import gzip
import io
import lzma
import math
import os
import struct
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from probgen.captions import CAPTION_WORDS, CaptionedDigits, caption, captioned_digits
from probgen.core import checks
from probgen.core.described import in_short
from probgen.showers import Showers, calorimeter_showers, channel_sums

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CAPTION_WORDS",
    "CaptionedDigits",
    "Mnist",
    "Showers",
    "Splits",
    "binarize",
    "calorimeter_showers",
    "caption",
    "captioned_digits",
    "channel_sums",
    "load_digits",
    "load_mnist",
    "load_penguins",
    "read_idx",
]

IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GZIP_MAGIC = b"\x1f\x8b"
RATIO = 1040  # gzip cannot pack more bytes than this into one
HEADER = 2**14  # bytes; numpy's own limit is 10,000 characters
# of numpy's arrays
DIMS = 32
ITEMS = 2**59
BROKEN_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,
    KeyError,
)
BROKEN_HEADER = (
    ValueError,
    TypeError,
    SyntaxError,
    tokenize.TokenError,
    LookupError,
    RuntimeError,
    MemoryError,
)
PARTS = {
    "train_images": ("x_train", "train-images-idx3-ubyte"),
    "train_labels": ("y_train", "train-labels-idx1-ubyte"),
    "test_images": ("x_test", "t10k-images-idx3-ubyte"),
    "test_labels": ("y_test", "t10k-labels-idx1-ubyte"),
}


@in_short
class Mnist(NamedTuple):
    """Images ``(N, 28, 28)`` with values 0, 1, ..., 255, and labels ``(N,)``.

    All floating-point.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@in_short
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
        A folder with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``,
        ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte`` (a dot in place of the second
        hyphen and the ending ``.gz`` are accepted) or with ``mnist.npz``; or an ``.npz`` file with
        ``train_images``, ... or ``x_train``, ....

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
    LeCun, Cortes, Burges, The MNIST database of handwritten digits,
    http://yann.lecun.com/exdb/mnist/
    """
    checks.path(path=path)
    path = Path(path)
    archive = path / "mnist.npz" if (path / "mnist.npz").is_file() else path
    parts = (
        _from_folder(path)
        if archive.is_dir() or not archive.exists()
        else _from_archive(_plain(archive))
    )
    for name, array in parts.items():
        _check_values(path, name, array)
    mnist = Mnist(
        **{name: torch.as_tensor(parts[name]).to(torch.get_default_dtype()) for name in PARTS}
    )
    for images, labels in (mnist[:2], mnist[2:]):
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"expected images (N, H, W) and labels (N,) in {path}, got {tuple(images.shape)} "
                "and "
                f"{tuple(labels.shape)}; the files do not belong together"
            )
    return mnist


def _check_values(path: Path, name: str, array: np.ndarray) -> None:
    """Whole numbers, for images up to 255: what NaN there does shows much later."""
    most, expected = (255, "0, 1, ..., 255") if name.endswith("images") else (math.inf, "0, 1, ...")
    if not array.size:
        raise ValueError(
            f"expected {name} with values {expected} in {path}, got none; fetch it again"
        )
    low = array.min()
    high = array.max()
    if not (low >= 0 and high <= most and high < math.inf):
        raise ValueError(
            f"expected {name} with values {expected} in {path}, got {low:g} to {high:g}; correct "
            "them"
        )
    if array.dtype.kind == "f" and (array != np.round(array)).any():
        raise ValueError(
            f"expected {name} with values {expected} in {path}, got fractions; multiply scaled "
            "ones by 255"
        )


def binarize(images: Tensor, seed: int) -> Tensor:
    r"""Pixels drawn once as 0 or 1 with a seed of their own.

    :math:`x_d \sim \text{Bernoulli}(v_d / 255)`.

    Any shape of values 0, 1, ..., 255 to the same shape. Drawn once and kept, this is *static*
    binarization; drawn anew every epoch, *dynamic*. Scores of the two do not compare.
    Salakhutdinov, Murray (2008), On the quantitative analysis of deep belief networks.

    >>> binarize(torch.tensor([0.0, 255.0, 128.0]), seed=0)[:2]
    tensor([0., 1.])
    """
    if not ((images >= 0) & (images <= 255) & (images == images.round())).all():
        raise ValueError(
            f"expected values 0, 1, ..., 255, got {images.min():g} to {images.max():g}; multiply "
            "scaled pixels by 255"
        )
    return torch.bernoulli(images / 255, generator=torch.Generator().manual_seed(seed))


@overload
def load_digits(labels: Literal[False] = False) -> Splits: ...


@overload
def load_digits(labels: Literal[True]) -> tuple[Splits, Splits]: ...


def load_digits(labels: bool = False) -> Splits | tuple[Splits, Splits]:
    """The 8 x 8 digits of scikit-learn, ``(N, 1, 8, 8)`` with levels 0, 1, ..., 16.

    Split in the order of the file; with ``labels`` also which digits they are, whole numbers ``(N,)``.

    1,000 rows to train on, 350 to choose by, 447 to report. Alpaydin, Kaynak (1998), Optical
    recognition of handwritten digits, https://doi.org/10.24432/C50P49

    >>> [tuple(part.shape) for part in load_digits()]
    [(1000, 1, 8, 8), (350, 1, 8, 8), (447, 1, 8, 8)]
    >>> images, digits = load_digits(labels=True)
    >>> digits.train[:5]
    tensor([0, 1, 2, 3, 4])
    """
    checks.flag(labels=labels)
    from sklearn import datasets

    source = datasets.load_digits()
    images = torch.as_tensor(source.images).to(torch.get_default_dtype()).unsqueeze(1)
    found = _split(images)
    return (found, _split(torch.as_tensor(source.target))) if labels else found


def _split(rows: Tensor) -> Splits:
    return Splits(rows[:1000], rows[1000:1350], rows[1350:])


def load_penguins() -> pd.DataFrame:
    """344 penguins of three species near Palmer Station: a small table of every kind of column.

    ``species``, ``island`` and ``sex`` are names, lengths and depths millimeters, ``body_mass_g``
    grams; ``year`` is 2007 to 2009. Two penguins were not measured, eleven are of unknown sex. Horst,
    Hill, Gorman (2020), palmerpenguins, https://doi.org/10.5281/zenodo.3960218, in the public domain
    (CC0); Gorman, Williams, Fraser (2014), Ecological sexual dimorphism and environmental variability
    within a community of Antarctic penguins, https://doi.org/10.1371/journal.pone.0090081

    >>> frame = load_penguins()
    >>> frame.shape, frame["species"].unique().tolist()
    ((344, 8), ['Adelie', 'Gentoo', 'Chinstrap'])
    """
    import pandas as pd

    return pd.read_csv(Path(__file__).with_name("penguins.csv"))


def read_idx(path: str | os.PathLike) -> np.ndarray:
    """An array from a file in the IDX format of MNIST, packed by gzip or not.

    Two zero bytes, one for the type, one for the number of dims; the sizes as 32-bit and the values
    as big-endian numbers. Raises ``ValueError`` for other files and for files that are cut short or
    damaged; no more is unpacked than the sizes call for.
    """
    path = _plain(Path(path))
    size = path.stat().st_size
    with path.open("rb") as file:
        packed = file.read(2) == GZIP_MAGIC
        file.seek(0)
        if not packed:
            return _idx(path, file, size)
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _idx(path, unpacked, RATIO * size)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(
                f"expected a whole gzip file at {path}, got a damaged one ({error}); fetch it again"
            ) from error


def _idx(path: Path, stream: Any, most: int) -> np.ndarray:
    head = bytes(_up_to(stream, 4))
    kind = IDX_TYPES.get(head[2]) if len(head) == 4 and head[:2] == b"\0\0" else None
    if kind is None or head[3] > DIMS:
        raise ValueError(
            f"expected an IDX file at {path}, got one that begins with {head!r}; check the path"
        )
    start = 4 + 4 * head[3]
    sizes = _up_to(stream, start - 4)
    if len(sizes) != start - 4:
        raise ValueError(
            f"expected {start} bytes of header in {path}, got {4 + len(sizes)}; fetch it again"
        )
    shape = tuple(np.frombuffer(sizes, ">u4").tolist())
    size = math.prod(shape) * np.dtype(kind).itemsize
    content = _up_to(stream, size + 1) if start + size <= most else b""
    if len(content) != size or math.prod(filter(None, shape)) > ITEMS:
        got = (
            f"at most {most}"
            if start + size > most
            else f"{start + len(content)}{' or more' * (len(content) > size)}"
        )
        raise ValueError(
            f"expected {start + size} bytes in {path} for values of shape {shape}, got {got}; "
            "fetch it again"
        )
    return np.frombuffer(content, kind).reshape(shape).astype(kind[1:])


def _plain(path: Path) -> Path:
    """A file indeed: a pipe would wait for ever."""
    if path.exists() and not path.is_file():
        raise ValueError(
            f"expected a file at {path}, got a folder, pipe or device; give the path of a file"
        )
    return path


def _up_to(stream: IO[bytes], size: int) -> bytearray:
    """So many bytes or what there is, in parts.

    Memory follows the content, not the promise of a header.
    """
    content = bytearray()
    while len(content) < size and (part := stream.read(min(size - len(content), 2**20))):
        content += part
    return content


def _from_archive(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            known = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            names = {
                name: next((key for key in (name, own[0]) if key in known), None)
                for name, own in PARTS.items()
            }
            missing = [name for name, key in names.items() if key is None]
            if missing:
                got = ", ".join(list(known)[:10]) or "nothing"
                raise ValueError(
                    f"expected {', '.join(missing)} in {path}, got {got}; rename its arrays"
                )
            return {
                name: _array(path, archive, known[key])
                for name, key in names.items()
                if key is not None
            }
    except BROKEN_ZIP as error:
        got = f"a damaged or foreign file ({str(error)[:100] or type(error).__name__})"
        raise ValueError(
            f"expected an archive of NumPy at {path}, got {got}; fetch it again"
        ) from error


def _array(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One array, read to its end, which is where the checksum is compared."""
    with archive.open(info) as stream:
        begin = io.BytesIO(_up_to(stream, HEADER))
        shape, fortran, dtype = _header(path, info, begin)
        size = math.prod(shape) * dtype.itemsize
        most = min(info.file_size, RATIO * info.compress_size + HEADER)
        content = begin.read()
        if begin.tell() - len(content) + size == info.file_size <= most:
            content += _up_to(stream, size - len(content) + 1)
    if len(content) != size or math.prod(filter(None, shape)) > ITEMS:
        expected = f"expected {size} bytes of {info.filename} in {path} for values of shape {shape}"
        raise ValueError(
            f"{expected}, got {'others' if len(content) == size else len(content)}; fetch it again"
        )
    return (
        np.frombuffer(content, dtype)
        .reshape(shape, order="F" if fortran else "C")
        .astype(dtype.newbyteorder("="))
    )


def _header(
    path: Path, info: zipfile.ZipInfo, begin: IO[bytes]
) -> tuple[tuple[int, ...], bool, np.dtype]:
    got = "a damaged header"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy tries to repair headers, and says so
            version = np.lib.format.read_magic(begin)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, fortran, dtype = read(begin)
        if (
            dtype.kind in "uif"
            and dtype.itemsize <= 8
            and len(shape) <= DIMS
            and all(size >= 0 for size in shape)
        ):
            return shape, fortran, dtype
        got = f"{dtype} of shape {shape}"
    except BROKEN_HEADER:  # numpy's advice concerns pickled objects, which are not read here
        pass
    raise ValueError(
        f"expected an array of real numbers as {info.filename} in {path}, got {got[:200]}; save it "
        "so"
    )


def _from_folder(folder: Path) -> dict[str, np.ndarray]:
    files = {}
    for name, (_, file) in PARTS.items():
        spellings = [
            spelling + end
            for spelling in (file, file.replace("-idx", ".idx"))
            for end in ("", ".gz")
        ]
        found = [folder / spelling for spelling in spellings if (folder / spelling).is_file()]
        if not found:
            raise FileNotFoundError(
                f"expected {file}, packed or not, or mnist.npz in {folder}, found neither"
            )
        files[name] = read_idx(found[0])
    return files
