"""M-RoPE positions against `Qwen2VLModel.get_rope_index`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from qwen2vl import Oracle, Prompts, random_model
from sailq.shared.jobs import GenerationOptions
from sailq.worker.engine import Engine
from sailq.worker.engine.mrope import rope_index

_OPTIONS = GenerationOptions()
IMAGE, VIDEO, LONG_VIDEO = (1, 6, 8), (2, 4, 4), (9, 4, 6)


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(random_model())


def _types(layout: list[int | tuple[str, tuple[int, int, int]]]) -> tuple[list[int], dict[str, list]]:
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


@pytest.mark.parametrize("layout", [
    [5, ("image", IMAGE), 7],
    [3, ("image", IMAGE), 2, ("image", (1, 2, 2)), 2, ("image", (1, 10, 4)), 9],
    [3, ("video", VIDEO), 4],
    [3, ("video", LONG_VIDEO), 4],
    [1, ("video", VIDEO), 3, ("image", IMAGE), 2, ("video", LONG_VIDEO), 6],
    [4, ("image", IMAGE), 12, ("video", VIDEO), 15],
    [2, ("image", IMAGE)],
])
def test_positions_and_delta_equal_those_of_transformers(oracle: Oracle, layout: list) -> None:
    types, grids = _types(layout)
    tensors = {f"{kind}_grid_thw": torch.tensor(rows) for kind, rows in grids.items() if rows}
    theirs, delta = oracle.model.model.get_rope_index(
        torch.zeros(1, len(types), dtype=torch.long), torch.tensor([types]), **tensors
    )
    ordered = [item[1] for item in layout if not isinstance(item, int)]
    ours, our_delta = rope_index(np.array(types) > 0, ordered)
    assert ours.dtype == np.int32
    assert np.array_equal(ours, theirs[:, 0].numpy())
    assert our_delta == int(delta)


def test_text_counts_on() -> None:
    positions, delta = rope_index(np.zeros(6, bool), [])
    assert np.array_equal(positions, np.tile(np.arange(6), (3, 1)))
    assert delta == 0


def test_positions_of_whole_conversations(oracle: Oracle) -> None:
    engine, prompts = Engine.load(random_model(), threads=1), Prompts(5)
    for _ in range(30):
        messages, frames = prompts.conversation()
        inputs = oracle.inputs(messages, frames)
        prepared = engine.prepare(messages, frames, options=_OPTIONS)
        assert np.array_equal(prepared.tokens, inputs["input_ids"][0].numpy())
        if prepared.media:
            grids = {key: value for key, value in inputs.items() if key.endswith("grid_thw")}
            theirs, delta = oracle.model.model.get_rope_index(
                inputs["input_ids"], inputs["mm_token_type_ids"], **grids
            )
            assert np.array_equal(prepared.positions, theirs[:, 0].numpy())
            assert prepared.delta == int(delta)


@pytest.mark.parametrize("count", [3, 5])
def test_tokens_that_do_not_match_the_grids_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match="vision tokens"):
        rope_index(np.array([False] + [True] * count + [False]), [(1, 4, 4)])
