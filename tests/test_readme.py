"""The README's programs run as they stand, and its commands exist."""

import re

import pytest
import torch
from test_ledger import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?```python\n(.*?)```", README, re.M | re.S))


def run(heading: str) -> dict:
    names: dict = {}
    code = BLOCKS[heading].replace("epochs=60", "epochs=30").replace("print(", "figures = (")
    torch.manual_seed(0)
    exec(compile(code, heading, "exec"), names)
    return names


@pytest.mark.usefixtures("float32")
def test_the_module_is_used_as_the_readme_says():
    names = run("Use the module")
    assert names["bound"].shape == (360,)
    assert names["q"].mean.shape == (360, 2)


@pytest.mark.usefixtures("float32")
def test_a_model_of_ones_own_trains_and_is_judged():
    """With the mixture it must get below what the digits cost before training by a wide margin, as the VAE does."""
    names = run("Your own model")
    history, figures = names["history"], names["figures"]
    assert history[-1]["loss"] < 0.75 * history[0]["loss"]
    assert figures["loss"] == pytest.approx(history[-1]["loss"], rel=0.1)
    assert not torch.equal(names["model"].log_variances, torch.zeros(10, 2))  # the prior has learnt, too


def test_the_model_of_ones_own_has_about_thirty_lines():
    code = BLOCKS["Your own model"]
    assert len([line for line in code.splitlines() if line.strip() and not line.startswith(("from", "import"))]) <= 30


def test_every_make_target_that_the_readme_names_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)|`make (\w+)`", README, re.M):
        assert re.search(rf"^{''.join(target)}:", makefile, re.M), target
