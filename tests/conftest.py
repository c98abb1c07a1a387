"""What every test shares: float64 and a fixed seed for mathematics, and the real data where it is."""

from collections.abc import Callable
from pathlib import Path

import pdf
import pytest
import shape_checks
import torch
from hypothesis import settings

shape_checks.install()  # before anything of vae_core is imported

from vae_core.data import default_root
from vae_core.experiments import setups
from vae_core.experiments.command_line import main
from vae_core.objectives import elbo_terms

settings.register_profile("without a clock", deadline=None)  # timings live in benchmarks: a busy machine is no failure
settings.load_profile("without a clock")


@pytest.fixture(autouse=True)
def float64_and_seed():
    """Mathematics in float64; tests that train ask for the `float32` fixture."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def float32(float64_and_seed):
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The real data sets, or a skip that says how to get them."""
    root = default_root()
    if not ((root / "mnist.npz").exists() or (root / "MNIST" / "raw").exists()):
        pytest.skip(f"no real data in {root}: run `python -m vae_core data mnist fashion-mnist cifar10`")
    return root


@pytest.fixture
def interrupted_at(tmp_path, monkeypatch, capsys) -> Callable[[int], Path]:
    """interrupted_at(k): the checkpoint of a 3-epoch run of digits-d2 that Ctrl-C met in step k (23 an epoch)."""

    def interrupt(step: int) -> Path:
        steps = iter(range(1, 1000))

        def objective(model, batch):
            if next(steps) == step:
                raise KeyboardInterrupt
            return elbo_terms(model, batch)

        with monkeypatch.context() as patched:
            patched.setattr(setups, "elbo_terms", objective)
            assert main(["run", "digits-d2", "--device", "cpu", "--out", str(tmp_path), "--epochs", "3"]) == 130
        assert "--resume" in capsys.readouterr().err
        return tmp_path / "digits-d2.checkpoint.pt"

    return interrupt


CHROMIUM = pdf.chromium()
FLAGS = ["--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, or a skip that says how to get one."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with pdf.browsing(CHROMIUM, FLAGS) as running:
        yield running
