"""Each test of the core says in its first words what it tests: a function, method, class or module of vae_core."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from layout import MODULES, path_of, public_names

FILES = sorted(path for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__))
LAYOUT = ("test_imports.py", "test_installed.py")  # about how the files of the module lie, not about one of them
NAMES = {"vae_core", *(module.rpartition(".")[2] for module in MODULES)}.union(
    *map(public_names, map(path_of, MODULES))
)


@cache
def names_in(path: Path) -> list[str]:
    return [node.name for node in ast.parse(path.read_text()).body if getattr(node, "name", "").startswith("test_")]


def mentioned(path: Path) -> set[str]:
    """Every word of the file that is no test's name."""
    return set(re.findall(r"\w+", re.sub(r"def test_\w+", "", path.read_text())))


@pytest.mark.parametrize("path", [path for path in FILES if path.name not in LAYOUT], ids=lambda path: path.stem)
def test_names_begin_with_what_is_tested(path):
    words = mentioned(path)
    beginnings = tuple(f"test_{snake_case(name)}_" for name in NAMES if name in words)
    assert [test for test in names_in(path) if not f"{test}_".startswith(beginnings)] == []


def snake_case(name: str) -> str:
    """ContinuousBernoulli as continuous_bernoulli, PPCA as ppca, explained_variance_ratio_ as it is without the end."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower().strip("_")


def test_no_name_is_given_twice_in_one_file():
    """The later of two would silence the earlier one."""
    assert [path.name for path in FILES if len(names_in(path)) != len(set(names_in(path)))] == []
