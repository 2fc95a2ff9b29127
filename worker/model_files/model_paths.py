"""Finds model directories: the packaged model by its name, any other by its path."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sailq.shared.errors import Unsupported

_PACKAGED = Path(__file__).parents[1] / "models"
NAMES = ("sailq-tiny",)


def resolve(model: str | Path) -> Path:
    """The directory of a model, given by its name or path. Raises Unsupported."""
    path = _PACKAGED / model if str(model) in NAMES else Path(model).expanduser()
    if not (path / "config.json").is_file():
        raise Unsupported(
            f"Unknown model {str(model)!r}: it is neither a directory with a config.json "
            f"nor one of the known names ({', '.join(NAMES)})."
        )
    return path


_READ = ("*.json", "*.jinja", "*.txt")
_PIECES, _PIECE_BYTES = 64, 64 * 1024


def fingerprint(directory: Path, bmodel: Path | None = None) -> str:
    """A hash of 8 hex digits of the files that a worker reads: those of the directory, and the nets.

    Only the size of a file and 64 pieces of it are hashed: reading all 7 GB of a bmodel would take a box a minute. A
    bmodel begins with the checksums of its weights.
    """
    nets = [bmodel] if bmodel else (directory / "onnx").glob("*")
    files = {file.resolve() for pattern in _READ for file in directory.glob(pattern)} | {net.resolve() for net in nets}
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as opened:
            for piece in range(_PIECES):
                opened.seek(max(0, size - _PIECE_BYTES) * piece // (_PIECES - 1))
                digest.update(opened.read(_PIECE_BYTES))
    return digest.hexdigest()[:8]
