"""The scheduler, one step at a time: no threads and no sleeps, but for the last tests, which run its loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from qwen2vl import Prompts, options, random_model

from sailq.shared.errors import BadRequest, Cancelled, DeadlineExceeded, DeviceFailed, SailqError
from sailq.shared.jobs import GenerationOptions, Message, TextPart
from sailq.worker.engine.chat_tokenizer import ChatTokenizer
from sailq.worker.engine.engine import Engine
from sailq.worker.engine.model import ModelSpec
from sailq.worker.engine.preprocessor import PreparedPrompt
from sailq.worker.engine.request import Request
from sailq.worker.engine.scheduler import Scheduler
from sailq.worker.runners.base import Prompt, nothing
from sailq.worker.runners.logits import Float, HostLogits, Int


class CountingRunner:
    """A model that answers with its slot's token number: the n-th token of any answer has the id `n`.

    `calls` logs what the scheduler asks of the device. `fail_prefill` and `fail_decode` make the next such
    call raise, and a slot in `refused` each prefill of it; a slot in `poisoned` gets useless logits. `most`: prompts
    that are prefilled together.
    """

    device, context, positions, longest_prompt, max_patches, max_side = "test", 512, 512, 511, None, None
    hidden, greedy_only = 4, False

    def __init__(self, vocabulary: int, slots: int) -> None:
        self.slots, self._vocabulary = slots, vocabulary
        self.calls: list[tuple[str, object]] = []
        self.fail_prefill = self.fail_decode = False
        self.poisoned: set[int] = set()
        self.cleared: list[int] = []
        self.failure: Exception = RuntimeError("device lost")
        self.most, self.refused = 1, set[int]()

    def together(self, lengths: Sequence[int]) -> int:
        return min(len(lengths), self.most)

    def prefill(self, prompts: Sequence[Prompt]) -> HostLogits:
        slots = tuple(prompt.slot for prompt in prompts)
        self.calls.append(("prefill", slots))
        if self.fail_prefill or self.refused.intersection(slots):
            self.fail_prefill = False
            raise RuntimeError("out of memory")
        rows = np.stack([self._logits(0) for _ in prompts])
        rows[[slot in self.poisoned for slot in slots]] = np.nan
        return HostLogits(rows)

    def decode(
        self, slots: Sequence[int], tokens: Int, positions: Int, meanwhile: Callable[[], None] = nothing
    ) -> HostLogits:
        self.calls.append(("decode", tuple(slots)))
        if self.fail_decode:
            self.fail_decode = False
            raise self.failure
        rows = np.stack([self._logits(int(token) + 1) for token in tokens])
        rows[[slot in self.poisoned for slot in slots]] = np.nan
        return HostLogits(rows)

    def clear(self, slot: int) -> None:
        self.cleared.append(slot)

    def release(self, slot: int) -> None:
        self.calls.append(("release", slot))

    def _logits(self, token: int) -> Float:
        return np.eye(self._vocabulary, dtype=np.float32)[token]


class Bench:
    """A scheduler over a counting runner."""

    def __init__(self, slots: int) -> None:
        spec = ModelSpec.load(random_model())
        self.runner = CountingRunner(spec.vocab_size, slots)
        self.engine = Engine(spec, self.runner, ChatTokenizer(spec))  # type: ignore[arg-type]
        self.scheduler = Scheduler(self.engine)
        self.prepared = self.engine.prepare(
            [Message(role="user", content=(TextPart(text="Hi"),))], {}, options(max_new_tokens=100)
        )

    def submit(self, tokens: int = 4, **fields: object) -> Request:
        prepared = PreparedPrompt(**{**self.prepared.__dict__, "limit": tokens})
        request = Request(prepared, GenerationOptions(max_new_tokens=tokens), **fields)  # type: ignore[arg-type]
        self.scheduler.submit(request)
        return request

    def running(self) -> list[int]:
        """Slots of the last decode."""
        return list(next(value for call, value in reversed(self.runner.calls) if call == "decode"))  # type: ignore


def _started(*requests: Request) -> list[bool]:
    return [request.generation is not None for request in requests]


def test_one_prefill_a_step_and_all_decode_together() -> None:
    bench = Bench(slots=3)
    for _ in range(3):
        bench.submit(tokens=9)
    for active in (1, 2, 3):
        bench.scheduler.step()
        assert bench.running() == list(range(active))
    assert [call for call, _ in bench.runner.calls] == ["prefill", "decode"] * 3


def prefilled(bench: Bench) -> list[object]:
    return [slots for call, slots in bench.runner.calls if call == "prefill"]


def full(slots: int, together: int, waiting: int, **fields: object) -> tuple[Bench, list[Request]]:
    """A scheduler whose slots are all in use, one until its next step, and its waiting requests."""
    bench = Bench(slots)
    bench.runner.most = slots
    for _ in range(slots - 1):
        bench.submit(tokens=90)
    bench.submit(tokens=3)
    bench.scheduler.step()
    assert prefilled(bench) == [tuple(range(slots))]
    bench.runner.most = together
    return bench, [bench.submit(tokens=9, **fields) for _ in range(waiting)]


def steps_until_started(bench: Bench, request: Request) -> int:
    steps = 0
    while request.generation is None:
        bench.scheduler.step()
        steps += 1
    return steps


def test_a_free_slot_among_many_waits_for_others_to_share_a_launch_but_not_for_long() -> None:
    bench, waiting = full(slots=32, together=3, waiting=3)
    assert steps_until_started(bench, waiting[0]) == 1 + 4 + 1  # it becomes free, stays so for 4 steps, and is used
    assert _started(*waiting) == [True, False, False]


def test_slots_that_become_free_meanwhile_are_filled_together() -> None:
    bench, waiting = full(slots=32, together=3, waiting=3)
    bench.scheduler.step()
    bench.scheduler.step()
    for request in bench.scheduler._slots[:2]:
        assert request is not None
        request.cancel()
    assert steps_until_started(bench, waiting[2]) == 1
    assert prefilled(bench)[1:] == [(0, 1, 31)]


@pytest.mark.parametrize(("slots", "together", "waiting", "priority"), [
    (32, 3, 3, "high"), (32, 3, 1, "normal"), (32, 1, 3, "normal"), (16, 3, 3, "normal"),
])
def test_a_free_slot_is_used_at_once(slots: int, together: int, waiting: int, priority: str) -> None:
    """For high priority, if no further prompt could share the launch, and among few slots."""
    bench, requests = full(slots, together, waiting, priority=priority)
    assert steps_until_started(bench, requests[0]) == 1 + 1


def test_waiting_requests_are_prefilled_together_in_order_and_high_priority_first() -> None:
    bench = Bench(slots=5)
    bench.runner.most = 3
    normal = [bench.submit(tokens=9) for _ in range(4)]
    high = [bench.submit(tokens=9, priority="high") for _ in range(2)]
    bench.scheduler.step()
    assert _started(*high, *normal) == [True, True, True, False, False, False]
    bench.scheduler.step()
    assert _started(*normal) == [True, True, True, False]  # only two slots were free
    assert prefilled(bench) == [(0, 1, 2), (3, 4)]
    assert bench.running() == [0, 1, 2, 3, 4]
    while normal[-1].outcome is None:
        bench.scheduler.step()
    assert {request.wait(0).text for request in (*high, *normal)} == {high[0].wait(0).text}
    usage = bench.scheduler.counts
    assert (usage.prompt_tokens, usage.generation_tokens) == (6 * len(bench.prepared.tokens), 6 * 9)


def test_an_interrupted_request_is_not_prefilled_with_the_others() -> None:
    bench = Bench(slots=4)
    bench.runner.most = 4
    requests = [bench.submit(tokens=9) for _ in range(3)]
    requests[1].cancel()
    bench.scheduler.step()
    assert _started(*requests) == [True, False, True] and prefilled(bench) == [(0, 1)]
    assert requests[1].wait(0).finish_reason == "cancelled"


def test_a_request_that_fails_among_others_ends_alone() -> None:
    bench = Bench(slots=4)
    bench.runner.most, bench.runner.refused = 4, {1}
    requests = [bench.submit(tokens=3) for _ in range(3)]
    bench.scheduler.step()
    assert prefilled(bench) == [(0, 1, 2), (0,), (1,), (2,)]
    assert bench.running() == [0, 2] and "out of memory" in str(requests[1].wait(0).error)
    bench.scheduler.step()
    assert [request.wait(0).finish_reason for request in requests] == ["length", "error", "length"]


def test_scores_that_are_not_finite_in_a_shared_prefill_end_only_their_request() -> None:
    bench = Bench(slots=3)
    bench.runner.most, bench.runner.poisoned = 3, {1}
    requests = [bench.submit(tokens=3) for _ in range(3)]
    bench.scheduler.step()
    assert prefilled(bench) == [(0, 1, 2)] and bench.running() == [0, 2] and bench.runner.cleared == [1]
    assert requests[1].wait(0).finish_reason == "error"
    bench.runner.poisoned.clear()
    after = bench.submit(tokens=3)
    bench.scheduler.step()
    assert after.generation is not None and after.generation.slot == 1


def test_first_come_first_served() -> None:
    bench = Bench(slots=1)
    requests = [bench.submit(tokens=2) for _ in range(4)]
    order = []
    for _ in range(4):
        bench.scheduler.step()
        order.append([request.outcome is not None for request in requests].count(True))
    assert order == [1, 2, 3, 4]
    assert all(request.wait(0).finish_reason == "length" for request in requests)


def test_high_priority_goes_before_normal_but_takes_no_slot_away() -> None:
    bench = Bench(slots=1)
    first, second = bench.submit(tokens=3), bench.submit(tokens=3)
    bench.scheduler.step()
    urgent, urgent_too = bench.submit(tokens=2, priority="high"), bench.submit(tokens=2, priority="high")
    assert _started(first, second, urgent) == [True, False, False]
    bench.scheduler.step()
    assert first.outcome is not None
    bench.scheduler.step()
    assert _started(second, urgent, urgent_too) == [False, True, False]
    bench.scheduler.step()
    assert _started(second, urgent_too) == [False, True]
    bench.scheduler.step()
    assert _started(second) == [True]


def test_a_free_slot_is_filled_in_the_next_step() -> None:
    bench = Bench(slots=2)
    short, long, next_one = bench.submit(tokens=3), bench.submit(tokens=50), bench.submit(tokens=50)
    bench.scheduler.step()
    bench.scheduler.step()
    assert short.outcome is not None
    bench.scheduler.step()
    assert _started(next_one) == [True]
    assert next_one.generation is not None and next_one.generation.slot == 0
    assert bench.running() == [0, 1]
    assert long.outcome is None


def test_cancel_acts_within_one_step() -> None:
    bench = Bench(slots=1)
    running, waiting = bench.submit(tokens=50), bench.submit(tokens=50)
    bench.scheduler.step()
    running.cancel()
    waiting.cancel()
    bench.scheduler.step()
    outcome = running.wait(0)
    assert outcome.finish_reason == "cancelled" and isinstance(outcome.error, Cancelled)
    assert outcome.usage.completion_tokens == 2  # the tokens of the first step; the second step made none
    assert waiting.wait(0).finish_reason == "cancelled" and _started(waiting) == [False]
    assert [call for call, _ in bench.runner.calls] == ["prefill", "decode", "release"]


def test_deadlines_act_within_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    bench = Bench(slots=1)
    running, waiting = bench.submit(tokens=50, deadline=101.0), bench.submit(tokens=50, deadline=101.0)
    unlimited = bench.submit(tokens=2)
    bench.scheduler.step()
    assert running.outcome is None
    now = 101.0
    bench.scheduler.step()
    for request in (running, waiting):
        outcome = request.wait(0)
        assert outcome.finish_reason == "deadline" and isinstance(outcome.error, DeadlineExceeded)
    assert unlimited.wait(0).finish_reason == "length"  # it got the slot in the same step


def test_a_failing_prefill_fails_its_request_only() -> None:
    bench = Bench(slots=2)
    good = bench.submit(tokens=4)
    bench.scheduler.step()
    bad, after = bench.submit(tokens=4), bench.submit(tokens=4)
    bench.runner.fail_prefill = True
    while after.outcome is None:
        bench.scheduler.step()
    outcome = bad.wait(0)
    assert outcome.finish_reason == "error" and "out of memory" in str(outcome.error)
    assert outcome.error is not None and outcome.error.code == "internal"
    assert good.wait(0).text == after.wait(0).text != ""


def test_errors_of_our_own_keep_their_code() -> None:
    bench = Bench(slots=1)
    bench.runner.prefill = _raise_bad_request  # type: ignore[method-assign]
    request = bench.submit()
    bench.scheduler.step()
    assert isinstance(request.wait(0).error, BadRequest)


def _raise_bad_request(*arguments: object) -> Float:
    raise BadRequest("no")


def test_a_failing_decode_fails_the_running_requests_and_the_loop_continues() -> None:
    bench = Bench(slots=2)
    running = [bench.submit(tokens=50), bench.submit(tokens=50)]
    bench.scheduler.step()
    bench.scheduler.step()
    bench.runner.fail_decode = True
    waiting = bench.submit(tokens=2)
    bench.scheduler.step()
    for request in running:
        outcome = request.wait(0)
        assert outcome.finish_reason == "error" and "device lost" in str(outcome.error)
        assert outcome.usage.completion_tokens > 0
    bench.scheduler.step()
    assert waiting.wait(0).finish_reason == "length"


def test_a_failing_device_is_not_asked_to_prefill_again() -> None:
    bench = Bench(slots=2)
    bench.runner.most, asked = 2, []

    def fail(prompts: Sequence[Prompt]) -> HostLogits:
        asked.append(len(prompts))
        raise DeviceFailed("SAIL failed to run block_0: SailEngineError: Engine related error!")

    bench.runner.prefill = fail  # type: ignore[method-assign]
    requests = [bench.submit(), bench.submit()]
    with pytest.raises(DeviceFailed):
        bench.scheduler.step()
    assert asked == [2] and all(request.outcome is None for request in requests)


def test_a_failing_device_ends_the_loop_and_leaves_its_requests_to_other_processes(
    eventually: Callable[..., None]
) -> None:
    bench = Bench(slots=2)
    bench.runner.failure = DeviceFailed("SAIL failed to run block_cache_0: SailEngineError: Engine related error!")
    bench.runner.fail_decode = True
    running = [bench.submit(tokens=50), bench.submit(tokens=50)]
    bench.scheduler.start()
    eventually(lambda: not bench.scheduler.alive, 60)
    assert all(request.outcome is None for request in running)


def test_logits_that_are_not_finite_fail_only_their_row() -> None:
    bench = Bench(slots=2)
    bad, good = bench.submit(tokens=6), bench.submit(tokens=6)
    bench.scheduler.step()
    bench.scheduler.step()
    bench.runner.poisoned.add(0)
    while good.outcome is None:
        bench.scheduler.step()
    assert bad.wait(0).finish_reason == "error" and bench.runner.cleared == [0]
    assert good.wait(0).finish_reason == "length" and good.wait(0).usage.completion_tokens == 6


def test_a_failing_listener_fails_its_request_only() -> None:
    def listen(text: str) -> None:
        raise ConnectionError("stream is gone")

    bench = Bench(slots=2)
    deaf, good = bench.submit(tokens=60, on_text=listen), bench.submit(tokens=60)
    while good.outcome is None:
        bench.scheduler.step()
    assert deaf.wait(0).finish_reason == "error" and isinstance(deaf.wait(0).error, SailqError)
    assert good.wait(0).finish_reason == "length"


def test_listeners_hear_the_whole_text_and_times_add_up() -> None:
    heard: list[str] = []
    bench = Bench(slots=1)
    began = time.monotonic()
    request = bench.submit(tokens=80, on_text=heard.append)
    while request.outcome is None:
        bench.scheduler.step()
    outcome = request.wait(0)
    assert "".join(heard) == outcome.text != ""
    assert outcome.usage.completion_tokens == 80 and outcome.usage.prompt_tokens == len(bench.prepared.tokens)
    assert outcome.prefill is not None and outcome.decode is not None and outcome.first_token_at is not None
    assert began <= outcome.first_token_at <= time.monotonic()
    assert outcome.inter_token_latency == pytest.approx(outcome.decode / 79)


def test_one_request_failing_leaves_the_others_tokens_alone() -> None:
    """With the real model: three conversations, alone and beside one that breaks in the middle."""
    engine = Engine.load(random_model(), slots=4, threads=1)
    prompts = Prompts(9)
    prepared = [engine.prepare(*prompts.conversation(), options()) for _ in range(4)]

    def texts(broken: bool) -> list[list[int]]:
        scheduler = Scheduler(engine)
        requests = [Request(p, options()) for p in prepared]
        for request in requests:
            scheduler.submit(request)
        for step in range(40):
            if broken and step == 5:
                assert requests[0].generation is not None
                requests[0].generation.sampler = SimpleNamespace(greedy=False)  # type: ignore[assignment]
            scheduler.step()
        assert [request.wait(0).finish_reason for request in requests].count("error") == broken
        return [request.generation.tokens for request in requests[1:] if request.generation is not None]

    assert texts(broken=True) == texts(broken=False)


def test_the_loop_serves_many_threads_and_closes() -> None:
    bench = Bench(slots=2)
    bench.scheduler.start()
    assert [bench.submit(tokens=n).wait(10).usage.completion_tokens for n in (1, 5, 9)] == [1, 5, 9]
    many = [bench.submit(tokens=5) for _ in range(20)]
    assert {request.wait(10).finish_reason for request in many} == {"length"}
    endless = bench.submit(tokens=400)
    bench.scheduler.close()
    assert endless.wait(0).finish_reason in {"cancelled", "length"}
    assert bench.submit().wait(0).finish_reason == "cancelled"
