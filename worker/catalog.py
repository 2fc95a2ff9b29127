"""Where models are: the one that ships with the package, and any directory."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..shared.errors import Unsupported

_PACKAGED = Path(__file__).parent / "models"
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


_EDGE_BYTES = 64 * 1024


def fingerprint(directory: Path, bmodel: Path | None = None) -> str:
    """What tells one version of a model from another: 8 hex digits of its files' names, sizes, beginnings and ends.

    A bmodel begins with its nets and the checksums of their weights; reading all 7 GB of one takes a box a minute.
    """
    digest = hashlib.sha256()
    files = [file for file in directory.rglob("*") if file.is_file()]
    for file in sorted({*files, *([bmodel] if bmodel else [])}):
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(_EDGE_BYTES))
            opened.seek(max(0, size - _EDGE_BYTES))
            digest.update(opened.read())
    return digest.hexdigest()[:8]
