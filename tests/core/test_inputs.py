"""What people pass as data and as labels: what it becomes, and what is refused in one sentence that says what to do."""

import numpy as np
import pytest
import torch
from checks import refused
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numbers
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset
from torchvision import datasets, transforms, tv_tensors

from vae_core import data, runtime
from vae_core._checks.inputs import as_images, as_labels, images_and_labels
from vae_core.runtime import unit_interval

BYTES = torch.arange(3 * 2 * 4 * 5, dtype=torch.uint8).reshape(3, 2, 4, 5)
FLOATS = BYTES.double() / 119
TABLE = torch.linspace(-3, 7, 12, dtype=torch.float64).reshape(4, 3)


class Items(torch.utils.data.Dataset):
    """A map-style Dataset of a list, counting how often it is read."""

    def __init__(self, items, transform=lambda item: item):
        self.items, self.transform, self.read = items, transform, 0

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        self.read += 1
        return self.transform(self.items[i])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(FLOATS)


class Table:
    """What pandas and others offer: an object that NumPy converts."""

    def __init__(self, array):
        self.array = np.asarray(array)

    def __len__(self):
        return len(self.array)

    def __getitem__(self, column):
        raise KeyError(column)

    def __array__(self, dtype=None, copy=None):
        return self.array


# What is taken


SAME = {
    "a tensor": FLOATS,
    "a transposed tensor": FLOATS.transpose(2, 3).contiguous().transpose(2, 3),
    "an array": FLOATS.numpy(),
    "a reversed array": FLOATS.numpy()[::-1][::-1].copy()[:, :, ::-1][:, :, ::-1],
    "a big-endian array": FLOATS.numpy().astype(">f8"),
    "a long double": FLOATS.numpy().astype(np.longdouble),
    "a column-major array": np.asfortranarray(FLOATS.numpy()),
    "nested lists": FLOATS.tolist(),
    "a list of tensors": list(FLOATS),
    "a list of arrays": list(FLOATS.numpy()),
    "what converts to an array": Table(FLOATS),
    "a parameter": torch.nn.Parameter(FLOATS),
    "a tensor of torchvision": tv_tensors.Image(FLOATS),
    "a TensorDataset": TensorDataset(FLOATS),
    "pairs": TensorDataset(FLOATS, torch.arange(3)),
    "a Subset": Subset(TensorDataset(torch.cat([FLOATS, FLOATS])), [3, 1, 2]),
    "two Datasets": ConcatDataset([TensorDataset(FLOATS[:1]), TensorDataset(FLOATS[1:])]),
    "a Dataset of arrays": Items(list(FLOATS.numpy())),
}


@pytest.mark.parametrize("kind", SAME)
def test_as_images_takes(kind):
    found = as_images(SAME[kind])
    assert type(found) is torch.Tensor
    assert torch.equal(found, FLOATS)
    assert not found.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("wanted", [torch.float32, torch.float64, None])
def test_as_images_converts_floats_to_the_type_asked_for(dtype, wanted):
    x = FLOATS.to(dtype)
    found = as_images(x, dtype=wanted)
    assert found.dtype == (wanted or torch.get_default_dtype())
    assert torch.equal(found, x.to(found.dtype))


@pytest.mark.parametrize("x", [FLOATS, BYTES, FLOATS.numpy(), BYTES.numpy()])
def test_as_images_copies_nothing_that_it_need_not(x):
    found, given = as_images(x), torch.as_tensor(x)
    assert found.data_ptr() == given.data_ptr()


def test_as_images_does_not_read_a_memory_mapped_array_into_memory(tmp_path):
    np.save(tmp_path / "x.npy", BYTES.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    found = as_images(mapped)
    assert found.data_ptr() == mapped.ctypes.data
    assert torch.equal(found, BYTES)


def test_as_images_makes_bool_0_and_1():
    found = as_images(BYTES > 60)
    assert found.dtype == torch.get_default_dtype()
    assert torch.equal(found, (BYTES > 60).double())
    assert torch.equal(as_images(BYTES.numpy() > 60), found)


@given(numbers.arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))))
def test_as_images_keeps_bytes_unless_their_maximum_is_1(array):
    if array.max() == 1:
        with refused(ValueError, "uint8", "0 to 255", "x.bool()", "x.float()"):
            as_images(array)
    else:
        assert torch.equal(as_images(array), torch.from_numpy(array))


@pytest.mark.parametrize("shape", [(4, 1), (4, 3), (4, 2, 2), (4, 1, 2, 2), (2, 3, 2, 2, 2)])
def test_as_images_takes_any_event_shape(shape):
    assert as_images(torch.zeros(shape)).shape == shape


def test_as_images_of_a_tensor_from_inference_mode_can_be_trained_on():
    with torch.inference_mode():
        x = FLOATS + 0
    weight = torch.ones(5, requires_grad=True)
    (as_images(x)[:2] @ weight).sum().backward()
    assert weight.grad is not None


def test_values_outside_of_0_to_1_are_the_likelihoods_business():
    assert torch.equal(as_images(TABLE), TABLE)


# Datasets


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_as_images_stores_every_byte_over_255_as_that_byte(dtype):
    """And `unit_interval` makes the same number of it again, bit by bit."""
    levels = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    floats = levels.to(dtype) / 255
    found = as_images(Items(list(floats)))
    assert torch.equal(found, levels)
    assert torch.equal(unit_interval(found, dtype), floats)


@given(numbers.arrays(np.float32, (5, 1, 1, 2), elements=st.floats(-2, 2, width=32) | st.sampled_from([0, 0.2, 1])))
def test_as_images_keeps_each_value_of_a_dataset_of_floats_exactly(array):
    found = as_images(Items(list(torch.from_numpy(array))), dtype=torch.float32)
    if found.dtype == torch.uint8:
        found = unit_interval(found, torch.float32)
    assert torch.equal(found, torch.from_numpy(array))


def test_images_and_labels_of_to_tensor_images_are_bytes_and_their_labels(tmp_path):
    for k, name in enumerate(("ant", "bee", "bee")):
        (tmp_path / name).mkdir(exist_ok=True)
        Image.fromarray(BYTES[k].reshape(5, 8).numpy()).save(tmp_path / name / f"{k}.png")
    for transform in (transforms.ToTensor(), transforms.PILToTensor(), None):
        x, y = images_and_labels(datasets.ImageFolder(tmp_path, transform))
        assert x.dtype == torch.uint8
        assert torch.equal(x, BYTES.reshape(3, 1, 5, 8).expand(3, 3, 5, 8))
        assert y.tolist() == [0, 1, 1]


def test_as_images_keeps_normalised_images_as_floats():
    normalised = Items(list(FLOATS.float()), transforms.Normalize((0.5, 0.5), (0.5, 0.5)))
    assert torch.equal(as_images(normalised, dtype=torch.float32), (FLOATS.float() - 0.5) / 0.5)


@pytest.mark.parametrize(
    ("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("I;16", 1), ("P", 3), ("RGBA", 3), ("CMYK", 3)]
)
def test_as_images_makes_pil_images_bytes(mode, channels):
    image = Image.fromarray(np.full((4, 6), 255, np.uint8)).convert("RGB").convert("L" if mode == "I;16" else mode)
    image = Image.fromarray(np.full((4, 6), 65535, np.uint16)) if mode == "I;16" else image
    for x in ([image, image], Items([image, image])):
        found = as_images(x)
        assert (found.dtype, found.shape) == (torch.uint8, (2, channels, 4, 6))
        assert (found == 255).all()


def test_as_images_keeps_the_meaning_of_bools_bytes_and_floats_in_one_dataset():
    mixed = [
        torch.tensor([[True, False]]),
        torch.tensor([[51, 255]], dtype=torch.uint8),
        torch.tensor([[0.3, 0.2]]).float(),
    ]
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        found = as_images(Items([mixed[k] for k in order]), dtype=torch.float32)
        expected = torch.tensor([[[1.0, 0.0]], [[0.2, 1.0]], [[0.3, 0.2]]])[list(order)]
        assert torch.equal(found, expected.float())


def test_as_images_reads_a_dataset_once():
    dataset = Items(list(FLOATS))
    as_images(dataset)
    assert dataset.read == 3


LABELS = {
    "integers": ([3, 1, 2], torch.tensor([3, 1, 2])),
    "tensors": ([torch.tensor(3), torch.tensor(1), torch.tensor(2)], torch.tensor([3, 1, 2])),
    "numpy integers": (list(np.array([3, 1, 2], np.int32)), torch.tensor([3, 1, 2])),
    "conditions": (list(torch.eye(3)), torch.eye(3)),
    "captions": (["a", "b", "c"], None),
    "dicts": ([{}, {}, {}], None),
    "fractions": ([0.5, 1.0, 2.0], None),
    "nothing": ([None] * 3, None),
}


@pytest.mark.parametrize("kind", LABELS)
def test_images_and_labels_returns_the_labels_beside_the_images(kind):
    labels, expected = LABELS[kind]
    for pairs in (Items(list(zip(FLOATS, labels, strict=True))), list(zip(FLOATS, labels, strict=True))):
        x, y = images_and_labels(pairs)
        assert torch.equal(x, FLOATS)
        assert (y is None and expected is None) or torch.equal(y, expected)


def test_images_and_labels_returns_none_beside_what_has_no_labels():
    for x in (FLOATS, FLOATS.numpy(), TensorDataset(FLOATS)):
        assert images_and_labels(x).y is None


@pytest.mark.parametrize(("n", "shown"), [(299, False), (300, True)])
def test_as_images_draws_a_bar_for_a_long_dataset_unless_it_is_switched_off(n, shown, monkeypatch, capsys):
    for disabled, progress in (("1", True), ("0", False), ("0", True)):
        monkeypatch.setenv("TQDM_DISABLE", disabled)
        as_images(Items(list(torch.rand(n, 1, 1))), "x_train", progress=progress)
        assert ("reading x_train" in capsys.readouterr().err) == (shown and disabled == "0" and progress)


def test_as_images_refuses_a_dataset_larger_than_memory_after_its_first_image(monkeypatch):
    """Each image takes 24 bytes, or 96 once one of them is no multiple of 1/255."""
    images = [torch.zeros(4, 6)] * 9 + [torch.full((4, 6), 0.3).float()]
    for free, read in ((299, 1), (301, 10)):
        monkeypatch.setattr(runtime, "available_memory", lambda free=free: float(free))
        dataset = Items(images)
        with refused(ValueError, "x would take", "GB", "Subset(x, range(k))", "mmap_mode"):
            as_images(dataset)
        assert dataset.read == read
    monkeypatch.setattr(runtime, "available_memory", lambda: 1201.0)
    assert as_images(Items(images)).shape == (10, 4, 6)


def test_available_memory_is_positive_and_below_what_the_machine_has():
    from psutil import virtual_memory

    assert 0 < runtime.available_memory() <= virtual_memory().total


def test_available_memory_sees_a_containers_limit(monkeypatch, tmp_path):
    files = {
        "/proc/meminfo": "MemTotal: 900 kB\nMemFree: 5 kB\nMemAvailable: 800 kB\n",
        "/sys/fs/cgroup/memory.max": "500000\n",
        "/sys/fs/cgroup/memory.stat": "file 7\nanon 100000\n",
    }
    monkeypatch.setattr(runtime.Path, "read_text", lambda path: files[str(path)])
    assert runtime.available_memory() == 400_000
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert runtime.available_memory() == 800 * 1024


# What is refused

NAN, INF = FLOATS.clone(), FLOATS.clone()
NAN[1, 0, 2, 3] = NAN[2, 0, 0, 0] = float("nan")
INF[2, 1, 3, 4] = -float("inf")
BAD = {
    "masked": (np.ma.masked_array(FLOATS.numpy(), FLOATS.numpy() > 0.5), TypeError, ["masked", "fill"]),
    "a list of masked rows": ([np.ma.masked_array([1.0, 2], [0, 1])] * 2, TypeError, ["masked"]),
    "a row with a masked entry": ([[1.0, np.ma.masked], [1.0, 2.0]], TypeError, ["x"]),
    "complex": (FLOATS.to(torch.complex128), TypeError, ["real", "complex128"]),
    "a complex array": (FLOATS.numpy() + 1j, TypeError, ["real", "complex128"]),
    "strings": (np.array([["a", "b"]]), TypeError, ["real numbers", "<U1"]),
    "a string": ("mnist", TypeError, ["x", "str"]),
    "objects": (np.array([[None, 1.0]]), TypeError, ["real numbers", "object"]),
    "times": (np.array([["2020-01-01"]], "datetime64[D]"), TypeError, ["real numbers", "datetime64"]),
    "records": (np.zeros((2, 2), [("a", "f4")]), TypeError, ["real numbers"]),
    "rows of several lengths": ([[1.0], [1.0, 2.0]], TypeError, ["list", "cannot become one"]),
    "a table of texts": (Table([["a", 1]]), TypeError, ["real numbers"]),
    "0 and 1 as bytes": (BYTES % 2, ValueError, ["uint8", "0 to 255", "x.bool()", "x.float()"]),
    "0 and 1 as bytes, in a Dataset": (TensorDataset(BYTES % 2), ValueError, ["uint8", "x.bool()"]),
    "0 to 255 as int64": (BYTES.long(), TypeError, ["int64 from 0 to 119", "x.to(torch.uint8)", "x.float()"]),
    "0 to 255 as int64, in a Dataset": (TensorDataset(BYTES.long()), TypeError, ["x[0]", "to(torch.uint8)"]),
    "0 and 1 as int32": (BYTES.int() % 2, TypeError, ["int32 from 0 to 1", "x.bool()"]),
    "counts": (1000 * BYTES.long(), TypeError, ["int64", "x.float() for counts"]),
    "counts of 16 bits": (BYTES.numpy().astype(np.uint16), TypeError, ["int64", "x.to(torch.uint8)"]),
    "negative integers": (BYTES.short() - 5, TypeError, ["int16 from -5 to 114", "x.float()"]),
    "sparse": (FLOATS.to_sparse(), TypeError, ["dense", "x.to_dense()"]),
    "nested": (torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged), TypeError, ["dense"]),
    "nan": (NAN, ValueError, ["finite", "2 values", "(1, 0, 2, 3)"]),
    "infinity": (INF.numpy(), ValueError, ["finite", "1 value", "(2, 1, 3, 4)"]),
    "too large for float32": ((1e39 * FLOATS, torch.float32), ValueError, ["finite in torch.float32", "infinite"]),
    "nan in a Dataset": (TensorDataset(NAN), ValueError, ["finite", "(1, 0, 2, 3)"]),
    "no image": (FLOATS[:0], ValueError, ["at least one image", "none", "(0, 2, 4, 5)"]),
    "images of no pixel": (FLOATS[..., :0], ValueError, ["none", "(3, 2, 4, 0)"]),
    "an empty Dataset": (Items([]), ValueError, ["at least one image", "none"]),
    "one number each": (torch.rand(5), ValueError, ["(N, p)", "(5,)", "x[:, None]"]),
    "one number": (torch.tensor(1.0), ValueError, ["(N, p)", "()"]),
    "a Dataset of numbers": (TensorDataset(torch.rand(4)), ValueError, ["(N, p)", "(4,)"]),
    "a DataLoader": (DataLoader(TensorDataset(FLOATS)), TypeError, ["DataLoader", "loader.dataset"]),
    "a stream": (Stream(), TypeError, ["Stream", "list(dataset)", "map-style"]),
    "a loader of a stream": (DataLoader(Stream()), TypeError, ["DataLoader"]),
    "a generator": ((image for image in FLOATS), TypeError, ["generator", "map-style Dataset"]),
    "an iterator": (iter(FLOATS), TypeError, ["Dataset"]),
    "a set": ({1, 2}, TypeError, ["set"]),
    "a dict": ({"x": FLOATS}, TypeError, ["dict", "a tensor"]),
    "None": (None, TypeError, ["NoneType"]),
    "a number": (3.0, TypeError, ["float"]),
    "one PIL image": (Image.new("L", (3, 3)), TypeError, ["Image", "list of images"]),
    "x and y": ((FLOATS, torch.arange(3)), TypeError, ["tuple", "labels as y"]),
    "x and y in a list": ([FLOATS, torch.arange(3)], ValueError, ["one shape", "(3, 2, 4, 5)", "(3,)"]),
    "our own Dataset": (data.load("digits"), TypeError, ["Dataset", "x_train"]),
    "images of several sizes": (
        Items([torch.rand(1, 4, 4), torch.rand(1, 4, 4), torch.rand(1, 5, 4)]), ValueError,
        ["one shape", "(1, 4, 4)", "index 2", "(1, 5, 4)", "from_folder"],
    ),
    "PIL images of several sizes": (
        [Image.new("L", (3, 3)), Image.new("L", (4, 3))], ValueError, ["one shape", "from_folder"],
    ),
    "grey and colour": ([Image.new("L", (3, 3)), Image.new("RGB", (3, 3))], ValueError, ["one shape", "(3, 3, 3)"]),
    "dicts in a Dataset": (Items([{"image": FLOATS[0]}]), TypeError, ["x[0]", "dict", "its label"]),
    "triples": (TensorDataset(FLOATS, FLOATS, FLOATS), TypeError, ["x[0]", "tuple"]),
    "texts in a Dataset": (Items(["a"]), TypeError, ["x[0]", "str"]),
    "a Dataset that fails": (Items([1], lambda item: 1 / 0), ValueError, ["x[0]", "division by zero", "Subset"]),
    "a Dataset of masked arrays": (Items([np.ma.masked_array([1.0, 2], [0, 1])]), TypeError, ["x[0]", "masked"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_as_images_refuses_in_one_sentence(case):
    x, kind, words = BAD[case]
    dtype = None
    if isinstance(x, tuple) and isinstance(x[1], torch.dtype):
        x, dtype = x
    with refused(kind, "x", *words):
        as_images(x, dtype=dtype)


def test_as_images_uses_the_callers_name_of_the_argument():
    with refused(ValueError, "x_test is uint8", "x_test.bool()"):
        as_images(BYTES % 2, "x_test")


def test_images_as_dark_as_one_level_are_taken_as_floats():
    assert as_images((BYTES % 2).double() / 255).max() == 1 / 255


# Labels


TAKEN = {
    "a tensor": torch.tensor([2, 0, 1]),
    "bytes": torch.tensor([2, 0, 1], dtype=torch.uint8),
    "an array": np.array([2, 0, 1]),
    "an unsigned array": np.array([2, 0, 1], np.uint16),
    "a list": [2, 0, 1],
    "a tuple": (2, 0, 1),
    "a list of tensors": [torch.tensor(2), torch.tensor(0), torch.tensor(1)],
    "a list of numpy integers": [np.int64(2), np.uint8(0), np.int8(1)],
    "floats without a fraction": [2.0, 0.0, 1.0],
    "half precision": torch.tensor([2.0, 0.0, 1.0], dtype=torch.float16),
    "what converts": Table([2, 0, 1]),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_as_labels_takes_classes(kind):
    found = as_labels(TAKEN[kind], 3)
    assert found.dtype == torch.int64
    assert found.tolist() == [2, 0, 1]


def test_as_labels_takes_ranges_and_bools():
    assert as_labels(range(4), 4).tolist() == [0, 1, 2, 3]
    assert as_labels([True, False], 2).tolist() == [1, 0]
    assert as_labels(torch.tensor([True, False])).tolist() == [1, 0]


@pytest.mark.parametrize(
    "y", [torch.eye(3), torch.eye(3).long(), np.eye(3), np.eye(3, dtype=bool), torch.eye(3).tolist()]
)
@pytest.mark.parametrize("dtype", [torch.float32, None])
def test_as_labels_makes_conditions_floating_point(y, dtype):
    found = as_labels(y, 3, dtype=dtype)
    assert found.dtype == (dtype or torch.get_default_dtype())
    assert torch.equal(found, torch.eye(3, dtype=found.dtype))


def test_as_labels_keeps_the_values_of_real_conditions():
    assert torch.equal(as_labels(TABLE, 4), TABLE)
    assert torch.equal(as_labels(TABLE[:, :1].numpy()), TABLE[:, :1])


@given(st.lists(st.integers(-(2**53), 2**53), min_size=1, max_size=9))
def test_as_labels_loses_no_integer(values):
    assert as_labels(values, len(values)).tolist() == values
    assert as_labels([float(value) for value in values]).tolist() == values


BAD_LABELS = {
    "a fraction": ([1.0, 4.5, 2.0], ValueError, ["whole numbers", "4.5 at index 1", "(N, 1)"]),
    "half a class in a tensor": (torch.tensor([0.5, 1, 1]), ValueError, ["0.5 at index 0"]),
    "a number beyond integers": ([1e30, 0.0, 0.0], ValueError, ["whole numbers", "1e+30"]),
    "masked": (np.ma.masked_array([1, 2, 3], [0, 0, 1]), TypeError, ["masked"]),
    "an entry masked": ([1, np.ma.masked, 2], TypeError, ["masked"]),
    "too few": ([1, 2], ValueError, ["one entry", "2", "3"]),
    "too many": (range(4), ValueError, ["one entry", "4", "3"]),
    "none": ([], ValueError, ["one entry", "0 for 3"]),
    "one": (3, ValueError, ["one entry", "single value 3"]),
    "nan": ([1.0, float("nan"), 2.0], ValueError, ["finite", "1 value", "(1,)"]),
    "infinite conditions": (torch.tensor([[1.0], [2.0], [torch.inf]]), ValueError, ["finite", "(2, 0)"]),
    "names": (["cat", "dog", "cat"], TypeError, ["<U3", "np.unique(y, return_inverse=True)"]),
    "a name": ("cat", TypeError, ["real numbers", "str"]),
    "missing ones": ([1, None, 2], TypeError, ["object"]),
    "no labels": (None, TypeError, ["NoneType"]),
    "complex": (torch.tensor([1j, 2, 3]), TypeError, ["complex"]),
    "a dict": ({0: 1}, TypeError, ["dict"]),
    "a generator": ((k for k in range(3)), TypeError, ["generator"]),
    "rows of several lengths": ([[1], [1, 2], [1]], TypeError, ["list"]),
    "tensors of several lengths": ([torch.ones(1), torch.ones(2), torch.ones(1)], TypeError, ["one shape"]),
    "images as bytes": (BYTES, TypeError, ["uint8", "unit_interval(y)"]),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_as_labels_refuses_in_one_sentence(case):
    y, kind, words = BAD_LABELS[case]
    with refused(kind, "y", *words):
        as_labels(y, 3)
