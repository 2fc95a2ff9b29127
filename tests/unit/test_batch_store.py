"""The folder of a gateway's batches."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from sailq.producer.gateway import batches
from sailq.producer.gateway.batches import BatchStore
from sailq.producer.openai_api.errors import ApiError


@pytest.fixture
def store(tmp_path: Path) -> BatchStore:
    return BatchStore(tmp_path)


def refusal(error: pytest.ExceptionInfo[ApiError]) -> tuple[int, str]:
    return error.value.status, error.value.body["error"]["code"]


def test_a_batch_from_its_beginning_to_its_end_in_both_of_two_gateways(store: BatchStore, tmp_path: Path) -> None:
    other = BatchStore(tmp_path)
    batch = store.create("o", "file-1", "/v1/chat/completions", {"a": "b"})
    assert other.get("o", batch.id) == batch and other.unfinished() == [batch] == other.all("o")
    assert batch.as_json()["status"] == "validating" and batch.as_json()["metadata"] == {"a": "b"}
    with store.lease(batch.id) as mine, other.lease(batch.id) as theirs:
        assert mine and not theirs
        store.write(batch.become("in_progress", 5.5))
        assert other.get("o", batch.id).as_json()["in_progress_at"] == 5
        store.rows(batch.id).touch()
        done = batch.become("completed", output_file_id="file-2")
        store.end(done)
    assert other.get("o", batch.id) == done == store.get("o", batch.id) and other.unfinished() == []
    assert os.listdir(tmp_path / "batches") == [f"{batch.id}.json"]


def test_a_cancellation_by_another_gateway(store: BatchStore, tmp_path: Path) -> None:
    other = BatchStore(tmp_path)
    batch = store.create("o", "file-1", "/v1/chat/completions")
    assert other.cancel("o", batch.id).status == "cancelling" == store.get("o", batch.id).status
    assert store.cancelled_at(batch.id) is not None
    store.write(batch.become("in_progress"))  # who runs it has not looked yet
    assert store.get("o", batch.id).status == "cancelling" and other.cancel("o", batch.id).status == "cancelling"
    store.end(batch.become("cancelled"))
    with pytest.raises(ApiError) as error:
        other.cancel("o", batch.id)
    assert refusal(error) == (409, "batch_ended")


def test_another_owners_batch_does_not_exist(store: BatchStore, tmp_path: Path) -> None:
    batch = store.create("a", "file-1", "/v1/chat/completions")
    assert store.all("b") == []
    for owner, id in (("b", batch.id), ("a", f"../batches/{batch.id}"), ("a", ""), ("a", batch.id + "\n")):
        for use in (store.get, store.cancel):
            with pytest.raises(ApiError) as error:
                use(owner, id)
            assert refusal(error) == (404, "batch_not_found")
    assert store.get("a", batch.id) == batch


def test_too_many_batches(store: BatchStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MOST_UNFINISHED", 2)
    first, _ = (store.create("", "file-1", "/v1/chat/completions") for _ in range(2))
    with pytest.raises(ApiError) as error:
        store.create("", "file-1", "/v1/chat/completions")
    assert refusal(error) == (429, "too_many_batches")
    store.end(first.become("failed"))
    store.create("", "file-1", "/v1/chat/completions")


def test_old_batches_are_removed(store: BatchStore, monkeypatch: pytest.MonkeyPatch) -> None:
    old, running = (store.create("", "file-1", "/v1/chat/completions") for _ in range(2))
    store.end(old.become("completed"))
    for days, left in ((20, [running.id, old.id]), (40, [running.id])):
        monkeypatch.setattr(time, "time", lambda days=days: old.created + days * 86_400)
        store.sweep()
        assert [batch.id for batch in store.all("")] == left


@pytest.mark.parametrize("record", [b"", b"[]", b'{"id": "x", "colour": "red"}'])
def test_a_record_that_cannot_be_read_hides_no_other_batch(store: BatchStore, tmp_path: Path, record: bytes) -> None:
    batch = store.create("", "file-1", "/v1/chat/completions")
    (tmp_path / "batches" / f"batch_{'0' * 32}.json").write_bytes(record)
    assert store.all("") == store.unfinished() == [batch]
