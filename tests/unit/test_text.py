"""Incremental text: whole characters, stop texts, and the tokenizer's own decoding as the truth."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from transformers import AutoTokenizer

from sailq.worker.engine.text import TextStream
from sailq.worker.engine.tokenizer import Tokenizer
from sailq.worker.model_files.model_paths import resolve

TEXTS = (
    "A red circle moves left.", "一个红色的圆形向左移动。", "👩‍👩‍👧‍👦 and 🏳️‍🌈 😀!", "naïve café – “quotes” …",
    "mixed 中文 and 😀 emoji\n\nnew paragraph", "", " leading and trailing ", "한국어 และ العربية",
)


@functools.cache
def tokenizer():
    return AutoTokenizer.from_pretrained(resolve("sailq-tiny"))


@functools.cache
def byte_tokens() -> dict[int, int]:
    """Byte value -> id of the token that is this one byte, by what the byte-level alphabet says of it."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in visible}
    letters |= {byte: chr(256 + n) for n, byte in enumerate(b for b in range(256) if b not in visible)}
    return {byte: tokenizer().convert_tokens_to_ids(letter) for byte, letter in letters.items()}


def _decode(tokens: list[int]) -> str:
    return tokenizer().decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _stream(tokens: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(Tokenizer(resolve("sailq-tiny")), stop)
    deltas = []
    for token in tokens:
        deltas.append(stream.push(token))
        if stream.stopped:
            break
    return [*deltas, stream.finish()], stream


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_whole(text: str) -> None:
    tokens = tokenizer()(text)["input_ids"]
    deltas, stream = _stream(tokens)
    assert "".join(deltas) == stream.text == _decode(tokens) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in delta for delta in deltas)


@pytest.mark.parametrize("text", TEXTS)
def test_no_character_is_broken_when_every_token_is_one_byte(text: str) -> None:
    tokens = [byte_tokens()[byte] for byte in text.encode()]
    deltas, _ = _stream(tokens)
    assert "".join(deltas) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in delta for delta in deltas)
    assert len([delta for delta in deltas if delta]) == len(text)  # each as soon as its last byte is there


@pytest.mark.parametrize("seed", range(40))
def test_any_bytes_decode_as_the_tokenizer_decodes_them(seed: int) -> None:
    random = np.random.default_rng(seed)
    size = int(random.integers(1, 60))
    if seed % 2:
        tokens = [byte_tokens()[int(byte)] for byte in random.integers(0, 256, size)]
    else:
        tokens = [int(token) for token in random.integers(0, len(tokenizer()), size)]
    for end in range(size + 1):  # cut at each token
        deltas, stream = _stream(tokens[:end])
        assert "".join(deltas) == stream.text == _decode(tokens[:end])


def test_an_incomplete_character_is_held_back_and_shown_at_the_end() -> None:
    tokens = [byte_tokens()[byte] for byte in "好".encode()[:2]]
    deltas, _ = _stream(tokens)
    assert deltas == ["", "", "\N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize(("text", "stop", "expected"), [
    ("one two three", ("two",), "one "),
    ("one two three", ("three", "two"), "one "),
    ("one two three", ("x",), "one two three"),
    ("aaab", ("aab",), "a"),
    ("abcabd", ("abd",), "abc"),
    ("ends with th", ("three",), "ends with th"),
    ("一二三四", ("三",), "一二"),
    ("stop", ("stop",), ""),
    ("line one\nline two", ("\n",), "line one"),
])
def test_stop_texts_are_cut_off(text: str, stop: tuple[str, ...], expected: str) -> None:
    for tokens in (tokenizer()(text)["input_ids"], [byte_tokens()[byte] for byte in text.encode()]):
        deltas, stream = _stream(tokens, stop)
        assert "".join(deltas) == stream.text == expected
        assert stream.stopped == (expected != text)


def test_nothing_that_a_stop_text_cuts_is_ever_given_out() -> None:
    letters = "ab"
    for text in ("".join(word) for word in itertools.product(letters, repeat=7)):
        deltas, stream = _stream([byte_tokens()[byte] for byte in text.encode()], ("abab", "bb"))
        assert "".join(deltas) == stream.text
        assert "abab" not in stream.text and "bb" not in stream.text
        assert text.startswith(stream.text)


def test_special_tokens_are_not_text() -> None:
    end = tokenizer().convert_tokens_to_ids("<|im_end|>")
    tokens = [*tokenizer()("yes")["input_ids"], end, *tokenizer()("no")["input_ids"]]
    assert "".join(_stream(tokens)[0]) == "yesno" == _decode(tokens)
