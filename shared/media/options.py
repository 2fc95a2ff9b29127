"""What a caller may ask of one medium."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ..jobs import Record

_LARGEST = 2**31 - 1
Count = Annotated[int, Field(ge=0, le=_LARGEST)]
Positive = Annotated[int, Field(ge=1, le=_LARGEST)]
Real = Annotated[float, Field(ge=0)]


class Options(Record):
    """One medium's options; None is "not given".

    Attributes:
        resized_height, resized_width: pixels, rounded to the grid of 28; they count only together.
        min_pixels, max_pixels: limits of height × width of a frame.
        total_pixels: limit of height × width × frames / 2 of a video, default 90,316,800 (128,000 tokens × 0.9);
            `min_pixels` goes before it. As in qwen-vl-utils' `fetch_video`.
        nframes: how many frames to keep, rounded to an even number (half to a multiple of 4).
        fps: frames to keep for each second, default 2; not together with `nframes`. Of an array or a list of images:
            how many of them are a second.
        min_frames, max_frames: limits of the number that `fps` gives, default 4 and 768.
        video_start, video_end: seconds.
        video_sample_num: of the frames so chosen, keep every n-th (see `sizing.frame_indices`).
        max_side: pixels of an image's longer side, or 0 or -1 for a size that follows from the model: see
            `sophon_demo.image_size`.
        resize_type: how an image is resized: see `sophon_demo.resize`.

    The options of time choose no frames of an image, an array or a list of images, as in qwen-vl-utils; `max_side` and
    `resize_type` have no effect on a video, as in sophon-demo.
    """

    resized_height: Positive | None = None
    resized_width: Positive | None = None
    min_pixels: Count | None = None
    max_pixels: Positive | None = None
    total_pixels: Annotated[float, Field(gt=0)] | None = None
    nframes: Count | None = None
    fps: Real | None = None
    min_frames: Count | None = None
    max_frames: Count | None = None
    video_start: Real | None = None
    video_end: Real | None = None
    video_sample_num: Positive | None = None
    max_side: Annotated[int, Field(ge=-1, le=_LARGEST)] | None = None
    resize_type: Literal["INTER_NEAREST", "INTER_LINEAR", "INTER_BICUBIC", "Origin"] | None = None


NO_OPTIONS = Options()
