"""Record chapter 07's comparison at equal work: `python book/variational_em.py` (part of `make reproduce`).

Which way of training gives the best decoder of scikit-learn's digits, black and white, for the same work? The network
is chapter 07's: 64-64-(4, 4), 4-64-64, tanh. All ways start from the same decoder.

`amortized`   an encoder and the decoder, updated together: a decoder pass and an encoder pass per digit and epoch;
`vEM-e`       a table of local posteriors, alternating: e steps for the table, one for the decoder, so e + 1 passes;
`joint`       the same table, updated together with the decoder from the same draw, as an encoder is: one pass.

Work is counted twice. In decoder passes alone, 60 epochs of amortized training cost 60 per digit; with the encoder's
passes, weighed by its multiplications, they cost 123.5 decoder passes. A table gets either budget, and amortized
training twice the work beside it, to show how far from its end it was. The decoders are judged alike, whatever q they
were trained with: a search for q for each test digit, and log p(x) by importance sampling from the q found, a fifth
wider (`evaluation.inference_gap`). Controls repeat the larger budget, and `joint` with the smaller one, with other
learning rates of the decoder and of the table.

It writes `measured-variational-em.json`, a row as each training ends, and log p(x) of each test digit (nats) in
`measured-variational-em.safetensors`; a row that is there already is not made again.
"""

import argparse
import contextlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rows import Rows, summary, values
from torch import Tensor, nn

from vae_core.data import check_writable, load
from vae_core.evaluation import inference_gap
from vae_core.experiments.records import default_out
from vae_core.inference import LocalPosteriors, WithPosterior, fit_posterior, variational_em
from vae_core.models import VAE, mlp_vae
from vae_core.objectives import elbo, elbo_terms
from vae_core.runtime import random_state, seed_everything
from vae_core.training import fit

NAME, SEEDS = "variational-em", (0, 1, 2)
D, HIDDEN, BATCH, RATE, LOCAL_RATE, EPOCHS = 4, (64,), 128, 6e-3, 0.05, 60
PASSES = {"amortized": 1, "joint": 1, "vEM-1": 2, "vEM-5": 6, "vEM-19": 20}  # of the decoder, per digit and epoch
BUDGETS = {"decoder": 60, "both": 124}  # decoder passes per digit
CONTROLLED, RATES, LOCAL_RATES = ("amortized", "joint", "vEM-1"), (1.2e-2, 2.4e-2), (0.02, 0.2)
SEARCH = dict(steps=150, learning_rate=0.1)
SIZES = dict(images=200, num_samples=500)  # the first test digits; draws for each log p(x)


class Run(NamedTuple):
    """One training: which way, for which budget, at which rates."""

    way: str
    budget: str
    seed: int
    learning_rate: float = RATE
    local_rate: float = LOCAL_RATE

    @property
    def epochs(self) -> int:
        """How many epochs the budget allows."""
        own = {"both": EPOCHS, "double": 2 * EPOCHS}  # of amortized training
        return own[self.budget] if self.way == "amortized" else round(BUDGETS[self.budget] / PASSES[self.way])


def runs() -> Iterator[Run]:
    """All trainings, those of the main comparison first."""
    for seed in SEEDS:
        yield from (Run("amortized", budget, seed) for budget in ("both", "double"))
        yield from (Run(way, budget, seed) for way in PASSES if way != "amortized" for budget in BUDGETS)
    for seed in SEEDS:
        yield from (Run(way, "both", seed, learning_rate=rate) for way in CONTROLLED for rate in RATES)
        yield from (Run("joint", "decoder", seed, learning_rate=rate) for rate in RATES)
        yield from (Run(way, "both", seed, local_rate=rate) for way in CONTROLLED[1:] for rate in LOCAL_RATES)


def network(seed: int) -> VAE:
    """Chapter 07's model with its first weights drawn from `seed`."""
    seed_everything(seed)
    return mlp_vae((1, 8, 8), D, hidden=HIDDEN, activation="tanh", batch_norm=False)


def joint(model: nn.Module, x: Tensor, q: LocalPosteriors, *, rate: float, local_rate: float, **settings: int) -> float:
    """Train decoder and table together, both stepping along the gradient of the same draw; return the last loss.

    Settings are `epochs`, `batch_size` and `seed`. One decoder pass per datum and epoch.
    """
    local = torch.optim.SparseAdam(q.parameters(), lr=local_rate)
    decoder = torch.optim.Adam(model.decoder.parameters(), lr=rate)
    with random_state(settings["seed"]):
        for _ in range(settings["epochs"]):
            total = 0.0
            for index in torch.randperm(len(x)).split(settings["batch_size"]):
                local.zero_grad()
                decoder.zero_grad()
                loss = -elbo(WithPosterior(model, q(index)), x[index]).mean()
                loss.backward()
                local.step()
                decoder.step()
                total += loss.item() * len(index)
    return total / len(x)


def train(run: Run, model: VAE, x: Tensor) -> float:
    """Train the model in place; return the loss of its last epoch under its own q, nats per digit."""
    table = LocalPosteriors(len(x), D)
    settings: dict[str, Any] = dict(epochs=run.epochs, batch_size=BATCH, seed=run.seed)
    if run.way == "joint":
        return joint(model, x, table, rate=run.learning_rate, local_rate=run.local_rate, **settings)
    settings |= dict(learning_rate=run.learning_rate)
    if run.way == "amortized":
        return fit(model, x, elbo_terms, progress=False, **settings)[-1]["loss"]
    e_steps = PASSES[run.way] - 1
    return variational_em(model, x, table, e_steps=e_steps, local_learning_rate=run.local_rate, **settings)[-1]["loss"]


@contextlib.contextmanager
def counting(model: VAE) -> Iterator[Counter[str]]:
    """Count, within, the codes that pass the decoder and the data that pass the encoder."""
    passed: Counter[str] = Counter(decoder=0, encoder=0)

    def count(name: str, _module: nn.Module, _inputs: tuple[Tensor], output: Tensor) -> None:
        passed[name] += len(output)

    parts = {"decoder": model.decoder, "encoder": model.encoder}
    hooks = [part.register_forward_hook(partial(count, name)) for name, part in parts.items()]
    try:
        yield passed
    finally:
        for hook in hooks:
            hook.remove()


def work(model: VAE, passes: dict[str, float]) -> float:
    """The passes in units of one decoder pass, an encoder pass weighed by its multiplications."""
    decoder = sum(p.numel() for p in model.decoder.parameters() if p.dim() == 2)
    encoder = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "decoder" not in name)
    return passes["decoder"] + passes["encoder"] * encoder / decoder


def judge(model: nn.Module, x: Tensor, num_samples: int) -> dict[str, Tensor]:
    """log p(x) of each datum with a q that is searched for it, and what `inference_gap` says beside it: (N,), nats."""
    q = fit_posterior(model, x, **SEARCH)
    return inference_gap(WithPosterior(model, q), x, steps=0, num_samples=num_samples)


def measure(run: Run, x: Tensor, x_test: Tensor, num_samples: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The row of one training, and log p(x) of each test digit."""
    model = network(run.seed)
    with counting(model) as passed:
        loss = train(run, model, x)
    passes = {name: count / len(x) for name, count in passed.items()}
    judged = judge(model, x_test, num_samples)
    row = run._asdict() | {"epochs": run.epochs, "passes": passes, "work": work(model, passes), "train_bound": -loss}
    for figure in ("log_likelihood", "approximation_gap"):
        row[figure] = judged[figure].mean().item()
    row["error_of_an_image"] = judged["error"].median().item()
    main = (run.learning_rate, run.local_rate) == (RATE, LOCAL_RATE)
    name = f"{run.way}-{run.budget}-s{run.seed}"
    return row, {name: judged["log_likelihood"].float()} if main else {}


def report(rows: list[dict[str, Any]]) -> None:
    """Print mean ± standard deviation over seeds of log p(x), and of how far each way lies below amortized training."""
    of_amortized = [row for row in rows if Run("amortized", "both", row["seed"])._asdict().items() <= row.items()]
    best = {row["seed"]: row["log_likelihood"] for row in of_amortized}
    names = ("way", "budget", "learning_rate", "local_rate")
    for kind in dict.fromkeys(tuple(row[name] for name in names) for row in rows):
        key = dict(zip(names, kind, strict=True))
        found = values(rows, "log_likelihood", **key)
        below = [best[seed] - value for seed, value in zip(values(rows, "seed", **key), found, strict=True)]
        print(*kind, summary(found), "below amortized:", summary(below))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=default_out())
    options = parser.parse_args()
    check_writable(options.out, "the folder for records", "choose another with --out")
    torch.set_default_dtype(torch.float64)
    digits = load("digits")
    x, x_test = ((part >= 0.5).double() for part in (digits.x_train, digits.x_test[: SIZES["images"]]))
    config = {"latent_dim": D, "hidden": HIDDEN, "batch_size": BATCH, "passes": PASSES, "budgets": BUDGETS}
    rows = Rows(NAME, options.out, config | {"search": SEARCH, "sizes": SIZES}, digits.sha256)
    for run in runs():
        if run._asdict() not in rows:
            rows.add(*measure(run, x, x_test, SIZES["num_samples"]))
    report(rows.rows)


if __name__ == "__main__":
    main()
