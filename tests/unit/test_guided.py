"""Guided answers in the engine: beside free ones, whatever the scores, and what they cost."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np
import pytest
from asking import together
from jsonschema import Draft202012Validator
from null_runner import NullRunner
from qwen2vl import Prompts, options, random_model
from schemas import FINITE

from sailq.shared.errors import BadRequest, Unsupported
from sailq.shared.frames import Frames
from sailq.shared.jobs import GenerationOptions, Message, TextPart
from sailq.worker.engine.chat_tokenizer import ChatTokenizer
from sailq.worker.engine.engine import Engine
from sailq.worker.engine.generation import Generation
from sailq.worker.engine.model import ModelSpec
from sailq.worker.engine.request import Outcome
from sailq.worker.engine.sampling import NotFinite, Sampler
from sailq.worker.model_files.model_paths import resolve
from sailq.worker.runners.logits import HostLogits

QUESTION = [Message(role="user", content=(TextPart(text="What do you see?"),))]
SCHEMA = FINITE["sighting"]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(random_model(), slots=4, threads=1)


def guided(form: dict[str, Any], **fields: Any) -> GenerationOptions:
    return options(**{"max_new_tokens": 200, **fields, "structured_outputs": form})


def ask(engine: Engine, form: dict[str, Any], **fields: Any) -> tuple[list[int], Outcome]:
    chosen = guided(form, **fields)
    return together(engine, [(engine.prepare(QUESTION, {}, chosen), chosen)])[0]


@pytest.mark.parametrize("fields", [
    {}, {"temperature": 1.0, "seed": 1}, {"temperature": 3.0, "top_p": 0.9, "top_k": 40, "seed": 2},
    {"repetition_penalty": 1.3},
])
@pytest.mark.parametrize("name", ["sighting", "chinese", "tagged union", "constants"])
def test_a_model_without_any_sense_answers_in_form(engine: Engine, name: str, fields: dict[str, Any]) -> None:
    _, outcome = ask(engine, {"json": FINITE[name]}, **fields)
    assert outcome.finish_reason == "stop"
    Draft202012Validator(FINITE[name]).validate(json.loads(outcome.text))


def test_guided_and_free_answers_share_a_batch_and_each_is_what_it_is_alone(engine: Engine) -> None:
    forms: list[dict[str, Any] | None] = [
        None, {"json": SCHEMA}, {"choice": ["red", "green and blue", "红色"]}, {"regex": r"\w{1,30}"},
        {"json_object": True},
    ]
    asked = []
    for seed, conversation in enumerate(_conversations(10)):
        chosen = options(
            max_new_tokens=24 + seed, temperature=(0.0, 0.9)[seed % 2], seed=seed, structured_outputs=forms[seed % 5],
        )
        asked.append((engine.prepare(*conversation, chosen), chosen))
    alone = [together(engine, [one])[0] for one in asked]
    assert [tokens for tokens, _ in together(engine, asked)] == [tokens for tokens, _ in alone]
    other = Engine.load(random_model(), slots=3, threads=1)
    again = [(other.prepare(*conversation, chosen), chosen)
             for conversation, (_, chosen) in zip(_conversations(10), asked, strict=True)]
    assert [(tokens, outcome.text) for tokens, outcome in together(other, again[::-1])][::-1] == [
        (tokens, outcome.text) for tokens, outcome in alone]


def _conversations(count: int) -> list[tuple[list[Message], dict[str, Frames]]]:
    prompts = Prompts(5)
    return [prompts.conversation() for _ in range(count)]


def test_an_answer_ends_with_the_last_token_of_its_form_and_has_its_text(engine: Engine) -> None:
    tokens, outcome = ask(engine, {"choice": ["yes", "no"]})
    assert outcome.finish_reason == "stop" and outcome.text in {"yes", "no"}
    assert not engine._chat_tokenizer.end_tokens & set(tokens)
    assert engine._chat_tokenizer.tokenizer.decode(tokens) == outcome.text
    assert outcome.usage.completion_tokens == len(tokens)


def test_an_answer_that_is_cut_ends_as_length(engine: Engine) -> None:
    tokens, outcome = ask(engine, {"json": SCHEMA}, max_new_tokens=5)
    assert (outcome.finish_reason, len(tokens)) == ("length", 5) and outcome.text.startswith("{")


def test_an_empty_answer_can_be_the_only_one(engine: Engine) -> None:
    tokens, outcome = ask(engine, {"regex": ""})
    assert outcome.finish_reason == "stop" and outcome.text == "" and len(tokens) == 1


def test_tokens_without_an_alternative_take_no_draw_and_are_not_read(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled, read = [], []
    sample, row = Sampler.sample, HostLogits.row
    monkeypatch.setattr(Sampler, "sample", lambda *given: sampled.append(1) or sample(*given))
    monkeypatch.setattr(HostLogits, "row", lambda *given: read.append(1) or row(*given))
    text = "There is only one answer."
    tokens, outcome = ask(engine, {"choice": [text]}, temperature=1.0, seed=1)
    assert outcome.text == text and len(tokens) > 5 and sampled == read == []
    _, outcome = ask(engine, {"json": {"enum": [f"{text} {n}" for n in range(3)]}}, temperature=1.0, seed=1)
    assert len(sampled) == len(read) == 1


def test_greedy_scores_are_read_only_where_the_argmax_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, chosen = Engine.load(resolve("sailq-tiny"), slots=1, threads=1), options(max_new_tokens=200)
    free, _ = together(engine, [(engine.prepare(QUESTION, {}, chosen), chosen)])[0]
    monkeypatch.setattr(HostLogits, "row", lambda *given: pytest.fail("the scores were read"))
    tokens, outcome = ask(engine, {"regex": r"(.|\n)*"})
    assert tokens == free and outcome.finish_reason == "stop"


def test_the_best_allowed_token_is_chosen(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = guided({"regex": "[a-z]+"}, max_new_tokens=12)
    generation = engine.start(engine.prepare(QUESTION, {}, chosen), chosen, 0)
    rows, decode = [], engine.runner.decode

    def decoded(*given: Any) -> Any:
        logits = decode(*given)
        rows.append(logits.row(0).copy())
        return logits

    monkeypatch.setattr(engine.runner, "decode", decoded)
    while generation.finish_reason is None:
        engine.step([generation])
    engine.release(0)
    allowed = [token for token in range(len(rows[0])) if _is_letters(engine, token)]
    allowed += engine._chat_tokenizer.end_tokens
    assert generation.tokens[1:] == [allowed[int(np.argmax(row[allowed]))] for row in rows]
    assert any(row.argmax() not in allowed for row in rows)


def _is_letters(engine: Engine, token: int) -> bool:
    text = engine._chat_tokenizer.tokenizer.decode([token])
    return text.isascii() and text.isalpha() and text.islower()


@pytest.mark.parametrize("fields", [{}, {"temperature": 1.0}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("form", [{"choice": ["only this one"]}, {"json": SCHEMA}], ids=["forced", "free"])
def test_scores_that_are_not_finite_end_only_their_own_answer(form: dict[str, Any], fields: dict[str, Any]) -> None:
    engine = Engine.load(resolve("sailq-tiny"), slots=2, threads=1)
    chosen = guided(form, **fields)
    prepared = engine.prepare(QUESTION, {}, chosen)
    broken, other = (engine.start(prepared, chosen, slot) for slot in (0, 1))
    engine.runner._cache[:, :, 0, :, 3] = np.nan  # type: ignore[attr-defined]
    engine.step([broken, other])
    assert isinstance(broken.error, NotFinite) and other.error is None
    engine.release(0)
    assert isinstance(engine.start(prepared, chosen, 0), Generation)


def test_a_grammar_that_exceeds_its_limits_ends_only_its_own_answer(engine: Engine) -> None:
    free, good = options(max_new_tokens=10), guided({"json": SCHEMA})
    hostile = guided({"grammar": 'start: "a" /(b{1000}){1000}/'})
    asked = [(engine.prepare(QUESTION, {}, chosen), chosen) for chosen in (free, hostile, good)]
    alone = [together(engine, [one])[0][0] for one in (asked[0], asked[2])]
    (first, _), (_, refused), (last, outcome) = together(engine, asked)
    assert refused.finish_reason == "error" and isinstance(refused.error, BadRequest)
    assert [first, last] == alone and outcome.finish_reason == "stop"


def test_free_answers_start_no_thread_and_wait_for_no_mask() -> None:
    engine = Engine.load(random_model(), slots=2, threads=1)
    before = threading.active_count()
    chosen = options(max_new_tokens=5)
    together(engine, [(engine.prepare(QUESTION, {}, chosen), chosen)])
    assert threading.active_count() == before and not engine._masks._started


def test_the_thread_of_masks_ends_with_its_engine(eventually: Any) -> None:
    engine = Engine.load(random_model(), slots=1, threads=1)
    ask(engine, {"choice": ["ab", "cd"]})
    named = [thread for thread in threading.enumerate() if thread.name == "sailq-masks"]
    assert named
    del engine
    eventually(lambda: sum(thread.is_alive() for thread in named) < len(named))


def test_a_model_that_gives_no_scores_says_so_on_its_card_and_refuses_forms() -> None:
    class Greedy(NullRunner):
        greedy_only = True

    spec = ModelSpec.load(resolve("sailq-tiny"))
    engine = Engine(spec, Greedy(spec, 1), ChatTokenizer(spec))  # type: ignore[arg-type]
    assert engine.card.greedy_only
    assert not Engine(spec, NullRunner(spec, 1), ChatTokenizer(spec)).card.greedy_only  # type: ignore[arg-type]
    for chosen in (guided({"choice": ["a"]}), options(temperature=1.0), options(repetition_penalty=1.1)):
        with pytest.raises(Unsupported):
            engine.prepare(QUESTION, {}, chosen)
    engine.prepare(QUESTION, {}, options())
