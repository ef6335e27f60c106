"""Files made on the spot and read back; scikit-learn's own arrays."""

import gzip
import struct

import numpy as np
import pytest
import sklearn.datasets
import torch

from probgen.datasets import PARTS, binarize, load_digits, load_mnist, read_idx

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx(array):
    """The IDX format, written value by value from its definition."""
    code = CODES[array.dtype.str[1:]]
    pack = {0x08: "B", 0x09: "b", 0x0B: "h", 0x0C: "i", 0x0D: "f", 0x0E: "d"}[code]
    header = bytes([0, 0, code, array.ndim]) + b"".join(struct.pack(">I", size) for size in array.shape)
    return header + b"".join(struct.pack(">" + pack, value) for value in array.ravel().tolist())


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    sizes = {"train": 5, "test": 3}
    images = {f"{part}_images": rng.integers(0, 256, (n, 4, 3), dtype=np.uint8) for part, n in sizes.items()}
    labels = {f"{part}_labels": rng.integers(0, 10, n, dtype=np.uint8) for part, n in sizes.items()}
    return images | labels


def check(mnist, arrays):
    for name, array in arrays.items():
        got = getattr(mnist, name)
        assert got.dtype == torch.get_default_dtype()
        assert got.tolist() == array.tolist()


@pytest.mark.parametrize("code", CODES)
def test_read_idx_every_type(tmp_path, code):
    array = np.arange(-6, 6).reshape(2, 3, 2).astype(code)
    (tmp_path / "file").write_bytes(idx(array))
    read = read_idx(tmp_path / "file")
    assert read.dtype == array.dtype
    assert (read == array).all()


@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_mnist_from_idx_files(tmp_path, arrays, packed, dotted):
    for name, array in arrays.items():
        file = PARTS[name][1].replace("-idx", ".idx") if dotted else PARTS[name][1]
        content = gzip.compress(idx(array)) if packed else idx(array)
        (tmp_path / (file + ".gz" * packed)).write_bytes(content)
    check(load_mnist(tmp_path), arrays)


@pytest.mark.parametrize("own_names", [True, False])
def test_mnist_from_archive(tmp_path, arrays, own_names):
    named = {name if own_names else PARTS[name][0]: array for name, array in arrays.items()}
    np.savez(tmp_path / "mnist.npz", **named)
    check(load_mnist(tmp_path), arrays)
    check(load_mnist(tmp_path / "mnist.npz"), arrays)


def test_damaged_and_foreign_files_are_named(tmp_path):
    content = idx(np.arange(12, dtype=np.uint8).reshape(3, 4))
    bad = {
        "short": (content[:-1], "expected 24 bytes"),
        "long": (content + b"\0", "expected 24 bytes"),
        "header": (content[:9], "expected 4 bytes|got 9"),
        "foreign": (b"PK\3\4" + content, "IDX"),
        "empty": (b"", "IDX"),
        "gzip": (gzip.compress(content)[:-9], "gzip"),
    }
    for name, (bytes_, message) in bad.items():
        (tmp_path / name).write_bytes(bytes_)
        with pytest.raises(ValueError, match=message):
            read_idx(tmp_path / name)


def test_missing_parts_are_named(tmp_path, arrays):
    with pytest.raises(FileNotFoundError, match="train-images"):
        load_mnist(tmp_path)
    del arrays["test_labels"]
    np.savez(tmp_path / "mnist.npz", **arrays)
    with pytest.raises(ValueError, match="expected test_labels"):
        load_mnist(tmp_path)


def test_images_and_labels_of_other_lengths(tmp_path, arrays):
    arrays["train_labels"] = arrays["train_labels"][:-1]
    np.savez(tmp_path / "mnist.npz", **arrays)
    with pytest.raises(ValueError, match="do not belong together"):
        load_mnist(tmp_path)


def test_binarize_draws_once_with_the_right_probabilities():
    images = torch.arange(0.0, 256.0, 5.0).expand(20_000, -1)
    drawn = binarize(images, seed=3)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    error = (drawn.mean(0) - images[0] / 255).abs()
    assert (error < 5 * 0.5 / 20_000**0.5).all()
    before = torch.get_rng_state()
    assert torch.equal(drawn, binarize(images, seed=3))
    assert not torch.equal(drawn, binarize(images, seed=4))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("value", [256.0, -1.0, 0.5, float("nan")])
def test_binarize_refuses_scaled_images(value):
    with pytest.raises(ValueError, match="expected values 0, 1"):
        binarize(torch.tensor([0.0, value]), seed=0)


def test_digits_are_those_of_scikit_learn_in_order():
    rows = torch.cat(load_digits()).flatten(1)
    assert rows.tolist() == sklearn.datasets.load_digits().data.tolist()
    assert (rows.min(), rows.max()) == (0, 16)
