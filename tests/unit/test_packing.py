"""What shares a launch, and the masks that keep it apart."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from qwen2vl import random_model

from sailq.worker.engine.engine import Engine
from sailq.worker.engine.model import ModelSpec
from sailq.worker.runners.base import MASKED
from sailq.worker.runners.inputs import causal_mask
from sailq.worker.runners.packing import prompts_together, vision_launches

CLIP = 160
"""Patches of two frames of 140 × 224."""


@pytest.mark.parametrize(
    ("grids", "sizes", "launches"),
    [
        ([CLIP], (160, 320), [[CLIP]]),
        ([CLIP] * 2, (160, 320), [[CLIP] * 2]),
        ([CLIP] * 3, (160, 320, 1024), [[CLIP] * 2, [CLIP]]),
        ([CLIP] * 8, (160, 1024), [[CLIP] * 6, [CLIP], [CLIP]]),
        ([CLIP] * 8, (1024,), [[CLIP] * 6, [CLIP] * 2]),
        ([16, 640, 16, 64], (640,), [[640], [64, 16, 16]]),
        ([4, 8, 16], (16, 32), [[16, 8, 4]]),
    ],
)
def test_grids_share_the_launches_that_take_least_time(
    grids: list[int], sizes: tuple[int, ...], launches: list[list[int]]
) -> None:
    made = vision_launches(grids, sizes)
    assert [[grids[index] for index in launch] for launch in made] == launches


def test_each_grid_is_in_one_launch_that_holds_it() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        sizes = sorted({int(size) for size in random.integers(1, 64, random.integers(1, 4))})
        grids = random.integers(1, sizes[-1] + 1, random.integers(0, 20)).tolist()
        made = vision_launches(grids, sizes)
        assert sorted(index for launch in made for index in launch) == list(range(len(grids)))
        assert all(sum(grids[index] for index in launch) <= sizes[-1] for launch in made)


@pytest.mark.parametrize(
    ("lengths", "sizes", "count"),
    [
        ([80], (96, 512), 1),
        ([80, 80], (96, 512), 1),  # 512 rows take longer than 96 twice
        ([80] * 6, (96, 512), 6),
        ([80] * 4, (96, 192, 512), 2),
        ([80, 80, 20], (96, 192, 512), 3),
        ([80, 80, 40], (96, 192, 512), 2),
        ([80, 400, 20, 10], (512,), 4),
        ([80, 500, 20], (512,), 1),  # no later prompt goes before an earlier one
        ([600, 20], (512,), 1),
    ],
)
def test_prompts_are_prefilled_together_where_that_takes_least_time(
    lengths: list[int], sizes: tuple[int, ...], count: int
) -> None:
    assert prompts_together(lengths, sizes) == count


def test_a_grid_sees_only_itself_in_a_shared_launch_of_the_vit() -> None:
    """With the exported net itself: one run for all grids and some padding, and one for each."""
    vit, family = Engine.load(random_model(), threads=1).runner._vit, ModelSpec.load(random_model()).family  # type: ignore[attr-defined]
    random = np.random.default_rng(1)
    grids = [(4, 6), (2, 2), (4, 6), (6, 4)]
    pixels = [random.integers(0, 256, (h * w, family.patch_dim)).astype(np.float32) for h, w in grids]

    def run(some: list[tuple[int, int]], patches: list[np.ndarray], size: int) -> np.ndarray:
        values = np.zeros((size, family.patch_dim), np.float32)
        values[: sum(map(len, patches))] = np.concatenate(patches)
        positions, mask = family.vit_inputs(some, size)
        embeds: np.ndarray = vit.run(None, {"pixels": values, "pos_ids": positions, "mask": mask[None]})[0]
        return embeds[: sum(map(len, patches)) // 4]

    together = run(grids, pixels, 96)
    alone = np.concatenate([run([grid], [one], len(one)) for grid, one in zip(grids, pixels, strict=True)])
    assert np.abs(together - alone).max() <= 1e-5 * np.ptp(alone)
    _, mask = family.vit_inputs(grids, 96)
    assert set(np.unique(mask).tolist()) == {0, MASKED} and (mask == 0).sum() == 3 * 24**2 + 4**2 + 20**2


def test_a_prompt_sees_only_itself_in_a_shared_prefill() -> None:
    """With the exported nets themselves: each prompt's last hidden state and keys, beside others and alone."""
    runner, spec = Engine.load(random_model(), threads=1).runner, ModelSpec.load(random_model())
    random = np.random.default_rng(2)
    prompts = [random.integers(0, spec.vocab_size, length).astype(np.int32) for length in (5, 17, 1, 9)]

    def run(some: list[np.ndarray], size: int) -> list[np.ndarray]:
        tokens = np.concatenate([*some, np.zeros(size - sum(map(len, some)), np.int32)])
        positions = np.zeros((3, 1, size), np.int32)
        starts = np.cumsum([0, *map(len, some)]).tolist()
        for start, end in pairwise(starts):
            positions[:, 0, start:end] = np.arange(end - start)
        past = np.empty((1, spec.kv_heads, 0, spec.head_dim), np.float32)
        mask = causal_mask(starts[:-1], size)
        hidden, feeds = runner._embed(tokens[None], positions)  # type: ignore[attr-defined]
        feeds |= {"mask": mask, "past_k": past, "past_v": past}
        found = []
        for block in runner._blocks:  # type: ignore[attr-defined]
            hidden, k, v = block.run(None, {"hidden": hidden, **feeds})
            found.append(np.concatenate([k, v], axis=-1)[0].reshape(size, -1))
        found.append(hidden[0])
        return [np.concatenate(found, axis=-1)[start:end] for start, end in pairwise(starts)]

    together, alone = run(prompts, 40), [run([one], len(one))[0] for one in prompts]
    for one, other in zip(together, alone, strict=True):
        assert np.abs(one - other).max() <= 1e-5 * np.ptp(other)
