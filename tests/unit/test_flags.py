"""A command's media options in the messages of a batch's rows."""

from __future__ import annotations

from typing import Any

import pytest

from sailq.producer.media_defaults import fill_in


def filled(part: dict[str, Any], **flags: Any) -> dict[str, Any]:
    ((filled,),) = [message["content"] for message in fill_in([{"role": "user", "content": [part]}], flags)]
    assert isinstance(filled, dict)
    return filled


@pytest.mark.parametrize("video", [["a.png", "b.png"], "data:video/jpeg;base64,AAAA,BBBB"])
def test_given_frames_get_no_default_frame_rate(video: Any) -> None:
    part = {"type": "video", "video": video}
    assert filled(part, nframes=4, max_frames=8) == {**part, "nframes": 4, "max_frames": 8}
    assert filled({**part, "fps": 2.0}, max_frames=8) == {**part, "fps": 2.0, "max_frames": 8}


def test_a_null_field_counts_as_not_given() -> None:
    part = {"type": "video", "video": "a.mp4", "nframes": None, "detail": None}
    assert filled(part, nframes=4) == {**part, "nframes": 4}
    assert filled({**part, "nframes": 6}, nframes=4)["nframes"] == 6
    assert filled({"type": "image", "image": "a.png", "max_pixels": None}, max_pixels=784)["max_pixels"] == 784
