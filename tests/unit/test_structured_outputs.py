"""The record of the form that an answer must have, and what carries it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sailq.shared.codec import decode, encode
from sailq.shared.errors import BadRequest, Unsupported
from sailq.shared.jobs import GenerationOptions, Job, Message, ModelCard, TextPart, parse
from sailq.shared.structured_outputs import MAX_CHARACTERS, MAX_CHOICES, MAX_DEPTH

SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": True, "颜色": {"enum": ["红"]}}}


def options(**form: Any) -> GenerationOptions:
    return parse(GenerationOptions, {"structured_outputs": form})


def nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize("form", [
    {"json": SCHEMA}, {"json": json.dumps(SCHEMA)}, {"json": True}, {"json_object": True}, {"regex": ""},
    {"choice": ["是", "no"]}, {"grammar": "root ::= \"a\""}, {"json": SCHEMA, "regex": None, "json_object": False},
])
def test_a_form_travels_in_a_job(form: dict[str, Any]) -> None:
    job = Job(id="a", conversation="a", model="m", options=options(**form), submitted_at=1.0,
              messages=(Message(role="user", content=(TextPart(text="Hi"),)),))
    read = decode(Job, encode(job))
    assert read == job and read.options.structured_outputs is not None
    (kind,) = (kind for kind, value in form.items() if value not in (None, False))
    assert read.options.structured_outputs.kind == kind
    assert list(read.options.model_dump()["structured_outputs"]) == [kind]


def test_a_schema_is_one_text_whoever_gives_it_and_keeps_the_order_of_its_keys() -> None:
    spaced = json.dumps(SCHEMA, indent=4)
    assert options(json=SCHEMA) == options(json=spaced) == options(json=json.dumps(SCHEMA, ensure_ascii=False))
    form = options(json=SCHEMA).structured_outputs
    assert form is not None and list(json.loads(form.json_schema or "")["properties"]) == ["b", "a", "颜色"]


def test_what_is_not_asked_for_is_not_sent_so_that_older_versions_can_read_it() -> None:
    assert "structured_outputs" not in GenerationOptions().model_dump()
    card = ModelCard(name="m", context=1, min_pixels=1, max_pixels=2)
    assert "greedy_only" not in card.model_dump() and decode(ModelCard, encode(card)) == card
    greedy = card.model_copy(update={"greedy_only": True})
    assert greedy.model_dump()["greedy_only"] and decode(ModelCard, encode(greedy)) == greedy


CIRCLE: dict[str, Any] = {}
CIRCLE["a"] = CIRCLE


@pytest.mark.parametrize(("form", "why"), [
    ({}, "exactly one"),
    ({"json": {}, "regex": "a"}, "exactly one"),
    ({"json_object": False}, "exactly one"),
    ({"json_object": 1}, "boolean"),
    ({"json": "{"}, "not JSON"),
    ({"json": ""}, "not JSON"),
    ({"json": False}, "object, or true"),
    ({"json": []}, "object, or true"),
    ({"json": "null"}, "object, or true"),
    ({"json": {"a": float("nan")}}, "not JSON"),
    ({"json": '{"a": Infinity}'}, "not JSON"),
    ({"json": {"a": {1}}}, "not JSON"),
    ({"json": CIRCLE}, "not JSON"),
    ({"json": '{"a": ' + "9" * 5000 + "}"}, "not JSON"),
    ({"json": nested(MAX_DEPTH + 1)}, "inside each other"),
    ({"json": nested(10_000)}, "inside each other"),
    ({"json": "[" * 30_000 + "]" * 30_000}, "inside each other"),
    ({"json": {"a": "\ud800"}}, "surrogate"),
    ({"json": '{"a": "\\ud800"}'}, "surrogate"),
    ({"json": {"a": "x" * MAX_CHARACTERS}}, "limit is 65536"),
    ({"json": " " * (MAX_CHARACTERS + 1)}, "limit is 65536"),
    ({"regex": 3}, "string"),
    ({"regex": "a" * 8193}, "8192"),
    ({"regex": "\udc00"}, "unicode"),
    ({"choice": []}, "at least 1"),
    ({"choice": [""]}, "at least 1"),
    ({"choice": "ab"}, "tuple"),
    ({"choice": ["a"] * (MAX_CHOICES + 1)}, "at most 1000"),
    ({"choice": ["a" * 1025]}, "at most 1024"),
    ({"grammar": ""}, "at least 1"),
    ({"grammar": "a" * 16385}, "16384"),
    ({"xml": "a"}, "not permitted"),
])
def test_forms_that_break_the_contract_are_refused_in_one_sentence(form: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRequest) as refused:
        options(**form)
    sentence = str(refused.value)
    assert why in sentence and sentence.startswith("structured_outputs") and sentence.count("\n") == 0
    assert len(sentence) < 400 and sentence.endswith(".")


def test_the_deepest_schema_is_accepted() -> None:
    assert options(json=nested(MAX_DEPTH)).structured_outputs is not None


def test_a_stop_text_and_a_form_exclude_each_other() -> None:
    with pytest.raises(BadRequest, match="stop cannot be combined"):
        parse(GenerationOptions, {"structured_outputs": {"regex": "a*"}, "stop": ["a"]})


@pytest.mark.parametrize("fields", [
    {"temperature": 0.5}, {"repetition_penalty": 1.1}, {"structured_outputs": {"choice": ["a"]}},
])
def test_what_needs_scores_is_refused_by_a_model_that_has_none(fields: dict[str, Any]) -> None:
    with pytest.raises(Unsupported, match="most likely token"):
        parse(GenerationOptions, fields).refuse_greedy_only()
    GenerationOptions(seed=3, top_k=5).refuse_greedy_only()
