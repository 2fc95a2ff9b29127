"""Every Redis key of sailq that Python names; shared/scripts names the others.

A job's hash, queue and registries belong to RQ. sailq chooses only the name of the queue.
"""

from __future__ import annotations

PREFIX = "sailq:"
PROTOCOL = 3
"""The version of how jobs are stored. Each version has its own queues, so that a worker takes only jobs that it can
read."""
NEWEST = PREFIX + "protocol"
"""Integer: the highest `PROTOCOL` of the workers that this server has seen."""

MODELS = PREFIX + "models"
"""Set of the names of the models that any worker has announced."""
WORKERS = PREFIX + "workers"
"""Sorted set: worker names by the time of their last beat."""
CONVERSATIONS = PREFIX + "conversations"
"""Sorted set: conversation ids by the time of their last turn."""
LEASES = PREFIX + "leases"
"""Sorted set: JOB:EXECUTION of all running attempts by the end of their leases, by the server's clock."""
CLIPS = PREFIX + "clips"
"""Sorted set: DIGEST:BYTES of all clips by the time of the last check whether they are still needed."""
CLIP_BYTES = PREFIX + "clip-bytes"
"""Integer: the bytes of all clips."""
RESULTS = PREFIX + "results"
"""Stream: an entry for each job that a worker has ended: `job`, its encoded `result`, and of its hash `origin`, `data`,
`created_at`, `conversation`, `turn` and `clips`. A reader creates it; until then, no job is added."""


def queue(model: str) -> str:
    """RQ's name for the queue of one model's jobs."""
    return f"sailq{PROTOCOL}-{model}"


def waiting(queue_name: str) -> str:
    """List: ids of the jobs that wait. RQ's."""
    return f"rq:queue:{queue_name}"


def failed(queue_name: str) -> str:
    """Sorted set: ids of failed jobs by the end of their lives. RQ's."""
    return f"rq:failed:{queue_name}"


def bell(queue_name: str) -> str:
    """List: tokens, pushed when a job is queued. Each wakes one waiting worker."""
    return f"{PREFIX}bell:{queue_name}"


def job(job_id: str) -> str:
    """Hash: RQ's record of a job, and sailq's fields: `conversation`, `turn`, `clips` (digests), `keep`, `stream`,
    `inbox` (names); once it is claimed, `execution` (the random id of the running attempt: only that attempt may
    finish the job), `attempt` (its number), `spent` (attempts that count) and `history` (JSON list of Attempts);
    `cancel` if it must end; `followed` if the conversation with the job's id has a second turn;
    `result_record` once it has ended: its encoded Result if it has failed, else empty."""
    return f"rq:job:{job_id}"


def result(job_id: str) -> str:
    """String: encoded Result. Written once."""
    return f"{PREFIX}result:{job_id}"


def stream(job_id: str) -> str:
    """Stream: `attempt`, `at` and `text` as tokens come; the entry with `end` is the last. Only for jobs that ask for
    it."""
    return f"{PREFIX}stream:{job_id}"


def inbox(name: str) -> str:
    """Stream: the ids (`job`) of the ended jobs that one client waits for."""
    return f"{PREFIX}inbox:{name}"


def conversation(conversation_id: str) -> str:
    """Hash: `turns` (how many were submitted), `head` (the turn that runs or is next). A single turn has no hash."""
    return f"{PREFIX}conversation:{conversation_id}"


def turns(conversation_id: str) -> str:
    """List: the encoded answered Turns, in order: the next turn's history."""
    return f"{PREFIX}conversation:{conversation_id}:turns"


def conversation_clips(conversation_id: str) -> str:
    """Set: digests of the clips that the conversation holds."""
    return f"{PREFIX}conversation:{conversation_id}:clips"


def clip(digest: str) -> str:
    """Hash: `data` (the frames of one clip or image, whose sha256 it is named by) and its holders, each with its end:
    `job:ID`, `conversation:ID`, or another `kind:name`."""
    return f"{PREFIX}clip:{digest}"


def worker(name: str) -> str:
    """Hash: the record of one worker. It expires when the worker's beats stop."""
    return f"{PREFIX}worker:{name}"


def model(name: str) -> str:
    """String: encoded ModelCard."""
    return f"{PREFIX}model:{name}"


def gateway_rate(caller: str) -> str:
    """String: the time, in milliseconds since the epoch, at which the bucket of an API key's rate will be full.

    `caller`, here and below, is the SHA-256 of the API key."""
    return f"{PREFIX}gateway:rate:{caller}"


def gateway_jobs(caller: str) -> str:
    """Sorted set: ids of the jobs of an API key that wait or run, by the time of their request in milliseconds."""
    return f"{PREFIX}gateway:jobs:{caller}"


def gateway_request(caller: str, key: str) -> str:
    """String: `JOB SHA256` of the request that an API key has sent with this `Idempotency-Key` (its sha256)."""
    return f"{PREFIX}gateway:request:{caller}:{key}"
