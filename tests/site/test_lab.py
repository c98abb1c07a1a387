"""Where Python runs: in a real JupyterLab, with a real kernel, in a real browser, the page moves Python's values."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

from conftest import CHROMIUM

SLIDERS = """
from vae_core.models import mlp_vae
from vae_core.interactive.sliders import latent_sliders
latent_sliders(mlp_vae((1, 8, 8), 2, hidden=(16,)))
"""
EXPLORER = """
from IPython.display import HTML, display
from vae_core.interactive.explorer import LatentExplorer
from vae_core.models import mlp_vae
explorer = LatentExplorer(mlp_vae((1, 8, 8), 2, hidden=(16,)))
display(HTML("<img alt='a picture that says that the cell has run' width=9 height=9>"))
explorer
"""
FLIPBOOK = """
from IPython.display import HTML, display
from vae_core.interactive.flipbook import Flipbook, svg
draw = lambda a, b: (svg(40, 10, f"<rect width='{a}' height='{b}'/>"), f"{a} wide, {b} high")
book = Flipbook({"a": range(1, 31), "b": [3, 5]}, draw, start=(10, 3))
display(HTML("<img alt='a picture that says that the cell has run' width=9 height=9>"))
book
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A JupyterLab on 127.0.0.1, with a home of its own and no settings of ours: its address, and its folder."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    folder = tmp_path_factory.mktemp("lab")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", "--port=0", "--allow-root"]
    command += ["--IdentityProvider.token=only-here", f"--notebook-dir={folder}"]
    environment = os.environ | {"HOME": str(folder), "JUPYTER_PLATFORM_DIRS": "0"}
    log = folder / "lab.log"
    with log.open("w") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out) as running:
        try:
            yield address(running, log), folder
        finally:
            running.terminate()


def address(running: subprocess.Popen, log: Path) -> str:
    """Wait until the server says where it listens."""
    for _ in range(120):
        if found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text()):
            return found[0]
        try:
            running.wait(0.5)
        except subprocess.TimeoutExpired:
            continue
        break
    raise AssertionError(log.read_text())


@pytest.fixture
def page_of(server, browser, request) -> Callable:
    """page_of(source): the page of a new notebook with this one cell, once the cell has run."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}

    def opened(source: str):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)], metadata={"kernelspec": kernel})
        name = f"{request.node.name}.ipynb"
        nbformat.write(notebook, server[1] / name)
        # tall, or JupyterLab takes away what is out of sight
        page = browser.new_page(viewport={"width": 1280, "height": 2400})
        request.addfinalizer(page.close)
        page.goto(f"{server[0]}/lab/tree/{name}?token=only-here&reset")
        run_the_cell(page)
        return page

    return opened


def run_the_cell(page) -> None:
    """Run the first cell and wait for its picture. Keys pressed before the kernel is connected are lost, silently."""
    prompt = page.locator(".jp-CodeCell .jp-InputArea-prompt").first
    for _ in range(60):
        page.locator(".jp-CodeCell .cm-content").first.click(timeout=120_000)
        page.keyboard.press("Shift+Enter")
        page.wait_for_timeout(2_000)
        if prompt.inner_text() != "[ ]:":  # [*]: while it runs, then [1]:
            break
    page.locator(".jp-OutputArea img").first.wait_for(timeout=120_000)


def run(page, source: str) -> str:
    """Write a cell at the end, run it, and return what it prints: one line that ends in a full stop."""
    page.locator(".jp-CodeCell .cm-content").last.click()
    page.keyboard.insert_text(source)
    page.keyboard.press("Shift+Enter")
    cell = page.locator(".jp-CodeCell", has_text=source)
    printed = cell.locator(".jp-OutputArea-output", has_text=re.compile(r"\.\s*$"))
    printed.wait_for()
    return printed.inner_text().strip()


def test_a_slider_moves_the_picture(page_of):
    page = page_of(SLIDERS)
    before = page.locator(".jp-OutputArea img").first.get_attribute("src")
    page.locator(".widget-slider .noUi-handle").first.focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("before => document.querySelector('.jp-OutputArea img').src !== before", arg=before)
    page.locator(".jp-OutputArea img[alt*='z = (1.00, 0.00)']").wait_for()
    assert page.locator(".jupyter-widgets-error-widget").count() == 0


def test_an_explorers_page_moves_pythons_code_and_python_the_pages(page_of):
    page = page_of(EXPLORER)
    plane, words = page.locator(".latent-explorer .plane"), page.locator(".latent-explorer output")
    words.get_by_text("z1 = 0.00, z2 = 0.00").wait_for()
    box = plane.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 2 / 3, box["y"] + box["height"] / 3, steps=10)
    page.mouse.up()
    words.get_by_text(re.compile(r"z1 = (0\.9\d|1\.0\d), z2 = (0\.9\d|1\.0\d)")).wait_for()
    told = re.findall(r"-?\d\.\d\d", words.inner_text())
    assert run(page, "print(*(f'{value:.2f}' for value in explorer.z), end=' .')") == f"{told[0]} {told[1]} ."
    assert run(page, "explorer.z = [1.5, -0.5]; print('.')") == "."
    words.get_by_text("z1 = 1.50, z2 = -0.50").wait_for()
    plane.focus()
    for key in ("ArrowRight", "ArrowUp", "Shift+ArrowUp", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
    words.get_by_text("z1 = 1.35, z2 = -0.3").wait_for()
    assert run(page, "print([round(value, 3) for value in explorer.z], '.')") == "[1.35, -0.335] ."
    assert page.locator(".jupyter-widgets-error-widget").count() == 0


def test_a_flipbooks_page_moves_pythons_values_and_python_the_pages(page_of):
    page = page_of(FLIPBOOK)
    book = page.locator(".flipbook")
    book.get_by_text("10 wide, 3 high").wait_for()
    assert book.locator(".picture").evaluate("(e) => getComputedStyle(e).backgroundColor") == "rgb(255, 255, 255)"
    sliders = book.locator("input[type=range]")
    for _ in range(5):
        sliders.nth(0).press("ArrowRight")
    sliders.nth(1).press("End")
    book.get_by_text("15 wide, 5 high").wait_for()
    assert run(page, "print(*book.values, end=' .')") == "15 5 ."
    assert run(page, "book.values = (30, 3); print('.')") == "."
    book.get_by_text("30 wide, 3 high").wait_for()
    assert sliders.nth(0).input_value() == "29"
    assert page.locator(".jupyter-widgets-error-widget").count() == 0
