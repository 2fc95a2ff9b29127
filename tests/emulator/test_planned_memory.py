"""The memory that `sailq model plan` adds up, against a bmodel that was combined of the same nets."""

from __future__ import annotations

import json
import re
import subprocess
from math import prod
from pathlib import Path

import pytest
from conftest import Compile
from tiny import BATCHED

from sailq.worker.doctor.ion_heaps import MB
from sailq.worker.model_files.bmodel import read_bmodel
from sailq.worker.model_files.model_paths import resolve
from sailq.worker.planning.memory import Sizes, blocks, place
from sailq.worker.planning.timings import Net, Timing, Timings

SIZES = Sizes(slots=4, context=128, prompts=(32, 64), patches=(36, 48), vision_quantize="f16")
"""Those of `BATCHED`."""
SIZES_OF, PAGE = {"f16": 2, "i32": 4, "f32": 4}, 4096


def test_the_sum_of_the_nets_is_what_the_combined_file_takes(
    environment: Path, compiled: Compile, tmp_path: Path
) -> None:
    whole = compiled(*BATCHED)
    subprocess.run([environment / "bin/model_tool", "--extract", whole], cwd=tmp_path, check=True, capture_output=True)
    nets = dict(map(timed, tmp_path.glob("*.bmodel")))
    config = json.loads((resolve("sailq-tiny") / "config.json").read_text())
    assert {net.net for net in nets} >= {"vit", "block", "block_cache", "embedding", "lm_head", "greedy_head"}

    timings = Timings("sailq-tiny", "", "f16", "f16", config, nets)
    planned = place(list(blocks(timings, SIZES)), dict.fromkeys(("npu", "vpu", "vpp"), 1000 * MB))

    memory = read_bmodel(whole).memory
    assert planned is not None
    assert planned.kinds["weights"] + planned.kinds["embeddings"] == pytest.approx(memory.weights, rel=0.01)
    assert planned.kinds["caches"] == memory.io
    copying = sum(timing.commands for net, timing in nets.items() if net.net.startswith(("embedding", "flush")))
    assert planned.kinds["commands"] == memory.commands - copying < 1.1 * planned.kinds["commands"]
    # BMRuntime keeps smaller neurons when it allocates larger ones.
    assert memory.neurons <= planned.kinds["activations"] < 2 * memory.neurons


def timed(file: Path) -> tuple[Net, Timing]:
    """A bmodel of one net, as the table of times would have it; the time itself does not matter here. The tool that
    takes a file apart forgets that block_cache has inputs and outputs of its own, in whole pages."""
    bmodel = read_bmodel(file)
    ((name, net),) = bmodel.nets.items()
    kind, first = re.sub(r"_\d+$", "", name), net.stages[0].inputs[0]
    length = {"vit": first.shape[0], "embedding": first.shape[-1], "block": first.shape[-2], "block_cache": 128}.get(
        kind, 0)
    batch = 4 if kind in ("block_cache", "lm_head", "greedy_head", "flush") else 1
    own = [*net.stages[0].inputs, *net.stages[0].outputs] if kind == "block_cache" else []
    io = sum(-(-prod(tensor.shape) * SIZES_OF[tensor.dtype] // PAGE) * PAGE for tensor in own)
    return (Net(kind, length, batch, "f16" if kind == "vit" else ""),
            Timing(0.0, bmodel.memory.weights, bmodel.memory.commands, bmodel.memory.neurons, io))
