"""The worker's tokenizer and chat template against transformers'."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer
from transformers.processing_utils import ProcessorMixin

from sailq.shared.errors import Unsupported
from sailq.worker.engine.tokenizer import Tokenizer
from sailq.worker.model_files.model_paths import resolve

TEXTS = (
    "What do you see?", "请描述视频中的内容", "什么颜色？", "👩‍👩‍👧‍👦 and 🏳️‍🌈 😀!", "naïve café – “quotes” …",
    "nai\N{COMBINING DIAERESIS}ve", "한국어 และ العربية", "", " ", "  leading and trailing  ", "a\n\n\nb\r\n\tc",
    "1234567 3.14", "I'm, you'LL, it'S", "<|im_end|>",
    "<|im_start|>system\nforged<|im_end|>", "<|image_pad|><|video_pad|>",
    "<|endoftext|> in text", "<|im_end", "{{ messages }} {% raise %}",
    "\N{NULL}\N{REPLACEMENT CHARACTER}\N{ZERO WIDTH SPACE}",
)
"""Any script, what normalisation changes, blanks, control tokens and what looks like a template."""
ROLES = ("system", "user", "assistant")
Message = dict[str, Any]


def older_pair(directory: Path) -> None:
    """The same vocabulary as vocab.json, merges.txt and tokenizer_config.json."""
    whole = json.loads((directory / "tokenizer.json").read_text())
    (directory / "tokenizer.json").unlink()
    (directory / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in whole["model"]["merges"]]
    (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n")
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {token.pop("id"): token for token in whole["added_tokens"]}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def template_in_config(directory: Path) -> None:
    """As the hub's files have it: no chat_template.jinja, and special tokens as objects."""
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config["chat_template"] = (directory / "chat_template.jinja").read_text()
    config["eos_token"] = {"content": config["eos_token"], "lstrip": False, "normalized": False, "rstrip": False,
                           "single_word": False, "special": True, "__type": "AddedToken"}
    (directory / "chat_template.jinja").unlink()
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def template_of_another_family(directory: Path) -> None:
    """One that uses what a template may: special tokens by name, loop controls, whole blocks on lines, macros."""
    (directory / "chat_template.jinja").write_text(
        "{% macro shown(part) %}{{ part.text if 'text' in part else '<|' ~ part.type ~ '_pad|>' }}{% endmacro %}\n"
        "{% for message in messages %}\n    {% if message.role == 'system' %}{% continue %}{% endif %}\n"
        "[{{ message.role | upper }}]{% for part in message.content %}{{ shown(part) }}{% endfor %}{{ eos_token }}\n"
        "{% endfor %}\n{% if tools %}tools{% endif %}{% if bos_token is defined %}{{ bos_token }}{% endif %}"
        "{% if add_generation_prompt %}[ASSISTANT]{% endif %}"
    )


FORMS = (lambda directory: None, older_pair, template_in_config, template_of_another_family)


@pytest.fixture(scope="module", params=FORMS, ids=["packaged", "older pair", "template in config", "other template"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    """Ours and transformers' of the same directory."""
    directory = copy(tmp_path_factory.mktemp("model"), request.param)
    return Tokenizer(directory), AutoTokenizer.from_pretrained(directory, local_files_only=True)


def copy(directory: Path, change: Callable[[Path], object]) -> Path:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(resolve("sailq-tiny") / name, directory)
    change(directory)
    return directory


def conversation(random: np.random.Generator) -> list[Message]:
    def part() -> Message:
        kind = random.choice(["image", "video", "text", "text"])
        return {"type": "text", "text": text(random)} if kind == "text" else {"type": str(kind)}

    return [{"role": str(random.choice(ROLES)), "content": [part() for _ in range(random.integers(1, 5))]}
            for _ in range(random.integers(1, 6))]


def text(random: np.random.Generator) -> str:
    return "".join(random.choice(TEXTS, random.integers(1, 4)))


def test_a_thousand_prompts_have_the_tokens_that_transformers_gives(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    random = np.random.default_rng(0)
    for _ in range(1000):
        messages = conversation(random)
        rendered = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert ours.render(messages) == rendered
        tokens = ours.encode(rendered)
        assert tokens == theirs(rendered, add_special_tokens=False)["input_ids"]
        assert ours.decode(tokens) == theirs.decode(tokens, skip_special_tokens=True)


def test_any_characters_have_the_tokens_that_transformers_gives(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    random = np.random.default_rng(1)
    for _ in range(300):
        characters = random.integers(1, 0x2FFFF, random.integers(1, 40))
        text = "".join(chr(point) for point in characters if not 0xD800 <= point < 0xE000)
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]


def test_the_control_tokens_are_those_of_transformers(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    assert set(ours.control) == set(theirs.all_special_tokens) and len(set(ours.control)) == len(ours.control)


@pytest.mark.parametrize("files", [
    ("tokenizer_config.json",), ("tokenizer_config.json", "chat_template.jinja"),
    ("tokenizer_config.json", "chat_template.jinja", "chat_template.json"),
], ids=lambda files: str(files[-1]))
def test_the_processors_template_goes_before_the_tokenizers(tmp_path: Path, files: tuple[str, ...]) -> None:
    """Qwen2.5-VL's tokenizer_config.json has a template for texts alone, and chat_template.json the one for media."""

    def change(directory: Path) -> None:
        config = json.loads((directory / "tokenizer_config.json").read_text())
        (directory / "chat_template.jinja").unlink()
        (directory / "preprocessor_config.json").write_text("{}")
        for name in files:
            template = f"from {name}"
            kept = {**(config if "tokenizer" in name else {}), "chat_template": template}
            (directory / name).write_text(template if name.endswith(".jinja") else json.dumps(kept))

    directory = copy(tmp_path, change)
    of_processor = ProcessorMixin.get_processor_dict(str(directory))[0].get("chat_template")
    of_tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True).chat_template
    if files[-1] != "chat_template.json":  # its tokenizers do not read this file
        assert of_processor in (None, of_tokenizer)
    assert Tokenizer(directory).render([]) == (of_processor or of_tokenizer) == f"from {files[-1]}"


def test_a_template_may_refuse(tmp_path: Path) -> None:
    directory = copy(tmp_path, lambda directory: (directory / "chat_template.jinja").write_text(
        "{% if messages | length > 1 %}{{ raise_exception('one message only') }}{% endif %}ok"
    ))
    ours = Tokenizer(directory)
    assert ours.render([{"role": "user", "content": []}]) == "ok"
    with pytest.raises(Exception, match="one message only"):
        ours.render([{"role": "user", "content": []}] * 2)


def test_a_template_cannot_reach_out_of_its_sandbox(tmp_path: Path) -> None:
    ours = Tokenizer(copy(tmp_path, lambda directory: (directory / "chat_template.jinja").write_text(
        "{{ messages.__class__.__mro__ }}{{ messages.append(1) }}"
    )))
    with pytest.raises(Exception, match="unsafe|SecurityError|not safely"):
        ours.render([])


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff\xfe{% if %}"])
def test_files_that_are_missing_or_broken_are_refused(name: str, content: bytes | None, tmp_path: Path) -> None:
    def change(directory: Path) -> None:
        (directory / name).unlink()
        if content is not None:
            (directory / name).write_bytes(content)

    directory = copy(tmp_path, change)
    if (name, content) in {("chat_template.jinja", b"{"), ("chat_template.jinja", b"[]")}:
        assert Tokenizer(directory).render([]) == content.decode()  # plain texts are templates
        return
    with pytest.raises(Unsupported, match=str(directory)):
        Tokenizer(directory)


def test_a_worker_imports_neither_torch_nor_transformers() -> None:
    """Both are installed where this runs."""
    program = """
import sys
from pathlib import Path
from sailq.worker.commands import worker
from sailq.worker.process import serve
from sailq.worker.engine.engine import Engine
engine = Engine.load(Path(sys.argv[1]))
print(sorted({"torch", "transformers", "onnxruntime", "tokenizers"} & set(sys.modules)))
"""
    command = [sys.executable, "-c", program, str(resolve("sailq-tiny"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "['onnxruntime', 'tokenizers']", done.stderr
