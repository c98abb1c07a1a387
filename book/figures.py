"""Take the picture of the README, the explorer of the built book: `python book/figures.py`, after `make book`."""

import argparse
import sys
from pathlib import Path

import pdf

HERE = Path(__file__).resolve().parent
PAGE = "notebooks/explorer_1_mnist_plane.html"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--html", type=Path, default=HERE / "_build" / "html")
    options = parser.parse_args()
    program = pdf.chromium()
    if program is None or not (options.html / PAGE).exists():
        print("error: this needs a Chromium and the built book (make book)", file=sys.stderr)
        return 1
    with pdf.browsing(program) as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light", device_scale_factor=1.5)
        page.goto((options.html / PAGE).resolve().as_uri())
        explorer = page.locator(".latent-explorer")
        explorer.get_by_label("behind the point").select_option(label="decoded images")
        explorer.locator("canvas").first.click(position={"x": 205, "y": 155})
        explorer.screenshot(path=HERE / "assets" / "explorer.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
