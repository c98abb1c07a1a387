"""The book as a reader gets it: built with warnings as errors, opened in a real browser, the network blocked."""

import json
import re
from itertools import pairwise

import pytest
from book_pages import CHAPTERS, FLIPBOOKS, PAGES, ROOT, Visit, html, served


def test_every_notebook_is_in_the_table_of_contents():
    assert [f"notebooks/{path.stem}" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))] == CHAPTERS


@pytest.mark.parametrize("page", PAGES)
def test_every_page_of_the_table_of_contents_is_in_the_book(html, page):
    assert "<article" in (html / f"{page}.html").read_text()


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


@pytest.mark.parametrize("page", PAGES)
def test_headings_come_in_order(html, page):
    """One of the first level, and none is more than one level below the one before it."""
    article = re.search(r"<article.*?</article>", (html / f"{page}.html").read_text(), re.DOTALL)[0]
    levels = [int(level) for level in re.findall(r"<h([1-6])\b", article)]
    assert levels.count(1) == 1
    assert all(below <= above + 1 for above, below in pairwise(levels))


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
        ("2π", "book/glossary"),
    ],
)
def test_search_finds(browser, served, words, page):
    with Visit(browser, f"{served}/search.html?q={words.replace(' ', '+')}") as visit:
        # results come one after the other
        visit.page.locator(f"#search-results li a[href*='{page}']").first.wait_for()
        assert visit.blocked == []


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
