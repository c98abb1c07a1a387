"""Where a computation runs: device, ranks, seeds, and how stored images become a batch there."""

import atexit
import contextlib
import os
import platform
import random
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from math import inf
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import distributed
from tqdm.auto import tqdm


@dataclass(frozen=True)
class Runtime:
    """The device of this process and its place among the processes of one run.

    `rank` and `world_size` are read from the environment that `torchrun` sets (0 and 1 without it).
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @classmethod
    def detect(cls, device: str | torch.device = "auto") -> "Runtime":
        """Return the runtime on `device`: `"auto"` (CUDA where torch finds it, else the CPU), or one of `devices()`.

        `"cuda"` is the CUDA device of this process: number `LOCAL_RANK` under `torchrun`, else number 0.

        Raises:
            TypeError: unless `device` is a string or a torch.device.
            ValueError: for a device that torch does not find here, or for a numbered CUDA device (`"cuda:1"`) with
                several processes.
        """
        world_size, present = int(os.environ.get("WORLD_SIZE", 1)), devices()
        if not isinstance(device, str | torch.device):
            raise TypeError(f"device must be a string or a torch.device, got {device!r}")
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        wanted = {"auto": automatic, "cpu:0": "cpu", "mps:0": "mps"}.get(str(device), str(device))
        if world_size > 1 and wanted.startswith("cuda:"):
            raise ValueError(f"device {wanted!r} is one device for {world_size} processes; use 'cuda', one for each")
        if wanted == "cuda":
            wanted = f"cuda:{int(os.environ.get('LOCAL_RANK', 0))}"
        if wanted not in present:
            here = ", ".join(present)
            raise ValueError(f"device must be 'auto' or what torch finds here ({here}), got {str(device)!r}")
        return cls(torch.device(wanted), int(os.environ.get("RANK", 0)), world_size)

    def alone(self) -> "Runtime":
        """Return the same device as a run of one process."""
        return Runtime(self.device)

    def join(self) -> None:
        """Join the other processes of the run, if there are any: with gloo on CPUs, nccl on CUDA.

        The group stays open until this process ends. A second group would fail: after the first is closed, torch counts
        groups from the start again, and the processes would meet under names that are in use.
        """
        if self.world_size > 1 and not distributed.is_initialized():
            distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
            atexit.register(distributed.destroy_process_group)

    def describe(self) -> str:
        """Return the device in words, as records print it: `"cpu: AMD EPYC, 2 threads"`."""
        if self.device.type == "cuda":
            words = f"cuda: {torch.cuda.get_device_name(self.device)}"
        else:
            words = f"{self.device.type}: {_processor()}, {torch.get_num_threads()} threads"
        return words + (f", {self.world_size} processes" if self.world_size > 1 else "")


def devices() -> list[str]:
    """Return the names of the devices that torch finds on this machine, such as `["cpu", "cuda:0", "cuda:1"]`."""
    mps = ["mps"] if torch.backends.mps.is_available() else []
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ["cpu", *(f"cuda:{index}" for index in range(count)), *mps]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators (every device) with one integer in [0, 2³²)."""
    check_seed(seed)
    seed = int(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002, for libraries that still draw from it
    torch.manual_seed(seed)


def as_int(value: Any) -> Any:
    """Return a NumPy integer as a Python int; return any other value, including bool, unchanged."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


def positive_int(name: str, value: Any, least: int = 1) -> int:
    """Return `value` as a Python int. Raise ValueError unless it is an integer, Python's or NumPy's, from `least` on.

    Args:
        name: the argument's name, for the message.
        value: what the caller passed; True and False are not integers here.
        least: the smallest value allowed.
    """
    number = as_int(value)
    if type(number) is not int or number < least:
        kinds = {0: "a non-negative integer", 1: "a positive integer"}
        raise ValueError(f"{name} must be {kinds.get(least, f'an integer of at least {least}')}, got {value!r}")
    return number


def check_seed(seed: int) -> None:
    """Raise ValueError unless `seed` is an integer in [0, 2³²), Python's or NumPy's."""
    if type(as_int(seed)) is not int or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer from 0 to 2**32 - 1, got {seed!r}")


def project_folder() -> Path:
    """Return the folder below which data (`data`) and records (`book/results`) are kept.

    Inside a checkout of the book it is the root of that checkout, so that notebooks, tests and programs use one place;
    anywhere else it is the working folder. A checkout is a folder that holds `book/_toc.yml` and `vae_core`.
    """
    here = Path.cwd()
    checkouts = (folder for folder in (here, *here.parents) if _is_checkout(folder))
    return next(checkouts, here)


def _is_checkout(folder: Path) -> bool:
    return (folder / "book" / "_toc.yml").is_file() and (folder / "vae_core" / "__init__.py").is_file()


def available_memory() -> float:
    """Return the bytes of memory that this process may still use; infinite where the system does not say (not Linux).

    This is what the kernel calls available, or less if a container has a limit.
    """
    info, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if not info.exists():
        return inf
    free = int(info.read_text().split("MemAvailable:")[1].split()[0]) * 1024
    try:
        limit, used = int((group / "memory.max").read_text()), (group / "memory.stat").read_text().split()
        return min(free, limit - int(used[used.index("anon") + 1]))
    except (OSError, ValueError):  # no container, or one without a limit
        return free


def check_memory(name: str, needed: float, way_out: str) -> None:
    """Raise ValueError if `needed` bytes are more than four fifths of the available memory.

    Args:
        name: what would take the memory, for the message.
        needed: bytes.
        way_out: what to do instead, for the message.

    Raises:
        ValueError: if they are more.
    """
    if needed > 0.8 * (free := available_memory()):
        sizes = f"{needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are available"
        raise ValueError(f"{name} would take {sizes}; {way_out}")


def progress_bar(items: Iterable | None = None, *, disable: bool = False, **options: Any) -> tqdm:
    """Return tqdm's bar over `items`; none is drawn if `disable` is True or the environment sets TQDM_DISABLE."""
    switched_off = os.environ.get("TQDM_DISABLE", "0") not in ("", "0")  # tqdm's notebook bar ignores it
    return tqdm(items, disable=disable or switched_off, **options)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. It replaces `path` if the block succeeds, and is deleted otherwise."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        part = Path(folder) / path.name
        yield part
        os.replace(part, path)


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write tensors as safetensors, under a temporary name first, in a file that all users may read."""
    with replacing(path) as part:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, part)
        part.chmod(0o644)  # safetensors makes files that only their owner can read


def device_of(model: object, default: torch.device = torch.device("cpu")) -> torch.device:  # noqa: B008, a constant
    """Return the device of a model's parameters; `default` for a model without any, or for another object."""
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else ()
    return next((parameter.device for parameter in parameters), default)


def dtype_of(model: object) -> torch.dtype:
    """Return the floating-point type of a model's parameters; torch's default type for a model without any."""
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else ()
    return next((p.dtype for p in parameters if p.is_floating_point()), torch.get_default_dtype())


@contextlib.contextmanager
def evaluation_mode(model: object) -> Iterator[None]:
    """Put a model in evaluation mode inside the block; each module's own mode is restored afterwards.

    An object that is not an `nn.Module` is left alone. Copies of weights that `torch.autocast` caches may be out of
    date, so they are dropped before and after.
    """
    modes = {module: module.training for module in model.modules()} if isinstance(model, torch.nn.Module) else {}
    for module in modes:
        module.training = False
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.clear_autocast_cache()
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def random_state(seed: int) -> Iterator[None]:
    """Seed torch's random numbers inside the block; the caller's random state is restored afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def gradients_recorded() -> Iterator[None]:
    """Record gradients inside the block, even within torch.no_grad or torch.inference_mode."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


_input_is_checked: ContextVar[bool] = ContextVar("input_is_checked", default=False)


@contextlib.contextmanager
def checked_input() -> Iterator[None]:
    """Switch off the objectives' checks of input values inside the block, for a caller that has checked all data once.

    In a loop over batches this saves a pass over each batch, and on a GPU a synchronisation.
    """
    token = _input_is_checked.set(True)
    try:
        yield
    finally:
        _input_is_checked.reset(token)


def can_read_values(x: torch.Tensor) -> bool:
    """Return whether an objective should check the values of x.

    It should not inside `checked_input`; it cannot while torch compiles, captures a CUDA graph or vectorises (vmap).
    """
    if torch.compiler.is_compiling() or _input_is_checked.get():
        return False
    capturing = x.is_cuda and torch.cuda.is_current_stream_capturing()
    return not (capturing or torch._C._functorch.is_functorch_wrapped_tensor(x))


def unit_interval(x: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return images as the models take them: floating point in [0, 1].

    Args:
        x: images of any shape; uint8 ones (0 to 255) are divided by 255, floating-point ones pass through unchanged.
        dtype: of the result for uint8 images; torch's default if None.

    Raises:
        TypeError: for any other type.
    """
    if x.dtype == torch.uint8:
        return x.to(dtype or torch.get_default_dtype()).div_(255)
    if x.is_floating_point():
        return x
    raise TypeError(f"images must be uint8 or floating point, got {x.dtype}")
