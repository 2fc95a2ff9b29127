"""Images and videos in the jobs of a backend with only `rq` and the serializer."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import redis
from farm import NullWorker
from PIL import Image
from rq import Queue
from rq.job import Job

from sailq.producer.aio import AsyncClient
from sailq.producer.client import Client
from sailq.shared import keys
from sailq.shared.errors import BadRequest
from sailq.shared.rqjob import Serializer

SHORT = {"max_new_tokens": 2}
Start = Callable[..., NullWorker]
Eventually = Callable[..., None]


@pytest.fixture
def queue(connection: redis.Redis) -> Queue:
    return Queue("sailq3-sailq-tiny", connection=connection, serializer=Serializer)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (84, 112, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 4.0, (96, 64))
    for frame in np.random.default_rng(2).integers(0, 255, (8, 64, 96, 3), np.uint8):
        writer.write(frame)
    writer.release()
    return path


def data_url(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def ask(queue: Queue, *parts: Any) -> Job:
    content = [*parts, {"type": "text", "text": "What is shown?"}]
    return queue.enqueue("sailq.answer", messages=[{"role": "user", "content": content}], options=SHORT)


def answers(jobs: list[Job], eventually: Eventually) -> list[dict[str, Any]]:
    eventually(lambda: all(job.latest_result() is not None for job in jobs))
    return [job.return_value() for job in jobs]


def test_data_urls_are_read_as_the_client_reads_files(
    queue: Queue, client: Client, start_null: Start, eventually: Eventually, image: Path, video: Path
) -> None:
    start_null()
    shown, played = data_url(image, "image/png"), data_url(video, "video/mp4")
    jobs = [
        ask(queue, {"type": "image", "image": shown}, {"type": "video", "video": played, "fps": 2.0}),
        ask(queue, {"type": "image_url", "image_url": {"url": shown}}, {"type": "video_url", "video_url": played,
                                                                         "fps": 2.0}),
    ]
    handle = client.submit(
        [{"role": "user", "content": [{"type": "image", "image": str(image)},
                                      {"type": "video", "video": str(video), "fps": 2.0}, "What is shown?"]}],
        options=SHORT,
    )
    expected = client.wait(handle.job, 60)
    assert expected.error is None and expected.usage.vision_tokens > 0
    for answer in answers(jobs, eventually):
        assert answer["error"] is None and answer["text"] == expected.text
        assert answer["usage"] == expected.usage.model_dump()


def test_uploaded_media_can_be_used_in_jobs_of_both_kinds(
    queue: Queue, client: Client, connection: redis.Redis, start_null: Start, eventually: Eventually, image: Path,
    video: Path,
) -> None:
    start_null()
    frames = np.zeros((4, 84, 84, 3), np.uint8)
    parts = [client.upload(image), client.upload(str(video), fps=2.0), client.upload(frames)]
    assert [part["type"] for part in parts] == ["image", "video", "video"] and parts[1]["fps"] == 2.0
    held = int(connection.get(keys.CLIP_BYTES))

    async def upload() -> dict[str, Any]:
        async with AsyncClient(client.settings.redis_url) as own:
            return await own.upload(image)

    assert asyncio.run(upload()) == parts[0]
    [answer] = answers([ask(queue, *parts)], eventually)
    handle = client.submit([{"role": "user", "content": [*parts, "What is shown?"]}], options=SHORT)
    own = client.wait(handle.job, 60)
    assert answer["error"] is own.error is None and answer["usage"] == own.usage.model_dump()
    assert answer["usage"]["vision_tokens"] > 0
    # Both jobs have released the clips; the uploader's hold remains.
    assert int(connection.get(keys.CLIP_BYTES)) == held
    holders = {holder for part in parts for holder in connection.hkeys(keys.clip(part["blob"])) if holder != b"data"}
    assert holders and all(holder.startswith(b"upload:") for holder in holders)


def test_an_upload_of_bytes_needs_a_type(client: Client, image: Path) -> None:
    with pytest.raises(BadRequest):
        client.upload(image.read_bytes())
    assert client.upload(image.read_bytes(), type="image") == client.upload(image)
    with pytest.raises(BadRequest):
        client.upload(image, frames=3)


def test_a_clip_that_nobody_uploaded_is_refused(
    queue: Queue, client: Client, start_null: Start, eventually: Eventually, image: Path
) -> None:
    start_null()
    part = client.upload(image)
    [answer] = answers([ask(queue, {**part, "blob": "0" * 64})], eventually)
    assert answer["error"]["code"] == "bad_media"
    [answer] = answers([ask(queue, {**part, "height": 27})], eventually)
    assert answer["error"]["code"] == "bad_request"


def test_a_worker_opens_no_files_and_no_addresses(
    queue: Queue, start_null: Start, eventually: Eventually, image: Path
) -> None:
    start_null()
    urls = [f"file://{image}", "http://127.0.0.1:9/image.png", "https://127.0.0.1:9/"]
    sources = [str(image), *urls, image.read_bytes()]
    jobs = [ask(queue, {"type": "image", "image": source}) for source in sources]
    jobs += [ask(queue, {"type": "image_url", "image_url": {"url": source}}) for source in sources[:4]]
    jobs += [ask(queue, {"type": "video", "video": [data_url(image, "image/png"), str(image)]})]
    assert {answer["error"]["code"] for answer in answers(jobs, eventually)} == {"bad_request"}
    [damaged] = answers([ask(queue, {"type": "image", "image": "data:image/png;base64,AAAA"})], eventually)
    assert damaged["error"]["code"] == "bad_media"


def test_a_worker_without_readers_names_the_upload() -> None:
    program = (
        "import sys; sys.modules['av'] = sys.modules['PIL'] = None\n"
        "from sailq.shared.errors import Unsupported\n"
        "from sailq.shared.jobs import ModelCard\n"
        "from sailq.worker.queue.front_door import read_messages\n"
        "card = ModelCard(name='m', context=2048, min_pixels=3136, max_pixels=1 << 20)\n"
        "ask = lambda *content: read_messages([{'role': 'user', 'content': list(content)}], card)\n"
        "part = dict(type='image', blob='0' * 64, frames=1, height=28, width=28)\n"
        "assert ask('Hello.', part).messages[0].content[1].blob == '0' * 64\n"
        "try: ask({'type': 'image', 'image': 'data:image/png;base64,AAAA'})\n"
        "except Unsupported as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0 and "Client.upload" in done.stdout, done.stderr
