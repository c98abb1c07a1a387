"""The record of a measurement that is made row by row: each row is kept as it ends, so that the script can go on."""

import json
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from vae_core.experiments.records import provenance, write_record
from vae_core.runtime import Runtime, save_tensors

Row = dict[str, Any]


class Rows:
    """`measured-NAME.json` in a folder, with `figures["rows"]`, and the tensors beside it.

    Rows of an earlier call are kept if they were made with the same settings from the same data, and made anew if not.

    Args:
        name: of the measurement; its command is `python book/NAME.py`, with underscores.
        folder: where both files lie.
        config: the settings, of a kind that JSON knows.
        data_sha256: the checksum of the data, or one for each data set.

    Raises:
        ValueError: The file of an earlier call holds no JSON.
    """

    def __init__(self, name: str, folder: Path, config: Row, data_sha256: str | dict[str, str]) -> None:
        self.path = folder / f"measured-{name}.json"
        made = provenance(self.path.stem, f"python book/{name.replace('-', '_')}.py", Runtime.detect("cpu"))
        made |= {"data_sha256": data_sha256, "config": config, "figures": {"rows": []}, "wall_seconds": 0.0}
        self.record, self.tensors = json.loads(json.dumps(made)), {}
        before = self._before()
        if all(before.get(key) == self.record[key] for key in ("config", "data_sha256")):
            self.record |= {key: before[key] for key in ("figures", "wall_seconds")}
            self.tensors = load_file(self.path.with_suffix(".safetensors"))
        self._since = time.perf_counter()

    def _before(self) -> Row:
        """Return what an earlier call has recorded; nothing if one of its two files is not there."""
        if not (self.path.exists() and self.path.with_suffix(".safetensors").exists()):
            return {}
        try:
            before: Row = json.loads(self.path.read_text())
        except ValueError:
            raise ValueError(
                f"{self.path} must be a record in JSON, and is none; move it away, or choose another --out"
            ) from None
        return before

    @property
    def rows(self) -> list[Row]:
        """The rows so far."""
        rows: list[Row] = self.record["figures"]["rows"]
        return rows

    def __contains__(self, key: Row) -> bool:
        return any(key.items() <= row.items() for row in self.rows)

    def add(self, row: Row, tensors: dict[str, Tensor] | None = None) -> None:
        """Keep one more row, and the tensors that belong to it; both files are written whole, the record last."""
        now = time.perf_counter()
        self.rows.append(row)
        self.tensors |= tensors or {}
        self.record["wall_seconds"] += now - self._since
        self._since = now
        save_tensors(self.tensors, self.path.with_suffix(".safetensors"))
        write_record(self.record, self.path)
        print(row, flush=True)


def values(rows: list[Row], figure: str, **key: Any) -> list[float]:
    """Return one figure of all rows that have these entries."""
    return [row[figure] for row in rows if key.items() <= row.items()]


def summary(found: list[float]) -> str:
    """Return mean ± standard deviation and their number: `"0.31 ± 0.05 (n = 5)"`."""
    spread = f" ± {stdev(found):.3f}" if len(found) > 1 else ""
    return f"{mean(found):.3f}{spread} (n = {len(found)})"
