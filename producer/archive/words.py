"""Words of a text, as SQLite's full-text index (FTS5) stores and finds them.

FTS5 divides text at spaces and punctuation. Chinese and Japanese have no spaces, so a run of their characters is
indexed as its pairs: 红色汽车 as 红色, 色汽, 汽车 and 车. Then a word of two characters is one entry of the index, and
a longer one is a phrase.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from typing import Literal

_DENSE = re.compile("[々〆\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U000323af]+")
"""A run of characters that are written without spaces, and of Korean ones: their words have changing ends."""
_Kind = Literal["whole", "end", "alone"]
"""A word or a pair; the last character of a dense run, after its last pair; a dense run of one character."""
_QUERY = re.compile(r'"([^"]*)"|(\S+)')


def indexed(text: str) -> str:
    """The text as the index gets it."""
    return " ".join(token for token, _ in _tokens(text))


def query(text: str) -> str:
    """FTS5's query for what a person types: all words, in any order, and phrases in "quotation marks". Empty if it has
    no word."""
    phrases = (phrase or word for phrase, word in _QUERY.findall(text))
    return " AND ".join(filter(None, map(_phrase, phrases)))


def exact(name: str) -> str:
    """A word of the index that stands for a name as a whole: digits, which FTS5 does not shorten."""
    return str(int.from_bytes(hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:8], "big"))


def _phrase(text: str) -> str:
    tokens = list(_tokens(text))
    if not tokens:
        return ""
    if tokens[-1][1] == "end":  # the pair before it has it, too
        tokens.pop()
    phrase = '"' + " ".join(token for token, _ in tokens) + '"'
    return phrase + " *" if tokens[-1][1] == "alone" else phrase


def _tokens(text: str) -> Iterator[tuple[str, _Kind]]:
    text = unicodedata.normalize("NFKC", text)
    at = 0
    for run in _DENSE.finditer(text):
        yield from _plain(text[at : run.start()])
        dense, at = run.group(), run.end()
        for index in range(len(dense) - 1):
            yield dense[index : index + 2], "whole"
        yield dense[-1], "end" if len(dense) > 1 else "alone"
    yield from _plain(text[at:])


def _plain(text: str) -> Iterator[tuple[str, _Kind]]:
    for word in re.findall(r"\w+", text):
        yield word, "whole"
