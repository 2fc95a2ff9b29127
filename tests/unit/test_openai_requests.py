"""Requests that would hold up all others are refused before their messages are read."""

from __future__ import annotations

from typing import Any

import pytest

from sailq.producer.openai_api.errors import ApiError
from sailq.producer.openai_api.json_text import MOST_MARKS, read_json
from sailq.producer.openai_api.requests import read_question, read_request

PART = {"type": "text", "text": "x"}


def question(*contents: Any) -> Any:
    messages = [{"role": "user", "content": content} for content in contents]
    return read_question(read_request({"model": "m", "messages": messages}), None)


def test_messages_and_parts_are_limited_together() -> None:
    assert len(question(*[[PART] * 512] * 2).messages) == 2
    for contents in ([[PART] * 513] * 2, ["x"] * 1025):
        with pytest.raises(ApiError) as refused:
            question(*contents)
        assert refused.value.status == 400


@pytest.mark.parametrize("value", [b"1", b"[]", b"{}"])
def test_json_of_many_values_is_refused(value: bytes) -> None:
    assert len(read_json(b"[" + b",".join([value] * 1000) + b"]")) == 1000
    with pytest.raises(ValueError, match="commas"):
        read_json(b"[" + b",".join([value] * (MOST_MARKS + 1)) + b"]")
    assert len(read_json(b'"' + b"x" * (8 * MOST_MARKS) + b'"')) == 8 * MOST_MARKS
