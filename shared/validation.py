"""The base of records and options, and the error of one that is invalid."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from .errors import BadRequest, quoted

_IDENTIFIER = r"^[A-Za-z0-9._-]{1,128}$"
_NAME = r"^[A-Za-z0-9_-]{1,64}$"
_DIGEST = r"^[0-9a-f]{64}$"
_PATTERNS = {
    _IDENTIFIER: "must have 1 to 128 characters of A-Z, a-z, 0-9, '.', '_' and '-'",
    _NAME: "must have 1 to 64 characters of A-Z, a-z, 0-9, '_' and '-'",
    _DIGEST: "must be a sha256 in hex",
}
Identifier = Annotated[str, Field(pattern=_IDENTIFIER)]
"""A name that becomes part of a Redis key, without characters that could change the rest of the key."""
Name = Annotated[str, Field(pattern=_NAME)]
"""A name that can be put before an identifier with a dot."""
Digest = Annotated[str, Field(pattern=_DIGEST)]
"""A sha256 in hex."""


def is_identifier(text: str) -> bool:
    """Whether `text` may be the id of a job."""
    return re.fullmatch(_IDENTIFIER, text) is not None


class StrictModel(BaseModel):
    """Refuses unknown fields, NaN and infinity; no coercion, no mutation. Its schema is built at its first use, because
    a command's help needs the fields alone."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, defer_build=True)


@dataclass(frozen=True)
class Flag:
    """What `--help` shows for a field besides its description (see `options`).

    Attributes:
        metavar: the word for its value.
        default: what a default of None means.
    """

    metavar: str
    default: str | None = None


R = TypeVar("R", bound=StrictModel)


def parse(kind: type[R], fields: Any) -> R:
    """A checked `kind` from plain data; raises BadRequest with the first complaint as a sentence."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise BadRequest(_sentence(error)) from None


def reason(error: ErrorDetails) -> str:
    """What is wrong with a field, as the end of a sentence."""
    if error["type"] == "string_pattern_mismatch":
        return _PATTERNS[error["ctx"]["pattern"]]
    return f"{error['msg'][0].lower()}{error['msg'][1:]}"


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where, message = ".".join(str(step) for step in first["loc"]), reason(first)
    return f"{quoted(where)}: {quoted(message)}." if where else f"{quoted(message)}."
