"""Times an archive of a million captions: inserts, and searches in English and Chinese."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sailq.producer.archive.caption import Caption, Entry
from sailq.producer.archive.retention import Retention, trim
from sailq.producer.archive.store import Archive

COUNT = 1_000_000
BATCH = 50
CAMERAS = [f"camera {number}" for number in range(200)]
BEGIN = 1_700_000_000
ENGLISH = {
    "who": ["a person", "two people", "a woman with a dog", "a man in a yellow jacket", "a courier", "a child"],
    "does": ["walks past", "waits at", "runs towards", "leaves a box near", "opens", "looks at", "stands beside"],
    "what": ["the gate", "a red car", "a white van", "the loading dock", "a bicycle", "the entrance", "a parked truck"],
    "when": ["in the rain", "at night", "in bright sun", "while another car turns left", "in the fog"],
}
CHINESE = {
    "who": ["一名行人", "两个人", "一名牵狗的女子", "穿黄色雨衣的快递员", "一个孩子", "没有人"],
    "does": ["走过", "停在", "跑向", "把箱子放在", "打开", "看着"],
    "what": ["大门口", "一辆红色汽车旁", "白色货车前", "装卸区", "自行车旁", "停车场入口"],
    "when": ["正在下雨", "夜间灯光昏暗", "阳光明媚", "另一辆车左转", "随后离开", "有雾"],
}
RARE = ["ambulance", "umbrella", "fire", "helicopter", "wheelchair", "救护车", "雨伞", "火灾", "梯子", "轮椅"]
SEARCHES = {
    "English": ["red car", "courier", "ambulance", "rain", "helicopter night", '"yellow jacket"', "wheelchair gate",
                "dogs", "umbrella", "fire truck"],
    "Chinese": ["红色", "快递", "救护车", "下雨", "火灾 夜间", "雨衣", "轮椅 门口", "牵狗", "雨伞", "梯子 货车"],
}
pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]


def caption(number: int, random_: random.Random) -> Caption:
    """Captions a third of a second apart. Every second one is Chinese, and each rare word is in one of 5,000."""
    parts = [random_.choice(words) for words in (ENGLISH if number % 2 else CHINESE).values()]
    text = f"{' '.join(parts)}.".capitalize() if number % 2 else f"{''.join(parts[:3])}，{parts[3]}。"
    if random_.random() < 1 / 500:
        text += f" {random_.choice(RARE)}"
    return Caption(
        id=(BEGIN * 1_000_000) + number * 333_333, job=f"{random_.getrandbits(128):032x}", conversation="", turn=0,
        finished=BEGIN + number / 3, camera=random_.choice(CAMERAS), source=f"clip-{number}.mp4",
        question="Describe the video.", text=text, reasoning="", finish_reason="stop",
        error=None if number % 1000 else {"code": "internal", "message": "It broke."}, model="qwen2-vl-7b",
        worker="box-1", device="tpu:0", timings={"end_to_end": 3.5, "decode": 2.5},
        usage={"prompt_tokens": 500, "vision_tokens": 480, "completion_tokens": 30}, tokens_per_second=9.7,
        metadata={"camera": "x"}, messages=[], media=[{"type": "video", "frames": 4, "height": 420, "width": 644}],
    )


def test_a_million_captions(tmp_path: Path) -> None:
    random_ = random.Random(1)
    with Archive(tmp_path / "captions.db", create=True) as archive:
        writing = 0.0
        for first in range(0, COUNT, BATCH):
            entries = [Entry(caption(number, random_), None, {}) for number in range(first, first + BATCH)]
            began = time.perf_counter()
            archive.add(entries)
            writing += time.perf_counter() - began
        rate = COUNT / writing
        print(f"\nfigure: {COUNT:,} captions archived, {BATCH} in a transaction: {rate:,.0f} a second, "
              f"{archive.bytes / COUNT:.0f} bytes each without pictures")
        last = BEGIN + COUNT / 3
        filters: list[tuple[str, Callable[[], dict[str, object]]]] = [
            ("all", dict), ("one camera", lambda: {"camera": random_.choice(CAMERAS)}),
            ("a day", lambda: {"since": (day := random_.uniform(BEGIN, last - 86_400)), "until": day + 86_400}),
            ("failed", lambda: {"failed": True}),
        ]
        worst = 0.0
        for language, texts in {**SEARCHES, "no text": [""]}.items():
            for name, chosen in filters:
                times, found = [], 0
                for text in texts * (40 // len(texts)):
                    began = time.perf_counter()
                    found += bool(archive.search(text, **chosen()))  # type: ignore[arg-type]
                    times.append(time.perf_counter() - began)
                p95 = statistics.quantiles(times, n=20)[-1]
                worst = max(worst, p95)
                print(f"figure: search among {COUNT:,} captions, {language}, {name}: p95 {1000 * p95:.1f} ms, "
                      f"{found} of {len(times)} found some")
        began, deleted = time.perf_counter(), 0
        while step := trim(archive, Retention(seconds=86_400 * 3), last):
            deleted += step
            if deleted >= 20_000:
                break
        print(f"figure: {deleted / (time.perf_counter() - began):,.0f} old captions deleted a second")
    assert rate >= 1000 and worst <= 0.1
