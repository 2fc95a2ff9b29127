"""Narrows JSON schemas where llguidance 1.9 allows values that do not fit them.

- Its regexes of dates allow 29 February in every year, and year 0. Those of times allow second 60, which RFC 3339
  allows only for leap seconds, and which few programs read.
- Its regex of a duration allows numbers of any length.
- An exclusive bound that is a whole number is allowed itself, if the other bound has the same whole part: 0 for
  `{"exclusiveMinimum": 0, "maximum": 0.5}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LEAP = r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DATE = (r"^(?:[1-9]|0[1-9]|00[1-9]|000[1-9])", rf"^(?:.{{5}}(?:0[13-9]|1.|02-[01]|02-2[0-8])|{_LEAP}-02-29)")
_PATTERNS: Mapping[str, tuple[str, ...]] = {
    "date": _DATE,
    "date-time": (*_DATE, "^.{17}[0-5]"),
    "time": ("^.{6}[0-5]",),
    "duration": ("^(?:[^0-9]+[0-9]{1,4})+[A-Z]$",),
}
"""Patterns that a text of a format fits, too."""
_BY_NAME = frozenset({"properties", "patternProperties", "$defs", "definitions"})
"""Keywords whose value has a schema for each name."""
_VALUES = frozenset({"const", "enum", "default", "examples"})
"""Keywords whose value is no schema."""
_STEP = 1e-9
_LARGEST = 1e6
"""Up to here a bound and the bound moved by a step are different floats."""


def narrowed(schema: Any) -> Any:
    """A schema, or a list of schemas, that allows the same values without these gaps. Of numbers it leaves out those
    within 1e-9 of an exclusive bound."""
    if isinstance(schema, list):
        return [narrowed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {keyword: value if keyword in _VALUES else _inside(keyword, value) for keyword, value in schema.items()}
    form, every = parts.get("format"), parts.get("allOf", [])
    if isinstance(form, str) and form in _PATTERNS and isinstance(every, list):
        parts["allOf"] = [*every, *({"pattern": pattern} for pattern in _PATTERNS[form])]
    if parts.get("type") != "integer":
        for keyword, sign in ("exclusiveMinimum", 1), ("exclusiveMaximum", -1):
            bound: Any = parts.get(keyword)
            number = isinstance(bound, int | float) and not isinstance(bound, bool)
            if number and bound == int(bound) and 0 <= sign * bound <= _LARGEST:
                parts[keyword] = bound + sign * _STEP
    return parts


def _inside(keyword: str, value: Any) -> Any:
    if keyword in _BY_NAME and isinstance(value, dict):
        return {name: narrowed(schema) for name, schema in value.items()}
    return narrowed(value)
