"""Records that are made row by row: kept as they end, and begun anew for other settings or data."""

import json

import pytest
import torch
from rows import Rows, summary, values


def test_a_later_call_goes_on_where_the_first_was_stopped(tmp_path, capsys):
    first = Rows("a-thing", tmp_path, {"sizes": (1, 2)}, {"digits": "sum"})
    first.add({"way": "b", "seed": 0, "figure": 1.5}, {"b-0": torch.ones(2)})
    record = json.loads((tmp_path / "measured-a-thing.json").read_text())
    assert record["command"] == "python book/a_thing.py"
    assert record["data_sha256"] == {"digits": "sum"}
    second = Rows("a-thing", tmp_path, {"sizes": (1, 2)}, {"digits": "sum"})
    assert {"way": "b", "seed": 0} in second
    assert {"way": "b", "seed": 1} not in second
    second.add({"way": "b", "seed": 1, "figure": 2.5}, {"b-1": torch.zeros(2)})
    assert values(second.rows, "figure", way="b") == [1.5, 2.5]
    assert set(second.tensors) == {"b-0", "b-1"}
    assert second.record["wall_seconds"] > record["wall_seconds"]
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "measured-a-thing.json",
        "measured-a-thing.safetensors",
    ]


@pytest.mark.parametrize(
    ("config", "data"), [({"n": 2}, "sum"), ({"n": 1}, "another"), ({}, "sum"), ({"n": 1.5}, "sum")]
)
def test_rows_of_other_settings_or_data_are_not_taken_over(tmp_path, config, data):
    Rows("thing", tmp_path, {"n": 1}, "sum").add({"seed": 0})
    assert Rows("thing", tmp_path, {"n": 1}, "sum").rows == [{"seed": 0}]
    assert Rows("thing", tmp_path, config, data).rows == []


def test_a_record_that_is_damaged_is_not_overwritten_and_one_without_its_tensors_begins_anew(tmp_path):
    Rows("thing", tmp_path, {}, "sum").add({"seed": 0})
    path = tmp_path / "measured-thing.json"
    path.with_suffix(".safetensors").unlink()
    assert Rows("thing", tmp_path, {}, "sum").rows == []
    Rows("thing", tmp_path, {}, "sum").add({"seed": 0})
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match=r"measured-thing\.json must be a record in JSON.*--out"):
        Rows("thing", tmp_path, {}, "sum")


def test_a_summary_has_the_spread_and_the_number():
    assert summary([1.0, 2.0, 3.0]) == "2.000 ± 1.000 (n = 3)"
    assert summary([0.25]) == "0.250 (n = 1)"
