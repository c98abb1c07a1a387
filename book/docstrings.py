"""For the API reference: docstrings as they are written, for a reader of the code, made safe for Sphinx.

Outside of formulas and backticks a bar is a bar, as in log p(x|z) or 1/|B|, and a star is a star, as in (K, *shape);
reStructuredText would take them for a substitution and for emphasis. Emphasis of a word, *so*, stays.
"""

import re

QUOTED = re.compile(r"(:math:`[^`]*`|``[^`]*``|`[^`]*`)")
EMPHASIS = re.compile(r"(?<!\S)\*[^\s*][^*]*\*(?!\w)")


def plain(text: str) -> str:
    """One stretch of prose without backticks, its bars and lone stars escaped."""
    kept = EMPHASIS.sub(lambda found: found[0].replace("*", "\0"), text)
    return kept.replace("|", r"\|").replace("*", r"\*").replace("\0", "*")


def escape(lines: list[str]) -> None:
    """Escape a docstring's prose in place; a displayed formula, indented below its directive, stays as it is."""
    indent = None  # of the directive that we are in
    for k, line in enumerate(lines):
        depth = len(line) - len(line.lstrip())
        if line.strip() and indent is not None and depth <= indent:
            indent = None
        if line.lstrip().startswith(".. "):
            indent = depth
        if indent is None:
            lines[k] = "".join(part if QUOTED.fullmatch(part) else plain(part) for part in QUOTED.split(line))


def setup(app) -> dict:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", lambda app, what, name, thing, options, lines: escape(lines))
    return {"parallel_read_safe": True}
