"""A second run on the same `--out` keeps the rows of unchanged clips, by path, size and modification time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import redis
from answering import Answerer
from restricted import largest_file

from sailq.producer import waiting
from sailq.producer.captioning import inputs, window
from sailq.producer.captioning.batch import Captioning
from sailq.producer.captioning.inputs import Clip
from sailq.producer.captioning.sidecars import Sidecars
from sailq.producer.client import Client
from sailq.shared.errors import BadRequest, SailqError
from sailq.shared.jobs import GenerationOptions

PROMPTS = {"video": "V", "image": "I"}
Run = Callable[..., Captioning]


@pytest.fixture(autouse=True)
def quickly_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "_IDLE_SECONDS", 0.05)
    monkeypatch.setattr(waiting, "LOOK_SECONDS", 0.05)


@pytest.fixture
def cam(tmp_path: Path) -> Path:
    """A folder of three pictures."""
    for name in "abc":
        paint(tmp_path / "cam" / f"{name}.png", 100)
    return tmp_path / "cam"


def paint(path: Path, level: int) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(cv2.imencode(".png", np.full((56, 56, 3), level, np.uint8))[1].tobytes())


@pytest.fixture
def run(client: Client, connection: redis.Redis, answerer: Answerer, tmp_path: Path) -> Run:
    """Captions `paths` to out.jsonl as far as `most` rows; each answer is its job's id."""

    def start(*paths: Path, clips: list[Clip] | None = None, most: int | None = None, **options: Any) -> Captioning:
        def answer() -> None:
            for key in connection.scan_iter("rq:job:*"):
                job = key.decode().removeprefix("rq:job:")
                answerer.answer(job, job)

        temperature = options.pop("temperature", 0.0)
        run = Captioning(
            clips=clips or inputs.from_paths([*map(str, paths)], PROMPTS), model="m", window=1,
            options=GenerationOptions(temperature=temperature), out=tmp_path / "out.jsonl", **options,
        )
        try:
            run.start()
            rows = run.run(client, idle=answer)
            for count, _ in enumerate(rows, 1):
                if count == most:
                    break
            rows.close()
        finally:
            run.close()
        return run

    return start


def told(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]


def texts(tmp_path: Path) -> dict[str, str]:
    rows = told(tmp_path)
    assert [row["index"] for row in rows] == list(range(len(rows)))
    found = {Path(row["source"]).name: row["text"] for row in rows}
    assert len(found) == len(rows)
    return found


def test_a_changed_clip_is_captioned_again(run: Run, cam: Path, tmp_path: Path) -> None:
    run(cam)
    before = texts(tmp_path)
    (file,) = told(tmp_path)[1]["files"]
    status = (cam / "b.png").stat()
    assert file == {"path": str(cam / "b.png"), "size": status.st_size, "mtime": status.st_mtime}

    assert not run(cam).todo and texts(tmp_path) == before
    paint(cam / "b.png", 200)
    os.utime(cam / "b.png", ns=(0, status.st_mtime_ns + 1_000_000))
    assert [Path(clip.source).name for clip in run(cam).todo] == ["b.png"]
    after = texts(tmp_path)
    assert [name for name in after if after[name] != before[name]] == ["b.png"]


def test_a_deleted_clip_keeps_its_row_and_a_new_one_gets_one(run: Run, cam: Path, tmp_path: Path) -> None:
    run(cam)
    before = texts(tmp_path)
    (cam / "a.png").unlink()
    paint(cam / "d.png", 1)
    second = run(cam)
    assert [Path(row["source"]).name for row in second.kept] == ["a.png"]
    after = texts(tmp_path)
    assert list(after) == ["b.png", "c.png", "d.png", "a.png"]
    assert {name: after[name] for name in before} == before
    assert not run(cam).todo and texts(tmp_path) == after
    paint(cam / "a.png", 100)
    assert [Path(clip.source).name for clip in run(cam).todo] == ["a.png"]  # another file of that name
    assert list(texts(tmp_path)) == ["a.png", "b.png", "c.png", "d.png"]


def test_a_deleted_clip_that_is_named_again_keeps_its_answer(run: Run, cam: Path, tmp_path: Path) -> None:
    names = [cam / "a.png", cam / "b.png"]
    run(*names)
    before = told(tmp_path)
    names[0].unlink()
    assert not run(*names).todo and told(tmp_path) == before


def test_clips_named_from_another_folder_do_not_count_as_deleted(
    run: Run, cam: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(Path("cam"))
    monkeypatch.chdir("/")
    with pytest.raises(BadRequest, match="Choose another --out"):
        run(cam)
    monkeypatch.chdir(tmp_path)
    moved = cam.rename(tmp_path / "moved")
    cam.symlink_to(moved)
    assert not run(Path("cam")).todo


def test_rows_of_earlier_versions_count_as_done(run: Run, cam: Path, tmp_path: Path) -> None:
    run(cam)
    before = texts(tmp_path)
    rows = [{key: value for key, value in row.items() if key != "files"} for row in told(tmp_path)]
    (tmp_path / "out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (cam / "c.png").unlink()
    assert not run(cam).todo and texts(tmp_path) == before
    paint(cam / "a.png", 7)
    os.utime(cam / "a.png", (1, 1))
    assert [Path(clip.source).name for clip in run(cam).todo] == ["a.png"]  # from now on, changes are detected


def test_a_run_that_stops_early_drops_no_row(run: Run, cam: Path, tmp_path: Path) -> None:
    (cam / "c.png").write_text("no picture")
    run(cam)
    before = told(tmp_path)
    assert [row["error"] is None for row in before] == [True, True, False]
    os.utime(cam / "b.png", (1, 1))
    paint(cam / "c.png", 3)
    run(cam, most=1)  # only b
    after = told(tmp_path)
    assert [after[0], after[2]] == [before[0], before[2]] and after[1]["text"] != before[1]["text"]


def test_a_replaced_row_that_a_dead_run_left_is_removed(run: Run, cam: Path, tmp_path: Path) -> None:
    (cam / "c.png").write_text("no picture")
    run(cam)
    failure = (tmp_path / "out.jsonl").read_text().splitlines()[2]
    paint(cam / "c.png", 3)
    run(cam)
    after = texts(tmp_path)
    with (tmp_path / "out.jsonl").open("a") as file:
        file.write(failure + "\n")
    assert not run(cam).todo and texts(tmp_path) == after


def test_answers_to_other_options_are_refused_and_stay(run: Run, cam: Path, tmp_path: Path) -> None:
    run(cam)
    before = (tmp_path / "out.jsonl").read_bytes()
    for again in (lambda: run(cam, temperature=0.5), lambda: run(cam / "a.png")):
        with pytest.raises(BadRequest, match="Choose another --out"):
            again()
        assert (tmp_path / "out.jsonl").read_bytes() == before


def test_a_name_that_is_not_utf_8(run: Run, cam: Path, tmp_path: Path) -> None:
    paint(Path(os.fsdecode(os.fsencode(cam) + b"/\xc7\xb0\xc3\xc5.png")), 9)
    first = run(cam)
    rows = told(tmp_path)
    (row,) = [row for row in rows if row["source"] not in {str(cam / f"{name}.png") for name in "abc"}]
    assert row["error"] is None and Path(row["source"]).name == r"ǰ\xc3\xc5.png"
    assert json.dumps(rows, ensure_ascii=False).encode()
    assert not run(cam).todo and told(tmp_path) == rows
    first.clips[3].places[0].unlink()
    assert [one["source"] for one in run(cam).kept] == [row["source"]]


def test_a_full_disk_is_reported(run: Run, cam: Path, tmp_path: Path) -> None:
    run(cam, most=1)
    before = told(tmp_path)
    full = largest_file((tmp_path / "out.jsonl").stat().st_size - 1)
    with full, pytest.raises(SailqError, match=r"out\.jsonl cannot be written: File too large"):
        run(cam)
    assert told(tmp_path) == before


def test_sidecars(run: Run, cam: Path, tmp_path: Path) -> None:
    def again() -> Captioning:
        clips = inputs.from_paths([str(cam)], PROMPTS)
        return run(clips=clips, sidecars=Sidecars(clips, [tmp_path / "out.jsonl"]))

    again()
    before = texts(tmp_path)
    assert {path.stem + ".png": path.read_text() for path in cam.glob("*.txt")} == {
        name: f"{text}\n" for name, text in before.items()
    }
    (cam / "a.txt").unlink()
    os.utime(cam / "b.png", (1, 1))
    again()
    assert {path.name: path.read_text() for path in cam.iterdir() if path.suffix == ".txt"} == {
        f"{Path(name).stem}.txt": f"{text}\n" for name, text in texts(tmp_path).items()
    }
    assert texts(tmp_path)["b.png"] != before["b.png"] and len(list(cam.iterdir())) == 6


def test_sidecars_that_would_overwrite_a_file_are_refused(cam: Path, tmp_path: Path) -> None:
    clips = inputs.from_paths([str(cam)], PROMPTS)
    text = Clip(3, "rows.jsonl:4", [{"role": "user", "content": "x"}])
    itself = Clip(3, "d.txt", [{"role": "user", "content": [{"type": "image", "image": str(cam / "d.txt")}]}])
    for taken, others in (([cam / "a.txt"], []), ([], [text]), ([], [clips[0]]), ([], [itself])):
        with pytest.raises(BadRequest, match="--sidecar cannot write the text of|is not a file"):
            Sidecars([*clips, *others], taken)


@pytest.mark.parametrize("name", [".", "/", "", "a\0b.png", "\ud800.png", "file:///" + "x" * 5000, "x" * 5000])
def test_a_name_that_no_file_can_have_costs_its_own_row(run: Run, cam: Path, tmp_path: Path, name: str) -> None:
    messages = [{"role": "user", "content": [{"type": "image", "image": name}]}]
    clips = [Clip(0, "0", messages), *(Clip(at, str(at), clip.messages) for at, clip in
                                       enumerate(inputs.from_paths([str(cam)], PROMPTS), 1))]
    run(clips=clips)
    assert [row["error"] and row["error"]["code"] for row in told(tmp_path)] == ["bad_media", None, None, None]
    assert [clip.index for clip in run(clips=clips).todo] == [0]
    if len(name) < 100:
        with pytest.raises(BadRequest, match="is not a file"):
            Sidecars(clips)


def test_a_sidecar_that_cannot_be_written(run: Run, cam: Path, tmp_path: Path) -> None:
    (cam / "a.txt").mkdir()
    clips = inputs.from_paths([str(cam)], PROMPTS)
    with pytest.raises(SailqError, match=r"a\.txt cannot be written"):
        run(clips=clips, sidecars=Sidecars(clips))
    assert list(texts(tmp_path)) == ["a.png"] and not list(cam.glob(".*"))
