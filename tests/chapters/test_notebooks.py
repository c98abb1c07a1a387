"""What every chapter must have; that its numbers are right is nbval's part."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHAPTERS = [path for path in NOTEBOOKS if path.stem[0].isdigit()]  # the others are single pages to play with
WIDGET = "application/vnd.jupyter.widget-"
pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def prose(path: Path) -> str:
    return "\n".join("".join(cell["source"]) for cell in cells(path, "markdown"))


def outputs(path: Path):
    for cell in cells(path, "code"):
        for output in cell["outputs"]:
            yield cell, output


def test_every_code_cell_was_run_in_order_and_without_error(path):
    assert [cell["execution_count"] for cell in cells(path, "code")] == list(range(1, len(cells(path, "code")) + 1))
    assert "error" not in {output["output_type"] for _, output in outputs(path)}


def test_nothing_was_written_to_stderr(path):
    assert not [output["text"] for _, output in outputs(path) if output.get("name") == "stderr"]


def test_every_picture_has_an_alternative_text(path):
    for cell, output in outputs(path):
        if {"image/png", "image/svg+xml"} & set(output.get("data", {})):
            alternative = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(alternative) > 40, "".join(cell["source"])


def test_no_output_names_a_machine_or_a_time(path):
    for _, output in outputs(path):
        text = "".join(output.get("text", output.get("data", {}).get("text/plain", "")))
        assert not re.search(r"/(home|root|work|tmp|Users)/|0x[0-9a-f]{6}|it/s|\d\d:\d\d", text), text


def test_code_cells_fit_on_a_page(path):
    for cell in cells(path, "code"):
        lines = [line for line in "".join(cell["source"]).splitlines() if line.strip()]
        assert len(lines) <= 20, "\n".join(lines[:3])


def test_a_chapter_has_exercises_and_further_reading(path):
    if path not in CHAPTERS:
        pytest.skip("not a chapter")
    assert {"Exercises", "Further reading"} <= {*re.findall(r"^## (.+)$", prose(path), re.MULTILINE)}


def test_pictures_are_drawn_in_the_books_style(path):
    if path not in CHAPTERS:
        pytest.skip("not a chapter")
    code = ["".join(cell["source"]) for cell in cells(path, "code")]
    assert sum("plots.style()" in source for source in code[:2]) == 1


def test_every_exercise_has_a_solution_that_runs(path):
    if path not in CHAPTERS:
        pytest.skip("not a chapter")
    text = prose(path)
    exercises = re.findall(r"\{exercise\}[^\n]*\n:label: (\S+)", text)
    assert len(exercises) >= 4
    assert re.findall(r"\{solution-start\} (\S+)", text) == exercises
    kinds = "".join("c" if cell["cell_type"] == "code" else "." for cell in json.loads(path.read_text())["cells"])
    assert len(re.findall(r"\{solution-end\}", text)) == len(exercises) <= kinds.count("c")


def test_figures_that_the_text_refers_to_exist(path):
    names = {
        cell["metadata"]["mystnb"]["figure"]["name"]
        for cell in cells(path, "code")
        if "figure" in cell["metadata"].get("mystnb", {})
    }
    assert set(re.findall(r"\{numref\}`(fig-[\w-]+)`", prose(path))) <= names


def test_its_widgets_run_the_scripts_of_this_checkout(path):
    """The page runs the copy in the notebook; a change of vae_core/*.js asks for `make notebooks`."""
    states = json.loads(path.read_text())["metadata"].get("widgets", {}).get(f"{WIDGET}state+json", {"state": {}})
    for state in (entry["state"] for entry in states["state"].values()):
        if "_esm" in state:
            script = ROOT / (state["_anywidget_id"].rpartition(".")[0].replace(".", "/") + ".js")
            assert state["_esm"] == script.read_text()
            assert state["_css"] == script.with_suffix(".css").read_text()


def test_what_works_without_a_kernel_has_a_picture_for_readers_without_scripts(path):
    for cell, output in outputs(path):
        if re.match("Flipbook", "".join(output.get("data", {}).get("text/plain", ""))):
            assert cell["metadata"]["mystnb"]["image"]["classes"] == "without-script"
            still = {"image/svg+xml", "image/png"}
            assert any(still & set(other.get("data", {})) for other in cell["outputs"])


def test_the_file_is_small(path):
    assert path.stat().st_size < 3_000_000
