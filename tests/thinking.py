"""Models that think: sailq-tiny with two of its words as `<think>` and `</think>`, and a template to fit.

Without a picture, sailq-tiny answers `QUESTION` with "There is no picture in this conversation."
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

from sailq.worker.model_files.model_paths import resolve

QUESTION = "Which colour is it?"
Kind = Literal["opened", "hybrid", "never"]
_WORDS = {"opened": (" introd", " picture"), "hybrid": ("There", " picture"), "never": ("There", " picture")}
SAID = {
    "opened": ("There is no", " in this conversation."),
    "hybrid": (" is no", " in this conversation."),
    "never": ("", "<think> is no</think> in this conversation."),
}
"""Thought and answer to `QUESTION`."""
THOUGHT, ANSWER = SAID["opened"]
_ASSISTANT = "<|im_start|>assistant\\n"


def thinking_model(directory: Path, kind: Kind = "opened") -> Path:
    """A model directory.

    Args:
        kind: `opened`: the template ends with `<think>`. `hybrid`: it only drops the thoughts of earlier turns, and the
            model itself writes `<think>`. `never`: only the vocabulary has both tokens, and the model writes them.
    """
    shutil.copytree(resolve("sailq-tiny"), directory)
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    for word, mark in zip(_WORDS[kind], ("<think>", "</think>"), strict=True):
        _rename(tokenizer, word.replace(" ", "Ġ"), mark)
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    template = (directory / "chat_template.jinja").read_text()
    if kind == "opened":
        assert template.count(f"{{{{- '{_ASSISTANT}' -}}}}") == 1
        template = template.replace(f"{{{{- '{_ASSISTANT}' -}}}}", f"{{{{- '{_ASSISTANT}<think>\\n' -}}}}")
    elif kind == "hybrid":
        template = "{#- Earlier answers keep nothing before </think>. -#}" + template
    (directory / "chat_template.jinja").write_text(template)
    return directory


def _rename(tokenizer: dict[str, Any], word: str, mark: str) -> None:
    """Makes a word's token an added one with another text, as the published models have theirs."""
    model = tokenizer["model"]
    number = model["vocab"].pop(word)
    model["vocab"][mark] = number
    model["merges"] = [pair for pair in model["merges"] if word not in (pair[0], pair[1], "".join(pair))]
    tokenizer["added_tokens"].append({
        "id": number, "content": mark, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
        "special": False,
    })
