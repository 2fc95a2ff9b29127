"""Requests of the kinds in vLLM's documents on multimodal inputs, structured outputs and its OpenAI-compatible server:
each is answered, or refused with the code that deploy/gateway/README.md documents."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import pytest
from gateways import gateway_thread
from media_server import Listener, media_server
from openai_media import asked

MODEL = "sailq-tiny"
UNSUPPORTED, INVALID, UNKNOWN = (400, "unsupported_parameter"), (400, "invalid_value"), (400, "unknown_parameter")
SCHEMA = {
    "type": "object", "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer", "maximum": 9}},
    "required": ["colour", "count"], "additionalProperties": False,
}
Media = dict[str, str]
Build = Callable[[Media], dict[str, Any]]


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Media]:
    """URLs of an image, a second one, a clip, an image at an http address, and a clip as vLLM's JPEG frames."""
    folder = tmp_path_factory.mktemp("media")

    def url(task: str, number: int) -> str:
        part = asked(task, folder, number).messages[0]["content"][0]
        return str(part[part["type"]]["url"])

    clip = url("video", 0)
    path = folder / "clip.mp4"
    path.write_bytes(base64.b64decode(clip.partition(",")[2]))
    video = cv2.VideoCapture(str(path))
    frames = [cv2.imencode(".jpg", video.read()[1])[1].tobytes() for _ in range(4)]
    jpegs = ",".join(base64.b64encode(frame).decode() for frame in frames)
    image = url("image", 0)

    def nobody(path: str, connection: object) -> None: ...

    trap = Listener(nobody)
    with media_server(base64.b64decode(image.partition(",")[2]), trap.port) as server:
        yield {"image": image, "image2": url("image", 1), "video": clip, "frames": f"data:video/jpeg;base64,{jpegs}",
               "address": f"http://127.0.0.1:{server.port}/image", "port": str(server.port)}
    trap.close()


@pytest.fixture(scope="module")
def http(common_worker: str, media: Media) -> Iterator[httpx.Client]:
    with (
        gateway_thread(common_worker, media_from=[f"127.0.0.1:{media['port']}"]) as url,
        httpx.Client(base_url=url, timeout=90) as client,
    ):
        yield client


def user(*content: Any, **more: Any) -> Build:
    """A request with one message. Texts of its parts that begin with $ are names of media."""
    return lambda media: {
        "model": MODEL, "max_tokens": 40,
        "messages": [{"role": "user", "content": [_filled(part, media) for part in content]}], **more,
    }


def say(text: str, **more: Any) -> Build:
    return lambda media: {"model": MODEL, "max_tokens": 40, "messages": [{"role": "user", "content": text}], **more}


def turns(*messages: dict[str, Any]) -> Build:
    return lambda media: {"model": MODEL, "max_tokens": 40, "messages": _filled(list(messages), media)}


def _filled(value: Any, media: Media) -> Any:
    if isinstance(value, dict):
        return {name: _filled(one, media) for name, one in value.items()}
    if isinstance(value, list):
        return [_filled(one, media) for one in value]
    return media[value[1:]] if isinstance(value, str) and value.startswith("$") else value


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def image(url: str, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}, **more}


def video(url: str, **more: Any) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}, **more}


ASK = text("Describe the image.")
WATCH = text("Describe the video.")
ANSWERED: dict[str, Build] = {
    "an image as a data URL": user(text("What is in this image?"), image("$image")),
    "an image at an address": user(image("$address"), ASK),
    "an image with a detail": user({"type": "image_url", "image_url": {"url": "$image", "detail": "low"}}, ASK),
    "an image_url that is a text": user({"type": "image_url", "image_url": "$image"}, ASK),
    "an image with a uuid": user(image("$image", uuid="image-1"), ASK),
    "two images": user(image("$image"), image("$image2"), text("Describe the images.")),
    "texts between images": user(text("First:"), image("$image"), text("Second:"), image("$image2")),
    "an image and a video": user(image("$image"), video("$video"), WATCH),
    "a video": user(video("$video"), WATCH),
    "a video as JPEG frames": user(video("$frames"), WATCH),
    "a video of 4 frames": user(video("$video"), WATCH, media_io_kwargs={"video": {"num_frames": 4}}),
    "a video of more frames than it has": user(video("$video"), WATCH, media_io_kwargs={"video": {"num_frames": 64}}),
    "all frames of a video": user(
        video("$video"), WATCH, media_io_kwargs={"video": {"num_frames": -1}},
        mm_processor_kwargs={"max_pixels": 7056}),
    "a video at 2 frames a second": user(video("$video"), WATCH, media_io_kwargs={"video": {"fps": 2}}),
    "limits of pixels": user(image("$image"), ASK, mm_processor_kwargs={"min_pixels": 784, "max_pixels": 7056}),
    "fps for the processor": user(video("$video"), WATCH, mm_processor_kwargs={"fps": 1}),
    "a system message": turns({"role": "system", "content": "You are helpful."}, {"role": "user", "content": "Hello"}),
    "a developer message": turns({"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hello"}),
    "several turns with an image": turns(
        {"role": "user", "content": [image("$image"), ASK]}, {"role": "assistant", "content": "A star."},
        {"role": "user", "content": "What colour is it?"}),
    "an assistant message as openai's client returns it": turns(
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello.", "refusal": None, "tool_calls": None, "annotations": []},
        {"role": "user", "content": "Hello", "name": "operator"}),
    "sampling": say("Hello", temperature=0.7, top_p=0.9, top_k=20, repetition_penalty=1.05, seed=42),
    "vLLM's top_k of -1": say("Hello", temperature=1.0, top_k=-1),
    "stop texts": say("Hello", stop=["\n", "!"]),
    "max_completion_tokens": say("Hello", max_completion_tokens=5),
    "values that ask for nothing": say(
        "Hello", n=1, logprobs=False, tools=[], tool_choice="none", presence_penalty=0, frequency_penalty=0.0,
        logit_bias={}, best_of=1, min_p=0.0, skip_special_tokens=True, user="me", service_tier="auto",
        response_format={"type": "text"}, stream_options=None, parallel_tool_calls=True, request_id="r-1"),
    "a choice": say("Which?", structured_outputs={"choice": ["positive", "negative"]}),
    "a regex": say("An address?", structured_outputs={"regex": r"\w{1,5}@\w{1,5}\.com"}),
    "a JSON schema": say("A car?", structured_outputs={"json": SCHEMA}),
    "a grammar": say("SQL?", structured_outputs={"grammar": 'root ::= "SELECT " column\ncolumn ::= "a" | "b"'}),
    "response_format json_schema": say(
        "A car?", response_format={"type": "json_schema", "json_schema": {"name": "car", "schema": SCHEMA}}),
    "response_format json_object": say("JSON?", response_format={"type": "json_object"}),
}
REFUSED: dict[str, tuple[tuple[int, str], Build]] = {
    "a local file": (INVALID, user(image("file:///data/image.png"), ASK)),
    "an address that is not allowed": (INVALID, user(image("https://upload.example.org/image.jpg"), ASK)),
    "a cached image by its uuid": (INVALID, user({"type": "image_url", "image_url": None, "uuid": "image-1"}, ASK)),
    "audio": ((400, "unsupported_value"), user({
        "type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,AA"}})),
    "input_audio": ((400, "unsupported_value"), user({
        "type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}})),
    "image embeddings": ((400, "unsupported_value"), user({"type": "image_embeds", "image_embeds": "AAAA"})),
    "a processor's option that is not ours": (INVALID, user(image("$image"), mm_processor_kwargs={"num_crops": 4})),
    "an image that is none": ((422, "invalid_media"), user(image("data:image/png;base64,AAAA"), ASK)),
    "two answers": (UNSUPPORTED, say("Hello", n=2)),
    "logprobs": (UNSUPPORTED, say("Hello", logprobs=True, top_logprobs=5)),
    "prompt_logprobs": (UNSUPPORTED, say("Hello", prompt_logprobs=1)),
    "tools": (UNSUPPORTED, say("Hello", tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])),
    "min_p": (UNSUPPORTED, say("Hello", min_p=0.1)),
    "a presence penalty": (UNSUPPORTED, say("Hello", presence_penalty=1.0)),
    "beam search": (UNSUPPORTED, say("Hello", use_beam_search=True)),
    "a chat template": (UNSUPPORTED, say("Hello", chat_template="{{ messages }}")),
    "continue_final_message": (UNSUPPORTED, say("Hello", continue_final_message=True, add_generation_prompt=False)),
    "guided_choice of earlier versions": (UNSUPPORTED, say("Hello", guided_choice=["a"])),
    "a structural tag": (INVALID, say("Hello", structured_outputs={"structural_tag": "{}"})),
    "both ways to guide": (INVALID, say(
        "Hello", response_format={"type": "json_object"}, structured_outputs={"choice": ["a"]})),
    "a priority that is a number": (INVALID, say("Hello", priority=1)),
    "truncate_prompt_tokens": (UNKNOWN, say("Hello", truncate_prompt_tokens=10)),
    "a prompt that is too long": ((400, "context_length_exceeded"), say("word " * 20_000)),
    "another model": ((404, "model_not_found"), lambda media: {
        "model": "Qwen/Qwen2-VL-7B-Instruct", "messages": [{"role": "user", "content": "Hello"}]}),
}


@pytest.mark.parametrize("stream", [False, pytest.param(True, marks=pytest.mark.proof)])
@pytest.mark.parametrize("name", ANSWERED)
def test_answered(http: httpx.Client, media: Media, name: str, stream: bool) -> None:
    response = http.post("/v1/chat/completions", json={**ANSWERED[name](media), "stream": stream})
    assert response.status_code == 200, response.text
    if not stream:
        assert response.json()["choices"][0]["finish_reason"] in {"stop", "length"}
        return
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["choices"][0]["finish_reason"] in {"stop", "length"}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(http: httpx.Client, media: Media, name: str) -> None:
    (status, code), build = REFUSED[name]
    response = http.post("/v1/chat/completions", json=build(media))
    assert (response.status_code, response.json()["error"]["code"]) == (status, code), response.text


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings", "/v1/responses", "/tokenize"])
def test_apis_that_are_not_served(http: httpx.Client, path: str) -> None:
    response = http.post(path, json={"model": MODEL})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")


def test_the_codes_are_documented() -> None:
    page = (Path(__file__).parents[2] / "deploy/gateway/README.md").read_text()
    for status, code in {code for code, _ in REFUSED.values()}:
        assert re.search(rf"\| *{status} *\|[^\n]*`{code}`", page), (status, code)
