"""The cost of a caption for its server: commands, round trips, bytes that remain, and space for its clip."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import psutil
import pytest
import redis
from farm import NullWorker

from sailq.producer.client import Client
from sailq.producer.embedded import embedded_server
from sailq.producer.waiting import Waiter
from sailq.shared import keys
from sailq.shared.connection import connect
from sailq.shared.media.messages import Prepared
from sailq.shared.scripts import text
from sailq.shared.settings import Settings
from tests.bench import fleet, simulated

SLOTS = 16
BOX = ("--slots", str(SLOTS), "--prefill-ms", "187", "--decode-ms", "116")
"""The compiler's estimate of a BM1684X."""
TOKENS, WAITING, COUNTED = 60, 32, 4 * SLOTS
"""A box ends `SLOTS` captions in a burst, and the next as many a cycle later: what is counted are whole cycles."""
CAPTION_SECONDS = (SLOTS * 187 + (TOKENS - 1) * 116) / 1000 / SLOTS
"""From one caption of such a box to the next."""
MOST_COMMANDS, MOST_TRIPS, MOST_LEFT = 50, 4, 1000
SIZE, ENDED = (2, 140, 224), 400
CLIPS, ROOM, FREED_SECONDS = 20_000, 64 * 2**20, 5.0


@pytest.fixture
def url() -> Iterator[str]:
    """A server whose connections have addresses, as those of a socket have not."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with embedded_server(port=port) as server:
        yield server.url


def clips(count: int, size: tuple[int, int, int]) -> Iterator[Prepared]:
    """Questions about clips, none like another."""
    one = fleet.clip(size)
    ((_, blob),), (message,) = one.blobs.items(), one.messages
    part, question = message.content
    for number in range(count):
        other = blob.replace(fleet.STAMP, b"%016d" % (number + 1), 1)
        digest = hashlib.sha256(other).hexdigest()
        said = message.model_copy(update={"content": (part.model_copy(update={"blob": digest}), question)})
        yield Prepared((said,), {digest: other}, 0)


def answers(client: Client, prepared: Iterator[Prepared], window: int, tokens: int) -> Iterator[str]:
    """Each job as it is answered, with at most `window` of them on their way; one that finds no room waits for it."""
    waiter, left = Waiter(client.connection, client.inbox), True
    while left or waiter:
        while left and len(waiter) < window:
            one = next(prepared, None)
            left = one is not None
            if one is not None:
                waiter.add(client.submit_prepared(one, options={"max_new_tokens": tokens}, wait=120).job)
        for job, result in waiter.poll(2.0).ended:
            assert not isinstance(result, Exception) and result.error is None, result
            yield job


@pytest.mark.proof
@pytest.mark.alone
def test_a_caption_takes_few_commands_and_round_trips(url: str, start_null: Callable[..., NullWorker]) -> None:
    """Of a worker that answers as fast as a box, with jobs waiting, and of a client that waits for 32 captions.

    The worker's beats are in it: leases, looks and its record cost what they cost a second, times a box's seconds for a
    caption. So a machine on which the worker is slower counts the same. What the worker sends counts as a round trip
    each, though its record goes in one pipeline."""
    start_null(*BOX, url=url)
    sent: Counter[str] = Counter()
    times: list[float] = []
    beats = {hashlib.sha1(text(name).encode()).hexdigest() for name in ("renew", "recover")}
    with Client(url) as client, connect(url) as connection:
        simulated.teach(connection)
        coming = answers(client, clips(1000, (2, 28, 28)), WAITING, TOKENS)
        for _ in range(17):  # until the worker is busy and its connections are open
            next(coming)
        with connection.monitor() as monitor:
            ours = {connection.laddr.port for connection in psutil.Process().net_connections("tcp")}

            def watch() -> None:
                when = ""
                while not (said := monitor.next_command())["command"].startswith("ECHO"):
                    times.append(said["time"])
                    name, *rest = said["command"].split(maxsplit=2)
                    of = "scripts"
                    if said["client_type"] != "lua":
                        of = "client" if int(said["client_port"]) in ours else "worker"
                        beat = of == "worker" and (name != "EVALSHA" or rest[0] in beats)
                        when = "beats" if beat else "captions"
                    sent[when] += 1
                    sent[f"{when} {of}"] += 1
                    sent[f"{when} {of} {name.lower()}"] += 1

            watching = threading.Thread(target=watch)
            watching.start()
            for _ in range(COUNTED):
                next(coming)
            connection.echo("counted")
            watching.join(60)
    seconds = times[-1] - times[0]
    commands, trips = (
        sent[f"captions{of}"] / COUNTED + sent[f"beats{of}"] / seconds * CAPTION_SECONDS for of in ("", " worker")
    )
    beating = sent["beats"] / seconds
    print(f"figure: {COUNTED} captions of a box: {commands:.1f} commands each, those inside scripts counted (at most "
          f"{MOST_COMMANDS}), {trips:.2f} sent by the worker (at most {MOST_TRIPS}); of the commands, "
          f"{beating * CAPTION_SECONDS:.1f} are the worker's beats, {beating:.1f} a second")
    print({name: round(number / COUNTED, 2) for name, number in sorted(sent.items())})
    assert commands <= MOST_COMMANDS and trips <= MOST_TRIPS


def weighed(connection: redis.Redis) -> Counter[str]:
    """Bytes of all keys, by kind."""
    sizes: Counter[str] = Counter()
    for key in connection.scan_iter(count=1000):
        name = key.decode()
        kind = "turns" if name.endswith(":turns") else ":".join(name.split(":")[:2])
        sizes[kind] += connection.memory_usage(key, samples=0) or 0
    return sizes


@pytest.mark.proof
@pytest.mark.alone
def test_a_finished_caption_leaves_its_result_and_its_conversation(
    url: str, start_null: Callable[..., NullWorker]
) -> None:
    """All keys of the server are weighed before and at once after: nothing has had the time to expire."""
    start_null("--slots", "16", url=url)
    with Client(url) as client, connect(url) as connection:
        assert len(list(answers(client, clips(20, SIZE), WAITING, TOKENS))) == 20
        before = weighed(connection)
        assert len(list(answers(client, clips(ENDED, SIZE), WAITING, TOKENS))) == ENDED
        grown = {kind: (size - before[kind]) / ENDED for kind, size in weighed(connection).items()}
    meant = {kind: grown.pop(kind) for kind in ("sailq:result", "turns", "sailq:conversations")}
    left = sum(grown.values())
    print(f"figure: a finished caption leaves {left:.0f} bytes (at most {MOST_LEFT}) beside its result of "
          f"{meant['sailq:result']:.0f} and its conversation's {meant['turns'] + meant['sailq:conversations']:.0f}")
    print({kind: round(size) for kind, size in grown.items() if round(size)})
    assert meant["sailq:result"] > 0 and meant["turns"] > 0 and left <= MOST_LEFT


@pytest.mark.long
@pytest.mark.proof
@pytest.mark.alone
@pytest.mark.timeout(900)
def test_20000_clips_go_through_room_for_far_fewer(
    url: str, start_null: Callable[..., NullWorker], eventually: Callable[..., None]
) -> None:
    """320 MB of clips in all, and more jobs in flight than the server has room for."""
    start_null("--slots", "64", "--vision-cache", "0", url=url)
    answered: Counter[str] = Counter()
    most = 0
    with Client(settings=Settings(redis_url=url, max_blob_bytes=ROOM)) as client, connect(url) as connection:
        began = time.monotonic()
        for job in answers(client, clips(CLIPS, (2, 84, 140)), 8000, 1):
            answered[job] += 1
            if len(answered) % 100 == 0:
                most = max(most, int(connection.get(keys.CLIP_BYTES) or 0))
        took = time.monotonic() - began
        eventually(lambda: int(connection.get(keys.CLIP_BYTES) or 0) == 0, FREED_SECONDS)
        assert not connection.keys(keys.clip("*")) and not connection.zcard(keys.CLIPS)
    print(f"figure: {len(answered)} clips through {ROOM >> 20} MB of room in {took:.0f} s, at most "
          f"{most / 2**20:.1f} MB at a time; none is left")
    assert len(answered) == CLIPS and set(answered.values()) == {1} and 0.9 * ROOM < most <= ROOM
