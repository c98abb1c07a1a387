"""A flipbook where Python runs: in a real JupyterLab the page moves Python's values, and Python the page's."""

import pytest
import test_lab
from test_explorer_lab import run
from test_lab import lab, run_the_cell  # noqa: F401 (a fixture)

CELL = """
from IPython.display import HTML, display
from vae_core.flipbook import Flipbook, svg
draw = lambda a, b: (svg(40, 10, f"<rect width='{a}' height='{b}'/>"), f"{a} wide, {b} high")
book = Flipbook({"a": range(1, 31), "b": [3, 5]}, draw, start=(10, 3))
display(HTML("<img alt='a picture that says that the cell has run' width=9 height=9>"))
book
"""


@pytest.fixture(autouse=True)
def our_cell(monkeypatch):
    monkeypatch.setattr(test_lab, "CELL", CELL)


def test_the_page_moves_pythons_values_and_python_the_pages(lab, browser):  # noqa: F811
    page = browser.new_page(viewport={"width": 1280, "height": 2400})
    page.goto(lab)
    run_the_cell(page)
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
    page.close()
