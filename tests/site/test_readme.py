"""The README's programs run as they stand, and its commands exist."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ledger import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?```python\n(.*?)```", README, re.M | re.S))


def run(heading: str, then: str, folder: Path, epochs: int) -> list:
    """What the program prints when it is run with that many of its 60 epochs, and then asked for more; as JSON."""
    program = folder / "program.py"
    code = BLOCKS[heading].replace("epochs=60", f"epochs={epochs}, progress=False").replace("print(", "figures = (")
    program.write_text(f"import json\nimport torch\ntorch.manual_seed(0)\n{code}\nprint(json.dumps({then}))\n")
    return json.loads(subprocess.run([sys.executable, program], capture_output=True, text=True, check=True).stdout)


def test_the_module_is_used_as_the_readme_says(tmp_path):
    assert run("Use the module", "[list(bound.shape), list(q.mean.shape)]", tmp_path, 3) == [[360], [360, 2]]


def test_a_model_of_ones_own_trains_and_is_judged(tmp_path):
    """With the mixture it must get below what the digits cost before training by a wide margin, as the VAE does."""
    then = "[history[0]['loss'], history[-1]['loss'], figures['loss'], model.log_variances.abs().max().item()]"
    first, last, test, moved = run("Your own model", then, tmp_path, 30)
    assert last < 0.75 * first
    assert test == pytest.approx(last, rel=0.1)
    assert moved > 0.1  # the prior has learnt, too


def test_the_model_of_ones_own_has_about_thirty_lines():
    code = BLOCKS["Your own model"]
    assert len([line for line in code.splitlines() if line.strip() and not line.startswith(("from", "import"))]) <= 30


def test_every_make_target_that_the_readme_names_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)|`make (\w+)`", README, re.M):
        assert re.search(rf"^{''.join(target)}:", makefile, re.M), target
