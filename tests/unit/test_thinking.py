"""Thought and answer apart: the tokens of a stream, and models of each kind in the engine."""

from __future__ import annotations

import functools
import random
import re
from typing import Any, get_args

import jinja2
import pytest
from asking import together
from thinking import ANSWER, QUESTION, SAID, THOUGHT, Kind, thinking_model
from transformers import AutoTokenizer

from sailq.shared.jobs import GenerationOptions, Message, Result, TextPart, Usage, parse
from sailq.worker.engine.engine import Engine
from sailq.worker.engine.request import Outcome, Request
from sailq.worker.engine.scheduler import Scheduler
from sailq.worker.engine.text import AnswerStream, ThoughtMarks
from sailq.worker.engine.tokenizer import Tokenizer
from sailq.worker.model_files.model_paths import resolve

MARKS = ThoughtMarks(begin=890, end=891, opened=True)
"""Tokens that sailq-tiny does not have."""
PUBLISHED = jinja2.Template(
    "{{ (content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n')) | tojson }}"
    "{{ (content.split('</think>')[-1].lstrip('\\n')) | tojson }}"
)
"""What the chat template of Qwen3-VL's Thinking models takes as the thought and the answer of an earlier turn."""


@functools.cache
def theirs() -> Any:
    return AutoTokenizer.from_pretrained(resolve("sailq-tiny"))


def split(tokens: list[int], marks: ThoughtMarks | None, stop: tuple[str, ...] = ()) -> tuple[AnswerStream, list[str]]:
    """A stream after these tokens, and its pieces: thought and text, each joined."""
    stream = AnswerStream(Tokenizer(resolve("sailq-tiny")), stop, frozenset(), marks)
    pieces = []
    for token in tokens:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    return stream, ["".join(kind) for kind in zip(*pieces, strict=True)]


def test_thought_and_answer_are_those_of_the_published_template() -> None:
    rng = random.Random(0)
    for _ in range(300):
        words = rng.choices(["", "\n", "\n\n", "A red circle", " moves left.", "圆形 😀", "\nnew line\n"], k=8)
        thought, answer = "".join(words[:4]), "".join(words[4:])
        tokens = [*theirs()(thought)["input_ids"], MARKS.end, *theirs()(answer)["input_ids"]]
        stream, pieces = split(tokens, MARKS)
        expected = PUBLISHED.render(content=f"<think>\n{thought}</think>{answer}")
        assert jinja2.Template("{{ a | tojson }}{{ b | tojson }}").render(a=pieces[0], b=pieces[1]) == expected
        assert [stream.reasoning, stream.text] == pieces
        assert stream.reasoning_tokens == len(theirs()(thought)["input_ids"])


def test_an_answer_that_is_cut_in_its_thought_has_no_text() -> None:
    tokens = theirs()("\nA red circle\n\nmoves left.\n\n")["input_ids"]
    for end in range(len(tokens) + 1):
        stream, (thought, text) = split(tokens[:end], MARKS)
        assert thought == stream.reasoning == theirs().decode(tokens[:end]).strip("\n") and text == ""


def test_a_model_that_does_not_think_keeps_every_newline() -> None:
    tokens = theirs()("\n\nA red circle\n")["input_ids"]
    for marks in (None, MARKS._replace(opened=False)):
        assert split(tokens, marks)[1] == ["", "\n\nA red circle\n"]


@pytest.mark.parametrize(("stop", "thought", "text"), [
    ("red", "A ", ""), ("circle", "A red", " "), ("left", "A red", " circle moves "),
    ("d circle", "A red", " circle moves left"),
])
def test_a_stop_text_ends_thought_or_answer_and_never_spans_both(stop: str, thought: str, text: str) -> None:
    tokens = [*theirs()("A red")["input_ids"], MARKS.end, *theirs()(" circle moves left")["input_ids"]]
    stream, pieces = split(tokens, MARKS, (stop,))
    assert pieces == [thought, text] and stream.stopped == (stop != "d circle")


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    folder = tmp_path_factory.mktemp("thinking")
    return {kind: Engine.load(thinking_model(folder / kind, kind), slots=2, threads=1) for kind in get_args(Kind)}


def ask(engine: Engine, question: str = QUESTION, **fields: Any) -> tuple[Outcome, list[str]]:
    """How a question ends, and all that came of its thought and of its text."""
    options = parse(GenerationOptions, fields)
    heard: tuple[list[str], list[str]] = ([], [])
    scheduler = Scheduler(engine)
    message = Message(role="user", content=(TextPart(text=question),))
    request = Request(
        engine.prepare([message], {}, options), options, on_text=heard[1].append, on_thought=heard[0].append
    )
    scheduler.submit(request)
    while request.outcome is None:
        scheduler.step()
    return request.outcome, ["".join(pieces) for pieces in heard]


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_models_own_files_tell_whether_it_thinks(engines: dict[str, Engine], kind: str) -> None:
    outcome, heard = ask(engines[kind])
    assert (outcome.reasoning, outcome.text) == tuple(heard) == SAID[kind]
    assert outcome.finish_reason == "stop"
    thought = 0 if kind == "never" else len(theirs()(SAID[kind][0])["input_ids"])
    assert outcome.usage.reasoning_tokens == thought < outcome.usage.completion_tokens


def test_a_limit_in_the_thought_leaves_no_answer(engines: dict[str, Engine]) -> None:
    outcome, heard = ask(engines["opened"], max_new_tokens=2)
    assert (outcome.reasoning, outcome.text, outcome.finish_reason) == ("There is", "", "length")
    assert heard == ["There is", ""] and outcome.usage.reasoning_tokens == outcome.usage.completion_tokens == 2


def test_a_stop_text_in_the_thought_leaves_no_answer(engines: dict[str, Engine]) -> None:
    outcome, _ = ask(engines["opened"], stop=["no"])
    assert (outcome.reasoning, outcome.text, outcome.finish_reason) == ("There is ", "", "stop")


@pytest.mark.parametrize("form", [
    {"choice": ["red", "blue"]}, {"json": {"enum": ["red", "blue"]}}, {"regex": "red|blue"},
])
def test_a_form_is_that_of_the_answer_alone(engines: dict[str, Engine], form: dict[str, Any]) -> None:
    outcome, heard = ask(engines["opened"], structured_outputs=form)
    assert outcome.reasoning == THOUGHT and outcome.text.strip('"') in {"red", "blue"}
    assert heard == [outcome.reasoning, outcome.text] and outcome.finish_reason == "stop"


def test_an_end_token_in_the_thought_does_not_leave_the_form_out(engines: dict[str, Engine]) -> None:
    """After this question the model ends its answer before its thought."""
    free, _ = ask(engines["opened"], "<think>")
    assert free.text == "" and free.finish_reason == "stop"
    outcome, _ = ask(engines["opened"], "<think>", structured_outputs={"choice": ["red", "blue"]})
    assert outcome.reasoning == free.reasoning
    assert outcome.text in {"red", "blue"} and outcome.finish_reason == "stop"


def test_marks_that_a_form_asks_for_are_text(engines: dict[str, Engine]) -> None:
    form = r"<think> is no</think> in( [a-z]+)*\."
    outcome, _ = ask(engines["hybrid"], structured_outputs={"regex": form})
    assert outcome.reasoning == "" and re.fullmatch(form, outcome.text) and outcome.finish_reason == "stop"


def test_guided_and_free_thoughts_share_a_batch(engines: dict[str, Engine]) -> None:
    engine = engines["opened"]
    chosen = [parse(GenerationOptions, {"structured_outputs": {"choice": ["red", "blue"]}}), GenerationOptions()]
    message = Message(role="user", content=(TextPart(text=QUESTION),))
    (_, guided), (_, free) = together(engine, [(engine.prepare([message], {}, options), options) for options in chosen])
    assert [guided.reasoning, free.reasoning] == [THOUGHT] * 2
    assert guided.text in {"red", "blue"} and free.text == ANSWER


def test_results_without_a_thought_are_those_of_before() -> None:
    """A producer that knows no thoughts refuses unknown fields."""
    result = Result(job="1", conversation="1", turn=0, text="a", finish_reason="stop", finished_at=1.0)
    assert "reasoning" not in result.model_dump() and "reasoning_tokens" not in result.model_dump()["usage"]
    thought = result.model_copy(update={"reasoning": "b", "usage": Usage(completion_tokens=2, reasoning_tokens=1)})
    fields = thought.model_dump()
    assert fields["reasoning"] == "b" and fields["usage"]["reasoning_tokens"] == 1 and parse(Result, fields) == thought
