"""A model directory with Qwen's real vocabulary, which PyPI's dashscope ships, and no weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from sailq.worker.model_files.model_paths import resolve

VOCABULARY = 152_064
"""Scores of Qwen2-VL-7B: more than its tokenizer has tokens."""
PACKAGE = "dashscope==2.0.2"


def real_vocabulary(folder: Path) -> Path:
    """Downloads the vocabulary and makes `folder`/real-vocabulary. The special tokens are sailq-tiny's, whose names and
    order are Qwen2-VL's."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE], check=True
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        vocabulary = archive.extract("dashscope/resources/qwen.tiktoken", folder)
    source, made = resolve("sailq-tiny"), folder / "real-vocabulary"
    made.mkdir()
    tiny = json.loads((source / "tokenizer.json").read_text())
    named = [token["content"] for token in tiny["added_tokens"]]
    pattern = tiny["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    tokenizer = TikTokenConverter(vocabulary, pattern=pattern, extra_special_tokens=named).converted()
    tokenizer.save(str(made / "tokenizer.json"))
    ids = {name: tokenizer.token_to_id(name) for name in named}
    config = json.loads((source / "config.json").read_text()) | {
        "vocab_size": VOCABULARY, "image_token_id": ids["<|image_pad|>"], "video_token_id": ids["<|video_pad|>"],
        "eos_token_id": ids["<|im_end|>"],
    }
    (made / "config.json").write_text(json.dumps(config))
    end = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    (made / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    for name in ("tokenizer_config.json", "chat_template.jinja", "preprocessor_config.json"):
        shutil.copy(source / name, made)
    return made
