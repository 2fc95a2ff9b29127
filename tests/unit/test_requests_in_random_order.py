"""Requests in random order, beside others, cancelled and late ones among them: each ends as it does alone."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field

import pytest
from qwen2vl import Prompts, random_model

from sailq.shared.jobs import GenerationOptions, Priority, Usage
from sailq.worker.engine.engine import Engine
from sailq.worker.engine.preprocessor import PreparedPrompt
from sailq.worker.engine.request import Outcome, Request
from sailq.worker.engine.scheduler import Scheduler

SECONDS = 120
SLOTS, PROMPTS, REQUESTS = 3, 12, 60
KINDS = ("whole", "whole", "cancelled", "deadline", "error")


@dataclass
class Asked:
    """A prompt with options, and how its request ends alone. `texts`: the pieces that `on_text` got."""

    prepared: PreparedPrompt
    options: GenerationOptions
    alone: Outcome = field(init=False)

    def request(
        self, texts: list[str], fail_at: int | None = None, deadline: float | None = None, priority: Priority = "normal"
    ) -> Request:
        def keep(text: str) -> None:
            if len(texts) == fail_at:
                raise ConnectionError("stream is gone")
            texts.append(text)

        return Request(self.prepared, self.options, deadline, priority, keep)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(random_model(), slots=SLOTS, threads=1)


@pytest.fixture(scope="module")
def asked(engine: Engine) -> list[Asked]:
    """Greedy and sampled answers of 1 to 24 tokens. Half end with a stop text, which may begin and end in a token."""
    chance, prompts, found = random.Random(14), Prompts(14), []
    for number in range(PROMPTS):
        conversation = prompts.conversation()
        options = GenerationOptions(max_new_tokens=chance.choice([1, 2, 9, 24]), temperature=number % 2, seed=number)
        text = alone(engine, Asked(engine.prepare(*conversation, options), options)).text
        if len(text) > 3 and chance.random() < 0.5:
            start = chance.randrange(len(text) - 2)
            stop = text[start : start + chance.randrange(1, 5)]
            options = options.model_copy(update={"stop": (stop,)})
        found.append(Asked(engine.prepare(*conversation, options), options))
    for one in found:
        one.alone = alone(engine, one)
    assert {one.alone.finish_reason for one in found} >= {"stop", "length"}
    return found


def alone(engine: Engine, one: Asked) -> Outcome:
    """The outcome of a request without others, on this thread."""
    scheduler, texts = Scheduler(engine), list[str]()
    request = one.request(texts)
    scheduler.submit(request)
    while request.outcome is None:
        scheduler.step()
    scheduler.step()  # frees the slot of a request that a stop text ended
    assert "".join(texts) == request.outcome.text and scheduler.running == 0
    return request.outcome


def said(outcome: Outcome) -> tuple[str, str, Usage]:
    return outcome.text, outcome.finish_reason, outcome.usage


@pytest.mark.parametrize("seed", range(3))
def test_each_request_ends_as_it_does_alone(engine: Engine, asked: list[Asked], seed: int) -> None:
    """An interrupted request may end earlier, with the text until then. All slots are free at the end."""
    chance, scheduler = random.Random(seed), Scheduler(engine)
    scheduler.start()
    checks, threads = [], []
    for _ in range(REQUESTS):
        one, kind = chance.choice(asked), chance.choice(KINDS)
        submitted, interrupted = chance.random() * 0.1, chance.random() * 0.2
        run = Run(one, kind, chance.randrange(6), chance.choice(["normal", "high"]))
        threads.append(threading.Thread(target=run, args=(scheduler, submitted, interrupted)))
        checks.append(run.check)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for check in checks:
        check()
    scheduler.close()
    assert (scheduler.running, scheduler.waiting, scheduler.alive) == (0, 0, True)


class Run:
    """A request that is submitted after a pause and interrupted after another. `fail_at`: the piece of text at which
    the listener of the kind `error` fails."""

    def __init__(self, one: Asked, kind: str, fail_at: int, priority: Priority) -> None:
        self._one, self._kind, self._priority = one, kind, priority
        self._fail_at = fail_at if kind == "error" else None
        self._texts: list[str] = []

    def __call__(self, scheduler: Scheduler, submitted: float, interrupted: float) -> None:
        time.sleep(submitted)
        deadline = time.monotonic() + interrupted if self._kind == "deadline" else None
        self._request = self._one.request(self._texts, self._fail_at, deadline, self._priority)
        scheduler.submit(self._request)
        if self._kind == "cancelled":
            time.sleep(interrupted)
            self._request.cancel()

    def check(self) -> None:
        outcome, alone = self._request.wait(SECONDS), self._one.alone
        if said(outcome) != said(alone):
            assert outcome.finish_reason == self._kind
            assert alone.text.startswith(outcome.text)
            assert outcome.usage.completion_tokens <= alone.usage.completion_tokens
        assert "".join(self._texts) == outcome.text or self._kind == "error"
