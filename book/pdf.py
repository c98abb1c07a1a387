"""Make one PDF of the built book, through a Chromium on this machine: `make pdf`.

    python book/pdf.py [--html DIR] [--out FILE]     defaults: book/_build/html, book/_build/book.pdf

Every page of the table of contents is printed as a reader would print it, with its solutions folded out, and all are
joined, with a bookmark for each page.
"""

import argparse
import io
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HERE = Path(__file__).resolve().parent
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
MARGINS = dict(top="18mm", bottom="18mm", left="16mm", right="16mm")
READY = "!window.MathJax || (MathJax.startup && MathJax.startup.promise.then(() => true))"
UNFOLD = "document.querySelectorAll('.toggle-hidden').forEach(e => e.classList.remove('toggle-hidden'))"


def chromium() -> str | None:
    """The Chromium, or Chrome, of this machine, the one without windows first; None where there is none."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def browsing(program: str, flags: Sequence[str] = ()) -> Iterator["Browser"]:
    """This Chromium, running without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        flags = ["--no-sandbox", "--disable-gpu", *flags]
        running = driver.chromium.launch(executable_path=program, headless=True, args=flags)
        yield running
        running.close()


def pages() -> list[str]:
    """The pages of the book in reading order, as the table of contents names them."""
    toc = yaml.safe_load((HERE / "_toc.yml").read_text())
    return [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]


def join(html: Path, names: list[str], program: str, out: Path) -> int:
    """Print these pages, below `html`, and join them at `out`; the number of sheets."""
    from pypdf import PdfWriter

    book = PdfWriter()
    with browsing(program) as browser:
        for name in names:
            page = browser.new_page(color_scheme="light")
            page.set_default_timeout(180_000)  # some pages are long
            page.goto((html / f"{name}.html").resolve().as_uri(), wait_until="load")
            page.wait_for_function(READY)
            page.evaluate(UNFOLD)
            title = page.locator("article h1").first.inner_text().rstrip("#¶ ")
            sheets = page.pdf(format="A4", margin=MARGINS, print_background=True)
            book.append(io.BytesIO(sheets), outline_item=title)
            page.close()
    part = out.with_suffix(".part")
    book.write(part)
    part.replace(out)
    return len(book.pages)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--html", type=Path, default=HERE / "_build" / "html")
    parser.add_argument("--out", type=Path, default=HERE / "_build" / "book.pdf")
    options = parser.parse_args()
    program = chromium()
    if program is None:
        print("error: there is no Chromium on this machine (Debian: apt-get install chromium)", file=sys.stderr)
        return 1
    if not (options.html / "index.html").exists():
        print(f"error: no book stands in {options.html}; `make book` builds it", file=sys.stderr)
        return 1
    count = join(options.html, pages(), program, options.out)
    print(f"{count} sheets. Open {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
