"""Build the book, from the repository's root or anywhere else.

    python book/build.py html [--execute] [--out DIR]   the HTML, below DIR/_build (default: book)
    python book/build.py notebooks                      run every notebook, write its outputs back
    python book/build.py linkcheck                      ask every external link of the pages whether it answers

Without `--execute` the pages show the outputs that are committed in the notebooks; the tests build that
way, since nbval has just shown that these are what the notebooks give. With it, the notebooks run, and
the results are cached: editing a notebook runs that one again, editing `vae_core` or a recorded result
runs all. As many run at a time as the machine has cores. Every warning is an error.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import claims
import performance
import reproduction
import sources
import yaml

ROOT = Path(__file__).resolve().parent.parent
CACHES = ROOT / "book" / "_build" / "cache"
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))


def digest(paths: Iterable[Path]) -> str:
    """A digest of files: their names and what is in them."""
    found = hashlib.sha256()
    for path in sorted(paths):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:16]


def config(execute: bool) -> dict:
    """`_config.yml` with this build's way of execution."""
    settings = yaml.safe_load((ROOT / "book" / "_config.yml").read_text())
    settings["execute"]["execute_notebooks"] = "cache" if execute else "off"
    settings["sphinx"]["local_extensions"] = dict.fromkeys(("docstrings", "citations", "checked"), str(ROOT / "book"))
    if execute:
        # what notebooks import or read, which the execution cache cannot see by itself
        module = [path for path in ROOT.glob("vae_core/**/*.*") if path.parent.name != "__pycache__"]
        cache = CACHES / digest([*module, *ROOT.glob("book/results/*.*")])
        for stale in [old for old in CACHES.glob("*") if old != cache]:
            shutil.rmtree(stale)
        settings["execute"]["cache"] = str(cache)
    return settings


def run_ahead(settings: dict) -> None:
    """Run the notebooks that the cache does not know, on all cores, so that Sphinx finds them there.

    One that fails stays unknown: Sphinx runs it again, and its warning says why.
    """
    stamp, now = Path(settings["cache"]) / "all-known", digest(NOTEBOOKS)
    if stamp.exists() and stamp.read_text() == now:
        return  # to ask the cache itself takes four seconds
    from jupyter_cache import get_cache

    cache = get_cache(settings["cache"])
    for path in NOTEBOOKS:
        cache.add_nb_to_project(str(path))
    if unknown := cache.list_unexecuted():
        print(f"Running {len(unknown)} notebooks (about eight minutes for all, on two cores) ...", flush=True)
        command = [str(Path(sys.executable).with_name("jcache")), "project", "--cache-path", settings["cache"]]
        command += ["execute", "--executor", "local-parallel", "--timeout", str(settings["timeout"])]
        subprocess.run(command, capture_output=True)  # kernels talk to the terminal of whoever starts them
    if not cache.list_unexecuted():
        stamp.write_text(now)


def html(execute: bool, out: Path) -> int:
    """Build the pages; jupyter-book's exit code. Says at the end which file to open."""
    result = jupyter_book(execute, out, "--warningiserror", "--keep-going")
    if result.returncode:
        shutil.rmtree(out / "_build" / ".doctrees", ignore_errors=True)  # or the next build would not warn again
        print(result.stderr or result.stdout, "The book did not build; the warnings above say why.", sep="\n")
    else:
        mend(out / "_build" / "html")
        print(f"The book is built. Open {os.path.relpath(out / '_build' / 'html' / 'index.html')}")
    return result.returncode


def mend(pages: Path) -> None:
    """What screen readers and keyboards need and Sphinx leaves out: tables that scroll can be reached."""
    for page in pages.glob("*/*.html"):
        text = page.read_text()
        mended = text.replace(
            'class="pst-scrollable-table-container"', 'class="pst-scrollable-table-container" tabindex="0"'
        )
        mended = mended.replace('<div role="list" class="citation-list">', '<div class="citation-list">')
        if mended != text:
            page.write_text(mended)


def linkcheck(out: Path) -> int:
    """Ask every external link; 1 if one does not answer. Needs a network."""
    jupyter_book(False, out, "--builder", "linkcheck")
    answers = (out / "_build" / "linkcheck" / "output.txt").read_text()
    print(answers or "Every external link answers.")
    return int("[broken]" in answers)


def jupyter_book(execute: bool, out: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Write the generated pages, then run jupyter-book."""
    for page in (reproduction, performance, claims, sources):
        page.write()
    with tempfile.TemporaryDirectory() as folder:
        config_path = Path(folder) / "_config.yml"
        settings = config(execute)
        config_path.write_text(yaml.safe_dump(settings))
        if execute:
            run_ahead(settings["execute"])
        program = Path(sys.executable).with_name("jupyter-book")
        toc = ROOT / "book" / "_toc.yml"
        command = [str(program), "build", str(ROOT), "--config", str(config_path), "--toc", str(toc)]
        command += ["--path-output", str(out), *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def notebooks() -> int:
    """Execute every notebook in its own folder and write it back without what differs between machines."""
    import nbformat
    from nbclient import NotebookClient

    for path in NOTEBOOKS:
        print(path.relative_to(ROOT), flush=True)
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(
            notebook, timeout=600, record_timing=False, resources={"metadata": {"path": path.parent}}
        ).execute()
        notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
        notebook.metadata["language_info"] = {"name": "python"}
        part = path.with_suffix(".part")
        nbformat.write(notebook, part)
        part.replace(path)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("html")
    build.add_argument("--execute", action="store_true", help="run the notebooks (cached)")
    build.add_argument("--out", type=Path, default=ROOT / "book", help="pages go to OUT/_build/html")
    commands.add_parser("notebooks")
    commands.add_parser("linkcheck")
    options = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"  # a progress bar is never the same twice
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # digits are too small to share; threads would only wait
    if options.command == "html":
        return html(options.execute, options.out.resolve())
    return notebooks() if options.command == "notebooks" else linkcheck(ROOT / "book")


if __name__ == "__main__":
    sys.exit(main())
