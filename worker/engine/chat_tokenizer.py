"""Encodes messages as tokens with the model directory's tokenizer and chat template, as transformers does."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from sailq.shared.errors import BadRequest
from sailq.shared.jobs import FramesPart, Message, media_parts

from .model import ModelSpec
from .text import ThoughtMarks
from .tokenizer import Tokenizer

_QUESTION = {"role": "user", "content": [{"type": "text", "text": "?"}]}


class ChatTokenizer:
    """Encodes conversations for one model. `encode` may be called from any thread.

    Attributes:
        end_tokens: the tokens that end an answer: those that the model's files name, and its family's own.
        thought: the tokens around the model's thought; None if it does not think. Its chat template tells.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.tokenizer = Tokenizer(spec.directory)
        self._family = spec.family
        own = (self.tokenizer.token(text) for text in spec.family.end_tokens)
        self.end_tokens: frozenset[int] = spec.eos_token_ids.union(token for token in own if token is not None)
        self.thought = _thought(self.tokenizer)

    def encode(self, messages: Sequence[Message]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Tokens of a conversation, ready for the answer.

        Args:
            messages: in order, the finished turns included.

        Returns:
            int32 [L] tokens, and bool [L]: where a token stands for a piece of a medium.

        Raises:
            BadRequest: a text holds one of the model's control tokens, or the chat template refuses.
        """
        self._refuse_control(messages)
        try:
            text = self.tokenizer.render([_plain(message) for message in messages])
        except Exception as error:  # whatever the template raises: jinja2's own types and raise_exception
            raise BadRequest(f"The model's chat template refuses these messages: {error}.") from None
        return self._family.prompt_tokens(text, media_parts(messages), self.tokenizer.encode)

    def _refuse_control(self, messages: Sequence[Message]) -> None:
        """Raises BadRequest for a control token in a text: it would forge a turn or a medium. Answers of the model may
        quote one."""
        for message in messages:
            for part in message.content if message.role != "assistant" else ():
                found = [t for t in self.tokenizer.control if part.type == "text" and t in part.text]
                if found:
                    raise BadRequest(f"A text contains the model's control token {found[0]}.")


def _thought(tokenizer: Tokenizer) -> ThoughtMarks | None:
    """The tokens around a model's thought; None if it does not think.

    A template that begins the answer with `<think>` is a thinking model's. One that names `</think>`, to drop the
    thoughts of earlier turns, is of a model that may think.
    """
    begin, end = map(tokenizer.token, ("<think>", "</think>"))
    if begin is None or end is None:
        return None
    opened = False
    with suppress(Exception):  # a template may refuse any conversation
        opened = tokenizer.render([_QUESTION]).rstrip().endswith("<think>")
    return ThoughtMarks(begin, end, opened) if opened or "</think>" in tokenizer.template else None


def _plain(message: Message) -> dict[str, Any]:
    """A message as chat templates expect it."""
    content = [
        {"type": part.type} if isinstance(part, FramesPart) else {"type": "text", "text": part.text}
        for part in message.content
    ]
    return {"role": message.role, "content": content}
