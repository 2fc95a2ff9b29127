"""OpenAI's Chat Completions request, as vLLM extends it, and the job that it asks for.

A field that sailq does not support is refused unless its value asks for nothing. The names and meanings are those of
OpenAI's API reference (openai 3.57, types/chat/completion_create_params.py) and of vLLM's OpenAI-compatible server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationError
from pydantic_core import ErrorDetails

from sailq.shared.errors import BadRequest, Unsupported, quoted
from sailq.shared.jobs import GenerationOptions, ModelCard, Priority
from sailq.shared.media.options import Options
from sailq.shared.validation import Identifier, StrictModel, parse, reason

from ..media_defaults import fill_in
from .errors import ApiError, api_error
from .messages import plain_messages

MOST_TOKENS = 32_768
"""`GenerationOptions.max_new_tokens` may not be more."""
_IGNORED = frozenset({
    "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier", "reasoning_effort",
    "verbosity", "parallel_tool_calls", "request_id", "cache_salt",
})
"""Fields that change no answer here."""
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "logprobs": (False,), "top_logprobs": (0,), "tools": ([],), "functions": ([],),
    "tool_choice": ("none", "auto"), "function_call": ("none", "auto"), "presence_penalty": (0,),
    "frequency_penalty": (0,), "logit_bias": ({},), "store": (False,), "modalities": (["text"],), "audio": (),
    "prediction": (), "web_search_options": (), "min_p": (0,), "min_tokens": (0,), "ignore_eos": (False,),
    "use_beam_search": (False,), "length_penalty": (1,), "skip_special_tokens": (True,), "echo": (False,),
    "include_stop_str_in_output": (False,), "add_generation_prompt": (True,), "continue_final_message": (False,),
    "stop_token_ids": ([],), "bad_words": ([],), "prompt_logprobs": (), "chat_template": (),
    "chat_template_kwargs": ({},), "documents": ([],), "guided_json": (), "guided_regex": (), "guided_choice": (),
    "guided_grammar": (), "moderation": (),
}
"""Fields that are not supported, with the values, besides null, that ask for nothing."""


class StreamOptions(StrictModel):
    """`include_obfuscation` and `continuous_usage_stats` may be given and have no effect."""

    include_usage: bool = False
    include_obfuscation: bool = False
    continuous_usage_stats: bool = False


class JsonSchema(StrictModel):
    """`strict` has no effect: the answer always follows the schema."""

    name: str = ""
    description: str | None = None
    schema_: Annotated[dict[str, JsonValue], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(StrictModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(StrictModel):
    """The body of `POST /v1/chat/completions`.

    Without `max_completion_tokens` and `max_tokens`, an answer may fill the rest of the model's context, as in vLLM.
    Without `temperature`, an answer is greedy. vLLM reads the same default from these models' generation_config.json.

    Attributes:
        messages: OpenAI's messages. Media are data URLs, or http(s) addresses where the gateway allows them.
        mm_processor_kwargs: options for each image and video that does not set them itself: the fields of
            `shared.media.options.Options`, such as max_pixels.
        media_io_kwargs: vLLM's `{"video": {"num_frames": 8}}`: options for videos alone.
        structured_outputs: vLLM's: one of json, json_object, regex, choice and grammar.
        conversation: sailq's: the conversation that these messages continue.
        priority: sailq's: "high" goes ahead of all waiting jobs.
        deadline: sailq's: seconds from now after which the answer is of no use.
        metadata: comes back unchanged in the result.
    """

    model: str
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: str | list[str] | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: dict[str, JsonValue] | None = None
    mm_processor_kwargs: dict[str, JsonValue] | None = None
    media_io_kwargs: dict[str, dict[str, JsonValue]] | None = None
    conversation: Identifier | None = None
    priority: Priority | None = None
    deadline: Annotated[float, Field(gt=0)] | None = None
    metadata: dict[str, JsonValue] | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of `Client.submit` that it sets, besides messages, model and options."""
        asked = {"conversation": self.conversation, "priority": self.priority, "timeout": self.deadline,
                 "metadata": self.metadata}
        return {name: value for name, value in asked.items() if value is not None}

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with a chunk that has the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


@dataclass(frozen=True)
class Question:
    """What a request asks: the arguments of `Client.submit`."""

    messages: list[dict[str, Any]]
    options: GenerationOptions


def read_request(fields: Any) -> ChatRequest:
    """A checked request, from the JSON of its body. Raises ApiError (400)."""
    if not isinstance(fields, dict):
        raise ApiError(400, "The body must be a JSON object.", code="invalid_value")
    asked = {name: value for name, value in fields.items() if value is not None and name not in _IGNORED}
    for name in _NEUTRAL.keys() & asked.keys():
        if asked.pop(name) not in _NEUTRAL[name]:
            raise _invalid(f"{name} is not supported.", name, "unsupported_parameter")
    try:
        return ChatRequest.model_validate(asked)
    except ValidationError as error:
        raise _complaint(error.errors(include_url=False, include_input=False)[0]) from None


def read_question(request: ChatRequest, card: ModelCard | None, *, local_files: bool = False) -> Question:
    """The messages and options of a request.

    Args:
        card: the model that will answer; None if none is known.
        local_files: whether media may be paths and `file://` URLs of this machine.

    Raises ApiError (400).
    """
    try:
        messages = plain_messages(request.messages, local_files=local_files)
        for kind, options in _media_options(request).items():
            messages = fill_in(messages, options, kind)
        return Question(messages, _generation(request, card))
    except (BadRequest, Unsupported) as error:
        raise api_error(error) from None


def _generation(request: ChatRequest, card: ModelCard | None) -> GenerationOptions:
    most = request.max_completion_tokens or request.max_tokens or (card.context if card else MOST_TOKENS)
    given = {
        "max_new_tokens": min(most, MOST_TOKENS),
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": 0 if request.top_k == -1 else request.top_k,  # vLLM's -1 means all
        "repetition_penalty": request.repetition_penalty,
        "seed": request.seed,
        "stop": [request.stop] if isinstance(request.stop, str) else request.stop,
        "structured_outputs": _structured_outputs(request),
    }
    return parse(GenerationOptions, {name: value for name, value in given.items() if value is not None})


def _structured_outputs(request: ChatRequest) -> dict[str, Any] | None:
    asked = request.response_format
    if asked is None or asked.type == "text":
        return request.structured_outputs
    if request.structured_outputs is not None:
        raise BadRequest("response_format and structured_outputs cannot be combined.")
    if asked.type == "json_object":
        return {"json_object": True}
    if asked.json_schema is None:
        raise BadRequest("response_format: json_schema is missing.")
    return {"json": asked.json_schema.schema_}


def _media_options(request: ChatRequest) -> dict[Literal["image", "video"], dict[str, Any]]:
    """The options for all images, and for all videos."""
    shared = request.mm_processor_kwargs or {}
    own = request.media_io_kwargs or {}
    if not own.keys() <= {"image", "video"}:
        raise BadRequest("media_io_kwargs: only 'image' and 'video' are supported.")
    video = {"nframes" if name == "num_frames" else name: value for name, value in own.get("video", {}).items()}
    count = video.get("nframes")
    if count == -1:  # vLLM: all frames
        video = {**video, "fps": 1e6}
        del video["nframes"]
    elif type(count) is int:  # vLLM: this number, or all frames of a shorter video
        video = {"max_frames": max(2, count), **video, "nframes": max(2, count)}
    options: dict[Literal["image", "video"], dict[str, Any]] = {
        "image": {**shared, **own.get("image", {})}, "video": {**shared, **video},
    }
    for kind, fields in options.items():
        for name in fields:
            if name not in Options.model_fields:
                raise BadRequest(f"The option {name!r} of {kind}s is not supported.")
        parse(Options, fields)
    return options


def _complaint(error: ErrorDetails) -> ApiError:
    where = ".".join(str(step) for step in error["loc"])
    if error["type"] == "extra_forbidden":
        return _invalid(f"Unknown field {quoted(where)!r}.", quoted(where), "unknown_parameter")
    if error["type"] == "missing":
        return _invalid(f"{where} is missing.", where, "missing_required_parameter")
    return _invalid(f"{quoted(where)}: {quoted(reason(error))}.", quoted(where))


def _invalid(message: str, param: str, code: str = "invalid_value") -> ApiError:
    return ApiError(400, message, code=code, param=param)
