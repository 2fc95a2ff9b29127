"""How many frames of a clip are kept and how large they become: qwen-vl-utils' arithmetic, without torch.

The rules, constants and refusals are those of qwen-vl-utils 0.0.14 (`smart_resize`, `smart_nframes`,
`calculate_video_frame_range`, `fetch_image`, `fetch_video`), and `video_sample_num` is sophon-demo's. The sizes of
patches and vision tokens are those of the model's `ModelCard`. Two things are ours: an option out of its own range (a
negative time, a NaN) is refused where qwen-vl-utils would clamp it, and a card can lower the size defaults.

The published models are used with qwen-vl-utils, whose sizes are final: their own recipes, and those of LLM-TPU and
sophon-demo, pass `do_resize=False` to the processor. The least sizes in their processor files have no effect there, nor
here.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from ..errors import BadMedia, BadRequest, TooLong
from ..jobs import MAX_FRAMES, MAX_SIDE, ModelCard
from .options import Options as Options

NO_OPTIONS = Options()
FRAME_FACTOR = 2
"""Frames that share one layer of patches, if the model is unknown."""
MAX_RATIO = 200
IMAGE_MIN_TOKENS, IMAGE_MAX_TOKENS = 4, 16384
VIDEO_MIN_TOKENS, VIDEO_MAX_TOKENS = 128, 768
"""Of one frame."""
MAX_TOKENS = 128_000
"""Longest sequence that qwen-vl-utils sizes videos for (its MODEL_SEQ_LEN); no medium may hold more."""
FPS = 2.0
MIN_FRAMES = 4


def clip_size(text: str) -> tuple[int, int, int]:
    """Frames, height and width, each at least 1, from a text such as 8x140x224. Raises BadRequest."""
    words = text.split("x")
    if len(words) != 3 or not all(re.fullmatch("[0-9]{1,9}", word) for word in words):
        raise BadRequest(f"A clip's size is FRAMESxHEIGHTxWIDTH, such as 8x140x224, not {text!r}.")
    frames, height, width = map(int, words)
    if not (frames and height and width):
        raise BadRequest(f"A clip of {text} has no pixels: frames, height and width must be at least 1.")
    return frames, height, width


def factor_of(card: ModelCard | None) -> int:
    """Pixels along a side of a vision token; 28 if the model is unknown."""
    return card.patch_size * card.merge_size if card else 28


def group_of(card: ModelCard | None) -> int:
    """Frames that share one layer of patches; 2 if the model is unknown."""
    return card.temporal_patch_size if card else FRAME_FACTOR


def smart_resize(
    height: int, width: int, *, min_pixels: float, max_pixels: float, factor: int
) -> tuple[int, int]:
    """(height, width) in pixels: multiples of `factor`, area within the limits, aspect ratio nearly kept.

    A side is 0 where `max_pixels` is too small for the aspect ratio. Raises BadRequest for limits that
    exclude each other and BadMedia for a ratio above 200.
    """
    if max_pixels < min_pixels:
        raise BadRequest(f"max_pixels is {max_pixels:.0f}, which is less than min_pixels, {min_pixels:.0f}.")
    check_ratio(height, width)
    rounded = [max(factor, round(side / factor) * factor) for side in (height, width)]
    area = rounded[0] * rounded[1]
    if area > max_pixels:
        shrink = math.sqrt((height * width) / max_pixels)
        rounded = [math.floor(side / shrink / factor) * factor for side in (height, width)]
    elif area < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rounded = [math.ceil(side * grow / factor) * factor for side in (height, width)]
    return rounded[0], rounded[1]


def check_ratio(height: int, width: int) -> None:
    """Raises BadMedia for a side more than 200 times the other."""
    ratio = max(height, width) / min(height, width)
    if ratio > MAX_RATIO:
        raise BadMedia(f"{width} × {height} pixels have a ratio of {ratio:.0f} to 1; the limit is {MAX_RATIO} to 1.")


def image_size(
    height: int, width: int, options: Options, card: ModelCard | None = None, *, limited: bool = True
) -> tuple[int, int]:
    """(height, width) that an image of `height` × `width` is resized to. Raises BadRequest or BadMedia.

    `limited`: whether the card's limits apply; else qwen-vl-utils' do.
    """
    factor = factor_of(card)
    low, high = _image_limits(factor)
    if card and limited:
        low, high = card.min_pixels if _has_own_sizes(card) else low, card.max_pixels
    return _image_size(height, width, options, (low, high), factor)


def list_size(height: int, width: int, options: Options, card: ModelCard | None = None) -> tuple[int, int]:
    """(height, width) that a list's images must agree on before `video_size` sees them.

    qwen-vl-utils resizes the images of a list to a grid twice as coarse first, and their final size follows from that.
    """
    factor = 2 * factor_of(card)
    return _image_size(height, width, options, _image_limits(factor), factor)


def _image_limits(factor: int) -> tuple[int, int]:
    """The least and most pixels of an image."""
    return IMAGE_MIN_TOKENS * factor * factor, IMAGE_MAX_TOKENS * factor * factor


def _image_size(height: int, width: int, options: Options, limits: tuple[int, int], factor: int) -> tuple[int, int]:
    low, high = limits
    low = low if options.min_pixels is None else options.min_pixels
    high = high if options.max_pixels is None else options.max_pixels
    return _size(height, width, options, low, high, factor)


def video_size(
    height: int, width: int, frames: int, options: Options, card: ModelCard | None = None
) -> tuple[int, int]:
    """(height, width) that each of `frames` kept frames is resized to. Raises BadRequest or BadMedia.

    A frame gets at least 128 tokens and at most 768, and less where all frames together would pass `total_pixels`,
    counted once for each group of frames that share patches.
    """
    factor = factor_of(card)
    token = factor * factor
    low: float = card.min_pixels if card and _has_own_sizes(card) else VIDEO_MIN_TOKENS * token
    low = low if options.min_pixels is None else options.min_pixels
    total = MAX_TOKENS * token * 0.9 if options.total_pixels is None else options.total_pixels
    limit = max(min(VIDEO_MAX_TOKENS * token, total / frames * group_of(card)), int(low * 1.05))
    wanted = card.max_pixels if card else limit
    wanted = wanted if options.max_pixels is None else options.max_pixels
    return _size(height, width, options, low, min(wanted, limit), factor)


def _has_own_sizes(card: ModelCard) -> bool:
    """Whether the model's maximum is below qwen-vl-utils' minimum for a frame of a video, as sailq-tiny's is. Then the
    model's minimum replaces qwen-vl-utils', too."""
    return card.max_pixels < VIDEO_MIN_TOKENS * factor_of(card) ** 2


def _size(height: int, width: int, options: Options, low: float, high: float, factor: int) -> tuple[int, int]:
    if options.resized_height is None or options.resized_width is None:
        size = smart_resize(height, width, min_pixels=low, max_pixels=high, factor=factor)
        if 0 in size:
            raise BadMedia(f"{width} × {height} pixels are too narrow for a max_pixels of {high:.0f}.")
        return size
    asked = options.resized_height, options.resized_width
    if max(asked) / min(asked) > MAX_RATIO:
        raise BadRequest(f"The ratio of resized_height and resized_width is above the limit, {MAX_RATIO} to 1.")
    low, high = _image_limits(factor)
    return smart_resize(*asked, min_pixels=low, max_pixels=high, factor=factor)


def frame_range(options: Options, total: int, fps: float) -> tuple[int, int]:
    """First and last frame number (both included) between `video_start` and `video_end`.

    `total`: frames in the clip, `fps`: its frames a second. Raises BadMedia for an empty clip or one without
    a rate, BadRequest when the times leave less than two frames.
    """
    if not (math.isfinite(fps) and fps > 0):
        raise BadMedia("The clip has no frame rate.")
    if total <= 0:
        raise BadMedia("The clip contains no frames.")
    seconds = total / fps
    first, last = 0, total - 1
    if options.video_start is not None:
        first = math.ceil(min(options.video_start, seconds) * fps)
    if options.video_end is not None:
        last = min(math.floor(min(options.video_end, seconds) * fps), last)
    if first >= last and (options.video_start, options.video_end) != (None, None):
        raise BadRequest(f"This clip of {seconds:.2f} s has fewer than two frames {_asked(options)}.")
    return first, last


def _asked(options: Options) -> str:
    """The part of a clip that `video_start` and `video_end` ask for."""
    if options.video_end is None:
        return f"after {options.video_start:g} s"
    return f"from {options.video_start or 0:g} s to {options.video_end:g} s"


def frame_count(options: Options, total: int, fps: float, group: int = FRAME_FACTOR) -> int:
    """How many of `total` frames to keep: a multiple of `group` (see `group_of`), from `group` to `total`. Raises
    BadRequest or BadMedia."""
    if options.nframes is not None and options.fps is not None:
        raise BadRequest("nframes and fps cannot be combined.")
    if total < group:
        raise BadMedia(f"A video needs at least {group} frames; this one has {total}.")
    if options.nframes is not None:
        count = round(options.nframes / group) * group
    else:
        low = MIN_FRAMES if options.min_frames is None else options.min_frames
        high = min(MAX_FRAMES, total) if options.max_frames is None else options.max_frames
        wanted = total / fps * (FPS if options.fps is None else options.fps)
        wanted = max(wanted, math.ceil(low / group) * group)
        wanted = min(wanted, math.floor(high / group) * group, total)
        count = math.floor(wanted / group) * group
    if not group <= count <= total:
        raise BadRequest(f"The options ask for {count} frames; the clip allows {group} to {total}.")
    return count


def frame_indices(options: Options, total: int, fps: float, group: int = FRAME_FACTOR) -> list[int]:
    """Frame numbers to keep, evenly spread over the range, ascending; whole groups (see `group_of`) of them.

    `video_sample_num` n keeps the frames 0, n, 2n, ... of those (sophon-demo's stride). The frames that are left and
    fill no group are dropped; if there is no whole group, the last of them is repeated.
    """
    first, last = frame_range(options, total, fps)
    return _stride(options, spread(first, last, frame_count(options, last - first + 1, fps, group)), group)


def frame_slots(
    options: Options, ticks: Sequence[int], base: Fraction, group: int = FRAME_FACTOR
) -> tuple[list[int], float]:
    """(numbers of the frames to keep, kept frames a second) for a clip without a constant rate.

    Args:
        ticks: when each frame is shown, ascending from 0; not all at once.
        base: seconds of a tick.
        group: see `group_of`.

    Times are spread over the range as `frame_indices` spreads numbers, exactly; the frame for a time is the last one
    that is not shown after it. Raises BadRequest when the times leave nothing, or for more frames than there are.
    """
    last = ticks[-1] * base
    mean = last / (len(ticks) - 1)
    given = [None if at is None else Fraction(at).limit_denominator(10**6)
             for at in (options.video_start, options.video_end)]
    begin, end = given[0] or Fraction(0), last if given[1] is None else min(given[1], last)
    if begin >= end and given != [None, None]:
        raise BadRequest(f"This clip has no frames {_asked(options)}: its last frame is shown at {float(last):.2f} s.")
    shown = bisect_right(ticks, end / base) - bisect_right(ticks, begin / base) + 1
    seconds = end - begin + mean
    shown = max(shown, group)
    count = frame_count(options, shown, float(shown / seconds), group)
    at = [begin + (end - begin) * place / max(count - 1, 1) for place in range(count)]
    kept = _stride(options, [bisect_right(ticks, second / base) - 1 for second in at], group)
    return kept, float(len(kept) / seconds)


def _stride(options: Options, kept: list[int], group: int) -> list[int]:
    kept = kept[:: options.video_sample_num or 1]
    kept += kept[-1:] * (group - len(kept))
    return kept[: len(kept) // group * group]


def spread(first: int, last: int, count: int) -> list[int]:
    """`torch.linspace(first, last, count).round().long()` to the last bit.

    torch counts in float32 from both ends towards the middle and fuses the multiplication with the addition;
    float64 rounded once gives the same. Rounding is half to even.
    """
    if count == 1:
        return [first]
    step = np.float64((np.float32(last) - np.float32(first)) / np.float32(count - 1))
    place = np.arange(count)
    ends = np.float64(np.float32(first)), np.float64(np.float32(last))
    values = np.where(place < count // 2, ends[0] + step * place, ends[1] - step * (count - 1 - place))
    return [int(value) for value in np.rint(values.astype(np.float32))]


class Budget:
    """Counts vision tokens, and refuses media by size before their pixels are read.

    Attributes:
        card: the model that will read the media, or None.
        factor: pixels along a side of a vision token.
        group: frames that share one layer of patches.
        tokens: vision tokens of the media spent so far.
        automatic: number of further images whose size depends on the remaining tokens (a `max_side` of 0 or -1).
    """

    def __init__(self, card: ModelCard | None = None) -> None:
        self.card = card
        self.factor, self.group = factor_of(card), group_of(card)
        self.tokens = 0
        self.automatic = 0

    def check(self, frames: int, height: int, width: int) -> int:
        """The tokens of a medium of this size. An image counts as one group of frames.

        Raises TooLong above the model's patches or context or `MAX_TOKENS`, BadRequest above a job's limits, or for a
        size that the model does not take.
        """
        medium = f"{frames} frame{'s'[: frames > 1]} of {width} × {height} pixels"
        if frames > MAX_FRAMES or max(height, width) > MAX_SIDE:
            raise BadRequest(f"{medium}: the limits are {MAX_FRAMES} frames and {MAX_SIDE} pixels per side.")
        if height % self.factor or width % self.factor:
            raise BadRequest(f"{medium}: the model takes multiples of {self.factor} pixels.")
        tokens = math.ceil(frames / self.group) * height * width // self.factor**2
        if tokens > MAX_TOKENS:
            raise TooLong(f"{medium} need {tokens} tokens; the limit is {MAX_TOKENS}.")
        if self.card is None:
            return tokens
        patches = height * width // self.card.patch_size**2
        if self.card.max_patches is not None and patches > self.card.max_patches:
            raise TooLong(
                f"{medium}: {patches} patches per frame; the limit of {self.card.name} is {self.card.max_patches}."
            )
        if self.tokens + tokens > self.card.context:
            raise TooLong(
                f"With {medium}, the request has {self.tokens + tokens} vision tokens; "
                f"the context of {self.card.name} has {self.card.context} tokens."
            )
        return tokens

    def spend(self, frames: int, height: int, width: int) -> None:
        """Count the tokens of a medium. Raises as `check`."""
        self.tokens += self.check(frames, height, width)
