"""What guides cost the host at each step: a real worker, queue and streams, a real vocabulary, on a runner that
computes nothing, so that there is no time in which to hide the masks.

Its argmax is the next token of an answer that fits the schema, or else a word that a guide allows only inside of
strings; elsewhere the scores are read. Only steps with all slots taken count.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import Table

from sailq.producer.client import Client
from sailq.shared.jobs import GenerationOptions, Message, TextPart
from sailq.shared.media.messages import Prepared
from sailq.worker.engine.tokenizer import Tokenizer
from tests.bench.real_vocabulary import real_vocabulary
from tests.bench.test_host_time import FILLING_MS, SLOTS, _null_worker
from tests.bench.turns import RUNS, spread

MOST_MILLISECONDS = 1.5
"""The host's median time at a decode step of 8 guided slots, at temperature 0."""
TOKENS = 700
ITEM = {
    "type": "object", "additionalProperties": False, "required": ["kind", "colour", "box", "moving", "note"],
    "properties": {
        "kind": {"enum": ["person", "car", "truck", "bicycle", "animal"]},
        "colour": {"type": "string", "maxLength": 20},
        "box": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 4096}, "minItems": 4,
                "maxItems": 4},
        "moving": {"type": "boolean"},
        "note": {"anyOf": [{"type": "string", "maxLength": 80}, {"type": "null"}]},
    },
}
SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["caption", "objects", "alarm"],
    "properties": {"caption": {"type": "string", "maxLength": 200},
                   "objects": {"type": "array", "items": ITEM, "minItems": 20}, "alarm": {"type": "boolean"}},
}
"""A camera's events, with so many objects that no answer ends before its limit."""
NOTES = ("it turns left; the driver looks at the people", None, "waits there with an umbrella", "停在路边")
WHO = (("car", "dark red"), ("person", "blue"), ("bicycle", "green and white"))
ANSWER = {
    "caption": "A red car turns left at the crossing while two people wait in the rain, 一个人骑自行车经过。",
    "objects": [
        {"kind": kind, "colour": colour, "box": [n, 20 * n, 300 + n, 400], "moving": n % 3 == 0, "note": NOTES[n % 4]}
        for n, (kind, colour) in enumerate(WHO * 8)
    ],
    "alarm": False,
}
"""1,100 tokens."""


class Kind(NamedTuple):
    options: dict[str, Any]
    scripted: bool = False


GUIDE = {"structured_outputs": {"json": SCHEMA}}
KINDS = {
    "unguided": Kind({}),
    "guided": Kind(GUIDE, scripted=True),
    "guided, an argmax that does not fit": Kind(GUIDE),
    "unguided, temperature 1": Kind({"temperature": 1.0}),
    "guided, temperature 1": Kind({**GUIDE, "temperature": 1.0}),
}
TOKENS_TEXT = "152,064 tokens"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield real_vocabulary(tmp_path_factory.mktemp("vocabulary"))


@pytest.mark.bench
@pytest.mark.timeout(900)
def test_the_hosts_time_at_a_guided_step(
    redis_url: str, client: Client, tmp_path: Path, model: Path, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAILQ_MODEL", str(model))
    script = tmp_path / "script.npy"
    np.save(script, Tokenizer(model).encode(json.dumps(ANSWER, ensure_ascii=False)))
    found: dict[str, list[np.ndarray[Any, Any]]] = {kind: [] for kind in KINDS}
    for _ in range(RUNS):
        for name, kind in KINDS.items():
            found[name].append(_milliseconds(redis_url, client, model.name, kind, script))
    table(
        f"The host's time at a decode step of {SLOTS} slots, all streaming, {TOKENS_TEXT}, on a null runner, median "
        f"(min–max) of {RUNS} runs of {len(found['guided'][0])} steps",
        ("", "median, ms", "99 %, ms", "bound"),
        [(kind, spread([float(np.median(run)) for run in each], ".3f"),
          spread([float(np.percentile(run, 99)) for run in each], ".3f"),
          f"median ≤ {MOST_MILLISECONDS}" if kind == "guided" else "") for kind, each in found.items()],
    )
    medians = {kind: [float(np.median(run)) for run in each] for kind, each in found.items()}
    for kind, each in medians.items():
        print(f"figure: the host's time at a decode step of {SLOTS} slots, {TOKENS_TEXT}, {kind}: "
              f"{spread(each, '.3f')} ms")
    assert np.median(medians["guided"]) <= MOST_MILLISECONDS


def _milliseconds(
    url: str, client: Client, model: str, kind: Kind, script: Path
) -> np.ndarray[Any, Any]:
    """Of the steps with all slots taken."""
    record = script.with_name("steps.npy")
    job = Prepared((Message(role="user", content=(TextPart(text="Hi"),)),), {}, 0)
    arguments = ["--record", str(record), "--filling-ms", str(FILLING_MS)]
    with _null_worker(url, client, script.parent, *arguments, *(["--script", str(script)] if kind.scripted else [])):
        asked = GenerationOptions(max_new_tokens=TOKENS, seed=0, **kind.options)
        handles = [client.submit_prepared(job, model=model, options=asked, stream=True) for _ in range(2 * SLOTS)]
        for handle in handles:
            result = client.wait(handle.job, 600)
            assert result.finish_reason == "length" and result.usage.completion_tokens == TOKENS, result
    steps: np.ndarray[Any, Any] = np.load(record)
    _, seconds, device, running, prefills = steps.T
    full = (running == SLOTS) & (prefills == 0)
    assert full.sum() > TOKENS, f"only {full.sum()} of {len(steps)} steps had all {SLOTS} slots taken"
    milliseconds: np.ndarray[Any, Any] = 1000 * (seconds - device)[full]
    return milliseconds
