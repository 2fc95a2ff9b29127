"""Converts sophon-demo's `--vision_inputs` JSON, in both forms, to message parts for `messages.prepare`.

Newer: `[{"type": "video", "video": "clip.mp4", "nframes": 2}, {"type": "image", "image": "a.jpg"}]`; in one of its
samples, `[{"type": "video_url", "video_url": {"url": "clip.mp4"}}, {"type": "image_url", "image_url": {"url": "a.jpg"},
"max_side": 420, "resize_type": "INTER_LINEAR"}]`.
Older: `{"video": [{"path": "clip.mp4", "preprocess_config": {"resized_height": 140, "resized_width": 210,
"video_sample_num": 2}}], "image": []}`; a `path` may be a list of images.
Beyond sophon-demo, an older entry may be a bare path, and any entry may have a `path` with options beside it.
"""

from __future__ import annotations

import json
from typing import Any

from sailq.shared.errors import BadRequest

KINDS = ("video", "image", "video_url", "image_url")


def to_parts(text: str) -> list[dict[str, Any]]:
    """The media as message parts; empty for an empty `text`. Raises BadRequest.

    Paths and options are checked where they are used, by `messages.prepare`.
    """
    if not text.strip():
        return []
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        ahead = repr(text[error.pos : error.pos + 20]) if error.pos < len(text) else "its end"
        place = f"at line {error.lineno}, column {error.colno}, before {ahead}"
        raise BadRequest(f"vision_inputs is not JSON: {error.msg} {place}.") from None
    except (RecursionError, ValueError):  # nested too deep, or a number with thousands of digits
        raise BadRequest("vision_inputs cannot be read as JSON.") from None
    if isinstance(value, list):
        return [_newer(entry) for entry in value]
    if not isinstance(value, dict):
        raise BadRequest("vision_inputs must be a list of media, or a map with the lists video and image.")
    parts = []
    for kind, entries in value.items():
        if kind not in ("video", "image"):
            raise BadRequest(f"vision_inputs can have the lists video and image, not {kind!r}.")
        for entry in entries if isinstance(entries, list) else [entries]:
            parts.append(_part(kind, {"path": entry} if isinstance(entry, str) else entry))
    return parts


def _newer(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict) or entry.get("type") not in KINDS:
        raise BadRequest(f"Each entry of vision_inputs must be a map whose type is one of {', '.join(KINDS)}.")
    return _part(entry["type"], entry)


def _part(kind: str, entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict) or (kind in entry) == ("path" in entry):
        raise BadRequest(f"Each {kind} of vision_inputs must be a map with one path.")
    config = entry.get("preprocess_config", {})
    if not isinstance(config, dict):
        raise BadRequest(f"The preprocess_config of a {kind} in vision_inputs must be a map.")
    source = entry[kind] if kind in entry else entry["path"]
    flat = {key: value for key, value in entry.items() if key not in {"path", "preprocess_config"}}
    return {**flat, **config, "type": kind, kind: source}
