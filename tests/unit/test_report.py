"""The report is one self-contained page, and no text of a caption becomes markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sailq.producer.captioning.batch import Captioning, Summary
from sailq.producer.captioning.inputs import Clip
from sailq.producer.captioning.report import write_report
from sailq.producer.captioning.rows import Row, failed_row
from sailq.producer.captioning.thumbnails import HEIGHT, data_uri, strip
from sailq.shared.errors import BadMedia, BadRequest
from sailq.shared.jobs import GenerationOptions

SUMMARY = Summary(
    clips=3, failures=1, resumed=1, first_token_median=0.1, first_token_p90=0.25, stream_tokens_per_second=80.0,
    tokens_per_second=160.0, captions_per_second=12.5, wall=0.24,
)
EVIL = '<script>alert("1")</script><img src=x onerror=alert(2)>&amp;'


class Page(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def row(index: int, text: str, **metadata: Any) -> Row:
    answer = {**failed_row(BadMedia("")), "text": text, "finish_reason": "stop", "error": None}
    return {"index": index, "source": f"{index}.mp4", **answer, "metadata": metadata}


def write(path: Path, rows: list[Row], questions: dict[int, str] | None = None) -> Page:
    picture = data_uri(strip(np.zeros((4, 56, 84, 3), np.uint8)))
    write_report(path, rows, SUMMARY, {0: [picture]}, model="sailq-tiny", questions=questions or {})
    return Page(path)


def test_everything_is_escaped(tmp_path: Path) -> None:
    rows = [row(0, EVIL, answer=EVIL, task=EVIL), row(1, "no", answer=EVIL)]
    rows.append({**failed_row(BadMedia(EVIL)), "index": 2, "source": EVIL, "metadata": {}})
    page = write(tmp_path / "report.html", rows, {0: EVIL})
    assert not page.all("script")
    assert len(page.all("img")) == 1
    assert page.text.count(EVIL) == 6


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    page = write(tmp_path / "new" / "report.html", [row(0, "a"), row(1, "b")])
    html = (tmp_path / "new" / "report.html").read_text()
    assert not re.search(r"https?://|@import|url\(|<link", html)
    (image,) = page.all("img")
    assert str(image["src"]).startswith("data:image/jpeg;base64,")
    assert image["loading"] == "lazy"
    assert "no picture" in page.text


def test_answers_are_marked_against_the_truth(tmp_path: Path) -> None:
    page = write(tmp_path / "report.html", [row(0, "It is red.", answer="It is red."), row(1, "Blue", answer="Red"),
                                            row(2, "Anything")])
    assert "1 of 2" in page.text
    assert page.text.count("✓") == 1 and page.text.count("✗") == 1
    assert "truth: Red" in page.text and "truth: It is red." not in page.text


def test_failures_say_why(tmp_path: Path) -> None:
    broken = {**failed_row(BadMedia("The file is empty.")), "index": 0, "source": "a.mp4", "metadata": {}}
    cut = {**row(1, "half an"), "finish_reason": "deadline"}
    page = write(tmp_path / "report.html", [broken, cut, row(2, "whole")])
    assert "The file is empty." in page.text and "bad_media" in page.text
    assert "deadline" in page.text
    assert [attributes.get("class") for attributes in page.all("article")] == ["failed", "failed", None]


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="cannot be written"):
        write(tmp_path, [row(0, "a")])


@pytest.mark.parametrize(("frames", "pictures"), [(1, 1), (2, 3), (16, 3)])
def test_a_video_is_shown_by_three_frames(frames: int, pictures: int) -> None:
    assert strip(np.zeros((frames, 84, 112, 3), np.uint8)).shape == (HEIGHT, 128 * pictures, 3)


def test_a_wide_medium_stays_within_the_card() -> None:
    assert strip(np.zeros((1, 28, 5600, 3), np.uint8)).shape == (HEIGHT, 4 * HEIGHT, 3)


def test_figures_are_of_the_answers_of_this_run() -> None:
    clips = [Clip(index, str(index), [{"role": "user", "content": "?"}]) for index in range(4)]
    run = Captioning(clips=clips, model="m", options=GenerationOptions(), window=1)
    run.start()
    run.todo = clips[1:]  # an earlier run answered the first one
    for index, seconds in enumerate([9.0, 0.1, 0.3]):
        answer = row(index, "text")
        answer["metrics"] = {"timings": {"time_to_first_token": seconds}, "usage": {"completion_tokens": 20},
                             "tokens_per_second": 10.0 * (index + 1)}
        run.rows[index] = answer
    run.rows[3] = {**failed_row(BadMedia("")), "index": 3, "source": "", "metadata": {}}
    run.wall = 2.0
    assert run.summary() == Summary(
        clips=4, failures=1, resumed=1, first_token_median=0.2, first_token_p90=0.3, stream_tokens_per_second=25.0,
        tokens_per_second=20.0, captions_per_second=1.0, wall=2.0,
    )
