"""Bmodels in the layout of llm_convert's `--batch`, which TPU-MLIR 1.30.2 cannot make: its prefill nets do not compile,
and the kernel of its decode nets (`Insert`) does not either, but those are written, without the kernel.

The shapes are those of its source (LlmConverter.py, Qwen3VLConverter.py), and of Sophgo's program that runs such files
(LLM-TPU, models/Qwen3_VL/python_demo_multibatch). The nets are deploy/models'.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from compiling import ROOT
from torch import Tensor, nn

from deploy.models import export_onnx
from deploy.models.checkpoint import Checkpoint
from deploy.models.decoder_nets import Add, Layer
from deploy.models.layout import Net, Sizes, cut
from deploy.models.modules import attend, floats, ints
from deploy.models.weights import WEIGHTS, WeightsFile
from sailq.worker.engine.families.common import Common
from sailq.worker.model_files.flatbuffer import Buffer

_HEADER = 64


class Block(nn.Module):
    """hidden [1, S, H], position_ids [1, 3, S], mask [1, 1, S, S] -> hidden, k, v [1, S, heads, D]."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden: Tensor, position_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        made: tuple[Tensor, Tensor, Tensor] = self.block(hidden, position_ids.transpose(0, 1), mask)
        return made


class LastRow(nn.Module):
    """hidden [B, 1, H], position_ids [B, 3, 1], mask [B, 1, 1, S], past_k, past_v [B, S, kv heads, dim] -> hidden, and
    the past with the new rows in the last row of each slot. The compiled net has these in the past's own memory."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self, hidden: Tensor, position_ids: Tensor, mask: Tensor, past_k: Tensor, past_v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        layer = self.layer
        q, k, v = layer.qkv(hidden, *layer.rotary(position_ids.transpose(0, 1)))
        k, v = (torch.cat((past[:, :-1], new), dim=1) for past, new in ((past_k, k), (past_v, v)))
        return layer.finish(hidden, attend(q, layer.repeat(k), layer.repeat(v), mask)), k, v


def compile_last_row(model: Path, slots: int, context: int, patches: int) -> Path:
    """The bmodel of a checkpoint, in half precision. What is there, or is being made, is not made again."""
    digest = hashlib.sha256(repr((slots, context, patches)).encode())
    for file in sorted([*model.glob("*.*"), *(ROOT / "deploy/models").rglob("*.py"), Path(__file__)]):
        digest.update(file.read_bytes())
    bmodel = ROOT / f"models/BM1684X/{model.name}_last-row_{digest.hexdigest()[:16]}.bmodel"
    bmodel.parent.mkdir(parents=True, exist_ok=True)
    with bmodel.with_suffix(".lock").open("w") as lock, TemporaryDirectory(dir=bmodel.parent) as work:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not bmodel.exists():
            _compile(model, Path(work), slots, context, patches).rename(bmodel)
    return bmodel


def _compile(model: Path, work: Path, slots: int, context: int, patches: int) -> Path:
    nets, checkpoint = list[str](), Checkpoint(model)
    assert isinstance(checkpoint.family, Common)
    checkpoint.family = replace(checkpoint.family, rescale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)
    with (work / WEIGHTS).open("wb") as file:
        weights = WeightsFile(file, checkpoint)
        for net in _nets(checkpoint, slots, context, patches):
            export_onnx.export_net(net, weights, work, opset=17)
            nets.append(net.name)
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(lambda net: _compile_net(net, work), nets))
    whole = work / "whole.bmodel"
    _run(work, "model_tool", "--combine", *map(str, parts), "-o", str(whole))
    return whole


def _nets(checkpoint: Checkpoint, slots: int, context: int, patches: int) -> Iterator[Net]:
    """The nets for one slot, but for those that `--batch` changes. The ViT takes normalised pixels."""
    width = checkpoint.config.text_config.hidden_size
    for net in cut(checkpoint, Sizes(seq_length=context, vision_seq_length=patches)):
        kind, inputs = net.name.rstrip("0123456789"), net.inputs
        if kind == "vit":
            pixels, *others = inputs.items()
            yield net._replace(inputs={"input_states": pixels[1], **dict(others)})
        elif kind == "add":
            row = floats(context * width)
            yield net._replace(module=Add(), inputs=dict.fromkeys(inputs, row))
        elif kind == "block_":
            yield net._replace(module=Block(net.module), inputs=inputs | {"position_ids": ints(1, 3, context)})
        elif kind == "block_cache_":
            layer = net.module.layer
            assert isinstance(layer, Layer)
            past = floats(slots, context, layer.kv_heads, layer.dim)
            yield net._replace(module=LastRow(layer), inputs={
                "hidden": floats(slots, 1, width), "position_ids": ints(slots, 3, 1),
                "mask": floats(slots, 1, 1, context), "past_k": past, "past_v": past,
            })
        else:
            yield net


def _compile_net(net: str, work: Path) -> Path:
    folder = work / net
    folder.mkdir()
    bmodel, name = folder / f"{net}.bmodel", net.split("@")[0]
    options = ["--quant_input", "--quant_output", "--quantize", "F16"]
    if net.startswith("block_cache_"):
        options += ["--addr_mode", "io_alone", "--same_addr", "3:1,4:2"]
    if net == "lm_head":
        options.remove("--quant_output")
    if net == "greedy_head":
        options = ["--quantize", "F32"]
    _run(folder, "model_transform.py", "--model_name", name, "--model_def", str(work / f"{net}.onnx"),
         "--mlir", f"{net}.mlir")
    _run(folder, "model_deploy.py", "--mlir", f"{net}.mlir", *options, "--chip", "bm1684x", "--model",
         bmodel.name)
    if net.startswith("block_cache_"):
        _hide_outputs(bmodel)
    return bmodel


def _hide_outputs(bmodel: Path) -> None:
    """Leave the first output only: the others are in the memory of inputs."""
    data = bytearray(bmodel.read_bytes())
    (net,) = Buffer(bytes(data[_HEADER:])).root().tables(4)
    (stage,) = net.tables(3)
    start, count = stage._buffer.vector(stage._place(1), 4)
    assert count == 3
    data[_HEADER + start - 4 : _HEADER + start] = (1).to_bytes(4, "little")
    bmodel.write_bytes(data)


def _run(folder: Path, *command: str) -> None:
    """The compiler's kernel cache, in HOME, has no lock."""
    variables = os.environ | {"PATH": f"{os.environ['TPU_ENV']}/bin:{os.environ['PATH']}", "HOME": str(folder)}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
