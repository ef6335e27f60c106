"""Files made on the spot and read back; scikit-learn's own arrays."""

import gzip
import io
import os
import struct
import zipfile

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
    header = bytes([0, 0, code, array.ndim]) + b"".join(
        struct.pack(">I", size) for size in array.shape
    )
    return header + b"".join(struct.pack(">" + pack, value) for value in array.ravel().tolist())


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    sizes = {"train": 5, "test": 3}
    images = {
        f"{part}_images": rng.integers(0, 256, (n, 4, 3), dtype=np.uint8)
        for part, n in sizes.items()
    }
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


VALUES = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)


def zipped(content, method=zipfile.ZIP_DEFLATED, name="train_images.npy"):
    """An archive whose first array is replaced."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for part in PARTS:
            array = io.BytesIO()
            np.save(array, VALUES if part.endswith("images") else np.arange(3))
            archive.writestr(f"{part}.npy", content if f"{part}.npy" == name else array.getvalue())
    return buffer.getvalue()


def saved(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def claiming(shape, descr="|u1", fortran="False", rest=b"\0" * 8):
    """The NumPy format, written from its definition."""
    header = f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + rest


def refused(read, path):
    """One sentence that names the file, what was expected and what was found."""
    with pytest.raises(ValueError, match="expected") as caught:
        read(path)
    message = str(caught.value)
    assert (
        str(path) in message and "got" in message and "pickle" not in message and len(message) < 600
    )


def huge(*sizes, kind=8):
    return bytes([0, 0, kind, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes)


FOREIGN_IDX = {
    "huge": huge(2**32 - 1, 2**32 - 1, 2**32 - 1) + b"data",
    "huge and empty": huge(0, 2**32 - 1, 2**32 - 1, 2**32 - 1),
    "huge, packed": gzip.compress(huge(2**32 - 1, 2**32 - 1) + b"data"),
    "bomb": gzip.compress(huge(2, 2) + bytes(10**7)),
    "many dims": bytes([0, 0, 8, 255]) + bytes(4 * 255),
    "kind": idx(VALUES)[:2] + b"\x0a" + idx(VALUES)[3:],
    "gzip header alone": b"\x1f\x8b",
    "gzip method": b"\x1f\x8b\x09" + gzip.compress(idx(VALUES))[3:],
    "gzip checksum": gzip.compress(idx(VALUES))[:-8] + bytes(8),
    "text": b"<html>404</html>",
    "pickle": b"\x80\x04.",
}


@pytest.mark.parametrize("case", FOREIGN_IDX)
def test_foreign_idx_files_are_refused(case, tmp_path):
    (tmp_path / "file").write_bytes(FOREIGN_IDX[case])
    refused(read_idx, tmp_path / "file")


FOREIGN_NPZ = {
    "objects": zipped(saved(np.array([{}, None], dtype=object))),
    "text": zipped(saved(np.array(["a", "b"]))),
    "complex": zipped(saved(np.zeros((3, 4, 5), complex))),
    "fields": zipped(saved(np.zeros(3, [("a", "u1")]))),
    "huge": zipped(claiming((10**6, 10**6, 10**6))),
    "huge and empty": zipped(claiming((0, 2**60, 2**60), rest=b"")),
    "more than numbers": zipped(claiming((10**30,))),
    "negative": zipped(claiming((-3, -4, 5), rest=bytes(60))),
    "short": zipped(claiming((3, 4, 5))),
    "long": zipped(claiming((3, 4, 5), rest=bytes(61))),
    "bomb": zipped(claiming((3, 4, 5), rest=bytes(10**7))),
    "code": zipped(claiming("__import__('os').abort()")),
    "nested": zipped(claiming("(" * 9000)),
    "no header": zipped(b"\x93NUMPY\1\0\xff\xff"),
    "version": zipped(b"\x93NUMPY\7\0" + bytes(100)),
    "no array": zipped(b"hello"),
    "npy": saved(VALUES),
    "pickle": b"\x80\x04.",
    "empty": b"",
    "nan": zipped(saved(np.full((3, 4, 5), np.nan))),
    "infinite": zipped(saved(np.full((3, 4, 5), np.inf))),
    "negative values": zipped(saved(np.full((3, 4, 5), -1))),
    "large values": zipped(saved(np.full((3, 4, 5), 256))),
    "scaled": zipped(saved(np.full((3, 4, 5), 0.5))),
    "no images": zipped(saved(np.zeros((0, 4, 5)))),
    "labels": zipped(saved(np.array([0, np.nan, 1])), name="train_labels.npy"),
    "negative labels": zipped(saved(np.array([0, -1, 1])), name="test_labels.npy"),
}


@pytest.mark.parametrize("case", FOREIGN_NPZ)
def test_foreign_archives_are_refused(case, tmp_path):
    (tmp_path / "file.npz").write_bytes(FOREIGN_NPZ[case])
    refused(load_mnist, tmp_path / "file.npz")


@pytest.mark.parametrize(
    "array", [VALUES.astype(">i4"), np.asfortranarray(VALUES), VALUES.astype("f2")], ids=str
)
def test_arrays_in_other_layouts_are_read(array, tmp_path):
    (tmp_path / "file.npz").write_bytes(zipped(saved(array)))
    assert load_mnist(tmp_path / "file.npz").train_images.tolist() == VALUES.tolist()


def damaged(content, step=1):
    yield from (content[:end] for end in range(0, len(content), step))
    for place in range(0, len(content), step):
        for bit in (0, 3, 7):
            yield content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


CHECKED = {  # by a checksum: what is read is right
    "packed": (gzip.compress(idx(VALUES)), read_idx, 1),
    "archive": (zipped(saved(VALUES)), lambda path: load_mnist(path).train_images.numpy(), 4),
    "stored": (
        zipped(saved(VALUES), zipfile.ZIP_STORED),
        lambda path: load_mnist(path).train_images.numpy(),
        5,
    ),
}


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("case", CHECKED)
def test_files_cut_or_changed_anywhere_are_refused_or_read_right(case, tmp_path):
    content, read, step = CHECKED[case]
    file, wrong = tmp_path / "file", 0
    for other in damaged(content, step):
        file.write_bytes(other)
        try:
            assert (read(file) == VALUES).all()
        except ValueError as error:
            assert str(file) in str(error) and "expected" in str(error)
            wrong += 1
    assert wrong > len(content) / step


def test_plain_idx_files_cut_or_changed_anywhere_are_refused_or_read_as_they_stand(tmp_path):
    file, content = tmp_path / "file", idx(VALUES)
    for other in damaged(content):
        file.write_bytes(other)
        signed = content[:2] + b"\x09" + content[3:16]  # another type of the same size
        if len(other) < len(content) or other[:16] not in (content[:16], signed):
            refused(read_idx, file)
        else:
            assert read_idx(file).tobytes() == other[16:]


def test_pipes_and_folders_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    refused(read_idx, tmp_path / "pipe")
    refused(read_idx, tmp_path / "folder")
    refused(load_mnist, tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "nothing")


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
