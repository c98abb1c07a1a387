"""Change formulas and see whether a test notices: `make mutants`, or `python tests/mutation.py [MODULE…] [--each N]`.

A mutant is one module with one change: a sign, an operator, a constant, a mean for a sum, a logarithm or a detach left
out. The module's tests run against it; a mutant that passes them all has survived, and is printed with its line.
Exit status 1 if fewer than 95 % are killed; those that mean the same as the original are listed, with the reason, and
not tried. Each mutant has a forked process of its own, in which all libraries are loaded but none of our modules.
"""

import argparse
import ast
import contextlib
import importlib.abc
import importlib.util
import io
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from copy import deepcopy
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = {  # the tests that are about the module
    "distributions": ["test_distributions", "test_05_gaussian_kl"],
    "objectives": [
        *("test_objectives", "test_importance", "test_schedules", "test_autoencoder"),
        *("test_04_the_elbo", "test_15_beta_and_collapse"),
    ],
    "linear": ["test_linear", "test_linear_bounds", "test_linear_refusals", "test_linear_scikit"],
    "_linear_gaussian": ["test_linear", "test_linear_bounds", "test_linear_refusals", "test_linear_missing"],
    "_missing": ["test_linear_missing", "test_linear_bounds"],
    "gradients": ["test_gradients", "test_gradient_variances"],
    "evaluation": [
        "test_evaluation",
        "test_probes",
        "test_importance",
        "test_inference_gap",
        "test_bad_input",
        "test_evaluate",
    ],
    "likelihoods": ["test_likelihoods", "test_models"],
    "experiments.contrastive": ["test_contrastive"],
}
EQUIVALENT = {  # why no test can notice a change: (a part of the line, what stands there)
    "the factor beside it is 0 in value": [
        ("base.log_prob(z).detach().exp()", "base.log_prob(z).detach()"),
    ],
    "the difference beside it is 0 in value": [
        ("weight, mean = values.detach()", "values.detach()"),
        ("weight, mean = weight - h(z).detach()", "h(z).detach()"),
        ("return baseline.detach()", "baseline.detach()"),
    ],
    "the array has two axes: the last is the second": [
        ("range(m.shape[-1])", "-1"),
        ("F.normalize(each, dim=-1) for each in", "-1"),
        ("return (code * (positive - negative)).sum(-1)", "-1"),
        ("log_p = scores.log_softmax(-1)", "-1"),
        ("torch.stack(columns, -1)", "-1"),
        ("(q.mean - m).square() + q.variance)", "-1"),
        ('"kl": per_unit.sum(-1)', "-1"),
        ("F.normalize(torch.cat((u, v)), dim=-1)", "-1"),
    ],
    "both sizes are the same": [
        ("return log(scores.shape[-1])", "1"),
    ],
    "the array is symmetric": [
        ("log_p = scores.log_softmax(-1)", "1"),
    ],
    "the number is as likely as its negative": [
        (
            "weights = 1 + strength * (2 *",
            "1 + strength * (2 * torch.rand(*x.shape[:2], 1, 1, dtype=x.dtype, device=x.device) - 1)",
        ),
    ],
    "what is made of it is detached before it is used": [
        ("q.mean.detach().requires_grad_()", "q.mean.detach()"),
    ],
    "a leaf already, that no parameter leads to": [
        ("m, slope, curvature = m.detach()", "m.detach()"),
    ],
    "numbers of one axis, or in both directions": [
        ("torch.stack((_uniform(x, -1, 1), _uniform(x, -1, 1)), -1)", "-1"),
    ],
    "numbers of one axis": [
        ("torch.stack((c, -s, s, c), -1)", "-1"),
    ],
    "slopes are asked for at the copies, whatever they were made of": [
        ("copies = [value.detach()", "value.detach()"),
    ],
    "a start; the end is the same": [
        ("torch.Generator().manual_seed(0)", "0"),
        ("level = variance.mean()", "variance.mean()"),
        ("return initial_loadings(len(variance), d)", "level.sqrt()"),
        ("return initial_loadings(len(variance), d)", "initial_loadings(len(variance), d) * level.sqrt()"),
        ("return initial_loadings(len(psi), d)", "(psi / d).sqrt()"),
        ("return initial_loadings(len(psi), d)", "psi / d"),
        ("initial_loadings(S.p", "initial_loadings(S.p, d + 1) / scale"),
    ],
    "the next of the sizes is as large, or the fit refuses later": [
        ("self._refuse_zero(sizes[-1], sizes[0])", "0"),
    ],
    "noise is symmetric": [
        ("self._noise.sqrt()", "z @ self.components_ + self.mean_ + noise * self._noise.sqrt()"),
    ],
}
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
METHODS = {"mean": "sum", "sum": "mean", "logsumexp": "amax", "log_softmax": "softmax", "std": "var", "var": "std"}
LEFT_OUT = {"log", "exp", "sqrt", "square", "detach", "abs"}  # x.log() becomes x
LIMIT = 300  # seconds for one mutant; one that hangs is noticed


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of one node of a formula."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield node.operand
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        name = node.func.attr
        if name in METHODS:
            yield ast.Call(ast.Attribute(node.func.value, METHODS[name], ast.Load()), node.args, node.keywords)
        if name in LEFT_OUT and not node.args:
            yield node.func.value


def mutants(source: str) -> list[tuple[int, str, str, str]]:
    """(line, what stood there, what stands there now, the whole source) for each change in a function that matters."""
    tree, found = ast.parse(source), []
    inside = [node for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for s in f.body for node in ast.walk(s)]
    raised = {id(n) for s in ast.walk(tree) if isinstance(s, ast.Raise | ast.JoinedStr) for n in ast.walk(s)}
    lines = source.splitlines()
    for node in dict.fromkeys(inside):
        line = lines[getattr(node, "lineno", 1) - 1]
        alike = any(part in line and old == ast.unparse(node) for part, old in chain(*EQUIVALENT.values()))
        for new in changes(node) if id(node) not in raised and not alike else ():
            replaced = Replace(node, new).visit(deepcopy_around(tree, node))
            code = ast.unparse(ast.fix_missing_locations(replaced))
            found.append((node.lineno, ast.unparse(node), ast.unparse(ast.fix_missing_locations(new)), code))
    return found


def deepcopy_around(tree: ast.AST, node: ast.AST) -> ast.AST:
    """A copy of the tree that still holds this very node, so that it can be found."""
    return deepcopy(tree, {id(node): node})


class Replace(ast.NodeTransformer):
    """Puts one node in the place of another."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else self.generic_visit(node)


class Overlay(importlib.abc.MetaPathFinder):
    """Imports one module from another file than its own."""

    def __init__(self, name: str, file: Path) -> None:
        self.name, self.file = name, file

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_file_location(name, self.file) if name == self.name else None


def survives(module: str, code: str) -> bool:
    """Whether the module's tests pass with this text in its place."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        file = Path(folder) / f"{module.split('.')[-1]}.py"
        file.write_text(code)
        return passes(module, file)


def passes(module: str, file: Path) -> bool:
    """Whether the module's tests pass with this file in its place, in a process of their own."""
    child = os.fork()
    if child == 0:
        signal.alarm(LIMIT)
        sys.meta_path.insert(0, Overlay(f"vae_core.{module}", file))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            result = run_tests(TESTS[module], "-x")
        os._exit(int(result))
    return os.waitpid(child, 0)[1] == 0


def run_tests(names: list[str], *flags: str) -> int:
    """pytest's exit status for these files of tests, in this process."""
    import pytest

    files = [str(next((ROOT / "tests").glob(f"*/{name}.py"))) for name in names]
    return pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:nbval", "-o", "addopts=", *flags, *files])


def load_libraries() -> None:
    """Import what all the tests import, then forget the modules of this repository: a mutant loads only those."""
    with contextlib.redirect_stdout(io.StringIO()):
        run_tests(sorted({name for names in TESTS.values() for name in names}), "--collect-only")
    own = [Path(entry.path) for entry in os.scandir(ROOT) if not entry.name.startswith(".")]
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and name != "__main__" and any(Path(file).is_relative_to(folder) for folder in own):
            del sys.modules[name]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", default=list(TESTS), choices=[*TESTS, []], metavar="MODULE")
    parser.add_argument("--each", type=int, default=40, help="mutants of each module, chosen at random; 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "book"), str(ROOT)]
    load_libraries()
    whole, alive = 0, 0
    for module in options.modules:
        source = (ROOT / "vae_core" / f"{module.replace('.', '/')}.py").read_text()
        if not survives(module, source):
            print(f"{module}: its tests fail without a change; mend that first", file=sys.stderr)
            return 2
        found, start = mutants(source), time.perf_counter()
        chosen = random.Random(options.seed).sample(found, min(options.each or len(found), len(found)))
        left = 0
        for line, old, new, code in sorted(chosen):
            if survives(module, code):
                print(f"    {module}.py, line {line}: {old}  ->  {new}", flush=True)
                left += 1
        print(f"{module}: {len(chosen) - left} of {len(chosen)} killed (of {len(found)} possible), "
              f"{time.perf_counter() - start:.0f} s", flush=True)  # fmt: skip
        whole, alive = whole + len(chosen), alive + left
    print(f"{whole - alive} of {whole} mutants killed, {1 - alive / whole:.1%}")
    return int(alive > 0.05 * whole)


if __name__ == "__main__":
    sys.exit(main())
