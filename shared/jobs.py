"""Job and result: the two records that travel. Checked on both sides, immutable, versioned by the codec."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, SerializerFunctionWrapHandler, model_serializer, model_validator

from .errors import SailqError
from .generation import GenerationOptions as GenerationOptions
from .validation import Digest, Identifier, StrictModel
from .validation import is_identifier as is_identifier
from .validation import parse as parse

MAX_TEXT_CHARACTERS = 256 * 1024
"""Longest text of one message part; more than any context this project serves holds."""
MAX_PARTS = 1024
MAX_MESSAGES = 1024
MAX_FRAMES = 768
"""qwen-vl-utils' FPS_MAX_FRAMES."""
MAX_SIDE = 8192
"""Pixels on one side of a frame that reaches a worker; producers resize long before this."""

FinishReason = Literal["stop", "length", "cancelled", "deadline", "error"]
Priority = Literal["normal", "high"]


class Record(StrictModel, defer_build=False):
    """Base of what travels."""


class TextPart(Record):
    type: Literal["text"] = "text"
    text: Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)]


class FramesPart(Record):
    """An image (one frame) or a video, as a reference to the clip on the server that holds its frames.

    Attributes:
        blob: sha256 of the clip's bytes, hex; the end of its key in Redis (`keys.clip`).
        frames: number of frames in the clip.
        height, width: pixels, already multiples of a vision token's side (`sizing.factor_of`); the worker checks it.
        times: when each frame is shown, in seconds from the clip's first frame, ascending; empty where nothing is
            known of it (images, lists of images, and jobs of protocol version 1).
        fps: frames a second, as sampled from the clip; None where `times` is empty or the clip has one frame.
    """

    type: Literal["image", "video"]
    blob: Digest
    frames: Annotated[int, Field(ge=1, le=MAX_FRAMES)]
    height: Annotated[int, Field(ge=1, le=MAX_SIDE)]
    width: Annotated[int, Field(ge=1, le=MAX_SIDE)]
    times: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(max_length=MAX_FRAMES, strict=False)] = ()
    fps: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _one_time_a_frame(self) -> FramesPart:
        if self.times and len(self.times) != self.frames:
            raise ValueError(f"there are {len(self.times)} times for {self.frames} frames")
        if any(after < before for before, after in zip(self.times, self.times[1:], strict=False)):
            raise ValueError("the times of a video's frames must not decrease")
        return self

    @model_serializer(mode="wrap")
    def _without_unknown_times(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A worker of protocol version 1 reads every part that has no times."""
        fields: dict[str, Any] = dump(self)
        return fields if self.times else {key: fields[key] for key in fields if key not in {"times", "fps"}}

    @property
    def size(self) -> tuple[int, int, int]:
        """(frames, height, width)"""
        return self.frames, self.height, self.width


Part = Annotated[TextPart | FramesPart, Field(discriminator="type")]


class Message(Record):
    role: Literal["system", "user", "assistant"]
    content: Annotated[tuple[Part, ...], Field(min_length=1, max_length=MAX_PARTS, strict=False)]


def media_parts(messages: Iterable[Message]) -> list[FramesPart]:
    """The images and videos that messages show, in order."""
    return [part for message in messages for part in message.content if isinstance(part, FramesPart)]


class Job(Record):
    """One turn of one conversation, ready for a worker.

    Attributes:
        id: sorts by submission time (`IdFactory`).
        turn: 0 for a conversation's first; given when the job is submitted.
        messages: what this turn adds; the worker puts the conversation's finished turns before it.
        deadline: server time in seconds since the epoch after which an answer is of no use, or None.
        stream: whether anybody reads the tokens as they come.
        metadata: what JSON can say; comes back untouched in the result.
        submitted_at: server time in seconds since the epoch.
    """

    id: Identifier
    conversation: Identifier
    turn: Annotated[int, Field(ge=0)] = 0
    model: Identifier
    messages: Annotated[tuple[Message, ...], Field(min_length=1, max_length=MAX_MESSAGES, strict=False)]
    options: GenerationOptions = GenerationOptions()
    deadline: Annotated[float, Field(gt=0)] | None = None
    priority: Priority = "normal"
    stream: bool = False
    metadata: dict[str, JsonValue] = {}
    submitted_at: Annotated[float, Field(ge=0)]


class Usage(Record):
    """Tokens. `prompt_tokens` counts all of the prompt, its `vision_tokens` included; `completion_tokens` all that was
    generated, the `reasoning_tokens` of the thought included."""

    prompt_tokens: int = 0
    vision_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0

    @model_serializer(mode="wrap")
    def _without_no_thought(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A producer from before there were thoughts reads every result that has none."""
        fields: dict[str, Any] = dump(self)
        if not fields.get("reasoning_tokens", True):
            del fields["reasoning_tokens"]
        return fields


class Timings(Record):
    """Seconds. None where the job never got so far.

    Attributes:
        queue_wait: submitted until a worker claimed it.
        fetch: clips that did not come with the claim, and the frames' JPEG decoding.
        preprocess: patches and tokens.
        vision_encode: the vision tower; like prefill, of all jobs that started together.
        prefill: the prompt through the language model, first token chosen.
        time_to_first_token: submitted until the first token (vLLM's meaning: the queue is in it).
        inter_token_latency: mean time between two tokens.
        decode: first token until the last.
        end_to_end: submitted until the result was ready to be written.
    """

    queue_wait: float | None = None
    fetch: float | None = None
    preprocess: float | None = None
    vision_encode: float | None = None
    prefill: float | None = None
    time_to_first_token: float | None = None
    inter_token_latency: float | None = None
    decode: float | None = None
    end_to_end: float | None = None


class Failure(Record):
    """Why a job has no answer: a stable code (see `errors`) and one readable sentence."""

    code: str
    message: str

    @property
    def may_pass(self) -> bool:
        """Whether the job failed for reasons outside itself, so that another attempt may succeed."""
        return self.code == SailqError.code


DIED = "died"
HANDED_BACK = "handed back"


class Attempt(Record):
    """One worker's attempt at a job, without an answer.

    Attributes:
        attempt: its number; the job's first is 1.
        worker: the worker's name.
        started_at: server time in seconds since the epoch.
        cause: why it ended: `DIED` (the worker, or its lease), `HANDED_BACK` by a worker that left, or "error: ...".
    """

    attempt: int
    worker: str
    started_at: float
    cause: str = DIED


class Result(Record):
    """How a job ended.

    Attributes:
        text: the answer.
        reasoning: the thought before it, of a model that thinks. It is no part of the conversation.
        history: its last attempts, where they say why it has no answer.
    """

    job: str
    conversation: str
    turn: int
    text: str = ""
    reasoning: str = ""
    finish_reason: FinishReason
    error: Failure | None = None
    usage: Usage = Usage()
    timings: Timings = Timings()
    tokens_per_second: float | None = None
    worker: str = ""
    device: str = ""
    model: str = ""
    attempt: int = 1
    history: Annotated[tuple[Attempt, ...], Field(strict=False)] = ()
    metadata: dict[str, JsonValue] = {}
    finished_at: float

    @model_serializer(mode="wrap")
    def _without_empty_fields(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A producer from before there were histories and thoughts reads every result that has none."""
        fields: dict[str, Any] = dump(self)
        for name in ("history", "reasoning"):
            if not fields.get(name, True):
                del fields[name]
        return fields


class Turn(Record):
    """One answered turn, as the conversation remembers it."""

    job: str
    turn: int
    messages: Annotated[tuple[Message, ...], Field(strict=False)]
    text: str


class ModelCard(Record):
    """What a worker says of its model, so that a producer can size frames and refuse early.

    Attributes:
        context: rows of a conversation's cache: the prompt and all of the answer but its last token.
        max_patches: most vision patches of one temporal grid (an image, or two frames of a video), or None.
        min_pixels, max_pixels: limits of an image's size, height × width, as the model's files state them; `sizing`
            says what they are for.
        patch_size: pixels along a side of a patch.
        merge_size: patches along a side of a vision token.
        temporal_patch_size: frames in a patch.
        greedy_only: whether it gives the most likely token alone, and no scores to sample from or to guide.
    """

    name: Identifier
    version: str = ""
    context: int
    max_patches: int | None = None
    min_pixels: int
    max_pixels: int
    patch_size: Annotated[int, Field(ge=1, le=MAX_SIDE)] = 14
    merge_size: Annotated[int, Field(ge=1, le=MAX_SIDE)] = 2
    temporal_patch_size: Annotated[int, Field(ge=1, le=MAX_FRAMES)] = 2
    greedy_only: bool = False

    @model_serializer(mode="wrap")
    def _without_default(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A producer from before there was `greedy_only` reads every card of a model that gives scores."""
        fields: dict[str, Any] = dump(self)
        if not fields["greedy_only"]:
            del fields["greedy_only"]
        return fields


class IdFactory:
    """Ids that sort by time: 48 bits of milliseconds, 16 of a counter, 64 of the factory's own, as 32 hex digits.

    Ids of one factory strictly increase and end with its `mark`, which is random.
    """

    def __init__(self) -> None:
        self.mark = os.urandom(8).hex()
        self._lock = threading.Lock()
        self._last = 0

    def new(self, now: float) -> str:
        """`now`: seconds since the epoch."""
        with self._lock:
            self._last = max(self._last + 1, int(now * 1000) << 16)
            return f"{self._last:016x}{self.mark}"
