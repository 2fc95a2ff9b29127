"""sophon-demo's own options for images: `max_side` and `resize_type`.

Their meaning is that of vision_process.py in the one of its samples that has them (`compute_image_size`,
`process_vision_info`) and of the README.md beside it. There, an image without either is resized by the rule for
`max_side` 0 with INTER_LINEAR; here it is resized as qwen-vl-utils does.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from ..errors import BadMedia
from . import sizing
from .images import Image
from .sizing import Budget, Options

CONTEXT_SHARE = 0.8
"""The share of the model's context that images of automatic size may fill (sophon-demo's `vision_seq_max_ratio`)."""

_METHODS = {
    "INTER_NEAREST": cv2.INTER_NEAREST,
    "INTER_LINEAR": cv2.INTER_LINEAR,
    "INTER_BICUBIC": cv2.INTER_CUBIC,
}


def image_size(height: int, width: int, options: Options, budget: Budget) -> tuple[int, int]:
    """(height, width) that an image of `height` × `width` is resized to, multiples of the budget's factor.

    A `max_side` above 0 is the longer side, whether the image grows or shrinks; then the default limits apply. 0
    shrinks the image to what the model takes, -1 makes it as large as that. What the model takes is its patches for
    one frame, its pixels, and an equal share of 80 % of its context for each such image; a model that is not known
    limits nothing, and the image keeps its size. `max_side` goes before all other options of size.

    The `resize_type` Origin keeps the image's size, whatever the model's default limits are.

    Raises BadRequest or BadMedia.
    """
    if options.max_side is None:
        return sizing.image_size(height, width, options, budget.card, limited=options.resize_type != "Origin")
    if options.max_side > 0:
        if width > height:
            height, width = int(options.max_side / width * height), options.max_side
        else:
            height, width = options.max_side, int(options.max_side / height * width)
        return sizing.image_size(max(height, 1), max(width, 1), Options(), budget.card, limited=False)
    sizing.check_ratio(height, width)
    pixels = _room(budget)
    if pixels is None or (options.max_side == 0 and pixels > height * width):
        pixels = height * width
    shrink = math.sqrt((height * width) / pixels)
    factor = budget.factor
    size = [math.floor(side / shrink / factor) * factor for side in (height, width)]
    if 0 in size:
        raise BadMedia(f"{width} × {height} pixels are too narrow for a max_side of {options.max_side}.")
    return size[0], size[1]


def _room(budget: Budget) -> int | None:
    """The most pixels of an image of automatic size; None if the model is unknown."""
    card = budget.card
    if card is None:
        return None
    share = (CONTEXT_SHARE * card.context - budget.tokens) / max(budget.automatic, 1)
    budget.automatic -= 1
    patches = math.inf if card.max_patches is None else card.max_patches * card.patch_size**2
    token = budget.factor**2
    return max(math.floor(min(card.max_pixels, patches, share * token)), token)


def resize(image: Image, height: int, width: int, method: str) -> Image:
    """Resize with INTER_NEAREST, INTER_LINEAR or INTER_BICUBIC, without antialiasing."""
    image = np.ascontiguousarray(image)
    return np.asarray(cv2.resize(image, (width, height), interpolation=_METHODS[method]), np.uint8)
