"""A page with widgets and nothing else, as the built book has them: no kernel, and a still picture beside each."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import ipywidgets
from book_pages import ROOT
from ipywidgets.embed import dependency_state, embed_data

KIND = "application/vnd.jupyter.widget-"
SPY = "export default { render({ model }) { window.manager = model.widget_manager; } }"  # lets a test ask for a model
STILL = "<img class='without-script' alt='a picture that stands in for the widget' width=9 height=9>"
GET = "([id, name]) => manager.get_model(id).then((model) => model.get(name))"
SET = "([id, name, value]) => manager.get_model(id).then((model) => model.set(name, value))"
FRAMES = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


def write_page(
    folder: Path,
    widgets: Sequence[ipywidgets.Widget],
    *,
    edit: Callable[[dict], None] = lambda states: None,
    head: str = "",
) -> Path:
    """Write FOLDER/page.html and hydrate.js beside it; `edit` may change the widgets' states before."""
    state = dependency_state(widgets, drop_defaults=False)
    states = embed_data(widgets, drop_defaults=False, state=state)["manager_state"]
    states["state"]["spy"] = {"state": {"_esm": SPY}}
    edit(states["state"])
    ids = ("spy", *(widget.model_id for widget in widgets))
    spy, *views = (f"<script type='{KIND}view+json'>{json.dumps({'model_id': k})}</script>" for k in ids)
    cells = "".join(f"<div class='cell_output'>{view}<figure>{STILL}</figure>{STILL}</div>" for view in views)
    text = json.dumps(states).replace("</", "<\\/")
    path = folder / "page.html"
    path.write_text(
        f"<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'>{head}"
        f"<meta name=color-scheme content='light dark'><body style='margin: 0'><script type='{KIND}state+json'>"
        f"{text}</script>{spy}{cells}<script src='hydrate.js'></script>"
    )
    shutil.copy(ROOT / "book" / "assets" / "hydrate.js", folder)
    return path
