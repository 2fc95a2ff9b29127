"""Limits for one clip or image: pixels, packets, bytes in memory, seconds."""

from __future__ import annotations

import time

from ..errors import BadMedia

MAX_PIXELS = 100_000_000
"""Largest image or video frame that is decoded, height × width."""
MAX_PACKETS = 3_000_000
"""Video packets of one clip; a day of 30 frames a second has 2.6 million."""
MAX_KEPT_BYTES = 256 * 1024 * 1024
"""Packets of one clip that are kept in memory; a larger clip is read from its file twice."""
MAX_SECONDS = 300.0
"""Processor time to read one clip."""
MAX_QUIET_SECONDS = 10.0
"""Processor time without a frame from the decoder, once decoding has begun."""


def check_size(height: int, width: int) -> None:
    """Raises BadMedia for more than `MAX_PIXELS`."""
    if height * width > MAX_PIXELS:
        raise BadMedia(f"{width} × {height} pixels are more than {MAX_PIXELS // 10**6} megapixels.")


class Stopwatch:
    """Ends the reading of a clip that takes too long. It counts this thread's processor time: machines may be busy."""

    def __init__(self) -> None:
        self._until = time.thread_time() + MAX_SECONDS
        self._quiet_until: float | None = None

    def progress(self) -> None:
        """Notes that decoding has begun or a frame has come."""
        self._quiet_until = time.thread_time() + MAX_QUIET_SECONDS

    def check(self) -> None:
        """Raises BadMedia if the time is over."""
        now = time.thread_time()
        if now > self._until:
            raise BadMedia(f"Reading the clip takes more than {MAX_SECONDS:.0f} s of processor time.")
        if self._quiet_until is not None and now > self._quiet_until:
            raise BadMedia(f"The decoder gave no frame in {MAX_QUIET_SECONDS:.0f} s of processor time.")
