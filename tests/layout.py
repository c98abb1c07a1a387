"""The layout of `vae_core` as its docstrings draw it: which files there are, and what each one imports."""

import ast
import importlib
import re
from pathlib import Path

import vae_core

PACKAGE = Path(vae_core.__file__).parent
PRIVATE = ("_checks", "_files", "_training")  # what the core stands on
FOLDERS = ("interactive", "experiments")  # what uses it


def named(package: str) -> list[str]:
    """The modules that a package's docstring lists, in its order."""
    return re.findall(r"^`(\w+)`  ", importlib.import_module(package).__doc__, re.MULTILINE)


def inside(folder: str) -> list[str]:
    return [f"{folder}.{name}" for name in named(f"vae_core.{folder}")]


CORE = named("vae_core")
BELOW = [module for folder in PRIVATE for module in inside(folder)]
ABOVE = [module for folder in FOLDERS for module in inside(folder)]
MODULES = [*BELOW, *CORE, *ABOVE]


def path_of(module: str) -> Path:
    return PACKAGE / f"{module.replace('.', '/')}.py"


def imported(path: Path) -> set[str]:
    """The modules of vae_core that one file imports when it runs (annotations under TYPE_CHECKING do not count)."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.If):
            continue
        for inner in ast.walk(node):
            if isinstance(inner, ast.ImportFrom) and (inner.module or "").split(".")[0] == "vae_core":
                found |= _modules(inner.module.removeprefix("vae_core").strip("."), inner.names)
    return found


def _modules(base: str, names: list[ast.alias]) -> set[str]:
    """`from vae_core.x import y` imports x, or x.y where x is a folder."""
    if base in ("", *PRIVATE, *FOLDERS):
        paths = [f"{base}.{alias.name}".strip(".") for alias in names if alias.name != "__version__"]
        return set(paths)
    return {base}


def public_names(path: Path) -> set[str]:
    """Functions and classes of a file, its constants, and the methods and annotated attributes of its classes."""
    body = ast.parse(path.read_text()).body
    inner = [node for outer in body if isinstance(outer, ast.ClassDef) for node in outer.body]
    assigned = [target for node in body if isinstance(node, ast.Assign) for target in node.targets]
    annotated = [node.target for node in inner if isinstance(node, ast.AnnAssign)]
    names = [node.name for node in (*body, *inner) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    names += [target.id for target in (*assigned, *annotated) if isinstance(target, ast.Name)]
    return {name for name in names if not name.startswith("_")}


def code_lines(path: Path) -> int:
    """Lines that are neither blank, nor comments, nor part of a docstring."""
    text = path.read_text()
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            skipped |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(k not in skipped and bool(line.strip()) and not line.strip().startswith("#") for k, line in lines)
