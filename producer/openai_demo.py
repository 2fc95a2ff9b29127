"""Asks about a clip as a program does that knows only OpenAI's API: the part of `sailq demo` with a gateway."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sailq.shared.errors import SailqError, Unsupported

from .managed_process import ManagedProcess, sailq_command

_GATEWAY_SECONDS = 60.0
_ANSWER_SECONDS = 120.0
_ADDRESS = re.compile(r"API is at (\S+)")
_PACKAGES = ("openai", "fastapi", "uvicorn", "uvloop", "httpx")
_OPTIONS = ("resized_height", "resized_width")


@dataclass(frozen=True)
class Answer:
    """`base_url`: of the gateway, which has ended."""

    base_url: str
    question: str
    answer: str


def ask_with_openai(redis_url: str, model: str, messages: list[dict[str, Any]], folder: Path, logs: Path) -> Answer:
    """Starts a gateway on a free port, asks one question with openai's client, and stops the gateway.

    Args:
        messages: one message with one video or image and a text.
        folder: where the medium's path starts.
        logs: folder for `gateway.log`.

    Raises Unsupported if packages are missing, and SailqError if the gateway or its answer fails.
    """
    if not all(map(find_spec, _PACKAGES)):
        raise Unsupported("It needs more packages: pip install 'sailq[demo]'.")
    import openai

    from .gateway.keys import make_key

    medium, text = messages[0]["content"]
    # A key of its own: other users of this machine can reach the port.
    key, entry = make_key("demo")
    with ExitStack() as stack:
        gateway = ManagedProcess(
            "gateway", sailq_command("gateway", "--port", "0"), logs / "gateway.log",
            {"SAILQ_REDIS_URL": redis_url, "SAILQ_GATEWAY_KEYS": json.dumps(entry)},
        )
        stack.callback(gateway.stop)
        gateway.wait_until(lambda: "startup complete" in gateway.log.read_text(), _GATEWAY_SECONDS)
        found = _ADDRESS.search(gateway.log.read_text())
        assert found is not None
        with openai.OpenAI(base_url=found[1], api_key=key, timeout=_ANSWER_SECONDS) as client:
            shown: list[Any] = [_part(medium, folder), text]
            size = {name: medium[name] for name in _OPTIONS if name in medium}
            frames = {"video": {"num_frames": medium["nframes"]}} if "nframes" in medium else {}
            try:
                response = client.chat.completions.create(
                    model=model, messages=[{"role": "user", "content": shown}],
                    extra_body={"mm_processor_kwargs": size, "media_io_kwargs": frames},
                )
            except openai.OpenAIError as error:
                raise SailqError(f"The gateway did not answer: {error}{gateway.tail()}") from None
        return Answer(found[1], text["text"], response.choices[0].message.content or "")


def _part(medium: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A video or an image as OpenAI's clients send it."""
    kind = medium["type"]
    path = folder / medium[kind]
    data = base64.b64encode(path.read_bytes()).decode()
    suffix = path.suffix.removeprefix(".")
    return {"type": f"{kind}_url", f"{kind}_url": {"url": f"data:{kind}/{suffix};base64,{data}"}}
