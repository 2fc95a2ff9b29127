"""OpenAI's Chat Completions responses of a job."""

from __future__ import annotations

import time
from typing import Any

from sailq.shared.jobs import Result


class Completion:
    """The response of one request, whole or in chunks."""

    def __init__(self, job: str, model: str, conversation: str | None = None, *, with_usage: bool = False) -> None:
        """
        Args:
            model, conversation: the names in the request.
            with_usage: whether the chunks have the field usage, which is null but in the last one.
        """
        self.id, self.model, self.created = f"chatcmpl-{job}", model, int(time.time())
        self._conversation = conversation
        self._usage = {"usage": None} if with_usage else {}

    def whole(self, result: Result) -> dict[str, Any]:
        """The `chat.completion` of an answer. Its field `sailq` has the job, its timings and who answered."""
        return {
            **self._head("chat.completion"),
            "choices": [{
                "index": 0,
                "message": {
                    "role": "assistant", "content": result.text, "refusal": None,
                    **(_thought(result.reasoning) if result.reasoning else {}),
                },
                "logprobs": None,
                "finish_reason": result.finish_reason,
            }],
            "usage": usage(result),
            "sailq": self._about(result),
        }

    def first(self) -> dict[str, Any]:
        """The chunk that begins a stream."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> dict[str, Any]:
        return self._chunk({"content": text})

    def thought(self, text: str) -> dict[str, Any]:
        """A piece of the thought before the answer."""
        return self._chunk(_thought(text))

    def last(self, result: Result) -> dict[str, Any]:
        """The chunk that ends an answer."""
        return {**self._chunk({}, result.finish_reason), "sailq": self._about(result)}

    def usage(self, result: Result) -> dict[str, Any]:
        """The chunk after the last one, for `include_usage`."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage(result)}

    def _about(self, result: Result) -> dict[str, Any]:
        """What sailq tells besides: the job, who answered, and how long each part took, in seconds."""
        return {
            "job": result.job,
            "conversation": self._conversation,
            "turn": result.turn,
            "worker": result.worker,
            "vision_tokens": result.usage.vision_tokens,
            "timings": result.timings.model_dump(),
            "metadata": result.metadata,
        }

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head("chat.completion.chunk"), "choices": [choice], **self._usage}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def _thought(text: str) -> dict[str, str]:
    """vLLM's field of a message and of a delta, by its name and by the name that it had before vLLM 0.11.2."""
    return {"reasoning": text, "reasoning_content": text}


def usage(result: Result) -> dict[str, Any]:
    used = result.usage
    counts: dict[str, Any] = {
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "total_tokens": used.prompt_tokens + used.completion_tokens,
    }
    if used.reasoning_tokens:
        counts["completion_tokens_details"] = {"reasoning_tokens": used.reasoning_tokens}
    return counts
