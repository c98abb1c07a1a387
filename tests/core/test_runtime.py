"""Devices by name, integers by value, and the folder that data and records are kept below."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vae_core import data
from vae_core.models import mlp_vae
from vae_core.runtime import Runtime, as_int, check_seed, devices, dtype_of, positive_int, project_folder, unit_interval

# Devices


@pytest.fixture
def machine(monkeypatch):
    """machine(cuda=2, mps=False, **environment): what torch would find on it."""

    def pretend(cuda=0, mps=False, **environment):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return pretend


@pytest.mark.parametrize(
    ("cuda", "mps", "device", "expected"),
    [
        (0, False, "auto", "cpu"),
        (0, True, "auto", "cpu"),
        (2, False, "auto", "cuda:0"),
        (2, False, "cpu", "cpu"),
        (2, False, "cpu:0", "cpu"),
        (2, False, "cuda", "cuda:0"),
        (2, False, "cuda:1", "cuda:1"),
        (2, False, torch.device("cuda"), "cuda:0"),
        (2, False, torch.device("cuda", 1), "cuda:1"),
        (0, False, torch.device("cpu"), "cpu"),
        (0, True, "mps", "mps"),
        (0, True, torch.device("mps", 0), "mps"),
        (1, False, np.str_("cuda"), "cuda:0"),
    ],
)
def test_detect_takes_strings_and_devices(cuda, mps, device, expected, machine):
    machine(cuda, mps)
    assert Runtime.detect(device) == Runtime(torch.device(expected))


@pytest.mark.parametrize(
    "device", ["cuda", "cuda:0", "cuda:7", "mps", "tpu", "CPU", "", "meta", "xpu", "cuda:", "cpu:1"]
)
def test_detect_refuses_what_is_not_here_and_lists_what_is(device, machine):
    machine()
    with pytest.raises(
        ValueError, match=re.escape(f"device must be 'auto' or what torch finds here (cpu), got '{device}'")
    ):
        Runtime.detect(device)


@pytest.mark.parametrize("device", ["cuda:2", torch.device("cuda", 2), "mps"])
def test_detect_names_every_device_that_is_here(device, machine):
    machine(cuda=2)
    with pytest.raises(ValueError, match=rf"\(cpu, cuda:0, cuda:1\), got '{device}'"):
        Runtime.detect(device)


@pytest.mark.parametrize("device", [0, 1.5, None, True, b"cpu", ["cpu"], np.int64(0)])
def test_detect_refuses_other_types(device, machine):
    machine()
    with pytest.raises(TypeError, match=r"device must be a string or a torch\.device, got "):
        Runtime.detect(device)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_detect_gives_each_of_several_processes_its_own_device(device, machine):
    machine(cuda=2, RANK="3", LOCAL_RANK="1", WORLD_SIZE="4")
    assert Runtime.detect(device) == Runtime(torch.device("cuda", 1), 3, 4)


def test_detect_lets_no_processes_share_a_numbered_device(machine):
    machine(cuda=2, RANK="1", LOCAL_RANK="1", WORLD_SIZE="2")
    with pytest.raises(ValueError, match="device 'cuda:0' is one device for 2 processes; use 'cuda'"):
        Runtime.detect("cuda:0")


def test_detect_refuses_more_processes_than_devices(machine):
    machine(cuda=1, RANK="1", LOCAL_RANK="1", WORLD_SIZE="2")
    with pytest.raises(ValueError, match=r"\(cpu, cuda:0\), got 'auto'"):
        Runtime.detect()


def test_devices_of_this_machine_can_be_used():
    for name in devices():
        assert torch.zeros(1, device=name).item() == 0


def test_describe_begins_with_the_kind_of_device(machine):
    machine(mps=True)
    assert Runtime.detect("mps").describe().startswith("mps: ")
    assert Runtime.detect("cpu").describe().startswith("cpu: ")


# Integers

INTEGERS = [3, np.int64(3), np.int8(3), np.uint64(3), np.uint8(3)]
NO_INTEGERS = [True, np.True_, 3.0, np.float64(3), "3", None, 3j, [3], np.array(3), torch.tensor(3), float("nan")]


@pytest.mark.parametrize("value", INTEGERS)
def test_positive_int_as_int_and_check_seed_take_integers_of_python_and_numpy(value):
    for found in (positive_int("n", value), as_int(value)):
        assert type(found) is int
        assert found == 3
    check_seed(value)


@pytest.mark.parametrize("value", NO_INTEGERS)
def test_positive_int_and_check_seed_refuse_what_is_no_integer_and_as_int_leaves_it_alone(value):
    with pytest.raises(ValueError, match=f"^n must be a positive integer, got {re.escape(repr(value))}$"):
        positive_int("n", value)
    assert as_int(value) is value
    with pytest.raises(ValueError, match="seed must be an integer"):
        check_seed(value)


@pytest.mark.parametrize(
    ("least", "words"), [(0, "a non-negative integer"), (1, "a positive integer"), (2, "an integer of at least 2")]
)
def test_positive_int_takes_the_smallest_value_and_refuses_the_one_below(least, words):
    assert positive_int("epochs", np.int64(least), least) == least
    with pytest.raises(ValueError, match=f"epochs must be {words}, got {least - 1}"):
        positive_int("epochs", least - 1, least)


# Folders


@pytest.fixture
def checkout(tmp_path) -> Path:
    folder = tmp_path.resolve() / "checkout"
    for path in ("book/_toc.yml", "vae_core/__init__.py", "notebooks/a.ipynb", "elsewhere/book/b.md"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    return folder


@pytest.mark.parametrize("below", [".", "notebooks", "book", "vae_core", "elsewhere/book"])
def test_project_folder_is_the_root_of_a_checkout_from_anywhere_in_it(below, checkout, monkeypatch):
    monkeypatch.chdir(checkout / below)
    monkeypatch.delenv("VAE_CORE_DATA", raising=False)
    assert project_folder() == checkout
    assert data.default_root() == checkout / "data"


@pytest.mark.parametrize("lacks", ["book/_toc.yml", "vae_core/__init__.py"])
def test_project_folder_is_the_working_folder_elsewhere(lacks, checkout, monkeypatch):
    """Another book, another package: no checkout of this one, whatever stands above."""
    (checkout / lacks).unlink()
    monkeypatch.chdir(checkout / "notebooks")
    monkeypatch.delenv("VAE_CORE_DATA", raising=False)
    assert project_folder() == checkout / "notebooks"
    assert data.default_root() == checkout / "notebooks" / "data"


def test_project_folder_is_the_inner_one_of_two_checkouts_in_each_other(checkout, monkeypatch):
    inner = checkout / "worktrees" / "inner"
    for path in ("book/_toc.yml", "vae_core/__init__.py"):
        (inner / path).parent.mkdir(parents=True)
        (inner / path).touch()
    monkeypatch.chdir(inner / "book")
    assert project_folder() == inner


def test_default_root_prefers_the_environment_to_the_folder(checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("VAE_CORE_DATA", "somewhere/else")
    assert data.default_root() == Path("somewhere/else")
    monkeypatch.setenv("VAE_CORE_DATA", "")
    assert data.default_root() == checkout / "data"


# Types


def test_dtype_of_is_that_of_the_parameters():
    assert dtype_of(mlp_vae((1, 4, 4), 2, hidden=(3,)).double()) == torch.float64
    assert dtype_of(mlp_vae((1, 4, 4), 2, hidden=(3,)).half()) == torch.float16
    for model in (nn.ReLU(), object(), None):
        assert dtype_of(model) == torch.get_default_dtype()


def test_dtype_of_passes_over_integers():
    model = nn.Module()
    model.count = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)
    model.weight = nn.Parameter(torch.zeros(2, dtype=torch.float32))
    assert dtype_of(model) == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_unit_interval_divides_in_the_type_asked_for(dtype):
    x = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(unit_interval(x, dtype), torch.arange(256, dtype=dtype) / 255)
