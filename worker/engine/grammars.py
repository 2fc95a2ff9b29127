"""Compiles `structured_outputs` into grammars over a model's tokens, with llguidance."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from sailq.shared.errors import BadRequest, quoted
from sailq.shared.structured_outputs import StructuredOutputs

from .guides import Guide
from .masks import Ends, Mask
from .schema_gaps import narrowed
from .tokenizer import Tokenizer

if TYPE_CHECKING:  # `sailq doctor` imports this where no worker is installed
    from llguidance import LLMatcher
    from llguidance._lib import JsonCompileOptions

CACHED = 16
"""Grammars that an engine keeps."""
_JSON: JsonCompileOptions = {
    # Python's separators: models have seen them most, and a small model cannot fill an answer with blanks.
    "item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False,
    # Keywords are refused if they cannot be kept.
    "lenient": False, "coerce_one_of": False,
}
_COMPLEX = re.compile("too many|too large|too big|too complex|fuel|max is|recursion", re.IGNORECASE)


class Grammar:
    """A compiled form, in the state before the first token."""

    def __init__(self, matcher: LLMatcher, mask: Mask, ends: Ends) -> None:
        self._matcher, self._mask, self._ends = matcher, mask, ends

    def guide(self) -> Guide:
        """A guide of one answer."""
        return Guide(self._matcher.deep_copy(), self._mask, self._ends)


class Grammars:
    """The grammars of one model. May be used from any thread."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, ends: Ends) -> None:
        """`vocabulary`: size of the model's logits; the tokenizer may have fewer tokens.

        With 152,000 tokens this takes half a second, in which no other thread runs, and some 20 MB.
        """
        from llguidance import LLParserLimits, LLTokenizer, TokenizerWrapper

        self._ends = ends
        # A tenth to a fifth of the defaults: a grammar that exceeds them costs some 0.2 s and 50 MB at most.
        self._limits = LLParserLimits(
            initial_lexer_fuel=100_000, step_max_items=10_000, max_lexer_states=50_000, verbose_errors=False
        )
        self._tokenizer = LLTokenizer(TokenizerWrapper(_Words(tokenizer, vocabulary, ends)))
        self.compile = lru_cache(CACHED)(self._compile)
        """Compile a form, or return it from the cache. Raises BadRequest if it is invalid, or exceeds a limit."""

    def _compile(self, form: StructuredOutputs) -> Grammar:
        from llguidance import LLMatcher

        try:
            matcher = LLMatcher(self._tokenizer, _source(form), log_level=0, limits=self._limits)
            bits = np.frombuffer(matcher.compute_bitmask(), np.uint32).copy()
        except ValueError as error:
            raise BadRequest(_sentence(form.kind, str(error))) from None
        mask = Mask(bits, self._ends)
        if matcher.is_error() or mask.empty:
            raise BadRequest(_sentence(form.kind, matcher.get_error() or "NoExtension"))
        return Grammar(matcher, mask, self._ends)


class _Words:
    """A tokenizer in the form that llguidance asks for. It calls it from threads of its own, with the GIL."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, ends: Ends) -> None:
        self.tokens = [*tokenizer.token_bytes(vocabulary), b"<|end of answer|>"]
        self.eos_token_id = ends.mark
        self.special_token_ids = [*tokenizer.control_tokens, ends.mark]
        self._encode, self._decode = tokenizer.encode, tokenizer.decode
        self._byte_tokens = {word[0]: token for token, word in enumerate(self.tokens) if len(word) == 1}

    def __call__(self, text: bytes | str) -> list[int]:
        """Tokens of exactly this text: it is normalised only in prompts, and control tokens in it are text."""
        text = text if isinstance(text, str) else text.decode("utf-8")
        tokens = self._encode(text)
        return tokens if self._decode(tokens) == text else [self._byte_tokens[byte] for byte in text.encode()]


def _source(form: StructuredOutputs) -> str:
    """llguidance's own form of a grammar. Raises ValueError.

    It keeps all of a schema but one: a "date" may be 29 February of any year.
    """
    from llguidance import LLMatcher, grammar_from

    if form.json_object:
        return LLMatcher.grammar_from_json_schema({"type": "object"}, overrides=_JSON)
    if form.json_schema is not None:
        schema: dict[str, Any] = json.loads(form.json_schema)
        schema.pop("x-guidance", None)  # llguidance would read options from it
        return LLMatcher.grammar_from_json_schema(narrowed(schema), overrides=_JSON)
    if form.choice is not None:
        texts = " | ".join(json.dumps(text, ensure_ascii=False) for text in form.choice)
        return LLMatcher.grammar_from_lark(f"start: {texts}")
    if form.regex is not None:
        return LLMatcher.grammar_from_regex(form.regex)
    return grammar_from("grammar", form.grammar or "")


def _sentence(kind: str, error: str) -> str:
    """llguidance's error for people."""
    name = "schema" if kind.startswith("json") else kind
    lines = [line.strip() for line in error.splitlines()] or [""]
    first = lines[0].removeprefix("Failed to convert the grammar from GBNF to Lark: ").rstrip(".")
    first = re.sub(r"^(at )?(\d+)\((\d+)\): ", r"line \2, column \3: ", first)
    if _COMPLEX.search(first):
        return f"The {name} is too complex."
    if "NoExtension" in first:
        return f"No text fits the {name}."
    if first.startswith("Unimplemented keys: "):
        return f"The schema has keywords that are not supported: {quoted(', '.join(json.loads(first[20:])))}."
    if first.startswith("Unsatisfiable schema: "):
        return f"No text fits the schema: {quoted(first[22:])}."
    if re.search("regex for (float|integer) range|not JSON serializable", first):
        return "The schema has a number that is too large."
    if first.startswith("oneOf"):
        return "The schema has a oneOf whose parts overlap, or may overlap: use anyOf."
    if first.startswith("Resource "):
        return "The schema refers to another document: only references inside it are followed."
    why = next((line[7:] for line in lines if line.startswith("error: ")), first)
    return f"The {name} is not valid: {quoted(why)}."
