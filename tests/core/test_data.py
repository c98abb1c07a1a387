"""Data sets: what is loaded, how it is kept, and what happens to files that are damaged, foreign or missing."""

import contextlib
import dataclasses
import gc
import hashlib
import urllib.error
import urllib.request
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from checks import Payload, files_below, made_arrays, real, refused, write_half
from torchvision import datasets

from vae_core import data
from vae_core.evaluation import entropy_floor
from vae_core.runtime import unit_interval

FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
ARCHIVES = {
    "mnist": "MNIST/raw/train-images-idx3-ubyte.gz",
    "fashion-mnist": "FashionMNIST/raw/t10k-labels-idx1-ubyte.gz",
    "cifar10": "cifar-10-python.tar.gz",
    "svhn": "train_32x32.mat",
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def write_idx(path: Path, array: np.ndarray) -> None:
    """The format of yann.lecun.com/exdb/mnist: 0, 0, type 8 (uint8), rank, big-endian sizes, bytes."""
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def write_raw(root: Path, folder: str = "MNIST") -> dict[str, np.ndarray]:
    raw, arrays = root / folder / "raw", made_arrays()
    raw.mkdir(parents=True)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        write_idx(raw / f"{prefix}-images-idx3-ubyte", arrays[f"x_{split}"])
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", arrays[f"y_{split}"])
    return arrays


def assert_same(dataset: data.Dataset, arrays: dict[str, np.ndarray]) -> None:
    for key, array in arrays.items():
        found = getattr(dataset, key).numpy()
        expected = array[:, None] if key.startswith("x") else array
        assert found.shape == expected.shape
        assert (found == expected).all()


# Digits


def test_load_digits_gives_1437_and_360_images_of_8_by_8():
    d = data.load("digits")
    assert (d.x_train.shape, d.y_train.shape) == ((1437, 1, 8, 8), (1437,))
    assert (d.x_test.shape, d.y_test.shape) == ((360, 1, 8, 8), (360,))
    assert d.image_shape == (1, 8, 8)
    assert (d.x_train.dtype, d.y_train.dtype) == (torch.float32, torch.int64)


def test_load_digits_gives_scikit_learns_17_grey_levels_in_its_order():
    from sklearn.datasets import load_digits

    d, source = data.load("digits"), load_digits()
    x, y = torch.cat([d.x_train, d.x_test]), torch.cat([d.y_train, d.y_test])
    assert torch.equal(x.unique(), torch.arange(17, dtype=torch.float32) / 16)
    assert torch.equal(x[:, 0], torch.tensor(source.images / 16, dtype=torch.float32))
    assert torch.equal(y, torch.tensor(source.target))


def test_load_digits_needs_no_data_root(monkeypatch, tmp_path):
    monkeypatch.setenv("VAE_CORE_DATA", str(tmp_path / "absent"))
    data.load("digits")
    assert list(tmp_path.iterdir()) == []


def test_load_refuses_an_unknown_name_with_the_known_ones(tmp_path):
    with refused(ValueError, "'mnits'", *data.NAMES):
        data.load("mnits", tmp_path)


# torchvision's files, and the one npz that is kept of them


@pytest.mark.parametrize("name", FOLDERS)
def test_load_reads_idx_files_and_then_keeps_one_npz(name, tmp_path):
    arrays = write_raw(tmp_path, FOLDERS[name])
    first = data.load(name, tmp_path)
    assert_same(first, arrays)
    for path in (tmp_path / FOLDERS[name] / "raw").iterdir():
        path.unlink()
    again = data.load(name, tmp_path)
    assert_same(again, arrays)
    assert again.sha256 == first.sha256


def test_load_keeps_an_uncompressed_npz_of_uint8_with_the_four_names(tmp_path):
    arrays = write_raw(tmp_path)
    data.load("mnist", tmp_path)
    with zipfile.ZipFile(tmp_path / "mnist.npz") as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
    with np.load(tmp_path / "mnist.npz") as kept:
        assert {key: (kept[key].dtype, kept[key].shape) for key in kept} == {
            key: (np.dtype(np.uint8), array.shape) for key, array in arrays.items()
        }


def test_load_leaves_the_raw_files_and_adds_only_the_npz(tmp_path):
    write_raw(tmp_path)
    before = files_below(tmp_path)
    data.load("mnist", tmp_path)
    after = files_below(tmp_path)
    assert set(after) - set(before) == {"mnist.npz"}
    assert before.items() <= after.items()


def test_load_prefers_the_npz_to_the_raw_files(tmp_path):
    write_raw(tmp_path)
    arrays = made_arrays(n_train=7)
    np.savez(tmp_path / "mnist.npz", **arrays)
    assert_same(data.load("mnist", tmp_path), arrays)


@pytest.fixture
def svhn_root(tmp_path, monkeypatch) -> Path:
    """Two .mat files, images 32×32×3×N, labels 1 to 10; one blue pixel in row 4, column 7 of test image 1."""
    splits = {}
    for split, n in (("train", 4), ("test", 3)):
        x, y = np.zeros((32, 32, 3, n), np.uint8), np.array([[10], [1], [9], [10]], np.uint8)[:n]
        if split == "test":
            x[4, 7, 2, 1] = 200
        path = tmp_path / f"{split}_32x32.mat"
        scipy.io.savemat(path, {"X": x, "y": y})
        md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        splits[split] = [f"http://localhost/{path.name}", path.name, md5]
    monkeypatch.setattr(datasets.SVHN, "split_list", splits)
    return tmp_path


def test_load_makes_svhns_label_10_a_0(svhn_root):
    d = data.load("svhn", svhn_root)
    assert d.y_train.tolist() == [0, 1, 9, 0]
    assert d.y_test.tolist() == [0, 1, 9]


def test_load_keeps_the_orientation_of_svhns_images(svhn_root):
    for d in (data.load("svhn", svhn_root), data.load("svhn", svhn_root)):  # from the .mat, then from the npz
        assert d.x_train.shape == (4, 3, 32, 32)
        assert d.x_test.nonzero().tolist() == [[1, 2, 4, 7]]
        assert d.x_test[1, 2, 4, 7] == 200


def test_load_puts_the_channels_of_cifar10_first(tmp_path):
    arrays = made_arrays((32, 32, 3))
    np.savez(tmp_path / "cifar10.npz", **arrays)
    d = data.load("cifar10", tmp_path)
    assert d.image_shape == (3, 32, 32)
    assert (d.x_train.numpy() == np.moveaxis(arrays["x_train"], 3, 1)).all()
    assert d.y_train.tolist() == arrays["y_train"].tolist()


def test_load_takes_the_root_from_the_environment(monkeypatch, tmp_path):
    arrays = made_arrays()
    np.savez(tmp_path / "mnist.npz", **arrays)
    monkeypatch.setenv("VAE_CORE_DATA", str(tmp_path))
    assert_same(data.load("mnist"), arrays)


def test_load_prefers_its_argument_to_the_environment(monkeypatch, tmp_path):
    arrays = made_arrays()
    np.savez(tmp_path / "mnist.npz", **arrays)
    monkeypatch.setenv("VAE_CORE_DATA", str(tmp_path / "elsewhere"))
    assert_same(data.load("mnist", tmp_path), arrays)


def test_default_root_of_this_checkout_is_its_data_folder(monkeypatch):
    """Also for a notebook, whose working folder is its own; test_runtime.py tries other folders."""
    monkeypatch.delenv("VAE_CORE_DATA", raising=False)
    monkeypatch.chdir(Path(__file__).resolve().parents[2] / "notebooks")
    assert data.default_root() == Path(__file__).resolve().parents[2] / "data"


# Missing, damaged and foreign files


@pytest.mark.parametrize("name", ARCHIVES)
def test_load_of_a_missing_set_without_network_says_how_to_get_it_and_leaves_nothing(name, tmp_path):
    with refused(FileNotFoundError, tmp_path, f"python -m vae_core data {name}", f"{name}.npz", "digits"):
        data.load(name, tmp_path)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("name", ARCHIVES)
def test_load_refuses_a_truncated_archive_and_leaves_it_alone(name, tmp_path):
    archive = tmp_path / ARCHIVES[name]
    archive.parent.mkdir(parents=True, exist_ok=True)
    archive.write_bytes(b"\x1f\x8b\x08 the first part of a download")
    before = files_below(tmp_path)
    with refused(ValueError, name, archive, "delete"):
        data.load(name, tmp_path)
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("kept", [0, 3, 10, 1000])
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-images-idx3-ubyte"])
def test_load_refuses_a_truncated_raw_file_and_keeps_nothing_of_it(file, kept, tmp_path):
    write_raw(tmp_path)
    path = tmp_path / "MNIST" / "raw" / file
    path.write_bytes(path.read_bytes()[:kept])
    before = files_below(tmp_path)
    with refused(ValueError, "mnist", tmp_path, "damaged"):
        data.load("mnist", tmp_path)
    assert files_below(tmp_path) == before


def test_load_refuses_raw_files_with_fewer_labels_than_images(tmp_path):
    write_raw(tmp_path)
    write_idx(tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte", np.zeros(4, np.uint8))
    with refused(ValueError, "mnist", tmp_path, "y_train"):
        data.load("mnist", tmp_path)
    assert not (tmp_path / "mnist.npz").exists()


def test_load_refuses_an_incomplete_raw_folder_without_network(tmp_path):
    write_raw(tmp_path)
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    before = files_below(tmp_path)
    with refused(ValueError, "mnist", tmp_path, "incomplete"):
        data.load("mnist", tmp_path)
    assert files_below(tmp_path) == before


def flipped(content: bytes, at: int, mask: int = 0xFF) -> bytes:
    return content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :]


def first_byte_of_data(content: bytes) -> int:
    """Behind the first local header: 30 bytes, the name and the extra field, whose lengths stand at 26 and 28."""
    start = content.index(b"PK\x03\x04")
    return start + 30 + sum(int.from_bytes(content[start + k : start + k + 2], "little") for k in (26, 28))


DAMAGE = {
    "the first byte of data": lambda c: c[: first_byte_of_data(c)] + b"\x07" + c[first_byte_of_data(c) + 1 :],
    "a pixel": lambda content: flipped(content, content.index(b"PK\x03\x04") + 1000),
    "the local header": lambda content: flipped(content, 0),
    "the compression method": lambda content: flipped(content, content.index(b"PK\x01\x02") + 10),
    "the version": lambda content: flipped(content, content.index(b"PK\x01\x02") + 6),
    "the encryption flag": lambda content: flipped(content, content.index(b"PK\x01\x02") + 8, mask=1),
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda _: b"",
    "text": lambda _: b"this is no archive\n",
}


def assert_npz_refused(path: Path, name: str = "mnist") -> None:
    before = path.read_bytes()
    with refused(ValueError, path, "delete"):
        data.load(name, path.parent)
    assert files_below(path.parent) == {path.name: before}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_load_refuses_a_damaged_npz_by_name(save, damage, tmp_path):
    path = tmp_path / "mnist.npz"
    save(path, **made_arrays())
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert_npz_refused(path)


@pytest.mark.parametrize("damage", ["a pixel", "the compression method", "truncated", "text"])
def test_load_closes_an_npz_that_it_refuses(damage, tmp_path):
    path = tmp_path / "mnist.npz"
    np.savez(path, **made_arrays())
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    gc.freeze()  # what lies about already is not looked at
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with contextlib.suppress(Exception):
            data.load("mnist", tmp_path)
        gc.collect()
    gc.unfreeze()
    assert [str(warning.message) for warning in caught] == []


FOREIGN = {
    "other keys": lambda a: {"images": a["x_train"], "labels": a["y_train"]},
    "a key less": lambda a: {key: a[key] for key in ("x_train", "y_train", "x_test")},
    "other image size": lambda a: a | {"x_train": a["x_train"][:, :27]},
    "colour": lambda a: a | {"x_test": np.stack([a["x_test"]] * 3, -1)},
    "float images": lambda a: a | {"x_test": a["x_test"] / 255},
    "float labels": lambda a: a | {"y_train": a["y_train"].astype(float)},
    "a label too few": lambda a: a | {"y_train": a["y_train"][1:]},
    "labels to 10": lambda a: a | {"y_train": a["y_train"] * 0 + 10},
    "negative labels": lambda a: a | {"y_test": a["y_test"].astype(np.int64) - 10},
    "no images": lambda a: {key: array[:0] for key, array in a.items()},
    "one label for all": lambda a: a | {"y_train": np.uint8(3)},
}


@pytest.mark.parametrize("content", FOREIGN)
def test_load_refuses_an_npz_of_something_else_by_name(content, tmp_path):
    np.savez(tmp_path / "mnist.npz", **FOREIGN[content](made_arrays()))
    assert_npz_refused(tmp_path / "mnist.npz")


def test_load_refuses_an_npz_with_pickled_objects_and_unpickles_nothing(tmp_path):
    objects = np.array([Payload(tmp_path / "executed")], dtype=object)
    np.savez(tmp_path / "mnist.npz", **made_arrays() | {"x_train": objects})
    assert_npz_refused(tmp_path / "mnist.npz")


def test_load_refuses_an_npz_of_another_set_by_name(tmp_path):
    np.savez(tmp_path / "cifar10.npz", **made_arrays())
    assert_npz_refused(tmp_path / "cifar10.npz", "cifar10")


def test_load_refuses_a_single_npy_array_under_the_name_of_the_npz(tmp_path):
    with (tmp_path / "mnist.npz").open("wb") as file:
        np.save(file, made_arrays()["x_train"])
    assert_npz_refused(tmp_path / "mnist.npz")


def test_load_refuses_a_root_that_cannot_be_written_by_name(tmp_path):
    (tmp_path / "file").write_text("no folder")
    root = tmp_path / "file" / "data"
    with refused(OSError, root, "--data-root", "VAE_CORE_DATA"):
        data.load("mnist", root)
    assert files_below(tmp_path) == {"file": b"no folder"}


@pytest.mark.parametrize("crash", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_load_leaves_nothing_behind_after_a_crash_while_writing_the_npz(crash, tmp_path, monkeypatch):
    def savez(target, **_arrays):
        write_half(target)
        raise crash

    write_raw(tmp_path)
    before = files_below(tmp_path)
    monkeypatch.setattr(np, "savez", savez)
    with pytest.raises(type(crash)):
        data.load("mnist", tmp_path)
    assert files_below(tmp_path) == before


# Checksum and scaling


@pytest.mark.parametrize("key", data.ARRAYS)
def test_sha256_depends_on_every_single_value(key):
    d = data.load("digits")
    changed = getattr(d, key).clone()
    changed.view(-1)[7] += 1
    assert dataclasses.replace(d, **{key: changed}).sha256 != d.sha256


def test_sha256_depends_on_shape_and_dtype_beside_the_bytes():
    d = data.load("digits")
    for same_bytes in (d.x_train.view(-1, 1, 4, 16), d.x_train.view(torch.int32)):
        assert dataclasses.replace(d, x_train=same_bytes).sha256 != d.sha256


def test_sha256_is_that_of_a_second_load():
    assert data.load("digits").sha256 == data.load("digits").sha256


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unit_interval_divides_uint8_by_255_in_the_default_dtype(dtype):
    torch.set_default_dtype(dtype)
    x = torch.arange(256, dtype=torch.uint8)
    result = unit_interval(x)
    assert result.dtype == dtype
    assert torch.equal(result, torch.arange(256, dtype=dtype) / 255)
    assert torch.equal(x, torch.arange(256, dtype=torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_unit_interval_leaves_floats_alone(dtype):
    x = torch.rand(4).to(dtype)
    assert unit_interval(x) is x


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool])
def test_unit_interval_refuses_other_dtypes(dtype):
    with refused(TypeError, dtype, "uint8"):
        unit_interval(torch.zeros(3, dtype=dtype))


# Real data, where it is


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mean", "sd"),
    [
        ("mnist", [0.13066], [0.30811]),
        ("fashion-mnist", [0.28604], [0.35302]),
        ("cifar10", [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
    ],
)
def test_load_of_real_data_gives_training_pixels_of_the_known_mean_and_sd(name, mean, sd, data_root):
    x = real(name, data_root).x_train
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in x.unbind(1)]).double()
    levels, share = torch.arange(256) / 255, counts / counts.sum(1, keepdim=True)
    found = share @ levels
    half_digit = 0.5 * 10.0 ** -(5 if len(mean) == 1 else 4)
    assert found.tolist() == pytest.approx(mean, abs=half_digit)
    assert (share @ levels**2 - found**2).sqrt().tolist() == pytest.approx(sd, abs=half_digit)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "n_train", "shape"),
    [("mnist", 60_000, (1, 28, 28)), ("fashion-mnist", 60_000, (1, 28, 28)), ("cifar10", 50_000, (3, 32, 32))],
)
def test_load_of_real_data_gives_their_sizes_and_ten_classes(name, n_train, shape, data_root):
    d = real(name, data_root)
    assert (d.x_train.shape, d.x_test.shape) == ((n_train, *shape), (10_000, *shape))
    assert (d.x_train.dtype, d.y_test.dtype) == (torch.uint8, torch.int64)
    assert (len(d.y_train.bincount()), len(d.y_test.bincount())) == (10, 10)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "floor"), [("mnist", 45.53), ("fashion-mnist", 189.86), ("cifar10", 1681.72)])
def test_entropy_floor_of_real_test_images_is_the_known_one(name, floor, data_root, float32):
    assert entropy_floor(unit_interval(real(name, data_root).x_test)) == pytest.approx(floor, abs=0.005)
