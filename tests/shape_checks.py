"""Shapes in the signatures of vae_core, checked at every call while the tests run.

The hook decorates each function of these modules as they are imported, so `conftest.py` installs it before any of them.
Only hints that hold a shape are checked: the tests of bad input pass wrong types of other arguments on purpose.
"""

from collections.abc import Callable
from typing import Any

from beartype import beartype
from jaxtyping import install_import_hook

MODULES = (
    *("objectives", "distributions", "gradients", "inference", "evaluation", "quadrature"),
    *("linear", "_linear_gaussian", "_missing", "_checks.tables"),
)


def shapes_only(function: Callable) -> Callable:
    """Return the function with checks of those arguments and results alone whose hints hold a shape."""
    hints = {name: hint for name, hint in function.__annotations__.items() if _has_shape(hint)}
    if not hints:
        return function
    function.__annotations__ = hints
    return beartype(function)


def _has_shape(hint: Any) -> bool:
    return "jaxtyping" in f"{type(hint)}{hint!r}"


def install() -> None:
    install_import_hook([f"vae_core.{name}" for name in MODULES], "shape_checks.shapes_only")
