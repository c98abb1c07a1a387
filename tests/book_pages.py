"""The built book and a browser's visit to one of its pages, for the tests that read or open them."""

import functools
import json
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pdf
import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
PAGES = pdf.pages()
CHAPTERS = [page for page in PAGES if page.startswith("notebooks/")]
NUMBERED = [page for page in CHAPTERS if page.split("/")[1][0].isdigit()]  # the others are explorers


def widgets(page: str) -> list[str | None]:
    """The notebook's widgets, in order: the class of those that carry their own script, None for the others."""
    notebook, kind = json.loads((ROOT / f"{page}.ipynb").read_text()), "application/vnd.jupyter.widget-"
    states = notebook["metadata"].get("widgets", {}).get(f"{kind}state+json", {"state": {}})["state"]
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    views = [output["data"][f"{kind}view+json"] for output in outputs if f"{kind}view+json" in output.get("data", {})]
    names = [states.get(view["model_id"], {"state": {}})["state"].get("_anywidget_id") for view in views]
    return [name and name.rpartition(".")[2] for name in names]


FLIPBOOKS = [page for page in NUMBERED if "Flipbook" in widgets(page)]


@pytest.fixture(scope="session")
def html(tmp_path_factory, worker_id) -> Path:
    """The book, built from the committed outputs, once for all workers; the build fails on any warning."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared if worker_id == "master" else shared.parent
    out, report = shared / "book", shared / "book.json"
    with FileLock(f"{report}.lock"):
        if not report.exists():
            command = [sys.executable, str(ROOT / "book" / "build.py"), "html", "--out", str(out)]
            done = subprocess.run(command, capture_output=True, text=True)
            report.write_text(json.dumps([done.returncode, done.stdout, done.stderr]))
    code, said, complained = json.loads(report.read_text())
    assert code == 0, said + complained
    assert said.strip().endswith("index.html")
    return out / "_build" / "html"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def served(html):
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(html)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class Visit:
    """One page in a fresh browser context: what it asked for, what it complained about."""

    def __init__(self, browser, url: str, **context):
        self.blocked, self.complaints = [], []
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.page.route("**/*", self._route)
        self.page.on("console", lambda message: self._complain(message.type, message.text))
        self.page.on("pageerror", lambda error: self._complain("error", str(error)))
        self.page.goto(url, wait_until="load")
        self.page.wait_for_function(pdf.READY)

    def _route(self, route):
        if route.request.url.startswith(("http://127.0.0.1", "file:", "data:", "blob:")):
            route.continue_()
        else:
            self.blocked.append(route.request.url)
            route.abort()

    def _complain(self, kind, text):
        if kind == "error" and "webfonts/fa-" not in text and "ERR_FAILED" not in text:  # file:// refuses icon fonts
            self.complaints.append(text)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()
