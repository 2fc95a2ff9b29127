"""The images of deploy/images, built and run with buildah, which needs no daemon: as their users, on a real server.

No registry is asked: Debian with its own Python 3.11 stands in for the images python:3.12.8-slim-bookworm and
python:3.11.11-slim-bookworm that they begin with. So what is built is what the Dockerfiles say, of wheels for another
Python.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import openai
import pytest
import yaml
from boxes import sail_wheel
from commands import invoke
from debian import AUTHORITIES, KEPT, TREE, archive, environment, require
from openai_media import asked

from sailq.producer.embedded import embedded_server
from sailq.producer.samples import write_samples
from sailq.shared.connection import connect
from sailq.shared.workers import live_workers

pytestmark = [pytest.mark.images, pytest.mark.timeout(3600)]
MOST_MB = {"worker": 400, "producer": 480, "worker-tpu": 400}
"""10^6 bytes that an image may hold above its base."""
BUILDAH = {"BUILDAH_ISOLATION": "chroot"}
USER = "10001"


def buildah(*arguments: object, seconds: float = 1800) -> str:
    """Its output."""
    done = subprocess.run(
        command(*arguments), env={**environment(), **BUILDAH}, capture_output=True, text=True, timeout=seconds
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def command(*arguments: object) -> list[str]:
    return ["buildah", "--root", f"{KEPT}/images", "--runroot", f"{KEPT}/running", *map(str, arguments)]


def megabytes(image: str) -> float:
    """The size of its files in 10^6 bytes."""
    container = buildah("from", "--pull-never", image)
    try:
        done = subprocess.run(["du", "--summarize", "--bytes", buildah("mount", container)], stdout=subprocess.PIPE)
        return int(done.stdout.split()[0]) / 1e6
    finally:
        buildah("rm", container)


@pytest.fixture(scope="module", autouse=True)
def base(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Stands in for the images that the Dockerfiles begin with; its megabytes."""
    require(buildah="buildah", mmdebstrap="mmdebstrap")
    folder = tmp_path_factory.mktemp("base")
    shutil.copy(archive(), folder / "base.tar")
    shutil.copy(Path("/") / AUTHORITIES, folder)
    settings = "\n".join(f"ENV {name}={value}" for name, value in environment().items() if name.startswith("PIP_"))
    (folder / "Dockerfile").write_text(
        f"FROM scratch\nADD base.tar /\nCOPY {AUTHORITIES.name} /{AUTHORITIES}\n{settings}\n"
        "RUN ln -s python3 /usr/bin/python\n"
    )
    names = {
        name for file in (TREE / "deploy/images").glob("*.Dockerfile")
        for name in re.findall(r"^FROM (\S+)", file.read_text(), re.MULTILINE)
    }
    tags = [word for name in names for word in ("--tag", f"docker.io/library/{name}")]
    buildah("build", "--layers", "--network", "host", *tags, folder)
    return megabytes(f"docker.io/library/{names.pop()}")


@pytest.fixture(scope="module")
def images(base: float, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """All, built: the tag of each."""
    wheels = tmp_path_factory.mktemp("wheels")
    sail_wheel(wheels, "EngineLLM = object  # stands in for SAIL\n")
    tags = {name: f"localhost/sailq-{name}" for name in MOST_MB}
    for name, tag in tags.items():
        buildah(
            "build", "--layers", "--pull-never", "--network", "host", "--build-context", f"sail={wheels}",
            "--tag", tag, "--file", TREE / f"deploy/images/{name}.Dockerfile", TREE,
        )
    return tags


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The URL of a server that containers can reach, because they share this machine's network."""
    with embedded_server() as server:
        yield server.url


class Container:
    """Of an image, removed with the `with` block. Its user's processes run the image's own entry point."""

    def __init__(self, image: str) -> None:
        self._name = buildah("from", "--pull-never", image)
        config = json.loads(buildah("inspect", self._name))["OCIv1"]["config"]
        self._entry, self._command, self._user = config["Entrypoint"], config["Cmd"], config["User"]

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        buildah("rm", self._name)

    def command(self, *arguments: str, options: Sequence[str] = ()) -> list[str]:
        """Without arguments, the image's own."""
        return command("run", "--user", self._user, *options, self._name, "--", *self._entry,
                       *(arguments or self._command))

    def run(self, *arguments: str, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments, options=options), env={**environment(), **BUILDAH}, capture_output=True, text=True,
            timeout=600,
        )

    @contextmanager
    def running(
        self, log: Path, ready: Callable[[], object], *arguments: str, url: str, options: Sequence[str] = ()
    ) -> Iterator[int]:
        """The pid of its sailq, once it is ready. It must leave on SIGTERM with 0, and have run as the image's user."""
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.command(*arguments, options=["--env", f"SAILQ_REDIS_URL={url}", *options]),
                env={**environment(), **BUILDAH}, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )
        try:
            give_up = time.monotonic() + 240
            while not ready():
                assert process.poll() is None and time.monotonic() < give_up, log.read_text()
                time.sleep(0.1)
            # The innermost process, because buildah's own processes have the same command line.
            pid = next(pid for pid in reversed(descendants(process.pid)) if b"/opt/sailq/bin/sailq" in cmdline(pid))
            assert re.search(rf"^Uid:\t{USER}\t{USER}\t", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
            yield pid
            os.kill(pid, signal.SIGTERM)
            assert process.wait(120) == 0, log.read_text()
        finally:
            for pid in reversed(descendants(process.pid)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.kill()
            process.wait()


def descendants(pid: int) -> list[int]:
    """A process's children, and theirs; deepest last."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(OSError):  # the process has ended
                found += map(int, children.read_text().split())
    return found[1:]


def cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_worker_and_producer_answer_from_their_images(images: dict[str, str], url: str, tmp_path: Path) -> None:
    media = tmp_path / "media"
    (row, *_) = write_samples(7, 1, media)
    for path in (tmp_path.parent, tmp_path, media):
        path.chmod(0o777)
    with (
        connect(url) as connection, Container(images["worker"]) as worker, Container(images["producer"]) as producer,
        worker.running(tmp_path / "worker.log", lambda: live_workers(connection), url=url),
    ):
        done = producer.run(
            "caption", "--messages", "/media/truth.jsonl", "--out", "/media/out.jsonl",
            options=["--env", f"SAILQ_REDIS_URL={url}", "--volume", f"{media}:/media"],
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (answer,) = map(json.loads, (media / "out.jsonl").read_text().splitlines())
        assert (answer["error"], answer["text"].strip()) == (None, row["answer"])
        assert os.stat(media / "out.jsonl").st_uid == int(USER)
    with connect(url) as connection:
        assert live_workers(connection) == []


def test_the_exporter_shows_the_server_from_the_producers_image(
    images: dict[str, str], url: str, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def scrape() -> str:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
            return str(page.read().decode())
        return ""

    with (
        Container(images["producer"]) as exporter,
        exporter.running(tmp_path / "exporter.log", scrape, "exporter", "--port", str(port), url=url),
    ):
        assert "sailq:" in scrape()


def test_the_gateway_answers_from_the_producers_image(images: dict[str, str], url: str, tmp_path: Path) -> None:
    """As docker-compose.yml starts it, but for its port: containers share this machine's network."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    for path in (tmp_path.parent, tmp_path, folder):
        path.chmod(0o755)
    made = invoke("gateway", "--new-key", "cameras")
    (folder / "keys.json").write_text(made.stdout)
    secret = made.stderr.split()[-1]
    question = asked("video", tmp_path)
    started = yaml.safe_load((TREE / "docker-compose.yml").read_text())["services"]["gateway"]["command"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def healthy() -> bool:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as page:
            return bool(page.status == 200)
        return False

    with (
        connect(url) as connection, Container(images["worker"]) as worker, Container(images["producer"]) as image,
        worker.running(tmp_path / "worker.log", lambda: live_workers(connection), url=url),
        image.running(
            tmp_path / "gateway.log", healthy, *started, "--port", str(port), url=url,
            options=["--volume", f"{folder}:/etc/sailq/gateway:ro"],
        ),
        openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=secret) as client,
    ):
        answer = client.chat.completions.create(
            model="sailq-tiny", messages=question.messages, extra_body=question.body  # type: ignore[arg-type]
        )
        assert answer.choices[0].message.content == question.answer
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="sk-other").models.list()


def test_the_tpu_workers_image_lacks_only_the_tpu(images: dict[str, str], url: str) -> None:
    with Container(images["worker-tpu"]) as worker:
        options = ["--env", f"SAILQ_REDIS_URL={url}"]
        done = worker.run("doctor", "--for", "worker", "--device", "tpu:0", "--json", options=options)
        found = {one["name"]: one["state"] for one in json.loads(done.stdout)}
        assert (found["packages"], found["SAIL"], found["server"]) == ("ok", "ok", "ok"), done.stdout
        assert done.returncode == 1 and found["libsophon"] == "wrong"
        assert worker.run(options=options).returncode == 2


def test_images_are_small(images: dict[str, str], base: float) -> None:
    above = {name: megabytes(tag) - base for name, tag in images.items()}
    print(f"\nfigure: images, MB above their base: {', '.join(f'{name} {mb:.0f}' for name, mb in above.items())}")
    assert {name: mb for name, mb in above.items() if mb > MOST_MB[name]} == {}
