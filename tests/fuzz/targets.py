"""What reads what others wrote: the codec, the validator, the blob decoder, RQ's records, the command line's JSON, and
the forms that answers must have.

Each target takes the bytes of an input, and may raise an error of sailq's, and no other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgpack

from sailq.producer.captioning.inputs import from_messages
from sailq.producer.vision_inputs import to_parts
from sailq.shared.codec import decode, pack, unpack
from sailq.shared.errors import BadMedia, SailqError
from sailq.shared.frames import MAX_BLOB_BYTES, decode_frames
from sailq.shared.jobs import GenerationOptions, Job, ModelCard, Result, Turn, parse
from sailq.shared.keys import queue
from sailq.shared.media import reading
from sailq.shared.media.messages import prepare
from sailq.shared.rqjob import read_job
from sailq.shared.structured_outputs import StructuredOutputs
from sailq.worker.engine.chat_tokenizer import ChatTokenizer
from sailq.worker.engine.grammars import Grammars
from sailq.worker.engine.masks import Ends
from sailq.worker.engine.model import ModelSpec
from sailq.worker.model_files.model_paths import resolve

_SIZE = (2, 28, 28)
"""Of the blobs: (frames, height, width)."""


@dataclass(frozen=True)
class Target:
    """`form`: what `mutation` takes the inputs apart as. `share`: of the inputs of a run, relative to other targets."""

    run: Callable[[bytes], None]
    form: str = "msgpack"
    errors: tuple[type[Exception], ...] = (SailqError,)
    share: int = field(default=1)


def _unpack(data: bytes) -> None:
    pack(unpack(data, MAX_BLOB_BYTES), MAX_BLOB_BYTES)


def _validate(data: bytes) -> None:
    parse(Job, _untrusted(data))


def _read_job(data: bytes) -> None:
    fields = _untrusted(data)
    if not isinstance(fields, dict):
        fields = {"data": data}
    read_job("a", queue("sailq-tiny"), {name.encode(errors="replace"): value for name, value in fields.items()
                                        if isinstance(name, str) and isinstance(value, bytes)})


def _compile(data: bytes) -> None:
    """Also the first token."""
    text = data.decode(errors="surrogateescape")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = {"json": text}
    guide = _grammars().compile(parse(StructuredOutputs, fields)).guide()
    guide.accept(int(guide.mask.tokens[0]))


@cache
def _grammars() -> Grammars:
    spec = ModelSpec.load(resolve("sailq-tiny"))
    chat_tokenizer = ChatTokenizer(spec)
    ends = Ends(chat_tokenizer.end_tokens, spec.vocab_size)
    return Grammars(chat_tokenizer.tokenizer, spec.vocab_size, ends)


def _untrusted(data: bytes) -> Any:
    """Values that the codec would refuse."""
    try:
        return msgpack.unpackb(data, strict_map_key=False)
    except Exception:
        return data


def _vision_inputs(data: bytes) -> None:
    parts = to_parts(data.decode(errors="surrogateescape"))
    if parts:
        prepare([{"role": "user", "content": parts}])


def _rows(data: bytes) -> None:
    os.ftruncate(_ROWS, 0)
    os.pwrite(_ROWS, data, 0)
    for clip in from_messages(Path(f"/proc/self/fd/{_ROWS}")):
        _ = clip.question
        clip.request("sailq-tiny", GenerationOptions())
        json.dumps(clip.metadata)
        prepare(clip.messages, base=clip.base)


_ROWS = os.memfd_create("rows.jsonl")
"""A file in memory: a hundred thousand on a disk would take minutes."""

TARGETS = {
    "unpack": Target(_unpack, share=3),
    "decode-job": Target(lambda data: _ignore(decode(Job, data)), share=3),
    "decode-result": Target(lambda data: _ignore(decode(Result, data)), share=2),
    "decode-turn": Target(lambda data: _ignore(decode(Turn, data))),
    "decode-model": Target(lambda data: _ignore(decode(ModelCard, data))),
    "validate-job": Target(_validate, share=3),
    "decode-frames": Target(lambda data: _ignore(decode_frames(data, _SIZE)), share=2),
    "read-job": Target(_read_job, share=3),
    "structured-outputs": Target(_compile, form="json"),
    "vision-inputs": Target(_vision_inputs, form="json", share=2),
    "messages-rows": Target(_rows, form="json"),
}


def _ignore(value: object) -> None: ...


@contextmanager
def without_media() -> Iterator[None]:
    """The media that inputs name are not opened: these are other programs' paths, and other decoders' faults."""

    def unread(source: Any, *_: Any, **__: Any) -> None:
        raise BadMedia("not opened")

    with patch.object(reading, "read_video", unread), patch.object(reading, "read_image", unread):
        yield
