"""Encodes messages as tokens with the model directory's tokenizer and chat template, as transformers does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sailq.shared.errors import BadRequest
from sailq.shared.jobs import FramesPart, Message, media_parts

from .model import ModelSpec
from .tokenizer import Tokenizer


class ChatTokenizer:
    """Encodes conversations for one model. `encode` may be called from any thread.

    Attributes:
        end_tokens: the tokens that end an answer: those that the model's files name, and its family's own.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.tokenizer = Tokenizer(spec.directory)
        self._family = spec.family
        own = (self.tokenizer.token(text) for text in spec.family.end_tokens)
        self.end_tokens: frozenset[int] = spec.eos_token_ids.union(token for token in own if token is not None)

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


def _plain(message: Message) -> dict[str, Any]:
    """A message as chat templates expect it."""
    content = [
        {"type": part.type} if isinstance(part, FramesPart) else {"type": "text", "text": part.text}
        for part in message.content
    ]
    return {"role": message.role, "content": content}
