"""Rows as OpenAI's and vLLM's clients write them, through `sailq caption --messages` and the clients."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import rows, sailq
from numbered import KINDS, Variant, write
from PIL import Image

from sailq.producer.aio import AsyncClient
from sailq.producer.client import Client

OPTIONS = {"max_new_tokens": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    write(folder / "good.mp4", Variant(next(kind for kind in KINDS if kind.name == "mp4 h264")), 100)
    pixels = np.zeros((84, 140, 3), np.uint8)
    pixels[:, :70] = (255, 0, 0)
    Image.fromarray(pixels).save(folder / "photo.jpg", quality=95)
    return folder


def user(part: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [part, {"type": "input_text", "text": "Describe the picture."}]}]


def test_a_batch_of_rows_as_clients_write_them(folder: Path, served_url: str, tmp_path: Path) -> None:
    photo = base64.encodebytes((folder / "photo.jpg").read_bytes()).decode()
    clip = base64.b64encode((folder / "good.mp4").read_bytes()).decode()
    parts: dict[str, Any] = {
        "detail": {"type": "image_url", "image_url": {"url": "photo.jpg", "detail": "low"}},
        "video_url": {"type": "video_url", "video_url": {"url": "good.mp4"}},
        "wrapped base64": {"type": "image", "image": "data:image/jpeg;base64," + photo},
        "video data URL": {"type": "video", "video": "data:video/mp4;base64," + clip},
        "no type": {"image": "photo.jpg"},
        "http": {"type": "image_url", "image_url": {"url": "https://example.com/photo.jpg"}},
        "bad base64": {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAAA"}},
    }
    (folder / "parts.jsonl").write_text(
        "".join(json.dumps({"messages": user(part), "name": name}) + "\n" for name, part in parts.items())
    )
    out = tmp_path / "out.jsonl"
    done = sailq("caption", "--messages", folder / "parts.jsonl", "--nframes", 4, "--max-new-tokens", 2, "--out", out,
                 url=served_url)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    by_name = {row["metadata"]["name"]: row for row in rows(out)}
    errors = {name: row["error"]["code"] for name, row in by_name.items() if row["error"]}
    assert errors == {"http": "unsupported", "bad base64": "bad_media"}
    assert "Part 1 of message 1" in by_name["bad base64"]["error"]["message"]
    assert {name: row["source"] for name, row in by_name.items()} == {
        "detail": "photo.jpg", "video_url": "good.mp4", "wrapped base64": "data:image/jpeg;base64,…",
        "video data URL": "data:video/mp4;base64,…", "no type": "photo.jpg", "http": "https://example.com/photo.jpg",
        "bad base64": "data:video/mp4;base64,…",
    }
    assert by_name["video data URL"]["media"] == by_name["video_url"]["media"]  # --nframes applies to both
    assert by_name["video_url"]["media"][0]["frames"] == 4
    assert by_name["detail"]["media"] == by_name["wrapped base64"]["media"] == by_name["no type"]["media"]
    assert by_name["video data URL"]["text"] == by_name["video_url"]["text"]


def test_both_clients_accept_all_forms_of_media(folder: Path, served_url: str) -> None:
    path, clip = folder / "photo.jpg", folder / "good.mp4"
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
    same = [path, path.read_bytes(), picture, pixels, path.as_uri()]
    parts = [*({"image": one} for one in same), {"video": clip}, {"video": clip.read_bytes()},
             {"video": np.stack([pixels] * 4), "fps": 2}]
    with Client(served_url) as client:
        jobs = [client.submit(user(part), options=OPTIONS).job for part in parts]
        results = [client.wait(job, timeout=300) for job in jobs]
    assert [result.error for result in results] == [None] * len(parts)
    assert len({result.text for result in results[: len(same)]}) == 1 and results[5].text == results[6].text

    async def ask() -> list[str]:
        async with AsyncClient(served_url) as client:
            handles = [await client.submit(user(part), options=OPTIONS) for part in parts]
            return [(await client.wait(handle.job, timeout=300)).text for handle in handles]

    assert asyncio.run(ask()) == [result.text for result in results]
