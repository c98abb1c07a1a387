"""Run the command line in this process and read what it wrote."""

import json
import re
from pathlib import Path

from vae_core.__main__ import main


def run(out: Path, *arguments: object, name: str = "digits-d2") -> int:
    return main(["run", name, "--device", "cpu", "--out", str(out), *map(str, arguments)])


def read(path: Path) -> dict:
    """Strict JSON: no NaN, no Infinity."""

    def refuse(constant: str):
        raise AssertionError(f"{path.name} holds {constant}, which is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def timeless(history: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def assert_one_error(code: int, capsys, *words: object) -> None:
    captured = capsys.readouterr()
    assert code == 1
    assert captured.out == ""
    assert re.fullmatch(r"error: [^\n]+\n", captured.err)
    assert [word for word in map(str, words) if word not in captured.err] == []
