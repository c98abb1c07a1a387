"""For citations: pybtex looks through every installed package at each of the book's three hundred; once is enough."""

import functools

import pybtex.plugin


def setup(app) -> dict:
    """Called by Sphinx."""
    pybtex.plugin.find_plugin = functools.cache(pybtex.plugin.find_plugin)
    return {"parallel_read_safe": True}
