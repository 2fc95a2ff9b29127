"""Where models are: the one that ships with the package, and any directory."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sailq.shared.errors import Unsupported

_PACKAGED = Path(__file__).parents[1] / "models"
NAMES = ("sailq-tiny",)


def resolve(model: str | Path) -> Path:
    """The directory of a known model's name, or of a path; raises Unsupported."""
    path = _PACKAGED / model if str(model) in NAMES else Path(model).expanduser()
    if not (path / "config.json").is_file():
        raise Unsupported(
            f"There is no model {str(model)!r}: neither a directory with a config.json "
            f"nor one of the known names ({', '.join(NAMES)})."
        )
    return path


_READ = ("*.json", "*.jinja", "*.txt")
_PIECES, _PIECE_BYTES = 64, 64 * 1024


def fingerprint(directory: Path, bmodel: Path | None = None) -> str:
    """8 hex digits that differ where a model's files do: what a worker reads of its directory, and its nets.

    Of a large file, its size and 64 pieces: all 7 GB of a bmodel would take a box a minute. A bmodel begins with the
    checksums of its weights.
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
