"""What a run of `gpu.py` has left, in few files that fit through a narrow door."""

import contextlib
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

from vae_core.runtime import replacing


def pack(out: Path, folder: Path, limit: int = 15 * 2**20) -> list[Path]:
    """Everything in `out` in few files: records and messages in one, weights in as many as their size asks for."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [path for path in sorted(out.rglob("*")) if path.suffix in (".json", ".txt", ".log")]
    packed = [archive(folder / "records.tar.gz", texts, out)]
    share: list[Path] = []
    weights = sorted(out.glob("*.safetensors"), key=lambda path: (("-e" in path.stem), path.name))
    for path in weights:
        if path.stat().st_size > limit:
            continue
        if share and sum(p.stat().st_size for p in [*share, path]) > limit:
            packed.append(archive(folder / f"weights-{len(packed)}.tar.gz", share, out))
            share = []
        share.append(path)
    return [*packed, archive(folder / f"weights-{len(packed)}.tar.gz", share, out)] if share else packed


def archive(path: Path, files: Sequence[Path], root: Path) -> Path:
    with replacing(path) as part, tarfile.open(part, "w:gz", compresslevel=5) as tar:
        for file in files:
            with contextlib.suppress(FileNotFoundError):  # a file of a run that is going on
                content = file.read_bytes()
                told = tarfile.TarInfo(str(file.relative_to(root)))
                told.size, told.mtime = len(content), int(file.stat().st_mtime)
                tar.addfile(told, io.BytesIO(content))
    return path
