"""The latent explorer in a reader's browser (part of `make bench`): how soon it stands, how fast it decodes and draws.

Builds the book from the committed outputs and opens the two MNIST explorers in headless Chromium, and beside them a
page written for the purpose with a dense decoder of CIFAR's size (d = 256, 3072 outputs, random weights). Every round
opens each page anew, in turn, so that all see the same machine; figures are medians over rounds (of a round's median
and p95, for single decodes). It prints one table and writes `book/results/bench-explorer.json`.

What is measured: from the start of hydrate.js until the explorer stands (set-up) and until its first picture is on the
screen; one decode; pictures per second while a code is dragged, one move a frame; a 15 × 15 grid, decoded and painted;
and the bytes of the page, formulas, prose and all.
"""

import argparse
import functools
import gzip
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "book"))  # pytest puts it there by itself

import pdf
import torch
from book_pages import ROOT, Quiet
from widget_pages import write_page

from conftest import CHROMIUM, FLAGS
from vae_core.experiments.records import commit, default_out, versions, write_record
from vae_core.interactive.explorer import LatentExplorer
from vae_core.models import mlp_vae
from vae_core.runtime import Runtime

PAGES = {  # what: where its page lies below the folder that is served
    "MNIST, d = 2": "book/notebooks/explorer_1_mnist_plane.html",
    "MNIST, d = 20": "book/notebooks/explorer_2_mnist_20.html",
    "CIFAR, d = 256": "cifar/page.html",
}
FIGURES = {  # name: (what it is, unit, target on MNIST, whether less is better)
    "set_up": ("set-up", "ms", None, True),
    "first_picture": ("first picture on the screen", "ms", 200, True),
    "decode_median": ("one decode, median", "ms", None, True),
    "decode_p95": ("one decode, p95", "ms", 2, True),
    "per_second": ("pictures per second while dragging", "", 60, False),
    "grid": ("grid of 15 × 15, decoded and painted", "ms", 120, True),
    "kilobytes": ("page", "kB", 1600, True),
    "gzipped": ("page, gzipped", "kB", None, True),
}

# Before the page's own scripts: note when hydrate.js starts, when the explorer stands, and when a frame has shown it.
WATCH = """{
const all = Document.prototype.querySelectorAll, times = (window.times = {}), now = () => performance.now();
Document.prototype.querySelectorAll = function (what) {
  if (what.includes("widget-state+json")) times.start ??= now();
  return all.call(this, what);
};
new MutationObserver((changes, watcher) => {
  if (!document.querySelector(".latent-explorer")) return;
  watcher.disconnect();
  times.stands = now();
  requestAnimationFrame(() => setTimeout(() => (times.shown = now())));
}).observe(document, { childList: true, subtree: true });
}"""

DECODES = """async (count) => {
  const kind = "application/vnd.jupyter.widget-state+json";
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const entries = Object.values(JSON.parse(document.querySelector(`script[type="${kind}"]`).textContent).state);
  const { state, buffers } = entries.find(({ buffers }) => buffers?.some(({ path }) => path[0] === "blob"));
  const source = entries.find(({ state }) => state._esm?.includes("class Decoder")).state._esm;
  const { Decoder, paint } = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  const decoder = new Decoder(state.header, bytes(buffers.find(({ path }) => path[0] === "blob").data));
  const codes = (n) => Float32Array.from({ length: n * decoder.latentDim }, () => 4 * Math.random() - 2);
  const timed = (call) => { const start = performance.now(); call(); return performance.now() - start; };
  const times = (n, call) => Array.from({ length: n }, () => timed(call)), canvas = document.createElement("canvas");
  times(count / 5, () => decoder.decode(codes(1)));                          // warm up
  const single = times(count, () => decoder.decode(codes(1))).sort((a, b) => a - b);
  const grids = times(5, () => paint(canvas, decoder.decode(codes(225)), decoder.shape, 15)).sort((a, b) => a - b);
  return { decode_median: single[count / 2], decode_p95: single[Math.floor(0.95 * count)], grid: grids[2] };
}"""

DRAG = """async (frames) => {                          // one move a frame; how many of them were drawn
  const one = document.querySelector(".latent-explorer"), plane = one.querySelector(".plane");
  const slider = one.querySelector("input[type=range]"), box = plane?.getBoundingClientRect();
  const move = (t) => {
    if (!plane) { slider.value = 3 * Math.sin(t); return slider.dispatchEvent(new Event("input")); }
    const [x, y] = [Math.cos(t), Math.sin(t)].map((v) => (1 + 0.8 * v) * box.width / 2);
    plane.dispatchEvent(new PointerEvent("pointermove", { buttons: 1, clientX: box.left + x, clientY: box.top + y }));
  };
  const frame = () => new Promise(requestAnimationFrame), picture = one.querySelector(".picture");
  let drawn = 0;
  const watcher = new MutationObserver((changes) => (drawn += changes.length));
  watcher.observe(picture, { attributeFilter: ["aria-label"] });
  const start = await frame();
  for (let k = 0; k < frames; k++) { move(k / 20 + 0.01); await frame(); }
  return 1000 * drawn / (await frame() - start);
}"""


class Isolated(Quiet):
    """With these two headers a page's clock ticks every 5 µs, not every 100."""

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()


def prepare(folder: Path, built: Path | None) -> None:
    """Put the book, built from the committed outputs unless it is there, into FOLDER/book; write CIFAR's page."""
    if built is None:
        command = [sys.executable, str(ROOT / "book" / "build.py"), "html", "--out", str(folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        built = folder / "_build" / "html"
    (folder / "book").symlink_to(built.resolve())
    (folder / "cifar").mkdir()
    torch.manual_seed(0)
    write_page(folder / "cifar", [LatentExplorer(mlp_vae((3, 32, 32), 256).eval())])


@contextmanager
def served(folder: Path) -> Iterator[str]:
    handler = functools.partial(Isolated, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def measure(browser: Any, url: str, decodes: int, frames: int) -> dict[str, float]:
    """One visit, in a fresh context."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.add_init_script(WATCH)
    page = context.new_page()
    page.goto(url, wait_until="load")
    page.wait_for_function("times.shown", timeout=120_000)
    times = page.evaluate("times")
    found = {"set_up": times["stands"] - times["start"], "first_picture": times["shown"] - times["start"]}
    page.locator(".latent-explorer").first.scroll_into_view_if_needed()
    found |= {"per_second": page.evaluate(DRAG, frames)} | page.evaluate(DECODES, decodes)
    context.close()
    return found


def figures(runs: list[dict[str, float]], path: Path) -> dict[str, float]:
    """Medians over rounds, and the page's size."""
    content = path.read_bytes()
    found = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    return found | {"kilobytes": len(content) / 1000, "gzipped": len(gzip.compress(content)) / 1000}


def visits(rounds: int, built: Path | None, **options: int) -> tuple[str, dict[str, dict[str, float]]]:
    """The browser's version, and the figures of each page."""
    with tempfile.TemporaryDirectory() as name, pdf.browsing(CHROMIUM, FLAGS) as browser:
        prepare(folder := Path(name), built)
        with served(folder) as base:
            runs = [
                {what: measure(browser, f"{base}/{at}", **options) for what, at in PAGES.items()} for _ in range(rounds)
            ]
        return browser.version, {what: figures([run[what] for run in runs], folder / at) for what, at in PAGES.items()}


def show(pages: dict[str, dict[str, float]]) -> None:
    print(f"{'':44s}" + "".join(f"{what:>16s}" for what in pages) + "  target (MNIST)")
    for name, (what, unit, target, less) in FIGURES.items():
        values = "".join(f"{page[name]:16.2f}" for page in pages.values())
        aim = "" if target is None else f"  {'under' if less else 'at least'} {target}"
        print(f"{what + (f', {unit}' if unit else ''):44s}{values}{aim}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decodes", type=int, default=500, help="single decodes a round")
    parser.add_argument("--frames", type=int, default=180, help="frames of dragging a round")
    parser.add_argument("--built", type=Path, help="pages that are built already, such as book/_build/html")
    parser.add_argument("--out", type=Path, default=default_out())
    options = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("no Chromium on this machine (Debian: apt-get install chromium): the explorer was not measured")
    version, pages = visits(options.rounds, options.built, decodes=options.decodes, frames=options.frames)
    device = f"{Runtime.detect('cpu').describe()}, Chromium {version}"
    print(device)
    show(pages)
    told = {
        name: dict(zip(("what", "unit", "target", "less"), figure, strict=True)) for name, figure in FIGURES.items()
    }
    record = {"command": "make bench", "commit": commit(), "device": device, "versions": versions()}
    record |= {"rounds": options.rounds, "figures": told, "pages": pages}
    write_record(record, options.out / "bench-explorer.json")


if __name__ == "__main__":
    main()
