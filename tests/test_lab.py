"""The sliders as a reader moves them: in a real JupyterLab, with a real kernel, in a real browser."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from conftest import CHROMIUM

CELL = """
from vae_core.models import mlp_vae
from vae_core.widgets import latent_sliders
latent_sliders(mlp_vae((1, 8, 8), 2, hidden=(16,)))
"""


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab on 127.0.0.1 that shows a notebook of one cell; its own home, no settings of ours."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)], metadata={"kernelspec": kernel})
    nbformat.write(notebook, tmp_path / "sliders.ipynb")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", "--port=0", "--allow-root"]
    command += ["--IdentityProvider.token=only-here", f"--notebook-dir={tmp_path}"]
    environment = os.environ | {"HOME": str(tmp_path), "JUPYTER_PLATFORM_DIRS": "0"}
    log = tmp_path / "lab.log"
    with log.open("w") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out) as server:
        try:
            yield address(server, log) + "/lab/tree/sliders.ipynb?token=only-here"
        finally:
            server.terminate()


def address(server: subprocess.Popen, log: Path) -> str:
    """Wait until the server says where it listens."""
    for _ in range(120):
        if found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text()):
            return found[0]
        try:
            server.wait(0.5)
        except subprocess.TimeoutExpired:
            continue
        break
    raise AssertionError(log.read_text())


def run_the_cell(page):
    """Run the first cell and wait for its picture. Keys pressed before the kernel is connected are lost, silently."""
    prompt = page.locator(".jp-CodeCell .jp-InputArea-prompt").first
    for _ in range(60):
        page.locator(".jp-CodeCell .cm-content").first.click(timeout=120_000)
        page.keyboard.press("Shift+Enter")
        page.wait_for_timeout(2_000)
        if prompt.inner_text() != "[ ]:":  # [*]: while it runs, then [1]:
            break
    picture = page.locator(".jp-OutputArea img").first
    picture.wait_for(timeout=120_000)
    return picture


def test_a_slider_moves_the_picture_in_jupyterlab(lab, browser):
    page = browser.new_page()
    page.goto(lab)
    picture = run_the_cell(page)
    before = picture.get_attribute("src")
    page.locator(".widget-slider .noUi-handle").first.focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("before => document.querySelector('.jp-OutputArea img').src !== before", arg=before)
    page.locator(".jp-OutputArea img[alt*='z = (1.00, 0.00)']").wait_for()
    assert page.locator(".jupyter-widgets-error-widget").count() == 0
    page.close()
