"""OpenAI's messages as those of `shared.media.messages.prepare`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sailq.shared.errors import BadRequest, Unsupported, quoted
from sailq.shared.jobs import MAX_MESSAGES, MAX_PARTS
from sailq.shared.media.parts import Part, read_part
from sailq.shared.media.sources import is_data_url

_ADDRESS = re.compile(r"https?://", re.IGNORECASE)
_IGNORED = frozenset({"name", "annotations", "refusal", "reasoning", "reasoning_content"})
"""Fields of a message that change no prompt of these models."""
_EMPTY: Mapping[str, tuple[Any, ...]] = {"tool_calls": ([],), "function_call": (), "audio": ()}


def plain_messages(messages: Sequence[Mapping[str, Any]], *, local_files: bool) -> list[dict[str, Any]]:
    """Messages with role and content only, each of whose media is one text: a data URL, an http(s) address, or, with
    `local_files`, what a path names.

    Raises BadRequest and Unsupported.
    """
    contents = [message.get("content") for message in messages]
    if len(messages) > MAX_MESSAGES or sum(len(one) for one in contents if isinstance(one, list)) > MAX_PARTS:
        raise BadRequest(f"A request has at most {MAX_MESSAGES} messages, and {MAX_PARTS} parts in all of them.")
    return [_message(message, number, local_files) for number, message in enumerate(messages, 1)]


def media_of(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The images and videos of plain messages."""
    contents = [message["content"] for message in messages if isinstance(message["content"], list)]
    return [part for content in contents for part in content if part["type"] != "text"]


def addresses(media: Iterable[Mapping[str, Any]]) -> list[str]:
    """The http(s) addresses among the sources of media."""
    return [part[part["type"]] for part in media if _ADDRESS.match(part[part["type"]])]


def put_fetched(media: Iterable[dict[str, Any]], data: Iterable[bytes]) -> None:
    """Puts what was fetched in the place of the addresses."""
    left = iter(data)
    for part in media:
        if _ADDRESS.match(part[part["type"]]):
            part[part["type"]] = next(left)


def _message(message: Mapping[str, Any], number: int, local_files: bool) -> dict[str, Any]:
    fields = {name: value for name, value in message.items() if name not in _IGNORED}
    for name in _EMPTY.keys() & fields.keys():
        if (value := fields.pop(name)) is not None and value not in _EMPTY[name]:
            raise Unsupported(f"Message {number}: {name} is not supported.")
    role, content = fields.pop("role", None), fields.pop("content", None)
    if fields:
        raise BadRequest(f"Message {number}: unknown field {quoted(str(next(iter(fields))))!r}.")
    if role in ("tool", "function"):
        raise Unsupported(f"Message {number}: messages of tools are not supported.")
    if isinstance(content, list):
        content = [_part(part, f"Part {place} of message {number}", local_files)
                   for place, part in enumerate(content, 1)]
    return {"role": "system" if role == "developer" else role, "content": content}


def _part(value: Any, place: str, local_files: bool) -> dict[str, Any]:
    if isinstance(value, Mapping):
        value = {name: field for name, field in value.items() if name != "uuid"}  # vLLM's name of a cached medium
    try:
        part = read_part(value)
    except (BadRequest, Unsupported) as error:
        raise type(error)(f"{place}: {error}") from None
    if part.kind != "text" and not _is_allowed(part, local_files):
        what = "a path, a data URL or an http(s) address" if local_files else "a data URL or an http(s) address"
        raise BadRequest(f"{place}: the {part.kind} must be {what}.")
    return {"type": part.kind, part.kind: part.source, **part.options}


def _is_allowed(part: Part, local_files: bool) -> bool:
    source = part.source
    return isinstance(source, str) and (local_files or is_data_url(source) or _ADDRESS.match(source) is not None)
