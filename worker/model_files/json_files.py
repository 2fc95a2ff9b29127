"""Reads the JSON files of a model directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sailq.shared.errors import Unsupported

Json = Mapping[str, Any]
"""A JSON object."""


def read_object(path: Path) -> Json | None:
    """The JSON object in a file, or None where there is no file; raises Unsupported for anything else."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Unsupported(f"{path} cannot be read: {error}.") from None
    if not isinstance(value, dict):
        raise Unsupported(f"{path} does not hold a JSON object.")
    return value
