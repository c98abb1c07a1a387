"""Training on a CUDA device, and what can be said of it on a machine without one."""

import contextlib
from functools import partial

import pytest
import torch

from vae_core._training.steps import GraphedStep, Step
from vae_core.models import mlp_autoencoder, mlp_vae
from vae_core.objectives import beta_elbo_terms, elbo_terms, linear_warm_up, reconstruction_log_likelihood
from vae_core.runtime import Runtime
from vae_core.training import EarlyStopping, fit

gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


class PretendedCuda:
    """What a `GraphedStep` asks of CUDA: taken down with the device that is current then, and not done."""

    def __init__(self) -> None:
        self.current: torch.device | None = None
        self.asked: list[tuple] = []

    def Stream(self, *where):
        self.asked.append(("new stream", self.current, *where))
        return self

    def CUDAGraph(self):
        return self

    def current_stream(self):
        return self

    def wait_stream(self, other) -> None:
        pass

    def replay(self) -> None:
        self.asked.append(("replay", self.current))

    @contextlib.contextmanager
    def device(self, which):
        before, self.current = self.current, which
        yield
        self.current = before

    @contextlib.contextmanager
    def stream(self, which):
        self.asked.append(("warm up", self.current, which))
        yield

    @contextlib.contextmanager
    def graph(self, graph, stream):
        self.asked.append(("capture", self.current, stream))
        yield


@pytest.fixture
def cuda(monkeypatch) -> PretendedCuda:
    pretended = PretendedCuda()
    for name in ("Stream", "CUDAGraph", "current_stream", "device", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(pretended, name))
    return pretended


def graphed(device: str = "cpu") -> GraphedStep:
    x, model = torch.rand(640, 1, 8, 8, device=device), mlp_vae((1, 8, 8), 2, hidden=(32,)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-12, fused=True, capturable=device != "cpu")
    return GraphedStep(model, x, elbo_terms, optimizer, "mean", Runtime(x.device))


def test_graphed_step_is_captured_on_the_device_of_its_images_whichever_is_the_current_one(cuda, float32):
    step, here = graphed(), torch.device("cpu")
    for _ in range(6):
        step(torch.arange(64), 1.0)
    assert cuda.asked[0] == ("new stream", None, here)
    assert cuda.asked[1:4] == [("warm up", here, step.side)] * GraphedStep.WARM_UP
    assert cuda.asked[4:] == [("capture", here, step.side)] + [("replay", here)] * 3
    assert cuda.current is None


@pytest.mark.parametrize("full", range(1, 6))
def test_graphed_step_replays_full_batches_and_never_the_smaller_last_one(full, cuda, float32):
    step, sizes = graphed(), []

    def gradient_step(index: torch.Tensor, loss_weight: float) -> torch.Tensor:
        sizes.append(len(index))
        return Step.gradient_step(step, index, loss_weight)

    step.gradient_step = gradient_step
    for _ in range(8):
        for size in [64] * full + [10]:
            step(torch.arange(size), 1.0)
    assert len(step.index) == 64
    assert sizes.count(10) == 8
    assert sizes.count(64) == GraphedStep.WARM_UP + 1  # which is the capture
    assert cuda.asked.count(("replay", torch.device("cpu"))) == 8 * full - GraphedStep.WARM_UP


@gpu
@needs_cuda
def test_graphed_step_captures_the_larger_of_two_batches(float32):
    step = graphed("cuda")
    for _ in range(8):
        sums = [step(torch.arange(size), 1.0) for size in (64, 10)]
    assert (step.graph is not None, len(step.index)) == (True, 64)
    assert torch.stack(sums).isfinite().all()


@gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second CUDA device on this machine")
def test_fit_a_model_may_be_on_another_device_than_the_current_one(float32):
    model = mlp_vae((1, 8, 8), 2, hidden=(32,)).to("cuda:1")
    history = fit(model, torch.rand(640, 1, 8, 8), elbo_terms, epochs=3, batch_size=64, progress=False)
    assert history[2]["loss"] < history[0]["loss"]
    assert torch.cuda.current_device() == 0


@gpu
@needs_cuda
def test_fit_a_run_begun_on_a_cpu_goes_on_on_cuda_and_back(float32, tmp_path):
    x, losses = torch.rand(1000, 1, 8, 8), []
    for kinds in (("cpu", "cpu", "cpu"), ("cpu", "cuda", "cpu")):
        torch.manual_seed(0)
        model, path = mlp_autoencoder((1, 8, 8), 2, hidden=(32,)), tmp_path / "-".join(kinds)
        for epochs, kind in enumerate(kinds, 1):
            settings = dict(epochs=epochs, batch_size=64, checkpoint=path, resume=True, progress=False)
            history = fit(model, x, reconstruction_log_likelihood, device=kind, **settings)
        losses.append(history[-1]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)  # on CUDA the order of the images is the CPU's


def trained_on(device: str, objective=reconstruction_log_likelihood, **settings) -> tuple[list[float], list[float]]:
    """Losses, and a few weights, of an auto-encoder, whose objective has no noise: devices differ by rounding alone."""
    torch.manual_seed(0)
    x, model = torch.rand(1000, 1, 8, 8), mlp_autoencoder((1, 8, 8), 2, hidden=(32,))
    settings = dict(epochs=3, batch_size=64, device=device, progress=False) | settings
    history = fit(model, x, objective, **settings)
    return [row["loss"] for row in history], model.mean.weight.flatten().tolist()


OPTIMIZERS = {
    "AdamW": torch.optim.AdamW,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "RMSprop": torch.optim.RMSprop,
    "foreach": partial(torch.optim.Adam, foreach=True),
    "eager Adam": partial(torch.optim.Adam, capturable=False),
}


@gpu
@needs_cuda
@pytest.mark.parametrize("schedule", ["constant", "one-cycle"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fit_with_each_optimizer_learns_on_cuda_what_it_learns_on_a_cpu(name, schedule, float32):
    settings = dict(optimizer=OPTIMIZERS[name], schedule=schedule, weight_decay=1e-3)
    (losses, weights), (expected, wanted) = (trained_on(device, **settings) for device in ("cuda", "cpu"))
    assert losses == pytest.approx(expected, rel=1e-3)
    assert weights == pytest.approx(wanted, abs=5e-3)


@gpu
@needs_cuda
def test_fit_leaves_data_that_do_not_fit_on_the_cpu(float32, monkeypatch):
    expected = trained_on("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (1000, 1000))
    losses, weights = trained_on("cuda")
    assert losses == pytest.approx(expected[0], rel=1e-3)
    assert weights == pytest.approx(expected[1], abs=5e-3)


@gpu
@needs_cuda
def test_fit_works_with_the_weights_of_each_step_within_autocast_on_cuda(float32):
    with torch.autocast("cuda", torch.bfloat16):
        losses, _ = trained_on("cuda", epochs=20, learning_rate=1e-2)
    assert losses == pytest.approx(trained_on("cpu", epochs=20, learning_rate=1e-2)[0], rel=2e-2)


@gpu
@needs_cuda
def test_early_stopping_leaves_the_best_state_on_cuda(float32, tmp_path):
    stop = EarlyStopping(torch.rand(200, 1, 8, 8), patience=2)
    losses, weights = trained_on("cuda", after_epoch=stop, epochs=30, checkpoint=tmp_path / "c.pt")
    assert len(losses) == min(stop.best_epoch + 2, 30)
    again = trained_on("cuda", after_epoch=stop, epochs=30, checkpoint=tmp_path / "c.pt", resume=True)
    assert again == (losses, weights)


@gpu
@needs_cuda
@pytest.mark.parametrize("batch_norm", [True, False])
def test_graphed_step_learns_what_eager_step_learns(batch_norm, float32):
    """An auto-encoder's objective has no noise, so capturing must change nothing but rounding."""
    x, weights = torch.rand(1000, 1, 8, 8), []
    for device in ("cuda", "cpu"):
        torch.manual_seed(0)
        model = mlp_autoencoder((1, 8, 8), 2, hidden=(32,), batch_norm=batch_norm)
        runtime = Runtime(torch.device(device))
        history = fit(model, x, reconstruction_log_likelihood, epochs=3, batch_size=64, device=runtime, progress=False)
        weights.append((history[-1]["loss"], model.cpu().mean.weight.detach()))
    assert weights[0][0] == pytest.approx(weights[1][0], rel=1e-3)
    assert torch.allclose(weights[0][1], weights[1][1], atol=5e-3)


@gpu
@needs_cuda
def test_graphed_step_draws_new_noise_at_every_replay(float32):
    step, index = graphed("cuda"), torch.arange(64)
    sums = torch.stack([step(index, 1.0) for _ in range(20)])
    assert step.graph is not None
    assert sums[:, 0].unique().numel() > 15


@gpu
@needs_cuda
def test_fit_the_annealed_weight_reaches_a_captured_step(float32):
    model = mlp_vae((1, 8, 8), 2, hidden=(32,))
    settings = dict(epochs=4, batch_size=64, device="cuda", progress=False)
    history = fit(model, torch.rand(640, 1, 8, 8), beta_elbo_terms, anneal=linear_warm_up(1.0), **settings)
    weights = [(row["loss"] - row["reconstruction"]) / row["kl"] for row in history]
    assert weights == pytest.approx([0.125, 0.375, 0.625, 0.875], abs=0.1)
