"""Reads JSON that others have sent."""

from __future__ import annotations

from typing import Any

import pydantic_core

MOST_MARKS = 2**18
"""Commas, and brackets that open. A JSON text has at most one value more than these; base64 has none of them."""


def read_json(data: bytes) -> Any:
    """The value in a JSON text. Raises ValueError, also for a text whose values would take much memory and time."""
    if sum(map(data.count, (b",", b"[", b"{"))) > MOST_MARKS:
        raise ValueError(f"it has more than {MOST_MARKS} commas and opening brackets")
    return pydantic_core.from_json(data, allow_inf_nan=False)
