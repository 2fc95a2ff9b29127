"""Reads a model directory's tokenizer and chat template with `tokenizers` and Jinja.

transformers uses the same two libraries, but takes seconds to import and, if PyTorch is installed, 240 MB.
tests/unit/test_tokenizer.py checks that both give the same tokens.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sailq.shared.errors import Unsupported

if TYPE_CHECKING:
    from jinja2 import Template
    from tokenizers import Tokenizer as Backend

# The pattern of transformers' `Qwen2Tokenizer`, for directories with vocab.json and merges.txt, which lack it.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Tokenizer:
    """A model's tokenizer and chat template. May be used from any thread.

    Attributes:
        control: the text of each special token, by its id.
        control_tokens: their ids.
        template: the source of the chat template.
    """

    def __init__(self, directory: Path) -> None:
        """Raises Unsupported: no tokenizer, no chat template, or files that cannot be read."""
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # no warning after a fork
        config = _config(directory)
        try:
            self._backend = _backend(directory, config)
            self._backend.no_truncation()
            self._backend.no_padding()
        except Exception as error:  # `tokenizers` raises bare Exception
            raise Unsupported(f"The tokenizer in {directory} cannot be loaded: {error}.") from None
        added = sorted(self._backend.get_added_tokens_decoder().items())
        self.control = tuple(token.content for _, token in added if token.special)
        self.control_tokens = tuple(number for number, token in added if token.special)
        self.template = _template(directory, config)
        self._template = _compiled(directory, self.template)
        named = {name: _text(config.get(name)) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
        self._named = {name: text for name, text in named.items() if text is not None}

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt that the chat template makes of these messages. Errors of the template pass through."""
        return self._template.render(
            messages=messages, tools=None, documents=None, add_generation_prompt=True, **self._named
        )

    def encode(self, text: str) -> list[int]:
        """Tokens of a text. A control token in it becomes that token."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def token(self, text: str) -> int | None:
        """The id of the token with exactly this text, or None if no token has it."""
        return self._backend.token_to_id(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of these tokens, without special tokens."""
        return self._backend.decode(tokens, skip_special_tokens=True)

    def token_bytes(self, vocabulary: int) -> list[bytes]:
        """The bytes of each token, for byte-level tokenizers (Qwen2's). `vocabulary`: number of tokens to list; those
        that do not exist have none.

        Raises:
            Unsupported: the tokenizer is not byte-level.
        """
        added = self._backend.get_added_tokens_decoder()
        found, byte_of = [b""] * vocabulary, _byte_of()
        for text, token in self._backend.get_vocab(with_added_tokens=True).items():
            if token < vocabulary:
                try:
                    found[token] = text.encode() if token in added else bytes(map(byte_of.__getitem__, text))
                except KeyError:
                    raise Unsupported("The model's tokenizer is not a byte-level one.") from None
        if len({word for word in found if len(word) == 1}) < 256:
            raise Unsupported("The model's tokenizer has no token for some bytes.")
        return found


def _byte_of() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for: GPT-2's `bytes_to_unicode`, inverted."""
    shown = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


def _backend(directory: Path, config: Mapping[str, Any]) -> Backend:
    from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    whole = directory / "tokenizer.json"
    if whole.is_file():
        return Backend.from_file(str(whole))
    backend = Backend(models.BPE.from_file(str(directory / "vocab.json"), str(directory / "merges.txt")))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_WORDS), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    if "added_tokens_decoder" not in config:
        raise ValueError("tokenizer_config.json has no added_tokens_decoder, nor is there a tokenizer.json")
    added = {int(number): token for number, token in config["added_tokens_decoder"].items()}
    for number in sorted(added):
        backend.add_tokens([AddedToken(**added[number])])
        if backend.token_to_id(added[number]["content"]) != number:
            raise ValueError(f"tokenizer_config.json says that {added[number]['content']} is token {number}")
    return backend


def _template(directory: Path, config: Mapping[str, Any]) -> str:
    """The source of the chat template."""
    source: Any
    try:  # in the order of transformers' processors
        if (older := directory / "chat_template.json").is_file():
            source = json.loads(older.read_text("utf-8"))["chat_template"]
        elif (newer := directory / "chat_template.jinja").is_file():
            source = newer.read_text("utf-8")
        else:
            source = config.get("chat_template")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Unsupported(f"The chat template in {directory} cannot be read: {error}.") from None
    if isinstance(source, list):  # a list of templates, each with a name
        source = next((one.get("template") for one in source if one.get("name") == "default"), None)
    if not source:
        raise Unsupported(f"The tokenizer in {directory} has no chat template.")
    return str(source)


def _compiled(directory: Path, source: str) -> Template:
    """The template, in the sandbox and with the options that transformers uses."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = raise_exception
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise Unsupported(f"The chat template in {directory} cannot be read: {error}.") from None


def _config(directory: Path) -> Mapping[str, Any]:
    path = directory / "tokenizer_config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise Unsupported(f"The tokenizer in {directory} cannot be loaded: {path.name}: {error}.") from None
    if not isinstance(config, dict):
        raise Unsupported(f"The tokenizer in {directory} cannot be loaded: {path.name} does not hold a JSON object.")
    return config


def _text(token: Any) -> str | None:
    """A special token as tokenizer_config.json has it: a text, an object, or null."""
    return token.get("content") if isinstance(token, dict) else token
