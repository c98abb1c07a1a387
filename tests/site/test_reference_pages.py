"""The pages to look things up on: glossary, identities, API reference, ledger index, notation, changelog."""

import ast
import importlib
import re
from collections import Counter
from functools import reduce
from html import unescape
from math import log

import pytest
import sources
import torch
from book_pages import html
from layout import ABOVE, CORE, imported, path_of
from ledger import ITEMS, ROOT, functions, labels
from torch.distributions import Normal, Uniform

import vae_core
from vae_core.distributions import diagonal_normal, kl_divergence, standard_normal

BOOK = ROOT / "book"
CHAPTERS = {path.stem[:2]: path.stem for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))}
WRITTEN = [chapter for number, chapter in CHAPTERS.items() if number > "00"]  # those to come are added by themselves


def text(page: str) -> str:
    return (BOOK / f"{page}.md").read_text()


def every_label() -> set[str]:
    """The labels of all sections, equations, figures and exercises of the chapters, and of the pages in Markdown."""
    sources = [path.read_text().replace("\\n", "\n") for path in (ROOT / "notebooks").glob("*.ipynb")]
    sources += [path.read_text() for path in BOOK.glob("*.md")]
    return set(re.findall(r"\(([\w:-]+)\)=|\((eq:[\w:-]+)\)|:label: ([\w:-]+)", "\n".join(sources), re.MULTILINE))


LABELS = {name for names in every_label() for name in names if name}


def linked(source: str) -> list[str]:
    """The labels that a text refers to."""
    return re.findall(r"\{(?:ref|eq|numref)\}`(?:[^`<]*<)?([\w:-]+)>?`", source)


# Glossary


def glossary() -> list[tuple[list[str], str]]:
    """Each entry: its names, the first of which decides its place, and its definition."""
    body = re.search(r"```\{glossary\}\n(.*?)\n```", text("glossary"), re.DOTALL)[1]
    entries = []
    for block in body.split("\n\n"):
        lines = block.splitlines()
        names = [line for line in lines if not line.startswith("  ")]
        entries.append((names, " ".join(line.strip() for line in lines[len(names) :])))
    return entries


ENTRIES = glossary()


def test_terms_stand_in_alphabetical_order_and_none_twice():
    first = [names[0].casefold() for names, _ in ENTRIES]
    assert first == sorted(first)
    count = Counter(name.casefold() for names, _ in ENTRIES for name in names)
    assert max(count.values()) == 1, count.most_common(3)


@pytest.mark.parametrize(("names", "definition"), ENTRIES, ids=[names[0] for names, _ in ENTRIES])
def test_a_term_leads_to_its_section(names, definition):
    assert linked(definition)
    assert set(linked(definition)) <= LABELS


@pytest.mark.parametrize("chapter", WRITTEN)
def test_two_terms_or_more_lead_to_each_chapter(chapter):
    known = labels(chapter)
    assert sum(any(name in known for name in linked(definition)) for _, definition in ENTRIES) >= 2


@pytest.mark.parametrize("page", ["glossary", "identities", "notation", "api"])
def test_names_in_code_exist(page):
    for target in re.findall(r"\{py:obj\}`~?([\w.]+)`", text(page)):
        module = next(module for module in reversed((*CORE, *ABOVE)) if target.startswith(f"vae_core.{module}."))
        path = target.removeprefix(f"vae_core.{module}.")
        assert reduce(getattr, path.split("."), importlib.import_module(f"vae_core.{module}")), target


# Identities

IDENTITIES = re.findall(r"^- \*\*(.+?)\.\*\* (.+)$", text("identities"), re.MULTILINE)


@pytest.mark.parametrize(("name", "line"), IDENTITIES, ids=[name for name, _ in IDENTITIES])
def test_an_identity_has_formula_condition_derivation_and_test(name, line):
    formula, rest = re.fullmatch(r"\$([^$]+)\$: (.+)", line).groups()
    assert re.search(r"=|\\ge|\\le|\\to|\\sim|tfrac", formula)
    *_, where = linked(rest)
    assert where in LABELS
    target = re.search(r", `([^`]+)`$", rest)[1]
    path, _, function = target.partition("::")
    assert function in functions(path)


def test_no_identity_stands_twice():
    names = [name for name, _ in IDENTITIES]
    assert 0 < len(names) == len(set(names))


def test_a_density_of_dequantised_levels_is_below_the_law_of_the_levels():
    """log P(k) ≥ E_u log p((k + u)/L) − log L for a bell curve, with equality where a density is flat on each level."""
    u = (torch.arange(2000) + 0.5) / 2000
    for levels, q in ((2, Normal(0.3, 0.2)), (16, Normal(0.4, 0.3)), (4, Normal(1.0, 0.3)), (16, Uniform(0.0, 1.0))):
        k = torch.arange(levels)
        of_level = (q.cdf((k + 1) / levels) - q.cdf(k / levels)).log()
        gap = of_level - q.log_prob((k[:, None] + u) / levels).mean(1) + log(levels)
        assert gap.abs().max() < 1e-12 if isinstance(q, Uniform) else gap.min() > 1e-8


def test_the_rate_is_information_plus_the_misfit_of_the_prior():
    """Five clouds on a line; the rate in closed form, information and misfit each by its own integral."""
    means, log_variances = torch.tensor([-2.0, -0.5, 0.0, 0.4, 3.0]), torch.tensor([-1.0, -3.0, 0.5, -2.0, -0.5])
    rate = kl_divergence(diagonal_normal(means[:, None], log_variances[:, None]), standard_normal(1)).mean()
    z = torch.linspace(-12, 12, 100_001)
    clouds = Normal(means[:, None], (0.5 * log_variances).exp()[:, None]).log_prob(z)  # (5, grid)
    mixture = clouds.logsumexp(0) - log(5)
    information = torch.trapezoid(clouds.exp() * (clouds - mixture), z).mean()
    misfit = torch.trapezoid(mixture.exp() * (mixture - Normal(0.0, 1.0).log_prob(z)), z)
    assert torch.allclose(information + misfit, rate, atol=1e-9)
    assert 0 < information < log(5)


# The API reference

MODULES = re.findall(r"^\.\. automodule:: vae_core\.([\w.]+)$", text("api"), re.MULTILINE)


def public(module: str) -> dict[str, str]:
    """Public functions and classes of a module, and public methods that have a docstring: name, first line."""
    found = {}
    for node in ast.parse(path_of(module).read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            found[node.name] = ast.get_docstring(node)
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_") and ast.get_docstring(inner):
                    found[f"{node.name}.{inner.name}"] = ast.get_docstring(inner)
    return found


@pytest.fixture(scope="module")
def reference(html) -> str:
    """The page as the book has it, without what stands around it; a warning about a docstring fails the build."""
    return re.search(r"<article.*?</article>", (html / "book" / "api.html").read_text(), re.DOTALL)[0]


def test_every_public_module_is_in_the_reference_after_those_that_it_imports():
    assert [module for module in (*CORE, *ABOVE) if not module.startswith("_")] == MODULES
    for module in MODULES:
        for other in imported(path_of(module)) & set(MODULES):
            assert MODULES.index(other) < MODULES.index(module), (module, other)


TYPESET = {"’": "'", "‘": "'", "“": '"', "”": '"', "…": "...", "–": "--", "—": "---"}  # Sphinx sets them so


def words(page: str) -> str:
    """What is to be read on a page, or in a docstring's line, without mark-up, quotes of code, and blanks."""
    read = re.sub(r"[\s`*\\]", "", unescape(re.sub(r"<[^>]+>", "", page)))
    return read.translate(str.maketrans(TYPESET))


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_stands_there_with_its_first_line(reference, module):
    read = words(reference)
    for name, docstring in public(module).items():
        assert f'id="vae_core.{module}.{name}"' in reference, name
        assert docstring, name
        for part in re.split(r":math:`[^`]*`", docstring.splitlines()[0]):
            assert words(part) in read, (name, part)


def test_equations_of_docstrings_are_equations(reference):
    docstrings = "\n".join(doc or "" for module in MODULES for doc in public(module).values())
    assert reference.count('<div class="math') >= docstrings.count(".. math::") > 0
    assert reference.count('<span class="math') >= docstrings.count(":math:`")
    assert "math::" not in reference
    assert ":math:" not in reference
    assert not re.search(r"<cite>|problematic|system-message", reference)


def test_prose_of_docstrings_keeps_its_bars_and_stars():
    import docstrings

    lines = ["q*, of |B| and (K, *shape), *so*, `a|b`, :math:`|x|`", "", ".. math:: |x|", "   = *", "", "p(x|z)"]
    docstrings.escape(lines)
    assert lines[0] == r"q\*, of \|B\| and (K, \*shape), *so*, `a|b`, :math:`|x|`"
    assert lines[1:] == ["", ".. math:: |x|", "   = *", "", r"p(x\|z)"]


# The ledger's index, notation, changelog


def test_the_index_holds_each_item_once():
    rows = re.findall(r"^\| ([CLSID]-[\w.-]+) \|", sources.page(), re.MULTILINE)
    assert sorted(rows) == sorted(ITEMS)
    assert f"{len(ITEMS)} of {sum(sources.TOTALS.values())}" in sources.page()
    assert all(sum(name[0] == letter for name in ITEMS) <= total for letter, total in sources.TOTALS.items())


def test_a_row_of_the_index_has_section_and_test():
    lines = sources.page().splitlines()
    for name, item in ITEMS.items():
        line = next(line for line in lines if line.startswith(f"| {name} |"))
        assert linked(line) == [item["section"]]
        assert f"`{item['test']}`" in line
        assert len(re.split(r"(?<!\\)\|", line)) - 2 == 3
        assert item.get("verdict", "").lower() in line.lower()


def test_items_stand_in_the_order_of_their_document():
    rows = re.findall(r"^\| (C-[\w.-]+) \|", sources.page(), re.MULTILINE)
    assert rows.index("C-2.1.9") < rows.index("C-2.1.10") < rows.index("C-4.2.1") < rows.index("C-A.1.1")


def test_no_symbol_stands_twice_in_a_table():
    for table in text("notation").split("\n## ")[1:]:
        heads = re.findall(r"^\| (\$.+?\$(?:, \$.+?\$)*) \|", table, re.MULTILINE)
        symbols = [symbol for head in heads for symbol in re.findall(r"\$[^$]+\$", head)]
        assert len(symbols) == len(set(symbols)), Counter(symbols).most_common(2)


@pytest.mark.parametrize("page", ["notation", "identities", "changelog"])
def test_references_of_a_page_resolve(page):
    assert set(linked(text(page))) <= LABELS


def test_the_changelog_begins_with_what_is_not_released():
    versions = re.findall(r"^## (.+)$", text("changelog"), re.MULTILINE)
    assert versions[0].startswith("Unreleased")
    assert vae_core.__version__ in versions[0]
