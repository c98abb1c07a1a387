"""The latent explorer where Python runs: in a real JupyterLab the page moves Python's code, and Python the page's."""

import re

import pytest
import test_lab
from test_lab import lab, run_the_cell

CELL = """
from IPython.display import HTML, display
from vae_core.explorer import LatentExplorer
from vae_core.models import mlp_vae
explorer = LatentExplorer(mlp_vae((1, 8, 8), 2, hidden=(16,)))
display(HTML("<img alt='a picture that says that the cell has run' width=9 height=9>"))
explorer
"""


@pytest.fixture(autouse=True)
def our_cell(monkeypatch):
    monkeypatch.setattr(test_lab, "CELL", CELL)


def run(page, source: str) -> str:
    """Write a cell at the end, run it, and return what it prints: one line that ends in a full stop."""
    page.locator(".jp-CodeCell .cm-content").last.click()
    page.keyboard.insert_text(source)
    page.keyboard.press("Shift+Enter")
    cell = page.locator(".jp-CodeCell", has_text=source)
    printed = cell.locator(".jp-OutputArea-output", has_text=re.compile(r"\.\s*$"))
    printed.wait_for()
    return printed.inner_text().strip()


def test_the_page_moves_pythons_code_and_python_the_pages(lab, browser):
    page = browser.new_page(viewport={"width": 1280, "height": 2400})  # all of it, or JupyterLab takes away what is out
    page.goto(lab)
    run_the_cell(page)
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
    page.close()
