"""Writes the corpus' first inputs, one good one of each kind and what has been a fault once; after a protocol's change.

    python tests/fuzz/seeds.py
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import msgpack
import numpy as np

from sailq.shared.codec import encode, pack
from sailq.shared.frames import MAX_BLOB_BYTES, encode_frames
from sailq.shared.jobs import (
    Attempt,
    Failure,
    FramesPart,
    GenerationOptions,
    Job,
    Message,
    ModelCard,
    Result,
    TextPart,
    Timings,
    Turn,
    Usage,
)
from sailq.shared.rqjob import FUNCTION, Serializer, record

CORPUS = Path(__file__).parent / "corpus"
DATE = b"2026-01-01T00:00:00.0Z"

CLIP = FramesPart(type="video", blob="a" * 64, frames=2, height=28, width=28)
MESSAGES = (
    Message(role="system", content=(TextPart(text="You are a helpful assistant."),)),
    Message(role="user", content=(CLIP, TextPart(text="请描述视频中的内容"))),
)
JOB = Job(
    id="a", conversation="c", turn=1, model="sailq-tiny", messages=MESSAGES, deadline=2e9, priority="high", stream=True,
    options=GenerationOptions(temperature=0.5, top_k=5, seed=7, stop=("。", "\n\n")), submitted_at=1e9,
    metadata={"camera": 7, "tags": ["a", None, 1.5], "place": {"floor": -1}},
)
RESULT = Result(
    job="a", conversation="c", turn=1, text="一个红色的圆", finish_reason="error",
    error=Failure(code="internal", message="No."), usage=Usage(prompt_tokens=9), timings=Timings(queue_wait=0.1),
    tokens_per_second=3.0, worker="w", device="cpu", model="sailq-tiny",
    history=(Attempt(attempt=1, worker="w", started_at=1e9),), metadata=JOB.metadata, finished_at=1e9,
)
TURN = Turn(job="a", turn=1, messages=MESSAGES, text="一个红色的圆")
CARD = ModelCard(name="sailq-tiny", version="1", context=1024, max_patches=400, min_pixels=784, max_pixels=784_000)


def frames() -> dict[str, bytes]:
    clip = np.random.default_rng(3).integers(0, 255, (2, 28, 28, 3), np.uint8)
    _, blob = encode_frames(clip)
    fields = msgpack.unpackb(blob)
    jpeg = fields["jpeg"][0]
    progressive = cv2.imencode(".jpg", clip[0], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    gray = cv2.imencode(".jpg", clip[0, :, :, 0])[1].tobytes()
    exif = b"\xff\xe1\x00\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    scan = jpeg.index(b"\xff\xda")
    others = {
        "progressive": progressive, "gray": gray, "turned": jpeg[:2] + exif + jpeg[2:],
        "many-scans": jpeg[:scan] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" * 100 + b"\xff\xd9",
        "no-length": jpeg[:2] + b"\xff\xe0\x00\x02\xff\x01\x00\x20" + jpeg[2:],
    }
    return {"clip": blob, **{
        name: pack({**fields, "jpeg": [other, jpeg]}, MAX_BLOB_BYTES) for name, other in others.items()
    }}


def rq_jobs() -> dict[str, bytes]:
    ours = {name: str(value).encode() if not isinstance(value, bytes) else value
            for name, value in record(JOB, ttl=60).items()}
    called = Serializer.dumps([FUNCTION, None, [], {"messages": JOB.model_dump()["messages"], "options": {"seed": 7}}])
    rqs = {
        "data": called, "created_at": DATE, "enqueued_at": DATE, "started_at": b"", "origin": b"sailq3-sailq-tiny",
        "description": b"sailq c", "status": b"queued", "timeout": b"180", "result_ttl": b"60", "ttl": b"691200",
        "failure_ttl": b"604800", "dependency_ids": b'["b"]', "allow_dependency_failures": b"1",
        "enqueue_at_front": b"0",
        "success_callback_name": b"", "webhooks": b"[]", "repeat_intervals": b"[]",
    }
    hostile = {
        "data": Serializer.dumps(["os.system", None, ["true"], {}]), "success_callback_name": b"os.system",
        "webhooks": b'[{"url": "http://127.0.0.1/"}]', "repeats_left": b"9", "repeat_intervals": b"[0]",
        "retries_left": b"2", "group_id": b"g", "rate_limit_key": b"k",
    }
    found = {
        "array-as-function": {"data": pack([np.ones(3), None, [], {}], MAX_BLOB_BYTES)},
        "array-as-arguments": {"data": pack([FUNCTION, None, np.ones(3), {}], MAX_BLOB_BYTES)},
        "names-of-bytes": {"data": msgpack.packb([FUNCTION, None, [], {b"a": 1, "b": 2}])},
        "no-digit": {"turn": "\N{SUPERSCRIPT TWO}".encode()}, "many-digits": {"turn": b"9" * 5000},
    }
    return {
        "ours": msgpack.packb({**ours, "conversation": b"c", "turn": b"1", "clips": b"a" * 64, "inbox": b"i"}),
        "rqs": msgpack.packb(rqs), "hostile": msgpack.packb({**rqs, **hostile}),
        **{name: msgpack.packb({**rqs, **fields}) for name, fields in found.items()},
    }


def vision_inputs() -> dict[str, bytes]:
    newer = [{"type": "video", "video": "clip.mp4", "nframes": 2, "resized_height": 140, "resized_width": 210},
             {"type": "image", "image": "a.jpg"}, {"type": "image_url", "image_url": {"url": "b.jpg"}}]
    config = {"fps": 2.0, "video_sample_num": 2}
    older = {"video": [{"path": "clip.mp4", "preprocess_config": config}], "image": ["a.jpg"]}
    return {"newer": json.dumps(newer).encode(), "older": json.dumps(older).encode(),
            "list": b'[{"type": "video", "video": ["a.jpg", "b.jpg"], "video_start": 0.5}]'}


def rows() -> dict[str, bytes]:
    part = {"type": "video", "video": "clip.mp4", "max_pixels": 50_000}
    row = {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "Why?"}]}], "camera": 3}
    talk = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]}
    return {"row": json.dumps(row).encode(), "talk": json.dumps(talk).encode(),
            "two": f"{json.dumps(row)}\n\n{json.dumps(talk)}\n".encode()}


def forms() -> dict[str, bytes]:
    schema = {
        "type": "object", "required": ["颜色", "n"], "additionalProperties": False, "$defs": {"a": {"type": "null"}},
        "properties": {
            "颜色": {"enum": ["红", "b", 3]}, "n": {"type": "integer", "minimum": 0, "maximum": 9}, "x": {
                "anyOf": [{"$ref": "#/$defs/a"}, {"type": "string", "pattern": "^a+(b|c)$", "maxLength": 9}]},
            "y": {"type": "array", "items": {"type": "number", "multipleOf": 0.5}, "minItems": 1, "maxItems": 3},
            "z": {"type": "string", "format": "date"},
        },
    }
    given = {
        "schema": {"json": schema}, "object": {"json_object": True}, "regex": {"regex": r"[a-z]{2,5}|\p{Han}+\d"},
        "choice": {"choice": ["yes", "不"]}, "lark": {"grammar": 'start: "a" (/[b-d]/ ",")* e\ne: NUM\nNUM: /[0-9]+/'},
        "gbnf": {"grammar": 'root ::= "(" root ")" | [0-9]+ x?\nx ::= "x"{1,3}'},
    }
    return {name: json.dumps(form, ensure_ascii=False).encode() for name, form in given.items()}


def values() -> dict[str, bytes]:
    plain = [-1, 2.5, None, "x", b"y"]
    arrays = {"a": np.arange(6, dtype="<f4").reshape(2, 3), "b": np.zeros((0, 2), bool), "c": plain}
    many = 2000
    return {
        "arrays": pack(arrays, MAX_BLOB_BYTES), "lists": b"\xdd" + many.to_bytes(4, "big") + b"\x90" * many,
        "claims": b"\xdd\x05\xf5\xe1\x00" * 60, "timestamp": b"\xd6\xff\0\0\0\0",
        "integers": pack([2**64 - 1, -(2**63)], 99),
        "array-in-array": msgpack.packb(msgpack.ExtType(1, msgpack.packb(msgpack.ExtType(1, b"\x90")))),
    }


def main() -> None:
    seeds = {
        "unpack": {**values(), "job": encode(JOB)},
        "decode-job": {"job": encode(JOB)},
        "decode-result": {"result": encode(RESULT)},
        "decode-turn": {"turn": encode(TURN)},
        "decode-model": {"card": encode(CARD)},
        "validate-job": {"job": msgpack.packb(JOB.model_dump())},
        "decode-frames": frames(),
        "read-job": rq_jobs(),
        "structured-outputs": forms(),
        "vision-inputs": vision_inputs(),
        "messages-rows": rows(),
    }
    for target, inputs in seeds.items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in inputs.items():
            (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
