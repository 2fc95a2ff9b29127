"""Small pictures for the report, made of the frames that were sent to the model."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import cv2
import numpy as np

from sailq.shared.errors import SailqError
from sailq.shared.frames import Frames, decode_frames
from sailq.shared.jobs import media_parts
from sailq.shared.media.messages import Prepared

from .inputs import Clip
from .readers import READERS, Readers

if TYPE_CHECKING:
    from ..client import Client
    from .batch import Captioning

HEIGHT = 96
"""Pixels; a report of 1,000 clips stays at a few MB."""
MAX_WIDTH = 4 * HEIGHT
MAX_MEDIA = 4
_QUALITY = 72
_GAP = 2


class Thumbnails:
    """Data URIs by a clip's index, one for each of its media."""

    def __init__(self) -> None:
        self.by_index: dict[int, Sequence[str]] = {}

    def take(self, clip: Clip, prepared: Prepared) -> None:
        """Makes pictures of the media about to be sent. Safe to call from several threads."""
        parts = media_parts(prepared.messages)
        self.by_index[clip.index] = [
            data_uri(strip(decode_frames(prepared.blobs[part.blob], (part.frames, part.height, part.width))))
            for part in parts[:MAX_MEDIA]
        ]

    def fill(self, captioning: Captioning, client: Client) -> None:
        """Makes the pictures of clips that an earlier run answered, from their files. Missing files get no picture."""
        missing = [
            clip for clip in captioning.clips if clip.index in captioning.rows and clip.index not in self.by_index
        ]
        missing = [clip for clip in missing if captioning.rows[clip.index]["error"] is None]
        if not missing:
            return
        card = client.card(captioning.model)

        def read(clip: Clip) -> None:
            try:
                self.take(clip, readers.prepare(clip.messages, base=clip.base, card=card))
            except SailqError:
                self.by_index[clip.index] = []

        with Readers() as readers, ThreadPoolExecutor(READERS) as pool:
            list(pool.map(read, missing))


def strip(frames: Frames) -> Frames:
    """One small picture of a medium: an image, or a video's first, middle and last frame side by side."""
    chosen = [frames[0]] if len(frames) == 1 else [frames[at] for at in (0, len(frames) // 2, -1)]
    height, width = frames.shape[1:3]
    width = max(1, min(round(width * HEIGHT / height), MAX_WIDTH))
    small = [cv2.resize(one, (width, HEIGHT), interpolation=cv2.INTER_AREA) for one in chosen]
    for one in small[1:]:
        one[:, :_GAP] = 255
    return np.hstack(small)


def data_uri(picture: Frames) -> str:
    """A picture as a data URI. `picture`: uint8 [height, width, 3], RGB."""
    _, jpeg = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()
