"""sophon-demo's JSON, as its README writes it, and as people write it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from media_files import coded, number_of, write_clip, write_image
from sailq.producer.messages import prepare
from sailq.producer.vision_inputs import to_parts
from sailq.shared.errors import BadRequest
from sailq.shared.frames import decode_frames
from sailq.shared.jobs import FramesPart

SIZE = {"resized_height": 140, "resized_width": 210}
CLIP = {"type": "video", "video": "clip.mp4"}
IMAGE = {"type": "image", "image": "a.jpg"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # newer
        ([{**CLIP, **SIZE, "nframes": 2}, IMAGE], [{**CLIP, **SIZE, "nframes": 2}, IMAGE]),
        ([{"type": "video", "video": ["1.jpg", "2.jpg"]}], [{"type": "video", "video": ["1.jpg", "2.jpg"]}]),
        ([{"type": "video", "path": "clip.mp4", "fps": 1}], [{**CLIP, "fps": 1}]),
        ([{"type": "image_url", "image_url": {"url": "a.jpg"}}],) * 2,
        ([], []),
        ({}, []),
        # older
        (
            {"video": [{"path": "clip.mp4", "preprocess_config": {**SIZE, "fps": 2}}], "image": []},
            [{**CLIP, **SIZE, "fps": 2}],
        ),
        ({"video": [{"path": ["1.jpg", "2.jpg"]}]}, [{"type": "video", "video": ["1.jpg", "2.jpg"]}]),
        ({"image": [{"path": "a.jpg"}], "video": [{"path": "clip.mp4"}]}, [IMAGE, CLIP]),
        ({"image": ["a.jpg", "a.jpg"], "video": "clip.mp4"}, [IMAGE, IMAGE, CLIP]),
        ({"video": [{"path": "clip.mp4", "fps": 1, "preprocess_config": {"min_frames": 2}}]},
         [{**CLIP, "fps": 1, "min_frames": 2}]),
    ],
)
def test_both_forms_become_parts_in_the_order_given(given: Any, expected: list[dict[str, Any]]) -> None:
    assert to_parts(json.dumps(given)) == expected


def test_the_readmes_example_is_served(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4")
    write_image(tmp_path / "panda.png", coded(7))
    config = {"resized_height": 140, "resized_width": 210, "video_sample_num": 2}
    given = {"video": [{"path": "clip.mp4", "preprocess_config": config}], "image": [{"path": "panda.png"}]}
    prepared = prepare([{"role": "user", "content": to_parts(json.dumps(given))}], base=tmp_path)
    clip, panda = prepared.messages[0].content
    assert isinstance(clip, FramesPart) and isinstance(panda, FramesPart)
    # 2.4 s at 2 frames a second are 4 frames, and every second one is kept; 210 is 7.5 tokens, rounded to 8
    assert (clip.frames, clip.height, clip.width) == (2, 140, 224)
    frames = decode_frames(prepared.blobs[clip.blob], (2, 140, 224))
    assert [number_of(frame) for frame in frames] == [0, 39]
    assert (panda.type, panda.frames) == ("image", 1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"video":[{"path":"a",}]}', "line 1, column 2[23], before ',?}]}'"),
        ('[{"type": "video"}', "line 1, column 19, before its end"),
        ("[{]", "no JSON: .* at line 1, column 3, before ']'"),
        ("{'video': []}", "line 1, column 2"),
        ('[\n{"type": "video"\n"video": "a"}]', "line 3, column 1"),
        ("clip.mp4", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[" + "9" * 5000 + "]", "."),
        ('"clip.mp4"', "list of media"),
        ("5", "list of media"),
        ('{"audio": []}', "not 'audio'"),
        ('["clip.mp4"]', "whose type is one of"),
        ('[{"video": "clip.mp4"}]', "whose type is one of"),
        ('[{"type": ["video"], "video": "clip.mp4"}]', "whose type is one of"),
        ('[{"type": "video"}]', "a map with one path"),
        ('[{"type": "video", "video": "a", "path": "b"}]', "a map with one path"),
        ('{"video": [{}]}', "a map with one path"),
        ('{"video": [["1.jpg"]]}', "a map with one path"),
        ('{"video": null}', "a map with one path"),
        ('{"video": [{"path": "a", "preprocess_config": [1]}]}', "preprocess_config of a video"),
    ],
)
def test_what_is_neither_form_is_refused_in_one_sentence(text: str, told: str) -> None:
    with pytest.raises(BadRequest, match=told) as caught:
        to_parts(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize("config", ['{"nframes": NaN}', '{"frames": 2}', '{"resized_height": "140"}'])
def test_bad_options_are_refused_when_they_are_used(tmp_path: Path, config: str) -> None:
    write_clip(tmp_path / "clip.mp4")
    parts = to_parts(f'{{"video": [{{"path": "clip.mp4", "preprocess_config": {config}}}]}}')
    with pytest.raises(BadRequest, match=r"^clip\.mp4: "):
        prepare([{"role": "user", "content": parts}], base=tmp_path)
