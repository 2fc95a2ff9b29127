"""Resizes frames to the model's size as qwen-vl-utils does: antialiased bicubic."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image


def resize(image: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """uint8 [h, w, 3] to uint8 [height, width, 3].

    Pillow's bicubic is what qwen-vl-utils itself uses for images. For videos it uses torchvision's. Its results
    rarely differ, and by two steps of 255 at most.
    """
    if image.shape[:2] == (height, width):
        return image
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
