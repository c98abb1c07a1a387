"""The parts of explorer.js compute what numpy does, in node and in the browser."""

import base64
import contextlib
import json
import shutil
import subprocess

import numpy as np
import pytest
import torch
from book_pages import ROOT

from vae_core.interactive.explorer import FUNCTIONS

CHECK = """async ([units, explorer, cases]) => {
    const load = (text) => import(URL.createObjectURL(new Blob([text], { type: "text/javascript" })));
    return (await load(units)).check(await load(explorer), cases); }"""


def text(values, kind: str) -> str:
    return base64.b64encode(np.asarray(values, kind).tobytes()).decode()


def case(rng, layers, n: int, scale: float = 1.0) -> dict:
    """An exported decoder, n codes, and the images that numpy makes of them in float64."""
    parts, header, x = [], [], (scale * rng.standard_normal((n, layers[0][0]))).astype("<f4")
    z = text(x, "<f4")
    for m, o, name in layers:
        W, b = (rng.standard_normal(shape).astype("<f2").astype(float) for shape in ((o, m), (o,)))
        x = FUNCTIONS[name](torch.tensor(x.astype(float) @ W.T + b)).numpy()
        parts += [W.ravel(), b]
        header.append({"inputs": m, "outputs": o, "activation": name})
    blob = text(np.concatenate(parts), "<f2")
    return {"header": {"shape": [1, 1, o], "layers": header}, "blob": blob, "z": z, "images": text(x, "<f4")}


@pytest.fixture(scope="module")
def cases() -> dict:
    rng = np.random.default_rng(0)
    stacks = [[(m, o, "none")] for m in (1, 2, 3, 4, 7, 8) for o in (1, 5)] + [[(3, 6, "relu"), (6, 5, "tanh")]]
    return {
        "halves": text(np.arange(65536, dtype="<u2").view("<f2"), "<f4"),
        "activations": [case(rng, [(4, 9, name)], 50, scale) for name in FUNCTIONS for scale in (1.0, 30.0)],
        "products": [case(rng, stack, n) for stack in stacks for n in (1, 2, 3, 4, 5, 225)],
    }


@pytest.fixture(scope="module", params=["node", "chromium"])
def units(request, cases, tmp_path_factory) -> dict[str, str]:
    """What tests/explorer_units.mjs says of each part, "" for nothing, in node and in the browser."""
    script, explorer = ROOT / "tests" / "explorer_units.mjs", ROOT / "vae_core" / "interactive" / "explorer.js"
    if request.param == "chromium":
        with contextlib.closing(request.getfixturevalue("browser").new_page()) as page:
            return page.evaluate(CHECK, [script.read_text(), explorer.read_text(), cases])
    if shutil.which("node") is None:
        pytest.skip("node is not installed; Chromium runs the same tests")
    folder = tmp_path_factory.mktemp("units")
    shutil.copy(explorer, folder / "explorer.mjs")
    (folder / "cases.json").write_text(json.dumps(cases))
    command = ["node", str(script), "explorer.mjs", "cases.json"]
    return json.loads(subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout)


@pytest.mark.parametrize("unit", ["halves", "activations", "products", "views", "lengths", "names", "repeats"])
def test_the_script_computes_as_numpy_does(units, unit):
    assert units[unit] == ""
