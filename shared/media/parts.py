"""Reads one part of a message's content, in any of its spellings, as a text, an image or a video.

| type | where its content is | whose |
| --- | --- | --- |
| text | text | all |
| image, video | image, video | qwen-vl-utils |
| image_url | image_url: a URL or `{"url": …, "detail": …}` | OpenAI's Chat Completions, vLLM |
| video_url | video_url: a URL or `{"url": …}` | vLLM, sophon-demo |
| input_text | text | OpenAI's Responses, vLLM |
| input_image | image_url: a URL; `detail` beside it | OpenAI's Responses, vLLM |

As in qwen-vl-utils, a part without a type gets its type from its one medium or text, and an image or a video
may be under the other key of its kind. As in vLLM, a string is a text. `detail` has no effect, because the other
options set an image's size. A field with the value None is ignored. The types come from openai 3.57 (types/chat,
types/responses), vLLM's entrypoints/chat_utils.py and qwen-vl-utils 0.0.14.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import BadRequest, Unsupported

Kind = Literal["text", "image", "video"]

_TYPES: Mapping[str, tuple[Kind, tuple[str, ...]]] = {
    "text": ("text", ("text",)),
    "image": ("image", ("image", "image_url")),
    "image_url": ("image", ("image_url", "image")),
    "video": ("video", ("video", "video_url")),
    "video_url": ("video", ("video_url", "video")),
    "input_text": ("text", ("text",)),
    "input_image": ("image", ("image_url",)),
}
_UNTYPED = ("text", "image", "image_url", "video", "video_url")
_DETAILS = ("auto", "low", "high", "original")


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        kind: text, image or video.
        source: the text, or the medium as the caller gave it.
        options: the other fields.
    """

    kind: Kind
    source: Any
    options: dict[str, Any]


def read_part(part: Any) -> Part:
    """Reads a part. Raises BadRequest if it is not a part, and Unsupported for a part of another type."""
    if isinstance(part, str):
        return Part("text", part, {})
    if not isinstance(part, Mapping):
        raise BadRequest("A part of a message's content must be a map or a text.")
    kind, key = _where(part)
    source = part[key]
    options = {name: value for name, value in part.items() if name not in ("type", key) and value is not None}
    if kind != "text" and key.endswith("_url") and isinstance(source, Mapping):
        fields = ["url", "detail"] if kind == "image" else ["url"]
        if "url" not in source or not set(source) <= set(fields):
            raise BadRequest(f"The {key} of a part must be a URL or a map with {' and '.join(fields)} only.")
        _check_detail(source.get("detail"))
        source = source["url"]
    if kind == "image":
        _check_detail(options.pop("detail", None))
    return Part(kind, source, options)


def peek(part: Any) -> Part | None:
    """Like `read_part`, to show the part to people; None if `read_part` would raise."""
    try:
        return read_part(part)
    except (BadRequest, Unsupported):
        return None


def _where(part: Mapping[Any, Any]) -> tuple[Kind, str]:
    """(a part's kind, the key of its content)"""
    if part.get("type") is None:
        found = [name for name in _UNTYPED if part.get(name) is not None]
        if len(found) != 1:
            raise BadRequest(f"A part without a type must have one of {', '.join(_UNTYPED)}; this has {len(found)}.")
        return _TYPES[found[0]][0], found[0]
    name = part["type"]
    if not isinstance(name, str):
        raise BadRequest(f"A part's type must be a text, not a {type(name).__name__}.")
    if name not in _TYPES:
        raise Unsupported(f"Parts of type {name!r} are not supported; the types are {', '.join(_TYPES)}.")
    kind, keys = _TYPES[name]
    for key in keys:
        if part.get(key) is not None:
            return kind, key
    if part.get("file_id") is not None:
        raise Unsupported("A file_id refers to a file at OpenAI; give the image in the field 'image_url'.")
    raise BadRequest(f"A part of type {name} must have its content in the field {keys[0]!r}.")


def _check_detail(detail: Any) -> None:
    if detail is not None and not (isinstance(detail, str) and detail in _DETAILS):
        raise BadRequest(f"An image's detail must be one of {', '.join(_DETAILS)}.")
