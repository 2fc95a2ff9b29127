"""Grammars over a model's tokens: what they allow, and what hostile ones cost."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel
from schemas import ENDLESS, SCHEMAS
from test_tokenizer import older_pair

from sailq.shared.errors import BadRequest
from sailq.shared.structured_outputs import MAX_DEPTH, StructuredOutputs
from sailq.shared.validation import parse
from sailq.worker.engine.chat_tokenizer import ChatTokenizer
from sailq.worker.engine.grammars import Grammars
from sailq.worker.engine.guides import Guide, MaskWriter
from sailq.worker.engine.masks import Ends
from sailq.worker.engine.model import ModelSpec
from sailq.worker.model_files.model_paths import resolve

PADDING = 100
"""Scores without a token, as real models have."""
SECONDS = 20.0
"""The slowest hostile grammar takes 0.5 s on an idle machine."""
MOST_BYTES = 128 * 2**20


class Model:
    """A tokenizer, and the grammars over it."""

    def __init__(self, directory: Path) -> None:
        chat = ChatTokenizer(ModelSpec.load(directory))
        self.tokenizer, self.end_tokens = chat.tokenizer, chat.end_tokens
        self.vocabulary = ModelSpec.load(directory).vocab_size + PADDING
        self.ends = Ends(self.end_tokens, self.vocabulary)
        self.grammars = Grammars(self.tokenizer, self.vocabulary, self.ends)
        self.writer = MaskWriter(1, self.ends.words)

    def guide(self, **form: Any) -> Guide:
        return self.grammars.compile(parse(StructuredOutputs, form)).guide()

    def accepts(self, text: str, **form: Any) -> bool:
        """Whether the text is a whole answer."""
        guide = self.guide(**form)
        for token in self.tokenizer.encode(text):
            if guide.over or not guide.mask.allows(token):
                return False
            self.feed(guide, token)
        return guide.over or all(map(guide.mask.allows, self.end_tokens))

    def feed(self, guide: Guide, token: int) -> None:
        guide.accept(token)
        if not guide.over:
            self.writer.begin([guide])
            self.writer.finish()

    def walk(self, guide: Guide, seed: int = 0, tokens: int = 40) -> str:
        """The text of a random answer."""
        random, answer = np.random.default_rng(seed), list[int]()
        while not guide.over and len(answer) < tokens:
            answer.append(int(random.choice(guide.mask.tokens)))
            self.feed(guide, answer[-1])
        return self.tokenizer.decode([token for token in answer if token not in self.end_tokens])


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(resolve("sailq-tiny"))


@pytest.mark.parametrize(("form", "right", "wrong"), [
    ({"choice": ["a", "ab", "是 \"\\n\n\0\u2028😀"]}, ["a", "ab", "是 \"\\n\n\0\u2028😀"], ["", "b", "abc", "是"]),
    ({"regex": r"[0-9]{2}:[0-9]{2}|\p{Han}+"}, ["12:30", "红色"], ["1:30", "红a", ""]),
    ({"regex": "a*"}, ["", "a", "aaaa"], ["b", "ab"]),
    ({"json_object": True}, ["{}", '{"a": [1, {"b": null}]}'], ["[]", "1", '{"a":1}', '{ }', '{"a": 1,  "b": 2}']),
    ({"json": {"type": "integer", "minimum": -3}}, ["-3", "0", "12"], ["-4", "1.5", "01", "a"]),
    ({"json": {"properties": {"a": {"type": "null"}}, "required": ["a"], "type": "object"}},
     ['{"a": null}', '{"a": null, "more": 1}'], ["{}", '{"a": 1}']),
    ({"json": {"format": "date-time"}}, ['"2024-02-29T23:59:59.5+01:00"', "1"],
     ['"2023-02-29T00:00:00Z"', '"2023-12-31T23:59:60Z"']),
    ({"json": {"type": "string", "format": "time"}}, ['"23:59:59Z"'], ['"23:59:60Z"']),
    ({"json": {"type": "string", "format": "duration"}}, ['"P1Y2M3DT4H5M6S"', '"P3W"'], ['"PT' + "9" * 20 + 'S"']),
    ({"json": {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}}, ["0.1", "0.5"], ["0", "-0.1", "0.6"]),
    ({"json": {"type": "number", "minimum": -1.5, "exclusiveMaximum": -1}}, ["-1.5", "-1.01"], ["-1", "-1.6"]),
    ({"json": {"type": ["integer", "null"], "exclusiveMinimum": 0}}, ["1", "null"], ["0", "0.5"]),
    ({"json": {"properties": {"const": {"format": "date"}}, "type": "object"}},
     ['{"const": "2024-02-29"}'], ['{"const": "2023-02-29"}']),
    ({"json": {"const": {"format": "date"}}}, ['{"format": "date"}'], ['{"format": "2024-02-29"}']),
    ({"json": True}, ["1", "null", '{"a": "b"}', '"红\\n"'], ["", "nul", "'a'"]),
    ({"grammar": 'start: word (", " word)*\nword: /[a-z]+/'}, ["a", "a, b"], ["a,b", "A", ""]),
    ({"grammar": 'root ::= "(" root ")" | [0-9]+'}, ["7", "((42))"], ["(7", "()"]),
])
def test_a_form_allows_just_what_it_says(
    model: Model, form: dict[str, Any], right: list[str], wrong: list[str]
) -> None:
    assert [text for text in right if not model.accepts(text, **form)] == []
    assert [text for text in wrong if model.accepts(text, **form)] == []


def test_just_the_dates_of_the_calendar_fit(model: Model) -> None:
    random = np.random.default_rng(5)
    years = [0, 1, 4, 100, 400, 1900, 2000, 9999, *random.integers(1, 9999, 20).tolist()]
    for year, month, day in itertools.product(years, (1, 2, 4, 12), (0, 1, 28, 29, 30, 31, 32)):
        text = f"{year:04}-{month:02}-{day:02}"
        assert model.accepts(f'"{text}"', json={"format": "date"}) == is_date(text), text


def is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def test_no_mask_has_a_token_without_a_text(model: Model) -> None:
    for form in ({"regex": "(.|\n)*"}, {"json": True}, {"grammar": 'start: "a" <|im_start|> | "b"'}):
        tokens = set(model.guide(**form).mask.tokens.tolist())
        assert max(tokens) < model.vocabulary - PADDING and tokens
        special = {model.tokenizer.token(text) for text in model.tokenizer.control}
        assert tokens & special <= model.end_tokens
        assert not tokens & special or model.end_tokens <= tokens


def test_what_can_only_go_on_in_one_way_is_forced_and_ends_with_its_last_token(model: Model) -> None:
    guide, answer = model.guide(choice=["only this, 红色"]), list[int]()
    while not guide.over:
        assert guide.forced is not None and guide.mask.tokens.tolist() == [guide.forced]
        answer.append(guide.forced)
        model.feed(guide, answer[-1])
    assert model.tokenizer.decode(answer) == "only this, 红色" and not model.end_tokens & set(answer)
    assert model.guide(regex="").forced in model.end_tokens


def test_guides_of_one_grammar_do_not_meet(model: Model) -> None:
    first, second = model.guide(choice=["ab", "cd"]), model.guide(choice=["ab", "cd"])
    a, c = (model.tokenizer.encode(text)[0] for text in ("a", "c"))
    model.feed(first, a)
    assert second.mask.allows(c) and not first.mask.allows(c)


def test_the_same_form_is_compiled_once_whatever_the_thread(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = parse(StructuredOutputs, {"choice": ["once", "twice"]})
    compiled = model.grammars.compile(form)
    assert model.grammars.compile(parse(StructuredOutputs, {"choice": ["once", "twice"]})) is compiled
    texts: list[str] = []
    threads = [threading.Thread(target=lambda seed=seed: texts.append(
        Model.walk(model_of(model), compiled.guide(), seed))) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 4 and set(texts) <= {"once", "twice"}


def model_of(model: Model) -> Model:
    """The same with a mask writer of its own: a writer belongs to one thread."""
    other = Model.__new__(Model)
    other.__dict__ = {**model.__dict__, "writer": MaskWriter(1, model.ends.words)}
    return other


def test_a_directory_with_vocab_and_merges_gives_the_same_grammars(model: Model, tmp_path: Path) -> None:
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
                 "chat_template.jinja"):
        shutil.copy(resolve("sailq-tiny") / name, tmp_path)
    older_pair(tmp_path)
    older = Model(tmp_path)
    form = {"json": {"type": "object", "properties": {"颜色": {"maxLength": 5}}, "required": ["颜色"]}}
    for seed in range(5):
        assert older.walk(older.guide(**form), seed) == model.walk(model.guide(**form), seed)


class Node(BaseModel):
    children: list[Node] = []


def deep(depth: int) -> Any:
    value: Any = {"type": "string"}
    for _ in range(depth):
        value = {"items": value}
    return value


DOUBLING = {"$defs": {"0": {"type": "string"}, **{f"{n}": {"type": "array", "prefixItems": [
    {"$ref": f"#/$defs/{n - 1}"}] * 2} for n in range(1, 40)}}, "$ref": "#/$defs/39"}
"""Two to the power of 39 strings."""
HOSTILE: dict[str, dict[str, Any]] = {
    "recursion": {"json": Node.model_json_schema()},
    "endless reference": {"json": {"$defs": {"n": {"$ref": "#/$defs/n"}}, "$ref": "#/$defs/n"}},
    "endless allOf": {"json": {"$defs": {"n": {"allOf": [{"$ref": "#/$defs/n"}] * 2}}, "$ref": "#/$defs/n"}},
    "no end": {"json": {"$defs": {"n": {"type": "object", "properties": {"c": {"$ref": "#/$defs/n"}},
                                        "required": ["c"]}}, "$ref": "#/$defs/n"}},
    "deep": {"json": deep(MAX_DEPTH - 1)},
    "doubling": {"json": DOUBLING},
    "enum of 6,000": {"json": {"enum": [f"v{n}" for n in range(6000)]}},
    "1,000 anyOf": {"json": {"anyOf": [{"type": "object", "properties": {f"k{n}": True}} for n in range(1000)]}},
    "product of anyOf": {"json": {"allOf": [{"anyOf": [{"properties": {f"p{n}_{m}": {"type": "string"}}}
                                                       for m in range(6)]} for n in range(12)]}},
    "1,000 optional": {"json": {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(1000)}}},
    "a billion items": {"json": {"type": "array", "minItems": 10**9, "items": {"type": "null"}}},
    "a billion characters": {"json": {"type": "string", "minLength": 10**9}},
    "pattern": {"json": {"type": "string", "pattern": "((a{1000}){1000}){1000}"}},
    "other document": {"json": {"$ref": "http://127.0.0.1:9/x"}},
    "options": {"json": {"x-guidance": {"whitespace_pattern": "x*", "lenient": True}, "uniqueItems": True}},
    "regex of powers": {"regex": "(a{1000}){1000}"},
    "regex of dots": {"regex": "(.{1,100}){1,100}"},
    "regex of states": {"regex": "(a|b)*a(a|b){200}"},
    "regex of optional": {"regex": "(a?){3000}a{3000}"},
    "regex of classes": {"regex": r"(\p{L}\p{N}?){1,2000}"},
    "regex in the middle": {"grammar": 'start: "a" /(b{1000}){1000}/'},
    "1,000 choices": {"choice": [f"{n} " + "x" * 1000 for n in range(1000)]},
    "NUL": {"choice": ["\0", "\0\0"]},
    "lark": {"grammar": "start: e\ne: e e e | \"a\" |"},
    "lark of repeats": {"grammar": 'start: ("a"?){100000}'},
    "lark of rules": {"grammar": "start: r0\n" + "".join(f"r{n}: r{n + 1} r{n + 1}\n" for n in range(60)) + 'r60: "a"'},
    "gbnf of brackets": {"grammar": "root ::= " + "(" * 8000 + '"a"' + ")" * 8000},
    "gbnf of alternatives": {"grammar": "root ::= " + " | ".join(f'"{n}"' for n in range(1800))},
    "no text": {"regex": r"[^\x00-\x{10FFFF}]"},
    "only a control token": {"grammar": 'start: "a" <|im_end|> "b"'},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_form_is_refused_or_answered_within_bounds(model: Model, name: str) -> None:
    model.guide(choice=["x"])
    process, began = psutil.Process(), time.monotonic()
    before = process.memory_info().rss
    try:
        guide = model.guide(**HOSTILE[name])
        model.walk(guide)
    except BadRequest as error:
        sentence = str(error)
        assert sentence.endswith(".") and "\n" not in sentence and len(sentence) < 400
        assert not any(word in sentence.lower() for word in ("guidance", "lexer", "lexeme", "parser", "ff_tokens"))
    assert time.monotonic() - began < SECONDS
    assert process.memory_info().rss - before < MOST_BYTES


@pytest.mark.parametrize(("form", "sentence"), [
    ({"json": {"uniqueItems": True, "not": {}}}, "The schema has keywords that are not supported: not, uniqueItems."),
    ({"json": {"type": "integer", "minimum": 5, "maximum": 3}},
     "No text fits the schema: minimum (5) is greater than maximum (3)."),
    ({"json": {"type": "strin"}}, "The schema is not valid: "),
    ({"json": {"type": "string", "format": "binary"}}, "The schema is not valid: Unknown format: binary."),
    ({"json": {"type": "number", "maximum": 1e20}}, "The schema has a number that is too large."),
    ({"json": {"type": "integer", "minimum": -2**63}}, "The schema has a number that is too large."),
    ({"json": {"const": 2**70}}, "The schema has a number that is too large."),
    ({"json": {"oneOf": [{"type": "string"}, {"maxLength": 3}]}},
     "The schema has a oneOf whose parts overlap, or may overlap: use anyOf."),
    ({"json": {"$ref": "http://localhost/x"}},
     "The schema refers to another document: only references inside it are followed."),
    ({"json": {"$ref": "#/$defs/none"}}, "The schema"),
    ({"regex": "("}, "The regex is not valid: unclosed group."),
    ({"regex": "a(?=b)"},
     "The regex is not valid: look-around, including look-ahead and look-behind, is not supported."),
    (HOSTILE["product of anyOf"], "The schema is too complex."),
    ({"regex": r"[^\x00-\x{10FFFF}]"}, "No text fits the regex."),
    ({"grammar": "start: nowhere"}, "The grammar is not valid: line 1, column 8: unknown name"),
    ({"grammar": "garbage"}, "The grammar is not valid: "),
    (HOSTILE["gbnf of brackets"], "The grammar is too complex."),
    ({"grammar": "start: start"}, "No text fits the grammar."),
])
def test_a_form_that_cannot_be_compiled_is_refused_in_one_sentence(
    model: Model, form: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(BadRequest) as refused:
        model.guide(**form)
    assert str(refused.value).startswith(sentence) and "\n" not in str(refused.value)


@pytest.mark.parametrize("keyword", [
    "not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "propertyNames",
    "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties", "unevaluatedItems",
    "$dynamicRef", "$recursiveRef",
])
def test_a_keyword_that_cannot_be_kept_is_refused(model: Model, keyword: str) -> None:
    with pytest.raises(BadRequest, match=f"not supported: .*{keyword.replace('$', '.')}"):
        model.guide(json={keyword: {}})


KEYWORDS: dict[str, Any] = {
    "minProperties": {"type": "object", "minProperties": 1, "additionalProperties": False, "properties": {
        "a": {"type": "null"}, "b": {"type": "null"}}},
    "maxProperties": {"type": "object", "maxProperties": 1, "additionalProperties": {"type": "null"}},
    "patternProperties": {"type": "object", "patternProperties": {"^x": {"type": "null"}},
                          "additionalProperties": False},
    "pattern and length": {"type": "string", "pattern": "^(ab?)*$", "minLength": 2, "maxLength": 4},
    "multipleOf": {"type": "integer", "multipleOf": 7, "minimum": 10, "maximum": 100},
    "multipleOf with decimals": {"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 2},
    "exclusive bound": {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5},
    "exclusive bounds": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "integer between decimals": {"type": "integer", "minimum": 1.5, "maximum": 3.5},
    "enum and type": {"type": "integer", "enum": [1, 2.5, "a"]},
    "enum of anything": {"enum": [{"a": 1}, [1, 2], None, True, 1.5, "s\n\"\\"]},
    "oneOf": {"oneOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"type": "null"}]},
    "allOf": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]},
    "anyOf beside properties": {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"], "anyOf": [
        {"properties": {"b": {"type": "null"}}, "required": ["b"]}, {"required": ["a"]}]},
    "length in characters": {"type": "string", "minLength": 2, "maxLength": 2},
    "required alone": {"type": "object", "required": ["zz"], "additionalProperties": {"type": "null"}},
    "reference and sibling": {"$ref": "#/$defs/a", "maximum": 5, "$defs": {"a": {"type": "integer", "minimum": 4}}},
    "reference by id": {"$id": "http://x/y", "$ref": "z", "$defs": {"z": {"$id": "z", "type": "null"}}},
    "reference by anchor": {"$ref": "#q", "$defs": {"z": {"$anchor": "q", "type": "null"}}},
    **{name: {"type": "string", "format": name}
       for name in ("date", "date-time", "time", "duration", "ipv4", "ipv6", "uuid", "hostname")},
}


@pytest.mark.parametrize("name", [*SCHEMAS, *KEYWORDS])
def test_random_answers_fit_their_schema(model: Model, name: str) -> None:
    """By the judgement of `jsonschema`; no key comes twice."""
    schema = {**SCHEMAS, **KEYWORDS}[name]
    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    whole = 0
    for seed in range(12):
        guide = model.guide(json=schema)
        text = model.walk(guide, seed, 200)
        if guide.over:
            whole += 1
            validator.validate(json.loads(text, object_pairs_hook=without_repeats))
    assert whole or name in ENDLESS


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len({key for key, _ in pairs}) == len(pairs), pairs
    return dict(pairs)


def test_schemas_with_comments_are_accepted(model: Model) -> None:
    comments = {"title": "t", "description": "d", "default": 1, "examples": [1], "deprecated": True, "$comment": "c",
                "$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "http://x/y", "readOnly": True}
    assert model.accepts("3", json={"type": "integer", **comments})


def test_any_text_can_be_a_choice(model: Model) -> None:
    """Also texts that the tokenizer would normalise, or read as control tokens."""
    random = np.random.default_rng(3)
    texts = ["".join(map(chr, random.integers(0, 0x2FFF, random.integers(1, 12)))) for _ in range(20)]
    for text in [*texts, "e\N{COMBINING ACUTE ACCENT}", "<|im_end|>", "a<|image_pad|>b", "\ufffd", "\U0010ffff"]:
        assert model.walk(model.guide(choice=[text]), tokens=200) == text
        assert json.loads(model.walk(model.guide(json={"const": text}), tokens=200)) == text
