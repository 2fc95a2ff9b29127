"""The prefill of a SAIL runner: dynamic nets with a mask, and values that are not finite beside other prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_in import ORDINARY, PROMPT, Both, open_runners, stand_in

POISONED = ORDINARY
"""A token that is in no other prompt."""


def test_dynamic_nets_with_a_mask_take_prompts_of_any_length(tmp_path: Path) -> None:
    both = Both(open_runners(stand_in(tmp_path), tmp_path, dynamic=True), 0)
    for length in (5, 5, PROMPT, 9):
        both.prefill({0: length})
        both.decode([0])


@pytest.mark.parametrize("flat", [False, True], ids=["a length each", "one flat length"])
def test_features_are_added_at_the_places_of_each_prompts_vision_tokens(flat: bool, tmp_path: Path) -> None:
    """Alone, and beside other prompts; with and without vision tokens; at several lengths, in any order."""
    runners = open_runners(
        stand_in(tmp_path), tmp_path, slots=4, recent=4, family="qwen3_vl", lengths=(PROMPT // 4, PROMPT), flat=flat
    )
    assert runners[0].together([7, 5, 9]) == 3
    both = Both(runners, 0)
    for lengths, vision in (
        ({2: 7, 0: 5, 1: 9}, 0.5), ({2: PROMPT}, 0.9), ({1: 6}, 0.5), ({0: 20, 3: 3}, 0), ({3: 25}, 0.2),
    ):
        both.prefill(lengths, vision)
        both.decode(list(both.lengths))


class NotedNet:
    """The embedding. Attributes: `ids`: the last run's tokens."""

    def __init__(self, net: Any) -> None:
        self._net, self.ids = net, np.empty(0, np.int32)

    def get_inputs(self) -> Any:
        return self._net.get_inputs()

    def run(self, names: None, feeds: Mapping[str, Any]) -> list[Any]:
        if feeds["input_ids"].any():  # the stand-in also asks for angles, without tokens
            self.ids = feeds["input_ids"].reshape(-1).copy()
        return list(self._net.run(names, feeds))


class PoisonedNet:
    """A layer whose keys or values at one token are not finite, of which its attention reads the same: a column more,
    with the mask of the token's own. Counts its runs in `launches`."""

    def __init__(self, embedding: NotedNet, net: Any, field: str, value: float) -> None:
        self._embedding, self._net, self._field, self._value = embedding, net, field, value
        self.launches = 0

    def get_inputs(self) -> Any:
        return self._net.get_inputs()

    def run(self, names: None, feeds: Mapping[str, Any]) -> list[Any]:
        self.launches += 1
        rows = np.flatnonzero(self._embedding.ids == POISONED)
        if not len(rows):
            return list(self._net.run(names, feeds))
        (row,), keys = rows, feeds["past_k"]
        past = {name: np.zeros((1, keys.shape[1], 1, keys.shape[3]), np.float32) for name in ("past_k", "past_v")}
        past[f"past_{self._field}"][:] = self._value
        mask = np.concatenate([feeds["mask"][..., row : row + 1], feeds["mask"]], axis=-1)
        hidden, k, v = self._net.run(names, {**feeds, **past, "mask": mask})
        {"k": k, "v": v}[self._field][0, row] = self._value
        return [hidden, k, v]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("field", ["k", "v"])
@pytest.mark.parametrize("bad", [0, 1, 2])
def test_keys_and_values_that_are_not_finite_do_not_reach_a_prompt_beside(
    bad: int, field: str, value: float, tmp_path: Path
) -> None:
    """Nor the next prompt of their slot."""
    runners = open_runners(stand_in(tmp_path), tmp_path, slots=4, recent=4)
    nets = runners[0]._chip._engine._nets
    nets["embedding"] = NotedNet(nets["embedding"])
    nets["block_0"] = poisoned = PoisonedNet(nets["embedding"], nets["block_0"], field, value)
    both = Both(runners, bad)
    prompts = both.prompts({2: 7, 0: 5, 1: 9})
    tokens = prompts[bad].tokens.copy()
    tokens[3] = POISONED
    prompts[bad] = replace(prompts[bad], tokens=tokens)

    assert not np.isfinite(both.prefill_beside(prompts, bad)).any()

    assert poisoned.launches == 1 + 3  # together, then each alone
    both.release(prompts[bad].slot, clear=True)
    for _ in range(6):
        both.decode(list(both.lengths))
    both.prefill({prompts[bad].slot: 4})
    for _ in range(6):
        both.decode(list(both.lengths))
