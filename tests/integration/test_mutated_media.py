"""Ten thousand damaged clips and images: none stops a batch, hangs, or exceeds the memory limit."""

from __future__ import annotations

import io
import itertools
import random
import resource
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pillow_heif
import pytest
from numbered import KINDS, Variant, shows, write
from PIL import Image

from sailq.producer.captioning.readers import READERS, Readers
from sailq.shared.errors import SailqError

COUNT = 10_000
IMAGES = ("jpeg", "png", "webp", "tiff", "gif", "bmp", "heif", "avif")
MAX_SECONDS = 10.0
MAX_MEMORY = 2 * 1024**3
"""Resident bytes of a child: half of the address space that ends it, so that the decoders' own bounds are checked."""
MAX_DEATHS = COUNT // 1000


def seeds(folder: Path) -> list[tuple[str, bytes]]:
    """(kind of part, file)"""
    pillow_heif.register_heif_opener()
    found = [("video", write(folder / f"clip.{kind.suffix}", Variant(kind), 15).read_bytes()) for kind in KINDS]
    for suffix in IMAGES:
        file = io.BytesIO()
        Image.fromarray(shows(1234)).save(file, suffix)
        found.append(("image", file.getvalue()))
    return found


def mutated(data: bytes, rng: random.Random) -> bytes:
    spoiled = bytearray(data)
    reach = rng.choice([len(spoiled), min(len(spoiled), 600)])
    for _ in range(rng.choice([1, 3, 10, 50])):
        if len(spoiled) < 64:
            break
        at = rng.randrange(min(reach, len(spoiled)))
        how = rng.randrange(4)
        if how == 0:
            spoiled[at] = rng.randrange(256)
        elif how == 1:
            spoiled[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\1\0\0"])
        elif how == 2:
            spoiled[at : at + rng.randrange(1, 64)] = b""
        else:
            spoiled[at:at] = rng.randbytes(rng.randrange(1, 64))
    return bytes(spoiled)


@pytest.mark.long
@pytest.mark.proof
@pytest.mark.timeout(1800)
def test_mutated_media_fail_only_their_own_rows(tmp_path: Path) -> None:
    rng = random.Random(11)
    files = itertools.cycle(seeds(tmp_path))
    ended: Counter[str] = Counter()
    slowest = 0.0

    def work() -> Iterator[tuple[int, str, bytes]]:
        for number, (kind, data) in zip(range(COUNT), files, strict=False):
            yield number, kind, mutated(data, rng)

    with Readers() as readers, ThreadPoolExecutor(READERS) as threads:

        def read(number: int, kind: str, data: bytes) -> tuple[str, float]:
            path = tmp_path / f"{number}.bin"
            path.write_bytes(data)
            messages = [{"role": "user", "content": [{"type": kind, kind: str(path)}]}]
            began = time.monotonic()
            try:
                readers.prepare(messages)
                return "read", time.monotonic() - began
            except SailqError as error:
                how = "died" if "died" in str(error) else error.code
                return f"{how}: {error}" if how == "internal" else how, time.monotonic() - began
            finally:
                path.unlink()

        left = work()
        while batch := list(itertools.islice(left, 100)):
            for how, seconds in threads.map(lambda one: read(*one), batch):
                ended[how] += 1
                slowest = max(slowest, seconds)
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(
        f"figure: {COUNT} mutated clips and images: {ended['read']} read, {ended['died']} children died, the rest "
        f"refused; the slowest took {slowest:.1f} s; {memory / 2**20:.0f} MiB at most"
    )
    assert sum(ended.values()) == COUNT and set(ended) <= {"read", "died", "bad_media", "bad_request", "too_long"}
    assert slowest <= MAX_SECONDS and memory <= MAX_MEMORY and ended["died"] <= MAX_DEATHS
