"""The codec: values come back unchanged, and invalid data are refused."""

from __future__ import annotations

import base64
import functools
import pickle
import time
import tracemalloc

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sailq.shared import codec
from sailq.shared.codec import MAX_RECORD_BYTES, VERSION, decode, encode, pack, unpack
from sailq.shared.errors import BadRequest, CodecError
from sailq.shared.jobs import FramesPart, Job, Message, Result, TextPart, Turn
from sailq.shared.msgpack_limits import MAX_DEPTH, MAX_VALUES

LIMIT = 1 << 20
JOB = Job(
    id="j1", conversation="c1", model="sailq-tiny", submitted_at=1.5,
    messages=(Message(role="user", content=(TextPart(text="你好"),)),), metadata={"camera": 7, "tags": ["a", None]},
)
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text() | st.binary()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(VALUES)
def test_plain_values_come_back(value: object) -> None:
    assert unpack(pack(value, LIMIT), LIMIT) == value


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "?"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3, 4)])
def test_arrays_come_back(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.asarray(np.random.default_rng(1).random(shape) * 100).astype(dtype)
    back = unpack(pack({"a": array}, LIMIT), LIMIT)["a"]
    assert back.dtype == array.dtype and back.shape == array.shape
    np.testing.assert_array_equal(back, array)


def test_big_endian_and_strided_arrays_come_back_by_value() -> None:
    array = np.arange(24, dtype=">i4").reshape(4, 6)[::2, ::3]
    np.testing.assert_array_equal(unpack(pack(array, LIMIT), LIMIT), array)


@pytest.mark.parametrize("value", [object(), {1, 2}, np.array(["a"]), np.array([object()]), 2**70, np.complex64(1)])
def test_unsupported_values_are_refused(value: object) -> None:
    with pytest.raises(CodecError):
        pack(value, LIMIT)


def test_records_come_back() -> None:
    assert decode(Job, encode(JOB)) == JOB
    turn = Turn(job="j1", turn=3, messages=JOB.messages, text="hello")
    assert decode(Turn, encode(turn)) == turn


VIDEO = FramesPart(type="video", blob="0" * 64, frames=2, height=56, width=84)
OLD_JOB = base64.b64decode(
    "g6F2AaR0eXBlo2pvYqRib2R5i6JpZKJqMaxjb252ZXJzYXRpb26iYzGkdHVybgClbW9kZWyqc2FpbHEtdGlueahtZXNzYWdlc5GC"
    "pHJvbGWkdXNlcqdjb250ZW50koWkdHlwZaV2aWRlb6RibG9i2UAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAw"
    "MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwpmZyYW1lcwKmaGVpZ2h0OKV3aWR0aFSCpHR5cGWkdGV4dKR0ZXh0okhpp29wdGlv"
    "bnOHrm1heF9uZXdfdG9rZW5zzICrdGVtcGVyYXR1cmXLAAAAAAAAAACldG9wX3DLP/AAAAAAAACldG9wX2sAsnJlcGV0aXRpb25f"
    "cGVuYWx0ecs/8AAAAAAAAKRzZWVkwKRzdG9wkKhkZWFkbGluZcCocHJpb3JpdHmmbm9ybWFspnN0cmVhbcKobWV0YWRhdGGArHN1"
    "Ym1pdHRlZF9hdMs/+AAAAAAAAA=="
)
"""A job of protocol version 1 with `VIDEO`, as the code before version 2 wrote it."""


def with_part(part: FramesPart) -> Job:
    return JOB.model_copy(update={"messages": (Message(role="user", content=(part, TextPart(text="Hi"))),)})


def test_frames_carry_their_times() -> None:
    job = with_part(VIDEO.model_copy(update={"times": (0.0, 0.52), "fps": 2.0}))
    assert decode(Job, encode(job)) == job
    turn = Turn(job="j1", turn=3, messages=job.messages, text="hello")
    assert decode(Turn, encode(turn)) == turn


def test_a_job_of_version_1_is_read() -> None:
    assert decode(Job, OLD_JOB).messages == with_part(VIDEO).messages


def test_values_that_version_1_supports_are_written_in_version_1() -> None:
    """So that workers and producers of both versions serve one queue while a fleet is updated."""
    old = decode(Job, OLD_JOB)
    assert encode(old) == OLD_JOB
    assert msgpack.unpackb(encode(with_part(VIDEO)))["v"] == 1


def test_a_worker_of_version_1_refuses_times_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(with_part(VIDEO.model_copy(update={"times": (0.0, 0.52), "fps": 2.0})))
    monkeypatch.setattr(codec, "VERSION", 1)
    with pytest.raises(CodecError, match="protocol version 2; sailq reads 1 to 1"):
        decode(Job, data)


@pytest.mark.parametrize("times", [[0.0], [0.0, 0.5, 1.0], [1.0, 0.5], [-1.0, 0.5], [0.0, float("nan")]])
def test_times_that_do_not_match_the_frames_are_refused(times: list[float]) -> None:
    body = msgpack.unpackb(OLD_JOB)["body"]
    body["messages"][0]["content"][0] |= {"times": times, "fps": 2.0}
    with pytest.raises(BadRequest):
        decode(Job, msgpack.packb({"v": 2, "type": "job", "body": body}))


def reencoded(**changes: object) -> bytes:
    value = msgpack.unpackb(encode(JOB))
    return msgpack.packb({**value, **changes})


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (reencoded(v=VERSION + 1), f"protocol version {VERSION + 1}"),
        (reencoded(type="result"), "Expected a job"),
        (reencoded(extra=1), "not a sailq job"),
        (msgpack.packb([1, 2]), "not a sailq job"),
        (msgpack.packb(None), "not a sailq job"),
        (encode(JOB) + b"\x00", "not valid msgpack"),
        (encode(JOB)[:-1], "not valid msgpack"),
        (b"", "not valid msgpack"),
        (pickle.dumps(JOB.model_dump()), "not valid msgpack"),
        (b"\x00" * (MAX_RECORD_BYTES + 1), "the limit is"),
        (msgpack.packb(msgpack.ExtType(5, b"x")), "extension type 0x05"),
        (b"\x91" * 100 + b"\xc0", "nested"),
        (b"\x91" * 100_000 + b"\xc0", "nested"),
        (b"\x9f" + b"\x00" * 14, "end too early"),
    ],
)
def test_a_malformed_job_is_refused_with_a_sentence(data: bytes, says: str) -> None:
    with pytest.raises(CodecError, match=says):
        decode(Job, data)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("id", "../x", "id"), ("id", 7, "id"), ("turn", -1, "turn"), ("messages", [], "messages"),
        ("submitted_at", float("nan"), "submitted_at"), ("deadline", float("inf"), "deadline"),
        ("options", {"temperature": float("nan")}, "temperature"), ("options", {"max_new_tokens": 0}, "max_new_tokens"),
        ("options", {"surprise": 1}, "surprise"), ("priority", "urgent", "priority"), ("bogus", 1, "bogus"),
        ("messages", [{"role": "user", "content": [{"type": "audio", "audio": "x"}]}], "audio"),
        ("metadata", {"a": b"bytes"}, "metadata"), ("metadata", {"a": [float("nan")]}, "metadata"),
        ("messages", [{"role": "user", "content": [
            {"type": "video", "blob": "a" * 64, "frames": -1, "height": 84, "width": 84}]}], "frames"),
        ("messages", [{"role": "user", "content": [
            {"type": "video", "blob": "a" * 64, "frames": 2, "height": 0, "width": 84}]}], "height"),
        ("messages", [{"role": "user", "content": [
            {"type": "video", "blob": "rq:queue:x", "frames": 2, "height": 84, "width": 84}]}], "blob"),
    ],
)
def test_a_job_that_breaks_the_contract_is_refused_by_name(field: str, value: object, says: str) -> None:
    body = {**msgpack.unpackb(encode(JOB))["body"], field: value}
    with pytest.raises(BadRequest, match=says):
        decode(Job, reencoded(body=body))


@pytest.mark.parametrize(
    "fields",
    [
        ["u1", [2**40], b""], ["u1", [-1], b""], ["u1", [2], b"a"], ["O", [1], b"a" * 8], ["u1", [1.0], b"a"],
        ["u1", [True], b"a"], ["u1", "x", b"a"], ["u1", [1]], "u1", ["u1", [0] * 9, b""], [["u1"], [1], b"a"],
    ],
)
def test_a_forged_array_is_refused_before_it_is_built(fields: object) -> None:
    with pytest.raises(CodecError):
        unpack(msgpack.packb(msgpack.ExtType(1, msgpack.packb(fields))), LIMIT)


MANY = MAX_VALUES * 8
HUNDRED_MILLION = b"\xdd" + (10**8).to_bytes(4, "big")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\xdd" + MANY.to_bytes(4, "big") + b"\x90" * MANY, "values"),
        (b"\xdf" + MANY.to_bytes(4, "big") + b"\xa0\x80" * MANY, "values"),
        (msgpack.packb(msgpack.ExtType(1, b"\xdd" + MANY.to_bytes(4, "big") + b"\x90" * MANY)), "values"),
        (HUNDRED_MILLION * 60 + b"\xc0" * 1000, "values"),  # msgpack allocates the list before it reads the elements
        (b"\x9f" * 70, "nested"),
        (b"\xdb" + (4 << 20).to_bytes(4, "big") + "\N{GRINNING FACE}".encode() * (1 << 20), "bytes of text"),
        (b"\xc6\xff\xff\xff\xff", "not valid msgpack"),
        (b"\xc7\x04\xff" + b"\0" * 4, "extension type 0xff"),  # msgpack's own timestamp
    ],
)
def test_values_that_expand_in_memory_are_refused_before_they_are_built(data: bytes, says: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(CodecError, match=says):
            unpack(data, 64 << 20)
        assert tracemalloc.get_traced_memory()[1] < len(data) + (1 << 20)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("value", [[None] * MAX_VALUES, functools.reduce(lambda inner, _: [inner], range(65), None)])
def test_values_that_could_not_be_unpacked_are_not_packed(value: object) -> None:
    with pytest.raises(CodecError, match="more than"):
        pack(value, LIMIT)


def test_the_longest_and_deepest_values_come_back() -> None:
    for value in ([None] * (MAX_VALUES - 1), functools.reduce(lambda inner, _: [inner], range(MAX_DEPTH), None)):
        assert unpack(pack(value, LIMIT), LIMIT) == value


def test_a_clips_blob_is_checked_quickly() -> None:
    data = pack({"jpeg": [bytes(50_000)] * 4}, LIMIT)
    start = time.perf_counter()
    for _ in range(100):
        unpack(data, LIMIT)
    each = (time.perf_counter() - start) / 100
    print(f"\nfigure: unpacking a blob of 200 KB: {each * 1e6:.0f} µs")
    assert each < 0.001


def test_a_result_and_a_turn_of_the_largest_job_can_be_encoded() -> None:
    text = TextPart(text="x" * 200_000)
    message = Message(role="user", content=(text, text))
    metadata = {"flags": [True] * (MAX_VALUES - 100), "note": "x" * 500_000}
    job = JOB.model_copy(update={"messages": (message,), "metadata": metadata})
    assert decode(Job, encode(job)) == job
    result = Result(
        job="j1", conversation="c1", turn=0, text="y" * 500_000, finish_reason="stop", metadata=metadata,
        finished_at=2.0,
    )
    turn = Turn(job="j1", turn=0, messages=job.messages, text=result.text)
    assert decode(Result, encode(result)) == result and decode(Turn, encode(turn)) == turn


def test_an_error_quotes_little_and_on_one_line() -> None:
    for changes in ({"v": "x" * 10_000}, {"type": ["\n"] * 10_000}, {"v": np.ones(3)}, {"type": np.ones(3)},
                    {"body": {"a\nb" * 10_000: 1}}, {"body": {"messages": [{"role": "user", "content": [
                        {"type": "\x1b[2J\n" * 10_000}]}]}}):
        data = pack({**msgpack.unpackb(encode(JOB)), **changes}, LIMIT)
        with pytest.raises(BadRequest) as caught:
            decode(Job, data)
        assert len(str(caught.value)) < 1000 and str(caught.value).isprintable()


@settings(max_examples=500)
@given(st.binary(max_size=300))
def test_any_bytes_give_a_value_or_the_typed_error(data: bytes) -> None:
    start = time.perf_counter()
    for kind in (Job, Result):
        with pytest.raises(BadRequest):
            decode(kind, data)
    assert time.perf_counter() - start < 1


def test_a_refusal_is_a_readable_sentence() -> None:
    body = {**msgpack.unpackb(encode(JOB))["body"], "conversation": "a b"}
    with pytest.raises(BadRequest, match=r"^conversation: .* 128 .*A-Z, a-z, 0-9"):
        decode(Job, reencoded(body=body))
