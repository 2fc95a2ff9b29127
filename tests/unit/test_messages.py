"""Chat messages to records and blobs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media_files import HEIGHT, SAME_SIZE, WIDTH, coded, number_of, write_clip, write_image
from sailq.producer.messages import Prepared, prepare
from sailq.shared.codec import decode, encode
from sailq.shared.errors import BadMedia, BadRequest, SailqError, TooLong, Unsupported
from sailq.shared.frames import decode_frames
from sailq.shared.jobs import FramesPart, Job, ModelCard, TextPart

CARD = ModelCard(name="tiny", context=64, max_patches=200, min_pixels=784, max_pixels=16 * 784)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_clip(tmp_path / "clip.mp4")
    for number in (3, 200):
        write_image(tmp_path / f"{number}.png", coded(number))
    return tmp_path


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def image(name: Any = "200.png", **options: Any) -> dict[str, Any]:
    return {"type": "image", "image": name, **options}


def video(name: Any = "clip.mp4", **options: Any) -> dict[str, Any]:
    return {"type": "video", "video": name, **options}


def frames_of(prepared: Prepared, message: int = 0, part: int = 0) -> list[int]:
    """The numbers that the frames of a part show, read from its blob."""
    record = prepared.messages[message].content[part]
    assert isinstance(record, FramesPart)
    frames = decode_frames(prepared.blobs[record.blob], (record.frames, record.height, record.width))
    return [number_of(frame) for frame in frames]


def test_a_conversation_becomes_records_and_blobs(folder: Path) -> None:
    prepared = prepare(
        [
            {"role": "system", "content": "Be brief."},
            *user(video(nframes=4, **SAME_SIZE), image(**SAME_SIZE), {"type": "text", "text": "What is it?"}),
            {"role": "assistant", "content": "Stripes."},
        ],
        base=folder,
    )
    system, question, answer = prepared.messages
    assert [message.role for message in prepared.messages] == ["system", "user", "assistant"]
    assert system.content == (TextPart(text="Be brief."),) and answer.content == (TextPart(text="Stripes."),)
    clip, picture, text = question.content
    assert isinstance(clip, FramesPart) and isinstance(picture, FramesPart)
    assert (clip.type, clip.frames, clip.height, clip.width) == ("video", 4, HEIGHT, WIDTH)
    assert (picture.type, picture.frames, picture.height, picture.width) == ("image", 1, HEIGHT, WIDTH)
    assert text == TextPart(text="What is it?")
    assert frames_of(prepared, 1, 0) == [0, 20, 39, 59] and frames_of(prepared, 1, 1) == [200]
    assert prepared.vision_tokens == 3 * 4 * 8
    for digest, blob in prepared.blobs.items():
        assert hashlib.sha256(blob).hexdigest() == digest


def test_the_records_travel_and_hold_no_path(folder: Path) -> None:
    prepared = prepare(user(image(), video(["3.png", "200.png"], **SAME_SIZE)), base=folder)
    job = Job(id="1", conversation="c", model="m", messages=prepared.messages, submitted_at=0.0)
    data = encode(job)
    assert decode(Job, data) == job
    assert b"png" not in data and str(folder).encode() not in data


def test_one_blob_for_one_content(folder: Path) -> None:
    prepared = prepare(user(image(), image(), image("3.png")), base=folder)
    assert len(prepared.blobs) == 2 and len(prepared.messages[0].content) == 3


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "200.png"}},
        {"type": "image_url", "image_url": "200.png"},
        {"type": "image_url", "image_url": {"url": "file://FOLDER/200.png"}},
    ],
)
def test_openai_form_of_an_image(folder: Path, part: dict[str, Any]) -> None:
    if isinstance(part["image_url"], dict):
        url = part["image_url"]["url"].replace("FOLDER", str(folder))
        part = {**part, "image_url": {"url": url}}
    expected = prepare(user(image(**SAME_SIZE)), base=folder)
    assert prepare(user({**part, **SAME_SIZE}), base=folder) == expected


def test_a_list_of_images_is_a_video(folder: Path) -> None:
    prepared = prepare(user(video(["3.png", "200.png", "3.png"], fps=1.0, **SAME_SIZE)), base=folder)
    assert frames_of(prepared) == [3, 200, 3, 3]


def test_relative_paths_start_from_the_working_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert prepare(user(image())) == prepare(user(image()), base=folder)


def test_what_is_read_is_what_the_options_ask_for(folder: Path) -> None:
    prepared = prepare(user(video(video_start=1, video_end=1.4, nframes=2, **SAME_SIZE)), base=folder)
    assert frames_of(prepared) == [25, 35]
    with_none = prepare(user(video(video_start=None, nframes=2)), base=folder)
    assert with_none == prepare(user(video(nframes=2)), base=folder)


def test_a_card_sets_the_size_and_the_limits(folder: Path) -> None:
    prepared = prepare(user(image()), base=folder, card=CARD)
    part = prepared.messages[0].content[0]
    assert isinstance(part, FramesPart) and (part.height, part.width) == (56, 140)
    assert prepared.vision_tokens == 10


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        (user(video(nframes=14)), r"clip\.mp4: 14 frames .* 70 vision tokens"),
        (user(image(resized_height=224, resized_width=224)), r"200\.png: .* 256 patches a frame; tiny takes 200"),
        (user(*[image()] * 7), r"200\.png: .* 70 vision tokens; the context of tiny holds 64"),
        (user(*[image()] * 6) + user(image()), "70 vision tokens"),
    ],
)
def test_more_than_the_model_holds_is_refused(
    folder: Path, messages: list[dict[str, Any]], told: str
) -> None:
    with pytest.raises(TooLong, match=told):
        prepare(messages, base=folder, card=CARD)
    assert prepare(user(*[image()] * 6), base=folder, card=CARD).vision_tokens == 60


def text(**fields: Any) -> dict[str, Any]:
    return {"type": "text", **fields}


BAD: list[tuple[Any, type[SailqError], str]] = [
    ("hello", BadRequest, "list of at least one"),
    ([], BadRequest, "list of at least one"),
    ({"role": "user", "content": "x"}, BadRequest, "list of at least one"),
    (["hello"], BadRequest, "role and content"),
    ([{"role": "user"}], BadRequest, "role and content"),
    ([{"role": "user", "content": "x", "name": "y"}], BadRequest, "role and content"),
    ([{"role": "tool", "content": "x"}], BadRequest, "'tool'"),
    ([{"role": ["user"], "content": "x"}], BadRequest, "role is one of"),
    ([{"role": "user", "content": None}], BadRequest, "content is"),
    ([{"role": "user", "content": []}], BadRequest, "at least one part"),
    (user("hello"), BadRequest, "a map with a type"),
    (user({"image": "200.png"}), BadRequest, "a map with a type"),
    (user({"type": "audio", "audio": "a.wav"}), Unsupported, "'audio'"),
    (user({"type": "video_url", "video_url": {"url": "clip.mp4"}}), Unsupported, "'video_url'"),
    (user({"type": "image"}), BadRequest, "under 'image'"),
    (user({"type": "image", "video": "clip.mp4"}), BadRequest, "under 'image'"),
    (user({"type": "image_url", "image_url": {"url": "200.png", "detail": "low"}}), BadRequest, "map of url"),
    (user(text()), BadRequest, "text: field required"),
    (user(text(text=5)), BadRequest, "valid string"),
    (user(text(text="x" * 300_000)), BadRequest, "at most 262144"),
    (user(text(text="x", bold=True)), BadRequest, "bold"),
    (user(text(text="\ud800")), BadRequest, "."),
    (user(image(frames=3)), BadRequest, r"200\.png: There is no option 'frames'"),
    (user({**image(), 5: 1}), BadRequest, "no option 5"),
    (user(image("no.png")), BadMedia, r"no\.png: There is no such file"),
    (user(image(5)), BadRequest, "by its path"),
    (user(video([])), BadMedia, "at least one image"),
    (user(video("clip.mp4", nframes=62)), BadRequest, "62 frames"),
    (user(video("clip.mp4", video_start=9)), BadRequest, "less than two frames"),
    (user(video("https://example.com/clip.mp4")), Unsupported, "download it first"),
]


@pytest.mark.parametrize(("messages", "error", "told"), BAD)
def test_bad_messages_are_refused(folder: Path, messages: Any, error: type[SailqError], told: str) -> None:
    with pytest.raises(error, match=told) as caught:
        prepare(messages, base=folder)
    assert type(caught.value) is error and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["resized_height", "min_pixels", "max_pixels", "nframes", "min_frames",
                                  "max_frames", "video_sample_num", "fps", "video_start", "video_end"])
@pytest.mark.parametrize("value", ["4", -1, float("nan"), float("inf"), True, [4], 10**400, 1.5, 2.0])
def test_options_of_the_wrong_type_or_range_are_refused(folder: Path, name: str, value: Any) -> None:
    if name in {"fps", "video_start", "video_end"} and value in (1.5, 2.0):
        return  # these are real numbers
    with pytest.raises(BadRequest, match=rf"^clip\.mp4: .*{name}"):
        prepare(user(video(**{name: value})), base=folder)


def test_zero_is_no_size_and_no_stride(folder: Path) -> None:
    for name in ("resized_height", "resized_width", "max_pixels", "video_sample_num"):
        with pytest.raises(BadRequest, match=name):
            prepare(user(video(**{name: 0})), base=folder)


def test_frames_survive_the_encoding(folder: Path) -> None:
    prepared = prepare(user(image(**SAME_SIZE)), base=folder)
    part = prepared.messages[0].content[0]
    assert isinstance(part, FramesPart)
    frame = decode_frames(prepared.blobs[part.blob], (1, HEIGHT, WIDTH))[0]
    assert np.abs(frame.astype(int) - coded(200)).mean() < 3
