"""Chat messages to records and blobs."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import qwen_oracle as oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from media_files import FPS, FRAMES, HEIGHT, SAME_SIZE, WIDTH, coded, number_of, write_clip, write_image
from PIL import Image

from sailq.producer.openai_api.messages import plain_messages
from sailq.producer.vision_inputs import to_parts
from sailq.shared.codec import decode, encode
from sailq.shared.errors import BadMedia, BadRequest, SailqError, TooLong, Unsupported
from sailq.shared.frames import decode_frames
from sailq.shared.jobs import FramesPart, Job, ModelCard, TextPart
from sailq.shared.media import sources
from sailq.shared.media.messages import Prepared, prepare
from sailq.shared.media.parts import read_part
from sailq.worker.queue.front_door import read_messages

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


def write_gif(path: Path) -> Path:
    """As many frames as the clip has. A GIF counts in 1/100 s, so that 25 a second is exact."""
    frames = [Image.fromarray(coded(number)[:, :, ::-1]) for number in range(FRAMES)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=1000 // FPS, loop=0)
    return path


def gateways(part: dict[str, Any]) -> Any:
    """A part as the gateway passes it to `prepare`."""
    return plain_messages(user(part), local_files=False)[0]["content"][0]


WAYS: dict[str, Callable[[Path, dict[str, Any]], Any]] = {
    "path": lambda path, given: video(str(path), **given),
    "Path": lambda path, given: video(path, **given),
    "file URL": lambda path, given: video(f"file://{path}", **given),
    "bytes": lambda path, given: video(path.read_bytes(), **given),
    "GIF": lambda path, given: video(write_gif(path.with_suffix(".gif")), **given),
    "gateway": lambda path, given: gateways(
        {"type": "video_url", "video_url": {"url": data_url(path, "video/mp4")}, **given}
    ),
    "sophon-demo, newer": lambda path, given: to_parts(
        json.dumps([{"type": "video_url", "video_url": {"url": str(path)}, **given}])
    )[0],
    "sophon-demo, older": lambda path, given: to_parts(
        json.dumps({"video": [{"path": str(path), "preprocess_config": given}], "image": []})
    )[0],
}


@pytest.mark.parametrize("given", [
    {"nframes": 6}, {"fps": 3.0}, {"fps": 2.0, "video_start": 0.5, "video_end": 1.9},
    {"video_sample_num": 2, "nframes": 8},
], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_each_way_gives_a_clip_the_times_and_the_rate_of_qwen_vl_utils(
    folder: Path, way: str, given: dict[str, Any]
) -> None:
    """Times are seconds of the whole clip, whatever part of it is taken."""
    part = prepare(user(WAYS[way](folder / "clip.mp4", given)), base=folder).messages[0].content[0]
    times, fps = oracle.clip_times(FRAMES, FPS, given)
    assert isinstance(part, FramesPart) and part.times == pytest.approx(times, abs=1e-6)
    assert part.fps == pytest.approx(fps, abs=1e-6)


def test_a_worker_that_reads_a_clip_itself_gives_it_the_same_times(folder: Path) -> None:
    """A job of RQ's own `enqueue` has its clip as a data URL, or as a part that `Client.upload` has returned."""
    sent = user(video(data_url(folder / "clip.mp4", "video/mp4"), nframes=6))
    part = read_messages(sent, CARD).messages[0].content[0]
    times, fps = oracle.clip_times(FRAMES, FPS, {"nframes": 6})
    assert isinstance(part, FramesPart) and part.times == pytest.approx(times, abs=1e-6)
    assert part.fps == pytest.approx(fps, abs=1e-6)
    assert read_messages(user(part.model_dump()), CARD).messages[0].content[0] == part


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
        (user(video(nframes=14)), r"clip\.mp4: .*14 frames .* 70 vision tokens"),
        (user(image(resized_height=224, resized_width=224)), r"200\.png: .* 256 patches .* the limit of tiny is 200"),
        (user(*[image()] * 7), r"200\.png: .* 70 vision tokens; the context of tiny has 64"),
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
    ([{"role": ["user"], "content": "x"}], BadRequest, "role must be one of"),
    ([{"role": np.zeros(2), "content": "x"}], BadRequest, "role must be one of"),
    ([{"role": "user", "content": None}], BadRequest, "content must be"),
    ([{"role": "user", "content": []}], BadRequest, "at least one part"),
    (user(5), BadRequest, r"Part 1 of message 1: A part .* a map or a text"),
    (user({}), BadRequest, "this has 0"),
    (user({"image": "200.png", "text": "x"}), BadRequest, "this has 2"),
    (user({"type": 5, "text": "x"}), BadRequest, "type must be a text, not a int"),
    (user({"type": "audio", "audio": "a.wav"}), Unsupported, "'audio'"),
    (user(text(text="x"), {"type": "video_url", "url": "clip.mp4"}), BadRequest, "Part 2 of .* field 'video_url'"),
    (user({"type": "video_url", "video_url": {"url": "clip.mp4", "detail": "low"}}), BadRequest, "map with url only"),
    (user({"type": "input_image", "file_id": "file-1", "image_url": None}), Unsupported, "file_id"),
    (user({"type": "input_image", "image_url": "200.png", "detail": "best"}), BadRequest, "detail must be one of auto"),
    (user({"type": "image"}), BadRequest, "field 'image'"),
    (user({"type": "image", "video": "clip.mp4"}), BadRequest, "field 'image'"),
    (user({"type": "image_url", "image_url": {"url": "200.png", "size": 5}}), BadRequest, "map with url and detail"),
    (user({"type": "image_url", "image_url": {"url": "200.png", "detail": ["low"]}}), BadRequest, "detail must be"),
    (user({"type": "image_url", "image_url": {"detail": "low"}}), BadRequest, "map with url"),
    (user(text()), BadRequest, "field 'text'"),
    (user(text(text=5)), BadRequest, "valid string"),
    (user(text(text="x" * 300_000)), BadRequest, "at most 262144"),
    (user(text(text="x", bold=True)), BadRequest, "bold"),
    (user(text(text="\ud800")), BadRequest, "."),
    (user(image(frames=3)), BadRequest, r"200\.png: Unknown option 'frames'"),
    (user({**image(), 5: 1}), BadRequest, "Unknown option 5"),
    (user(image("no.png")), BadMedia, r"no\.png: There is no such file"),
    (user(image(5)), BadRequest, "Part 1 of message 1: int: .* a path"),
    (user(video([])), BadMedia, "at least one image"),
    (user(video("clip.mp4", nframes=62)), BadRequest, "62 frames"),
    (user(video("clip.mp4", video_start=9)), BadRequest, "fewer than two frames"),
    (user(video("https://example.com/clip.mp4")), Unsupported, "https:// addresses: download it first"),
    (user({"type": "image_url", "image_url": {"url": "HTTP://a/b.png"}}), Unsupported, "download it first"),
    (user(image("data:image/png;base64,!!!!")), BadMedia, r"Part 1 of message 1: data:image/png;base64,….*base64\."),
    (user(image("data:image/png;base64,AAAAA")), BadMedia, "not valid base64"),
    (user(image("data:image/png,AAAA")), BadMedia, "not in base64"),
    (user(image("data:image/png;base64")), BadMedia, "has no data"),
    (user(image("data:image/png;base64,")), BadMedia, "is empty"),
    (user(image("data:image/png;base64,AAAA")), BadMedia, "not a PNG, JPEG"),
    (user(video("data:video/mp4;base64,AAAA")), BadMedia, "not a video of a known format"),
    (user(image(b"")), BadMedia, "0 bytes: .* empty"),
    (user(image(b"GIF")), BadMedia, "3 bytes: .* not a PNG"),
    (user(image(np.zeros((3, 56, 84), np.uint8))), BadRequest, r"array \[3, 56, 84\]: .* not uint8"),
    (user(image(np.zeros((56, 84, 3)))), BadRequest, "not float64"),
    (user(image(np.zeros((2, 56, 84, 3), np.uint8))), BadRequest, r"\[height, width, 3\]"),
    (user(image(np.zeros((0, 84, 3), np.uint8))), BadRequest, "not uint8"),
    (user(image(np.zeros((10_001, 10_000), np.uint8))), BadMedia, "100 megapixels"),
    (user(video(np.zeros((56, 84, 3), np.uint8))), BadRequest, r"\[frames, height, width, 3\]"),
    (user(video(np.zeros((2, 56, 84, 3), np.uint8), fps=0)), BadRequest, "above 0"),
    (user(video(np.zeros((2, 56, 84, 3), np.uint8), fps=5e-324)), BadRequest, "above 0"),
    (user(video(np.zeros((769, 1, 1, 3), np.uint8))), BadRequest, "768 frames"),
    (user(image(Image.new("RGB", (0, 5)))), BadMedia, "PIL image of 0 × 5: .* no pixels"),
    (user(image("file:///no%20such.png")), BadMedia, "no such file"),
    (user(image("200.png", max_side=-2)), BadRequest, r"^200\.png: .*max_side"),
    (user(image("200.png", resize_type="INTER_AREA")), BadRequest, r"^200\.png: .*resize_type"),
    (user(text(text="x"), image(b"x", nframes="4")), BadRequest, "^Part 2 of message 1: 1 bytes: .*nframes"),
]


@pytest.mark.parametrize(("messages", "error", "told"), BAD)
def test_bad_messages_are_refused(folder: Path, messages: Any, error: type[SailqError], told: str) -> None:
    with pytest.raises(error, match=told) as caught:
        prepare(messages, base=folder)
    assert type(caught.value) is error and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["resized_height", "min_pixels", "max_pixels", "total_pixels", "nframes", "min_frames",
                                  "max_frames", "video_sample_num", "fps", "video_start", "video_end"])
@pytest.mark.parametrize("value", ["4", -1, float("nan"), float("inf"), True, [4], 10**400, 1.5, 2.0])
def test_options_of_the_wrong_type_or_range_are_refused(folder: Path, name: str, value: Any) -> None:
    if name in {"total_pixels", "fps", "video_start", "video_end"} and value in (1.5, 2.0):
        return  # these may be fractions
    with pytest.raises(BadRequest, match=rf"^clip\.mp4: .*{name}"):
        prepare(user(video(**{name: value})), base=folder)


def test_zero_is_not_a_valid_size_or_stride(folder: Path) -> None:
    for name in ("resized_height", "resized_width", "max_pixels", "total_pixels", "video_sample_num"):
        with pytest.raises(BadRequest, match=name):
            prepare(user(video(**{name: 0})), base=folder)


def test_frames_survive_the_encoding(folder: Path) -> None:
    prepared = prepare(user(image(**SAME_SIZE)), base=folder)
    part = prepared.messages[0].content[0]
    assert isinstance(part, FramesPart)
    frame = decode_frames(prepared.blobs[part.blob], (1, HEIGHT, WIDTH))[0]
    assert np.abs(frame.astype(int) - coded(200)).mean() < 3


def data_url(path: Path, kind: str) -> str:
    """With line breaks, as MIME and many clients write base64."""
    return f"data:{kind};base64,{base64.encodebytes(path.read_bytes()).decode()}"


PICTURES: dict[str, Callable[[Path], Any]] = {
    "str": str,
    "Path": lambda path: path,
    "bytes": Path.read_bytes,
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "PIL": Image.open,
    "PIL palette": lambda path: Image.open(path).convert("P"),
    "array": lambda path: np.asarray(Image.open(path).convert("RGB")),
    "array RGBA": lambda path: np.asarray(Image.open(path).convert("RGBA")),
    "array grey": lambda path: np.asarray(Image.open(path).convert("L")),
    "strided array": lambda path: np.asarray(Image.open(path).convert("RGB"))[::-1][::-1],
    "data URL": lambda path: data_url(path, "image/png"),
    "data URL, one line": lambda path: data_url(path, "image/png").replace("\n", ""),
    "data URL, no padding": lambda path: data_url(path, "image/png").replace("\n", "").rstrip("="),
    "data URL, escaped": lambda path: quote(data_url(path, "image/png"), safe=":;,/"),
    "data URL, other type": lambda path: data_url(path, "application/octet-stream"),
    "data URL, capitals": lambda path: "DATA:IMAGE/PNG;charset=x;BASE64," + data_url(path, "").partition(",")[2],
    "file URL": lambda path: f"file://{path}",
    "Path.as_uri": Path.as_uri,
    "file URL of localhost": lambda path: path.as_uri().replace("file://", "file://localhost"),
    "file URL of one slash": lambda path: path.as_uri().replace("file://", "file:"),
}


@pytest.mark.parametrize("name", ["200.png", "a b 50%25 #1?.png", "图 %.png"])
@pytest.mark.parametrize("form", PICTURES)
def test_an_image_in_any_form_is_the_same_image(folder: Path, form: str, name: str) -> None:
    path = (folder / "200.png").rename(folder / name)
    expected = prepare(user(image(str(path))))
    assert prepare(user(image(PICTURES[form](path)))) == expected
    assert prepare(user(video([PICTURES[form](path), path]))) == prepare(user(video([str(path)])))


@pytest.mark.parametrize("form", [name for name in PICTURES if "PIL" not in name and "array" not in name])
def test_a_video_in_any_form_is_the_same_video(folder: Path, form: str) -> None:
    path = folder / "clip.mp4"
    assert prepare(user(video(PICTURES[form](path)))) == prepare(user(video(str(path))))


def test_the_unescaped_name_of_a_file_url_goes_first(folder: Path) -> None:
    write_image(folder / "a b.png", coded(200))
    write_image(folder / "a%20b.png", coded(3))
    prepared = prepare(user(image("file://a%20b.png", **SAME_SIZE), image("a%20b.png", **SAME_SIZE)), base=folder)
    assert frames_of(prepared, 0, 0) == [200] and frames_of(prepared, 0, 1) == [3]


def test_a_file_url_names_files_that_are_not_utf8(folder: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(folder) + "/文件.png".encode("gbk")))
    (folder / "200.png").rename(path)
    assert prepare(user(image(path.as_uri()))) == prepare(user(image(path)))


SPELLINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"type": "image_url", "image_url": "200.png"}, image()),
    ({"type": "image_url", "image_url": {"url": "200.png", "detail": "low"}}, image()),
    ({"type": "image_url", "image_url": {"url": "200.png"}, "max_pixels": 3136}, image(max_pixels=3136)),
    ({"type": "image_url", "image": "200.png"}, image()),
    ({"type": "image", "image_url": {"url": "200.png"}}, image()),
    ({"type": "input_image", "image_url": "200.png", "detail": "auto", "file_id": None}, image()),
    ({"image": "200.png"}, image()),
    ({"image_url": {"url": "200.png"}}, image()),
    ({"type": None, "image": "200.png", "video": None}, image()),
    ({"type": "video_url", "video_url": "clip.mp4"}, video()),
    ({"type": "video_url", "video_url": {"url": "clip.mp4"}, "nframes": 4}, video(nframes=4)),
    ({"type": "video_url", "video_url": {"url": ["3.png", "200.png"]}}, video(["3.png", "200.png"])),
    ({"video": "clip.mp4", "fps": 1}, video(fps=1)),
    ({"video_url": "clip.mp4"}, video()),
    ({"type": "input_text", "text": "Hello"}, text(text="Hello")),
    ({"text": "Hello"}, text(text="Hello")),
]


@pytest.mark.parametrize(("part", "plain"), SPELLINGS)
def test_each_spelling_of_a_part_is_the_same_part(folder: Path, part: dict[str, Any], plain: dict[str, Any]) -> None:
    assert prepare(user(part), base=folder) == prepare(user(plain), base=folder)


def test_a_string_among_the_parts_is_a_text(folder: Path) -> None:
    assert prepare(user("Hello", image()), base=folder) == prepare(user(text(text="Hello"), image()), base=folder)


def test_an_array_of_frames_keeps_all_of_them_and_their_times() -> None:
    frames = np.stack([coded(number) for number in (3, 9, 200)])
    prepared = prepare(user(video(frames, fps=4, **SAME_SIZE)))
    part = prepared.messages[0].content[0]
    assert isinstance(part, FramesPart)
    assert (part.type, part.times, part.fps) == ("video", (0.0, 0.25, 0.5, 0.75), 4.0)
    assert frames_of(prepared) == [3, 9, 200, 200]
    untimed = prepare(user(video(frames, **SAME_SIZE))).messages[0].content[0]
    assert isinstance(untimed, FramesPart) and (untimed.times, untimed.fps) == ((), None)


def test_the_frames_of_an_array_have_the_size_of_a_clips(folder: Path) -> None:
    frames = np.zeros((8, HEIGHT, WIDTH, 3), np.uint8)
    for options in ({}, {"total_pixels": 8 * 784}, {"min_pixels": 784, "total_pixels": 8 * 784}, SAME_SIZE):
        given = prepare(user(video(frames, **options))).messages[0].content[0]
        read = prepare(user(video(nframes=8, **options)), base=folder).messages[0].content[0]
        assert isinstance(given, FramesPart) and isinstance(read, FramesPart)
        assert given.size == read.size


def test_vllms_jpeg_sequence_is_a_list_of_images() -> None:
    jpegs = []
    for number in (3, 200):
        Image.fromarray(coded(number)).save(file := io.BytesIO(), "JPEG", quality=95)
        jpegs.append(base64.b64encode(file.getvalue()).decode())
    prepared = prepare(user({"type": "video_url", "video_url": {"url": "data:video/jpeg;base64," + ",".join(jpegs)}}))
    assert frames_of(prepared) == [3, 200]


def test_a_data_url_is_refused_by_its_length_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_BYTES", 2**20)
    monkeypatch.setattr(base64, "b64decode", None)
    for message in (image("data:image/png;base64," + "A" * 2**21), video("data:video/mp4;base64," + "A" * 2**21)):
        with pytest.raises(BadMedia, match="more than 1 MiB"):
            prepare(user(message))


def test_qwen_vl_utils_reads_the_same_image_from_the_same_forms(folder: Path) -> None:
    path = folder / "200.png"
    for form in ("str", "PIL", "data URL", "file URL"):
        theirs = np.asarray(oracle.qwen.fetch_image({"image": PICTURES[form](path), **SAME_SIZE}))
        prepared = prepare(user(image(PICTURES[form](path), **SAME_SIZE)))
        part = prepared.messages[0].content[0]
        assert isinstance(part, FramesPart) and theirs.shape == (part.height, part.width, 3)
        ours = decode_frames(prepared.blobs[part.blob], part.size)[0]
        assert np.abs(ours.astype(int) - theirs).mean() < 3


def test_qwen_vl_utils_finds_the_same_media_in_a_message() -> None:
    parts = [part for part, plain in SPELLINGS if plain["type"] != "text" and "video_url" not in part]
    found = oracle.qwen.extract_vision_info(user(*parts, {"type": "text", "text": "Hello"}))
    assert found == [part for part in parts if read_part(part).kind != "text"] == parts


URLS = ["data:image/png;base64,", "data:image/png;base64,AAAA", "data:,", "file://", "file:/%00", "file://%FF", "http://a"]
SHAPES = [(), (0,), (2, 2), (2, 2, 3), (1, 2, 2, 3)]
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.binary(max_size=9)
    | st.sampled_from(URLS) | st.builds(np.zeros, st.sampled_from(SHAPES), st.sampled_from([np.uint8, float])),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["url", "detail", "x"]), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ["type", "text", "image", "image_url", "video", "video_url", "detail", "file_id", "fps", "max_side"]


@settings(max_examples=150)
@given(st.one_of(junk, st.dictionaries(st.sampled_from(FIELDS), junk), st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image", "image_url", "video", "video_url", "input_text", "input_image"])},
    optional={name: junk for name in FIELDS[1:]},
)))
def test_any_part_is_read_or_refused_in_one_typed_sentence(part: Any) -> None:
    try:
        prepare(user(part))
    except SailqError as error:
        assert type(error) in (BadRequest, BadMedia, Unsupported, TooLong) and "\n" not in str(error)
