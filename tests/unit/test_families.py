"""Each family against the release that introduced it, as recorded (tests/release_record.py), on the CPU's nets.

`test_release.py` asks the releases again, and more.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import release
import torch
from asking import together
from qwen2vl import options, random_checkpoint_of, random_model
from release_record import CONTEXT, GREEDY, RECORDED, UNITS, greedy_prompts, model, position_prompts, recorded, told
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from sailq.shared.errors import TooLong
from sailq.shared.jobs import FramesPart, Message, media_parts
from sailq.worker.engine.chat_tokenizer import ChatTokenizer
from sailq.worker.engine.engine import Engine
from sailq.worker.engine.model import ModelSpec
from sailq.worker.engine.preprocessor import PreparedPrompt
from sailq.worker.engine.request import Request
from sailq.worker.engine.scheduler import Scheduler
from sailq.worker.model_files.model_paths import resolve
from sailq.worker.runners.base import MASKED

NEWER = ("qwen2_5_vl", "qwen3_vl")
"""`test_engine.py` and `test_mrope.py` compare Qwen2-VL with its record."""
SLOTS = 3


def served(family: str) -> Path:
    """`model`, with nets."""
    return resolve("sailq-tiny") if family == "qwen2_vl" else random_model(family, context=CONTEXT)


def encoded(family: str, conversations: Sequence[Sequence[Message]]) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Tokens, positions and delta of each prompt."""
    spec = ModelSpec.load(model(family))
    tokenizer, found = ChatTokenizer(spec), []
    for messages in conversations:
        tokens, vision = tokenizer.encode(messages)
        found.append((tokens, *spec.family.positions(vision, media_parts(messages))))
    return found


@functools.cache
def first_prompts(family: str) -> list[list[Message]]:
    """Those whose tokens and positions are recorded."""
    prompts = position_prompts(family)
    return [prompts.conversation()[0] for _ in range(RECORDED)]


@pytest.mark.parametrize("family", NEWER)
def test_tokens_and_positions_are_those_of_the_release(family: str) -> None:
    """Images, clips of up to 64 frames from 0.2 to 30 frames a second, regular or not, mixed, several turns."""
    expected = recorded(family)["positions"]
    assert [told(*one) for one in encoded(family, first_prompts(family))] == expected


@pytest.mark.parametrize("family", NEWER)
def test_greedy_tokens_are_those_of_the_release(family: str) -> None:
    """Every eighth prompt; `test_release.py` compares all."""
    engine = Engine.load(served(family), slots=4, threads=1)
    some = range(0, GREEDY, 8)
    answers, conversations, chosen = recorded(family)["greedy"], greedy_prompts(family), options(max_new_tokens=24)
    work = [(engine.prepare(*conversations[number], chosen), chosen) for number in some]
    same = [tokens == answers[number] for (tokens, _), number in zip(together(engine, work), some, strict=True)]
    assert sum(same) >= 0.995 * len(same)


@pytest.mark.parametrize("family", release.RELEASES)
def test_slots_at_different_positions_answer_as_alone(family: str) -> None:
    """One prompt is admitted at every third step and one at every fourth: they take slots, wait, and end at different
    steps. The last has media that the vision cache holds. Each answer is what `generate` of the release gave alone."""
    engine = Engine.load(served(family), slots=SLOTS, threads=1)
    answers, conversations = recorded(family)["greedy"], greedy_prompts(family)
    chosen = [number for number, (_, frames) in enumerate(conversations) if frames and len(answers[number]) > 12][:8]
    chosen.append(chosen[0])
    scheduler, requests, lengths = Scheduler(engine), list[Request](), [12, 5, 9, 7, 11, 4, 8, 10, 12]
    began, ended = dict[int, int](), dict[int, int]()
    step, most = 0, 0
    while len(ended) < len(chosen):
        if len(requests) < len(chosen) and (step % 3 == 0 or step % 4 == 0):
            wanted = options(max_new_tokens=lengths[len(requests)])
            requests.append(Request(engine.prepare(*conversations[chosen[len(requests)]], wanted), wanted))
            scheduler.submit(requests[-1])
        scheduler.step()
        running = [request for request in requests if request.generation and request.outcome is None]
        most = max(most, len({len(r.prepared.tokens) + len(r.generation.tokens) for r in running if r.generation}))
        for number, request in enumerate(requests):
            if request.generation:
                began.setdefault(number, step)
            if request.outcome:
                ended.setdefault(number, step)
        step += 1
    assert most == SLOTS and len(set(began.values())) > 4 and len(set(ended.values())) > 4
    assert scheduler.counts.media_reused > 0
    for number, request, length in zip(chosen, requests, lengths, strict=True):
        assert request.generation and request.generation.tokens == answers[number][:length], number


GRIDS = [(8, 12), (2, 2), (18, 6), (10, 10), (24, 4), (16, 16), (2, 40)]
"""Rows and columns of patches."""


def test_windows_are_those_of_transformers() -> None:
    """Several grids and padding in one launch: places, both masks, and the order of the vision tokens."""
    family, patches = ModelSpec.load(model("qwen2_5_vl")).family, sum(h * w for h, w in GRIDS)
    positions, full, window, reverse = family.vit_inputs(GRIDS, patches + 64)
    grids = torch.tensor([[1, h, w] for h, w in GRIDS])
    order, ends = get_vision_window_index(grids, 2, 112, 14)
    assert np.array_equal(reverse[: patches // 4], order.argsort().numpy())
    places = get_vision_position_ids(grids, 2).reshape(-1, 4, 2)[order].reshape(-1, 2)
    assert np.array_equal(positions[:patches], places.numpy())
    for mask, bounds in ((window, ends.tolist()), (full, np.cumsum([0, *(h * w for h, w in GRIDS)]).tolist())):
        expected = np.zeros(mask.shape, bool)
        for start, end in pairwise([*bounds, patches + 64]):
            expected[start:end, start:end] = True
        assert np.array_equal(mask == 0, expected) and set(np.unique(mask[~expected])) == {MASKED}


def test_interpolated_positions_are_those_of_transformers() -> None:
    """5 computes corners and weights in another way, with the same sums. 4.57.1 takes `torch.linspace`."""
    family, patches = ModelSpec.load(model("qwen3_vl")).family, sum(h * w for h, w in GRIDS)
    positions, corners, weights, _ = family.vit_inputs(GRIDS, patches + 64)
    grids = torch.tensor([[1, h, w] for h, w in GRIDS])
    assert np.array_equal(positions[:patches], get_vision_position_ids(grids, 2).numpy())
    theirs = get_vision_interpolation_indices_and_weights(grids, 48, mode="bilinear", align_corners=True,
                                                          spatial_merge_size=2)
    ours = torch.tensor(corners[:patches]), torch.tensor(weights[:patches, :, 0])
    table = torch.randn(48 * 48, 16, generator=torch.Generator().manual_seed(1))
    sums = [(table[places.long()] * shares[..., None]).sum(1) for places, shares in (ours, theirs)]
    assert (sums[0] - sums[1]).abs().max() <= 1e-4 < sums[0].std()
    for side in range(2, 300, 2):
        at = torch.linspace(0, 47, side)
        rows = get_vision_position_ids(torch.tensor([[1, side, 2]]), 2)[:, 0]
        _, found, shares, _ = family.vit_inputs([(side, 2)], 2 * side)
        assert np.array_equal(found[:, 0] // 48, at.int()[rows].numpy())
        assert np.array_equal(shares[:, 2, 0], (at - at.int())[rows].numpy()) and not shares[:, [1, 3]].any()


@pytest.mark.parametrize("fps", [9e-4, 1e-9, 1e-300, 5e-324])
def test_a_clip_whose_times_no_position_holds_is_refused(fps: float) -> None:
    """Whatever a job states: too slow for the nets, for an int32, or for a float32."""
    engine = Engine.load(served("qwen2_5_vl"), slots=1, threads=1)
    with pytest.raises(TooLong, match=r"last too long.* position \d+; .* limit is 4095\."):
        slow(engine, fps)


def test_an_answer_ends_where_the_positions_end() -> None:
    """Long before its context does. Its last token needs no position."""
    engine = Engine.load(served("qwen2_5_vl"), slots=1, threads=1)
    prepared = slow(engine, 1 / 1015)
    last = int(prepared.positions.max())
    assert 4060 < last < 4095 and prepared.limit == 4096 - last
    assert 0 < len(together(engine, [(prepared, options())])[0][0]) <= prepared.limit


def slow(engine: Engine, fps: float) -> PreparedPrompt:
    """A prompt with a clip of two temporal grids, 2 / fps seconds apart."""
    clip = FramesPart(type="video", blob="0" * 64, frames=4, height=56, width=56, times=(0.0,) * 4, fps=fps)
    frames = {clip.blob: np.zeros((4, 56, 56, 3), np.uint8)}
    return engine.prepare([Message(role="user", content=(clip,))], frames, options(max_new_tokens=500))


@pytest.mark.parametrize("family", NEWER)
def test_transformers_5_agrees_but_on_text_after_a_clip_that_is_long_in_time(family: str) -> None:
    """It continues Qwen2.5-VL's text at max(h, w) after a clip's start, also where the clip's time went further, as no
    release before it and as no weights were trained. Qwen3-VL's clips have no length in time."""
    spec, prompts = ModelSpec.load(model(family)), first_prompts(family)[:80]
    differ, expected = 0, 0
    for messages, (tokens, ours, delta) in zip(prompts, encoded(family, prompts), strict=True):
        media = media_parts(messages)
        theirs, their_delta = newest(family, spec, tokens, media)
        longest = max((extent(spec, medium) for medium in media), default=0)
        expected += longest > 0
        if np.array_equal(ours, theirs):
            assert delta == their_delta and longest == 0
        else:
            differ += 1
            end = np.flatnonzero((ours != theirs).any(0))[0]
            assert longest > 0 and tokens[end] not in (894, 895)
    assert differ == expected and (differ > 20) == (family == "qwen2_5_vl")


def extent(spec: ModelSpec, medium: FramesPart) -> int:
    """By how much the largest time of a medium exceeds its rows and columns of vision tokens; 0: by nothing."""
    t, h, w = spec.family.grid(medium)
    if medium.type == "image" or not hasattr(spec.family, "tokens_per_second"):
        return 0
    return max(0, int((t - 1) * 2 / (medium.fps or 2) * 2) + 1 - max(h, w) // 2)


def newest(family: str, spec: ModelSpec, tokens: np.ndarray, media: Sequence[FramesPart]) -> tuple[np.ndarray, int]:
    """Positions of the installed transformers."""
    ids, kinds, given = torch.tensor(tokens).long()[None], {"image": 894, "video": 895}, dict[str, Any]()
    types = sum((ids == token) * number for number, token in enumerate(kinds.values(), 1))
    for kind in kinds:
        grids = [spec.family.grid(medium) for medium in media if medium.type == kind]
        given[f"{kind}_grid_thw"] = torch.tensor(grids) if grids else None
    if family == "qwen2_5_vl":
        given["second_per_grid_ts"] = [2 / (medium.fps or 2.0) for medium in media if medium.type == "video"]
    theirs: Any = {"qwen2_5_vl": Qwen2_5_VLModel, "qwen3_vl": Qwen3VLModel}[family]
    vision = SimpleNamespace(spatial_merge_size=2, tokens_per_second=2)
    itself = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    itself.get_vision_position_ids = theirs.get_vision_position_ids.__get__(itself)
    positions, delta = theirs.get_rope_index(itself, ids, types, **given)
    return positions[:, 0].numpy(), int(delta)


def test_prompts_have_windows_that_are_not_full_and_all_kinds_of_times() -> None:
    """So that the comparisons above can fail."""
    for family in NEWER:
        media = [medium for messages in first_prompts(family) for medium in media_parts(messages)]
        videos = [medium for medium in media if medium.type == "video"]
        assert {(medium.height * 28 // UNITS[family]) % 112 for medium in media} >= {0, 28, 56, 84}
        assert max(video.frames for video in videos) >= 63
        rates = [video.fps for video in videos if video.fps]
        assert min(rates) <= 0.25 and max(rates) >= 25 and any(not video.times for video in videos)
        gaps = [len({round(gap, 6) for gap in np.diff(video.times).tolist()}) for video in videos]
        assert max(gaps) > 10 and gaps.count(1) > 50


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", release.RELEASES)
def test_a_random_checkpoint_is_whole(family: str, tied: bool) -> None:
    """transformers finds each tensor under the hub's name."""
    from safetensors import safe_open
    from transformers import AutoModelForImageTextToText

    directory = random_checkpoint_of(family, tied, CONTEXT)
    _, info = AutoModelForImageTextToText.from_pretrained(directory, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with safe_open(directory / "model.safetensors", "pt") as file:
        names = set(file.keys())
    language = "model.language_model." if family == "qwen3_vl" else "model."
    assert f"{language}embed_tokens.weight" in names and ("lm_head.weight" in names) != tied
