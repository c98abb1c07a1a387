"""The page that is generated from the benchmarks' figures."""

import json
import re

import performance
import pytest

ROW = {"what": "thesis' way", "ours": 12_000.0, "other": 4_000.0, "ratio": 3.0, "low": 2.9, "high": 3.1, "target": 3}


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Write a made benchmark file that the page then reads."""
    monkeypatch.setattr(performance, "default_out", lambda: tmp_path)

    def write(unit: dict | None = None, **change) -> str:
        record = {"device": "cpu: made up", "versions": {"torch": "2.11"}, "rounds": 5, "rows": [ROW | change]}
        record |= unit or {}
        (tmp_path / "bench-cpu.json").write_text(json.dumps(record))
        return performance.page()

    return write


def test_a_target_is_met_or_the_page_says_how_far_off_it_is(bench):
    assert "| thesis' way | 12,000 | 4,000 | 3.00 | 2.90 – 3.10 | 3 | yes |" in bench()
    assert "| 2.70 | 2.90 – 3.10 | 3 | no, -10% |" in bench(ratio=2.7)


def test_a_rate_has_the_unit_of_its_record_and_images_where_that_has_none(bench):
    assert "| ours against | ours, images/s | other, images/s |" in bench()
    text = bench({"unit": "fits/s"}, ours=0.25, other=0.0312)
    assert "| ours against | ours, fits/s | other, fits/s |" in text
    assert "| 0.25 | 0.0312 |" in text


def test_the_page_names_the_machine_and_leaves_out_what_was_not_measured(bench):
    text = bench()
    assert "## On cpu: made up\n\ntorch 2.11; median of 5 rounds" in text
    assert "On a GPU" not in text
    assert "not measured" not in text.lower()


RATES = {
    "thesis' way": 10_000.0,
    "ours, eager": 30_000.0,
    "ours, captured": 300_000.0,
    "ours, captured, again": 301_000.0,
    "ours, captured, batches of 1024": 900_000.0,
    "PyTorch's example": 2_000.0,
}


@pytest.fixture
def card(bench, tmp_path):
    """Write what a card measured, beside the made benchmark of a CPU."""

    def write(**change) -> str:
        rows = {way: {"images_per_second": value} for way, value in (RATES | change).items()}
        record = {"device": "cuda: made up too", "versions": {"torch": "2.12"}, "rows": rows}
        (tmp_path / "gpu-speed.json").write_text(json.dumps(record))
        return bench()

    return write


def test_the_card_stands_beside_the_cpu(card):
    text = card().split("## On a GPU")[1]
    head = "| way of training | cpu: made up, images/s | × | cuda: made up too, images/s | × |"
    assert head in text
    assert "| ours, captured | 12,000 | 3.0 | 300,000 | 30.0 |" in text
    assert "| thesis' way | 4,000 | 1.0 | 10,000 | 1.0 |" in text
    assert "| ours, eager | – | – | 30,000 | 3.0 |" in text
    assert "again" not in text
    assert "10.0 times as fast as the\neager loop" in text


def test_the_page_says_whether_the_cards_target_is_met_and_how_far_it_is(card):
    assert "It is not met:\nours, captured reaches 30 times." in card()
    text = card(**{"ours, compiled and captured": 510_000.0})
    assert "It is met:\nours, compiled and captured reaches 51 times." in text
    assert "90 times with 1024 images each" in text


def test_what_was_measured_on_the_card_is_on_the_page():
    text = performance.page().split("## On a GPU")[1]
    rows = json.loads((performance.default_out() / "gpu-speed.json").read_text())["rows"]
    for way, row in rows.items():
        if "left_out" in row:
            assert f"| {way} |" not in text
        elif "again" not in way:
            assert f"| {way} |" in text
            assert f"| {performance.rate(row['images_per_second'])} |" in text


def test_the_committed_page_can_be_made_and_every_row_has_as_many_cells_as_its_head():
    tables = [part for part in performance.page().split("\n\n") if part.startswith("|")]
    assert tables
    for part in tables:
        assert len({line.count("|") for line in part.splitlines()}) == 1


def test_the_estimators_of_a_gradient_have_a_table_of_their_own(bench):
    row = {"what": "quadratic, d = 2: pathwise", "microseconds": 3.14, "variance": 12.345, "ratio": 1.0}
    text = bench({"num_samples": 8, "batch_size": 1000, "rows": [row]})
    assert "| quadratic, d = 2: pathwise | 3.1 | 12 | 1 |" in text
    assert re.search(r"\b8 .*\b1,000 ", text)
    assert "{doc}`/notebooks/06_gradients`" in text
    assert "images/s" not in text.split("## What a gradient costs")[1]


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0, "0"), (1.0, "1"), (6.34, "6.3"), (99.4, "99"), (4234.0, "4,200"), (2.13e-13, r"$2.1\cdot10^{-13}$")],
)
def test_two_digits_are_written_as_people_write_them(value, said):
    assert performance.short(value) == said


def explorer_record(**figures) -> dict:
    told = {"what": "one decode, p95", "unit": "ms", "target": 2, "less": True}
    frames = {"what": "pictures per second", "unit": "", "target": 60, "less": False}
    free = {"what": "set-up", "unit": "ms", "target": None, "less": True}
    page = {"decode": 1.5, "frames": 60.01, "set_up": 30.0}
    pages = {"MNIST, d = 2": page, "MNIST, d = 20": page | figures, "CIFAR, d = 256": page | {"decode": 4.0}}
    return {"figures": {"decode": told, "frames": frames, "set_up": free}, "pages": pages}


def test_the_explorer_has_a_table_with_its_targets(bench):
    text = bench(explorer_record(decode=1.75, frames=59.96))
    assert "| one decode, p95, ms | 1.5 | 1.75 | 4 | under 2 | yes |" in text  # the target is for MNIST alone
    assert "| pictures per second | 60 | 60 | 60 | at least 60 | yes |" in text
    assert "| set-up, ms | 30 | 30 | 30 |  |  |" in text
    assert "images/s" not in text.split("## The explorer in")[1]
    assert "under 2 | no, +25% |" in bench(explorer_record(decode=2.5))
    assert "at least 60 | no, -10% |" in bench(explorer_record(frames=54.0))
