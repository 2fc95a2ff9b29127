"""The folder of a gateway's files."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from restricted import largest_file

from sailq.producer.gateway import files
from sailq.producer.gateway.files import LIFETIME, FileStore, StoredFile
from sailq.producer.openai_api.errors import ApiError

MB = 2**20


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store", quota=4 * MB, max_bytes=MB)


def save(store: FileStore, data: bytes = b"data", owner: str = "", seconds: int = LIFETIME) -> StoredFile:
    with store.upload() as upload:
        upload.write(data)
        return upload.finish(owner, "in.jsonl", "batch", seconds)


def refusal(error: pytest.ExceptionInfo[ApiError]) -> tuple[int, str]:
    return error.value.status, error.value.body["error"]["code"]


def test_a_file_in_both_of_two_gateways(store: FileStore, tmp_path: Path) -> None:
    other = FileStore(tmp_path / "store", quota=4 * MB)
    first, second = save(store, b"one"), save(other, b"two")
    for each in (store, other):
        assert each.all("") == [second, first] and each.get("", first.id) == first
        assert each.path(first).read_bytes() == b"one"
    assert first.as_json() == {
        "id": first.id, "object": "file", "bytes": 3, "created_at": int(first.created),
        "expires_at": int(first.created) + LIFETIME, "filename": "in.jsonl", "purpose": "batch",
        "status": "processed", "status_details": None,
    }
    other.delete("", first.id)
    assert store.all("") == [second]
    with pytest.raises(ApiError) as error:
        store.get("", first.id)
    assert refusal(error) == (404, "file_not_found")
    assert len(os.listdir(tmp_path / "store" / "files")) == 2


def test_files_are_private(store: FileStore, tmp_path: Path) -> None:
    file = save(store)
    assert (tmp_path / "store" / "files").stat().st_mode & 0o777 == 0o700
    assert store.path(file).stat().st_mode & 0o777 == 0o600


def test_another_owners_file_does_not_exist(store: FileStore) -> None:
    file = save(store, owner="a")
    assert store.all("b") == [] == store.all("")
    for use in (store.get, store.delete):
        with pytest.raises(ApiError) as error:
            use("b", file.id)
        assert refusal(error) == (404, "file_not_found")
    assert store.all("a") == [file]


@pytest.mark.parametrize("id", [
    "", ".", "..", "../x", "file-", "/etc/passwd", "file-" + "0" * 31, "file-" + "0" * 33, "file-" + "G" * 32,
    "file-" + "0" * 32 + "\n", "file-" + "0" * 32 + ".json", "file-../" + "0" * 29, "file-" + "٠" * 32, "x\0",
])
def test_an_id_that_is_none(store: FileStore, tmp_path: Path, id: str) -> None:
    (tmp_path / "x").touch()
    for use in (store.get, store.delete):
        with pytest.raises(ApiError) as error:
            use("", id)
        assert refusal(error) == (404, "file_not_found")
    assert (tmp_path / "x").exists()


def test_a_file_that_is_too_large(store: FileStore, tmp_path: Path) -> None:
    with store.upload() as upload:
        upload.write(b"x" * MB)
        with pytest.raises(ApiError) as error:
            upload.write(b"x")
    assert refusal(error) == (413, "file_too_large")
    assert os.listdir(tmp_path / "store" / "files") == []


def test_the_quota_counts_all_files_and_files_under_way(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_CHECK_BYTES", MB // 4)
    with store.upload() as under_way:
        under_way.write(b"x" * MB)
        kept = [save(store, b"x" * MB) for _ in range(2)]
        for size in (MB, 1):
            with pytest.raises(ApiError) as error:
                [save(store, b"x" * size) for _ in range(300)]
            assert refusal(error) == (507, "insufficient_storage")
    store.delete("", kept[0].id)
    store.sweep()
    save(store, b"x" * MB)
    used = sum(path.stat().st_size for path in (tmp_path / "store" / "files").iterdir())
    assert used <= 4 * MB


def test_a_full_disk(store: FileStore, tmp_path: Path) -> None:
    with largest_file(1000), pytest.raises(ApiError) as error:
        save(store, b"x" * 100_000)
    assert refusal(error) == (507, "insufficient_storage")
    assert os.listdir(tmp_path / "store" / "files") == []


def test_expired_files_and_what_dead_gateways_left_are_removed(store: FileStore, tmp_path: Path) -> None:
    folder = tmp_path / "store" / "files"
    kept, expired = save(store), save(store, seconds=0)
    assert store.all("") == [kept]
    with pytest.raises(ApiError):
        store.get("", expired.id)
    left = [folder / ".draft-abc", folder / f"file-{'0' * 32}"]
    for path in left:
        path.touch()
    store.sweep()
    assert not store.path(expired).exists() and all(path.exists() for path in left)  # they may be under way
    for path in left:
        os.utime(path, (time.time() - 7200,) * 2)
    store.sweep()
    assert sorted(os.listdir(folder)) == sorted([kept.id, f"{kept.id}.json"])


def test_an_output_that_is_written_again_after_a_crash(store: FileStore) -> None:
    name = "file-" + "a" * 32
    for text in (b"old", b"new"):
        file = store.put(name, "o", "out.jsonl", "batch_output", [text, b"\n"], LIFETIME)
    assert store.all("o") == [file] and store.path(file).read_bytes() == b"new\n" and file.bytes == 4


@pytest.mark.parametrize("record", [b"", b"[]", b'{"id": "x", "colour": "red"}'])
def test_a_record_that_cannot_be_read_hides_no_other_file(store: FileStore, tmp_path: Path, record: bytes) -> None:
    file = save(store)
    name = "file-" + "0" * 32
    (tmp_path / "store" / "files" / f"{name}.json").write_bytes(record)
    assert store.all("") == [file]
    with pytest.raises(ApiError) as error:
        store.get("", name)
    assert refusal(error) == (404, "file_not_found")
