"""A box's cache over its memory: what the chip sees of the host's writes, and when."""

from __future__ import annotations

import random

import pytest

from sailq.worker.runners.emulator.cache import LINE, Cache

SIZE = 8 * LINE


@pytest.fixture
def memory() -> bytearray:
    return bytearray(range(256)) * (SIZE // 256)


@pytest.fixture
def cache(memory: bytearray) -> Cache:
    def store(address: int, data: bytes) -> None:
        memory[address : address + len(data)] = data

    return Cache(lambda address, size: bytes(memory[address : address + size]), store)


def test_a_write_reaches_the_memory_when_it_is_flushed(cache: Cache, memory: bytearray) -> None:
    before = bytes(memory)
    cache.write(10, b"x" * 100)
    assert bytes(memory) == before and cache.read(8, 104) == before[8:10] + b"x" * 100 + before[110:112]
    cache.flush(10, 100)
    assert bytes(memory) == before[:10] + b"x" * 100 + before[110:]


def test_a_part_is_flushed_by_whole_lines(cache: Cache, memory: bytearray) -> None:
    cache.write(0, b"x" * 3 * LINE)
    cache.flush(LINE, 1)
    assert bytes(memory[LINE : 2 * LINE]) == b"x" * LINE and b"x" * 2 not in memory[:LINE] + memory[2 * LINE :]


def test_what_the_chip_wrote_is_seen_after_an_invalidation(cache: Cache, memory: bytearray) -> None:
    held = cache.read(0, LINE)
    memory[:LINE] = b"c" * LINE
    assert cache.read(0, LINE) == held
    cache.invalidate(0, LINE)
    assert cache.read(0, LINE) == b"c" * LINE


def test_an_invalidation_loses_what_was_not_flushed(cache: Cache, memory: bytearray) -> None:
    before = bytes(memory)
    cache.write(0, b"x" * LINE)
    cache.invalidate(0, LINE)
    cache.flush(0, SIZE)
    assert bytes(memory) == before == cache.read(0, SIZE)


def test_a_dirty_line_is_evicted_over_what_the_chip_wrote(cache: Cache, memory: bytearray) -> None:
    cache.write(0, b"x" * 2 * LINE)
    cache.flush(0, LINE)  # this one is clean, and is not evicted
    memory[: 2 * LINE] = b"c" * 2 * LINE
    cache.chip_wrote(0, 2 * LINE)
    assert bytes(memory[: 2 * LINE]) == b"c" * LINE + b"x" * LINE


def test_flushed_writes_and_fresh_reads_are_those_of_a_memory_without_a_cache(
    cache: Cache, memory: bytearray
) -> None:
    dice, plain = random.Random(0), bytearray(memory)
    for _ in range(2000):
        start = dice.randrange(SIZE)
        size = dice.randint(1, SIZE - start)
        if dice.random() < 0.4:
            data = dice.randbytes(size)
            plain[start : start + size] = data
            cache.write(start, data)
            cache.flush(start, size)
        elif dice.random() < 0.5:  # the chip
            data = dice.randbytes(size)
            plain[start : start + size] = memory[start : start + size] = data
            cache.chip_wrote(start, size)
            cache.invalidate(start, size)
        else:
            cache.invalidate(start, size)
            assert cache.read(start, size) == plain[start : start + size]
    assert memory == plain
