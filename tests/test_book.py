"""The book as a reader gets it: built with warnings as errors, opened in a real browser, the network blocked."""

import functools
import json
import re
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe

ROOT = Path(__file__).resolve().parent.parent
TOC = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
PAGES = [TOC["root"], *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"])]
CHAPTERS = [page for page in PAGES if page.startswith("notebooks/")]
NUMBERED = [page for page in CHAPTERS if page.split("/")[1][0].isdigit()]  # the others are explorers
MATHS = [*NUMBERED, "book/notation", "book/identities", "book/api"]


def widgets(page: str) -> list[str | None]:
    """The notebook's widgets, in order: the class of those that carry their own script, None for the others."""
    notebook, kind = json.loads((ROOT / f"{page}.ipynb").read_text()), "application/vnd.jupyter.widget-"
    states = notebook["metadata"].get("widgets", {}).get(f"{kind}state+json", {"state": {}})["state"]
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    views = [output["data"][f"{kind}view+json"] for output in outputs if f"{kind}view+json" in output.get("data", {})]
    names = [states.get(view["model_id"], {"state": {}})["state"].get("_anywidget_id") for view in views]
    return [name and name.rpartition(".")[2] for name in names]


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> Path:
    """The book, built from the committed outputs; the build fails on any warning."""
    out = tmp_path_factory.mktemp("book")
    command = [sys.executable, str(ROOT / "book" / "build.py"), "html", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip().endswith("index.html")
    return out / "_build" / "html"


def test_every_notebook_is_in_the_table_of_contents():
    assert [f"notebooks/{path.stem}" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))] == CHAPTERS


@pytest.mark.parametrize("page", PAGES)
def test_every_page_of_the_table_of_contents_is_in_the_book(html, page):
    text = (html / f"{page}.html").read_text()
    assert len(re.findall(r"<p>", text)) > 2 or page == "book/bibliography"


@pytest.mark.parametrize("page", PAGES)
def test_no_page_names_an_external_resource(html, page):
    text = (html / f"{page}.html").read_text()
    resources = re.findall(r"<(?:script|img|iframe|source)[^>]*\bsrc=[\"']([^\"']+)", text)
    resources += re.findall(r"<link[^>]*rel=[\"'](?:stylesheet|preload|icon)[^>]*href=[\"']([^\"']+)", text)
    assert not [url for url in resources if url.startswith(("http", "//"))]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_inside_the_book_leads_somewhere(html, page):
    source = html / f"{page}.html"
    for link in re.findall(r"<a[^>]*href=\"([^\"#:]+?\.html)(?:#[^\"]*)?\"", source.read_text()):
        assert (source.parent / link).resolve().exists(), link


def test_stray_files_of_the_repository_are_not_published(html):
    published = {
        str(path.relative_to(html).with_suffix("")) for path in html.rglob("*.html") if "_static" not in str(path)
    }
    assert published == {*PAGES, "index", "search", "genindex"}


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
        self.page.wait_for_function("!window.MathJax || (MathJax.startup && MathJax.startup.promise)")
        self.page.evaluate("window.MathJax ? MathJax.startup.promise.then(() => 1) : 1")

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


@pytest.mark.parametrize("scheme", ["http", "file"])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_opens_without_a_network_and_without_complaint(browser, html, served, page, scheme):
    base = served if scheme == "http" else html.as_uri()
    with Visit(browser, f"{base}/{page}.html") as visit:
        assert visit.blocked == []
        assert visit.complaints == []
        assert visit.page.locator("article h1").count() == 1
        if page in MATHS:
            assert visit.page.locator("mjx-container").count() > 10
            assert visit.page.locator("mjx-merror, .math.notranslate:not(:has(mjx-container))").count() == 0


@pytest.mark.parametrize("page", PAGES)
def test_nothing_sticks_out_of_a_phone(browser, served, page):
    with Visit(browser, f"{served}/{page}.html", viewport={"width": 390, "height": 844}) as visit:
        for width in (390, 320):
            visit.page.set_viewport_size({"width": width, "height": 844})
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_accessible(browser, served, page, scheme):
    """By axe-core's rules, in the browser: nothing that it calls serious or critical."""
    with Visit(browser, f"{served}/{page}.html", color_scheme=scheme) as visit:
        found = Axe().run(visit.page, options={"resultTypes": ["violations"]}).response["violations"]
        serious = [fault for fault in found if fault["impact"] in ("serious", "critical")]
        assert [(fault["id"], [node["html"][:200] for node in fault["nodes"][:5]]) for fault in serious] == []


@pytest.mark.parametrize("page", PAGES)
def test_headings_come_in_order(html, page):
    """One of the first level, and none is more than one level below the one before it."""
    article = re.search(r"<article.*?</article>", (html / f"{page}.html").read_text(), re.DOTALL)[0]
    levels = [int(level) for level in re.findall(r"<h([1-6])\b", article)]
    assert levels.count(1) == 1
    assert all(below <= above + 1 for above, below in pairwise(levels))


@pytest.mark.parametrize("page", CHAPTERS)
def test_pictures_are_loaded_and_described(browser, served, page):
    with Visit(browser, f"{served}/{page}.html") as visit:
        pictures = visit.page.locator("article img:not([aria-hidden=true])")  # a flipbook's words stand for its picture
        assert pictures.count() >= (5 if page in NUMBERED else 1)
        for k in range(pictures.count()):
            picture = pictures.nth(k)
            assert len(picture.get_attribute("alt") or "") > 40
            assert (
                picture.evaluate("async (i) => { i.loading = 'eager'; await i.decode(); return i.naturalWidth }") > 100
            )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_readers_colour_scheme(browser, served, scheme):
    with Visit(browser, f"{served}/{PAGES[0]}.html", color_scheme=scheme) as visit:
        colour = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(map(int, re.findall(r"\d+", colour)[:3])) / 3
        assert (brightness < 80) == (scheme == "dark")


@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("reparameterization", "notebooks/08_the_vae"),
        ("entropy floor", "book/notation"),
        ("posterior collapse", "notebooks/15_beta_and_collapse"),
    ],
)
def test_search_finds(browser, served, words, page):
    with Visit(browser, f"{served}/search.html?q={words.replace(' ', '+')}") as visit:
        results = visit.page.locator("#search-results li a")
        results.first.wait_for()
        assert visit.blocked == []
        assert any(page in link.get_attribute("href") for link in results.all())


@pytest.mark.parametrize("page", NUMBERED)
def test_a_solution_unfolds(browser, served, page):
    with Visit(browser, f"{served}/{page}.html") as visit:
        solution = visit.page.locator(".solution.dropdown").first
        inner = solution.locator("p").nth(1)
        assert not inner.is_visible()
        solution.locator("button, summary").first.click()
        inner.wait_for(state="visible")


@pytest.mark.parametrize("page", NUMBERED)
def test_sliders_that_need_python_say_so(browser, served, page):
    with Visit(browser, f"{served}/{page}.html") as visit:
        assert visit.page.locator(".needs-kernel").count() == len([name for name in widgets(page) if name is None])


FLIPBOOKS = [page for page in NUMBERED if "Flipbook" in widgets(page)]


@pytest.mark.parametrize("scheme", ["http", "file"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("page", FLIPBOOKS)
def test_sliders_of_a_chapter_move_without_a_kernel(browser, html, served, page, width, scheme):
    """By keys, each of them: the picture, its alternative text and the slider's value change, and come back."""
    base = served if scheme == "http" else html.as_uri()
    with Visit(browser, f"{base}/{page}.html", viewport={"width": width, "height": 844}) as visit:
        book = visit.page.locator(".flipbook").first
        book.wait_for()
        pictures = book.locator(".picture")
        for slider in book.locator("input[type=range]").all():
            seen = [
                (slider.get_attribute("aria-valuetext"), pictures.get_attribute("aria-label"), pictures.inner_html())
            ]
            for key in ("ArrowRight", "ArrowLeft"):
                slider.press(key)
                picture = pictures.get_attribute("aria-label"), pictures.inner_html()
                seen.append((slider.get_attribute("aria-valuetext"), *picture))
            assert seen[0] == seen[2]
            assert [before != after for before, after in zip(*seen[:2], strict=True)] == [True] * 3
            assert len(seen[1][1]) > 40
            assert book.locator("output").inner_text() == seen[2][1]
        assert visit.page.locator("img.without-script").first.is_hidden()
        assert (visit.blocked, visit.complaints) == ([], [])


def test_a_page_grows_little_by_its_flipbook():
    for page in FLIPBOOKS:
        states = json.loads((ROOT / f"{page}.ipynb").read_text())["metadata"]["widgets"].values()
        sizes = [len(json.dumps(entry)) for state in states for entry in state["state"].values()]
        assert max(sizes) < 600_000, page


def test_equations_and_figures_are_numbered_and_linked(browser, served):
    with Visit(browser, f"{served}/notebooks/08_the_vae.html") as visit:
        text = visit.page.locator("article").inner_text()
        assert "Fig. " in text
        links = visit.page.locator("article a.reference.internal[href*='equation-eq-vae']")
        assert links.count() >= 3
        assert re.fullmatch(r"\(\d+\)", links.first.inner_text())
