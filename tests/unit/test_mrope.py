"""M-RoPE positions against the original release, as recorded (tests/release_record.py), and against transformers 5."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from qwen2vl import Oracle, random_model
from release_record import RECORDED, position_prompts, recorded, told

from deploy.models.tiny import batches, pool
from sailq.producer.samples.dataset import NFRAMES
from sailq.shared.jobs import GenerationOptions
from sailq.worker.engine.engine import Engine
from sailq.worker.engine.mrope import Box, rope_index
from sailq.worker.model_files.model_paths import resolve

Layout = list[int | tuple[str, tuple[int, int, int]]]
IMAGE, VIDEO, TALL_VIDEO = (1, 6, 8), (2, 4, 4), (5, 10, 4)
LONG_VIDEO, TWO_DOZEN_FRAMES = (9, 4, 6), (12, 4, 4)


@pytest.fixture(scope="module")
def newest() -> Oracle:
    return Oracle(random_model())


def _types(layout: Layout) -> tuple[list[int], dict[str, list]]:
    """Token types (0 text, 1 image, 2 video) of text lengths and media, and the grids of each kind."""
    types: list[int] = []
    grids: dict[str, list] = {"image": [], "video": []}
    for item in layout:
        if isinstance(item, int):
            types += [0] * item
        else:
            kind, (t, h, w) = item
            types += [1 if kind == "image" else 2] * (t * h * w // 4)
            grids[kind].append((t, h, w))
    return types, grids


def _theirs(oracle: Oracle, layout: Layout) -> tuple[np.ndarray, int]:
    """The positions of the installed transformers."""
    types, grids = _types(layout)
    tensors = {f"{kind}_grid_thw": torch.tensor(rows) for kind, rows in grids.items() if rows}
    positions, delta = oracle.model.model.get_rope_index(
        torch.zeros(1, len(types), dtype=torch.long), torch.tensor([types]), **tensors
    )
    return positions[:, 0].numpy(), int(delta)


def _ours(layout: Layout) -> tuple[np.ndarray, int]:
    boxes = [_box(*item[1]) for item in layout if not isinstance(item, int)]
    return rope_index(np.array(_types(layout)[0]) > 0, boxes)


def _box(t: int, h: int, w: int) -> Box:
    return Box(range(t), h // 2, w // 2)


def test_positions_of_whole_conversations_are_those_of_the_release() -> None:
    """4.45.1 and 4.57.1 gave the same. `test_release.py` asks them again, and more."""
    engine, prompts = Engine.load(resolve("sailq-tiny"), threads=1), position_prompts()
    positions = recorded("qwen2_vl")["positions"]
    assert len(positions) == RECORDED
    for number, expected in enumerate(positions):
        prepared = engine.prepare(*prompts.conversation(), GenerationOptions())
        assert told(prepared.tokens, prepared.positions, prepared.rope_delta) == expected, number


def test_text_after_a_medium_continues_at_the_largest_position_so_far() -> None:
    """24 frames of 56 × 56 between 13 and 13 tokens of text."""
    positions, delta = _ours([13, ("video", TWO_DOZEN_FRAMES), 13])
    assert positions[:, 12].tolist() == [12] * 3 and positions[:, 13].tolist() == [13] * 3
    assert positions[:, 13 + 47].tolist() == [24, 14, 14] and positions[:, 13 + 48].tolist() == [25] * 3
    assert positions[:, -1].tolist() == [37] * 3 and delta == 37 + 1 - (13 + 48 + 13)


@pytest.mark.parametrize("layout", [
    [5, ("image", IMAGE), 7],
    [3, ("image", IMAGE), 2, ("image", (1, 2, 2)), 2, ("image", (1, 10, 4)), 9],
    [3, ("video", VIDEO), 4],
    [3, ("video", TALL_VIDEO), 4],
    [1, ("video", VIDEO), 3, ("image", IMAGE), 2, ("video", TALL_VIDEO), 6],
    [2, ("image", IMAGE)],
])
def test_transformers_5_agrees_while_no_clip_has_more_temporal_grids_than_rows_or_columns(
    newest: Oracle, layout: Layout
) -> None:
    (ours, our_delta), (theirs, delta) = _ours(layout), _theirs(newest, layout)
    assert ours.dtype == np.int32
    assert np.array_equal(ours, theirs) and our_delta == delta


@pytest.mark.parametrize(("clip", "later"), [(TWO_DOZEN_FRAMES, 10), (LONG_VIDEO, 6), ((2, 2, 2), 1)])
def test_transformers_5_differs_after_a_clip_with_more_temporal_grids(
    newest: Oracle, clip: tuple[int, int, int], later: int
) -> None:
    """It continues at max(h, w) of the merged grid, as no release before it and as no weights were trained."""
    layout: Layout = [13, ("video", clip), 13]
    (ours, our_delta), (theirs, delta) = _ours(layout), _theirs(newest, layout)
    assert np.array_equal(ours[:, :-13], theirs[:, :-13])
    assert np.array_equal(ours[:, -13:], theirs[:, -13:] + later) and our_delta == delta + later


def test_text_counts_up() -> None:
    positions, delta = rope_index(np.zeros(6, bool), [])
    assert np.array_equal(positions, np.tile(np.arange(6), (3, 1)))
    assert delta == 0


@pytest.mark.parametrize("count", [3, 5])
def test_tokens_that_do_not_match_the_grids_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match="vision tokens"):
        rope_index(np.array([False] + [True] * count + [False]), [_box(1, 4, 4)])


def test_sailq_tiny_was_trained_on_clips_too_short_to_differ() -> None:
    """So its weights agree with both rules."""
    for height, width in pool.GRIDS:
        assert max(height, width) // 28 >= NFRAMES // 2


def test_training_counts_as_the_release_does() -> None:
    for frames, size in ((4, (84, 112)), (1, (84, 84)), (24, (56, 56))):
        entry = pool.Entry(None, size, frames > 1, (b"",) * frames)
        grid = max(frames // 2, 1), size[0] // 14, size[1] // 14
        ours, _ = _ours([13, ("video", grid), 13])
        assert np.array_equal(batches._positions(ours.shape[1], [(13, entry)]), ours)
