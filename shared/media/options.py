"""The options of one medium."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ..validation import Flag, StrictModel

_LARGEST = 2**31 - 1
_ResizeType = Literal["INTER_NEAREST", "INTER_LINEAR", "INTER_BICUBIC", "Origin"]


class Options(StrictModel, title="Video and image options"):
    """One medium's options, with the names and meaning of qwen-vl-utils' `fetch_video` and `fetch_image`.

    `max_side` and `resize_type` are sophon-demo's: see `sophon_demo`. None is "not given". Options that choose frames
    have no effect on an image, and those that choose or limit them by time none on an array or a list of images;
    `max_side` and `resize_type` have none on a video. `nframes` is rounded to an even number, half to a multiple of 4.
    `min_frames` and `max_frames` limit the number that `fps` gives.
    """

    nframes: Annotated[
        int | None, Flag("N"),
        Field(
            ge=0, le=_LARGEST,
            description="Number of frames to take from a video, evenly spaced. Cannot be combined with fps.",
        ),
    ] = None
    fps: Annotated[
        float | None, Flag("F", "2"),
        Field(ge=0, description="Frames to take per second of video; for a list of images, its frame rate."),
    ] = None
    min_frames: Annotated[
        int | None, Flag("N", "4"),
        Field(ge=0, le=_LARGEST, description="Minimum number of frames to take from a video."),
    ] = None
    max_frames: Annotated[
        int | None, Flag("N", "768"),
        Field(ge=0, le=_LARGEST, description="Maximum number of frames to take from a video."),
    ] = None
    video_start: Annotated[
        float | None, Flag("SECONDS", "start of the video"), Field(ge=0, description="Time in the video to start at.")
    ] = None
    video_end: Annotated[
        float | None, Flag("SECONDS", "end of the video"), Field(ge=0, description="Time in the video to end at.")
    ] = None
    video_sample_num: Annotated[
        int | None, Flag("N", "1"),
        Field(ge=1, le=_LARGEST, description="Keep every Nth of the frames taken from a video."),
    ] = None
    resized_height: Annotated[
        int | None, Flag("PIXELS"),
        Field(ge=1, le=_LARGEST, description="Frame height, rounded to a multiple of the model's 28 or 32. Needs "
              "resized_width."),
    ] = None
    resized_width: Annotated[
        int | None, Flag("PIXELS"),
        Field(ge=1, le=_LARGEST, description="Frame width, rounded to a multiple of the model's 28 or 32. Needs "
              "resized_height."),
    ] = None
    min_pixels: Annotated[
        int | None, Flag("N", "the model's"),
        Field(ge=0, le=_LARGEST, description="Enlarge frames that have fewer pixels (height × width)."),
    ] = None
    max_pixels: Annotated[
        int | None, Flag("N", "the model's"),
        Field(ge=1, le=_LARGEST, description="Shrink frames that have more pixels (height × width)."),
    ] = None
    total_pixels: Annotated[
        float | None, Flag("N", "115200 tokens"),
        Field(gt=0, description="Maximum of height × width × frames / 2 of a video. min_pixels takes precedence."),
    ] = None
    max_side: Annotated[
        int | None, Flag("PIXELS"),
        Field(ge=-1, le=_LARGEST, description="Length of the longer side of an image after resizing. 0 shrinks the "
              "image to what the model takes; -1 also enlarges it."),
    ] = None
    resize_type: Annotated[
        _ResizeType | None, Flag("TYPE", "bicubic, antialiased"),
        Field(description="Resize method for images: INTER_NEAREST, INTER_LINEAR, INTER_BICUBIC, or Origin to keep the "
              "size."),
    ] = None
