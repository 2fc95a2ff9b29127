"""A worker's and a producer's recorded commands, parted into what they do: be born, wait, take a job, end it, beat.

What goes out when is the worker's own, thread by thread, so that it changes with the worker. Only this is written down
here: that the main thread waits by BLMOVE, one thread works on one job, another beats, and a look after abandoned jobs
begins with the maintenance key. A worker of which that is no longer true fails to be parted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from statistics import median
from typing import NamedTuple

from playback import Trip
from sailq.shared import keys
from wiretap import Sent

MAIN, JOB, BEAT = "MainThread", "sailq-job", "sailq-beat"
_APART = {b"CLIENT", b"PING", b"INFO", b"SUBSCRIBE", b"UNSUBSCRIBE", b"SCRIPT", b"TIME"}
"""What connections, scripts and clocks ask by themselves, at their start or once a minute."""


class Asked(NamedTuple):
    """A job that a recorded producer submitted, and a recorded worker answered.

    Attributes:
        data: RQ's, as it stands there.
        stamp: what is this clip's own in `blob`.
    """

    job: bytes
    digest: bytes
    blob: bytes
    data: bytes
    submitted: bytes
    stamp: bytes

    def values(self) -> dict[bytes, bytes]:
        """By the names of a template's holes."""
        return {b"=blob": self.blob, b"=data": self.data, b"job": self.job, b"digest": self.digest,
                b"name": keys.blob_name(self.digest.decode()).encode(), b"submitted": self.submitted}


@dataclass(frozen=True)
class WorkerRoles:
    """Trips with the holes `worker`, `job`, `execution`, `digest`, `name` (see keys.blob_name) and `=data`.

    Attributes:
        birth: when it starts.
        wait: the claim; its reply is nothing after `wait_seconds`, or a job's id.
        take: with a job that came, before a thread has it.
        taken: once a thread has it. Every 2 s at most it also asks whether the queue is suspended; that is left out.
        begin, end: of the thread's, before and after the device has the job.
        beat: its parts, each for the worker or for each execution.
        look: after abandoned jobs, every `look_seconds`; its first trip's reply says whether there is more to do.
    """

    name: bytes
    birth: list[Trip]
    wait: Trip
    wait_seconds: float
    take: list[Trip]
    taken: list[Trip]
    begin: list[Trip]
    end: list[Trip]
    beat: list[tuple[bool, Trip]]
    look: list[Trip]
    look_seconds: float

    @classmethod
    def part(cls, sent: Sequence[Sent], asked: Sequence[Asked]) -> WorkerRoles:
        """`asked`: the jobs of the recording, one at a time, each long enough for a beat."""
        name = _worker_name(sent)
        main = _of_thread(sent, MAIN)
        waits = [place for place, one in enumerate(main) if one.commands[0][0] == b"BLMOVE"]
        turns = [
            [one for one in main[before + 1 : after] if b"rq:suspended" not in one.raw]
            for before, after in pairwise(waits)
        ]
        birth, first_look = _without_look(main[: waits[0]])
        looks = [first_look, *(look for turn in turns if (look := _without_look(turn)[1]))]
        # The first job's scripts were new to the server.
        job, turn = next(
            (one, turn) for one in asked[1:] for turn in turns
            if turn and one.job in turn[0].raw and not _without_look(turn)[1]
        )
        lease = next(place for place, one in enumerate(turn) if b"rq:execution:" + job.job in one.raw)
        execution = _execution(turn[lease], job.job)
        recorded = {**job.values(), b"execution": execution, b"worker": name}

        def trips(some: Sequence[Sent]) -> list[Trip]:
            return [Trip.of(one, recorded) for one in some]

        after = turn[lease + 1 :]
        thread = next(one.thread for one in sent if one.thread.startswith(JOB) and job.job in one.raw)
        work = _of_thread(sent, thread)
        named = [place for place, one in enumerate(work) if job.job in one.raw]
        work = work[named[0] : named[-1] + 1]
        on_device = max(range(1, len(work)), key=lambda place: work[place].at - work[place - 1].at)
        beat = next(one for one in _of_thread(sent, BEAT) if execution in one.raw)
        return cls(
            name=name, birth=trips(birth), wait=Trip.of(main[waits[0]], recorded),
            wait_seconds=float(main[waits[0]].commands[0][-1]), take=trips(turn[: lease + 1]),
            taken=trips(after), begin=trips(work[:on_device]), end=trips(work[on_device:]),
            beat=[(each, Trip(list(commands), beat.at, recorded))
                  for each, commands in groupby(beat.commands, lambda command: job.job in b"".join(command))],
            look=trips(max(looks, key=len)), look_seconds=median(b[0].at - a[0].at for a, b in pairwise(looks)),
        )


def producer_trips(sent: Sequence[Sent], asked: Asked) -> list[Trip]:
    """What a producer sends for one job, with the holes of `Asked.values`."""
    return [Trip.of(one, asked.values()) for one in sent if one.commands[0][0] not in _APART]


def scripts(sent: Sequence[Sent]) -> list[Trip]:
    """The scripts that a server must have before."""
    return [Trip.of(one, {}) for one in sent if one.commands[0][0] == b"SCRIPT"]


def _of_thread(sent: Sequence[Sent], thread: str) -> list[Sent]:
    return [one for one in sent if one.thread == thread and one.commands[0][0] not in _APART]


def _worker_name(sent: Sequence[Sent]) -> bytes:
    channel = next(command[1] for one in sent for command in one.commands if command[0] == b"SUBSCRIBE")
    return channel.rpartition(b":")[2]


def _without_look(some: Sequence[Sent]) -> tuple[list[Sent], list[Sent]]:
    """What the main thread sent, parted from a look after abandoned jobs, after which it waits."""
    prefix = keys.maintenance("").encode()
    begin = next((place for place, one in enumerate(some) if prefix in one.raw), len(some))
    return list(some[:begin]), list(some[begin:])


def _execution(lease: Sent, job: bytes) -> bytes:
    key = next(key for command in lease.commands for key in command[1:2] if key.startswith(b"rq:execution:" + job))
    return key.rpartition(b":")[2]
