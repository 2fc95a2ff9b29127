"""Every Redis key of sailq, built here and nowhere else.

RQ keeps its own keys under `rq:` (so that `rq info` works); of those, sailq chooses only the queue's name.
"""

from __future__ import annotations

PREFIX = "sailq:"

MODELS = PREFIX + "models"
"""Set of the names of the models that any worker has announced."""
WORKERS = PREFIX + "workers"
"""Sorted set: worker names by the time of their last beat."""
CONVERSATIONS = PREFIX + "conversations"
"""Sorted set: conversation ids by the time of their last submission."""
FAILED = PREFIX + "failed"
"""Sorted set: ids of the jobs that failed and may be retried, by the time of their end."""


BLOBS = PREFIX + "blobs"
"""Sorted set: names of the blobs that were uploaded (`blob_name`) by the end of their lives."""
BLOB_SIZES = PREFIX + "blob-sizes"
"""Hash: the bytes of each of them."""
BLOB_BYTES = PREFIX + "blob-bytes"
"""Integer: their sum."""


def queue(model: str) -> str:
    """RQ's name for the queue of one model's jobs."""
    return f"sailq-{model}"


def job(job_id: str) -> str:
    """Hash: `request` (encoded Job), `attempt` (the newest's number: the fence), `spent` (attempts that count),
    `worker` (of the newest attempt), `claim` (names it), `history` (JSON list of Attempts), `cancel`."""
    return f"{PREFIX}job:{job_id}"


def failed(job_id: str) -> str:
    """Hash: what `job` held when the job failed, and `result` (encoded), for a retry."""
    return f"{PREFIX}failed:{job_id}"


def result(job_id: str) -> str:
    """String: encoded Result. Written once."""
    return f"{PREFIX}result:{job_id}"


def stream(job_id: str) -> str:
    """Stream: `attempt` and `text` as tokens come; the entry with `end` is the last."""
    return f"{PREFIX}stream:{job_id}"


def conversation(conversation_id: str) -> str:
    """Hash: `turns` (how many were submitted), `last` (the newest job's id)."""
    return f"{PREFIX}conversation:{conversation_id}"


def turns(conversation_id: str) -> str:
    """List: encoded Turns, those that were answered, in order: the next turn's history."""
    return f"{PREFIX}conversation:{conversation_id}:turns"


def blob(digest: str) -> str:
    """String: the frames of one clip or image, named by the sha256 of these bytes."""
    return f"{PREFIX}blob:{digest}"


def blob_name(digest: str) -> str:
    """What a blob is called where producers may list all blobs: too little to ask about somebody else's clip."""
    return digest[:16]


def worker(name: str) -> str:
    """Hash: what one worker is and does; expires when it stops beating."""
    return f"{PREFIX}worker:{name}"


def maintenance(queue_name: str) -> str:
    """String, short-lived: which worker looks after abandoned jobs just now."""
    return f"{PREFIX}maintenance:{queue_name}"


def tidied(queue_name: str) -> str:
    """String, short-lived: which worker has cleaned RQ's registry of workers."""
    return f"{PREFIX}tidied:{queue_name}"


def taken(queue_name: str) -> str:
    """Hash, short-lived: jobs that were seen taken and not begun, and since when, by the server's clock."""
    return f"{PREFIX}taken:{queue_name}"


def model(name: str) -> str:
    """String: encoded ModelCard."""
    return f"{PREFIX}model:{name}"
