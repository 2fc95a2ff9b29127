"""The form that an answer must have: vLLM's `structured_outputs`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from .validation import StrictModel

MAX_CHARACTERS = 64 * 1024
"""Of a schema as JSON text."""
MAX_GRAMMAR_CHARACTERS = 16 * 1024
MAX_REGEX_CHARACTERS = 8 * 1024
MAX_DEPTH = 64
"""Objects and lists of a schema inside each other."""
MAX_CHOICES = 1000
MAX_CHOICE_CHARACTERS = 1024

_Choice = Annotated[str, Field(min_length=1, max_length=MAX_CHOICE_CHARACTERS)]


def _schema(given: Any) -> str | None:
    """A schema (an object, true, or either as JSON text) as compact JSON text. The order of its keys is kept, because
    it is the order of the answer's keys."""
    if given is None:
        return None
    if isinstance(given, str):
        given = _json(_checked_length(given))
    schema, text = _plain(given)
    if schema is False or not isinstance(schema, dict | bool):
        raise _error("must be a JSON schema: an object, or true")
    _checked_length(text)
    if any(depth > MAX_DEPTH for depth in _depths(schema)):
        raise _error(_TOO_DEEP)
    return "{}" if schema is True else text


_TOO_DEEP = f"has more than {MAX_DEPTH} objects and lists inside each other"


def _checked_length(text: str) -> str:
    if len(text) > MAX_CHARACTERS:
        raise _error("has {length} characters; the limit is {limit}", length=len(text), limit=MAX_CHARACTERS)
    return text


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise _error(_TOO_DEEP) from None
    except ValueError:
        raise _error("is not JSON") from None


def _plain(value: Any) -> tuple[Any, str]:
    """A value as JSON has it, without tuples and with texts as keys, and its JSON text."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError:
        raise _error("holds half a surrogate pair") from None
    except RecursionError:
        raise _error(_TOO_DEEP) from None
    except (TypeError, ValueError):
        raise _error("is not JSON") from None
    return _json(text), text


def _depths(value: Any) -> Iterator[int]:
    """How deep each value inside `value` is, without recursion."""
    left = [(value, 0)]
    while left:
        value, depth = left.pop()
        yield depth
        if depth <= MAX_DEPTH and isinstance(value, dict | list):
            left += [(one, depth + 1) for one in (value.values() if isinstance(value, dict) else value)]


def _error(message: str, **fields: Any) -> PydanticCustomError:
    return PydanticCustomError("structured_outputs", message, fields)


class StructuredOutputs(StrictModel, title="Structured outputs"):
    """The form of one answer, with vLLM's fields. Exactly one of them is set.

    Attributes:
        json_schema: vLLM's `json`, by which it is set and sent: a JSON schema, which the answer fits. It is an object,
            true, or either as JSON text, and is kept as JSON text.
        json_object: True: the answer is any JSON object. False is the same as None.
        regex: the whole answer matches it. Syntax of Rust's `regex` crate.
        choice: the answer is one of these texts.
        grammar: a context-free grammar in Lark's or llama.cpp's (GBNF) notation.
    """

    json_schema: Annotated[str | None, BeforeValidator(_schema), Field(alias="json")] = None
    json_object: Annotated[bool | None, AfterValidator(lambda given: given or None)] = None
    regex: Annotated[str, Field(max_length=MAX_REGEX_CHARACTERS)] | None = None
    choice: Annotated[tuple[_Choice, ...], Field(min_length=1, max_length=MAX_CHOICES, strict=False)] | None = None
    grammar: Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR_CHARACTERS)] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> StructuredOutputs:
        if len(self._given()) != 1:
            raise _error("must have exactly one of json, json_object, regex, choice and grammar")
        try:
            "".join([self.regex or "", self.grammar or "", *(self.choice or ())]).encode()
        except UnicodeEncodeError:
            raise _error("holds half a surrogate pair") from None
        return self

    @model_serializer(mode="plain")
    def _given(self) -> dict[str, Any]:
        values = {"json": self.json_schema, "json_object": self.json_object, "regex": self.regex,
                  "choice": self.choice, "grammar": self.grammar}
        return {kind: value for kind, value in values.items() if value is not None}

    @property
    def kind(self) -> str:
        """The name of the one field that is set, as vLLM spells it."""
        (kind,) = self._given()
        return kind
