"""hydrate.js: what it makes of the widgets' states that stand in a page."""

import json
import shutil

import pytest
from book_pages import ROOT, Visit

KIND = "application/vnd.jupyter.widget-"
ESM = """export default { render({ model, el }) {
    const weights = new Uint8Array(model.get('weights').buffer);
    const draw = () => { el.textContent = `z ${model.get('z')} sum ${weights.reduce((a, b) => a + b)}`; };
    model.on('change:z', draw); draw(); el.onclick = () => model.set('z', 7); } }"""


@pytest.fixture
def visit(browser, tmp_path):
    """Open a page with one view of this state."""
    visits = []

    def opened(state: dict) -> Visit:
        entry = {"state": state, "buffers": [{"path": ["weights"], "data": "AQID", "encoding": "base64"}]}
        states, view = json.dumps({"state": {"a": entry}}), json.dumps({"model_id": "a"})
        shutil.copy(ROOT / "book" / "assets" / "hydrate.js", tmp_path)
        page = tmp_path / "page.html"
        page.write_text(
            f"<h1>x</h1><script type='{KIND}state+json'>{states}</script><main id='m'>"
            f"<script type='{KIND}view+json'>{view}</script></main><script src='hydrate.js'></script>"
        )
        visits.append(Visit(browser, page.as_uri()))
        return visits[-1]

    yield opened
    for each in visits:
        each.context.close()


def test_a_widget_with_its_own_script_runs_without_a_kernel(visit):
    """It is started from the state in the page, with its binary buffers, its events and its style."""
    opened = visit({"_esm": ESM, "_css": "#m div { letter-spacing: 3px; }", "z": 1})
    element = opened.page.locator("#m div")
    element.wait_for()
    opened.page.wait_for_function("document.querySelector('#m div').textContent !== ''")
    assert element.inner_text() == "z 1 sum 6"
    element.click()
    assert element.inner_text() == "z 7 sum 6"
    assert element.evaluate("(e) => getComputedStyle(e).letterSpacing") == "3px"
    assert opened.complaints == []


def test_a_widget_without_a_script_says_that_it_needs_python(visit):
    opened = visit({"z": 1})
    assert opened.page.locator("#m .needs-kernel").inner_text()
    assert opened.complaints == []


def test_a_script_that_fails_says_so_in_its_place(visit):
    opened = visit({"_esm": "export default { render() { throw new Error('no light'); } }"})
    opened.page.locator("#m .needs-kernel", has_text="no light").wait_for()
    assert len(opened.complaints) == 1
