"""Opens a video file and finds its video stream. Errors say why there is no video.

Some of FFmpeg's demuxers read playlists, which name other files and URLs. Only demuxers of real containers are
allowed, and only the file itself is read.
"""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import av
from av.container import InputContainer
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from ..errors import BadMedia
from .limits import MAX_PIXELS, MAX_SECONDS

_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,flv,live_flv,mpeg,mpegvideo,asf,gif,ogg,mxf,dhav,ivf,obu,h264,hevc,"
    "m4v,mjpeg,mpjpeg,mp3,aac,wav,flac"
)
"""The last four contain no video. They are allowed so that the error can say so."""

_CODECS = re.compile(rb"stsd.{12}([\x21-\x7e]{4})|(V_[\w/]+)|vids([\x21-\x7e]{4})", re.DOTALL)
"""Matches a codec's name in the headers of MP4, Matroska and AVI."""
_UNKNOWN = "This is not a video of a known format, or its header is damaged."
_ENDS = 2**20
"""Bytes at both ends of a file that are searched for its header."""


@contextmanager
def open_video(source: Path | bytes) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container of a file, or of its bytes, and its video stream; other streams are skipped. Raises BadMedia."""
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file", "max_pixels": str(MAX_PIXELS)}
    # The prefix keeps FFmpeg from reading the start of a name as a protocol.
    file = io.BytesIO(source) if isinstance(source, bytes) else f"file:{os.path.abspath(source)}"
    try:
        container = av.open(file, "r", options=options, timeout=MAX_SECONDS)
    except MemoryError:  # FFmpeg raises it, too
        raise BadMedia("There is not enough memory to open the clip.") from None
    except (TimeoutError, av.error.ExitError):
        raise BadMedia(f"Opening the clip takes more than {MAX_SECONDS:.0f} s.") from None
    except (av.FFmpegError, ValueError, UnicodeError) as error:
        reason = _why_not_opened(source)
        if reason == _UNKNOWN and isinstance(error, OSError) and error.errno == errno.EIO:  # of the disk, or of FFmpeg
            reason = f"The file cannot be read ({os.strerror(errno.EIO)}), or it is damaged."
        raise BadMedia(reason) from None
    with container:
        stream = _video_stream(container)
        for other in container.streams:
            if other.index != stream.index:
                other.discard = Discard.all
        yield container, stream


def codec_name(source: Path | bytes, stream: VideoStream) -> str:
    """FFmpeg's name for the codec, or the container's name if FFmpeg has no decoder for it."""
    if stream.codec_context is not None:
        return stream.codec_context.codec.canonical_name
    with _opened(source) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        data = file.read(_ENDS) + (file.seek(max(size - _ENDS, _ENDS)) and file.read())
    if names := [name for found in _CODECS.findall(data) for name in found if name]:
        return (names[stream.index] if stream.index < len(names) else names[0]).decode()
    return "unknown"


def _opened(source: Path | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _video_stream(container: InputContainer) -> VideoStream:
    """The video stream that FFmpeg chooses. A cover picture does not count as a video."""
    streams = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
    if not streams:
        raise BadMedia("The file contains no video stream.")
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    assert isinstance(stream, VideoStream)
    return stream


def _why_not_opened(source: Path | bytes) -> str:
    """The reason, as far as the file's top-level boxes show it (ISO/IEC 14496-12, 4.2)."""
    with _opened(source) as file:
        size, at, kinds = file.seek(0, os.SEEK_END), 0, list[bytes]()
        file.seek(0)
        head = file.read(16)
        while at + 8 <= size and len(kinds) < 1000:
            file.seek(at)
            box = file.read(16)
            length = int.from_bytes(box[:4], "big")
            length = int.from_bytes(box[8:16], "big") if length == 1 else length or size - at
            kinds.append(box[4:8])
            at += max(length, 8)
    if kinds and kinds[0] in {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"}:
        if b"moov" not in kinds:
            return "The file has no index (moov): it was cut short, or its recording has not finished."
        return "The file is a damaged MP4: it cannot be opened."
    if head[:4] == b"\x1aE\xdf\xa3" or head[:4] == b"RIFF":
        return "The file contains no frames, or its header is damaged."
    return _UNKNOWN
