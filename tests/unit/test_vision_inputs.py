"""sophon-demo's JSON, as its README writes it, and as people write it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media_files import coded, number_of, write_clip, write_image

from sailq.producer.vision_inputs import to_parts
from sailq.shared.errors import BadMedia, BadRequest
from sailq.shared.frames import decode_frames
from sailq.shared.jobs import FramesPart, ModelCard
from sailq.shared.media import sophon_demo
from sailq.shared.media.messages import prepare
from sailq.shared.media.reading import read_image
from sailq.shared.media.sizing import Budget, Options

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
        ([{"type": "image_url", "image_url": {"url": "a.jpg"}, "max_side": 420, "resize_type": "INTER_LINEAR"}],) * 2,
        ([{"type": "video_url", "video_url": {"url": "clip.mp4"}, **SIZE, "nframes": 2}],) * 2,
        ([{"type": "video_url", "video_url": "clip.mp4"}],) * 2,
        ([{"type": "video_url", "path": "clip.mp4"}], [{"type": "video_url", "video_url": "clip.mp4"}]),
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
        ("[{]", "not JSON: .* at line 1, column 3, before ']'"),
        ("{'video': []}", "line 1, column 2"),
        ('[\n{"type": "video"\n"video": "a"}]', "line 3, column 1"),
        ("clip.mp4", "JSON"),
        ("[" * 100_000, "JSON"),
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


CARD = ModelCard(name="chip", context=1000, max_patches=1024, min_pixels=3136, max_pixels=16384 * 784)


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        # (height, width) by sophon-demo's compute_image_size, with 1024 patches for the ViT
        ((1080, 1920), {"max_side": 420}, (224, 420)),
        ((1920, 1080), {"max_side": 420}, (420, 224)),
        ((500, 500), {"max_side": 420}, (420, 420)),
        ((30, 40), {"max_side": 420}, (308, 420)),  # enlarged
        ((1080, 1920), {"max_side": 420, "resized_height": 56, "resized_width": 56}, (224, 420)),
        ((1080, 1920), {"max_side": 20}, (56, 84)),  # to the minimum of 4 tokens
        ((1080, 1920), {"max_side": 0}, (336, 588)),
        ((100, 200), {"max_side": 0}, (84, 196)),  # not enlarged
        ((100, 200), {"max_side": -1}, (308, 616)),
        ((1080, 1920), {"max_side": -1}, (336, 588)),
        ((100, 200), {"resize_type": "Origin"}, (112, 196)),
        ((100, 200), {"resize_type": "INTER_NEAREST", "resized_height": 56, "resized_width": 84}, (56, 84)),
    ],
)
def test_max_side_is_sophon_demos(size: tuple[int, int], options: dict[str, Any], expected: tuple[int, int]) -> None:
    budget = Budget(CARD)
    budget.automatic = 1
    assert sophon_demo.image_size(*size, Options(**options), budget) == expected


def test_images_of_automatic_size_share_the_context(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", np.zeros((1080, 1920, 3), np.uint8))
    parts = [{"type": "image_url", "image_url": {"url": "a.png"}, "max_side": 0}] * 10
    prepared = prepare([{"role": "user", "content": parts}], base=tmp_path, card=CARD)
    sizes = [(part.height, part.width) for part in prepared.messages[0].content if isinstance(part, FramesPart)]
    # 80 % of 1000 tokens are 800, and the first image's share is 80 of them; what an image leaves, the next ones share
    assert sizes[0] == (168, 308) and 600 < prepared.vision_tokens <= 800
    assert min(sizes) == sizes[0]


def test_an_image_of_automatic_size_keeps_its_size_where_no_model_is_known() -> None:
    for side in (0, -1):
        assert sophon_demo.image_size(1080, 1920, Options(max_side=side), Budget()) == (1064, 1904)
    with pytest.raises(BadMedia, match="too narrow"):
        sophon_demo.image_size(20, 1920, Options(max_side=0), Budget())


@pytest.mark.parametrize(
    ("resize_type", "values"), [("INTER_NEAREST", {0, 255}), ("INTER_LINEAR", {128}), ("INTER_BICUBIC", {128})]
)
def test_resize_type_chooses_how_an_image_is_resized(resize_type: str, values: set[int]) -> None:
    columns = np.zeros((112, 112, 3), np.uint8)
    columns[:, ::4] = columns[:, 1::4] = 255
    columns = np.roll(columns, 1, axis=1)  # each pixel of 2 columns lies on an edge
    frame = read_image(columns, Options(resized_height=112, resized_width=56, resize_type=resize_type))[0]
    assert set(frame[:, 2:-2].ravel().tolist()) == values


def test_max_side_and_resize_type_have_no_effect_on_a_video(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4")
    plain, given = (
        prepare([{"role": "user", "content": to_parts(json.dumps([{**entry, "nframes": 2}]))}], base=tmp_path)
        for entry in (CLIP, {"type": "video_url", "video_url": {"url": "clip.mp4"}, "max_side": 28,
                             "resize_type": "INTER_NEAREST"})
    )
    assert plain == given
