"""File names as text. A name on a disk is bytes that need not be UTF-8: a Chinese recorder writes GBK."""

from __future__ import annotations

import os
import re

_ESCAPE = re.compile(rb"\\x([89a-f][0-9a-f])")


def as_text(name: str) -> str:
    """`name` as valid Unicode: each byte that is not UTF-8 becomes `\\x` and two digits."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that encodes no byte: the name comes from JSON, not from a disk
        return name.encode("utf-8", "backslashreplace").decode()


def from_text(text: str) -> list[str]:
    """The names for which `as_text` returns `text`. Usually one."""
    data = text.encode("utf-8", "surrogateescape")
    return list(dict.fromkeys([text, os.fsdecode(_ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode()), data))]))


def for_terminal(name: str) -> str:
    """`name` on one line, without control characters."""
    text = as_text(name)
    return text if text.isprintable() else repr(text)[1:-1]
