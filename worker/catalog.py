"""Where models are: the one that ships with the package, and any directory."""

from __future__ import annotations

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
